from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vestige.datasets import classification, gaussian_world
from vestige.errors import InvalidInput


@pytest.mark.parametrize("separation", [0.0, 1.0, 3.0])
def test_two_gaussian_classes_reach_the_bayes_accuracy(separation: float) -> None:
    n = 20_000
    world = gaussian_world(n, 5, 2, separation=separation, seed=3)
    # the best rule is known: the nearer center
    right = np.mean((world.x[:, 1] > world.x[:, 0]) == (world.y == 1))
    best = norm.cdf(separation / 2)
    assert abs(right - best) < 4 * np.sqrt(best * (1 - best) / n)


def test_centers_are_equally_far_apart() -> None:
    world = gaussian_world(60_000, 6, 4, separation=2.5, seed=1)
    centers = np.stack([world.x[world.y == k].mean(axis=0) for k in range(4)])
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    # a center's coordinate has a standard error of 1/sqrt(15,000) = 0.008
    np.testing.assert_allclose(distances[np.triu_indices(4, 1)], 2.5, atol=0.05)


def test_noisy_labels_are_as_many_as_asked_for() -> None:
    n = 20_000
    clean = gaussian_world(n, 4, 4, separation=60, seed=2)
    noisy = gaussian_world(n, 4, 4, separation=60, label_noise=0.2, seed=2)
    np.testing.assert_array_equal(clean.x, noisy.x)
    changed = np.mean(clean.y != noisy.y)
    # a quarter of the redrawn labels fall on the old one
    assert abs(changed - 0.15) < 4 * np.sqrt(0.15 * 0.85 / n)


def test_the_same_seed_gives_the_same_world() -> None:
    for world in (gaussian_world, classification):
        one, same, other = world(200, seed=5), world(200, seed=5), world(200, seed=6)
        assert one.digest() == same.digest() != other.digest()
        assert one.x.dtype == np.float32
        assert len(one.columns) == one.x.shape[1]


def test_classification_is_learnable_and_has_its_sizes() -> None:
    world = classification(1_000, 20, 4, seed=0)
    assert world.x.shape == (1_000, 20)
    assert world.n_classes == 4
    assert np.bincount(world.y).min() > 200
    assert LinearDiscriminantAnalysis().fit(world.x, world.y).score(world.x, world.y) > 0.5


@pytest.mark.parametrize("sizes", [(0, 2, 2), (5, 2, 1), (5, 2, 3)])
def test_impossible_gaussian_worlds_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        gaussian_world(*sizes)
    with pytest.raises(InvalidInput, match="label_noise"):
        gaussian_world(5, label_noise=1.5)


def test_what_scikit_learn_refuses_is_one_sentence() -> None:
    with pytest.raises(InvalidInput, match="make_classification"):
        classification(100, 2, 30)
