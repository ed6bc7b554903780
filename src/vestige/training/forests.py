"""Random forests fitted by scikit-learn-intelex: scikit-learn's forests, in a third of the time."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import Any

import numpy as np

from vestige.errors import InvalidInput

__all__ = ["check_accelerated", "fit_accelerated", "fitted_by"]

_PLAIN = {
    "criterion": "gini",
    "class_weight": None,
    "max_depth": None,
    "min_samples_split": 2,
    "min_samples_leaf": 1,
    "min_weight_fraction_leaf": 0.0,
    "min_impurity_decrease": 0.0,
    "max_leaf_nodes": None,
    "ccp_alpha": 0.0,
    "monotonic_cst": None,
    "warm_start": False,
    "oob_score": False,
}
"""Fully grown trees: of a leaf that holds several classes it hands on one."""

_CHECKED = 256
"""Training records on which both forests must answer alike."""

_BINS = 64
"""Of a feature, among which splits are searched; 256 take half as long again."""

_FITTED = ("n_features_in_", "n_outputs_", "classes_", "n_classes_", "estimators_", "estimator_")


def check_accelerated(estimator: Any) -> None:
    """Nothing, where `fit_accelerated` can fit it.

    Raises:
        InvalidInput: not a random forest, one with other settings, or the library is not there.
    """
    from sklearn.ensemble import RandomForestClassifier

    forest = _forest_of(estimator)
    if type(forest) is not RandomForestClassifier:
        raise InvalidInput(
            "expected a RandomForestClassifier, or a pipeline that ends in one, with accelerate=, "
            f"got {type(forest).__name__}; leave accelerate= out"
        )
    asked = forest.get_params(deep=False)
    other = [f"{n}={asked[n]!r}" for n, plain in _PLAIN.items() if asked.get(n, plain) != plain]
    if other:
        raise InvalidInput(
            f"expected a forest of fully grown trees with accelerate=, got {other[0]}, with which "
            "scikit-learn-intelex hands on another forest; leave accelerate= out"
        )
    if importlib.util.find_spec("sklearnex") is None:
        raise InvalidInput(
            "expected scikit-learn-intelex, which accelerate= needs; run "
            "`pip install 'vestige[intelex]'`"
        )


def fitted_by() -> str:
    """Library and version, as the keys of what it fits hold them."""
    return f"scikit-learn-intelex {version('scikit-learn-intelex')}"


def fit_accelerated(estimator: Any, x: Any, y: Any) -> None:
    """Fit an estimator in place; what it holds afterwards is scikit-learn's own.

    Splits are searched among 64 bins of a feature, scikit-learn's among all of its values. Where
    equal records of several classes leave trees that cannot be handed on, scikit-learn fits them.
    """
    from sklearnex.ensemble import RandomForestClassifier

    forest = _forest_of(estimator)
    if forest is not estimator and len(estimator.steps) > 1:
        x = estimator[:-1].fit_transform(x, y)
    settings = forest.get_params(deep=False)
    # None is all cores there, and one here
    settings["n_jobs"] = settings["n_jobs"] or 1
    quick = RandomForestClassifier(**settings, max_bins=_BINS)
    # scikit-learn's trees compare single precision with their thresholds
    single = np.ascontiguousarray(x, dtype=np.float32)
    quick.fit(single, y)
    for name in _FITTED:
        setattr(forest, name, getattr(quick, name))
    few = single[:_CHECKED]
    # as predict_proba does, without its cost of a tenth of a millisecond for each tree
    handed = sum(tree.tree_.predict(few) for tree in forest.estimators_) / len(forest.estimators_)
    if np.abs(handed - quick.predict_proba(few)).max() > 1e-5:
        forest.fit(x, y)
    elif hasattr(x, "columns"):
        forest.feature_names_in_ = np.asarray(x.columns, dtype=object)


def _forest_of(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    return steps[-1][1] if steps else estimator
