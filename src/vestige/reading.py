"""What all models of a pool say of all records: read block by block, in bounded memory.

A block is a few models on a part of the records. Its answers are turned into the wanted signals
where they were made, and only these are kept: never models x records x classes.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vestige import models as _models
from vestige.errors import InvalidInput
from vestige.fingerprint import fingerprint, source_digest
from vestige.models import BlackBox
from vestige.progress import Progress
from vestige.records import Records
from vestige.signals import Signal

__all__ = [
    "Asker",
    "Block",
    "KeptSignal",
    "MemoryCache",
    "OneByOne",
    "SignalCache",
    "Workers",
    "name_of",
    "read",
]

COMMIT_EVERY = 2.0
"""Seconds of reading that a killed process may lose."""

PART_BYTES = 16 * 2**20
"""Answers of models asked together, and a quarter of the inputs, in memory at a time."""

STEP = 2048
"""Parts of records begin at its multiples, so that batches are the same in parts of any size."""

Floats = NDArray[np.float64]
S = TypeVar("S")
T = TypeVar("T")


# --- the seams -----------------------------------------------------------------------------------


class Asker(Protocol):
    """How models are asked: one by one, or several at once."""

    def width(self, models: Sequence[BlackBox]) -> tuple[int, int]:
        """How many models make a block, and how many of them are in memory at a time."""
        ...

    def ask(self, models: Sequence[BlackBox], x: Any) -> Iterator[tuple[int, slice, Floats]]:
        """Log-probabilities (rows, classes) for inputs (n, ...), with the model's place and rows.

        All rows come for each model; where some come twice, the last ones count. A table is used
        before the next one is asked for.
        """
        ...

    def key(self) -> str:
        """What decides the last digits of its answers, besides the models."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """Each model is asked as it is."""

    def width(self, models: Sequence[BlackBox]) -> tuple[int, int]:
        return 1, 1

    def ask(self, models: Sequence[BlackBox], x: Any) -> Iterator[tuple[int, slice, Floats]]:
        for k, model in enumerate(models):
            yield k, slice(0, len(x)), model.log_probabilities(x)

    def key(self) -> str:
        return ""


class Workers(Protocol):
    """Where blocks are read, if not here; what `vestige.training.engines` has."""

    def run(
        self, work: Callable[[S, T], Any], shared: S, tasks: Sequence[T]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (place of the task, work(shared, task)) as they are finished, in any order."""
        ...


class Block(NamedTuple):
    """Models start..stop - 1 on records first..last - 1: what is read in one go."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Values of a signal with one number a record."""
        return (self.stop - self.start) * (self.last - self.first)


class KeptSignal(Protocol):
    """One signal of all models on all records, which becomes whole block by block."""

    def is_whole(self) -> bool:
        """Whether each value is there already."""
        ...

    def has(self, block: Block) -> bool: ...
    def put(self, block: Block, values: Floats) -> None:
        """Take the values of a block, (models, records) or (models, records, columns)."""
        ...

    def values(self) -> Floats:
        """All of them, read-only, once each block was put."""
        ...


class SignalCache(Protocol):
    """Where a pool keeps signals that it has read once."""

    def of(self, models: Sequence[BlackBox]) -> SignalCache:
        """This cache for the models that it was first asked for, an empty one for others."""
        ...

    def kept(self, key: str, n_models: int, n_records: int) -> KeptSignal:
        """What there is of a signal; the same object for the same key."""
        ...

    def commit(self) -> None:
        """Return once what was put outlives the process, where it is to."""
        ...


def are_whole(blocks: Iterable[Block], n_models: int, n_records: int) -> bool:
    """Whether blocks of one cut have each value of a signal.

    What passes of different cuts left behind overlaps, and says nothing of what it amounts to.
    """
    parts: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for block in blocks:
        parts[block.start, block.stop].append((block.first, block.last))
    return _follow(parts, n_models) and all(_follow(part, n_records) for part in parts.values())


def _follow(ranges: Iterable[tuple[int, int]], end: int) -> bool:
    """Whether ranges lead from 0 to the end, each from where the one before it stops."""
    at = 0
    for first, last in sorted(ranges):
        if first != at:
            return False
        at = last
    return at == end


class InMemory:
    """A signal in one array."""

    def __init__(self, n_models: int, n_records: int) -> None:
        self._shape = (n_models, n_records)
        self._values: Floats | None = None
        self._done: set[Block] = set()

    def is_whole(self) -> bool:
        return are_whole(self._done, *self._shape)

    def has(self, block: Block) -> bool:
        return block in self._done

    def put(self, block: Block, values: Floats) -> None:
        if self._values is None:
            self._values = np.empty((*self._shape, *values.shape[2:]))
        same_columns(self._values.shape[2:], values.shape[2:])
        self._values[block.start : block.stop, block.first : block.last] = values
        self._done.add(block)

    def values(self) -> Floats:
        assert self._values is not None, "no block was put"
        view = self._values.view()
        view.setflags(write=False)
        return view


class MemoryCache:
    """Keeps signals for as long as the pool lives."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], InMemory] = {}
        self._models: Sequence[BlackBox] | None = None

    def of(self, models: Sequence[BlackBox]) -> MemoryCache:
        if self._models is None:
            self._models = models
        return self if self._models is models else MemoryCache().of(models)

    def kept(self, key: str, n_models: int, n_records: int) -> InMemory:
        return self._kept.setdefault((key, n_models), InMemory(n_models, n_records))

    def commit(self) -> None:
        """Nothing: memory is all there is."""


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """What all blocks of a pass share."""

    asker: Asker
    x: Any
    y: NDArray[np.int64]
    signals: tuple[Signal, ...]


@dataclass(frozen=True)
class _Task:
    """A block, its models, and which of the signals are wanted of it."""

    block: Block
    models: Sequence[BlackBox]
    wanted: tuple[int, ...]


def read(
    models: Sequence[BlackBox],
    records: Records,
    signals: Sequence[Signal],
    cache: SignalCache,
    asker: Asker,
    progress: Progress,
    workers: Workers | None,
) -> tuple[Floats, ...]:
    """Each signal of all models on all records; see `Pool.read`."""
    n_models, n = len(models), len(records)
    if not n_models:
        return tuple(np.empty((0, n)) for _ in signals)
    kept = [_kept(cache, asker, signal, records, n_models) for signal in signals]
    tasks = [] if all(k.is_whole() for k in kept) else _tasks(models, records, asker, kept)
    reading = _Reading(asker, records.x, records.y, tuple(signals))
    left, committed = sum(task.block.size for task in tasks), time.monotonic()
    progress("signals", _asked(n_models, n, left), n_models)
    try:
        with closing(_run(reading, tasks, workers)) as results:
            for place, found in results:
                task = tasks[place]
                for i, values in zip(task.wanted, found, strict=True):
                    kept[i].put(task.block, values)
                if time.monotonic() - committed >= COMMIT_EVERY:
                    cache.commit()
                    committed = time.monotonic()
                left -= task.block.size
                progress("signals", _asked(n_models, n, left), n_models)
    finally:
        cache.commit()
    return tuple(k.values() for k in kept)


def _asked(n_models: int, n: int, left: int) -> int:
    """Models that were asked about every record, where `left` values are not there yet."""
    return n_models - -(-left // max(n, 1))


def _kept(
    cache: SignalCache, asker: Asker, signal: Signal, records: Records, n_models: int
) -> KeptSignal:
    name = name_of(signal)
    if not name:
        return InMemory(n_models, len(records))
    # of an installed function the fingerprint has no more than its own code
    own = getattr(sys.modules[signal.__module__], "__file__", None)
    files = [own or "", _models.__file__, __file__]
    parts = [name, fingerprint(signal), source_digest(*(Path(file) for file in files if file))]
    # blocks of other cuts are other blocks
    parts += [asker.key(), records.digest(), f"{PART_BYTES} {STEP} {records.n_classes}"]
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
    return cache.kept(key, n_models, len(records))


def _tasks(
    models: Sequence[BlackBox], records: Records, asker: Asker, kept: Sequence[KeptSignal]
) -> list[_Task]:
    """What is left to read; of some models all records before the next ones are asked."""
    width, together = asker.width(models)
    cuts = _cuts(records, together)
    tasks = []
    for start in range(0, len(models), width):
        some = models[start : start + width]
        for first, last in zip(cuts, cuts[1:], strict=False):
            block = Block(start, start + len(some), first, last)
            wanted = tuple(i for i, k in enumerate(kept) if not k.has(block))
            if wanted:
                tasks.append(_Task(block, some, wanted))
    return tasks


def _cuts(records: Records, together: int) -> list[int]:
    """Where parts of the records begin and end, so that answers and inputs are bounded."""
    inputs = max(1, int(np.prod(records.x.shape[1:])) * records.x.dtype.itemsize)
    rows = min(PART_BYTES // (8 * max(records.n_classes, 1) * together), 4 * PART_BYTES // inputs)
    rows = max(STEP, rows // STEP * STEP)
    # the last part takes up what would be less than a step
    return [0, *range(rows, len(records) - STEP + 1, rows), len(records)]


def _run(
    reading: _Reading, tasks: Sequence[_Task], workers: Workers | None
) -> Generator[tuple[int, list[Floats]], None, None]:
    if workers is not None and tasks:
        yield from workers.run(_read, reading, tasks)
        return
    for place, task in enumerate(tasks):
        yield place, _read(reading, task)


def _read(reading: _Reading, task: _Task) -> list[Floats]:
    """The wanted signals of a block."""
    block = task.block
    y = reading.y[block.first : block.last]
    made: dict[int, Floats] = {}
    for k, rows, answers in reading.asker.ask(task.models, reading.x[block.first : block.last]):
        if reading.y.max(initial=0) >= answers.shape[1]:
            raise InvalidInput(
                f"expected labels below {answers.shape[1]}, the number of classes that model "
                f"{block.start + k} of the pool answers with, got {reading.y.max()}; train it for "
                "all classes"
            )
        for i in task.wanted:
            values = _values(reading.signals[i], answers, y[rows])
            if i not in made:
                if len(values) < len(reading.y):
                    _of_each_record(reading.signals[i], answers, y[rows], values)
                made[i] = np.empty((len(task.models), len(y), *values.shape[1:]))
            same_columns(made[i].shape[2:], values.shape[1:])
            made[i][k, rows] = values
    return [made[i] for i in task.wanted]


def same_columns(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Nothing, where a signal has as many columns for each model.

    Raises:
        InvalidInput: it has not.
    """
    if one != other:
        raise InvalidInput(
            f"expected a signal with as many columns for each model, got {one} and {other}; the "
            "models of a pool must answer with the same classes"
        )


def _values(signal: Signal, answers: Floats, y: NDArray[np.int64]) -> Floats:
    values = np.asarray(signal(answers, y))
    if values.ndim not in (1, 2) or len(values) != len(y):
        raise InvalidInput(
            f"expected a signal of shape (n,) or (n, columns) for {len(y)} records, got "
            f"{values.shape}; return a row for each record"
        )
    return values


def _of_each_record(signal: Signal, answers: Floats, y: NDArray[np.int64], values: Floats) -> None:
    """Nothing, where a signal of a few records alone is what it was among others."""
    some = slice(0, min(8, -(-len(y) // 2)))
    few = _values(signal, answers[some], y[some])
    if not np.allclose(few, values[some], rtol=1e-6, atol=1e-9, equal_nan=True):
        raise InvalidInput(
            "expected a signal of each record by itself, got one that depends on the records read "
            "beside it; read the answers (vestige.signals.log_probabilities) and compute it from "
            "all of them"
        )


# --- what is kept --------------------------------------------------------------------------------


def name_of(signal: Signal) -> str:
    """What a signal is kept under, its code and the records apart; "" for one made on the spot.

    Only a function that its module has under its name is told from all others by it: not a method,
    whose object may be another, nor a function that took over the name of the one it wraps.
    """
    if not isinstance(signal, FunctionType) or signal.__closure__ or "__wrapped__" in vars(signal):
        return ""
    # functions of a notebook or a script keep their name when they are written anew
    if signal.__module__ == "__main__":
        return ""
    found: Any = sys.modules.get(signal.__module__)
    for part in signal.__qualname__.split("."):
        found = getattr(found, part, None)
    return f"{signal.__module__} {signal.__qualname__}" if found is signal else ""
