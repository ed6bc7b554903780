"""Progress for people: a bar with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

__all__ = ["Progress", "Shown", "quiet", "shown"]

Progress = Callable[[str, int, int], None]
"""Called with a label, the number done and the total."""

# of slow models a bar must remember more than rich's 30 seconds to say what is left
_REMEMBERED = 3600.0


def quiet(label: str, done: int, total: int) -> None:
    """Progress that is not shown."""


class Shown(Protocol):
    """Progress that can be entered and called with (label, done, total)."""

    def __enter__(self) -> Shown: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...
    def __call__(self, label: str, done: int, total: int) -> None: ...
    def tell(self, text: str) -> None: ...


def shown(quiet: bool = False) -> Shown:
    """Bars where standard error is a terminal, else lines; neither if quiet."""
    if sys.stderr.isatty() and not quiet:
        return Bars()
    return Lines(quiet)


class Bars:
    """One bar a label."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskID,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            # looked up anew, so that a test's clock is seen
            get_time=lambda: time.monotonic(),
            speed_estimate_period=_REMEMBERED,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def tell(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class Lines:
    """A line when a label begins, every few seconds, and when it ends."""

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self._quiet, self._every = quiet, every
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._began.setdefault(label, (now, done))
        due = label not in self._last or done == total or now - self._last[label] >= self._every
        if not due or self._quiet:
            return
        self._last[label] = now
        left = ""
        if first < done < total:
            left = f", about {(now - began) / (done - first) * (total - done):.0f} s left"
        self.tell(f"{label} {done}/{total}{left}")

    def tell(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)
