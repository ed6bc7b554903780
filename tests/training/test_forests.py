"""Forests fitted by scikit-learn-intelex: scikit-learn's own afterwards, and as exposed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from vestige.errors import InvalidInput
from vestige.models import EstimatorModel
from vestige.records import Records
from vestige.training import EstimatorRecipe, Store, half_and_half, train_many
from vestige.training.engines import Local

needed = pytest.mark.skipif(
    importlib.util.find_spec("sklearnex") is None, reason="scikit-learn-intelex is not installed"
)


def world(n: int = 400, classes: int = 3) -> Records:
    x, y = make_classification(
        n, 12, n_informative=8, n_classes=classes, flip_y=0.1, random_state=0
    )
    return Records.from_arrays(x, y)


def accuracy_of(model: EstimatorModel, records: Records) -> float:
    return float((model.log_probabilities(records.x).argmax(axis=1) == records.y).mean())


def of_true_class(model: EstimatorModel, records: Records) -> Any:
    return model.log_probabilities(records.x)[np.arange(len(records)), records.y]


@needed
def test_what_is_fitted_is_scikit_learns() -> None:
    records = world()
    made = EstimatorRecipe(RandomForestClassifier(30), accelerate=True).fit(records, seed=1)
    forest = made.estimator
    assert type(forest) is RandomForestClassifier and len(forest.estimators_) == 30
    assert {type(tree) for tree in forest.estimators_} == {DecisionTreeClassifier}
    assert forest.score(records.x, records.y) > 0.99
    again, other = (
        EstimatorRecipe(RandomForestClassifier(30), accelerate=True).fit(records, seed=s)
        for s in (1, 2)
    )
    answers = made.log_probabilities(records.x)
    np.testing.assert_array_equal(again.log_probabilities(records.x), answers)
    assert not np.array_equal(other.log_probabilities(records.x), answers)
    plain = EstimatorRecipe(RandomForestClassifier(30)).fit(records, seed=1)
    assert not np.array_equal(plain.log_probabilities(records.x), answers)


@needed
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_features": None},
        {"max_samples": 0.4},
        {"bootstrap": False},
    ],
    ids=lambda s: next(iter(s), "plain"),
)
def test_records_are_as_exposed_as_in_scikit_learns_forests(settings: dict[str, Any]) -> None:
    """Confidence on records of its training set and on others, over fits with other seeds."""
    records, n = world(600), 300
    inside, outside = records[np.arange(n)], records[np.arange(n, 2 * n)]
    template = RandomForestClassifier(20, **settings)
    sides: list[Any] = []
    for accelerate in (False, True):
        recipe = EstimatorRecipe(template, accelerate=accelerate)
        models = [recipe.fit(inside, seed) for seed in range(12)]
        sides.append(
            [[np.exp(of_true_class(m, side)).mean() for m in models] for side in (inside, outside)]
        )
    for plain, quick in zip(*sides, strict=True):
        gap = np.mean(quick) - np.mean(plain)
        width = stats.t.ppf(0.9995, 22) * np.sqrt((np.var(plain) + np.var(quick)) / 11)
        # what the bins change is below a hundredth
        assert abs(gap) < width + 0.01


@needed
def test_pools_are_stored_and_read_and_do_not_depend_on_processes(tmp_path: Path) -> None:
    records, recipe = world(), EstimatorRecipe(RandomForestClassifier(5), accelerate=True)
    member = half_and_half(4, len(records), seed=0)
    member[0, records.y == 2] = False  # one that has not seen a class
    alone = train_many(recipe, records, member, seed=0, engine=Local(1))
    for _ in range(2):
        stored = train_many(
            recipe, records, member, seed=0, engine=Local(2), store=Store(tmp_path / "models")
        )
        for a, b in zip(alone.models, stored.models, strict=True):
            np.testing.assert_array_equal(
                a.log_probabilities(records.x), b.log_probabilities(records.x)
            )
    assert stored.provenance["n_reused"] == 4
    assert recipe.key() != EstimatorRecipe(RandomForestClassifier(5)).key()


@needed
def test_equal_records_of_several_classes_are_left_to_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    records = Records.from_arrays(rng.integers(0, 2, (300, 4)), rng.integers(0, 3, 300))
    template = RandomForestClassifier(10)
    answers = [
        EstimatorRecipe(template, accelerate=quick).fit(records, 1).log_probabilities(records.x)
        for quick in (False, True)
    ]
    np.testing.assert_array_equal(*answers)


@needed
def test_pipelines_and_columns() -> None:
    records = world()
    columns = tuple(f"c{j}" for j in range(12))
    named = Records.from_arrays(records.x, records.y, columns=columns)
    pipe = make_pipeline(StandardScaler(), RandomForestClassifier(10, n_jobs=2))
    made = EstimatorRecipe(pipe, accelerate=True).fit(named, seed=0)
    np.testing.assert_allclose(made.estimator[0].mean_, records.x.mean(axis=0), atol=1e-6)
    assert accuracy_of(made, records) > 0.9
    made.same_meaning(named)
    single = make_pipeline(RandomForestClassifier(10))
    assert EstimatorRecipe(single, accelerate=True).fit(records, seed=0).n_queries == 0
    bare = EstimatorRecipe(RandomForestClassifier(10), accelerate=True).fit(named, seed=0)
    assert bare.estimator.feature_names_in_.tolist() == list(columns)


@needed
@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (LogisticRegression(), "expected a RandomForestClassifier, .* got LogisticRegression;"),
        (ExtraTreesClassifier(), "got ExtraTreesClassifier;"),
        (RandomForestClassifier(max_leaf_nodes=9), "fully grown trees .* got max_leaf_nodes=9,"),
        (RandomForestClassifier(class_weight="balanced"), "got class_weight='balanced'"),
        (RandomForestClassifier(max_depth=4), "got max_depth=4, with which"),
        (RandomForestClassifier(min_samples_leaf=2), "got min_samples_leaf=2"),
        (RandomForestClassifier(criterion="entropy"), "got criterion='entropy'"),
        (RandomForestClassifier(warm_start=True), "got warm_start=True"),
    ],
)
def test_what_is_not_accelerated_is_said(estimator: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        EstimatorRecipe(estimator, accelerate=True)


def test_without_the_library_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"run `pip install 'vestige\[intelex\]'`"):
        EstimatorRecipe(RandomForestClassifier(), accelerate=True)
