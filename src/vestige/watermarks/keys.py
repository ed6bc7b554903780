"""A secret key and everything that is drawn from it.

The order of draws is part of the format: a decoder draws what the encoder drew, years later and on
another machine. Words are those of the Philox counter (Salmon et al. 2011), which NumPy promises
not to change; numbers are made from them here, in float64 on the CPU, since NumPy promises nothing
of its distributions.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from vestige.errors import DamagedFile, InvalidInput, StoreError

__all__ = ["Draws", "Key", "canonical", "read_document", "write_document"]

Floats = NDArray[np.float64]

FORMAT = "vestige.key.v1"
_BYTES = 32


@dataclass(frozen=True, repr=False)
class Key:
    """256 secret bits. What is drawn for one purpose says nothing of another.

    Args:
        secret: 32 bytes; `Key.new()` draws them.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != _BYTES:
            raise InvalidInput(f"expected a key of {_BYTES} bytes, got another; use Key.new()")

    @classmethod
    def new(cls) -> Key:
        """A key from the operating system's randomness."""
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def of(cls, number: int) -> Key:
        """The key of a number, for experiments that are repeated; anybody can guess it."""
        return cls(hashlib.sha256(f"vestige.experiment.{number}".encode()).digest())

    def derive(self, purpose: str, data: bytes = b"") -> bytes:
        """HMAC-SHA256 of a purpose and what it is about, 32 bytes."""
        return hmac.new(self.secret, purpose.encode() + b"\0" + data, hashlib.sha256).digest()

    def draws(self, purpose: str) -> Draws:
        return Draws(int.from_bytes(self.derive(purpose)[:16], "little"))

    def seed(self, purpose: str) -> int:
        """63 bits, for a generator of someone else's."""
        return int.from_bytes(self.derive(purpose)[:8], "little") >> 1

    @property
    def name(self) -> str:
        """16 hexadecimal digits that tell keys apart and give nothing away."""
        return self.derive("name").hex()[:16]

    def __repr__(self) -> str:
        # a secret must not end up in a log
        return f"Key(name={self.name!r})"

    def save(self, path: Path | str) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            StoreError: there is such a file, or it cannot be written.
        """
        write_document(path, {"format": FORMAT, "key": self.secret.hex()}, secret=True)

    @classmethod
    def load(cls, path: Path | str) -> Key:
        """The key of a file.

        Raises:
            InvalidInput: others may read the file.
            DamagedFile: it holds no key.
        """
        document = read_document(path, FORMAT, secret=True)
        try:
            return cls(bytes.fromhex(document["key"]))
        except (KeyError, TypeError, ValueError):
            raise DamagedFile(f"expected a key of 64 digits in {path}, got another") from None


class Draws:
    """Numbers of one purpose, in the order they are asked for."""

    def __init__(self, key: int) -> None:
        self._bits = np.random.Philox(key=key)

    def words(self, n: int) -> NDArray[np.uint64]:
        """(n,) uniform 64-bit words."""
        return np.atleast_1d(np.asarray(self._bits.random_raw(n), dtype=np.uint64))

    def uniform(self, *shape: int) -> Floats:
        """In (0, 1): the middles of 2^53 cells; that of the last is rounded down, not to 1."""
        words = self.words(int(np.prod(shape)))
        middles = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.asarray(np.minimum(middles, 1 - 2.0**-53)).reshape(shape)

    def normal(self, *shape: int) -> Floats:
        """Standard normal, by inversion."""
        return np.asarray(special.ndtri(self.uniform(*shape)))

    def some(self, n: int, count: int) -> NDArray[np.int64]:
        """`count` of the numbers 0 to n - 1, each set of them as likely, in order."""
        return np.sort(np.argsort(self.words(n), kind="stable")[:count])


# --- documents: keys, commitments, claims --------------------------------------------------------


def canonical(document: Any) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, ASCII; what digests are taken of."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def write_document(path: Path | str, document: dict[str, Any], *, secret: bool = False) -> None:
    """Write canonical JSON to a new file, of mode 0600 if it is secret.

    Raises:
        StoreError: there is such a file, or it cannot be written.
    """
    write_new(path, canonical(document) + b"\n", secret=secret)


def write_new(path: Path | str, content: bytes, *, secret: bool = False) -> None:
    """Write a new file, of mode 0600 if it is secret.

    Raises:
        StoreError: there is such a file, or it cannot be written.
    """
    path = Path(path)
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644
    try:
        with suppress(FileExistsError):  # a file in the place of a folder: said below
            path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise StoreError(
            f"expected no file at {path}, found one; name another, since keys and claims are not "
            "overwritten"
        ) from None
    except OSError as error:
        with suppress(OSError):  # below a file there is none
            path.unlink()
        raise StoreError(f"expected to write {path}, but {error.strerror or error}") from None


def read_document(path: Path | str, expected: str, *, secret: bool = False) -> dict[str, Any]:
    """A document of the expected format.

    Raises:
        InvalidInput: it is secret, and others may read the file; or it is not there.
        DamagedFile: not such a document.
    """
    path = Path(path)
    try:
        if secret and os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InvalidInput(
                f"expected {path} to be readable by its owner only, since it holds a secret; run "
                f"`chmod 600 {path}`, and make a new one if others may have read it"
            )
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"expected a file at {path}, found none; check the path") from None
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFile(f"expected JSON in {path}, but {error}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != expected:
        raise DamagedFile(f"expected {expected} in {path}, got {found or 'another document'}")
    return dict(document)
