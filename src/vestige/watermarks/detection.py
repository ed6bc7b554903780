"""Was a memory trained into this model? What its owner can check without the key.

A program that one does not trust has trained a model on one's records. Models that one trains by
the same recipe say what is usual; a model that carries bits (Song & Shokri 2020) is unusual in what
it does to noise, to the records it was trained on, and in its weights.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vestige.errors import InvalidInput
from vestige.models import BlackBox, TorchModel, WhiteBox
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.training.fit import built
from vestige.training.many import train_many
from vestige.training.recipe import TorchRecipe
from vestige.training.store import Store

__all__ = ["KINDS", "Detection", "Detector", "Finding", "Kind", "Probe", "Statistics", "compare"]

Floats = NDArray[np.float64]
Kind = Literal["memory", "clusters", "spread", "noise", "level", "norm", "spectral"]
Statistics = Mapping[tuple[str, Kind], float]
"""By layer ("" for the log-probabilities, a parameter's name for weights) and kind."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_WORDS: Mapping[Kind, str] = {
    "memory": "distance of trained from held-out records along a random key's line",
    "clusters": "skewness of trained records of a class along random keys' lines",
    "spread": "variance of trained records within classes, log",
    "noise": "largest variance of means of noise, log",
    "level": "mean size of outputs on noise, log",
    "norm": "squared norm of the weights, log",
    "spectral": "largest singular value of the weights, log",
}
_ONE_SIDED: frozenset[Kind] = frozenset({"memory", "clusters"})
_TINY = 1e-12
_OUTERMOST = 10


# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probe:
    """What models are asked, the same for all of them.

    Attributes:
        records: that the model was trained on.
        held_out: of the same origin, that it was not trained on.
        layers: linear and convolutional ones, as `net.named_modules()` names them.
        kinds: of statistics.
        n_keys: pairs of random means of noise, as a key draws one.
        n_noise: draws around each mean.
        low, high: between which the means are drawn; None for the range of the records.
        n_units: outputs of a layer that are looked at, at most.
        seed: of noise and units.
    """

    records: Records
    held_out: Records
    layers: tuple[str, ...]
    kinds: tuple[Kind, ...] = KINDS
    n_keys: int = 64
    n_noise: int = 16
    low: float | None = None
    high: float | None = None
    n_units: int = 256
    seed: int = 0

    @cached_property
    def noise(self) -> NDArray[np.float32]:
        """(2 n_keys n_noise, *shape), around one mean after the other."""
        rng, shape = np.random.default_rng([self.seed, 1]), self.records.x.shape[1:]
        low = float(np.min(self.records.x[:])) if self.low is None else self.low
        high = float(np.max(self.records.x[:])) if self.high is None else self.high
        means = rng.uniform(low, high, (2 * self.n_keys, 1, *shape))
        draws = rng.normal(size=(2 * self.n_keys, self.n_noise, *shape))
        return (means + draws).reshape(-1, *shape).astype(np.float32)

    def statistics(self, model: BlackBox) -> Statistics:
        """Every statistic of a model; of one that shows its answers only, those of the answers."""
        names = self.layers if isinstance(model, WhiteBox) else ()
        found: dict[tuple[str, Kind], float] = {}
        for name in (*names, ""):
            parts = [
                self._represent(model, name, x)
                for x in (self.records.x, self.held_out.x, self.noise)
            ]
            found |= {(name, kind): value for kind, value in self._of_layer(*parts).items()}
        if isinstance(model, TorchModel):
            found |= _of_weights(model.net)
        return {(name, kind): v for (name, kind), v in found.items() if kind in self.kinds}

    def _represent(self, model: BlackBox, layer: str, x: Any) -> Floats:
        if not layer:
            return model.log_probabilities(x)
        assert isinstance(model, WhiteBox)
        outputs = np.asarray(model.activations(x, layer), np.float64).reshape(len(x), -1)
        if outputs.shape[1] > self.n_units:
            rng = np.random.default_rng([self.seed, 2])
            outputs = outputs[:, rng.permutation(outputs.shape[1])[: self.n_units]]
        return np.asarray(np.tanh(outputs))

    def _of_layer(self, trained: Floats, held_out: Floats, noise: Floats) -> dict[Kind, float]:
        means = noise.reshape(2 * self.n_keys, self.n_noise, -1).mean(axis=1)
        # a key's line leads from one of its means to the other; an encoded model stretches all of
        # them along the one that carries the bit
        lines = means[: self.n_keys] - means[self.n_keys :]
        _, sizes, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
        y = np.concatenate([self.records.y, self.held_out.y])
        inside, outside = np.split(
            _within(np.concatenate([trained, held_out]), y), [len(self.records)]
        )
        both = np.concatenate([lines, axes[:6]]).T
        return {
            "memory": float(_gaps(inside @ both, outside @ both).max()),
            "clusters": float(np.abs(_skewness(inside @ lines.T)).mean()),
            "spread": _log(inside.var(axis=0).sum()),
            "noise": _log(sizes[0] ** 2),
            "level": _log(np.abs(noise).mean()),
        }


def _within(h: Floats, y: NDArray[np.int64]) -> Floats:
    """Representations less the mean of their class."""
    out = np.empty_like(h)
    for label in np.unique(y):
        here = y == label
        out[here] = h[here] - h[here].mean(axis=0)
    return out


def _gaps(a: Floats, b: Floats) -> Floats:
    """Largest distance of the distribution functions of two samples, column by column.

    In its standard deviations were they alike, sqrt(q (1 - q) (1/n + 1/m)) at a share q of both
    together, so that a few records far out are seen too; not among the ten outermost.
    """
    together, n, m = np.concatenate([a, b]), len(a), len(b)
    order = np.argsort(together, axis=0, kind="stable")
    steps = np.where(order < n, 1 / n, -1 / m).cumsum(axis=0)
    ranked = np.take_along_axis(together, order, axis=0)
    # among equal values only the last one counts
    last = ranked[:-1] < ranked[1:]
    q = (np.arange(1, n + m) / (n + m))[:, None]
    found = np.abs(steps[:-1]) / np.sqrt(q * (1 - q) * (1 / n + 1 / m)) * last
    return np.asarray(found[_OUTERMOST - 1 : n + m - _OUTERMOST].max(axis=0, initial=0.0))


def _skewness(columns: Floats) -> Floats:
    centered = columns - columns.mean(axis=0)
    return np.asarray((centered**3).mean(axis=0) / np.maximum(columns.std(axis=0), _TINY) ** 3)


def _log(value: float) -> float:
    return float(np.log(max(float(value), _TINY)))


def _of_weights(net: nn.Module) -> dict[tuple[str, Kind], float]:
    found: dict[tuple[str, Kind], float] = {}
    for name, weight in net.named_parameters():
        if weight.ndim < 2:
            continue
        with torch.no_grad():
            matrix = weight.double().flatten(1).cpu()
            sizes = torch.linalg.svdvals(matrix)
        found[name, "norm"] = _log(float((sizes**2).sum()))
        found[name, "spectral"] = _log(float(sizes[0]))
    return found


# --- what is usual -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One statistic of the model, beside those of the references.

    Attributes:
        layer: a module's or parameter's name; "" for the log-probabilities.
        kind: of the statistic.
        value: the model's.
        usual: (smallest, largest) of the references.
        deviation: of the value from the references' mean, in their standard deviations, in the
            direction that alarms.
        p_value: by its rank, on its own.
        adjusted: for all statistics that were looked at.
    """

    layer: str
    kind: Kind
    value: float
    usual: tuple[float, float]
    deviation: float
    p_value: float
    adjusted: float

    def __str__(self) -> str:
        where = self.layer or "log-probabilities"
        return (
            f"{where}, {self.kind}: {self.value:.3g}, references {self.usual[0]:.3g} to "
            f"{self.usual[1]:.3g} ({self.deviation:+.1f} deviations, p = {self.p_value:.3g}, "
            f"adjusted {self.adjusted:.3g}): {_WORDS[self.kind]}"
        )


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes:
        alarm: p_value <= alpha; None where so few references cannot resolve it.
        p_value: that a model of the recipe is at least as unusual in its most unusual statistic.
        alpha: the false-alarm rate that was asked for.
        findings: most unusual first.
        n_references: models that the client trained.
    """

    alarm: bool | None
    p_value: float
    alpha: float
    findings: tuple[Finding, ...]
    n_references: int

    def of(self, *kinds: Kind) -> float:
        """The least adjusted p-value among the statistics of these kinds; no correction is left
        to be made.

        Raises:
            InvalidInput: no such statistic was looked at.
        """
        found = [f.adjusted for f in self.findings if f.kind in kinds]
        if not found:
            raise InvalidInput(f"expected a kind that was looked at, got {', '.join(kinds)}")
        return min(found)

    def __str__(self) -> str:
        k = self.n_references
        if self.alarm is None:
            at_least = int(np.ceil(1 / self.alpha - 1e-9)) - 1
            head = (
                f"Not resolvable: {k} references give no p-value below {1 / (k + 1):.3g}; a "
                f"false-alarm rate of {self.alpha:g} takes {at_least} of them."
            )
        elif self.alarm:
            head = (
                f"Alarm: p = {self.p_value:.3g} at a false-alarm rate of {self.alpha:g}, among {k} "
                "references. A model of this recipe is seldom so unusual. Something else than "
                "the recipe was done in training, which may be an encoding, and may be another "
                "rate, number of epochs or release of a library; only unusual memory says that it "
                "concerns the records."
            )
        else:
            head = (
                f"No alarm: p = {self.p_value:.3g} at a false-alarm rate of {self.alpha:g}, among "
                f"{k} references. No alarm is no proof: a weak encoding, or one that was made "
                "to look usual, is not seen."
            )
        if self.alarm is not None:
            head += (
                " The false-alarm rate is an average over sets of references: of one set it may be "
                "higher or lower."
            )
        return "\n".join([textwrap.fill(head, 96), *(f"  {f}" for f in self.findings[:5])])


def compare(target: Statistics, references: Sequence[Statistics], alpha: float) -> Detection:
    """A model's place among models of the recipe.

    Each model, the target as any other, is taken out in turn, and each of its statistics compared
    with those of all the others: z = (value - mean) / deviation, |z| where both directions are
    unusual. Its largest z is the model's; the target's rank among these is the p-value. As nothing
    here knows which model is the target, P(p <= alpha) <= alpha for a model that was trained as
    the references were, for any number of dependent statistics.

    Raises:
        InvalidInput: fewer than two references, statistics that differ or are not finite, or alpha
            not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"expected alpha in (0, 1), got {alpha}")
    if len(references) < 2:
        raise InvalidInput(f"expected at least two references, got {len(references)}")
    names = list(target)
    if not names or any(set(r) != set(names) for r in references):
        raise InvalidInput("expected the same statistics of all models, got others")
    table = np.array([[s[n] for n in names] for s in (target, *references)])
    if not np.isfinite(table).all():
        raise InvalidInput("expected finite statistics, got others; did a training diverge?")
    z = _deviations(table)
    unusual = np.where([kind in _ONE_SIDED for _, kind in names], z, np.abs(z))
    largest, total = unusual.max(axis=1), len(table)
    findings = [
        Finding(
            layer,
            kind,
            float(table[0, j]),
            (float(table[1:, j].min()), float(table[1:, j].max())),
            float(z[0, j]),
            float((unusual[:, j] >= unusual[0, j]).sum()) / total,
            float(1 + (largest[1:] >= unusual[0, j]).sum()) / total,
        )
        for j, (layer, kind) in enumerate(names)
    ]
    order = np.argsort(-unusual[0], kind="stable")
    p_value = float((largest >= largest[0]).sum()) / total
    # a rank of 1 of 20 is 0.05, also where the division rounds up
    alarm = bool(p_value <= alpha * (1 + 1e-9)) if resolvable(len(references), alpha) else None
    return Detection(alarm, p_value, alpha, tuple(findings[j] for j in order), len(references))


def resolvable(n_references: int, alpha: float) -> bool:
    """Whether an alarm is possible: 1 / (k + 1) <= alpha."""
    return 1 / (n_references + 1) <= alpha * (1 + 1e-9)


def _deviations(table: Floats) -> Floats:
    """Each row's distance from the mean of the others, in their standard deviations."""
    out = np.empty_like(table)
    # equal values of all others leave rounding only
    floor = _TINY * np.maximum(np.abs(table).max(axis=0), 1)
    for i, row in enumerate(table):
        others = np.delete(table, i, axis=0)
        out[i] = (row - others.mean(axis=0)) / np.maximum(others.std(axis=0, ddof=1), floor)
    return out


# --- the detector --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """Tells a model that was trained by the recipe from one that carries something.

    The references are trained at the first question, on the same records, with seeds of their own,
    and serve for all models that come from these records.

    Args:
        recipe: by which the model is said to be trained.
        records: on which it was trained, all of them.
        held_out: of the same origin, on which it was not.
        n_references: k, models that are trained; p-values are multiples of 1 / (k + 1).
        alpha: the false-alarm rate.
        kinds: of statistics; ("memory",) sees little of another rate, number of epochs or
            optimizer than the recipe's, and little of weak encodings.
        n_keys: random keys that are tried.
        low, high: range of the means of noise; None for that of the records.
        seed: of references and noise; one that the program cannot guess.
        store: where references are kept, so that a run that was stopped goes on.
        progress: called with a label, the models done and the total.

    The rate holds on average over references, for a model that differs from them in its seed only.
    """

    recipe: TorchRecipe
    records: Records
    held_out: Records
    n_references: int = 19
    alpha: float = 0.05
    kinds: tuple[Kind, ...] = KINDS
    n_keys: int = 64
    low: float | None = None
    high: float | None = None
    seed: int = 0
    store: Store | None = None
    progress: Progress = quiet

    def __post_init__(self) -> None:
        if self.n_references < 2 or not 0 < self.alpha < 1:
            raise InvalidInput(
                f"expected at least two references and alpha in (0, 1), got {self.n_references} "
                f"and {self.alpha}"
            )
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown or not self.kinds:
            raise InvalidInput(f"expected kinds among {', '.join(KINDS)}, got {self.kinds}")
        if self.n_keys < 1 or len(self.records) < 2 or len(self.held_out) < 2:
            raise InvalidInput("expected a key to try and records on both sides, got too few")
        if np.isin(self.held_out.content_hash(), self.records.content_hash()).all():
            raise InvalidInput("expected held-out records, got those of the training")

    @cached_property
    def probe(self) -> Probe:
        """What all models are asked."""
        net = built(self.recipe, 0)
        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        layers = tuple(n for n, m in net.named_modules() if n and isinstance(m, kinds))
        return Probe(
            self.records,
            self.held_out,
            layers,
            kinds=self.kinds,
            n_keys=self.n_keys,
            low=self.low,
            high=self.high,
            seed=self.seed,
        )

    @cached_property
    def references(self) -> tuple[Statistics, ...]:
        """Statistics of models of the recipe, n_references of them."""
        table = np.ones((self.n_references, len(self.records)), dtype=bool)
        pool = train_many(
            self.recipe,
            self.records,
            table,
            seed=self.seed,
            store=self.store,
            progress=self.progress,
        )
        return tuple(self.probe.statistics(model) for model in pool.models)

    def run(self, target: BlackBox) -> Detection:
        """Compare a model with the references.

        Args:
            target: a handle; of one that cannot be looked into only its answers are compared.

        Raises:
            InvalidInput: it has not the recipe's layers.
        """
        self._check(target)
        found = self.probe.statistics(target)
        if not found:
            raise InvalidInput(
                f"expected a model that can be looked into, for {', '.join(self.kinds)}, got "
                f"{type(target).__name__}"
            )
        references = [{n: r[n] for n in found} for r in self.references]
        return compare(found, references, self.alpha)

    def _check(self, target: BlackBox) -> None:
        if not isinstance(target, TorchModel):
            return
        expected = {n: tuple(p.shape) for n, p in built(self.recipe, 0).named_parameters()}
        found = {n: tuple(p.shape) for n, p in target.net.named_parameters()}
        if found != expected:
            other = sorted(set(found.items()) ^ set(expected.items()))[0][0]
            raise InvalidInput(
                f"expected a model of the recipe's architecture, got another at {other}; a "
                "program that changed it did not follow the recipe"
            )
