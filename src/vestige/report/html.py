"""One self-contained page, drawn from a report: no script, no network, no state.

The template holds the words of the page and its order; what is decided by looking at the data
(which curves, which table, which numbers at a glance) is decided here. Every name in a report is
foreign text: Jinja2 escapes it, and the page forbids scripts and connections on top.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from vestige.errors import MissingExtra
from vestige.metrics import Estimate
from vestige.report.report import ExposedRecords, Finding, ImagePreview, RecordsAtRisk, Report
from vestige.report.wording import (
    UNRESOLVED,
    estimate,
    estimate_parts,
    number,
    of_members,
    p_value,
    percent,
    plural,
    rate_name,
    sentence,
    strongest_first,
)

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render", "summary"]

METRIC_NAMES = {
    "auc": "AUC",
    "advantage": "Advantage (TPR minus FPR)",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "tpr@0.1": "TPR at 10% FPR",
    "tpr@0.01": "TPR at 1% FPR",
    "tpr@0.001": "TPR at 0.1% FPR",
    "epsilon_lower_bound": "Epsilon, lower bound",
}
FEWEST_POINTS = 4
CONTEXT_NAMES = {"fpr": "FPR", "tpr": "TPR", "base_rate": "share of members"}
RATES = ("tpr@0.1", "tpr@0.01", "tpr@0.001")


def render(report: Report) -> str:
    """The page, as text. The same report gives the same bytes.

    Raises `MissingExtra` where Jinja2 or matplotlib is absent.
    """
    return _environment().get_template("report.html.j2").render(_content(report))


def summary(report: Report) -> str:
    """Verdict and table of findings as an HTML fragment, for notebooks."""
    return (
        _environment()
        .get_template("summary.html.j2")
        .render(report=report, findings=strongest_first(report.findings))
    )


@dataclass(frozen=True)
class _Drawn:
    """A finding with its two small figures."""

    finding: Finding
    roc: str
    histogram: str


def _content(report: Report) -> dict[str, Any]:
    findings = strongest_first(report.findings)
    strongest = report.finding(report.verdict.attack) or next(iter(findings), None)
    return {
        "report": report,
        "findings": findings,
        "strongest": strongest,
        "cheapest": _without_models(findings, strongest),
        "reasons": _reasons(findings),
        "exposed": report.exposed_records,
        "as_gallery": _all_images(report.exposed_records),
        "risk": report.records_at_risk,
        "risky_images": _all_images(report.records_at_risk),
        **_figures(report, findings, strongest),
    }


def _figures(
    report: Report, findings: Sequence[Finding], strongest: Finding | None
) -> dict[str, Any]:
    """Every figure of the page, as SVG that is safe to insert."""
    if strongest is None:
        return {"drawn": [], "class_count": 0}
    from markupsafe import Markup

    from vestige.report import plots

    cheapest = _without_models(findings, strongest)
    both = [strongest] if cheapest is None else [strongest, cheapest]
    shown = plots.classes_shown(strongest)
    return {
        "roc": Markup(plots.roc(both, key="roc")),
        "histogram": Markup(plots.histogram(strongest, key="scores")),
        "low_fpr": Markup(plots.low_fpr(findings, key="rates")),
        "per_class": Markup(plots.per_class(strongest, key="classes")) if shown else None,
        "classes": shown,
        "class_count": len(strongest.per_class),
        "drawn": [
            _Drawn(
                finding,
                Markup(plots.roc([finding], key=f"roc{i}", points=80, height=2.5)),
                Markup(plots.histogram(finding, key=f"scores{i}")),
            )
            for i, finding in enumerate(findings)
        ],
    }


def _without_models(findings: Iterable[Finding], strongest: Finding | None) -> Finding | None:
    """The strongest attack that trains no model and draws a curve, if the strongest trains some."""
    if not _trains(strongest):
        return None
    free = [f for f in findings if f.threat_model.n_models == 0]
    # right or wrong is one threshold: two straight lines on linear axes, nothing on these
    curves = [f for f in free if len(f.roc.fpr) > FEWEST_POINTS]
    return next(iter(curves or free), None)


def _trains(finding: Finding | None) -> bool:
    return finding is not None and finding.threat_model.n_models > 0


def _all_images(found: ExposedRecords | RecordsAtRisk | None) -> bool:
    return found is not None and all(isinstance(r.preview, ImagePreview) for r in found.records)


def _reasons(findings: Iterable[Finding]) -> list[str]:
    """Why some rates of the table are missing, each reason once."""
    missing = (f.metrics[name].reason for f in findings for name in RATES if name in f.metrics)
    return list(dict.fromkeys(reason for reason in missing if reason))


# --- filters of the template -------------------------------------------------------------------


def _is_rate(metric: str) -> bool:
    return metric in ("precision", "balanced_accuracy") or metric.startswith("tpr@")


def _cell(value: Estimate | None, as_percent: bool = False) -> tuple[str, str]:
    return ("not measured", "") if value is None else estimate_parts(value, as_percent=as_percent)


def _count(value: int | None) -> str:
    return UNRESOLVED if value is None else f"{value:,}"


def _context(value: Estimate) -> str:
    """What has to be read beside a value: the FPR beside a precision, and so on."""
    known = (
        f"{name} {percent(value.context[key], 1)}"
        for key, name in CONTEXT_NAMES.items()
        if key in value.context
    )
    return ", ".join(known)


def _setting(value: object) -> str:
    """A hyper-parameter as a person would write it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    if value is None:
        return "none"
    return str(value) if not isinstance(value, bool) else ("yes" if value else "no")


@cache
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtra("report.html needs Jinja2; run `pip install jinja2`.") from None
    environment = Environment(
        loader=PackageLoader("vestige.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell,
        "context": _context,
        "count": _count,
        "estimate": estimate,
        "number": number,
        "of_members": of_members,
        "p": p_value,
        "percent": percent,
        "plural": plural,
        "rate_name": rate_name,
        "sentence": sentence,
        "setting": _setting,
    }
    environment.tests["rate"] = _is_rate
    environment.globals |= {"METRIC_NAMES": METRIC_NAMES, "RATES": RATES}
    return environment
