"""Made-up reports for tests: `small()` for golden files, `realistic()` for looking at.

Nothing here is measured. `small()` is literals only; `realistic()` draws Gaussian scores and
rounds what it computes from them. `python tests/report/example.py` writes the golden files.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vestige.exchangeability import Exchangeability
from vestige.metrics import Estimate
from vestige.report import (
    ClassFinding,
    Data,
    ExposedRecord,
    ExposedRecords,
    Finding,
    Histogram,
    ImagePreview,
    Provenance,
    RecordsAtRisk,
    RecordTable,
    Report,
    ReportWarning,
    Reproduce,
    RiskyRecord,
    RocCurve,
    Target,
    ThreatModel,
    Training,
    image_preview,
    row_preview,
    verdict,
)

Floats = NDArray[np.float64]

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAHUlEQVR42m"
    "NgEFQyZnAJTStn6Ji5ajfDmbvv/gMAM+AH+ag2f/4AAAAASUVORK5CYII="
)
"""A 4 by 4 ramp from black to white."""


def exact(value: float, low: float, high: float, **context: float) -> Estimate:
    """An estimate with its interval, made by nothing."""
    return Estimate(value, low, high, "made up", context=context)


def unresolved(reason: str = "not resolvable: an FPR of 0.001 needs 1000 non-members") -> Estimate:
    return Estimate(None, None, None, "made up", reason=reason)


def small() -> Report:
    """Two attacks, two classes, one exposed record; every number is a literal."""
    findings = (small_finding("lira_online", 0.71), small_finding("loss", 0.58, n_models=0))
    shared = small_exposed()
    return Report(
        name="small",
        verdict=verdict(findings, exchangeability=passed(), exposed=shared),
        target=Target(
            name="net",
            kind="TorchModel",
            description="two layers",
            n_classes=2,
            accuracy_members=exact(0.99, 0.98, 1.0),
            accuracy_nonmembers=exact(0.9, 0.87, 0.92),
            accuracy_gap=exact(0.09, 0.06, 0.12),
        ),
        data=Data(
            name="toy",
            n_members=500,
            n_nonmembers=500,
            n_population=0,
            shape=(2,),
            classes=("cat", "dog"),
            digest="0123abcd",
            note="",
        ),
        exchangeability=passed(),
        findings=findings,
        exposed_records=shared,
        records_at_risk=small_risk(),
        warnings=(ReportWarning("unresolvable", "TPR at 0.1% FPR needs 1,000 non-members."),),
        reproduce=Reproduce("vestige audit toy --seed 0", "vs.audit(target, split, seed=0)"),
        provenance=provenance(),
    )


def small_finding(attack: str, auc: float, *, n_models: int = 64) -> Finding:
    return Finding(
        attack=attack,
        title={"lira_online": "LiRA, online", "loss": "Loss threshold"}.get(attack, attack),
        source="Carlini et al. 2022" if n_models else "Yeom et al. 2018",
        question="Is the model more confident here than models that never saw the record?",
        threat_model=ThreatModel("class probabilities", "the data distribution", n_models, 1000),
        config={"variance": "per record", "grid": [0.5, 1], "clip": None},
        n_members=500,
        n_nonmembers=500,
        metrics={
            "auc": exact(auc, auc - 0.03, auc + 0.03),
            "advantage": exact(0.3, 0.25, 0.35, fpr=0.2),
            "balanced_accuracy": exact(0.65, 0.62, 0.68),
            "precision": exact(0.7, 0.66, 0.74, base_rate=0.5, fpr=0.2),
            "tpr@0.1": exact(0.35, 0.31, 0.39, fpr=0.1),
            "tpr@0.01": exact(0.12, 0.09, 0.15, fpr=0.01, fpr_high=0.023),
            "tpr@0.001": unresolved(),
            "epsilon_lower_bound": Estimate(0.8, 0.8, None, "Clopper-Pearson"),
        },
        per_class=(
            ClassFinding(
                0, "cat", 250, 250, {"auc": exact(0.75, 0.7, 0.8), "tpr@0.1": unresolved()}
            ),
            ClassFinding(
                1, "dog", 250, 250, {"auc": exact(0.66, 0.6, 0.72), "tpr@0.1": unresolved()}
            ),
        ),
        roc=RocCurve(
            fpr=(0.0, 0.0, 0.01, 0.1, 1.0),
            tpr=(0.0, 0.05, 0.12, 0.35, 1.0),
            low=(0.0, 0.03, 0.09, 0.31, 0.99),
            high=(0.01, 0.07, 0.15, 0.39, 1.0),
            method="Clopper-Pearson",
        ),
        histogram=Histogram((-2.0, 0.0, 2.0, 4.0), (50, 250, 200), (150, 300, 50)),
        warnings=("64 models were shared with the other attacks.",) if n_models else (),
        seconds=0.25,
    )


def small_exposed() -> ExposedRecords:
    # literal, as another build of zlib may compress in other bytes
    picture = ImagePreview(png=PNG, width=4, height=4)
    row = row_preview([39.0, "State-gov"], ["age", "workclass"])
    return ExposedRecords(
        attack="lira_online",
        fdr=0.05,
        n_exposed=2,
        n_tested=500,
        method="Benjamini-Hochberg on rank p-values",
        expected_false=0.1,
        records=(
            ExposedRecord(7, 0, "cat", 9.5, 0.002, 0.031, True, picture),
            ExposedRecord("b-12", 1, "dog", 8.25, 0.004, 0.04, True, row),
            ExposedRecord(9, 1, "dog", 1.0, 0.4, 0.61, False, None),
        ),
    )


def small_risk() -> RecordsAtRisk:
    """Three of 1,000 stand out: one recognized, one not, one that every model saw."""
    picture = ImagePreview(png=PNG, width=4, height=4)
    near = {"nearest_id": "c-3", "nearest_label_name": "dog", "nearest_distance": 0.31}
    shown = {"preview": picture, "nearest_preview": picture}
    return RecordsAtRisk(
        attack="gmia",
        delta=0.2,
        beta=0.1,
        features="logits",
        n_candidates=1000,
        n_standing_out=3,
        n_members_out=2,
        n_tested=2,
        n_models=99,
        cutoff=0.01,
        recognized=exact(1.0, 0.025, 1.0),
        mistaken=exact(0.0, 0.0, 0.975),
        fdr=0.05,
        n_discovered=1,
        n_members_discovered=1,
        method="exact ranks among 99 models without the record, Benjamini-Hochberg",
        records=(
            RiskyRecord(21, 0, "cat", True, 0.0, 0.01, 0.0002, 0.02, True, **near, **shown),
            RiskyRecord(22, 1, "dog", False, 0.05, 0.4, 0.41, 0.4, False, **near, **shown),
            RiskyRecord(23, 1, "dog", True, 0.0, None, None, None, False, **near, **shown),
        ),
    )


def passed() -> Exchangeability:
    return Exchangeability(exact(0.5, 0.46, 0.54), True, "")


def failed() -> Exchangeability:
    return Exchangeability(exact(0.62, 0.57, 0.66), False, "the two sets differ in x")


def provenance() -> Provenance:
    return Provenance(
        vestige="0.1.0",
        python="3.11.2",
        torch="2.13.0",
        numpy="2.4.6",
        platform="Linux x86_64",
        device="cpu",
        seed=0,
        date="2026-01-02T03:04:05+00:00",
        digests={"records": "0123abcd", "split": "89ef4567"},
        training=Training("stacked", "the probe agreed with training alone", 64),
        service=None,
        seconds={"training": 21.5, "attacks": 3.25, "total": 25.0},
    )


def records_table() -> RecordTable:
    """Four records; "loss" abstained on the last one, and only members were tested."""
    return RecordTable(
        id=np.array([3, 1, 2, 0]),
        label=np.array([0, 1, 1, 0]),
        member=np.array([True, True, False, False]),
        scores={
            "lira_online": np.array([2.0, 1.0, 0.0, -1.0]),
            "loss": np.array([-0.1, -0.2, -0.3, np.nan]),
        },
        p_values={"lira_online": np.array([0.01, 0.02, 0.5, 1.0])},
        q_value=np.array([0.02, 0.02, np.nan, np.nan]),
        exposed=np.array([True, True, False, False]),
    )


# --- a report as a user sees it ----------------------------------------------------------------

ATTACKS: Mapping[str, tuple[str, str, str, float, int]] = {
    # attack: title, source, question, distance of the two Gaussians, models
    "loss": (
        "Loss threshold",
        "Yeom et al. 2018",
        "Is the model's loss on this record low?",
        0.35,
        0,
    ),
    "confidence": (
        "Confidence threshold",
        "Salem et al. 2019",
        "Is the model sure of itself, whatever the label?",
        0.3,
        0,
    ),
    "entropy": (
        "Entropy threshold",
        "Shokri et al. 2017",
        "Is the prediction concentrated on few classes?",
        0.28,
        0,
    ),
    "modified_entropy": (
        "Modified entropy",
        "Song & Mittal 2021",
        "Is the prediction concentrated on the right class?",
        0.35,
        0,
    ),
    "correctness": (
        "Correctness",
        "Yeom et al. 2018",
        "Does the model get this record right?",
        0.1,
        0,
    ),
    "population": (
        "Population (attack P)",
        "Ye et al. 2022",
        "Is the loss lower than on records that the model never saw?",
        0.37,
        0,
    ),
    "lira_online": (
        "LiRA, online",
        "Carlini et al. 2022",
        "Does the model look like models trained with the record rather than without it?",
        1.2,
        64,
    ),
    "lira_offline": (
        "LiRA, offline",
        "Carlini et al. 2022",
        "Is the model surer here than models trained without the record?",
        0.9,
        64,
    ),
    "lira_fixed_variance": (
        "LiRA, fixed variance",
        "Carlini et al. 2022",
        "The same as LiRA, with one variance for all records.",
        1.1,
        64,
    ),
    "rmia_online": (
        "RMIA, online",
        "Zarifzadeh et al. 2024",
        "Is the record more probable under this model than most others, relative to references?",
        1.15,
        64,
    ),
    "rmia_offline": (
        "RMIA, offline",
        "Zarifzadeh et al. 2024",
        "The same as RMIA, with models trained without the record only.",
        0.95,
        64,
    ),
    "quantile": (
        "Quantile regression",
        "Bertran et al. 2023",
        "Is the model surer here than it is on most records that look like this one?",
        0.5,
        1,
    ),
}


@cache
def realistic(n: int = 748) -> Report:
    """Twelve attacks on digits with `n` members and `n` non-members; 50 exposed pictures."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (2, n))
    shared = rng.normal(size=(2, n))
    findings = tuple(_drawn(name, labels, shared, rng) for name in ATTACKS)
    exposed = _exposed_digits(rng)
    report = small()
    return replace(
        report,
        name="digits",
        verdict=verdict(findings, exchangeability=passed(), exposed=exposed),
        target=Target(
            name="digits-mlp",
            kind="TorchModel",
            description="multilayer perceptron 64-256-128-10, 60 epochs of SGD",
            n_classes=10,
            accuracy_members=exact(1.0, 0.9951, 1.0),
            accuracy_nonmembers=exact(0.957, 0.9399, 0.9704),
            accuracy_gap=exact(0.043, 0.0296, 0.0601),
        ),
        data=Data(
            name="digits",
            n_members=n,
            n_nonmembers=n,
            n_population=299,
            shape=(64,),
            classes=tuple(map(str, range(10))),
            digest="9f86d081884c7d65",
            note="Handwritten digits of scikit-learn, 8 by 8 pixels.",
        ),
        findings=findings,
        exposed_records=exposed,
        records_at_risk=None,
        warnings=(
            ReportWarning(
                "unresolvable",
                f"A false positive rate of 0.1% takes 1,000 non-members; there are {n}.",
            ),
        ),
        reproduce=Reproduce(
            "vestige audit digits --references 64 --seed 0 --out runs/digits",
            "import vestige as vs\n\nreport = vs.audit(target, split, recipe=recipe, "
            'references=64, seed=0)\nreport.save("runs/digits")',
        ),
    )


def _drawn(
    name: str, labels: NDArray[np.int64], shared: Floats, rng: np.random.Generator
) -> Finding:
    title, source, question, distance, n_models = ATTACKS[name]
    noise = 0.8 * shared + 0.6 * rng.normal(size=shared.shape)
    scores = noise + distance * np.array([[1.0], [0.0]]) * (0.6 + labels / 10)
    if name == "correctness":
        scores = (rng.random(shared.shape) < [[1.0], [0.957]]).astype(float)
    members, others = scores
    n = len(members)
    return replace(
        small_finding(name, 0.5, n_models=n_models),
        title=title,
        source=source,
        question=question,
        n_members=n,
        n_nonmembers=n,
        metrics=_metrics(members, others),
        per_class=tuple(
            ClassFinding(c, str(c), *_class(members, others, labels, c)) for c in range(10)
        ),
        roc=_roc(members, others),
        histogram=_histogram(members, others),
        seconds=round(0.02 + 0.01 * n_models, 3),
    )


def _class(
    members: Floats, others: Floats, labels: NDArray[np.int64], label: int
) -> tuple[int, int, dict[str, Estimate]]:
    inside, outside = members[labels[0] == label], others[labels[1] == label]
    metrics = {"auc": _auc(inside, outside), "tpr@0.1": _tpr(inside, outside, 0.1)}
    return len(inside), len(outside), metrics


def _metrics(members: Floats, others: Floats) -> dict[str, Estimate]:
    return {
        **small_finding("loss", 0.6).metrics,
        "auc": _auc(members, others),
        **{f"tpr@{fpr:g}": _tpr(members, others, fpr) for fpr in (0.1, 0.01, 0.001)},
    }


def _auc(members: Floats, others: Floats) -> Estimate:
    """Hanley & McNeil's interval, which is good enough for a picture."""
    greater = (members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean()
    a, n = float(greater), min(len(members), len(others))
    sd = np.sqrt(a * (1 - a) / n * (1 + a / (2 - a)) / 2)
    low, high = max(a - 1.96 * sd, 0.0), min(a + 1.96 * sd, 1.0)
    return exact(round(a, 6), round(low, 6), round(high, 6))


def _tpr(members: Floats, others: Floats, fpr: float) -> Estimate:
    if len(others) * fpr < 1:
        return unresolved(
            f"not resolvable: an FPR of {fpr:g} takes at least {1 / fpr:.0f} non-members, "
            f"got {len(others)}"
        )
    threshold = np.sort(others)[::-1][int(len(others) * fpr)]
    hits, false = (members > threshold).mean(), (others > threshold).mean()
    low, high = _wilson(hits, len(members))
    return exact(round(float(hits), 6), low, high, fpr=round(float(false), 6))


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.96
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = min(center - half, share), max(center + half, share)
    return round(max(float(low), 0.0), 6), round(min(float(high), 1.0), 6)


def _roc(members: Floats, others: Floats) -> RocCurve:
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    thresholds = thresholds[:: max(1, len(thresholds) // 250)]
    fpr = [0.0, *(others[:, None] >= thresholds).mean(0).round(6).tolist(), 1.0]
    tpr = [0.0, *(members[:, None] >= thresholds).mean(0).round(6).tolist(), 1.0]
    low, high = zip(*(_wilson(rate, len(members)) for rate in tpr), strict=True)
    return RocCurve(tuple(fpr), tuple(tpr), low, high, "Wilson")


def _histogram(members: Floats, others: Floats) -> Histogram:
    edges = np.linspace(min(members.min(), others.min()), max(members.max(), others.max()), 31)
    inside, outside = (np.histogram(side, edges)[0].tolist() for side in (members, others))
    return Histogram(tuple(edges.round(6).tolist()), tuple(inside), tuple(outside))


def _exposed_digits(rng: np.random.Generator) -> ExposedRecords:
    rows, columns = np.mgrid[:8, :8]
    records = []
    for i in range(50):
        x, y, r = rng.uniform(2.5, 4.5), rng.uniform(2.5, 4.5), rng.uniform(1.5, 3)
        ring = np.exp(-((np.hypot(rows - y, columns - x) - r) ** 2))
        p = (i // 8 + 1) / 749
        q = min(1.0, round(0.008 + 0.0011 * i, 6))
        name = str(int(rng.integers(10)))
        records.append(
            ExposedRecord(
                int(rng.integers(1797)),
                int(name),
                name,
                round(6 - 0.05 * i, 3),
                round(p, 6),
                q,
                q <= 0.05,
                image_preview(np.round(15 * ring), low=0, high=15),
            )
        )
    return ExposedRecords(
        attack="lira_online",
        fdr=0.05,
        n_exposed=39,
        n_tested=748,
        method="Benjamini-Hochberg on conformal p-values",
        expected_false=1.95,
        records=tuple(records),
    )


if __name__ == "__main__":
    import json
    from pathlib import Path

    from outline import outline

    from vestige.report import render

    golden = Path(__file__).parent / "golden"
    golden.mkdir(exist_ok=True)
    text = json.dumps(small().to_json(), indent=1) + "\n"
    (golden / "report.json").write_text(text)
    (golden / "outline.txt").write_text(outline(render(small())))
