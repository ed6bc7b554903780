"""Frozen dataclasses to plain JSON and back, with the place of every problem in the message.

The annotations of the dataclasses are the only description of the format in code: a field is a
key, a tuple is an array, a mapping is an object, `None` is null. `Estimate` has a form of its own
(it leaves out what is empty) and is asked for it. NaN and infinity are refused in both directions:
they are not JSON, and a number that could not be measured is null with a reason.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from vestige.errors import InvalidInput
from vestige.metrics import Estimate

__all__ = ["decode", "encode"]

T = TypeVar("T")

NOT_IN_JSON = {"json": False}
"""Metadata of a dataclass field that is kept out of the JSON form."""


def encode(value: Any, path: str = "report") -> Any:
    """`value` as what `json.dumps(allow_nan=False)` accepts; `InvalidInput` names the place.

    >>> encode({"a": (1, np.float64(0.5))})
    {'a': [1, 0.5]}
    """
    if isinstance(value, np.ndarray | np.generic):
        return encode(value.tolist(), path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value, path)
    if isinstance(value, Estimate):
        return encode(value.to_json(), path)
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name), f"{path}.{f.name}") for f in _fields(value)}
    if isinstance(value, Mapping):
        return {_key(key, path): encode(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise InvalidInput(f"{path}: expected a value that JSON can hold, got a {_name(value)}.")


def decode(kind: type[T], data: Any, path: str = "report") -> T:
    """`data`, read from JSON, as a `kind`; the first problem is raised as `InvalidInput`.

    Keys that this version does not know are ignored, so that a later version may add some.

    >>> decode(float, 1)
    1.0
    """
    return cast(T, _decode(kind, data, path))


def _decode(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        return data
    if kind is Estimate:
        return _estimate(data, path)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, path)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), data, path)
    if origin is Literal:
        return _check(data in get_args(kind), data, path, " or ".join(map(repr, get_args(kind))))
    if origin is tuple:
        items = _check(isinstance(data, list), data, path, "an array")
        return tuple(
            _decode(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(items)
        )
    if origin is not None:
        items = _check(isinstance(data, dict), data, path, "an object")
        return {
            key: _decode(get_args(kind)[1], item, f"{path}.{key}") for key, item in items.items()
        }
    return _scalar(kind, data, path)


def _scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is type(None):
        return _check(data is None, data, path, "null")
    if kind is float:
        _check(isinstance(data, int | float) and not isinstance(data, bool), data, path, "a number")
        return _finite(float(data), path)
    if kind is int:
        return _check(
            isinstance(data, int) and not isinstance(data, bool), data, path, "an integer"
        )
    names = {bool: "true or false", str: "a string"}
    return _check(isinstance(data, kind), data, path, names[kind])


def _dataclass(kind: Any, data: Any, path: str) -> Any:
    _check(isinstance(data, dict), data, path, "an object")
    hints = _hints(kind)
    missing = [f.name for f in _fields(kind) if f.name not in data]
    if missing:
        raise InvalidInput(f"{path}: expected the key {missing[0]!r}, got none.")
    values = {
        f.name: _decode(hints[f.name], data[f.name], f"{path}.{f.name}") for f in _fields(kind)
    }
    try:
        return kind(**{f.name: values[f.name] for f in _fields(kind) if f.init})
    except InvalidInput as problem:
        raise InvalidInput(f"{path}: {problem}") from None


def _estimate(data: Any, path: str) -> Estimate:
    _check(isinstance(data, dict), data, path, "an estimate")
    try:
        return Estimate.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InvalidInput(f"{path}: expected an estimate, got one that fails: {problem}") from None


def _union(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _decode(kind, data, path)
        except InvalidInput as problem:
            problems.append(problem)
    # The longest path is the alternative that matched furthest, hence the one that was meant.
    raise max(problems, key=lambda problem: len(str(problem).split(":")[0]))


def _check(holds: bool, data: Any, path: str, expected: str) -> Any:
    if not holds:
        raise InvalidInput(f"{path}: expected {expected}, got {_brief(data)}.")
    return data


def _finite(number: float, path: str) -> float:
    if not math.isfinite(number):
        raise InvalidInput(f"{path}: expected a finite number, got {number}; write null instead.")
    return number


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"{path}: expected keys that are strings, got {key!r}.")
    return key


def _brief(data: Any) -> str:
    if data is None:
        return "null"
    if isinstance(data, dict | list):
        return f"{'an object' if isinstance(data, dict) else 'an array'} of {len(data)}"
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."


def _name(value: object) -> str:
    return type(value).__name__


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if f.metadata.get("json", True)]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
