"""Records for shadow models, for an adversary who has none, or knows little of them.

Three ways (Shokri, Stronati, Song, Shmatikov. Membership inference attacks against machine
learning models. IEEE S&P 2017, section V-C. https://arxiv.org/abs/1610.05820): climb to where the
target itself is confident, draw each feature from its marginal, or disturb real records.

A schema says what the columns of a record are: a tuple of features that cover them in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.progress import Progress, quiet
from vestige.records import Records

__all__ = [
    "Binary",
    "Climb",
    "Continuous",
    "Feature",
    "HillClimb",
    "Integer",
    "OneHot",
    "Schema",
    "Synthesis",
    "check_schema",
    "label_by",
    "noisy",
    "sample_class_marginals",
    "sample_marginals",
    "schema_of",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# two answers that differ by less count as equal: networks answer the same record with other last
# digits in another batch, and a climb would depend on what is asked beside it
_SAME = 1e-5


# --- what the columns of a record are ----------------------------------------------------------


@dataclass(frozen=True)
class Binary:
    """One column of zeros and ones."""

    @property
    def width(self) -> int:
        return 1


@dataclass(frozen=True)
class Integer:
    """One column of whole numbers.

    Args:
        low, high: the smallest and the largest of them.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low != int(self.low) or self.high != int(self.high) or self.low > self.high:
            raise InvalidInput(
                f"expected whole numbers low <= high, got {self.low} and {self.high}; give the "
                "range of the feature"
            )

    @property
    def width(self) -> int:
        return 1


@dataclass(frozen=True)
class Continuous:
    """One column of real numbers.

    Args:
        low, high: the smallest and the largest of them.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf:
            raise InvalidInput(
                f"expected finite numbers low <= high, got {self.low} and {self.high}; give the "
                "range of the feature"
            )

    @property
    def width(self) -> int:
        return 1


@dataclass(frozen=True)
class OneHot:
    """One feature over several columns, of which one is 1 and the others are 0.

    Args:
        width: how many columns.
    """

    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InvalidInput(f"expected a group of one column or more, got {self.width}")


Feature = Binary | Integer | Continuous | OneHot
Schema = tuple[Feature, ...]


def schema_of(records: Records, groups: Sequence[tuple[int, int]] = ()) -> Schema:
    """What the columns look like: zeros and ones, whole numbers or real numbers, in their range.

    Records with more dimensions are taken flat. Groups of columns are given, never guessed: binary
    columns of which one is 1 may be so by chance.

    Args:
        groups: one-hot groups as (first column, number of columns).

    Raises:
        InvalidInput: no records, values that are not finite, groups that are none.

    >>> import numpy as np
    >>> x = np.array([[0, 1, 0, 7, 0.5], [1, 0, 1, 9, 2.5]])
    >>> schema_of(Records.from_arrays(x, [0, 1]), groups=[(1, 2)])
    (Binary(), OneHot(width=2), Integer(low=7, high=9), Continuous(low=0.5, high=2.5))
    """
    x = _flat(records)
    low, high = x.min(axis=0), x.max(axis=0)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise InvalidInput(
            "expected finite inputs, got NaN or infinity in column "
            f"{int(np.argmin(np.isfinite(low) & np.isfinite(high)))}; impute or drop them"
        )
    whole = (x == np.rint(x)).all(axis=0)
    width_at = {int(first): int(width) for first, width in groups}
    schema: list[Feature] = []
    column = 0
    while column < x.shape[1]:
        if column in width_at:
            schema.append(OneHot(width_at.pop(column)))
        elif whole[column]:
            binary = low[column] >= 0 and high[column] <= 1
            schema.append(Binary() if binary else Integer(int(low[column]), int(high[column])))
        else:
            schema.append(Continuous(float(low[column]), float(high[column])))
        column += schema[-1].width
    if width_at or column != x.shape[1]:
        raise InvalidInput(
            f"expected groups of columns that do not overlap, within 0 to {x.shape[1] - 1}, got "
            f"{list(groups)}; give (first column, number of columns) of each"
        )
    check_schema(tuple(schema), records)
    return tuple(schema)


def check_schema(schema: Schema, records: Records) -> None:
    """Nothing, where the records are what the schema says; ranges may be exceeded.

    Raises:
        InvalidInput: the first thing that is not.
    """
    x, layout = _flat(records), _Layout(schema)
    if x.shape[1] != layout.n_columns:
        raise InvalidInput(
            f"expected records of {layout.n_columns} columns, as the schema has, got "
            f"{x.shape[1]}; describe every column"
        )
    for feature, first in zip(schema, layout.first, strict=True):
        part = x[:, first : first + feature.width]
        if isinstance(feature, (Binary, OneHot)) and not ((part == 0) | (part == 1)).all():
            raise InvalidInput(
                f"expected 0 and 1 in column {first}, which the schema calls {feature}, got "
                f"{part[(part != 0) & (part != 1)][0]}; correct the schema"
            )
        if isinstance(feature, OneHot) and not (part.sum(axis=1, dtype=np.int64) == 1).all():
            raise InvalidInput(
                f"expected one 1 in each record's columns {first} to {first + feature.width - 1}, "
                f"which the schema calls {feature}, got none or several; correct the schema"
            )


class _Layout:
    """A schema as arrays, one entry a feature, and draws from the features' domains."""

    def __init__(self, schema: Schema) -> None:
        if not schema or not all(isinstance(f, Feature) for f in schema):
            raise InvalidInput(
                "expected a schema as a tuple of Binary(), Integer(low, high), "
                f"Continuous(low, high) and OneHot(width), got {schema!r}; see schema_of"
            )
        widths = np.array([f.width for f in schema], dtype=np.int64)
        self.first = np.cumsum(widths) - widths
        self.n_features, self.n_columns = len(schema), int(widths.sum())
        self.dtype = np.dtype(
            np.uint8 if all(isinstance(f, (Binary, OneHot)) for f in schema) else np.float64
        )
        self.binary = np.array([isinstance(f, Binary) for f in schema])
        self.group = np.array([isinstance(f, OneHot) for f in schema])
        self.real = np.array([isinstance(f, Continuous) for f in schema])
        self._widths = widths
        self._low = np.array([_range_of(f)[0] for f in schema])
        high = np.array([_range_of(f)[1] for f in schema])
        # of a uniform number u, low + span u; rounded down for all but real numbers
        self._span = high - self._low + ~self.real
        self._high = high
        self._groups = bool(self.group.any())
        self._reals = bool(self.real.any())

    def random(self, rng: np.random.Generator) -> NDArray[Any]:
        """A record (n_columns,) with every feature drawn uniformly from its domain."""
        x = np.zeros(self.n_columns, dtype=self.dtype)
        self.redraw(x, np.arange(self.n_features), rng)
        return x

    def redraw(self, x: NDArray[Any], features: Ints, rng: np.random.Generator) -> None:
        """Draw some features of a record anew, in place."""
        values = self._low[features] + self._span[features] * rng.random(len(features))
        if self._reals:
            values = np.where(self.real[features], values, np.floor(values))
        else:
            values = np.floor(values)
        # the product may round up to the end of a long range
        values = np.minimum(values, self._high[features])
        if not self._groups:
            x[self.first[features]] = values
            return
        grouped = self.group[features]
        x[self.first[features[~grouped]]] = values[~grouped]
        for feature, hot in zip(features[grouped], values[grouped], strict=True):
            first = self.first[feature]
            x[first : first + self._widths[feature]] = 0
            x[first + int(hot)] = 1

    def flip(self, x: NDArray[Any], features: Ints, rng: np.random.Generator) -> None:
        """Change the binary ones among some features, and draw the others anew, in place."""
        binary = self.binary[features]
        columns = self.first[features[binary]]
        x[columns] = 1 - x[columns]
        self.redraw(x, features[~binary], rng)

    def columns(self) -> Iterator[slice]:
        """The columns of each feature."""
        for first, width in zip(self.first, self._widths, strict=True):
            yield slice(int(first), int(first + width))


def _range_of(feature: Feature) -> tuple[float, float]:
    """Smallest and largest value; of a one-hot group, the place of the one."""
    match feature:
        case Binary():
            return 0.0, 1.0
        case OneHot(width):
            return 0.0, width - 1.0
        case Integer(low, high) | Continuous(low, high):
            return float(low), float(high)


# --- (a) climbing to where the target is confident ----------------------------------------------


@dataclass(frozen=True, eq=False)
class Climb:
    """What one climb came to.

    Attributes:
        x: (columns,) the record found, or None.
        queries: records asked about.
        confidence: the target's probability of the class for the record found; without one, the
            largest that was seen.
    """

    x: NDArray[Any] | None
    queries: int
    confidence: float


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Records that were found by climbing, and what they cost.

    Attributes:
        records: those found, in the order of classes, labeled by the class that was climbed for.
        confidence: (n,) the target's probability of its class for each record.
        tried: (classes,) climbs that came to an end.
        found: (classes,) climbs that found a record.
        queries: (classes,) records the target was asked about, in all climbs.
        cut: (classes,) climbs that the budget ended; they are not among those tried.
        wanted: (classes,) records asked for.
    """

    records: Records
    confidence: Floats
    tried: Ints
    found: Ints
    queries: Ints
    cut: Ints
    wanted: Ints

    def __repr__(self) -> str:
        found = f"{len(self.records)} of {int(self.wanted.sum())} records"
        classes = f"{int((self.found > 0).sum())} of {int((self.wanted > 0).sum())} classes"
        return f"Synthesis({found}, {classes}, {self.n_queries} queries)"

    @property
    def n_queries(self) -> int:
        """All records that the target was asked about."""
        return int(self.queries.sum())

    @property
    def failed(self) -> tuple[int, ...]:
        """Classes that were wanted and have no record: members of them will be missed."""
        return tuple(np.flatnonzero((self.wanted > 0) & (self.found == 0)).tolist())

    @property
    def success_rate(self) -> Floats:
        """Found of tried, (classes,); NaN where no climb came to an end."""
        rate = np.full(len(self.tried), np.nan)
        return np.asarray(np.divide(self.found, self.tried, out=rate, where=self.tried > 0))

    @property
    def queries_per_record(self) -> float:
        """Queries in all climbs for each record found; infinite where none was."""
        return self.n_queries / len(self.records) if len(self.records) else math.inf


@dataclass(frozen=True, kw_only=True)
class HillClimb:
    """Search for records that the target is confident of (Shokri et al. 2017, Algorithm 1).

    From a random record, change k features at random; keep the change if the target's probability
    of the class does not fall, else start again from the best record so far. After more than
    `rej_max` changes in a row that were not kept, halve k; it never grows back. A record of the
    class that is surer than `conf_min` is taken with that probability, and else climbed on from.

    Args:
        k_max, k_min: features changed at first, and at least; never more than there are (a group
            counts as one).
        conf_min: probability that a record must exceed; None for 0.8 with two classes, 0.2 with 20
            or more, and between them on a line in the logarithm of their number.
        rej_max: changes in a row that may be rejected before k is halved.
        iter_max: queries before a climb gives up.
        redraw: "resample" draws a chosen feature anew from its domain, so that half of the chosen
            binary ones stay as they are; "flip" changes every chosen binary one.
        attempts: climbs for each record wanted, at most.

    Departs from the paper: it gives no values for the hyper-parameters, nor says how features are
    changed; proposals are uniform in the range of a feature; a class may be tried again; a
    probability counts as not fallen if it is lower by less than 1e-5 of itself, since networks
    answer the same record with other last digits in another batch.

    References: Shokri et al. 2017, section V-C, Algorithm 1.
    """

    k_max: int = 128
    k_min: int = 4
    conf_min: float | None = None
    rej_max: int = 10
    iter_max: int = 1000
    redraw: Literal["resample", "flip"] = "resample"
    attempts: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.k_min <= self.k_max:
            raise InvalidInput(f"expected 1 <= k_min <= k_max, got {self.k_min} and {self.k_max}")
        if self.conf_min is not None and not 0 <= self.conf_min < 1:
            raise InvalidInput(f"expected conf_min in [0, 1) or None, got {self.conf_min}")
        if self.rej_max < 0 or self.iter_max < 1 or self.attempts < 1:
            raise InvalidInput(
                f"expected rej_max >= 0, iter_max >= 1 and attempts >= 1, got {self.rej_max}, "
                f"{self.iter_max} and {self.attempts}"
            )
        if self.redraw not in ("resample", "flip"):
            raise InvalidInput(f'expected redraw to be "resample" or "flip", got {self.redraw!r}')

    def threshold(self, n_classes: int) -> float:
        """The probability that a record must exceed, `conf_min` where it is given.

        >>> [round(HillClimb().threshold(c), 3) for c in (2, 6, 20, 100)]
        [0.8, 0.514, 0.2, 0.2]
        """
        if self.conf_min is not None:
            return self.conf_min
        along = math.log(max(n_classes, 2) / 2) / math.log(10)
        return 0.8 - 0.6 * min(along, 1.0)

    def record(
        self, target: BlackBox, label: int, schema: Schema, rng: np.random.Generator
    ) -> Climb:
        """One climb; at most `iter_max` queries, one at a time.

        Raises:
            InvalidInput: the class or the schema is not the target's.
        """
        climb = _Ascent(self, label, _Layout(schema), rng)
        while not climb.ended:
            climb.tell(_ask(target, climb.proposal[None], [label])[0])
        return climb.outcome

    def records(
        self,
        target: BlackBox,
        n: int,
        schema: Schema,
        *,
        seed: int,
        classes: Sequence[int] | None = None,
        budget: int | None = None,
        together: int = 1024,
        progress: Progress = quiet,
    ) -> Synthesis:
        """Many climbs, advanced together: one query for all of them a round.

        Climb i for a class has random numbers of its own, so that what it finds does not depend on
        which others run beside it, only on the seed. A failed climb is replaced by another for the
        same class, up to `attempts` for each record wanted of it. Classes take turns.

        Args:
            n: records in all, spread evenly over the classes.
            classes: which ones; by default all that the target answers with.
            budget: records the target may be asked about, never exceeded. Once it is spent,
                climbs end where they are; which ones are finished then depends on `together`.
            together: climbs under way at a time. With a budget that may not suffice, few at a time
                finish more of them.
            progress: called with "synthesis", the records found and n.

        Returns:
            records with ids "synthetic-<seed>-<class>-<climb>".

        Raises:
            InvalidInput: numbers that cannot be, or the schema is not the target's.
        """
        if n < 1 or together < 1 or seed < 0 or (budget is not None and budget < 1):
            raise InvalidInput(
                f"expected n, together and budget >= 1 and a seed from 0, got {n}, {together}, "
                f"{budget} and {seed}"
            )
        run = _Expedition(self, target, n, _Layout(schema), seed, classes, budget)
        progress("synthesis", 0, n)
        while run.advance(together):
            progress("synthesis", run.n_found, n)
        # climbs that failed for good leave fewer than n
        progress("synthesis", run.n_found, run.n_found)
        return run.outcome()


class _Ascent:
    """One climb under way: asks for `proposal`, and goes on by what it is told."""

    def __init__(
        self, plan: HillClimb, label: int, layout: _Layout, rng: np.random.Generator
    ) -> None:
        self.label = label
        self._plan, self._layout, self._rng = plan, layout, rng
        self._change = layout.redraw if plan.redraw == "resample" else layout.flip
        self._k = min(plan.k_max, layout.n_features)
        self._k_min = min(plan.k_min, layout.n_features)
        self.proposal = layout.random(rng)
        self._best = self.proposal
        self._best_confidence = 0.0
        self._rejected = 0
        self.queries = 0
        self._found, self._taken = False, 0.0

    @property
    def ended(self) -> bool:
        return self._found or self.queries >= self._plan.iter_max

    @property
    def outcome(self) -> Climb:
        if self._found:
            return Climb(self.proposal, self.queries, self._taken)
        return Climb(None, self.queries, self._best_confidence)

    def tell(self, log_probabilities: Floats) -> None:
        """Take the target's answer (classes,) on the proposal, and make the next one."""
        self.queries += 1
        confidence = float(np.exp(log_probabilities[self.label]))
        # at least as confident, so that the climb drifts over plateaus; the first always is
        if confidence >= self._best_confidence * (1 - _SAME):
            self._best, self._rejected = self.proposal, 0
            self._best_confidence = max(confidence, self._best_confidence)
            sure = confidence > self._plan.threshold(len(log_probabilities))
            if sure and int(np.argmax(log_probabilities)) == self.label:
                # a coin that says no leaves the record as the best so far
                self._found = bool(self._rng.random() < confidence)
                self._taken = confidence
        else:
            self._rejected += 1
            if self._rejected > self._plan.rej_max:
                self._k, self._rejected = max(self._k_min, math.ceil(self._k / 2)), 0
        if self.ended:
            return
        # always from the best, never from what was just rejected
        self.proposal = self._best.copy()
        n = self._layout.n_features
        features = self._rng.choice(n, self._k, replace=False, shuffle=False)
        self._change(self.proposal, features, self._rng)


class _Expedition:
    """Climbs for several classes: which are under way, which come next, what was found."""

    def __init__(
        self,
        plan: HillClimb,
        target: BlackBox,
        n: int,
        layout: _Layout,
        seed: int,
        classes: Sequence[int] | None,
        budget: int | None,
    ) -> None:
        self._plan, self._target, self._layout, self._seed = plan, target, layout, seed
        self._left = math.inf if budget is None else budget
        named = [0] if classes is None else [int(c) for c in classes]
        if not named or min(named) < 0 or len(set(named)) < len(named):
            raise InvalidInput(
                f"expected different classes from 0, got {named}; name one or more, each once"
            )
        # the first answer says how many classes there are; a climb's first record needs no class
        first = self._climb(named[0], 0)
        answer = _ask(target, first.proposal[None], named)[0]
        self._left -= 1
        n_classes = len(answer)
        self._classes = list(range(n_classes)) if classes is None else named
        self.wanted = np.zeros(n_classes, dtype=np.int64)
        for i, c in enumerate(self._classes):
            self.wanted[c] = n // len(self._classes) + (i < n % len(self._classes))
        self.tried, self.started, self.found, self.queries = np.zeros((4, n_classes), np.int64)
        self._records: dict[tuple[int, int], Climb] = {}
        self._active: dict[tuple[int, int], _Ascent] = {}
        self._turn = self._turns()
        first.tell(answer)
        self.started[first.label] = 1
        self._active[first.label, 0] = first
        self._settle()

    def _climb(self, label: int, index: int) -> _Ascent:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(label, index))
        return _Ascent(self._plan, label, self._layout, np.random.default_rng(sequence))

    @property
    def n_found(self) -> int:
        return len(self._records)

    def _open(self, c: int) -> bool:
        """Whether one more climb for the class is due: not more under way than are wanted."""
        under_way = self.started[c] - self.tried[c]
        return bool(
            self.found[c] + under_way < self.wanted[c]
            and self.started[c] < self._plan.attempts * self.wanted[c]
        )

    def _turns(self) -> Iterator[int]:
        """Classes with a climb that is due, in turn, until none has one."""
        while due := [c for c in self._classes if self._open(c)]:
            for c in due:
                if self._open(c):
                    yield c

    def advance(self, together: int) -> bool:
        """One round of queries; False, and no query, where nothing is left to do."""
        while len(self._active) < min(together, self._left):
            c = next(self._turn, None)
            if c is None:
                # a climb that fails later may open its class again
                self._turn = self._turns()
                break
            index = int(self.started[c])
            self.started[c] += 1
            self._active[c, index] = self._climb(c, index)
        asked = list(self._active.values())[: int(min(len(self._active), self._left))]
        if not asked:
            return False
        x = np.stack([climb.proposal for climb in asked])
        table = _ask(self._target, x, [climb.label for climb in asked])
        self._left -= len(asked)
        for climb, answer in zip(asked, table, strict=True):
            climb.tell(answer)
        self._settle()
        return True

    def _settle(self) -> None:
        """Count the climbs that have ended, and keep what they found."""
        for (c, index), climb in list(self._active.items()):
            if not climb.ended:
                continue
            del self._active[c, index]
            self.tried[c] += 1
            self.queries[c] += climb.queries
            if climb.outcome.x is not None:
                self.found[c] += 1
                self._records[c, index] = climb.outcome

    def outcome(self) -> Synthesis:
        queries, cut = self.queries.copy(), np.zeros_like(self.tried)
        for (c, _), climb in self._active.items():
            queries[c] += climb.queries
            cut[c] += 1
        kept = sorted(self._records.items())
        x = [climb.x for _, climb in kept if climb.x is not None]
        empty = np.empty((0, self._layout.n_columns), dtype=self._layout.dtype)
        records = Records(
            np.array([f"synthetic-{self._seed}-{c}-{i}" for (c, i), _ in kept], dtype=np.str_),
            np.stack(x) if x else empty,
            np.array([c for (c, _), _ in kept], dtype=np.int64),
        )
        confidence = np.array([climb.confidence for _, climb in kept], dtype=np.float64)
        return Synthesis(records, confidence, self.tried, self.found, queries, cut, self.wanted)


def _ask(target: BlackBox, x: NDArray[Any], labels: Sequence[int]) -> Floats:
    """The target's log-probabilities (n, classes), once they are sure to say something of them."""
    table = target.log_probabilities(x)
    if max(labels) >= table.shape[1] or min(labels) < 0:
        raise InvalidInput(
            f"expected classes from 0 to {table.shape[1] - 1}, the target's, got "
            f"{max(labels) if max(labels) >= table.shape[1] else min(labels)}; name another"
        )
    if np.isnan(table).any():
        raise InvalidInput(
            "expected log-probabilities from the target, got NaN; give the features' ranges such "
            "that it answers"
        )
    return table


# --- (b) marginals ---------------------------------------------------------------------------


def sample_marginals(
    records: Records,
    n: int,
    *,
    seed: int,
    schema: Schema | None = None,
    per_class: bool = False,
) -> NDArray[Any]:
    """Records (n, ...) whose features are drawn independently of each other.

    Each feature of each record is that of a record drawn at random: the empirical marginal.

    Args:
        records: what the marginals are of.
        schema: where groups of columns are; they are drawn whole. None for no groups.
        per_class: draw a class for each record first, and then all features within it, for an
            adversary who knows the marginals of each class; `sample_class_marginals` tells it.

    Raises:
        InvalidInput: no records, or the schema is not theirs.

    References: Shokri et al. 2017, section V-C, statistics-based synthesis.
    """
    if per_class:
        return np.asarray(sample_class_marginals(records, n, seed=seed, schema=schema).x)
    x, layout = _described(records, schema)
    made = _independent(x, layout, n, _generator(n, seed))
    return made.reshape(n, *records.x.shape[1:])


def sample_class_marginals(
    records: Records, n: int, *, seed: int, schema: Schema | None = None
) -> Records:
    """Records with a class drawn by its frequency, and features by the marginals of the class.

    Returns:
        n records with ids "marginal-<seed>-<i>", labeled by the class that was drawn.

    Raises:
        InvalidInput: no records, or the schema is not theirs.
    """
    x, layout = _described(records, schema)
    rng = _generator(n, seed)
    y = records.y[rng.integers(len(x), size=n)]
    made = np.empty((n, x.shape[1]), dtype=x.dtype)
    for c in np.unique(y):
        made[y == c] = _independent(x[records.y == c], layout, int((y == c).sum()), rng)
    ids = np.array([f"marginal-{seed}-{i}" for i in range(n)], dtype=np.str_)
    made = made.reshape(n, *records.x.shape[1:])
    return Records(ids, made, y, records.columns, records.classes)


def _independent(
    x: NDArray[Any], layout: _Layout, n: int, rng: np.random.Generator
) -> NDArray[Any]:
    """(n, columns): each feature of each record is that of a random row of x."""
    out = np.empty((n, x.shape[1]), dtype=x.dtype)
    for columns in layout.columns():
        out[:, columns] = x[rng.integers(len(x), size=n), columns]
    return out


def label_by(target: BlackBox, x: NDArray[Any], *, name: str = "sampled") -> Records:
    """Records labeled by the class the target finds most probable; one query a record.

    Args:
        x: (n, ...) inputs.
        name: of the ids, "<name>-<i>".

    Raises:
        InvalidInput: no inputs.
    """
    if not len(x):
        raise InvalidInput("expected at least one record to label, got none")
    y = target.log_probabilities(x).argmax(axis=1).astype(np.int64)
    ids = np.array([f"{name}-{i}" for i in range(len(x))], dtype=np.str_)
    return Records.from_arrays(x, y, ids)


# --- (c) disturbed real records ------------------------------------------------------------------


def noisy(
    records: Records, rate: float, *, seed: int, schema: Schema | None = None, iid: bool = False
) -> Records:
    """Real records with some of their features changed: an adversary whose data are inexact.

    Of each record round(rate x features) different features are chosen; binary ones are flipped,
    others are those of a record drawn at random. Labels are kept.

    Args:
        rate: share of the features; 0.1 and 0.2 in the paper.
        schema: of the records; None takes columns of zeros and ones for binary, others for not.
        iid: choose each feature with probability `rate` instead, independently.

    Returns:
        records of the same shape and type, in their order, with ids "noisy-<seed>-<id>": they are
        no longer the records whose ids they come from.

    Raises:
        InvalidInput: a rate outside [0, 1], no records, or the schema is not theirs.

    References: Shokri et al. 2017, section V-C, noisy real data.
    """
    if not 0 <= rate <= 1:
        raise InvalidInput(f"expected a rate in [0, 1], got {rate}; give a share of the features")
    x, layout = _described(records, schema_of(records) if schema is None else schema)
    rng = _generator(1, seed)
    chosen = rng.random((len(x), layout.n_features))
    if iid:
        change = chosen < rate
    else:
        n_chosen = round(rate * layout.n_features)
        change = np.zeros(chosen.shape, dtype=bool)
        np.put_along_axis(change, np.argsort(chosen, axis=1)[:, :n_chosen], True, axis=1)
    made = x.copy()
    for columns, binary, rows in zip(layout.columns(), layout.binary, change.T, strict=True):
        if binary:
            made[rows, columns] = 1 - x[rows, columns]
        else:
            made[rows, columns] = x[rng.integers(len(x), size=int(rows.sum())), columns]
    ids = np.array([f"noisy-{seed}-{i}" for i in records.ids], dtype=np.str_)
    made = made.reshape(records.x.shape)
    return Records(ids, made, records.y, records.columns, records.classes)


def _described(records: Records, schema: Schema | None) -> tuple[NDArray[Any], _Layout]:
    """The records flat, (n, columns), and what their columns are; real numbers where not said."""
    x = _flat(records)
    if schema is None:
        return x, _Layout((Continuous(0.0, 1.0),) * x.shape[1])
    check_schema(schema, records)
    return x, _Layout(schema)


def _flat(records: Records) -> NDArray[Any]:
    if not len(records):
        raise InvalidInput("expected at least one record, got none")
    return np.asarray(records.x).reshape(len(records), -1)


def _generator(n: int, seed: int) -> np.random.Generator:
    if n < 1 or seed < 0:
        raise InvalidInput(f"expected n >= 1 and a seed from 0, got {n} and {seed}")
    return np.random.default_rng(seed)
