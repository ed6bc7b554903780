"""What an audit found, as plain data: `report.json` is the truth, the rest is drawn from it.

Every class here is one object of the JSON form, and every field is one key (see
`report.schema.json`, published by `vestige.report.schema()`). Numbers that were measured are
`Estimate`: a value with its interval, or null with the reason why it could not be measured.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vestige.errors import InvalidInput
from vestige.exchangeability import Exchangeability
from vestige.metrics import Estimate
from vestige.report.codec import NOT_IN_JSON, decode, encode
from vestige.report.table import RecordTable

__all__ = [
    "SCHEMA",
    "ClassFinding",
    "Data",
    "ExposedRecord",
    "ExposedRecords",
    "Finding",
    "Histogram",
    "ImagePreview",
    "Level",
    "Provenance",
    "RecordsAtRisk",
    "Report",
    "ReportWarning",
    "Reproduce",
    "RiskyRecord",
    "RocCurve",
    "RowPreview",
    "Service",
    "Target",
    "ThreatModel",
    "Training",
    "Verdict",
]

SCHEMA: Literal["vestige.report/1"] = "vestige.report/1"
"""Name and version of the JSON form. The number changes when a key changes its meaning or goes."""

_PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")
"""The signature of a PNG file and anything after it, in base64."""

Level = Literal["high", "moderate", "low", "none", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """The answer in one sentence, with what it means for a person whose record was used."""

    level: Level
    sentence: str
    meaning: str
    attack: str
    """The attack that decided (a key of `Finding.attack`), or "" where none did."""


@dataclass(frozen=True)
class Target:
    """The model under audit. The accuracies are rates in [0, 1], the gap is their difference."""

    name: str
    kind: str
    description: str
    n_classes: int
    accuracy_members: Estimate
    accuracy_nonmembers: Estimate
    accuracy_gap: Estimate


@dataclass(frozen=True)
class Data:
    """The records of the audit. `shape` is that of one record."""

    name: str
    n_members: int
    n_nonmembers: int
    n_population: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str
    note: str


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary sees, knows and pays: models trained, records queried at the target."""

    access: str
    knowledge: str
    n_models: int
    n_queries: int


@dataclass(frozen=True)
class ClassFinding:
    """One attack on the records of one class; `metrics` has "auc" and "tpr@0.1"."""

    label: int
    name: str
    n_members: int
    n_nonmembers: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class RocCurve:
    """Attained points of the staircase, in increasing order; `low` and `high` bound `tpr`."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: str


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in k bins between k + 1 edges."""

    edges: tuple[float, ...]
    members: tuple[int, ...]
    nonmembers: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """What one attack found, on the records that it scored: it said nothing of `n_abstained`."""

    attack: str
    title: str
    source: str
    question: str
    threat_model: ThreatModel
    config: Mapping[str, Any]
    n_members: int
    n_nonmembers: int
    metrics: Mapping[str, Estimate]
    per_class: tuple[ClassFinding, ...]
    roc: RocCurve
    histogram: Histogram
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    n_abstained: int = 0


@dataclass(frozen=True)
class ImagePreview:
    """A picture of a record: base64 of a PNG, with its size in pixels."""

    kind: Literal["image"] = field(default="image", init=False)
    png: str
    width: int
    height: int

    def __post_init__(self) -> None:
        if not _PNG.fullmatch(self.png):
            raise InvalidInput(f"expected the base64 of a PNG file, got {self.png[:20]!r}.")


@dataclass(frozen=True)
class RowPreview:
    """Some columns of a record, as text."""

    kind: Literal["row"] = field(default="row", init=False)
    values: Mapping[str, str]


@dataclass(frozen=True)
class ExposedRecord:
    """One member and how surely the attack recognizes it."""

    id: int | str
    label: int
    label_name: str
    score: float
    p_value: float
    q_value: float
    exposed: bool
    preview: ImagePreview | RowPreview | None = None


@dataclass(frozen=True)
class ExposedRecords:
    """The most exposed members (`records`, most exposed first), by one attack.

    `n_tested` are the members that `attack` scored. `n_exposed` were called at a false discovery
    rate of `fdr`, so that about `expected_false` of them are mistakes. The columns `q_value` and
    `exposed` of records.parquet are of this attack too.
    """

    attack: str
    fdr: float
    n_exposed: int
    n_tested: int
    method: str
    expected_false: float
    records: tuple[ExposedRecord, ...]


@dataclass(frozen=True)
class RiskyRecord:
    """A record that stands out, with the one that is most like it.

    The p-values are of "not a member": `p_value` the exact rank among models without the record,
    `smooth_p_value` on a smooth curve through them; null, like `q_value`, where it was not tested.
    The previews are null where records are not shown.
    """

    id: int | str
    label: int
    label_name: str
    member: bool
    expected_neighbors: float
    p_value: float | None
    smooth_p_value: float | None
    q_value: float | None
    recognized: bool
    nearest_id: int | str | None
    nearest_label_name: str
    nearest_distance: float | None
    preview: ImagePreview | RowPreview | None = None
    nearest_preview: ImagePreview | RowPreview | None = None


@dataclass(frozen=True)
class RecordsAtRisk:
    """Who stands out before the target is asked, and who of them it gives away.

    Of `n_candidates`, `n_standing_out` have fewer than `beta` neighbors (all of them where null) to
    expect at a cosine distance below `delta`; `n_members_out` of these are members. `n_tested` have
    enough models without them, `n_models` each. `recognized` is the share of the members tested
    with a p-value of at most `cutoff`, `mistaken` that of the non-members. `n_discovered` have a
    q-value of at most `fdr`, `n_members_discovered` of them members; both are null where so few
    models cannot resolve it. `records` are the first of those that stand out, the smallest p-values
    first.
    """

    attack: str
    delta: float
    beta: float | None
    features: str
    n_candidates: int
    n_standing_out: int
    n_members_out: int
    n_tested: int
    n_models: int
    cutoff: float
    recognized: Estimate
    mistaken: Estimate
    fdr: float
    n_discovered: int | None
    n_members_discovered: int | None
    method: str
    records: tuple[RiskyRecord, ...]


@dataclass(frozen=True)
class ReportWarning:
    """A reservation about the whole report; `code` is stable ("few_records", ...)."""

    code: str
    message: str


@dataclass(frozen=True)
class Reproduce:
    """How to run the same audit again, in a shell and in Python."""

    command: str
    python: str


@dataclass(frozen=True)
class Training:
    """How the reference models were trained, and why that way."""

    path: str
    why: str
    n_models: int


@dataclass(frozen=True)
class Service:
    """What stands between the audit and its target, where the target is asked over a network.

    `n_charged` counts every record sent that may have been charged: retries, and runs before this
    one that kept their answers in the same cache; `n_now` those of this run. The dates are those
    of the first and the last answer in the cache, ISO 8601.
    """

    address: str
    n_charged: int
    n_now: int
    first_answer: str
    last_answer: str


@dataclass(frozen=True)
class Provenance:
    """Versions, seed, machine and digests: what has to be equal for equal numbers."""

    vestige: str
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    seed: int
    date: str
    digests: Mapping[str, str]
    training: Training | None
    service: Service | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """An audit, written down.

    `records` (one row a record, kept in `records.parquet`) is no part of the JSON form, of
    equality or of `Report.load`.
    """

    schema: Literal["vestige.report/1"] = field(default=SCHEMA, init=False)
    name: str
    verdict: Verdict
    target: Target
    data: Data
    exchangeability: Exchangeability
    findings: tuple[Finding, ...]
    exposed_records: ExposedRecords | None
    records_at_risk: RecordsAtRisk | None
    warnings: tuple[ReportWarning, ...]
    reproduce: Reproduce
    provenance: Provenance
    records: RecordTable | None = field(
        default=None, compare=False, repr=False, metadata=NOT_IN_JSON
    )

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; a NaN or infinite number is `InvalidInput`."""
        encoded: dict[str, Any] = encode(self)
        return encoded

    @staticmethod
    def from_json(data: Any) -> "Report":
        """The report that `to_json` wrote; `InvalidInput` names the first thing that is wrong."""
        return decode(Report, data)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json`, `report.html` and, given `records`, `records.parquet`.

        The JSON file comes first: should the rest fail, `vestige report FOLDER` draws it again.
        Returns the folder. Raises `StoreError` where it cannot be written.
        """
        from vestige.report.files import save

        return save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> "Report":
        """Read `report.json` of a folder.

        Raises `StoreError` where there is none and `DamagedFile` where it is not what was written.
        """
        from vestige.report.files import load

        return load(Path(folder))

    def finding(self, attack: str) -> Finding | None:
        """The finding of one attack, `None` where it was not run."""
        return next((f for f in self.findings if f.attack == attack), None)

    def __str__(self) -> str:
        from vestige.report.wording import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from vestige.report.html import summary

        return summary(self)
