"""Which records stand out even from a model that generalizes, and was this one trained on them?

Long, Bindschaedler, Wang, Bu, Wang, Tang, Gunter, Chen. Understanding membership inferences on
well-generalized learning models. 2018. https://arxiv.org/abs/1802.04889
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vestige.attacks.attack import About, answers, references_of
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import centered_logits, true_class_margin

__all__ = ["GMIA", "Features", "Neighborhood", "Tail", "neighborhood", "smooth_log_p_values"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Features = Literal["logits", "inputs"]
Tail = Literal["normal", "conservative", "zero"]

NEAREST = 5
"""Neighbors that are named for each record."""

_BLOCK, _BLOCK_BYTES = 2048, 32 * 2**20
# single precision knows cosines no better
_LEAST_DELTA = 1e-5
_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """Who is near whom in the eyes of reference models, trained on some of them or on none.

    Attributes:
        expected: (n,) E[N_n], neighbors to expect in a training set of the models' size.
        nearest: (n, m) ids of the nearest of the pool's records, nearest first, m <= 5.
        distance: (n, m) their cosine distances, in [0, 2].
    """

    expected: Floats
    nearest: NDArray[Any]
    distance: Floats


@dataclass(frozen=True, kw_only=True)
class GMIA:
    """Direct inference on the records that no neighbor hides.

    A record is tested if a training set holds less than `beta` neighbors of it, on average: then
    what a model says of it, it has from the record itself. Its loss under the target is compared
    with its losses under reference models that were trained without it; the score is -log of the
    smoothed p-value of section 4.4. Other records are left out: nothing is said of them.

    Scores.p_values are ranks, (1 + #{L_i <= L}) / (k + 1): exact where the target is exchangeable
    with the k reference models and all records are tested (`beta=None`), or the choice is made by
    other models (`split_references`). Else they are somewhat too small, as in the paper, since the
    choice looks at answers of the same models (with 16 of them, in pure noise, p <= 0.18 came in
    23 %, and the lowest rank in 6.2 % for 5.9 %). The smoothed ones, exp(-score), are smaller by up
    to one rank, and below 1 / (k + 1) they extrapolate a normal shape. Reference models that share
    records, as bootstraps and halves do, agree more than independent ones: report the false
    positive rate that was seen.

    Args:
        delta: neighbors are records at a cosine distance below it.
        beta: expected neighbors below which a record is tested; None tests all records.
        features: "logits" of the reference models, stacked, or standardized "inputs" where nothing
            is known of the target's architecture (sec. 5.3).
        center: subtract each feature's mean over the pool's records first.
        n_train: N, the size of the target's training set; None for that of the reference models',
            in which a record that was drawn twice counts once.
        split_references: choose records by one half of the reference models and test them with the
            other: exact ranks, half as fine.
        tail: of losses below all of the references': "normal", or "conservative" for 1 / (k + 1).

    Departs from the paper: losses are taken from log p_y - log(sum of the others), which keeps its
    digits where p_y is nearly 1; logits are those less their mean over the classes, see
    `vestige.signals.centered_logits`; the tails and ties of the smoothed distribution are ours.

    References: Long et al. 2018, sections 4.2 to 4.4.
    """

    delta: float = 0.1
    beta: float | None = 0.1
    features: Features = "logits"
    center: bool = False
    n_train: int | None = None
    split_references: bool = False
    tail: Literal["normal", "conservative"] = "normal"

    def __post_init__(self) -> None:
        _check_neighbors(self.delta, self.features, self.n_train)
        if self.beta is not None and not self.beta > 0:
            raise InvalidInput(f"expected beta above 0, or None for all records, got {self.beta}")
        if self.tail not in ("normal", "conservative"):
            raise InvalidInput(f'expected tail "normal" or "conservative", got {self.tail!r}')

    @property
    def about(self) -> About:
        return About(
            title="Generalized membership inference",
            source="Long et al. 2018",
            question="Is the target surer of a record that stands out than any model without it?",
            access="class probabilities",
            knowledge="the record and its label; reference models trained without it, and their "
            "training data",
            needs_models=True,
            needs_features=self.features == "inputs",
            signals=(true_class_margin,),
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score the candidates that stand out; one query for each of them.

        Raises:
            InvalidInput: `known` is absent.
            MissingModels: no candidate stands out, or none has two models trained without it.
        """
        pool = references_of(known)
        outside = ~trained_on_content(pool, candidates) & self.judges(pool)[:, None]
        enough = outside.sum(axis=0) >= 2
        if not enough.any():
            raise MissingModels(
                "expected at least two reference models trained without a record, got fewer for "
                f"each of the {len(candidates)} candidates; train references on other records, or "
                "on random halves of these"
            )
        tested = enough & self.selected(candidates, pool)
        if not tested.any():
            raise MissingModels(
                f"expected a record with fewer than {self.beta} neighbors to be expected, got none "
                f"among {len(candidates)}; raise beta= or lower delta= (now {self.delta}), or test "
                "all records with beta=None"
            )
        records, outside = candidates[tested], outside[:, tested]
        phi = true_class_margin(answers(target, records), records.y)
        references = pool.signals(true_class_margin, records)
        log_p, p = np.empty(len(records)), np.empty(len(records))
        for j, out in enumerate(outside.T):
            own = references[out, j]
            log_p[j] = smooth_log_p_values(phi[j : j + 1], own, tail=self.tail)[0]
            p[j] = (1 + (own >= phi[j]).sum()) / (1 + len(own))
        return Scores(records.ids, 0.0 - log_p, p)

    def selected(self, candidates: Records, known: Pool[BlackBox]) -> Mask:
        """Which candidates stand out, (n,); the target is not asked."""
        if self.beta is None:
            return np.ones(len(candidates), dtype=bool)
        found = neighborhood(
            candidates,
            known,
            delta=self.delta,
            features=self.features,
            center=self.center,
            n_train=self.n_train,
            models=self.choosing(known),
        )
        return np.asarray(found.expected < self.beta)

    def judges(self, known: Pool[BlackBox]) -> Mask:
        """Which models a record is tested with, (n_models,), where they were trained without it."""
        if not self.split_references:
            return np.ones(len(known.models), dtype=bool)
        # every other two: the two of a pair of complementary halves know of each other
        return np.asarray(np.arange(len(known.models)) // 2 % 2 == 1)

    def choosing(self, known: Pool[BlackBox]) -> Mask | None:
        """Which models say who stands out, (n_models,); None for all."""
        return ~self.judges(known) if self.split_references else None


def smooth_log_p_values(phi: Floats, references: Floats, *, tail: Tail = "normal") -> Floats:
    """Logs of the left-tailed p-values of losses among those of reference models (sec. 4.4).

    The distribution function goes through (u_j, c_j / (k + 1)), u_j the distinct losses and c_j how
    many are not above them, and is monotone between them (PCHIP). Above all of them p = 1. Below,
    "normal" goes on with the upper tail of a normal fitted to the references' margins, continuously
    from the lowest loss; "conservative" says 1 / (k + 1); "zero" says 0, as the bare empirical
    distribution would.

    Args:
        phi: (n,) margins log p_y - log(1 - p_y) of the target; its loss is log(1 + exp(-phi)).
        references: (k,) margins of models trained without the record.

    Raises:
        InvalidInput: no references, NaN, or another tail.
    """
    if tail not in get_args(Tail):
        raise InvalidInput(f"expected tail among {', '.join(get_args(Tail))}, got {tail!r}")
    if not len(references) or not (np.isfinite(phi).all() and np.isfinite(references).all()):
        raise InvalidInput("expected finite margins of at least one reference model, got others")
    k = len(references)
    knots, times = np.unique(_loss(references), return_counts=True)
    heights = np.cumsum(times) / (k + 1)
    losses = _loss(phi)
    out = np.zeros(len(phi))
    within = (losses >= knots[0]) & (losses <= knots[-1])
    if within.any() and len(knots) > 1:
        out[within] = np.log(_monotone(knots, heights, losses[within]))
    below = losses < knots[0]
    if tail == "zero":
        out[below] = -np.inf
    elif tail == "conservative" or len(knots) == 1:
        out[below] = -np.log(k + 1)
    else:
        mean, spread = references.mean(), max(float(references.std(ddof=1)), _FLOOR)
        z, edge = (phi[below] - mean) / spread, (references.max() - mean) / spread
        out[below] = np.log(heights[0]) + stats.norm.logsf(z) - stats.norm.logsf(edge)
    return out


def _monotone(x: Floats, y: Floats, at: Floats) -> Floats:
    """PCHIP through rising points (x, y), SciPy's `PchipInterpolator`, by ratios of distances.

    Losses of sure models lie 1e-200 apart, where slopes and their inverses overflow.
    """
    h, rise = np.diff(x), np.diff(y)
    if len(h) == 1:
        ends = np.stack([rise, rise])
    else:
        # slope times width of a cell, at its left and at its right end
        with np.errstate(over="ignore", divide="ignore"):
            ratio = np.clip(h[1:] / h[:-1], 1e-150, 1e150)
        inverse, before, after = 1 / ratio, rise[:-1], rise[1:]
        left = 3 * (1 + inverse) / ((2 + inverse) * inverse / before + (1 + 2 * inverse) / after)
        right = 3 * (1 + ratio) / ((1 + 2 * ratio) / before + (2 + ratio) * ratio / after)
        first = _end(rise[0], rise[1], ratio[0])
        last = _end(rise[-1], rise[-2], inverse[-1])
        ends = np.stack([np.append(first, left), np.append(right, last)])
    cell = np.clip(np.searchsorted(x, at, "right") - 1, 0, len(h) - 1)
    t = (at - x[cell]) / h[cell]
    a, b = ends[0, cell], ends[1, cell]
    out = y[cell] + t**2 * (3 - 2 * t) * rise[cell] + t * (1 - t) * ((1 - t) * a - t * b)
    return np.asarray(np.clip(out, y[cell], y[cell + 1]))


def _end(own: float, other: float, ratio: float) -> float:
    """Slope times width at an end, by three points; ratio is that of the next width to this."""
    return max(0.0, ((2 + ratio) * own - other / ratio) / (1 + ratio))


def _loss(phi: Floats) -> Floats:
    return np.logaddexp(0.0, -phi)


def neighborhood(
    candidates: Records,
    known: Pool[BlackBox],
    *,
    delta: float = 0.1,
    features: Features = "logits",
    center: bool = False,
    n_train: int | None = None,
    models: Mask | None = None,
) -> Neighborhood:
    """How many neighbors each candidate would find in a training set, without asking the target.

    E[N_n] = N'_n N / N': of the pool's N' records, N'_n are at a cosine distance below `delta`, the
    record itself not among them, and models are trained on N of them.

    Args:
        candidates: records that may be in the pool themselves.
        known: reference models and all records that they were trained on.
        delta: as in `GMIA`, like the following.
        models: (n_models,) whose logits are looked at; None for all.

    Raises:
        InvalidInput: no models where their logits are asked for, or settings that make no sense.

    References: Long et al. 2018, section 4.3.
    """
    _check_neighbors(delta, features, n_train)
    rows, others = _features(candidates, known, features, center, models)
    own = _places(candidates.ids, known.records.ids)
    n, m = len(rows), min(NEAREST, len(others) - 1)
    count, nearest = np.zeros(n), np.zeros((n, m), dtype=np.int64)
    distance = np.zeros((n, m))
    step = max(1, min(_BLOCK, _BLOCK_BYTES // (4 * len(others))))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        cosine = rows[part] @ others.T
        here = own[part]
        there = np.flatnonzero(here >= 0)
        cosine[there, here[there]] = -np.inf
        count[part] = (cosine > 1 - delta).sum(axis=1)
        top = np.argpartition(cosine, len(others) - m - 1, axis=1)[:, len(others) - m :]
        found = np.take_along_axis(cosine, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        nearest[part] = np.take_along_axis(top, order, axis=1)
        distance[part] = 1 - np.take_along_axis(found, order, axis=1)
    size = n_train or (known.member.sum(axis=1).mean() if len(known.models) else len(others) / 2)
    if not size:
        raise InvalidInput(
            "expected reference models that were trained on some of the pool's records, got none; "
            "say n_train=, the size of the target's training set"
        )
    return Neighborhood(count * size / len(others), known.records.ids[nearest], distance)


def _check_neighbors(delta: float, features: str, n_train: int | None) -> None:
    if n_train is not None and n_train < 1:
        raise InvalidInput(f"expected n_train from 1, or None, got {n_train}")
    if not _LEAST_DELTA <= delta <= 2:
        raise InvalidInput(f"expected delta in [{_LEAST_DELTA}, 2], got {delta}")
    if features not in get_args(Features):
        raise InvalidInput(f'expected features "logits" or "inputs", got {features!r}')


def _features(
    candidates: Records,
    known: Pool[BlackBox],
    features: Features,
    center: bool,
    models: Mask | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of length 1 for the candidates and for the pool's records."""
    sides: list[NDArray[Any]]
    if features == "inputs":
        both = (candidates, known.records)
        sides = [np.asarray(r.x[:], np.float64).reshape(len(r), -1) for r in both]
        mean, spread = sides[1].mean(axis=0), sides[1].std(axis=0)
        sides = [(side - mean) / np.where(spread > 0, spread, 1.0) for side in sides]
    else:
        pool = references_of(known)
        sides = [_stacked(pool, records, models) for records in (candidates, pool.records)]
    if center:
        mean = sides[1].mean(axis=0)
        sides = [side - mean for side in sides]
    rows, others = (_unit(side) for side in sides)
    return rows, others


def _stacked(pool: Pool[BlackBox], records: Records, models: Mask | None) -> NDArray[np.float32]:
    """Logits of the models side by side, (n, n_models * classes)."""
    table = pool.signals(centered_logits, records)
    table = (table if models is None else table[models]).transpose(1, 0, 2)
    return np.ascontiguousarray(table, dtype=np.float32).reshape(len(records), -1)


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0), dtype=np.float32)


def _places(ids: NDArray[Any], known: NDArray[Any]) -> NDArray[np.int64]:
    """The row of each id among others, -1 where it is not there."""
    row = {identity: place for place, identity in enumerate(known.tolist())}
    return np.array([row.get(identity, -1) for identity in ids.tolist()], dtype=np.int64)


def trained_on_content(pool: Pool[BlackBox], records: Records) -> Mask:
    """Which model was trained on a record or on one of equal content, (n_models, n).

    Raises:
        InvalidInput: an id means another record in the pool.
    """
    saw = pool.trained_on(records.ids)
    # a copy may be stored in another type of float
    both = (records.x.dtype, pool.records.x.dtype)
    narrow = min(both, key=lambda kind: kind.itemsize) if {d.kind for d in both} == {"f"} else None
    mine, theirs = (
        side.content_hash() if narrow is None else side.content_hash(narrow.type)
        for side in (records, pool.records)
    )
    place = _places(records.ids, pool.records.ids)
    other = (place >= 0) & (theirs[place] != mine)
    if other.any():
        raise InvalidInput(
            f"expected the pool's records under the ids of the candidates, got {int(other.sum())} "
            f"that are others there (for example {records.ids[other][0]}); number the records once"
        )
    order = np.argsort(theirs, kind="stable")
    low, high = (np.searchsorted(theirs[order], mine, side) for side in ("left", "right"))
    for j in np.flatnonzero(high > low):
        saw[:, j] |= pool.member[:, order[low[j] : high[j]]].any(axis=1)
    return saw
