"""Tables and figures of the shadow-model attack (Shokri et al., IEEE S&P 2017).

Every row is one run of the same function: draw members, non-members and the adversary's own
records; train the target and the shadow models with the same recipe; put both behind the same
filter; attack; count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vestige import datasets, synthesis
from vestige.attacks.shadow import Shadow
from vestige.defenses import behind, filtered
from vestige.errors import InvalidInput
from vestige.metrics import Estimate
from vestige.models import BlackBox
from vestige.records import Records, concatenate, duplicates
from vestige.reproduce import figures, worlds
from vestige.reproduce.evaluation import attack_estimates, histograms, target_estimates
from vestige.reproduce.experiment import Column, Context, Experiment, Measured, Row
from vestige.training import CNN, MLP, TorchRecipe, shadows, train_many

__all__ = ["EXPERIMENTS", "PROFILES", "Settings", "measure"]

PAPER = "Shokri, Stronati, Song, Shmatikov 2017, arXiv:1610.05820"


# --- what a row is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """How the models of a platform are trained.

    Args:
        hidden: widths of fully connected layers; () for logistic regression.
        activation: of them.
        convolutions: whether two convolutions come first.
        lr: of Adam.
        batch_size: records a step.
    """

    hidden: tuple[int, ...]
    activation: str = "tanh"
    convolutions: bool = False
    lr: float = 1e-3
    batch_size: int = 100


PROFILES: Mapping[str, Profile] = {
    "google_like": Profile((256,), "relu"),
    "amazon_like": Profile((), lr=1e-2),
    "nn": Profile((128,), lr=1e-3),
    "cnn": Profile((128,), "relu", convolutions=True),
}
"""Architectures by platform; those of the services are unknown, so these are profiles of them."""


@dataclass(frozen=True)
class Settings:
    """One row.

    Args:
        data: a real set, or a stand-in (`purchase_like_100`).
        n_train: records of the target, and as many non-members to judge by.
        n_shadows: shadow models.
        profile: one of `PROFILES`.
        epochs: of target and shadow models.
        l2: lambda of the penalty lambda ||theta||^2, in target and shadow models alike; torch's
            weight_decay is 2 lambda.
        answers: what the service shows, to everyone: a filter as in `vestige.defenses.behind`.
        shadow_data: what shadow models are trained on: "real", "marginal", "model", "noisy10",
            "noisy20".
        pool: the adversary's real records at most; 0 for all that are neither members nor judged.
        split: "random", or "published" for the permutation of Location30 that MemGuard published.
        budget: queries for the climbs of shadow_data "model".
    """

    data: str
    n_train: int
    n_shadows: int
    profile: str = "google_like"
    epochs: int = 50
    l2: float = 0.0
    answers: str = "none"
    shadow_data: str = "real"
    pool: int = 0
    split: str = "random"
    budget: int = 0


# --- how a row is measured -----------------------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """Disjoint records: the target's, as many others, and the adversary's own."""

    members: Records
    others: Records
    own: Records


def measure(settings: Settings, context: Context) -> Measured:
    """Train, attack and count one row."""
    draw, for_target, for_shadows, for_data, for_attack = _seeds(context.seed, 5)
    world = _drawn(settings, draw)
    recipe = recipe_of(settings, world.members)
    whole = np.ones((1, len(world.members)), dtype=bool)
    alone = train_many(recipe, world.members, whole, seed=for_target, store=context.store)
    target = behind(alone.models[0], settings.answers)

    data, cost = _shadow_records(settings, world, target, for_data, context)
    n_each = min(settings.n_train, len(data) // 2)
    table = shadows(settings.n_shadows, len(data), n_each, for_shadows)
    known = train_many(
        recipe, data, table, seed=for_shadows, store=context.store, progress=context.progress
    )
    attack = Shadow(seed=for_attack, calibration=0.0).trained(filtered(known, settings.answers))
    candidates = _shuffled(concatenate(world.members, world.others), for_attack)
    before = target.n_queries
    scores = attack.score(target, candidates)
    member = np.isin(candidates.ids, world.members.ids)
    n_classes = world.members.n_classes
    found, by_class = attack_estimates(scores.values, member, candidates.y, n_classes)
    attack_queries = target.n_queries - before

    sides = (
        target.log_probabilities(world.members.x),
        world.members.y,
        target.log_probabilities(world.others.x),
        world.others.y,
    )
    found |= target_estimates(*sides, seed=for_attack)
    sizes = {
        "n_members": len(world.members),
        "n_nonmembers": len(world.others),
        "n_adversary": len(data),
        "n_shadows": settings.n_shadows,
        "n_shadow_train": n_each,
        "n_models": settings.n_shadows + 1,
        "n_classes": n_classes,
        "attack_queries": attack_queries,
        "classes_on_fallback": len(attack.fallback),
        "training_seconds": round(
            float(alone.provenance["seconds"]) + float(known.provenance["seconds"]), 1
        ),
        "training_path": str(known.provenance["path"]),
        **cost,
    }
    digests = {"name": settings.data, "digest": world.members.digest()[:16]}
    return Measured(found, {**by_class, **histograms(*sides)}, sizes, digests)


def _seeds(seed: int, n: int) -> list[int]:
    return [int(s.generate_state(1)[0] >> 1) for s in np.random.SeedSequence(seed).spawn(n)]


def recipe_of(settings: Settings, records: Records) -> TorchRecipe:
    """The recipe of target and shadow models alike."""
    profile, shape, classes = PROFILES[settings.profile], records.x.shape[1:], records.n_classes
    net: MLP | CNN
    if profile.convolutions:
        net = CNN(shape[0], shape[1], classes, units=profile.hidden[0])
    else:
        net = MLP(int(np.prod(shape)), classes, profile.hidden, profile.activation)
    return TorchRecipe(
        net,
        epochs=settings.epochs,
        batch_size=profile.batch_size,
        optimizer="adam",
        lr=profile.lr,
        weight_decay=2 * settings.l2,
    )


def _drawn(settings: Settings, seed: int) -> _World:
    """Members, as many others, and what is left for the adversary; no content twice."""
    n = settings.n_train
    wanted = 2 * n + (settings.pool or 2 * n)
    records = worlds.load(settings.data, wanted)
    if settings.split == "published":
        return _published(records, n)
    order = np.random.default_rng(seed).permutation(len(records))
    if settings.pool:
        # of a large set no more is read than is needed, and some for repeated records
        order = order[: wanted + wanted // 4]
    drawn = records[order]
    drawn = drawn[np.flatnonzero(~duplicates(drawn))]
    if len(drawn) < 2 * n + 2:
        raise InvalidInput(
            f"expected at least {2 * n + 2} distinct records of {settings.data}, got {len(drawn)}; "
            "train on fewer"
        )
    parts = np.split(np.arange(len(drawn)), [n, 2 * n])
    own = parts[2][: settings.pool] if settings.pool else parts[2]
    return _World(*(worlds.in_memory(drawn[part]) for part in (parts[0], parts[1], own)))


def _published(records: Records, n: int) -> _World:
    """The cut of Jia et al. 2019: 1,000 members, 1,000 others; the rest is the adversary's."""
    order = datasets.location30_order()
    members, others = records[order[:1000]], records[order[2000:3000]]
    own = records[np.concatenate([order[1000:2000], order[3000:]])]
    # a repeated record would sit on two sides
    others = others[~np.isin(others.content_hash(), members.content_hash())]
    taken = np.concatenate([members.content_hash(), others.content_hash()])
    own = own[~np.isin(own.content_hash(), taken)]
    n = min(n, len(members), len(others))
    return _World(members[:n], others[:n], own)


def _shuffled(records: Records, seed: int) -> Records:
    return records[np.random.default_rng([seed, 1]).permutation(len(records))]


def _shadow_records(
    settings: Settings, world: _World, target: BlackBox, seed: int, context: Context
) -> tuple[Records, dict[str, int | float | str]]:
    """What shadow models are trained on, and what it cost to have it."""
    own, kind = world.own, settings.shadow_data
    if kind == "real":
        return own, {}
    if kind in ("noisy10", "noisy20"):
        return synthesis.noisy(own, int(kind[5:]) / 100, seed=seed), {}
    n, names = min(2 * settings.n_train, len(own)), own.classes
    before = target.n_queries
    if kind == "marginal":
        made = synthesis.label_by(target, synthesis.sample_marginals(own, n, seed=seed))
        cost = {}
    elif kind == "model":
        schema = (synthesis.Binary(),) * int(np.prod(own.x.shape[1:]))
        found = synthesis.HillClimb().records(
            target, n, schema, seed=seed, budget=settings.budget, progress=context.progress
        )
        made = found.records
        cost = {
            "synthesis_wanted": n,
            "synthesis_found": len(made),
            "synthesis_budget": settings.budget,
            "classes_never_found": len(found.failed),
        }
    else:
        raise InvalidInput(
            f'expected shadow_data "real", "marginal", "model", "noisy10" or "noisy20", got '
            f"{kind!r}"
        )
    made = Records(made.ids, made.x, made.y, (), names)
    return made, {**cost, "synthesis_queries": target.n_queries - before}


# --- rows ----------------------------------------------------------------------------------------


def _scales(ci: Settings, laptop: Settings, paper: Settings) -> Mapping[str, Settings]:
    return {"ci": ci, "laptop": laptop, "paper": paper}


def _sized(
    paper: Settings,
    *,
    laptop: Mapping[str, Any],
    ci: Mapping[str, Any] | None = None,
) -> Mapping[str, Settings]:
    """Settings of all scales: the paper's with what is smaller at the others."""
    small = {"n_train": 300, "n_shadows": 3, "pool": 600, "epochs": min(paper.epochs, 30)}
    return _scales(replace(paper, **{**small, **(ci or {})}), replace(paper, **laptop), paper)


def _location(**changes: Any) -> Mapping[str, Settings]:
    """Location30 at the size of the paper: 1,600 to train on leave 1,810 for the adversary."""
    made = replace(Settings("location30", 1600, 60, budget=10_000_000), **changes)
    return _sized(made, laptop={"budget": 2_000_000}, ci={"budget": 40_000})


def _purchase(classes: int, ci_classes: int = 0, **changes: Any) -> Mapping[str, Settings]:
    """The stand-in for Purchase; with fewer classes at the scale ci, where 100 need too many."""
    made = replace(Settings(f"purchase_like_{classes}", 10_000, 20, pool=20_000), **changes)
    return _sized(
        made,
        laptop={"n_train": 5_000, "pool": 10_000, "n_shadows": 10, "budget": 10_000_000},
        ci={"budget": 40_000, "data": f"purchase_like_{ci_classes or classes}"},
    )


def _purchase_100(**changes: Any) -> Mapping[str, Settings]:
    return _purchase(100, 5, **changes)


_ADULT = _sized(
    Settings("adult", 10_000, 20, profile="nn", epochs=8),
    laptop={},
    ci={"n_train": 500, "pool": 1_000},
)
_MNIST = _sized(
    Settings("mnist", 10_000, 50, profile="nn", epochs=12),
    laptop={"n_shadows": 20, "pool": 20_000},
    ci={"n_train": 500, "pool": 1_000},
)
_TEXAS = _sized(
    Settings("texas_like_100", 10_000, 10, epochs=10, pool=20_000),
    laptop={"n_train": 2_000, "pool": 4_000, "n_shadows": 5},
)
_PUBLISHED = _sized(Settings("location30", 1_000, 60, split="published"), laptop={})


def _cifar(data: str, n: int) -> Mapping[str, Settings]:
    made = Settings(data, n, 100, profile="cnn", epochs=100, pool=min(2 * n, 60_000 - 2 * n))
    return _sized(
        made,
        laptop={"n_shadows": 4, "epochs": 60, "n_train": n // 5, "pool": 2 * n // 5},
        ci={"epochs": 15, "n_train": n // 20, "pool": n // 10},
    )


_OVERFITTING = ("train_accuracy", "test_accuracy", "precision")


def _paper(names: tuple[str, ...], *values: float) -> Mapping[str, float]:
    return dict(zip(names, values, strict=True))


def _of_purchase(classes: int, train: float, test: float, precision: float) -> Row:
    return Row(
        f"purchase-like-{classes}",
        f"purchase-like stand-in, {classes} classes",
        _purchase(classes),
        _paper(_OVERFITTING, train, test, precision),
    )


_PURCHASES = (
    _of_purchase(2, 0.999, 0.984, 0.505),
    _of_purchase(10, 0.999, 0.866, 0.550),
    _of_purchase(20, 1.000, 0.781, 0.590),
    _of_purchase(50, 1.000, 0.693, 0.860),
    _of_purchase(100, 0.999, 0.659, 0.935),
)
_LOCATION_ROW = Row(
    "location30",
    "Location30, random cut",
    _location(),
    _paper(_OVERFITTING, 1.000, 0.673, 0.678),
    "of 5,010 records, the target's 1,600 and the 1,600 judged leave about 1,800: a shadow model "
    "is trained on half of them, not on 1,600.",
)

# --- tables and figures --------------------------------------------------------------------------

_TARGET = (
    Column("train_accuracy", "training accuracy"),
    Column("test_accuracy", "test accuracy"),
)
_ATTACK = (
    Column("attack_accuracy", "attack accuracy"),
    Column("precision", "attack precision"),
    Column("recall", "attack recall"),
    Column("auc", "attack AUC"),
)
_COMMON = (
    "Intervals are 95 %; precision is at a base rate of one half and the threshold 0.5.",
    "The services of the paper are gone and their models were never known: `google_like` is one "
    "hidden layer of 256 ReLU units, `nn` one of 128 tanh units, `amazon_like` logistic "
    "regression; all are trained by Adam (learning rate 0.001, for logistic regression 0.01; "
    "batches of 100) for the number of epochs in the settings.",
    "Shadow models are trained on records that are neither the target's nor judged; the paper "
    "asks for the first only.",
)

TABLE_2 = Experiment(
    "shadow-table2",
    "Overfitting and the success of the attack",
    f"{PAPER}, Table II",
    ("002-SH-T2", "002-SH-alg", "002-SH-att", "002-SH-eval", "002-SH-thr"),
    (
        Row("adult", "Adult", _ADULT, _paper(_OVERFITTING, 0.848, 0.842, 0.503)),
        Row("mnist", "MNIST", _MNIST, _paper(_OVERFITTING, 0.984, 0.928, 0.517)),
        _LOCATION_ROW,
        Row(
            "location30-published",
            "Location30, published cut",
            _PUBLISHED,
            _paper(_OVERFITTING, 1.000, 0.673, 0.678),
            "the cut of Jia et al. 2019: 1,000 records train the target, as many a shadow model.",
        ),
        *_PURCHASES,
        Row(
            "texas-like",
            "texas-like stand-in, 100 classes",
            _TEXAS,
            _paper(_OVERFITTING, 0.668, 0.517, 0.657),
        ),
    ),
    measure,
    (*_TARGET, *_ATTACK),
    (
        *_COMMON,
        "A stand-in has the shape of the real set, and classes made up to overlap: the paper's "
        "figures beside it are those of the real one, for orientation only.",
        "Adult and MNIST are trained for as many epochs as give about the paper's training "
        "accuracy; the others to (nearly) 100 %.",
    ),
    (figures.beside_the_paper("precision", "attack precision"),),
)

_PLATFORMS = (
    ("google", "google_like", {"profile": "google_like"}, (0.999, 0.656)),
    (
        "amazon-10",
        "amazon_like, 10 passes, L2 1e-6",
        {"profile": "amazon_like", "epochs": 10, "l2": 1e-6},
        (0.941, 0.468),
    ),
    (
        "amazon-100",
        "amazon_like, 100 passes, L2 1e-4",
        {"profile": "amazon_like", "epochs": 100, "l2": 1e-4},
        (1.000, 0.504),
    ),
    ("nn", "neural network", {"profile": "nn", "epochs": 10}, (0.830, 0.670)),
)
_PLATFORM_ROWS = tuple(
    Row(name, title, _purchase_100(**changes), _paper(_OVERFITTING[:2], *figures_of))
    for name, title, changes, figures_of in _PLATFORMS
)
_ON_STAND_IN = (
    "All on the purchase-like stand-in with 100 classes (5 at the scale ci), never on the real "
    "Purchase data."
)

TABLE_1 = Experiment(
    "shadow-table1",
    "Accuracies by platform",
    f"{PAPER}, Table I",
    ("002-SH-T1", "002-DATA-Purchase"),
    _PLATFORM_ROWS,
    measure,
    (*_TARGET, Column("gap", "generalization gap")),
    (
        *_COMMON,
        _ON_STAND_IN,
        "The caption of the lecture says 5 classes; the figures are those of 100 classes in Table "
        "II.",
    ),
    (figures.beside_the_paper("test_accuracy", "test accuracy"),),
)

FIGURE_7 = Experiment(
    "shadow-figure7",
    "Precision by platform",
    f"{PAPER}, Fig. 7",
    ("002-SH-F7",),
    tuple(replace(row, paper={}) for row in _PLATFORM_ROWS),
    measure,
    (*_TARGET, *_ATTACK, Column("median_precision", "median precision of a class")),
    (*_COMMON, _ON_STAND_IN, "The paper shows curves without numbers; Google's is highest."),
    (figures.precision_curves(),),
)

_SIZES = {"cifar10": (2_500, 5_000, 10_000, 15_000), "cifar100": (4_600, 10_520, 19_920, 29_540)}
_MEDIANS = {"cifar10": (0.78, 0.74, 0.72, 0.71), "cifar100": (1.0, 1.0, 0.98, 0.97)}

FIGURE_4 = Experiment(
    "shadow-figure4",
    "Precision by class and by size of the training set",
    f"{PAPER}, Fig. 4",
    ("002-SH-F4", "002-DATA-CIFAR10", "002-DATA-CIFAR100"),
    tuple(
        Row(
            f"{data}-{n}",
            f"{data.upper().replace('R1', 'R-1')}, {n:,} at the paper's scale",
            _cifar(data, n),
            {"median_precision": median},
            ""
            if data == "cifar10"
            else "CIFAR-100 cannot be fetched: the row runs where cifar100.npz is in VESTIGE_DATA.",
        )
        for data in _SIZES
        for n, median in zip(_SIZES[data], _MEDIANS[data], strict=True)
    ),
    measure,
    (*_TARGET, Column("median_precision", "median precision of a class"), *_ATTACK[:3]),
    (
        *_COMMON[::2],
        "Two convolutions with max-pooling and a layer of 128 units as in the paper, but with ReLU "
        "for tanh and Adam; the smaller sizes are taken from memory of the paper.",
        "At the laptop scale a fifth of the records (ci: a twentieth), and 4 shadow models (ci: 3) "
        "instead of 100.",
        "The adversary's records are at most what the paper's sizes leave of the 60,000: at the "
        "largest ones a shadow model is trained on fewer records than the target.",
    ),
    (figures.precision_by_class("n_members", "records of the target"),),
)

CLASSES = Experiment(
    "shadow-classes",
    "Precision by the number of classes",
    f"{PAPER}, section VI, 10 to 100 classes",
    ("002-SH-Fcls",),
    tuple(replace(row, paper={"precision": row.paper["precision"]}) for row in _PURCHASES),
    measure,
    (*_TARGET, Column("gap", "generalization gap"), *_ATTACK),
    (*_COMMON, "On the purchase-like stand-in, never on the real Purchase data."),
    (figures.precision_by_class("n_classes", "classes"),),
)


def _data_rows(settings: Any, with_paper: bool) -> tuple[Row, ...]:
    """Fig. 9: where the shadow models' records come from."""
    sources = (
        ("real", "real records", (0.935, 0.994)),
        ("marginal", "drawn from marginals", (0.795, 0.991)),
        ("model", "found by climbing the target", (0.896, 0.526)),
        ("noisy10", "real, 10 % of the features flipped", ()),
        ("noisy20", "real, 20 % of the features flipped", ()),
    )
    return tuple(
        Row(
            name,
            title,
            settings(shadow_data=name),
            _paper(("precision", "recall"), *reported) if with_paper and reported else {},
        )
        for name, title, reported in sources
    )


FIGURE_9 = Experiment(
    "shadow-figure9",
    "Where the shadow models' records come from, Location30",
    f"{PAPER}, Fig. 9 (there on Purchase)",
    ("002-SH-F9", "002-SH-syn", "002-SH-marg", "002-SH-noise", "002-DATA-Location"),
    _data_rows(_location, True),
    measure,
    (*_ATTACK, Column("median_precision", "median precision of a class")),
    (
        *_COMMON,
        "The paper's figures are those of Purchase with 100 classes.",
        "Synthesis is asked for twice as many records as the target is trained on (or as the "
        "adversary would have real ones), within a stated budget of queries; its hyper-parameters "
        "are not in the paper (`vestige.synthesis.HillClimb`'s defaults here).",
        "Records drawn from marginals are labeled by the target's answer.",
    ),
    (figures.precision_curves(),),
)
FIGURE_9_PURCHASE = replace(
    FIGURE_9,
    id="shadow-figure9-purchase-like",
    title="Where the shadow models' records come from, purchase-like stand-in",
    paper=f"{PAPER}, Fig. 9",
    rows=_data_rows(_purchase_100, True),
    differences=(*_COMMON, _ON_STAND_IN, *FIGURE_9.differences[-2:]),
)


_DEFENSES: tuple[tuple[str, str, dict[str, Any], tuple[float, ...]], ...] = (
    ("none", "no mitigation", {}, (0.66, 0.92, 0.87, 1.00)),
    ("top3", "top 3 probabilities", {"answers": "top3"}, (0.66, 0.92, 0.87, 0.99)),
    ("top1", "top probability", {"answers": "top1"}, (0.66, 0.89, 0.83, 1.00)),
    ("label", "label only", {"answers": "label"}, (0.66, 0.66, 0.60, 0.99)),
    ("round3", "rounded to 3 digits", {"answers": "round3"}, (0.66, 0.92, 0.87, 0.99)),
    ("round1", "rounded to 1 digit", {"answers": "round1"}, (0.66, 0.89, 0.83, 1.00)),
    ("temperature5", "temperature 5", {"answers": "temperature5"}, (0.66, 0.88, 0.86, 0.93)),
    ("temperature20", "temperature 20", {"answers": "temperature20"}, (0.66, 0.84, 0.83, 0.86)),
    ("l2-1e-4", "L2, lambda 1e-4", {"l2": 1e-4}, (0.68, 0.87, 0.81, 0.96)),
    ("l2-1e-3", "L2, lambda 1e-3", {"l2": 1e-3}, (0.72, 0.77, 0.73, 0.86)),
    ("l2-1e-2", "L2, lambda 1e-2", {"l2": 1e-2}, (0.63, 0.53, 0.54, 0.52)),
    ("l2-3e-2", "L2, lambda 3e-2 (not in the paper)", {"l2": 3e-2}, ()),
    ("l2-1e-1", "L2, lambda 1e-1 (not in the paper)", {"l2": 1e-1}, ()),
)
_DEFENSE_FIGURES = ("test_accuracy", "attack_accuracy", "precision", "recall")


def _defense_rows(settings: Any) -> tuple[Row, ...]:
    return tuple(
        Row(
            name,
            title,
            settings(**changes),
            _paper(_DEFENSE_FIGURES, *reported) if reported else {},
        )
        for name, title, changes, reported in _DEFENSES
    )


MITIGATION = Experiment(
    "shadow-mitigation",
    "What a service can do about it, Location30",
    f"{PAPER}, mitigation table (there on Purchase)",
    (
        "002-MIT-topk", "002-MIT-label", "002-MIT-round", "002-MIT-temp", "002-MIT-L2",
        "002-DATA-Location",
    ),  # fmt: skip
    _defense_rows(_location),
    measure,
    (
        Column("test_accuracy", "test accuracy"),
        Column("calibration_error", "calibration error"),
        *_ATTACK,
    ),
    (
        *_COMMON,
        "The paper's figures are those of Purchase with 100 classes.",
        "The adversary's shadow models answer through the same filter (L2: are trained with the "
        "same penalty) as the target. Vectors that are cut or rounded are not scaled to sum 1.",
        "The penalty is lambda ||theta||^2, that is torch's weight_decay at 2 lambda; the paper "
        "does not say which factor its lambda has, so that two larger ones are added.",
        "Calibration error: 15 bins of the largest probability shown, on the non-members.",
    ),
    (figures.beside_the_paper("attack_accuracy", "attack accuracy"),),
)  # fmt: skip
MITIGATION_PURCHASE = replace(
    MITIGATION,
    id="shadow-mitigation-purchase-like",
    title="What a service can do about it, purchase-like stand-in",
    paper=f"{PAPER}, mitigation table",
    rows=_defense_rows(_purchase_100),
    differences=(*_COMMON, _ON_STAND_IN, *MITIGATION.differences[-3:]),
)

UNCERTAINTY = Experiment(
    "shadow-uncertainty",
    "Uncertainty and confidence of members and non-members",
    f"{PAPER}, classification uncertainty",
    ("002-SH-Func",),
    tuple(
        replace(row, paper={})
        for row in (
            _LOCATION_ROW,
            *(r for r in _PURCHASES if r.id.endswith(("-10", "-20", "-100"))),
        )
    ),
    measure,
    (*_TARGET, Column("gap", "generalization gap"), Column("attack_accuracy", "attack accuracy")),
    (
        *_COMMON,
        "Uncertainty is the entropy of the answer divided by the logarithm of the number of "
        "classes; confidence is the probability of the true class.",
    ),
    (figures.histograms("uncertainty"), figures.histograms("confidence")),
)


# --- privacy and learning ------------------------------------------------------------------------


@dataclass(frozen=True)
class All:
    """All finished rows of the other experiments."""

    least: int = 3


def gap_and_leakage(settings: All, context: Context) -> Measured:
    """Generalization gap against the attack's accuracy, over everything that was run.

    Raises:
        InvalidInput: fewer than three different models were attacked yet.
    """
    from scipy.stats import spearmanr

    points = {}
    for result in context.results():
        here = result.estimates
        if {"gap", "attack_accuracy"} <= set(here):
            # the same models behind the same filter may be a row of several tables
            points[tuple(sorted((k, str(v)) for k, v in result.settings.items()))] = (
                float(here["gap"].value or 0.0),
                float(here["attack_accuracy"].value or 0.0),
            )
    if len(points) < settings.least:
        raise InvalidInput(
            f"expected at least {settings.least} finished rows of other experiments at the scale "
            f"{context.scale}, got {len(points)}; run those first, shadow-table2 for example"
        )
    gap, leak = (np.array(side) for side in zip(*points.values(), strict=True))
    rng, n = np.random.default_rng(context.seed), len(gap)
    drawn: list[float] = []
    while len(drawn) < 1000:
        rows = rng.integers(n, size=n)
        if min(np.ptp(gap[rows]), np.ptp(leak[rows])) > 0:
            drawn.append(float(spearmanr(gap[rows], leak[rows]).statistic))
    value = float(spearmanr(gap, leak).statistic)
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    correlation = Estimate(
        value, min(low, value), max(high, value), "percentile bootstrap over rows, 1000 resamples"
    )
    series = {"gap": gap.tolist(), "attack_accuracy": leak.tolist()}
    return Measured({"rank_correlation": correlation}, series, {"n_rows": n})


PRIVACY_LEARNING = Experiment(
    "shadow-privacy-learning",
    "Privacy and learning: generalization gap against leakage",
    f"{PAPER}, privacy vs. learning",
    ("002-PvL",),
    (
        Row(
            "all",
            "all finished rows",
            {name: All() for name in ("ci", "laptop", "paper")},
            note="The rank correlation is Spearman's. Rows that share a target's data are not "
            "independent, which the interval does not know.",
        ),
    ),
    gap_and_leakage,
    (Column("rank_correlation", "rank correlation of gap and attack accuracy"),),
    (
        "Every finished row of the other experiments is a point, filters and penalties included; "
        "the gap is that of the target as it is served.",
    ),
    (figures.gap_against_leakage(),),
    from_results=True,
)

EXPERIMENTS = (
    TABLE_1,
    TABLE_2,
    FIGURE_4,
    FIGURE_7,
    FIGURE_9,
    FIGURE_9_PURCHASE,
    CLASSES,
    MITIGATION,
    MITIGATION_PURCHASE,
    UNCERTAINTY,
    PRIVACY_LEARNING,
)
