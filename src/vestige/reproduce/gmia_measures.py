"""What is measured of generalized membership inference: the same question, of the same models.

The records of the pool that no neighbor hides are judged on all of the targets: by their own
answers, by those of other records, by the prior attack, and by eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.attacks.gmia import neighborhood, smooth_log_p_values, trained_on_content
from vestige.attacks.indirect import Enhancing, IndirectGMIA
from vestige.attacks.shadow import Shadow
from vestige.metrics import Estimate, rate
from vestige.pool import Pool
from vestige.progress import Progress
from vestige.records import Records
from vestige.reproduce.experiment import Context, Measured
from vestige.reproduce.gmia_models import EVERYONE, Settings, Trained, schema, seeds, trained
from vestige.signals import correctness, cross_entropy_loss, true_class_margin
from vestige.training import Store

__all__ = [
    "Judged", "accuracies", "by_neighbors", "curve", "decisions", "judge", "judged_once",
    "judgment", "mean_of", "measure", "measure_enhancing", "measure_histogram", "measure_indirect",
    "measure_pictures", "measure_prior", "merged", "most_isolated", "rank_p_values",
]  # fmt: skip

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


# --- who is judged, and how ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """Every selected record on every target.

    Attributes:
        chosen: (n_pool,) which records of the pool.
        member: (n_targets, n) who was trained on whom.
        log_p: (n_targets, n) logs of smoothed p-values.
        rank_p: (n_targets, n) exact ranks.
        all_member, all_rank_p: (n_targets, n_pool) the same of every record.
        correct: (n_targets, n_pool) whether a target is right.
        expected: (n_pool,) neighbors to expect in a training set.
        nearest: (n_pool,) distance of the nearest of the adversary's records.
    """

    chosen: Mask
    member: Mask
    log_p: Floats
    rank_p: Floats
    all_member: Mask
    all_rank_p: Floats
    correct: Floats
    expected: Floats
    nearest: Floats


def judge(settings: Settings, made: Trained) -> Judged:
    """Select by the references alone, then compare each target with them."""
    pool, references = made.records, made.references
    # a bootstrap of N draws holds less than N records, and a target holds N
    near = neighborhood(
        pool,
        references,
        delta=settings.delta,
        features=settings.features,
        n_train=made.n_train,
    )
    chosen = np.asarray(near.expected < settings.beta)
    phi, correct = made.targets.read([true_class_margin, correctness], pool)
    null = references.signals(true_class_margin, pool)
    outside = ~trained_on_content(references, pool)
    ranks = rank_p_values(phi, null, outside)
    places = np.flatnonzero(chosen)
    log_p = np.zeros((len(phi), len(places)))
    for j, place in enumerate(places):
        log_p[:, j] = smooth_log_p_values(phi[:, place], null[outside[:, place], place])
    member = made.targets.member
    return Judged(
        chosen, member[:, chosen], log_p, ranks[:, chosen], member, ranks, correct, near.expected,
        near.distance[:, 0],
    )  # fmt: skip


def rank_p_values(phi: Floats, null: Floats, outside: Mask) -> Floats:
    """(1 + #{margins of references not below}) / (k + 1), column by column.

    Args:
        phi: (n_targets, n) the targets' margins.
        null: (k, n) those of the references.
        outside: (k, n) which of them were trained without the record.
    """
    ranks = np.empty(phi.shape)
    for j in range(phi.shape[1]):
        own = np.sort(null[outside[:, j], j])
        ranks[:, j] = (1 + len(own) - np.searchsorted(own, phi[:, j], "left")) / (1 + len(own))
    return ranks


@lru_cache(maxsize=2)
def judged_once(
    settings: Settings, seed: int, store: Store, progress: Progress
) -> tuple[Trained, Judged]:
    """Rows that differ in the cutoff only are read off the same judgment."""
    made = trained(settings, seed, store, progress)
    return made, judge(settings, made)


def judgment(settings: Settings, context: Context, pool: int = 0) -> tuple[Trained, Judged]:
    """Models and judgment of one draw of the pool."""
    plain = replace(settings, cutoff=0.01, confidence=0.5, n_pools=1)
    seed = seeds(context.seed, pool)[-1] if pool else context.seed
    return judged_once(plain, seed, context.store, context.progress)


def merged(parts: Sequence[Judged]) -> Judged:
    """Judgments of several pools side by side: target k of each is row k."""
    return Judged(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in Judged.__dataclass_fields__
        )
    )


# --- numbers -------------------------------------------------------------------------------------


def measure(settings: Settings, context: Context) -> Measured:
    """Direct inference at one cutoff."""
    made, judged = judgment(settings, context)
    if settings.n_pools > 1:
        others = [judgment(settings, context, pool)[1] for pool in range(1, settings.n_pools)]
        judged = merged([judged, *others])
    k = len(made.references.models)
    called = judged.log_p <= np.log(settings.cutoff)
    found = decisions(called, judged.member)
    if settings.cutoff < 2 / (k + 1):
        found["rank_precision"] = found["rank_recall"] = unknown(
            f"{k} references resolve p-values from {2 / (k + 1):.4g} on: a normal tail decides"
        )
    else:
        exact = decisions(judged.rank_p <= settings.cutoff, judged.member)
        found["rank_precision"], found["rank_recall"] = exact["precision"], exact["recall"]
    found["auc"] = auc_of(judged.rank_p, judged.member)
    found["auc_all"] = auc_of(judged.all_rank_p, judged.all_member)
    if settings.n_pools == 1:
        found |= accuracies(judged)
    series: dict[str, Sequence[float]] = {**curve(judged.log_p, judged.member)}
    if settings.beta >= EVERYONE:
        series |= by_neighbors(judged, settings.cutoff)
    return Measured(found, series, _sizes(settings, made, judged), _digests(settings, made))


def decisions(called: Mask, member: Mask) -> dict[str, Estimate]:
    """Precision, recall, false positive rate and counts of decisions, (n_targets, n) both.

    Half of the targets were trained on each record, so that the base rate is one half. Intervals
    take decisions for independent: those of one record are not, nor those of one target.
    """
    tp, fp = int((called & member).sum()), int((called & ~member).sum())
    n1, n0 = int(member.sum()), int((~member).sum())
    if not n1:
        none = unknown("no record stands out")
        rates = dict.fromkeys(("precision", "recall", "fpr"), none)
    else:
        nothing = unknown("undefined: nothing is called a member")
        rates = {
            "precision": rate(tp, tp + fp) if tp + fp else nothing,
            "recall": rate(tp, n1),
            "fpr": rate(fp, n0),
        }
    return {**rates, "tp": count(tp), "fp": count(fp), "n_selected": count(member.shape[1])}


def count(n: int) -> Estimate:
    """A number that was counted, not estimated."""
    return Estimate(float(n), None, None, "count")


def unknown(why: str) -> Estimate:
    return Estimate(None, None, None, "none", why)


def auc_of(p: Floats, member: Mask) -> Estimate:
    """Of p-values over all records and targets; chance is 0.5, whatever the record."""
    if not member.any():
        return unknown("no record stands out")
    return metrics.auc(-p[member], -p[~member])


def accuracies(judged: Judged) -> dict[str, Estimate]:
    """Means over the targets with their intervals, and standard deviations.

    A target is tested on the half of the pool that trains its complement.
    """
    from scipy.stats import t

    found = {}
    for name, side in (("train", judged.all_member), ("test", ~judged.all_member)):
        shares = (judged.correct * side).sum(axis=1) / side.sum(axis=1)
        mean, spread = float(shares.mean()), float(shares.std(ddof=1))
        half = float(t.ppf(0.975, len(shares) - 1)) * spread / np.sqrt(len(shares))
        method = f"Student's t over {len(shares)} targets"
        found[f"{name}_accuracy"] = Estimate(mean, mean - half, mean + half, method)
        found[f"{name}_spread"] = Estimate(spread, None, None, "standard deviation over targets")
    return found


_POINTS = 120


def curve(log_p: Floats, member: Mask) -> dict[str, list[float]]:
    """Precision and recall at every cutoff, as many points as a figure shows."""
    if not member.any():
        return {"curve_recall": [], "curve_precision": []}
    values, truth = log_p.ravel(), member.ravel()
    order = np.argsort(values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.flatnonzero(np.append(np.diff(values) > 0, True))
    tp = np.cumsum(truth)[last]
    recall, precision = tp / truth.sum(), tp / (last + 1)
    # close together where few are called, and precision moves
    places = np.unique(np.rint(np.geomspace(1, len(last), _POINTS)).astype(int) - 1)
    return {
        "curve_recall": recall[places].tolist(),
        "curve_precision": precision[places].tolist(),
    }


_EDGES = (0.0, 1.0, 4.0, 11.0, 32.0, 101.0, 317.0, 1_001.0, 3_163.0, 10_001.0, np.inf)


def by_neighbors(judged: Judged, cutoff: float) -> dict[str, list[float]]:
    """AUC, recall and false positive rate of records by how many neighbors they may expect."""
    out: dict[str, list[float]] = {
        name: [] for name in ("neighbors", "records", "auc", "auc_low", "auc_high", "tpr", "fpr")
    }
    edges = np.array(_EDGES) * 0.1
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = (judged.expected >= low) & (judged.expected < high)
        if not here.any():
            continue
        p, member = judged.all_rank_p[:, here], judged.all_member[:, here]
        found = auc_of(p, member)
        assert found.value is not None and found.low is not None and found.high is not None
        out["neighbors"].append(float(judged.expected[here].mean()))
        out["records"].append(float(here.sum()))
        out["auc"].append(found.value)
        out["auc_low"].append(found.low)
        out["auc_high"].append(found.high)
        out["tpr"].append(float((p[member] <= cutoff).mean()))
        out["fpr"].append(float((p[~member] <= cutoff).mean()))
    return {f"by_{name}": values for name, values in out.items()}


def _sizes(settings: Settings, made: Trained, judged: Judged) -> dict[str, int | float | str]:
    k = len(made.references.models)
    contents = made.records.content_hash()
    _, where, times = np.unique(contents, return_inverse=True, return_counts=True)
    sides = (made.targets, made.references)
    return {
        "n_pools": settings.n_pools,
        "n_pool": len(made.records),
        "n_train": made.n_train,
        "n_reference_records": len(made.references.records),
        "n_targets": len(made.targets.models),
        "n_references": k,
        "selected_twice_in_pool": int((times[where] > 1)[judged.chosen[: len(where)]].sum()),
        "smallest_p_of_ranks": round(1 / (k + 1), 6),
        "decided_by": "references" if settings.cutoff >= 2 / (k + 1) else "normal tail",
        "training_seconds": round(sum(float(s.provenance["seconds"]) for s in sides), 1),
        "training_path": str(made.targets.provenance["path"]),
    }


def _digests(settings: Settings, made: Trained) -> dict[str, str]:
    return {"name": settings.data, "digest": made.records.digest()[:16]}


# --- the prior attack ----------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _prior(settings: Settings, seed: int, store: Store, progress: Progress) -> Floats:
    """Probabilities of "in", (n_targets, n), by the attack of Shokri et al. 2017."""
    made, judged = judged_once(settings, seed, store, progress)
    some, references = settings.n_shadows, made.references
    known = Pool(references.models[:some], references.records, references.member[:some])
    attack = Shadow(seed=made.seed, calibration=0.0).trained(known)
    chosen = made.records[judged.chosen]
    return np.stack([attack.score(target, chosen).values for target in made.targets.models])


def measure_prior(settings: Settings, context: Context) -> Measured:
    """The prior attack at one confidence, and ours at p <= 0.01, on the same decisions."""
    made, judged = judgment(settings, context)
    if judged.chosen.any():
        plain = replace(settings, cutoff=0.01, confidence=0.5)
        inside = _prior(plain, context.seed, context.store, context.progress)
    else:
        inside = np.zeros(judged.member.shape)
    found = decisions(inside >= settings.confidence, judged.member)
    ours = decisions(judged.log_p <= np.log(settings.cutoff), judged.member)
    found["prior_auc"] = auc_of(-inside, judged.member)
    found["auc"] = auc_of(judged.rank_p, judged.member)
    found |= {f"gmia_{name}": ours[name] for name in ("precision", "recall", "fpr")}
    sizes = {**_sizes(settings, made, judged), "n_shadows": settings.n_shadows}
    return Measured(found, {}, sizes, _digests(settings, made))


# --- without asking about the record -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Attacked:
    """Some records, by their own answers and by those of their enhancing records.

    Attributes:
        places: (n,) their rows in the pool.
        member: (n_targets, n) which targets were trained on them.
        direct, indirect: (n_targets, n) logs of p-values; NaN where no query was accepted.
        queries: what the targets were asked instead of each.
    """

    made: Trained
    judged: Judged
    places: NDArray[np.int64]
    member: Mask
    direct: Floats
    indirect: Floats
    queries: tuple[Enhancing, ...]


def most_isolated(judged: Judged) -> NDArray[np.int64]:
    """Rows of the pool: fewest neighbors first, among equals the farthest from its nearest."""
    return np.lexsort((-judged.nearest, judged.expected))


@lru_cache(maxsize=2)
def _attacked(settings: Settings, seed: int, store: Store, progress: Progress) -> _Attacked:
    alone = replace(settings, n_records=1)
    made, judged = judged_once(alone, seed, store, progress)
    places = most_isolated(judged)[: settings.n_records]
    records = made.records[places]
    attack = IndirectGMIA(
        recipe=made.recipe,
        schema=schema(settings.data, made.references.records),
        n_random=settings.n_random,
        draw=settings.draw,
        theta=settings.theta,
        seed=made.seed,
    )
    phi = made.targets.signals(true_class_margin, records)
    null = made.references.signals(true_class_margin, records)
    outside = ~trained_on_content(made.references, records)
    direct, indirect = np.empty(phi.shape), np.full(phi.shape, np.nan)
    queries = []
    for j in range(len(records)):
        progress("queries", j, len(records))
        direct[:, j] = smooth_log_p_values(phi[:, j], null[outside[:, j], j])
        found = attack.enhancing(records[[j]], made.references)
        queries.append(found)
        if len(found):
            label = int(records.y[j])
            answered = [attack.p_values(t, found, label).log_p for t in made.targets.models]
            indirect[:, j] = np.array(answered, dtype=np.float64).reshape(-1)
    member = made.targets.member[:, places]
    return _Attacked(made, judged, places, member, direct, indirect, tuple(queries))


def measure_indirect(settings: Settings, context: Context) -> Measured:
    """Some records at one cutoff, asked about and not."""
    plain = replace(settings, cutoff=0.01)
    made = _attacked(plain, context.seed, context.store, context.progress)
    bound, member = np.log(settings.cutoff), made.member
    found = _named("direct", decisions(made.direct <= bound, member))
    found["direct_auc"] = auc_of(made.direct, member)
    series = _named("direct", curve(made.direct, member))
    some = [j for j, queries in enumerate(made.queries) if len(queries)]
    if some:
        indirect, member = made.indirect[:, some], member[:, some]
        found |= _named("indirect", decisions(indirect <= bound, member))
        found["indirect_auc"] = auc_of(indirect, member)
        series |= _named("indirect", curve(indirect, member))
        distances, influence = (
            np.concatenate([getattr(made.queries[j], name) for j in some])
            for name in ("distance", "influence")
        )
        found["least_distance"] = Estimate(float(distances.min()), None, None, "smallest")
        found["influence"] = Estimate(float(influence.mean()), None, None, "mean")
    else:
        none = unknown("no query is influenced by the record in enough reference models")
        rates = [f"indirect_{name}" for name in ("precision", "recall", "fpr", "auc")]
        found |= dict.fromkeys((*rates, "least_distance", "influence"), none)
    found["n_queries"] = count(sum(len(queries) for queries in made.queries))
    trained, judged, first = made.made, made.judged, made.places[0]
    sizes = {
        **_sizes(settings, trained, judged),
        "n_records": len(made.places),
        "n_attacked_indirectly": len(some),
        "n_optimized": sum(int(queries.optimized.sum()) for queries in made.queries),
        "record": str(trained.records.ids[first]),
        "n_that_stand_out": int(judged.chosen[made.places].sum()),
        "nearest_neighbor": round(float(judged.nearest[first]), 4),
    }
    return Measured(found, series, sizes, _digests(settings, trained))


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    short = {name: name.removeprefix("curve_") for name in values}
    return {f"{prefix}_{short[name]}": value for name, value in values.items()}


# --- pictures of records -------------------------------------------------------------------------

_MOST_PICTURES = 20


def _pixels(x: NDArray[Any]) -> list[float]:
    """Grays 0 to 255, picture after picture."""
    return [float(v) for v in np.rint(np.clip(x, 0, 1).ravel() * 255)]


def _side(records: Records) -> int:
    return int(round(np.sqrt(np.prod(records.x.shape[1:]))))


def measure_pictures(settings: Settings, context: Context) -> Measured:
    """The records that stand out, to be looked at."""
    made, judged = judgment(settings, context)
    shown = most_isolated(judged)[: min(int(judged.chosen.sum()), _MOST_PICTURES)]
    records = made.records[shown]
    found = {"n_selected": count(int(judged.chosen.sum()))}
    found["selected_accuracy"] = _accuracy_of(judged, judged.chosen)
    found["accuracy_of_all"] = _accuracy_of(judged, np.ones_like(judged.chosen))
    series = {
        "pixels": _pixels(np.asarray(records.x[:])),
        "label": [float(y) for y in records.y],
        "side": [float(_side(made.records))],
    }
    return Measured(found, series, _sizes(settings, made, judged), _digests(settings, made))


def _accuracy_of(judged: Judged, chosen: Mask) -> Estimate:
    """How often targets that were not trained on a record are right about it."""
    out = ~judged.all_member & chosen
    right, n = int((judged.correct * out).sum()), int(out.sum())
    return rate(right, n) if n else unknown("no record stands out")


def measure_enhancing(settings: Settings, context: Context) -> Measured:
    """A record and two of the queries that tell whether it was a member, to be looked at."""
    made = _attacked(settings, context.seed, context.store, context.progress)
    record, queries = made.made.records[made.places[:1]], made.queries[0]
    found = {"n_queries": count(len(queries.x))}
    order = np.argsort(-queries.influence, kind="stable")[:2]
    shown = [np.asarray(record.x[:]).ravel(), *(np.ravel(queries.x[j]) for j in order)]
    for name, j in zip(("first", "second"), order, strict=False):
        found[f"{name}_distance"] = Estimate(
            float(queries.distance[j]), None, None, "Euclidean distance of pixels in [0, 1]"
        )
    series = {
        "pixels": _pixels(np.stack(shown)),
        "label": [float(record.y[0])] * len(shown),
        "side": [float(_side(made.made.records))],
    }
    sizes = _sizes(settings, made.made, made.judged)
    return Measured(found, series, sizes, _digests(settings, made.made))


_BINS = 20


def measure_histogram(settings: Settings, context: Context) -> Measured:
    """What models say of one record's class, trained with it and without."""
    made, judged = judgment(settings, context)
    place = most_isolated(judged)[0]
    record = made.records[[place]]
    targets, references = (
        np.exp(-side.signals(cross_entropy_loss, record)[:, 0])
        for side in (made.targets, made.references)
    )
    member = made.targets.member[:, place]
    sides = {"members": targets[member], "nonmembers": targets[~member]}
    shares = {
        side: np.histogram(np.clip(p, 0, 1), _BINS, (0.0, 1.0))[0] / len(p)
        for side, p in {**sides, "references": references}.items()
    }
    overlap = float(np.minimum(shares["members"], shares["nonmembers"]).sum())
    found = {
        "auc": metrics.auc(targets[member], targets[~member]),
        "overlap": Estimate(overlap, None, None, f"shared area of histograms of {_BINS} bins"),
        "mean_in": mean_of(targets[member]),
        "mean_out": mean_of(targets[~member]),
        "mean_references": mean_of(references),
    }
    series = {f"confidence_{side}": values.tolist() for side, values in shares.items()}
    sizes = {
        **_sizes(settings, made, judged),
        "record": str(record.ids[0]),
        "neighbors_expected": round(float(judged.expected[place]), 4),
    }
    return Measured(found, series, sizes, _digests(settings, made))


def mean_of(values: Floats) -> Estimate:
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, "Student's t over models")
