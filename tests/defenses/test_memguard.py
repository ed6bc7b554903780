"""MemGuard: undecided, the same label, within the budget, and the same answer each time."""

from __future__ import annotations

import functools
import pickle
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from vestige import metrics
from vestige.attacks import Loss
from vestige.defenses import DefenseClassifier, LabelOnly, MemGuard, Rounded
from vestige.defenses.memguard import _log_softmax
from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.records import Records, Split

Floats = NDArray[np.float64]


def answers(n: int, classes: int, lift: float, seed: int) -> Floats:
    """Log-probabilities (n, classes); the larger the lift, the surer."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1, (n, classes))
    z[np.arange(n), rng.integers(0, classes, n)] += lift + rng.normal(0, 1, n)
    return _log_softmax(z)


@dataclass
class World:
    """Members (the first half) are answered more surely than non-members."""

    model: Predictions
    log_p: Floats
    split: Split
    guard: MemGuard

    @property
    def x(self) -> NDArray[np.int64]:
        return np.arange(len(self.log_p))[:, None]


@functools.cache
def world(n: int = 200, classes: int = 6, seed: int = 0) -> World:
    log_p = np.concatenate([answers(n, classes, 8, seed), answers(n, classes, 4, seed + 1)])
    model = Predictions(logits=log_p)
    records = Records.from_arrays(np.arange(2 * n)[:, None], log_p.argmax(axis=1))
    split = Split(records[:n], records[n:], records[:0])
    guard = MemGuard.trained(model, split.members, split.nonmembers, seed=seed)
    return World(model, log_p, split, guard)


def behind(it: World, epsilon: float) -> World:
    """The same defense with another budget."""
    return replace(it, guard=MemGuard(it.model, it.guard.classifier, epsilon))


def test_the_classifier_is_the_network_that_was_trained() -> None:
    members, others = answers(200, 5, 6, 0), answers(150, 5, 2, 1)
    classifier = DefenseClassifier.fit(members, others, hidden=(16, 8), seed=3)
    # an oracle: the same draw and training, asked through scikit-learn
    rng = np.random.default_rng(3)
    drawn = [side[rng.permutation(len(side))[:150]] for side in (members, others)]
    x = -np.sort(-np.exp(np.concatenate(drawn)), axis=1)
    net = MLPClassifier((16, 8), alpha=1.0, max_iter=100, random_state=3)
    with pytest.warns(match="Maximum iterations"):
        net.fit((x - x.mean(axis=0)) / x.std(axis=0), np.repeat([1, 0], 150))
    every = -np.sort(-np.exp(members), axis=1)
    wanted = net.predict_proba((every - x.mean(axis=0)) / x.std(axis=0))[:, 1]
    logit, _ = classifier.logit(members)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), wanted, rtol=1e-6)
    assert (logit > 0).mean() > 0.7 and (classifier.logit(others)[0] < 0).mean() > 0.7


def test_the_gradient_is_that_of_the_logit() -> None:
    log_p = answers(40, 5, 3, 0)
    classifier = DefenseClassifier.fit(log_p[:20], answers(20, 5, 1, 1), hidden=(16, 8))
    _, gradient = classifier.logit(log_p)
    for c in range(5):
        step = np.zeros(5)
        step[c] = 1e-7
        rise = classifier.logit(log_p + step)[0] - classifier.logit(log_p - step)[0]
        # a unit of the network may switch within the step
        close = np.abs(rise / 2e-7 - gradient[:, c]) < 1e-4 * (1 + np.abs(gradient[:, c]))
        assert close.mean() > 0.97


def test_phase_one_leaves_the_classifier_undecided_and_the_label() -> None:
    it = world()
    found = it.guard.perturbed(it.log_p)
    before = it.guard.classifier.logit(it.log_p)[0]
    done = found.distance > 0
    assert done.mean() > 0.98
    # within the last halving, and all on one side, whichever they came from
    assert found.logit[done].min() > -1e-3 and found.logit[done].max() <= 0
    np.testing.assert_array_equal(found.log_p.argmax(axis=1), it.log_p.argmax(axis=1))
    np.testing.assert_allclose(np.exp(found.log_p).sum(axis=1), 1, rtol=1e-9)
    # what was perturbed was decided before
    assert (
        np.abs(before[found.probability > 0]) > np.abs(found.logit[found.probability > 0])
    ).all()


def test_phase_one_finds_nearly_the_least_distance() -> None:
    """Two classes have one degree of freedom: the nearest undecided answer is found by a grid."""
    it = world(classes=2)
    found = it.guard.perturbed(it.log_p)
    z = np.linspace(0, 40, 100_001)
    grid = _log_softmax(np.stack([z, np.zeros_like(z)], axis=1))
    logit = it.guard.classifier.logit(grid)[0]
    crossings = np.exp(grid[np.flatnonzero(np.diff(np.sign(logit)))])
    top = np.exp(it.log_p.max(axis=1))
    least = 2 * np.abs(top[:, None] - crossings[:, 0]).min(axis=1)
    some = (found.distance > 0) & (found.distance < 1)
    assert some.mean() > 0.9
    # where the classifier changes sides several times, the walk may pass a nearer crossing
    close = np.abs(found.distance[some] - least[some]) < 1e-3 * (1 + least[some])
    assert close.mean() > 0.95 if len(crossings) > 1 else close.all()


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 1.0])
def test_the_expected_distance_is_within_the_budget(epsilon: float) -> None:
    it = behind(world(), epsilon)
    found = it.guard.perturbed(it.log_p)
    expected = found.distance * found.probability
    assert expected.max() <= epsilon * (1 + 1e-12)
    # and it is used up where there is more to do than it allows
    tight = (found.distance > epsilon) & (found.probability > 0)
    np.testing.assert_allclose(expected[tight], epsilon)
    shown = np.exp(it.guard.log_probabilities(it.x))
    moved = np.abs(shown - np.exp(it.log_p)).sum(axis=1)
    for distance, wanted in zip(moved, found.distance, strict=True):
        assert distance == pytest.approx(0, abs=1e-9) or distance == pytest.approx(wanted, abs=1e-9)
    # the coins: a sum of independent terms, 4 standard deviations
    spread = np.sqrt((found.distance**2 * found.probability * (1 - found.probability)).sum())
    assert abs(moved.sum() - expected.sum()) <= 4 * spread + 1e-6


def test_an_attackers_own_classifier_is_fooled_and_thresholds_are_less_so() -> None:
    it = world()
    records = Records.from_arrays(it.x, it.log_p.argmax(axis=1))
    members = it.split.is_member(records.ids)
    bare, covered = (Loss().run(m, records).values for m in (it.model, it.guard))
    open_ = metrics.auc(bare[members], bare[~members]).value
    guarded = metrics.auc(covered[members], covered[~members]).value
    assert open_ is not None and guarded is not None and 0.5 < guarded < open_ - 0.02
    # a network like that of the defender, trained on answers to other records
    own = np.exp(np.concatenate([answers(300, 6, 8, 70), answers(300, 6, 4, 71)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attacker = MLPClassifier((64,), max_iter=100, random_state=9)
        attacker.fit(-np.sort(-own, axis=1), np.repeat([True, False], 300))
    right = [
        (attacker.predict(-np.sort(-np.exp(model.log_probabilities(it.x)), axis=1)) == members)
        for model in (it.model, it.guard)
    ]
    # of 400 records: four standard errors around 1/2 are .1
    assert right[0].mean() > 0.7 and right[1].mean() < 0.6


def test_the_same_answer_each_time_and_in_any_company() -> None:
    it = behind(world(n=60), 0.05)
    together = it.guard.log_probabilities(it.x)
    np.testing.assert_array_equal(it.guard.log_probabilities(it.x), together)
    np.testing.assert_array_equal(it.guard.log_probabilities(it.x[::-1])[::-1], together)
    alone = [it.guard.log_probabilities(it.x[i : i + 1])[0] for i in range(30)]
    np.testing.assert_array_equal(alone, together[:30])
    again = MemGuard(it.model, it.guard.classifier, 0.05, seed=1).log_probabilities(it.x)
    assert not np.array_equal(again, together)
    assert it.guard.n_queries == 120 * 3 + 30


def test_is_a_filter_like_the_others() -> None:
    it = world(n=30)
    again = pickle.loads(pickle.dumps(it.guard))
    np.testing.assert_array_equal(again.log_probabilities(it.x), it.guard.log_probabilities(it.x))
    np.testing.assert_array_equal(
        LabelOnly(it.guard).log_probabilities(it.x), LabelOnly(it.model).log_probabilities(it.x)
    )
    rounded = np.exp(Rounded(it.guard, 1).log_probabilities(it.x))
    np.testing.assert_allclose(rounded * 10, np.rint(rounded * 10), atol=1e-9)
    around = MemGuard(Rounded(it.model, 2), it.guard.classifier).log_probabilities(it.x)
    assert np.isfinite(around).all()


@pytest.mark.parametrize("row", [[0.0, 0.0, -50.0], [0.0, 0.0, 0.0], [0.0, -800.0, -800.0]])
def test_ties_and_certainties(row: list[float]) -> None:
    guard = world(classes=3).guard
    found = guard.perturbed(_log_softmax(np.array([row])))
    assert all(np.isfinite(part).all() for part in found)
    assert found.log_p[0].argmax() == 0


def test_a_classifier_that_knows_nothing_changes_nothing() -> None:
    class Never:
        def logit(self, log_p: Floats) -> tuple[Floats, Floats]:
            return np.full(len(log_p), 3.0), np.zeros_like(log_p)

    log_p = answers(20, 4, 3, 0)
    model: Any = Predictions(logits=log_p)
    x = np.arange(20)[:, None]
    guard = MemGuard(model, Never())
    np.testing.assert_allclose(
        guard.log_probabilities(x), np.maximum(model.log_probabilities(x), np.log(1e-12))
    )
    assert (guard.perturbed(log_p).probability == 0).all()


def test_refusals() -> None:
    it = world(n=30)
    for epsilon in (-0.1, 2.1, float("nan")):
        with pytest.raises(InvalidInput, match=r"expected epsilon in \[0, 2\]"):
            MemGuard(it.model, it.guard.classifier, epsilon)
    with pytest.raises(InvalidInput, match="at least 10 members and 10 non-members.*30 and 9"):
        MemGuard.trained(it.model, it.split.members, it.split.nonmembers[:9])
    with pytest.raises(InvalidInput, match="expected answers of shape"):
        DefenseClassifier.fit(it.log_p, it.log_p[:, :3])
