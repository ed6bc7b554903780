"""Quantile regression: the false positive rate it promises, and what conditioning buys."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vestige import metrics
from vestige.attacks import Loss, QuantileRegression
from vestige.errors import InvalidInput
from vestige.pool import Pool
from vestige.records import Records, Split
from worlds import Table, World, overfit_world


def wide_world(n: int, n_features: int) -> World:
    """Two classes; phi follows the fourth feature and the label, noisier where the fifth > 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (n, n_features))
    # a label of its own in the first column: the row of the answer
    x[:, 0] = np.arange(n)
    y = rng.integers(0, 2, n)
    members = rng.permutation(n) < n // 3
    noise = rng.normal(0, 1, n) * np.where(x[:, 4] > 0, 1.5, 0.3)
    phi = 4 * (x[:, 3] > 0) + noise + 3 * members + np.where(y == 1, 4, 0)
    logits = np.zeros((n, 2))
    logits[np.arange(n), y] = phi
    rows = rng.permutation(np.flatnonzero(~members))
    records = Records.from_arrays(x, y)
    split = Split(records[members], records[rows[: n // 3]], records[rows[n // 3 :]])
    known: Pool[Table] = Pool.of_population(split.population)
    return World(Table(logits), split, known)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_realised_false_positive_rate(alpha: float, n_classes: int) -> None:
    world = overfit_world(
        n_members=50, n_nonmembers=2000, n_population=1998, n_models=2, n_classes=n_classes
    )
    known: Pool[Table] = Pool.of_population(world.split.population)
    scores = QuantileRegression().run(world.target, world.split.nonmembers, known)
    assert scores.p_values is not None
    # 999 held-out records: the rate is Beta(k, 1000 - k), so the count of 2,000 is beta-binomial;
    # inside the central 99.9 % of it, on both sides
    k = round(alpha * 1000)
    low, high = stats.betabinom(2000, k, 1000 - k).interval(0.999)
    assert low <= int((scores.p_values <= alpha).sum()) <= high


def test_the_order_of_the_population_does_not_matter() -> None:
    world = overfit_world(n_members=50, n_nonmembers=2000, n_population=1998, n_models=2)
    population = world.split.population
    # from the easiest to the hardest: a cut in the middle would calibrate on one end
    loss = Loss().run(world.target, population).values
    known: Pool[Table] = Pool.of_population(population[np.argsort(loss)])
    scores = QuantileRegression().run(world.target, world.split.nonmembers, known)
    assert scores.p_values is not None
    low, high = stats.betabinom(2000, 100, 900).interval(0.999)
    assert low <= int((scores.p_values <= 0.1).sum()) <= high


def test_finds_what_the_loss_cannot() -> None:
    world = wide_world(1500, 6)
    areas = []
    for attack in (QuantileRegression(), Loss()):
        scores = attack.run(world.target, world.candidates, world.known)
        members = world.split.is_member(scores.ids)
        areas.append(metrics.auc(scores.values[members], scores.values[~members]))
    assert areas[0].low is not None and areas[1].high is not None
    assert areas[0].low > areas[1].high + 0.05


def test_mean_and_spread_are_the_records_own() -> None:
    world = wide_world(4500, 6)
    records = world.split.nonmembers
    scores = QuantileRegression().run(world.target, records, world.known).values
    noisy, up, label = records.x[:, 4] > 0, records.x[:, 3] > 0, records.y == 1
    # five times the noise, yet the standardized scores are alike to within a factor of 2
    assert 0.5 < scores[noisy].std() / scores[~noisy].std() < 2
    # where phi is 4 larger for a feature or for the label alone, which is 2 overall spreads,
    # scores are not: the forest learns most of the former, and class means all of the latter
    for side, limit in ((up, 0.8), (label, 0.2)):
        assert abs(np.median(scores[side]) - np.median(scores[~side])) < limit


@pytest.mark.parametrize("n_features", [64, 400])
def test_wide_inputs_are_projected_and_images_flattened(n_features: int) -> None:
    world = overfit_world(n_members=60, n_nonmembers=60, n_population=200, n_models=2)
    rng = np.random.default_rng(0)

    def widened(records: Records) -> Records:
        x = rng.normal(0, 1, (len(records), n_features // 4, 4))
        x[:, 0, 0] = records.x[:, 0]
        return Records(records.ids, x, records.y)

    class Flat:
        """The world's target, asked with images."""

        n_queries = 0

        def log_probabilities(self, x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> object:
            return world.target.log_probabilities(x[:, 0])

    known: Pool[Table] = Pool.of_population(widened(world.split.population))
    candidates = widened(world.candidates)
    scores = QuantileRegression(n_components=16).run(Flat(), candidates, known)  # type: ignore[arg-type]
    assert np.isfinite(scores.values).all() and len(scores) == 120


def test_a_constant_target_does_not_divide_by_zero() -> None:
    n = 150
    records = Records.from_arrays(np.arange(n)[:, None], np.arange(n) % 2)
    known: Pool[Table] = Pool.of_population(records)
    scores = QuantileRegression().run(Table(np.zeros((n, 2))), records[:50], known)
    assert scores.p_values is not None
    np.testing.assert_allclose(scores.values, 0, atol=1e-6)
    # all tie: nothing is exposed
    np.testing.assert_allclose(scores.p_values, 1)


def test_labels_that_the_population_lacks_get_the_overall_mean() -> None:
    world = overfit_world(n_models=2)
    population = world.split.population
    few = population[population.y < 2]
    known: Pool[Table] = Pool.of_population(few)
    scores = QuantileRegression().run(world.target, world.candidates, known)
    assert np.isfinite(scores.values).all() and len(scores) == len(world.candidates)


def test_the_seed_matters_and_is_all_that_does() -> None:
    world = overfit_world(n_models=2)
    runs = [
        QuantileRegression(seed=seed).run(world.target, world.candidates, world.known).values
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"calibration": 0.0}, r"calibration in \[0.1, 0.9\], got 0.0"),
        ({"n_trees": 10}, "n_trees >= 50, got 10"),
        ({"min_leaf": 0}, "min_leaf >= 1.*got 0, 64 and 0"),
        ({"seed": -1}, "seed >= 0, got 5, 64 and -1"),
    ],
)
def test_hyper_parameters_are_checked(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        QuantileRegression(**arguments)


def test_refusals() -> None:
    world = overfit_world(n_models=2, n_population=39)
    with pytest.raises(InvalidInput, match="expected known= as a Pool that holds a population"):
        QuantileRegression().run(world.target, world.candidates)
    with pytest.raises(InvalidInput, match="at least 40 population records.*got 39"):
        QuantileRegression().run(world.target, world.candidates, world.known)
