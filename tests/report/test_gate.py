"""Limits: what passes, what fails, and in which words."""

from dataclasses import replace

import pytest
from example import exact, small, small_finding, small_risk, unresolved
from typer.testing import CliRunner

from vestige.cli import app
from vestige.errors import PlanError
from vestige.report import DEFAULT_LIMITS, gate
from vestige.report.gate import not_judged


def with_metrics(**metrics):
    finding = small_finding("loss", 0.55)
    return replace(small(), findings=(replace(finding, metrics={**finding.metrics, **metrics}),))


def test_a_violation_is_a_sentence():
    assert gate(small(), {"auc": 0.6}) == ["lira_online: auc 0.71 [0.68, 0.74] exceeds 0.6"]


def test_every_attack_and_limit_is_checked():
    assert len(gate(small(), {"auc": 0.5, "tpr@0.01": 0.05, "precision": 0.9})) == 4


def test_a_limit_is_the_largest_value_allowed():
    report = with_metrics(auc=exact(0.55, 0.5, 0.6))
    assert gate(report, {"auc": 0.55}) == []
    assert gate(report, {"auc": 0.5499}) != []


@pytest.mark.parametrize(("bound", "fails"), [("low", 0.49), ("value", 0.54), ("high", 0.59)])
def test_the_bound_says_which_number_is_compared(bound, fails):
    report = with_metrics(auc=exact(0.55, 0.5, 0.6))
    (sentence,) = gate(report, {"auc": fails}, bound=bound)
    assert sentence.startswith("loss: auc 0.55 [0.50, 0.60]") and sentence.endswith(f"{fails:g}")
    assert gate(report, {"auc": fails + 0.011}, bound=bound) == []


def test_what_is_not_known_is_not_below_a_limit():
    sentences = gate(small(), {"tpr@0.001": 0.02})
    assert sentences == [
        f"{attack}: tpr@0.001 is not known: not resolvable: an FPR of 0.001 needs 1000 non-members"
        for attack in ("lira_online", "loss")
    ]


def test_a_missing_upper_end_is_a_violation_too():
    (sentence, _) = gate(small(), {"epsilon_lower_bound": 9}, bound="high")
    assert sentence == "lira_online: epsilon_lower_bound is not known: no high"


def test_a_metric_that_one_attack_lacks_is_a_violation():
    finding = replace(small_finding("loss", 0.55), metrics={})
    assert gate(replace(small(), findings=(finding,)), {"auc": 1}) == ["loss: auc was not measured"]


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(PlanError, match=r"auc, advantage, .*tpr@0\.001.*got 'tpr@1'"):
        gate(small(), {"auc": 0.9, "tpr@1": 0.5})


def test_odd_requests_are_refused():
    with pytest.raises(PlanError, match="expected the bound value, low or high, got 'mean'"):
        gate(small(), {"auc": 1}, bound="mean")
    with pytest.raises(PlanError, match="expected a number as the limit of auc"):
        gate(small(), {"auc": float("nan")})


def test_nothing_measured_does_not_pass():
    assert gate(replace(small(), findings=()))


def test_what_is_not_judged_is_named():
    tied = unresolved("not attainable: scores tie")
    report = replace(with_metrics(**{"tpr@0.01": tied}), records_at_risk=None)
    limits = {"auc": 0.6, "tpr@0.01": 0}
    assert gate(report, limits) == [] and not_judged(report, limits) == ["loss (tpr@0.01)"]
    assert not_judged(report, {"auc": 0.6}) == []
    # tested, on one side alone: there is no finding that could exceed a limit
    one_side = replace(report, records_at_risk=small_risk())
    assert not_judged(one_side, {"auc": 0.6}) == ["gmia (auc)"]
    nobody = replace(report, records_at_risk=replace(small_risk(), n_tested=0))
    assert not_judged(nobody, {"auc": 0.6}) == []


def test_the_command_says_what_is_not_judged(tmp_path):
    tied = unresolved("not attainable: scores tie")
    folder = with_metrics(**{"tpr@0.01": tied}).save(tmp_path)
    ran = CliRunner().invoke(app, ["gate", str(folder), "--max", "auc=0.6", "--max", "tpr@0.01=0"])
    assert ran.exit_code == 0
    assert ran.output == (
        "passed: auc at most 0.6, tpr@0.01 at most 0; not judged, as it cannot be measured: loss "
        "(tpr@0.01), gmia (auc, tpr@0.01)\n"
    )


def test_the_defaults_fail_a_leaky_model_and_pass_a_tight_one():
    assert set(DEFAULT_LIMITS) == {"auc", "tpr@0.01"}
    assert gate(small())
    harmless = {"auc": exact(0.5, 0.46, 0.54), "tpr@0.01": exact(0.01, 0.0, 0.03)}
    assert gate(with_metrics(**harmless, **{"tpr@0.001": unresolved()})) == []
