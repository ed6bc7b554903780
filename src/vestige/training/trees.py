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
        depths=np.array([state["max_depth"] for state in states]),
        seeds=np.array([tree.random_state for tree in forest.estimators_]),
        classes=forest.classes_,
        n_features=np.array(forest.n_features_in_),
        columns=np.array([] if names is None else names, dtype=str),
    )
    return file.getvalue()


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
        _check(nodes, values, counts, n_features, len(classes))
        forest = clone(template)
        forest.estimator_ = forest.estimator
        forest.classes_, forest.n_classes_ = classes, len(classes)
        forest.n_features_in_, forest.n_outputs_ = n_features, 1
        if len(held["columns"]):
            forest.feature_names_in_ = held["columns"].astype(object)
        ends = np.cumsum(counts)
        forest.estimators_ = [
            _tree(forest, seed, depth, nodes[end - n : end], values[end - n : end])
            for n, end, depth, seed in zip(counts, ends, held["depths"], held["seeds"], strict=True)
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


def _check(
    nodes: NDArray[Any], values: NDArray[Any], counts: NDArray[Any], n_features: int, k: int
) -> None:
    """Nothing, where every path ends in a leaf: scikit-learn would follow it out of the array.

    Raises:
        ValueError: it does not.
    """
    own = np.concatenate([np.arange(n) for n in counts])
    size = np.repeat(counts, counts)
    if len(own) != len(nodes) or values.shape != (len(nodes), 1, k) or counts.min() < 1:
        raise ValueError("the sizes do not agree")
    inner = nodes["left_child"] != _LEAF
    for side in ("left_child", "right_child"):
        child = nodes[side][inner]
        if not ((child > own[inner]) & (child < size[inner])).all():
            raise ValueError("a node's child is none of its tree")
    feature = nodes["feature"][inner]
    if not ((feature >= 0) & (feature < n_features)).all():
        raise ValueError("a node asks for a feature that is not there")
