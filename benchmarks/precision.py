"""bfloat16 training: what it saves, and what it does to an attack.

    python benchmarks/precision.py [--references 16]

A CNN on 1,000 + 1,000 records of CIFAR-10 (fewer of digits, where that is not there). Targets and
reference models are trained in float32 or bfloat16 each, and LiRA's AUC is measured in all pairs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tables import Table
from workloads import load

import vestige as vs
from vestige.attacks import LiRA
from vestige.errors import VestigeError
from vestige.training import CNN


def data() -> tuple[str, vs.Records, vs.TorchRecipe]:
    """Records as pictures, and a recipe that overfits them."""
    try:
        records, name = vs.datasets.load("cifar10"), "CIFAR-10"
    except VestigeError:
        records, name = vs.datasets.load("digits"), "digits"
    records = records[np.random.default_rng(0).permutation(len(records))[:2000]]
    x = np.asarray(records.x, np.float32)
    x = x.reshape(len(x), 1, 8, 8) if x.ndim == 2 else x
    x = x / x.max()
    records = vs.Records(records.ids, x, records.y)
    build = CNN(x.shape[1], x.shape[2], 10, (16, 32), 64)
    return name, records, vs.TorchRecipe(build, epochs=25, batch_size=50, lr=0.05, momentum=0.9)


def rows(references: int) -> tuple[str, list[Any]]:
    name, records, recipe = data()
    half = min(1000, int((~vs.records.duplicates(records)).sum()) // 2)
    split = vs.split(records, n_members=half, n_nonmembers=half, seed=0)
    member = vs.half_and_half(references, len(records), seed=0)
    pools, targets, seconds = {}, {}, {}
    for precision in ("float32", "bfloat16"):
        own = replace(recipe, precision=precision)
        started = time.process_time()
        pools[precision] = vs.train_many(own, records, member, seed=0, engine=vs.training.Local(1))
        seconds[precision] = time.process_time() - started
        targets[precision] = own.fit(split.members, seed=7)
    found = []
    for reference, pool in pools.items():
        for target, model in targets.items():
            scores = LiRA().run(model, split.candidates, pool)
            truth = split.is_member(scores.ids)
            auc = vs.metrics.auc(scores.values[truth], scores.values[~truth])
            right = model.log_probabilities(split.nonmembers.x).argmax(1) == split.nonmembers.y
            found.append(
                [target, reference, seconds[reference], float(right.mean())]
                + [auc.value, auc.low, auc.high]
            )
    return name, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--references", type=int, default=16)
    references = parser.parse_args().references
    torch.set_num_threads(1)
    name, found = rows(references)
    table = Table(
        "precision",
        f"bfloat16: LiRA on a CNN of {name}, {references} reference models (load {load():.1f})",
        ["target", "references", "CPU s", "target's accuracy", "AUC", "low", "high"],
        found,
        ["", "", ".1f", ".3f", ".3f", ".3f", ".3f"],
        ["Both intervals are 95 %, of the draw of records; the targets share their seed."],
    )
    table.show()
    table.save()


if __name__ == "__main__":
    main()
