"""Running the command line in tests, and a small world for it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vestige.cli import main

PLAN = """
name = "tiny"
references = 4

[data]
file = "records.npz"
members = 60
nonmembers = 60
population = 30

[target]
network = "mlp"
hidden = [16]

[training]
epochs = 20
optimizer = "adam"
lr = 0.02
batch_size = 16
"""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a refusal, without its first word."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert lines and lines[-1].startswith("vestige: "), self
        assert sum(line.startswith("vestige:") for line in lines) == 1, self
        assert "Traceback" not in self.err and not self.out, self
        return lines[-1].removeprefix("vestige: ")


Vestige = Callable[..., Ran]


def run_in_process(*words: object) -> Ran:
    """`vestige WORDS` without a new interpreter."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as done:
            code = int(done.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def write_world(folder: Path, plan: str = PLAN) -> Path:
    """Records of three classes with noisy labels, and a plan that audits a network on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 8)).astype(np.float32)
    y = np.where(rng.random(160) < 0.3, rng.integers(0, 3, 160), x[:, :3].argmax(axis=1))
    np.savez(folder / "records.npz", x=x, y=y)
    (folder / "plan.toml").write_text(plan)
    return folder / "plan.toml"


class Finished(NamedTuple):
    """The folder of a plan, and the folder and output of its audit."""

    folder: Path
    out: Path
    ran: Ran

    @property
    def plan(self) -> Path:
        return self.folder / "plan.toml"
