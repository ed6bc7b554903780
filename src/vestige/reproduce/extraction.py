"""Extraction of a model: accuracy and fidelity of surrogates by the number of queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vestige.attacks.extraction import Answers, Extraction, budget_curve
from vestige.records import duplicates
from vestige.reproduce import figures, worlds
from vestige.reproduce.experiment import Column, Context, Experiment, Measured, Row
from vestige.training import MLP, TorchRecipe, train_many

__all__ = ["EXPERIMENTS", "Settings", "measure"]


@dataclass(frozen=True)
class Settings:
    """One row.

    Args:
        data: as `vestige.reproduce.worlds.load` takes it.
        answers: what the target shows.
        n_train: records of the target.
        n_test: records that the rates are measured on.
        budgets: numbers of queries, ascending; drawn from records that are neither.
        epochs: of target and surrogates: one layer of 128 tanh units, trained by Adam.
    """

    data: str
    answers: Answers
    n_train: int
    n_test: int
    budgets: tuple[int, ...]
    epochs: int = 30


def measure(settings: Settings, context: Context) -> Measured:
    """Train a target, and a surrogate for each budget."""
    n_train, n_test, most = settings.n_train, settings.n_test, settings.budgets[-1]
    records = worlds.load(settings.data, n_train + n_test + most)
    draw, for_target, for_attack = (
        int(s.generate_state(1)[0] >> 1) for s in np.random.SeedSequence(context.seed).spawn(3)
    )
    records = records[np.random.default_rng(draw).permutation(len(records))]
    records = worlds.in_memory(records[np.flatnonzero(~duplicates(records))])
    train, test, queries = (
        records[part] for part in np.split(np.arange(len(records)), [n_train, n_train + n_test])[:3]
    )
    net = MLP(int(np.prod(records.x.shape[1:])), records.n_classes, (128,), "tanh")
    recipe = TorchRecipe(net, epochs=settings.epochs, batch_size=50, optimizer="adam", lr=2e-3)
    whole = np.ones((1, len(train)), dtype=bool)
    made = train_many(recipe, train, whole, seed=for_target, store=context.store)
    target = made.models[0]
    attack = Extraction(recipe=recipe, answers=settings.answers, seed=for_attack)
    reports = budget_curve(
        target, queries, settings.budgets, extraction=attack, test=test, progress=context.progress
    )
    last = reports[-1]
    estimates = {
        "target_accuracy": last.target_accuracy,
        "accuracy": last.accuracy,
        "fidelity": last.fidelity,
        "total_variation": last.total_variation,
    }
    series = {
        "budget": [float(r.n_queries) for r in reports],
        "accuracy": [float(r.accuracy.value or 0) for r in reports],
        "fidelity": [float(r.fidelity.value or 0) for r in reports],
    }
    sizes = {"n_train": n_train, "n_test": last.n_test, "n_queries": last.n_queries}
    sizes["n_models"] = 1 + len(reports)
    digests = {"name": settings.data, "digest": train.digest()[:16]}
    return Measured(estimates, series, sizes, digests)


def _sized(answers: Answers) -> Mapping[str, Settings]:
    paper = Settings("location30", answers, 1_000, 1_000, (50, 100, 200, 500, 1_000, 2_500))
    return {
        "ci": replace(
            paper, data="digits", n_train=400, n_test=400, budgets=(50, 200, 900), epochs=15
        ),
        "laptop": paper,
        "paper": paper,
    }


BUDGET = Experiment(
    "extraction-budget",
    "Extraction: what a number of queries buys",
    "Jagielski et al. 2020, arXiv:1909.01838, figure 1 (a drawing there), and Tramèr et al. 2016, "
    "arXiv:1609.02943",
    ("002-EXT1", "002-EXT2"),
    (
        Row("labels", "labels", _sized("labels")),
        Row("top1", "top class and its probability", _sized("top1")),
        Row("probabilities", "all probabilities", _sized("probabilities")),
    ),
    measure,
    (
        Column("target_accuracy", "the target's accuracy"),
        Column("accuracy", "surrogate's accuracy"),
        Column("fidelity", "fidelity"),
        Column("total_variation", "total variation"),
    ),
    (
        "The lecture has a drawing and no numbers: the estimates are those of the largest budget.",
        "Location30 (scikit-learn's digits at the scale ci); the surrogate has the target's "
        "recipe, one hidden layer of 128 tanh units, and records of the same kind for queries.",
    ),
    (figures.fidelity_against_accuracy(),),
)

EXPERIMENTS = (BUDGET,)
