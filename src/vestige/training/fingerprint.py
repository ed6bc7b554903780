"""A digest of how a model is trained, so that what was trained otherwise is never reused.

Functions are read by what they do (bytecode, constants, closures, and the module-level numbers
and functions they name), not by where they are written: moving a line keeps the digest, changing
a width alters it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["fingerprint"]


def fingerprint(value: Any) -> str:
    """sha256 of a value's content: plain data, arrays, functions, modules, estimators."""
    digest = hashlib.sha256()
    for part in _parts(value, frozenset()):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: frozenset[int]) -> list[bytes]:
    if value is None or isinstance(value, (bool, int, float, str, bytes, complex, np.generic)):
        return [f"{type(value).__name__}:{value!r}".encode()]
    if id(value) in seen:
        return [b"again"]
    seen = seen | {id(value)}
    if isinstance(value, np.ndarray):
        return [str((value.shape, value.dtype)).encode(), np.ascontiguousarray(value).tobytes()]
    if isinstance(value, torch.Tensor):
        return _parts(value.detach().cpu().numpy(), seen)
    if isinstance(value, Mapping):
        pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
        return [p for key, item in pairs for p in (*_parts(key, seen), *_parts(item, seen))]
    if isinstance(value, (list, tuple, set, frozenset)):
        items = value if isinstance(value, (list, tuple)) else sorted(value, key=repr)
        return [b"[", *(p for item in items for p in _parts(item, seen)), b"]"]
    return _parts_of_object(value, seen)


def _parts_of_object(value: Any, seen: frozenset[int]) -> list[bytes]:
    name = f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if isinstance(value, functools.partial):
        return [name, *_parts([value.func, value.args, value.keywords], seen)]
    if isinstance(value, types.MethodType):
        return [name, *_parts(value.__func__, seen), *_parts(value.__self__, seen)]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value, seen)
    if isinstance(value, types.CodeType):
        return _parts_of_code(value, seen)
    if isinstance(value, nn.Module):
        return [name, repr(value).encode(), *_parts(value.state_dict(), seen)]
    if isinstance(value, type):
        return _parts_of_class(value, seen)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return [name, *_parts(fields, seen)]
    get_params = getattr(value, "get_params", None)
    if get_params is not None:
        return [name, *_parts(get_params(deep=True), seen)]
    state = getattr(value, "__dict__", None)
    return [name, *_parts(state, seen)] if state else [name]


def _parts_of_function(value: types.FunctionType, seen: frozenset[int]) -> list[bytes]:
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    named = [n for n in value.__code__.co_names if n in value.__globals__]
    used = {n: value.__globals__[n] for n in named if _is_ours(value.__globals__[n], value)}
    name = f"{value.__module__}.{value.__qualname__}".encode()
    rest = [value.__code__, cells, value.__defaults__, value.__kwdefaults__, used]
    return [name, *_parts(rest, seen)]


def _is_ours(found: Any, user: types.FunctionType) -> bool:
    """Numbers, text, and functions and classes of the same module; not imported libraries."""
    if isinstance(found, (bool, int, float, str, tuple)):
        return True
    return isinstance(found, (types.FunctionType, type)) and found.__module__ == user.__module__


def _parts_of_code(value: types.CodeType, seen: frozenset[int]) -> list[bytes]:
    # names matter beside bytecode: f(x) and g(x) compile alike
    names = [value.co_names, value.co_varnames, value.co_freevars]
    return [value.co_code, *_parts(list(value.co_consts), seen), *_parts(names, seen)]


def _parts_of_class(value: type, seen: frozenset[int]) -> list[bytes]:
    name = f"{value.__module__}.{value.__qualname__}".encode()
    own = {
        key: item
        for key, item in vars(value).items()
        if isinstance(item, (types.FunctionType, int, float, str)) and not key.startswith("__")
    }
    init = vars(value).get("__init__")
    return [name, *_parts(own, seen), *(_parts(init, seen) if init else [])]
