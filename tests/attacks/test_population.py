"""Attack P: the order of the loss, exact p-values, and ranks inside a class."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vestige.attacks import Loss, Population
from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from worlds import overfit_world


def run(
    candidates: list[float],
    population: list[float],
    labels: list[int] | None = None,
    attack: Population | None = None,
) -> Scores:
    """Scores of candidates with these losses, given a population with those."""
    losses = np.array([*candidates, *population])
    y = np.array(labels or [0] * len(losses))
    right, wrong = np.exp(-losses), -np.expm1(-losses)
    table = np.where(y[:, None] == np.arange(2), right[:, None], wrong[:, None])
    records = Records.from_arrays(np.arange(len(losses))[:, None], y, classes=("a", "b"))
    known: Pool[Predictions] = Pool.of_population(records)
    target = Predictions(probabilities=table)
    return (attack or Population()).run(target, records[: len(candidates)], known)


def test_p_values_count_the_population_and_the_record() -> None:
    scores = run([0.05, 0.1, 0.25, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4])
    assert scores.p_values is not None
    np.testing.assert_allclose(scores.p_values, np.array([1, 2, 3, 5, 5]) / 5)


def test_scores_interpolate_between_the_losses_of_the_population() -> None:
    scores = run([0.1, 0.15, 0.4, 0.05], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(np.exp(-scores.values), np.array([1, 1.5, 4, 0.5]) / 5)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_orders_records_exactly_as_the_loss(n_classes: int) -> None:
    world = overfit_world(n_classes=n_classes, n_population=20, lift=12.0)
    ours = Population().run(world.target, world.candidates, world.known).values
    loss = Loss().run(world.target, world.candidates).values
    # a population of 20 leaves 21 ranks; the scores tell all records apart all the same
    assert len(np.unique(ours)) == len(np.unique(loss)) == len(loss)
    np.testing.assert_array_equal(np.argsort(ours), np.argsort(loss))


def test_losses_beyond_the_population_do_not_tie() -> None:
    values = run([1e-9, 1e-7, 1e-5, 3.0, 5.0, 9.0], [0.1, 0.2]).values
    assert (np.diff(values) < 0).all()


def test_losses_of_zero_are_finite_and_largest() -> None:
    target = Predictions(logits=np.array([[900.0, 0.0], [1.0, 0.0], [900.0, 0.0], [0.5, 0.0]]))
    records = Records.from_arrays(np.arange(4)[:, None], np.zeros(4, int), classes=("a", "b"))
    known: Pool[Predictions] = Pool.of_population(records)
    scores = Population().run(target, records[:2], known)
    assert np.isfinite(scores.values).all() and scores.values[0] > scores.values[1]
    assert scores.p_values is not None
    np.testing.assert_allclose(scores.p_values, [2 / 3, 2 / 3])


def test_per_class_compares_with_the_records_own_class() -> None:
    labels = [0, 1] + [0] * 3 + [1] * 3
    losses = [0.1, 0.2, 0.3, 0.01, 0.02, 0.03]
    attack = Population(per_class=True, min_per_class=3)
    scores = run([0.05, 0.05], losses, labels, attack)
    assert scores.p_values is not None
    np.testing.assert_allclose(scores.p_values, [1 / 4, 4 / 4])


def test_small_classes_are_compared_with_everyone() -> None:
    labels = [0, 1] + [0] * 3 + [1] * 2
    attack = Population(per_class=True, min_per_class=3)
    scores = run([0.05, 0.05], [0.1, 0.2, 0.3, 0.01, 0.02], labels, attack)
    assert scores.p_values is not None
    np.testing.assert_allclose(scores.p_values, [1 / 4, 3 / 6])


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("per_class", [False, True])
def test_realised_false_positive_rate(alpha: float, per_class: bool) -> None:
    world = overfit_world(n_members=10, n_nonmembers=2000, n_population=999, n_models=2)
    attack = Population(per_class=per_class)
    scores = attack.run(world.target, world.candidates, world.known)
    assert scores.p_values is not None
    null = scores.p_values[~world.split.is_member(scores.ids)]
    found = int((null <= alpha).sum())
    if not per_class:
        # the FPR of a threshold at the k-th of n losses is Beta(k, n + 1 - k): the count of
        # 2,000 is beta-binomial, here inside its central 99.9 %
        k = int(alpha * 1000)
        low, high = stats.betabinom(2000, k, 1000 - k).interval(0.999)
        assert low <= found <= high
    # four classes of about 250: the same with a quarter of the calibration for each record
    slack = 3.5 * np.sqrt(alpha * (1 - alpha) * (1 / 2000 + 1 / 999))
    assert found / 2000 <= alpha + slack


def test_refusals() -> None:
    world = overfit_world(n_models=2)
    with pytest.raises(InvalidInput, match="expected known= as a Pool.*got none"):
        Population().run(world.target, world.candidates)
    known: Pool[Predictions] = Pool.of_population(world.candidates)
    with pytest.raises(InvalidInput, match="at least 1 population records.*got 0"):
        Population().run(world.target, world.candidates, known)
    with pytest.raises(InvalidInput, match="min_per_class >= 1, got 0"):
        Population(min_per_class=0)


def test_denormal_losses_do_not_overflow() -> None:
    from vestige.attacks.population import _share_below

    tiny = np.finfo(np.float64).smallest_subnormal
    shares = _share_below(np.array([tiny, 1e-300, 1.0, 800.0]), np.array([tiny, 2.0]))
    assert (np.diff(shares) >= 0).all() and np.isfinite(shares).all()
