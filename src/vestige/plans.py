"""Plans by name, from a file, and from a function of the user's own."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vestige import datasets
from vestige.audit import Plan
from vestige.errors import DamagedFile, InvalidInput, PlanError
from vestige.models import EstimatorModel
from vestige.records import Records, Split, split
from vestige.training.networks import CNN, MLP
from vestige.training.recipe import (
    EarlyStopping,
    Recipe,
    TorchRecipe,
    cosine,
    read_estimator,
    read_tensors,
)

__all__ = ["BUILT_IN", "built_in", "plan_of"]


@dataclass(frozen=True)
class BuiltIn:
    """A data set with a network that fits it as people would fit it, and leaks accordingly.

    Args:
        sizes: members, non-members, population.
        recipe: from the shape of a record and the number of classes.
        references: reference models by default.
        description: of the target, one line.
        image: shape of a picture, else ().
    """

    sizes: tuple[int, int, int]
    recipe: Callable[[tuple[int, ...], int], TorchRecipe]
    references: int
    description: str
    image: tuple[int, ...] = ()


def _mlp(
    hidden: tuple[int, ...], activation: str = "relu", **training: Any
) -> Callable[..., TorchRecipe]:
    def recipe(shape: tuple[int, ...], classes: int) -> TorchRecipe:
        return TorchRecipe(MLP(int(np.prod(shape)), classes, hidden, activation), **training)

    return recipe


def _cnn(**training: Any) -> Callable[..., TorchRecipe]:
    def recipe(shape: tuple[int, ...], classes: int) -> TorchRecipe:
        return TorchRecipe(CNN(shape[0], shape[1], classes), **training)

    return recipe


BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn(
        (898, 599, 300),
        _mlp((128,), epochs=100, batch_size=32, optimizer="adam", lr=2e-3),
        64,
        "one hidden layer of 128 units, 100 epochs of Adam",
        (8, 8),
    ),
    "adult": BuiltIn(
        (2000, 2000, 1000),
        _mlp((128,), epochs=60, batch_size=64, optimizer="adam", lr=2e-3),
        64,
        "one hidden layer of 128 units, 60 epochs of Adam",
    ),
    "breast_cancer": BuiltIn(
        (220, 219, 130),
        _mlp((64,), epochs=100, batch_size=32, optimizer="adam", lr=2e-3),
        64,
        "one hidden layer of 64 units, 100 epochs of Adam",
    ),
    "location30": BuiltIn(
        (1000, 1000, 1000),
        _mlp((128,), "tanh", epochs=30, batch_size=50, lr=0.1, weight_decay=1e-3),
        64,
        "one hidden layer of 128 tanh units, 30 epochs of SGD with weight decay",
    ),
    "mnist": BuiltIn(
        (2000, 2000, 1000),
        _cnn(epochs=15, batch_size=64, optimizer="adam", lr=1e-3),
        16,
        "two convolutions and a layer of 128 units, 15 epochs of Adam",
        (28, 28),
    ),
    "cifar10": BuiltIn(
        (4000, 4000, 2000),
        _cnn(epochs=15, batch_size=64, optimizer="adam", lr=1e-3),
        16,
        "two convolutions and a layer of 128 units, 15 epochs of Adam",
        (3, 32, 32),
    ),
}


def built_in(
    name: str, *, seed: int = 0, references: int | None = None, root: str | None = None
) -> Plan:
    """The plan of a built-in data set.

    Raises:
        DatasetUnavailable: the data are not on this machine.
    """
    made = BUILT_IN[name]
    records = datasets.load(name, root)
    drawn = split(records, *made.sizes, seed=seed)
    return Plan(
        split=drawn,
        recipe=made.recipe(records.x.shape[1:], records.n_classes),
        references=made.references if references is None else references,
        seed=seed,
        name=name,
        data_name=name,
        description=made.description,
        image=made.image,
    )


def plan_of(
    what: str,
    *,
    seed: int | None = None,
    references: int | None = None,
    trust_pickle: bool = False,
) -> Plan:
    """The plan that a word on the command line names.

    Args:
        what: a built-in data set, a file ending in .toml, or package.module:function.
        seed, references: instead of the plan's own.

    Raises:
        PlanError: it names nothing, or something that is no plan.
    """
    if what in BUILT_IN:
        return built_in(what, seed=seed or 0, references=references)
    if what.endswith(".toml"):
        plan = _from_toml(Path(what), trust_pickle)
    elif ":" in what:
        plan = _from_function(what)
    else:
        raise PlanError(
            f"expected one of {', '.join(BUILT_IN)}, a PLAN.toml or package.module:function, got "
            f"{what!r}"
        )
    changes: dict[str, Any] = {"seed": seed, "references": references}
    return replace(plan, **{k: v for k, v in changes.items() if v is not None})


def _from_function(what: str) -> Plan:
    module_name, _, name = what.partition(":")
    # a script's own folder is where people keep the module they name
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PlanError(
            f"expected a module {module_name} that can be imported, but {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise PlanError(f"expected a function {name} in {module_name}, found none")
    plan = function()
    if not isinstance(plan, Plan):
        raise PlanError(f"expected {what} to return a vestige.Plan, got {type(plan).__name__}")
    return plan


# --- PLAN.toml ---------------------------------------------------------------------------------

_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "": ("name", "seed", "references", "attacks", "data", "target", "training"),
    "data": ("set", "file", "members", "nonmembers", "population", "image"),
    "target": ("network", "hidden", "activation", "weights", "estimator", "description"),
    "training": (
        "epochs",
        "steps",
        "batch_size",
        "optimizer",
        "lr",
        "momentum",
        "weight_decay",
        "schedule",
        "patience",
        "device",
    ),
}


def _from_toml(path: Path, trust_pickle: bool) -> Plan:
    try:
        said = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise PlanError(f"expected a plan at {path}, found no file; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"expected TOML in {path.name}, but {error}") from None
    _refuse_unknown(path, said)
    folder = path.parent
    seed = int(said.get("seed", 0))
    drawn = _split_of(folder, said.get("data", {}), seed)
    recipe = _recipe_of(said, drawn)
    return Plan(
        split=drawn,
        target=_target_of(folder, said.get("target", {}), recipe, drawn, trust_pickle),
        recipe=recipe,
        references=int(said.get("references", 64)),
        attacks=said.get("attacks", "standard"),
        seed=seed,
        name=str(said.get("name", path.stem)),
        data_name=str(said["data"].get("set", said["data"].get("file", path.stem))),
        description=str(said.get("target", {}).get("description", "")),
        image=tuple(said["data"].get("image", ())),
    )


def _refuse_unknown(path: Path, said: Mapping[str, Any]) -> None:
    for section, known in _SECTIONS.items():
        found = said if not section else said.get(section, {})
        if not isinstance(found, Mapping):
            raise PlanError(f"expected a table [{section}] in {path.name}, got {found!r}")
        unknown = [key for key in found if key not in known]
        if unknown:
            where = f"[{section}] of {path.name}" if section else path.name
            raise PlanError(
                f"expected {', '.join(known)} in {where}, got {unknown[0]!r}; correct the name"
            )
    if "data" not in said:
        raise PlanError(f"expected a table [data] in {path.name}, which says what was trained on")


def _split_of(folder: Path, data: Mapping[str, Any], seed: int) -> Split:
    """Either one set that is drawn from, or a file for each side."""
    sides = ("members", "nonmembers", "population")
    if isinstance(data.get("members"), str):
        files = [data.get(side) for side in sides]
        if not isinstance(files[1], str):
            raise PlanError("expected nonmembers = a file beside members = a file; give both")
        pairs = [_read_pair(folder / f) if f else None for f in files]
        assert pairs[0] is not None and pairs[1] is not None
        return Split.from_arrays(pairs[0], pairs[1], pairs[2])
    if "set" in data:
        records = datasets.load(str(data["set"]))
    elif "file" in data:
        records = Records.from_arrays(*_read_pair(folder / str(data["file"])))
    else:
        raise PlanError("expected set = a data set, file = an .npz, or members and nonmembers")
    n = len(records)
    sizes = [
        int(data.get(side, default))
        for side, default in zip(sides, (n // 2, n // 3, 0), strict=True)
    ]
    return split(records, sizes[0], sizes[1], sizes[2], seed)


def _read_pair(path: Path) -> tuple[Any, Any]:
    """`x` and `y` of an .npz."""
    import zipfile

    if not path.is_file():
        raise InvalidInput(f"expected records at {path}, found no file; check the path")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["x"], stored["y"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DamagedFile(
            f"expected arrays x and y of numbers in {path.name}, but {error}; write it with "
            "numpy.savez(path, x=x, y=y)"
        ) from None


def _recipe_of(said: Mapping[str, Any], drawn: Split) -> Recipe | None:
    target, training = dict(said.get("target", {})), dict(said.get("training", {}))
    if "estimator" in target or ("network" not in target and not training):
        return None
    shape, classes = drawn.members.x.shape[1:], drawn.members.n_classes
    kind = target.get("network", "mlp")
    if kind == "mlp":
        hidden = tuple(int(h) for h in target.get("hidden", (128,)))
        build: Any = MLP(int(np.prod(shape)), classes, hidden, target.get("activation", "relu"))
    elif kind == "cnn" and len(shape) == 3:
        build = CNN(shape[0], shape[1], classes)
    else:
        raise PlanError(
            f'expected network = "mlp", or "cnn" for records (channels, size, size), got {kind!r} '
            f"for records of shape {tuple(shape)}"
        )
    schedule, patience = training.pop("schedule", None), training.pop("patience", None)
    if schedule not in (None, "cosine"):
        raise PlanError(f'expected schedule = "cosine" or none, got {schedule!r}')
    return TorchRecipe(
        build,
        schedule=cosine if schedule else None,
        early_stopping=EarlyStopping(int(patience)) if patience else None,
        **training,
    )


def _target_of(
    folder: Path, target: Mapping[str, Any], recipe: Recipe | None, drawn: Split, trust: bool
) -> Any:
    """The model in a file, or None where the recipe is to train it."""
    if "estimator" in target:
        path = folder / str(target["estimator"])
        return EstimatorModel(_estimator(path, trust), n_classes=drawn.members.n_classes)
    if "weights" not in target:
        return None
    path = folder / str(target["weights"])
    _existing(path)
    if path.suffix != ".safetensors":
        raise PlanError(
            f"expected weights as .safetensors, got {path.name}; write them with "
            "safetensors.torch.save_file(net.state_dict(), path)"
        )
    if not isinstance(recipe, TorchRecipe):
        raise PlanError("expected network = beside weights =, to know what they are weights of")
    net = recipe.build()
    read_tensors(net, path)
    return recipe.handle(net)


def _estimator(path: Path, trust: bool) -> Any:
    _existing(path)
    if path.suffix == ".skops":
        return read_estimator(path)
    if not trust:
        raise PlanError(
            f"expected an estimator as .skops, got {path.name}; opening a pickle can run any "
            "program: write it with skops.io.dump, or pass --trust-pickle if you made the file"
        )
    import joblib

    try:
        return joblib.load(path)
    except Exception as error:  # unpickling raises whatever the file says
        raise DamagedFile(f"expected a pickled estimator in {path.name}, but {error}") from None


def _existing(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"expected a model at {path}, found no file; check the path")
