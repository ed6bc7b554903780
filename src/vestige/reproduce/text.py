"""What the terminal shows of experiments and of their results."""

from __future__ import annotations

from collections.abc import Sequence

from vestige.metrics import Estimate
from vestige.reproduce.experiment import Column, Experiment, Row
from vestige.reproduce.results import RowResult

__all__ = ["cells", "listing", "table", "told"]


def listing(experiments: Sequence[Experiment]) -> str:
    """Every experiment with its rows, a paragraph each."""
    out = []
    for one in experiments:
        rows = ", ".join(row.id for row in one.rows)
        out.append(f"{one.id}\n    {one.title} ({one.paper})\n    rows: {rows}")
    return "\n".join(out)


def table(experiment: Experiment, results: Sequence[RowResult]) -> str:
    """Rows under columns, the paper's figure before ours where there is one; and what differs."""
    rows = [(experiment.row(result.row), result) for result in results]
    head, body = cells(experiment.columns, rows)
    for line, (row, result) in zip(body, rows, strict=True):
        line[0] += _elsewhere(row, result)
    widths = [max(len(line[k]) for line in (head, *body)) for k in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in (head, *body))
    ]
    scales = sorted({result.scale for result in results})
    lines += ["", f"{experiment.paper}; at the scale {', '.join(scales)}."]
    lines += [f"* {difference}" for difference in experiment.differences]
    return "\n".join(lines)


def cells(
    columns: Sequence[Column], rows: Sequence[tuple[Row, RowResult]]
) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: the row's title, then for each column what the paper
    says, where it says something of any row, and what was measured."""
    reported = {c.key for c in columns if any(c.key in row.paper for row, _ in rows)}
    counts = {k for k in reported for _, result in rows if _is_count(result.estimates.get(k))}
    head, body = ["row"], []
    for column in columns:
        head += [f"{column.title}: paper", "ours"] if column.key in reported else [column.title]
    for row, result in rows:
        line = [row.title]
        for column in columns:
            if column.key in reported:
                said = row.paper.get(column.key)
                digits = 0 if column.key in counts else 3
                line.append("-" if said is None else f"{said:.{digits}f}")
            line.append(told(result.estimates.get(column.key)))
        body.append(line)
    return head, body


def _elsewhere(row: Row, result: RowResult) -> str:
    """On which data a row was run, where its title, that of the scale laptop, names others."""
    titled = getattr(row.settings.get("laptop"), "data", None)
    ran = result.data.get("name")
    return f" (run on {ran})" if titled and ran and ran != titled else ""


def told(estimate: Estimate | None) -> str:
    """0.678 [0.651, 0.704]; a dash for what is missing."""
    if estimate is None or estimate.value is None:
        return "-"
    if _is_count(estimate):
        return f"{estimate.value:,.0f}"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _is_count(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.method == "count"
