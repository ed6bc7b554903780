"""From findings to one sentence: how much the model gives away, how surely, and to whom.

The rule, in full, because somebody signs under it:

1. Several attacks were tried, and the luckiest of many harmless attacks looks like a leak. Each
   interval is therefore first widened from 95% to 1 - 0.05 / (number of intervals looked at: the
   AUC and the three rates of every attack; Bonferroni). The data behind an interval are not here,
   so the widening is an approximation: on the logit scale by the ratio of the normal quantiles,
   but never beyond what an exact binomial interval at 0 or 1 would become. Levels are decided by
   these widened intervals; the sentences show the attack's own interval, the one of the tables.
2. The excess of an attack is the lower end of its AUC minus chance. Chance is 0.5; where members
   and non-members are not exchangeable it is what a classifier that never saw the model reaches
   (the upper end of its AUC), because only what exceeds that is membership.
3. high: excess of at least 0.25, or at least 20% of the members recognized at a false positive
   rate of 1%. moderate: 0.10, or 5%. low: any excess, or more members recognized at one of the
   three false positive rates than that rate. Rates count by their widened lower ends, and only
   where members and non-members are exchangeable.
4. low, too: a member is recognized one by one at the false discovery rate, by the attack that
   names the exposed or by ranks among reference models (records at risk). Each of the two has its
   own 5%, which are not shared. Where by ranks no more members than non-members are recognized,
   references are unlike the target, or it is luck: then the answer is unknown.
5. none: no attack reaches any of this, and a high AUC is excluded too (by the attacks that scored
   all records, where there are such; of the others the sentence says what they cannot exclude).
   Where it is not excluded, or nothing was resolved, the answer is unknown.

The strongest attack is the one of the highest level; among those, the one with the highest lower
end of its AUC.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from vestige.exchangeability import Exchangeability
from vestige.metrics import Estimate
from vestige.report.report import (
    ExposedRecords,
    Finding,
    Level,
    RecordsAtRisk,
    ReportWarning,
    ThreatModel,
    Verdict,
)
from vestige.report.wording import estimate, percent, plural, rate_name, strongest_first

__all__ = ["verdict"]

ERROR_RATE = 0.05
RATES = ("tpr@0.001", "tpr@0.01", "tpr@0.1")
LEVELS: tuple[Level, ...] = ("none", "low", "moderate", "high")
AUC_EXCESS = {"high": 0.25, "moderate": 0.10}
TPR_AT_1_PERCENT = {"high": 0.20, "moderate": 0.05}


def verdict(
    findings: Sequence[Finding],
    *,
    exchangeability: Exchangeability | None = None,
    warnings: Sequence[ReportWarning] = (),
    exposed: ExposedRecords | None = None,
    at_risk: RecordsAtRisk | None = None,
) -> Verdict:
    """The verdict on all findings together; the module says by which rule.

    Args:
        findings: what each attack found.
        exchangeability: the model-free check; failed, it raises what counts as chance.
        warnings: reservations, of which "few_records" is repeated in the meaning.
        exposed: records that are recognized one by one, named in the meaning.
        at_risk: records that stand out, some of them recognized one by one.
    """
    resolved = [f for f in strongest_first(tuple(findings)) if _is_resolved(f)]
    if not resolved:
        return _nothing_resolved(findings)
    chance = _chance(exchangeability)
    n_intervals = _n_intervals(resolved)
    levels = {f.attack: _level(f, n_intervals, chance) for f in resolved}
    strongest = max(resolved, key=lambda f: LEVELS.index(levels[f.attack]))  # the first of equals
    level = levels[strongest.attack]
    reservations = _reservations(resolved, exchangeability, warnings)
    if level == "none":
        few = _one_by_one(exposed, at_risk)
        if few is not None:
            return _a_few(few, resolved, reservations)
        return _no_leak(resolved, chance, reservations, exchangeability)
    return Verdict(
        level,
        _leak_sentence(level, strongest, chance),
        " ".join([_meaning(strongest), *reservations, *_exposed(exposed), _tried(resolved)]),
        strongest.attack,
    )


# --- the rule ----------------------------------------------------------------------------------


def _is_resolved(finding: Finding) -> bool:
    return any(_has_interval(finding.metrics.get(name)) for name in ("auc", *RATES))


def _has_interval(estimate: Estimate | None) -> bool:
    return estimate is not None and None not in (estimate.value, estimate.low, estimate.high)


def _chance(exchangeability: Exchangeability | None) -> float:
    """AUC that says nothing about membership."""
    if exchangeability is None or exchangeability.passed is not False:
        return 0.5
    high = exchangeability.auc.high
    return max(0.5, 1.0 if high is None else high)


def _level(finding: Finding, n_intervals: int, chance: float) -> Level:
    excess = _widened(finding.metrics.get("auc"), n_intervals)[0] - chance
    rates = {name: _widened(finding.metrics.get(name), n_intervals)[0] for name in RATES}
    if chance > 0.5:
        rates = dict.fromkeys(RATES, 0.0)
    for level in ("high", "moderate"):
        if excess >= AUC_EXCESS[level] or rates["tpr@0.01"] >= TPR_AT_1_PERCENT[level]:
            return level
    above = any(rate > float(name.removeprefix("tpr@")) for name, rate in rates.items())
    return "low" if excess > 0 or above else "none"


def _n_intervals(findings: Sequence[Finding]) -> int:
    return sum(_has_interval(f.metrics.get(name)) for f in findings for name in ("auc", *RATES))


def _widened(estimate: Estimate | None, n_intervals: int) -> tuple[float, float]:
    """Ends of the interval at level 1 - 0.05 / n_intervals; (0, 1) where there is none.

    At an observed 0 or 1 the logit is infinite. There an exact binomial interval has the end
    (error / 2) ** (1 / n), whose logarithm grows as that of the error; and as this widens by more
    than the normal ratio everywhere, the narrower of the two is still wide enough.
    """
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return 0.0, 1.0
    normal, error = NormalDist(), ERROR_RATE / n_intervals
    ratio = normal.inv_cdf(1 - error / 2) / normal.inv_cdf(1 - ERROR_RATE / 2)
    power = math.log(error / 2) / math.log(ERROR_RATE / 2)
    center, low, high = (_logit(v) for v in (estimate.value, estimate.low, estimate.high))
    return (
        max(_expit(center - ratio * (center - low)), estimate.low**power),
        min(_expit(center + ratio * (high - center)), 1 - (1 - estimate.high) ** power),
    )


def _logit(p: float) -> float:
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- the words ---------------------------------------------------------------------------------


def _leak_sentence(level: Level, finding: Finding, chance: float) -> str:
    says = {
        "high": "gives away who was in its training data",
        "moderate": "gives away part of who was in its training data",
        "low": "gives away a little about who was in its training data",
    }[level]
    start = "The model" if chance == 0.5 else "With a serious reservation, the model"
    against = f"chance is {chance:.2f}" if chance == 0.5 else f"up to {chance:.2f} needs no model"
    auc = finding.metrics.get("auc")
    if auc is None or auc.value is None:
        return f"{start} {says}: {finding.title} {_recognizes(finding)}."
    return f"{start} {says}: {finding.title} reaches an AUC of {estimate(auc)}, where {against}."


def _meaning(finding: Finding) -> str:
    auc = finding.metrics.get("auc")
    who = f"{_who(finding.threat_model)} can tell members from non-members"
    # an attack may choose of whom it speaks; what it finds is then of these alone
    scored = finding.n_members + finding.n_nonmembers
    some = f", of the {plural(scored, 'record')} that it scores" if finding.n_abstained else ""
    if auc is not None and auc.value is not None:
        who += f": shown one of each{some}, they pick the member {100 * auc.value:.0f} times in 100"
    strict = _recognizes(finding)
    return f"{who}. At the strictest setting measured this {strict}." if strict else f"{who}."


def _who(threat: ThreatModel) -> str:
    trains = f", and who trains {plural(threat.n_models, 'model')} of their own,"
    return f"Someone to whom the model shows {threat.access}{trains if threat.n_models else ''}"


def _recognizes(finding: Finding) -> str:
    whose = "these" if finding.n_abstained else "the"
    for name in RATES:
        rate = finding.metrics.get(name)
        if rate is not None and rate.value is not None:
            return (
                f"recognizes {estimate(rate, as_percent=True)} of {whose} members while wrongly "
                f"accusing {rate_name(name)} of {whose} non-members"
            )
    return ""


def _exposed(exposed: ExposedRecords | None) -> list[str]:
    if exposed is None or exposed.n_exposed == 0:
        return []
    return [
        f"{plural(exposed.n_exposed, 'member')} of {exposed.n_tested:,} tested "
        f"{'is' if exposed.n_exposed == 1 else 'are'} recognized one by one by {exposed.attack}, "
        f"of whom about {percent(exposed.fdr)} may be named by luck."
    ]


def _tried(resolved: Sequence[Finding]) -> str:
    if len(resolved) == 1:
        return "One attack was tried; others may do better."
    return (
        f"{len(resolved)} attacks were tried, and the level allows for the luckiest of them; "
        "others may do better."
    )


@dataclass(frozen=True)
class _Few:
    """Records that one attack recognizes one by one; `n_others` of them are non-members."""

    attack: str
    n_members: int
    n_others: int
    fdr: float

    @property
    def is_leak(self) -> bool:
        return self.n_members > self.n_others


def _one_by_one(exposed: ExposedRecords | None, at_risk: RecordsAtRisk | None) -> _Few | None:
    """Who is recognized one by one, those by ranks among models first; None where nobody is."""
    found = []
    if at_risk is not None and at_risk.n_discovered:
        n_members = at_risk.n_members_discovered or 0
        others = at_risk.n_discovered - n_members
        found.append(_Few(at_risk.attack, n_members, others, at_risk.fdr))
    by_ranks = [few.attack for few in found]
    if exposed is not None and exposed.n_exposed and exposed.attack not in by_ranks:
        found.append(_Few(exposed.attack, exposed.n_exposed, 0, exposed.fdr))
    return next((few for few in found if few.is_leak), found[0] if found else None)


def _a_few(few: _Few, resolved: Sequence[Finding], reservations: list[str]) -> Verdict:
    """No attack does better than chance over all that it scores, and yet some are recognized."""
    fdr, n = f"at a false discovery rate of {percent(few.fdr)}", plural(few.n_members, "member")
    end = [_tried(resolved), *reservations]
    if not few.is_leak:
        return Verdict(
            "unknown",
            f"Unknown: no attack did better than chance, but {few.attack} recognizes {n} and "
            f"{plural(few.n_others, 'non-member')} one by one, {fdr}.",
            " ".join(
                [
                    "Either this is luck, or its reference models are unlike the target; then it "
                    "says nothing about membership.",
                    *end,
                ]
            ),
            "",
        )
    known = few.attack in [f.attack for f in resolved]
    wrongly = f" (and, wrongly, {plural(few.n_others, 'non-member')})" if few.n_others else ""
    return Verdict(
        "low",
        "The model gives away a little about who was in its training data: no attack does better "
        f"than chance on average, but {few.attack} recognizes {n}{wrongly} one by one, {fdr}.",
        " ".join(
            [
                f"In about {percent(few.fdr)} of all harmless models one is recognized by luck. "
                "Whether this is it, an audit with other reference models or records would tell.",
                *end,
            ]
        ),
        few.attack if known else "",
    )


def _no_leak(
    resolved: Sequence[Finding],
    chance: float,
    reservations: list[str],
    exchangeability: Exchangeability | None,
) -> Verdict:
    n_intervals = _n_intervals(resolved)
    # what was found on a few records alone cannot exclude a leak, nor keep others from it
    whole = [f for f in resolved if not f.n_abstained] or resolved
    partial = [f for f in resolved if f not in whole]
    auc = max(_widened(f.metrics.get("auc"), n_intervals)[1] for f in whole)
    if auc - 0.5 >= AUC_EXCESS["high"] or chance > 0.5:
        return _too_uncertain(auc, resolved, reservations, exchangeability)
    return Verdict(
        "none",
        f"{_nowhere(whole)}: no attack did better than chance, and with 95% confidence none "
        f"{'of those that score all records ' if partial else ''}exceeds an AUC of {auc:.2f}, "
        f"where chance is 0.50{_not_excluded(partial, n_intervals)}.",
        " ".join(
            [
                "Nobody using these attacks, with what they were given, tells members from "
                f"non-members better than by guessing, up to {'these' if partial else 'that'} "
                f"limit{'s' if partial else ''}.",
                _tried(resolved),
                *reservations,
            ]
        ),
        "",
    )


def _nowhere(whole: Sequence[Finding]) -> str:
    """The start of "no leakage", of the records that it is said of."""
    if not whole[0].n_abstained:
        return "No leakage found"
    # the titles say of how many records they are
    return f"No leakage found on the records that were scored ({', '.join(f.title for f in whole)})"


def _not_excluded(partial: Sequence[Finding], n_intervals: int) -> str:
    """What the attacks on some of the records leave open, each by its title."""
    if not partial:
        return ""
    ends = (_widened(f.metrics.get("auc"), n_intervals)[1] for f in partial)
    said = [f"up to {end:.2f} for {f.title}" for f, end in zip(partial, ends, strict=True)]
    return f"; not excluded is {', and '.join(said)}"


def _too_uncertain(
    auc: float,
    resolved: Sequence[Finding],
    reservations: list[str],
    exchangeability: Exchangeability | None,
) -> Verdict:
    if _is_failed(exchangeability):
        sentence = (
            "Unknown: members and non-members differ by themselves, and no attack tells them apart "
            "better than a classifier that never saw the model."
        )
    else:
        sentence = (
            f"Unknown: no attack did better than chance, but an AUC of up to {auc:.2f} cannot be "
            "excluded with this many records."
        )
    meaning = "This audit can neither find nor rule out that the model gives its members away."
    return Verdict("unknown", sentence, " ".join([meaning, _tried(resolved), *reservations]), "")


def _nothing_resolved(findings: Sequence[Finding]) -> Verdict:
    reasons = (f.metrics["auc"].reason for f in findings if "auc" in f.metrics)
    reason = next((r for r in reasons if r), "no attack was run" if not findings else "")
    return Verdict(
        "unknown",
        f"Unknown: nothing could be measured{f' ({reason})' if reason else ''}.",
        "This says nothing about the model, neither that it leaks nor that it does not.",
        "",
    )


def _is_failed(exchangeability: Exchangeability | None) -> bool:
    return exchangeability is not None and exchangeability.passed is False


def _reservations(
    resolved: Sequence[Finding],
    exchangeability: Exchangeability | None,
    warnings: Sequence[ReportWarning],
) -> list[str]:
    said = []
    if exchangeability is not None and _is_failed(exchangeability):
        said.append(
            "Members and non-members can be told apart without the model, with an AUC of "
            f"{estimate(exchangeability.auc)}, so that part of every number here is a difference "
            "between two sets of records and not membership; audit again with both sides drawn "
            "from one source."
        )
    said += [warning.message for warning in warnings if warning.code == "few_records"]
    n_intervals = _n_intervals(resolved)
    if any(_widened(f.metrics.get("auc"), n_intervals)[1] < 0.5 for f in resolved):
        said.append(
            "An attack ranks members clearly below non-members, which chance does not do; look "
            "at where the two sets come from."
        )
    return said
