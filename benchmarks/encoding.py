"""Membership encoding: what k encoding steps before each step of the task cost.

    python benchmarks/encoding.py [--rounds 5] [--steps 1500]

One thread; training without encoding, in the same loop, is measured before and after each encoding,
and the ratio is to the mean of the two. The last column is what may be asked: 1.15 (1 + k).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tables import Table
from workloads import load

import vestige as vs
from vestige.training import CNN, MLP
from vestige.training.fit import fit
from vestige.watermarks import Encoder, Encoding, Key

NETWORKS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "MLP 784-512-128-10": (MLP(784, 10, (512, 128)), (784,), "3"),
    "CNN 28x28, 16 and 32 filters": (CNN(1, 28, 10, (16, 32), 128), (1, 28, 28), "7"),
}


def cpu(work: Callable[..., object], *given: Any) -> float:
    started = time.process_time()
    work(*given, seed=0)
    return time.process_time() - started


def rows(rounds: int, steps: int) -> list[list[Any]]:
    found = []
    rng = np.random.default_rng(0)
    for name, (build, shape, layer) in NETWORKS.items():
        taken = steps if len(shape) == 1 else max(20, steps // 8)
        recipe = vs.TorchRecipe(build, steps=taken, batch_size=100, lr=0.02, momentum=0.9)
        x = rng.normal(size=(10_000, *shape)).astype(np.float32)
        records = vs.Records.from_arrays(x, rng.integers(0, 10, len(x)))
        encoders = {
            k: Encoder(key=Key.of(1), encoding=Encoding(layer=layer), steps=k) for k in (1, 3)
        }
        fit(replace(recipe, steps=20), records, seed=0)  # imports and caches
        plain = [cpu(fit, recipe, records)]
        ratios: dict[int, list[float]] = {k: [] for k in encoders}
        for _ in range(rounds):
            for k, encoder in encoders.items():
                own = cpu(encoder.fit, recipe, records)
                plain.append(cpu(fit, recipe, records))
                ratios[k].append(own / statistics.mean(plain[-2:]))
        for k, seen in ratios.items():
            found.append(
                [name, k, 1e3 * statistics.median(plain) / taken, statistics.median(seen)]
                + [min(seen), max(seen), 1.15 * (1 + k)]
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    before = load()
    found = rows(args.rounds, args.steps)
    table = Table(
        "encoding",
        f"Membership encoding, x training without it; {args.rounds} rounds (load {before:.1f})",
        ["network", "k", "plain ms a step", "x plain", "least", "most", "asked at most"],
        found,
        ["", "", ".2f", ".2f", ".2f", ".2f", ".2f"],
        ["Medians of CPU time on one thread; the key's choice of records is in it."],
    )
    table.show()
    table.save()


if __name__ == "__main__":
    main()
