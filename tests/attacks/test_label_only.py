"""Label-only attacks: known distances, exact query counts, and what they find and must not find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vestige import metrics
from vestige.attacks import Attack, label_only
from vestige.attacks.label_only import AugmentationVotes, BoundaryDistance
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records, Split

Floats = NDArray[np.float64]


class Rule:
    """A target that answers with a label, and with nothing else worth reading."""

    def __init__(self, rule: Callable[[Any], Any], n_classes: int = 2) -> None:
        self.rule, self.n_classes = rule, n_classes
        self.n_queries = 0
        self.largest_batch = 0

    def log_probabilities(self, x: Any) -> Floats:
        self.n_queries += len(x)
        self.largest_batch = max(self.largest_batch, len(x))
        out = np.full((len(x), self.n_classes), np.log(1e-12))
        out[np.arange(len(x)), np.asarray(self.rule(np.asarray(x))).astype(int)] = 0.0
        return out


def linear(d: int, seed: int = 0) -> tuple[Rule, Floats, float]:
    """A hyperplane, its normal of length 1 and its offset."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 1, d)
    w /= np.linalg.norm(w)
    return Rule(lambda x: x.reshape(len(x), -1) @ w + 0.3 > 0), w, 0.3


def standardized(n: int, d: int, seed: int = 0) -> Floats:
    """Features whose standard deviation is exactly 1, so that units are plain ones."""
    x = np.random.default_rng(seed).normal(0, 1, (n, d))
    return (x - x.mean(axis=0)) / x.std(axis=0)


def auc(scores: Any, split: Split, among: Any = None) -> metrics.Estimate:
    members = split.is_member(scores.ids)
    some = np.ones(len(scores), bool) if among is None else among
    return metrics.auc(scores.values[members & some], scores.values[~members & some])


def nearest_neighbor(seed: int = 0, n: int = 150, d: int = 4, seen: bool = True) -> Any:
    """Labels are coins, and the target says that of the nearest record it was trained on.

    Returns:
        the target and the split; unless `seen`, the target was trained on a third set.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 1, (3 * n, d)), rng.integers(0, 2, 3 * n)
    records = Records.from_arrays(x, y)
    split = Split(records[:n], records[n : 2 * n], records[2 * n :])
    own = split.members if seen else split.population

    def rule(asked: Floats) -> Floats:
        far = (own.x**2).sum(axis=1) - 2 * asked @ own.x.T
        return own.y[far.argmin(axis=1)]

    return Rule(rule), split


def bit_world(seed: int = 0, n: int = 100, d: int = 40, seen: bool = True) -> Any:
    """The same with bits, and ten votes of an own pattern a class."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 2, (3 * n, d)), rng.integers(0, 2, 3 * n)
    records = Records.from_arrays(x, y)
    split = Split(records[:n], records[n : 2 * n], records[2 * n :])
    own = split.members if seen else split.population
    signs = 2.0 * own.x - 1

    def rule(asked: Floats) -> Floats:
        return own.y[((2 * asked - 1) @ signs.T).argmax(axis=1)]

    return Rule(rule), split


# --- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "budget", "within"), [(2, 250, 0.02), (10, 400, 0.05)])
def test_the_distance_to_a_hyperplane(d: int, budget: int, within: float) -> None:
    target, w, offset = linear(d)
    x = standardized(200, d)
    # a wide box, so that the nearest point lies in it
    x = np.concatenate([x, np.full((1, d), 30.0), np.full((1, d), -30.0)])
    unit = x.std(axis=0)
    records = Records.from_arrays(x, target.rule(x).astype(int))
    found = BoundaryDistance(budget=budget).run(target, records).values
    # in units of the features, the plane's normal is w * unit
    exact = np.abs(x @ w + offset) / np.linalg.norm(w * unit)
    some = slice(0, 200)
    assert (found[some] >= exact[some] * (1 - 1e-9)).all()
    assert np.median(found[some] / exact[some] - 1) < within
    assert np.quantile(found[some] / exact[some] - 1, 0.95) < 10 * within


def test_the_distance_to_a_threshold_on_one_feature() -> None:
    """The way to the nearest record with another label is a halving alone: exact at once."""
    x = np.linspace(-1, 1, 21)[:, None]
    target = Rule(lambda x: x[:, 0] > 0.05)
    records = Records.from_arrays(x, (x[:, 0] > 0.05).astype(int))
    found = BoundaryDistance(budget=30, halvings=20).run(target, records).values
    np.testing.assert_allclose(found, np.abs(x[:, 0] - 0.05) / x.std(), rtol=1e-4)


def test_units_are_the_features_own() -> None:
    target, _, _ = linear(3)
    x = standardized(80, 3)
    records = Records.from_arrays(x, target.rule(x).astype(int))
    factor = np.array([1e-3, 1.0, 1e4])
    stretched = Records.from_arrays(x * factor + 5, records.y)
    other = Rule(lambda z: target.rule((z - 5) / factor))
    plain = BoundaryDistance(seed=1).run(target, records).values
    moved = BoundaryDistance(seed=1).run(other, stretched).values
    # other contents are probed with other noise: the same distances, up to the search
    np.testing.assert_allclose(moved, plain, rtol=0.25)
    assert np.median(np.abs(moved / plain - 1)) < 0.02


def test_flips_that_are_kept_have_the_binomial_rate() -> None:
    """A target that reads one bit keeps the label where this bit is not flipped: 1 - rate."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (400, 12))
    target = Rule(lambda x: x[:, 3])
    records = Records.from_arrays(x, x[:, 3])
    for rates in ((0.05,), (0.3,), (0.01, 0.1, 0.4)):
        attack = BoundaryDistance(rates=rates, budget=121)
        found = attack.run(target, records).values
        copies = 120 // len(rates)
        # coupled rates vary less than one rate in the middle does: at most 1/2 / sqrt(copies) each
        assert abs(found.mean() - (1 - np.mean(rates))) < 4 * 0.5 / np.sqrt(copies * 400)
        assert (found * copies * len(rates) == np.rint(found * copies * len(rates))).all() or len(
            rates
        ) > 1


def test_flips_at_a_low_rate_are_among_those_at_a_higher() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (20, 30))
    seen: list[Floats] = []

    def rule(asked: Floats) -> Floats:
        seen.append(asked)
        return np.zeros(len(asked))

    records = Records.from_arrays(x, np.zeros(20, dtype=int))
    BoundaryDistance(budget=21, rates=(0.1, 0.4)).run(Rule(rule), records)
    own = np.repeat(x, 10, axis=0)
    few, many = seen[1] != own, seen[2] != own
    assert (many | ~few).all() and 0.08 < few.mean() < 0.12 and 0.38 < many.mean() < 0.42


def test_misclassified_records_are_lowest() -> None:
    target, _, _ = linear(4)
    x = standardized(100, 4)
    y = target.rule(x).astype(int)
    wrong = np.arange(100) % 3 == 0
    records = Records.from_arrays(x, np.where(wrong, 1 - y, y))
    for attack in (BoundaryDistance(), AugmentationVotes()):
        values = attack.run(target, records).values
        assert values[wrong].max() <= 0 <= values[~wrong].min()
    assert (BoundaryDistance().run(target, records).values[wrong] == 0).all()


def test_a_target_of_one_answer_is_as_far_as_the_box_is_wide() -> None:
    x = np.random.default_rng(0).normal(0, 1, (50, 3))
    records = Records.from_arrays(x, np.zeros(50, dtype=int))
    target = Rule(lambda x: np.zeros(len(x)))
    values = BoundaryDistance().run(target, records).values
    width = np.ptp(x, axis=0) / x.std(axis=0)
    np.testing.assert_allclose(values, np.linalg.norm(width))
    # itself and sixteen random points
    assert target.n_queries == 50 * 17


def test_where_no_candidate_has_another_label_random_points_do() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    x = x[x[:, 0] + x[:, 1] < 0.5]
    target = Rule(lambda x: x[:, 0] + x[:, 1] > 0.5)
    records = Records.from_arrays(x, np.zeros(len(x), dtype=int))
    values = BoundaryDistance(budget=400).run(target, records).values
    # few draws fall beyond: what was found is the distance, the others have the diameter
    exact = (0.5 - x.sum(axis=1)) / np.linalg.norm(x.std(axis=0))
    found = values < np.linalg.norm(np.ptp(x, axis=0) / x.std(axis=0)) * (1 - 1e-9)
    assert found.mean() > 0.5
    assert np.median(values[found] / exact[found]) < 1.1


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [4, 5, 12, 13, 45, 100, 251])
@pytest.mark.parametrize("binary", [False, True])
def test_no_record_is_asked_about_more_often_than_the_budget(budget: int, binary: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (40, 6)) if binary else rng.normal(0, 1, (40, 6))
    counts = np.zeros(40, dtype=int)

    def rule(asked: Floats) -> Floats:
        # whose probe it is shows in a feature that never changes among equals: asked one by one
        return (asked.sum(axis=1) > (3 if binary else 0)).astype(int)

    for i in range(40):
        y = rule(x)
        target = Rule(rule)
        # alone a record has no others to start from; with one other it has
        pair = Records.from_arrays(x[[i, (i + 1) % 40]], np.array([y[i], 1 - y[(i + 1) % 40]]))
        BoundaryDistance(budget=budget, features="binary" if binary else "continuous").run(
            target, pair
        )
        # the other one is misclassified and costs one
        counts[i] = target.n_queries - 1
    assert counts.max() <= budget and counts.min() >= 1
    if binary:
        assert (counts == 1 + (budget - 1) // 3 * 3).all()


def test_more_budget_never_finds_a_larger_distance() -> None:
    target, split = nearest_neighbor()
    before = None
    for budget in (7, 12, 20, 60, 61, 130, 250, 400):
        values = BoundaryDistance(budget=budget).run(target, split.candidates).values
        if before is not None:
            assert (values <= before).all()
        before = values
    # and finds smaller ones
    few = BoundaryDistance(budget=12).run(target, split.candidates).values
    assert before is not None and before[few > 0].mean() < 0.9 * few[few > 0].mean()


@pytest.mark.parametrize(
    ("attack", "each"),
    [
        (AugmentationVotes(), 21),
        (AugmentationVotes(copies=5), 6),
        (AugmentationVotes(augmentations=(np.negative, np.copy)), 3),
    ],
)
def test_votes_cost_one_query_a_copy(attack: AugmentationVotes, each: int) -> None:
    target, split = nearest_neighbor(n=20)
    attack.run(target, split.candidates)
    assert target.n_queries == 40 * each


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [BoundaryDistance(), AugmentationVotes(noise=0.3)])
def test_members_are_farther_from_the_boundary(attack: Attack[BlackBox]) -> None:
    target, split = nearest_neighbor()
    scores = attack.run(target, split.candidates)
    assert auc(scores, split).value > 0.7  # type: ignore[operator]
    # and not only because they are classified correctly
    right = scores.values > 0
    estimate = auc(scores, split, right)
    assert estimate.low is not None and estimate.low > 0.6


@pytest.mark.parametrize("attack", [BoundaryDistance(), AugmentationVotes(flips=0.2)])
def test_members_of_bits_keep_their_label(attack: Attack[BlackBox]) -> None:
    target, split = bit_world()
    scores = attack.run(target, split.candidates)
    estimate = auc(scores, split, scores.values > 0)
    assert estimate.low is not None and estimate.low > 0.6


@pytest.mark.parametrize("make", [nearest_neighbor, bit_world])
@pytest.mark.parametrize("attack", [BoundaryDistance(), AugmentationVotes()])
def test_at_chance_on_a_target_that_saw_neither_side(
    attack: Attack[BlackBox], make: Callable[..., Any]
) -> None:
    target, split = make(seen=False)
    scores = attack.run(target, split.candidates)
    estimate = auc(scores, split)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("attack", [BoundaryDistance(), AugmentationVotes()])
@pytest.mark.parametrize("make", [nearest_neighbor, bit_world])
def test_nothing_but_the_label_is_used(attack: Attack[BlackBox], make: Callable[..., Any]) -> None:
    target, split = make(n=40)

    class Soft(Rule):
        """The same labels, with probabilities that are noise."""

        def log_probabilities(self, x: Any) -> Floats:
            label = super().log_probabilities(x).argmax(axis=1)
            p = np.random.default_rng(len(x)).uniform(0.6, 0.9, len(x))
            rest = (1 - p) / (self.n_classes - 1)
            out = np.repeat(rest[:, None], self.n_classes, axis=1)
            out[np.arange(len(x)), label] = p
            return np.asarray(np.log(out))

    soft = Soft(target.rule)
    hard = attack.run(target, split.candidates)
    np.testing.assert_array_equal(attack.run(soft, split.candidates).values, hard.values)


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", [BoundaryDistance(), AugmentationVotes(), BoundaryDistance(budget=60)]
)
@pytest.mark.parametrize("make", [nearest_neighbor, bit_world])
def test_a_record_has_the_same_score_in_any_order(
    attack: Attack[BlackBox], make: Callable[..., Any]
) -> None:
    target, split = make(n=50)
    candidates = split.candidates
    order = np.random.default_rng(5).permutation(len(candidates))
    before = attack.run(target, candidates).values
    np.testing.assert_array_equal(attack.run(target, candidates[order]).values, before[order])


@pytest.mark.parametrize("make", [nearest_neighbor, bit_world])
def test_a_record_has_the_same_score_whatever_else_is_searched(make: Callable[..., Any]) -> None:
    """Others that are misclassified are no longer searched, but still say where to start."""
    target, split = make(n=60)
    candidates = split.candidates
    attack = BoundaryDistance(budget=150)
    together = attack.run(target, candidates).values
    right = np.flatnonzero(together > 0)
    some = right[::7]
    y = np.where(np.isin(np.arange(120), some), candidates.y, 1 - target.rule(candidates.x))
    alone = attack.run(target, Records(candidates.ids, candidates.x, y)).values
    np.testing.assert_array_equal(alone[some], together[some])
    assert (np.delete(alone, some) == 0).all() and len(some) > 5


@pytest.mark.parametrize(("d", "share"), [(5, 0.2), (2000, 2.0**-8)])
def test_probes_lie_as_far_from_the_boundary_as_the_record_is_from_it(d: int, share: float) -> None:
    x = standardized(6, d) * 0.1
    records = Records.from_arrays(np.concatenate([x, x + 9, x - 9]), np.zeros(18, dtype=int))
    asked: list[Floats] = []

    def rule(points: Floats) -> Floats:
        asked.append(points)
        return points[:, 0] > 0

    space = label_only._space(records)
    search = label_only._Search(BoundaryDistance(), Rule(rule), records[:6], space)
    search.distance = np.arange(1.0, 7) / 10
    search.moves = search.distance[:, None] * np.eye(d)[:1]
    # some of the records, in any order
    rows = np.array([4, 1])
    normal = search._normal(rows, 30)
    moves = space.moved(x[rows][:, None], asked[0].reshape(2, 30, d))
    far = np.linalg.norm(moves - search.moves[rows][:, None], axis=2)
    np.testing.assert_allclose(far, share * search.distance[rows][:, None] * np.ones(30))
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1)
    assert (search.spent == [1, 31, 1, 1, 31, 1]).all()


def test_parts_of_any_size_have_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    target, split = nearest_neighbor(n=60)
    whole = BoundaryDistance().run(target, split.candidates).values
    n_queries = target.n_queries
    monkeypatch.setattr(label_only, "_TOGETHER", 7)
    monkeypatch.setattr(label_only, "_NUMBERS", 400)
    parts = BoundaryDistance().run(target, split.candidates).values
    np.testing.assert_array_equal(parts, whole)
    assert target.n_queries == 2 * n_queries
    # but for the first question all batches are bounded
    bits, split = bit_world(n=30)
    whole = BoundaryDistance().run(bits, split.candidates).values
    monkeypatch.undo()
    np.testing.assert_array_equal(BoundaryDistance().run(bits, split.candidates).values, whole)


def test_the_seed_matters() -> None:
    target, split = nearest_neighbor(n=50)
    for kind in (BoundaryDistance, AugmentationVotes):
        runs = [kind(seed=seed).run(target, split.candidates).values for seed in (0, 0, 1)]
        np.testing.assert_array_equal(runs[0], runs[1])
        assert not np.array_equal(runs[0], runs[2])


def test_probes_stay_where_the_candidates_are() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 3, (60, 4))
    x[:, 2] = 7.0
    low, high = x.min(axis=0), x.max(axis=0)

    def rule(asked: Floats) -> Floats:
        assert (asked >= low).all() and (asked <= high).all()
        return asked[:, 0] + asked[:, 1] > 0.3

    records = Records.from_arrays(x, rule(x).astype(int))
    for attack in (BoundaryDistance(), AugmentationVotes(noise=2.0)):
        attack.run(Rule(rule), records)


# --- images --------------------------------------------------------------------------------------


def images(shape: tuple[int, ...], n: int = 60, dtype: Any = np.uint8) -> Records:
    x = np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(dtype)
    return Records.from_arrays(x, (x.reshape(n, -1).mean(axis=1) > 127.5).astype(int))


@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (5, 6, 3), (1, 5, 6)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_layout(shape: tuple[int, ...], dtype: Any) -> None:
    records = images(shape, dtype=dtype)
    asked: list[Any] = []

    def rule(x: Any) -> Any:
        assert x.shape[1:] == shape and x.min() >= 0 and x.max() <= 255
        asked.append(x)
        return x.reshape(len(x), -1).astype(float).mean(axis=1) > 127.5

    target = Rule(rule)
    distances = BoundaryDistance(budget=80).run(target, records)
    assert (distances.values > 0).all()
    asked.clear()
    target.n_queries = 0
    AugmentationVotes().run(target, records)
    assert target.n_queries == 60 * 14 and {x.dtype for x in asked} == {np.dtype(dtype)}


@pytest.mark.parametrize(("shape", "down"), [((5, 6), 1), ((3, 5, 6), 2), ((5, 6, 3), 1)])
def test_shifted_images_repeat_their_edge(shape: tuple[int, ...], down: int) -> None:
    records = images(shape, n=2)
    asked: list[Any] = []

    def rule(x: Any) -> Any:
        asked.append(x)
        return np.zeros(len(x))

    AugmentationVotes().run(Rule(rule), records)
    views = np.stack(asked)
    assert (views[0] == records.x).all()
    assert len({v.tobytes() for v in views}) == 14
    assert (views[-1] == np.flip(records.x, axis=down + 1)).all()
    up = np.moveaxis(records.x, (down, down + 1), (0, 1))
    shifted = [np.moveaxis(v, (down, down + 1), (0, 1)) for v in views[1:-1]]
    # by one pixel down: the first row twice, the last one gone
    wanted = np.concatenate([up[:1], up[:-1]])
    assert sum((v == wanted).all() for v in shifted) == 1
    # by one up and one to the left
    wanted = np.concatenate([up[1:], up[-1:]])
    wanted = np.concatenate([wanted[:, 1:], wanted[:, -1:]], axis=1)
    assert sum((v == wanted).all() for v in shifted) == 1


# --- learned votes -------------------------------------------------------------------------------


def reference_world(n_models: int = 8) -> tuple[Rule, Split, Pool[Rule]]:
    """1-nearest-neighbor models of random halves, two kinds of copies: one tells, one does not."""
    rng = np.random.default_rng(0)
    n = 300
    records = Records.from_arrays(rng.normal(0, 1, (n, 4)), rng.integers(0, 2, n))

    def model(member: Any) -> Rule:
        own = records[member]

        def rule(asked: Floats) -> Floats:
            far = (own.x**2).sum(axis=1) - 2 * asked @ own.x.T
            return own.y[far.argmin(axis=1)]

        return Rule(rule)

    member = rng.random((n_models, n)) < 0.5
    mine = rng.random(n) < 0.5
    split = Split(records[mine], records[~mine], records[:0])
    return model(mine), split, Pool([model(row) for row in member], records, member)


def _near(x: Floats) -> Floats:
    return x + 0.1


def _elsewhere(x: Floats) -> Floats:
    return np.full_like(x, 100.0)


def test_learned_votes_weigh_what_tells() -> None:
    target, split, known = reference_world()
    # ten copies that say nothing, and one that does
    noise = (_elsewhere,) * 4
    attack = AugmentationVotes(augmentations=(_near, *noise), learned=True)
    learned = attack.run(target, split.candidates, known)
    counted = AugmentationVotes(augmentations=attack.augmentations).run(target, split.candidates)
    assert target.n_queries == 2 * 300 * 6
    assert auc(learned, split).value > auc(counted, split).value + 0.01  # type: ignore[operator]
    assert auc(learned, split).low > 0.6  # type: ignore[operator]
    again = attack.run(target, split.candidates, known)
    np.testing.assert_array_equal(again.values, learned.values)
    assert attack.about.needs_models and not AugmentationVotes().about.needs_models


def test_learned_votes_need_models_of_both_kinds() -> None:
    target, split, known = reference_world(2)
    attack = AugmentationVotes(learned=True, copies=2)
    with pytest.raises(InvalidInput, match="expected known= as a Pool of reference models"):
        attack.run(target, split.candidates)
    with pytest.raises(MissingModels):
        attack.run(target, split.candidates, Pool.of_population(split.nonmembers))
    all_in = Pool(known.models, known.records, np.ones_like(known.member))
    with pytest.raises(InvalidInput, match="members and non-members in the pool, got one side"):
        attack.run(target, split.candidates, all_in)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BoundaryDistance(budget=3), "a budget of at least 4 queries.*got 3"),
        (lambda: BoundaryDistance(features="bits"), "features to be \"auto\".*got 'bits'"),  # type: ignore[arg-type]
        (lambda: BoundaryDistance(rates=()), "expected rates of flips between 0 and 1"),
        (lambda: BoundaryDistance(rates=(0.1, 1.0)), "expected rates of flips between 0 and 1"),
        (lambda: BoundaryDistance(probes=0), "probes >= 1.*got 0, 10 and 0"),
        (lambda: AugmentationVotes(copies=0), "copies >= 1 and seed >= 0, got 0 and 0"),
        (lambda: AugmentationVotes(noise=0.0), "noise > 0.*got 0.0 and 0.05"),
        (lambda: AugmentationVotes(flips=1.0), "rate of flips between 0 and 1, got 0.5 and 1.0"),
        (lambda: AugmentationVotes(augmentations=(1,)), "augmentations as functions"),  # type: ignore[arg-type]
    ],
)
def test_hyper_parameters_are_checked(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        make()


def test_inputs_are_checked() -> None:
    target, split = nearest_neighbor(n=10)
    with pytest.raises(InvalidInput, match="features that are 0 or 1, got others"):
        BoundaryDistance(features="binary").run(target, split.candidates)
    with pytest.raises(InvalidInput, match=r"return inputs of shape \(20, 4\), got \(20, 2\)"):
        AugmentationVotes(augmentations=(lambda x: x[:, :2],)).run(target, split.candidates)
    with pytest.raises(InvalidInput, match="at least one record"):
        BoundaryDistance().run(target, split.candidates[:0])
