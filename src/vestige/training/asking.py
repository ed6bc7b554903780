"""Many models asked about the same records, none of them trained by asking.

A plain network (linear layers and elementwise activations, on a CPU) is asked on its weights: the
products of many small networks are one product a layer, and their answers are normalized class
by class instead of row by row. Other models are asked one by one, as they are.

Which of the two is a rule of the network's shapes, and a stack has one width, whoever is in it:
what a model answers depends neither on who is asked beside it nor on how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vestige.fingerprint import source_digest
from vestige.models import (
    BlackBox,
    TorchModel,
    default_logits,
    evaluating,
    inputs_tensor,
    look_like_probabilities,
    rounding_of,
)
from vestige.reading import STEP
from vestige.training import kernels
from vestige.training.fit import one_thread
from vestige.training.kernels import (
    ACTIVATIONS,
    Plain,
    is_large,
    plain_layers,
    product,
    products,
)

__all__ = ["Stacks"]

Floats = NDArray[np.float64]

WIDTHS = {4_096: 32, 100_000: 8}
"""Networks of a stack, by the weights that one has at most; a larger one is a stack by itself.

Tiny ones gain up to 32, since each batch of inputs is fetched once for all of them.
"""

BLOCK = 32
"""Small networks that make a block: what is done once for all of them is then little."""

IN_CACHE = 2**18
"""Numbers of a stack's widest layer that a core keeps at hand: 1 MiB in float32."""

AT_HAND = 2 * 2**20
"""Bytes of a stack's answers that are made, read off, and written over."""


@dataclass(frozen=True)
class Stacks:
    """Plain networks are asked in stacks, other models as they are.

    Answers are `log_probabilities` to the last digit where a model is not a plain network; else
    they differ by rounding: relative to the logits at most 1e-6 in float32, 1e-12 in float64.
    """

    def width(self, models: Sequence[BlackBox]) -> tuple[int, int]:
        first = models[0]
        if not _is_candidate(first) or plain_layers(first.net) is None:
            return 1, 1
        width = _width(first)
        return (BLOCK if width > 1 else 1), width

    def ask(self, models: Sequence[BlackBox], x: Any) -> Iterator[tuple[int, slice, Floats]]:
        handles = list(models)
        left = set(range(len(handles)))
        for alike in _alike(handles):
            first = next(iter(alike.values()))
            layers, width = _plain(first, x), _width(first)
            if layers is None:
                continue
            for places in _cut(alike, width):
                stack = _Stack(layers, [alike[k] for k in places], width)
                for k, rows, table in stack.answers(x):
                    yield places[k], rows, table
                left -= {places[k] for k in np.flatnonzero(stack.sound)}
        for k in sorted(left):
            yield k, slice(0, len(x)), handles[k].log_probabilities(x)

    def key(self) -> str:
        return source_digest(Path(__file__), Path(kernels.__file__))


def _alike(handles: Sequence[BlackBox]) -> list[dict[int, TorchModel]]:
    """Candidates of each architecture, by their places."""
    found: dict[Any, dict[int, TorchModel]] = {}
    for k, handle in enumerate(handles):
        if _is_candidate(handle):
            kinds = tuple(type(m) for m in handle.net.modules())
            own = tuple((n, p.shape, p.dtype) for n, p in handle.net.named_parameters())
            found.setdefault((kinds, own), {})[k] = handle
    return list(found.values())


def _cut(places: Iterable[int], width: int) -> Iterator[list[int]]:
    left = iter(places)
    while part := list(islice(left, width)):
        yield part


def _is_candidate(model: BlackBox) -> TypeGuard[TorchModel]:
    """Whether a handle may be asked on its weights: it takes its network's logits as they are."""
    if type(model) is not TorchModel or model.logits is not default_logits:
        return False
    kinds = {(p.dtype, p.device.type) for p in model.net.parameters()}
    plain = kinds in ({(torch.float32, "cpu")}, {(torch.float64, "cpu")})
    return plain and model.outputs in (None, "logits")


def _width(model: TorchModel) -> int:
    """How many networks of this size make a stack."""
    size = sum(p.numel() for p in model.net.parameters())
    return next((width for most, width in WIDTHS.items() if size <= most), 1)


def _plain(model: TorchModel, x: Any) -> Plain | None:
    """The layers of a network that is plain and takes these inputs."""
    layers = plain_layers(model.net)
    if layers is None or not len(x):
        return None
    wanted = model.net.get_parameter(layers[0].weight).shape[1]
    flat = int(np.prod(x.shape[1:]))
    return layers if flat == wanted else None


class _Stack:
    """The weights of plain networks of one architecture, filled up to a fixed width."""

    def __init__(self, layers: Plain, models: Sequence[TorchModel], width: int) -> None:
        self._models = models
        self.sound = np.zeros(len(models), dtype=bool)
        own = [dict(model.net.named_parameters()) for model in models]
        own += own[-1:] * (width - len(own))

        def stacked(name: str) -> Tensor:
            first = own[0][name].detach()
            return torch.stack([p[name].detach() for p in own]) if width > 1 else first[None]

        self._weights = [stacked(layer.weight) for layer in layers]
        self._biases = [
            stacked(layer.bias).unsqueeze(2)
            if layer.bias
            else weight.new_zeros(*weight.shape[:2], 1)
            for layer, weight in zip(layers, self._weights, strict=True)
        ]
        self._activations = [layer.activation for layer in layers]
        widest = width * max(weight.shape[1] for weight in self._weights)
        fewest = 128 if width > 1 else STEP // 2  # a large network's weights are fetched each time
        # a power of 2, so that it divides the parts that records come in
        self._batch = 2 ** int(np.log2(min(max(IN_CACHE // widest, fewest), STEP)))

    def answers(self, x: Any) -> Iterator[tuple[int, slice, Floats]]:
        """Log-probabilities (rows, classes) of each model on some rows at a time.

        They end early for a model that is to be asked by itself; see `sound`.
        """
        width, classes = self._weights[-1].shape[:2]
        classes = max(2, classes)
        size = max(1, AT_HAND // (8 * width * classes * self._batch)) * self._batch
        # class by class, as the logits are; (rows, classes) is a view of it
        made = np.empty((width, classes, min(size, len(x))))
        for first in range(0, len(x), size):
            last = min(first + size, len(x))
            self._answer(x[first:last], made, confirm=first == 0)
            for k in np.flatnonzero(self.sound):
                yield int(k), slice(first, last), made[k, :, : last - first].T
        for model, whole in zip(self._models, self.sound, strict=True):
            model._n_queries += len(x) if whole else 0

    def _answer(self, x: Any, out: Floats, confirm: bool) -> None:
        # of a model that has diverged: it is asked by itself, and says so
        quiet = np.errstate(invalid="ignore", over="ignore")
        with one_thread(), torch.inference_mode(), quiet:
            inputs = self._inputs(x)
            for start in range(0, len(inputs), self._batch):
                batch = inputs[start : start + self._batch]
                logits = self._logits(batch)
                if confirm and not start:
                    self.sound = self._confirmed(x, logits)
                _normalize(logits, out[:, :, start : start + len(batch)])
            whole = out[: len(self.sound), :, : len(inputs)].sum(axis=(1, 2))
            self.sound &= np.isfinite(whole)

    def _inputs(self, x: Any) -> Tensor:
        return inputs_tensor(x, self._models[0].net, torch.device("cpu")).flatten(1)

    def _logits(self, inputs: Tensor) -> NDArray[Any]:
        """(width, classes, n): of the layouts tried, all steps are fast in this one."""
        weight = self._weights[0]
        size = weight.numel() * len(inputs)
        # all models have the same inputs: one product for them all
        first = product if is_large(weight, size) else torch.mm
        h = first(weight.flatten(0, 1), inputs.t()).view(*weight.shape[:2], -1)
        h = _activated(self._activations[0], h.add_(self._biases[0]))
        for weight, bias, name in zip(
            self._weights[1:], self._biases[1:], self._activations[1:], strict=True
        ):
            out = h.new_empty(*weight.shape[:2], h.shape[2])
            h = _activated(name, products(weight, h, out).add_(bias))
        return h.numpy()

    def _confirmed(self, x: Any, logits: NDArray[Any]) -> NDArray[np.bool_]:
        """Which models answer a few records as their modules do, with what must be logits.

        What a module does besides its layers shows here. What looks like probabilities is left to
        the model, which judges it over all its answers.
        """
        few = inputs_tensor(x[:8], self._models[0].net, torch.device("cpu"))
        exact = 1e-9 if logits.dtype == np.float64 else 1e-4
        out = np.zeros(len(self._models), dtype=bool)
        for k, model in enumerate(self._models):
            with evaluating(model.net):
                own = model.net(few)
            here = torch.from_numpy(logits[k]).t()
            if not isinstance(own, Tensor) or own.numel() != here[: len(few)].numel():
                continue
            gap = (own.reshape(len(few), -1) - here[: len(few)]).abs().max()
            out[k] = bool(gap <= exact * (1 + here.abs().max()))
            if model.outputs is None:
                raw = here.double().squeeze(1)
                out[k] &= not look_like_probabilities(raw, max(1e-4, rounding_of(here)))
        return out


def _activated(name: str, h: Tensor) -> Tensor:
    if name == "tanh":
        # a tenth of torch's time in float32, within 6e-8
        np.tanh(h.numpy(), out=h.numpy())
        return h
    made: Tensor = ACTIVATIONS[name].apply(h) if name else h
    return made


def _normalize(logits: NDArray[Any], out: Floats) -> None:
    """What `TorchModel` makes of logits (width, classes, n): log-probabilities of that shape.

    log p_c = gap_c - log1p(sum of exp(gap) but the largest's), gap_c = logit_c - the largest: not
    log_softmax, which of a confident answer keeps no digits below 1e-16.
    """
    if logits.shape[1] == 1:  # one logit is that of class 1, beside 0
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    largest = logits.max(axis=1, keepdims=True)
    is_largest = logits == largest
    gap = logits.astype(np.float64)
    gap -= largest
    rest = np.exp(gap)
    np.copyto(rest, 0.0, where=is_largest)
    total = rest.sum(axis=1, keepdims=True)
    if np.count_nonzero(is_largest) != total.size:  # of equal ones only one is left out
        total += is_largest.sum(axis=1, keepdims=True) - 1
    np.subtract(gap, np.log1p(total, out=total), out=out)
