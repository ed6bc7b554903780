"""From scores to what is written down: one attack's finding, and the records it exposes.

The truth is used here: `split.is_member(scores.ids)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.attacks.attack import Attack
from vestige.attacks.gmia import GMIA, Neighborhood, neighborhood, trained_on_content
from vestige.metrics import NOT_ATTAINABLE, Estimate
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records, Split
from vestige.report import (
    ClassFinding,
    ExposedRecord,
    ExposedRecords,
    Finding,
    Histogram,
    ImagePreview,
    RecordsAtRisk,
    RiskyRecord,
    RocCurve,
    RowPreview,
    ThreatModel,
    image_preview,
    row_preview,
)
from vestige.scores import Scores

__all__ = [
    "at_risk",
    "can_name",
    "exposed",
    "exposure",
    "few_references",
    "finding",
    "names_by_ranks",
]

Floats = NDArray[np.float64]
FDR = 0.05
SHOWN = 50
BINS = 40
COLUMNS_SHOWN = 8
CUTOFF = 0.01
RISKY_SHOWN = 24
"""Records that stand out are shown beside the one most like them: two previews each."""


def finding(
    name: str,
    attack: Attack[BlackBox],
    scores: Scores,
    split: Split,
    *,
    n_models: int,
    n_queries: int,
    seconds: float,
    seed: int,
) -> Finding:
    """All numbers of one attack, with its threat model and cost."""
    member = split.is_member(scores.ids)
    labels = _labels(scores, split)
    m, n = scores.values[member], scores.values[~member]
    about, total = attack.about, len(split.members) + len(split.nonmembers)
    return Finding(
        attack=name,
        title=about.title if len(scores) == total else _partial(about.title, len(scores), total),
        source=about.source,
        question=about.question,
        threat_model=ThreatModel(about.access, about.knowledge, n_models, n_queries),
        config=_config(attack),
        n_members=len(m),
        n_nonmembers=len(n),
        metrics=_resolved(_metrics(m, n, seed), len(n), len(split.nonmembers)),
        per_class=_per_class(m, labels[member], n, labels[~member], split),
        roc=_curve(m, n),
        histogram=_histogram(m, n),
        warnings=_abstained(len(scores), total),
        seconds=seconds,
        n_abstained=total - len(scores),
    )


def _partial(title: str, scored: int, total: int) -> str:
    """A title that says of how many records the numbers speak."""
    return f"{title} on {scored:,} of {total:,} records"


def _abstained(scored: int, total: int) -> tuple[str, ...]:
    if scored == total:
        return ()
    return (f"It abstained on {total - scored} of {total} records.",)


def _labels(scores: Scores, split: Split) -> NDArray[np.int64]:
    ids = np.concatenate([split.members.ids, split.nonmembers.ids])
    y = np.concatenate([split.members.y, split.nonmembers.y])
    order = np.argsort(ids)
    return y[order[np.searchsorted(ids[order], scores.ids)]]


def _config(attack: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(attack):
        return {"attack": repr(attack)}
    plain = (bool, int, float, str, type(None))
    values = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
    return {k: v if isinstance(v, plain) else repr(v) for k, v in values.items()}


def _metrics(m: Floats, n: Floats, seed: int) -> dict[str, Estimate]:
    return {
        "auc": metrics.auc(m, n),
        "advantage": metrics.advantage(m, n, seed=seed),
        "balanced_accuracy": metrics.balanced_accuracy(m, n, seed=seed),
        "precision": metrics.precision(m, n, seed=seed),
        "tpr@0.1": metrics.tpr_at_fpr(m, n, 0.1),
        "tpr@0.01": metrics.tpr_at_fpr(m, n, 0.01),
        "tpr@0.001": metrics.tpr_at_fpr(m, n, 0.001),
        "epsilon_lower_bound": metrics.epsilon_lower_bound(m, n, seed=seed),
    }


def _resolved(found: dict[str, Estimate], scored: int, total: int) -> dict[str, Estimate]:
    """The metrics, where an attack abstained: what it never says of so few is no open question.

    A false positive rate that all non-members would resolve and those scored do not: the attack
    cannot accuse that share of those it speaks of, and never accuses the others.
    """
    for name, fpr in (("tpr@0.1", 0.1), ("tpr@0.01", 0.01), ("tpr@0.001", 0.001)):
        if scored * fpr * (1 + 1e-12) < 1 <= total * fpr * (1 + 1e-12):
            reason = (
                f"{NOT_ATTAINABLE}: it says nothing of {total - scored} of {total} non-members, "
                f"and an FPR of {fpr:g} is less than one of the {scored} others"
            )
            found[name] = dataclasses.replace(found[name], reason=reason)
    return found


def _per_class(
    m: Floats, m_labels: NDArray[np.int64], n: Floats, n_labels: NDArray[np.int64], split: Split
) -> tuple[ClassFinding, ...]:
    names = split.members.classes
    return tuple(
        ClassFinding(label, names[label] if names else str(label), n1, n0, values)
        for label, n1, n0, values in metrics.per_class(m, m_labels, n, n_labels)
    )


def _curve(m: Floats, n: Floats) -> RocCurve:
    curve = metrics.roc(m, n).thinned(300)
    low, high = metrics.tpr_band(m, n, curve.fpr)
    return RocCurve(
        fpr=tuple(curve.fpr.tolist()),
        tpr=tuple(curve.tpr.tolist()),
        low=tuple(np.minimum(low, curve.tpr).tolist()),
        high=tuple(np.maximum(high, curve.tpr).tolist()),
        method="order statistics of non-members, then Clopper-Pearson, 95%, at each rate alone",
    )


def _histogram(m: Floats, n: Floats) -> Histogram:
    """Counts in equal bins; the outermost hundredth of scores falls into the end bins."""
    everyone = np.concatenate([m, n])
    low, high = np.quantile(everyone, [0.005, 0.995])
    if not low < high:
        low, high = everyone.min() - 0.5, everyone.max() + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.clip(side, low, high), edges)[0] for side in (m, n)]
    return Histogram(tuple(edges.tolist()), tuple(counts[0].tolist()), tuple(counts[1].tolist()))


def can_name(attack: Attack[BlackBox], scores: Scores, split: Split, known: Pool[BlackBox]) -> bool:
    """Whether p-values are fine enough for members to be exposed, were all at the least of them."""
    n_nonmembers = int((~split.is_member(scores.ids)).sum())
    return _reaches(FDR, n_nonmembers) or names_by_ranks(attack, scores, split, known)


def names_by_ranks(
    attack: Attack[BlackBox], scores: Scores, split: Split, known: Pool[BlackBox]
) -> bool:
    """Whether the attack ranks the target among models, enough of them to expose members so."""
    if not isinstance(attack, GMIA):
        return False
    n_members = int(split.is_member(scores.ids).sum())
    return _discovers(n_members, len(scores), _n_judges(attack, scores, split, known))


def few_references(
    name: str, attack: GMIA, scores: Scores | None, split: Split, known: Pool[BlackBox]
) -> str:
    """For what the reference models are too few, and how many would do; '' where they do."""
    k = _n_judges(attack, scores, split, known)
    if scores is None or not k:
        return ""

    def references(level: float) -> str:
        need = _ranks_needed(level) * len(known.models) / k
        return f"{2 * int(np.ceil(need / 2 - 1e-9)):,}"

    n_members, said = int(split.is_member(scores.ids).sum()), []
    if not _reaches(CUTOFF, k):
        said.append(f"for p <= {CUTOFF:g} give at least {references(CUTOFF)} references")
    if n_members and not _discovers(n_members, len(scores), k):
        least, alone = FDR * n_members / len(scores), FDR / len(scores)
        said.append(
            f"to recognize anybody at a false discovery rate of {FDR:.0%} give at least "
            f"{references(least)}, and {references(alone)} where it is one record alone"
        )
    if not said:
        return ""
    return (
        f"With {k} reference models without a record, the exact p-values of {name} are multiples "
        f"of {1 / (k + 1):.2g}; {'; '.join(said)}."
    )


def _n_judges(attack: GMIA, scores: Scores | None, split: Split, known: Pool[BlackBox]) -> int:
    """Models without a record that it is tested with, the median over the records scored."""
    if scores is None or not len(scores):
        return 0
    candidates = split.candidates
    outside = ~trained_on_content(known, candidates[np.isin(candidates.ids, scores.ids)])
    return int(np.median((outside & attack.judges(known)[:, None]).sum(axis=0)))


def _reaches(level: float, k: int) -> bool:
    """Whether the least of k + 1 ranks is at the level: what "resolvable" means."""
    return level * (k + 1) >= 1 - 1e-9


def _ranks_needed(level: float) -> int:
    return int(np.ceil(1 / level - 1 - 1e-9))


def _discovers(n_members: int, n_tested: int, k: int) -> bool:
    """Whether ranks among k can reach the false discovery rate, were all members in front."""
    return n_members > 0 and _reaches(FDR * n_members / n_tested, k)


def exposure(scores: Scores, split: Split, *, ranks: bool = False) -> tuple[Scores, Floats]:
    """The members' scores with q-values in place of p-values, and their p-values.

    A member's p-value is the share of non-members that score at least as high, itself counted
    in (a conformal p-value: exact whatever the scores mean); q-values by Benjamini & Hochberg,
    valid for conformal p-values that share their non-members (Bates et al. 2023, thm. 2).

    Args:
        ranks: take the attack's own p-values instead, of members and non-members together, as
            `at_risk` does.
    """
    member = split.is_member(scores.ids)
    if ranks and scores.p_values is not None:
        own = metrics.benjamini_hochberg(scores.p_values)[member]
        return Scores(scores.ids[member], scores.values[member], own), scores.p_values[member]
    p = metrics.rank_p_values(scores.values[member], scores.values[~member])
    q = metrics.benjamini_hochberg(p)
    return Scores(scores.ids[member], scores.values[member], q), p


def exposed(
    name: str,
    scores: Scores,
    split: Split,
    *,
    ranks: bool = False,
    image: Sequence[int] = (),
    previews: bool = True,
) -> ExposedRecords:
    """The members that an attack recognizes one by one, most exposed first.

    Args:
        ranks: as in `exposure`.
        image: (height, width[, 3]) or (channels, height, width) where records are pictures.
        previews: whether to show the exposed records themselves; the others never are.
    """
    tested, p = exposure(scores, split, ranks=ranks)
    usual = None if image or not previews else _usual(split.members)
    q = tested.p_values
    assert q is not None
    called = q <= FDR
    order = np.lexsort((-tested.values, p, q))[:SHOWN]
    records = split.members
    place = {identity: row for row, identity in enumerate(records.ids.tolist())}
    shown = tuple(
        ExposedRecord(
            id=identity,
            label=int(records.y[place[identity]]),
            label_name=_class_name(records, place[identity]),
            score=float(tested.values[i]),
            p_value=float(p[i]),
            q_value=float(q[i]),
            exposed=bool(called[i]),
            preview=(
                _preview(records, place[identity], image, usual) if previews and called[i] else None
            ),
        )
        for i, identity in ((i, tested.ids[i].item()) for i in order)
    )
    return ExposedRecords(
        attack=name,
        fdr=FDR,
        n_exposed=int(called.sum()),
        n_tested=len(tested),
        method=(
            "exact ranks among reference models without the record, Benjamini-Hochberg"
            if ranks
            else "rank among the non-members (conformal p-value, at least "
            f"1/{len(scores) - len(tested) + 1}), Benjamini-Hochberg"
        ),
        expected_false=float(FDR * called.sum()),
        records=shown,
    )


def at_risk(
    name: str,
    attack: GMIA,
    scores: Scores | None,
    split: Split,
    known: Pool[BlackBox],
    *,
    image: Sequence[int] = (),
    previews: bool = True,
) -> RecordsAtRisk:
    """Which records stand out, who is near them, and which of them the target gives away.

    The first is read off the reference models alone. The p-values are exact ranks among models
    that were trained without the record; q-values are Benjamini and Hochberg's over all records
    tested, members or not, since whoever attacks cannot tell. Where the models are so few that not
    even all members tested, at the lowest rank, would be recognized, how many are is not known.

    Args:
        name: of the attack, in the report.
        scores: what the attack said of the candidates; None where it could test none.
        image, previews: as in `exposed`. Here non-members and the nearest records are shown too.
    """
    candidates = split.candidates
    near = neighborhood(
        candidates,
        known,
        delta=attack.delta,
        features=attack.features,
        center=attack.center,
        n_train=attack.n_train,
        models=attack.choosing(known),
    )
    out = np.ones(len(candidates), bool) if attack.beta is None else near.expected < attack.beta
    p, smooth, q = _p_values(scores, candidates)
    member, tested = split.is_member(candidates.ids), ~np.isnan(p)
    n_models = _n_judges(attack, scores, split, known)
    # ranks too coarse for any number of members name nobody, whatever is true
    n_tested, n_members = int(tested.sum()), int((tested & member).sum())
    unknown = n_members > 0 and not _discovers(n_members, n_tested, n_models)
    named = np.zeros_like(tested) if unknown else q <= FDR
    order = np.lexsort((near.expected, smooth, p))
    usual = None if image or not previews else _usual(split.members)

    def shown(records: Records, row: int, like: int) -> ImagePreview | RowPreview | None:
        return _preview(records, row, image, usual, (candidates, like)) if previews else None

    rows = [int(i) for i in order if out[i]][:RISKY_SHOWN]
    places = {identity: row for row, identity in enumerate(known.records.ids.tolist())}
    return RecordsAtRisk(
        attack=name,
        delta=attack.delta,
        beta=attack.beta,
        features=attack.features,
        n_candidates=len(candidates),
        n_standing_out=int(out.sum()),
        n_members_out=int((out & member).sum()),
        n_tested=n_tested,
        n_models=n_models,
        cutoff=CUTOFF,
        recognized=_share_at(p[tested & member], n_models, "member"),
        mistaken=_share_at(p[tested & ~member], n_models, "non-member"),
        fdr=FDR,
        n_discovered=None if unknown else int(named.sum()),
        n_members_discovered=None if unknown else int((named & member).sum()),
        method=f"exact ranks among {n_models} models without the record, Benjamini-Hochberg",
        records=tuple(
            _risky(
                candidates,
                i,
                bool(member[i]),
                bool(named[i]),
                near,
                (p[i], smooth[i], q[i]),
                known,
                places,
                shown,
            )
            for i in rows
        ),
    )


def _p_values(scores: Scores | None, candidates: Records) -> tuple[Floats, Floats, Floats]:
    """Exact and smooth p-values and q-values, each (n,), NaN where a candidate was not tested."""
    p, smooth, q = (np.full(len(candidates), np.nan) for _ in range(3))
    if scores is not None and scores.p_values is not None:
        order = np.argsort(candidates.ids, kind="stable")
        rows = order[np.searchsorted(candidates.ids[order], scores.ids)]
        p[rows], smooth[rows] = scores.p_values, np.exp(-np.maximum(scores.values, 0.0))
        q[rows] = metrics.benjamini_hochberg(scores.p_values)
    return p, smooth, q


def _share_at(p: Floats, n_models: int, noun: str) -> Estimate:
    """The share of p-values at the cutoff, where there are p-values that small."""
    if not len(p):
        return Estimate(None, None, None, "none", reason=f"no {noun} was tested")
    if not _reaches(CUTOFF, n_models):
        need = _ranks_needed(CUTOFF)
        return Estimate(
            None,
            None,
            None,
            "none",
            reason=f"not resolvable: an exact p-value of {CUTOFF:g} takes {need} reference models "
            f"without the record, got {n_models}",
        )
    return metrics.rate(int((p <= CUTOFF).sum()), len(p))


def _risky(
    candidates: Records,
    row: int,
    member: bool,
    recognized: bool,
    near: Neighborhood,
    values: tuple[float, float, float],
    known: Pool[BlackBox],
    places: Mapping[Any, int],
    shown: Callable[[Records, int, int], ImagePreview | RowPreview | None],
) -> RiskyRecord:
    p, smooth, q = (None if np.isnan(value) else float(value) for value in values)
    nearest = near.nearest[row][0].item() if near.nearest.shape[1] else None
    other = None if nearest is None else places[nearest]
    return RiskyRecord(
        id=candidates.ids[row].item(),
        label=int(candidates.y[row]),
        label_name=_class_name(candidates, row),
        member=member,
        expected_neighbors=float(near.expected[row]),
        p_value=p,
        smooth_p_value=smooth,
        q_value=q,
        recognized=recognized,
        nearest_id=nearest,
        nearest_label_name="" if other is None else _class_name(known.records, other),
        nearest_distance=(
            None if other is None else float(np.clip(near.distance[row][0], 0.0, 2.0))
        ),
        preview=shown(candidates, row, row),
        nearest_preview=None if other is None else shown(known.records, other, row),
    )


def _class_name(records: Records, row: int) -> str:
    label = int(records.y[row])
    return records.classes[label] if records.classes else str(label)


def _usual(records: Records) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column over the first records."""
    x = np.asarray(records.x[:2000], dtype=np.float64).reshape(min(len(records), 2000), -1)
    return x.mean(axis=0), x.std(axis=0)


def _preview(
    records: Records,
    row: int,
    image: Sequence[int],
    usual: tuple[Floats, Floats] | None,
    like: tuple[Records, int] | None = None,
) -> ImagePreview | RowPreview:
    """A picture, or the columns in which the record, or the one it is `like`, is least usual."""
    x = np.asarray(records.x[row])
    if usual is None:
        return image_preview(x.reshape(image))
    flat, (mean, spread) = x.reshape(-1), usual
    compared = flat if like is None else np.asarray(like[0].x[like[1]]).reshape(-1)
    odd = np.abs(compared - mean) / np.where(spread > 0, spread, np.inf)
    chosen = np.sort(np.argsort(-odd, kind="stable")[:COLUMNS_SHOWN])
    names = records.columns or tuple(f"x{c}" for c in range(len(flat)))
    return row_preview(flat[chosen], [names[c] for c in chosen])
