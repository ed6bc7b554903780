"""Signals against the textbook, one record at a time and with Python's own arithmetic."""

from __future__ import annotations

import functools
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from vestige import signals

getcontext().prec = 320  # a probability of 1e-300 beside one of 1


@functools.cache
def probabilities(*logits: float) -> list[Decimal]:
    """Exact softmax of the logits."""
    powers = [Decimal(v).exp() for v in logits]
    return [p / sum(powers) for p in powers]


def naive_loss(p: list[Decimal], y: int) -> Decimal:
    return -p[y].ln()


def naive_margin(p: list[Decimal], y: int) -> Decimal:
    return p[y].ln() - sum(p[c] for c in range(len(p)) if c != y).ln()


def naive_confidence(p: list[Decimal], y: int) -> Decimal:
    return max(p).ln()


def naive_entropy(p: list[Decimal], y: int) -> Decimal:
    return -sum(q * q.ln() for q in p)


def naive_modified_entropy(p: list[Decimal], y: int) -> Decimal:
    total = -(1 - p[y]) * p[y].ln()
    for c, q in enumerate(p):
        if c != y:
            total -= q * (1 - q).ln()
    return total


def naive_correctness(p: list[Decimal], y: int) -> Decimal:
    return Decimal(int(p[y] == max(p)))


PAIRS = [
    (signals.cross_entropy_loss, naive_loss),
    (signals.true_class_margin, naive_margin),
    (signals.max_confidence, naive_confidence),
    (signals.prediction_entropy, naive_entropy),
    (signals.modified_prediction_entropy, naive_modified_entropy),
    (signals.correctness, naive_correctness),
]
every_signal = pytest.mark.parametrize(("signal", "naive"), PAIRS, ids=lambda f: f.__name__)

CASES = {
    "plain": [[1.0, -2.0, 0.5], [0.0, 3.0, 2.0]],
    "binary": [[0.3, -0.7], [-4.0, 4.0]],
    "extreme": [[700.0, 0.0, -20.0], [0.0, 300.0, 700.0]],  # p = 1 - 1e-304
    "many": [list(np.linspace(-9, 9, 20)), list(np.linspace(30, -30, 20))],
    "two halves": [[0.0, 0.0], [5.0, 5.0]],
}


@every_signal
@pytest.mark.parametrize("case", CASES)
def test_a_signal_is_its_formula(signal, naive, case):
    rows = CASES[case]
    for y in sorted({0, 1, len(rows[0]) - 1}):
        labels = np.full(len(rows), y)
        got = signal(log_softmax(np.array(rows), axis=1), labels)
        assert got.shape == (len(rows),) and got.dtype == np.float64
        if signal is signals.correctness and case == "two halves":
            continue  # a tie goes to the first class
        for value, row in zip(got, rows, strict=True):
            want = float(naive(probabilities(*row), y))
            # log-probabilities of size 700 are exact to 1e-13, so are signals relative to them
            assert value == pytest.approx(want, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.data())
def test_signals_of_any_logits(row, data):
    y = data.draw(st.integers(0, len(row) - 1))
    table = log_softmax(np.array([row]), axis=1)
    for signal, naive in PAIRS[:-1]:
        want = float(naive(probabilities(*row), y))
        assert signal(table, np.array([y]))[0] == pytest.approx(want, rel=1e-7, abs=1e-9)


@every_signal
def test_signals_of_certain_answers_are_finite(signal, naive):
    sure = log_softmax(np.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]]), axis=1)
    for y in range(3):
        assert np.isfinite(signal(sure, np.array([y, y]))).all()


def test_known_answers():
    p = np.log([[0.9, 0.1], [0.5, 0.5]])
    y = np.array([0, 1])
    np.testing.assert_allclose(
        signals.true_class_margin(p, y), [math.log(9), 0.0], rtol=0, atol=1e-15
    )
    np.testing.assert_allclose(signals.prediction_entropy(p, y)[1], math.log(2))
    # -(1 - .9) log .9 - .1 log(1 - .1), and log 2
    np.testing.assert_allclose(
        signals.modified_prediction_entropy(p, y), [-0.2 * math.log(0.9), math.log(2)]
    )


def test_the_margin_of_two_classes_is_the_difference_of_logits():
    logits = np.random.default_rng(0).normal(0, 200, (50, 2))
    margin = signals.true_class_margin(log_softmax(logits, axis=1), np.zeros(50, int))
    np.testing.assert_allclose(margin, logits[:, 0] - logits[:, 1], rtol=1e-12)


@every_signal
def test_inputs_are_left_as_they_were(signal, naive):
    table = log_softmax(np.random.default_rng(0).normal(size=(5, 3)), axis=1)
    before = table.copy()
    table.setflags(write=False)
    signal(table, np.array([0, 1, 2, 0, 1]))
    np.testing.assert_array_equal(table, before)


@every_signal
def test_records_do_not_influence_each_other(signal, naive):
    table = log_softmax(np.random.default_rng(1).normal(size=(6, 4)), axis=1)
    y = np.array([0, 1, 2, 3, 0, 1])
    alone = [signal(table[i : i + 1], y[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(signal(table, y), alone)


@pytest.mark.parametrize("classes", [2, 3, 8, 9, 100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_the_rest_is_summed_as_scipy_does(classes, scale):
    rng = np.random.default_rng(0)
    table = rng.normal(0, scale, (500, classes))
    table[:100] = np.round(table[:100])  # ties
    table -= table.max(axis=1, keepdims=True)
    y = rng.integers(0, classes, 500)
    rest = table.copy()
    rest[np.arange(500), y] = -np.inf
    np.testing.assert_allclose(
        signals._log_of_rest(table, y), logsumexp(rest, axis=1), rtol=1e-14, atol=0
    )


def test_no_other_class_has_a_probability():
    table = np.array([[0.0, -np.inf, -np.inf], [-np.inf, 0.0, -np.inf]])
    assert signals.true_class_margin(table, np.array([0, 0])).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("signal", [ours for ours, _ in PAIRS] + [signals.log_probabilities])
def test_rows_may_lie_class_by_class(signal):
    rng = np.random.default_rng(1)
    table = log_softmax(rng.normal(0, 5, (200, 7)), axis=1)
    y = rng.integers(0, 7, 200)
    one, other = signal(table, y), signal(np.asfortranarray(table), y)
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-300)
    # each record by itself
    np.testing.assert_array_equal(one[50:60], signal(table[50:60], y[50:60]))


def test_the_answers_are_a_signal():
    table = np.log([[0.9, 0.1], [0.4, 0.6]])
    assert signals.log_probabilities(table, np.array([0, 0])) is table
