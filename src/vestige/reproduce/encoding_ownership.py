"""Whose model is it: what is left of an owner's claim after what a thief does to the model.

The owner encodes the records that the key chooses, commits, and claims; the verifier asks for some
of the committed records (`vestige.watermarks.ownership`). The thief has a half of the test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from scipy.stats import kstest

from vestige import metrics
from vestige.attacks import Extraction
from vestige.metrics import Estimate, rate
from vestige.models import BlackBox, TorchModel
from vestige.records import Records
from vestige.reproduce import figures
from vestige.reproduce.encoding_measures import exactly, is_right
from vestige.reproduce.encoding_models import (
    Kept,
    Settings,
    World,
    decoder_of,
    encoder_of,
    kept,
    key_of,
    recipe_of,
    world_of,
    wrong_keys,
)
from vestige.reproduce.experiment import Column, Context, Experiment, Measured, Row
from vestige.training import TorchRecipe, fit
from vestige.watermarks import Encoder, Key
from vestige.watermarks.ownership import Challenge, claim, commit, stratified_rank_test, verify
from vestige.watermarks.robustness import fine_tuned, pruned, quantized

__all__ = ["EXPERIMENT", "Owned", "measure"]

_RELEASED = datetime(2020, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Owned:
    """One row: an owner's model, and what was done to it.

    Args:
        data, n_train, n_test, network, widths, epochs, black_box, steps, encoder_lr: of `Settings`.
        thief: "" for the model as it is, "clean" for one without encoding, "pruned", "tuned",
            "quantized" or "extracted".
        amount: share of weights that are zero, epochs of tuning, bits of a weight, or queries.
        n_asked: committed records that the verifier asks for.
        n_keys: wrong keys, whose p-values are compared with uniform ones.
    """

    data: str
    n_train: int
    n_test: int
    network: str
    widths: tuple[int, ...]
    epochs: int
    black_box: bool = False
    steps: int = 1
    encoder_lr: float = 0.02
    thief: str = ""
    amount: float = 0.0
    n_asked: int = 2_500
    n_keys: int = 0

    @property
    def trained(self) -> Settings:
        """How the owner trains."""
        return Settings(
            self.data, self.n_train, self.n_test, 0, self.network, self.widths, self.epochs,
            black_box=self.black_box, steps=self.steps, encoder_lr=self.encoder_lr,
        )  # fmt: skip


def measure(settings: Owned, context: Context) -> Measured:
    """The owner's claim on a model, and the p-values of keys that nothing was encoded with."""
    own, seed = settings.trained, context.seed
    world = world_of(own.data, own.classes, own.n_train, own.n_test, seed)
    recipe = recipe_of(own, world.records)
    key = key_of(seed)
    encoder = encoder_of(own, recipe, key)
    owner = _trained(own, encoder, recipe, world, context)
    thief, judges = (world.test[half] for half in np.array_split(np.arange(len(world.test)), 2))
    model = _stolen(settings, owner, recipe, world.records, thief, context)
    p, decoded = _claimed(model, encoder, key, world.records, settings.n_asked, seed)
    estimates = {
        "log2_p": p,
        "decoded": decoded,
        "test_accuracy": rate(int(is_right(model, judges).sum()), len(judges)),
        "own_accuracy": rate(int(is_right(owner.model, judges).sum()), len(judges)),
        **_uniform(model, own, encoder, world.records[: settings.n_asked], settings, seed),
    }
    sizes: Mapping[str, Any] = {
        "n_train": own.n_train,
        "encoded": int(encoder.encoding.chosen(key, world.records).sum()),
        "asked": settings.n_asked,
        "layer": encoder.encoding.layer or "log-probabilities",
        "thief": settings.thief or "none",
        "amount": settings.amount,
        "training_seconds": round(owner.seconds, 1),
    }
    return Measured(estimates, {}, sizes, {"name": own.data, "digest": world.records.digest()[:16]})


def _trained(
    own: Settings, encoder: Encoder, recipe: TorchRecipe, world: World, context: Context
) -> Kept:
    def train() -> Any:
        made = encoder.fit(recipe, world.records, seed=context.seed, progress=context.progress)
        return made.model, made.trace

    return kept(context, recipe, [world.records.digest(), context.seed, encoder, "owned"], train)


def _stolen(
    settings: Owned,
    owner: Kept,
    recipe: TorchRecipe,
    records: Records,
    thief: Records,
    context: Context,
) -> BlackBox:
    net, seed = owner.model.net, context.seed + 1
    if settings.thief == "":
        return owner.model
    if settings.thief == "clean":
        parts = [records.digest(), context.seed]
        return kept(
            context, recipe, parts, lambda: (fit(recipe, records, seed=context.seed), {})
        ).model
    if settings.thief == "pruned":
        return TorchModel(pruned(net, settings.amount))
    if settings.thief == "quantized":
        return TorchModel(quantized(net, int(settings.amount)))
    if settings.thief == "tuned":
        tuning = replace(recipe, epochs=int(settings.amount), lr=1e-3, schedule=None)
        return fine_tuned(tuning, net, thief, seed=seed)
    taken = thief[: int(settings.amount)]
    return Extraction(recipe=recipe, seed=seed).run(owner.model, taken, None).surrogate


def _claimed(
    model: BlackBox, encoder: Encoder, key: Key, records: Records, n_asked: int, seed: int
) -> tuple[Estimate, Estimate]:
    """Base-2 logarithm of the p-value; share of encoded records with a score above 0."""
    made = commit(key, encoder.encoding, records)
    day = (_RELEASED - timedelta(days=2)).isoformat()
    opening = replace(made, commitment=replace(made.commitment, made=day))
    # not by `challenge`: what a verifier asks for hangs on the commitment's day and salt, and a row
    # must come out the same again
    order = np.random.default_rng(seed).permutation(opening.commitment.n_records)
    places = tuple(int(i) for i in np.sort(order[:n_asked]))
    asked = Challenge(opening.commitment.digest, places)
    found = verify(
        model,
        opening.commitment,
        asked,
        claim(opening, records, asked),
        deposited=_RELEASED - timedelta(days=1),
        released=_RELEASED,
    )
    exact = exactly(found.log10_p / np.log10(2), "rank test within classes")
    return exact, rate(found.matched, found.total)


def _uniform(
    model: BlackBox, own: Settings, encoder: Encoder, few: Records, settings: Owned, seed: int
) -> dict[str, Estimate]:
    """Whether p-values of wrong keys are uniform: Kolmogorov-Smirnov, and how many are small."""
    if not settings.n_keys:
        return {}
    p = []
    for key in wrong_keys(seed, settings.n_keys):
        scores = decoder_of(own, encoder, key).run(model, few).values
        z = encoder.encoding.chosen(key, few)
        p.append(float(np.exp(stratified_rank_test(scores, z, few.y, encoder.encoding.rate))))
    found = kstest(p, "uniform")
    return {
        "ks_p": exactly(float(found.pvalue), f"Kolmogorov-Smirnov over {len(p)} keys"),
        "below_05": metrics.rate(int((np.array(p) <= 0.05).sum()), len(p)),
        "least_p": exactly(min(p), f"least of {len(p)} keys"),
    }


# --- rows ----------------------------------------------------------------------------------------

_MNIST = Owned("mnist", 50_000, 20_000, "mlp", (512, 128), 100)
_MNIST_BLACK = Owned("mnist", 10_000, 20_000, "mlp", (512, 128), 50, black_box=True, steps=4)
_CI: Mapping[str, Any] = {
    "data": "digits",
    "n_train": 1_000,
    "n_test": 600,
    "widths": (128, 64),
    "epochs": 40,
    "steps": 3,
    "encoder_lr": 0.05,
    "n_asked": 1_000,
}

_DONE: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("none", "as it was released", {"n_keys": 200}),
    ("clean", "another model, without encoding", {"thief": "clean", "n_keys": 200}),
    ("quantized", "weights in 8 bits", {"thief": "quantized", "amount": 8.0}),
    ("pruned-30", "30 % of the weights zero", {"thief": "pruned", "amount": 0.3}),
    ("pruned-50", "50 % of the weights zero", {"thief": "pruned", "amount": 0.5}),
    ("pruned-70", "70 % of the weights zero", {"thief": "pruned", "amount": 0.7}),
    ("tuned", "20 epochs on other records", {"thief": "tuned", "amount": 20.0}),
    ("extracted", "extracted by 10,000 queries", {"thief": "extracted", "amount": 10_000.0}),
)


def _rows() -> tuple[Row, ...]:
    rows = []
    for name, title, own in (("white", "white-box", _MNIST), ("black", "black-box", _MNIST_BLACK)):
        for done, what, changes in _DONE:
            large = replace(own, **changes)
            small = replace(large, **_CI)
            if small.n_keys:
                small = replace(small, n_keys=40)
            if small.thief == "extracted":
                small = replace(small, amount=300.0)
            paper = replace(large, n_train=50_000, epochs=100)
            scales = {"ci": small, "laptop": large, "paper": paper}
            rows.append(Row(f"{name}-{done}", f"MNIST, MLP, {title}: {what}", scales))
    return tuple(rows)


EXPERIMENT = Experiment(
    "encoding-ownership",
    "Whose model is it?",
    "ours; the paper leaves the test open (Song, Shokri 2020, section 3.2)",
    ("000-SYS3",),
    _rows(),
    measure,
    (
        Column("log2_p", "log2 of p; claimed at -64 or below"),
        Column("decoded", "encoded records with a score above 0"),
        Column("test_accuracy", "test accuracy"),
        Column("own_accuracy", "of the owner's model"),
        Column("ks_p", "wrong keys: uniform p-values? p of a Kolmogorov-Smirnov test"),
        Column("below_05", "wrong keys: share with p of 0.05 or below"),
        Column("least_p", "wrong keys: least p"),
    ),
    (
        "The key chooses a fifth of the training records; the verifier asks for 2,500 of all (ci: "
        "1,000), and tests whether those that the key chose score higher within their class. "
        "p is of the test, below 2^-20 an upper bound of it, and has no interval.",
        "The thief has half of the test set, 10,000 records: to tune on, at a rate of 0.001, or to "
        "ask about. Accuracy is on the other half. What is extracted is trained by the owner's "
        "recipe on the answers.",
        "White-box is 50,000 records and 100 epochs also at the scale laptop; black-box 10,000 and "
        "50 there, with four encoding steps a step. One model each.",
    ),
    (figures.beside_the_paper("log2_p", "log2 of p"),),
)
