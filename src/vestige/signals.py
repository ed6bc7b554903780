"""Per-record quantities read off a model's answers.

Each takes log-probabilities (n, classes) float64 and labels (n,), and returns (n,) float64. They
are signals, not scores: whether higher means member is the attack's business.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

__all__ = [
    "Signal",
    "correctness",
    "cross_entropy_loss",
    "max_confidence",
    "modified_prediction_entropy",
    "prediction_entropy",
    "true_class_margin",
]

Floats = NDArray[np.float64]
Signal = Callable[[Floats, NDArray[np.int64]], Floats]


def _true_class(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    return np.asarray(log_probabilities[np.arange(len(y)), y])


def _log_of_rest(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    rest = log_probabilities.copy()
    rest[np.arange(len(y)), y] = -np.inf
    return np.asarray(logsumexp(rest, axis=1))


def cross_entropy_loss(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """-log p_y."""
    return -_true_class(log_probabilities, y)


def true_class_margin(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """phi = log p_y - log(sum of p_c over c != y); LiRA's statistic (Carlini et al. 2022, eq. 2).

    The sum over the other classes is taken by logsumexp: 1 - p_y would round to 0 for every
    confident answer.

    >>> import numpy as np
    >>> float(np.round(true_class_margin(np.log([[0.9, 0.1]]), np.array([0]))[0], 4))
    2.1972
    """
    return _true_class(log_probabilities, y) - _log_of_rest(log_probabilities, y)


def max_confidence(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """The largest log-probability, whatever the label."""
    return np.asarray(log_probabilities.max(axis=1))


def prediction_entropy(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """-sum_c p_c log p_c in nats; the label is not used."""
    return -np.asarray((np.exp(log_probabilities) * log_probabilities).sum(axis=1))


def modified_prediction_entropy(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c) (Song & Mittal 2021, eq. 8).

    log(1 - p_c) is the log of the sum of all other probabilities, so that it stays finite.
    """
    # only the largest probability can be near 1, where 1 - p rounds to 0
    largest = log_probabilities.argmax(axis=1)
    log_rest = np.log1p(-np.exp(np.minimum(log_probabilities, -np.log(2))))
    log_rest[np.arange(len(y)), largest] = _log_of_rest(log_probabilities, largest)
    terms = np.exp(log_probabilities) * log_rest
    terms[np.arange(len(y)), y] = np.exp(_true_class(log_rest, y)) * _true_class(
        log_probabilities, y
    )
    return -np.asarray(terms.sum(axis=1))


def correctness(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """1 where the most probable class is the label, else 0."""
    return np.asarray((log_probabilities.argmax(axis=1) == y).astype(np.float64))
