"""Models and signals on disk: one file a model, a manifest that says what was finished.

A file is written beside its place, synced and renamed, then entered in the manifest with its
sha256: what the manifest names is whole, whatever moment the process was killed at. What is
missing, damaged or foreign is named and made again, never used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vestige.errors import StoreError

__all__ = ["Store", "StoredSignals", "write_atomically"]

_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    run TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (run, name)
)
"""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Disk errors as one sentence that says what is safe."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "full" in str(error)
        why = "no space is left there" if full else str(error)
        raise StoreError(
            f"expected to write {path}, but {why}; what was finished is kept: make room and run "
            "the same command again"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> str:
    """Write a file so that it is either whole or absent; returns its sha256."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            write(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return digest


class Store:
    """Finished files of a folder.

    Args:
        folder: made if absent.
        tell: called with one sentence for each file that had to be set aside.
    """

    def __init__(self, folder: Path | str, tell: Callable[[str], None] = lambda text: None) -> None:
        self.folder = Path(folder)
        self._tell = tell
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest = self.folder / "manifest.sqlite"
        self._open()

    def _open(self) -> None:
        try:
            with self._connected() as connection:
                connection.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"expected to open {self._manifest}, but {error}") from error
            aside = self._manifest.with_suffix(".damaged")
            os.replace(self._manifest, aside)
            self._tell(f"{self._manifest.name} is damaged and was set aside; all is made again")
            with self._connected() as connection:
                connection.execute(_TABLE)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._manifest, timeout=30)) as connection, connection:
            connection.execute("PRAGMA busy_timeout = 30000")
            yield connection

    def path(self, run: str, name: str) -> Path:
        return self.folder / run / name

    def save(
        self, run: str, name: str, write: Callable[[Path], None], seconds: float = 0.0
    ) -> Path:
        """Write a file and enter it in the manifest."""
        path = self.path(run, name)
        digest = write_atomically(path, write)
        self.enter(run, name, digest, seconds)
        return path

    def enter(self, run: str, name: str, sha256: str, seconds: float) -> None:
        with explained(self._manifest), self._connected() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (run, name, sha256, seconds)
            )

    def find(self, run: str, name: str) -> Path | None:
        """The file if it is there and exactly what was written, else None (and why, told)."""
        path = self.path(run, name)
        with self._connected() as connection:
            row = connection.execute(
                "SELECT sha256 FROM files WHERE run = ? AND name = ?", (run, name)
            ).fetchone()
        if row is None:
            if path.exists():
                self._tell(f"{path.name} is not in the manifest of {self.folder}; made again")
            return None
        if not path.exists():
            self._tell(f"{path.name} is gone from {self.folder}; made again")
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == row[0]:
                return path
        self._tell(f"{path.name} in {self.folder} is damaged (not what was written); made again")
        return None

    def seconds(self, run: str) -> float:
        """Training time of everything finished in a run."""
        with self._connected() as connection:
            row = connection.execute(
                "SELECT COALESCE(SUM(seconds), 0) FROM files WHERE run = ?", (run,)
            ).fetchone()
        return float(row[0])


class StoredSignals:
    """A pool's signals, kept in its run's folder and in memory."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._kept: dict[str, NDArray[np.float64]] = {}

    def get(self, key: str) -> NDArray[np.float64] | None:
        if key not in self._kept:
            path = self._store.find(self._run, _signal_file(key))
            if path is None:
                return None
            with np.load(path, allow_pickle=False) as stored:
                self._kept[key] = stored["signal"]
        return self._kept[key]

    def put(self, key: str, values: NDArray[np.float64]) -> None:
        self._kept[key] = values

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, signal=values)

        self._store.save(self._run, _signal_file(key), write)


def _signal_file(key: str) -> str:
    return f"signal-{key}.npz"
