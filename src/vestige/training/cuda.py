"""Whole training steps as CUDA graphs.

A small model's step is hundreds of kernels that each take less time than their launch; a graph
launches them as one. What a graph reads and writes stays where it is: its inputs are copied in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "capture", "is_there"]

WARM_UP = 3
"""Steps before capture, in which libraries allocate what a graph must not."""


def is_there() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a graph; calling it runs the graph on what its tensors hold by then."""
    graph = torch.cuda.CUDAGraph()
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


class Captured:
    """A step of training that is captured for the shape of its first input, and taken as it is
    for others, as the last batch of an epoch.

    Args:
        step: from an index of records to changed weights; it may not depend on anything that
            changes between calls but its input and tensors that are changed in place.
        state: the tensors that a step changes, by now: an optimizer makes its own at first.
        device: where the index is copied to.
        capture: what makes a graph; another one in tests.
    """

    def __init__(
        self,
        step: Callable[[Tensor], None],
        state: Callable[[], Iterator[Tensor]],
        device: torch.device,
        capture: Callable[[Callable[[], None]], Callable[[], None]] = capture,
    ) -> None:
        self._step, self._state, self._device, self._capture = step, state, device, capture
        self._held: Tensor | None = None
        self._replay: Callable[[], None] = lambda: None

    def __call__(self, index: Tensor) -> None:
        with _on(self._device):
            if self._held is None:
                self._held, self._replay = self._captured(index)
            if index.shape == self._held.shape:
                self._held.copy_(index)
                self._replay()
            else:
                with _uncaptured():
                    self._step(index.to(self._device))

    def _captured(self, index: Tensor) -> tuple[Tensor, Callable[[], None]]:
        held = index.to(self._device, copy=True)
        before = {id(t): (t, t.detach().clone()) for t in self._state()}
        with _aside(self._device), _uncaptured():
            for _ in range(WARM_UP):
                self._step(held)
        replay = self._capture(lambda: self._step(held))
        with torch.no_grad():
            for tensor in self._state():
                # what an optimizer made while warming up (moments, counts) begins at zero
                _, value = before.get(id(tensor), (tensor, torch.zeros_like(tensor)))
                tensor.copy_(value)
        return held, replay


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Graphs and streams are made on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _uncaptured() -> Iterator[None]:
    """Optimizers that can be captured warn of steps that are not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Cc]apturable.*")
        yield


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """A stream beside the current one, which graphs want for the steps before their capture."""
    if device.type != "cuda":
        yield
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
