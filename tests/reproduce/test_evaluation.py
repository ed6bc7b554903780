"""The numbers of the tables, against hand-made cases and naive counts."""

from __future__ import annotations

import numpy as np
import pytest

from vestige.errors import InvalidInput
from vestige.metrics import clopper_pearson
from vestige.reproduce.evaluation import (
    attack_estimates,
    calibration_error,
    histograms,
    normalized_entropy,
    target_estimates,
)


def test_counts_of_a_small_case():
    values = np.array([0.9, 0.5, 0.4, 0.8, 0.2, 0.1])
    member = np.array([True, True, True, False, False, False])
    y = np.array([0, 1, 1, 0, 0, 2])
    found, series = attack_estimates(values, member, y, 3)
    assert found["attack_accuracy"].value == pytest.approx(4 / 6)
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["precision"].context["base_rate"] == 0.5
    assert found["precision"].context["fpr"] == pytest.approx(1 / 3)
    assert found["recall"].value == pytest.approx(2 / 3)
    assert found["fpr"].value == pytest.approx(1 / 3)
    # 9 pairs: all but (0.5, 0.8) and (0.4, 0.8) in order
    assert found["auc"].value == pytest.approx(7 / 9)
    low, high = clopper_pearson(2, 3)
    assert (found["recall"].low, found["recall"].high) == (float(low), float(high))
    assert series["tp"] == [1, 1, 0] and series["fp"] == [1, 0, 0]
    assert series["members"] == [1, 2, 0] and series["nonmembers"] == [2, 0, 1]
    # classes 0 and 1 have a record called a member: 1/2 and 1
    assert found["median_precision"].value == 0.75
    assert found["median_precision"].low is None
    # classes 0 and 1 have members: 1 and 1/2
    assert found["median_recall"].value == 0.75


def test_by_class_is_a_naive_count():
    rng = np.random.default_rng(0)
    n, classes = 600, 7
    values, y = rng.random(n), rng.integers(0, classes, n)
    member = rng.permutation(np.repeat([True, False], n // 2))
    found, series = attack_estimates(values, member, y, classes)
    shares = []
    for c in range(classes):
        called = [
            m for v, m, label in zip(values, member, y, strict=True) if label == c and v >= 0.5
        ]
        assert series["tp"][c] == sum(called) and series["fp"][c] == len(called) - sum(called)
        shares.append(sum(called) / len(called))
    median = found["median_precision"]
    assert median.value == pytest.approx(np.median(shares))
    # P[Binomial(7, 1/2) < 1] = 1/128: the extremes are the interval
    assert (median.low, median.high) == (min(shares), max(shares))


def test_nobody_called_a_member():
    member = np.array([True, False])
    found, _ = attack_estimates(np.array([0.1, 0.2]), member, np.array([0, 1]), 2)
    assert found["precision"].value is None and found["median_precision"].value is None
    assert found["recall"].value == 0.0


def test_sides_must_be_of_one_size():
    with pytest.raises(InvalidInput, match="as many members"):
        attack_estimates(np.ones(3), np.array([True, True, False]), np.zeros(3, dtype=int), 1)


def test_calibration_error_of_known_answers():
    # ten answers of confidence 0.8, of which 6 are right: off by 0.2
    shown = np.log(np.tile([0.8, 0.2], (10, 1)))
    y = np.array([0] * 6 + [1] * 4)
    error = calibration_error(shown, y, seed=0)
    assert error.value == pytest.approx(0.2)
    assert error.low < 0.2 < error.high
    # certain and right is calibrated, certain and wrong is off by 1
    certain = np.log(np.tile([1.0, 1e-12], (5, 1)))
    assert calibration_error(certain, np.zeros(5, dtype=int), 0).value == pytest.approx(0.0)
    assert calibration_error(certain, np.ones(5, dtype=int), 0).value == pytest.approx(1.0)


def test_the_target_s_calibration_is_that_of_records_it_never_saw_in_fifteen_bins():
    members = np.log(np.tile([0.9, 0.1], (8, 1)))
    # 0.72 and 0.78 lie in one bin of 15 and of 5 each, 0.62 in one of 5 with 0.72, of 15 alone
    others = np.log([[0.62, 0.38], [0.72, 0.28], [0.72, 0.28]])
    y = np.zeros(8, dtype=int)
    found = target_estimates(members, y, others, np.array([1, 0, 0]), seed=0)
    assert found["calibration_error"].value == pytest.approx((0.62 + 2 * 0.28) / 3)


def test_entropy_is_between_0_and_1():
    shown = np.log(np.array([[1.0, 1e-12, 1e-12], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 1e-12]]))
    assert normalized_entropy(shown) == pytest.approx([0.0, 1.0, np.log(2) / np.log(3)], abs=1e-9)
    # what a filter cut to half its mass is scaled first
    assert normalized_entropy(shown - np.log(2)) == pytest.approx(normalized_entropy(shown))


def test_sides_of_the_target():
    members = np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]]))
    y = np.array([0, 1, 0, 0])
    found = target_estimates(members, y, members, 1 - y, seed=0)
    assert (found["train_accuracy"].value, found["test_accuracy"].value) == (1.0, 0.0)
    assert found["gap"].value == 1.0
    bins = histograms(members, y, members, 1 - y)
    assert all(sum(shares) == pytest.approx(1.0) for shares in bins.values())
    assert bins["confidence_members"][-2] == 1.0  # 0.9 lies in the bin from 0.9
    assert bins["confidence_nonmembers"][:3].count(0.0) == 2
    assert bins["uncertainty_members"] == bins["uncertainty_nonmembers"]
