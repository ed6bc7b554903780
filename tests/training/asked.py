"""Pools of models that say when they are asked, for tests of what is kept of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.models import Predictions
from vestige.pool import Pool
from vestige.reading import MemoryCache, SignalCache
from vestige.records import Records
from vestige.signals import cross_entropy_loss, log_probabilities
from vestige.training.store import Store, StoredSignals

MODELS, RECORDS, CLASSES = 10, 40, 3
SIGNALS = [cross_entropy_loss, log_probabilities]

Values = tuple[NDArray[np.float64], ...]


class Asked:
    """A table of predictions that notes its number each time it is asked."""

    def __init__(self, k: int, n: int, notes: list[int]) -> None:
        self._k, self._notes = k, notes
        logits = np.random.default_rng([k, 7]).normal(0, 2, (n, CLASSES))
        self._table = Predictions(logits=logits)

    @property
    def n_queries(self) -> int:
        return self._table.n_queries

    def log_probabilities(self, x: Any) -> Any:
        self._notes.append(self._k)
        return self._table.log_probabilities(x)


def pool_of(
    folder: Path | None = None, n: int = RECORDS
) -> tuple[Pool[Asked], list[int], list[str]]:
    """A pool that keeps its signals in a folder; which models were asked; what the store told."""
    notes: list[int] = []
    told: list[str] = []
    cache: SignalCache = MemoryCache()
    if folder is not None:
        cache = StoredSignals(Store(folder, told.append), "run")
    records = Records.from_arrays(np.arange(n)[:, None], np.arange(n) % CLASSES)
    models = [Asked(k, n, notes) for k in range(MODELS)]
    return Pool(models, records, np.zeros((MODELS, n), dtype=bool), cache), notes, told


def read(folder: Path | None = None, n: int = RECORDS) -> tuple[Values, list[int], list[str]]:
    """Both signals; which models were asked for them; what the store told."""
    pool, notes, told = pool_of(folder, n)
    return pool.read(SIGNALS, pool.records), notes, told


def same(a: Values, b: Values) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
