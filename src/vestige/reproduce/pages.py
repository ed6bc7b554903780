"""Pages of the documentation from stored rows: nothing on them is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vestige.errors import InvalidInput
from vestige.reproduce import EXPERIMENTS, SCALES, RowResult, listed, read_all
from vestige.reproduce.experiment import Experiment, Row
from vestige.reproduce.text import cells
from vestige.training.store import write_atomically

__all__ = ["write"]

_GENERATED = "<!-- Generated from the stored results; do not edit. -->"


def write(results: Path | str, docs: Path | str) -> tuple[Path, ...]:
    """Write an index and a page for each experiment.

    Args:
        results: folder of stored rows, `<experiment>/<scale>/<row>.json`.
        docs: folder of the pages; figures go to `images/` in it.

    Returns:
        every file that was written, in order.

    Raises:
        DamagedFile: a stored row is not one.
        InvalidInput: a stored row of no experiment, or there is none at all.
        MissingExtra: matplotlib is not here.
    """
    stored, folder = read_all(Path(results)), Path(docs)
    unknown = sorted({r.experiment for r in stored} - set(EXPERIMENTS))
    if unknown or not stored:
        raise InvalidInput(
            f"expected stored rows of known experiments in {results}, got "
            f"{', '.join(unknown) or 'none'}; run some first: vestige reproduce list"
        )
    written = []
    for experiment in listed():
        own = [r for r in stored if r.experiment == experiment.id]
        text, images = _page(experiment, own)
        for name, svg in images.items():
            written.append(_put(folder / "images" / name, svg))
        written.append(_put(folder / f"{experiment.id}.md", text.encode()))
    written.append(_put(folder / "index.md", _index(stored).encode()))
    return tuple(written)


def _put(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda part: _write(part, content))
    return path


def _write(part: Path, content: bytes) -> None:
    part.write_bytes(content)


# --- the index -----------------------------------------------------------------------------------


def _index(stored: Sequence[RowResult]) -> str:
    rows = []
    for experiment in listed():
        done = {
            scale: sum(r.experiment == experiment.id and r.scale == scale for r in stored)
            for scale in SCALES
        }
        said = ", ".join(f"{n} of {len(experiment.rows)} {s}" for s, n in done.items() if n)
        rows.append((
            f"[{experiment.id}]({experiment.id}.md)", experiment.title, experiment.paper,
            said or "none",
        ))  # fmt: skip
    return "\n".join([
        "# Reproductions", "", _GENERATED, "",
        "Tables and figures of the papers as rows that can be run again. The paper's figures "
        "stand beside ours; they are references, not goals: data, sizes and services differ, and "
        "each page says how. A result on a stand-in never has the real set's name.", "",
        "```", "vestige reproduce list", "vestige reproduce shadow-table2 --scale ci",
        "vestige reproduce shadow-table2 --scale laptop --row location30", "```", "",
        "A finished row is a JSON file, and is not run again; a killed run goes on with the rows "
        "and models that are missing. Scales:", "",
        *(f"* `{name}`: {says}." for name, says in SCALES.items()), "",
        *_table(("experiment", "what", "paper", "rows stored here"), rows), "",
    ])  # fmt: skip


# --- a page --------------------------------------------------------------------------------------


def _page(experiment: Experiment, own: Sequence[RowResult]) -> tuple[str, dict[str, bytes]]:
    lines = [f"# {experiment.title}", "", _GENERATED, "", f"{experiment.paper}.", ""]
    lines += ["## How to run it", "", "```", f"vestige reproduce {experiment.id} --scale laptop"]
    if len(experiment.rows) > 1:
        row = experiment.rows[0].id
        lines.append(f"vestige reproduce {experiment.id} --scale laptop --row {row}")
    lines += ["```", "", "## Where this is not the paper's experiment", ""]
    lines += [f"* {text}" for text in experiment.differences]
    lines += [f"* {row.title}: {row.note}" for row in experiment.rows if row.note] + [""]
    images: dict[str, bytes] = {}
    scales = [s for s in SCALES if any(r.scale == s for r in own)]
    if not scales:
        lines += ["## Results", "", "No row is stored here yet.", "", *_paper_only(experiment), ""]
    for scale in scales:
        here = {r.row: r for r in own if r.scale == scale}
        rows = [row for row in experiment.rows if row.id in here]
        table = cells(experiment.columns, [(row, here[row.id]) for row in rows])
        absent = [row.title for row in experiment.rows if row.id not in here]
        lines += [f"## Results, scale {scale}", "", *_table(*table), ""]
        if absent:
            lines += [f"Not stored here: {'; '.join(absent)}.", ""]
        for drawing in experiment.drawings:
            figure = drawing([here[row.id] for row in rows])
            if figure is None:
                continue
            name = f"{experiment.id}-{scale}-{figure.name}.svg"
            images[name] = figure.svg
            lines += [f"![{figure.caption}](images/{name})", "", f"*{figure.caption}*", ""]
        lines += ["### What was run", "", *_sizes(rows, here), ""]
        lines += [f"* {text}" for text in _provenance(list(here.values()))] + [""]
    return "\n".join(lines), images


def _paper_only(experiment: Experiment) -> list[str]:
    keys = [c for c in experiment.columns if any(c.key in row.paper for row in experiment.rows)]
    if not keys:
        return []
    rows = [
        [row.title, *(f"{row.paper[c.key]:.4g}" if c.key in row.paper else "-" for c in keys)]
        for row in experiment.rows
    ]
    return _table(["row", *(f"{c.title}: paper" for c in keys)], rows)


def _sizes(rows: Sequence[Row], here: dict[str, RowResult]) -> list[str]:
    """Sizes, seconds and data of each row."""
    said = ("training_path", "training_seconds")
    keys = list(
        dict.fromkeys(k for row in rows for k in here[row.id].sizes if k not in said)
    )  # fmt: skip
    head = [
        "row",
        *(k.removeprefix("n_").replace("_", " ") for k in keys),
        "seconds",
        "training seconds",
        "data",
    ]
    table = []
    for row in rows:
        result = here[row.id]
        cells = [row.title, *(_count(result.sizes.get(k, "-")) for k in keys)]
        cells += [f"{result.seconds:.0f}", str(result.sizes.get("training_seconds", "-"))]
        cells.append(f"{result.data['name']} `{result.data['digest']}`" if result.data else "-")
        table.append(cells)
    return _table(head, table)


def _count(value: int | float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _provenance(results: Sequence[RowResult]) -> list[str]:
    """Seeds, versions, machine and code, each said once where they are the same."""
    first = [r.provenance for r in results]
    seeds = sorted({p["seed"] for p in first})
    machines = sorted(
        {f"{p['machine']['processor']}, {p['machine']['cores']} cores" for p in first}
    )
    versions = sorted({", ".join(f"{k} {v}" for k, v in p["versions"].items()) for p in first})
    loads = [p["load"] for p in first]
    days = sorted({p["when"][:10] for p in first})
    codes = sorted({p["code"] for p in first})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return [
        f"Seed {', '.join(str(s) for s in seeds)}; {when}.",
        f"Machine: {'; '.join(machines)}; load when a row began {min(loads):.1f} to "
        f"{max(loads):.1f}.",
        f"Versions: {'; '.join(versions)}; source digest {', '.join(codes)}.",
        "Seconds are of measuring a row, less where its models were there from another; training "
        "seconds are what its models cost, whenever they were trained.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "| " + " | ".join("---" if not k else "---:" for k in range(len(head))) + " |"
    return [line(head), rule, *(line(row) for row in rows)]
