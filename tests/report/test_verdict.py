"""The rule of the verdict: levels, many attacks, reservations, and how often it cries wolf."""

import math
from dataclasses import replace

import numpy as np
import pytest
from example import exact, failed, passed, small_exposed, small_finding, small_risk, unresolved

from vestige.metrics import auc, tpr_at_fpr
from vestige.report import ReportWarning, verdict
from vestige.report.verdict import _widened

UNRESOLVED = {name: unresolved() for name in ("auc", "tpr@0.1", "tpr@0.01", "tpr@0.001")}


def finding(attack="loss", **metrics):
    metrics = {name.replace("_", "@"): value for name, value in metrics.items()}
    return replace(small_finding(attack, 0.5), metrics={**UNRESOLVED, **metrics})


def area(value, half=0.02):
    return exact(value, value - half, value + half)


def level(*findings, **options):
    return verdict(findings, **options).level


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "none"),
        (0.515, "none"),
        (0.53, "low"),
        (0.61, "low"),
        (0.63, "moderate"),
        (0.8, "high"),
    ],
)
def test_levels_go_by_the_lower_end_of_the_auc(value, expected):
    assert level(finding(auc=area(value))) == expected


@pytest.mark.parametrize(
    ("low", "expected"), [(0.009, "none"), (0.02, "low"), (0.06, "moderate"), (0.21, "high")]
)
def test_few_members_recognized_surely_count_although_the_auc_does_not(low, expected):
    rate = exact(low + 0.01, low, low + 0.05)
    one = finding(auc=area(0.5, 0.001), **{"tpr@0.01": rate})
    # two intervals are looked at, so that the ends move a little
    assert _widened(rate, 2)[0] == pytest.approx(low, abs=0.004)
    assert level(one) == expected


def test_the_strictest_rate_counts_at_its_own_chance():
    rate = exact(0.01, 0.005, 0.02)
    assert level(finding(auc=area(0.5), **{"tpr@0.001": rate})) == "low"
    assert level(finding(auc=area(0.5), **{"tpr@0.1": rate})) == "none"


def test_the_luckiest_of_many_harmless_attacks_is_no_leak():
    lucky = finding("lucky", auc=exact(0.525, 0.501, 0.549))
    assert level(lucky) == "low"
    assert level(lucky, *(finding(f"a{i}", auc=area(0.5)) for i in range(20))) == "none"


def test_widening_known_answers():
    # one interval is not widened
    assert _widened(exact(0.7, 0.6, 0.8), 1) == pytest.approx((0.6, 0.8))
    # a symmetric interval on the logit scale, by the ratio of quantiles z(.05/40) / z(.05/2)
    logit = math.log(0.6 / 0.4)
    ratio = 3.023341 / 1.959964
    expected = 1 / (1 + math.exp(ratio * logit))
    assert _widened(exact(0.5, 0.4, 0.6), 20) == pytest.approx((expected, 1 - expected), abs=1e-6)
    # at an observed 1 out of 100 the exact end is (error / 2) ** (1 / 100)
    perfect = exact(1.0, 0.025 ** (1 / 100), 1.0)
    assert _widened(perfect, 20)[0] == pytest.approx((0.05 / 40) ** (1 / 100))
    nothing = exact(0.0, 0.0, 1 - 0.025 ** (1 / 100))
    assert _widened(nothing, 20)[1] == pytest.approx(1 - (0.05 / 40) ** (1 / 100))
    assert _widened(unresolved(), 20) == (0.0, 1.0)


def test_a_perfect_attack_among_many_is_high():
    perfect = finding("lira_online", auc=exact(1.0, 0.99, 1.0))
    others = (finding(f"a{i}", auc=area(0.5)) for i in range(11))
    assert level(*others, perfect) == "high"


def test_the_strongest_attack_is_of_the_highest_level_then_of_the_highest_low_end():
    wide = finding("wide", auc=exact(0.75, 0.5, 0.9))
    sure = finding("sure", auc=area(0.7))
    surer = finding("surer", auc=area(0.71))
    assert verdict([wide, sure, surer]).attack == "surer"
    spiky = finding("spiky", auc=area(0.55), **{"tpr@0.01": exact(0.4, 0.35, 0.45)})
    assert verdict([surer, spiky]).attack == "spiky"


def test_the_sentence_has_its_interval_and_the_meaning_a_person():
    answer = verdict([small_finding("lira_online", 0.71)], exposed=small_exposed())
    assert answer.sentence == (
        "The model gives away part of who was in its training data: LiRA, online reaches an AUC of "
        "0.71 (0.68 to 0.74), where chance is 0.50."
    )
    assert answer.meaning == (
        "Someone to whom the model shows class probabilities, and who trains 64 models of their "
        "own, can tell members from non-members: shown one of each, they pick the member 71 times "
        "in 100. At the strictest setting measured this recognizes 12% (9% to 15%) of the members "
        "while wrongly accusing 1% of the non-members. 2 members of 500 tested are recognized one "
        "by one by lira_online, of whom about 5% may be named by luck. One attack was tried; "
        "others may do better."
    )


def test_an_attack_without_models_says_nothing_of_models():
    assert "of their own" not in verdict([small_finding("loss", 0.7, n_models=0)]).meaning


def test_no_leak_says_at_most_how_much():
    answer = verdict([finding("a", auc=area(0.5)), finding("b", auc=area(0.51))])
    high = max(_widened(area(v), 2)[1] for v in (0.5, 0.51))
    assert answer.level == "none" and answer.attack == ""
    assert answer.sentence.startswith("No leakage found")
    assert f"none exceeds an AUC of {high:.2f}" in answer.sentence


def some(attack="gmia", *, auc, scored=16, total=1000):
    title = f"{attack} on {scored} of {total} records"
    return replace(finding(attack, auc=auc), title=title, n_abstained=total - scored)


def test_no_leak_says_in_the_same_sentence_what_those_that_left_records_out_do_not_exclude():
    few = exact(0.7, 0.3, 0.93)
    answer = verdict([finding("loss", auc=area(0.5)), some(auc=few)])
    assert answer.level == "none"
    assert answer.sentence == (
        "No leakage found: no attack did better than chance, and with 95% confidence none of those "
        f"that score all records exceeds an AUC of {_widened(area(0.5), 2)[1]:.2f}, where chance "
        f"is 0.50; not excluded is up to {_widened(few, 2)[1]:.2f} for gmia on 16 of 1000 records."
    )
    assert "up to these limits" in answer.meaning


def test_no_leak_is_said_of_the_records_that_were_scored():
    answer = verdict([some(auc=area(0.5), scored=800)])
    assert answer.level == "none"
    assert answer.sentence.startswith(
        "No leakage found on the records that were scored (gmia on 800 of 1000 records): no attack"
    )


def named(n_members, n_others=0):
    return replace(small_risk(), n_discovered=n_members + n_others, n_members_discovered=n_members)


def test_a_member_who_is_recognized_one_by_one_is_a_leak():
    quiet = [finding("loss", auc=area(0.5)), some(auc=area(0.5))]
    answer = verdict(quiet, at_risk=named(1))
    assert (answer.level, answer.attack) == ("low", "gmia")
    assert answer.sentence == (
        "The model gives away a little about who was in its training data: no attack does better "
        "than chance on average, but gmia recognizes 1 member one by one, at a false discovery "
        "rate of 5%."
    )
    # by whatever attack: here the one that names the exposed
    answer = verdict(quiet, exposed=replace(small_exposed(), attack="loss"), at_risk=named(0))
    assert (answer.level, answer.attack) == ("low", "loss")
    # an attack on one side alone has no finding
    assert verdict(quiet[:1], at_risk=named(9)).attack == ""
    nobody = replace(small_exposed(), n_exposed=0)
    assert level(*quiet, exposed=nobody, at_risk=named(0)) == "none"
    unknown = replace(small_risk(), n_discovered=None, n_members_discovered=None)
    assert level(*quiet, exposed=nobody, at_risk=unknown) == "none"


def test_where_as_many_nonmembers_are_recognized_it_is_unknown():
    answer = verdict([finding("loss", auc=area(0.5))], at_risk=named(2, 2))
    assert (answer.level, answer.attack) == ("unknown", "")
    assert "gmia recognizes 2 members and 2 non-members one by one" in answer.sentence
    # the same attack, counted among members alone, does not say otherwise
    theirs = replace(small_exposed(), attack="gmia")
    assert level(finding("loss", auc=area(0.5)), at_risk=named(2, 2), exposed=theirs) == "unknown"
    assert (
        "(and, wrongly, 1 non-member)"
        in verdict([finding(auc=area(0.5))], at_risk=named(2, 1)).sentence
    )


def test_too_few_records_to_exclude_a_leak_is_unknown():
    answer = verdict([finding(auc=exact(0.5, 0.2, 0.8))])
    assert answer.level == "unknown"
    assert "an AUC of up to 0.80 cannot be excluded" in answer.sentence


def test_nothing_resolved_is_unknown_with_the_reason():
    answer = verdict([finding(auc=unresolved("there are 3 members"))])
    assert answer.level == "unknown" and "there are 3 members" in answer.sentence
    assert "no attack was run" in verdict([]).sentence


def test_members_that_differ_anyway_raise_what_counts_as_chance():
    sure = finding(auc=area(0.95), **{"tpr@0.01": exact(0.5, 0.4, 0.6)})
    answer = verdict([sure], exchangeability=failed())
    assert answer.level == "high"
    assert answer.sentence.startswith("With a serious reservation, the model")
    assert "up to 0.66 needs no model" in answer.sentence
    assert (
        "can be told apart without the model, with an AUC of 0.62 (0.57 to 0.66), so"
        in answer.meaning
    )
    assert level(finding(auc=area(0.8)), exchangeability=failed()) == "moderate"


def test_what_needs_no_model_is_no_leak():
    sure = finding(auc=area(0.65), **{"tpr@0.01": exact(0.5, 0.4, 0.6)})
    answer = verdict([sure], exchangeability=failed())
    assert answer.level == "unknown" and answer.attack == ""
    assert "a classifier that never saw the model" in answer.sentence
    assert level(sure, exchangeability=passed()) == "high"


def test_few_records_are_mentioned_and_other_warnings_are_not():
    warnings = [ReportWarning("few_records", "Only 40 members."), ReportWarning("x", "Other.")]
    meaning = verdict([finding(auc=area(0.7))], warnings=warnings).meaning
    assert "Only 40 members." in meaning and "Other." not in meaning


def test_an_attack_that_ranks_members_last_is_pointed_out():
    answer = verdict([finding(auc=area(0.3))])
    assert answer.level == "none" and "ranks members clearly below" in answer.meaning


def measured(attack, members, others):
    metrics = {f"tpr@{fpr}": tpr_at_fpr(members, others, fpr) for fpr in (0.1, 0.01, 0.001)}
    metrics["auc"] = auc(members, others)
    return replace(small_finding(attack, 0.5), metrics=metrics)


def test_false_alarms_and_misses():
    rng, n_worlds, n_attacks, n = np.random.default_rng(0), 150, 6, 200

    def leaks(shift):
        scores = rng.normal(size=(2, n_attacks, n))
        scores[0, 0] += shift
        pairs = zip(*scores, strict=True)
        found = verdict([measured(f"a{i}", *pair) for i, pair in enumerate(pairs)])
        return found.level in ("low", "moderate", "high")

    alarms = sum(leaks(0.0) for _ in range(n_worlds))
    # 5% of 150 is 7.5, with a standard error of 2.7
    assert alarms <= 7.5 + 3 * 2.7
    # one attack in six with an AUC of 0.66: z = 5.9, so that 0.999 of all worlds are found
    assert sum(leaks(0.58) for _ in range(20)) >= 19
