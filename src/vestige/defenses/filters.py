"""What a service shows of its answers: handles around handles.

    Shokri, Stronati, Song, Shmatikov. Membership inference attacks against machine learning
    models. IEEE S&P 2017, section VIII. https://arxiv.org/abs/1610.05820

A filter changes the answers of a model and nothing else. It is a `BlackBox` itself, so that a
filter goes around a filter, and whoever attacks a filtered target trains behind the same filter
(`filtered`). Otherwise a filter looks better than it is.

What is shown is a vector of numbers in [0, 1] that need not sum to 1: probabilities that are cut
or rounded are not normalized again. `log_probabilities` is log(max(shown, 1e-12)).

What a record is answered depends on its content alone, not on what is asked beside it or before.
"""

from __future__ import annotations

import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from vestige.errors import InvalidInput
from vestige.fingerprint import source_digest
from vestige.models import FLOOR, BlackBox
from vestige.pool import Pool
from vestige.reading import Asker

__all__ = [
    "FILTERS",
    "Filter",
    "Kind",
    "LabelOnly",
    "Noisy",
    "Rounded",
    "Temperature",
    "TopK",
    "behind",
    "filtered",
    "share_that_passed",
]

Floats = NDArray[np.float64]

# the predicted class is shown at least so likely, so that noise cannot make it a zero among zeros
_LEAST_OF_LABEL = 1e-6


@dataclass
class _Count:
    n: int = 0


@dataclass(frozen=True, eq=False)
class Filter(ABC):
    """A model whose answers are changed before they are shown.

    Attributes:
        model: what answers; asked once for each record that the filter is asked about.
    """

    model: BlackBox
    _asked: _Count = field(default_factory=_Count, init=False, repr=False)

    @property
    def n_queries(self) -> int:
        """Records that this filter was asked about so far."""
        return self._asked.n

    def log_probabilities(self, x: Any) -> Floats:
        """log(max(shown, 1e-12)), shape (n, classes), for inputs (n, ...)."""
        answers = self.answers(x, self.model.log_probabilities(x))
        self._asked.n += len(answers)
        return answers

    def answers(self, x: Any, log_p: Floats) -> Floats:
        """The same where the model has answered already; counts no query."""
        return np.log(np.maximum(self.shown(x, np.ascontiguousarray(log_p)), FLOOR))

    @abstractmethod
    def shown(self, x: Any, log_p: Floats) -> Floats:
        """The vectors (n, classes) in [0, 1] that are shown, for the model's own answers.

        Args:
            x: (n, ...) the inputs.
            log_p: (n, classes) the model's log-probabilities; not to be changed.
        """


@dataclass(frozen=True, eq=False)
class TopK(Filter):
    """The k largest probabilities, in their places; the others are 0.

    Of equal ones the lowest class counts as larger. The vector is not normalized again.

    References: Shokri et al. 2017, section VIII, "restrict the prediction vector to top k".
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, (int, np.integer)) or self.k < 1:
            raise InvalidInput(f"expected a whole number k >= 1 of classes to show, got {self.k}")

    def shown(self, x: Any, log_p: Floats) -> Floats:
        first = np.argsort(-log_p, axis=1, kind="stable")[:, : self.k]
        out = np.zeros_like(log_p)
        np.put_along_axis(out, first, np.exp(np.take_along_axis(log_p, first, axis=1)), axis=1)
        return out


@dataclass(frozen=True, eq=False)
class Rounded(Filter):
    """Probabilities rounded to `decimals` digits (`numpy.round`: ties go to the even digit).

    The vector need not sum to 1. Classes can tie that did not: the lowest is then the answer.

    References: Shokri et al. 2017, section VIII, "coarsen precision".
    """

    decimals: int

    def __post_init__(self) -> None:
        # a double has no more
        if not 0 <= self.decimals <= 15:
            raise InvalidInput(f"expected 0 to 15 decimals to round to, got {self.decimals}")

    def shown(self, x: Any, log_p: Floats) -> Floats:
        return np.asarray(np.round(np.exp(log_p), self.decimals), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Temperature(Filter):
    """softmax(log p / t): flatter for t > 1, sharper for t < 1, the same order.

    With logits z this is softmax(z / t): what they differ by from log p cancels.

    References: Shokri et al. 2017, section VIII, "increase entropy of the prediction vector".
    """

    t: float

    def __post_init__(self) -> None:
        if not 0 < self.t < np.inf:
            raise InvalidInput(f"expected a temperature t > 0, got {self.t}")

    def shown(self, x: Any, log_p: Floats) -> Floats:
        # the largest is taken off first: what overflows for a small t is then a zero
        with np.errstate(over="ignore"):
            p = np.exp((log_p - log_p.max(axis=1, keepdims=True)) / self.t)
        return np.asarray(p / p.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class LabelOnly(Filter):
    """The predicted class alone: 1 in its place, 0 elsewhere; of equal ones the lowest class.

    References: Shokri et al. 2017, section VIII, the limit of the top-k filter.
    """

    def shown(self, x: Any, log_p: Floats) -> Floats:
        out = np.zeros_like(log_p)
        np.put_along_axis(out, log_p.argmax(axis=1)[:, None], 1.0, axis=1)
        return out


@dataclass(frozen=True, eq=False)
class Noisy(Filter):
    """Gaussian noise on each probability, clipped to [0, 1]; not normalized again.

    The noise follows from the record's content and the seed: asking twice gives the same answer,
    and averaging over repeated queries wins nothing. (Records that differ in the last digit have
    noises of their own, which can be averaged.)

    Args:
        scale: standard deviation of the noise.
        seed: the service's secret; another model behind the same filter needs another one, or
            their noises cancel. `filtered` sees to it.
        keep_label: the predicted class stays the largest (it changes places with the class that
            the noise made the largest), so that the service stays as accurate as it was.
    """

    scale: float
    seed: int = 0
    keep_label: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.scale < np.inf:
            raise InvalidInput(f"expected noise with a scale >= 0, got {self.scale}")

    def shown(self, x: Any, log_p: Floats) -> Floats:
        noise = ndtri(uniforms(content_keys(x, self.seed), log_p.shape[1]))
        out = np.clip(np.exp(log_p) + self.scale * noise, 0.0, 1.0)
        return _with_label(out, log_p.argmax(axis=1)) if self.keep_label else out


def _with_label(shown: Floats, label: NDArray[np.int64]) -> Floats:
    """The same values, but the label's is the largest, and the only one."""
    rows, top = np.arange(len(shown)), shown.argmax(axis=1)
    largest = np.maximum(shown[rows, top], _LEAST_OF_LABEL)
    out = shown.copy()
    out[rows, top] = shown[rows, label]
    # clipping makes several 1 at once
    np.minimum(out, np.nextafter(largest, 0)[:, None], out=out)
    out[rows, label] = largest
    return out


# --- randomness that belongs to a record ---------------------------------------------------------


def content_keys(x: Any, seed: int) -> NDArray[np.uint64]:
    """A number for each record (n,) that follows from its values and the seed alone.

    Equal values of other types (float32, uint8) have equal keys. Without the seed they cannot be
    told from random ones (BLAKE2b, keyed).
    """
    out = np.empty(len(x), dtype=np.uint64)
    key = str(seed).encode()
    step = max(1, 2**22 // max(1, int(np.prod(np.shape(x)[1:]))))
    for start in range(0, len(x), step):
        # adding 0.0 turns -0.0 into 0.0
        part = np.asarray(x[start : start + step]).astype(np.float64) + 0.0
        for i, row in enumerate(np.ascontiguousarray(part.reshape(len(part), -1)), start):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest()
            out[i] = int.from_bytes(digest, "little")
    return out


def uniforms(keys: NDArray[np.uint64], n: int) -> Floats:
    """n numbers in (0, 1) from each key, shape (len(keys), n): SplitMix64 started at the key.

    References: Steele, Lea, Flood. Fast splittable pseudorandom number generators. OOPSLA 2014.
    """
    state = keys[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    # 52 bits and a half: neither 0 nor 1, whose normal quantiles are infinite
    return np.asarray(((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


# --- filters by name -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A filter that a name stands for.

    Attributes:
        example: how it is written.
        says: what it does, a few words.
        make: (model, the number, seed) -> the handle.
        number: whether a number follows the name: "whole", "any", or "none".
        twice: whether what has passed it passes it again unchanged.
    """

    example: str
    says: str
    make: Callable[[BlackBox, float, int], BlackBox]
    number: str = "any"
    twice: bool = False


def _unfiltered(model: BlackBox, number: float, seed: int) -> BlackBox:
    return model


def _top(model: BlackBox, number: float, seed: int) -> BlackBox:
    return TopK(model, int(number))


def _round(model: BlackBox, number: float, seed: int) -> BlackBox:
    return Rounded(model, int(number))


def _temperature(model: BlackBox, number: float, seed: int) -> BlackBox:
    return Temperature(model, number)


def _label(model: BlackBox, number: float, seed: int) -> BlackBox:
    return LabelOnly(model)


def _noise(model: BlackBox, number: float, seed: int) -> BlackBox:
    return Noisy(model, number, seed)


FILTERS: Mapping[str, Kind] = MappingProxyType(
    {
        "none": Kind("none", "all probabilities, as they are", _unfiltered, "none"),
        "top": Kind("top3", "the 3 largest probabilities", _top, "whole", True),
        "round": Kind("round1", "probabilities rounded to 1 decimal", _round, "whole", True),
        "temperature": Kind("temperature5", "probabilities at temperature 5", _temperature),
        "label": Kind("label", "the predicted class alone", _label, "none", True),
        "noise": Kind("noise0.1", "Gaussian noise of scale 0.1, the label kept", _noise),
    }
)
"""What `behind` understands, by name."""

_SPEC = re.compile(r"([a-z]+)(\d+|\d*\.\d+)?")


def behind(model: BlackBox, spec: str, *, seed: int = 0) -> BlackBox:
    """The model behind a filter given by name, "top3" say; "none" is the model itself.

    Args:
        spec: a name of `FILTERS` with its number; several are joined by a plus sign, and the
            first one is nearest to the model: "temperature5+round2" rounds what was flattened.
        seed: of the noise.

    Raises:
        InvalidInput: no such filter, or a number that it cannot have.

    >>> import numpy as np
    >>> from vestige.models import Predictions
    >>> model = Predictions(probabilities=[[0.625, 0.25, 0.125]])
    >>> shown = behind(model, "top2").log_probabilities(np.array([[0]]))
    >>> np.exp(shown).round(6).tolist()
    [[0.625, 0.25, 0.0]]
    """
    for kind, number in _parsed(spec):
        model = kind.make(model, number, seed)
    return model


def share_that_passed(spec: str, log_p: Floats) -> float | None:
    """The share of answers (n, classes) that are what a filter shows; None where none can tell.

    Rows of another filter, or of none, may look the same by chance; few of them do.

    >>> import numpy as np
    >>> rows = np.log([[0.7, 0.2, 0.1], [0.64, 0.25, 0.11]])
    >>> share_that_passed("round1", rows), share_that_passed("noise0.1", rows)
    (0.5, None)
    """
    kind, number = _parsed(spec)[-1]
    if not kind.twice:
        return None
    filter = kind.make(_NoModel(), number, 0)
    assert isinstance(filter, Filter)
    again = filter.answers(np.zeros((len(log_p), 1)), log_p)
    return float((np.abs(np.exp(again) - np.exp(log_p)).max(axis=1) < 1e-6).mean())


def _parsed(spec: str) -> list[tuple[Kind, float]]:
    return [_parsed_one(part) for part in spec.split("+")]


def _parsed_one(spec: str) -> tuple[Kind, float]:
    found = _SPEC.fullmatch(spec)
    kind = FILTERS.get(found[1]) if found else None
    if found is None or kind is None:
        examples = ", ".join(k.example for k in FILTERS.values())
        raise InvalidInput(
            f"expected a filter like {examples} (or several, joined by +), got {spec!r}"
        )
    digits = found[2]
    given = "none" if digits is None else "whole" if digits.isdigit() else "any"
    if (given == "none") != (kind.number == "none") or (kind.number, given) == ("whole", "any"):
        wanted = {"none": "no number", "whole": "a whole number", "any": "a number"}[kind.number]
        raise InvalidInput(
            f"expected {wanted} after {found[1]!r}, got {spec!r}; write {kind.example}, for example"
        )
    return kind, float(digits or 0)


# --- a pool behind a filter ----------------------------------------------------------------------


def filtered(
    pool: Pool[Any], by: str | Callable[[BlackBox], BlackBox], *, seed: int = 1
) -> Pool[BlackBox]:
    """The pool whose models answer through a filter, as the attacker's must do.

    The models are wrapped when they are taken, and asked as they were (several at once, where the
    pool does that). What the pool has kept of their answers is not used: the cache is new.

    Args:
        by: a name as in `behind`, or a function that puts a model behind a filter (a function of
            a module, if the pool is to travel to other processes).
        seed: of the noise of named filters: model k has seed + k. A target has another one, 0 by
            default; with its own seed the adversary would know the noise.

    Raises:
        InvalidInput: no such filter.
    """
    if isinstance(by, str):
        for kind, number in _parsed(by):
            kind.make(_NoModel(), number, seed)  # its refusals come now, not at the first query
    return Pool(
        _Behind(pool.models, by, range(seed, seed + len(pool.models))),
        pool.records,
        pool.member,
        provenance={**pool.provenance, "filter": by if isinstance(by, str) else _name_of(by)},
        asker=_Through(pool.asker),
    )


def _name_of(by: Callable[[BlackBox], BlackBox]) -> str:
    inner = by.func if isinstance(by, functools.partial) else by
    return str(getattr(inner, "__qualname__", type(inner).__name__))


class _NoModel:
    n_queries = 0

    def log_probabilities(self, x: Any) -> Floats:
        raise AssertionError("a filter asked its model when it was made")


class _Behind(Sequence[BlackBox]):
    """Models that are wrapped when they are taken; each time anew, with its own count."""

    def __init__(
        self, models: Sequence[BlackBox], by: str | Callable[[BlackBox], BlackBox], seeds: range
    ) -> None:
        self._models, self._by, self._seeds = models, by, seeds

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, index: int) -> BlackBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlackBox]: ...
    def __getitem__(self, index: int | slice) -> BlackBox | Sequence[BlackBox]:
        if isinstance(index, slice):
            return _Behind(self._models[index], self._by, self._seeds[index])
        model = self._models[index]
        if isinstance(self._by, str):
            return behind(model, self._by, seed=self._seeds[index])
        return self._by(model)


@dataclass(frozen=True)
class _Through:
    """Asks what is behind the filters in the pool's own way, and filters the answers."""

    asker: Asker

    def width(self, models: Sequence[BlackBox]) -> tuple[int, int]:
        return self.asker.width([_bare(model)[0] for model in models[:1]])

    def ask(self, models: Sequence[BlackBox], x: Any) -> Iterator[tuple[int, slice, Floats]]:
        both = [_bare(model) for model in models]
        for k, rows, table in self.asker.ask([bare for bare, _ in both], x):
            for each in both[k][1]:
                table = each.answers(x[rows], table)
            yield k, rows, table
        for _, filters in both:
            for each in filters:
                each._asked.n += len(x)

    def key(self) -> str:
        return self.asker.key() + source_digest(Path(__file__).parent)


def _bare(model: BlackBox) -> tuple[BlackBox, list[Filter]]:
    """The model inside, and the filters around it, from the innermost on."""
    filters: list[Filter] = []
    while isinstance(model, Filter):
        filters.insert(0, model)
        model = model.model
    return model, filters
