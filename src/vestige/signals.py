"""Per-record quantities read off a model's answers.

Each takes log-probabilities (n, classes) float64 and labels (n,), and returns (n,) or (n, columns)
float64, a row for each record that depends on that record alone: records are read in parts. They
are signals, not scores: whether higher means member is the attack's business.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Signal",
    "centered_logits",
    "correctness",
    "cross_entropy_loss",
    "log_probabilities",
    "max_confidence",
    "modified_prediction_entropy",
    "prediction_entropy",
    "sum_and_least",
    "true_class_margin",
]

Floats = NDArray[np.float64]
Signal = Callable[[Floats, NDArray[np.int64]], Floats]


def _true_class(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    return np.asarray(log_probabilities[np.arange(len(y)), y])


def _log_of_rest(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """Log of the sum of the other classes' probabilities, (n,); -inf where all of them are 0.

    SciPy's logsumexp, operation for operation, without what it does for weights, complex numbers
    and other array libraries: a third of the time, the same digits.
    """
    rest = log_probabilities.copy()
    rest[np.arange(len(y)), y] = -np.inf
    largest = rest.max(axis=1, keepdims=True)
    is_largest = rest == largest
    n_largest = is_largest.sum(axis=1, dtype=np.float64)
    np.copyto(rest, -np.inf, where=is_largest)
    none = np.isneginf(largest)
    # the largest is kept out of the sum: beside it the others would lose their digits
    others = np.exp(rest - np.where(none, 0.0, largest)).sum(axis=1) / n_largest
    return np.asarray(np.log1p(others) + np.log(n_largest) + largest[:, 0])


def log_probabilities(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """The answers themselves, (n, classes): what the other signals are made of."""
    return log_probabilities


def centered_logits(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """Logits (n, classes) less their mean over the classes, whatever the label.

    Probabilities say no more of logits than that, and training by cross-entropy moves no more: its
    gradient sums to zero over the classes, so that what is left out is what it was at the start.

    >>> import numpy as np
    >>> centered_logits(np.log([[0.8, 0.2]]), np.array([0])).round(4).tolist()
    [[0.6931, -0.6931]]
    """
    return np.asarray(log_probabilities - log_probabilities.mean(axis=1, keepdims=True))


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


def sum_and_least(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
    """The sum of a row's probabilities, and its smallest log-probability, (n, 2): of the answers
    of a model that nobody rounded or cut, 1 and many different ones."""
    least = log_probabilities.min(axis=1)
    return np.column_stack([np.exp(log_probabilities).sum(axis=1), least])
