"""Records from nothing: the climb against a trace by hand, its bookkeeping, marginals, noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.records import Records
from vestige.synthesis import (
    Binary,
    Continuous,
    HillClimb,
    Integer,
    OneHot,
    Schema,
    check_schema,
    label_by,
    noisy,
    sample_class_marginals,
    sample_marginals,
    schema_of,
)

Floats = NDArray[np.float64]
BITS: Schema = (Binary(),) * 32


class Asked:
    """A black box from a function of a batch to probabilities; remembers what it was asked."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.batches: list[NDArray[Any]] = []

    @property
    def n_queries(self) -> int:
        return sum(len(b) for b in self.batches)

    @property
    def asked(self) -> NDArray[Any]:
        return np.concatenate(self.batches)

    def log_probabilities(self, x: Any) -> Floats:
        self.batches.append(np.array(x))
        return np.log(np.maximum(self._function(np.asarray(x, dtype=np.float64)), 1e-12))


def scripted(confidences: Sequence[float], others: int = 3) -> Asked:
    """Answers 0 with these probabilities, one after the other, whatever it is asked."""
    answers = iter(confidences)

    def answer(x: Floats) -> Floats:
        p = np.array([next(answers) for _ in x])
        return np.column_stack([p, *[(1 - p) / others] * others])

    return Asked(answer)


def logistic(weights: Floats, sharpness: float = 1.0) -> Asked:
    """Two classes or more: softmax of a linear map of 0/1 columns taken as -1/+1."""

    def answer(x: Floats) -> Floats:
        z = sharpness * (2 * x - 1) @ weights
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    return Asked(answer)


class Coin:
    """A generator whose coins are scripted and whose other draws are its own."""

    def __init__(self, coins: Sequence[float], seed: int = 0) -> None:
        self._rng, self._coins = np.random.default_rng(seed), list(coins)

    def random(self, size: int | None = None) -> Any:
        return self._coins.pop(0) if size is None else self._rng.random(size)

    def choice(self, *args: Any, **named: Any) -> Any:
        return self._rng.choice(*args, **named)


def changes(asked: NDArray[Any], best: Sequence[int]) -> list[int]:
    """How many columns query i differs in from query best[i - 1], for i = 1, 2, ..."""
    return [int((asked[i + 1] != asked[b]).sum()) for i, b in enumerate(best)]


# --- KA1: the climb, by hand ---------------------------------------------------------------------


def test_the_trace_by_hand() -> None:
    target = scripted([0.1, 0.05, 0.08, 0.09, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.6, 0.7])
    climb = HillClimb(k_max=8, k_min=3, conf_min=0.5, rej_max=2, redraw="flip")
    # 0.6 is taken with probability 0.6: the first coin says no, the second, at 0.7, says yes
    found = climb.record(target, 0, BITS, Coin([0.65, 0.65]))  # type: ignore[arg-type]
    asked = target.asked
    #          query:  1  2  3  4  5  6  7  8  9  10 11 12
    # answer before : .1 .05 .08 .09 .1 .05 .05 .05 .05 .05 .05 .6
    # best          :  0  0  0  0  4  4  4  4  4  4  4  11
    best = [0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 11]
    # rejections 1 and 2 keep k = 8, the third halves it; an equal answer (query 4) is accepted and
    # starts the count anew; three more halve it to 2, which k_min makes 3; there it stays
    assert changes(asked, best) == [8, 8, 8, 4, 4, 4, 4, 3, 3, 3, 3, 3]
    assert found.queries == 13 == target.n_queries
    assert found.x is not None and (found.x == asked[12]).all()
    assert found.confidence == pytest.approx(0.7)


def test_k_does_not_grow_back_and_is_never_below_k_min() -> None:
    target = scripted([0.1] + [0.0] * 3 + [0.2] + [0.0] * 20)
    plan = HillClimb(k_max=10, k_min=2, conf_min=0.5, rej_max=2, iter_max=20, redraw="flip")
    found = plan.record(target, 0, BITS, np.random.default_rng(0))
    best = [0, 0, 0, 0] + [4] * 15
    # halves of odd numbers are rounded up, and three more rejections are needed for the next
    assert changes(target.asked, best) == [10] * 3 + [5] * 4 + [3] * 3 + [2] * 9
    assert found.x is None and found.queries == 20 and found.confidence == pytest.approx(0.2)


def test_a_plateau_is_walked_on() -> None:
    target = scripted([0.3] * 6)
    plan = HillClimb(k_max=2, k_min=2, conf_min=0.5, rej_max=2, iter_max=6, redraw="flip")
    plan.record(target, 0, BITS, np.random.default_rng(0))
    assert changes(target.asked, [0, 1, 2, 3, 4]) == [2] * 5


def test_the_last_digits_of_an_answer_do_not_count() -> None:
    # 4e-6 less is the same, 8e-6 less in two steps too, 12e-6 less in three steps is not
    target = scripted([0.3 * (1 - 4e-6 * i) for i in range(5)])
    plan = HillClimb(k_max=2, k_min=2, conf_min=0.5, iter_max=5, redraw="flip")
    found = plan.record(target, 0, BITS, np.random.default_rng(0))
    assert changes(target.asked, [0, 1, 2, 2]) == [2] * 4
    assert found.confidence == pytest.approx(0.3, rel=1e-9)


def test_the_first_answer_is_accepted_whatever_it_is() -> None:
    target = scripted([0.0, 0.0])
    plan = HillClimb(k_max=1, k_min=1, iter_max=2, redraw="flip")
    assert plan.record(target, 0, BITS, np.random.default_rng(0)).x is None
    assert changes(target.asked, [0]) == [1]


def test_a_confident_record_of_another_class_is_not_taken() -> None:
    target = Asked(lambda x: np.tile([0.4, 0.6], (len(x), 1)))
    plan = HillClimb(conf_min=0.3, iter_max=5)
    assert plan.record(target, 0, BITS, np.random.default_rng(0)).x is None
    assert plan.record(target, 1, BITS, np.random.default_rng(0)).x is not None


def test_the_confidence_must_exceed_conf_min() -> None:
    target = Asked(lambda x: np.tile([0.5, 0.25, 0.25], (len(x), 1)))
    at = HillClimb(conf_min=0.5, iter_max=30).record(target, 0, BITS, np.random.default_rng(0))
    under = HillClimb(conf_min=0.49, iter_max=30).record(target, 0, BITS, np.random.default_rng(0))
    assert at.x is None and under.x is not None


def test_a_record_is_taken_with_the_probability_of_its_class() -> None:
    target = Asked(lambda x: np.tile([0.3, *[0.1] * 7], (len(x), 1)))
    plan = HillClimb(conf_min=0.2)
    queries = [plan.record(target, 0, BITS, np.random.default_rng(i)).queries for i in range(1000)]
    # geometric with mean 1 / 0.3 and variance 0.7 / 0.09; 3.5 standard errors of 1,000
    assert abs(np.mean(queries) - 1 / 0.3) < 3.5 * np.sqrt(0.7 / 0.09 / 1000)


@pytest.mark.parametrize(("classes", "expected"), [(2, 0.8), (20, 0.2), (100, 0.2)])
def test_the_default_threshold(classes: int, expected: float) -> None:
    assert HillClimb().threshold(classes) == pytest.approx(expected)
    assert HillClimb(conf_min=0.1).threshold(classes) == 0.1


def test_the_default_threshold_falls_with_the_classes() -> None:
    found = [HillClimb().threshold(c) for c in range(2, 25)]
    assert found == sorted(found, reverse=True)
    assert HillClimb().threshold(6) == pytest.approx(0.8 - 0.6 * np.log10(3))


# --- KA2: a target that can be climbed -----------------------------------------------------------


@pytest.mark.parametrize("redraw", ["resample", "flip"])
def test_what_is_found_is_of_the_class_and_sure(redraw: Any) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(0, 1, 32)
    target = logistic(np.column_stack([-a, a]) / 2, sharpness=0.5)
    plan = HillClimb(k_max=16, k_min=2, conf_min=0.9, redraw=redraw)
    made = plan.records(target, 40, BITS, seed=3)
    assert len(made.records) == 40 and made.failed == ()
    p = np.exp(target.log_probabilities(made.records.x))
    assert (p.argmax(axis=1) == made.records.y).all()
    assert (p[np.arange(40), made.records.y] > 0.9).all()
    np.testing.assert_allclose(p[np.arange(40), made.records.y], made.confidence)
    assert np.bincount(made.records.y).tolist() == [20, 20]


# --- many climbs ---------------------------------------------------------------------------------


def hard_target(classes: int = 4, seed: int = 0) -> Asked:
    """The last class is never the most probable."""
    weights = np.random.default_rng(seed).normal(0, 0.35, (32, classes))
    weights[:, -1] = 0

    def answer(x: Floats) -> Floats:
        z = (2 * x - 1) @ weights
        e = np.exp(z - z.max(axis=1, keepdims=True)) * np.append(np.ones(classes - 1), 1e-9)
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    return Asked(answer)


PLAN = HillClimb(k_max=8, k_min=2, conf_min=0.75, rej_max=3, iter_max=60)


def test_the_count_is_the_targets_own() -> None:
    target = hard_target()
    made = PLAN.records(target, 18, BITS, seed=0)
    assert made.n_queries == target.n_queries == made.queries.sum()
    assert made.found.sum() == len(made.records)
    assert made.wanted.tolist() == [5, 5, 4, 4]
    assert (made.found <= made.tried).all() and not made.cut.any()
    # a class that fails is given up after its attempts, each at full length
    assert made.failed == (3,) and made.tried[3] == 12 and made.queries[3] == 12 * 60
    assert made.success_rate[3] == 0 and (made.success_rate[:3] > 0).all()
    assert made.queries_per_record == made.n_queries / len(made.records)


def test_each_climb_is_what_it_would_be_alone() -> None:
    made = PLAN.records(hard_target(), 12, BITS, seed=5)
    for id_, x, y in zip(made.records.ids, made.records.x, made.records.y, strict=True):
        _, seed, label, index = str(id_).split("-")
        assert (int(seed), int(label)) == (5, y)
        sequence = np.random.SeedSequence(5, spawn_key=(int(label), int(index)))
        alone = PLAN.record(hard_target(), int(y), BITS, np.random.default_rng(sequence))
        assert alone.x is not None and (alone.x == x).all()


@pytest.mark.parametrize("together", [1, 2, 7])
def test_how_many_climb_at_a_time_changes_nothing(together: int) -> None:
    whole = PLAN.records(hard_target(), 18, BITS, seed=2)
    target = hard_target()
    parts = PLAN.records(target, 18, BITS, seed=2, together=together)
    assert max(len(b) for b in target.batches) <= together
    assert whole.records.digest() == parts.records.digest()
    for name in ("tried", "found", "queries", "cut", "wanted"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    np.testing.assert_allclose(whole.confidence, parts.confidence)


def test_another_seed_finds_other_records() -> None:
    one, other = (PLAN.records(hard_target(), 6, BITS, seed=s).records for s in (0, 1))
    assert not np.isin(one.content_hash(), other.content_hash()).any()
    assert not np.isin(one.ids, other.ids).any()


@pytest.mark.parametrize("budget", [1, 2, 50, 333])
@pytest.mark.parametrize("together", [1, 5, 1024])
def test_the_budget_is_never_passed(budget: int, together: int) -> None:
    target = hard_target()
    made = PLAN.records(target, 18, BITS, seed=0, budget=budget, together=together)
    assert target.n_queries == made.n_queries == budget
    assert made.cut.sum() > 0
    assert (made.found <= made.tried).all()


def test_a_budget_that_suffices_changes_nothing() -> None:
    free = PLAN.records(hard_target(), 18, BITS, seed=0)
    bound = PLAN.records(hard_target(), 18, BITS, seed=0, budget=free.n_queries)
    assert free.records.digest() == bound.records.digest() and not bound.cut.any()


def test_under_a_budget_few_at_a_time_finish_more() -> None:
    found = [
        len(PLAN.records(hard_target(), 60, BITS, seed=0, budget=150, together=m).records)
        for m in (3, 60)
    ]
    assert found[0] > found[1]


def test_only_the_classes_asked_for() -> None:
    made = PLAN.records(hard_target(), 5, BITS, seed=0, classes=[2, 0])
    assert made.wanted.tolist() == [2, 0, 3, 0]
    assert set(made.records.y.tolist()) == {0, 2} and made.queries[[1, 3]].sum() == 0
    assert np.isnan(made.success_rate[[1, 3]]).all() and made.failed == ()


def test_nothing_found_is_no_error() -> None:
    made = PLAN.records(hard_target(), 2, BITS, seed=0, classes=[3])
    assert len(made.records) == 0 and made.records.x.shape == (0, 32)
    assert made.queries_per_record == np.inf and made.failed == (3,)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    made = PLAN.records(hard_target(), 8, BITS, seed=0, progress=lambda *said: told.append(said))
    assert told[0] == ("synthesis", 0, 8)
    assert told[-1] == ("synthesis", len(made.records), len(made.records))
    assert [t[1] for t in told] == sorted(t[1] for t in told)


def test_k_is_clamped_to_the_features() -> None:
    target = scripted([0.1, 0.0, 0.0])
    schema: Schema = (OneHot(4), Binary(), Binary())
    plan = HillClimb(iter_max=3, redraw="flip")
    plan.record(target, 0, schema, np.random.default_rng(0))
    # k_max = 128 of three features: both bits flip each time
    assert (target.asked[1:, 4:] != target.asked[0, 4:]).all()


# --- typed features ------------------------------------------------------------------------------

MIXED: Schema = (Binary(), Integer(-2, 5), OneHot(3), Continuous(0.25, 0.5), OneHot(1))


def test_proposals_stay_in_the_domains() -> None:
    target = scripted([0.3] * 600)
    plan = HillClimb(k_max=2, k_min=1, conf_min=0.9, iter_max=600)
    plan.record(target, 0, MIXED, np.random.default_rng(0))
    x = target.asked
    assert set(x[:, 0]) == {0, 1}
    assert set(x[:, 1]) == set(range(-2, 6))
    assert (x[:, 2:5].sum(axis=1) == 1).all() and (x[:, 2:5].max(axis=0) == 1).all()
    assert ((x[:, 5] >= 0.25) & (x[:, 5] <= 0.5)).all() and len(set(x[:, 5])) > 100
    assert (x[:, 6] == 1).all()
    moved = x[1:] != x[:-1]
    # a group is one feature: both of its columns that change count once
    features = np.column_stack([moved[:, :2], moved[:, 2:5].any(axis=1), moved[:, 5:]])
    assert features.sum(axis=1).max() == 2


def test_flipping_draws_what_is_not_binary_anew() -> None:
    target = scripted([0.3] * 50)
    plan = HillClimb(conf_min=0.9, iter_max=50, redraw="flip")
    plan.record(target, 0, MIXED, np.random.default_rng(0))
    x = target.asked
    assert (x[1:, 0] == 1 - x[:-1, 0]).all()
    assert len(set(x[:, 1])) > 4 and (x[:, 2:5].max(axis=0) == 1).all() and len(set(x[:, 5])) == 50


def test_every_value_is_drawn_equally_often() -> None:
    target = scripted([0.3] * 4000)
    plan = HillClimb(conf_min=0.9, iter_max=4000)
    plan.record(target, 0, (Integer(0, 3), OneHot(5), Binary()), np.random.default_rng(0))
    x = target.asked
    counts = [
        np.bincount(x[:, 0].astype(int)),
        x[:, 1:6].sum(axis=0),
        np.bincount(x[:, 6].astype(int)),
    ]
    for observed in counts:
        assert stats.chisquare(observed).pvalue > 1e-4


def test_resampling_changes_about_half_of_the_bits() -> None:
    target = scripted([0.3] * 400)
    plan = HillClimb(k_max=16, k_min=16, conf_min=0.9, iter_max=400)
    plan.record(target, 0, BITS, np.random.default_rng(0))
    changed = (target.asked[1:] != target.asked[:-1]).sum()
    # Binomial(399 * 16, 1 / 2), 3.5 standard deviations
    assert abs(changed - 399 * 8) < 3.5 * np.sqrt(399 * 16 / 4)


# --- schemas -------------------------------------------------------------------------------------


def table(n: int = 200, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    group = np.eye(4)[(y + rng.integers(0, 2, n)) % 4]
    bits = (rng.random((n, 5)) < 0.2 + 0.2 * y[:, None]).astype(float)
    ages = rng.integers(17, 90, n)
    real = rng.normal(0, 1, n)
    x = np.column_stack([bits, group, ages, real])
    return Records.from_arrays(x, y, columns=tuple("abcdefghijk"), classes=("p", "q", "r"))


def test_a_schema_is_guessed_but_groups_are_given() -> None:
    records = table()
    ages, real = records.x[:, 9], records.x[:, 10]
    ends = (Integer(int(ages.min()), int(ages.max())), Continuous(real.min(), real.max()))
    assert schema_of(records) == (Binary(),) * 9 + ends
    assert schema_of(records, groups=[(5, 4)]) == (Binary(),) * 5 + (OneHot(4),) + ends
    constant = Records.from_arrays(np.array([[0, 7], [0, 7]]), [0, 1])
    assert schema_of(constant) == (Binary(), Integer(7, 7))
    pictures = Records.from_arrays(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), [0, 1])
    assert len(schema_of(pictures)) == 4


ENDS: Schema = (Integer(0, 100), Continuous(-9.0, 9.0))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ((Binary(),) * 10, "expected records of 10 columns"),
        ((Binary(),) * 11, "column 9, which the schema calls Binary"),
        (
            (Binary(),) * 3 + (OneHot(2),) + (Binary(),) * 4 + ENDS,
            "in each record's columns 3 to 4",
        ),
        ((), "expected a schema"),
        (("bits",), "expected a schema"),
    ],
)
def test_records_that_are_not_what_the_schema_says(schema: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        check_schema(schema, table())


@pytest.mark.parametrize("groups", [[(5, 4), (7, 2)], [(9, 5)], [(5, 3)], [(0, 5)]])
def test_groups_that_are_none(groups: Any) -> None:
    with pytest.raises(InvalidInput):
        schema_of(table(), groups=groups)


def test_inputs_that_are_not_finite_are_named() -> None:
    x = np.ones((3, 2))
    x[1, 1] = np.nan
    with pytest.raises(InvalidInput, match="column 1"):
        schema_of(Records.from_arrays(x, [0, 1, 0]))
    with pytest.raises(InvalidInput, match="at least one record"):
        schema_of(table()[:0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Integer(3, 2),
        lambda: Integer(0.5, 2),  # type: ignore[arg-type]
        lambda: Continuous(0.0, np.inf),
        lambda: Continuous(np.nan, 1.0),
        lambda: OneHot(0),
        lambda: HillClimb(k_min=0),
        lambda: HillClimb(k_max=2),
        lambda: HillClimb(conf_min=1.0),
        lambda: HillClimb(iter_max=0),
        lambda: HillClimb(redraw="swap"),  # type: ignore[arg-type]
        lambda: HillClimb(attempts=0),
        lambda: PLAN.records(hard_target(), 0, BITS, seed=0),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=-1),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=0, budget=0),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=0, classes=[4]),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=0, classes=[-1]),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=0, classes=[]),
        lambda: PLAN.records(hard_target(), 1, BITS, seed=0, classes=[0, 0]),
        lambda: PLAN.records(hard_target(), 1, (), seed=0),
        lambda: PLAN.record(hard_target(), 4, BITS, np.random.default_rng(0)),
        lambda: PLAN.record(scripted([np.nan]), 0, BITS, np.random.default_rng(0)),
        lambda: noisy(table(), 1.5, seed=0),
        lambda: sample_marginals(table(), 0, seed=0),
        lambda: sample_marginals(table(), 1, seed=-1),
        lambda: sample_marginals(table()[:0], 1, seed=0),
        lambda: label_by(hard_target(), np.empty((0, 32))),
    ],
)
def test_refusals(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


# --- marginals -----------------------------------------------------------------------------------


def test_marginals_are_kept_and_nothing_else() -> None:
    records = table(2000)
    schema = schema_of(records, groups=[(5, 4)])
    x = sample_marginals(records, 4000, seed=1, schema=schema)
    assert x.shape == (4000, 11) and x.dtype == records.x.dtype
    assert (x[:, 5:9].sum(axis=1) == 1).all()
    for column in range(9):
        p, q = records.x[:, column].mean(), x[:, column].mean()
        # drawn from the 2,000 given: a binomial of mean p; 4 standard errors
        assert abs(p - q) < 4 * np.sqrt(p * (1 - p) / 4000)
    assert np.isin(x[:, 10], records.x[:, 10]).all()
    # the class moves all bits together; independent draws do not
    assert np.corrcoef(records.x[:, 0], records.x[:, 1])[0, 1] > 0.05
    assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) < 4 / np.sqrt(4000)


def test_marginals_of_each_class() -> None:
    records = table(3000)
    made = sample_class_marginals(records, 6000, seed=1)
    assert made.classes == records.classes and len(made) == 6000
    for c in range(3):
        p = records.x[records.y == c, 0].mean()
        q, n = made.x[made.y == c, 0].mean(), (made.y == c).sum()
        assert abs(p - q) < 4 * np.sqrt(p * (1 - p) / n)
        share = (records.y == c).mean()
        assert abs(n / 6000 - share) < 4 * np.sqrt(share * (1 - share) / 6000)
    x = sample_marginals(records, 6000, seed=1, per_class=True)
    np.testing.assert_array_equal(x, made.x)


def test_labels_are_the_targets() -> None:
    target = hard_target()
    x = np.random.default_rng(0).integers(0, 2, (50, 32))
    made = label_by(target, x, name="mine")
    assert target.n_queries == 50 and made.ids[3] == "mine-3"
    np.testing.assert_array_equal(made.y, hard_target().log_probabilities(x).argmax(axis=1))


def test_pictures_keep_their_shape() -> None:
    rng = np.random.default_rng(0)
    pictures = Records.from_arrays(rng.integers(0, 255, (20, 3, 4)).astype(np.uint8), [0, 1] * 10)
    assert sample_marginals(pictures, 7, seed=0).shape == (7, 3, 4)
    assert sample_class_marginals(pictures, 7, seed=0).x.shape == (7, 3, 4)
    disturbed = noisy(pictures, 0.5, seed=0)
    assert disturbed.x.shape == (20, 3, 4) and disturbed.x.dtype == np.uint8


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "flips"), [(0.0, 0), (0.1, 3), (0.3, 10), (1.0, 32)])
def test_exactly_so_many_bits_are_flipped(rate: float, flips: int) -> None:
    x = np.random.default_rng(0).integers(0, 2, (100, 32)).astype(np.uint8)
    records = Records.from_arrays(x, np.arange(100) % 3)
    made = noisy(records, rate, seed=1)
    assert ((made.x != x).sum(axis=1) == flips).all()
    np.testing.assert_array_equal(made.y, records.y)
    if 0 < flips < 32:
        # each bit equally often: Binomial(100, flips / 32), 4.5 standard deviations
        share = flips / 32
        often = (made.x != x).sum(axis=0)
        assert (abs(often - 100 * share) < 4.5 * np.sqrt(100 * share * (1 - share))).all()
        assert len({tuple(row) for row in made.x != x}) > 90


def test_independent_flips() -> None:
    x = np.zeros((400, 32), dtype=np.uint8)
    flips = noisy(Records.from_arrays(x, np.zeros(400, int)), 0.1, seed=0, iid=True).x.sum(axis=1)
    assert len(set(flips.tolist())) > 3
    assert abs(flips.sum() - 1280) < 4 * np.sqrt(12800 * 0.1 * 0.9)


def test_other_features_are_drawn_from_their_marginals() -> None:
    records = table(500)
    schema = schema_of(records, groups=[(5, 4)])
    made = noisy(records, 1.0, seed=0, schema=schema)
    assert (made.x[:, :5] == 1 - records.x[:, :5]).all()
    assert (made.x[:, 5:9].sum(axis=1) == 1).all()
    assert np.isin(made.x[:, 10], records.x[:, 10]).all()
    assert (made.x[:, 10] != records.x[:, 10]).mean() > 0.9


def test_disturbed_records_have_ids_of_their_own() -> None:
    records = table()
    made = noisy(records, 0.1, seed=4)
    assert made.ids[7] == f"noisy-4-{records.ids[7]}"
    again = noisy(records, 0.1, seed=4)
    assert made.digest() == again.digest() != noisy(records, 0.1, seed=5).digest()
    np.testing.assert_array_equal(records.x, table().x)


def test_a_target_of_predictions_is_refused_in_words() -> None:
    # a table of answers has no features to climb in
    target = Predictions(probabilities=np.array([[0.5, 0.5]]))
    with pytest.raises(InvalidInput):
        HillClimb().record(target, 0, BITS, np.random.default_rng(0))
