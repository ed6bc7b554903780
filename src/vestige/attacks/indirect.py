"""Was the target trained on a record, judged by what it says of other records alone?

Long, Bindschaedler, Wang, Bu, Wang, Tang, Gunter, Chen. Understanding membership inferences on
well-generalized learning models. 2018. https://arxiv.org/abs/1802.04889
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from vestige.attacks.attack import About, references_of
from vestige.attacks.gmia import smooth_log_p_values, trained_on_content
from vestige.errors import InvalidInput, MissingModels
from vestige.metrics import Combined, combine
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import true_class_margin
from vestige.synthesis import (
    Binary,
    Continuous,
    Feature,
    OneHot,
    Schema,
    check_schema,
    schema_of,
)
from vestige.training import Recipe
from vestige.training.influence import Hinge, hinge, twins

__all__ = ["Draw", "Enhancing", "IndirectGMIA"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]
Draw = Literal["auto", "uniform", "marginals", "noise"]

FEWEST = 4
"""References trained without a record: two to search with, two to judge with."""

SMALL_SPACE = 64
"""Features up to which queries are drawn from the whole space, not around the record."""

# of descent: a step as a share of a feature's range, and steps between two looks at the influence
_RATE = 0.01
_EVERY = 25
_BETA = (0.9, 0.999)
# records whose pairwise distances are taken, and numbers that ranges are taken from
_ROWS = 1000
_NUMBERS = 2**22
_NEAR = 1e-9


@dataclass(frozen=True, eq=False)
class Enhancing:
    """Queries whose answers tell whether a record was trained on; none of them is near it.

    Attributes:
        x: (n, ...) the queries.
        influence: (n,) I on the held-out references: the share of them that give the record's class
            a higher probability after they have seen it than after the same steps without it.
        searched_influence: (n,) I on the references that the queries were searched on.
        optimized: (n,) whether a query was found by gradient descent, not at random.
        distance: (n,) Euclidean distance to the record.
        null: (k_held, n) margins log p_y - log(1 - p_y) of the held-out references.
        correlation: (n, n) of their normal scores over the held-out references.
    """

    x: NDArray[Any]
    influence: Floats
    searched_influence: Floats
    optimized: Mask
    distance: Floats
    null: Floats
    correlation: Floats

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class IndirectGMIA:
    """Indirect inference: ask the target about other records that this one has moved.

    Before the target is asked, reference models that never saw the record are trained on with it
    ("positive" references) and, beside each, without it (its control). Random queries are clustered
    by what references answer; of each cluster's middle, the influence I is the share of references
    whose positive twin gives the record's class a higher probability than the control. Queries with
    I > theta are enhancing; if there are fewer than `enough`, others are moved there by descent on
    a hinge loss. One half of the references, drawn at random, is searched with. The other judges:
    a query is asked only if I > theta holds on it too, and the target's losses on the queries are
    compared with its losses. Their p-values, which are dependent, are combined by Kost's method;
    the score is -log of that p-value.

    Scores.p_values are exact ranks: those of the target among the held-out references by the sum
    of the queries' normal scores, (1 + #{T_i >= T}) / (k_held + 1).

    Args:
        recipe: how the references (and the target) were trained; needed.
        schema: of the records, flat; by default read off the pool's records and the candidate,
            one-hot groups as binary columns. Images have one range for all pixels.
        n_random: random queries.
        draw: how they are drawn: "uniform" over the schema, "noise" around the record, normal, or
            "marginals", each feature from a record of the pool's, whichever; "auto" is uniform for
            up to 64 features, else noise. Uniform draws fall on rare categories, where few records
            decide and targets of one pool are off together; those of the marginals hardly do.
        n_clusters: random queries that are kept, at most: the middle of each cluster.
        enough: enhancing queries from which no others are optimized.
        theta: influence that a query must exceed; 0.95, Adult 0.9, MNIST 0.8 in the paper.
        gamma: margin of the hinge loss, in probability.
        steps: of descent, at most; 0 for random queries only.
        noise: standard deviation of normal queries, in those of the features.
        least_distance: of a query to the record, in medians of the distances between records.
        positive: references are "updated" by up to an epoch with the record in every batch, as in
            the paper, or "retrained" from scratch with it, which costs what they cost, twice: few
            steps move a model one way everywhere, where training to the end bends it.
        control: what positive references are compared with: "paired" controls, or the "original"
            references as in the paper (sec. 4.5), where more training looks like influence.
        reuse_references: search and judge with all references, as the paper does: the queries are
            then fitted to the references that they are judged by, and p-values too small.
        max_queries: for each record; the most influential ones are asked.
        tail: of losses below all of the references', see `smooth_log_p_values`; "zero" is refused,
            since one zero would decide the combination alone.
        seed: of the halves, the queries and the updates.

    Departs from the paper: halves of the references, the controls and the least distance are ours,
    like the numbers it does not give: gamma, the rate of descent (Adam, 1% of a feature's range),
    the update's length (see `vestige.training.influence.twins`). A step of descent is taken only if
    the hinge loss does not rise.

    References: Long et al. 2018, sections 4.5 and 5.6.
    """

    recipe: Recipe | None = None
    schema: Schema | None = None
    n_random: int = 5000
    draw: Draw = "auto"
    n_clusters: int = 50
    enough: int = 10
    theta: float = 0.95
    gamma: float = 0.1
    steps: int = 500
    noise: float = 0.5
    least_distance: float = 0.1
    positive: Literal["updated", "retrained"] = "updated"
    control: Literal["paired", "original"] = "paired"
    reuse_references: bool = False
    max_queries: int | None = None
    tail: Literal["normal", "conservative"] = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"n_random": 1, "n_clusters": 1, "enough": 0, "steps": 0, "seed": 0}
        for name, low in least.items():
            if vars(self)[name] < low:
                raise InvalidInput(f"expected {name} of at least {low}, got {vars(self)[name]}")
        if self.max_queries is not None and self.max_queries < 1:
            raise InvalidInput(f"expected max_queries >= 1 or None, got {self.max_queries}")
        if not 0 <= self.theta < 1:
            raise InvalidInput(f"expected theta in [0, 1), got {self.theta}")
        for name in ("gamma", "noise", "least_distance"):
            if not 0 < vars(self)[name] < np.inf:
                raise InvalidInput(f"expected {name} above 0, got {vars(self)[name]}")
        if self.positive not in ("updated", "retrained"):
            raise InvalidInput(f'expected positive "updated" or "retrained", got {self.positive!r}')
        if self.control not in ("paired", "original"):
            raise InvalidInput(f'expected control "paired" or "original", got {self.control!r}')
        if self.control == "original" and self.positive == "retrained":
            raise InvalidInput(
                'expected control "paired" with positive "retrained", got "original": models '
                "trained anew differ from the references by their seeds too"
            )
        if self.draw not in get_args(Draw):
            raise InvalidInput(
                f"expected draw among {', '.join(get_args(Draw))}, got {self.draw!r}"
            )
        if self.tail not in ("normal", "conservative"):
            raise InvalidInput(
                f'expected tail "normal" or "conservative", got {self.tail!r}; a p-value of zero '
                "makes any combination zero"
            )

    @property
    def about(self) -> About:
        return About(
            title="Indirect membership inference",
            source="Long et al. 2018",
            question="Does the target answer on other records as if it had seen this one?",
            access="class probabilities",
            knowledge="the record and its label; reference models trained without it, their "
            "training data and how they were trained",
            needs_models=True,
            needs_features=True,
            queries=self.max_queries or max(self.n_clusters, self.enough),
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score the candidates for which enhancing queries are found; others are left out.

        The references are trained on for each candidate anew: choose few (`GMIA.selected`).

        Raises:
            InvalidInput: no pool, no recipe, or records that are not what the schema says.
            MissingModels: no candidate has four references trained without it, or for none an
                enhancing query was found.
        """
        pool = references_of(known)
        enough = (~trained_on_content(pool, candidates)).sum(axis=0) >= FEWEST
        ids, values, p_values = [], [], []
        for j in range(len(candidates)):
            found = self.enhancing(candidates[j], pool) if enough[j] or not enough.any() else None
            if found is None or not len(found):
                continue
            phi = _asked(target, found, int(candidates.y[j]))
            ids.append(j)
            values.append(0.0 - float(self._combined(phi, found).log_p))
            p_values.append(_rank(phi, found.null))
        if not ids:
            raise MissingModels(
                f"expected a query with an influence above {self.theta}, got none for any of "
                f"{len(candidates)} candidates; lower theta=, or attack records that stand out more"
            )
        return Scores(candidates.ids[ids], np.array(values), np.array(p_values))

    def enhancing(self, record: Records, known: Pool[BlackBox]) -> Enhancing:
        """Queries to ask about one record, maybe none; the target is not asked.

        Raises:
            InvalidInput: as `run`; or not one record.
            MissingModels: less than four references were trained without it.
        """
        recipe = self._recipe()
        pool = references_of(known)
        if len(record) != 1:
            raise InvalidInput(f"expected one record, got {len(record)}; take records[i]")
        places = np.flatnonzero(~trained_on_content(pool, record)[:, 0])
        if len(places) < FEWEST:
            raise MissingModels(
                f"expected at least {FEWEST} reference models trained without record "
                f"{record.ids[0]}, got {len(places)}; train more, on other records"
            )
        # from the record's content, so that it does not matter which others are scored
        rng = np.random.default_rng([self.seed, int(record.content_hash()[0])])
        space = _Space(record, pool.records, self.schema, self.least_distance, rng)
        models = [pool.models[int(k)] for k in places]
        made = twins(
            recipe,
            models,
            pool.records,
            pool.member[places],
            record,
            seed=self.seed,
            retrain=self.positive == "retrained",
        )
        control = made.control if self.control == "paired" else models
        every = _References(models, made.positive, control, int(record.y[0]))
        searched, held = every.halves(rng) if not self.reuse_references else (every, every)
        return self._judged(*self._searched(searched, space, rng), searched, held, space)

    def p_values(self, target: BlackBox, enhancing: Enhancing, label: int) -> Combined:
        """The combined p-value of "the target never saw the record"; one query for each of `x`.

        Args:
            label: the record's class.

        Raises:
            InvalidInput: there is no query.
        """
        return self._combined(_asked(target, enhancing, label), enhancing)

    def _combined(self, phi: Floats, enhancing: Enhancing) -> Combined:
        pairs = zip(phi, enhancing.null.T, strict=True)
        log_p = [smooth_log_p_values(np.array([a]), null, tail=self.tail)[0] for a, null in pairs]
        return combine(np.array(log_p), enhancing.correlation)

    def _recipe(self) -> Recipe:
        if self.recipe is None:
            raise InvalidInput(
                "expected recipe=, how the reference models were trained, got none; they are "
                "trained on with each record"
            )
        return self.recipe

    # --- the search, on one half of the references

    def _searched(
        self, half: _References, space: _Space, rng: np.random.Generator
    ) -> tuple[Floats, Mask]:
        """Queries (n, d) with enough influence on this half, and which of them were optimized."""
        x = space.drawn(self.n_random, self.noise, rng, self.draw)
        if not len(x):
            return x, np.zeros(0, dtype=bool)
        answers = special.expit(half.margins(half.models, space.inputs(x)))
        x = x[representatives(answers.T, self.n_clusters)]
        passed = half.influence(space.inputs(x)) > self.theta
        optimized = np.zeros(len(x), dtype=bool)
        loss = None
        if self.steps and passed.sum() < self.enough and not passed.all():
            loss = hinge(half.positive, half.control, half.label, self.gamma)
        if loss is not None:
            rest = np.flatnonzero(~passed)
            x[rest], optimized[rest] = self._optimized(x[rest], loss, half, space)
        kept = passed | optimized
        # descents may have come to the same record
        _, first = np.unique(x[kept], axis=0, return_index=True)
        rows = np.flatnonzero(kept)[np.sort(first)]
        return x[rows], optimized[rows]

    def _optimized(
        self, x: Floats, loss: Hinge, half: _References, space: _Space
    ) -> tuple[Floats, Mask]:
        """The queries after descent, and which of them got the influence."""

        def at(x: Floats) -> tuple[Floats, Floats]:
            value, gradient = loss(space.shaped(x))
            return value, gradient.reshape(len(x), -1)

        descent = Descent(at, space.projected, x, _RATE * space.range)
        out, found = x.copy(), np.zeros(len(x), dtype=bool)
        left = np.arange(len(x))
        for step in range(1, self.steps + 1):
            descent.step(left)
            if step % _EVERY and step < self.steps:
                continue
            valid = space.snapped(descent.x[left])
            hit = (half.influence(space.inputs(valid)) > self.theta) & space.far(valid)
            out[left[hit]], found[left[hit]] = valid[hit], True
            left = left[~hit & ~descent.stuck[left]]
            if not len(left):
                break
        return out, found

    def _judged(
        self, x: Floats, optimized: Mask, searched: _References, held: _References, space: _Space
    ) -> Enhancing:
        """What holds on the held-out half too, and what its models without the record answer."""
        inputs = space.inputs(x)
        of_searched, of_held = searched.influence(inputs), held.influence(inputs)
        rows = np.flatnonzero(of_held > self.theta)
        order = np.argsort(-(of_searched + of_held)[rows], kind="stable")
        rows = np.sort(rows[order][: self.max_queries])
        null = held.margins(held.models, inputs[rows])
        return Enhancing(
            inputs[rows],
            of_held[rows],
            of_searched[rows],
            optimized[rows],
            space.distance(x[rows]),
            null,
            _correlation(null),
        )


def _asked(target: BlackBox, enhancing: Enhancing, label: int) -> Floats:
    """The target's margins on the queries, (n,)."""
    if not len(enhancing):
        raise InvalidInput("expected at least one enhancing query, got none; lower theta=")
    table = target.log_probabilities(enhancing.x)
    if not 0 <= label < table.shape[1]:
        raise InvalidInput(
            f"expected a label from 0 to {table.shape[1] - 1}, the target's classes, got {label}"
        )
    return true_class_margin(table, np.full(len(table), label))


def _rank(phi: Floats, null: Floats) -> float:
    """Exact p-value of the target (n,) among exchangeable references (k, n): by summed scores."""
    scores = _normal_scores(np.vstack([phi, null])).sum(axis=1)
    # equal sums may differ by rounding
    return float((1 + (scores[1:] >= scores[0] - 1e-9).sum()) / (1 + len(null)))


def _normal_scores(margins: Floats) -> Floats:
    """Phi^-1(rank / (k + 1)) of each column's (k,) margins; ties share their ranks."""
    ranks = stats.rankdata(margins, axis=0)
    return np.asarray(stats.norm.ppf(ranks / (len(margins) + 1)))


def _correlation(null: Floats) -> Floats:
    """(n, n) of normal scores over the references; 1, which claims least, where all answers tie."""
    scores = _normal_scores(null)
    scores -= scores.mean(axis=0)
    length = np.linalg.norm(scores, axis=0)
    tied = length <= 1e-12
    scores /= np.where(tied, 1.0, length)
    r = np.clip(scores.T @ scores, -1, 1)
    r[tied] = r[:, tied] = 1
    np.fill_diagonal(r, 1)
    return np.asarray((r + r.T) / 2)


def representatives(features: Floats, n_clusters: int) -> Indices:
    """Which rows of (n, k) stand for the others: the middle of each cluster, in order.

    Clusters are cut from average linkage of cosine distances; a middle is the row with the smallest
    mean distance to its cluster, the first of equal ones. A row of zeros is at distance 1.
    """
    if len(features) <= n_clusters:
        return np.arange(len(features))
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    apart = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), method="average")
    cluster = fcluster(tree, n_clusters, criterion="maxclust")
    found = []
    for name in np.unique(cluster):
        rows = np.flatnonzero(cluster == name)
        within = apart[np.ix_(rows, rows)].mean(axis=1)
        # distances that differ by rounding are equal
        found.append(rows[np.flatnonzero(within <= within.min() + 1e-12)[0]])
    return np.sort(np.array(found, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class _References:
    """Reference models, and each of them after it saw the record, and after it did not."""

    models: Sequence[BlackBox]
    positive: Sequence[BlackBox]
    control: Sequence[BlackBox]
    label: int

    def halves(self, rng: np.random.Generator) -> tuple[_References, _References]:
        """To search with, and to judge with: of an odd number the larger one."""
        order = rng.permutation(len(self.models))
        parts = np.split(order, [len(order) // 2])
        first, second = (
            _References(
                [self.models[k] for k in part],
                [self.positive[k] for k in part],
                [self.control[k] for k in part],
                self.label,
            )
            for part in (np.sort(part) for part in parts)
        )
        return first, second

    def margins(self, models: Sequence[BlackBox], x: NDArray[Any]) -> Floats:
        """(k, n) margins of the record's class."""
        if not len(x):
            return np.zeros((len(models), 0))
        y = np.full(len(x), self.label)
        return np.stack([true_class_margin(m.log_probabilities(x), y) for m in models])

    def influence(self, x: NDArray[Any]) -> Floats:
        """I of each query, (n,); margins are in the order of probabilities, with more digits."""
        up = self.margins(self.positive, x) > self.margins(self.control, x)
        return np.asarray(up.mean(axis=0))


def _range_of(feature: Feature) -> tuple[float, float]:
    """Smallest and largest value of a feature's columns."""
    if isinstance(feature, (Binary, OneHot)):
        return 0.0, 1.0
    return float(feature.low), float(feature.high)


class _Space:
    """Where queries may lie: what values columns take, how they spread, and not near the record."""

    def __init__(
        self,
        record: Records,
        records: Records,
        schema: Schema | None,
        least: float,
        rng: np.random.Generator,
    ) -> None:
        self._shape, self._dtype = tuple(records.x.shape[1:]), records.x.dtype
        if tuple(record.x.shape[1:]) != self._shape:
            raise InvalidInput(
                f"expected a record of shape {self._shape}, as the pool's records, got "
                f"{tuple(record.x.shape[1:])}"
            )
        d = int(np.prod(self._shape))
        count = min(len(records), max(_ROWS, _NUMBERS // d))
        rows = np.sort(rng.permutation(len(records))[:count])
        x = np.asarray(records.x[rows], dtype=np.float64).reshape(count, d)
        self._record = np.asarray(record.x[:], dtype=np.float64).reshape(d)
        if schema is None:
            schema = self._guessed(np.vstack([x, self._record]))
        else:
            check_schema(schema, record)
        self._small = len(schema) <= SMALL_SPACE
        widths = [f.width for f in schema]
        ends = np.repeat(np.array([_range_of(f) for f in schema]), widths, axis=0)
        self._low, self._high = ends.T
        self._whole = np.repeat([not isinstance(f, Continuous) for f in schema], widths)
        self._whole |= self._dtype.kind in "iu"
        parts = [slice(e - w, e) for w, e in zip(widths, np.cumsum(widths), strict=True)]
        groups = zip(schema, parts, strict=True)
        self._groups = [part for f, part in groups if isinstance(f, OneHot)]
        # what marginals are drawn from
        self._parts, self._rows = parts, x
        self._spread = np.full(d, x.std()) if len(self._shape) > 1 else x.std(axis=0)
        self.range = self._high - self._low
        few = x[rng.permutation(count)[:_ROWS]]
        # the record itself is near, whatever distance is asked for
        self._least = max(least * float(np.median(pdist(few))) if count > 1 else 0.0, _NEAR)

    def _guessed(self, x: Floats) -> Schema:
        """What the columns look like; of images, what all pixels do."""
        images = len(self._shape) > 1
        rows = x.reshape(-1, 1) if images else x
        found = schema_of(Records.from_arrays(rows, np.zeros(len(rows), dtype=np.int64)))
        return found * x.shape[1] if images else found

    def drawn(self, n: int, noise: float, rng: np.random.Generator, how: Draw = "auto") -> Floats:
        """Random queries (n, d); "auto" is uniform in a small space, else around the record."""
        if how == "marginals":
            x = np.empty((n, len(self._record)))
            for part in self._parts:
                x[:, part] = self._rows[rng.integers(len(self._rows), size=n), part]
            return self._far(self.snapped(x))
        if how == "noise" or (how == "auto" and not self._small):
            lots = rng.standard_normal((n, len(self._record)))
            return self._far(self.snapped(self._record + noise * self._spread * lots))
        lots = rng.random((n, len(self._record)))
        # whole numbers have as much room at the ends of their range as within
        low, room = self._low - self._whole / 2, self.range + self._whole
        x = low + room * lots
        for group in self._groups:
            x[:, group] = lots[:, group]
        return self._far(self.snapped(x))

    def _far(self, x: Floats) -> Floats:
        """Those that may be asked, none of them twice."""
        _, first = np.unique(x, axis=0, return_index=True)
        x = x[np.sort(first)]
        return x[self.far(x)]

    def snapped(self, x: Floats) -> Floats:
        """The nearest valid records, as models see them: of a group the largest column is 1."""
        out = np.clip(x, self._low, self._high)
        out[:, self._whole] = np.rint(out[:, self._whole])
        for group in self._groups:
            hot = x[:, group].argmax(axis=1)
            out[:, group] = np.arange(group.stop - group.start) == hot[:, None]
        return out.astype(self._dtype).astype(np.float64)

    def projected(self, x: Floats) -> Floats:
        """The nearest points of the relaxed space that are not near the record.

        Whole numbers are real numbers there, and a group's columns shares that sum to 1.
        """
        gap = x - self._record
        size = np.linalg.norm(gap, axis=1, keepdims=True)
        scale = np.where(
            (size > 0) & (size < self._least), self._least / np.maximum(size, _NEAR), 1
        )
        out = np.clip(self._record + scale * gap, self._low, self._high)
        for group in self._groups:
            out[:, group] = _shares(out[:, group])
        return np.asarray(out)

    def far(self, x: Floats) -> Mask:
        """Which queries may be asked: those not near the record."""
        return self.distance(x) >= self._least

    def distance(self, x: Floats) -> Floats:
        return np.asarray(np.linalg.norm(x - self._record, axis=1))

    def shaped(self, x: Floats) -> Floats:
        return x.reshape(len(x), *self._shape)

    def inputs(self, x: Floats) -> NDArray[Any]:
        """As the models take them, (n, ...) in the records' type."""
        return self.shaped(x).astype(self._dtype)


def _shares(x: Floats) -> Floats:
    """The nearest points (n, d) whose numbers are not negative and sum to 1.

    Held, Wolfe, Crowder 1974, Mathematical Programming 6: all are lowered by one number.
    """
    falling = -np.sort(-x, axis=1)
    places = np.arange(1, x.shape[1] + 1)
    lowered = (np.cumsum(falling, axis=1) - 1) / places
    last = (falling > lowered).sum(axis=1, keepdims=True) - 1
    return np.maximum(x - np.take_along_axis(lowered, last, axis=1), 0)


class Descent:
    """Adam on many points at once, each with a step size of its own, that never climbs.

    A step that would raise a point's value is not taken: the point forgets its moments, so that the
    next step is along its own gradient, of half the size.

    Args:
        function: of points (n, d): values (n,) and gradients (n, d).
        projected: to the nearest points that are allowed.
        x: (n, d) where to begin.
        rate: (d,) how far a step goes, at first and at most.

    Attributes:
        x: (n, d) where the points are.
        value: (n,) what the function is there.
        stuck: (n,) whether a step of a thousandth of the first size would still climb.
    """

    def __init__(
        self,
        function: Callable[[Floats], tuple[Floats, Floats]],
        projected: Callable[[Floats], Floats],
        x: Floats,
        rate: Floats,
    ) -> None:
        self._function, self._projected, self._rate = function, projected, rate
        self.x = projected(x)
        self.value, self._gradient = function(self.x)
        self._moments = np.zeros((2, *x.shape))
        self._taken = np.zeros(len(x))
        self._scale = np.ones(len(x))

    @property
    def stuck(self) -> Mask:
        return np.asarray(self._scale < 1e-3)

    def step(self, rows: Indices) -> None:
        """Try one step of some of the points."""
        gradient, count = self._gradient[rows], self._taken[rows, None] + 1
        mean = _BETA[0] * self._moments[0, rows] + (1 - _BETA[0]) * gradient
        square = _BETA[1] * self._moments[1, rows] + (1 - _BETA[1]) * gradient**2
        size = np.sqrt(square / (1 - _BETA[1] ** count))
        way = mean / (1 - _BETA[0] ** count) / np.where(size > 0, size, 1)
        tried = self._projected(self.x[rows] - self._scale[rows, None] * self._rate * way)
        value, slope = self._function(tried)
        down = value <= self.value[rows]
        here = rows[down]
        self.x[here], self.value[here], self._gradient[here] = tried[down], value[down], slope[down]
        self._moments[:, here] = mean[down], square[down]
        self._taken[here] += 1
        self._scale[here] = np.minimum(1, 2 * self._scale[here])
        back = rows[~down]
        self._moments[:, back], self._taken[back] = 0, 0
        self._scale[back] /= 2
