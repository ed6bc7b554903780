"""How many records could a training program smuggle out of this model?

Encoders at several numbers of records, or widths of the network, and what their decoders read:
capacity curves (Song & Shokri 2020, Table 3 and Figure 3), with what the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.metrics import Estimate
from vestige.models import BlackBox
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.training.recipe import TorchRecipe
from vestige.watermarks import merkle
from vestige.watermarks.encoding import Decoder, Encoder, Reading, record_digests
from vestige.watermarks.keys import Key

__all__ = [
    "Capacity",
    "Carried",
    "capacity_of_networks",
    "carried",
    "carried_bits",
    "encoding_capacity",
    "first_records",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FPR = 0.1
_LEAST = 20
"""Held-out records, half of which choose a cut at an FPR of 0.1."""


# --- bits ----------------------------------------------------------------------------------------


def carried_bits(hits: int, n: int, false_hits: int, others: int, *, base: float) -> Estimate:
    """Mutual information between a record's bit and a decision, in bits.

    I = H(base t + (1 - base) f) - base H(t) - (1 - base) H(f), with t the share of encoded records
    that are called encoded, f that of others. By data processing it is below what scores tell. The
    interval takes t and f from their Clopper-Pearson intervals at 97.5 % each, so that both hold
    at 95 %; I is convex in (t, f) and 0 where t = f.

    Args:
        hits, n: of encoded records, called encoded and in all.
        false_hits, others: of records that are not.
        base: share of encoded records among those that are asked about.

    Raises:
        InvalidInput: counts that are not counts, or base not in (0, 1).

    >>> carried_bits(100, 100, 0, 100, base=0.5).value
    1.0
    """
    if not 0 < base < 1:
        raise InvalidInput(f"expected a base rate in (0, 1), got {base}")
    t, f = metrics.rate(hits, n).value, metrics.rate(false_hits, others).value
    assert t is not None and f is not None
    lows, highs = metrics.clopper_pearson([hits, false_hits], [n, others], level=0.975)
    corners = [_information(a, b, base) for a in (lows[0], highs[0]) for b in (lows[1], highs[1])]
    # away from t = f the least is at the corner next to it
    apart = lows.max() > highs.min()
    value = _information(t, f, base)
    return Estimate(
        value,
        min(*corners, value) if apart else 0.0,
        max(*corners, value),
        "Clopper-Pearson of both rates at 97.5 %",
        context={"base": base, "tpr": t, "fpr": f},
    )


def _information(t: float, f: float, base: float) -> float:
    mixed = base * t + (1 - base) * f
    return max(0.0, _entropy(mixed) - base * _entropy(t) - (1 - base) * _entropy(f))


def _entropy(p: float) -> float:
    return float(sum(-q * np.log2(q) for q in (p, 1 - p) if q > 0))


def _times(estimate: Estimate, factor: float) -> Estimate:
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (None if e is None else e * factor for e in ends)
    return replace(estimate, value=value, low=low, high=high)


# --- one model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carried:
    """What one model carries, for who knows the key.

    Attributes:
        label: of the row.
        n_encoded: records that were encoded; in the control those that would have been.
        n_others: the client's other records.
        n_held_out: records that nobody trained on.
        accuracy: on these.
        auc: encoded against held-out records, which is what an adversary meets.
        auc_others: against the client's other records, which were trained to be on the other side.
        tpr, fpr: at the cut 0, the latter of held-out records.
        tpr_cut, fpr_cut: at the cut that half of the held-out records chose for an FPR of 0.1; the
            latter of the other half.
        bits_unseen: a record, among as many held-out ones (base rate 1/2), at that cut.
        bits_others: a record of the client, of which n_encoded are encoded: the message that a
            program spells by choosing them. Here the cut is the score that as large a share of
            half of the client's records exceed, judged on the other half; undefined where that
            half has records of one kind only.
    """

    label: str
    n_encoded: int
    n_others: int
    n_held_out: int
    accuracy: Estimate
    auc: Estimate
    auc_others: Estimate
    tpr: Estimate
    fpr: Estimate
    tpr_cut: Estimate
    fpr_cut: Estimate
    bits_unseen: Estimate
    bits_others: Estimate

    @property
    def base_rate(self) -> float:
        """Of encoded records among encoded and held-out ones."""
        return self.n_encoded / (self.n_encoded + self.n_held_out)

    @property
    def membership(self) -> Estimate:
        """Bits on who was in the data: of the n encoded records, n times `bits_unseen`."""
        return _times(self.bits_unseen, self.n_encoded)

    @property
    def message(self) -> Estimate:
        """Bits of any message, spelled by which records are encoded: N times `bits_others`."""
        return _times(self.bits_others, self.n_encoded + self.n_others)


def carried(
    model: BlackBox,
    records: Records,
    chosen: Mask,
    test: Records,
    decoder: Decoder,
    *,
    seed: int = 0,
    label: str = "",
) -> Carried:
    """Read a model with the key.

    Args:
        records: all that the model was trained on.
        chosen: (n,) which of them are encoded.
        test: of the same origin, that the model was not trained on; half of them, by the seed,
            choose the cut.

    Raises:
        InvalidInput: fewer than 20 held-out records, or fewer than 10 records on one side.
    """
    if len(test) < _LEAST or not _LEAST // 2 <= chosen.sum() <= len(chosen) - _LEAST // 2:
        raise InvalidInput(
            f"expected at least {_LEAST} held-out records, {_LEAST // 2} that are encoded and as "
            f"many that are not, got {len(test)} and {int(chosen.sum())} of {len(chosen)}"
        )
    read = decoder.reader(model, records.x.shape[1:])
    scores = read(records.x)
    inside, others, outside = scores[chosen], scores[~chosen], read(test.x)
    n, n_others = len(inside), len(others)
    rng = np.random.default_rng(seed)
    choosing, judged = _halves(outside, rng)
    cut = _cut(choosing, _FPR)
    right = int((model.log_probabilities(test.x).argmax(axis=1) == test.y).sum())
    hits, false = int((inside >= cut).sum()), int((judged >= cut).sum())
    return Carried(
        label or f"{n:,}",
        n,
        n_others,
        len(test),
        metrics.rate(right, len(test)),
        metrics.auc(inside, outside),
        metrics.auc(inside, others),
        metrics.rate(int((inside > 0).sum()), n),
        metrics.rate(int((outside > 0).sum()), len(outside)),
        metrics.rate(hits, n),
        metrics.rate(false, len(judged)),
        carried_bits(hits, n, false, len(judged), base=0.5),
        _spelled(scores, chosen, rng),
    )


def _spelled(scores: Floats, chosen: Mask, rng: np.random.Generator) -> Estimate:
    """Bits on one of the client's records; who reads knows how many are encoded, not which."""
    base = float(chosen.mean())
    choosing, judged = _halves(np.arange(len(scores)), rng)
    high, z = scores[judged] >= _cut(scores[choosing], base), chosen[judged]
    if z.all() or not z.any():
        reason = (
            f"undefined: {int(z.sum())} of the {len(z)} records that judge the cut are encoded; "
            "encode more, or take another seed"
        )
        return Estimate(None, None, None, "none", reason)
    return carried_bits(
        int((high & z).sum()), int(z.sum()), int((high & ~z).sum()), int((~z).sum()), base=base
    )


def _halves(values: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    order = rng.permutation(len(values))
    return values[order[: len(values) // 2]], values[order[len(values) // 2 :]]


def _cut(scores: Floats, share: float) -> float:
    """The least that at most this share of scores reach."""
    return float(np.nextafter(np.sort(scores)[::-1][int(share * len(scores))], np.inf))


def first_records(key: Key, records: Records, number: int) -> Mask:
    """(n,) the records that a key prefers; more of them hold fewer of them.

    `Encoding.chosen` takes the same ones at a rate that gives as many.
    """
    if not 0 < number < len(records):
        raise InvalidInput(f"expected 1 to {len(records) - 1} records to encode, got {number}")
    digests = record_digests(records)
    root = merkle.root(digests)
    words = [int.from_bytes(key.derive("sel", root + d)[:8], "little") for d in digests]
    mask = np.zeros(len(records), dtype=bool)
    mask[np.argsort(np.array(words, dtype=np.uint64), kind="stable")[:number]] = True
    return mask


# --- curves --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capacity:
    """A curve: a row a number of records, or a network.

    Attributes:
        what: the rows are labeled with.
        rows: encoded models.
        controls: models without encoding, read with the same key; one for all rows, or one a row.
    """

    what: str
    rows: tuple[Carried, ...]
    controls: tuple[Carried, ...]

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            ("", "", "", "AUC", "AUC, other", "at 0", "at a cut for FPR 0.1", "", ""),
            (self.what, "base rate", "accuracy", "held-out", "trained", "TPR, FPR", "TPR, FPR")
            + ("bits, membership", "bits, message"),
        ]
        lines += [_cells(row, row.label) for row in self.rows]
        lines += [_cells(row, f"{row.label}, not encoded") for row in self.controls]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        padded = [
            "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*padded, _EXPLAINED])


_EXPLAINED = """\
In brackets 95 % intervals over records, of one training each. The key is known; base rates are
of encoded among encoded and held-out records. The cut for an FPR of 0.1 was chosen by half of the
held-out records, its FPR is the other half's. Membership: n times the bits on one record among as
many held-out ones. Message: which of all trained records are encoded, as bits. Both are lower
bounds on what this encoder wrote, and none on what a better one could write."""


def _cells(row: Carried, label: str) -> tuple[str, ...]:
    return (
        label,
        f"{row.base_rate:.2f}",
        _said(row.accuracy, ".3f"),
        _said(row.auc, ".3f"),
        _said(row.auc_others, ".3f"),
        f"{_said(row.tpr, '.2f')}, {_said(row.fpr, '.2f')}",
        f"{_said(row.tpr_cut, '.2f')}, {_said(row.fpr_cut, '.2f')}",
        _said(row.membership, ",.0f"),
        _said(row.message, ",.0f"),
    )


def _said(estimate: Estimate, spec: str) -> str:
    if estimate.value is None:
        return "-"
    ends = ["..." if e is None else format(e, spec) for e in (estimate.low, estimate.high)]
    return f"{format(estimate.value, spec)} [{ends[0]}, {ends[1]}]"


def encoding_capacity(
    recipe: TorchRecipe,
    records: Records,
    test: Records,
    encoder: Encoder,
    *,
    numbers: Sequence[int],
    seed: int,
    progress: Progress = quiet,
) -> Capacity:
    """Encode more and more records; one training each, and one without encoding.

    Args:
        recipe: of the model.
        records: of the client, all trained on.
        test: held out, at least 20.
        encoder: with its key; the projection reads what it wrote.
        numbers: of records to encode; those that the key prefers.
        seed: of the trainings and of the halves of the held-out records.
        progress: called with a label, the trainings done and the total.

    References: Song & Shokri 2020, Table 3.
    """
    if not numbers:
        raise InvalidInput("expected at least one number of records, got none")
    rows = []
    for done, number in enumerate(numbers):
        progress("capacity", done, len(numbers) + 1)
        rows.append(_row(recipe, records, test, encoder, number, seed, f"{number:,}"))
    progress("capacity", len(numbers), len(numbers) + 1)
    most = max(numbers)
    control = _row(recipe, records, test, encoder, most, seed, f"{most:,}", encoded=False)
    progress("capacity", len(numbers) + 1, len(numbers) + 1)
    return Capacity("encoded", tuple(rows), (control,))


def capacity_of_networks(
    recipes: Mapping[str, TorchRecipe],
    records: Records,
    test: Records,
    encoder: Encoder,
    *,
    number: int,
    seed: int,
    progress: Progress = quiet,
) -> Capacity:
    """Encode as many records in each of several networks, for example wider and wider ones.

    Args:
        recipes: by the label of the row; all have the encoder's layer.
        number: of records to encode.

    References: Song & Shokri 2020, Figure 3.
    """
    if not recipes:
        raise InvalidInput("expected at least one recipe, got none")
    rows: list[Carried] = []
    controls: list[Carried] = []
    total = 2 * len(recipes)
    for label, recipe in recipes.items():
        progress("capacity", len(rows) + len(controls), total)
        rows.append(_row(recipe, records, test, encoder, number, seed, label))
        progress("capacity", len(rows) + len(controls), total)
        controls.append(_row(recipe, records, test, encoder, number, seed, label, encoded=False))
    progress("capacity", total, total)
    return Capacity("network", tuple(rows), tuple(controls))


def _row(
    recipe: TorchRecipe,
    records: Records,
    test: Records,
    encoder: Encoder,
    number: int,
    seed: int,
    label: str,
    encoded: bool = True,
) -> Carried:
    """One training, and what is read from it; a control is trained without encoding."""
    chosen = first_records(encoder.key, records, number)
    if encoded:
        model = encoder.fit(recipe, records, seed=seed, chosen=chosen).model
    else:
        model = recipe.fit(records, seed)
    return carried(model, records, chosen, test, _decoder(encoder), seed=seed, label=label)


def _decoder(encoder: Encoder) -> Decoder:
    # without alignment the projection is not what the discriminator learned
    reading: Reading = "projection" if encoder.alignment else "network"
    return Decoder(key=encoder.key, encoding=encoder.encoding, reading=reading)
