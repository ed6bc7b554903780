"""A tiny experiment for the harness's tests; run as a program it is what gets killed."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vestige.errors import DatasetUnavailable
from vestige.metrics import rate
from vestige.reproduce.experiment import Column, Experiment, Measured, Row
from vestige.reproduce.harness import run_experiment


@dataclass(frozen=True)
class Settings:
    hits: int
    wait_for: str = ""
    absent: bool = False
    shape: tuple[int, ...] = (1, 2)


def measure(settings, context):
    if settings.absent:
        raise DatasetUnavailable("expected nowhere.npz, found none")
    while settings.wait_for and not Path(os.environ[settings.wait_for]).exists():
        time.sleep(0.01)
    found = rate(settings.hits, 10 + context.seed)
    others = len(context.results())
    return Measured({"share": found}, {"bins": [0.1, 1 / 3]}, {"n": 10, "others": others})


def row(name, **settings):
    return Row(name, name.upper(), dict.fromkeys(("ci", "laptop", "paper"), Settings(**settings)))


TINY = Experiment(
    "tiny",
    "A tiny experiment",
    "nobody",
    (),
    (row("a", hits=1), row("b", hits=2, wait_for="GO"), row("c", hits=3)),
    measure,
    (Column("share", "share"),),
)

if __name__ == "__main__":
    run_experiment(TINY, "ci", out=sys.argv[1])
