"""What goes to a worker and what comes back.

What all tasks share is a pickle and, beside it, the memory of its arrays: one copy of these serves
every worker of a machine, read-only. Lambdas and functions of a script travel by their content.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import operator
import os
import pickle
import shutil
import sys
import tempfile
import traceback
import types
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from mmap import ACCESS_READ, mmap
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from vestige.errors import StoreError, VestigeError
from vestige.fingerprint import fingerprint, is_library
from vestige.training.fit import one_thread

__all__ = [
    "Job",
    "answered",
    "at_once",
    "beside",
    "by_name",
    "digests",
    "dumped",
    "failed",
    "in_file",
    "kept",
    "one_core",
    "opened",
    "parts",
    "results",
]

Job = tuple[Callable[[Any, Any], Any], Any, Callable[[Any], Any] | None]
"""work, shared and pack, as an engine is given them."""

kept: dict[str, Job] = {}
"""In a worker: the job it is at, under the name by which it came."""

at_once = 1
"""In a worker: tasks that are done at the same time in the memory that it has for its own."""


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """torch, BLAS and OpenMP on one thread: sums are then added up in one order everywhere."""
    with _pools(len(sys.modules)).limit(limits=1), one_thread():
        yield


@functools.lru_cache(maxsize=1)
def _pools(modules: int) -> ThreadpoolController:
    """The libraries with threads of their own; looked for again when modules have been added."""
    return ThreadpoolController()


def _map(array: np.memmap[Any, Any], by_name: bool) -> tuple[Any, ...]:
    """How a memory map is made again: still a map, so that who reads one in parts goes on to."""
    again = _mapped(array) if by_name else None
    return (np.memmap, again) if again else (np.ndarray.view, (np.asarray(array), np.memmap))


def _mapped(array: np.memmap[Any, Any]) -> tuple[Any, ...] | None:
    """How to map the same memory elsewhere; None where the file does not say what is in it."""
    whole: Any = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not (isinstance(whole, np.memmap) and whole.filename):
        return None
    if not (array.ndim and array.flags.c_contiguous):
        return None
    start = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    again: Any = (str(whole.filename), array.dtype, "r", whole.offset + start, array.shape)
    try:
        there = np.memmap(*again)
    except (OSError, ValueError):
        return None
    # a copy-on-write map may have been written to, a file may have been replaced
    step = max(1, 2**24 // max(1, array[:1].nbytes))
    starts = range(0, len(array), step)
    same = all(array[s : s + step].tobytes() == there[s : s + step].tobytes() for s in starts)
    return again if same else None


def parts(job: Job, *, by_name: bool, at_once: int) -> list[memoryview]:
    """The pickle, and the memory of each array.

    Args:
        by_name: whether workers see the files of this machine: arrays that lie in one go by its
            name then.
        at_once: tasks that will be done at the same time in one memory.
    """
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = ChainMap(
            {np.memmap: functools.partial(_map, by_name=by_name)},
            cloudpickle.Pickler.dispatch_table,
        )

    file, arrays = io.BytesIO(), list[memoryview]()
    told = (job, at_once, _settings())
    Pickler(file, 5, buffer_callback=lambda b: arrays.append(b.raw())).dump(told)
    return [file.getbuffer(), *arrays]


def by_name(value: Any) -> set[tuple[str, str]]:
    """Module and name of what is not sent, but imported where a value is opened.

    Functions and classes of the caller's own modules, and what is read of such a module by those
    that are sent by their content. Installed packages, and this one, are taken to be the same.
    """
    import cloudpickle

    found: set[tuple[str, str]] = set()
    modules: set[str] = set()
    names: set[str] = set()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, item: Any) -> Any:
            how = super().reducer_override(item)
            if isinstance(item, types.ModuleType):
                modules.add(item.__name__)
            elif isinstance(item, types.CodeType):
                names.update(item.co_names)
            elif how is NotImplemented and isinstance(getattr(item, "__qualname__", None), str):
                found.add((str(item.__module__), item.__qualname__))
            return how

    # what cannot be sent may never have to be
    with contextlib.suppress(Exception):
        Pickler(io.BytesIO(), 5, buffer_callback=lambda buffer: None).dump(value)
    found |= {
        (m, n) for m in modules if m in sys.modules for n in names & vars(sys.modules[m]).keys()
    }
    return {(module, name) for module, name in found if _is_own(module)}


def _is_own(module: str) -> bool:
    """Whether a module is the caller's, and imported from a file."""
    if module.partition(".")[0] in ("__main__", "vestige") or is_library(module):
        return False
    return getattr(sys.modules.get(module), "__file__", None) is not None


def digests(names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Of what is there under these names in this process."""
    found = {}
    for module, name in names:
        # what a decorator has hidden goes by its content
        with contextlib.suppress(AttributeError):
            item = operator.attrgetter(name)(importlib.import_module(module))
            found[module, name] = fingerprint(item)
    return found


def dumped(value: Any) -> bytes:
    """With functions that no module holds by their content."""
    import cloudpickle

    made: bytes = cloudpickle.dumps(value)
    return made


def unpacked(name: str, parts: Sequence[Any]) -> Job:
    """In a worker: the job, once for all of its tasks.

    Raises:
        VestigeError: it needs a module that is not there.
    """
    global at_once
    if name not in kept:
        kept.clear()
        try:
            kept[name], at_once, settings = pickle.loads(parts[0], buffers=parts[1:])
        except ModuleNotFoundError as error:
            raise VestigeError(
                f"expected the workers to find the module {error.name}, but they do not; install "
                "it where they are"
            ) from None
        _settle(*settings)
    return kept[name]


def _settings() -> tuple[torch.dtype, str, bool, bool]:
    """What the caller chose for the whole process, and results depend on."""
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


def _settle(dtype: torch.dtype, precision: str, tf32: bool, deterministic: bool) -> None:
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)


def answered(name: str, parts: Sequence[Any], task: bytes) -> bytes:
    """In a worker: the result, or the exception, as bytes."""
    try:
        work, shared, pack = unpacked(name, parts)
        with one_core():
            result = work(shared, pickle.loads(task))
            return dumped((result if pack is None else pack(result), None))
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> bytes:
    """The exception itself; one that is not ours has its traceback as a note."""
    told = "in a worker:\n" + "".join(traceback.format_exception(error))
    if not isinstance(error, VestigeError):
        error.add_note(told)
    try:
        packed = dumped((None, error))
        pickle.loads(packed)
        return packed
    except Exception:  # some exceptions are not made again from their arguments
        return dumped((None, RuntimeError(told)))


def opened(answer: bytes) -> Any:
    """The result; or raises what was raised."""
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result


def results(finished: deque[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
    """What was finished; an error only after the results that were there with it."""
    problem: Exception | None = None
    while finished:
        place, answer = finished.popleft()
        try:
            result = opened(answer)
        except Exception as error:
            problem = error
        else:
            yield place, result
    if problem is not None:
        raise problem


# --- on one machine, through a file --------------------------------------------------------------


@contextlib.contextmanager
def in_file(parts: Sequence[memoryview]) -> Iterator[tuple[str, list[int]]]:
    """The parts in a temporary file, each from a multiple of 64 bytes on, and their sizes.

    Raises:
        StoreError: there is no room for them.
    """
    from joblib.externals.loky.backend import resource_tracker

    sizes = [part.nbytes for part in parts]
    memory = "/dev/shm"
    roomy = os.path.isdir(memory) and shutil.disk_usage(memory).free > 2 * sum(sizes) + 2**30
    folder = memory if roomy else tempfile.gettempdir()
    handle, path = tempfile.mkstemp(prefix="vestige-", dir=folder)
    # a process that outlives ours, and the workers, removes it if we are killed
    resource_tracker.register(path, "file")
    try:
        try:
            with open(handle, "wb") as file:
                for part in parts:
                    file.write(part)
                    file.write(bytes(-part.nbytes % 64))
        except OSError as error:
            raise StoreError(
                f"expected room for {sum(sizes) / 2**20:.0f} MiB in {folder}, which workers "
                f"share, got: {error.strerror}; set TMPDIR to a folder with more"
            ) from error
        yield path, sizes
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        resource_tracker.unregister(path, "file")


def beside(path: str, sizes: Sequence[int]) -> list[memoryview]:
    """In a worker: the parts, mapped."""
    with open(path, "rb") as file:
        whole = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size + -size % 64)
    return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]
