"""Where the time of `vestige audit` on digits goes, as one process would pay it.

python benchmarks/audit.py [--references K]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tables import Table
from workloads import load


def audited(folder: str, references: int) -> tuple[float, float, dict[str, float]]:
    """CPU seconds, peak MiB and the report's own split of the time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "vestige", "audit", "--out", folder, "--quiet"]
        + ["--references", str(references)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = json.loads((Path(folder) / "report.json").read_text())
    return cpu, after.ru_maxrss / 1024, report["provenance"]["seconds"]


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
