"""Run experiments row by row; a finished row is on disk, and is not run again."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn

import vestige
from vestige.errors import DamagedFile, DatasetUnavailable, PlanError
from vestige.fingerprint import source_digest
from vestige.progress import Progress, quiet
from vestige.reproduce.experiment import SCALES, Context, Experiment, Row
from vestige.reproduce.results import RowResult, path_of, read, save
from vestige.training import Store

__all__ = ["OUT", "machine", "run_experiment"]

OUT = Path("runs/reproduce")
"""Where results and models go by default."""

MODELS = "models"

Tell = Callable[[str], None]


def run_experiment(
    experiment: Experiment,
    scale: str,
    *,
    row: str | None = None,
    out: Path | str = OUT,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress = quiet,
    tell: Tell = lambda text: None,
) -> tuple[RowResult, ...]:
    """Measure the rows that are not finished, one after the other.

    A row whose data are not on this machine is told of and left out, unless it is the one that
    was asked for. Rows are finished under their settings and seed: with others they run again.

    Args:
        scale: one of `SCALES`.
        row: one row only.
        out: folder of results (`<id>/<scale>/<row>.json`) and models (`models/`).
        fresh: run finished rows again; models are still taken from the store.
        progress: called with a label, the number done and the total.
        tell: called with a sentence for each row that was found finished or cannot be run.

    Returns:
        The finished rows, in the order of the experiment.

    Raises:
        PlanError: no such scale or row.
        DatasetUnavailable: the data of the row asked for, or of every row, are not here.
        StoreError: the disk cannot be written; finished rows are kept.
    """
    if scale not in SCALES:
        raise PlanError(f"expected a scale among {', '.join(SCALES)}, got {scale!r}")
    rows = experiment.rows if row is None else (experiment.row(row),)
    folder, results, missing = Path(out), [], []
    store = Store(folder / MODELS, tell)
    for done, one in enumerate(rows):
        progress(experiment.id, done, len(rows))
        found = None if fresh or experiment.from_results else _finished(
            folder, experiment, one, scale, seed, tell
        )  # fmt: skip
        if found is not None:
            other = found.provenance.get("code") != _code()
            tell(f"{one.id}: finished before{', by other code: --fresh measures it again' * other}")
            results.append(found)
            continue
        context = Context(seed, scale, store, progress, lambda: _others(folder, experiment, scale))
        try:
            results.append(_measured(experiment, one, context, folder))
        except DatasetUnavailable as absent:
            if row is not None:
                raise
            missing.append(str(absent))
            tell(f"{one.id}: {absent}")
    progress(experiment.id, len(rows), len(rows))
    if not results:
        raise DatasetUnavailable(missing[0])
    return tuple(results)


def _measured(experiment: Experiment, row: Row, context: Context, folder: Path) -> RowResult:
    load, began, when = _load(), time.perf_counter(), datetime.now(UTC)
    settings = row.settings[context.scale]
    measured = experiment.measure(settings, context)
    result = RowResult(
        experiment.id,
        context.scale,
        row.id,
        asdict(settings),
        measured.estimates,
        measured.series,
        measured.sizes,
        measured.data,
        time.perf_counter() - began,
        {
            "seed": context.seed,
            "when": when.isoformat(timespec="seconds"),
            "code": _code(),
            "versions": versions(),
            "machine": machine(),
            "load": round(load, 2),
        },
    )
    path = save(folder, result)
    # as it is read back, so that a resumed run gives what an undisturbed one gives
    return read(path)


def _code() -> str:
    return source_digest(Path(vestige.__file__).parent)[:12]


def _finished(
    folder: Path, experiment: Experiment, row: Row, scale: str, seed: int, tell: Tell
) -> RowResult | None:
    path = path_of(folder, experiment.id, scale, row.id)
    if not path.exists():
        return None
    try:
        found = read(path)
    except DamagedFile as damage:
        tell(f"{damage} (it is made again)")
        return None
    settings = row.settings[scale]
    # a setting that is newer than the file had its default then
    known = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    same = _plain({**known, **found.settings}) == _plain(asdict(settings))
    return found if same and found.provenance["seed"] == seed else None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: tuples are lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _others(folder: Path, experiment: Experiment, scale: str) -> tuple[RowResult, ...]:
    found = sorted(folder.glob(f"*/{scale}/*.json"))
    return tuple(read(path) for path in found if path.parts[-3] != experiment.id)


# --- provenance ----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    import importlib.metadata

    return {
        "vestige": vestige.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": importlib.metadata.version("torch"),
    }


def machine() -> dict[str, str | int]:
    """The processor's model and cores; no names."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {"processor": model, "cores": os.cpu_count() or 1, "system": platform.system()}


def _load() -> float:
    return os.getloadavg()[0]
