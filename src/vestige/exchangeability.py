"""Are members and non-members draws from one distribution? A check that never sees a model.

An attack that finds members only because they *look* different says nothing about the model: it
would score as well against a model that was never trained. So a classifier is given the records
themselves, and no model, and asked which side each comes from. It must be at chance; where it is
not, every number of an audit measures the difference of the two sets as well as the leak.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import RidgeClassifier
from threadpoolctl import threadpool_limits

from vestige.errors import InvalidInput
from vestige.metrics import Estimate, auc

__all__ = ["Exchangeability", "exchangeability"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]

N_FOLDS = 5
MIN_RECORDS = 50
LEVEL = 0.99
# Out-of-fold scores are not independent: fold i is scored by a classifier that learned from fold j
# and the other way round. For a score that is linear in the training records the AUC is a sum over
# pairs of folds in which each pair counts twice, so its variance is exactly twice that of
# independent scores; trees measured 1.6 to 1.7. (Nadeau & Bengio 2003, Machine Learning 52,
# correct for the same thing with 1 + 5 * (1/4) = 2.25.)
CROSS_VALIDATION_VARIANCE = 2.0


@dataclass(frozen=True)
class Exchangeability:
    """The outcome of the check.

    Args:
        auc: how well the classifier tells the sides apart, with a 99 % interval; chance is 0.5.
        passed: False when the whole interval is above 0.5, True when not, None when the check
            could not run (or could compare labels only, and these agree).
        reason: one sentence.
    """

    auc: Estimate
    passed: bool | None
    reason: str


def exchangeability(
    member_x: npt.ArrayLike | None,
    nonmember_x: npt.ArrayLike | None,
    *,
    member_y: npt.ArrayLike | None = None,
    nonmember_y: npt.ArrayLike | None = None,
    seed: int = 0,
    max_records: int = 4000,
    max_features: int = 128,
) -> Exchangeability:
    """Try to tell members from non-members without any model; pass where that fails.

    Two classifiers score every record out of fold (5 folds, both sides in each), and their ranks
    are added: ridge regression on the standardized features and their squares (shifts of location
    and scale) and boosted trees (steps, interactions, mixtures). Labels, where given, are features
    too, as a shift of labels is a shift. The AUC of the sum has a 99 % interval with the variance
    that cross-validation calls for, so that exchangeable sides fail about once in 200 checks.

    Cost is bounded: at most `max_records` records are drawn; of more than `max_features` features
    a quarter are the most shifted ones of each training fold and the rest random projections. One
    thread. Equal records go to the same fold, so that a copy on the other side, or the same side,
    teaches nothing; unless the records take so few values that being equal is no sign of a copy.

    A pass is not a proof: the two classifiers see some shifts and not others, and few records hide
    a small one. The interval says how large an AUC could have gone unseen.

    Args:
        member_x: `(n1, ...)` numbers; None where there are only predictions.
        nonmember_x: `(n0, ...)` numbers of the same shape behind the first axis, or None.
        member_y: `(n1,)` labels; None to leave labels out.
        nonmember_y: `(n0,)` labels, or None.
        seed: of the draw, the folds, the projection and the trees.
        max_records: of both sides together.
        max_features: of the records, labels apart.

    Raises:
        InvalidInput: NaN or infinite values, values that are not numbers, shapes of the two sides
            that differ, labels for one side only, or another number of labels than records.
    """
    if max_records < 2 * MIN_RECORDS or max_features < 8:
        raise InvalidInput(
            f"expected max_records >= {2 * MIN_RECORDS} and max_features >= 8, got "
            f"{max_records} and {max_features}"
        )
    sides = [_side(member_x, member_y, "member"), _side(nonmember_x, nonmember_y, "non-member")]
    _comparable(sides)
    sizes = [side.size for side in sides]
    if sides[0].x is None and sides[0].y is None:
        return _not_run("there are neither features nor labels to compare")
    if min(sizes) < MIN_RECORDS:
        return _not_run(
            f"it takes at least {MIN_RECORDS} members and as many non-members, "
            f"got {sizes[0]} and {sizes[1]}"
        )
    rng = np.random.default_rng(seed)
    sides = [_drawn(side, max_records // 2, rng) for side in sides]
    is_member = np.repeat([True, False], [side.size for side in sides])
    with threadpool_limits(1):
        scores = _out_of_fold_scores(sides, is_member, max_features, rng)
    area = auc(
        scores[is_member],
        scores[~is_member],
        level=LEVEL,
        variance_factor=CROSS_VALIDATION_VARIANCE,
    )
    area = replace(
        area,
        method=f"{area.method}, variance doubled for cross-validation",
        context={"n_members": float(sides[0].size), "n_nonmembers": float(sides[1].size)},
    )
    return _verdict(area, labels_only=sides[0].x is None)


def _verdict(area: Estimate, *, labels_only: bool) -> Exchangeability:
    assert area.value is not None and area.low is not None and area.high is not None
    what = "labels" if labels_only else "records"
    found = f"(AUC {area.value:.3f}, 99 % interval {area.low:.3f} to {area.high:.3f})"
    if area.low > 0.5:
        reason = (
            f"a classifier that sees only the {what}, and no model, tells members from "
            f"non-members {found}: an attack may find this difference instead of a leak"
        )
        return Exchangeability(area, False, reason)
    reason = (
        f"a classifier that sees only the {what}, and no model, does not tell members from "
        f"non-members {found}"
    )
    if labels_only:
        return Exchangeability(
            area, None, f"only partly checked, as there are no features: {reason}"
        )
    return Exchangeability(area, True, reason)


def _not_run(reason: str) -> Exchangeability:
    return Exchangeability(Estimate(None, None, None, "none", reason), None, reason)


# --- input -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    x: npt.NDArray[np.generic] | None
    y: npt.NDArray[np.generic] | None
    size: int


def _side(x: npt.ArrayLike | None, y: npt.ArrayLike | None, name: str) -> _Side:
    """One side's arrays, not yet read (they may be memory-mapped)."""
    # what can be sliced is not read: records may be larger than memory
    features: Any = x if x is None or getattr(x, "dtype", None) is not None else np.asarray(x)
    labels = None if y is None else np.asarray(y)
    if features is not None and (not features.shape or features.dtype.kind not in "biuf"):
        raise InvalidInput(
            f"expected {name} records as an array of numbers (n, ...), got shape "
            f"{features.shape} of {features.dtype}"
        )
    if labels is not None and labels.ndim != 1:
        raise InvalidInput(f"expected {name} labels of shape (n,), got shape {labels.shape}")
    if features is not None and labels is not None and len(features) != len(labels):
        raise InvalidInput(
            f"expected one label a record, got {len(labels)} labels of {len(features)} "
            f"{name} records"
        )
    first = features if features is not None else labels
    size = 0 if first is None else len(first)
    if features is not None and size and 0 in features.shape[1:]:
        features = None  # a table of predictions has records without features
    return _Side(features, labels, size)


def _comparable(sides: list[_Side]) -> None:
    """Refuse sides of which only one has features, or labels, or whose shapes differ."""
    for name, first, second in (
        ("features", sides[0].x, sides[1].x),
        ("labels", sides[0].y, sides[1].y),
    ):
        if (first is None) != (second is None):
            raise InvalidInput(f"expected {name} for both sides or for neither, got them for one")
        if first is not None and second is not None and first.shape[1:] != second.shape[1:]:
            raise InvalidInput(
                f"expected members and non-members of one shape, got {first.shape[1:]} and "
                f"{second.shape[1:]}"
            )


def _drawn(side: _Side, n: int, rng: np.random.Generator) -> _Side:
    """At most `n` records of the side, drawn at random, flat and in memory."""
    take = np.arange(side.size)
    if side.size > n:
        take = np.sort(rng.choice(side.size, n, replace=False))
    x = None if side.x is None else np.asarray(side.x[take]).reshape(len(take), -1)
    if x is not None and not np.isfinite(x).all():
        raise InvalidInput("expected finite records, got NaN or infinite values")
    return _Side(x, None if side.y is None else np.asarray(side.y[take]), len(take))


# --- scores ------------------------------------------------------------------------------------


def _out_of_fold_scores(
    sides: list[_Side],
    is_member: npt.NDArray[np.bool_],
    max_features: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """`(n,)` scores of "is a member", each from classifiers that did not see the record."""
    labels = _one_hot(_stacked(sides[0].y, sides[1].y))
    raw = _stacked(sides[0].x, sides[1].x)
    content = labels if raw is None else raw
    assert content is not None
    fold = _folds(_groups(content, is_member), is_member, rng)
    blocks = [] if labels is None else [_standardized(labels)]
    shifted: list[Floats] = []
    if raw is not None:
        wide = _standardized(raw)
        blocks.append(_standardized(_summaries(wide)))
        if wide.shape[1] <= max_features:
            blocks.append(wide)
        else:
            shifted = _most_shifted(wide, is_member, fold, max_features // 4)
            blocks.append(_projected(wide, max_features - max_features // 4, rng))
    base = np.hstack(blocks)
    tree_seed = int(rng.integers(2**31))
    scores = np.empty(len(is_member))
    for k in range(N_FOLDS):
        features = np.hstack([base, shifted[k]]) if shifted else base
        train, test = fold != k, fold == k
        scores[test] = _scored(features[train], is_member[train], features[test], tree_seed)
    return scores


def _scored(
    train: Floats, is_member: npt.NDArray[np.bool_], test: Floats, seed: int
) -> npt.NDArray[np.float64]:
    """Sum of the ranks that the two classifiers give the test records, on the scale (0, 2)."""
    ridge = RidgeClassifier(alpha=0.3 * len(train))
    trees = HistGradientBoostingClassifier(
        max_iter=40,
        max_leaf_nodes=8,
        min_samples_leaf=min(20, max(5, len(train) // 20)),
        max_bins=64,
        early_stopping=False,
        random_state=seed,
    )
    ridge.fit(_with_squares(train), is_member)
    trees.fit(train, is_member)
    by_ridge = ridge.decision_function(_with_squares(test))
    by_trees = trees.decision_function(test)
    # ranks within the fold: the folds' classifiers have scales and offsets of their own
    ranks = rankdata(by_ridge) + rankdata(by_trees)
    return np.asarray(ranks / (len(test) + 1))


def _with_squares(z: Floats) -> Floats:
    return np.hstack([z, z * z])


# --- features ----------------------------------------------------------------------------------


def _stacked(
    first: npt.NDArray[np.generic] | None, second: npt.NDArray[np.generic] | None
) -> npt.NDArray[np.generic] | None:
    return None if first is None or second is None else np.concatenate([first, second])


def _standardized(x: npt.NDArray[np.generic]) -> Floats:
    """Columns of mean 0 and deviation 1, cut at 6 deviations; constant columns are 0.

    Over both sides at once: nothing here knows which side a record is on.
    """
    center, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    # relative to the size of the column: rounding makes a constant deviate a little
    constant = spread <= 1e-9 * np.abs(center)
    z = (x - center) / np.where(constant, 1.0, spread)
    z[:, constant] = 0.0
    return np.asarray(np.clip(z, -6, 6), dtype=np.float32)


def _one_hot(labels: npt.NDArray[np.generic] | None, max_classes: int = 128) -> Floats | None:
    """One column a class, for the `max_classes` most frequent."""
    if labels is None:
        return None
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.argsort(-counts, kind="stable")[:max_classes]
    columns: Floats = (index[:, None] == kept).astype(np.float32)
    return columns


def _summaries(z: Floats) -> Floats:
    """`(n, 5)` what a whole row is like: level, spread, extremes, roughness along the row."""
    steps = np.abs(np.diff(z, axis=1)).mean(axis=1) if z.shape[1] > 1 else np.zeros(len(z))
    size = np.abs(z)
    columns = [z.mean(axis=1), size.mean(axis=1), np.sqrt((z * z).mean(axis=1)), size.max(axis=1)]
    return np.asarray(np.stack([*columns, steps], axis=1), dtype=np.float32)


def _projected(z: Floats, n: int, rng: np.random.Generator) -> Floats:
    """`(n_records, n)` random directions: they keep what is spread over many features."""
    directions = rng.standard_normal((z.shape[1], n), dtype=np.float32)
    return _standardized(np.asarray(z @ directions))


def _most_shifted(
    z: Floats, is_member: npt.NDArray[np.bool_], fold: Integers, n: int
) -> list[Floats]:
    """For each fold, the `n` columns whose mean or square differs most *outside* the fold.

    They keep what a projection would drown: a mark in one corner of a picture.
    """
    squares = z * z
    noise = squares.std(axis=0) + 1e-6
    out = []
    for k in range(N_FOLDS):
        weight = np.where(is_member, 1.0, -1.0) * (fold != k)
        for side in (is_member, ~is_member):
            weight[side] /= max(int((side & (fold != k)).sum()), 1)
        weight = weight.astype(np.float32)
        shift = np.maximum(np.abs(weight @ z), np.abs(weight @ squares) / noise)
        out.append(z[:, np.sort(np.argsort(-shift, kind="stable")[:n])])
    return out


# --- folds -------------------------------------------------------------------------------------


def _groups(x: npt.NDArray[np.generic], is_member: npt.NDArray[np.bool_]) -> Integers:
    """`(n,)` group of each record: copies share one.

    Where fewer than half of the records are distinct, or a side has hardly any distinct ones, equal
    records are what the features make likely and not copies (bits, small counts, labels): each is
    then its own group.
    """
    rows = np.ascontiguousarray(x)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    distinct, groups = np.unique(np.array(digests, dtype="V16"), return_inverse=True)
    fewest = min(len(np.unique(groups[is_member])), len(np.unique(groups[~is_member])))
    if 2 * len(distinct) < len(x) or fewest < 2 * N_FOLDS:
        return np.arange(len(x))
    return np.asarray(groups, dtype=np.intp)


def _folds(
    groups: Integers, is_member: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Integers:
    """`(n,)` fold of each record: groups stay whole, each fold gets its share of both sides."""
    n_groups = int(groups.max()) + 1
    members = np.bincount(groups[is_member], minlength=n_groups) > 0
    others = np.bincount(groups[~is_member], minlength=n_groups) > 0
    kind = members + 2 * others  # of members only, of non-members only, of both
    order = rng.permutation(n_groups)
    order = order[np.argsort(kind[order], kind="stable")]
    fold = np.empty(n_groups, dtype=np.intp)
    fold[order] = np.arange(n_groups) % N_FOLDS
    return np.asarray(fold[groups])
