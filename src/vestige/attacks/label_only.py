"""Only the predicted label is shown: is the record far from where it would change?

    Choquette-Choo, Tramer, Carlini, Papernot. Label-only membership inference attacks. ICML 2021.
    https://arxiv.org/abs/2007.14321
    Li, Zhang. Membership leakage in label-only exposures. CCS 2021.
    https://arxiv.org/abs/2007.15528
    Chen, Jordan, Wainwright. HopSkipJumpAttack: a query-efficient decision-based attack. IEEE S&P
    2020. https://arxiv.org/abs/1904.02144

Nothing but `log_probabilities(x).argmax(axis=1)` is used of the target. All randomness of a record
follows from its content, so that its score does not depend on the order of the candidates; which
they are matters, since units, range and starting points of a search are taken from all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from vestige.attacks.attack import About, answers, references_of
from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import correctness

__all__ = ["AugmentationVotes", "BoundaryDistance"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Features = Literal["auto", "continuous", "binary"]

# numbers of inputs that are made and asked at a time: 32 MiB
_NUMBERS = 2**22
# records that are searched together
_TOGETHER = 1024
# records that features are measured on, and that searches start from, at most
_SAMPLE = 2000
# random points tried where no record with another answer is known
_DRAWS = 16
# how often a step that falls back on the record's side is halved
_RETREATS = 8


# --- the inputs ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Space:
    """Where inputs may lie, and in what units they are moved.

    Attributes:
        shape: of one input.
        dtype: in which the target is asked.
        unit: (d,) one standard deviation of each feature where records are rows, and of all
            together where they are images; 0 where a feature never changes.
        low, high: (d,) between which the candidates lie.
        binary: whether all features are 0 or 1.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: Floats
    low: Floats
    high: Floats
    binary: bool

    @property
    def diameter(self) -> float:
        return float(np.linalg.norm(self.moved(self.low, self.high)))

    def placed(self, x: Floats, moves: Floats) -> Floats:
        """Inputs x (..., d) moved by so many units, and no further than the box goes."""
        return np.asarray(np.clip(x + self.unit * moves, self.low, self.high))

    def moved(self, x: Floats, to: Floats) -> Floats:
        """From x to there, in units."""
        return np.asarray(
            np.where(self.unit > 0, (to - x) / np.where(self.unit > 0, self.unit, 1), 0)
        )

    def inputs(self, flat: Floats) -> NDArray[Any]:
        """(..., d) as the target takes them, (n, *shape)."""
        return flat.reshape(-1, *self.shape).astype(self.dtype)


def _space(records: Records) -> _Space:
    some = _flat(records[_spread(records)])
    shape = tuple(records.x.shape[1:])
    low, high = np.full(some.shape[1], np.inf), np.full(some.shape[1], -np.inf)
    binary = True
    for part in records.chunks():
        x = np.asarray(records.x[part], dtype=np.float64).reshape(part.stop - part.start, -1)
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        binary = binary and bool(((x == 0) | (x == 1)).all())
    if len(shape) > 1:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        unit = np.full_like(low, some.std())
    else:
        unit = np.where(high > low, some.std(axis=0), 0.0)
    kind = records.x.dtype
    return _Space(shape, kind if kind.kind == "f" else np.dtype(float), unit, low, high, binary)


def _flat(records: Records) -> Floats:
    return np.asarray(records.x, dtype=np.float64).reshape(len(records), -1)


def _spread(records: Records) -> Indices:
    """Some records from all over: the same ones, in the order of their ids, however they come."""
    order = np.argsort(records.ids, kind="stable")
    if len(order) <= _SAMPLE:
        return order
    return order[np.linspace(0, len(order) - 1, _SAMPLE).round().astype(np.int64)]


def _generators(records: Records, seed: int) -> list[np.random.Generator]:
    """One for each record, which follows from its content."""
    return [np.random.default_rng([seed, int(key)]) for key in records.content_hash()]


def _labels(target: BlackBox, x: NDArray[Any]) -> Indices:
    return np.asarray(target.log_probabilities(x).argmax(axis=1))


# --- distance ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BoundaryDistance:
    """Members are farther from where the label changes: score = the distance found, 0 if it is
    wrong already.

    **Continuous features**: the L2 distance to the nearest point with another label that a
    decision-based search (HopSkipJump) finds. It starts from the nearest candidate that the target
    gives another label, goes to the boundary between the two by halving, and then in turns
    estimates the boundary's normal from the labels of points around, steps along it, and halves
    again. The best point is kept, so that more budget never finds a larger distance. Features are
    in units of their standard deviation (images: of that of all pixels), and probes stay between
    the smallest and largest value of each feature (images: of all pixels). Where no other label is
    ever seen, the score is the diameter of that box.

    **Binary features**: the share of noisy copies that keep the label, on average over the rates
    at which their bits are flipped. A copy's flips at one rate are among those at the next.

    Args:
        budget: queries a record at most, the one for its own label included. Misclassified records
            take that one only.
        features: "binary" or "continuous"; "auto" takes them for binary where all are 0 or 1.
        rates: of the flips of each bit.
        probes: labels around a point in the first estimate of the normal; sqrt(t) times as many in
            the t-th.
        halvings: how often the way to the boundary is halved.
        seed: of the probes and the flips.

    Departs from the papers: searches start from a record, not from a random image; a worse point
    is not walked on from; probes lie at distance / d as in HopSkipJump, but no nearer than the
    halving is exact, four times over.

    References: Choquette-Choo et al. 2021, sections on decision boundary distance and on random
    noise; Li & Zhang 2021, adversary 2 (perturbation); Chen et al. 2020, Algorithm 2.
    """

    budget: int = 250
    features: Features = "auto"
    rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    probes: int = 20
    halvings: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features not in ("auto", "continuous", "binary"):
            raise InvalidInput(
                f'expected features to be "auto", "continuous" or "binary", got {self.features!r}'
            )
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise InvalidInput(f"expected rates of flips between 0 and 1, got {self.rates}")
        if self.budget < 1 + len(self.rates):
            raise InvalidInput(
                f"expected a budget of at least {1 + len(self.rates)} queries a record (its own "
                f"and one for each rate of flips), got {self.budget}"
            )
        if self.probes < 1 or self.halvings < 1 or self.seed < 0:
            raise InvalidInput(
                "expected probes >= 1, halvings >= 1 and seed >= 0, got "
                f"{self.probes}, {self.halvings} and {self.seed}"
            )

    @property
    def about(self) -> About:
        return About(
            title="Boundary distance",
            source="Choquette-Choo et al. 2021",
            question="Is the record farther from where the target's answer changes than others "
            "are?",
            access="labels only",
            knowledge="the record and its label; what values its features may take",
            needs_features=True,
            queries=self.budget,
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the distance; `known` is not used.

        Raises:
            InvalidInput: there are no records, a label is outside the target's classes, or
                features that are not binary are said to be.
        """
        said = answers(target, candidates).argmax(axis=1)
        space = _space(candidates)
        if self.features == "binary" and not space.binary:
            raise InvalidInput(
                'expected features that are 0 or 1, got others; pass features="continuous"'
            )
        binary = space.binary if self.features == "auto" else self.features == "binary"
        starts = _spread(candidates)
        landmarks = (_flat(candidates[starts]), said[starts])
        values = np.zeros(len(candidates))
        right = np.flatnonzero(said == candidates.y)
        for first in range(0, len(right), _TOGETHER):
            some = right[first : first + _TOGETHER]
            search = _Search(self, target, candidates[some], space)
            values[some] = search.kept() if binary else search.distances(*landmarks)
        return Scores(candidates.ids, values)


class _Search:
    """What is known of some records that the target classifies correctly.

    Args:
        records: m of them; each has been asked once.
    """

    def __init__(
        self, attack: BoundaryDistance, target: BlackBox, records: Records, space: _Space
    ) -> None:
        self.attack, self.target, self.space = attack, target, space
        self.x, self.y = _flat(records), records.y
        self.random = _generators(records, attack.seed)
        self.spent = np.ones(len(records), dtype=np.int64)
        # the nearest point with another label so far, from the record, and how far it is
        self.moves = np.zeros_like(self.x)
        self.distance = np.full(len(records), np.inf)

    # binary features

    def kept(self) -> Floats:
        """The share of copies with flipped bits that keep the label, (m,)."""
        rates, (m, d) = self.attack.rates, self.x.shape
        copies = (self.attack.budget - 1) // len(rates)
        out = np.empty(m)
        step = max(1, _NUMBERS // (copies * d))
        for first in range(0, m, step):
            some = np.arange(first, min(first + step, m))
            lots = np.stack([self.random[i].random((copies, d), dtype=np.float32) for i in some])
            shares = [self._keep(some, lots < rate) for rate in rates]
            out[some] = np.mean(shares, axis=0)
        return out

    def _keep(self, rows: Indices, flipped: Mask) -> Floats:
        x = np.abs(self.x[rows][:, None] - flipped)
        said = _labels(self.target, self.space.inputs(x)).reshape(flipped.shape[:2])
        return np.asarray((said == self.y[rows][:, None]).mean(axis=1))

    # continuous features

    def distances(self, points: Floats, said: Indices) -> Floats:
        """The distance to the nearest point found that has another label, (m,).

        Args:
            points: (n, d) whose labels are known.
            said: (n,) these labels.
        """
        self._start(points, said)
        turn = 1
        rows = np.flatnonzero(np.isfinite(self.distance))
        while True:
            probes = int(self.attack.probes * np.sqrt(turn))
            rows = rows[self.spent[rows] + probes + 2 <= self.attack.budget]
            if not len(rows):
                break
            self._walk(rows, self._normal(rows, probes), turn)
            turn += 1
        return np.where(np.isfinite(self.distance), self.distance, self.space.diameter)

    def _start(self, points: Floats, said: Indices) -> None:
        """To the boundary on the way to the nearest point with another label."""
        nearest = self._nearest(points, said)
        there = nearest >= 0
        rows = np.flatnonzero(there)
        moves = self.space.moved(self.x[rows], points[nearest[rows]])
        self._halve(rows, moves)
        self._halve(*self._drawn(np.flatnonzero(~there)))

    def _nearest(self, points: Floats, said: Indices) -> Indices:
        """Which of the points with another label is the nearest, -1 where there is none; (m,)."""
        scale = np.where(
            self.space.unit > 0, 1 / np.where(self.space.unit > 0, self.space.unit, 1), 0
        )
        a, b = (self.x - self.space.low) * scale, (points - self.space.low) * scale
        squares = (b * b).sum(axis=1) - 2 * a @ b.T
        # so that of points equally far the first one counts, whatever was rounded
        squares = np.where(said == self.y[:, None], np.inf, np.round(squares, 6))
        return np.where(np.isinf(squares).all(axis=1), -1, squares.argmin(axis=1))

    def _drawn(self, rows: Indices) -> tuple[Indices, Floats]:
        """The nearest of a few random points that have another label, where there is one."""
        best = np.full(len(rows), np.inf)
        out = np.zeros((len(rows), self.x.shape[1]))
        for _ in range(_DRAWS):
            asked = np.flatnonzero(self.spent[rows] < self.attack.budget)
            if not len(asked):
                break
            lots = np.stack([self.random[i].random(self.x.shape[1]) for i in rows[asked]])
            points = self.space.low + lots * (self.space.high - self.space.low)
            moves = self.space.moved(self.x[rows[asked]], points)
            size = np.linalg.norm(moves, axis=1)
            better = self._differs(rows[asked], moves) & (size < best[asked])
            best[asked[better]], out[asked[better]] = size[better], moves[better]
        found = np.isfinite(best)
        return rows[found], out[found]

    def _differs(self, rows: Indices, moves: Floats) -> Mask:
        """Whether the target gives another label there; one query a row."""
        out = np.empty(len(rows), dtype=bool)
        step = max(1, _NUMBERS // self.x.shape[1])
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            x = self.space.placed(self.x[rows[part]], moves[part])
            out[part] = _labels(self.target, self.space.inputs(x)) != self.y[rows[part]]
        self.spent[rows] += 1
        return out

    def _halve(self, rows: Indices, moves: Floats) -> None:
        """Go from where the label is another one towards the record, up to the boundary."""
        near, far = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(self.attack.halvings):
            asked = np.flatnonzero(self.spent[rows] < self.attack.budget)
            if not len(asked):
                break
            middle = (near[asked] + far[asked]) / 2
            differs = self._differs(rows[asked], middle[:, None] * moves[asked])
            far[asked] = np.where(differs, middle, far[asked])
            near[asked] = np.where(differs, near[asked], middle)
        moves = far[:, None] * moves
        distance = np.linalg.norm(moves, axis=1)
        closer = distance < self.distance[rows]
        self.moves[rows[closer]], self.distance[rows[closer]] = moves[closer], distance[closer]

    def _normal(self, rows: Indices, probes: int) -> Floats:
        """Which way the other label lies, seen from the boundary: unit vectors (len(rows), d)."""
        d = self.x.shape[1]
        reach = np.maximum(1 / d, 2.0 ** (2 - self.attack.halvings)) * self.distance[rows]
        out = np.empty((len(rows), d))
        step = max(1, _NUMBERS // (probes * d))
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            around = np.stack([self.random[i].standard_normal((probes, d)) for i in some])
            around *= self.space.unit > 0
            length = np.linalg.norm(around, axis=2, keepdims=True)
            around *= reach[first : first + step, None, None] / np.maximum(length, 1e-300)
            x, center = self.x[some][:, None], self.moves[some][:, None]
            asked = self.space.placed(x, center + around)
            said = _labels(self.target, self.space.inputs(asked)).reshape(len(some), probes)
            votes = np.where(said != self.y[some][:, None], 1.0, -1.0)
            mean = votes.mean(axis=1, keepdims=True)
            votes -= np.where(np.abs(mean) < 1, mean, 0.0)
            # what the box has left of the probes
            around = self.space.moved(x, asked) - center
            out[first : first + step] = np.einsum("mk,mkd->md", votes, around)
        self.spent[rows] += probes
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return np.asarray(out / np.where(length > 0, length, 1.0))

    def _walk(self, rows: Indices, normal: Floats, turn: int) -> None:
        """A step along the normal, shorter where it falls back, and again to the boundary."""
        size = self.distance[rows] / np.sqrt(turn)
        moves = np.zeros_like(normal)
        landed = np.zeros(len(rows), dtype=bool)
        for _ in range(_RETREATS):
            asked = np.flatnonzero(~landed & (self.spent[rows] < self.attack.budget))
            if not len(asked):
                break
            x, start = self.x[rows[asked]], self.moves[rows[asked]]
            ahead = self.space.placed(x, start + size[asked, None] * normal[asked])
            moves[asked] = self.space.moved(x, ahead)
            landed[asked] = self._differs(rows[asked], moves[asked])
            size /= 2
        self._halve(rows[landed], moves[landed])


# --- votes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AugmentationVotes:
    """Members' altered copies are classified correctly too: score = the share of them that is,
    less 1 if the record itself is not.

    Args:
        augmentations: functions of a batch of inputs (n, ...), each giving one altered copy of
            each. By default, where records are rows, copies with small noise (continuous features)
            or with few bits flipped (where all are 0 or 1); where they are images, those shifted
            by one and two pixels (12) and the mirrored one.
        copies: noisy copies, by default.
        noise: standard deviation of the noise, in standard deviations of each feature; copies stay
            between the smallest and largest value of each feature.
        flips: rate of flipped bits.
        learned: weigh the copies instead of counting them: a logistic regression on which of them
            are classified correctly, fitted on the reference models of the pool, whose membership
            is known. The score is its log-odds.
        seed: of the noise, and of the draw that the regression is fitted on.

    Departs from the paper: its augmentations are those the target was trained with (translations,
    rotations); a neural network is its classifier, always on shadow models; votes counted without
    any are ours, with misclassified records below all others.

    References: Choquette-Choo et al. 2021, data augmentation attack.
    """

    augmentations: tuple[Callable[[Any], Any], ...] = ()
    copies: int = 20
    noise: float = 0.5
    flips: float = 0.05
    learned: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(callable(a) for a in self.augmentations):
            raise InvalidInput("expected augmentations as functions of a batch of inputs")
        if self.copies < 1 or self.seed < 0:
            raise InvalidInput(
                f"expected copies >= 1 and seed >= 0, got {self.copies} and {self.seed}"
            )
        if not self.noise > 0 or not 0 < self.flips < 1:
            raise InvalidInput(
                "expected noise > 0 and a rate of flips between 0 and 1, got "
                f"{self.noise} and {self.flips}"
            )

    @property
    def about(self) -> About:
        """Counting votes needs no models, weighing them does."""
        knowledge = "the record and its label; how inputs may be altered"
        return About(
            title="Augmentation votes" + (", learned" if self.learned else ""),
            source="Choquette-Choo et al. 2021",
            question="Does the target give the record's altered copies the right label as well?",
            access="labels only",
            knowledge=knowledge + ("; reference models" if self.learned else ""),
            needs_models=self.learned,
            needs_features=True,
            queries=1 + (len(self.augmentations) or max(self.copies, 13)),
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the votes; one query a record and one for each copy.

        Raises:
            InvalidInput: an augmentation returns inputs of another shape; `known` is absent, and
                `learned`.
            MissingModels: the pool has no models, and `learned`.
        """
        pool = references_of(known) if self.learned else None
        views = self._views(candidates, candidates)
        right = np.stack([correctness(answers(target, v), v.y) for v in views], axis=1)
        if pool is None:
            return Scores(candidates.ids, right[:, 1:].mean(axis=1) - (1 - right[:, 0]))
        weights = self._weights(pool, candidates)
        return Scores(candidates.ids, weights.decision_function(right))

    def _views(self, records: Records, measured: Records) -> Iterator[Records]:
        """The records, then each of their copies; `measured` says how large features are."""
        yield records
        for x in self._copies(records, measured):
            if np.shape(x) != np.shape(records.x):
                raise InvalidInput(
                    f"expected an augmentation to return inputs of shape {np.shape(records.x)}, "
                    f"got {np.shape(x)}"
                )
            yield Records(records.ids, x, records.y, records.columns, records.classes)

    def _copies(self, records: Records, measured: Records) -> Iterator[NDArray[Any]]:
        if self.augmentations:
            x = np.asarray(records.x)
            yield from (np.asarray(augmentation(x)) for augmentation in self.augmentations)
        elif len(records.x.shape) > 2:
            yield from _shifted_and_mirrored(np.asarray(records.x))
        else:
            yield from self._noisy(records, _space(measured))

    def _noisy(self, records: Records, space: _Space) -> Iterator[NDArray[Any]]:
        x, random = _flat(records), _generators(records, self.seed)
        for _ in range(self.copies):
            if space.binary:
                lots = np.stack([r.random(x.shape[1]) for r in random])
                yield space.inputs(np.abs(x - (lots < self.flips)))
            else:
                lots = np.stack([r.standard_normal(x.shape[1]) for r in random])
                yield space.inputs(space.placed(x, self.noise * lots))

    def _weights(self, pool: Pool[BlackBox], candidates: Records) -> Any:
        """A regression of membership on which views a reference model classifies correctly."""
        views = self._views(pool.records, candidates)
        right = np.stack([pool.signals(correctness, v) for v in views], axis=2)
        rng = np.random.default_rng(self.seed)
        sides = [np.argwhere(pool.member), np.argwhere(~pool.member)]
        n = min(*(len(side) for side in sides), _PAIRS)
        if not n:
            raise InvalidInput(
                "expected reference models with members and non-members in the pool, got one "
                "side only"
            )
        drawn = np.concatenate([side[rng.permutation(len(side))[:n]] for side in sides])
        model = LogisticRegression(max_iter=1000)
        return model.fit(right[drawn[:, 0], drawn[:, 1]], np.repeat([1, 0], n))


# pairs of a model and a record on each side of the regression, at most
_PAIRS = 20_000


def _shifted_and_mirrored(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Images moved by up to two pixels, edges repeated, and the mirrored ones.

    Images are (n, height, width), (n, channels, height, width) or (n, height, width, channels),
    with 1, 3 or 4 channels.
    """
    last = x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    down, across = (1, 2) if last else (x.ndim - 2, x.ndim - 1)
    rows, columns = np.arange(x.shape[down]), np.arange(x.shape[across])
    for i in range(-2, 3):
        for j in range(-2, 3):
            if 0 < abs(i) + abs(j) <= 2:
                moved = x.take(np.clip(rows + i, 0, len(rows) - 1), axis=down)
                yield moved.take(np.clip(columns + j, 0, len(columns) - 1), axis=across)
    yield np.flip(x, axis=across)
