"""LiRA: known answers, a loop-only oracle, and worlds whose ROC is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from vestige import metrics
from vestige.attacks import LiRA
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records, Split
from worlds import Table, World, gaussian_world, overfit_world

Floats = NDArray[np.float64]


def two_class_world(
    target_phi: Floats, phi: Floats, member: NDArray[np.bool_], n_members: int = 0
) -> World:
    """A world with these phi: the target's (n,) and the models' (n_models, n)."""
    n = len(target_phi)
    records = Records.from_arrays(np.arange(n)[:, None], np.zeros(n, dtype=int), classes=("a", "b"))
    split = Split(records[:n_members], records[n_members:], records[:0])
    tables = [Table(np.column_stack([row / 2, -row / 2])) for row in (target_phi, *phi)]
    return World(tables[0], split, Pool(tables[1:], records, member))


def exact_world(target_phi: Floats, n_members: int) -> World:
    """Two in-models and two out-models whose phi have means 1 and 0 and deviation exactly 1."""
    n, half = len(target_phi), 1 / math.sqrt(2)
    phi = np.repeat([[1 - half], [1 + half], [-half], [half]], n, axis=1)
    member = np.repeat([[True], [True], [False], [False]], n, axis=1)
    return two_class_world(target_phi, phi, member, n_members)


def run(world: World, attack: LiRA) -> Floats:
    return attack.run(world.target, world.split.nonmembers, world.known).values


# --- known answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [True, False])
def test_known_answers(fixed: bool) -> None:
    half = 1 / math.sqrt(2)
    phi = np.array([[3 - half], [3 + half], [-half], [half]])
    member = np.array([[True], [True], [False], [False]])
    world = two_class_world(np.array([2.197]), phi, member)
    online = run(world, LiRA(fixed_variance=fixed))
    np.testing.assert_allclose(online, 2.091, atol=1e-9)
    offline = run(world, LiRA(online=False, fixed_variance=fixed))
    # the exact tail: Phi(2.197) = 0.985990 to six digits
    np.testing.assert_allclose(1 - np.exp(-offline), 0.985990, atol=5e-7)


def test_p_value_is_a_prediction_of_students_t() -> None:
    phi = np.array([[-1.0], [0.0], [1.0]])
    world = two_class_world(np.array([2.0]), phi, np.zeros((3, 1), dtype=bool))
    scores = LiRA(online=False).run(world.target, world.split.nonmembers, world.known)
    assert scores.p_values is not None
    # mean 0, deviation 1, n = 3: t = 2 / sqrt(4/3) with 2 degrees of freedom, whose tail is
    # (1 - t / sqrt(2 + t^2)) / 2
    t = 2 / math.sqrt(4 / 3)
    np.testing.assert_allclose(scores.p_values, [(1 - t / math.sqrt(2 + t * t)) / 2])


def test_far_tails_do_not_saturate() -> None:
    world = exact_world(np.array([20.0, 30.0, 300.0]), 0)
    values = run(world, LiRA(online=False))
    assert (np.diff(values) > 1).all() and np.isfinite(values).all()


def test_models_that_agree_exactly_do_not_divide_by_zero() -> None:
    member = np.array([[True], [True], [False], [False]])
    world = two_class_world(np.array([1.0]), np.ones((4, 1)), member)
    scores = LiRA().run(world.target, world.split.nonmembers, world.known)
    assert scores.p_values is not None
    np.testing.assert_allclose([*scores.values, *scores.p_values], [0.0, 0.5])


# --- a naive oracle ----------------------------------------------------------------------------


def naive_phi(model: BlackBox, records: Records) -> list[float]:
    out = []
    for row, label in zip(model.log_probabilities(records.x), records.y, strict=True):
        rest = sum(math.exp(v) for c, v in enumerate(row) if c != label)
        out.append(float(row[label]) - math.log(rest))
    return out


def naive_sides(world: World, records: Records) -> list[tuple[list[float], list[float]]]:
    """For each record, phi of the models that saw it and of those that did not."""
    tables = [naive_phi(model, records) for model in world.known.models]
    place = {int(id_): k for k, id_ in enumerate(world.known.records.ids)}
    sides = []
    for j, id_ in enumerate(records.ids):
        ins, outs = list[float](), list[float]()
        for k in range(len(tables)):
            side = ins if world.known.member[k, place[int(id_)]] else outs
            side.append(tables[k][j])
        sides.append((ins, outs))
    return sides


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def squares(values: list[float]) -> float:
    return math.fsum((v - mean(values)) ** 2 for v in values)


def shared_spread(groups: list[list[float]]) -> float:
    n_residuals = sum(len(g) for g in groups) - len(groups)
    return math.sqrt(math.fsum(squares(g) for g in groups) / n_residuals)


def log_normal(x: float, m: float, s: float) -> float:
    return -math.log(s) - 0.5 * math.log(2 * math.pi) - 0.5 * ((x - m) / s) ** 2


def naive_lira(world: World, online: bool, fixed: bool | None, min_models: int) -> list[float]:
    records = world.candidates
    phi, sides = naive_phi(world.target, records), naive_sides(world, records)
    shared_in = shared_spread([ins for ins, _ in sides])
    shared_out = shared_spread([outs for _, outs in sides])
    scores = []
    for value, (ins, outs) in zip(phi, sides, strict=True):
        many = len(outs) >= min_models and (len(ins) >= min_models or not online)
        own = many if fixed is None else not fixed
        s_in = math.sqrt(squares(ins) / (len(ins) - 1)) if own else shared_in
        s_out = math.sqrt(squares(outs) / (len(outs) - 1)) if own else shared_out
        if online:
            log_in = log_normal(value, mean(ins), s_in)
            scores.append(log_in - log_normal(value, mean(outs), s_out))
        else:
            z = (value - mean(outs)) / s_out
            scores.append(-math.log(0.5 * math.erfc(z / math.sqrt(2))))
    return scores


def ragged_world(n_classes: int) -> World:
    """An overfit world where records were seen by different numbers of models."""
    world = overfit_world(
        n_members=30, n_nonmembers=30, n_population=10, n_models=12, n_classes=n_classes
    )
    rng = np.random.default_rng(3)
    member = rng.random(world.known.member.shape) < 0.5
    member[:2], member[2:4] = True, False
    return World(world.target, world.split, Pool(world.known.models, world.known.records, member))


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("fixed", [None, True, False])
def test_equals_the_naive_oracle(n_classes: int, online: bool, fixed: bool | None) -> None:
    world = ragged_world(n_classes)
    attack = LiRA(online=online, fixed_variance=fixed, min_models=6)
    ours = attack.run(world.target, world.candidates, world.known)
    theirs = naive_lira(world, online, fixed, 6)
    np.testing.assert_array_equal(ours.ids, world.candidates.ids)
    np.testing.assert_allclose(ours.values, theirs, rtol=1e-10, atol=1e-10)


def test_the_oracle_sees_records_on_both_sides_of_min_models() -> None:
    world = ragged_world(2)
    inside = world.known.trained_on(world.candidates.ids).sum(axis=0)
    enough = (inside >= 6) & (12 - inside >= 6)
    assert enough.any() and not enough.all()


# --- worlds whose ROC is known -----------------------------------------------------------------


def test_roc_of_the_gaussian_world_is_exact_where_the_fit_is() -> None:
    n = 2000
    grid = stats.norm.ppf((np.arange(n) + 0.5) / n)
    world = exact_world(np.concatenate([1 + grid, grid]), n)
    scores = LiRA().run(world.target, world.split.candidates, world.known).values
    np.testing.assert_allclose(scores, np.concatenate([1 + grid, grid]) - 0.5)
    # the phi are the quantiles themselves: no sampling error, only steps of 1 / n
    curve = metrics.roc(scores[:n], scores[n:])
    inner = (curve.fpr > 0) & (curve.fpr < 1)
    theory = stats.norm.cdf(1 + stats.norm.ppf(curve.fpr[inner]))
    shift = np.abs(curve.tpr[inner] - theory) * stats.norm.pdf(stats.norm.ppf(curve.fpr[inner]))
    assert shift.max() < 1 / n
    area = metrics.auc(scores[:n], scores[n:]).value
    assert area == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=1 / n)
    assert round(float(stats.norm.cdf(1 / math.sqrt(2))), 4) == 0.7602


def test_online_and_offline_agree_where_both_spreads_are_equal() -> None:
    phi = np.random.default_rng(0).normal(0.5, 1.2, 300)
    world = exact_world(phi, 0)
    order = np.argsort(phi)
    for attack in (LiRA(), LiRA(online=False), LiRA(fixed_variance=True)):
        np.testing.assert_array_equal(np.argsort(run(world, attack)), order)


def test_roc_of_the_gaussian_world_with_64_references() -> None:
    world = gaussian_world(n_members=4000, n_nonmembers=4000, n_models=64)
    attack = LiRA(fixed_variance=True)
    scores = attack.run(world.target, world.split.candidates, world.known).values
    members, nonmembers = scores[:4000], scores[4000:]
    # with n estimated models a side the score's slope is N(1, 2/32) around the best one's, which
    # costs about 0.005 of AUC; DeLong's standard error is 0.0053: 3.5 of them, plus the loss
    area = metrics.auc(members, nonmembers).value
    assert area is not None and abs(area - 0.7602) < 3.5 * 0.0053 + 0.005
    for fpr in (0.1, 0.01):
        theory = stats.norm.cdf(1 + stats.norm.ppf(fpr))
        threshold = np.sort(nonmembers)[-round(4000 * fpr)]
        # binomial errors of TPR, and of FPR times the slope of the curve
        slope = stats.norm.pdf(stats.norm.ppf(theory)) / stats.norm.pdf(stats.norm.ppf(fpr))
        error = math.sqrt((theory * (1 - theory) + slope**2 * fpr * (1 - fpr)) / 4000)
        assert (members >= threshold).mean() == pytest.approx(theory, abs=3.5 * error + 0.015)


def test_online_beats_offline_and_both_beat_chance_where_spreads_differ() -> None:
    world = gaussian_world(
        n_members=2000, n_nonmembers=2000, n_models=128, mean_in=0.0, spread_in=0.3
    )
    areas = []
    for attack in (LiRA(), LiRA(online=False)):
        scores = attack.run(world.target, world.split.candidates, world.known).values
        areas.append(metrics.auc(scores[:2000], scores[2000:]).value)
    # members differ only in how narrow their phi is: a one-sided tail says nothing
    assert areas[0] is not None and areas[0] > 0.7
    assert areas[1] is not None and abs(areas[1] - 0.5) < 0.04


@pytest.mark.parametrize("n_models", [4, 16])
def test_p_values_hold_their_level_and_are_not_idle(n_models: int) -> None:
    world = gaussian_world(n_members=2, n_nonmembers=8000, n_models=n_models, spread_out=2.0)
    scores = LiRA().run(world.target, world.split.nonmembers, world.known)
    assert scores.p_values is not None
    for level in (0.001, 0.01, 0.1, 0.5):
        # 3.5 binomial standard errors on both sides; a normal tail instead of Student's t, or no
        # sqrt(1 + 1/n), is far outside
        slack = 3.5 * math.sqrt(level * (1 - level) / 8000)
        assert abs((scores.p_values <= level).mean() - level) <= slack


def test_p_values_hold_where_records_differ_in_spread() -> None:
    rng = np.random.default_rng(0)
    spread = np.where(rng.random(8000) < 0.1, 5.0, 0.5)
    phi = spread * rng.normal(0, 1, (17, 8000))
    world = two_class_world(phi[0], phi[1:], np.zeros((16, 8000), dtype=bool))
    for attack in (LiRA(online=False), LiRA(online=False, fixed_variance=True)):
        scores = attack.run(world.target, world.split.nonmembers, world.known)
        assert scores.p_values is not None
        assert (scores.p_values <= 0.001).mean() <= 0.001 + 3.5 * math.sqrt(0.001 / 8000)


# --- augmentations -----------------------------------------------------------------------------


def next_block(x: NDArray[Any]) -> NDArray[Any]:
    return x + 60


def viewed_world() -> World:
    """60 records with two more views each: rows 60 to 119, and 120 to 179."""
    world = overfit_world(n_members=90, n_nonmembers=90, n_population=0, n_models=24)
    x = np.arange(180)[:, None]
    y = np.tile(world.known.records.y[:60], 3)
    records = Records.from_arrays(x, y, classes=("a", "b", "c", "d"))
    split = Split(records[:30], records[30:60], records[60:60])
    member = np.tile(world.known.member[:, :60], 3)
    return World(world.target, split, Pool(world.known.models, records, member))


def two_blocks(x: NDArray[Any]) -> NDArray[Any]:
    return x + 120


AUGMENTATIONS = (next_block, two_blocks)


def test_averages_phi_over_views() -> None:
    world = viewed_world()
    records = world.split.candidates
    views = [records]
    for augmentation in AUGMENTATIONS:
        views.append(Records(records.ids, augmentation(records.x), records.y))
    attack = LiRA(augmentations=AUGMENTATIONS, fixed_variance=False)
    scores = attack.run(world.target, records, world.known)
    assert world.target.n_queries == 3 * 60
    phi = [naive_phi(world.target, view) for view in views]
    sides = [naive_sides(world, view) for view in views]
    for j in range(60):
        ins = [mean([s[j][0][k] for s in sides]) for k in range(len(sides[0][j][0]))]
        outs = [mean([s[j][1][k] for s in sides]) for k in range(len(sides[0][j][1]))]
        value = mean([p[j] for p in phi])
        expected = log_normal(value, mean(ins), math.sqrt(squares(ins) / (len(ins) - 1)))
        expected -= log_normal(value, mean(outs), math.sqrt(squares(outs) / (len(outs) - 1)))
        assert scores.values[j] == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("fixed", [True, False])
def test_joint_fits_a_multivariate_normal(fixed: bool) -> None:
    world = viewed_world()
    records = world.split.candidates
    views = [records]
    for augmentation in AUGMENTATIONS:
        views.append(Records(records.ids, augmentation(records.x), records.y))
    attack = LiRA(augmentations=AUGMENTATIONS, joint=True, fixed_variance=fixed)
    scores = attack.run(world.target, records, world.known)
    phi = np.array([naive_phi(world.target, view) for view in views])
    sides = [naive_sides(world, view) for view in views]
    expected = np.zeros(60)
    for side, sign in ((0, 1), (1, -1)):
        clouds = [np.array([s[j][side] for s in sides]) for j in range(60)]
        scatters = [np.cov(cloud) * (cloud.shape[1] - 1) for cloud in clouds]
        shared = sum(scatters) / (sum(cloud.shape[1] for cloud in clouds) - 60)
        for j, cloud in enumerate(clouds):
            covariance = shared if fixed else np.cov(cloud)
            normal = stats.multivariate_normal(cloud.mean(axis=1), covariance)
            expected[j] += sign * normal.logpdf(phi[:, j])
    np.testing.assert_allclose(scores.values, expected, rtol=1e-8, atol=1e-8)


def test_joint_with_equal_views_stays_finite() -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=0, n_models=8)
    attack = LiRA(augmentations=(np.copy,), joint=True)
    assert np.isfinite(attack.run(world.target, world.candidates, world.known).values).all()


# --- abstaining and refusing -------------------------------------------------------------------


def with_table(world: World, member: NDArray[np.bool_]) -> World:
    return World(world.target, world.split, Pool(world.known.models, world.known.records, member))


def test_abstains_on_records_without_models() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=0, n_models=6)
    member = world.known.member.copy()
    member[:, :3], member[:, 3:5] = True, False
    world = with_table(world, member)
    first = world.known.records.ids
    online = LiRA().run(world.target, world.candidates, world.known)
    assert set(first.tolist()) - set(online.ids.tolist()) == set(first[:5].tolist())
    assert world.target.n_queries == len(online) == 35
    offline = LiRA(online=False).run(world.target, world.candidates, world.known)
    assert set(first.tolist()) - set(offline.ids.tolist()) == set(first[:3].tolist())


def test_candidates_that_no_pool_knows_are_out_of_every_model() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=0, n_models=6)
    strangers = Records(world.candidates.ids + 10_000, world.candidates.x, world.candidates.y)
    assert len(LiRA(online=False).run(world.target, strangers, world.known)) == 40
    with pytest.raises(MissingModels, match="without and with a record"):
        LiRA().run(world.target, strangers, world.known)


def test_missing_models_are_named() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=0, n_models=6)
    everything = np.ones_like(world.known.member)
    for attack, said in (
        (LiRA(), "at least 1 reference models trained without and with.*online=False"),
        (LiRA(online=False), "at least 1 reference models trained without a record"),
        (LiRA(fixed_variance=False), "at least 2 reference models"),
    ):
        with pytest.raises(MissingModels, match=said):
            attack.run(world.target, world.candidates, with_table(world, everything).known)
    none: Pool[Table] = Pool.of_population(world.known.records)
    with pytest.raises(MissingModels, match="at least one reference model in the pool"):
        LiRA().run(world.target, world.candidates, none)
    one = Pool(world.known.models[:1], world.known.records, world.known.member[:1] & False)
    with pytest.raises(MissingModels, match="two reference models on the same side"):
        LiRA(online=False).run(world.target, world.candidates, one)


def test_refusals() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=0, n_models=6)
    with pytest.raises(InvalidInput, match="expected known= as a Pool of reference models"):
        LiRA().run(world.target, world.candidates)
    with pytest.raises(InvalidInput, match="min_models >= 2, got 1"):
        LiRA(min_models=1)
    with pytest.raises(InvalidInput, match="augmentations as functions"):
        LiRA(augmentations=("flip",))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="joint=True only with online=True"):
        LiRA(joint=True)
    with pytest.raises(InvalidInput, match="joint=True only with online=True"):
        LiRA(joint=True, online=False, augmentations=(next_block,))
    with pytest.raises(InvalidInput, match="to return 40 inputs, got 39"):
        LiRA(augmentations=(lambda x: x[1:],)).run(world.target, world.candidates, world.known)
