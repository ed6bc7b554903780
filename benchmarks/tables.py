"""A benchmark's table: printed, and kept for the page that `page.py` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workloads import load, machine

FOLDER = Path(os.environ.get("VESTIGE_BENCH", "runs/bench"))


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Args:
        name: of the file that it is kept in.
        title: what was measured, and how.
        columns: their heads.
        rows: as many values each.
        formats: of the values of each column.
        notes: sentences below.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    formats: Sequence[str]
    notes: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        def cell(value: Any, format: str) -> str:
            return value if isinstance(value, str) else "" if value is None else f"{value:{format}}"

        return [[cell(v, f) for v, f in zip(row, self.formats, strict=True)] for row in self.rows]

    def show(self) -> None:
        """Print it."""
        cells = [list(self.columns), *self.cells()]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        print(f"\n{self.title}")
        for row in cells:
            left = [isinstance(v, str) for v in (self.rows[0] if self.rows else row)]
            parts = [
                c.ljust(w) if s else c.rjust(w) for c, w, s in zip(row, widths, left, strict=True)
            ]
            print("  ".join(parts).rstrip())
        for note in self.notes:
            print(note)

    def save(self, folder: Path = FOLDER) -> None:
        """Keep it, with the machine and the hour."""
        folder.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        kept = {**asdict(self), "machine": machine(), "load": load(), "when": when}
        (folder / f"{self.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
