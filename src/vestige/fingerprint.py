"""A digest of how a number is made, so that what was made otherwise is never reused.

Functions are read by what they do (bytecode, constants, closures, and whatever they name in their
module), not by where they are written: moving a line or renaming a file keeps the digest, changing
a width alters it. The user's own functions and classes are followed, base classes included;
installed libraries are taken by name and version.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import random
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["fingerprint", "is_library", "source_digest"]

_PLAIN = (bool, int, float, complex, str, bytes, np.generic)
# what Python itself notes down about a class, some of it by line or in the order of a hash
_NOTES = frozenset(
    """__module__ __qualname__ __dict__ __weakref__ __doc__ __annotations__ __annotate__
    __annotate_func__ __firstlineno__ __static_attributes__ __match_args__ __dataclass_fields__
    __dataclass_params__ __abstractmethods__ _abc_impl __orig_bases__ __parameters__
    __slotnames__""".split()
)
# objects of these modules hold the state of a process, not a setting
_PROCESS = frozenset({"logging", "threading", "_thread", "weakref", "_weakref", "io", "_io"})
_OF_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL"})
_WRAPPED = ("fget", "fset", "__func__", "__wrapped__")


@functools.cache
def source_digest(*places: Path) -> str:
    """sha256 of source files, and of those in folders: what was made by other code is old."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(place.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a value's content: plain data, arrays, functions, modules, estimators."""
    digest = hashlib.sha256()
    for part in _Reader().read(value):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class _Reader:
    """Turns a value into bytes, depth first, each function and class once."""

    def __init__(self) -> None:
        self._inside: set[int] = set()
        # kept alive here, so that no number of theirs is given to another object
        self._met: dict[int, tuple[int, Any]] = {}

    def read(self, value: Any) -> Iterator[bytes]:
        if value is None or isinstance(value, _PLAIN):
            yield f"{type(value).__name__}:{value!r}".encode()
        elif id(value) in self._met:
            yield f"met:{self._met[id(value)][0]}".encode()
        elif id(value) in self._inside:
            yield b"again"
        else:
            self._inside.add(id(value))
            yield b"("
            yield from self._whole(value)
            yield b")"
            self._inside.discard(id(value))

    def _whole(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, np.ndarray):
            yield from _array(value) if value.dtype != object else self.read(value.tolist())
        elif isinstance(value, torch.Tensor):
            yield str(value.dtype).encode()
            yield from self.read(_dense(value).numpy())
        elif isinstance(value, Mapping):
            for key, item in sorted(value.items(), key=lambda pair: _text(pair[0])):
                yield from self.read(key)
                yield from self.read(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self.read(item)
        elif isinstance(value, (set, frozenset)):
            for item in sorted(value, key=_text):
                yield from self.read(item)
        elif isinstance(value, (types.FunctionType, types.CodeType, type, types.ModuleType)):
            yield from self._definition(value)
        else:
            yield from self._object(value)

    def _definition(self, value: Any) -> Iterator[bytes]:
        self._met[id(value)] = (len(self._met), value)
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, type):
            yield _name(value)
            if not is_library(value.__module__):
                own = {k: v for k, v in vars(value).items() if k not in _NOTES}
                yield from self.read([own, value.__bases__])
        else:
            yield value.__name__.encode()

    def _function(self, value: types.FunctionType) -> Iterator[bytes]:
        yield _name(value)
        yield from self.read([value.__code__, value.__defaults__, value.__kwdefaults__])
        yield from self.read([_content(cell) for cell in value.__closure__ or ()])
        # not value.__module__: a library's decorator takes over the name of what it wraps
        if not is_library(value.__globals__.get("__name__", "")):
            names = set(_names(value.__code__))
            looked_up = _looked_up(value.__code__) & value.__globals__.keys()
            used = {name: value.__globals__[name] for name in looked_up}
            yield from self.read({n: _named_of(item, names) for n, item in used.items()})
            yield _imported(
                value.__code__, str(value.__globals__.get("__package__") or "")
            ).encode()
            if vars(value):
                yield from self.read(vars(value))

    def _code(self, value: types.CodeType) -> Iterator[bytes]:
        yield from (value.co_code, value.co_exceptiontable)
        yield from self.read(list(value.co_consts))
        # names matter beside bytecode: f(x) and g(x) compile alike
        names = [value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars]
        counts = [value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount]
        yield from self.read([*names, *counts, value.co_flags])

    def _object(self, value: Any) -> Iterator[bytes]:
        yield from self.read(type(value))
        if isinstance(value, functools.partial):
            yield from self.read([value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            yield from self.read([value.__func__, value.__self__])
        elif _is_bound(value):
            yield from self.read([value.__name__, value.__self__])
        elif isinstance(value, PurePath):
            yield str(value).encode()
        elif isinstance(value, nn.Module):
            yield from self.read(_module_state(value))
        elif isinstance(value, np.random.Generator):
            yield from self.read(value.bit_generator.state)
        elif isinstance(value, (torch.Generator, np.random.RandomState)):
            yield from self.read(value.get_state())
        elif isinstance(value, random.Random):
            yield from self.read(value.getstate())
        elif callable(getattr(value, "get_params", None)):
            yield from self.read(value.get_params(deep=False))
        else:
            wrapped = [getattr(value, n) for n in _WRAPPED if getattr(value, n, None) is not None]
            state = _state(value)
            yield from self.read([wrapped, state])
            if not state:
                yield _text(value).encode()


def _array(value: np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield str((value.shape, value.dtype)).encode()
    yield np.ascontiguousarray(value).tobytes()


def _dense(value: torch.Tensor) -> torch.Tensor:
    plain = value.detach().cpu()
    plain = plain.to_dense() if plain.layout != torch.strided else plain
    return plain.float() if plain.dtype == torch.bfloat16 else plain


def _text(value: Any) -> str:
    """How a value is written, without the place in memory, which differs in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _name(value: Any) -> bytes:
    """What a library's thing is called, and its version; of the user's own, only the last name."""
    if not is_library(value.__module__):
        return str(value.__qualname__).encode()
    package = sys.modules.get(str(value.__module__).partition(".")[0])
    version = getattr(package, "__version__", "")
    return f"{value.__module__}.{value.__qualname__} {version}".encode()


@functools.cache
def is_library(module: str | None) -> bool:
    """Whether a module is Python's or installed; this package is read like the user's own."""
    top = (module or "").partition(".")[0]
    if top in ("__main__", "vestige"):
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return top in sys.stdlib_module_names
    return _is_installed(Path(file))


def _is_installed(path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or path.is_relative_to(sysconfig.get_path("stdlib"))


def _is_bound(value: Any) -> bool:
    """Whether it is a method of an object of Python's own, as [1, 2].__getitem__ is."""
    if not isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        return False
    return value.__self__ is not None and not isinstance(value.__self__, types.ModuleType)


@functools.lru_cache(maxsize=4096)
def _looked_up(code: types.CodeType) -> frozenset[str]:
    """Globals of a function and of the functions within it: not attributes of the same name."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in _OF_GLOBALS}
    inner = (_looked_up(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(own.union(*inner))


def _imported(code: types.CodeType, package: str) -> str:
    """A digest of the user's files that a function imports as it runs, and of those they import.

    They may not have been imported yet, so that it is their files that are read; "" for none.
    """
    files: dict[str, bytes] = {}
    _follow(code, package, files)
    parts = (f"{name} ".encode() + hashlib.sha256(files[name]).digest() for name in sorted(files))
    return hashlib.sha256(b"".join(parts)).hexdigest() if files else ""


def _follow(code: types.CodeType, package: str, files: dict[str, bytes]) -> None:
    for name in _imports(code, package) - files.keys():
        path = _file_of(name)
        if path is None:
            continue
        files[name] = path.read_bytes()
        try:
            own = compile(files[name], str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue  # importing it will say so
        _follow(own, name if path.name == "__init__.py" else name.rpartition(".")[0], files)


@functools.lru_cache(maxsize=4096)
def _imports(code: types.CodeType, package: str) -> frozenset[str]:
    """Modules, and what may be one, that a code object and those within it import."""
    found, level, last = set[str](), 0, ""
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(i.argval, int):
            level = i.argval
        elif i.opname == "IMPORT_NAME":
            base = ".".join(package.split(".")[: len(package.split(".")) - level + 1])
            last = ".".join(part for part in (base if level else "", i.argval) if part)
            parts = last.split(".")
            found |= {".".join(parts[:k]) for k in range(1, len(parts) + 1)}
        elif i.opname == "IMPORT_FROM":
            found.add(f"{last}.{i.argval}")
    inner = (_imports(c, package) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(found.union(*inner))


@functools.cache
def _file_of(module: str) -> Path | None:
    """The file of a module of the user's; None for what is none, or a library's, or this one's.

    Nothing is imported to find it.
    """
    top, *parts = module.split(".")
    if top in sys.stdlib_module_names or top in ("__main__", "vestige"):
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that was made, not found
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = Path(spec.origin) if spec is not None and spec.origin else None
    for part in parts:
        if not places:
            return None
        folder = Path(places[0]) / part
        found = next(
            (p for p in (folder / "__init__.py", folder.with_suffix(".py")) if p.is_file()), None
        )
        places = [str(folder)] if folder.is_dir() else []
    if found is None or found.suffix != ".py" or not found.is_file() or _is_installed(found):
        return None
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals and of attributes, in a function and in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _named_of(found: Any, names: set[str], within: tuple[str, ...] = ()) -> Any:
    """What a function uses of a module of the user's and of those in it; else what it is."""
    if not isinstance(found, types.ModuleType) or is_library(found.__name__):
        return found
    if found.__name__ in within:
        return found.__name__
    inside = (*within, found.__name__)
    own = vars(found)
    return {name: _named_of(own[name], names, inside) for name in names if name in own}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is bound only later
        return None


def _module_state(net: nn.Module) -> dict[str, Any]:
    # hooks are kept under numbers that count every hook of the process
    return {
        name: list(item.values()) if "_hooks" in name and isinstance(item, dict) else item
        for name, item in vars(net).items()
        if name != "training"
    }


def _state(value: Any) -> dict[str, Any]:
    if type(value).__module__.partition(".")[0] in _PROCESS:
        return {}
    slots = [
        name
        for base in type(value).__mro__
        for name in np.atleast_1d(vars(base).get("__slots__", ())).tolist()
    ]
    found = {name: getattr(value, name) for name in slots if getattr(value, name, None) is not None}
    found |= getattr(value, "__dict__", {})
    return {name: item for name, item in found.items() if name not in _NOTES}
