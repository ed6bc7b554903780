"""The networks and sizes that every benchmark speaks of, and how they are timed.

W1: an Adult-sized MLP, 104-10-5-2, tanh, SGD, batch 100. W2: a Purchase100-sized MLP,
600-1024-512-256-128-100, Adam, batch 100. W3: an MNIST CNN, two 5x5 convolutions (32, 64) and 1,024
units, Adam, batch 50. W4: WRN-16-1 on 32x32x3, SGD with momentum, batch 64. W5: a digits-sized MLP,
64-128-10, Adam, batch 32. Inputs and labels are random: speed does not depend on them.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import vestige as vs
from vestige.training import CNN, MLP, kernels


class _Block(nn.Module):
    def __init__(self, given: int, filters: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(given), nn.BatchNorm2d(filters)
        self.conv1 = nn.Conv2d(given, filters, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        same = given == filters and stride == 1
        self.shortcut = None if same else nn.Conv2d(given, filters, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(inner)
        return kept + self.conv2(functional.relu(self.norm2(self.conv1(inner))))


class WRN(nn.Module):
    """A wide residual network, 16 layers, width 1 (Zagoruyko & Komodakis 2016)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        blocks = [
            _Block(a if first else b, b, stride if first else 1)
            for a, b, stride in widths
            for first in (True, False)
        ]
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *blocks)
        self.norm, self.head = nn.BatchNorm2d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.body(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


@dataclass(frozen=True)
class Workload:
    """A network, its records, and the steps that a benchmark takes of it."""

    name: str
    shape: tuple[int, ...]
    classes: int
    n_records: int
    recipe: vs.TorchRecipe

    def records(self, n: int | None = None) -> vs.Records:
        rng = np.random.default_rng(0)
        n = n or self.n_records
        x = rng.normal(size=(n, *self.shape)).astype(np.float32)
        return vs.Records.from_arrays(x, rng.integers(0, self.classes, n))


def _recipe(build: Any, batch: int, optimizer: str, lr: float, **more: Any) -> vs.TorchRecipe:
    return vs.TorchRecipe(build, batch_size=batch, optimizer=optimizer, lr=lr, **more)


WORKLOADS = {
    "W1": Workload("W1", (104,), 2, 10_000, _recipe(MLP(104, 2, (10, 5), "tanh"), 100, "sgd", 0.1)),
    "W2": Workload(
        "W2", (600,), 100, 20_000, _recipe(MLP(600, 100, (1024, 512, 256, 128)), 100, "adam", 1e-3)
    ),
    "W3": Workload(
        "W3", (1, 28, 28), 10, 10_000, _recipe(CNN(1, 28, 10, (32, 64), 1024), 50, "adam", 1e-3)
    ),
    "W4": Workload("W4", (3, 32, 32), 10, 5_000, _recipe(WRN, 64, "sgd", 0.1, momentum=0.9)),
    "W5": Workload("W5", (64,), 10, 1_796, _recipe(MLP(64, 10), 32, "adam", 1e-3)),
}


def plain_loop(recipe: vs.TorchRecipe, records: vs.Records, member: Any) -> None:
    """What people write: a DataLoader, the default optimizer, one model after another."""
    for row in member:
        net = recipe.build().to(recipe.device)
        own = records[row]
        data = TensorDataset(torch.from_numpy(own.x), torch.from_numpy(own.y))
        loader = DataLoader(data, batch_size=recipe.batch_size, shuffle=True)
        if recipe.optimizer == "sgd":
            optimizer: Any = torch.optim.SGD(
                net.parameters(), lr=recipe.lr, momentum=recipe.momentum
            )
        else:
            optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
        left = recipe.steps or recipe.epochs * len(loader)
        while left:
            for x, y in loader:
                x, y = x.to(recipe.device), y.to(recipe.device)
                optimizer.zero_grad()
                functional.cross_entropy(net(x), y).backward()
                optimizer.step()
                left -= 1
                if not left:
                    break


def flops(workload: Workload) -> int:
    """Of one training step of one model: products and convolutions, forward and backward."""
    net, records = workload.recipe.build(), workload.records(workload.recipe.batch_size)
    with FlopCounterMode(display=False) as counter:
        loss = functional.cross_entropy(
            net(torch.from_numpy(records.x)), torch.from_numpy(records.y)
        )
        loss.backward()
    return counter.get_total_flops()


def ceilings(size: int = 1536) -> dict[str, float]:
    """GFLOP per CPU second of one large float32 product, by the library that computes it."""
    a = torch.randn(size, size)
    ways: dict[str, Callable[[], Any]] = {"torch.mm": lambda: a @ a}
    if kernels.onednn is not None:
        ways["oneDNN"] = lambda: kernels.onednn(a, a, None, "none", [], "")
    found = dict.fromkeys(ways, 0.0)
    for name in [*ways] * 5:
        started = time.process_time()
        for _ in range(4):
            ways[name]()
        rate = 4 * 2 * size**3 / (time.process_time() - started) / 1e9
        found[name] = max(found[name], rate)
    return found


@dataclass(frozen=True)
class Cost:
    """CPU seconds, wall seconds, and the most memory beyond what was there before, in MiB."""

    cpu: float
    wall: float
    memory: float
    result: Any = None


def cost(work: Callable[[], Any]) -> Cost:
    """The cost of some work in a process of its own, whose imports are paid for."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_measured, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        found: Cost = ours.recv()
    finally:
        process.join()
    return found


def _measured(work: Callable[[], Any], end: Any) -> None:
    before = _peak()
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    end.send(Cost(time.process_time() - cpu, time.perf_counter() - wall, _peak() - before, result))
    end.close()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """What it ran on, without names: processor, cores, memory, versions."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, StopIteration, ValueError):
        memory = float("nan")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {gpu}; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def load() -> float:
    return os.getloadavg()[0]
