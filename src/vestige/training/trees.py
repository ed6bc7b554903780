"""Random forests as arrays: a hundred trees are written in hundredths of a second, without pickles.

skops writes each number of a node as an object of its own. Here the nodes of all trees are one
array; what remains of a forest are its parameters, which a recipe has.
"""

from __future__ import annotations

import io
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vestige.errors import DamagedFile

__all__ = ["are_arrays", "dump_forest", "load_forest"]

_LEAF = -1
_SHARES = 1e-6
_SAMPLES = {
    "n_samples": "_n_samples",
    "n_drawn": "_n_samples_bootstrap",
    "sample_weight": "_sample_weight",
}
"""Names in a file of what a forest keeps of its training records."""


def are_arrays(estimator: Any) -> bool:
    """Whether arrays say all of this fitted estimator: a plain forest of scikit-learn's."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    forest = type(estimator) in (RandomForestClassifier, ExtraTreesClassifier)
    return forest and not estimator.oob_score


def dump_forest(forest: Any) -> bytes:
    """A fitted forest as an .npz file, which `load_forest` reads."""
    states = [tree.tree_.__getstate__() for tree in forest.estimators_]
    names = getattr(forest, "feature_names_in_", None)
    file = io.BytesIO()
    np.savez(
        file,
        nodes=np.concatenate([state["nodes"] for state in states]),
        values=np.concatenate([state["values"] for state in states]),
        counts=np.array([state["node_count"] for state in states]),
        seeds=np.array([tree.random_state for tree in forest.estimators_]),
        classes=forest.classes_,
        n_features=np.array(forest.n_features_in_),
        columns=np.array([] if names is None else names, dtype=str),
        **_drawn(forest),
    )
    return file.getvalue()


def _drawn(forest: Any) -> dict[str, Any]:
    """What `estimators_samples_` asks for, where the forest has it."""
    held = ((name, getattr(forest, own, None)) for name, own in _SAMPLES.items())
    return {name: np.asarray(value) for name, value in held if value is not None}


def load_forest(data: bytes, name: str, template: Any) -> Any:
    """A forest from the content of a file of this name.

    Args:
        template: a forest of the same parameters, which is left as it is.

    Raises:
        DamagedFile: not a forest's file, or its trees are none.
    """
    from sklearn.base import clone

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            held = {key: found[key] for key in found.files}
        nodes, values, counts = held["nodes"], held["values"], held["counts"]
        n_features, classes = int(held["n_features"]), held["classes"]
        depths = _depths(nodes, values, counts, n_features, len(classes))
        forest = clone(template)
        forest.estimator_ = forest.estimator
        forest.classes_, forest.n_classes_ = classes, len(classes)
        forest.n_features_in_, forest.n_outputs_ = n_features, 1
        if len(held["columns"]):
            forest.feature_names_in_ = held["columns"].astype(object)
        _restore(forest, held)
        ends = np.cumsum(counts)
        forest.estimators_ = [
            _tree(forest, seed, depth, nodes[end - n : end], values[end - n : end])
            for n, end, depth, seed in zip(counts, ends, depths, held["seeds"], strict=True)
        ]
    # no archive, a name that is not there, an array of another kind
    except (BadZipFile, OSError, KeyError, ValueError, TypeError, EOFError, IndexError) as error:
        raise DamagedFile(f"expected a forest's arrays in {name}, got others ({error})") from None
    return forest


def _tree(forest: Any, seed: int, depth: int, nodes: NDArray[Any], values: NDArray[Any]) -> Any:
    from sklearn.tree._tree import Tree

    settings = {n: getattr(forest, n) for n in forest.estimator_params}
    tree = type(forest.estimator)(**{**settings, "random_state": int(seed)})
    tree.n_features_in_, tree.n_outputs_ = forest.n_features_in_, 1
    tree.n_classes_, tree.classes_ = forest.n_classes_, np.arange(forest.n_classes_)
    tree.tree_ = Tree(forest.n_features_in_, np.array([forest.n_classes_], dtype=np.intp), 1)
    tree.tree_.__setstate__(
        {"max_depth": int(depth), "node_count": len(nodes), "nodes": nodes, "values": values}
    )
    return tree


def _restore(forest: Any, held: dict[str, NDArray[Any]]) -> None:
    """What `_drawn` gave, where it gave something.

    Raises:
        ValueError: it makes no sense.
    """
    if "n_samples" not in held:
        return
    for own in _SAMPLES.values():
        setattr(forest, own, None)
    for name in ("n_samples", "n_drawn"):
        if name in held:
            number = held[name]
            if number.shape or number.dtype.kind not in "iu" or number < 1:
                raise ValueError(f"{name} is no number of records")
            setattr(forest, _SAMPLES[name], int(number))
    if "sample_weight" in held:
        weight = held["sample_weight"]
        if weight.shape != (forest._n_samples,) or not (np.isfinite(weight) & (weight >= 0)).all():
            raise ValueError("the records' weights are none")
        forest._sample_weight = weight


def _depths(
    nodes: NDArray[Any], values: NDArray[Any], counts: NDArray[Any], n_features: int, k: int
) -> NDArray[np.int64]:
    """The depth of each tree, where every path ends in a leaf with shares of the k classes.

    scikit-learn would follow other paths out of the array, and reserves room for a path by the
    depth: it is not read from a file.

    Raises:
        ValueError: nodes that are no trees.
    """
    if len(counts) < 1 or counts.min() < 1 or counts.max() > len(nodes):
        raise ValueError("the sizes do not agree")
    if counts.sum() != len(nodes) or values.shape != (len(nodes), 1, k):
        raise ValueError("the sizes do not agree")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    own, size = np.arange(len(nodes)) - starts, np.repeat(counts, counts)
    inner = nodes["left_child"] != _LEAF
    if (nodes["right_child"][~inner] != _LEAF).any():
        raise ValueError("a node has one child")
    above = np.arange(len(nodes))
    for side in ("left_child", "right_child"):
        child = nodes[side][inner]
        if not ((child > own[inner]) & (child < size[inner])).all():
            raise ValueError("a node's child is none of its tree")
        above[child + starts[inner]] = np.flatnonzero(inner)
    # as many children as nodes that are not roots, and none of them is left: each has one parent
    orphans = (above == np.arange(len(nodes))) & (own > 0)
    if 2 * inner.sum() != len(nodes) - len(counts) or orphans.any():
        raise ValueError("a node is the child of two, or of none")
    feature = nodes["feature"][inner]
    if not ((feature >= 0) & (feature < n_features)).all():
        raise ValueError("a node asks for a feature that is not there")
    if (
        not (np.isfinite(values) & (values >= 0)).all()
        or (np.abs(values.sum(axis=2) - 1) > _SHARES).any()
    ):
        raise ValueError("a node's values are no shares of classes")
    # a step up of one, two, four nodes: paths are followed in as many rounds as depths have bits
    steps = (above != np.arange(len(nodes))).astype(np.int64)
    while (above != above[above]).any():
        steps, above = steps + steps[above], above[above]
    return np.maximum.reduceat(steps, np.cumsum(counts) - counts)
