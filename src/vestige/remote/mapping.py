"""What is said to a service and what it says back: records to JSON, and JSON to rows of numbers.

A mapping is two functions. `encode(x, ids)` makes the body of a request from records (n, ...) and
one id a record; `decode(answer, ids)` makes rows (n, classes), in the order of the ids, from the
body of the answer. What either of them raises is an answer that is not as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vestige.errors import RemoteError
from vestige.fingerprint import fingerprint
from vestige.models import FLOOR

__all__ = ["Decode", "Encode", "JsonAnswers", "JsonInputs", "Outputs", "in_order", "logs_of"]

Floats = NDArray[np.float64]
Outputs = Literal["probabilities", "logits", "log_probabilities", "labels"]
Encode = Callable[[NDArray[Any], Sequence[str]], Any]
Decode = Callable[[Any, Sequence[str]], Any]

OUTPUTS: tuple[Outputs, ...] = ("probabilities", "logits", "log_probabilities", "labels")
_LEAST, _OUT_OF_DIGITS = -1e-6, 1 - 1e-6


class Misread(RemoteError):
    """A whole answer that the settings do not fit: another attempt would get the same."""


@dataclass(frozen=True)
class JsonInputs:
    """{"inputs": [record, ...], "ids": [text, ...]}, each record as nested lists.

    Args:
        field: name of the list of records.
        ids: name of the list of ids, which lets the service say what each answer belongs to; ""
            for a service that takes no ids.
    """

    field: str = "inputs"
    ids: str = "ids"

    def __call__(self, x: NDArray[Any], ids: Sequence[str]) -> Any:
        body: dict[str, Any] = {self.field: x.tolist()}
        return body | ({self.ids: list(ids)} if self.ids else {})


@dataclass(frozen=True)
class JsonAnswers:
    """{"probabilities": [row, ...]}, with "ids" or "index" beside it where the order may differ.

    Args:
        field: name of the list of rows; with dots where it is further inside ("result.scores"),
            "" where the answer is the list itself.
        ids: name of the list of echoed ids.
        index: name of a list of positions in the request, for services that say those instead.
    """

    field: str = "probabilities"
    ids: str = "ids"
    index: str = "index"

    def __call__(self, answer: Any, ids: Sequence[str]) -> Any:
        rows = answer
        for name in self.field.split(".") if self.field else ():
            if not isinstance(rows, Mapping) or name not in rows:
                raise Misread(
                    f'no "{self.field}" in it (say where its rows are: decode=JsonAnswers("..."), '
                    "or answers_field= in a plan)"
                )
            rows = rows[name]
        beside = answer if isinstance(answer, Mapping) else {}
        named, places = beside.get(self.ids), beside.get(self.index)
        if named is not None:
            return in_order(rows, named, ids)
        return rows if places is None else in_order(rows, places, range(len(ids)))


def in_order(rows: Any, named: Any, ids: Sequence[Any]) -> Any:
    """Rows, each with its name, in the order of the ids; 7 and "7" are one name.

    Raises:
        RemoteError: a row is missing, is there twice, or was not asked for.
    """
    if not isinstance(rows, list) or not isinstance(named, list) or len(rows) != len(named):
        raise RemoteError("answers and their ids that are not two lists of one length")
    if len(named) != len(ids):
        raise RemoteError(f"ids for {len(named):,} records, where {len(ids):,} were asked about")
    if not all(type(name) in (str, int) for name in named):
        raise RemoteError("ids that are neither text nor whole numbers")
    # as text: whole numbers can be chosen so that each of them collides with all others
    place = {str(name): k for k, name in enumerate(named)}
    wanted = [str(name) for name in ids]
    if place.keys() != set(wanted):
        raise RemoteError("ids that are not those that were asked about, each once")
    return [rows[place[name]] for name in wanted]


def identity(encode: Encode, decode: Decode) -> str:
    """What tells one mapping from another: a word for ours, the code of a user's own functions."""
    return "; ".join(
        repr(part) if isinstance(part, (JsonInputs, JsonAnswers)) else fingerprint(part)
        for part in (encode, decode)
    )


def rows_of(decoded: Any, n: int, most: int) -> Floats:
    """Decoded answers as numbers (n, classes), or (n, 1) where there is one a record.

    Args:
        most: numbers a record, at most; more are refused before there is an array of them.

    Raises:
        Misread: more numbers than that.
        RemoteError: another count or shape, no numbers, NaN or infinity.
    """
    if isinstance(decoded, list | tuple):
        widest = max((len(row) for row in decoded if isinstance(row, Sized)), default=1)
        if widest > most:
            raise Misread(
                f"rows of {widest:,} numbers, where {most:,} were expected at most (if the service "
                "has so many classes, say max_classes=)"
            )
    try:
        rows = np.asarray(decoded, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise RemoteError("rows that are not numbers, or not of one length") from None
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or not rows.size or len(rows) != n:
        raise RemoteError(f"{len(rows) if rows.ndim else 0} rows for {n} records")
    if not np.isfinite(rows).all():
        raise RemoteError("NaN or infinity")
    return rows


def logs_of(rows: Floats, outputs: Outputs, n_classes: int | None, tolerance: float) -> Floats:
    """Natural logs (n, classes) of what a service shows, not renormalized.

    Where a row of probabilities is shown in full and sums to one, a number that is too near to 1 to
    have digits left is taken as one minus the others, which have them.

    Args:
        rows: (n, classes); (n, 1) for the probability or logit of class 1, or for labels.
        tolerance: by how much a row of probabilities may miss 1.

    Raises:
        RemoteError: the rows are not what `outputs` says.
    """
    if says_nothing(rows, outputs):
        raise RemoteError(f"expected {outputs}, got a record of which no class is likely")
    if outputs == "labels":
        return _of_labels(rows, n_classes or 0)
    if outputs == "logits":
        return _normalized(np.hstack([np.zeros_like(rows), rows]) if rows.shape[1] == 1 else rows)
    if outputs == "log_probabilities":
        if rows.shape[1] == 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                rows = np.hstack([np.log(-np.expm1(rows)), rows])
            rows = np.where(np.isneginf(rows), np.log(FLOOR), rows)
        with np.errstate(over="ignore"):
            _check(np.exp(rows), outputs, tolerance)
        return rows
    table = np.hstack([1 - rows, rows]) if rows.shape[1] == 1 else rows
    _check(table, outputs, tolerance)
    return _of_probabilities(table)


def says_nothing(rows: Floats, outputs: Outputs) -> bool:
    """Whether there is a row of probabilities that are all zero, which no tolerance makes right."""
    if outputs not in ("probabilities", "log_probabilities") or rows.shape[1] == 1:
        return False
    if outputs == "log_probabilities":
        return bool((rows.max(axis=1) <= np.log(FLOOR)).any())
    # all of them negative are logits, which is another mistake
    return bool(((rows.max(axis=1) <= FLOOR) & (rows.min(axis=1) >= _LEAST)).any())


def fitting(
    rows: Floats, outputs: Outputs, n_classes: int | None, tolerance: float
) -> NDArray[np.bool_]:
    """Which of the rows are what `outputs` says, (n,): those that `logs_of` takes."""
    try:
        logs_of(rows, outputs, n_classes, tolerance)
    except RemoteError:
        if len(rows) == 1:
            return np.zeros(1, dtype=bool)
        halves = np.array_split(rows, 2)
        return np.concatenate([fitting(half, outputs, n_classes, tolerance) for half in halves])
    return np.ones(len(rows), dtype=bool)


def _of_labels(rows: Floats, n_classes: int) -> Floats:
    labels = rows[:, 0].astype(np.int64)
    whole = rows.shape[1] == 1 and (labels == rows[:, 0]).all()
    if not whole or not 0 <= labels.min() <= labels.max() < n_classes:
        raise RemoteError(
            f"expected one label from 0 to {n_classes - 1} a record, got others; see to outputs= "
            "and n_classes="
        )
    logs = np.full((len(labels), n_classes), np.log(FLOOR))
    logs[np.arange(len(labels)), labels] = 0.0
    return logs


def _check(table: Floats, outputs: str, tolerance: float) -> None:
    # written so that a NaN does not pass
    if not ((table >= _LEAST) & (table <= 1 + max(tolerance, 1e-6))).all():
        raise RemoteError(
            f"expected {outputs} between 0 and 1, got values from {table.min():.4g} to "
            f'{table.max():.4g}; if they are logits, say outputs="logits" and go on to read them '
            f'where they are: decode=JsonAnswers("{outputs}"), or in a plan answers_field = '
            f'"{outputs}"'
        )
    off = np.abs(table.sum(axis=1) - 1)
    if off.max() > tolerance + 1e-9:
        raise RemoteError(
            f"expected {outputs} that sum to 1 for each record, got "
            f"{table[int(off.argmax())].sum():.4g}; if the service rounds, adds noise or leaves "
            f"classes out, say tolerance={_with_slack(float(off.max()))} or more (for d digits 0.5 "
            f"* classes * 10**-d, for the top k 0.99; {table.shape[1]} takes any row)"
        )


def _with_slack(off: float) -> str:
    """A tenth more, rounded up to two digits: other rows may miss 1 by more than this one."""
    step = 10.0 ** (math.floor(math.log10(1.1 * off)) - 1)
    return f"{math.ceil(1.1 * off / step) * step:.2g}"


def _of_probabilities(table: Floats) -> Floats:
    positive = table > 0
    # a zero is never likelier than what the row shows as positive
    least = np.where(positive, table, FLOOR).min(axis=1, keepdims=True)
    shown = np.where(positive, table, np.minimum(least, FLOOR))
    logs = np.log(shown)
    top = shown.argmax(axis=1)[:, None]
    others = shown.copy()
    np.put_along_axis(others, top, 0.0, axis=1)
    rest = others.sum(axis=1, keepdims=True)
    largest = np.take_along_axis(shown, top, axis=1)
    # a service that rounds or hides classes is taken at its word
    full = positive.all(axis=1, keepdims=True) & (np.abs(1 - rest - largest) <= 1e-6)
    sharp = full & (largest > _OUT_OF_DIGITS)
    better = np.where(sharp, np.log1p(-np.minimum(rest, 0.5)), np.log(largest))
    np.put_along_axis(logs, top, better, axis=1)
    return np.asarray(logs)


def _normalized(logits: Floats) -> Floats:
    top = logits.argmax(axis=1)[:, None]
    gap = logits - np.take_along_axis(logits, top, axis=1)
    others = np.exp(gap)
    np.put_along_axis(others, top, 0.0, axis=1)
    return np.asarray(gap - np.log1p(others.sum(axis=1, keepdims=True)))
