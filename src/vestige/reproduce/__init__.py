"""Tables and figures of the papers as rows that can be run, one at a time.

    vestige reproduce list
    vestige reproduce shadow-table2 --scale ci
    vestige reproduce shadow-table2 --scale laptop --row location30

A finished row is a JSON file; what was killed goes on with the rows that are missing, and with the
models that are. `pages.write` makes the pages of the documentation from such files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vestige.errors import PlanError
from vestige.progress import Progress, quiet
from vestige.reproduce import (
    encoding,
    encoding_frontier,
    encoding_ownership,
    extraction,
    gmia,
    shadow,
    text,
)
from vestige.reproduce.experiment import SCALES, Column, Context, Experiment, Measured, Row
from vestige.reproduce.harness import OUT, run_experiment
from vestige.reproduce.results import RowResult, read_all

__all__ = [
    "EXPERIMENTS",
    "OUT",
    "SCALES",
    "Column",
    "Context",
    "Experiment",
    "Measured",
    "Row",
    "RowResult",
    "experiment",
    "listed",
    "listing",
    "read_all",
    "row_of",
    "run",
    "table",
]

EXPERIMENTS: Mapping[str, Experiment] = {
    one.id: one
    for one in (
        *shadow.EXPERIMENTS,
        *extraction.EXPERIMENTS,
        *gmia.EXPERIMENTS,
        *encoding.EXPERIMENTS,
        encoding_frontier.EXPERIMENT,
        encoding_ownership.EXPERIMENT,
    )
}


def listed() -> tuple[Experiment, ...]:
    """All experiments, in the order of the papers."""
    return tuple(EXPERIMENTS.values())


def listing() -> str:
    """All experiments and their rows, for the terminal."""
    return text.listing(listed())


def table(results: Sequence[RowResult]) -> str:
    """Finished rows of one experiment, the paper's figures beside ours, for the terminal."""
    return text.table(experiment(results[0].experiment), results)


def experiment(name: str) -> Experiment:
    """The experiment of this id.

    Raises:
        PlanError: there is none.
    """
    if name not in EXPERIMENTS:
        raise PlanError(
            f"expected an experiment among {', '.join(EXPERIMENTS)}, got {name!r}; "
            "`vestige reproduce list` says what they are"
        )
    return EXPERIMENTS[name]


def row_of(result: RowResult) -> Row:
    """What a stored row is a result of.

    Raises:
        PlanError: no experiment or row of that name.
    """
    return experiment(result.experiment).row(result.row)


def run(
    name: str,
    scale: str,
    *,
    row: str | None = None,
    out: Path | str = OUT,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress = quiet,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[RowResult, ...]:
    """Measure the rows of an experiment that are not finished; see `harness.run_experiment`.

    Raises:
        PlanError: no such experiment, scale or row.
        DatasetUnavailable: the data of the row asked for, or of every row, are not here.
        StoreError: the disk cannot be written; finished rows are kept.
    """
    return run_experiment(
        experiment(name), scale,
        row=row, out=out, seed=seed, fresh=fresh, progress=progress, tell=tell,
    )  # fmt: skip
