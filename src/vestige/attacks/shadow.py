"""Does the target answer as models answer on records they were trained on? (shadow models)

Shokri, Stronati, Song, Shmatikov. Membership inference attacks against machine learning models.
IEEE S&P 2017. https://arxiv.org/abs/1610.05820
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from vestige.attacks.attack import About, answers, references_of
from vestige.errors import InvalidInput, MissingModels
from vestige.metrics import rank_p_values
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import cross_entropy_loss, log_probabilities

__all__ = ["Shadow", "ShadowAttackModels"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Sides = tuple[Floats, Floats]

# what a service shows as zero: losses behind a filter and in front of it get one largest value
_LOWEST = math.log(1e-12)
# a classifier is fitted to at most so many rows of either side, which bounds the time
_MOST_ROWS = 5_000
# fewer shadow models than this all go into the attack: two kept apart say what is usual
_FEWEST_TO_CALIBRATE = 8
# of the default network: units, rows of either side a step, steps, learning rate
_HIDDEN, _BATCH, _STEPS, _RATE = 64, 64, 300, 5e-3
# features that hardly vary at all (equal answers, and their last digits) are not blown up
_LEAST_SCALE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A classifier of answers, trained where the truth is known: on shadow models.

    Each shadow model is asked about records it was trained on (in) and as many that it was not
    (out). For each class, by the true label of the record, a classifier learns to tell the two
    kinds of answer apart; applied to the target's answers, its probability of "in" is the score.
    0.5 is the paper's threshold.

    Where a class has too few records, a classifier of all classes serves, whose features are the
    answers sorted in descending order; `trained(known).fallback` names these classes.

    Answers are taken as they are shown: they need not sum to 1, and 1e-12 is a zero.

    The p-values compare with the scores of records that shadow models never saw, of models that
    the classifiers were not trained on: p = (1 + #{their scores >= score}) / (1 + n). They are
    valid if the target and the shadow models are trained alike on records drawn alike; nothing
    else is assumed of the classifiers. There are none with fewer than eight shadow models.

    Args:
        classifier: of answers; any scikit-learn classifier with `predict_proba`, cloned for each
            class. None for a network of one hidden layer with 64 ReLU units.
        features: "vector" for all probabilities in the order of the classes, "sorted_top3" for
            the three largest (Salem et al. 2019).
        with_loss: the loss of the true label (at most -ln 1e-12) as one more feature.
        per_class: one classifier a class; False for one on sorted answers for all.
        min_per_class: a class with fewer records of either kind, counted over all shadow models,
            is left to the classifier of all classes.
        confidence: leave out records where max(p_in, 1 - p_in) is smaller; None scores all.
        calibration: share of the shadow models that give the p-values instead of training the
            classifiers; 0 for none.
        seed: of the records drawn, and of the classifiers (every `random_state` of theirs).

    Departs from the paper: within a class, in and out are balanced (the network draws as many of
    either kind; for other classifiers records of the rarer kind are repeated); the network's shape
    is that of Nasr et al. (2019) in their run of this attack, since the paper gives none; a
    classifier sees at most 5,000 records of either kind; the fall-back, the variants, the cutoff
    and p-values are added.

    References: Shokri et al. 2017, section V; Salem et al. 2019 (ML-Leaks), NDSS, for the sorted
    features; Nasr, Shokri, Houmansadr 2019, IEEE S&P, appendix, for the network.
    """

    classifier: Any = None
    features: Literal["vector", "sorted_top3"] = "vector"
    with_loss: bool = False
    per_class: bool = True
    min_per_class: int = 20
    confidence: float | None = None
    calibration: float = 0.25
    seed: int = 0

    about: ClassVar[About] = About(
        title="Shadow models",
        source="Shokri et al. 2017",
        question="Does the target answer on the record as models answer on records they were "
        "trained on?",
        access="class probabilities, as far as they are shown",
        knowledge="the record and its label; reference models that imitate the target (shadow "
        "models), and which records they were trained on",
        needs_models=True,
    )

    def __post_init__(self) -> None:
        if self.classifier is not None and not all(
            callable(getattr(self.classifier, name, None)) for name in ("fit", "predict_proba")
        ):
            raise InvalidInput(
                f"expected a scikit-learn classifier with predict_proba, got {self.classifier!r}; "
                "wrap it in sklearn.calibration.CalibratedClassifierCV"
            )
        if self.features not in ("vector", "sorted_top3"):
            raise InvalidInput(
                f'expected features to be "vector" or "sorted_top3", got {self.features!r}'
            )
        if self.min_per_class < 1 or self.seed < 0:
            raise InvalidInput(
                f"expected min_per_class >= 1 and seed >= 0, got {self.min_per_class} and "
                f"{self.seed}"
            )
        if self.confidence is not None and not 0.5 <= self.confidence <= 1:
            raise InvalidInput(
                f"expected confidence in [0.5, 1] or None, got {self.confidence}; the surer of "
                "two answers is never below 0.5"
            )
        if not 0 <= self.calibration < 1:
            raise InvalidInput(f"expected calibration in [0, 1), got {self.calibration}")

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score the candidates; one query a record. Train once for several targets by `trained`.

        Raises:
            InvalidInput: `known` is absent, or its models have other classes than the target.
            MissingModels: no model was trained on some of the pool's records and not on others.
        """
        return self.trained(known).score(target, candidates)

    def trained(self, known: Pool[BlackBox] | None) -> ShadowAttackModels:
        """The classifiers of answers, fitted to the shadow models' answers on `known.records`.

        Raises:
            InvalidInput: see `run`.
            MissingModels: see `run`.
        """
        pool = references_of(known)
        fitting, held = self._cut(len(pool.models))
        inside, outside = _balanced_sides(pool.member, self.seed)
        inside[held] = outside[held] = False
        if not inside.any():
            raise MissingModels(
                "expected shadow models trained on some of the pool's records and not on others, "
                f"got none among {len(fitting)}; give the pool's records on both sides"
            )
        table, y = pool.signals(log_probabilities, pool.records), pool.records.y
        counts = _per_class(inside, outside, y, table.shape[2])
        enough = (counts >= self.min_per_class).all(axis=1) & self.per_class
        labels = [int(c) for c in np.flatnonzero(enough)]
        sides = [
            self._sides(table, y, inside & (y == c), outside & (y == c), label=c) for c in labels
        ]
        by_class = dict(zip(labels, self._fitted(sides, labels), strict=True))
        pooled = None
        if not enough.all():
            (pooled,) = self._fitted([self._sides(table, y, inside, outside, label=None)], [-1])
        made = ShadowAttackModels(self, by_class, pooled, counts, np.empty(0))
        null = made.p_in(*_out_rows(table, y, pool.member, held, self.seed))
        return ShadowAttackModels(self, by_class, pooled, counts, null)

    def _cut(self, n_models: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shadow models that train the classifiers, and those that say what scores are usual."""
        n_held = round(self.calibration * n_models) if n_models >= _FEWEST_TO_CALIBRATE else 0
        order = np.random.default_rng([self.seed, n_models]).permutation(n_models)
        n_held = min(n_held, n_models - 1)
        return order[n_held:], order[:n_held]

    def _rows(self, table: Floats, y: NDArray[np.int64], pooled: bool) -> Floats:
        """Features (n, columns) of answers (n, classes)."""
        if np.isnan(table).any():
            raise InvalidInput(
                "expected log-probabilities, got NaN; the model has diverged or its inputs are "
                "out of range"
            )
        shown = np.clip(table, _LOWEST, 0.0)
        p = np.exp(shown)
        if pooled or self.features == "sorted_top3":
            p = -np.sort(-p, axis=1)
        if self.features == "sorted_top3":
            p = p[:, :3]
        return np.column_stack([p, cross_entropy_loss(shown, y)]) if self.with_loss else p

    def _sides(
        self,
        table: Floats,
        y: NDArray[np.int64],
        inside: Mask,
        outside: Mask,
        *,
        label: int | None,
    ) -> Sides:
        """Features (n, columns) of answers in and out; of one class, or None for all of them.

        Args:
            table: (n_models, n_records, classes) log-probabilities.
            y: (n_records,) labels.
            inside, outside: (n_models, n_records) the answers to learn from.
        """
        rng = np.random.default_rng([self.seed, 0 if label is None else 1 + label])
        places = [_drawn(side, rng).T for side in (inside, outside)]
        ins, outs = (self._rows(table[k, j], y[j], pooled=label is None) for k, j in places)
        return ins, outs

    def _fitted(self, sides: Sequence[Sides], labels: Sequence[int]) -> list[Any]:
        """A classifier for each pair of sides."""
        with threadpool_limits(1):
            if self.classifier is None:
                return list(_networks(sides, self.with_loss, self.seed)) if sides else []
            return [
                _fitted_clone(self.classifier, pair, [self.seed, 1 + label])
                for pair, label in zip(sides, labels, strict=True)
            ]


@dataclass(frozen=True, eq=False)
class ShadowAttackModels:
    """Classifiers of answers, one a class and one for the classes that fell back.

    Attributes:
        attack: the hyper-parameters they were trained with.
        by_class: the classifier of each class that has one of its own.
        pooled: that of all classes, on sorted answers; None where no class needs it.
        counts: (classes, 2) records in and out, over all shadow models, to learn from.
        null: scores of records that models set apart for the p-values never saw; may be empty.
    """

    attack: Shadow
    by_class: Mapping[int, Any]
    pooled: Any
    counts: NDArray[np.int64]
    null: Floats

    @property
    def fallback(self) -> tuple[int, ...]:
        """Classes with too few records for a classifier of their own."""
        if not self.attack.per_class:
            return ()
        return tuple(c for c in range(len(self.counts)) if c not in self.by_class)

    def p_in(self, table: Floats, y: NDArray[np.int64]) -> Floats:
        """Probability (n,) of "in" for log-probabilities (n, classes) and labels (n,).

        Raises:
            InvalidInput: another number of classes than the shadow models have.
        """
        if table.shape[1] != len(self.counts):
            raise InvalidInput(
                f"expected a target with {len(self.counts)} classes, as the shadow models have, "
                f"got {table.shape[1]}; train them for the same classes"
            )
        out = np.empty(len(y))
        alone = np.isin(y, list(self.by_class))
        with threadpool_limits(1):
            for c in np.unique(y[alone]):
                rows = y == c
                x = self.attack._rows(table[rows], y[rows], pooled=False)
                out[rows] = self.by_class[int(c)].predict_proba(x)[:, 1]
            if not alone.all():
                x = self.attack._rows(table[~alone], y[~alone], pooled=True)
                out[~alone] = self.pooled.predict_proba(x)[:, 1]
        return out

    def score(self, target: BlackBox, candidates: Records) -> Scores:
        """Score candidates by the target's answers; one query a record.

        Raises:
            InvalidInput: no candidates, or other classes than the shadow models have.
        """
        values = self.p_in(answers(target, candidates), candidates.y)
        kept = self._sure(values)
        null = self.null[self._sure(self.null)]
        p_values = None
        if len(self.null):
            # equal answers of two models may differ in the last digit of their scores, as products
            # of matrices do: a tie that were missed would make the p-value too small
            p_values = (
                rank_p_values(values[kept] * (1 - 1e-9), null)
                if kept.any() and len(null)
                else np.ones(int(kept.sum()))
            )
        return Scores(candidates.ids[kept], values[kept], p_values)

    def _sure(self, values: Floats) -> Mask:
        least = self.attack.confidence
        return np.asarray(np.maximum(values, 1 - values) >= (0.0 if least is None else least))


def _balanced_sides(member: Mask, seed: int) -> tuple[Mask, Mask]:
    """As many records in as out of each shadow model, drawn at random; each like `member`."""
    inside, outside = np.zeros_like(member), np.zeros_like(member)
    for k, row in enumerate(member):
        rng = np.random.default_rng([seed, k, len(row)])
        ins, outs = rng.permutation(np.flatnonzero(row)), rng.permutation(np.flatnonzero(~row))
        n = min(len(ins), len(outs))
        inside[k, ins[:n]] = outside[k, outs[:n]] = True
    return inside, outside


def _per_class(
    inside: Mask, outside: Mask, y: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Answers in and out for each class, (classes, 2)."""
    sides = [np.bincount(y, side.sum(axis=0), n_classes) for side in (inside, outside)]
    return np.stack(sides, axis=1).astype(np.int64)


def _drawn(side: Mask, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places (n, 2) of a model and a record in a random order, at most as many as are used."""
    return rng.permutation(np.argwhere(side))[:_MOST_ROWS]


def _out_rows(
    table: Floats, y: NDArray[np.int64], member: Mask, held: NDArray[np.int64], seed: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Answers (n, classes) and labels (n,) of the held models on records they never saw."""
    out = np.zeros_like(member)
    out[held] = ~member[held]
    k, j = _drawn(out, np.random.default_rng([seed, *member.shape])).T
    return np.asarray(table[k, j]), y[j]


def _fitted_clone(classifier: Any, sides: Sides, seeds: Sequence[int]) -> Any:
    """A clone of the classifier that tells in (1) from out (0), seeded wherever it draws."""
    n = max(len(side) for side in sides)
    # a side with fewer records is repeated: what weighting its loss does, for any classifier
    x = np.concatenate([side[np.arange(n) % len(side)] for side in sides])
    made = clone(classifier)
    state = int(np.random.default_rng(seeds).integers(2**31))
    names = [name for name in made.get_params() if name.split("__")[-1] == "random_state"]
    return made.set_params(**dict.fromkeys(names, state)).fit(x, np.repeat([1, 0], n))


# --- the default classifier ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Network:
    """One hidden layer of ReLU units: weights (columns, units) and (units, 1), and biases."""

    weights: tuple[Floats, Floats, Floats, Floats]

    def predict_proba(self, x: Floats) -> Floats:
        """Probabilities (n, 2) of out and in, as scikit-learn's classifiers give them."""
        w1, b1, w2, b2 = self.weights
        # not by BLAS, whose last digits depend on the place in the batch: equal answers must tie
        hidden = np.maximum(np.einsum("nc,cu->nu", x, w1) + b1, 0.0)
        z = np.einsum("nu,uo->no", hidden, w2) + b2
        return np.asarray(expit(np.hstack([-z, z])))


def _networks(sides: Sequence[Sides], with_loss: bool, seed: int) -> list[_Network]:
    """A network for each pair of sides, trained together: 7 times as fast as one by one.

    A fixed number of steps of Adam (Kingma & Ba 2015) on the logistic loss, float32; each step
    draws as many rows of either side, with replacement.
    """
    centers, scales = zip(*(_spread(pair, with_loss) for pair in sides), strict=True)
    rows = np.concatenate(
        [
            ((side - center) / scale).astype(np.float32)
            for pair, center, scale in zip(sides, centers, scales, strict=True)
            for side in pair
        ]
    )
    sizes = np.array([[len(ins), len(outs)] for ins, outs in sides])
    starts = (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)
    truth = np.repeat(np.array([1, 0], dtype=np.float32), _BATCH)[:, None]
    rng = np.random.default_rng([seed, *sizes.ravel()])
    weights = _initial(len(sides), rows.shape[1], rng)
    adam = _Adam(weights)
    for _ in range(_STEPS):
        place = (rng.random((*sizes.shape, _BATCH)) * sizes[..., None]).astype(np.int64)
        x = rows[(starts[..., None] + place).reshape(len(sides), 2 * _BATCH)]
        adam.step(_gradients(weights, x, truth))
    w1, b1, w2, b2 = (w.astype(np.float64) for w in weights)
    return [
        # the centers and scales become part of the first layer
        _Network((w1[i] / scale[:, None], b1[i] - (center / scale) @ w1[i], w2[i], b2[i]))
        for i, (center, scale) in enumerate(zip(centers, scales, strict=True))
    ]


def _spread(sides: Sides, with_loss: bool) -> tuple[Floats, Floats]:
    """The means of the features, and what to divide them by.

    Behind a temperature of 20 all probabilities are alike, and a network that sees them as they
    are does not learn in few steps. They share one scale, twice the largest deviation: with one
    each, classes that are never probable would weigh as much as those that are.
    """
    x = np.concatenate(sides)
    deviations = x.std(axis=0)
    n_shared = x.shape[1] - with_loss
    scale = np.append(np.full(n_shared, 2 * deviations[:n_shared].max()), 2 * deviations[n_shared:])
    return x.mean(axis=0), np.maximum(scale, _LEAST_SCALE)


Stack = list[NDArray[np.float32]]


def _initial(n: int, columns: int, rng: np.random.Generator) -> Stack:
    """Weights and biases of n networks, uniform as Glorot & Bengio (2010) draw them."""
    shapes = ((n, columns, _HIDDEN), (n, 1, _HIDDEN), (n, _HIDDEN, 1), (n, 1, 1))
    bounds = (math.sqrt(6 / (columns + _HIDDEN)), 0.0, math.sqrt(6 / (_HIDDEN + 1)), 0.0)
    return [
        (bound * (2 * rng.random(shape, dtype=np.float32) - 1)).astype(np.float32)
        for shape, bound in zip(shapes, bounds, strict=True)
    ]


def _gradients(weights: Stack, x: NDArray[np.float32], truth: NDArray[np.float32]) -> Stack:
    """Of the mean logistic loss of each network on its batch (n, batch, columns)."""
    w1, b1, w2, b2 = weights
    hidden = x @ w1 + b1
    on = hidden > 0
    hidden *= on
    delta = (expit(hidden @ w2 + b2) - truth) / len(truth)
    back = delta * w2.transpose(0, 2, 1) * on
    return [
        x.transpose(0, 2, 1) @ back,
        back.sum(axis=1, keepdims=True),
        hidden.transpose(0, 2, 1) @ delta,
        delta.sum(axis=1, keepdims=True),
    ]


class _Adam:
    """Adam with the usual decay rates, on arrays in place."""

    def __init__(self, weights: Stack) -> None:
        self._weights, self._steps = weights, 0
        self._means = [np.zeros_like(w) for w in weights]
        self._squares = [np.zeros_like(w) for w in weights]

    def step(self, gradients: Stack) -> None:
        self._steps += 1
        rate = _RATE * math.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
        for w, g, mean, square in zip(
            self._weights, gradients, self._means, self._squares, strict=True
        ):
            mean += np.float32(0.1) * (g - mean)
            square += np.float32(0.001) * (g * g - square)
            w -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-8))
