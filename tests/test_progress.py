"""Progress: lines for files and pipelines, bars for people."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vestige import progress
from vestige.models import Predictions
from vestige.pool import Pool
from vestige.progress import Bars, Lines, shown
from vestige.records import Records
from vestige.signals import cross_entropy_loss


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_lines_at_the_beginning_now_and_then_and_at_the_end(clock, capsys):
    with Lines(every=10) as lines:
        for done in range(0, 101, 5):
            lines("models", done, 100)
            clock.now += 3
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "models 0/100" and told[-1] == "models 100/100"
    # a line each 12 seconds (10 have passed), at 20 records each
    assert told[1:-1] == [
        "models 20/100, about 48 s left",
        "models 40/100, about 36 s left",
        "models 60/100, about 24 s left",
        "models 80/100, about 12 s left",
    ]


def test_time_left_does_not_count_what_was_there_before(clock, capsys):
    lines = Lines(every=1)
    lines("models", 60, 100)  # resumed
    clock.now += 10
    lines("models", 80, 100)
    assert capsys.readouterr().err.splitlines()[1] == "models 80/100, about 10 s left"


def test_labels_have_their_own_clocks(clock, capsys):
    lines = Lines(every=10)
    lines("target", 0, 1)
    lines("models", 0, 4)
    lines("models", 1, 4)
    lines("target", 1, 1)
    assert capsys.readouterr().err.splitlines() == ["target 0/1", "models 0/4", "target 1/1"]


def left(bars, label):
    """Seconds left, as a bar says it."""
    return bars._progress.tasks[bars._tasks[label]].time_remaining


def test_bars_say_what_is_left(clock):
    with Bars() as bars:
        bars("models", 60, 100)  # resumed
        assert left(bars, "models") is None
        for done in (70, 80, 90):
            clock.now += 10
            bars("models", done, 100)
        assert left(bars, "models") == 10
        bars("signals", 0, 512)
        for done in (32, 64, 96):
            clock.now += 1
            bars("signals", done, 512)
        assert left(bars, "signals") == (512 - 96) / 32
        bars("signals", 512, 512)
        assert left(bars, "signals") == 0


def test_bars_of_models_that_take_minutes_say_what_is_left_too(clock):
    with Bars() as bars:
        for done in range(4):
            bars("signals", done, 10)
            clock.now += 300
        assert left(bars, "signals") == 7 * 300


def test_signals_are_read_with_time_left(clock, capsys):
    class Slow(Predictions):
        def log_probabilities(self, x):
            clock.now += 20
            return super().log_probabilities(x)

    records = Records.from_arrays(np.arange(5)[:, None], np.zeros(5, dtype=int))
    models = [Slow(logits=np.ones((5, 2))) for _ in range(4)]
    pool = Pool(models, records, np.zeros((4, 5), dtype=bool))
    pool.read([cross_entropy_loss], records, progress=Lines(every=10))
    assert capsys.readouterr().err.splitlines() == [
        "signals 0/4",
        "signals 1/4, about 60 s left",
        "signals 2/4, about 40 s left",
        "signals 3/4, about 20 s left",
        "signals 4/4",
    ]


def test_quiet_says_nothing(capsys):
    with shown(quiet=True) as lines:
        lines("models", 1, 1)
        lines.tell("a sentence")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_sentences_go_to_standard_error(capsys):
    Lines().tell("a sentence")
    captured = capsys.readouterr()
    assert captured.err == "a sentence\n" and captured.out == ""


def test_not_a_terminal_is_lines(capsys):
    assert isinstance(shown(), Lines)


SCRIPT = """
from vestige.progress import Bars, shown
with shown() as bars:
    assert isinstance(bars, Bars)
    bars("models", 0, 4)
    bars.tell("[bold]told as it is[/bold]")
    bars("models", 4, 4)
"""


@pytest.mark.slow
def test_a_terminal_has_bars():
    ours, theirs = pty.openpty()
    source = str(Path(progress.__file__).parents[1])
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, env=env, timeout=120)
    os.close(theirs)
    seen = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        seen += read
    os.close(ours)
    text = seen.decode()
    assert done.returncode == 0, text
    assert "models" in text and "4/4" in text and "[bold]told as it is[/bold]" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_bars_end_when_something_fails():
    bars = Bars()
    with pytest.raises(KeyError), bars:
        bars("models", 1, 4)
        raise KeyError
    assert bars._progress.live.is_started is False
