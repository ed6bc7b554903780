"""Defenses: what a service can do about what its model gives away.

A filter is a handle around a handle, `TopK(model, 3)` say; `behind(model, "top3")` is the same by
name, and `filtered(pool, "top3")` puts the attacker's own models behind it.
"""

from vestige.defenses.filters import (
    FILTERS,
    Filter,
    LabelOnly,
    Noisy,
    Rounded,
    Temperature,
    TopK,
    behind,
    filtered,
    share_that_passed,
)
from vestige.defenses.memguard import DefenseClassifier, MemGuard

__all__ = [
    "FILTERS",
    "DefenseClassifier",
    "Filter",
    "LabelOnly",
    "MemGuard",
    "Noisy",
    "Rounded",
    "Temperature",
    "TopK",
    "behind",
    "filtered",
    "share_that_passed",
]
