"""From scores to what is written down: one attack's finding, and the records it exposes.

The truth is used here: `split.is_member(scores.ids)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige import metrics
from vestige.attacks.attack import Attack
from vestige.metrics import Estimate
from vestige.models import BlackBox
from vestige.records import Records, Split
from vestige.report import (
    ClassFinding,
    ExposedRecord,
    ExposedRecords,
    Finding,
    Histogram,
    ImagePreview,
    RocCurve,
    RowPreview,
    ThreatModel,
    image_preview,
    row_preview,
)
from vestige.scores import Scores

__all__ = ["exposed", "exposure", "finding"]

Floats = NDArray[np.float64]
FDR = 0.05
SHOWN = 50
BINS = 40
COLUMNS_SHOWN = 8


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
    about = attack.about
    return Finding(
        attack=name,
        title=about.title,
        source=about.source,
        question=about.question,
        threat_model=ThreatModel(about.access, about.knowledge, n_models, n_queries),
        config=_config(attack),
        n_members=len(m),
        n_nonmembers=len(n),
        metrics=_metrics(m, n, seed),
        per_class=_per_class(m, labels[member], n, labels[~member], split),
        roc=_curve(m, n),
        histogram=_histogram(m, n),
        warnings=_abstained(len(scores), len(split.members) + len(split.nonmembers)),
        seconds=seconds,
    )


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


def exposure(scores: Scores, split: Split) -> tuple[Scores, Floats]:
    """The members' scores with q-values in place of p-values, and their p-values.

    A member's p-value is the share of non-members that score at least as high, itself counted
    in (a conformal p-value: exact whatever the scores mean); q-values by Benjamini & Hochberg,
    valid for conformal p-values that share their non-members (Bates et al. 2023, thm. 2).
    """
    member = split.is_member(scores.ids)
    p = metrics.rank_p_values(scores.values[member], scores.values[~member])
    q = metrics.benjamini_hochberg(p)
    return Scores(scores.ids[member], scores.values[member], q), p


def exposed(
    name: str, scores: Scores, split: Split, *, image: Sequence[int] = (), previews: bool = True
) -> ExposedRecords:
    """The members that an attack recognizes one by one, most exposed first.

    Args:
        image: (height, width[, 3]) or (channels, height, width) where records are pictures.
        previews: whether to show the exposed records themselves; the others never are.
    """
    tested, p = exposure(scores, split)
    usual = None if image or not previews else _usual(split.members)
    q = tested.p_values
    assert q is not None
    called = q <= FDR
    order = np.lexsort((-tested.values, q))[:SHOWN]
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
            "rank among the non-members (conformal p-value, at least "
            f"1/{len(scores) - len(tested) + 1}), Benjamini-Hochberg"
        ),
        expected_false=float(FDR * called.sum()),
        records=shown,
    )


def _class_name(records: Records, row: int) -> str:
    label = int(records.y[row])
    return records.classes[label] if records.classes else str(label)


def _usual(records: Records) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column over the first records."""
    x = np.asarray(records.x[:2000], dtype=np.float64).reshape(min(len(records), 2000), -1)
    return x.mean(axis=0), x.std(axis=0)


def _preview(
    records: Records, row: int, image: Sequence[int], usual: tuple[Floats, Floats] | None
) -> ImagePreview | RowPreview:
    """A picture, or the columns in which the record is least like the others."""
    x = np.asarray(records.x[row])
    if usual is None:
        return image_preview(x.reshape(image))
    flat, (mean, spread) = x.reshape(-1), usual
    odd = np.abs(flat - mean) / np.where(spread > 0, spread, np.inf)
    chosen = np.sort(np.argsort(-odd, kind="stable")[:COLUMNS_SHOWN])
    names = records.columns or tuple(f"x{c}" for c in range(len(flat)))
    return row_preview(flat[chosen], [names[c] for c in chosen])
