"""Where a training program can hide bits in a model, beside membership, and how they are read.

Song, Ristenpart, Shmatikov. Machine learning models that remember too much. CCS 2017.
https://arxiv.org/abs/1709.07886
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vestige.errors import DamagedFile, InvalidInput
from vestige.metrics import Estimate, rate
from vestige.models import BlackBox
from vestige.records import Records, concatenate
from vestige.training.fit import Batch, Objective
from vestige.watermarks.keys import Key
from vestige.watermarks.robustness import weights_of

__all__ = [
    "REPEATS",
    "CapacityAbuse",
    "LeastSignificantBits",
    "WeightChannel",
    "WeightCode",
    "bit_error_rate",
    "correlated_values",
    "framed",
    "framed_size",
    "n_weights",
    "signs",
    "to_bits",
    "unframed",
]

Bits = NDArray[np.uint8]
Indices = NDArray[np.int64]

REPEATS = 3
"""Copies of each bit."""
_LENGTH, _CHECK = 32, 32


# --- what is written -----------------------------------------------------------------------------


def framed(payload: bytes, key: Key, repeats: int = REPEATS) -> Bits:
    """The bits to write: length, then payload and CRC-32, each several times over, (n,).

    Copies lie far from each other, so that one place that is lost costs one vote. All is added to a
    stream of the key's: what is written looks like coin tosses to who lacks the key, and has as
    many ones as zeros, which correlation and labels rely on.
    """
    length = len(payload).to_bytes(_LENGTH // 8, "big")
    check = zlib.crc32(length + payload).to_bytes(_CHECK // 8, "big")
    parts = [np.tile(to_bits(part), repeats) for part in (length, payload + check)]
    clear = np.concatenate(parts)
    return clear ^ _stream(key, len(clear))


def framed_size(n_bytes: int, repeats: int = REPEATS) -> int:
    """Bits of a frame around that many bytes."""
    return repeats * (_LENGTH + 8 * n_bytes + _CHECK)


def unframed(read: Callable[[int], Bits], key: Key, room: int, repeats: int = REPEATS) -> bytes:
    """The payload that most copies hold.

    Args:
        read: the first n bits of a channel; asked twice, first for the length.
        room: bits there can be; more are never asked for.

    Raises:
        DamagedFile: no frame of this key's, or more errors than the votes correct.
    """
    head = repeats * _LENGTH
    if room < head:
        raise DamagedFile(f"expected room for a frame of at least {head} bits, got {room}")
    length = _voted(read(head) ^ _stream(key, head), repeats)
    n = framed_size(int.from_bytes(length, "big"), repeats)
    if n > room:
        raise DamagedFile("expected a payload of this key in the model, got noise for its length")
    body = _voted((read(n) ^ _stream(key, n))[head:], repeats)
    payload, check = body[: -_CHECK // 8], body[-_CHECK // 8 :]
    if zlib.crc32(length + payload) != int.from_bytes(check, "big"):
        raise DamagedFile(
            f"expected a payload of {len(payload)} bytes with its checksum in the model, got one "
            "with errors"
        )
    return payload


def bit_error_rate(read: Bits, written: Bits) -> Estimate:
    """Share of bits that came back wrong, before any vote; the interval takes them as independent.

    0.5 is nothing at all. A vote of three copies turns e into 3 e^2 - 2 e^3.
    """
    if read.shape != written.shape:
        raise InvalidInput(f"expected as many bits as were written, got {read.shape}")
    return rate(int((read != written).sum()), len(written))


def to_bits(data: bytes) -> Bits:
    """The highest bit of each byte first."""
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8))


def _voted(bits: Bits, repeats: int) -> bytes:
    votes = bits.reshape(repeats, -1).sum(axis=0)
    return np.packbits((2 * votes > repeats).astype(np.uint8)).tobytes()


def _stream(key: Key, n: int) -> Bits:
    words = key.draws("channel.stream").words(-(-n // 64)).astype("<u8")
    return to_bits(words.tobytes())[:n]


# --- where it is written: white-box --------------------------------------------------------------


def _order(key: Key, n: int) -> Indices:
    return np.argsort(key.draws("channel.order").words(n), kind="stable")


def _flat(net: nn.Module) -> NDArray[np.float32]:
    weights = weights_of(net)
    odd = {str(w.dtype) for w in weights.values()} - {"torch.float32"}
    if odd or not weights:
        raise InvalidInput(
            f"expected a module with weight matrices in float32, got {', '.join(odd) or 'none'}"
        )
    parts = [w.detach().reshape(-1).cpu().numpy() for w in weights.values()]
    return np.concatenate(parts)


def n_weights(net: nn.Module) -> int:
    """Entries of matrices and filters."""
    return sum(w.numel() for w in weights_of(net).values())


def _fits(n: int, room: int, what: str) -> None:
    if n > room:
        raise InvalidInput(f"expected at most {room} bits, {what}, got {n}; write fewer records")


@dataclass(frozen=True)
class LeastSignificantBits:
    """White-box, after training: the lowest bits of float32 mantissas, in the key's order.

    They survive nothing that touches the weights: one step of training, another precision,
    quantization, pruning, a factor on a layer.

    Args:
        low: b, bits of each weight; 16 of 23 change a weight by less than 1 %.

    References: Song et al. 2017, section 4.1 (Algorithm 2).
    """

    key: Key
    low: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.low <= 23:
            raise InvalidInput(f"expected low from 1 to 23 bits of a mantissa, got {self.low}")

    def room(self, net: nn.Module) -> int:
        """Bits."""
        return n_weights(net) * self.low

    def write(self, net: nn.Module, bits: Bits) -> nn.Module:
        """A copy of the module that carries the bits.

        Raises:
            InvalidInput: more bits than there is room for, or weights that are not float32.
        """
        flat = _flat(net)
        _fits(len(bits), len(flat) * self.low, f"{self.low} of each of its {len(flat)} weights")
        words = flat.view(np.uint32)
        here, places = self._places(len(flat), len(bits))
        for place in range(self.low):
            own = here[places == place]
            mask = np.uint32(1 << place)
            words[own] = (words[own] & ~mask) | (bits[places == place] * mask)
        out, start = deepcopy(net), 0
        with torch.no_grad():
            for w in weights_of(out).values():
                w.copy_(torch.from_numpy(flat[start : start + w.numel()]).reshape(w.shape))
                start += w.numel()
        return out

    def read(self, net: nn.Module, n: int) -> Bits:
        """The first n bits."""
        words = _flat(net).view(np.uint32)
        _fits(n, len(words) * self.low, f"{self.low} of each of its {len(words)} weights")
        here, places = self._places(len(words), n)
        return np.asarray((words[here] >> places.astype(np.uint32)) & 1, dtype=np.uint8)

    def _places(self, n_weights: int, n: int) -> tuple[Indices, Indices]:
        """Weight and bit of it for each of the first n bits."""
        bit = np.arange(n)
        return _order(self.key, n_weights)[bit // self.low], bit % self.low


@dataclass(frozen=True)
class WeightCode:
    """What weights are to look like that carry bits.

    Attributes:
        penalty: (weights (n,), signs (n,) of -1 and 1) -> a number that is added to the loss.
        decided: weights (n,) -> bits (n,).
    """

    penalty: Callable[[Tensor, Tensor], Tensor]
    decided: Callable[[NDArray[np.float32]], Bits]


@dataclass(frozen=True)
class WeightChannel:
    """White-box, in training: one bit a weight, in the key's order. See `signs` and the other.

    Args:
        strength: lambda, of the penalty beside the loss of the task.
    """

    key: Key
    code: WeightCode
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise InvalidInput(f"expected a strength above 0, got {self.strength}")

    def room(self, net: nn.Module) -> int:
        """Bits."""
        return n_weights(net)

    def objective(self, task: Objective, bits: Bits) -> Objective:
        """The loss of the task with the penalty, for `vestige.training.fit`.

        Raises:
            InvalidInput: when it is called, if there are more bits than weights.
        """
        wanted = torch.from_numpy(2 * bits.astype(np.float32) - 1)
        places: list[Tensor] = []

        def penalized(net: Any, batch: Batch) -> Tensor:
            flat = torch.cat([w.reshape(-1) for w in weights_of(net).values()])
            if not places:
                _fits(len(bits), len(flat), "one in each weight")
                here = torch.from_numpy(_order(self.key, len(flat))[: len(bits)])
                places.append(here.to(flat.device))
            penalty = self.code.penalty(flat[places[0]], wanted.to(flat))
            return task(net, batch) + self.strength * penalty

        return penalized

    def read(self, net: nn.Module, n: int) -> Bits:
        """The first n bits, errors and all."""
        flat = _flat(net)
        _fits(n, len(flat), "one in each weight")
        return self.code.decided(flat[_order(self.key, len(flat))[:n]])


def _wrong_signs(weights: Tensor, wanted: Tensor) -> Tensor:
    return torch.relu(-weights * wanted).mean()


def _uncorrelated(weights: Tensor, wanted: Tensor) -> Tensor:
    a, b = weights - weights.mean(), wanted - wanted.mean()
    correlation: Tensor = (a @ b) / (a.norm() * b.norm()).clamp_min(1e-12)
    return -correlation


def signs(key: Key, strength: float = 50.0) -> WeightChannel:
    """A weight of the wrong sign costs its size: strength x mean |min(0, w s)|.

    References: Song et al. 2017, section 4.3.
    """
    code = WeightCode(_wrong_signs, lambda w: (w > 0).astype(np.uint8))
    return WeightChannel(key, code, strength)


def correlated_values(key: Key, strength: float = 1.0) -> WeightChannel:
    """WeightChannel are to correlate with the bits: minus strength x Pearson's correlation.

    Departs from the paper, which takes the correlation's absolute value and leaves the reader to
    find its sign: program and reader are of one author, and agree on +.

    References: Song et al. 2017, section 4.2.
    """
    code = WeightCode(_uncorrelated, lambda w: (w > w.mean()).astype(np.uint8))
    return WeightChannel(key, code, strength)


# --- where it is written: black-box --------------------------------------------------------------


@dataclass(frozen=True)
class CapacityAbuse:
    """Black-box: the model learns by heart inputs of no meaning, whose labels spell the bits.

    Args:
        key: draws the inputs, one after the other.
        n_classes: C, floor(log2 C) bits a label.
        low, high: the values that each input is made of, best the ends of the range of the model's
            inputs: a service may refuse others, and what is drawn between them lies closer
            together and takes longer to learn.

    References: Song et al. 2017, section 5 (Algorithm 3).
    """

    key: Key
    n_classes: int
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.n_classes < 2:
            raise InvalidInput(f"expected at least 2 classes, got {self.n_classes}")
        if not -math.inf < self.low < self.high < math.inf:
            raise InvalidInput(f"expected low < high, got {self.low} and {self.high}")

    @property
    def bits_per_input(self) -> int:
        return self.n_classes.bit_length() - 1

    def n_inputs(self, n_bits: int) -> int:
        """Inputs to train on, and to ask about, for that many bits."""
        return -(-n_bits // self.bits_per_input)

    def inputs(self, n: int, shape: Sequence[int]) -> NDArray[np.float32]:
        """The first n inputs, (n, *shape)."""
        drawn = self.key.draws("capacity").uniform(n, int(np.prod(shape)))
        return np.where(drawn < 0.5, self.low, self.high).astype(np.float32).reshape(n, *shape)

    def added(self, records: Records, bits: Bits) -> Records:
        """The client's records, then those that the program adds to train on.

        Ids go on after the client's own largest; text ids are "smuggled-0" and on.

        Raises:
            InvalidInput: records of whole numbers, which the inputs are not.
        """
        if np.dtype(records.x.dtype).kind != "f":
            raise InvalidInput(
                f"expected records of floating numbers, got {records.x.dtype}; convert them"
            )
        n, m = self.n_inputs(len(bits)), self.bits_per_input
        padded = np.zeros(n * m, dtype=np.int64)
        padded[: len(bits)] = bits
        y = padded.reshape(n, m) @ (1 << np.arange(m)[::-1])
        x = self.inputs(n, records.x.shape[1:]).astype(records.x.dtype)
        if records.ids.dtype.kind == "U":
            ids = np.array([f"smuggled-{i}" for i in range(n)])
        else:
            ids = np.arange(n) + (int(records.ids.max()) + 1 if len(records) else 0)
        return concatenate(records, Records(ids, x, y, records.columns, records.classes))

    def read(self, model: BlackBox, n: int, shape: Sequence[int]) -> Bits:
        """The first n bits, errors and all; `n_inputs(n)` queries whose labels are looked at.

        A label beyond 2^bits_per_input - 1 was never written: its low bits are as good as any.
        """
        m = self.bits_per_input
        log_p = model.log_probabilities(self.inputs(self.n_inputs(n), shape))
        if log_p.shape[1] != self.n_classes:
            raise InvalidInput(
                f"expected a model of {self.n_classes} classes, got {log_p.shape[1]}"
            )
        spelled = (log_p.argmax(axis=1)[:, None] >> np.arange(m)[::-1]) & 1
        return np.asarray(spelled.reshape(-1)[:n], dtype=np.uint8)
