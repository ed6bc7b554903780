"""Numbers and findings in words: one way of writing them, everywhere in the report."""

import math
from typing import TYPE_CHECKING

from vestige.metrics import NOT_ATTAINABLE, Estimate

if TYPE_CHECKING:
    from vestige.report.report import ExposedRecords, Finding, RecordsAtRisk, Report

__all__ = [
    "as_text",
    "at_risk",
    "estimate",
    "exposed",
    "number",
    "of_members",
    "p_value",
    "percent",
    "plural",
    "rate_name",
    "sentence",
    "strongest_first",
]

UNRESOLVED = "not resolvable"


def number(value: float | None, decimals: int = 2) -> str:
    """A plain number, "-" where there is none; more decimals close to 0 and 1 only if asked.

    >>> number(0.7071), number(None)
    ('0.71', '-')
    """
    return "-" if value is None else f"{value:.{decimals}f}".replace("-0.00", "0.00")


def percent(value: float | None, decimals: int = 0) -> str:
    """A rate as a percentage.

    >>> percent(0.121), percent(0.001, 1)
    ('12%', '0.1%')
    """
    return "-" if value is None else f"{100 * value:.{decimals}f}%"


def estimate(estimate: Estimate, *, as_percent: bool = False) -> str:
    """A value with its interval, to as many decimals as the interval is worth.

    >>> estimate(Estimate(0.7071, 0.69, 0.7312, "x"))
    '0.71 (0.69 to 0.73)'
    >>> estimate(Estimate(0.1212, 0.1, 0.15, "x"), as_percent=True)
    '12% (10% to 15%)'
    >>> estimate(Estimate(None, None, None, "x", reason="too few records"))
    'not resolvable'
    """
    value, interval = estimate_parts(estimate, as_percent=as_percent)
    return f"{value} ({interval})" if interval else value


def estimate_parts(estimate: Estimate, *, as_percent: bool = False) -> tuple[str, str]:
    """The value and its interval apart, the interval without its brackets and "" if none."""
    if estimate.value is None:
        tied = estimate.reason.startswith(NOT_ATTAINABLE)
        return NOT_ATTAINABLE if tied else UNRESOLVED, ""
    decimals = _decimals(estimate, as_percent)
    low, value, high = (
        percent(v, decimals) if as_percent else number(v, decimals)
        for v in (estimate.low, estimate.value, estimate.high)
    )
    if estimate.low is None and estimate.high is None:
        return value, "no interval"
    if estimate.high is None:
        return f"at least {low}", ""
    if estimate.low is None:
        return f"at most {high}", ""
    return value, f"{low} to {high}"


def p_value(value: float) -> str:
    """A p- or q-value with two digits.

    >>> p_value(0.0314), p_value(0.00002)
    ('0.031', '< 0.0001')
    """
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}" if value < 1 else "1"


def rate_name(metric: str) -> str:
    """The false positive rate in the name of a metric, as people say it.

    >>> rate_name("tpr@0.001")
    '0.1%'
    """
    return f"{100 * float(metric.removeprefix('tpr@')):g}%"


def sentence(text: str) -> str:
    """The text with a capital and a full stop.

    >>> sentence("nothing was found")
    'Nothing was found.'
    """
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def plural(count: int, noun: str) -> str:
    """A counted noun, with separators of thousands.

    >>> plural(1, "record"), plural(1497, "record")
    ('1 record', '1,497 records')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def strongest_first(findings: "tuple[Finding, ...]") -> "list[Finding]":
    """Findings by the lower end of their AUC, highest first; what is not resolved comes last."""
    return sorted(findings, key=lambda f: -_auc_low(f))


def as_text(report: "Report") -> str:
    """The report in a few lines of plain text: verdict, a table of findings, warnings."""
    verdict = report.verdict
    lines = [f"{report.name}: {verdict.sentence}", ""]
    lines += _aligned([_HEADER, *(_row(f) for f in strongest_first(report.findings))])
    if report.exposed_records is not None:
        lines += ["", exposed(report.exposed_records, report.data.n_members)]
    if report.records_at_risk is not None:
        lines += ["", at_risk(report.records_at_risk)]
    lines += ["", *(f"warning: {warning.message}" for warning in report.warnings)]
    return "\n".join(lines).rstrip()


def exposed(found: "ExposedRecords", n_members: int) -> str:
    """How many of the model's members one attack recognizes one by one, in a sentence."""
    return (
        f"{found.attack} recognizes {of_members(found, n_members)} one by one, at a false "
        f"discovery rate of {percent(found.fdr)}, by {found.method}."
    )


def of_members(found: "ExposedRecords", n_members: int) -> str:
    """The exposed of the model's members, and how many of these were scored if not all.

    >>> from vestige.report import ExposedRecords
    >>> of_members(ExposedRecords("gmia", 0.05, 9, 273, "", 0.45, ()), 898)
    '9 of 898 members, 273 of them scored,'
    """
    some = f"{found.n_exposed:,} of {plural(n_members, 'member')}"
    return some if found.n_tested == n_members else f"{some}, {found.n_tested:,} of them scored,"


def at_risk(found: "RecordsAtRisk") -> str:
    """Who stands out and who of them is recognized, in a sentence or two."""
    some = f"{found.n_standing_out:,} of {plural(found.n_candidates, 'record')}"
    stand = "stands" if found.n_standing_out == 1 else "stand"
    if not found.n_standing_out:
        return (
            f"No record of {found.n_candidates:,} stands out before the model is asked "
            f"({found.attack})."
        )
    stand += " out before the model is asked"
    if found.n_standing_out == found.n_candidates:
        # nobody was chosen
        some, stand = f"All {plural(found.n_candidates, 'record')}", "are looked at"
    said = f"{some} {stand} ({found.attack}), {found.n_members_out:,} of them members"
    if not found.n_tested:
        return f"{said}; none could be tested."
    cut = f"p <= {found.cutoff:g}"
    if found.recognized.value is None:
        told = f"at {cut} the share recognized is {estimate(found.recognized)}"
    else:
        told = f"at {cut} it recognizes {estimate(found.recognized, as_percent=True)} of these"
    if found.mistaken.value is not None:
        told += f", and {estimate(found.mistaken, as_percent=True)} of the non-members"
    if found.n_discovered is None:
        who = f"who is recognized is {UNRESOLVED} by ranks among so few reference models"
    else:
        who = f"{found.n_discovered:,} {'is' if found.n_discovered == 1 else 'are'} recognized"
    return f"{said}; {told}. At a false discovery rate of {percent(found.fdr)}, {who}."


_HEADER = ("attack", "AUC", "TPR at 1% FPR", "TPR at 0.1% FPR", "models", "queries")


def _row(finding: "Finding") -> tuple[str, ...]:
    metrics, cost = finding.metrics, finding.threat_model
    rates = (_cell(metrics.get(name), True) for name in ("tpr@0.01", "tpr@0.001"))
    auc = _cell(metrics.get("auc"), False)
    scored = finding.n_members + finding.n_nonmembers
    some = f" ({scored:,} of {scored + finding.n_abstained:,})" if finding.n_abstained else ""
    return (finding.attack + some, auc, *rates, f"{cost.n_models:,}", f"{cost.n_queries:,}")


def _cell(value: Estimate | None, as_percent: bool) -> str:
    return "-" if value is None else estimate(value, as_percent=as_percent)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    counts = len(widths) - 2
    return [
        "  ".join(
            cell.rjust(width) if i >= counts else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _decimals(estimate: Estimate, as_percent: bool) -> int:
    """Decimals that show where an interval begins and ends, and no more."""
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    scale = 100.0 if as_percent else 1.0
    width = scale * abs((high or 0.0) - (low or 0.0))
    wanted = math.ceil(-math.log10(width)) if width > 0 else 0
    if as_percent:
        small = 0 < abs(estimate.value or 0.0) < 0.1
        return min(max(wanted, int(small)), 2)
    return min(max(wanted, 2), 4)


def _auc_low(finding: "Finding") -> float:
    auc = finding.metrics.get("auc")
    if auc is None or auc.value is None:
        return -1.0
    return auc.value if auc.low is None else auc.low
