"""What a table or a figure of a paper is here: rows, how one is measured, and the paper's figures.

A row is a frozen configuration for each scale. What measuring it gives is numbers with intervals,
series for figures, and how large everything was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vestige.errors import PlanError
from vestige.metrics import Estimate
from vestige.progress import Progress, quiet
from vestige.training import Store

if TYPE_CHECKING:
    from vestige.reproduce.results import RowResult

__all__ = ["SCALES", "Column", "Context", "Drawing", "Experiment", "Figure", "Measured", "Row"]

SCALES: Mapping[str, str] = {
    "ci": "a minute on one core for a whole experiment: the pipeline runs, its numbers mean little",
    "laptop": "half an hour on two cores for a whole experiment",
    "paper": "the paper's sizes",
}


@dataclass(frozen=True)
class Row:
    """One row of a table or one curve of a figure.

    Attributes:
        id: a file's stem, unique in the experiment.
        title: for people; a stand-in never has the real set's name.
        settings: of each scale in `SCALES`: a frozen dataclass of plain values.
        paper: what the paper reports, by the names of the estimates.
        note: one sentence for the page, on what differs in this row.
    """

    id: str
    title: str
    settings: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Column:
    """An estimate as a column of the page's table."""

    key: str
    title: str


@dataclass(frozen=True)
class Measured:
    """What a row gives.

    Attributes:
        estimates: by the names of the columns.
        series: numbers for figures: per class, per bin of a histogram, ...
        sizes: how many records, models, queries, ...; plain numbers and words.
        data: name and sha256 of the records.
    """

    estimates: Mapping[str, Estimate]
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sizes: Mapping[str, int | float | str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a row is measured with.

    Attributes:
        seed: of everything random.
        scale: one of `SCALES`.
        store: where models are kept, shared by all rows: rows that differ in the answers of a
            service only share its models, and a killed run goes on with what was trained.
        progress: called with a label, the number done and the total.
        results: finished rows of all experiments at this scale.
    """

    seed: int
    scale: str
    store: Store
    progress: Progress = quiet
    results: Callable[[], Sequence[RowResult]] = tuple


@dataclass(frozen=True)
class Figure:
    """A picture of several rows.

    Attributes:
        name: a file's stem, unique in the experiment.
        caption: what is to be seen, also for those who do not see it.
        svg: its bytes.
    """

    name: str
    caption: str
    svg: bytes


Drawing = Callable[[Sequence["RowResult"]], Figure | None]
"""Draws rows of one scale, or says by None that they hold nothing to draw."""


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Attributes:
        id: what `vestige reproduce` is called with.
        title: for people.
        paper: publication, and its table or figure.
        coverage: what of the papers it answers for.
        rows: at least one.
        measure: (settings of a row, context) -> what came out.
        columns: of the page's table.
        differences: sentences on where this is not the paper's experiment.
        drawings: of the page.
        from_results: measured from the other experiments' results: never taken as finished.
    """

    id: str
    title: str
    paper: str
    coverage: tuple[str, ...]
    rows: tuple[Row, ...]
    measure: Callable[[Any, Context], Measured]
    columns: tuple[Column, ...]
    differences: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    from_results: bool = False

    def row(self, name: str) -> Row:
        """The row of this id.

        Raises:
            PlanError: there is none.
        """
        for row in self.rows:
            if row.id == name:
                return row
        known = ", ".join(row.id for row in self.rows)
        raise PlanError(f"expected a row of {self.id} ({known}), got {name!r}; choose one of them")
