"""A pool of reference models: every way to train it beside a plain loop, in one run.

    python benchmarks/training.py [W1 W5 ...] [--models 1 8 32 128] [--seconds 8]

The plain loop is what people write: a DataLoader, the default optimizer, one model after another.
Each figure is the whole of `train_many`, its planning and probes included, on one thread, in a
process of its own; ratios are CPU seconds a model and step against those of a plain loop right
before, medians of three for small networks, or right before and right after, for large ones. So is
the ceiling: a processor's speed changes by the minute.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from tables import Table
from workloads import WORKLOADS, Cost, Workload, ceilings, cost, flops, load, plain_loop

import vestige as vs

PATHS = ("one by one", "torch.func", "explicit")
LARGE = ("W2", "W3", "W4")


def trained(recipe: vs.TorchRecipe, records: vs.Records, member: Any, path: str) -> str:
    pool = vs.train_many(recipe, records, member, seed=0, path=path, engine=vs.Local(1))
    return str(pool.provenance["path"])


def warm() -> None:
    """What a process pays once, whatever it trains: imports."""
    records = WORKLOADS["W5"].records(64)
    for path in PATHS:
        recipe = replace(WORKLOADS["W5"].recipe, steps=2)
        trained(recipe, records, vs.half_and_half(2, 64, seed=0), path)


def rows_of(workload: Workload, models: list[int], seconds: float) -> list[Any]:
    """The plain loop, then each way at each number of models.

    Args:
        seconds: that the plain loop should take for two models.
    """
    records, step_flops = workload.records(), flops(workload)
    few = replace(workload.recipe, steps=20)
    pair = vs.half_and_half(2, len(records), seed=0)
    short = cost(partial(plain_loop, few, records, pair))
    steps = int(max(20, min(20 * 250, 20 * seconds / short.cpu)))
    recipe = replace(workload.recipe, steps=steps)
    best = trained_by_rule(recipe, records)
    loop, found = partial(plain_loop, recipe, records, pair), []
    loops, tops = [cost(loop)], [top()]
    for k in models:
        member = vs.half_and_half(max(2, k), len(records), seed=0)[:k]
        for path in PATHS:
            if not worth(workload, path, k):
                continue
            work, pairs = partial(trained, recipe, records, member, path), []
            # each between loops of its own: a busy minute harms both
            for _ in range(1 if workload.name in LARGE else 3):
                made = cost(work)
                loops.append(cost(loop))
                tops.append(top())
                pairs.append((made, (loops[-2].cpu + loops[-1].cpu) / 4))
            ratio = median(plain / (made.cpu / k) for made, plain in pairs)
            name = f"{path} (the rule)" if path == best else path
            shown = figures([made for made, _ in pairs], k, steps)
            share = step_flops / shown[1] / 1e3 / fmean(tops[-len(pairs) - 1 :])
            found.append([workload.name, name, k, *shown[:3], ratio, share, shown[3]])
    shown = figures(loops, 2, steps)
    share = step_flops / shown[1] / 1e3 / fmean(tops)
    return [[workload.name, "plain loop", 2, *shown[:3], 1.0, share, shown[3]], *found]


def top() -> float:
    """GFLOP a CPU second of one large product, by the faster library."""
    return max(ceilings().values())


def figures(costs: list[Cost], k: int, steps: int) -> list[float]:
    """Steps, CPU and wall microseconds a model and step, and MiB: medians."""
    cpu, wall = (median(getattr(c, name) for c in costs) for name in ("cpu", "wall"))
    return [steps, cpu / k / steps * 1e6, wall / k / steps * 1e6, costs[0].memory]


def trained_by_rule(recipe: vs.TorchRecipe, records: vs.Records) -> str:
    short = replace(recipe, steps=1)
    made = cost(partial(trained, short, records, vs.half_and_half(2, len(records), 0), "rule"))
    return str(made.result)


def worth(workload: Workload, path: str, k: int) -> bool:
    """Whether a row says something: not minutes of what the row above has said."""
    if path == "explicit" and workload.name in ("W3", "W4"):
        return False
    if (path == "torch.func" and k < 2) or (path == "one by one" and k > 8):
        return False
    if workload.name in LARGE and path != "explicit" and k > 8:
        return False
    return not (workload.name in LARGE and k > 32)


COLUMNS = ["", "way", "models", "steps", "CPU us", "wall us", "ratio", "of the ceiling", "MiB"]
FORMATS = ["", "", "d", "d", ".0f", ".0f", ".1f", ".0%", ".0f"]


def table(name: str, models: list[int], seconds: float) -> Table:
    # of a large model what is done once must not count much
    longer = 3 * seconds if name == "W2" else seconds
    said = ", ".join(f"{rate:.0f} by {library}" for library, rate in ceilings().items())
    return Table(
        f"training-{name}",
        f"Training a pool of {name}: CPU time a model and step (load {load():.1f})",
        COLUMNS,
        rows_of(WORKLOADS[name], models, longer),
        FORMATS,
        [
            f"The ceiling is one large float32 product, at first {said} GFLOP a CPU second; shares "
            "are of it as it was around each row."
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--models", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=8.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warm()
    for name in asked.names:
        made = table(name, asked.models, asked.seconds)
        made.show()
        made.save()


if __name__ == "__main__":
    main()
