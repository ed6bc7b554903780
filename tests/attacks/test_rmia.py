"""RMIA: known answers, a loop-only oracle, and what population points score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from vestige.attacks import RMIA
from vestige.attacks.rmia import _log_expected, _tuned
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records, Split
from worlds import Table, World, overfit_world

Floats = NDArray[np.float64]


def probability_world(target: Floats, models: Floats, member: NDArray[np.bool_]) -> World:
    """Two classes; the label's probability by the target (n,) and the models (n_models, n).

    The first record is the candidate, the others are the population.
    """
    n = len(target)
    records = Records.from_arrays(np.arange(n)[:, None], np.zeros(n, int), classes=("a", "b"))
    tables = [Table(np.log(np.column_stack([p, 1 - p]))) for p in (target, *models)]
    split = Split(records[:0], records[:1], records[1:])
    return World(tables[0], split, Pool(tables[1:], records, member))


# --- known answers -----------------------------------------------------------------------------


def test_offline_known_answer() -> None:
    out = np.zeros((1, 1), dtype=bool)
    expected = math.exp(_log_expected(np.log([[0.6]]), out, 0.3, False)[0])
    assert expected == pytest.approx(0.74, abs=1e-12)
    assert 0.9 / expected == pytest.approx(1.216216, abs=5e-7)


@pytest.mark.parametrize(("a", "expected"), [(0.0, 0.8), (0.5, 0.7), (1.0, 0.6)])
def test_offline_runs_from_halfway_to_one_down_to_the_out_models(a: float, expected: float) -> None:
    out = np.zeros((1, 1), dtype=bool)
    assert math.exp(_log_expected(np.log([[0.6]]), out, a, False)[0]) == pytest.approx(expected)


def test_online_weighs_in_and_out_models_by_half_each() -> None:
    inside = np.array([[True], [False], [False], [False]])
    log_p = np.log([[0.9], [0.1], [0.2], [0.3]])
    assert math.exp(_log_expected(log_p, inside, 0.3, True)[0]) == pytest.approx(0.55)


def test_tiny_probabilities_do_not_vanish() -> None:
    # exp(-1000) is zero in float64; a zero is also what one public tool takes for "no model"
    log_p = np.array([[-1000.0], [-1001.0]])
    out = np.zeros((2, 1), dtype=bool)
    expected = -1000 + math.log((1 + math.exp(-1)) / 2)
    np.testing.assert_allclose(_log_expected(log_p, out, 1.0, False), expected)


def test_score_is_the_share_of_the_population_with_a_ratio_of_at_least_gamma() -> None:
    target = np.array([0.9, 0.1, 0.3, 0.6, 0.9, 0.95])
    models = np.full((1, 6), 0.6)
    world = probability_world(target, models, np.zeros((1, 6), dtype=bool))
    # p(.) is equal for all, so LR(x, z) = 0.9 / p(z): 9, 3, 1.5, 1 and 0.947
    for gamma, expected in ((1.0, 0.8), (1.4, 0.6), (2.0, 0.4), (3.5, 0.2), (10.0, 0.0)):
        scores = RMIA(online=False, gamma=gamma, break_ties=False).run(
            world.target, world.split.nonmembers, world.known
        )
        np.testing.assert_allclose(scores.values, [expected])


# --- a naive oracle ----------------------------------------------------------------------------


def naive_probability(model: BlackBox, records: Records, j: int, temperature: float) -> float:
    row: list[float] = model.log_probabilities(records.x[j : j + 1])[0].tolist()
    weights = [math.exp(v / temperature) for v in row]
    return weights[int(records.y[j])] / math.fsum(weights)


def naive_ratio(
    world: World, records: Records, j: int, online: bool, a: float, temperature: float
) -> float:
    place = world.known.records.ids.tolist().index(records.ids[j])
    ins, outs = list[float](), list[float]()
    for model, row in zip(world.known.models, world.known.member, strict=True):
        side = ins if row[place] else outs
        side.append(naive_probability(model, records, j, temperature))
    out = math.fsum(outs) / len(outs)
    if online and ins:
        expected = (math.fsum(ins) / len(ins) + out) / 2
    else:
        expected = ((1 + a) * out + 1 - a) / 2
    return naive_probability(world.target, records, j, temperature) / expected


def naive_rmia(
    world: World, online: bool, a: float, gamma: float, temperature: float
) -> list[float]:
    records, population = world.candidates, world.split.population
    others = [
        naive_ratio(world, population, j, online, a, temperature) for j in range(len(population))
    ]
    scores = []
    for j in range(len(records)):
        ratio = naive_ratio(world, records, j, online, a, temperature)
        n_above = 0
        for other in others:
            if ratio / other >= gamma:
                n_above += 1
        scores.append(n_above / len(others))
    return scores


def small_world(n_classes: int, population_seen: bool) -> World:
    world = overfit_world(
        n_members=25, n_nonmembers=25, n_population=40, n_models=7, n_classes=n_classes
    )
    member = world.known.member.copy()
    if population_seen:
        own = np.isin(world.known.records.ids, world.split.population.ids)
        member[:, own] = np.random.default_rng(1).random((7, int(own.sum()))) < 0.4
        member[:2, own], member[2, own] = True, False
    return World(world.target, world.split, Pool(world.known.models, world.known.records, member))


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("population_seen", [True, False])
@pytest.mark.parametrize(
    ("a", "gamma", "temperature"), [(0.3, 1.0, None), (0.6, 1.3, None), (0.0, 0.9, 2.5)]
)
def test_equals_the_naive_oracle(
    n_classes: int,
    online: bool,
    population_seen: bool,
    a: float,
    gamma: float,
    temperature: float | None,
) -> None:
    world = small_world(n_classes, population_seen)
    attack = RMIA(
        online=online, offline_a=a, gamma=gamma, temperature=temperature, break_ties=False
    )
    ours = attack.run(world.target, world.candidates, world.known)
    theirs = naive_rmia(world, online, a, gamma, temperature or 1.0)
    np.testing.assert_array_equal(ours.ids, world.candidates.ids)
    np.testing.assert_allclose(ours.values, theirs, rtol=1e-10, atol=1e-10)
    ordered = replace(attack, break_ties=True).run(world.target, world.candidates, world.known)
    ratios = [
        naive_ratio(world, world.candidates, j, online, a, temperature or 1.0)
        for j in range(len(world.candidates))
    ]
    # the paper's score to within a step, and in the order of the ratio throughout
    step = 1 / len(world.split.population)
    assert ((ordered.values > ours.values) & (ordered.values < ours.values + step)).all()
    np.testing.assert_array_equal(np.argsort(ordered.values), np.argsort(ratios))


def test_two_temperatures_do_not_share_kept_signals() -> None:
    # one pool, which keeps what it has read under the signal's name
    world = small_world(5, False)
    for temperature in (None, 0.5, 3.0):
        ours = RMIA(temperature=temperature, break_ties=False).run(
            world.target, world.candidates, world.known
        )
        theirs = naive_rmia(world, True, 0.3, 1.0, temperature or 1.0)
        np.testing.assert_allclose(ours.values, theirs, rtol=1e-10, atol=1e-10)


# --- what it means -----------------------------------------------------------------------------


def test_scores_of_population_points_are_uniform() -> None:
    # models that memorize nothing: candidates are drawn as the population is
    world = overfit_world(n_members=500, n_nonmembers=500, n_population=2000, n_models=4, lift=0)
    known = Pool(world.known.models, world.known.records, world.known.member & False)
    for attack in (RMIA(online=False), RMIA(online=False, offline_a=1.0)):
        null = attack.run(world.target, world.candidates, known).values
        # the distance of 1,000 from 2,000 draws of one distribution exceeds 0.075 by chance in
        # about one of 1,000 worlds (Kolmogorov-Smirnov)
        assert stats.kstest(null, "uniform").statistic < 0.075


def test_more_gamma_lower_scores() -> None:
    world = overfit_world(n_models=8)
    before = np.full(600, 1.0)
    for gamma in (0.5, 1.0, 1.5, 4.0):
        attack = RMIA(gamma=gamma, break_ties=False)
        after = attack.run(world.target, world.candidates, world.known).values
        assert (after <= before).all()
        before = after


def test_a_is_tuned_on_a_reference_model_without_asking_the_target() -> None:
    # the first model stands in for the target: it saw record 0 and not record 1; the other one
    # saw neither. 0.97 / (0.9 (1 + a) + 1 - a) > 0.5 / (0.3 (1 + a) + 1 - a) where a < 0.494
    target = np.array([0.95, 0.5, 0.5])
    models = np.array([[0.97, 0.5, 0.5], [0.9, 0.3, 0.5]])
    member = np.array([[True, False, False], [False, False, False]])
    world = probability_world(target, models, member)
    values = {}
    for a in (None, 0.0, 1.0):
        before = world.target.n_queries
        scores = RMIA(online=False, offline_a=a, break_ties=False).run(
            world.target, world.split.nonmembers, world.known
        )
        assert world.target.n_queries - before == 3
        values[a] = float(scores.values[0])
    assert values == {None: 1.0, 0.0: 1.0, 1.0: 0.5}


def test_tuning_takes_the_smallest_a_of_the_best() -> None:
    inside = np.array([[True, False], [False, False]])
    # 0.65 / (1.5 - 0.5 a) > 0.45 / (1.1 - 0.9 a) where a < 1/9
    assert _tuned(np.log([[0.65, 0.45], [0.5, 0.1]]), inside) == 0.0
    # 0.45 / (1.1 - 0.9 a) > 0.65 / (1.5 - 0.5 a) where a > 1/9
    assert _tuned(np.log([[0.45, 0.65], [0.1, 0.5]]), inside) == 0.2


# --- abstaining and refusing -------------------------------------------------------------------


def test_abstains_on_records_without_models() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=20, n_models=6)
    ids = world.candidates.ids
    member = world.known.member.copy()
    all_in = np.isin(world.known.records.ids, ids[:3])
    all_out = np.isin(world.known.records.ids, ids[3:5])
    useless = np.isin(world.known.records.ids, world.split.population.ids[:4])
    member[:, all_in | useless], member[:, all_out] = True, False
    known = Pool(world.known.models, world.known.records, member)
    online = RMIA().run(world.target, world.candidates, known)
    np.testing.assert_array_equal(online.ids, ids[5:])
    assert world.target.n_queries == 35 + 16
    offline = RMIA(online=False).run(world.target, world.candidates, known)
    np.testing.assert_array_equal(offline.ids, ids[3:])


def test_missing_models_are_named() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=20, n_models=6)
    records, member = world.known.records, world.known.member
    population = np.isin(records.ids, world.split.population.ids)

    def refuse(attack: RMIA, known: Pool[BlackBox], said: str) -> None:
        with pytest.raises(MissingModels, match=said):
            attack.run(world.target, world.candidates, known)

    models = world.known.models
    refuse(RMIA(), Pool(models, records, member & False), "and one with a record.*online=False")
    refuse(RMIA(online=False), Pool(models, records, member | True), "each of the 40 candidates")
    refuse(RMIA(), Pool(models, records, member | population), "each of the 20 population records")
    refuse(RMIA(), Pool.of_population(records), "at least one reference model in the pool")
    tuned = RMIA(online=False, offline_a=None)
    refuse(tuned, Pool(models[:1], records, member[:1]), "two reference models or more")
    refuse(tuned, Pool(models, records, member & False), "to tune offline_a")
    assert world.target.n_queries == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gamma": 0.0}, "gamma > 0, got 0"),
        ({"gamma": float("nan")}, "gamma > 0, got nan"),
        ({"offline_a": 1.5}, r"offline_a in \[0, 1\] or None, got 1.5"),
        ({"temperature": -1.0}, "temperature > 0 or None, got -1"),
    ],
)
def test_hyper_parameters_are_checked(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        RMIA(**arguments)  # type: ignore[arg-type]


def test_refusals() -> None:
    world = overfit_world(n_members=20, n_nonmembers=20, n_population=0, n_models=6)
    with pytest.raises(InvalidInput, match="expected known= as a Pool of reference models"):
        RMIA().run(world.target, world.candidates)
    with pytest.raises(InvalidInput, match="population records.*got 0; set some non-members aside"):
        RMIA().run(world.target, world.candidates, world.known)
