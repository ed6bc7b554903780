"""Promises of the audit: what it keeps back, what it refuses, what passes."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import vestige as vs
from vestige.audit import run
from vestige.errors import DamagedFile, InvalidInput, PlanError
from vestige.exchangeability import Exchangeability
from vestige.report.html import _without_models
from worlds import overfit_world


def plan(**changes):
    world = overfit_world(n_models=8)
    made = vs.Plan(world.split, world.target, known=world.known, attacks=["loss", "correctness"])
    return replace(made, **changes)


@pytest.fixture(scope="module")
def report():
    return run(plan(attacks=["lira_online", "loss", "correctness"]))


def test_exposed_records_are_kept_back_when_asked(report):
    shown = [r for r in report.exposed_records.records if r.exposed]
    assert shown and all(r.preview is not None for r in shown)
    assert all(r.preview is None for r in report.exposed_records.records if not r.exposed)
    hidden = run(plan(attacks=["lira_online"], show_records=False))
    assert all(r.preview is None for r in hidden.exposed_records.records)


def test_a_failed_check_fails_the_gate_whatever_the_limits(report):
    assert vs.gate(report, {"auc": 1.0}) == []
    failed = Exchangeability(report.findings[0].metrics["auc"], False, "they differ")
    (said,) = vs.gate(replace(report, exchangeability=failed), {"auc": 1.0})
    assert said.startswith("members and non-members differ without the model (AUC ")


def test_a_rate_that_ties_put_out_of_reach_is_no_violation(report):
    rate = report.finding("correctness").metrics["tpr@0.01"]
    assert rate.value is None and rate.reason.startswith("not attainable")
    assert (
        vs.gate(replace(report, findings=(report.finding("correctness"),)), {"tpr@0.01": 0}) == []
    )


def test_the_roc_compares_with_an_attack_that_draws_a_curve(report):
    lira, loss, correctness = report.findings
    assert _without_models([lira, correctness, loss], lira) is loss
    assert _without_models([lira, correctness], lira) is correctness
    assert _without_models([loss, correctness], loss) is None


def test_an_estimator_is_no_recipe(report):
    with pytest.raises(PlanError, match=r"got LogisticRegression; wrap it"):
        run(plan(known=None, recipe=LogisticRegression()))


def test_a_damaged_plan_is_named(tmp_path):
    run(plan(), tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"plan\.json .*--fresh"):
        run(plan(), tmp_path)
    run(plan(), tmp_path, fresh=True)


def test_a_damaged_file_is_named_without_a_terminal(tmp_path):
    run(plan(), tmp_path)
    (answers,) = (tmp_path / "store").rglob("answers.npz")
    answers.write_bytes(answers.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"answers\.npz in .* is damaged"):
        run(plan(), tmp_path)
    answers.write_bytes(answers.read_bytes()[:-5])
    told = []
    run(plan(), tmp_path, tell=told.append)
    assert any("answers.npz in" in text and "is damaged" in text for text in told)


def test_a_pool_whose_ids_mean_other_records_is_refused():
    world = overfit_world(n_models=4)
    mine = world.known.records
    turned = vs.Records(np.roll(mine.ids, 1), mine.x, mine.y, mine.columns, mine.classes)
    known = vs.Pool(world.known.models, turned, world.known.member)
    with pytest.raises(InvalidInput, match="number the records once"):
        run(plan(known=known))


def test_an_estimator_with_other_classes_is_refused():
    rng = np.random.default_rng(0)
    x, names = rng.normal(size=(90, 3)), np.array(["ant", "bee", "cow"] * 30)
    fitted = LogisticRegression().fit(x, names)
    few = names != "bee"
    made = vs.Split.from_arrays((x[few][:30], names[few][:30]), (x[few][30:], names[few][30:]))
    with pytest.raises(InvalidInput, match="the estimator's classes ant, bee, cow, got ant, cow"):
        vs.audit(vs.EstimatorModel(fitted), made, attacks=["loss"])
