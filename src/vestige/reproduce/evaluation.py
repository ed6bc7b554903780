"""What the tables of the shadow-model paper report, each number with its interval.

As many members as non-members are judged, so that chance is one half, at the threshold that was
fixed beforehand: 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.metrics import Estimate, auc, precision, rate, rate_difference

__all__ = ["attack_estimates", "calibration_error", "normalized_entropy", "target_estimates"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

BINS = 20
_CALIBRATION_BINS = 15
_RESAMPLES = 500


def attack_estimates(
    values: Floats, member: Mask, y: Labels, n_classes: int
) -> tuple[dict[str, Estimate], dict[str, Sequence[float]]]:
    """Attack accuracy, precision, recall and AUC, and counts for each class.

    Args:
        values: (n,) scores in [0, 1]; at least 0.5 calls a record a member.
        member: (n,) the truth, half of it true.
        y: (n,) labels.

    Returns:
        estimates; and series by class: "class", "tp", "fp", "members", "nonmembers".

    Raises:
        InvalidInput: not as many members as non-members.
    """
    n1, n0 = int(member.sum()), int((~member).sum())
    if n1 != n0:
        raise InvalidInput(f"expected as many members as non-members, got {n1} and {n0}")
    called = values >= 0.5
    tp, fp = int((called & member).sum()), int((called & ~member).sum())
    estimates = {
        "attack_accuracy": rate(tp + n0 - fp, n1 + n0),
        "precision": precision(values[member], values[~member], threshold=0.5),
        "recall": rate(tp, n1),
        "fpr": rate(fp, n0),
        "auc": auc(values[member], values[~member]),
        **_over_classes(called, member, y, n_classes),
    }

    def by_class(chosen: Mask) -> list[float]:
        return [float(n) for n in np.bincount(y[chosen], minlength=n_classes)]

    series: dict[str, Sequence[float]] = {
        "class": [float(c) for c in range(n_classes)],
        "tp": by_class(called & member),
        "fp": by_class(called & ~member),
        "members": by_class(member),
        "nonmembers": by_class(~member),
    }
    return estimates, series


def _over_classes(called: Mask, member: Mask, y: Labels, n_classes: int) -> dict[str, Estimate]:
    """Median over classes of the precision and recall of each, where they are defined."""
    tp = np.bincount(y[called & member], minlength=n_classes)
    found = np.bincount(y[called], minlength=n_classes)
    there = np.bincount(y[member], minlength=n_classes)
    return {
        "median_precision": _median(tp[found > 0] / found[found > 0]),
        "median_recall": _median(tp[there > 0] / there[there > 0]),
    }


def _median(shares: Floats) -> Estimate:
    """The median over classes, with the binomial interval of order statistics where there is one.

    Source: Conover, Practical Nonparametric Statistics, 3.2 (quantiles).
    """
    from scipy.stats import binom

    if not len(shares):
        return Estimate(None, None, None, "none", "no class has it")
    n, ordered = len(shares), np.sort(shares)
    value = float(np.median(ordered))
    below = int(binom.ppf(0.025, n, 0.5))
    if n < 6 or below < 1:
        return Estimate(value, None, None, "none: fewer than six classes")
    low, high = float(ordered[below - 1]), float(ordered[n - below])
    return Estimate(value, low, high, f"order statistics over {n} classes")


def target_estimates(
    members: Floats, members_y: Labels, others: Floats, others_y: Labels, seed: int
) -> dict[str, Estimate]:
    """Accuracies of a target as served, their gap, and how far its confidence is off.

    Args:
        members, others: (n, classes) natural logs of what is shown for either side.
        members_y, others_y: (n,) labels.
        seed: of the bootstrap.
    """
    right_1 = int((members.argmax(axis=1) == members_y).sum())
    right_0 = int((others.argmax(axis=1) == others_y).sum())
    return {
        "train_accuracy": rate(right_1, len(members)),
        "test_accuracy": rate(right_0, len(others)),
        "gap": rate_difference(right_1, len(members), right_0, len(others)),
        "calibration_error": calibration_error(others, others_y, seed),
    }


def calibration_error(shown: Floats, y: Labels, seed: int) -> Estimate:
    """Expected calibration error: mean |accuracy - confidence| over 15 bins of the confidence.

    Confidence is the largest probability shown; bins are of equal width, weighted by their records.
    The interval is a percentile bootstrap over records; the measure itself is biased upwards by the
    noise within bins.

    Source: Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural networks, eq. 3.
    """
    confidence = np.exp(shown.max(axis=1))
    right = (shown.argmax(axis=1) == y).astype(np.float64)
    value = _gap_over_bins(confidence, right)
    rng, n = np.random.default_rng(seed), len(y)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(n, size=n)
        drawn.append(_gap_over_bins(confidence[rows], right[rows]))
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    method = f"percentile bootstrap over records, {_RESAMPLES} resamples"
    return Estimate(value, min(low, value), max(high, value), method)


def _gap_over_bins(confidence: Floats, right: Floats) -> float:
    place = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    off = np.bincount(place, weights=right - confidence, minlength=_CALIBRATION_BINS)
    return float(np.abs(off).sum() / len(right))


def normalized_entropy(shown: Floats) -> Floats:
    """-sum p log p / log C, (n,), of what is shown: 0 for certain, 1 for uniform; 0 log 0 = 0.

    A vector that a filter has cut is scaled to sum 1 first.
    """
    p = np.exp(shown)
    p = p / p.sum(axis=1, keepdims=True)
    terms = np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0)
    return np.asarray(-terms.sum(axis=1) / np.log(shown.shape[1]))


def histograms(
    members: Floats, members_y: Labels, others: Floats, others_y: Labels
) -> Mapping[str, list[float]]:
    """Shares of either side in 20 bins of [0, 1]: uncertainty, and confidence in the true class."""
    out = {}
    for side, shown, y in (("members", members, members_y), ("nonmembers", others, others_y)):
        true = np.exp(shown[np.arange(len(y)), y])
        for what, values in (("uncertainty", normalized_entropy(shown)), ("confidence", true)):
            counts, _ = np.histogram(np.clip(values, 0, 1), BINS, (0.0, 1.0))
            out[f"{what}_{side}"] = (counts / len(y)).tolist()
    return out
