"""Models, and the table of who was trained on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.progress import Progress, quiet
from vestige.reading import Asker, MemoryCache, OneByOne, SignalCache, Workers, read
from vestige.records import Records
from vestige.signals import Signal

__all__ = ["MemoryCache", "Pool", "SignalCache"]

Floats = NDArray[np.float64]
H = TypeVar("H", bound=BlackBox, covariant=True)


@dataclass(frozen=True, eq=False)
class Pool(Generic[H]):
    """Shadow, reference or proxy models with their membership table.

    A pool without models is what an adversary has who owns a population and trains nothing.

    Attributes:
        models: (n_models) handles; a lazy sequence that loads one at a time is fine.
        records: every record the adversary may use, the candidates among them.
        member: (n_models, n_records) whether a model was trained on a record.
        cache: where signals are kept once read; one that is in use for other models is not
            taken over from them, but replaced by an empty `MemoryCache`.
        provenance: how the models came to be, for the report.
        asker: how models are asked; see `vestige.training.asking.Stacks` for small networks.
    """

    models: Sequence[H]
    records: Records
    member: NDArray[np.bool_]
    cache: SignalCache = field(default_factory=MemoryCache, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    asker: Asker = field(default=OneByOne(), repr=False)

    def __post_init__(self) -> None:
        expected = (len(self.models), len(self.records))
        if self.member.shape != expected or self.member.dtype != np.bool_:
            raise InvalidInput(
                f"expected a boolean membership table of shape (n_models, n_records) = "
                f"{expected}, got {self.member.dtype} of shape {self.member.shape}"
            )
        # dataclasses.replace hands on the cache beside other models
        object.__setattr__(self, "cache", self.cache.of(self.models))

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

    def signals(self, signal: Signal, records: Records) -> Floats:
        """The signal of every model on every record, shape (n_models, len(records), ...).

        See `read`, which reads several in one pass.
        """
        return self.read([signal], records)[0]

    def read(
        self,
        signals: Sequence[Signal],
        records: Records,
        *,
        progress: Progress = quiet,
        engine: Workers | None = None,
    ) -> tuple[Floats, ...]:
        """Several signals of every model on every record, in one pass over the models.

        Each is of shape (n_models, len(records)), or (n_models, len(records), columns), and
        read-only. The answers of a few models on a part of the records are in memory at a time,
        and what was read is kept in the cache as it comes: a pass that was killed goes on where it
        was. A signal that is a function of a module is read once and kept, as long as it and what
        it uses of its module are what they were; one made on the spot (a lambda, a closure, a
        method) is read each time, since nothing tells it from another.

        Args:
            progress: called with "signals", the number of models asked so far and of all.
            engine: where models are asked, for example `Local()`; by default here.

        Raises:
            InvalidInput: a label is outside the classes that a model answers with, or a signal has
                other than one row a record, or takes records together.
            StoreError: the disk is full; what was read is kept.
        """
        return read(self.models, records, signals, self.cache, self.asker, progress, engine)
