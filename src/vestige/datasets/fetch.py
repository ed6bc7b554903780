"""Fetch the public originals of data sets, and trust nothing that arrives.

Each original is pinned by its size and SHA-256 after unpacking, so that a mirror is as good as the
first address and an archive packed anew is as good as the old one. Downloads go to a nameless
temporary file: a failed or killed one leaves nothing. Every wait is bounded.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import ipaddress
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast
from urllib.parse import urlsplit

from vestige.errors import DatasetUnavailable, StoreError

__all__ = ["Original", "Progress", "download", "fetch_originals", "open_url"]

TIMEOUT = 20.0
"""Seconds without a byte after which an address is given up."""
_SLOWEST = 50_000  # bytes per second; a server that trickles more slowly is given up
_CHUNK = 2**16
_REDIRECTS_TO = "redirects to http, which is not encrypted"


class Response(Protocol):
    """What an opener answers: the part of `http.client.HTTPResponse` used here."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def read1(self, n: int = -1, /) -> bytes: ...


Opener = Callable[[str, float], AbstractContextManager[Response]]
"""(url, timeout in seconds) -> a response to be closed."""

Progress = Callable[[str, int, int], None]
"""(what, bytes so far, bytes in all or 0 where unknown), called as bytes arrive."""


@dataclass(frozen=True)
class Original:
    """One file of a public release, or several of one archive put behind one another.

    Attributes:
        name: of the file, for messages.
        size: bytes after unpacking.
        sha256: of the bytes after unpacking.
        urls: where it is, tried in order: the file itself, or a .gz, .zip, .tar.gz or .tgz.
        members: paths inside an archive (the ends of them suffice); the name by default.
        limit: the most bytes an address may send.
        local: where a package of the system puts it, as the file itself or a .gz; asked first.
    """

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]
    members: tuple[str, ...] = ()
    limit: int = 200_000_000
    local: str = ""


class _Failed(Exception):
    """One address did not give the original; the text says why."""


def fetch_originals(
    originals: Sequence[Original],
    *,
    opener: Opener | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
    scratch: Path | None = None,
) -> dict[str, bytes]:
    """The verified bytes of each original, by name; an archive that holds several comes once.

    Args:
        scratch: the folder whose disk holds a download while it is unpacked.

    Raises:
        DatasetUnavailable: no address gave an original; the message names each and its failure.
        StoreError: the scratch folder cannot be written.
    """
    with ExitStack() as stack:
        archives: dict[str, IO[bytes] | _Failed] = {}

        def opened(original: Original, url: str) -> IO[bytes]:
            if url not in archives:
                file = stack.enter_context(_scratch_file(scratch))
                try:
                    limit = original.limit
                    download(url, file, limit, opener=opener, progress=progress, timeout=timeout)
                    archives[url] = file
                except _Failed as failure:
                    archives[url] = failure
            got = archives[url]
            if isinstance(got, _Failed):
                raise got
            return got

        return {original.name: _first(original, opened) for original in originals}


def _scratch_file(folder: Path | None) -> AbstractContextManager[IO[bytes]]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise StoreError(
            f"expected to write in {folder}, got: {error.strerror}; choose another folder"
        ) from error


def _first(original: Original, opened: Callable[[Original, str], IO[bytes]]) -> bytes:
    failures = []
    if original.local and Path(original.local).is_file():
        try:
            with Path(original.local).open("rb") as file:
                return _verified(original, _unpack(original, original.local, file))
        except (_Failed, OSError) as failure:
            failures.append(f"{original.local}: {failure}")
    for url in original.urls:
        try:
            return _verified(original, _unpack(original, url, opened(original, url)))
        except _Failed as failure:
            failures.append(f"{urlsplit(url).hostname}: {failure}")
    raise DatasetUnavailable(f"{original.name} could not be fetched ({'; '.join(failures)})")


def _verified(original: Original, data: bytes) -> bytes:
    if len(data) != original.size:
        raise _Failed(f"expected {original.size} bytes, got {len(data)}")
    got = hashlib.sha256(data).hexdigest()
    if got != original.sha256:
        raise _Failed(f"expected sha256 {original.sha256[:16]}..., got {got[:16]}...")
    return data


def download(
    url: str,
    file: IO[bytes],
    limit: int,
    *,
    opener: Opener | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Write what an address sends into a file, and rewind it.

    Args:
        limit: the most bytes to take; more is a failure, and so is taking longer than a minute
            plus the time the limit needs at 50 kB/s.

    Raises:
        _Failed: why nothing usable came.
    """
    deadline = time.monotonic() + 60 + limit / _SLOWEST
    try:
        with (opener or open_url)(url, timeout) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            done = 0
            # read1 returns what one wait brings, so that the deadline is looked at in between
            while part := response.read1(_CHUNK):
                done += len(part)
                if done > limit:
                    raise _Failed(f"expected at most {limit} bytes, got more")
                if time.monotonic() > deadline:
                    raise _Failed(f"slower than {_SLOWEST // 1000} kB/s")
                file.write(part)
                if progress is not None:
                    progress(url, done, expected)
    except urllib.error.HTTPError as error:
        error.close()
        raise _Failed(f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Failed(_reason(error, timeout)) from error
    if expected and done != expected:
        raise _Failed(f"cut off after {done} of {expected} bytes")
    file.seek(0)


def _reason(error: Exception, timeout: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(cause, http.client.IncompleteRead):
        return "cut off"
    return str(cause) or type(cause).__name__


def _unpack(original: Original, url: str, file: IO[bytes]) -> bytes:
    """The original's bytes out of what an address sent, never more than a byte beyond its size."""
    path = urlsplit(url).path.lower()
    file.seek(0)
    bound = original.size + 1
    try:
        if path.endswith((".tgz", ".tar.gz")):
            return _from_tar(original, file)
        if path.endswith(".zip"):
            return _from_zip(original, file)
        if path.endswith(".gz"):
            with gzip.open(file) as unpacked:
                return unpacked.read(bound)
        return file.read(bound)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise _Failed(f"a damaged archive ({error})") from error
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise _Failed(f"an archive that cannot be read ({error})") from error


def _from_tar(original: Original, file: IO[bytes]) -> bytes:
    wanted = dict.fromkeys(original.members or (original.name,), b"")
    left = original.size
    # members are read, never extracted: no path of the archive touches the disk
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        for info in archive:
            key = _wanted(info.name, wanted)
            source = archive.extractfile(info) if key is not None and info.isreg() else None
            if key is None or source is None:
                continue
            wanted[key] = source.read(left + 1)
            left -= len(wanted[key])
            if left < 0:
                raise _Failed(f"expected {original.size} bytes, got more")
            if all(wanted.values()):
                break
    return b"".join(wanted.values())


def _from_zip(original: Original, file: IO[bytes]) -> bytes:
    wanted = dict.fromkeys(original.members or (original.name,), b"")
    left = original.size
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            key = _wanted(info.filename, wanted)
            if key is None:
                continue
            with archive.open(info) as source:
                wanted[key] = source.read(left + 1)
            left -= len(wanted[key])
            if left < 0:
                raise _Failed(f"expected {original.size} bytes, got more")
    return b"".join(wanted.values())


def _wanted(name: str, wanted: Mapping[str, bytes]) -> str | None:
    """The wanted path that a member's path ends with, whole components only."""
    parts = PurePosixPath(name).parts
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((end for end in ends if end in wanted), None)


class _OnlyEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, refuses every other."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            fp.close()
            raise urllib.error.URLError(_REDIRECTS_TO)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def open_url(url: str, timeout: float) -> AbstractContextManager[Response]:
    """Open an https address; plain http only on this machine itself.

    Raises:
        OSError: refused, unreachable or silent for `timeout` seconds.
    """
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    if scheme != "https" and not (scheme == "http" and _loopback(host)):
        raise urllib.error.URLError("expected an https address")
    # some archives refuse Python's own name
    agent = {"User-Agent": "vestige"}
    opener = urllib.request.build_opener(_OnlyEncrypted)
    request = urllib.request.Request(url, headers=agent)
    return cast("AbstractContextManager[Response]", opener.open(request, timeout=timeout))


def _loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
