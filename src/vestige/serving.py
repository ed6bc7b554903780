"""A model behind HTTP, as services put it: to try an audit of a remote target for real.

The protocol is the default one of `vestige.remote`: POST /predict with {"inputs": [record, ...]}
and, if wanted, "ids" to be echoed, is answered by {"probabilities": [row, ...], "ids": [...]}. What
a client may see (rounded, top-k, noisy answers) is decided before: hand in the filtered model.
"""

# Annotations stay objects here, not text: FastAPI reads those of functions within functions.
import asyncio
import hashlib
import hmac
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from vestige.defenses import Filter
from vestige.errors import InvalidInput, MissingExtra, RemoteError
from vestige.models import FLOOR, BlackBox, as_black_box
from vestige.remote.wire import VARIABLE, brackets, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Running", "app_of", "serve"]

Shown = Literal["probabilities", "log_probabilities", "labels"]
_MAX_AXES = 8
SHOWN: tuple[Shown, ...] = ("probabilities", "log_probabilities", "labels")

logger = logging.getLogger("vestige.serving")


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


@dataclass
class _Account:
    """What one token has asked."""

    records: int = 0
    requests: int = 0


class _Counter:
    """The model, who may ask it, and who has: one at a time."""

    def __init__(
        self,
        model: BlackBox,
        outputs: Shown,
        tokens: tuple[str, ...],
        max_records: int,
        max_bytes: int,
        budget: int | None,
    ) -> None:
        self._model, self._outputs = model, outputs
        self._max_records, self._max_bytes, self._budget = max_records, max_bytes, budget
        self._tokens = [_digest(token) for token in tokens]
        self._accounts = {digest: _Account() for digest in self._tokens or [b""]}
        self._counting, self._asking = threading.Lock(), threading.Lock()

    def account(self, headers: Mapping[str, str]) -> _Account:
        """Of the token in the headers of a request.

        Raises:
            _Refused: 401; 403 without tokens, where the request is for another host.
        """
        if not self._tokens:
            # a page of another site that has its own name point here asks under that name
            if not is_loopback(_host(headers.get("host", ""))):
                raise _Refused(403, "expected a request for this machine, or a service with tokens")
            return self._accounts[b""]
        kind, _, token = headers.get("authorization", "").partition(" ")
        digest = _digest(token.strip())
        # every one is compared, so that the time taken tells nothing
        found = [own for own in self._tokens if hmac.compare_digest(own, digest)]
        if kind.lower() != "bearer" or not found:
            raise _Refused(401, "expected a valid bearer token", {"WWW-Authenticate": "Bearer"})
        return self._accounts[found[0]]

    def stats(self, account: _Account) -> bytes:
        with self._counting:
            said = {"records": account.records, "requests": account.requests}
            return _json(said | {"budget": self._budget})

    def predict(self, account: _Account, body: bytes) -> bytes:
        """The body of an answer; runs in a thread.

        Raises:
            _Refused: 413, 422, 429.
        """
        x, ids = _question(body, self._max_records, self._max_bytes)
        with self._counting:
            if self._budget is not None and account.records + len(x) > self._budget:
                raise _Refused(
                    429,
                    f"expected at most {self._budget} records, but {account.records} were asked",
                    # no later attempt has more
                    {"X-Should-Retry": "false"},
                )
            account.records += len(x)
            account.requests += 1
        try:
            with self._asking:
                logs = self._model.log_probabilities(x)
        except InvalidInput:
            with self._counting:
                account.records -= len(x)
            raise _Refused(
                422, f"expected records that the model takes, got {x.dtype} of shape {x.shape}"
            ) from None
        return _json(self._answer(logs) | ({} if ids is None else {"ids": ids}))

    def _answer(self, logs: NDArray[np.float64]) -> dict[str, Any]:
        if self._outputs == "labels":
            return {"labels": logs.argmax(axis=1).tolist(), "n_classes": logs.shape[1]}
        shown = _probabilities(logs) if self._outputs == "probabilities" else logs
        return {self._outputs: shown.tolist()}


def app_of(
    model: Any,
    *,
    outputs: Shown = "probabilities",
    token_env: str | None = None,
    max_records: int = 1024,
    max_bytes: int = 32 * 2**20,
    budget: int | None = None,
) -> "FastAPI":
    """A service with /predict (POST), /health and /stats (GET).

    /predict answers 401 without a valid token, 403 where there are no tokens and the request is for
    another host than this machine, 413 where there is too much of it, 415 where it is not said to
    be application/json, 422 where it is not what the model takes, 429 where the budget is spent,
    and 500, with nothing but a word, where the model fails. /stats counts the records that were
    asked with the same token.

    Args:
        model: a handle, a torch module or a scikit-learn estimator. It is asked by one thread at a
            time.
        outputs: "probabilities", "log_probabilities" (n, classes), or "labels" (n,).
        token_env: name of the environment variable with the tokens that are let in, with commas
            between; read once, here. Without it everybody is.
        max_records: of one request.
        max_bytes: of the body of one request.
        budget: records that may be asked with one token.

    Raises:
        MissingExtra: FastAPI is not installed.
        InvalidInput: an argument is not as expected, there is no token in the environment, or the
            noise of a filter has the seed 0.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.concurrency import run_in_threadpool
    except ImportError:
        raise MissingExtra(
            "expected FastAPI, which serving needs; run `pip install 'vestige[serve]'`"
        ) from None
    if outputs not in SHOWN:
        raise InvalidInput(f"expected outputs among {', '.join(SHOWN)}, got {outputs!r}")
    for name, value in (("max_records", max_records), ("max_bytes", max_bytes), ("budget", budget)):
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidInput(f"expected {name} as a whole number from 1, got {value!r}")
    _check_seeds(model)
    counter = _Counter(
        as_black_box(model), outputs, _tokens(token_env), max_records, max_bytes, budget
    )
    # pages of documentation would load programs from elsewhere
    app = FastAPI(title="vestige", docs_url=None, redoc_url=None, openapi_url=None)

    def answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return Response(body, status, headers, media_type="application/json")

    def refusal(_request: Request, refused: Exception) -> Response:
        assert isinstance(refused, _Refused)
        return answer(_json({"detail": refused.detail}), refused.status, refused.headers)

    app.add_exception_handler(_Refused, refusal)

    @app.get("/health")
    def health() -> Response:
        return answer(_json({"status": "ok"}))

    @app.get("/stats")
    def stats(request: Request) -> Response:
        return answer(counter.stats(counter.account(request.headers)))

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        account = counter.account(request.headers)
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind.strip().lower() != "application/json":
            # other kinds may be sent by any page that a browser shows, unasked
            raise _Refused(415, "expected application/json", {"Connection": "close"})
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise _Refused(413, f"expected at most {max_bytes} bytes", {"Connection": "close"})
        try:
            return answer(await run_in_threadpool(counter.predict, account, bytes(body)))
        except _Refused:
            raise
        except Exception:  # a model's code may raise anything; the client is told nothing of it
            logger.exception("the model failed")
            raise _Refused(500, "the model failed") from None

    return app


def serve(
    model: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    outputs: Shown = "probabilities",
    token_env: str | None = None,
    max_records: int = 1024,
    max_bytes: int = 32 * 2**20,
    budget: int | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        host: where to listen; anything but this machine itself needs tokens.
        port: 0 for one that is free.
        tell: called with a sentence that says where.

    The other arguments are those of `app_of`.

    Raises:
        InvalidInput: another host without a token, or a port that is taken.
    """
    if token_env is None and not is_loopback(host):
        raise InvalidInput(
            f"expected a token for a service that other machines reach (host {host}), got none; "
            "name an environment variable that holds one, or listen on 127.0.0.1"
        )
    app = app_of(
        model,
        outputs=outputs,
        token_env=token_env,
        max_records=max_records,
        max_bytes=max_bytes,
        budget=budget,
    )
    running = Running(app, host=host, port=port)
    try:
        tell(f"{running.url}/predict answers POST requests; Ctrl-C ends it")
        running.until_interrupted()
    finally:
        running.close()


class Running:
    """A service in a thread of this process, from entering to leaving a `with`.

    Args:
        app: from `app_of`.
        host, port: where to listen; 0 for a free port.
        patience: seconds for a request to arrive whole; its connection is closed then.

    Attributes:
        url: "http://host:port", from the beginning on.
    """

    def __init__(
        self, app: "FastAPI", *, host: str = "127.0.0.1", port: int = 0, patience: float = 15.0
    ) -> None:
        try:
            import uvicorn
        except ImportError:
            raise MissingExtra(
                "expected uvicorn, which serving needs; run `pip install 'vestige[serve]'`"
            ) from None
        config = uvicorn.Config(
            app,
            http=_impatient(patience),
            lifespan="off",
            ws="none",
            # nothing is set up for the whole process, and no address with a token is written down
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._socket = _listening(host, port)
        shown, number = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
        self._thread = threading.Thread(target=self._run, name="vestige-serving", daemon=True)

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                self.close()
                raise RemoteError(f"expected a service at {self.url}, but it did not start")
            time.sleep(0.005)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def until_interrupted(self) -> None:
        """Serve in the calling thread, which is the main one, until Ctrl-C."""
        try:
            self._run()
        except KeyboardInterrupt:
            return

    def close(self) -> None:
        """Finish what is being answered, for a second at most, and stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def _impatient(patience: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which would wait forever for a request, with an end to it.

    Args:
        patience: seconds from a connection, or the answer before, to the end of a request.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._clock is not None:
                self._clock.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def _wait(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
            self._clock = self.loop.call_later(patience, self._give_up)

        def _give_up(self) -> None:
            # a request that is whole is being answered, which may take its time
            if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
                self.transport.abort()

    return Impatient


def _check_seeds(model: Any) -> None:
    """Noise whose seed is known is no noise: it is taken off again."""
    while isinstance(model, Filter):
        if getattr(model, "seed", None) == 0:
            raise InvalidInput(
                f"expected a secret seed for the {type(model).__name__} of a service, got 0, which "
                "everybody knows; say seed=secrets.randbits(62), and keep it"
            )
        model = model.model


def _listening(host: str, port: int) -> socket.socket:
    if type(port) is not int or not 0 <= port < 65536:
        # the system would take the remainder
        raise InvalidInput(f"expected a port from 0 to 65535, got {port!r}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"expected a host and a port, got {host}:{port} ({error})") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        raise InvalidInput(
            f"expected to listen on {host}:{port}, but {error.strerror}; choose another port"
        ) from None
    return made


def _host(header: str) -> str:
    """The host in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _tokens(token_env: str | None) -> tuple[str, ...]:
    if token_env is None:
        return ()
    if not (isinstance(token_env, str) and VARIABLE.fullmatch(token_env)):
        raise InvalidInput(
            "expected token_env= as the name of an environment variable, got something else, which "
            "is not shown since it may be a token; put that into the environment, and its name here"
        )
    found = tuple(t.strip() for t in os.environ.get(token_env, "").split(",") if t.strip())
    if not found:
        raise InvalidInput(
            f"expected a token in the environment variable {token_env}, got none; export "
            f"{token_env}=..., for example from `openssl rand -hex 32`"
        )
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _json(value: Any) -> bytes:
    """Numbers are written so that they are read back to the last digit."""
    return json.dumps(value, allow_nan=False).encode()


def _probabilities(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers whose logarithms are these, to the last digit where there are such; 0 for 1e-12.

    exp alone misses them: log(exp(log p)) is often the neighbor of log p.
    """
    p = np.exp(logs)
    for near in (np.nextafter(p, 0), np.nextafter(p, 1), np.round(p, 9)):
        with np.errstate(divide="ignore"):
            p = np.where(np.log(near) == logs, near, p)
    return np.where(logs == np.log(FLOOR), 0.0, p)


def _question(
    body: bytes, max_records: int, max_bytes: int
) -> tuple[NDArray[Any], list[Any] | None]:
    """Records (n, ...) and their ids, if there are any.

    Raises:
        _Refused: 413, 422.
    """
    expected = 'expected {"inputs": [record, ...]}'
    many = brackets(body, max_bytes)
    if many:
        raise _Refused(422, f"{expected} of numbers, got {many:,} brackets")
    try:
        said = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Refused(422, f"{expected}, got something that is not JSON") from None
    if not isinstance(said, dict) or not isinstance(said.get("inputs"), list):
        raise _Refused(422, f"{expected}, got none")
    n = len(said["inputs"])
    if n > max_records:
        raise _Refused(413, f"expected at most {max_records} records a request, got {n}")
    x = _numbers(said["inputs"])
    if x is None:
        raise _Refused(422, f"{expected} of finite numbers and of one shape, got others, or none")
    ids = said.get("ids")
    if ids is None:
        return x, None
    if not isinstance(ids, list) or len(ids) != len(x):
        raise _Refused(422, f"expected ids for {len(x)} records, got another number")
    if not all(type(name) in (str, int) for name in ids):
        raise _Refused(422, "expected ids that are text or whole numbers, got others")
    return x, ids


def _numbers(records: list[Any]) -> NDArray[Any] | None:
    """Nested lists as an array, or None where they are not finite numbers of one shape.

    NumPy alone would give every text the room of the longest one.
    """
    level, shape = records, [len(records)]
    while level and isinstance(level[0], list) and len(shape) < _MAX_AXES:
        width = len(level[0])
        if not all(type(part) is list and len(part) == width for part in level):
            return None
        level, shape = list(itertools.chain.from_iterable(level)), [*shape, width]
    if not level or not set(map(type, level)) <= {bool, int, float}:
        return None
    x = np.array(level)
    # whole numbers beyond 64 bits are no numbers to NumPy
    return x.reshape(shape) if x.dtype.kind in "iufb" and np.isfinite(x).all() else None


def _no_constant(name: str) -> float:
    raise ValueError(name)
