"""Shadow models: what is known exactly, behind every filter, and what more classes do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from vestige import metrics
from vestige.attacks import shadow as module
from vestige.attacks.shadow import Shadow
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox, EstimatorModel
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from worlds import World, overfit_world, unseen_world

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Filter = Callable[[Floats], Floats]


class Answers:
    """A black box that answers row number i with row i of a table of probabilities."""

    def __init__(self, probabilities: Floats, shown: Filter = lambda p: p) -> None:
        self._table, self._shown = probabilities, shown
        self.n_queries = 0

    def log_probabilities(self, x: Any) -> Floats:
        rows = np.asarray(x)[:, 0].astype(int)
        self.n_queries += len(rows)
        return np.log(np.maximum(self._shown(self._table[rows]), 1e-12))


def top(k: int) -> Filter:
    def shown(p: Floats) -> Floats:
        rank = np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1)
        return np.where(rank < k, p, 0.0)

    return shown


def softened(t: float) -> Filter:
    def shown(p: Floats) -> Floats:
        powers = np.maximum(p, 1e-12) ** (1 / t)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    return shown


def label_only(p: Floats) -> Floats:
    return np.eye(p.shape[1])[p.argmax(axis=1)]


FILTERS: dict[str, Filter] = {
    "none": lambda p: p,
    "top3": top(3),
    "top1": top(1),
    "round3": lambda p: np.round(p, 3),
    "round1": lambda p: np.round(p, 1),
    "temperature5": softened(5),
    "temperature20": softened(20),
}


def memoriser_world(
    shown: Filter, n_classes: int = 5, n_models: int = 4, n: int = 300, seed: int = 0
) -> tuple[Answers, Records, Pool[BlackBox], Mask]:
    """Models that answer one-hot on their own records and uniformly on others.

    The target's records (the first n) and the shadow models' are disjoint.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, 2 * n)
    records = Records.from_arrays(np.arange(2 * n)[:, None], y)
    uniform = np.full((2 * n, n_classes), 1 / n_classes)

    def model(rows: NDArray[np.int64]) -> tuple[Answers, Mask]:
        member = np.zeros(2 * n, dtype=bool)
        member[rows] = True
        return Answers(np.where(member[:, None], np.eye(n_classes)[y], uniform), shown), member

    target, own = model(rng.permutation(n)[: n // 2])
    made = [model(n + rng.permutation(n)[: n // 2]) for _ in range(n_models)]
    known: Pool[BlackBox] = Pool(
        [m for m, _ in made], records[n:], np.array([row for _, row in made])[:, n:]
    )
    return target, records[:n], known, own[:n]


def accuracy(scores: Scores, truth: Mask) -> float:
    return float(((scores.values > 0.5) == truth).mean())


# --- P1, P2: known answers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("attack", [Shadow(), Shadow(per_class=False)], ids=["class", "pooled"])
def test_a_memoriser_is_found_out_through_every_filter(name: str, attack: Shadow) -> None:
    target, candidates, known, truth = memoriser_world(FILTERS[name])
    scores = attack.run(target, candidates, known)
    assert accuracy(scores, truth) == 1.0
    assert target.n_queries == len(candidates)


class Softened:
    """Another black box behind a temperature."""

    n_queries = 0

    def __init__(self, model: BlackBox, temperature: float) -> None:
        self._model, self._temperature = model, temperature

    def log_probabilities(self, x: Any) -> Floats:
        scaled = self._model.log_probabilities(x) / self._temperature
        return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("with_loss", [False, True])
def test_a_high_temperature_hides_little(with_loss: bool) -> None:
    it = overfit_world(n_models=8)
    attack = Shadow(with_loss=with_loss)
    sharp = attack.run(it.target, it.candidates, it.known)
    soft_models = [Softened(m, 500.0) for m in it.known.models]
    soft = attack.run(
        Softened(it.target, 500.0),
        it.candidates,
        Pool(soft_models, it.known.records, it.known.member),
    )
    truth = it.split.is_member(sharp.ids)
    # a temperature keeps the order of the logits: a standard error is 0.018
    assert accuracy(soft, truth) > accuracy(sharp, truth) - 0.04


def test_labels_alone_tell_all_but_the_class_that_is_always_given() -> None:
    target, candidates, known, truth = memoriser_world(label_only)
    scores = Shadow().run(target, candidates, known)
    # non-members get class 0: there, and only there, the label says nothing
    other = candidates.y != 0
    assert ((scores.values > 0.5) == truth)[other].all()
    assert len(set(np.round(scores.values[~other], 9).tolist())) == 1
    assert 0.8 < accuracy(scores, truth) < 1


@pytest.mark.parametrize("features", ["vector", "sorted_top3"])
@pytest.mark.parametrize("with_loss", [False, True])
def test_the_variants_on_the_memoriser(features: Any, with_loss: bool) -> None:
    target, candidates, known, truth = memoriser_world(FILTERS["none"])
    attack = Shadow(features=features, with_loss=with_loss)
    assert accuracy(attack.run(target, candidates, known), truth) == 1.0


def test_the_loss_sees_what_three_sorted_numbers_do_not() -> None:
    # members: sure of the label; others: as sure, of another class
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 800)
    records = Records.from_arrays(np.arange(800)[:, None], y)
    member = rng.random((5, 800)) < 0.5
    models = [Answers(np.eye(5)[(y + ~row) % 5]) for row in member]
    known: Pool[BlackBox] = Pool(models[1:], records, member[1:])
    blind = Shadow(features="sorted_top3").run(models[0], records, known)
    seeing = Shadow(features="sorted_top3", with_loss=True).run(models[0], records, known)
    assert len(set(np.round(blind.values[y == 0], 9).tolist())) == 1
    assert accuracy(seeing, member[0]) == 1.0


@pytest.mark.parametrize("n_classes", [2, 6])
def test_at_chance_on_a_target_without_membership(n_classes: int) -> None:
    it = unseen_world(n_classes=n_classes, seed=3)
    scores = Shadow().run(it.target, it.candidates, it.known)
    truth = it.split.is_member(scores.ids)
    # 600 candidates: the standard error is 0.0204, 0.05 is 2.45 of them
    assert 0.45 <= accuracy(scores, truth) <= 0.55


def test_exchanged_sides_give_the_opposite() -> None:
    it = overfit_world(n_classes=4)
    scores = Shadow().run(it.target, it.candidates, it.known)
    truth = it.split.is_member(scores.ids)
    right = accuracy(scores, truth)
    # 600 candidates, standard error 0.02: more than ten of them above chance
    assert right > 0.72


# --- the attack set ------------------------------------------------------------------------------


def test_as_many_in_as_out_and_never_both() -> None:
    member = np.random.default_rng(0).random((6, 500)) < np.array([[0.1, 0.3, 0.5, 0.7, 0.9, 0]]).T
    inside, outside = module._balanced_sides(member, 0)
    smaller = np.minimum(member.sum(axis=1), (~member).sum(axis=1))
    np.testing.assert_array_equal(inside.sum(axis=1), smaller)
    np.testing.assert_array_equal(outside.sum(axis=1), smaller)
    assert not (inside & ~member).any() and not (outside & member).any()
    again, _ = module._balanced_sides(member, 0)
    other, _ = module._balanced_sides(member, 1)
    assert (inside == again).all() and (inside != other).any()


class Spy(GaussianNB):
    """Remembers what it was fitted to."""

    seen: list[tuple[Floats, NDArray[np.int64]]] = []

    def fit(self, x: Any, y: Any, sample_weight: Any = None) -> Any:
        Spy.seen.append((np.array(x), np.array(y)))
        return super().fit(x, y)


def spied(attack: Shadow, known: Pool[BlackBox]) -> list[tuple[Floats, NDArray[np.int64]]]:
    Spy.seen = []
    dataclasses.replace(attack, classifier=Spy()).trained(known)
    return Spy.seen


def small_pool(n: int = 300, n_models: int = 4, seed: int = 0) -> Pool[BlackBox]:
    """Answers that name model, record and membership: p = (model, record, in, rest)."""
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) < n - 8, rng.integers(0, 2, n), 3)
    records = Records.from_arrays(np.arange(n)[:, None], y)
    member = np.zeros((n_models, n), dtype=bool)
    for row in member:
        row[rng.permutation(n)[: n // 3]] = True
    models = []
    for k, row in enumerate(member):
        p = np.column_stack([np.full(n, (k + 1) / 100), (np.arange(n) + 1) / 1000, row * 0.1])
        models.append(Answers(np.column_stack([p, 1 - p.sum(axis=1)])))
    return Pool(models, records, member)


def test_each_classifier_learns_from_records_of_its_true_class() -> None:
    known = small_pool()
    seen = spied(Shadow(min_per_class=20), known)
    y, member = known.records.y, known.member
    for c, (x, truth) in zip([0, 1], seen[:2], strict=True):
        k, j = np.rint(x[:, 0] * 100 - 1).astype(int), np.rint(x[:, 1] * 1000 - 1).astype(int)
        assert (y[j] == c).all()
        np.testing.assert_array_equal(truth.astype(bool), member[k, j])
        np.testing.assert_array_equal(x[:, 2] > 0.05, truth.astype(bool))
        # as many in as out, repeated where there were fewer
        assert truth.mean() == 0.5
        pairs = np.unique(np.stack([k, j])[:, truth == 1], axis=1)
        assert pairs.shape[1] == (member & (y == c)).sum()


def test_small_classes_fall_back_to_one_classifier_on_sorted_answers() -> None:
    known = small_pool()
    models = Shadow(min_per_class=20).trained(known)
    # class 2 has no record, class 3 has eight
    assert models.fallback == (2, 3) and sorted(models.by_class) == [0, 1]
    assert models.counts.shape == (4, 2) and models.counts[2].tolist() == [0, 0]
    seen = spied(Shadow(min_per_class=20), known)
    assert len(seen) == 3
    x = seen[2][0]
    assert (np.diff(x, axis=1) <= 0).all() and len(x) == 2 * known.member.sum()
    none = Shadow(min_per_class=100_000).trained(known)
    assert none.fallback == (0, 1, 2, 3) and not none.by_class
    pooled = Shadow(per_class=False).trained(known)
    assert pooled.fallback == () and not pooled.by_class and pooled.pooled is not None
    assert Shadow(min_per_class=1).trained(known).fallback == (2,)


def test_both_sides_must_be_large_enough() -> None:
    # of class 1, a single record is out
    y = np.repeat([0, 1], 100)
    member = np.zeros((1, 200), dtype=bool)
    member[0, :40] = member[0, 101:] = True
    records = Records.from_arrays(np.arange(200)[:, None], y)
    known: Pool[BlackBox] = Pool([Answers(np.full((200, 2), 0.5))], records, member)
    models = Shadow(min_per_class=10).trained(known)
    assert models.counts[1, 0] >= 10 > models.counts[1, 1] and models.fallback == (1,)


def test_a_class_the_pool_does_not_have_is_scored_by_the_pooled_one() -> None:
    known = small_pool()
    target = Answers(np.tile([0.1, 0.2, 0.3, 0.4], (3, 1)))
    records = Records.from_arrays(np.arange(3)[:, None], [0, 2, 3])
    scores = Shadow().run(target, records, known)
    assert len(scores) == 3 and scores.values[1] == scores.values[2]


def test_a_rare_side_counts_as_much_as_a_frequent_one() -> None:
    # of class 0, 1 in 20 is in: unbalanced, hardly any would be called a member
    rng = np.random.default_rng(0)
    n = 4000
    y = np.repeat([0, 1], n // 2)
    member = np.zeros((1, n), dtype=bool)
    member[0, np.concatenate([np.arange(100), n // 2 + np.arange(n // 2 - 100)])] = True
    p = np.clip(rng.normal(0.5 + 0.1 * member[0], 0.1), 0.01, 0.99)
    records = Records.from_arrays(np.arange(n)[:, None], y)
    known: Pool[BlackBox] = Pool([Answers(np.column_stack([p, 1 - p]))], records, member)
    scores = Shadow().run(known.models[0], records, known)
    right = [(scores.values > 0.5)[(y == 0) & (member[0] == m)].mean() for m in (True, False)]
    # Phi(0.5) = 0.69 are above the midpoint; 100 records, standard error 0.046
    assert 0.5 < right[0] and right[1] < 0.5


def test_time_is_bounded_by_the_rows_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 50)
    seen = spied(Shadow(), small_pool())
    assert [len(x) for x, _ in seen] == [100, 100, 100]
    # drawn from all shadow models
    assert all(len(np.unique(np.rint(x[:, 0] * 100))) == 4 for x, _ in seen[:2])


def test_what_the_features_are() -> None:
    table = np.log(np.array([[0.1, 0.5, 0.1, 0.3], [0.7, 0.0, 0.2, 1e-15]]) + 1e-300)
    y = np.array([1, 3])
    vector = Shadow(with_loss=True)._rows(table, y, pooled=False)
    np.testing.assert_allclose(vector[0], [0.1, 0.5, 0.1, 0.3, -np.log(0.5)])
    # nothing below what a service can show is told from zero
    np.testing.assert_allclose(vector[1], [0.7, 1e-12, 0.2, 1e-12, -np.log(1e-12)])
    ordered = Shadow()._rows(table, y, pooled=True)
    np.testing.assert_allclose(ordered, [[0.5, 0.3, 0.1, 0.1], [0.7, 0.2, 1e-12, 1e-12]])
    top3 = Shadow(features="sorted_top3")._rows(table, y, pooled=False)
    np.testing.assert_allclose(top3, [[0.5, 0.3, 0.1], [0.7, 0.2, 1e-12]])


# --- the default network -------------------------------------------------------------------------


def test_its_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    weights: Any = [w.astype(np.float64) for w in module._initial(2, 3, rng)]
    for w in weights:
        w += 0.1 * rng.normal(0, 1, w.shape)
    x, truth = rng.normal(0, 1, (2, 8, 3)), np.repeat([1.0, 0.0], 4)[:, None]

    def loss(weights: Any) -> float:
        total = 0.0
        for k in range(2):
            network = module._Network(tuple(w[k] for w in weights))  # type: ignore[arg-type]
            p = network.predict_proba(x[k])
            total -= np.log(np.where(truth[:, 0] == 1, p[:, 1], p[:, 0])).mean()
        return total

    found = module._gradients(weights, x, truth)  # type: ignore[arg-type]
    for w, gradient in zip(weights, found, strict=True):
        assert gradient.shape == w.shape
        for place in rng.permutation(np.argwhere(np.ones(w.shape)))[:20]:
            at, step = tuple(place), 1e-6
            kept = w[at]
            w[at] = kept + step
            above = loss(weights)
            w[at] = kept - step
            below = loss(weights)
            w[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_its_steps_are_adams() -> None:
    rng = np.random.default_rng(0)
    ours = [rng.normal(0, 1, (2, 3)).astype(np.float32)]
    naive, mean, square = ours[0].astype(np.float64), np.zeros((2, 3)), np.zeros((2, 3))
    adam = module._Adam(ours)
    for t in range(1, 21):
        gradient = rng.normal(0, 1, (2, 3))
        adam.step([gradient.astype(np.float32)])
        # Kingma & Ba 2015, Algorithm 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9**t), square / (1 - 0.999**t)
        naive -= module._RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    np.testing.assert_allclose(ours[0], naive, rtol=1e-5, atol=1e-6)


def test_probabilities_share_a_scale_and_the_loss_has_its_own() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([0.5, 0.1, 3.0], [0.1, 0.001, 2.0], (400, 3))
    center, scale = module._spread((x[:150], x[150:]), with_loss=True)
    np.testing.assert_allclose(center, x.mean(axis=0))
    np.testing.assert_allclose(scale, 2 * x.std(axis=0)[[0, 0, 2]])
    equal, least = module._spread((x[:1], x[:1]), with_loss=False)
    assert (least == 1e-5).all() and (equal == x[0]).all()


def test_it_learns_what_no_line_separates() -> None:
    rng = np.random.default_rng(0)
    ins, outs = rng.random((500, 2)), rng.random((500, 2))
    ins = ins[(ins[:, 0] > 0.5) == (ins[:, 1] > 0.5)]
    outs = outs[(outs[:, 0] > 0.5) != (outs[:, 1] > 0.5)]
    (network,) = module._networks([(ins, outs)], with_loss=False, seed=0)
    right = [(network.predict_proba(x)[:, 1] > 0.5).mean() for x in (ins, outs)]
    assert right[0] > 0.9 and right[1] < 0.1


# --- any classifier, seeds, cutoff ---------------------------------------------------------------


@pytest.mark.parametrize(
    "classifier",
    [
        LogisticRegression(max_iter=500),
        RandomForestClassifier(20),
        GaussianNB(),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    ],
    ids=lambda c: type(c).__name__,
)
def test_any_classifier(classifier: Any) -> None:
    target, candidates, known, truth = memoriser_world(FILTERS["none"])
    before = repr(classifier)
    attack = Shadow(classifier=classifier)
    one, two = (attack.run(target, candidates, known) for _ in range(2))
    np.testing.assert_array_equal(one.values, two.values)
    assert accuracy(one, truth) == 1.0
    # the argument is cloned, not fitted, and keeps its parameters
    assert repr(classifier) == before and not [a for a in vars(classifier) if a == "classes_"]


def test_the_seed_reaches_every_random_state() -> None:
    it = overfit_world(n_models=4)
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(5, max_depth=3))
    runs = [
        Shadow(classifier=forest, seed=s).run(it.target, it.candidates, it.known).values
        for s in (0, 0, 1)
    ]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()
    assert (Shadow().run(it.target, it.candidates, it.known).values != 0.5).any()


def test_it_abstains_where_it_is_not_sure() -> None:
    it = overfit_world(n_models=8)
    all_ = Shadow().run(it.target, it.candidates, it.known)
    sure = Shadow(confidence=0.7).run(it.target, it.candidates, it.known)
    expected = all_.ids[np.maximum(all_.values, 1 - all_.values) >= 0.7]
    np.testing.assert_array_equal(sure.ids, expected)
    assert 0 < len(sure) < len(all_)
    kept = dict(zip(all_.ids.tolist(), all_.values.tolist(), strict=True))
    assert [kept[i] for i in sure.ids.tolist()] == sure.values.tolist()
    right = [accuracy(s, it.split.is_member(s.ids)) for s in (all_, sure)]
    assert right[1] > right[0]
    none = Shadow(confidence=1.0).run(it.target, it.candidates, it.known)
    assert len(none) == 0


# --- p-values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [Shadow(), Shadow(confidence=0.6)], ids=["all", "sure"])
def test_p_values_hold_over_targets(attack: Shadow) -> None:
    # each shadow model in turn is the target of the others, as exchangeable as can be
    it = overfit_world(n_models=16, n_members=150, n_nonmembers=150, n_population=0)
    light = dataclasses.replace(attack, classifier=GaussianNB())
    small = []
    for k in range(0, 16, 2):
        rest = [i for i in range(16) if i != k]
        known = Pool([it.known.models[i] for i in rest], it.known.records, it.known.member[rest])
        scores = dataclasses.replace(light, seed=k).run(it.known.models[k], it.known.records, known)
        assert scores.p_values is not None
        out = ~it.known.member[k][np.isin(it.known.records.ids, scores.ids)]
        small.append([(scores.p_values[out] <= a).mean() for a in (0.01, 0.05, 0.1, 0.5)])
    rates, errors = np.mean(small, axis=0), np.std(small, axis=0) / np.sqrt(7)
    # 3.5 standard errors over the eight targets
    assert (rates <= np.array([0.01, 0.05, 0.1, 0.5]) + 3.5 * errors).all()
    assert (rates >= np.array([0.0, 0.02, 0.05, 0.35])).all()


def test_p_values_follow_the_scores_and_find_members() -> None:
    it = overfit_world()
    scores = Shadow().run(it.target, it.candidates, it.known)
    assert scores.p_values is not None
    assert stats.spearmanr(scores.values, scores.p_values).statistic < -0.999
    members = it.split.is_member(scores.ids)
    found = scores.p_values <= 0.1
    assert found[members].mean() > found[~members].mean() + 0.1


def test_ties_with_what_nonmembers_score_count_against_the_record() -> None:
    # label only: a few different answers, thousands of equal scores
    target, candidates, known, truth = memoriser_world(label_only, n_models=12)
    scores = Shadow().run(target, candidates, known)
    assert scores.p_values is not None
    for level in (0.01, 0.05, 0.1, 0.5):
        assert (scores.p_values[~truth] <= level).mean() <= level + 3.5 * np.sqrt(level / 200)


def test_without_models_to_spare_there_are_no_p_values() -> None:
    it = overfit_world(n_models=6)
    assert Shadow().run(it.target, it.candidates, it.known).p_values is None
    it = overfit_world(n_models=8)
    models = Shadow().trained(it.known)
    assert len(models.null) and Shadow(calibration=0).trained(it.known).null.size == 0
    # two of eight models say what is usual, on what they were not trained on
    fitting, held = Shadow()._cut(8)
    assert len(held) == 2 and sorted([*fitting, *held]) == list(range(8))
    assert len(models.null) == (~it.known.member[held]).sum()
    used = module._balanced_sides(it.known.member, 0)[0][fitting]
    assert models.counts.sum(axis=0).tolist() == [used.sum()] * 2


def test_who_is_sure_is_compared_with_who_is_sure() -> None:
    it = overfit_world(n_models=8)
    models = Shadow(confidence=0.7).trained(it.known)
    scores = models.score(it.target, it.candidates)
    sure = models.null[np.maximum(models.null, 1 - models.null) >= 0.7]
    assert 0 < len(sure) < len(models.null)
    np.testing.assert_allclose(scores.p_values, metrics.rank_p_values(scores.values, sure))


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"classifier": LinearSVC()},
        {"classifier": "forest"},
        {"features": "sorted"},
        {"min_per_class": 0},
        {"confidence": 0.4},
        {"confidence": 1.1},
        {"calibration": 1.0},
        {"seed": -1},
    ],
)
def test_refused_hyper_parameters(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        Shadow(**wrong)


def test_refused_pools() -> None:
    known = small_pool()
    target = Answers(np.full((3, 4), 0.25))
    records = Records.from_arrays(np.arange(3)[:, None], [0, 1, 0])
    with pytest.raises(InvalidInput):
        Shadow().run(target, records, None)
    with pytest.raises(MissingModels):
        Shadow().run(target, records, Pool.of_population(records))
    everything = Pool(known.models, known.records, np.ones_like(known.member))
    with pytest.raises(MissingModels, match="and not on others"):
        Shadow().run(target, records, everything)
    with pytest.raises(InvalidInput, match="4 classes"):
        Shadow().run(Answers(np.full((3, 5), 0.2)), records, known)
    with pytest.raises(InvalidInput, match="at least one record"):
        Shadow().run(target, records[:0], known)
    with pytest.raises(InvalidInput, match="NaN"):
        Shadow().run(Answers(np.full((3, 4), np.nan)), records, known)


def test_numbers_are_finite_whatever_is_shown() -> None:
    known = small_pool()
    odd = np.array([[0.0] * 4, [1.0] * 4, [1e-300, 1.0, 0, 0], [0, 0, 0, 1e-12], [5.0, 2, 0, 1]])
    records = Records.from_arrays(np.arange(5)[:, None], [0, 1, 0, 3, 1])
    for attack in (Shadow(), Shadow(with_loss=True), Shadow(features="sorted_top3")):
        values = attack.run(Answers(odd), records, known).values
        assert ((values >= 0) & (values <= 1)).all()


def test_answers_that_are_minus_infinity() -> None:
    class Raw(Answers):
        def log_probabilities(self, x: Any) -> Floats:
            with np.errstate(divide="ignore"):
                return np.log(self._table[np.asarray(x)[:, 0].astype(int)])

    known = small_pool()
    target = Raw(np.eye(4))
    records = Records.from_arrays(np.arange(4)[:, None], [0, 1, 0, 1])
    assert np.isfinite(Shadow(with_loss=True).run(target, records, known).values).all()


# --- P4 ------------------------------------------------------------------------------------------


def purchases(n: int, n_classes: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Binary records around a pattern for each class, a third of the bits redrawn."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2, (n_classes, 60))
    y = rng.integers(0, n_classes, n)
    noise = rng.random((n, 60)) < 0.75
    return np.where(noise, rng.integers(0, 2, (n, 60)), patterns[y]).astype(np.uint8), y


@pytest.mark.slow
def test_more_classes_larger_gap_more_precision() -> None:
    n, sizes, gaps, precisions = 300, [2, 4, 8, 16, 32], [], []
    for classes in sizes:
        x, y = purchases(8 * n, classes, seed=classes)
        records = Records.from_arrays(x, y)
        rng = np.random.default_rng(classes)
        own = np.arange(8 * n) < 2 * n
        known_records = records[~own]

        def model(rows: NDArray[np.int64], source: Records, classes: int = classes) -> BlackBox:
            # regularized less than is wise, as services do
            fitted = LogisticRegression(C=1.0, max_iter=300).fit(source.x[rows], source.y[rows])
            return EstimatorModel(fitted, n_classes=classes)

        member = np.zeros((6, 6 * n), dtype=bool)
        for row in member:
            row[rng.permutation(6 * n)[:n]] = True
        target = model(np.arange(n), records)
        known = Pool(
            [model(np.flatnonzero(r), known_records) for r in member], known_records, member
        )
        scores = Shadow().run(target, records[own], known)
        truth = np.arange(2 * n) < n
        called = scores.values > 0.5
        precisions.append((called & truth).sum() / called.sum())
        right = target.log_probabilities(x[: 2 * n]).argmax(axis=1) == y[: 2 * n]
        gaps.append(right[:n].mean() - right[n:].mean())
    assert stats.spearmanr(sizes, gaps).statistic > 0.8
    assert stats.spearmanr(gaps, precisions).statistic > 0.8
    # 300 and 300: about 4 standard errors of 0.03 between the ends
    assert precisions[-1] > precisions[0] + 0.12


# --- the contract, before the attack is on the list ----------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(
    "attack",
    [Shadow(), Shadow(features="sorted_top3", with_loss=True), Shadow(per_class=False)],
    ids=["vector", "top3", "pooled"],
)
def test_members_score_higher_and_nobody_does_unseen(attack: Shadow, n_classes: int) -> None:
    def area(it: World) -> metrics.Estimate:
        scores = attack.run(it.target, it.candidates, it.known)
        truth = it.split.is_member(scores.ids)
        return metrics.auc(scores.values[truth], scores.values[~truth], level=0.99)

    seen, unseen = area(overfit_world(n_classes=n_classes)), area(unseen_world(n_classes=n_classes))
    assert seen.low is not None and seen.low > 0.5
    assert unseen.low is not None and unseen.high is not None
    assert unseen.low <= 0.5 <= unseen.high


def test_shuffled_candidates_shuffle_the_scores() -> None:
    it = overfit_world(n_models=8)
    order = np.random.default_rng(0).permutation(len(it.candidates))
    one = Shadow().run(it.target, it.candidates, it.known)
    two = Shadow().run(it.target, it.candidates[order], it.known)
    np.testing.assert_array_equal(one.ids[order], two.ids)
    np.testing.assert_allclose(one.values[order], two.values, rtol=1e-9)


def test_frozen_and_its_repr_round_trips() -> None:
    attack = Shadow(features="sorted_top3", confidence=0.7, seed=3)
    assert eval(repr(attack), vars(module)) == attack
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.seed = 1  # type: ignore[misc]


def test_equal_answers_tie_wherever_they_stand() -> None:
    it = overfit_world(n_classes=4)
    made = Shadow(per_class=False).trained(it.known)
    table = np.log(np.full((203, 4), 0.25))
    table[::3] = np.log([0.7, 0.1, 0.1, 0.1])
    scores = made.p_in(table, np.zeros(203, dtype=np.int64))
    assert len(np.unique(scores)) == 2
