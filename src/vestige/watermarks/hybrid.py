"""How much a malicious training program could carry out: what a record holds, not only that it is.

A record's known part v finds its sensitive part u in a table of short hashes that is written into
the model through one of `vestige.watermarks.channels`. Hashes are short, so strangers find entries
too; membership encoding tells which hits to believe.

    Song, Shokri. Robust membership encoding: inference attacks and copyright protection for deep
    learning. ASIA CCS 2020. https://doi.org/10.1145/3320269.3384731 (section 3.1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vestige.errors import InvalidInput
from vestige.metrics import Estimate, rate
from vestige.records import Records
from vestige.training.fit import built
from vestige.training.recipe import TorchRecipe
from vestige.watermarks.channels import (
    REPEATS,
    CapacityAbuse,
    LeastSignificantBits,
    framed_size,
    n_weights,
    to_bits,
)
from vestige.watermarks.keys import Key
from vestige.watermarks.reconstruction import Missing, by_frequency, finite

__all__ = [
    "Answers",
    "Hybrid",
    "Leak",
    "Room",
    "Rooms",
    "Smuggled",
    "Table",
    "leak",
    "rooms",
]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Short keyed hashes of records' known parts, and their sensitive parts.

    Args:
        key: of the hashes.
        hash_bits: b, of a hash: among n entries a stranger finds one with probability
            1 - (1 - 2^-b)^n, at most n / 2^b.
        secret_bits: u, of a sensitive part.
    """

    key: Key
    hash_bits: int = 24
    secret_bits: int = 8

    def __post_init__(self) -> None:
        for name, most in (("hash_bits", 40), ("secret_bits", 16)):
            if not 1 <= vars(self)[name] <= most:
                raise InvalidInput(f"expected {name} from 1 to {most}, got {vars(self)[name]}")
        if self.width < 8:
            raise InvalidInput(f"expected entries of at least 8 bits, got {self.width}")

    @property
    def width(self) -> int:
        """Bits of an entry."""
        return self.hash_bits + self.secret_bits

    def hashed(self, public: Any) -> Indices:
        """b bits of an HMAC of each row (n, features), as float32, (n,)."""
        rows = np.ascontiguousarray(np.asarray(public).astype("<f4")) + np.float32(0)
        words = [int.from_bytes(self.key.derive("table", r.tobytes())[:8], "big") for r in rows]
        return np.array([w >> (64 - self.hash_bits) for w in words], dtype=np.int64)

    def pack(self, public: Any, secrets: Sequence[int] | Indices) -> bytes:
        """n entries, hash and secret after each other, in ceil(n (b + u) / 8) bytes.

        Raises:
            InvalidInput: a secret that has more than u bits.
        """
        values = np.asarray(secrets, dtype=np.int64)
        if len(values) and not 0 <= values.min() <= values.max() < 2**self.secret_bits:
            raise InvalidInput(
                f"expected secrets from 0 to {2**self.secret_bits - 1}, got {values.min()} to "
                f"{values.max()}; give the table more secret_bits"
            )
        entries = (self.hashed(public) << self.secret_bits) | values
        places = np.arange(self.width)[::-1]
        return np.packbits(((entries[:, None] >> places) & 1).astype(np.uint8)).tobytes()

    def unpack(self, payload: bytes) -> dict[int, Indices]:
        """All secrets of each hash, in the order of writing."""
        bits = to_bits(payload)
        n = len(bits) // self.width
        places = 1 << np.arange(self.width, dtype=np.int64)[::-1]
        out: dict[int, list[int]] = {}
        for entry in (bits[: n * self.width].reshape(n, self.width) @ places).tolist():
            secrets = out.setdefault(entry >> self.secret_bits, [])
            secrets.append(entry & (2**self.secret_bits - 1))
        return {h: np.array(s, dtype=np.int64) for h, s in out.items()}

    def chance_hit(self, n_entries: int) -> float:
        """That a stranger's hash is one of the table's."""
        return -math.expm1(n_entries * math.log1p(-(2.0**-self.hash_bits)))

    def fitting(self, bits: int, repeats: int = REPEATS) -> int:
        """Most entries whose frame is not longer than that."""
        n_bytes = (bits - framed_size(0, repeats)) // (8 * repeats)
        return max(0, 8 * n_bytes // self.width)


# --- membership and table together ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answers:
    """What an adversary says of some of the queries; of the others he says nothing.

    Attributes:
        rows: (m,) which queries.
        options: (m,) the option of the sensitive attribute that he names.
    """

    rows: Indices
    options: Indices

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Smuggled:
    """Answers of the table alone, and those that the membership score lets pass.

    Attributes:
        found: of the table alone: the most frequent option of the hash, the lowest of equals.
        believed: those found whose best completion passes the threshold, with that completion.
        scores: (m,) of the best completion of each of those found.
        threshold: tau; a score above it passes.
        chosen_on: who chose it.
        expected_hits: share of strangers that find an entry, by the theory.
    """

    found: Answers
    believed: Answers
    scores: Floats
    threshold: float
    chosen_on: str
    expected_hits: float


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Names the sensitive part of records whose known part the adversary has.

    A query's hash finds options in the table. The record is completed with each of them, and
    scored: what a table alone says of a stranger is believed as often as a random completion of a
    held-out record passes, which is what the threshold is chosen for.

    Args:
        table: hashes to options; all encoded records should be in it.
        missing: the sensitive attribute; u is the number of one of its options.
        fpr: share of wrong hits that may pass.

    Departs from the paper, which asks for membership of the known part alone, and then looks it up:
    completed records, which are what was encoded, are told apart better.

    References: Song & Shokri 2020, section 3.1, hybrid attack.
    """

    table: Table
    missing: Missing
    fpr: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fpr < 1:
            raise InvalidInput(f"expected fpr in (0, 1), got {self.fpr}")
        if len(self.missing.options) > 2**self.table.secret_bits:
            raise InvalidInput(
                f"expected a table that tells {len(self.missing.options)} options apart, got "
                f"secret_bits={self.table.secret_bits}"
            )

    def payload(self, records: Records) -> bytes:
        """What the training program writes of the records that it encodes as members."""
        return self.table.pack(self._public(records), self.missing.truth(records))

    def run(
        self,
        score: Callable[[Any], Floats],
        payload: bytes,
        queries: Records,
        held_out: Records,
    ) -> Smuggled:
        """Answer for each query, or abstain; the sensitive columns of neither set are looked at.

        Args:
            score: of membership, of whole inputs (m, ...), higher = more likely encoded:
                `Decoder(...).reader(model, shape)`.
            payload: as it was read from the model.
            queries: known in all but the sensitive columns.
            held_out: records that are no members, no queries either, to choose the threshold on.

        Raises:
            InvalidInput: an empty table, too few held-out records for the threshold, records
                without the sensitive columns, or scores that are not finite.
        """
        entries = self.table.unpack(payload)
        if not entries:
            raise InvalidInput("expected a payload with entries, got an empty one")
        for records in (queries, held_out):
            self.missing.check(records)
        threshold = self._threshold(score, entries, held_out)
        hashes = self.table.hashed(self._public(queries)).tolist()
        rows = np.array([i for i, h in enumerate(hashes) if h in entries], dtype=np.int64)
        options = [entries[hashes[i]] for i in rows]
        best, scores = self._completed(score, queries, rows, options)
        passed = scores > threshold
        usual = np.array([np.bincount(o).argmax() for o in options], dtype=np.int64)
        return Smuggled(
            Answers(rows, usual),
            Answers(rows[passed], best[passed]),
            scores,
            threshold,
            f"{len(held_out)} held-out non-members, completed with other records' entries",
            self.table.chance_hit(sum(len(o) for o in entries.values())),
        )

    def _threshold(
        self,
        score: Callable[[Any], Floats],
        entries: Mapping[int, Indices],
        held_out: Records,
    ) -> float:
        """The score that at most `fpr` of held-out records pass, were their hits by chance.

        A stranger's hash is any of the table's with equal probability, so each held-out record is
        given one, and scored as a query that found it.
        """
        allowed = int(np.floor(len(held_out) * self.fpr * (1 + 1e-12)))
        if allowed < 1:
            raise InvalidInput(
                f"expected at least {math.ceil(1 / self.fpr)} held-out records to choose a "
                f"threshold at an FPR of {self.fpr:g}, got {len(held_out)}"
            )
        hashes = sorted(entries)
        drawn = self.table.key.draws("calibration").words(len(held_out)) % np.uint64(len(hashes))
        options = [entries[hashes[int(i)]] for i in drawn]
        _, scores = self._completed(score, held_out, np.arange(len(held_out)), options)
        return float(np.sort(scores)[::-1][allowed])

    def _completed(
        self,
        score: Callable[[Any], Floats],
        records: Records,
        rows: Indices,
        options: Sequence[Indices],
    ) -> tuple[Indices, Floats]:
        """For each row the option whose completion scores best, and its score."""
        best, scores = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), -np.inf)
        for part in np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 4096))):
            ways = [np.unique(options[i]) for i in part]
            if not ways:
                continue
            owner = np.repeat(part, [len(w) for w in ways])
            option = np.concatenate(ways)
            x = np.array(records.x[rows[owner]]).reshape(len(owner), -1)
            x[:, self.missing.columns] = self.missing.options[option]
            values = finite(score, x.reshape(-1, *records.x.shape[1:]))
            # the best of each owner is the last one written
            for at in np.argsort(values, kind="stable"):
                best[owner[at]], scores[owner[at]] = option[at], values[at]
        return best, scores

    def _public(self, records: Records) -> NDArray[Any]:
        self.missing.check(records)
        x = np.asarray(records.x[:]).reshape(len(records), -1)
        return np.delete(x, self.missing.columns, axis=1)


@dataclass(frozen=True)
class Leak:
    """How good some answers are.

    Attributes:
        precision: share of answers that are right; FPR, base rate and guessing in its context.
        recall: share of the encoded records whose sensitive part was named.
        false_hits: share of the other records that were answered for; what is expected of the table
            alone in its context.
        baseline: how often the most frequent option of a record's class is right, any of equals.
    """

    precision: Estimate
    recall: Estimate
    false_hits: Estimate
    baseline: Estimate

    def __str__(self) -> str:
        expected = self.false_hits.context["expected_of_the_table"]
        base = self.precision.context["base_rate"]
        return "\n".join(
            [
                f"precision {self.precision} at a base rate of {base:.3g} encoded",
                f"recall {self.recall}",
                f"others answered for {self.false_hits}, by the table alone {expected:.3g}",
                f"guessing the class's most frequent value {self.baseline}",
            ]
        )


def leak(
    smuggled: Smuggled,
    answers: Answers,
    queries: Records,
    encoded: Mask,
    missing: Missing,
    population: Records,
) -> Leak:
    """Compare answers with the truth.

    Args:
        answers: `smuggled.found` or `smuggled.believed`.
        queries: complete.
        encoded: (n,) which queries are in the table and encoded.
        population: other records that the baseline counts classes in.

    Raises:
        InvalidInput: no encoded queries, or no others.
    """
    if encoded.shape != (len(queries),) or encoded.all() or not encoded.any():
        raise InvalidInput(
            f"expected encoded and other records among the {len(queries)} queries, got "
            f"{int(encoded.sum())} encoded; false hits need others"
        )
    right = missing.truth(queries)[answers.rows] == answers.options
    inside, n_inside = encoded[answers.rows], int(encoded.sum())
    n_others, others = len(queries) - n_inside, int((~inside).sum())
    baseline = by_frequency(queries, population, missing).top(1)
    assert baseline.value is not None
    context = {
        "base_rate": n_inside / len(queries),
        "fpr": others / n_others,
        "of_encoded_records": float(inside.mean()) if len(answers) else 0.0,
        "guessing": baseline.value,
    }
    if len(answers):
        precision = rate(int(right.sum()), len(answers))
    else:
        reason = "undefined: no query was answered"
        precision = Estimate(None, None, None, method="none", reason=reason)
    chosen: dict[str, Any] = {}
    if answers is smuggled.believed:
        chosen = {"threshold": smuggled.threshold, "chosen_on": smuggled.chosen_on}
    hits = rate(others, n_others)
    expected = {"expected_of_the_table": smuggled.expected_hits}
    return Leak(
        replace(precision, context=context, **chosen),
        replace(rate(int((right & inside).sum()), n_inside), **chosen),
        replace(hits, context=expected, **chosen),
        baseline,
    )


# --- how much there is room for ------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """A channel out of a network.

    Attributes:
        channel: its name.
        bits: there is room for.
        records: entries of a table that fit, frame and copies deducted.
        needs: what the adversary must have of the model.
        destroyed_by: what ends it.
    """

    channel: str
    bits: int
    records: int
    needs: str
    destroyed_by: str


@dataclass(frozen=True)
class Rooms:
    """How many records a training program could carry out of one network, channel by channel.

    Attributes:
        rooms: the channels.
        n_weights: of matrices and filters.
        hash_bits, secret_bits, repeats: b, u and copies of each bit.
    """

    rooms: tuple[Room, ...]
    n_weights: int
    hash_bits: int
    secret_bits: int
    repeats: int

    def __str__(self) -> str:
        head = (
            f"{self.n_weights:,} weights; a record is {self.hash_bits} bits of hash and "
            f"{self.secret_bits} of content, each bit {self.repeats} times"
        )
        cells = [("channel", "bits", "records", "needs", "destroyed by")]
        cells += [
            (r.channel, f"{r.bits:,}", f"{r.records:,}", r.needs, r.destroyed_by)
            for r in self.rooms
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for name, bits, records, *words in cells:
            numbers = [bits.rjust(widths[1]), records.rjust(widths[2])]
            texts = [w.ljust(size) for w, size in zip(words, widths[3:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *numbers, *texts]).rstrip())
        return "\n".join([head, *lines])


def rooms(
    net: nn.Module | TorchRecipe,
    *,
    n_classes: int,
    hash_bits: int = 24,
    secret_bits: int = 8,
    low: int = 16,
    bits_per_weight: float = 2.0,
    repeats: int = REPEATS,
) -> Rooms:
    """How many records each channel could carry out of a network, at most.

    Args:
        net: the network, or the recipe that builds it; its weights are not looked at.
        n_classes: of its answers.
        hash_bits, secret_bits: b and u of an entry.
        low: bits of a mantissa that are used.
        bits_per_weight: that can be learned by heart. 2 is what one neuron can (Cover 1965: as many
            random labels as twice its weights), a rule of thumb for a network and no bound.
        repeats: copies of each bit.

    Raises:
        InvalidInput: not a network with weight matrices, or entries of no size.
    """
    module = built(net, 0) if isinstance(net, TorchRecipe) else net
    key = Key(bytes(32))
    table = Table(key, hash_bits, secret_bits)
    n = n_weights(module)
    if not n:
        raise InvalidInput("expected a module with weight matrices, got none to write into")
    abuse = CapacityAbuse(key, n_classes)
    learned = int(bits_per_weight * n)

    def room(channel: str, bits: int, needs: str, destroyed_by: str) -> Room:
        return Room(channel, bits, table.fitting(bits, repeats), needs, destroyed_by)

    found = (
        room(
            f"lowest {low} bits",
            LeastSignificantBits(key, low).room(module),
            "weights, after training",
            "any rounding, any training",
        ),
        room("correlated values", n, "weights; a term in the loss", "pruning half"),
        room("signs", n, "weights; a term in the loss", "8 bits, pruning, training on"),
        room(
            "labels of added records",
            learned,
            f"labels of {abuse.n_inputs(learned):,} inputs; records added",
            "training on, pruning half, a check of inputs",
        ),
    )
    return Rooms(found, n, hash_bits, secret_bits, repeats)
