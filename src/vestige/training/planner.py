"""Which way a pool of models is trained, and how many of them at a time.

The choice is a rule of the network's shapes, so that two runs are equal to the last digit. The
rule's numbers are the crossovers that `benchmarks/training.py` prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vestige.errors import InvalidInput
from vestige.records import Records
from vestige.training import travel
from vestige.training.fit import (
    Index,
    Objective,
    RecipeLoss,
    Resident,
    Streams,
    built,
    fit,
    one_thread,
)
from vestige.training.kernels import Plain
from vestige.training.recipe import Recipe, TorchRecipe
from vestige.training.stacked import DROPS, drops, fit_stack, plain, why_alone

__all__ = ["Choice", "PATHS", "Way", "choose", "memory_left"]

Way = Literal["explicit", "torch.func", "one by one"]
PATHS = ("rule", "timed", "explicit", "torch.func", "one by one")

WIDEST = {"cpu": 32, "cuda": 512}
"""Models of a stack: on a CPU more gain nothing; a GPU is full much later."""

WIDEST_OF_LARGE = 8
"""The same on a CPU for models above `LARGEST_STACKED_ON_CPU`: less is lost by a killed run."""

BUDGET = {"cpu": 2**30, "cuda": 16 * 2**30}
"""Bytes that a stack may take: fixed, so that stacks are the same on a machine with more memory."""

LARGEST_STACKED_ON_CPU = 100_000
"""Parameters above which a model's own products fill a CPU core, and `torch.func` gains nothing."""

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Choice:
    """How models are trained.

    Attributes:
        path: explicit kernels, `torch.func`, or one by one.
        why: a sentence for provenance.
        width: models of a stack.
        each: bytes of memory that a model of a stack takes, about.
        layers: of plain networks.
    """

    path: Way
    why: str
    width: int = 1
    each: int = 0
    layers: Plain | None = None


def choose(
    recipe: Recipe,
    records: Records,
    rows: Index,
    seed: int,
    *,
    objective: Objective | None = None,
    own_gradients: bool = False,
    asked: str = "rule",
) -> Choice:
    """The way to train models of a recipe.

    Args:
        rows: (n_models, n_records_each) rows of one or two of the models.
        asked: "rule", a path that must be taken, or "timed" to take the fastest on real batches.

    Raises:
        InvalidInput: a path was asked for that these models cannot take.
    """
    if asked not in PATHS:
        raise InvalidInput(f"expected path among {', '.join(PATHS)}, got {asked!r}")
    if not isinstance(recipe, TorchRecipe):
        return _granted(Choice("one by one", "only torch models are stacked"), asked)
    if own_gradients:
        return _granted(Choice("one by one", "it has gradients of its own"), asked)
    if asked == "one by one":
        return Choice("one by one", "it was asked for")
    objective = objective or RecipeLoss(recipe)
    explicit = _explicit(recipe, records, rows, seed, objective)
    if asked == "explicit" or (explicit.path == "explicit" and asked == "rule"):
        return _granted(explicit, asked)
    stacked = _functional(recipe, records, rows, seed, objective, anyhow=asked != "rule")
    if asked != "timed":
        return _granted(stacked, asked)
    ways = [c for c in (explicit, stacked) if c.path != "one by one"]
    return _fastest(recipe, records, rows, seed, objective, ways)


def _granted(choice: Choice, asked: str) -> Choice:
    if asked not in ("rule", "timed", choice.path):
        raise InvalidInput(
            f'expected models that can be trained by {asked}, but {choice.why}; ask for path="rule"'
        )
    return choice


def _explicit(
    recipe: TorchRecipe, records: Records, rows: Index, seed: int, objective: Objective
) -> Choice:
    """Explicit kernels where they do all that is asked, at any size: even a model alone gains."""
    net = built(recipe, seed)
    layers = plain(recipe, net) if isinstance(objective, RecipeLoss) else None
    if layers is None:
        return Choice("one by one", "it is no chain of linear layers trained on cross-entropy")
    if recipe.early_stopping is not None:
        return Choice("one by one", "early stopping ends each model at a step of its own")
    two = rows if len(rows) > 1 else np.concatenate([rows, rows])
    why = why_alone(recipe, records, two, objective, seed, layers)
    if why:
        return Choice("one by one", why)
    each = _bytes_of_plain(recipe, net, layers, records)
    said = "linear layers and activations; a probe of two models gave what training alone gives"
    return Choice("explicit", said, _width(recipe, net, each), each, layers)


def _functional(
    recipe: TorchRecipe,
    records: Records,
    rows: Index,
    seed: int,
    objective: Objective,
    anyhow: bool,
) -> Choice:
    net = built(recipe, seed)
    if len(rows) < 2:
        return Choice("one by one", "there are no two models with equally many records")
    if recipe.precision != "float32":
        return Choice("one by one", f"{recipe.precision} is for models trained one at a time")
    if not anyhow and not recipe.device.startswith("cuda"):
        if any(isinstance(m, _CONVOLUTIONS) for m in net.modules()):
            return Choice("one by one", "convolutions on a CPU are faster one model at a time")
        size = sum(p.numel() for p in net.parameters())
        if size > LARGEST_STACKED_ON_CPU:
            return Choice("one by one", f"{size:,} parameters fill a CPU core one model at a time")
    why = why_alone(recipe, records, rows, objective, seed)
    if why:
        return Choice("one by one", why)
    said = "a probe of two models gave what training alone gives"
    if drops(recipe, records, seed):
        said = f"{said}, but {DROPS}"
    each = _bytes_of_any(recipe, net, records, rows, objective)
    return Choice("torch.func", said, _width(recipe, net, each), each)


def _fastest(
    recipe: TorchRecipe,
    records: Records,
    rows: Index,
    seed: int,
    objective: Objective,
    ways: Sequence[Choice],
) -> Choice:
    """The way that trained fastest a model, over a few steps of real batches."""
    short = replace(recipe, epochs=1, steps=8)

    def alone() -> None:
        fit(short, records[rows[0]], seed=seed, objective=objective)

    def stacked(way: Choice) -> Callable[[], None]:
        many = np.concatenate([rows] * -(-way.width // len(rows)))[: way.width]
        return lambda: _stack_once(short, records, many, seed, objective, way.layers)

    times = {"one by one": _seconds(alone)}
    times |= {way.path: _seconds(stacked(way)) / way.width for way in ways}
    best = min(times, key=lambda path: times[path])
    said = ", ".join(f"{path} {seconds * 1e3:.3g} ms" for path, seconds in times.items())
    chosen = next((way for way in ways if way.path == best), Choice("one by one", ""))
    return replace(chosen, why=f"the fastest of those timed on real batches ({said} a model)")


def _stack_once(
    recipe: TorchRecipe,
    records: Records,
    rows: Index,
    seed: int,
    objective: Objective,
    layers: Plain | None,
) -> None:
    streams = [Streams.of(seed + k) for k in range(len(rows))]
    nets = [built(recipe, s.initial).to(recipe.device) for s in streams]
    data = Resident(records, nets[0], recipe.device)
    with one_thread():
        fit_stack(recipe, data, nets, rows, streams, objective, layers)


def _seconds(work: Callable[[], None]) -> float:
    """The shorter of two runs: the first one pays for what is done once."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


# --- memory --------------------------------------------------------------------------------------


def _width(recipe: TorchRecipe, net: nn.Module, each: int) -> int:
    kind = torch.device(recipe.device).type
    large = sum(p.numel() for p in net.parameters()) > LARGEST_STACKED_ON_CPU
    widest = WIDEST_OF_LARGE if large and kind == "cpu" else WIDEST[kind]
    return max(1, min(widest, BUDGET[kind] // max(1, each)))


def _bytes_of_plain(recipe: TorchRecipe, net: nn.Module, layers: Plain, records: Records) -> int:
    """A model's share of a stack on explicit kernels: weights, gradients, moments, activations."""
    own = dict(net.named_parameters())
    units = sum(own[layer.weight].shape[0] for layer in layers)
    inputs = int(np.prod(records.x.shape[1:]))
    size = sum(p.numel() for p in net.parameters())
    bytes_each = next(net.parameters()).element_size()
    return bytes_each * (4 * size + recipe.batch_size * (2 * inputs + 3 * units))


def _bytes_of_any(
    recipe: TorchRecipe, net: nn.Module, records: Records, rows: Index, objective: Objective
) -> int:
    """A model's share of a stack: weights, gradients, moments, and what a backward pass keeps.

    What it keeps is counted on one batch, four times: for what is made from it on the way back,
    and by operations that keep what they could make again (attention).
    """
    from vestige.training.fit import Batch, mean_gradients, seeded

    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    batch = rows[0][: recipe.batch_size]
    net = net.train().to(recipe.device)
    x, y = Resident(records[batch], net, recipe.device).gather(np.arange(len(batch)))
    with seeded(0), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        mean_gradients(net, Batch(x, y, 0), objective)
    weights = int(sum(p.numel() * p.element_size() for p in net.parameters()))
    # weights are kept for the backward pass too
    return 5 * weights + 4 * max(0, kept - weights)


def memory_left(device: str) -> int:
    """Bytes that can still be taken: of the GPU, or of the machine or this process's groups.

    In a worker it is an equal share of them.
    """
    if device.startswith("cuda"):
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = int(torch.cuda.mem_get_info(torch.device(device))[0])
        return free // travel.at_once + own
    left = [sys.maxsize]
    with suppress(OSError):  # another system
        lines = (PROC / "meminfo").read_text().splitlines()
        left += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        left += _left_in_groups()
    return max(0, min(left)) // travel.at_once


def _left_in_groups() -> Iterator[int]:
    """Bytes left in this process's control groups (v1 and v2), and in those around them."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        # in a container its own group is the root, whatever it is called outside
        for group in (own, *own.parents[: len(own.parts) - len(root.parts)]):
            # no such group, or one without a limit ("max")
            with suppress(OSError, ValueError):
                yield _left_in_group(group, *names)


def _left_in_group(group: Path, limit: str, used: str, cache: str) -> int:
    most, taken = (int((group / name).read_text()) for name in (limit, used))
    lines = (group / "memory.stat").read_text().splitlines()
    # copies of files count as taken, and are given back where memory is asked for
    return most - taken + sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
