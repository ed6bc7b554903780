"""The report of an audit: JSON is the truth, one HTML page and one table are drawn from it."""

from vestige.report.files import write_html
from vestige.report.gate import DEFAULT_LIMITS, gate
from vestige.report.html import render
from vestige.report.preview import image_preview, row_preview
from vestige.report.report import (
    SCHEMA,
    ClassFinding,
    Data,
    ExposedRecord,
    ExposedRecords,
    Finding,
    Histogram,
    ImagePreview,
    Level,
    Provenance,
    RecordsAtRisk,
    Report,
    ReportWarning,
    Reproduce,
    RiskyRecord,
    RocCurve,
    RowPreview,
    Service,
    Target,
    ThreatModel,
    Training,
    Verdict,
)
from vestige.report.schema import schema
from vestige.report.table import RecordTable
from vestige.report.verdict import verdict

__all__ = [
    "DEFAULT_LIMITS",
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
    "RecordTable",
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
    "gate",
    "image_preview",
    "render",
    "row_preview",
    "schema",
    "verdict",
    "write_html",
]
