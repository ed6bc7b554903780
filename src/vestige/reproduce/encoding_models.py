"""Data, networks and models of robust membership encoding (Song & Shokri 2020, sections 5.1, 5.2).

A row has one model that carries the bits and one, its control, that the same recipe trains without
them. Both are kept in the store, so that rows and experiments share them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.fingerprint import fingerprint
from vestige.models import TorchModel
from vestige.records import Records
from vestige.reproduce import worlds
from vestige.reproduce.experiment import Context
from vestige.training import CNN, MLP, StepDecay, TorchRecipe, fit
from vestige.training.cuda import is_there
from vestige.training.fit import built
from vestige.training.many import code_version
from vestige.training.networks import VGG, ResNet
from vestige.watermarks import Decoder, Encoder, Encoding, Key
from vestige.watermarks.encoding import Reading, last_hidden

__all__ = [
    "Kept", "Pair", "Settings", "World", "carrier", "decoder_of",
    "encoder_of", "kept", "key_of", "network_of", "pair", "recipe_of", "world_of", "wrong_keys",
]  # fmt: skip

Mask = NDArray[np.bool_]
Trace = Mapping[str, Sequence[float]]

CALIBRATION = 0.25
"""Share of the test set that chooses a cut and is not judged at it."""
_MODEL, _TRACE = "model.safetensors", "trace.json"


# --- what a row is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """One row.

    Args:
        data: a real set, or a stand-in with its number of classes.
        n_train: the client's records, D_C.
        n_test: held out, D_test; a quarter of them chooses the cut at a false positive rate of
            10 %.
        n_encoded: records of the client's that are encoded, D_C-m, drawn at random.
        network: "mlp", "cnn", "vgg" or "resnet".
        widths: of the fully connected layers; of two convolutions and the layer behind them; of
            three stages.
        epochs: of training.
        way: "ours" is what `Encoder` and `Decoder` do by default; "paper" is without alignment and
            reads by the paper's network.
        black_box: the bits are in the log-probabilities.
        steps: k, encoding steps before each step of the task.
        lr: eta_f.
        encoder_lr: eta_d.
        batch_size: of both.
        momentum: of the task's steps.
        decay: shares of the training after which both rates are a tenth.
        weight_decay, dropout: of the task's steps; encoding steps drop nothing.
        share: of the layer's units that carry the bits.
        low, high: alpha and beta.
        alignment, synthetic: of `Encoder`, where the way is ours.
        blocks: residual blocks in each of three stages.
        classes: first and one past the last label that takes part; () for all.
        every: epochs between two looks at losses; 0 looks at the end only.
        n_wrong: keys that were never encoded with.
        gpu: trained on a GPU where there is one.
        mask: "center", "border" or "grid" for what is black in the records that are asked about.
        place: width of that part, of 32 pixels; of a grid the cell, row by row.
        pruned: share of the weights that are set to zero.
        adversarial: whether the pruned model is trained on, with a new discriminator.
        tuning_epochs, tuning_lr: of that, and of the training on another task.
        other: data of another task, whose output layer takes the place of this one's.
        other_classes: as classes, of these data.
        n_other, n_other_test: records of the other task to train on and to test on.
        tuning_every: epochs on the other task between two readings.
        n_points: records of each of the four sets that are projected.
    """

    data: str
    n_train: int
    n_test: int
    n_encoded: int
    network: str
    widths: tuple[int, ...]
    epochs: int
    way: str = "ours"
    black_box: bool = False
    steps: int = 1
    lr: float = 0.02
    encoder_lr: float = 0.02
    batch_size: int = 100
    momentum: float = 0.9
    decay: tuple[float, ...] = (0.8,)
    weight_decay: float = 0.0
    dropout: float = 0.0
    share: float = 0.5
    low: float = 0.0
    high: float = 1.0
    alignment: float = 0.3
    synthetic: float = 0.2
    blocks: int = 0
    classes: tuple[int, ...] = ()
    every: int = 0
    n_wrong: int = 5
    gpu: bool = False
    mask: str = ""
    place: int = 0
    pruned: float = 0.0
    adversarial: bool = False
    tuning_epochs: int = 20
    tuning_lr: float = 1e-3
    other: str = ""
    other_classes: tuple[int, ...] = ()
    n_other: int = 0
    n_other_test: int = 0
    tuning_every: int = 10
    n_points: int = 0


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class World:
    """The client's records, and records that the model never saw."""

    records: Records
    test: Records


@lru_cache(maxsize=2)
def world_of(data: str, classes: tuple[int, ...], n_train: int, n_test: int, seed: int) -> World:
    """Draw records, inputs in [0, 1]; those of 8x8 digits are pictures.

    Raises:
        DatasetUnavailable: the set is not on this machine.
        InvalidInput: it has too few records.
    """
    records = worlds.load(data, n_train + n_test)
    if classes:
        first, stop = classes
        records = records[np.flatnonzero((records.y >= first) & (records.y < stop))]
        named = records.classes[first:stop]
        records = replace(records, y=records.y - first, classes=named)
    if len(records) < n_train + n_test:
        raise InvalidInput(
            f"expected at least {n_train + n_test} records of {data}, got {len(records)}; draw less"
        )
    order = np.random.default_rng(seed).permutation(len(records))
    parts = np.split(order[: n_train + n_test], [n_train])
    train, test = (worlds.in_memory(records[np.sort(part)]) for part in parts)
    if data == "digits":
        train, test = (replace(r, x=np.reshape(r.x, (-1, 1, 8, 8))) for r in (train, test))
    return World(train, test)


# --- networks ------------------------------------------------------------------------------------


def network_of(settings: Settings, records: Records) -> Callable[[], Any]:
    """The builder of a row's network for records of this shape.

    Raises:
        InvalidInput: no network of that name.
    """
    shape, classes, widths = records.x.shape[1:], records.n_classes, settings.widths
    if settings.network == "mlp":
        return MLP(int(np.prod(shape)), classes, widths, dropout=settings.dropout)
    if settings.network == "cnn":
        return CNN(shape[0], shape[1], classes, (widths[0], widths[1]), widths[2])
    if settings.network == "vgg":
        return VGG(shape[0], shape[1], classes, widths)
    if settings.network == "resnet":
        return ResNet(shape[0], classes, widths, settings.blocks)
    raise InvalidInput(
        f'expected network "mlp", "cnn", "vgg" or "resnet", got {settings.network!r}'
    )


def carrier(net: Any) -> str:
    """The layer that carries the bits, before its activation (section 5.2).

    The second to last residual block; the second to last convolution, normalized; else the linear
    layer before the last.
    """
    names: list[tuple[str, str]] = [
        (name, type(module).__name__) for name, module in net.named_modules()
    ]
    for kind in ("Residual", "BatchNorm2d"):
        found = [name for name, its in names if its == kind]
        if found:
            return found[-2]
    hidden = last_hidden(net)
    assert hidden is not None
    return hidden


# --- how it is trained ---------------------------------------------------------------------------


def recipe_of(settings: Settings, records: Records) -> TorchRecipe:
    """Training on the task alone, by SGD."""
    return TorchRecipe(
        network_of(settings, records),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=StepDecay(settings.decay),
        device="cuda" if settings.gpu and is_there() else "cpu",
    )


def key_of(seed: int) -> Key:
    """The key of a run."""
    return Key.of(seed)


def wrong_keys(seed: int, n: int) -> list[Key]:
    """Keys that no run of this seed encodes with."""
    return [Key.of(1_000_003 * (seed + 1) + i) for i in range(n)]


def encoder_of(settings: Settings, recipe: TorchRecipe, key: Key) -> Encoder:
    """The encoder of a row, either way.

    Raises:
        InvalidInput: no such way.
    """
    encoding = Encoding(
        layer=None if settings.black_box else carrier(built(recipe, 0)),
        share=settings.share,
        low=settings.low,
        high=settings.high,
    )
    if settings.way not in ("ours", "paper"):
        raise InvalidInput(f'expected the way "ours" or "paper", got {settings.way!r}')
    ours = settings.way == "ours"
    return Encoder(
        key=key,
        encoding=encoding,
        steps=settings.steps,
        lr=settings.encoder_lr,
        batch_size=settings.batch_size,
        # Encoder.of_the_paper has neither
        synthetic=settings.synthetic if ours else None,
        alignment=settings.alignment if ours else 0.0,
    )


def decoder_of(settings: Settings, encoder: Encoder, key: Key) -> Decoder:
    """What reads the row's models with a key."""
    reading: Reading = "projection" if settings.way == "ours" else "network"
    return Decoder(key=key, encoding=encoder.encoding, reading=reading)


# --- models that are kept ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Kept:
    """A trained model, and what it was trained as.

    Attributes:
        model: as any other.
        trace: what an encoder measured on the way.
        seconds: that the training took, whenever it was.
        run: its folder in the store; it says all that the model depends on.
    """

    model: TorchModel
    trace: Trace
    seconds: float
    run: str


def kept(
    context: Context,
    recipe: TorchRecipe,
    parts: Sequence[Any],
    train: Callable[[], tuple[TorchModel, Trace]],
) -> Kept:
    """A model of the store, trained where it is not there.

    Args:
        recipe: builds its architecture.
        parts: everything that decides it, beside the recipe, code that trains included.
        train: gives the model and its trace.
    """
    store = context.store
    run = "encoding-" + fingerprint([code_version(), recipe.key(), *parts])[:24]
    found = [store.find(run, name) for name in (_TRACE, _MODEL)]
    if found[0] is None or found[1] is None:
        began = time.perf_counter()
        model, trace = train()
        took = time.perf_counter() - began
        text = json.dumps({name: list(values) for name, values in trace.items()})
        store.save(run, _TRACE, lambda path: _put(path, text.encode()))
        # the model last: where it is, its trace is
        store.save(run, _MODEL, lambda path: _put(path, recipe.dumps(model)), took)
        found = [store.path(run, name) for name in (_TRACE, _MODEL)]
    assert found[0] is not None and found[1] is not None
    made = recipe.loads(found[1].read_bytes(), _MODEL, 0)
    return Kept(made, json.loads(found[0].read_text()), store.seconds(run), run)


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@dataclass(frozen=True, eq=False)
class Pair:
    """A model that carries bits, and its control.

    Attributes:
        world: the client's records and others.
        chosen: (n_train,) which records were encoded.
        recipe: of both models.
        encoder: of the first.
        encoded, control: the models.
    """

    world: World
    chosen: Mask
    recipe: TorchRecipe
    encoder: Encoder
    encoded: Kept
    control: Kept


def pair(settings: Settings, context: Context) -> Pair:
    """Train, or read back, the two models of a row.

    Raises:
        DatasetUnavailable: the set is not on this machine.
        InvalidInput: it has too few records, or settings that cannot be.
    """
    seed = context.seed
    world = world_of(
        settings.data, settings.classes, settings.n_train, settings.n_test, seed
    )  # fmt: skip
    records, chosen = world.records, np.zeros(settings.n_train, dtype=bool)
    # of more encoded records the first are those of fewer
    order = np.random.default_rng([seed, 1]).permutation(settings.n_train)
    chosen[order[: settings.n_encoded]] = True
    recipe = recipe_of(settings, records)
    encoder = encoder_of(settings, recipe, key_of(seed))
    every = settings.every or settings.epochs

    def encode() -> tuple[TorchModel, Trace]:
        made = encoder.fit(
            recipe, records, seed=seed, chosen=chosen, watch={"test": world.test}, every=every,
            progress=context.progress,
        )  # fmt: skip
        return made.model, made.trace

    def train() -> tuple[TorchModel, Trace]:
        context.progress("the control", 0, 1)
        return fit(recipe, records, seed=seed), {}

    data = [records.digest(), seed]
    watched = [world.test.digest(), every]
    return Pair(
        world, chosen, recipe, encoder,
        kept(context, recipe, [*data, encoder, chosen, *watched], encode),
        kept(context, recipe, data, train),
    )  # fmt: skip
