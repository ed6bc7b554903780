"""Models and signals on disk: one file a model, a manifest that says what was finished.

A file is written beside its place and synced, then renamed and entered in the manifest with its
sha256 in one transaction: what the manifest names is whole, whatever moment the process was killed
at and whoever else writes there. What is missing, damaged or foreign is named and made again,
never used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vestige.errors import StoreError

__all__ = ["Store", "StoredSignals", "write_atomically"]

_COLUMNS = ["run", "name", "sha256", "seconds"]
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
    except (OSError, sqlite3.DatabaseError) as error:
        full = (
            getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        )
        why = "no space is left there" if full else str(error)
        taken = isinstance(error, (FileExistsError, NotADirectoryError, PermissionError))
        cure = "make room" if full else "choose another folder" if taken else "see to it"
        raise StoreError(
            f"expected to write {path}, but {why}; what was finished is kept: {cure} and run the "
            "same command again"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> str:
    """Write a file so that it is either whole or absent; returns its sha256."""
    part, digest = write_beside(path, write)
    with explained(path), _gone_after(part):
        os.replace(part, path)
    return digest


def write_beside(path: Path, write: Callable[[Path], None]) -> tuple[Path, str]:
    """Write and sync what is to become a file; returns where, and its sha256."""
    owner = f"{_host()}.{os.getpid()}.{threading.get_native_id()}"
    part = path.with_name(f"{path.name}.{owner}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
                return part, hashlib.file_digest(file, "sha256").hexdigest()
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _gone_after(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        part.unlink(missing_ok=True)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_abandoned(part: Path) -> bool:
    """Whether a half-written file's process, of this machine, is no more."""
    try:
        host, pid, _, _ = part.name.split(".")[-4:]
        if host == _host():
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError):
        return False
    return False


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
        with explained(self._manifest):
            self._open()
            for part in self.folder.glob("*/*.part"):
                if _is_abandoned(part):
                    part.unlink(missing_ok=True)

    def _open(self) -> None:
        if not self._is_sound():
            os.replace(self._manifest, self._manifest.with_suffix(".damaged"))
            # a journal left behind would be played back into the new manifest
            self._manifest.with_name(f"{self._manifest.name}-journal").unlink(missing_ok=True)
            self._tell(f"{self._manifest.name} is damaged and was set aside; all is made again")
            with self._connected() as connection:
                connection.execute(_TABLE)

    def _is_sound(self) -> bool:
        """Whether the manifest, made if absent, is one, in every page."""
        try:
            with self._connected() as connection:
                connection.execute(_TABLE)
                columns = connection.execute("SELECT * FROM files LIMIT 0").description
                found = connection.execute("PRAGMA quick_check").fetchone()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return False
        return found == ("ok",) and [c[0] for c in columns] == _COLUMNS

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
        part, digest = write_beside(path, write)
        self.adopt(part, run, name, digest, seconds)
        return path

    def adopt(self, part: Path, run: str, name: str, sha256: str, seconds: float) -> None:
        """Put a file written beside its place there, and enter it in the manifest.

        Both under the manifest's lock: of two processes that make the same file, the manifest
        names the digest of the one that is there.
        """
        path = self.path(run, name)
        with explained(path), _gone_after(part), self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            os.replace(part, path)
            connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (run, name, sha256, seconds)
            )

    def forget_signals(self, run: str) -> None:
        """Have signals read again: models of the run were made again since."""
        with explained(self._manifest), self._connected() as connection:
            connection.execute("DELETE FROM files WHERE run = ? AND name LIKE 'signal-%'", (run,))
        for path in (self.folder / run).glob("signal-*.npz"):
            path.unlink(missing_ok=True)

    def find(self, run: str, name: str) -> Path | None:
        """The file if it is there and exactly what was written, else None (and why, told)."""
        path = self.path(run, name)
        with explained(self._manifest), self._connected() as connection:
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
        with explained(self._manifest), self._connected() as connection:
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
            self._kept[key].setflags(write=False)
        return self._kept[key]

    def put(self, key: str, values: NDArray[np.float64]) -> None:
        self._kept[key] = values

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, signal=values)

        self._store.save(self._run, _signal_file(key), write)


def _signal_file(key: str) -> str:
    return f"signal-{key}.npz"
