"""A target behind HTTP: asked in batches, within a budget, and never twice for the same record."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import math
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from vestige.errors import BudgetSpent, InvalidInput, PlanError, RemoteError
from vestige.remote.cache import Answers
from vestige.remote.mapping import (
    OUTPUTS,
    Decode,
    Encode,
    JsonAnswers,
    JsonInputs,
    Misread,
    Outputs,
    fitting,
    identity,
    logs_of,
    rows_of,
    says_nothing,
)
from vestige.remote.wire import VARIABLE, Lost, Reply, Wire, brackets, is_loopback

__all__ = ["KEYS", "Backoff", "RemoteModel", "remote_of"]

Floats = NDArray[np.float64]

BEARER = "Authorization: Bearer {token}"
_SLOT = "{token}"
_MINUTE = "%Y-%m-%d %H:%M"
_SAME = 1e-4  # between two answers of one model, in probability


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait before a request is sent again.

    Args:
        first: seconds before the first retry; each further one waits twice as long.
        longest: seconds that this grows to.
        jitter: share of the wait that is drawn at random, so that many clients do not return at
            once.
        patience: seconds of a service's own Retry-After that are waited; of a longer one the
            request is given up.
    """

    first: float = 0.5
    longest: float = 30.0
    jitter: float = 0.5
    patience: float = 120.0

    def seconds(self, attempt: int, asked_for: float | None, draw: float) -> float:
        """The wait after a failed attempt.

        Args:
            attempt: from 0.
            asked_for: what the service's Retry-After says, if it says anything.
            draw: uniform from 0 to 1.
        """
        own = min(self.longest, self.first * 2.0 ** min(attempt, 60))
        return max(own * (1 - self.jitter * draw), asked_for or 0.0)


@dataclass(frozen=True)
class _Failure:
    """Why there are no rows; whether it cost anything, and whether to try again, and when."""

    why: str
    free: bool = False
    final: bool = False
    after: float | None = None


class RemoteModel:
    """A model behind HTTP as a black box.

    A request is a POST of JSON. By default {"inputs": [record, ...], "ids": [text, ...]} is
    answered by {"probabilities": [row, ...]}, and where "ids" are echoed beside the rows, these may
    come in any order. Every answer is kept, in `cache` or in memory, and a record that was answered
    is not asked again; equal records of one call are asked once.

    What counts: the records of a request, from the moment it is sent, and again for each retry,
    since an answer that was lost may have been charged. A request that the service refused
    unanswered (a redirect, a 4xx other than 408 and 409) or that found no connection does not.

    An answer that no `outputs` or `tolerance` makes right (NaN, zeros alone, rows of another width)
    is not kept and asked again. What `outputs` and `tolerance` do not fit ends the run and is kept,
    since others may; where it is found in the cache it is asked again.

    Args:
        url: http or https, in full. Put `{token}` where a service wants the token in its address.
        encode: makes the body from records (n, ...) and an id each; `JsonInputs()` by default.
        decode: makes rows, in the order of the ids, from the answer; `JsonAnswers(outputs)` by
            default.
        outputs: what a row holds: "probabilities", "logits", "log_probabilities" (n, classes),
            or one number a record for class 1 of two; or "labels", one a record.
        n_classes: needed for labels; else what every row is checked against. Without it the rows
            have as many numbers as the first, or as most of those in the cache.
        max_classes: numbers a row, at most, unless `n_classes` is more.
        batch_size: records a request, at most.
        token_env: name of the environment variable that holds the token. It is read for each
            request and kept nowhere.
        header: which carries it, "Name: value with {token}"; by default a bearer token.
        plain_http_token: send the token to another machine without TLS all the same.
        timeout: seconds for a request, from its start to the last byte of its answer.
        retries: further attempts after 408, 409, 425, 429, 5xx, a lost or a faulty answer.
        backoff: waits between them.
        rate: requests a second at most, retries included; of this handle alone.
        budget: records that may be asked of this url, at most: over all that share the cache,
            else of this handle.
        cache: SQLite file of answers, made if absent; in memory without it.
        tolerance: by how much the sum of a row of probabilities may miss 1, for services that
            round or leave classes out; such rows are not renormalized. For d digits
            0.5 * classes * 10**-d, for the top k 0.99.
        max_bytes: of one answer.
        ca_file: PEM file of authorities to trust, for a service with a certificate of its own.
        recheck: kept answers that a handle asks for again, in all, before it uses what others were
            told; they are charged. By them a model that was replaced behind its address is found.

    Raises:
        InvalidInput: an argument is not as expected.
    """

    def __init__(
        self,
        url: str,
        *,
        encode: Encode | None = None,
        decode: Decode | None = None,
        outputs: Outputs = "probabilities",
        n_classes: int | None = None,
        max_classes: int = 10_000,
        batch_size: int = 64,
        token_env: str | None = None,
        header: str | None = None,
        plain_http_token: bool = False,
        timeout: float = 60.0,
        retries: int = 6,
        backoff: Backoff | None = None,
        rate: float | None = None,
        budget: int | None = None,
        cache: Path | str | None = None,
        tolerance: float = 1e-3,
        max_bytes: int = 16 * 2**20,
        ca_file: Path | str | None = None,
        recheck: int = 0,
    ) -> None:
        self._settings: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "url")
        }
        if outputs not in OUTPUTS:
            raise InvalidInput(f"expected outputs among {', '.join(OUTPUTS)}, got {outputs!r}")
        _check_numbers(self._settings)
        if outputs == "labels" and n_classes is None:
            raise InvalidInput(
                'expected n_classes beside outputs="labels", got none; say how many classes the '
                "service knows"
            )
        # a worker process may have another working folder
        cache = None if cache is None else Path(cache).absolute()
        ca_file = None if ca_file is None else Path(ca_file).absolute()
        self._settings |= {"cache": cache, "ca_file": ca_file}
        self.url = url
        self._place = shown(url)
        self._header = _header(url, token_env, header, plain_http_token)
        self._token_env = token_env
        self._encode = JsonInputs() if encode is None else encode
        self._decode = JsonAnswers(outputs) if decode is None else decode
        self._outputs: Outputs = outputs
        self._n_classes, self._max_classes = n_classes, max_classes
        self._tolerance = tolerance
        self._batch_size, self._retries, self._budget = batch_size, retries, budget
        self._backoff = Backoff() if backoff is None else backoff
        self._pause = 0.0 if rate is None else 1 / rate
        self._max_bytes = max_bytes
        self._not_before = 0.0
        self._n_queries = self._n_paid = self._n_cached = 0
        self._recheck, self._n_rechecked = recheck, 0
        self._own: set[bytes] = set()
        self._width: int | None = None
        # the token has no part in it: a new one finds the old answers
        self._service = hashlib.sha256(url.encode()).digest()
        mapping = identity(self._encode, self._decode)
        self._prefix = hashlib.sha256(self._service + mapping.encode()).digest()
        self._lock = threading.RLock()
        self._answers = Answers(cache)
        self._wire = Wire(timeout, max_bytes, ca_file)
        weakref.finalize(self, _discarded, self._answers, self._wire)

    def __repr__(self) -> str:
        return f"RemoteModel({self._place!r}, outputs={self._outputs!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._budget is not None and self._settings["cache"] is None:
            raise InvalidInput(
                "expected cache=PATH beside budget= for a remote model that is copied to other "
                "processes, got none; without it each copy would have a budget of its own"
            )
        return _again, (self.url, self._settings)

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and the cache; both are opened again where needed."""
        with self._lock:
            self._wire.close()
            if self._answers.path is not None:
                self._answers.close()

    @property
    def n_queries(self) -> int:
        """Records that this handle has answered, each time, from the service or without it.

        As many as a model at hand would have counted: retries are in `n_paid` alone.
        """
        return self._n_queries

    @property
    def n_paid(self) -> int:
        """Records of the requests of this handle that may have been charged, retries included."""
        return self._n_paid

    @property
    def n_cached(self) -> int:
        """Records that were answered without the service: from the cache, or as repeats."""
        return self._n_cached

    @property
    def n_rechecked(self) -> int:
        """Kept answers that this handle has asked for again and found as they were."""
        return self._n_rechecked

    @property
    def place(self) -> str:
        """The address for messages: without the values of its query."""
        return self._place

    @property
    def answered(self) -> tuple[datetime, datetime] | None:
        """When the first and the last of the answers were given, to everyone who shares the cache.

        What was answered in between is answered from the cache, whatever became of the model.
        """
        with self._lock:
            found = self._answers.answered(self._service)
        return None if found is None else (_moment(found[0]), _moment(found[1]))

    @property
    def spent(self) -> int:
        """Records that count against the budget: of everyone who shares the cache."""
        with self._lock:
            return self._answers.spent(self._service)

    def log_probabilities(self, x: Any) -> Floats:
        """Natural log of what the service shows, (n, classes); zeros are 1e-12.

        Raises:
            BudgetSpent: the records not answered yet would pass the budget; nothing was sent,
                or a retry would pass it, and what was answered is kept.
            RemoteError: the service refuses, is not there, or goes on answering wrongly.
            DamagedFile: the cache is not what was written.
            InvalidInput: no records, or values that JSON has no words for.
        """
        if not len(x):
            raise InvalidInput("expected at least one record to ask about, got none")
        x = np.asarray(x) if getattr(x, "dtype", None) is None else x
        with self._lock:
            keys = self._keys(x)
            first: dict[bytes, int] = {}
            for k, key in enumerate(keys):
                first.setdefault(key, k)
            rows, n_unfit = self._known(list(first))
            missing = [key for key in first if key not in rows]
            again = self._again(rows)
            self._afford(len(missing) + len(again), n_unfit)
            if again:
                x_again = np.asarray(x[[first[key] for key in again]])
                self._compare_kept(again, x_again, np.stack([rows[key] for key in again]))
            n_asked = 0
            for start in range(0, len(missing), self._batch_size):
                part = missing[start : start + self._batch_size]
                # another process may have been answered meanwhile
                rows |= self._known(part)[0] if start else {}
                part = [key for key in part if key not in rows]
                if part:
                    n_asked += len(part)
                    rows |= self._asked(np.asarray(x[[first[key] for key in part]]), part)
            table = self._logs(np.stack([rows[key] for key in first]))
            self._n_queries += len(keys)
            self._n_cached += len(keys) - n_asked
            place = {key: k for k, key in enumerate(first)}
            return table[[place[key] for key in keys]]

    def afford(self, *parts: Any) -> None:
        """Nothing, where the budget allows to ask about all of these inputs (n, ...).

        Raises:
            BudgetSpent: those not answered yet would pass it; nothing was sent.
        """
        with self._lock:
            keys = list(dict.fromkeys(key for x in parts for key in self._keys(x)))
            kept, n_unfit = self._known(keys)
            self._afford(len(keys) - len(kept) + len(self._again(kept)), n_unfit)

    # --- what is asked ----------------------------------------------------------------------

    def _keys(self, x: Any) -> list[bytes]:
        """A digest of each record, with the service and the mapping, (n,)."""
        keys = []
        for start in range(0, len(x), 1024):
            part = np.ascontiguousarray(x[start : start + 1024])
            if part.dtype.kind not in "iufb":
                raise InvalidInput(f"expected records as an array of numbers, got {part.dtype}")
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise InvalidInput(
                    "expected finite records to ask about, got NaN or infinity, which JSON has no "
                    "words for; impute or drop them"
                )
            part = _canonical(part)
            said = f"{part.dtype.str}{part.shape[1:]}".encode()
            keys += [hashlib.sha256(self._prefix + said + row.tobytes()).digest() for row in part]
        return keys

    def _known(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Floats], int]:
        """The kept answers that are what the settings say, and how many others there are.

        The others stay until they have been asked again: other settings may fit them.
        """
        found = self._answers.find(keys)
        fit: dict[bytes, Floats] = {}
        for width in {len(row) for row in found.values()}:
            if self._width in (None, width) and self._allows(width):
                rows = {key: row for key, row in found.items() if len(row) == width}
                good = fitting(
                    np.stack(list(rows.values())), self._outputs, self._n_classes, self._tolerance
                )
                fit |= {key: row for (key, row), one in zip(rows.items(), good, strict=True) if one}
        if fit and self._width is None:
            self._width = Counter(len(row) for row in fit.values()).most_common(1)[0][0]
        fit = {key: row for key, row in fit.items() if len(row) == self._width}
        return fit, len(found) - len(fit)

    def _allows(self, width: int) -> bool:
        """Whether a row may hold so many numbers."""
        if self._outputs == "labels":
            return width == 1
        either = (self._n_classes, 1) if self._n_classes == 2 else (self._n_classes,)
        return self._n_classes is None or width in either

    def _again(self, kept: Mapping[bytes, Floats]) -> list[bytes]:
        """Those of the kept answers that are asked for again: never what this handle was told."""
        if not self._recheck:
            return []
        return [key for key in kept if key not in self._own][: self._recheck - self._n_rechecked]

    def _what_is_kept(self) -> str:
        if self._answers.answered(self._service) is None:
            return "nothing was answered so far"
        if self._answers.path is None:
            return "answers so far are lost with this program, since no cache= was named"
        return f"every answer so far is kept in {self._answers.path.name}"

    def _afford(self, n: int, n_unfit: int) -> None:
        if n and self._budget is not None:
            spent = self._answers.spent(self._service)
            if spent + n > self._budget:
                unfit = (
                    f" ({n_unfit:,} of them have answers that outputs=, n_classes= and tolerance= "
                    "do not fit)"
                )
                raise BudgetSpent(
                    f"expected at most {self._budget:,} records asked of {self._place}, but "
                    f"{spent:,} were and {n:,} more are wanted{unfit if n_unfit else ''}; raise "
                    f"budget=, or ask about fewer: nothing was sent, and {self._what_is_kept()}"
                )

    def _asked(self, x: NDArray[Any], keys: Sequence[bytes]) -> dict[bytes, Floats]:
        """Rows of a batch, once they are in the cache."""
        found = self._answered(x, keys)
        rows = dict(zip(keys, found, strict=True))
        self._answers.keep(self._service, rows)
        if self._recheck:
            self._own |= rows.keys()
        # what is not what outputs= says is said before more is paid for
        self._logs(found)
        self._width = found.shape[1]
        return rows

    def _answered(self, x: NDArray[Any], keys: Sequence[bytes]) -> Floats:
        """Rows (n, width) of a batch, from the service."""
        ids = [key.hex()[:16] for key in keys]
        body = self._body(x, ids)
        attempt = 0
        while True:
            self._wait_turn()
            # what is wrong on this side is found before anything is counted
            self._token()
            self._wire.open(self.url)
            self._spend(len(keys))
            found = self._attempt(body, ids)
            if isinstance(found, np.ndarray):
                return found
            if found.free:
                self._answers.give_back(self._service, len(keys))
                self._n_paid -= len(keys)
            attempt += 1
            if found.final or attempt > self._retries:
                times = f" {attempt} times" if attempt > 1 else ""
                raise RemoteError(
                    f"expected answers about {len(keys)} records from {self._place}, got "
                    f"{found.why}{times}; {self._what_is_kept()}"
                )
            if found.after is not None and found.after > self._backoff.patience:
                raise RemoteError(
                    f"expected an answer from {self._place}, which asks for {found.after:.0f} s of "
                    f"patience; {self._what_is_kept()}; run the same command again then"
                )
            time.sleep(self._backoff.seconds(attempt - 1, found.after, random.random()))

    def _compare_kept(self, keys: Sequence[bytes], x: NDArray[Any], before: Floats) -> None:
        """Ask for some kept answers again, before they are used and others join them.

        Raises:
            RemoteError: they are others now.
        """
        for start in range(0, len(keys), self._batch_size):
            part = slice(start, start + self._batch_size)
            now = self._answered(x[part], keys[part])
            if not np.allclose(
                np.exp(self._logs(before[part])), np.exp(self._logs(now)), atol=_SAME
            ):
                since = self.answered
                when = f" between {since[0]:{_MINUTE}} and {since[1]:{_MINUTE}}" if since else ""
                raise RemoteError(
                    f"expected the answers of {self._place} that were kept{when} again, got "
                    "others: the model was replaced, or answers at random; begin with a new "
                    "cache, or say recheck=0 (what was kept is as it was)"
                )
            self._own |= set(keys[part])
            self._n_rechecked += len(now)

    def _body(self, x: NDArray[Any], ids: Sequence[str]) -> bytes:
        try:
            return json.dumps(self._encode(x, ids), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"expected encode= to make what JSON can say, but {error}; return lists, numbers "
                "and text"
            ) from None

    def _wait_turn(self) -> None:
        now = time.monotonic()
        if self._not_before > now:
            time.sleep(self._not_before - now)
        self._not_before = max(now, self._not_before) + self._pause

    def _spend(self, n: int) -> None:
        """Count n records before they are sent: a process that is killed has asked them."""
        if not self._answers.spend(self._service, n, self._budget):
            raise BudgetSpent(
                f"expected at most {self._budget:,} records asked of {self._place}, but "
                f"{self._answers.spent(self._service):,} were, retries included, and {n:,} more "
                f"are wanted; raise budget=: {self._what_is_kept()}"
            )
        self._n_paid += n

    # --- what is answered -------------------------------------------------------------------

    def _attempt(self, body: bytes, ids: Sequence[str]) -> Floats | _Failure:
        """Rows (n, width) in the order of the ids, or why there are none.

        No error leaves here that has seen the token.
        """
        token = self._token()
        url = self.url.replace(_SLOT, quote(token, safe=""))
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": "vestige",
        }
        if self._header is not None:
            headers[self._header[0]] = self._header[1].replace(_SLOT, token)
        reply = self._wire.post(url, headers, body)
        if isinstance(reply, Lost):
            return _Failure(_printable(reply.why, token), free=not reply.sent, final=reply.final)
        if not 200 <= reply.status < 300:
            return self._refusal(reply, token)
        try:
            return self._rows(reply, ids)
        except RemoteError as error:
            why = f"an answer with {_printable(str(error), token)}"
            return _Failure(why, final=isinstance(error, Misread))

    def _token(self) -> str:
        if self._token_env is None:
            return ""
        token = os.environ.get(self._token_env, "").strip()
        if not token or not token.isascii() or not token.isprintable():
            kind = "one with other than printable ASCII characters" if token else "none"
            raise InvalidInput(
                f"expected a token in the environment variable {self._token_env}, got {kind}; "
                f"export {self._token_env}=..."
            )
        return token

    def _refusal(self, reply: Reply, token: str) -> _Failure:
        status, after = reply.status, _retry_after(reply.headers)
        if status < 400:
            why = f"a redirect ({status}), which is not followed: give the final address"
            return _Failure(why, free=True, final=True)
        free = status < 500 and status not in (408, 409)
        again = status >= 500 or status in (408, 409, 425, 429)
        said = reply.headers.get("x-should-retry", "").strip().lower()
        again = said == "true" or (again and said != "false")
        hint = ""
        if status in (401, 403):
            where = f"${self._token_env}" if self._token_env else "token_env="
            hint = f" (see to the token in {where})"
        elif status == 413:
            hint = " (lower batch_size=)"
        elif 400 <= status < 500:
            text = _printable(reply.body.decode(errors="replace"), token)
            hint = f" ({text})" if text else ""
        return _Failure(f"status {status}{hint}", free=free, final=not again, after=after)

    def _rows(self, reply: Reply, ids: Sequence[str]) -> Floats:
        kind = reply.headers.get("content-type", "application/json").partition(";")[0]
        if "json" not in kind.lower():
            raise RemoteError("something other than JSON in it")
        answer = self._parsed(reply.body)
        try:
            decoded = self._decode(answer, ids)
        except RemoteError:
            raise
        except Exception as error:  # a user's own decode may raise anything
            raise RemoteError(f"nothing that decode= takes ({type(error).__name__})") from None
        rows = rows_of(decoded, len(ids), max(self._max_classes, self._n_classes or 0))
        width = rows.shape[1]
        if not self._allows(width):
            raise RemoteError(f"rows of {width} numbers for {self._n_classes} classes")
        if self._width not in (None, width):
            raise RemoteError(
                f"rows of {width} numbers, after rows of {self._width} (if those were wrong, say "
                "n_classes=; if the service has changed, use a new cache)"
            )
        if says_nothing(rows, self._outputs):
            raise RemoteError(f"{self._outputs} that are all zero for a record")
        return rows

    def _parsed(self, body: bytes) -> Any:
        many = brackets(body, self._max_bytes)
        if many:
            raise RemoteError(f"{many:,} brackets in it")
        try:
            return json.loads(body)
        except RecursionError:
            raise RemoteError("brackets nested too deeply in it") from None
        except ValueError:  # bad JSON, bad text, and numbers of thousands of digits
            raise RemoteError("broken JSON in it") from None

    def _logs(self, table: Floats) -> Floats:
        try:
            return logs_of(table, self._outputs, self._n_classes, self._tolerance)
        except RemoteError as error:
            raise RemoteError(f"{error} ({self._place}; the answers are kept)") from None


def shown(url: str) -> str:
    """An address for messages: without user, password, the values of its query, and fragment.

    Raises:
        InvalidInput: it is no http or https address, or has a password in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput("expected an address as https://host/path, got a broken one") from None
    odd = any(c.isspace() or not c.isprintable() for c in url)
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or odd:
        # not shown: it may be a password that was given by mistake
        raise InvalidInput(
            "expected an address as https://host/path for a remote model, got something else; "
            "write it in full, in ASCII and without spaces"
        )
    host = f"[{host}]" if ":" in host else host
    place = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            f"expected an address without user and password, got one for {place}; put the secret "
            "in an environment variable and name it in token_env="
        )
    return place + ("?..." if parts.query else "")


def remote_of(table: Mapping[str, Any], folder: Path | str = ".") -> RemoteModel:
    """The remote model that a table of a plan describes.

    Args:
        table: `url`, and any of the arguments of `RemoteModel` but functions; instead of those
            `inputs_field`, `answers_field` and `ids_field` name the lists of the request and of
            the answer.
        folder: of the plan, from where `cache` and `ca_file` are meant.

    Raises:
        PlanError: an unknown key, or a value of another type.
    """
    for key, value in table.items():
        if key not in KEYS:
            raise PlanError(f"expected {', '.join(KEYS)} for a remote target, got {key!r}")
        if type(value) not in KEYS[key]:
            kinds = " or ".join(_WORDS[kind] for kind in KEYS[key])
            # not the value, which may be a password that was given by mistake
            raise PlanError(
                f"expected {key} = {kinds} for a remote target, got {type(value).__name__}"
            )
    if "url" not in table:
        raise PlanError('expected url = "https://..." for a remote target, got none; add it')
    said = dict(table)
    inputs, answers = said.pop("inputs_field", None), said.pop("answers_field", None)
    ids = said.pop("ids_field", "ids")
    said["encode"] = JsonInputs(inputs or "inputs", ids)
    said["decode"] = JsonAnswers(answers or said.get("outputs", "probabilities"), ids or "ids")
    for name in ("cache", "ca_file"):
        if name in said:
            said[name] = Path(folder) / said[name]
    return RemoteModel(said.pop("url"), **said)


_WORDS = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
KEYS: Mapping[str, tuple[type, ...]] = {
    "url": (str,),
    "outputs": (str,),
    "n_classes": (int,),
    "max_classes": (int,),
    "batch_size": (int,),
    "token_env": (str,),
    "header": (str,),
    "plain_http_token": (bool,),
    "timeout": (int, float),
    "retries": (int,),
    "rate": (int, float),
    "budget": (int,),
    "cache": (str,),
    "tolerance": (int, float),
    "max_bytes": (int,),
    "ca_file": (str,),
    "recheck": (int,),
    "inputs_field": (str,),
    "answers_field": (str,),
    "ids_field": (str,),
}


def _canonical(x: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the widest type of their kind: what JSON says of them is the same."""
    wide = {"f": "<f8", "i": "<i8", "u": "<i8"}.get(x.dtype.kind)
    if wide is None or x.dtype.itemsize > 8 or x.dtype == np.uint64:
        return x.astype(x.dtype.newbyteorder("<"), copy=False)
    return x.astype(wide, copy=False)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _again(url: str, settings: Mapping[str, Any]) -> RemoteModel:
    return RemoteModel(url, **settings)


def _discarded(answers: Answers, wire: Wire) -> None:
    wire.close()
    answers.close()


def _check_numbers(said: Mapping[str, Any]) -> None:
    least = {"n_classes": 2, "max_classes": 2, "batch_size": 1, "retries": 0, "budget": 0}
    least |= {"max_bytes": 1, "recheck": 0}
    for name, low in least.items():
        value = said[name]
        if value is not None and (type(value) is not int or value < low):
            raise InvalidInput(f"expected {name} as a whole number from {low}, got {value!r}")
    for name in ("timeout", "rate"):
        value = said[name]
        if value is not None and not (0 < value < math.inf):
            raise InvalidInput(f"expected {name} above 0, got {value!r}")
    if not 0 <= said["tolerance"] < math.inf:
        raise InvalidInput(f"expected tolerance from 0, got {said['tolerance']!r}")


def _header(
    url: str, token_env: str | None, header: str | None, plain: bool
) -> tuple[str, str] | None:
    """Name and value of the header that carries the token, if one does."""
    in_url = _SLOT in url
    if token_env is None:
        if in_url or header is not None:
            raise InvalidInput(
                "expected token_env= beside a header or {token} in the address, got none; name the "
                "environment variable that holds the token"
            )
        return None
    if not (isinstance(token_env, str) and VARIABLE.fullmatch(token_env)):
        raise InvalidInput(
            "expected token_env= as the name of an environment variable, got something else, which "
            "is not shown since it may be the token; put that into the environment, and its name "
            "here"
        )
    parts = urlsplit(url)
    if _SLOT in parts.netloc:
        raise InvalidInput(
            "expected {token} in the path or query of an address, got it in its host"
        )
    if parts.scheme == "http" and not plain and not is_loopback(parts.hostname or ""):
        raise InvalidInput(
            f"expected https for {shown(url)}, to which a token would be sent in the clear, got "
            "http; use https, or say plain_http_token=True"
        )
    if in_url and header is None:
        return None
    name, colon, value = (header or BEARER).partition(":")
    if not colon or not name.strip().replace("-", "").isalnum() or _SLOT not in value:
        raise InvalidInput(
            'expected a header as "Name: value with {token}", got another; put {token} where the '
            "token goes, and the token itself in the environment"
        )
    return name.strip(), value.strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the service asks to wait: a number, or a date."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _printable(text: str, token: str, most: int = 200) -> str:
    """Text of a stranger in one short line; nothing of it where it has the token in it."""
    if token:
        secret = token.encode()
        forms = {token, quote(token, safe=""), json.dumps(token)[1:-1], repr(token)[1:-1]}
        forms |= {base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()}
        if any(form in text for form in forms | {secret.hex()}):
            return "[not shown]"
    words = " ".join(text[: 10 * most].split())
    return "".join(c if c.isprintable() else " " for c in words)[:most]
