"""Data of the experiments: the real sets under their own names, stand-ins under names of theirs.

Purchase100 and Texas100 are not to be had by everyone. A stand-in has their shape, and classes that
overlap so that a network trained on as few records has about the gap between its accuracies on
members and others that the paper reports. It shows whether relations hold (who beats whom, what
grows with what); its numbers are not those of the real set, and never carry its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vestige import datasets
from vestige.errors import DatasetUnavailable, InvalidInput
from vestige.records import Records, Rows

__all__ = ["STAND_INS", "StandIn", "load"]


@dataclass(frozen=True)
class StandIn:
    """Binary records of overlapping classes: P(x_j = 1 | y) = sigmoid(b_j + s w_yj + t z g_j).

    b is how common a feature is, w_y what is peculiar to the class (standard normal), z a taste of
    the record's own (standard normal) in a direction g that all classes share, so that features
    hang together within a class too.

    Args:
        features: columns.
        share: mean share of ones, about.
        separation: s, how far classes lie apart.
        spread: t, how much records of a class differ in a common direction.
        label_noise: share of records whose label is drawn anew.
    """

    features: int
    share: float
    separation: float
    spread: float = 0.5
    label_noise: float = 0.0

    def draw(self, n: int, classes: int, seed: int) -> Records:
        """n records, (n, features) uint8, of equally likely classes.

        The classes depend on the seed alone, and the first k of more classes are those of k.
        """
        shared, own, rows = (np.random.default_rng([seed, part]) for part in range(3))
        common = np.log(self.share / (1 - self.share)) + shared.normal(0, 1, self.features)
        together = shared.normal(0, self.spread, self.features)
        peculiar = own.normal(0, self.separation, (classes, self.features))
        y = rows.integers(classes, size=n)
        x = np.empty((n, self.features), dtype=np.uint8)
        for start in range(0, n, 4096):
            part = y[start : start + 4096]
            taste = rows.normal(size=(len(part), 1))
            odds = (common + peculiar[part] + taste * together).astype(np.float32)
            x[start : start + 4096] = rows.random(odds.shape, np.float32) < 1 / (1 + np.exp(-odds))
        redrawn = rows.random(n) < self.label_noise
        y = np.where(redrawn, rows.integers(classes, size=n), y)
        return Records.from_arrays(x, y, classes=[str(c) for c in range(classes)])


STAND_INS = {
    "purchase_like": StandIn(600, 0.15, separation=0.43),
    "texas_like": StandIn(6_170, 0.02, separation=0.65, label_noise=0.25),
}
"""By name; "purchase_like_20" is the first with 20 classes."""

_WORLD_SEED = 20170522
_STAND_IN = re.compile(r"([a-z]+_like)_(\d+)")


def load(name: str, n: int) -> Records:
    """Records of a real set, all of them, or n records of a stand-in.

    Args:
        name: as in `vestige.datasets.load`, or a stand-in with its number of classes.
        n: records that are needed.

    Raises:
        DatasetUnavailable: it is neither here nor to be fetched.
    """
    found = _STAND_IN.fullmatch(name)
    if found and found[1] in STAND_INS:
        return STAND_INS[found[1]].draw(n, int(found[2]), _WORLD_SEED)
    if name in datasets.names():
        return datasets.load(name)
    try:
        return datasets.load(name)
    except InvalidInput:
        raise DatasetUnavailable(
            f"expected {name}.npz with x (n, ...) and y (n,) in the folder that VESTIGE_DATA "
            "names, found none; it cannot be fetched, and no stand-in has its name"
        ) from None


def in_memory(records: Records) -> Records:
    """The same records, read from where they lie on disk, pictures as they are."""
    if isinstance(records.x, Rows) or type(records.x) is not np.ndarray:
        x = np.asarray(records.x[:])
        return Records(records.ids, x, records.y, records.columns, records.classes)
    return records
