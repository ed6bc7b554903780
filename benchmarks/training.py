"""A pool of reference models: `train_many` beside a plain loop, in one run.

    python benchmarks/training.py [--models K] [--epochs N]

The plain loop is what people write: a DataLoader, the default optimizer, one model after another.
Workloads: W1, an Adult-sized MLP (104-10-5, tanh, SGD, batch 100), and W5, a digits-sized MLP
(64-128-10, Adam, batch 32). Figures are CPU seconds of this process and their ratio.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import vestige as vs
from vestige.training import MLP

WORKLOADS: dict[str, tuple[int, int, vs.TorchRecipe]] = {
    "W1 104-10-5-2": (
        10_000,
        2,
        vs.TorchRecipe(MLP(104, 2, (10, 5), "tanh"), batch_size=100, lr=0.1),
    ),
    "W5 64-128-10": (
        1_796,
        10,
        vs.TorchRecipe(MLP(64, 10), batch_size=32, optimizer="adam", lr=1e-3),
    ),
}


def plain_loop(recipe: vs.TorchRecipe, records: vs.Records, member: np.ndarray) -> None:
    for row in member:
        net = recipe.build()
        own = records[row]
        data = TensorDataset(torch.from_numpy(own.x), torch.from_numpy(own.y))
        loader = DataLoader(data, batch_size=recipe.batch_size, shuffle=True)
        kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.Adam
        optimizer = kind(net.parameters(), lr=recipe.lr)
        for _ in range(recipe.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()


def cpu_seconds(work: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    started = time.process_time()
    made = work(*args, **options)
    return time.process_time() - started, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{asked.models} models, {asked.epochs} epochs, load {os.getloadavg()[0]:.1f}")
    print(f"{'':16}{'plain loop s':>13}{'train_many s':>13}{'ratio':>7}  path")
    for name, (n, classes, recipe) in WORKLOADS.items():
        rng = np.random.default_rng(0)
        shape = recipe.build.inputs  # type: ignore[attr-defined]
        x = rng.normal(size=(n, shape)).astype(np.float32)
        records = vs.Records.from_arrays(x, rng.integers(0, classes, n))
        member = vs.half_and_half(asked.models, n, seed=0)
        recipe = vs.TorchRecipe(**{**vars(recipe), "epochs": asked.epochs})
        ours, pool = cpu_seconds(vs.train_many, recipe, records, member, seed=0)
        plain, _ = cpu_seconds(plain_loop, recipe, records, member)
        path = pool.provenance["path"]
        print(f"{name:16}{plain:13.2f}{ours:13.2f}{plain / ours:7.1f}  {path}")


if __name__ == "__main__":
    main()
