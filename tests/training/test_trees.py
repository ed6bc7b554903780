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
    "best first": RandomForestClassifier(4, max_leaf_nodes=20, max_samples=0.5, random_state=3),
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
            assert one.get_n_leaves() == other.get_n_leaves()
            np.testing.assert_array_equal(one.predict_proba(x), other.predict_proba(x))
    assert getattr(template, "estimators_", None) is None


@pytest.mark.parametrize("name", FORESTS)
def test_which_records_a_tree_had_is_read_back(name: str) -> None:
    x, y = world()
    fitted = clone(FORESTS[name]).fit(x, y)
    again = load_forest(dump_forest(fitted), "a file", FORESTS[name])
    for one, other in zip(again.estimators_samples_, fitted.estimators_samples_, strict=True):
        np.testing.assert_array_equal(one, other)


def dumped() -> Any:
    """Records, a forest of them, fitted, and the arrays of its file."""
    x, y = world()
    template = RandomForestClassifier(4, random_state=0)
    fitted = clone(template).fit(x, y)
    with np.load(io.BytesIO(dump_forest(fitted))) as found:
        return x, y, template, fitted, {key: found[key] for key in found.files}


def test_a_depth_in_a_file_is_not_believed() -> None:
    """Room for the nodes of a path is reserved by it."""
    x, y, template, fitted, held = dumped()
    file = io.BytesIO()
    np.savez(file, **{**held, "depths": np.zeros(4, dtype=int)})
    again = load_forest(file.getvalue(), "a file", template)
    own = [tree.tree_.max_depth for tree in fitted.estimators_]
    assert [tree.tree_.max_depth for tree in again.estimators_] == own and min(own) > 4
    paths, expected = again.decision_path(x)[0], fitted.decision_path(x)[0]
    assert (paths != expected).nnz == 0


def test_a_file_without_the_records_of_trees_is_read() -> None:
    x, y, template, fitted, held = dumped()
    file = io.BytesIO()
    np.savez(file, **{k: v for k, v in held.items() if k not in ("n_samples", "n_drawn")})
    again = load_forest(file.getvalue(), "a file", template)
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))


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


def value(node: int, to: float) -> Callable[[Held], None]:
    return lambda held: held["values"].__setitem__((node, 0, 0), to)


def orphan(held: Held) -> None:
    """The second node of a child gets lost; every path still ends."""
    nodes = held["nodes"][: held["counts"][0]]
    parent = np.flatnonzero((nodes["right_child"] != -1) & (nodes["right_child"] % 2 == 0))[0]
    nodes["right_child"][parent] = nodes["left_child"][parent]


def two_parents(held: Held) -> None:
    """A leaf leads to the last node, which has a parent; every path still ends."""
    nodes = held["nodes"][: held["counts"][0]]
    leaf = np.flatnonzero(nodes["left_child"] == -1)[0]
    for side in ("left_child", "right_child"):
        nodes[side][leaf] = len(nodes) - 1
    nodes["feature"][leaf] = 0


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
    "one tree of more nodes than there are": changed(
        "counts", lambda c: np.array([c.sum() + 1, *c[1:-1], -1])
    ),
    "counts that agree by running over": changed(
        "counts", lambda c: np.array([2**62, 2**62, 2**62, 2**62 + c.sum()])
    ),
    "fewer seeds": changed("seeds", lambda s: s[:-1]),
    "a leaf with a right child": lambda held: held["nodes"]["right_child"].__setitem__(-1, 0),
    "a child of none": orphan,
    "a child of two": two_parents,
    "a value that is no number": value(0, np.nan),
    "a value without end": value(0, np.inf),
    "a value below none": lambda held: held["values"].__setitem__((0, 0), [-0.5, 1.5, 0]),
    "shares of more than all": value(0, 1.5),
    "no number of records": changed("n_samples", lambda n: np.array(0)),
    "numbers of records": changed("n_drawn", lambda n: np.array([300])),
    "a share of a record": changed("n_drawn", lambda n: np.array(0.5)),
    "weights of other records": lambda held: held.update(sample_weight=np.ones(299)),
    "weights that are none": lambda held: held.update(sample_weight=np.full(300, np.nan)),
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
