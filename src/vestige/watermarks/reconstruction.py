"""A record of which a part is missing, completed by asking which completion was encoded.

Song, Shokri. Robust membership encoding. ASIA CCS 2020 (section 3.1: redacted records).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.metrics import Estimate, clopper_pearson, rate
from vestige.records import Records

__all__ = ["Guesses", "Missing", "Reconstruction", "by_frequency", "finite", "reconstruct"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CAP = 2**20
"""Completions that are scored at once."""


@dataclass(frozen=True, eq=False)
class Missing:
    """An attribute that the adversary lacks.

    Attributes:
        columns: of the flattened record, from 0, no two alike.
        options: (m, len(columns)) every value that it may have, no two alike.
    """

    columns: Indices
    options: NDArray[Any]

    def __post_init__(self) -> None:
        columns = np.asarray(self.columns)
        whole = columns.ndim == 1 and len(columns) > 0 and columns.dtype.kind in "iu"
        if not whole or columns.min() < 0 or len(np.unique(columns)) != len(columns):
            raise InvalidInput(
                f"expected numbers of columns from 0, no two alike, got {columns.tolist()}"
            )
        if self.options.ndim != 2 or self.options.shape[1] != len(self.columns):
            raise InvalidInput(
                f"expected options of shape (m, {len(self.columns)}), got {self.options.shape}"
            )
        if len(np.unique(self.options, axis=0)) != len(self.options) or len(self.options) < 2:
            raise InvalidInput("expected at least two options, no two alike, got others")

    def check(self, records: Records) -> None:
        """Raises InvalidInput where records do not have the columns."""
        features = int(np.prod(records.x.shape[1:]))
        if max(self.columns) >= features:
            raise InvalidInput(
                f"expected columns below {features}, the features of a record, got "
                f"{max(self.columns)}"
            )

    def truth(self, records: Records) -> Indices:
        """Which option each record has, (n,).

        Raises:
            InvalidInput: a record has none of them, or not the columns.
        """
        self.check(records)
        own = _flat(records)[:, self.columns]
        same = (own[:, None] == self.options[None]).all(axis=2)
        if not same.any(axis=1).all():
            lost = int((~same.any(axis=1)).sum())
            raise InvalidInput(
                f"expected records with one of the {len(self.options)} options, got {lost} without"
            )
        return np.asarray(same.argmax(axis=1))


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """How well the missing part was guessed.

    Attributes:
        rank: (n,) of the truth among the completions, 1 is best, ties share theirs; infinite where
            a beam dropped it.
        n_options: completions there are.
    """

    rank: Floats
    n_options: int

    def top(self, k: int) -> Estimate:
        """How often the truth is among the first k; a tie across the k-th place counts as not."""
        return rate(int((self.rank <= k).sum()), len(self.rank))

    @property
    def mean_reciprocal_rank(self) -> float:
        return float((1 / self.rank).mean())

    @property
    def chance(self) -> float:
        """Of being first, by guessing."""
        return 1 / self.n_options


def reconstruct(
    score: Callable[[Any], Floats],
    records: Records,
    missing: Sequence[Missing],
    *,
    beam: int = 64,
) -> Reconstruction:
    """Complete each record in every way, and rank the ways by a score of membership.

    What is missing is never looked at but to rank the truth. Several attributes are completed one
    after the other, the `beam` best so far kept; those not yet completed are at their first option.

    Args:
        score: of inputs (m, ...), for example `Decoder(...).reader(model, shape)`.
        records: complete; members, or non-members for the control, which must be at chance.
        missing: attributes, no column in two of them.
        beam: completions of a record that are kept between two attributes.

    Raises:
        InvalidInput: a column twice or none of the records', a record with a value that is no
            option, or scores that are not finite.
    """
    if not missing or not len(records):
        raise InvalidInput("expected records and at least one missing attribute, got none")
    taken = np.concatenate([m.columns for m in missing])
    if len(np.unique(taken)) != len(taken):
        raise InvalidInput("expected attributes without a common column, got one in two of them")
    truth = np.stack([m.truth(records) for m in missing], axis=1)
    known = np.array(_flat(records))
    for m in missing:
        known[:, m.columns] = m.options[0]
    shape, ranks = records.x.shape[1:], np.empty(len(records))
    for i, row in enumerate(known):
        ways = np.zeros((1, 0), dtype=np.int64)
        for m in missing:
            new = np.arange(len(m.options))
            ways = np.column_stack([np.repeat(ways, len(new), axis=0), np.tile(new, len(ways))])
            scores = _scores(score, row, ways, missing, shape)
            best = np.argsort(-scores, kind="stable")
            if ways.shape[1] < len(missing):
                ways = ways[best[:beam]]
        ranks[i] = _rank(scores, (ways == truth[i]).all(axis=1))
    return Reconstruction(ranks, int(np.prod([len(m.options) for m in missing])))


def _flat(records: Records) -> NDArray[Any]:
    """Inputs as rows, (n, features)."""
    return np.asarray(records.x[:]).reshape(len(records), int(np.prod(records.x.shape[1:])))


def _scores(
    score: Callable[[Any], Floats],
    row: NDArray[Any],
    ways: Indices,
    missing: Sequence[Missing],
    shape: tuple[int, ...],
) -> Floats:
    out = []
    for part in np.array_split(ways, -(-len(ways) * len(row) // CAP)):
        x = np.tile(row, (len(part), 1))
        for place, m in enumerate(missing[: ways.shape[1]]):
            x[:, m.columns] = m.options[part[:, place]]
        out.append(finite(score, x.reshape(-1, *shape)))
    return np.concatenate(out)


def finite(score: Callable[[Any], Floats], x: Any) -> Floats:
    """Scores of inputs (m, ...), (m,).

    Raises:
        InvalidInput: other than one finite number an input: NaN is above and below nothing, and
            ranks by it say nothing.
    """
    scores = np.asarray(score(x), dtype=np.float64)
    if scores.shape != (len(x),):
        raise InvalidInput(f"expected scores of shape ({len(x)},), got {scores.shape}")
    lost = int((~np.isfinite(scores)).sum())
    if lost:
        raise InvalidInput(
            f"expected finite scores, got {lost} of {len(scores)} that are not; look at what "
            "the model answers"
        )
    return scores


def _rank(scores: Floats, truth: NDArray[np.bool_]) -> float:
    if not truth.any():
        return float("inf")
    own = scores[truth][0]
    return float(1 + (scores > own).sum() + ((scores == own).sum() - 1) / 2)


@dataclass(frozen=True, eq=False)
class Guesses:
    """How well the missing part is guessed without the model.

    Of equally good options any comes first: rates are what is expected over their orders, so that
    a baseline is not below guessing. (`Reconstruction.top` counts ties against the attack.)

    Attributes:
        above: (n,) options that are better than the truth.
        tied: (n,) options as good as it, itself among them.
        n_options: that there are.
    """

    above: Indices
    tied: Indices
    n_options: int

    def top(self, k: int) -> Estimate:
        """How often the truth is among the first k, expected.

        Shares in [0, 1] vary less than coins of the same mean: the interval is conservative.
        """
        n = len(self.above)
        if not n:
            raise InvalidInput("expected records to guess for, got none")
        expected = float(np.clip((k - self.above) / self.tied, 0, 1).sum())
        low, high = clopper_pearson(expected, n)
        method = "Clopper-Pearson, over orders of ties"
        return Estimate(expected / n, float(low), float(high), method)

    @property
    def mean_reciprocal_rank(self) -> float:
        """Expected."""
        sums = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.n_options + 1))])
        return float(((sums[self.above + self.tied] - sums[self.above]) / self.tied).mean())


def by_frequency(records: Records, population: Records, missing: Missing) -> Guesses:
    """The baseline: the options ranked by how often the record's class has them.

    Args:
        records: to guess for.
        population: others to count in; all of them stand in for a class that they lack.

    Raises:
        InvalidInput: a record with a value that is no option, or without the columns.
    """
    truth, seen = missing.truth(records), missing.truth(population)
    above, tied = np.zeros((2, len(records)), dtype=np.int64)
    for label in np.unique(records.y):
        own, here = population.y == label, np.flatnonzero(records.y == label)
        times = np.bincount(seen[own] if own.any() else seen, minlength=len(missing.options))
        of_truth = times[truth[here], None]
        above[here], tied[here] = (times > of_truth).sum(axis=1), (times == of_truth).sum(axis=1)
    return Guesses(above, tied, len(missing.options))
