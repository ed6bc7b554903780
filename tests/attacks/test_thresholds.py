"""The five thresholds against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vestige.attacks import Attack, Confidence, Correctness, Entropy, Loss, ModifiedEntropy
from vestige.errors import InvalidInput
from vestige.models import BlackBox, Predictions
from vestige.records import Records

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
LABELS = np.array([0, 1, 2])

ln = math.log
EXPECTED: list[tuple[Attack[BlackBox], list[float]]] = [
    (Loss(), [ln(0.7), ln(0.2), ln(0.5)]),
    (Confidence(), [ln(0.7), ln(0.7), ln(0.5)]),
    (
        Entropy(),
        [0.7 * ln(0.7) + 0.2 * ln(0.2) + 0.1 * ln(0.1)] * 2 + [0.5 * ln(0.25) + 0.5 * ln(0.5)],
    ),
    (
        ModifiedEntropy(),
        [
            0.3 * ln(0.7) + 0.2 * ln(0.8) + 0.1 * ln(0.9),
            0.8 * ln(0.2) + 0.7 * ln(0.3) + 0.1 * ln(0.9),
            0.5 * ln(0.5) + 2 * 0.25 * ln(0.75),
        ],
    ),
    (Correctness(), [1.0, 0.0, 1.0]),
]


def rows(n: int) -> Records:
    return Records.from_arrays(np.arange(n)[:, None], LABELS[:n])


@pytest.mark.parametrize(("attack", "expected"), EXPECTED)
def test_known_answers(attack: Attack[BlackBox], expected: list[float]) -> None:
    scores = attack.run(Predictions(probabilities=PROBABILITIES), rows(3))
    np.testing.assert_allclose(scores.values, expected, rtol=1e-12)
    assert scores.p_values is None


def test_two_classes_from_one_probability() -> None:
    target = Predictions(probabilities=np.array([0.9, 0.9]))
    records = Records.from_arrays(np.arange(2)[:, None], np.array([1, 0]))
    np.testing.assert_allclose(Loss().run(target, records).values, [ln(0.9), ln(0.1)])


@pytest.mark.parametrize(("attack", "_"), EXPECTED)
def test_certain_answers_stay_finite(attack: Attack[BlackBox], _: object) -> None:
    target = Predictions(logits=np.array([[0.0, 5000.0], [5000.0, 0.0]]))
    records = Records.from_arrays(np.arange(2)[:, None], np.array([1, 1]))
    values = attack.run(target, records).values
    assert np.isfinite(values).all()
    if not isinstance(attack, (Confidence, Entropy)):
        assert values[0] > values[1]


def test_labels_outside_the_classes_are_refused() -> None:
    records = Records.from_arrays(np.arange(3)[:, None], np.array([0, 1, 3]))
    with pytest.raises(InvalidInput, match="expected labels below 3.*got 3"):
        Loss().run(Predictions(probabilities=PROBABILITIES), records)


def test_no_records_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one record"):
        Loss().run(Predictions(probabilities=PROBABILITIES), rows(3)[:0])
