"""One row a record: the content of `records.parquet`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.scores import Scores

__all__ = ["RecordTable"]


@dataclass(frozen=True, eq=False)
class RecordTable:
    """Every record of the split, with what each attack said about it.

    NaN stands for "the attack abstained" or "not tested"; it is null in the file.

    Attributes:
        id: (n,) integers or strings.
        label: (n,) integers.
        member: (n,) booleans.
        scores: attack -> (n,) scores, higher = more likely a member.
        p_values: attack -> (n,) p-values of "not a member"; attacks without any are left out.
        q_value: (n,) false discovery rate at which a member is called exposed, by the one attack
            that names the exposed (`ExposedRecords.attack` of the report).
        exposed: (n,) booleans, by the same attack.
    """

    id: NDArray[Any]
    label: NDArray[np.int64]
    member: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]
    p_values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    q_value: NDArray[np.float64] | None = None
    exposed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name, column in self.columns().items():
            if column.shape != (len(self),):
                raise InvalidInput(
                    f"expected {len(self)} values in column {name!r}, one for each id, got an "
                    f"array of shape {column.shape}"
                )

    def __len__(self) -> int:
        return len(self.id)

    @staticmethod
    def from_scores(
        id: NDArray[Any],
        label: NDArray[np.int64],
        member: NDArray[np.bool_],
        scores: Mapping[str, Scores],
        *,
        exposure: Scores | None = None,
        fdr: float = 0.05,
    ) -> "RecordTable":
        """The table of some attacks' `Scores`, joined by id.

        Args:
            id, label, member: (n,), the rows of the table.
            scores: attack -> its scores; ids that are not in `id` are refused.
            exposure: the tested records with their q-values in `p_values`; the others get none.
            fdr: a tested record is exposed when its q-value is at most this.
        """
        q_value = None if exposure is None else _joined(id, exposure, exposure.p_values)
        p_values = {
            name: _joined(id, s, s.p_values) for name, s in scores.items() if s.p_values is not None
        }
        return RecordTable(
            id=id,
            label=label,
            member=member,
            scores={name: _joined(id, s, s.values) for name, s in scores.items()},
            p_values=p_values,
            q_value=q_value,
            # NaN <= fdr is false: what was not tested is not exposed.
            exposed=None if q_value is None else q_value <= fdr,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Column name -> (n,) array, in the order of the file."""
        columns: dict[str, NDArray[Any]] = {
            "id": self.id,
            "label": self.label,
            "member": self.member,
        }
        for attack, values in self.scores.items():
            columns[f"score_{attack}"] = values
            if attack in self.p_values:
                columns[f"p_value_{attack}"] = self.p_values[attack]
        nothing = np.full(len(self.id), np.nan)
        columns["q_value"] = nothing if self.q_value is None else self.q_value
        columns["exposed"] = np.zeros(len(self.id), bool) if self.exposed is None else self.exposed
        return columns


def _joined(
    id: NDArray[Any], scores: Scores, values: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(n,) `values` in the order of `id`, NaN where `scores` says nothing."""
    if values is None:
        raise InvalidInput("expected p-values with the scores, got none")
    order = np.argsort(id, kind="stable")
    place = np.searchsorted(id, scores.ids, sorter=order)
    rows = order[np.minimum(place, len(id) - 1)]
    if not (id[rows] == scores.ids).all():
        raise InvalidInput("expected scores of records in the table, got a foreign id")
    column = np.full(len(id), np.nan)
    column[rows] = values
    return column
