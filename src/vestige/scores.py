"""What an attack says, a score for each record it did not abstain on; what a watermark says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput

__all__ = ["Scores", "Verification"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Membership scores, *higher = more likely a member*.

    An attack that abstains on a record leaves its id out: there is no NaN and no sentinel.

    Attributes:
        ids: (n,) ids of the records scored, unique.
        values: (n,) float64, finite.
        p_values: (n,) in [0, 1], of the hypothesis "not a member", or None.
    """

    ids: NDArray[Any]
    values: NDArray[np.float64]
    p_values: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.values.shape != self.ids.shape or self.ids.ndim != 1:
            raise InvalidInput(
                f"expected one score for each id, got {self.values.shape} scores for "
                f"{self.ids.shape} ids"
            )
        if len(np.unique(self.ids)) != len(self.ids):
            raise InvalidInput("expected unique ids, got a record that was scored twice")
        if not np.isfinite(self.values).all():
            raise InvalidInput(
                "expected finite scores, got NaN or infinity; an attack abstains by leaving an "
                "id out"
            )
        p = self.p_values
        if p is not None and not (p.shape == self.ids.shape and ((p >= 0) & (p <= 1)).all()):
            raise InvalidInput("expected one p-value in [0, 1] for each id")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Verification:
    """What is left of a claim of ownership once it was tested; never a bare yes.

    Attributes:
        matched: records (or triggers) that answer as claimed.
        total: of so many.
        p_value: of the hypothesis "the model has nothing to do with the key"; 0 below 1e-308.
        log10_p: its logarithm.
        reasons: why the claim is refused, each a sentence; none if it is accepted.
        others_matched, others: of what is not claimed, where it was looked at: how many answer so
            by themselves.
        matched_log10_p: logarithm of the binomial p-value of so many matched, at the others' rate.
        controls: log10_p of keys that nothing was made with, on the same records.
    """

    matched: int
    total: int
    p_value: float
    log10_p: float
    reasons: tuple[str, ...] = ()
    others_matched: int = 0
    others: int = 0
    matched_log10_p: float = 0.0
    controls: tuple[float, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.reasons
