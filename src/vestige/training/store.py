"""Models and signals on disk: one file a model, one a signal, and a manifest of what was finished.

A model's file is written beside its place and synced, then renamed and entered in the manifest
with its sha256 in one transaction. A signal's file grows in place, block by block of models, and
each block is entered once it is synced. So what the manifest names is whole, whatever moment the
process was killed at and whoever else writes there. What is missing, damaged or foreign is named
and made again, never used.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import socket
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vestige.errors import DamagedFile, StoreError
from vestige.models import BlackBox
from vestige.reading import Block, MemoryCache, SignalCache, are_whole, same_columns

__all__ = ["Store", "StoredSignals", "write_atomically"]

Floats = NDArray[np.float64]

LARGEST_IN_MEMORY = 256 * 2**20
"""Bytes of a signal above which it stays on disk, and is mapped into memory."""

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


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """One process here at a time, where the system can see to it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("a") as file:
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing it unlocks


class Store:
    """Finished files of a folder.

    Args:
        folder: made if absent.
        tell: called with one sentence for each file that had to be set aside; by default it is a
            warning.
    """

    def __init__(self, folder: Path | str, tell: Callable[[str], None] = warnings.warn) -> None:
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
        if self._is_sound():
            return
        with _one_at_a_time(self._manifest.with_suffix(".lock")):
            if self._is_sound():  # another process was quicker: what it entered since stays
                return
            # a journal left behind would be played back into the new manifest
            self._manifest.with_name(f"{self._manifest.name}-journal").unlink(missing_ok=True)
            os.replace(self._manifest, self._manifest.with_suffix(".damaged"))
            with self._connected():
                pass
        self._tell(f"{self._manifest.name} is damaged and was set aside; all is made again")

    def _is_sound(self) -> bool:
        """Whether the manifest, made if absent, is one, in every page."""
        try:
            with self._connected() as connection:
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
            # another process may have set a damaged manifest aside since
            connection.execute(_TABLE)
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
        """Have signals read again: models of the run were made again since.

        Their files stay, to be written over: another process may be at it.
        """
        with explained(self._manifest), self._connected() as connection:
            connection.execute("DELETE FROM files WHERE run = ? AND name LIKE 'signal-%'", (run,))

    def entered(self, run: str, prefix: str) -> dict[str, str]:
        """The sha256 of everything whose name begins so."""
        with explained(self._manifest), self._connected() as connection:
            rows = connection.execute(
                "SELECT name, sha256 FROM files WHERE run = ? AND substr(name, 1, ?) = ?",
                (run, len(prefix), prefix),
            ).fetchall()
        return dict(rows)

    def enter(self, run: str, digests: Mapping[str, str]) -> None:
        """Name what was written and synced, all of it or nothing."""
        rows = [(run, name, digest, 0.0) for name, digest in digests.items()]
        with explained(self._manifest), self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def set_aside(self, run: str, names: Sequence[str], why: str) -> None:
        """Forget what is not what was written, and say why."""
        with explained(self._manifest), self._connected() as connection:
            connection.executemany(
                "DELETE FROM files WHERE run = ? AND name = ?", [(run, name) for name in names]
            )
        self._tell(why)

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

    def files(self, run: str, names: Sequence[str]) -> list[StoredFile]:
        """Files of a run, to be read later."""
        digests = self.entered(run, "")
        return [StoredFile(self, run, name, digests.get(name, "")) for name in names]

    def seconds(self, run: str) -> float:
        """Training time of everything finished in a run."""
        with explained(self._manifest), self._connected() as connection:
            row = connection.execute(
                "SELECT COALESCE(SUM(seconds), 0) FROM files WHERE run = ?", (run,)
            ).fetchone()
        return float(row[0])


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, and what it was when the manifest was asked."""

    store: Store
    run: str
    name: str
    sha256: str

    def content(self) -> bytes:
        """What was written.

        Raises:
            DamagedFile: it is gone, or something else.
        """
        path = self.store.path(self.run, self.name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedFile(
                f"expected to read {path}, but {error.strerror}; run the same command again"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        # another process may have made it again since
        if found != self.sha256 and found != self.store.entered(self.run, self.name).get(self.name):
            raise DamagedFile(
                f"expected {path} as it was written, but it was altered since; run the same "
                "command again, which makes it again"
            )
        return data


class StoredSignals:
    """A pool's signals in its run's folder; small ones in memory too."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._kept: dict[str, _Stored] = {}
        self._models: Sequence[BlackBox] | None = None

    def of(self, models: Sequence[BlackBox]) -> SignalCache:
        if self._models is None:
            self._models = models
        return self if self._models is models else MemoryCache().of(models)

    def kept(self, key: str, n_models: int, n_records: int) -> _Stored:
        name = f"signal-{key}-{n_models}.npy"
        if name not in self._kept:
            self._kept[name] = _Stored(self._store, self._run, name, (n_models, n_records))
        return self._kept[name]

    def commit(self) -> None:
        """Sync what was put and enter all of it at once."""
        written: dict[str, str] = {}
        for signal in self._kept.values():
            written |= signal.synced()
        if written:
            self._store.enter(self._run, written)
        for signal in self._kept.values():
            signal.pending.clear()


class _Stored:
    """One signal's file: an .npy of all models and records, whose blocks are written in place.

    Never through a map of it, where a full disk is a signal that ends the process.

    Attributes:
        pending: sha256 of the blocks that are written and not yet entered.
    """

    def __init__(self, store: Store, run: str, name: str, shape: tuple[int, int]) -> None:
        self._store, self._run, self._name = store, run, name
        self._path = store.path(run, name)
        self._shape: tuple[int, ...] = shape
        self._header = b""
        self._values: Floats | None = None
        self._done: set[Block] = set()
        self._identity = (0, 0)
        self.pending: dict[str, str] = {}
        self._find()

    def is_whole(self) -> bool:
        return are_whole(self._done, *self._shape[:2])

    def has(self, block: Block) -> bool:
        return block in self._done

    def put(self, block: Block, values: Floats) -> None:
        if not self._header:
            self._begin(values.shape[2:])
        same_columns(self._shape[2:], values.shape[2:])
        sha256 = hashlib.sha256()
        with explained(self._path), self._path.open("r+b", buffering=0) as file:
            for k, row in enumerate(values, start=block.start):
                data = row.tobytes()
                sha256.update(data)
                _write_at(file, self._offset(k, block.first), data)
        if self._values is not None:
            self._values[block.start : block.stop, block.first : block.last] = values
        self._done.add(block)
        self.pending[self._entry(block)] = sha256.hexdigest()

    def synced(self) -> dict[str, str]:
        """What is pending, once it is on disk."""
        if self.pending:
            with explained(self._path), self._path.open("r+b") as file:
                os.fsync(file.fileno())
        return self.pending

    def values(self) -> Floats:
        if self._values is None:
            return self._mapped()
        view = self._values.view()
        view.setflags(write=False)
        return view

    def _mapped(self) -> Floats:
        with explained(self._path), self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if _identity(file) != self._identity or size < self._offset(self._shape[0], 0):
                raise StoreError(
                    f"expected {self._path} as it was written, but another process has replaced "
                    "it; run the same command again"
                )
            mapped = np.memmap(file, np.float64, "r", len(self._header), self._shape)
        return np.asarray(mapped)

    def _begin(self, columns: tuple[int, ...]) -> None:
        """Make the file where it is absent, with the header of the whole signal."""
        self._settle(columns)
        with explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # not anew: another process may have begun the same one, and gone on
            self._path.touch()
            with self._path.open("r+b", buffering=0) as file:
                if file.read(len(self._header)) != self._header:
                    _write_at(file, 0, self._header)
                self._identity = _identity(file)

    def _settle(self, columns: tuple[int, ...]) -> None:
        self._shape = (*self._shape[:2], *columns)
        self._header = _header(self._shape)
        if 8 * math.prod(self._shape) <= LARGEST_IN_MEMORY:
            self._values = np.empty(self._shape)

    def _find(self) -> None:
        """Take the blocks that are what was written, and say which are not."""
        entered = self._store.entered(self._run, f"{self._name}[")
        if not entered:
            return
        folder, lost = self._path.parent.parent, list(entered)
        if not self._path.exists():
            self._store.set_aside(
                self._run, lost, f"{self._name} is gone from {folder}; made again"
            )
            return
        with explained(self._path), self._path.open("rb") as file:
            columns = _columns(file, self._shape)
            if columns is not None:
                self._settle(columns)
                self._identity = _identity(file)
                lost = [e for e, digest in entered.items() if not self._take(file, e, digest)]
        if not self._done:  # nor is the header to be trusted then
            self._shape, self._header, self._values = self._shape[:2], b"", None
        if lost:
            self._store.set_aside(
                self._run,
                lost,
                f"{self._name} in {folder} is damaged (not what was written) in {len(lost)} of "
                f"{len(entered)} blocks; made again",
            )

    def _take(self, file: BinaryIO, entry: str, digest: str) -> bool:
        """Whether a block is what was written; then it is there."""
        found = re.fullmatch(r".*\[(\d+):(\d+),(\d+):(\d+)\]", entry)
        if found is None:
            return False
        block = Block(*(int(number) for number in found.groups()))
        size = os.fstat(file.fileno()).st_size
        inside = block.stop <= self._shape[0] and block.last <= self._shape[1]
        if not inside or self._offset(block.stop - 1, block.last) > size:
            return False
        sha256 = hashlib.sha256()
        for row in self._rows(file, block):
            sha256.update(row)
        if sha256.hexdigest() != digest:
            return False
        if self._values is not None:
            part = self._values[block.start : block.stop, block.first : block.last]
            for k, row in enumerate(self._rows(file, block)):
                part[k] = np.frombuffer(row).reshape(part.shape[1:])
        self._done.add(block)
        return True

    def _rows(self, file: BinaryIO, block: Block) -> Iterator[bytes]:
        for k in range(block.start, block.stop):
            file.seek(self._offset(k, block.first))
            yield file.read(self._offset(k, block.last) - self._offset(k, block.first))

    def _offset(self, model: int, record: int) -> int:
        """Where a model's values of a record begin in the file."""
        before = model * self._shape[1] + record
        return len(self._header) + 8 * before * math.prod(self._shape[2:])

    def _entry(self, block: Block) -> str:
        return f"{self._name}[{block.start}:{block.stop},{block.first}:{block.last}]"


def _header(shape: tuple[int, ...]) -> bytes:
    """What an .npy file of float64 in this shape begins with."""
    made = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(made, header)
    return made.getvalue()


def _columns(file: BinaryIO, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """What a file's header has behind the models and the records, if it is of that shape."""
    try:
        np.lib.format.read_magic(file)
        found, _, kind = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError):
        return None
    sound = kind == np.float64 and found[:2] == shape and len(found) <= 3
    return found[2:] if sound and file.tell() == len(_header(found)) else None


def _write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Write it all: a disk that is about to be full takes a part before it refuses."""
    file.seek(offset)
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _identity(file: BinaryIO | FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
