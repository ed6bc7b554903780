"""Data and models of generalized membership inference (Long et al. 2018, sections 5.1 to 5.3).

Two complementary halves of a pool train two targets, fifty times over; the adversary's own records,
drawn with replacement, train the reference models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vestige.attacks.gmia import Features
from vestige.attacks.indirect import Draw
from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.progress import Progress
from vestige.records import Records
from vestige.reproduce import worlds
from vestige.synthesis import Continuous, Integer, Schema, schema_of
from vestige.training import (
    CNN,
    MLP,
    Store,
    TorchRecipe,
    bootstraps,
    half_and_half,
    train_many,
)

__all__ = [
    "CANCER", "EVERYONE", "PROFILES", "Profile", "Settings", "Trained", "groups_of", "load",
    "recipe_of", "schema", "seeds", "trained",
]  # fmt: skip

CANCER = "breast_cancer_wisconsin_original"
EVERYONE = 1e9
"""beta of rows that judge every record of the pool, whatever its neighbors."""


# --- what a row is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """How a model is trained, by Adam.

    Args:
        hidden: widths of the fully connected layers; () for softmax regression.
        activation: of them.
        batch_size: records a step.
        lr: learning rate.
        filters: of two convolutions that come first; () for none.
        dropout: share of the units behind these that a training step leaves out.
    """

    hidden: tuple[int, ...]
    activation: str
    batch_size: int
    lr: float = 1e-3
    filters: tuple[int, ...] = ()
    dropout: float = 0.0


PROFILES: Mapping[str, Profile] = {
    "softmax": Profile((), "tanh", 10),
    "tanh-10-5": Profile((10, 5), "tanh", 100),
    "relu-32-16": Profile((32, 16), "relu", 100),
    "conv": Profile((1024,), "relu", 50, lr=1e-4, filters=(32, 64), dropout=0.5),
    "relu-64": Profile((64,), "relu", 50),
    "relu-64-32": Profile((64, 32), "relu", 50),
    "relu-128-64": Profile((128, 64), "relu", 50),
}
"""Networks by name. The paper gives neither optimizer, nor learning rate, nor filters."""


@dataclass(frozen=True)
class Settings:
    """One row.

    Args:
        data: a real set.
        n_pool: records that may be a target's; half of them train one.
        n_references: records of the adversary's own, none of them in the pool.
        n_targets: targets, in pairs that share out the pool.
        n_models: k, reference models.
        profile: one of `PROFILES`, of the targets.
        steps: of every training; what the paper calls epochs.
        delta, beta: as in `vestige.attacks.GMIA`.
        cutoff: p-values up to which a record is called a member.
        l2: lambda of the penalty lambda ||theta||^2; torch's weight_decay is 2 lambda.
        features: "logits", or "inputs" for an adversary who does not know the architecture.
        reference_profile: of the reference models; "" for the targets' own.
        confidence: of the prior attack: probability of "in" from which a record is called a member.
        n_shadows: reference models that the prior attack learns from.
        theta: of the indirect attack: influence that a query must have.
        n_random: of the indirect attack: records that queries are chosen from.
        draw: of the indirect attack: how these are drawn.
        n_records: of the indirect attack: records that are attacked, those that stand out most.
        n_pools: draws of pool and references that decisions are counted over, each with models of
            its own.
    """

    data: str
    n_pool: int
    n_references: int
    n_targets: int
    n_models: int
    profile: str
    steps: int
    delta: float
    beta: float = 0.1
    cutoff: float = 0.01
    l2: float = 0.0
    features: Features = "logits"
    reference_profile: str = ""
    confidence: float = 0.5
    n_shadows: int = 20
    theta: float = 0.95
    n_random: int = 5_000
    draw: Draw = "auto"
    n_records: int = 1
    n_pools: int = 1


# --- data and models -----------------------------------------------------------------------------


def load(name: str) -> Records:
    """Records as the paper has them.

    Breast Cancer Wisconsin (Original): nine grades 1 to 10, not divided; the 16 that are missing
    are 1, the commonest grade. Adult: a missing category is a category of its own, so that each
    group of columns holds one 1. Others are as `vestige.datasets` has them.

    Raises:
        DatasetUnavailable: it is not on this machine.
    """
    records = worlds.load(name, 0)
    if name == CANCER:
        grades = np.maximum(np.rint(np.asarray(records.x[:]) * 10), 1).astype(np.float32)
        return replace(records, x=grades)
    if name == "adult":
        return _with_missing(records)
    return records


def groups_of(records: Records) -> list[tuple[int, int]]:
    """One-hot groups as (first column, width): neighbors in the table named `feature=level`."""
    heads = [c.partition("=")[0] if "=" in c else "" for c in records.columns]
    starts = [j for j, h in enumerate(heads) if h and (j == 0 or heads[j - 1] != h)]
    return [(j, heads.count(heads[j])) for j in starts]


def _with_missing(records: Records) -> Records:
    x, names = np.asarray(records.x[:]), list(records.columns)
    parts, columns, done = [], [], 0
    for first, width in groups_of(records):
        group = x[:, first : first + width]
        parts += [x[:, done:first], group]
        columns += names[done : first + width]
        none = 1 - group.sum(axis=1, keepdims=True)
        if none.any():
            parts.append(none)
            columns.append(f"{names[first].partition('=')[0]}=missing")
        done = first + width
    table = np.concatenate([*parts, x[:, done:]], axis=1)
    return replace(records, x=table, columns=(*columns, *names[done:]))


def schema(name: str, records: Records) -> Schema:
    """What the columns are, for queries that are made up."""
    columns = int(np.prod(records.x.shape[1:]))
    if name == CANCER:
        return (Integer(1, 10),) * columns
    if name in ("mnist", "digits"):
        return (Continuous(0.0, 1.0),) * columns
    return schema_of(records, groups_of(records))


def recipe_of(settings: Settings, profile: str, records: Records) -> TorchRecipe:
    """The recipe of a profile's models."""
    made, shape, classes = PROFILES[profile], records.x.shape[1:], records.n_classes
    net: MLP | CNN
    if made.filters:
        first, second = made.filters
        net = CNN(shape[0], shape[1], classes, (first, second), made.hidden[0], made.dropout)
    else:
        net = MLP(int(np.prod(shape)), classes, made.hidden, made.activation)
    return TorchRecipe(
        net,
        steps=settings.steps,
        batch_size=made.batch_size,
        optimizer="adam",
        lr=made.lr,
        weight_decay=2 * settings.l2,
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """Everything that is trained for a row.

    Attributes:
        records: the pool that targets are trained on halves of.
        targets, references: with their tables of who was trained on what.
        n_train: records of one training set.
        seed: of attacks.
    """

    records: Records
    targets: Pool[BlackBox]
    references: Pool[BlackBox]
    recipe: TorchRecipe
    n_train: int
    seed: int


def trained(settings: Settings, seed: int, store: Store, progress: Progress) -> Trained:
    """Draw the pool and the adversary's records, and train targets and references.

    Raises:
        DatasetUnavailable: the set is not on this machine.
        InvalidInput: it has too few records.
    """
    draw, split, boot, for_targets, for_references, for_attack = seeds(seed, 6)
    records = load(settings.data)
    needed = settings.n_pool + settings.n_references
    if len(records) < needed:
        raise InvalidInput(
            f"expected at least {needed} records of {settings.data}, got {len(records)}; draw less"
        )
    order = np.random.default_rng(draw).permutation(len(records))[:needed]
    pool, own = (
        worlds.in_memory(records[np.sort(part)]) for part in np.split(order, [settings.n_pool])
    )
    halves = half_and_half(settings.n_targets, len(pool), split)
    drawn = bootstraps(settings.n_models, len(own), len(pool) // 2, boot)
    recipe = recipe_of(settings, settings.profile, pool)
    imitation = recipe_of(settings, settings.reference_profile or settings.profile, own)
    return Trained(
        pool,
        train_many(recipe, pool, halves, seed=for_targets, store=store, progress=progress),
        train_many(imitation, own, drawn, seed=for_references, store=store, progress=progress),
        imitation,
        len(pool) // 2,
        for_attack,
    )


def seeds(seed: int, n: int) -> list[int]:
    return [int(s.generate_state(1)[0] >> 1) for s in np.random.SeedSequence(seed).spawn(n)]
