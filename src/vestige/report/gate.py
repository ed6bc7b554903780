"""Limits on leakage, for pipelines: which findings exceed them, in sentences."""

from collections.abc import Iterable, Mapping
from typing import Literal

from vestige.errors import PlanError
from vestige.metrics import NOT_ATTAINABLE, Estimate
from vestige.report.report import Finding, Report
from vestige.report.wording import number

__all__ = ["DEFAULT_LIMITS", "KNOWN_METRICS", "Bound", "gate", "not_judged"]

Bound = Literal["value", "low", "high"]

DEFAULT_LIMITS: Mapping[str, float] = {"auc": 0.6, "tpr@0.01": 0.1}
"""What `gate` asks for by default.

An AUC of 0.6 is where the verdict turns from "low" to "moderate". A tenth of the members
recognized at a false positive rate of 1% is ten times chance, and far enough from it that a
harmless target of a few hundred records does not fail by accident. Both are a place to start; a
limit is the decision of whoever answers for the data.
"""

KNOWN_METRICS = (
    "auc",
    "advantage",
    "balanced_accuracy",
    "precision",
    "tpr@0.1",
    "tpr@0.01",
    "tpr@0.001",
    "epsilon_lower_bound",
)
"""The keys that every finding has."""


def gate(
    report: Report, limits: Mapping[str, float] | None = None, *, bound: Bound = "value"
) -> list[str]:
    """One sentence for every attack and limit that is violated; an empty list passes.

    Args:
        report: what was measured.
        limits: metric -> largest value allowed; `DEFAULT_LIMITS` if None.
        bound: which number is compared. "value" is the estimate; "low" fails only where the
            excess is beyond doubt; "high" passes only where the absence of one is.

    A metric that could not be measured is a violation, with its reason: what is not known is not
    below a limit. So is a failed exchangeability check. A rate that an attack cannot attain, since
    its scores tie or it leaves most records out, is none: `not_judged` names it. Raises `PlanError`
    for a metric that no finding has.
    """
    limits = DEFAULT_LIMITS if limits is None else limits
    if bound not in ("value", "low", "high"):
        raise PlanError(f"expected the bound value, low or high, got {bound!r}.")
    _refuse_unknown(limits, report.findings)
    if not report.findings:
        return ["no attack was run, so that no limit can be checked"]
    if report.exchangeability.passed is False:
        return [
            "members and non-members differ without the model (AUC "
            f"{_shown(report.exchangeability.auc, 'value')}), so that no limit can be checked"
        ]
    violations = (
        _violation(finding, metric, limit, bound)
        for finding in report.findings
        for metric, limit in limits.items()
    )
    return [sentence for sentence in violations if sentence]


def not_judged(report: Report, limits: Mapping[str, float]) -> list[str]:
    """What `gate` passes without a number: for each attack its limits, as "loss (tpr@0.01)".

    These are rates that an attack cannot attain, and an attack on records at risk that has no
    finding, as it scored one side only.
    """
    out = {
        finding.attack: [name for name in limits if _is_unattainable(finding.metrics.get(name))]
        for finding in report.findings
    }
    risk = report.records_at_risk
    if risk is not None and risk.n_tested and risk.attack not in out:
        out[risk.attack] = list(limits)
    return [f"{attack} ({', '.join(names)})" for attack, names in out.items() if names]


def _is_unattainable(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.reason.startswith(NOT_ATTAINABLE)


def _refuse_unknown(limits: Mapping[str, float], findings: Iterable[Finding]) -> None:
    known = [*KNOWN_METRICS, *(name for finding in findings for name in finding.metrics)]
    known = list(dict.fromkeys(known))
    unknown = [name for name in limits if name not in known]
    if unknown:
        raise PlanError(f"expected a metric among {', '.join(known)}; got {unknown[0]!r}.")
    odd = [name for name, limit in limits.items() if not limit == limit]
    if odd:
        raise PlanError(f"expected a number as the limit of {odd[0]}, got NaN.")


def _violation(finding: Finding, metric: str, limit: float, bound: Bound) -> str:
    estimate = finding.metrics.get(metric)
    if estimate is None:
        return f"{finding.attack}: {metric} was not measured"
    if _is_unattainable(estimate):
        return ""  # an attack that cannot accuse so few recognizes nobody there
    measured = _bounded(estimate, bound)
    if measured is None:
        return f"{finding.attack}: {metric} is not known: {estimate.reason or 'no ' + bound}"
    if measured <= limit:
        return ""
    return f"{finding.attack}: {metric} {_shown(estimate, bound)} exceeds {limit:g}"


def _bounded(estimate: Estimate, bound: Bound) -> float | None:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}[bound]


def _shown(estimate: Estimate, bound: Bound) -> str:
    value, low, high = (number(v) for v in (estimate.value, estimate.low, estimate.high))
    end = {"value": "", "low": " (its lower end)", "high": " (its upper end)"}[bound]
    return f"{value} [{low}, {high}]{end}"
