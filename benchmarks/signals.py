"""What reading signals costs: speed, memory, growth, and going on where it was, in one run.

    python benchmarks/signals.py [--quick]

Asked are 64 models of W1, W5 and W2, against a plain loop over a DataLoader (batches of 128) that
takes log_softmax; both give log-probabilities. Kept are the loss, the margin and all answers of
networks of W5's size (10 classes), in a store. CPU seconds of one thread; slopes are those of
log CPU seconds on log size, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tables import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import WORKLOADS, Workload, cost

import vestige as vs
from vestige.signals import cross_entropy_loss, log_probabilities, true_class_margin
from vestige.training.asking import Stacks
from vestige.training.store import Store, StoredSignals

SIGNALS = (cross_entropy_loss, true_class_margin, log_probabilities)
ROUNDS = 3
ASKED = {"W1": (50_000, 40.0), "W5": (20_000, 7.0), "W2": (2_000, 1.1)}
"""Records, and the ratio that is demanded."""


def networks(workload: Workload, count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [workload.recipe.build().eval() for _ in range(count)]


def data_loader(nets: Sequence[nn.Module], x: torch.Tensor) -> None:
    """What people write."""
    with torch.no_grad():
        for net in nets:
            loader = DataLoader(TensorDataset(x), batch_size=128)
            np.concatenate([torch.log_softmax(net(batch), 1).numpy() for (batch,) in loader])


def asked(models: Sequence[vs.TorchModel], x: np.ndarray) -> None:
    for _ in Stacks().ask(models, x):
        pass


def cpu(work: Callable[..., Any], *args: Any) -> float:
    started = time.process_time()
    work(*args)
    return time.process_time() - started


def asking(name: str, count: int) -> tuple[Any, ...]:
    """A row: how much faster models are asked than by the loop."""
    n, demand = ASKED[name]
    workload = WORKLOADS[name]
    x, nets = workload.records(n).x, networks(workload, count)
    models = [vs.TorchModel(net, outputs="logits") for net in nets]
    tensor, few = torch.from_numpy(x), max(1, count // 4)
    asked(models[:1], x)
    loops, ours = [], []
    for _ in range(ROUNDS):
        # a quarter of the models: each costs the loop the same
        loops.append(cpu(data_loader, nets[:few], tensor) * count / few)
        ours.append(cpu(asked, models, x))
    ratio = float(np.median(loops) / np.median(ours))
    what = f"{count} models of {name} on {n:,} records, against the loop"
    return what, f"{ratio:.1f} x", f"at least {demand:g} x", float(np.median(ours))


def pool_of(count: int, n: int, folder: Path) -> vs.Pool[vs.TorchModel]:
    workload = WORKLOADS["W5"]
    models = [vs.TorchModel(net, outputs="logits") for net in networks(workload, count)]
    member = np.zeros((count, n), dtype=bool)
    cache = StoredSignals(Store(folder), "run")
    return vs.Pool(models, workload.records(n), member, cache, asker=Stacks())


def kept(count: int, n: int, folder: Path | None = None, stop: float = 1.0) -> float:
    """CPU seconds of reading all signals into a store, or a share of the models only."""

    def progress(label: str, done: int, total: int) -> None:
        if stop < 1 and done >= stop * total:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as own:
        pool = pool_of(count, n, folder or Path(own))
        pool.records.digest()
        started = time.process_time()
        try:
            read = pool.read(SIGNALS, pool.records, progress=progress)
            # of a signal that is mapped from disk, what is looked at comes into memory
            assert all(np.isfinite(signal[:, :10]).all() for signal in read)
        except KeyboardInterrupt:
            assert stop < 1
        return time.process_time() - started


def growth(what: str, sizes: Sequence[int], seconds: Callable[[int], float]) -> tuple[Any, ...]:
    """A row: the slope of log CPU seconds on log size."""
    # the least of the rounds: whatever else the machine does adds to a time
    least = np.min([[seconds(size) for size in sizes] for _ in range(ROUNDS)], axis=0)
    fit = stats.linregress(np.log(sizes), np.log(least))
    half = float(stats.t.ppf(0.975, len(sizes) - 2)) * fit.stderr
    said = f"slope {fit.slope:.3f} [{fit.slope - half:.3f}, {fit.slope + half:.3f}]"
    return f"{what}, {sizes[0]:,} to {sizes[-1]:,}", said, "linear", float(least[-1])


def going_on(count: int, n: int) -> list[tuple[Any, ...]]:
    """Rows: the rest of a pass that ended half-way, and a second call, against a whole pass."""
    whole = kept(count, n)
    with tempfile.TemporaryDirectory() as folder:
        half = kept(count, n, Path(folder), stop=0.5)
        rest = kept(count, n, Path(folder))
        again = kept(count, n, Path(folder))
    return [
        (
            "both parts of a pass that ended half-way, against a whole one",
            f"{half / whole:.2f} + {rest / whole:.2f}",
            "",
            half + rest,
        ),
        ("a second call, against the first", f"{again / whole:.3f}", "", again),
    ]


def rows(quick: bool = False) -> list[tuple[Any, ...]]:
    """(what, measured, demanded, CPU seconds of ours)."""
    torch.set_num_threads(1)
    count, n = (64, 6_000) if quick else (256, 60_000)
    # first, while there is no free memory that it could take unseen
    large = cost(lambda: kept(count, n))
    memory = (
        f"memory of reading {count} models x {n:,} records x 10 classes",
        f"{large.memory / 1024:.2f} GiB",
        "under 3 GiB",
        large.cpu,
    )
    found = [asking(name, 16 if quick else 64) for name in ASKED] + [memory]
    models = (16, 32, 64) if quick else (16, 32, 64, 96, 128, 192, 256)
    records = (
        (1_000, 2_000, 4_000) if quick else (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000)
    )
    found.append(growth(f"models ({n // 6:,} records)", models, lambda k: kept(k, n // 6)))
    found.append(growth(f"records ({count // 4} models)", records, lambda m: kept(count // 4, m)))
    return found + going_on(count // 4, n // 2)


def table(quick: bool = False) -> Table:
    return Table(
        "signals",
        "Reading signals",
        ("what", "measured", "demanded", "CPU s"),
        rows(quick),
        ("", "", "", ".2f"),
        (
            "Memory is what a process has beside torch: models, records, two signals of one number "
            "and what is asked in one go; all answers are mapped from disk. A pass has some 15 ms "
            "that do not depend on its size.",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    made = table(parser.parse_args().quick)
    made.show()
    made.save()


if __name__ == "__main__":
    main()
