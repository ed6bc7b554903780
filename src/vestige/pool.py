"""Models, and the table of who was trained on what."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vestige import models
from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.records import Records
from vestige.signals import Signal

__all__ = ["MemoryCache", "Pool", "SignalCache"]

H = TypeVar("H", bound=BlackBox, covariant=True)


class SignalCache(Protocol):
    """Where a pool keeps signals that it has read once."""

    def get(self, key: str) -> NDArray[np.float64] | None: ...
    def put(self, key: str, values: NDArray[np.float64]) -> None: ...


class MemoryCache:
    """Keeps signals for as long as the pool lives."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.float64]] = {}

    def get(self, key: str) -> NDArray[np.float64] | None:
        return self._kept.get(key)

    def put(self, key: str, values: NDArray[np.float64]) -> None:
        self._kept[key] = values


@dataclass(frozen=True, eq=False)
class Pool(Generic[H]):
    """Shadow, reference or proxy models with their membership table.

    A pool without models is what an adversary has who owns a population and trains nothing.

    Attributes:
        models: (n_models) handles; a lazy sequence that loads one at a time is fine.
        records: every record the adversary may use, the candidates among them.
        member: (n_models, n_records) whether a model was trained on a record.
        cache: where signals are kept once read.
        provenance: how the models came to be, for the report.
    """

    models: Sequence[H]
    records: Records
    member: NDArray[np.bool_]
    cache: SignalCache = field(default_factory=MemoryCache, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.models), len(self.records))
        if self.member.shape != expected or self.member.dtype != np.bool_:
            raise InvalidInput(
                f"expected a boolean membership table of shape (n_models, n_records) = "
                f"{expected}, got {self.member.dtype} of shape {self.member.shape}"
            )

    @classmethod
    def of_population(cls, records: Records) -> Pool[H]:
        """Records known not to be members, and no models."""
        return cls((), records, np.zeros((0, len(records)), dtype=bool))

    def trained_on(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which model was trained on which record, shape (n_models, len(ids)).

        A record that is not in the pool was trained on by no model of it.
        """
        place = self._places(ids)
        out = np.zeros((len(self.models), len(ids)), dtype=bool)
        out[:, place >= 0] = self.member[:, place[place >= 0]]
        return out

    def _places(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each id among the pool's records, -1 where it is not there."""
        order = np.argsort(self.records.ids, kind="stable")
        known = self.records.ids[order]
        nowhere = np.full(len(ids), -1, dtype=np.int64)
        if not len(known) or not len(ids) or (known.dtype.kind == "U") != (ids.dtype.kind == "U"):
            return nowhere
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[place] == ids, order[place], nowhere)

    def same_records(self, records: Records) -> None:
        """Nothing, where these records and the pool's have one numbering.

        A pool whose records were numbered otherwise would say of the wrong models that they
        were trained on a record, and nothing would look amiss.

        Raises:
            InvalidInput: an id means another record in the pool, or a record has another id.
        """
        place = self._places(records.ids)
        mine, theirs = self.records.content_hash(), records.content_hash()
        other = place >= 0
        other[other] = mine[place[other]] != theirs[other]
        other |= (place < 0) & np.isin(theirs, mine)
        if other.any():
            raise InvalidInput(
                f"expected the pool's records under the ids of the candidates, got "
                f"{int(other.sum())} that have another id there (for example "
                f"{records.ids[other][0]}); number the records once, for the split and for the pool"
            )

    def without(self, ids: NDArray[Any]) -> Records:
        """The pool's records other than these: the adversary's population."""
        return self.records[~np.isin(self.records.ids, ids)]

    def signals(self, signal: Signal, records: Records) -> NDArray[np.float64]:
        """The signal of every model on every record, shape (n_models, len(records)).

        One model's answers are in memory at a time. A signal that is a function of a module is
        read once and kept; one made on the spot (a lambda, a closure) is read each time, since
        nothing tells it from another.

        Raises:
            InvalidInput: a label is outside the classes that a model answers with.
        """
        key = _key(signal, records)
        kept = self.cache.get(key) if key else None
        if kept is not None and kept.shape == (len(self.models), len(records)):
            kept.setflags(write=False)
            return kept
        out = np.empty((len(self.models), len(records)))
        for index, model in enumerate(self.models):
            out[index] = _read(signal, model, records, index)
        out.setflags(write=False)
        if key:
            self.cache.put(key, out)
        return out


def _read(signal: Signal, model: BlackBox, records: Records, index: int) -> NDArray[np.float64]:
    answers = model.log_probabilities(records.x)
    if records.y.max(initial=0) >= answers.shape[1]:
        raise InvalidInput(
            f"expected labels below {answers.shape[1]}, the number of classes that model {index} "
            f"of the pool answers with, got {records.y.max()}; train it for all classes"
        )
    return signal(answers, records.y)


def _key(signal: Signal, records: Records) -> str:
    """What decides a signal's values, the models apart; "" for one that cannot be named."""
    name = getattr(signal, "__qualname__", "<")
    module = sys.modules.get(getattr(signal, "__module__", ""))
    # functions of a notebook or a script keep their name when they are written anew
    if "<" in name or module is None or module.__name__ == "__main__":
        return ""
    parts = (name, module.__name__, _source(module), _source(models), records.digest())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _source(module: ModuleType) -> str:
    """A digest of a module's file: kept signals are not those of other code."""
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
