"""A plane that explains the attack in one look (Long et al. 2018, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.records import Records
from vestige.reproduce import gmia_figures
from vestige.reproduce.experiment import Context, Measured
from vestige.reproduce.gmia_measures import mean_of
from vestige.reproduce.gmia_models import seeds
from vestige.signals import correctness, true_class_margin
from vestige.training import MLP, TorchRecipe, train_many

__all__ = ["TOY_QUERIES", "TOY_RECORD", "ToySettings", "measure_toy", "toy_records"]

Floats = NDArray[np.float64]

TOY_RECORD = (-0.4, 2.4)
"""A lone "+" beyond the "-": what it teaches, no other record does."""
TOY_QUERIES = (TOY_RECORD, (-0.6, 3.2))
"""The record itself, and a point where there is none."""


@dataclass(frozen=True)
class ToySettings:
    """The figure's world.

    Args:
        n_records: points of the plane, the record among them.
        n_models: models with the record, and as many without.
        steps: of training each.
        hidden: units of the first of two fully connected layers.
    """

    n_records: int = 1_181
    n_models: int = 200
    steps: int = 800
    hidden: int = 16


def toy_records(n: int, seed: int) -> Records:
    """n points of the plane: two clouds, "-" left and "+" right, and last the record.

    Returns:
        x (n, 2) float32, y (n,) 0 for "-" and 1 for "+".
    """
    rng = np.random.default_rng(seed)
    y = np.append(np.arange(n - 1) % 2, 1)
    x = rng.normal(0, (0.75, 0.6), (n, 2))
    x[:, 0] += np.where(y == 1, 0.9, -0.9)
    x[-1] = TOY_RECORD
    return Records.from_arrays(x.astype(np.float32), y, classes=("-", "+"))


def measure_toy(settings: ToySettings, context: Context) -> Measured:
    """The probability of "+" at two points, for models trained with one record and without."""
    draw, half, for_models = seeds(context.seed, 3)
    records = toy_records(settings.n_records, draw)
    n, k = len(records), settings.n_models
    member = np.zeros((2 * k, n), dtype=bool)
    for model in range(2 * k):
        rows = np.random.default_rng([half, model]).permutation(n - 1)[: n // 2]
        member[model, rows] = True
    # the record takes the place of another, so that all training sets are of one size
    for model in range(k):
        member[model, np.flatnonzero(member[model])[0]] = False
    member[:k, -1] = True
    recipe = TorchRecipe(
        MLP(2, 2, (settings.hidden,), "tanh"),
        steps=settings.steps,
        batch_size=50,
        optimizer="adam",
        lr=1e-2,
    )
    models = train_many(
        recipe, records, member, seed=for_models, store=context.store, progress=context.progress
    )
    queries = Records.from_arrays(
        np.array(TOY_QUERIES, dtype=np.float32), np.ones(2, dtype=np.int64), classes=("-", "+")
    )
    logit = models.signals(true_class_margin, queries)
    inside, outside = logit[:k], logit[k:]
    found = {
        "auc_first": metrics.auc(inside[:, 0], outside[:, 0]),
        "auc_second": metrics.auc(inside[:, 1], outside[:, 1]),
        "auc_both": metrics.auc(*_ratios(inside, outside)),
    }
    right = models.signals(correctness, records)
    for name, side in (("train", member), ("test", ~member)):
        shares = (right * side).sum(axis=1) / side.sum(axis=1)
        found[f"{name}_accuracy"] = mean_of(shares)
    x = np.asarray(records.x[:])
    series: dict[str, Sequence[float]] = {
        "x": [round(float(v), 3) for v in x[:, 0]],
        "y": [round(float(v), 3) for v in x[:, 1]],
        "label": [float(v) for v in records.y],
        "query_x": [at for at, _ in TOY_QUERIES],
        "query_y": [up for _, up in TOY_QUERIES],
    }
    for name, side in (("in", inside), ("out", outside)):
        series |= {f"{name}_{q + 1}": side[:, q].tolist() for q in range(2)}
    sizes = {
        "n_records": n,
        "n_train": int(member[0].sum()),
        "n_models": 2 * k,
        "training_seconds": round(float(models.provenance["seconds"]), 1),
    }
    return Measured(found, series, sizes, {"name": "toy", "digest": records.digest()[:16]})


def _ratios(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """Log ratios of densities at two queries; those of one half of the models judge the other."""
    out = []
    for side in (inside, outside):
        values = np.empty(len(side))
        for part in (0, 1):
            fitted = [gmia_figures.density(s[1 - part :: 2]) for s in (inside, outside)]
            logs = [f.logpdf(side[part::2].T) for f in fitted]
            values[part::2] = np.clip(logs[0] - logs[1], -700, 700)
        out.append(values)
    return out[0], out[1]
