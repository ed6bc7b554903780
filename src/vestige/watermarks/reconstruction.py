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
from vestige.metrics import Estimate, rate
from vestige.records import Records

__all__ = ["Missing", "Reconstruction", "by_frequency", "reconstruct"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CAP = 2**20
"""Completions that are scored at once."""


@dataclass(frozen=True, eq=False)
class Missing:
    """An attribute that the adversary lacks.

    Attributes:
        columns: of the flattened record.
        options: (m, len(columns)) every value that it may have, no two alike.
    """

    columns: Indices
    options: NDArray[Any]

    def __post_init__(self) -> None:
        if self.options.ndim != 2 or self.options.shape[1] != len(self.columns):
            raise InvalidInput(
                f"expected options of shape (m, {len(self.columns)}), got {self.options.shape}"
            )
        if len(np.unique(self.options, axis=0)) != len(self.options) or len(self.options) < 2:
            raise InvalidInput("expected at least two options, no two alike, got others")

    def truth(self, records: Records) -> Indices:
        """Which option each record has, (n,).

        Raises:
            InvalidInput: a record has none of them.
        """
        own = np.asarray(records.x[:]).reshape(len(records), -1)[:, self.columns]
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
        InvalidInput: a column twice, or a record with a value that is no option.
    """
    if not missing or not len(records):
        raise InvalidInput("expected records and at least one missing attribute, got none")
    taken = np.concatenate([m.columns for m in missing])
    if len(np.unique(taken)) != len(taken):
        raise InvalidInput("expected attributes without a common column, got one in two of them")
    truth = np.stack([m.truth(records) for m in missing], axis=1)
    known = np.array(records.x[:]).reshape(len(records), -1)
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
        out.append(score(x.reshape(-1, *shape)))
    return np.concatenate(out)


def _rank(scores: Floats, truth: NDArray[np.bool_]) -> float:
    if not truth.any():
        return float("inf")
    own = scores[truth][0]
    return float(1 + (scores > own).sum() + ((scores == own).sum() - 1) / 2)


def by_frequency(records: Records, population: Records, missing: Missing) -> Reconstruction:
    """The baseline: the options ranked by how often the record's class has them."""
    truth, seen = missing.truth(records), missing.truth(population)
    ranks = np.empty(len(records))
    for label in np.unique(records.y):
        times = np.bincount(seen[population.y == label], minlength=len(missing.options))
        for i in np.flatnonzero(records.y == label):
            ranks[i] = _rank(times.astype(np.float64), np.arange(len(times)) == truth[i])
    return Reconstruction(ranks, len(missing.options))
