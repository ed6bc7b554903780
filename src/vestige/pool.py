"""Models, and the table of who was trained on what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

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
        order = np.argsort(self.records.ids, kind="stable")
        known = self.records.ids[order]
        place = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        found = known[place] == ids if len(known) else np.zeros(len(ids), dtype=bool)
        out = np.zeros((len(self.models), len(ids)), dtype=bool)
        if found.any():
            out[:, found] = self.member[:, order[place[found]]]
        return out

    def without(self, ids: NDArray[Any]) -> Records:
        """The pool's records other than these: the adversary's population."""
        return self.records[~np.isin(self.records.ids, ids)]

    def signals(self, signal: Signal, records: Records) -> NDArray[np.float64]:
        """The signal of every model on every record, shape (n_models, len(records)).

        One model's answers are in memory at a time.
        """
        key = _key(signal, records)
        kept = self.cache.get(key)
        if kept is not None and kept.shape == (len(self.models), len(records)):
            return kept
        out = np.empty((len(self.models), len(records)))
        for row, model in zip(out, self.models, strict=True):
            row[:] = signal(model.log_probabilities(records.x), records.y)
        out.setflags(write=False)
        self.cache.put(key, out)
        return out


def _key(signal: Signal, records: Records) -> str:
    name = f"{signal.__module__}.{signal.__qualname__}"
    return hashlib.sha256(f"{name} {records.digest()}".encode()).hexdigest()[:32]
