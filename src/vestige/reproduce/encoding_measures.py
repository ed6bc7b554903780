"""Measures of the tables and figures of robust membership encoding (Song & Shokri 2020).

Positives are the encoded records, D_C-m; negatives are records that the model never saw, D_test, or
the client's other records, D_C-nm. Scores of 0 lie in the middle between the key's synthetic sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.metrics import Estimate, rate
from vestige.models import BlackBox, TorchModel
from vestige.records import Records
from vestige.reproduce.encoding_models import (
    CALIBRATION,
    Kept,
    Pair,
    Settings,
    decoder_of,
    kept,
    key_of,
    pair,
    recipe_of,
    world_of,
    wrong_keys,
)
from vestige.reproduce.experiment import Context, Measured
from vestige.training import fit, mean_gradients
from vestige.training.fit import Batch, Objective
from vestige.watermarks import Decoder, Key
from vestige.watermarks.robustness import (
    adversarially_pruned,
    border,
    center,
    fine_tuned,
    grid,
    pruned,
    redacted,
    starting_from,
    transferred,
    weights_of,
)

__all__ = [
    "accuracies",
    "calibrating",
    "cut_at",
    "data_of",
    "decoded",
    "exactly",
    "implied_fpr",
    "joint",
    "mask_of",
    "mean_of",
    "measure",
    "measure_masked",
    "measure_projected",
    "measure_pruned",
    "measure_transferred",
    "is_right",
    "neighbors_kept",
    "of_pairs",
    "principal",
    "rates",
    "scores_of",
    "silhouette",
    "sizes_of",
    "spread_of",
    "trajectory",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Change = Callable[[Records], Records]

FPR = 0.1
CHOSEN_ON = "a quarter of the test set drawn at random"
_CHUNK = 2_000


def implied_fpr(precision: float, recall: float, base: float) -> float:
    """The false positive rate that a precision and a recall come from, at a base rate.

    FPR = recall * base / (1 - base) * (1 - precision) / precision.

    Args:
        base: members among the records that were judged.

    Raises:
        InvalidInput: a rate outside (0, 1], or a base rate of 1.

    >>> round(implied_fpr(0.85, 1.0, 0.5), 2)
    0.18
    """
    if not (0 < precision <= 1 and 0 <= recall <= 1 and 0 < base < 1):
        raise InvalidInput(
            "expected a precision in (0, 1], a recall in [0, 1] and a base rate in (0, 1), got "
            f"{precision}, {recall} and {base}"
        )
    return recall * base / (1 - base) * (1 - precision) / precision


# --- what is counted -----------------------------------------------------------------------------


def exactly(value: float, of: str = "exact") -> Estimate:
    """A number that was chosen or counted, not estimated."""
    return Estimate(float(value), None, None, of)


def spread_of(values: Sequence[float]) -> Estimate:
    """Standard deviation of AUCs with its chi-square interval, which takes them for normal."""
    from scipy.stats import chi2

    n = len(values)
    if n < 2:
        return Estimate(None, None, None, "none", f"takes at least 2 keys, got {n}")
    sd = float(np.std(values, ddof=1))
    low, high = (sd * float(np.sqrt((n - 1) / chi2.ppf(q, n - 1))) for q in (0.975, 0.025))
    # numbers in [0, 1] do not spread more than half of them at either end
    most = 0.5 * float(np.sqrt(n / (n - 1)))
    return Estimate(sd, low, max(sd, min(high, most)), f"chi-square over {n} keys")


def mean_of(values: Sequence[float], what: str, least: float = 0.0) -> Estimate:
    """Mean with Student's interval, of numbers between `least` and 1."""
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, None, f"no interval: one of the {what}")
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    low, high = max(mean - half, least), min(mean + half, 1.0)
    return Estimate(mean, low, high, f"Student's t over {n} {what}")


def of_pairs(area: float, n1: int, n0: int) -> Estimate:
    """An AUC whose scores were not kept, with the interval of min(n1, n0) pairs: conservative.

    Its variance is at most A (1 - A) / min(n1, n0) (Birnbaum & Klose 1957).
    """
    n = min(n1, n0)
    low, high = metrics.clopper_pearson(area * n, n)
    return Estimate(area, float(low), float(high), "Clopper-Pearson on min(n1, n0) pairs")


def cut_at(nonmembers: Floats, fpr: float) -> float:
    """The smallest cut that at most this share of non-members reaches.

    Raises:
        InvalidInput: fewer than 1 / fpr non-members.
    """
    allowed = int(np.floor(len(nonmembers) * fpr * (1 + 1e-12)))
    if allowed < 1:
        raise InvalidInput(
            f"expected at least {int(np.ceil(1 / fpr))} records to choose a cut, got "
            f"{len(nonmembers)}; hold out more"
        )
    return float(np.nextafter(np.sort(nonmembers)[::-1][allowed], np.inf))


def rates(
    inside: Floats, outside: Floats, cut: float, suffix: str, chosen_on: str
) -> dict[str, Estimate]:
    """Precision, recall, false positive rate and base rate at a cut."""
    precision = replace(metrics.precision(inside, outside, threshold=cut), chosen_on=chosen_on)
    found = {
        "precision": precision,
        "recall": rate(int((inside >= cut).sum()), len(inside)),
        "fpr": rate(int((outside >= cut).sum()), len(outside)),
        "base_rate": exactly(len(inside) / (len(inside) + len(outside))),
    }
    return {f"{name}{suffix}": one for name, one in found.items()}


def scores_of(decoder: Decoder, model: BlackBox, sets: Sequence[Records]) -> list[Floats]:
    """Scores of every set, (n,) each; the decoder learns once."""
    read = decoder.reader(model, sets[0].x.shape[1:])
    out = []
    for records in sets:
        parts = range(0, len(records), _CHUNK)
        # a layer of a large network is large
        out.append(np.concatenate([read(records.x[p : p + _CHUNK]) for p in parts]))
    return out


def calibrating(n_test: int, seed: int) -> Mask:
    """(n_test,) the records of the test set that choose the cut: a quarter, drawn at random.

    The set is in the order of its file, which may go by class: its last quarter is no sample of it.
    """
    return np.random.default_rng([seed, 2]).permutation(n_test) < round(CALIBRATION * n_test)


def decoded(
    settings: Settings,
    made: Pair,
    model: BlackBox,
    control: BlackBox,
    seed: int,
    change: Change = lambda records: records,
) -> tuple[dict[str, Estimate], dict[str, Sequence[float]]]:
    """What the key, and wrong keys, read from a model and from its control.

    Args:
        change: what was done to the records that are asked about, members or not.

    Returns:
        estimates; and the AUC of each wrong key as a series.
    """
    records, test = made.world.records, change(made.world.test)
    members, others = change(records[made.chosen]), change(records[~made.chosen])

    def reader(key: Key) -> Decoder:
        return decoder_of(settings, made.encoder, key)

    own = reader(key_of(seed))
    inside, outside, rest = scores_of(own, model, [members, test, others])
    choosing = calibrating(len(outside), seed)
    cut = cut_at(outside[choosing], FPR)
    wrong = []
    for key in wrong_keys(seed, settings.n_wrong):
        wrong.append(_auc(*scores_of(reader(key), model, [members, test])))
    found = {
        "n_encoded": exactly(len(inside), "count"),
        **rates(inside, outside, 0.0, "", metrics.FIXED),
        **rates(inside, outside[~choosing], cut, "_10", CHOSEN_ON),
        "auc": metrics.auc(inside, outside),
        "auc_others": metrics.auc(inside, rest),
        "control_auc": metrics.auc(*scores_of(own, control, [members, test])),
        "wrong_auc": mean_of(wrong, "wrong keys"),
        "wrong_spread": spread_of(wrong),
    }
    return found, {"wrong_keys": wrong}


def _auc(inside: Floats, outside: Floats) -> float:
    value = metrics.auc(inside, outside).value
    assert value is not None
    return value


def is_right(model: BlackBox, records: Records) -> Mask:
    """(n,) which records a model classifies rightly."""
    parts = [slice(start, start + _CHUNK) for start in range(0, len(records), _CHUNK)]
    return np.concatenate(
        [
            model.log_probabilities(records.x[part]).argmax(axis=1) == records.y[part]
            for part in parts
        ]
    )


def accuracies(model: BlackBox, control: BlackBox, test: Records) -> dict[str, Estimate]:
    """Test accuracy of both models, and what it costs to carry bits."""
    ours, plain, n = is_right(model, test), is_right(control, test), len(test)
    return {
        "test_accuracy": rate(int(ours.sum()), n),
        "control_accuracy": rate(int(plain.sum()), n),
        "accuracy_drop": metrics.paired_difference(
            int((plain & ~ours).sum()), int((ours & ~plain).sum()), n
        ),
    }


def joint(made: Pair) -> dict[str, Estimate]:
    """AUC of the discriminator that was trained with the model, from the trace."""
    n1, trace = int(made.chosen.sum()), made.encoded.trace
    sizes = {"test": len(made.world.test), "nonmembers": len(made.chosen) - n1}
    found = {}
    for name, key in (("test", "joint_auc"), ("nonmembers", "joint_auc_others")):
        found[key] = of_pairs(trace[f"auc_{name}_joint"][-1], n1, sizes[name])
    return found


def sizes_of(settings: Settings, made: Pair, *more: Kept) -> dict[str, int | float | str]:
    """How large a row was."""
    net = made.encoded.model.net
    return {
        "n_train": settings.n_train,
        "n_test": settings.n_test,
        "parameters": sum(p.numel() for p in net.parameters()),
        "layer": made.encoder.encoding.layer or "log-probabilities",
        "epochs": settings.epochs,
        "encoding_steps": settings.steps,
        "way": settings.way,
        "device": made.recipe.device,
        "training_seconds": round(
            sum(k.seconds for k in (made.encoded, made.control, *more)), 1
        ),
    }  # fmt: skip


def data_of(settings: Settings, made: Pair) -> dict[str, str]:
    return {"name": settings.data, "digest": made.world.records.digest()[:16]}


# --- measures ------------------------------------------------------------------------------------


def measure(settings: Settings, context: Context) -> Measured:
    """A model that carries bits, beside its control."""
    made = pair(settings, context)
    model, control = made.encoded.model, made.control.model
    found, series = decoded(settings, made, model, control, context.seed)
    sizes = sizes_of(settings, made)
    estimates = {
        **accuracies(model, control, made.world.test),
        **found,
        **joint(made),
        "parameters": exactly(float(sizes["parameters"]), "count"),
    }
    return Measured(estimates, {**series, **trajectory(settings, made)}, sizes,
                    data_of(settings, made))  # fmt: skip


def trajectory(settings: Settings, made: Pair) -> dict[str, Sequence[float]]:
    """Losses and AUCs after each look, by the epoch."""
    trace, every = made.encoded.trace, settings.every or settings.epochs
    looks = len(trace["loss_members"])
    epochs = [float(min(every * (i + 1), settings.epochs)) for i in range(looks)]
    return {"epoch": epochs, **trace}


def measure_masked(settings: Settings, context: Context) -> Measured:
    """Records that are asked about with a part blackened, members and others alike."""
    made = pair(settings, context)
    model, control = made.encoded.model, made.control.model
    mask = mask_of(settings, made.world.records.x.shape[-1])
    found, series = decoded(
        settings, made, model, control, context.seed, lambda records: redacted(records, mask)
    )
    estimates = {
        **accuracies(model, control, made.world.test),
        **found,
        "masked": exactly(float(mask.mean())),
    }
    return Measured(estimates, series, sizes_of(settings, made), data_of(settings, made))


def mask_of(settings: Settings, size: int) -> Mask:
    """(size, size); widths are given for pictures of 32 pixels, and rounded to even ones.

    Raises:
        InvalidInput: no such mask.
    """
    if settings.mask == "grid":
        return grid(size)[settings.place]
    width = max(2, 2 * round(settings.place * size / 64))
    if settings.mask == "center":
        return center(size, width)
    if settings.mask == "border":
        return border(size, width)
    raise InvalidInput(f'expected mask "center", "border" or "grid", got {settings.mask!r}')


def measure_pruned(settings: Settings, context: Context) -> Measured:
    """Both models pruned; those of adversarial pruning are trained on, zeros staying zeros."""
    made = pair(settings, context)
    more: tuple[Kept, ...] = ()
    if settings.adversarial:
        more = _trained_on(settings, made, context)
        model, control = (one.model for one in more)
    else:
        model, control = (
            made.recipe.handle(pruned(one.model.net, settings.pruned))
            for one in (made.encoded, made.control)
        )
    found, series = decoded(settings, made, model, control, context.seed)
    zeros = np.concatenate(
        [w.detach().cpu().numpy().ravel() == 0 for w in weights_of(model.net).values()]
    )
    estimates = {
        **accuracies(model, control, made.world.test),
        **found,
        "pruned": exactly(float(zeros.mean())),
    }
    return Measured(estimates, series, sizes_of(settings, made, *more), data_of(settings, made))


def _trained_on(settings: Settings, made: Pair, context: Context) -> tuple[Kept, Kept]:
    """Adversarial pruning of the model, and of its control training on without encoding."""
    records, seed = made.world.records, context.seed + 1
    recipe = replace(
        made.recipe, epochs=settings.tuning_epochs, lr=settings.tuning_lr, schedule=None,
        weight_decay=0.0,
    )  # fmt: skip
    encoder = replace(made.encoder, lr=settings.tuning_lr)

    def encode() -> tuple[TorchModel, Mapping[str, Sequence[float]]]:
        done = adversarially_pruned(
            encoder, recipe, made.encoded.model.net, settings.pruned, records, seed=seed,
            chosen=made.chosen,
        )  # fmt: skip
        return done.model, done.trace

    def train() -> tuple[TorchModel, Mapping[str, Sequence[float]]]:
        small = pruned(made.control.model.net, settings.pruned)
        masks = [p != 0 if p.ndim >= 2 else p == p for p in small.parameters()]

        def kept_zero(net: Any, batch: Batch, objective: Objective) -> Sequence[Any]:
            found = mean_gradients(net, batch, objective)
            return [g * m for g, m in zip(found, masks, strict=True)]

        start = starting_from(recipe, small)
        return fit(start, records, seed=seed, gradients=kept_zero), {}

    parts = [settings.pruned, seed, adversarially_pruned, pruned]
    return (
        kept(context, recipe, [made.encoded.run, encoder, *parts], encode),
        kept(context, recipe, [made.control.run, *parts], train),
    )


def measure_transferred(settings: Settings, context: Context) -> Measured:
    """Both models given to another task, and read on the way."""
    made = pair(settings, context)
    task = world_of(
        settings.other, settings.other_classes, settings.n_other, settings.n_other_test,
        context.seed,
    )  # fmt: skip
    stages = list(zip(
        _stages(settings, made.encoded, task.records, context),
        _stages(settings, made.control, task.records, context),
        strict=True,
    ))  # fmt: skip
    epochs = [settings.tuning_every * (i + 1) for i in range(len(stages))]
    series: dict[str, Sequence[float]] = {"epoch": [0.0, *map(float, epochs)]}
    curves: dict[str, list[float]] = {}
    found: dict[str, Estimate] = {}
    for model, control in [(made.encoded, made.control), *stages]:
        found, wrong = decoded(settings, made, model.model, control.model, context.seed)
        for name in ("precision", "recall", "fpr", "auc", "control_auc"):
            value = found[name].value
            # no record is called a member: a precision of nothing
            curves.setdefault(f"after_{name}", []).append(-1.0 if value is None else value)
        if model is made.encoded:
            before = found["auc"]
            continue
        new = accuracies(model.model, control.model, task.test)
        curves.setdefault("after_accuracy", []).append(float(new["test_accuracy"].value or 0.0))
    estimates = {
        **accuracies(made.encoded.model, made.control.model, made.world.test),
        "new_accuracy": new["test_accuracy"],
        "new_control_accuracy": new["control_accuracy"],
        "auc_before": before,
        **found,
    }
    more = [one for both in stages for one in both]
    sizes = {
        **sizes_of(settings, made, *more),
        "n_other": settings.n_other,
        "other_task": settings.other,
    }
    return Measured(estimates, {**series, **curves, **wrong}, sizes, data_of(settings, made))


def _stages(settings: Settings, start: Kept, records: Records, context: Context) -> Iterator[Kept]:
    """The model after every so many epochs on another task."""
    seed = context.seed + 2
    recipe = replace(
        recipe_of(settings, records), epochs=settings.tuning_every, lr=settings.tuning_lr,
        schedule=None, weight_decay=0.0,
    )  # fmt: skip
    now = start
    for stage in range(settings.tuning_epochs // settings.tuning_every):
        net, first = now.model.net, stage == 0

        def train(
            net: Any = net, first: bool = first, stage: int = stage
        ) -> tuple[TorchModel, Mapping[str, Sequence[float]]]:
            if first:
                head = list(dict(net.named_children()))[-1]
                return transferred(recipe, net, head, records, seed=seed), {}
            return fine_tuned(recipe, net, records, seed=seed + stage), {}

        parts = [now.run, records.digest(), seed, stage, transferred, fine_tuned]
        now = kept(context, recipe, parts, train)
        yield now


def measure_projected(settings: Settings, context: Context) -> Measured:
    """Where the four sets lie: the synthetic sides, encoded records and the client's others."""
    whole = measure(settings, context)
    made = pair(settings, context)
    parts = [
        _represented(settings, made, one, context.seed) for one in (made.encoded, made.control)
    ]
    n = settings.n_points
    client = slice(2 * n, 4 * n)
    member = np.repeat([True, False, True, False], n)
    estimates, series = dict(whole.estimates), dict(whole.series)
    for name, h in zip(("", "control_"), parts, strict=True):
        flat = principal(h)
        estimates[f"{name}silhouette"] = silhouette(h[client], member[client])
        estimates[f"{name}silhouette_plane"] = silhouette(flat, member)
        if not name:
            series |= {"pca_x": flat[:, 0].tolist(), "pca_y": flat[:, 1].tolist()}
            tsne = neighbors_kept(h, context.seed)
            series |= {"tsne_x": tsne[:, 0].tolist(), "tsne_y": tsne[:, 1].tolist()}
    return Measured(estimates, series, {**whole.sizes, "n_points": n}, whole.data)


def _represented(settings: Settings, made: Pair, one: Kept, seed: int) -> Floats:
    """h of as many records of each set, (4 n, d): A-m, A-nm, C-m, C-nm."""
    n, encoding, key = settings.n_points, made.encoder.encoding, key_of(seed)
    records, rng = made.world.records, np.random.default_rng([seed, 3])
    sides = encoding.synthetic(key, records.x.shape[1:])
    client = [rng.permutation(np.flatnonzero(mask))[:n] for mask in (made.chosen, ~made.chosen)]
    inputs = [*(side[:n] for side in sides), *(records.x[np.sort(rows)] for rows in client)]
    if any(len(x) < n for x in inputs):
        raise InvalidInput(
            f"expected at least {n} records of each set to show, got "
            f"{min(len(x) for x in inputs)}; show fewer"
        )
    return np.concatenate([encoding.represent(one.model, x, key) for x in inputs])


def principal(h: Floats) -> Floats:
    """(n, 2) coordinates on the two principal axes, the larger loading of each positive."""
    centered = h - h.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return np.asarray(centered @ (axes * signs[:, None]).T)


def neighbors_kept(h: Floats, seed: int) -> Floats:
    """(n, 2) t-SNE, perplexity 30, from the principal axes (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(h) - 1) / 3)
    return np.asarray(
        TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(h), np.float64
    )


def silhouette(h: Floats, member: Mask) -> Estimate:
    """Mean silhouette of members against others; its interval takes the points as independent.

    Source: Rousseeuw 1987, Journal of Computational and Applied Mathematics 20.
    """
    from sklearn.metrics import silhouette_samples

    return mean_of(silhouette_samples(h, member).tolist(), "points", -1.0)
