"""Scores are finite, of distinct records, and never carry a sentinel."""

import numpy as np
import pytest

from vestige.errors import InvalidInput
from vestige.scores import Scores


def test_scores_hold_what_they_are_given():
    made = Scores(np.array(["a", "b"]), np.array([1.0, -2.0]), np.array([0.0, 1.0]))
    assert len(made) == 2 and made.values.tolist() == [1.0, -2.0]
    assert len(Scores(np.arange(0), np.zeros(0))) == 0


@pytest.mark.parametrize(
    ("ids", "values", "p_values", "why"),
    [
        ([0, 1], [1.0], None, "one score for each id, got (1,) scores for (2,) ids"),
        ([[0, 1]], [[1.0, 2.0]], None, "one score for each id"),
        ([0, 0], [1.0, 2.0], None, "scored twice"),
        ([0, 1], [1.0, np.nan], None, "abstains by leaving an id out"),
        ([0, 1], [1.0, -np.inf], None, "abstains by leaving an id out"),
        ([0, 1], [1.0, 2.0], [0.5], "one p-value in [0, 1] for each id"),
        ([0, 1], [1.0, 2.0], [0.5, 1.5], "one p-value in [0, 1]"),
        ([0, 1], [1.0, 2.0], [0.5, -1e-9], "one p-value in [0, 1]"),
        ([0, 1], [1.0, 2.0], [0.5, np.nan], "one p-value in [0, 1]"),
    ],
)
def test_scores_that_are_refused(ids, values, p_values, why):
    with pytest.raises(InvalidInput) as caught:
        Scores(np.array(ids), np.array(values), None if p_values is None else np.array(p_values))
    assert why in str(caught.value)
