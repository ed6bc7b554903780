"""Forests as arrays: what is read back is the forest that was written, or it is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from vestige.errors import DamagedFile
from vestige.records import Records
from vestige.training import EstimatorRecipe
from vestige.training.trees import are_arrays, dump_forest, load_forest


def world(missing: bool = False) -> tuple[Any, Any]:
    x, y = make_classification(300, 8, n_informative=5, n_classes=3, random_state=0)
    if missing:
        x[::7, 3] = np.nan
    return x, y


FORESTS = {
    "plain": RandomForestClassifier(12, random_state=0),
    "shallow": RandomForestClassifier(5, max_depth=3, class_weight="balanced", random_state=1),
    "one leaf a tree": RandomForestClassifier(3, min_samples_split=1.0, bootstrap=False),
    "extra": ExtraTreesClassifier(7, random_state=2),
}


@pytest.mark.parametrize("name", FORESTS)
def test_what_is_read_is_what_was_written(name: str) -> None:
    template = FORESTS[name]
    for missing in (False, True):
        x, y = world(missing)
        fitted = clone(template).fit(x, y)
        again = load_forest(dump_forest(fitted), "a file", template)
        assert type(again) is type(fitted) and again.get_params() == template.get_params()
        np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))
        np.testing.assert_array_equal(again.apply(x), fitted.apply(x))
        np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
        np.testing.assert_allclose(again.feature_importances_, fitted.feature_importances_)
        for one, other in zip(again.estimators_, fitted.estimators_, strict=True):
            assert one.get_params() == other.get_params()
            assert one.get_depth() == other.get_depth()
            np.testing.assert_array_equal(one.predict_proba(x), other.predict_proba(x))
    assert getattr(template, "estimators_", None) is None


def test_a_recipe_writes_forests_as_arrays_and_others_as_before() -> None:
    x, y = world()
    records = Records.from_arrays(x, y, columns=tuple("abcdefgh"))
    recipe = EstimatorRecipe(RandomForestClassifier(5))
    assert recipe.suffix == ".npz"
    made = recipe.fit(records, seed=3)
    again = recipe.loads(recipe.dumps(made), "a file", records.n_classes)
    assert list(again.estimator.feature_names_in_) == list("abcdefgh")
    np.testing.assert_array_equal(
        again.log_probabilities(records.x), made.log_probabilities(records.x)
    )
    for other in (
        LogisticRegression(),
        make_pipeline(RandomForestClassifier(5)),
        RandomForestClassifier(5, oob_score=True),
    ):
        assert not are_arrays(other) and EstimatorRecipe(other).suffix == ".skops"


Held = dict[str, Any]


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Held], None]:
    def damage(held: Held) -> None:
        held[name] = change(held[name])

    return damage


def node(field: str, value: int) -> Callable[[Held], None]:
    """The root of the second tree."""

    def damage(held: Held) -> None:
        held["nodes"][field][held["counts"][0]] = value

    return damage


DAMAGES = {
    "a child beyond its tree": node("left_child", 10_000),
    "a child that is its parent": node("right_child", 0),
    "a child that is none": node("right_child", -1),
    "a feature that is not there": node("feature", 8),
    "a feature below none": node("feature", -2),
    "fewer values": changed("values", lambda v: v[:-1]),
    "more classes": changed("classes", lambda c: np.arange(len(c) + 1)),
    "other counts": changed("counts", lambda c: c[:-1]),
    "no trees": changed("counts", lambda c: c[:0]),
    "fewer depths": changed("depths", lambda d: d[:-1]),
    "nodes of other kind": changed("nodes", lambda n: n["threshold"]),
    "nodes without a field": changed(
        "nodes", lambda n: n[[f for f in n.dtype.names if f != "impurity"]].copy()
    ),
    "nothing": lambda held: held.clear(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_trees_that_lead_out_of_the_file_are_not_read(name: str) -> None:
    template = RandomForestClassifier(4, random_state=0)
    x, y = world()
    with np.load(io.BytesIO(dump_forest(clone(template).fit(x, y)))) as found:
        held = {key: found[key] for key in found.files}
    DAMAGES[name](held)
    file = io.BytesIO()
    np.savez(file, **held)
    with pytest.raises(DamagedFile, match="expected a forest's arrays in model.npz, got others"):
        load_forest(file.getvalue(), "model.npz", template)


@pytest.mark.parametrize("data", [b"", b"PK no zip", b"\x80\x04N."])
def test_what_is_no_archive_is_not_read(data: bytes) -> None:
    with pytest.raises(DamagedFile, match=r"arrays in model.npz"):
        load_forest(data, "model.npz", RandomForestClassifier())


def test_an_archive_of_objects_is_not_read() -> None:
    file = io.BytesIO()
    np.savez(file, nodes=np.array([{}], dtype=object))
    with pytest.raises(DamagedFile):
        load_forest(file.getvalue(), "model.npz", RandomForestClassifier())
