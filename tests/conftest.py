"""One small audit, shared by the tests of the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Finished, Vestige, run_in_process, write_world

# a program in the background of a script ignores Ctrl-C, and so do all that it starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def vestige_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vestige:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_in_process


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A finished audit; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    write_world(folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        ran = run_in_process("audit", "plan.toml", "--out", "run")
    finally:
        os.chdir(here)
    yield Finished(folder, folder / "run", ran)
