"""Records at risk in an audit: counted as by hand, refused in a sentence, kept back when asked."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import vestige as vs
from vestige import measure
from vestige.attacks import GMIA, Loss
from vestige.attacks.gmia import neighborhood
from vestige.audit import run
from vestige.errors import MissingModels, PlanError
from vestige.metrics import benjamini_hochberg
from vestige.report import schema, verdict
from vestige.signals import true_class_margin
from vestige.tables import plan_of_table
from worlds import overfit_world

WORLD = overfit_world(n_models=200)
ATTACK = GMIA(delta=0.3)


def plan(**changes):
    attacks = {"gmia": ATTACK, "loss": Loss()}
    made = vs.Plan(WORLD.split, WORLD.target, known=WORLD.known, attacks=attacks)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def report():
    return run(plan())


def naive():
    """Rows of candidates that stand out, by id: (expected neighbors, exact p-value)."""
    candidates, known = WORLD.split.candidates, WORLD.known
    near = neighborhood(candidates, known, delta=0.3)
    phi = true_class_margin(WORLD.target.log_probabilities(candidates.x), candidates.y)
    out = {}
    for i, identity in enumerate(candidates.ids.tolist()):
        if near.expected[i] < 0.1:
            (place,) = np.flatnonzero(known.records.ids == identity)
            theirs = [
                true_class_margin(
                    model.log_probabilities(candidates.x[i : i + 1]), candidates.y[i : i + 1]
                )[0]
                for model, saw in zip(known.models, known.member[:, place], strict=True)
                if not saw
            ]
            p = (1 + sum(v >= phi[i] for v in theirs)) / (1 + len(theirs))
            out[identity] = (near.expected[i], p)
    return out


def test_who_stands_out_and_is_recognized_is_counted_as_by_hand(report):
    found, by_hand = report.records_at_risk, naive()
    ids = np.array(list(by_hand))
    p = np.array([v[1] for v in by_hand.values()])
    member = WORLD.split.is_member(ids)
    q = benjamini_hochberg(p)
    assert 50 < len(ids) < 400
    assert (found.n_candidates, found.n_standing_out, found.n_tested) == (600, len(ids), len(ids))
    assert (found.n_members_out, found.n_models) == (int(member.sum()), 100)
    assert found.recognized.value == pytest.approx((p[member] <= 0.01).mean())
    assert found.mistaken.value == pytest.approx((p[~member] <= 0.01).mean())
    assert found.n_discovered == int((q <= 0.05).sum())
    assert found.n_members_discovered == int((q[member] <= 0.05).sum()) > 10
    place = {identity: i for i, identity in enumerate(ids.tolist())}
    for record in found.records:
        i = place[record.id]
        assert record.p_value == pytest.approx(p[i]) and record.q_value == pytest.approx(q[i])
        assert record.recognized is bool(q[i] <= 0.05) and record.member is bool(member[i])
        assert record.expected_neighbors == by_hand[record.id][0]
    shown = [r.p_value for r in found.records]
    assert shown == sorted(p)[: measure.RISKY_SHOWN]


def test_the_nearest_is_the_nearest_and_shown_by_the_same_columns(monkeypatch):
    monkeypatch.setattr(measure, "COLUMNS_SHOWN", 1)
    report = run(plan())
    candidates = WORLD.split.candidates
    near = neighborhood(candidates, WORLD.known, delta=0.3)
    place = {identity: i for i, identity in enumerate(candidates.ids.tolist())}
    for record in report.records_at_risk.records:
        i = place[record.id]
        assert record.nearest_id == near.nearest[i][0] != record.id
        assert record.nearest_distance == near.distance[i][0]
        assert list(record.preview.values) == list(record.nearest_preview.values)


def test_a_p_value_at_the_cutoff_is_recognized():
    assert measure._share_at(np.array([0.01, 0.5]), 99, "member").value == 0.5


def test_neighbors_are_those_that_the_attack_expects():
    found = run(plan(attacks={"gmia": replace(ATTACK, n_train=9), "loss": Loss()}))
    found, fewer = found.records_at_risk, run(plan()).records_at_risk
    assert found.n_standing_out > fewer.n_standing_out
    near = neighborhood(WORLD.split.candidates, WORLD.known, delta=0.3, n_train=9)
    assert found.n_standing_out == found.n_tested == int((near.expected < 0.1).sum())
    assert max(r.expected_neighbors for r in found.records) < 0.1


def test_records_at_risk_are_in_the_schema_and_the_page(report):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(report.to_json(), schema())
    assert vs.Report.from_json(report.to_json()) == report
    assert "stand out before the model is asked (gmia)" in str(report)


def test_an_audit_that_does_not_ask_says_nothing_of_them(report):
    assert run(plan(attacks=["loss"])).records_at_risk is None


def test_previews_are_pictures_or_kept_back():
    pictures = run(plan(image=(3, 1))).records_at_risk.records
    assert all(r.preview.kind == r.nearest_preview.kind == "image" for r in pictures)
    hidden = run(plan(show_records=False)).records_at_risk.records
    assert all(r.preview is None and r.nearest_preview is None for r in hidden)


# --- an attack that abstains on most ----------------------------------------------------------


def test_its_title_says_how_many_it_scored(report):
    finding, n = report.finding("gmia"), report.records_at_risk.n_tested
    assert finding.title == f"Generalized membership inference on {n} of 600 records"
    assert finding.n_members + finding.n_nonmembers == n == finding.threat_model.n_queries
    assert finding.n_abstained == 600 - n and report.finding("loss").n_abstained == 0
    assert report.finding("loss").title == "Loss threshold"


def test_a_rate_of_those_it_scored_is_out_of_reach_and_no_violation():
    few = replace(ATTACK, delta=0.5)
    made = run(plan(attacks={"gmia": few, "loss": Loss()}))
    finding = made.finding("gmia")
    assert 0 < finding.n_nonmembers < 100
    rate = finding.metrics["tpr@0.01"]
    assert rate.value is None
    assert rate.reason == (
        f"not attainable: it says nothing of {300 - finding.n_nonmembers} of 300 non-members, and "
        f"an FPR of 0.01 is less than one of the {finding.n_nonmembers} others"
    )
    assert vs.gate(replace(made, findings=(finding,)), {"tpr@0.01": 0}) == []
    # what nobody could resolve stays open
    assert finding.metrics["tpr@0.001"].reason.startswith("not resolvable")
    assert vs.gate(replace(made, findings=(finding,)), {"auc": 0.5}) != []


def test_the_verdict_names_the_records_it_speaks_of():
    made = run(plan(attacks={"gmia": ATTACK}))
    n = made.records_at_risk.n_tested
    assert f"on {n} of 600 records reaches an AUC of" in made.verdict.sentence


def said_of(made, code):
    return [w.message for w in made.warnings if w.code == code]


def some_models(n):
    known = WORLD.known
    return vs.Pool(known.models[:n], known.records, known.member[:n])


def test_few_references_are_a_warning_where_the_cutoff_is_out_of_reach(report):
    # 1 / 101 is below 0.01: what the table resolves is not warned of
    assert report.records_at_risk.recognized.value is not None
    assert said_of(report, "few_references") == []
    short = run(plan(known=some_models(196)))
    assert short.records_at_risk.recognized.value is None
    (said,) = said_of(short, "few_references")
    assert said == (
        "With 98 reference models without a record, the exact p-values of gmia are multiples of "
        "0.01; for p <= 0.01 give at least 198 references."
    )
    assert said_of(run(plan(attacks=["loss"])), "few_references") == []


def test_a_cutoff_that_so_few_models_cannot_reach_is_not_resolvable():
    made = run(plan(known=some_models(16), attacks={"gmia": replace(ATTACK, delta=0.1)}))
    found = made.records_at_risk
    assert found.n_models == 8 and found.recognized.value is None
    assert found.recognized.reason == (
        "not resolvable: an exact p-value of 0.01 takes 99 reference models without the record, "
        "got 8"
    )
    assert found.n_discovered is None and found.n_members_discovered is None
    assert not any(record.recognized for record in found.records)
    assert "who is recognized is not resolvable by ranks among so few" in str(made)


def test_ranks_that_name_nobody_whatever_is_true_are_not_resolvable():
    """By hand: were all m members of n tested at 1 / (k + 1), their q is n / (k + 1) / m."""
    for n_models in (32, 64, 80, 200):
        made = run(plan(known=some_models(n_models)))
        found, finding = made.records_at_risk, made.finding("gmia")
        n, m = found.n_tested, finding.n_members
        least = n / (n_models // 2 + 1) / m
        assert (found.n_discovered is None) is (least > 0.05)
        need = int(np.ceil(n / m / 0.05 - 1))
        assert n / (need + 1) / m <= 0.05 < n / need / m
        told = " ".join(said_of(made, "few_references"))
        assert (f"5% give at least {2 * need}, and {2 * (20 * n - 1):,} where" in told) is (
            least > 0.05
        )


def test_who_is_tested_is_counted_and_ranks_are_among_those_that_judge():
    split = replace(ATTACK, split_references=True)
    made = run(plan(known=some_models(16), attacks={"gmia": split, "loss": Loss()}))
    found, finding = made.records_at_risk, made.finding("gmia")
    n = finding.n_members + finding.n_nonmembers
    assert found.n_standing_out == found.n_tested == n
    assert found.n_members_out == finding.n_members
    # two pairs of halves choose, two judge: of each pair one model never saw the record
    assert found.n_models == 4
    assert {round(5 * r.p_value, 9) for r in found.records} <= {1, 2, 3, 4, 5}
    assert "for p <= 0.01 give at least 396 references" in said_of(made, "few_references")[0]


# --- who is exposed, beside those at risk ------------------------------------------------------


def test_the_exposed_are_those_recognized_by_ranks(report):
    exposed, found = report.exposed_records, report.records_at_risk
    assert exposed.attack == "gmia" and exposed.method.startswith("exact ranks among reference")
    assert exposed.n_exposed == found.n_members_discovered > 10
    assert exposed.n_tested == report.finding("gmia").n_members < 300
    assert f"gmia recognizes {exposed.n_exposed} of 300 members, {exposed.n_tested} of" in str(
        report
    )
    by_id = {r.id: r for r in found.records if r.member}
    both = [r for r in exposed.records if r.id in by_id]
    assert both and all(r.q_value == by_id[r.id].q_value for r in both)
    assert all(r.exposed is by_id[r.id].recognized for r in both)
    table = report.records
    assert table.exposed.sum() == exposed.n_exposed and not table.exposed[~table.member].any()


def test_where_ranks_are_too_coarse_the_scores_among_nonmembers_name_them():
    made = run(plan(known=some_models(32)))
    exposed = made.exposed_records
    assert made.records_at_risk.n_discovered is None
    assert exposed.attack == "gmia" and exposed.method.startswith("rank among the non-members")


def test_an_attack_on_too_few_to_name_anybody_gives_way():
    made = run(plan(known=some_models(16), attacks={"gmia": GMIA(delta=0.5), "loss": Loss()}))
    assert 0 < made.finding("gmia").n_nonmembers < 19
    assert made.exposed_records.attack == "loss"


def test_the_verdict_is_told_who_is_recognized(monkeypatch):
    told = []

    def spy(findings, **given):
        told.append(given)
        return verdict(findings, **given)

    monkeypatch.setattr(sys.modules["vestige.audit"], "verdict", spy)
    made = run(plan())
    (given,) = told
    assert given["at_risk"] is made.records_at_risk is not None
    assert given["exposed"] is made.exposed_records


def test_a_second_look_for_records_at_risk_is_named():
    made = run(plan(attacks={"near": ATTACK, "far": replace(ATTACK, delta=0.5)}))
    assert made.records_at_risk.attack == "near"
    assert said_of(made, "other_records_at_risk") == [
        "Records at risk are those of near; far, which looks for such records too, stands among "
        "the attacks only."
    ]


def test_where_the_sides_differ_p_values_still_hold():
    """They compare the target with other models on one record, not records with one another."""
    nonmembers = WORLD.split.nonmembers
    shifted = replace(nonmembers, x=nonmembers.x + [0, 40, 0])
    known = replace(WORLD.known.records, x=WORLD.known.records.x.copy())
    rows = np.isin(known.ids, nonmembers.ids)
    known.x[rows] += [0, 40, 0]
    pool = vs.Pool(WORLD.known.models, known, WORLD.known.member)
    made = run(plan(split=replace(WORLD.split, nonmembers=shifted), known=pool))
    assert made.exchangeability.passed is False and made.exposed_records is None
    assert made.records_at_risk.recognized.value > made.records_at_risk.mistaken.high


# --- refusals ----------------------------------------------------------------------------------


def test_nobody_standing_out_is_an_answer_beside_others_and_a_refusal_alone():
    nobody = GMIA(delta=2.0)
    made = run(plan(attacks={"gmia": nobody, "loss": Loss()}))
    assert made.records_at_risk.n_standing_out == 0 and made.records_at_risk.records == ()
    assert made.records_at_risk.recognized.reason == "no member was tested"
    assert [f.attack for f in made.findings] == ["loss"]
    (said,) = (w.message for w in made.warnings if w.code == "attacks_left_out")
    assert said.startswith("gmia not run: expected a record with fewer than 0.1 neighbors")
    with pytest.raises(MissingModels, match="got none among 600; raise beta=") as error:
        run(plan(attacks={"gmia": nobody}))
    assert "\n" not in str(error.value)


def test_one_side_alone_has_no_curve_but_is_counted():
    split = WORLD.split
    near = neighborhood(split.nonmembers, WORLD.known, delta=0.3)
    like_others = split.nonmembers[near.expected >= 0.1]
    plain = plan(split=replace(split, nonmembers=like_others))
    made = run(plain)
    found = made.records_at_risk
    assert found.n_standing_out == found.n_members_out == found.n_tested > 0
    assert found.recognized.value > 0.1 and found.mistaken.reason == "no non-member was tested"
    assert [f.attack for f in made.findings] == ["loss"]
    (said,) = (w.message for w in made.warnings if w.code == "attacks_left_out")
    assert said.startswith("gmia has no numbers of its own, as it scored one side only")
    with pytest.raises(MissingModels, match="0 of non-members.* such as loss"):
        run(replace(plain, attacks={"gmia": ATTACK}))


def test_without_models_it_is_refused():
    with pytest.raises(PlanError, match="what gmia needs, but there is no recipe"):
        run(plan(known=None, attacks=["gmia"]))


def table(path, *, references):
    x = WORLD.split.candidates.x
    given = {
        "probabilities": np.exp(WORLD.target.log_probabilities(x)),
        "labels": WORLD.split.candidates.y,
        "member": np.repeat([1, 0], 300),
    }
    if references:
        known = WORLD.known
        given["reference_probabilities"] = np.stack(
            [np.exp(m.log_probabilities(x)) for m in known.models[:20]]
        )
        given["reference_member"] = known.trained_on(WORLD.split.candidates.ids)[:20].astype(int)
    np.savez(path, **given)
    return path


def test_a_table_of_predictions_needs_those_of_references_and_shows_no_records(tmp_path):
    bare = plan_of_table(table(tmp_path / "bare.npz", references=False))
    with pytest.raises(PlanError, match="what gmia needs"):
        run(replace(bare, attacks=["gmia"]))
    full = plan_of_table(table(tmp_path / "full.npz", references=True))
    found = run(replace(full, attacks={"gmia": ATTACK, "loss": Loss()})).records_at_risk
    assert found.n_tested > 50
    assert all(r.preview is None and r.nearest_preview is None for r in found.records)


def test_all_may_be_tested():
    everybody = replace(ATTACK, beta=None)
    found = run(plan(attacks={"mine": everybody})).records_at_risk
    assert found.beta is None and found.attack == "mine"
    assert found.n_standing_out == found.n_tested == found.n_candidates == 600


def test_scores_of_no_candidate_are_those_of_nobody():
    none = measure.at_risk("gmia", ATTACK, None, WORLD.split, WORLD.known)
    assert none.n_tested == none.n_models == none.n_discovered == 0 < none.n_standing_out
    assert all(r.p_value is None and not r.recognized for r in none.records)
