"""Where the time of `vestige audit` on digits goes, as one process would pay it.

python benchmarks/audit.py [--references K]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tables import Table
from workloads import load


def audited(folder: str, references: int) -> tuple[float, float, dict[str, float]]:
    """CPU seconds, peak MiB and the report's own split of the time."""
    words = [sys.executable, "-m", "vestige", "audit", "--out", folder, "--quiet"]
    job = os.posix_spawn(
        sys.executable,
        [*words, "--references", str(references)],
        {**os.environ, "OMP_NUM_THREADS": "1"},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    # of this one process and its own, not of the largest so far
    _, status, used = os.wait4(job, 0)
    if status:
        raise SystemExit(f"vestige audit ended with status {status}")
    cpu = used.ru_utime + used.ru_stime
    report = json.loads((Path(folder) / "report.json").read_text())
    return cpu, used.ru_maxrss / 1024, report["provenance"]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--references", type=int, default=64)
    references = parser.parse_args().references
    rows = []
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        for call in ("first call", "second call"):
            cpu, peak, split = audited(folder, references)
            parts = ", ".join(f"{name} {value:.1f}" for name, value in split.items())
            rows.append([call, cpu, peak, parts])
    table = Table(
        "audit",
        f"vestige audit digits, {references} reference models (load {before:.1f})",
        ["", "CPU s", "MiB", "wall seconds by the report"],
        rows,
        ["", ".1f", ".0f", ""],
        [
            "The rest of the CPU time is imports (3 s) and the report. What models cost is said in "
            "the second call too, which trains none."
        ],
    )
    table.show()
    table.save()


if __name__ == "__main__":
    main()
