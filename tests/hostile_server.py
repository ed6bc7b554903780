"""HTTP servers that misbehave: every answer is bytes that a test has chosen.

`Hostile` records what it receives and has a function write whatever it likes. `faulty` is such a
function: a real model whose answers get lost, broken, late or out of order at random, and which
counts the records that it was asked about.
"""

from __future__ import annotations

import json
import random
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from vestige.models import BlackBox

__all__ = ["Faulty", "Hostile", "Received", "reply"]


@dataclass(frozen=True)
class Received:
    """A request; the names of its headers are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


Behavior = Callable[[Received, Callable[[bytes], None]], None]


class Hostile:
    """A server on a free port of this machine, from entering to leaving a `with`.

    Args:
        behave: called for each request with it and a function that sends bytes; when it returns,
            the connection is closed.
        context: to speak TLS.
    """

    def __init__(self, behave: Behavior, context: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.sent = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    request = _read(self.rfile)
                    if request is not None:
                        outer.received.append(request)
                        behave(request, self.send)
                except OSError:
                    return  # the client has had enough

            def send(self, data: bytes) -> None:
                self.wfile.write(data)
                outer.sent += len(data)

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = True
            request_queue_size = 50

            def get_request(self) -> Any:
                plain, address = super().get_request()
                plain.settimeout(10)
                if context is None:
                    return plain, address
                return context.wrap_socket(plain, server_side=True), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                return

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http" if context is None else "https"
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{scheme}://{self.host}/predict"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Hostile:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read(file: Any) -> Received | None:
    line = file.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = {}
    while text := file.readline().decode("latin-1").strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Received(line, headers, file.read(int(headers.get("content-length", 0))))


def reply(
    body: Any = b"", status: int = 200, headers: Sequence[str] = (), kind: str = "application/json"
) -> bytes:
    """A whole answer; a body that is no bytes is written as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + data


FAULTS = ("429", "500", "503", "slow", "truncated", "cut", "nan", "short", "reordered", "fine")


class Faulty:
    """How a `Hostile` behaves that has a model and little luck.

    Args:
        model: which it asks.
        seed: of its luck.
        faults: what may happen, equally likely.
        slow: seconds of a late answer.

    Attributes:
        asked: records that the model was asked about; a 429 asks it nothing.
        answered: how often a record, by its bytes, was in an answer that was sent whole.
    """

    def __init__(
        self, model: BlackBox, seed: int, faults: Sequence[str] = FAULTS, slow: float = 0.5
    ) -> None:
        self._model, self._faults, self._slow = model, tuple(faults), slow
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.asked = 0
        self.met: list[str] = []
        self.answered: dict[bytes, int] = {}

    def __call__(self, request: Received, send: Callable[[bytes], None]) -> None:
        with self._lock:
            fault = self._random.choice(self._faults)
            self.met.append(fault)
            said = json.loads(request.body)
            x = np.array(said["inputs"])
            if fault == "429":
                send(reply(b"", 429, ["Retry-After: 0"]))
                return
            self.asked += len(x)
            rows = np.exp(self._model.log_probabilities(x)).tolist()
        ids = list(said["ids"])
        if fault in ("500", "503"):
            send(reply({"detail": "out of luck"}, int(fault)))
            return
        if fault == "slow":
            time.sleep(self._slow)
        if fault == "nan":
            rows[self._random.randrange(len(rows))][0] = float("nan")
        if fault == "short":
            rows.pop()
        if fault == "reordered":
            order = self._random.sample(range(len(rows)), len(rows))
            rows, ids = [rows[k] for k in order], [ids[k] for k in order]
        data = reply({"probabilities": rows, "ids": ids})
        if fault == "truncated":
            data = data[: len(data) - len(data) // 3]
        if fault == "cut":
            data = reply(json.dumps({"probabilities": rows, "ids": ids}).encode()[:-9])
        send(data)
        if fault in ("fine", "reordered"):
            for row in x:
                self.answered[row.tobytes()] = self.answered.get(row.tobytes(), 0) + 1


def unused_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
