"""Is the target surer of the record than it is of unseen records like it? (quantile regression)

Bertran, Tang, Kearns, Morgenstern, Roth, Wu. Scalable membership inference attacks via
quantile regression. NeurIPS 2023. https://arxiv.org/abs/2307.03694
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesRegressor

from vestige.attacks.attack import About, answers, population_of
from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import true_class_margin

__all__ = ["QuantileRegression"]

Floats = NDArray[np.float64]

_SMALLEST_POPULATION = 40
# a record cannot be judged more finely than a tenth of the overall spread: a leaf of the forest
# that happens to hold equal values would make everything that falls in it extreme
_FLOOR = 0.1
_SMALLEST_SPREAD = 1e-6
# a tree is grown on at most so many records, which bounds the time whatever the population
_TREE_RECORDS = 1000


@dataclass(frozen=True, kw_only=True)
class QuantileRegression:
    """Predict what the target says of a record it never saw, and compare: no reference models.

    On one part of the population, regress phi = log p_y - log(1 - p_y) on the record: mu(x, y),
    then the spread s(x, y) of what is left. The quantile of level 1 - FPR is mu + z s, with one z
    for all records, so that score = (phi - mu) / s orders records as all quantiles together do.
    The other part of the population says what scores non-members get:
    p = (1 + #{their scores >= score}) / (1 + n), valid whatever the fit is worth.

    Args:
        calibration: share of the population that gives the p-values instead of the fit.
        n_trees: trees in each of the two forests; at least 50, so that every record is out of
            bag for some.
        min_leaf: records in a leaf of a tree, at least.
        n_components: wider inputs are projected on this many principal components first.
        seed: of the cut of the population, and of the forests.

    Departs from the paper: this is its Gaussian variant (one mean and one spread a record, any
    false positive rate from one fit), with forests of extremely randomized trees (Geurts et al.
    2006, Machine Learning 63) where it has a neural network or boosted trees; out-of-bag
    residuals give the spread; the held-out part makes the rate exact (split conformal prediction
    with a locally weighted score: Lei et al. 2018, JASA 113).

    References: Bertran et al. 2023, the heteroscedastic Gaussian variant.
    """

    calibration: float = 0.5
    n_trees: int = 100
    min_leaf: int = 5
    n_components: int = 64
    seed: int = 0

    about: ClassVar[About] = About(
        title="Quantile regression",
        source="Bertran et al. 2023",
        question="Is the target surer of the record's label than it is for unseen records like it?",
        access="class probabilities",
        knowledge="the record and its label; a population of non-members",
        needs_population=True,
        needs_features=True,
    )

    def __post_init__(self) -> None:
        if not 0.1 <= self.calibration <= 0.9:
            raise InvalidInput(f"expected calibration in [0.1, 0.9], got {self.calibration}")
        if self.n_trees < 50:
            raise InvalidInput(f"expected n_trees >= 50, got {self.n_trees}")
        if self.min_leaf < 1 or self.n_components < 1 or self.seed < 0:
            raise InvalidInput(
                "expected min_leaf >= 1, n_components >= 1 and seed >= 0, got "
                f"{self.min_leaf}, {self.n_components} and {self.seed}"
            )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Fit on `known.without(candidates.ids)`, then score and test the candidates.

        Raises:
            InvalidInput: `known` has fewer than 40 records beside the candidates.
        """
        population = population_of(known, candidates, at_least=_SMALLEST_POPULATION)
        null_phi = true_class_margin(answers(target, population), population.y)
        phi = true_class_margin(answers(target, candidates), candidates.y)

        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(population))
        held_out, fitted = np.split(order, [round(self.calibration * len(order))])
        expected = _Expected(self, population[fitted], null_phi[fitted])
        null = np.sort(expected.standardized(population[held_out], null_phi[held_out]))
        values = expected.standardized(candidates, phi)
        n_above = len(null) - np.searchsorted(null, values, side="left")
        p_values = np.asarray((1.0 + n_above) / (1.0 + len(null)), dtype=np.float64)
        return Scores(candidates.ids, values, p_values)


class _Expected:
    """What the target says of records it never saw: a mean and a spread for each."""

    def __init__(self, attack: QuantileRegression, records: Records, phi: Floats) -> None:
        x = _flat(records)
        self._projection = (
            PCA(attack.n_components, svd_solver="randomized", random_state=attack.seed).fit(x)
            if min(x.shape) > attack.n_components
            else None
        )
        self._class_means = _class_means(records.y, phi)
        features = self._features(records)
        self._mean, fitted = _forest(attack, features, phi)
        self._spread, _ = _forest(attack, features, np.abs(phi - fitted))
        self._floor = max(_FLOOR * float(np.abs(phi - fitted).mean()), _SMALLEST_SPREAD)

    def standardized(self, records: Records, phi: Floats) -> Floats:
        """(phi - mean) / spread for each record, (n,)."""
        parts = [self._standardized(records[part], phi[part]) for part in records.chunks()]
        return np.concatenate(parts)

    def _standardized(self, records: Records, phi: Floats) -> Floats:
        features = self._features(records)
        spread = np.maximum(self._spread.predict(features), self._floor)
        return np.asarray((phi - self._mean.predict(features)) / spread)

    def _features(self, records: Records) -> Floats:
        """The (projected) inputs, and the mean phi of the label's class as one more column."""
        x = _flat(records)
        x = x if self._projection is None else self._projection.transform(x)
        known = np.minimum(records.y, len(self._class_means) - 1)
        return np.column_stack([x, self._class_means[known]])


def _flat(records: Records) -> Floats:
    return np.asarray(records.x, dtype=np.float64).reshape(len(records), -1)


def _class_means(y: NDArray[np.int64], phi: Floats) -> Floats:
    """Mean phi of each class, drawn to the overall mean as by ten more records; the last entry is
    that of classes without records."""
    counts = np.bincount(y, minlength=int(y.max()) + 2)
    sums = np.bincount(y, weights=phi, minlength=len(counts))
    return np.asarray((sums + 10 * phi.mean()) / (counts + 10))


def _forest(attack: QuantileRegression, x: Floats, values: Floats) -> tuple[Any, Floats]:
    """A fitted forest, and its out-of-bag predictions (n,)."""
    forest = ExtraTreesRegressor(
        attack.n_trees,
        min_samples_leaf=attack.min_leaf,
        bootstrap=True,
        max_samples=min(len(x), _TREE_RECORDS),
        oob_score=True,
        n_jobs=1,
        random_state=attack.seed,
    ).fit(x, values)
    return forest, np.asarray(forest.oob_prediction_)
