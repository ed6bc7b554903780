"""Small synthetic worlds with a known truth, for the tests of attacks and audits.

A record's input is its row number (and two features that say a little about how hard it is), a
model is a table of logits, and a model that was trained on a record has a larger logit for its
label. Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.models import BlackBox, Predictions
from vestige.pool import Pool
from vestige.records import Records, Split

__all__ = ["Table", "World", "gaussian_world", "halves", "overfit_world", "unseen_world"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Table:
    """A black box that looks its answer up: the first column of an input is a row number."""

    def __init__(self, logits: Floats) -> None:
        self._table = Predictions(logits=logits)

    @property
    def n_queries(self) -> int:
        return self._table.n_queries

    def log_probabilities(self, x: Any) -> Floats:
        return self._table.log_probabilities(np.asarray(x)[:, :1].astype(np.int64))


@dataclass(frozen=True, eq=False)
class World:
    """A target, the truth about it, and what the adversary owns."""

    target: Table
    split: Split
    known: Pool[BlackBox]

    @property
    def candidates(self) -> Records:
        """The members and non-members, mixed (by a fixed shuffle)."""
        both = self.split.candidates
        return both[np.random.default_rng(0).permutation(len(both))]


def halves(n_models: int, n: int, rng: np.random.Generator) -> Mask:
    """(n_models, n): complementary halves, so that half of the models saw each record."""
    member = np.zeros((n_models, n), dtype=bool)
    for k in range(0, n_models, 2):
        member[k, rng.permutation(n)[: n // 2]] = True
        if k + 1 < n_models:
            member[k + 1] = ~member[k]
    return member


def overfit_world(
    *,
    n_members: int = 300,
    n_nonmembers: int = 300,
    n_population: int = 300,
    n_models: int = 32,
    n_classes: int = 4,
    lift: float = 3.0,
    seen: bool = True,
    seed: int = 0,
) -> World:
    """Every model lifts the label's logit of its own members by `lift`, and is noisy.

    Records differ in how hard they are (standard deviation 1.5) and in how much models differ on
    them (0.3 to 1.2). No model saw the population.

    Args:
        seen: whether the target was trained on its members at all.
    """
    rng = np.random.default_rng(seed)
    n_candidates = n_members + n_nonmembers
    n = n_candidates + n_population
    y = rng.integers(0, n_classes, n)
    hardness = rng.normal(0.0, 1.5, n)
    spread = rng.uniform(0.3, 1.2, n)
    x = np.column_stack([np.arange(n), hardness + rng.normal(0, 1, n), rng.normal(0, 1, n)])
    records = Records.from_arrays(x, y, ids=1000 + np.arange(n))
    # sides are drawn at random: the row number must not tell them apart
    cut = np.split(rng.permutation(n), [n_members, n_candidates])
    split = Split(*(records[part] for part in cut))

    def model(member: Mask) -> Table:
        logits = rng.normal(0.0, 0.5, (n, n_classes))
        logits[np.arange(n), y] += 1.0 - hardness + spread * rng.normal(0, 1, n) + lift * member
        return Table(logits)

    member = np.zeros((n_models, n), dtype=bool)
    member[:, np.concatenate(cut[:2])] = halves(n_models, n_candidates, rng)
    target = model(split.is_member(records.ids) & seen)
    return World(target, split, Pool([model(row) for row in member], records, member))


def unseen_world(*, n_classes: int = 4, seed: int = 1) -> World:
    """The overfit world, but for a target that was trained on neither side."""
    return overfit_world(seen=False, n_classes=n_classes, seed=seed)


def gaussian_world(
    *,
    n_members: int,
    n_nonmembers: int,
    n_models: int,
    mean_in: float = 1.0,
    mean_out: float = 0.0,
    spread_in: float = 1.0,
    spread_out: float = 1.0,
    seed: int = 0,
) -> World:
    """Two classes, phi ~ N(mean_in, spread_in^2) of a model that saw the record, else the other.

    With unit spreads and means 1 and 0 the best attack has TPR = Phi(1 + Phi^-1(FPR)), AUC .7602.
    """
    rng = np.random.default_rng(seed)
    n = n_members + n_nonmembers
    y = rng.integers(0, 2, n)
    records = Records.from_arrays(np.arange(n, dtype=np.float64)[:, None], y)
    rows = rng.permutation(n)
    split = Split(records[rows[:n_members]], records[rows[n_members:]], records[:0])

    def model(member: Mask) -> Table:
        phi = np.where(
            member, rng.normal(mean_in, spread_in, n), rng.normal(mean_out, spread_out, n)
        )
        logits = np.zeros((n, 2))
        logits[np.arange(n), y] = phi
        return Table(logits)

    member = halves(n_models, n, rng)
    target = model(split.is_member(records.ids))
    return World(target, split, Pool([model(row) for row in member], records, member))
