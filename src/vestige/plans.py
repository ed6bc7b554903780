"""Plans by name, from a file, and from a function of the user's own."""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vestige import datasets
from vestige.attacks import BY_NAME
from vestige.attacks.attack import Attack
from vestige.audit import Plan
from vestige.errors import DamagedFile, InvalidInput, PlanError, VestigeError
from vestige.models import BlackBox, EstimatorModel, first_line, read_pickled_weights
from vestige.records import Records, Split, split
from vestige.remote import KEYS, remote_of
from vestige.training.fit import built
from vestige.training.networks import CNN, MLP
from vestige.training.recipe import (
    EarlyStopping,
    Recipe,
    StepDecay,
    TorchRecipe,
    cosine,
    load_estimator,
    load_tensors,
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
    shown: Records | None = None,
    weights: Path | None = None,
) -> Plan:
    """The plan that a word on the command line names.

    Args:
        what: a built-in data set, a file ending in .toml, or package.module:function.
        seed, references: instead of the plan's own.
        shown: stand for the members where a file says nothing of data: it only names a model then,
            whose inputs are like these.
        weights: that such a network will get, to have as many classes; by default those it names.

    Raises:
        PlanError: it names nothing, or something that is no plan.
    """
    if seed is not None and seed < 0:
        raise PlanError(f"expected a seed from 0, got {seed}; choose another")
    if what in BUILT_IN:
        return built_in(what, seed=seed or 0, references=references)
    if what.endswith(".toml"):
        plan = _from_toml(Path(what), seed, trust_pickle, shown, weights)
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
    if not module_name or not name or module_name.startswith("."):
        raise PlanError(f"expected package.module:function, got {what!r}; write both names in full")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's module
        raise PlanError(
            f"expected a module {module_name} that can be imported, but {_told(error)}; correct it"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise PlanError(f"expected a function {name} in {module_name}, found none; check the name")
    try:
        plan = function()
    except VestigeError:
        raise
    except Exception as error:
        raise PlanError(
            f"expected {what} to return a vestige.Plan, but {_told(error)}; correct it"
        ) from error
    if not isinstance(plan, Plan):
        raise PlanError(
            f"expected {what} to return a vestige.Plan, got {type(plan).__name__}; return one"
        )
    return plan


def _told(error: Exception) -> str:
    """What a user's own code raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"


# --- PLAN.toml ---------------------------------------------------------------------------------

Said = Mapping[str, Any]


@dataclass(frozen=True)
class _Kind:
    """What a key of a plan may be: in words, and as a question."""

    words: str
    fits: Callable[[Any], bool]


def _whole(least: int) -> _Kind:
    return _Kind(f"a whole number from {least}", lambda v: type(v) is int and v >= least)


def _one_of(*words: str) -> _Kind:
    return _Kind(" or ".join(f'"{w}"' for w in words), lambda v: v in words)


def _list_of(kind: _Kind) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and all(kind.fits(item) for item in v)


_TEXT = _Kind("text in quotes", lambda v: isinstance(v, str) and bool(v))
_NUMBER = _Kind("a number from 0", lambda v: type(v) in (int, float) and 0 <= v < float("inf"))
_RATE = _Kind("a number above 0", lambda v: _NUMBER.fits(v) and v > 0)
_SHARE = _Kind("a number from 0 and below 1", lambda v: _NUMBER.fits(v) and v < 1)
_SHARES = _Kind(
    "a list of numbers between 0 and 1",
    _list_of(_Kind("", lambda v: _NUMBER.fits(v) and 0 < v < 1)),
)
_COUNTS = _Kind("a list of whole numbers from 1", _list_of(_whole(1)))
_NAMES = _Kind("text or a list of texts", lambda v: _TEXT.fits(v) or _list_of(_TEXT)(v))
_TABLE = _Kind("a table", lambda v: isinstance(v, Mapping))
_ATTACKS = _Kind(
    "text, a list of texts, or a table for each attack",
    lambda v: _NAMES.fits(v) or (isinstance(v, Mapping) and all(map(_TABLE.fits, v.values()))),
)
_SIDE = _Kind("a whole number of records, or a file", lambda v: _TEXT.fits(v) or _whole(0).fits(v))

_SECTIONS: Mapping[str, Mapping[str, _Kind]] = {
    "": {
        "name": _TEXT,
        "seed": _whole(0),
        "references": _whole(0),
        "attacks": _ATTACKS,
        "data": _TABLE,
        "target": _TABLE,
        "training": _TABLE,
    },
    "data": {
        "set": _TEXT,
        "file": _TEXT,
        "members": _SIDE,
        "nonmembers": _SIDE,
        "population": _SIDE,
        "image": _COUNTS,
    },
    "target": {
        "network": _one_of("mlp", "cnn"),
        "hidden": _COUNTS,
        "activation": _one_of("relu", "tanh"),
        "dropout": _SHARE,
        "weights": _TEXT,
        "estimator": _TEXT,
        "url": _TEXT,
        "answers": _TEXT,
        "description": _TEXT,
    },
    "training": {
        "epochs": _whole(1),
        "steps": _whole(1),
        "batch_size": _whole(1),
        "optimizer": _one_of("sgd", "adam", "adamw"),
        "lr": _RATE,
        "momentum": _NUMBER,
        "weight_decay": _NUMBER,
        "schedule": _one_of("cosine"),
        "decay_at": _SHARES,
        "patience": _whole(1),
        "device": _one_of("cpu", "cuda"),
    },
}


def _from_toml(
    path: Path,
    seed: int | None,
    trust_pickle: bool,
    shown: Records | None,
    weights: Path | None,
) -> Plan:
    try:
        said = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise PlanError(f"expected a plan at {path}, found no file; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"expected TOML in {path.name}, but {error}") from None
    bare = "data" not in said and shown is not None
    _check(path, said, bare=bare)
    folder = path.parent
    # a seed on the command line draws the split too, as the plan's own would
    seed = said.get("seed", 0) if seed is None else seed
    if bare and shown is not None:
        target = said.get("target", {})
        if weights is None and "weights" in target:
            weights = folder / str(target["weights"])
        drawn = _alone(_with_classes(shown, target, weights))
        said = {**said, "data": {}}
    else:
        drawn = _split_of(folder, said["data"], seed)
    recipe = _recipe_of(said, drawn)
    target = _target_of(path, said.get("target", {}), recipe, drawn, trust_pickle)
    if target is None and recipe is None and not bare:
        raise PlanError(
            f"expected a model in {path.name}, got none; say in [target] which network to train, "
            "its weights =, its estimator = or its url ="
        )
    return Plan(
        split=drawn,
        target=target,
        recipe=recipe,
        references=said.get("references", 64),
        attacks=_attacks_of(path, said.get("attacks", "standard")),
        seed=seed,
        name=said.get("name", path.stem),
        data_name=said["data"].get("set", said["data"].get("file", path.stem)),
        description=said.get("target", {}).get("description", ""),
        answers=said.get("target", {}).get("answers", ""),
        image=_image(said["data"], drawn),
    )


def _check(path: Path, said: Said, *, bare: bool = False) -> None:
    """Every key is known, and every value is what it can be; a bare plan needs no data."""
    for section, known in _SECTIONS.items():
        where = f"[{section}] of {path.name}" if section else path.name
        # a section that is no table is refused as a key of the whole
        for key, value in (said.get(section, {}) if section else said).items():
            if key not in known:
                if section == "target" and "url" in said["target"]:
                    if key in KEYS:
                        continue
                    known = {**known, **dict.fromkeys(KEYS, _TEXT)}
                raise PlanError(
                    f"expected {', '.join(known)} in {where}, got {key!r}; correct the name"
                )
            if not known[key].fits(value):
                raise PlanError(f"expected {key} = {known[key].words} in {where}, got {value!r}")
    if "data" not in said and not bare:
        raise PlanError(
            f"expected a table [data] in {path.name}, which says what was trained on; add it"
        )
    given = [key for key in ("weights", "estimator", "url") if key in said.get("target", {})]
    if len(given) > 1:
        raise PlanError(
            f"expected one of {', '.join(given)} in [target] of {path.name}, got all of them; keep "
            "the one that names the model to audit (how references are trained stands in "
            "[training], or in a function that returns a vestige.Plan)"
        )
    if given and not bare and not isinstance(said["data"].get("members"), str):
        # drawing would make members of records that the model never saw
        raise PlanError(
            f"expected members = a file and nonmembers = a file in [data] beside {given[0]} =, "
            "since a model that was trained before has its own members; write the records it was "
            "trained on, and others, to an .npz each"
        )


def _attacks_of(path: Path, said: Any) -> Any:
    """Names as they stand; of tables, attacks with these settings: [attacks.gmia] delta = 0.05."""
    return {n: _attack_of(path, n, s) for n, s in said.items()} if _TABLE.fits(said) else said


def _attack_of(path: Path, name: str, settings: Said) -> Attack[BlackBox]:
    """An attack of `BY_NAME`, the one that `attack` names or else the table's own name."""
    where, changed = f"[attacks.{name}] of {path.name}", dict(settings)
    kind = changed.pop("attack", name)
    if kind not in BY_NAME:
        raise PlanError(
            f"expected one of {', '.join(BY_NAME)} as the attack of {where}, got {kind!r}; name it "
            'so, or say attack = "..." in it'
        )
    if name in BY_NAME and kind != name:
        raise PlanError(
            f"expected a name of its own for the attack {kind} of {where}, got that of another "
            "attack; choose one that is not taken"
        )
    plain: Any = BY_NAME[kind]
    # what text, numbers and switches say; the rest takes Python
    said = {f.name: str(f.type).partition(" ")[0] for f in fields(plain)}  # of "int | None"
    known = {n: getattr(plain, n) for n in said}
    known = {
        n: v
        for n, v in known.items()
        if isinstance(v, (bool, int, float, str)) or (v is None and said[n] in _TYPES)
    }
    for key, value in changed.items():
        if key not in known:
            raise PlanError(
                f"expected attack, {', '.join(known)} in {where}, got {key!r}; correct the name"
            )
        if not _is_like(value, known[key], said[key]):
            like = f"of type {said[key]}" if known[key] is None else f"like {known[key]!r}"
            raise PlanError(f"expected {key} {like} in {where}, got {value!r}")
    made: Attack[BlackBox] = replace(plain, **changed)
    return made


_TYPES = {"int": (int,), "str": (str,), "bool": (bool,), "float": (int, float)}


def _is_like(value: Any, plain: Any, kind: str) -> bool:
    """Whether a setting may be this: of the plain one's type, or of the type that is declared."""
    return type(value) in _TYPES[kind if plain is None else type(plain).__name__]


def _image(data: Said, drawn: Split) -> tuple[int, ...]:
    image, record = tuple(data.get("image", ())), drawn.members.x.shape[1:]
    if image and (int(np.prod(image)) != int(np.prod(record)) or len(image) not in (2, 3)):
        raise PlanError(
            f"expected image = [height, width] or three sizes that make a record of shape "
            f"{tuple(record)}, got {list(image)}"
        )
    return image


def _split_of(folder: Path, data: Said, seed: int) -> Split:
    """Either one set that is drawn from, or a file for each side."""
    sides = ("members", "nonmembers", "population")
    files = [data.get(side) for side in sides]
    named = [isinstance(file, str) for file in files]
    if any(named):
        if not (named[0] and named[1]) or (files[2] is not None and not named[2]):
            raise PlanError(
                "expected members and nonmembers (and population, if any) all as files or all as "
                f"numbers of records in [data], got {', '.join(map(repr, files))}"
            )
        pairs = [_read_pair(folder / f) if f else None for f in files]
        assert pairs[0] is not None and pairs[1] is not None
        return Split.from_arrays(pairs[0], pairs[1], pairs[2])
    if "set" in data:
        records = datasets.load(str(data["set"]))
    elif "file" in data:
        records = Records.from_arrays(*_read_pair(folder / str(data["file"])))
    else:
        raise PlanError(
            "expected set = a data set, file = an .npz, or members and nonmembers = an .npz each "
            "in [data], got none of them; say where the records are"
        )
    n = len(records)
    sizes = [
        data.get(side, default) for side, default in zip(sides, (n // 2, n // 3, 0), strict=True)
    ]
    return split(records, sizes[0], sizes[1], sizes[2], seed)


def _alone(records: Records) -> Split:
    """Records that stand for the members, with nobody beside them."""
    return Split(records, records[:0], records[:0])


def _with_classes(records: Records, target: Said, weights: Path | None) -> Records:
    """With as many classes as the weights have logits: a few records may not show all of them."""
    from safetensors import SafetensorError, safe_open

    # labels are the claimant's: no network is made as wide as these say
    plain = replace(records, y=np.zeros(len(records), dtype=np.int64), classes=("0", "1"))
    recipe = _recipe_of({"target": target}, _alone(plain))
    if weights is None or not isinstance(recipe, TorchRecipe):
        return records
    last = [n for n, p in built(recipe, 0).named_parameters() if p.ndim == 2][-1]
    try:
        with safe_open(str(weights), "numpy") as file:
            logits = int(file.get_slice(last).get_shape()[0])
    except (SafetensorError, OSError):
        return records  # what is wrong is said where they are read
    if records.n_classes > logits:
        raise InvalidInput(
            f"expected labels below {logits}, the classes of {weights.name}, got "
            f"{records.n_classes - 1}; the records are not those of this model"
        )
    return replace(records, classes=tuple(map(str, range(logits))))


def _read_pair(path: Path) -> tuple[Any, Any]:
    """`x` and `y` of an .npz."""
    if not path.is_file():
        raise InvalidInput(f"expected records at {path}, found no file; check the path")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["x"], stored["y"]
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        pickled = "allow_pickle" in str(error)
        why = "it holds pickled objects, which are not read" if pickled else str(error)
        raise DamagedFile(
            f"expected arrays x and y of numbers in {path.name}, but {why}; write it with "
            "numpy.savez(path, x=x, y=y)"
        ) from None


def _recipe_of(said: Mapping[str, Any], drawn: Split) -> Recipe | None:
    target, training = dict(said.get("target", {})), dict(said.get("training", {}))
    if "estimator" in target or ("network" not in target and not training):
        return None
    shape, classes = drawn.members.x.shape[1:], drawn.members.n_classes
    kind, dropout = target.get("network", "mlp"), float(target.get("dropout", 0))
    if kind == "mlp":
        hidden, activation = tuple(target.get("hidden", (128,))), target.get("activation", "relu")
        build: Any = MLP(int(np.prod(shape)), classes, hidden, activation, dropout)
    elif len(shape) == 3 and shape[1] == shape[2] >= 4:
        build = CNN(shape[0], shape[1], classes, dropout=dropout)
    else:
        raise PlanError(
            f'expected records (channels, size, size) of at least 4 x 4 for network = "cnn", got '
            f'{tuple(shape)}; use "mlp"'
        )
    named, patience = training.pop("schedule", None), training.pop("patience", None)
    shares = training.pop("decay_at", None)
    if named and shares:
        raise PlanError(
            "expected schedule or decay_at in [training], got both; leave one of them out"
        )
    schedule = StepDecay(tuple(shares)) if shares else cosine if named else None
    return TorchRecipe(
        build,
        schedule=schedule,
        early_stopping=EarlyStopping(patience) if patience else None,
        **training,
    )


def _target_of(
    plan: Path, target: Mapping[str, Any], recipe: Recipe | None, drawn: Split, trust: bool
) -> Any:
    """The model in a file or behind HTTP, or None where the recipe is to train it."""
    folder = plan.parent
    if "url" in target:
        local = set(_SECTIONS["target"]) - {"url"}
        said = {key: value for key, value in target.items() if key not in local}
        # what was paid for is kept beside the plan, whatever becomes of the audit's folder
        return remote_of({"cache": f"{plan.stem}.answers.sqlite", **said}, folder)
    if "estimator" in target:
        path = folder / str(target["estimator"])
        return EstimatorModel(_estimator(path, trust), n_classes=drawn.members.n_classes)
    if "weights" not in target:
        return None
    path = folder / str(target["weights"])
    _existing(path)
    if not isinstance(recipe, TorchRecipe):
        raise PlanError(
            'expected network = "mlp" or "cnn" beside weights =, to know what they are weights of; '
            "for a network of your own, use package.module:function"
        )
    net = built(recipe, 0)
    if path.suffix == ".safetensors":
        load_tensors(net, path.read_bytes(), path.name)
    elif trust:
        read_pickled_weights(net, path)
    else:
        raise PlanError(
            f"expected weights as .safetensors, got {path.name}; opening a pickle can run any "
            "program: write them with safetensors.torch.save_file(net.state_dict(), path), or pass "
            "--trust-pickle if you made the file"
        )
    return recipe.handle(net)


def _estimator(path: Path, trust: bool) -> Any:
    _existing(path)
    if path.suffix == ".skops":
        return load_estimator(path.read_bytes(), path.name)
    if not trust:
        raise PlanError(
            f"expected an estimator as .skops, got {path.name}; opening a pickle can run any "
            "program: write it with skops.io.dump, or pass --trust-pickle if you made the file"
        )
    import joblib

    try:
        return joblib.load(path)
    except Exception as error:  # unpickling raises whatever the file says
        raise DamagedFile(
            f"expected a pickled estimator in {path.name}, but {first_line(error)}; write it "
            "again, or as .skops"
        ) from None


def _existing(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"expected a model at {path}, found no file; check the path")
