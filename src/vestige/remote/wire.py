"""One request and its answer, from a peer that is not trusted.

Redirects are not followed, cookies not kept, proxies and passwords not taken from the environment.
An answer has a largest size, compressed and expanded, and a time in which it must be whole, however
slowly it trickles. httpx's transport is used without its client, which would log every address.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vestige.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    import httpx

__all__ = ["Lost", "Reply", "Wire"]


@dataclass(frozen=True)
class Reply:
    """A whole answer; the names of its headers are in lower case, its body is expanded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Lost:
    """No whole answer: why, whether the request may have arrived, and whether another may help."""

    why: str
    sent: bool = True
    final: bool = False


class Wire:
    """A connection to services, kept open between requests; one request at a time.

    Args:
        timeout: seconds from the start of a request to the last byte of its answer.
        max_bytes: of an answer, as sent and as expanded.
        ca_file: certificates of authorities to trust instead of the usual ones.
    """

    def __init__(self, timeout: float, max_bytes: int, ca_file: Path | None = None) -> None:
        self._timeout, self._max_bytes, self._ca_file = timeout, max_bytes, ca_file
        self._transport: httpx.HTTPTransport | None = None
        self._owner = os.getpid()
        self._socket: Any = None

    def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Reply | Lost:
        """Send a request and read its answer."""
        httpx = imported()
        transport = self.open(url)
        late = threading.Event()
        extensions = {
            "timeout": httpx.Timeout(self._timeout).as_dict(),
            "trace": self._note_socket,
        }
        # each read has its timeout; of a peer that sends a byte now and then, only this is the end
        watch = threading.Timer(self._timeout, self._cut, [late])
        watch.daemon = True
        watch.start()
        try:
            request = httpx.Request(
                "POST", url, headers=dict(headers), content=content, extensions=extensions
            )
            response = transport.handle_request(request)
            try:
                reply = self._reply(response)
            finally:
                response.close()
            # an answer that ends with its connection looks whole where it was cut
            return self._too_late() if late.is_set() else reply
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Lost(f"no connection ({_said(error)})", sent=False)
        except httpx.TransportError as error:
            if late.is_set() or isinstance(error, httpx.TimeoutException):
                return self._too_late()
            return Lost(_said(error))
        except (httpx.InvalidURL, UnicodeError) as error:
            return Lost(f"no such address ({type(error).__name__})", sent=False, final=True)
        finally:
            watch.cancel()
            watch.join()
            if late.is_set():
                self.close()  # its socket was cut

    def close(self) -> None:
        transport, self._transport, self._socket = self._transport, None, None
        if transport is not None:
            transport.close()

    def open(self, url: str) -> httpx.HTTPTransport:
        """What requests go through.

        Raises:
            MissingExtra: httpx is not installed.
            InvalidInput: `ca_file` holds no certificates.
        """
        if self._owner != os.getpid():
            # the parent of a fork goes on to use its connection: dropped here, not closed politely
            self._transport, self._owner = None, os.getpid()
        if self._transport is None:
            verify = _trusting(url, self._ca_file)
            httpx = imported()
            # shorter than servers keep a connection: one that they have just closed loses a request
            limits = httpx.Limits(max_connections=1, keepalive_expiry=1.0)
            self._transport = httpx.HTTPTransport(verify=verify, trust_env=False, limits=limits)
        return self._transport

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def _cut(self, late: threading.Event) -> None:
        """Wake a read that waits on the socket: it finds the end of the stream."""
        late.set()
        if self._socket is not None:
            try:
                # of the plain socket, under TLS too, whose own end would wait for the peer
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                return  # closed already

    def _reply(self, response: httpx.Response) -> Reply | Lost:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            return Lost("an answer in an encoding that was not asked for", final=True)
        length = response.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            return self._too_large()
        inflate = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            body = self._joined(response.iter_raw(), inflate)
        except zlib.error:
            return Lost("an answer that cannot be expanded")
        if body is None:
            return self._too_large()
        if inflate is not None and not inflate.eof:
            return Lost("a compressed answer that ends early")
        return Reply(response.status_code, dict(response.headers), body)

    def _joined(self, parts: Iterable[bytes], inflate: Any) -> bytes | None:
        """The body, or None as soon as it is known to be too large."""
        body, received = bytearray(), 0
        for part in parts:
            received += len(part)
            if inflate is not None:
                part = inflate.decompress(part, self._max_bytes - len(body) + 1)
            body += part
            if max(received, len(body)) > self._max_bytes:
                return None
        return bytes(body)

    def _too_late(self) -> Lost:
        return Lost(f"no whole answer within {self._timeout:g} s")

    def _too_large(self) -> Lost:
        return Lost(
            f"an answer of more than {self._max_bytes:,} bytes (lower batch_size=, or raise "
            "max_bytes= if it is to be expected)",
            final=True,
        )


def imported() -> Any:
    """httpx, or a sentence that says how to get it."""
    try:
        import httpx
    except ImportError:
        raise MissingExtra(
            "expected httpx, which remote models need; run `pip install 'vestige[remote]'`"
        ) from None
    return httpx


def _trusting(url: str, ca_file: Path | None) -> Any:
    """The authorities to trust: the usual ones, those of a file, or none where there is no TLS."""
    if not url.startswith("https:"):
        # reading the usual ones takes longer than a request
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise InvalidInput(
            f"expected certificates in ca_file={ca_file}, but {error}; give a PEM file"
        ) from None


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- what both ends guard against ----------------------------------------------------------------

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of an environment variable; a token that stands in its place is nothing to be shown."""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def brackets(body: bytes, max_bytes: int) -> int:
    """How many, if too many: a body of nothing else takes thirty times its size once parsed."""
    found = body.count(b"[") + body.count(b"{")
    return found if found > 1024 + max_bytes / 16 else 0
