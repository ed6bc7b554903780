"""Indirect inference: closed forms, naive oracles, noise that must stay noise, and a record that is
found by what is said of others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import nn

from vestige import metrics
from vestige.attacks.gmia import smooth_log_p_values
from vestige.attacks.indirect import (
    Descent,
    Enhancing,
    IndirectGMIA,
    _correlation,
    _rank,
    _References,
    _shares,
    _Space,
    representatives,
)
from vestige.errors import InvalidInput, MissingModels
from vestige.models import Predictions, TorchModel
from vestige.pool import Pool
from vestige.records import Records, concatenate
from vestige.signals import true_class_margin
from vestige.synthesis import Binary, Continuous, Integer, OneHot
from vestige.training import MLP, EstimatorRecipe, TorchRecipe, bootstraps, train_many
from vestige.training.influence import hinge

NORMAL = np.random.default_rng


def records(x: Any, y: Any = None, ids: Any = None) -> Records:
    x = np.asarray(x)
    return Records.from_arrays(x, np.zeros(len(x), dtype=int) if y is None else y, ids=ids)


def linear(weight: Any) -> TorchModel:
    """p_1 = sigmoid(w'x), no more."""
    net = nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.as_tensor(np.asarray(weight)[None]))
    return TorchModel(net, outputs="logits")


def space_of(record: Any, others: Any, schema: Any = None, least: float = 0.1) -> _Space:
    return _Space(records([record]), records(others), schema, least, NORMAL(0))


# --- influence -----------------------------------------------------------------------------------


def test_influence_is_the_share_of_references_that_go_up() -> None:
    rng = NORMAL(0)
    weights = rng.normal(size=(2, 7, 3)).astype(np.float32)
    before, after = ([linear(w) for w in side] for side in weights)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    for label in (0, 1):
        found = _References(before, after, before, label).influence(x)
        p = expit(np.einsum("skd,nd->skn", weights, x))
        p = p if label else 1 - p
        np.testing.assert_allclose(found, (p[1] > p[0]).mean(axis=0))
        assert np.isin(np.round(7 * found, 9), np.arange(8)).all()
        assert len(np.unique(found)) > 3


def test_influence_of_nothing_is_zero() -> None:
    models = [linear(w) for w in NORMAL(0).normal(size=(5, 3))]
    x = NORMAL(1).normal(size=(20, 3)).astype(np.float32)
    assert not _References(models, models, models, 1).influence(x).any()


def test_saturated_probabilities_are_still_in_order() -> None:
    # both probabilities are 1 in float64
    low, high = linear([50.0]), linear([60.0])
    x = np.ones((1, 1), dtype=np.float32)
    assert _References([low], [high], [low], 1).influence(x) == 1
    assert _References([low], [low], [high], 1).influence(x) == 0


def test_halves_share_no_reference_and_keep_twins_together() -> None:
    models = [linear([float(k)]) for k in range(9)]
    every = _References(models, models, models, 1)
    first, second = every.halves(NORMAL(0))
    assert len(first.models) == 4 and len(second.models) == 5
    assert {id(m) for m in (*first.models, *second.models)} == {id(m) for m in models}
    for half in (first, second):
        assert half.models == half.positive == half.control


# --- where queries lie ---------------------------------------------------------------------------

SCHEMA = (Integer(1, 4), OneHot(3), Continuous(-1.0, 2.0), Binary())
ROW = [2.0, 0.0, 1.0, 0.0, 0.5, 1.0]


def test_small_spaces_are_drawn_from_uniformly() -> None:
    space = space_of(ROW, [ROW, [1.0, 1, 0, 0, -1.0, 0]], SCHEMA)
    x = space.drawn(6000, 0.5, NORMAL(1))
    assert len(x) > 5900  # those near the record are left out
    assert (x[:, 1:4].sum(axis=1) == 1).all() and np.isin(x[:, 1:4], (0, 1)).all()
    for column, values in ((0, range(1, 5)), (5, (0, 1))):
        times = [int((x[:, column] == v).sum()) for v in values]
        assert sum(times) == len(x) and stats.chisquare(times).pvalue > 1e-3
    assert stats.chisquare(x[:, 1:4].sum(axis=0)).pvalue > 1e-3
    assert stats.kstest(x[:, 4], "uniform", (-1, 3)).pvalue > 1e-3


def test_marginals_are_those_of_the_pools_records() -> None:
    rng = NORMAL(0)
    hot = np.eye(3)[rng.choice(3, 400, p=[0.6, 0.3, 0.1])]
    grade = rng.choice([1.0, 4.0], 400, p=[0.8, 0.2])
    others = np.column_stack([grade, hot, rng.normal(size=400), hot[:, 0]])
    schema = (Integer(1, 4), OneHot(3), Continuous(-9.0, 9.0), Binary())
    space = space_of([4.0, 0, 0, 1, 8.0, 0], others, schema, least=0.01)
    x = space.drawn(8000, 0.5, NORMAL(1), "marginals")
    assert (x[:, 1:4].sum(axis=1) == 1).all() and np.isin(x[:, 4], others[:, 4]).all()
    # draws that come again are left out, which makes the frequent ones less so
    few = space.drawn(300, 0.5, NORMAL(1), "marginals")
    np.testing.assert_allclose(few.mean(axis=0), others.mean(axis=0), atol=0.15)
    assert np.corrcoef(others[:, [1, 5]].T)[0, 1] > 0.99
    assert abs(np.corrcoef(few[:, [1, 5]].T)[0, 1]) < 0.2


def test_noise_and_uniform_draws_can_be_asked_for() -> None:
    small = space_of(ROW, [ROW, [1.0, 1, 0, 0, -1.0, 0]], SCHEMA)
    near = small.drawn(500, 0.2, NORMAL(1), "noise")
    assert np.abs(near[:, 4] - 0.5).max() < 1.0  # uniform draws go to -1 and 2
    wide = space_of(np.zeros(100), NORMAL(0).normal(size=(50, 100)))
    far = wide.drawn(500, 0.2, NORMAL(1), "uniform")
    assert far.std() > 3 * wide.drawn(500, 0.2, NORMAL(1)).std()


def test_a_query_that_is_rounded_onto_the_record_is_not_asked() -> None:
    # the median distance is 7, so that nothing nearer than 0.35 may be asked
    space = space_of([5.0], [[1.0], [3.0], [10.0]], (Integer(1, 10),), least=0.05)
    everyone = Everywhere(lambda x: np.ones(len(x)))

    def flat(x: Any) -> Any:
        return np.ones(len(x)), np.zeros_like(x)

    relaxed = np.array([[5.45], [8.2]])
    assert space.far(space.projected(relaxed)).all()
    x, found = IndirectGMIA(steps=3)._optimized(relaxed, flat, everyone, space)  # type: ignore[arg-type]
    assert found.tolist() == [False, True] and x[1] == 8


class Everywhere(NamedTuple):
    """References whose influence is given."""

    influence: Callable[[Any], Any]


def test_large_spaces_are_drawn_from_around_the_record() -> None:
    d = 100
    others = NORMAL(0).normal(size=(500, d)) * np.linspace(0.5, 2, d)
    record = np.full(d, 0.1)
    space = space_of(record, others)
    x = space.drawn(2000, 0.5, NORMAL(1))
    assert len(x) == 2000
    np.testing.assert_allclose(x.mean(axis=0), record, atol=0.15)
    np.testing.assert_allclose(x.std(axis=0), 0.5 * others.std(axis=0), rtol=0.1)
    far = space.drawn(2000, 50.0, NORMAL(1))
    assert (far >= others.min(axis=0)).all() and (far <= others.max(axis=0)).all()


def test_pictures_have_one_range_for_all_pixels_and_stay_whole_numbers() -> None:
    pixels = NORMAL(0).integers(0, 200, (30, 1, 9, 9)).astype(np.uint8)
    pixels[:, :, 0] = 0
    space = _Space(records(pixels[:1] // 2), records(pixels), None, 0.1, NORMAL(0))
    x = space.inputs(space.drawn(200, 0.5, NORMAL(1)))
    assert x.dtype == np.uint8 and x.shape == (200, 1, 9, 9)
    # the border, black in all of them, may be lit too
    assert x[:, :, 0].std() > 0 and x.max() <= 199


def test_columns_are_read_off_the_records_where_no_schema_is_given() -> None:
    others = np.column_stack([NORMAL(0).integers(3, 9, 50), NORMAL(0).normal(size=50)])
    # the record is outside the others' range
    space = space_of([12, 0.0], others)
    x = space.drawn(500, 0.5, NORMAL(1))
    assert (x[:, 0] == np.rint(x[:, 0])).all() and x[:, 0].min() == 3 and x[:, 0].max() == 12


def test_no_query_is_near_the_record_even_where_no_distance_is_asked_for() -> None:
    others = NORMAL(0).normal(size=(200, 2))
    record = np.zeros(2)
    space = space_of(record, others, least=0.5)
    apart = np.median([np.linalg.norm(a - b) for a in others for b in others if a is not b])
    x = space.drawn(3000, 0.5, NORMAL(1))
    assert np.linalg.norm(x, axis=1).min() >= 0.45 * apart
    inside = 0.1 * NORMAL(2).normal(size=(50, 2))
    size = np.linalg.norm(space.projected(inside), axis=1)
    np.testing.assert_allclose(size, size[0])
    assert size[0] >= 0.45 * apart and not space.far(inside).any()
    binary = space_of([1, 0], [[1, 0], [1, 0], [1, 0]], (Binary(), Binary()), least=0.5)
    assert len(binary.drawn(500, 0.5, NORMAL(0))) == 3


def test_no_query_is_drawn_twice() -> None:
    x = space_of(ROW, [ROW, ROW], (Integer(1, 4), OneHot(3), Integer(0, 1), Binary())).drawn(
        2000, 0.5, NORMAL(0)
    )
    # 4 x 3 x 2 x 2 records, the own one among them if 0.5 were allowed
    assert len(x) == len(np.unique(x, axis=0)) == 48


def test_projection_is_to_the_nearest_point_that_is_allowed() -> None:
    space = space_of(ROW, [ROW, [1.0, 1, 0, 0, -1.0, 0]], SCHEMA)
    rng = NORMAL(0)
    x = 3 * rng.normal(size=(40, 6))
    p = space.projected(x)
    np.testing.assert_allclose(p[:, 1:4].sum(axis=1), 1)
    assert (p[:, 1:4] >= 0).all() and (p[:, 0] >= 1).all() and (p[:, 4] <= 2).all()
    np.testing.assert_allclose(space.projected(p), p, atol=1e-12)
    snapped = space.snapped(p)
    assert np.isin(snapped[:, 0], (1, 2, 3, 4)).all() and (snapped[:, 1:4].sum(axis=1) == 1).all()
    assert (snapped[:, 1:4].argmax(axis=1) == p[:, 1:4].argmax(axis=1)).all()


def test_shares_are_the_nearest_of_all_shares() -> None:
    rng = NORMAL(0)
    x = 2 * rng.normal(size=(20, 4))
    found = _shares(x)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    others = rng.dirichlet(np.ones(4), 5000)
    for row, near in zip(x, found, strict=True):
        assert np.linalg.norm(row - near) <= np.linalg.norm(row - others, axis=1).min() + 1e-9


# --- clusters ------------------------------------------------------------------------------------


def test_representatives_are_the_middles_of_clusters() -> None:
    rng = NORMAL(0)
    centers = np.eye(4) + 0.1
    name = rng.integers(0, 4, 80)
    features = centers[name] * rng.uniform(0.5, 2, (80, 1)) + 0.03 * rng.random((80, 4))
    found = representatives(features, 4)
    assert len(found) == 4 and set(name[found]) == {0, 1, 2, 3}
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row in found:
        rows = np.flatnonzero(name == name[row])
        mean = [(1 - unit[i] @ unit[rows].T).sum() for i in rows]
        assert rows[int(np.argmin(mean))] == row


def test_representatives_of_few_are_all_and_zeros_are_no_trouble() -> None:
    assert representatives(np.ones((3, 2)), 5).tolist() == [0, 1, 2]
    features = np.zeros((6, 3))
    features[:3] = np.eye(3)
    found = representatives(features, 3)
    assert len(found) <= 3 and np.isin(found, np.arange(6)).all()
    # equal rows: the first one
    assert representatives(np.ones((6, 3)), 1).tolist() == [0]


# --- descent -------------------------------------------------------------------------------------


def never_rises(descent: Descent, n: int, steps: int = 200) -> list[Any]:
    values = [descent.value.copy()]
    for _ in range(steps):
        descent.step(np.arange(n))
        values.append(descent.value.copy())
    assert (np.diff(values, axis=0) <= 0).all()
    return values


def test_descent_finds_the_least_value_of_a_bowl_and_never_climbs() -> None:
    rng = NORMAL(0)
    scale, middle = np.array([1.0, 100.0, 0.01]), np.array([0.3, -0.2, 5.0])

    def bowl(x: Any) -> Any:
        return (scale * (x - middle) ** 2).sum(axis=1), 2 * scale * (x - middle)

    def box(x: Any) -> Any:
        return np.clip(x, -1, 1)

    descent = Descent(bowl, box, rng.normal(size=(8, 3)), np.full(3, 0.05))
    values = never_rises(descent, 8, 600)
    assert values[0].min() > values[-1].max()
    np.testing.assert_allclose(descent.x, [[0.3, -0.2, 1.0]] * 8, atol=0.02)
    np.testing.assert_allclose(descent.value, bowl(descent.x)[0])


def test_descent_moves_only_the_points_asked_for_and_stops_where_all_is_flat() -> None:
    descent = Descent(
        lambda x: (np.abs(x).sum(axis=1), np.sign(x)), lambda x: x, np.ones((3, 2)), np.ones(2)
    )
    descent.step(np.array([1]))
    assert (descent.x[[0, 2]] == 1).all() and (descent.x[1] == 0).all()
    wall = Descent(
        lambda x: (-(x[:, 0] ** 2), np.ones_like(x)), lambda x: x, np.ones((1, 1)), np.ones(1)
    )
    assert not wall.stuck.any()
    for _ in range(30):
        wall.step(np.array([0]))
    assert wall.stuck.all() and (wall.x == 1).all()


def test_hinge_sum_never_rises_at_steps_that_are_taken() -> None:
    rng = NORMAL(0)
    weights = 3 * rng.normal(size=(12, 30)) / np.sqrt(30)
    models = [linear(w) for w in weights]
    after = [linear(w + 0.5 * rng.normal(size=30) / np.sqrt(30)) for w in weights]
    loss = hinge(after, models, 1, 0.1)
    assert loss is not None
    space = space_of(np.zeros(30), rng.normal(size=(50, 30)))
    descent = Descent(loss, space.projected, space.drawn(9, 0.5, rng), 0.01 * space.range)
    values = never_rises(descent, 9)
    assert (values[-1] < 0.8 * values[0]).all() and values[-1].sum() < 0.5 * values[0].sum()
    assert space.far(descent.x).all()


# --- p-values ------------------------------------------------------------------------------------


def enhancing_of(null: Any, x: Any = None) -> Enhancing:
    n = null.shape[1]
    ones = np.ones(n)
    x = np.arange(n)[:, None] if x is None else x
    return Enhancing(x, ones, ones, ones > 2, ones, null, _correlation(null))


def test_correlation_is_that_of_normal_scores() -> None:
    rng = NORMAL(0)
    null = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4))
    found = _correlation(np.exp(null))  # ranks do not see the exponential
    scores = stats.norm.ppf(stats.rankdata(null, axis=0) / 31)
    np.testing.assert_allclose(found, np.corrcoef(scores.T), atol=1e-12)
    tied = null.copy()
    tied[:, 2] = 5.0
    found = _correlation(tied)
    assert (found[2] == 1).all() and (found[:, 2] == 1).all() and found[0, 1] < 1


def test_one_query_repeated_says_no_more_than_once() -> None:
    null = NORMAL(0).normal(size=(40, 1))
    target = Predictions(logits=np.tile([0.0, 1.2], (5, 1)))
    attack = IndirectGMIA()
    once = attack.p_values(target, enhancing_of(null), 1)
    often = attack.p_values(target, enhancing_of(np.tile(null, 5)), 1)
    assert target.n_queries == 6
    assert float(often.log_p) == pytest.approx(float(once.log_p), rel=1e-3)
    expected = smooth_log_p_values(np.array([1.2]), null[:, 0])[0]
    assert float(once.log_p) == pytest.approx(expected, rel=1e-9)


def test_p_values_are_those_of_the_losses_combined() -> None:
    rng = NORMAL(1)
    null = rng.normal(size=(25, 3)) + rng.normal(size=(25, 1))
    phi = np.array([1.5, 0.2, 2.0])
    target = Predictions(logits=np.column_stack([phi, np.zeros(3)]))
    found = IndirectGMIA().p_values(target, enhancing_of(null), 0)
    log_p = [smooth_log_p_values(phi[j : j + 1], null[:, j])[0] for j in range(3)]
    r = np.corrcoef(stats.norm.ppf(stats.rankdata(null, axis=0) / 26).T)[np.triu_indices(3, 1)]
    variance = 12 + 2 * (3.263 * r + 0.710 * r**2 + 0.027 * r**3).sum()
    c, f = variance / 12, 72 / variance
    assert found.scale == pytest.approx(c) and found.freedom == pytest.approx(f)
    expected = stats.chi2.sf(-2 * np.sum(log_p) / c, f)
    assert np.exp(float(found.log_p)) == pytest.approx(expected)


def test_ranks_are_exact_for_exchangeable_models() -> None:
    rng, k, trials = NORMAL(0), 19, 4000
    shared = rng.normal(size=(trials, k + 1, 1))
    margins = shared + rng.normal(size=(trials, k + 1, 3))
    p = np.array([_rank(m[0], m[1:]) for m in margins])
    assert np.isin(np.round(p * (k + 1), 6), np.arange(1, k + 2)).all()
    for level in (0.05, 0.2, 0.5):
        band = stats.binom.interval(0.999, trials, level)
        assert band[0] <= (p <= level).sum() <= band[1]
    assert _rank(np.full(3, 9.0), margins[0, 1:]) == 1 / 20
    assert _rank(np.full(3, -9.0), margins[0, 1:]) == 1
    # a reference that answers alike counts against the record
    best = margins[0, 1:][margins[0, 1:].sum(axis=1).argmax()] + 9.0
    assert _rank(best, np.vstack([best, margins[0, 2:]])) == 2 / 20


# --- noise stays noise ---------------------------------------------------------------------------


def noise_world(seed: int, d: int = 300, k: int = 20) -> tuple[Any, ...]:
    """Linear models, and twins that differ from them by noise: no record had an effect."""
    rng = NORMAL(seed)
    weights = rng.normal(size=(k + 1, d)) / np.sqrt(d)
    models = [linear(w) for w in weights]
    after = [linear(w + 0.5 * rng.normal(size=d) / np.sqrt(d)) for w in weights[:k]]
    space = space_of(rng.normal(size=d), rng.normal(size=(100, d)))
    return models[-1], _References(models[:k], after, models[:k], 1), space, rng


def searched(attack: IndirectGMIA, seed: int, reuse: bool) -> tuple[float, float, float, int]:
    """Influence on the references searched with and on the held-out ones, and a target's p."""
    target, every, space, rng = noise_world(seed)
    first, second = every.halves(rng)
    half, held = (every, every) if reuse else (first, second)
    x, _ = attack._searched(half, space, rng)
    asked = space.inputs(x)
    if not len(x):
        return np.nan, np.nan, 1.0, 0
    found = replace(enhancing_of(held.margins(held.models, asked), asked))
    p = float(np.exp(attack.p_values(target, found, 1).log_p))
    on = [side.influence(asked).mean() for side in (half, held)]
    return on[0], on[1], p, len(x)


NOISE = IndirectGMIA(n_random=60, n_clusters=4, theta=0.9, steps=150)


def test_noise_is_searched_out_but_does_not_hold_on_the_other_half() -> None:
    _, every, space, rng = noise_world(0)
    first, second = every.halves(rng)
    attack = replace(NOISE, n_clusters=20)
    x, optimized = attack._searched(first, space, rng)
    assert len(x) > 10 and optimized.mean() > 0.9
    asked = space.inputs(x)
    assert first.influence(asked).mean() > 0.9
    assert 0.3 <= second.influence(asked).mean() <= 0.7
    # so that nothing is asked
    assert not len(attack._judged(x, optimized, first, second, space))
    assert len(attack._judged(x, optimized, first, first, space)) == len(x)


@pytest.mark.slow
def test_false_positives_of_noise_with_split_and_with_reused_references() -> None:
    worlds, level = 160, 0.1
    split = [searched(NOISE, seed, False) for seed in range(worlds)]
    reuse = [searched(NOISE, seed, True) for seed in range(worlds)]
    assert np.nanmean([s[0] for s in split]) > 0.9
    assert 0.3 <= np.nanmean([s[1] for s in split]) <= 0.7
    rates = [metrics.rate(sum(s[2] <= level for s in side), worlds) for side in (split, reuse)]
    assert rates[0].low is not None and rates[0].high is not None and rates[1].low is not None
    assert rates[0].low <= level <= rates[0].high
    assert rates[1].low > level


# --- a record that was trained on ----------------------------------------------------------------

RECIPE = TorchRecipe(MLP(2, 2, (8,), "tanh"), epochs=30, batch_size=20, optimizer="adam", lr=0.02)
SMALL = IndirectGMIA(recipe=RECIPE, n_random=400, n_clusters=12, theta=0.9, steps=50)
N, OUTLIER = 120, [2.0, 2.5]


def plane(seed: int) -> Records:
    rng = NORMAL(seed)
    x = rng.normal(size=(N, 2))
    y = (x[:, 0] + 0.4 * rng.normal(size=N) > 0).astype(np.int64)
    return Records.from_arrays(x.astype(np.float32), y, classes=("0", "1"))


@functools.cache
def world() -> tuple[Records, Pool[Any], Pool[Any]]:
    """An outlier, references without it, and 40 targets of which the first 20 saw it."""
    outlier = Records.from_arrays(
        np.array([OUTLIER], np.float32), [0], ids=[9999], classes=("0", "1")
    )
    known = train_many(RECIPE, plane(0), bootstraps(20, N, 60, 1), seed=1)
    own = concatenate(plane(5), outlier)
    member = np.zeros((40, N + 1), dtype=bool)
    for i in range(40):
        member[i, NORMAL([7, i]).permutation(N)[: 60 - (i < 20)]] = True
    member[:20, N] = True
    return outlier, known, train_many(RECIPE, own, member, seed=2)


@functools.cache
def found() -> Enhancing:
    return SMALL.enhancing(*world()[:2])


class Watched:
    """A target that keeps what it was asked."""

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, list[Any]()

    @property
    def n_queries(self) -> int:
        return sum(len(x) for x in self.asked)

    def log_probabilities(self, x: Any) -> Any:
        self.asked.append(np.array(x))
        return self.model.log_probabilities(x)


def test_members_are_told_by_what_is_said_of_others() -> None:
    outlier, _, targets = world()
    queries = found()
    assert len(queries) and (queries.influence > 0.9).all()
    assert (queries.searched_influence > 0.9).all() and queries.distance.min() > 0.1
    scores = np.array([-float(SMALL.p_values(m, queries, 0).log_p) for m in targets.models])
    estimate = metrics.auc(scores[:20], scores[20:])
    assert estimate.low is not None and estimate.low > 0.7


def test_the_target_is_asked_about_others_only_and_each_once() -> None:
    outlier, known, targets = world()
    target = Watched(targets.models[0])
    queries = found()
    assert not target.asked
    scores = SMALL.run(target, outlier, known)
    assert target.n_queries == len(queries)
    np.testing.assert_array_equal(target.asked[0], queries.x)
    assert target.asked[0].dtype == outlier.x.dtype
    away = np.linalg.norm(target.asked[0] - outlier.x, axis=1)
    np.testing.assert_allclose(away, queries.distance, rtol=1e-5)
    near = 0.09 * np.median(np.linalg.norm(plane(0).x[:, None] - plane(0).x, axis=2))
    assert away.min() > near
    expected = -float(SMALL.p_values(targets.models[0], queries, 0).log_p)
    assert scores.values.tolist() == [expected] and scores.ids.tolist() == [9999]
    margins = true_class_margin(
        targets.models[0].log_probabilities(queries.x), 0 * away.astype(int)
    )
    assert scores.p_values is not None and scores.p_values[0] == _rank(margins, queries.null)


def test_the_null_is_what_the_held_out_half_answers() -> None:
    queries, (_, known, _) = found(), world()
    assert queries.null.shape == (10, len(queries))
    y = np.zeros(len(queries), dtype=np.int64)
    every = np.stack([true_class_margin(m.log_probabilities(queries.x), y) for m in known.models])
    rows = [np.flatnonzero((every == row).all(axis=1)) for row in queries.null]
    assert all(len(r) == 1 for r in rows) and len({int(r[0]) for r in rows}) == 10
    np.testing.assert_allclose(queries.correlation, _correlation(queries.null))


def test_references_are_searched_and_judged_with_at_once_where_they_are_reused() -> None:
    outlier, known, _ = world()
    queries = replace(SMALL, reuse_references=True).enhancing(outlier, known)
    assert queries.null.shape == (20, len(queries)) and len(queries)
    np.testing.assert_array_equal(queries.influence, queries.searched_influence)


def test_same_seed_same_queries_whatever_else_is_scored() -> None:
    outlier, known, targets = world()
    again = SMALL.enhancing(outlier, known)
    for field in dataclasses.fields(Enhancing):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found(), field.name))
    other = replace(SMALL, seed=1).enhancing(outlier, known)
    assert other.x.shape != again.x.shape or (other.x != again.x).any()
    both = concatenate(replace(plane(9)[:1], ids=np.array([5000])), outlier)
    alone, among = (SMALL.run(targets.models[0], r, known) for r in (outlier, both))
    assert among.values[among.ids == 9999].tolist() == alone.values.tolist()


def test_queries_can_be_capped() -> None:
    outlier, known, targets = world()
    assert len(found()) > 3
    capped = replace(SMALL, max_queries=3)
    queries = capped.enhancing(outlier, known)
    assert len(queries) == 3 and queries.null.shape == (10, 3)
    assert queries.influence.mean() >= found().influence.mean()
    target = Watched(targets.models[0])
    capped.run(target, outlier, known)
    assert target.n_queries == 3


def test_references_that_saw_the_record_are_not_used() -> None:
    outlier, known, _ = world()
    inside = replace(outlier, ids=np.array([N]))
    joined = concatenate(known.records, inside)
    saw = np.zeros((20, 1), dtype=bool)
    saw[:7] = True
    # under another id: known by its content
    pool = Pool(known.models, joined, np.hstack([known.member, saw]))
    # 13 are left: 6 to search with and 7 to judge with
    assert SMALL.enhancing(outlier, pool).null.shape[0] == 7
    saw[:17] = True
    with pytest.raises(MissingModels, match="expected at least 4 reference models"):
        SMALL.enhancing(outlier, Pool(known.models, joined, np.hstack([known.member, saw])))


def test_more_training_alone_looks_like_influence_without_a_control() -> None:
    # no gradient comes from the origin: a record without any effect on these models
    recipe = TorchRecipe(partial(nn.Linear, 2, 2, bias=False), epochs=1, batch_size=40, lr=0.2)
    known = train_many(recipe, plane(0), bootstraps(12, N, 60, 1), seed=1)
    nothing = records(np.zeros((1, 2), np.float32), [1], [9999])
    attack = IndirectGMIA(recipe=recipe, n_random=200, n_clusters=20, theta=0.0, steps=0)
    original = replace(attack, control="original").enhancing(nothing, known)
    sure = original.null.mean(axis=0) > 0.2
    assert sure.any() and original.influence[sure].mean() > 0.95
    paired = attack.enhancing(nothing, known)
    sure = paired.null.mean(axis=0) > 0.2
    # rounding decides
    assert not sure.any() or 0.2 < paired.influence[sure].mean() < 0.8


def test_queries_are_optimized_where_random_ones_are_not_enough() -> None:
    outlier, known, _ = world()
    few = replace(SMALL, n_random=6, n_clusters=6, enough=6)
    at_random = replace(few, steps=0).enhancing(outlier, known)
    queries = few.enhancing(outlier, known)
    assert not at_random.optimized.any() and len(at_random) < 6
    assert len(queries) > len(at_random) and queries.optimized.any()
    assert not replace(few, enough=0).enhancing(outlier, known).optimized.any()


def test_estimators_are_searched_at_random_only() -> None:
    outlier = world()[0]
    recipe = EstimatorRecipe(LogisticRegression(C=10.0))
    known = train_many(recipe, plane(0), bootstraps(12, N, 40, 1), seed=1)
    attack = replace(SMALL, recipe=recipe)
    queries = attack.enhancing(outlier, known)
    assert len(queries) and not queries.optimized.any() and (queries.influence > 0.9).all()


def test_references_may_be_trained_anew_with_the_record() -> None:
    outlier, known, targets = world()
    attack = replace(SMALL, positive="retrained", n_random=60, n_clusters=6, enough=1)
    queries = attack.enhancing(outlier, known)
    joined = concatenate(replace(known.records, ids=np.arange(N)), outlier)
    with_it, without = (
        train_many(RECIPE, joined, np.column_stack([known.member, np.full(20, b)]), seed=0).models
        for b in (True, False)
    )
    every = _References(list(known.models), list(with_it), list(without), 0)
    # ten searched and ten held-out ones are all twenty
    expected = every.influence(queries.x)
    np.testing.assert_allclose((queries.influence + queries.searched_influence) / 2, expected)


def test_types_are_kept_through_optimization() -> None:
    rng = NORMAL(3)
    schema = (Integer(1, 10), OneHot(8), Binary(), Continuous(0.0, 1.0))
    hot = np.eye(8)[rng.integers(0, 8, N)]
    sides = [rng.integers(1, 11, N), hot, rng.integers(0, 2, N), rng.random(N)]
    x = np.column_stack(sides).astype(np.float32)
    weights = rng.normal(size=(9, 11)) * ([0.1] + [1.0] * 10)
    models = [linear(w) for w in weights]
    after = [linear(w + 0.3 * rng.normal(size=11) * ([0.1] + [1.0] * 10)) for w in weights]
    every = _References(models, after, models, 1)
    attack = IndirectGMIA(schema=schema, n_random=40, n_clusters=40, enough=41, theta=0.7)
    queries, optimized = attack._searched(every, space_of(x[0], x, schema), rng)
    assert optimized.any() and not optimized.all()
    assert len(np.unique(queries, axis=0)) == len(queries)
    assert np.isin(queries[:, 0], np.arange(1, 11)).all()
    assert np.isin(queries[:, 1:10], (0, 1)).all() and (queries[:, 1:9].sum(axis=1) == 1).all()
    assert (every.influence(queries.astype(np.float32)) > 0.7).all()


def test_a_record_that_is_not_what_the_schema_says() -> None:
    with pytest.raises(InvalidInput, match="one 1 in each record"):
        space_of([1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [ROW, ROW], SCHEMA)


def test_says_what_it_needs() -> None:
    about = SMALL.about
    assert about.needs_models and about.needs_features and not about.needs_population
    assert "reference models" in about.knowledge and about.question.endswith("?")
    assert eval(repr(IndirectGMIA(theta=0.8)), {"IndirectGMIA": IndirectGMIA}) == IndirectGMIA(
        theta=0.8
    )


WRONG = {
    "n_random": 0,
    "n_clusters": 0,
    "enough": -1,
    "theta": 1.0,
    "gamma": 0.0,
    "steps": -1,
    "noise": 0.0,
    "least_distance": 0.0,
    "control": "none",
    "positive": "none",
    "draw": "none",
    "max_queries": 0,
    "tail": "zero",
    "seed": -1,
}


@pytest.mark.parametrize("name", WRONG)
def test_hyper_parameters_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="expected .*got"):
        IndirectGMIA(**{name: WRONG[name]})


def test_models_trained_anew_are_compared_with_models_trained_anew() -> None:
    with pytest.raises(InvalidInput, match="differ from the references by their seeds too"):
        IndirectGMIA(positive="retrained", control="original")


def test_what_cannot_be_attacked() -> None:
    outlier, known, targets = world()
    target = Watched(targets.models[0])
    with pytest.raises(InvalidInput, match="recipe="):
        IndirectGMIA().run(target, outlier, known)
    with pytest.raises(InvalidInput, match="known="):
        SMALL.run(target, outlier)
    with pytest.raises(MissingModels, match="at least one reference model"):
        SMALL.run(target, outlier, Pool.of_population(known.records))
    with pytest.raises(InvalidInput, match="expected one record"):
        SMALL.enhancing(plane(0), known)
    with pytest.raises(InvalidInput, match="shape"):
        SMALL.enhancing(records(np.zeros((1, 3), np.float32), [0], [9999]), known)
    with pytest.raises(InvalidInput, match="a label from 0 to 1"):
        SMALL.p_values(targets.models[0], found(), 2)
    nothing = enhancing_of(np.zeros((10, 0)), np.zeros((0, 2)))
    with pytest.raises(InvalidInput, match="at least one enhancing query"):
        SMALL.p_values(target, nothing, 0)
    # the whole plane is near the record
    with pytest.raises(MissingModels, match="influence above 0.9, got none"):
        replace(SMALL, least_distance=50.0).run(target, outlier, known)
    assert not target.asked
