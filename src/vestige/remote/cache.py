"""Answers that were paid for, and how many were: one SQLite file.

A row is written in a transaction of its own batch before anybody reads it, so whatever moment a
process is killed at, what the file names was answered and is whole. Several processes may share it.
Keys and rows are digests and numbers; no record, address or token is in it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vestige.errors import DamagedFile, InvalidInput, StoreError

__all__ = ["Answers"]

Floats = NDArray[np.float64]

_KIND = 0x76737467  # in the file's header: a cache of ours
_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (service BLOB PRIMARY KEY, records INTEGER NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS answered (service BLOB PRIMARY KEY, first REAL NOT NULL, "
    "last REAL NOT NULL) WITHOUT ROWID",
)
_AT_ONCE = 500  # keys of one SELECT; SQLite has taken at least 999 for long
_WAIT = 30.0  # seconds for another process to let go


class Answers:
    """Rows of numbers by key, and a count of what was spent by service.

    Args:
        path: the file, made if absent; None keeps everything in memory, for one process.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._owner, self._forked = os.getpid(), False

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        """Those of the keys that were answered.

        Raises:
            DamagedFile: a row is not what was written.
        """
        found: dict[bytes, Floats] = {}
        with self._explained():
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, row FROM answers WHERE key IN ({marks})"
                rows = self._opened().execute(query, part).fetchall()
                found |= {bytes(key): self._unpacked(bytes(key), row) for key, row in rows}
        return found

    def keep(self, service: bytes, rows: Mapping[bytes, Floats]) -> None:
        """Write rows, all of them or none, over older ones; on return they are on disk."""
        packed = [(key, _packed(key, row)) for key, row in rows.items()]
        now = time.time()
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", packed)
            connection.execute(
                "INSERT INTO answered VALUES (?, ?, ?) "
                "ON CONFLICT (service) DO UPDATE SET last = max(last, excluded.last)",
                (service, now, now),
            )

    def answered(self, service: bytes) -> tuple[float, float] | None:
        """When a service gave its first and its last answer, in seconds since 1970."""
        with self._explained():
            query = "SELECT first, last FROM answered WHERE service = ?"
            row = self._opened().execute(query, (service,)).fetchone()
        return (float(row[0]), float(row[1])) if row else None

    def spent(self, service: bytes) -> int:
        """Records that were asked of a service, whoever asked."""
        with self._explained():
            query = "SELECT records FROM spent WHERE service = ?"
            row = self._opened().execute(query, (service,)).fetchone()
        return int(row[0]) if row else 0

    def spend(self, service: bytes, n: int, budget: int | None) -> bool:
        """Count n more records, unless that would pass the budget; whether they were counted.

        Raises:
            InvalidInput: the count is kept in memory, and this process was forked from its owner.
        """
        if (
            self.path is None
            and (self._forked or self._owner != os.getpid())
            and budget is not None
        ):
            raise InvalidInput(
                "expected cache=PATH beside budget= for a remote model that several processes ask, "
                "got none; without it each would have a budget of its own"
            )
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO spent VALUES (?, 0)", (service,))
            limit = np.iinfo(np.int64).max if budget is None else budget
            change = connection.execute(
                "UPDATE spent SET records = records + ? WHERE service = ? AND records + ? <= ?",
                (n, service, n, int(limit)),
            )
        return change.rowcount == 1

    def give_back(self, service: bytes, n: int) -> None:
        """Take n records off the count: the service has refused them unanswered."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE spent SET records = records - ? WHERE service = ?", (n, service)
            )

    def close(self) -> None:
        """Close the file; what is kept in memory is lost."""
        connection, self._connection = self._connection, None
        if self._owner != os.getpid():
            _ABANDONED.append(connection)
        elif connection is not None:
            connection.close()

    # --- the file ---------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:  # Ctrl-C too: a transaction is never left open
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _opened(self) -> sqlite3.Connection:
        if self._owner != os.getpid():
            # a connection must not be used across a fork, nor be closed there
            _ABANDONED.append(self._connection)
            self._connection, self._owner = None, os.getpid()
            self._forked = True
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path or ":memory:",
            timeout=_WAIT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if kind != _KIND and tables:
            raise DamagedFile(
                f"expected a cache of answers in {self.path}, found a database of another program; "
                "choose another path"
            )
        if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages are not as they were written")
        _write_ahead(connection)
        # an answer that was paid for outlives a power cut
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            connection.execute(table)
        connection.execute(f"PRAGMA application_id = {_KIND}")
        connection.execute("COMMIT")

    def _unpacked(self, key: bytes, row: object) -> Floats:
        if isinstance(row, bytes) and len(row) % 8 == 0:
            values = np.frombuffer(row[8:], dtype="<f8").astype(np.float64)
            if len(values) and _packed(key, values) == row:
                return values
        raise sqlite3.DatabaseError("an answer is not as it was written")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreError(
                f"expected to read and write the cache {self.path}, but {error}; the answers in it "
                "are kept: see to it and run the same command again"
            ) from None
        except sqlite3.DatabaseError as error:
            raise DamagedFile(
                f"expected a cache of answers in {self.path}, but it is damaged ({error}); put a "
                "copy back, or delete it and pay for its answers again"
            ) from None


# connections of a process that this one was forked from
_ABANDONED: list[sqlite3.Connection | None] = []


def _packed(key: bytes, row: Floats) -> bytes:
    """A digest of 8 bytes, then the numbers."""
    data = row.astype("<f8").tobytes()
    return hashlib.sha256(key + data).digest()[:8] + data


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Writers that do not block readers; two processes may be at the switch at once."""
    until = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
