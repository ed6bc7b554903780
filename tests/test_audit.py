"""The audit end to end: repeatable, resumable, at chance where there is nothing to find."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

import vestige as vs
from vestige.audit import run
from vestige.errors import ForeignFolder, InvalidInput, PlanError
from vestige.plans import built_in
from vestige.report import schema
from vestige.training import MLP

TIMES = ("date", "seconds")


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def world(n=120, seed=0):
    """Random labels: a network can only memorize them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * n, 16)).astype(np.float32)
    y = rng.integers(0, 3, 3 * n)
    sides = [(x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i in range(3)]
    return vs.Split.from_arrays(*sides)


class Branching(nn.Module):
    """No chain of layers, for any number of inputs and classes."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.first, self.last = nn.Linear(n_in, 8), nn.Linear(8, n_out)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.last(hidden + hidden.tanh())


RECIPE = vs.TorchRecipe(MLP(16, 3, (32,)), epochs=40, batch_size=32, optimizer="adam", lr=0.01)


@pytest.fixture(scope="module")
def plan():
    return vs.Plan(world(), recipe=RECIPE, references=8, seed=3, name="memorized")


@pytest.fixture(scope="module")
def report(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    return run(plan, out), out


def test_a_memorizing_network_is_found_out(report):
    made, _ = report
    best = made.finding("lira_online").metrics["auc"]
    assert best.low > 0.8
    assert made.verdict.level == "high"
    assert {f.attack for f in made.findings} == set(vs.attacks.STANDARD)


def test_no_number_without_its_interval(report):
    for finding in report[0].findings:
        for name, estimate in finding.metrics.items():
            if estimate.value is None:
                assert estimate.reason, f"{finding.attack} {name}"
            elif name == "epsilon_lower_bound":  # a bound is one-sided
                assert estimate.low <= estimate.value and estimate.method
            else:
                assert estimate.low <= estimate.value <= estimate.high, f"{finding.attack} {name}"
                assert estimate.method


def test_what_is_written_is_what_the_schema_says(report):
    jsonschema = pytest.importorskip("jsonschema")
    made, out = report
    written = json.loads((out / "report.json").read_text())
    jsonschema.validate(written, schema())
    assert written == json.loads(json.dumps(made.to_json()))


def test_queries_are_counted(report):
    split = world()
    candidates = len(split.members) + len(split.nonmembers)
    for finding in report[0].findings:
        expected = candidates
        if vs.attacks.STANDARD[finding.attack].about.needs_population:
            expected += len(split.population)
        assert finding.threat_model.n_queries == expected, finding.attack


def test_two_runs_are_equal_to_the_last_digit(plan, report, tmp_path):
    again = run(plan, tmp_path / "again")
    assert without_times(again.to_json()) == without_times(report[0].to_json())


def test_nothing_on_disk_is_needed(plan, report):
    assert without_times(run(plan).to_json()) == without_times(report[0].to_json())


def test_a_second_call_trains_nothing(plan, report):
    told = []
    again = run(plan, report[1], tell=told.append)
    assert any("0 trained" in text and "8 reused" in text for text in told)
    assert without_times(again.to_json()) == without_times(report[0].to_json())


def test_another_seed_is_another_audit(plan, report):
    with pytest.raises(ForeignFolder, match="--fresh"):
        run(replace(plan, seed=4), report[1])


def test_another_target_is_another_audit(plan, tmp_path):
    first, second = (RECIPE.fit(plan.split.members, seed) for seed in (1, 2))
    run(replace(plan, target=first, attacks=["loss"]), tmp_path)
    with pytest.raises(ForeignFolder, match="answers otherwise"):
        run(replace(plan, target=second, attacks=["loss"]), tmp_path)


def test_a_target_that_never_saw_either_side_is_at_chance():
    """Bonferroni over the attacks: the whole family errs once in a hundred seeds."""
    split = world(n=400, seed=1)
    elsewhere = world(n=400, seed=2).members
    target = RECIPE.fit(elsewhere, seed=0)
    made = vs.audit(target, split, recipe=RECIPE, references=8, seed=0)
    for finding in made.findings:
        auc = finding.metrics["auc"]
        spread = (auc.high - auc.low) / (2 * 1.96)
        assert abs(auc.value - 0.5) < 3.3 * spread + 1e-9, finding.attack
    assert made.verdict.level in ("none", "unknown")
    assert vs.gate(made, {"auc": 0.6}) == []


def test_the_gate_says_what_broke(report):
    broken = vs.gate(report[0], {"auc": 0.55})
    assert any(text.startswith("lira_online: auc") for text in broken)


def test_known_records_are_not_scored(plan):
    given = replace(plan.split, population=plan.split.nonmembers[:10])
    with pytest.raises(InvalidInput, match="cannot be scored"):
        run(replace(plan, split=given))


def test_attacks_that_lack_something_are_refused_by_name(plan):
    with pytest.raises(PlanError, match="recipe"):
        vs.audit(RECIPE.fit(plan.split.members, 0), plan.split, attacks=["lira_online"])


def test_without_a_recipe_the_rest_still_runs(plan):
    made = vs.audit(RECIPE.fit(plan.split.members, 0), plan.split)
    assert {"loss", "population", "quantile"} <= {f.attack for f in made.findings}
    assert any(w.code == "attacks_left_out" for w in made.warnings)


def test_shifted_nonmembers_are_noticed(plan):
    x = plan.split.nonmembers.x + 2
    shifted = replace(plan.split.nonmembers, x=x)
    made = run(replace(plan, split=replace(plan.split, nonmembers=shifted), attacks=["loss"]))
    assert made.exchangeability.passed is False
    assert any(w.code == "not_exchangeable" for w in made.warnings)


def test_a_table_of_predictions_gives_the_audits_own_numbers(plan, report, tmp_path):
    target = RECIPE.fit(plan.split.members, seed=0)
    made = vs.audit(target, plan.split, recipe=RECIPE, references=4)
    split = plan.split
    x = np.concatenate([split.members.x, split.nonmembers.x])
    table = tmp_path / "answers.npz"
    np.savez(
        table,
        probabilities=np.exp(target.log_probabilities(x)),
        labels=np.concatenate([split.members.y, split.nonmembers.y]),
        member=np.repeat([1, 0], [len(split.members), len(split.nonmembers)]),
    )
    from vestige.tables import plan_of_table

    of_table = run(plan_of_table(table))
    for attack in ("loss", "confidence", "entropy", "modified_entropy", "correctness"):
        a, b = made.finding(attack), of_table.finding(attack)
        for name in ("auc", "tpr@0.1", "tpr@0.01"):
            assert a.metrics[name].value == pytest.approx(b.metrics[name].value, abs=1e-12)


SLOW_PLAN = """
import time
import vestige as vs
from tests.test_audit import RECIPE, world
from vestige.training import store

def plan():
    # each saved model takes a moment, so that the kill lands in the middle
    save = store.Store.save
    def slowly(self, run, name, write, seconds=0.0):
        time.sleep(0.05)
        return save(self, run, name, write, seconds)
    store.Store.save = slowly
    return vs.Plan(world(), recipe=RECIPE, references=64, seed=5, name="killed")
"""


@pytest.mark.slow
def test_killed_and_resumed_is_undisturbed(tmp_path):
    (tmp_path / "slow_plan.py").write_text(SLOW_PLAN)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.path.join(root, "src")])}
    command = [sys.executable, "-m", "vestige", "audit", "slow_plan:plan", "--out"]

    def start(folder):
        return subprocess.Popen(
            [*command, folder],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    killed = start("killed")
    stored = tmp_path / "killed" / "store"
    deadline = time.monotonic() + 120
    while len(list(stored.rglob("model-0003*.safetensors"))) < 2:
        assert killed.poll() is None and time.monotonic() < deadline, "it ended before the kill"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "report.json").exists()
    resumed = start("killed")
    told = resumed.communicate()[1]
    assert resumed.returncode == 0, told
    assert " 0 reused" not in told
    undisturbed = start("undisturbed")
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    one, other = (
        json.loads((tmp_path / folder / "report.json").read_text())
        for folder in ("killed", "undisturbed")
    )
    assert without_times(one) == without_times(other)


@pytest.mark.slow
def test_digits_out_of_the_box():
    """The default audit at a smaller size: 16 reference models."""
    made = run(built_in("digits", references=16))
    lira, loss = (made.finding(name).metrics["auc"] for name in ("lira_online", "loss"))
    assert lira.low > 0.5
    assert lira.value > loss.value
    assert made.exchangeability.passed
    assert all(r.preview is None or r.preview.kind == "image" for r in made.exposed_records.records)


def test_reference_models_answer_through_the_filter_of_the_target(plan, report):
    # a temperature flattens the target's answers: compared with sharp ones they look unsure
    flat = {"attacks": ["lira_online", "lira_offline"]}
    target = RECIPE.fit(plan.split.members, 5)
    hidden = vs.defenses.behind(target, "temperature20")
    apart = run(replace(plan, target=hidden, **flat))
    alike = run(replace(plan, target=hidden, answers="temperature20", **flat))
    gain = [r.finding("lira_online").metrics["auc"].value for r in (apart, alike)]
    assert gain[1] > gain[0] + 0.03
    assert "reference_unlike" in {w.code for w in apart.warnings}
    assert "reference_unlike" not in {w.code for w in alike.warnings}


def test_answers_that_show_little_are_noticed(plan):
    few = {"attacks": ["loss", "lira_online"]}
    for spec in ("top1", "label", "round1"):
        hidden = vs.defenses.behind(RECIPE.fit(plan.split.members, 5), spec)
        made = run(replace(plan, target=hidden, **few))
        assert "answers_filtered" in {w.code for w in made.warnings}, spec
        said = run(replace(plan, target=hidden, answers=spec, **few))
        assert "answers_filtered" not in {w.code for w in said.warnings}, spec
    assert "answers_filtered" not in {w.code for w in run(replace(plan, **few)).warnings}


def test_answers_that_repeat_themselves_as_references_do_are_no_filter():
    # a small forest has few answers, and ten records a side have few by their number
    split = world(10)
    forest = RandomForestClassifier(3, max_depth=2, random_state=0)
    forest.fit(split.members.x, split.members.y)
    made = vs.audit(
        forest, split, recipe=vs.EstimatorRecipe(forest), references=4, attacks=["lira_online"]
    )
    assert "answers_filtered" not in {w.code for w in made.warnings}
    # one that memorized is sure of everything
    sure = replace(RECIPE, epochs=400)
    made = vs.audit(None, split, recipe=sure, references=4, attacks=["lira_online"])
    assert "answers_filtered" not in {w.code for w in made.warnings}


def test_scores_that_point_the_wrong_way_are_a_warning(plan):
    class Backwards(vs.attacks.Loss):
        def run(self, target, candidates, pool):
            made = super().run(target, candidates, pool)
            return replace(made, values=-made.values)

    made = run(replace(plan, attacks={"loss": vs.attacks.Loss(), "mine": Backwards()}))
    (said,) = (w.message for w in made.warnings if w.code == "below_chance")
    assert "non-members in mine, by" in said


def test_behind_a_filter_an_attack_on_ranks_names_the_exposed(plan):
    both = ["lira_online", "rmia_online"]
    assert run(replace(plan, attacks=both)).exposed_records.attack == "lira_online"
    made = run(replace(plan, attacks=both, answers="top1"))
    assert made.exposed_records.attack == "rmia_online"
    assert all(f.threat_model.access.endswith(", through top1") for f in made.findings)


def test_a_bare_model_is_put_behind_the_filter_and_a_handle_with_one_is_not(plan):
    bare = RECIPE.fit(plan.split.members, 5)
    few = {"attacks": ["loss", "lira_offline"], "answers": "label"}
    made = [
        run(replace(plan, target=target, **few))
        for target in (bare.net, bare, vs.defenses.behind(bare, "label"))
    ]
    values = [[f.metrics["auc"].value for f in m.findings] for m in made]
    assert values[0] == values[1] == values[2]
    assert values[0] != [
        f.metrics["auc"].value
        for f in run(replace(plan, target=bare, attacks=few["attacks"])).findings
    ]


def test_answers_that_have_not_passed_the_filter_that_is_named_are_refused(plan):
    class Own:
        def __init__(self, model):
            self.model, self.n_queries = model, 0

        def log_probabilities(self, x):
            self.n_queries += len(x)
            return self.model.log_probabilities(x)

    own = Own(RECIPE.fit(plan.split.members, 5))
    for spec in ("round1", "top1", "label", "temperature5+round2"):
        with pytest.raises(InvalidInput, match=r"expected answers that have passed .* got \d+%"):
            run(replace(plan, target=own, answers=spec, attacks=["loss"]))
    assert own.n_queries <= 4 * (2 * 64 + 64)
    # of these no single answer can tell
    run(replace(plan, target=own, answers="temperature5", attacks=["loss"]))


def test_another_filter_uses_the_models_that_are_there(plan, tmp_path):
    told = []
    for answers in ("", "round1", "", "label"):
        less = replace(plan, answers=answers, attacks=["lira_offline"], references=4)
        run(less, tmp_path, tell=told.append)
    said = [text for text in told if "reference models:" in text]
    assert ["4 trained" in text for text in said] == [True, False, False, False]


def test_reference_models_behind_the_filter_are_not_unlike(plan):
    for spec in ("top1", "noise0.1", "label"):
        made = run(replace(plan, answers=spec, attacks=["lira_offline"], references=16))
        assert "reference_unlike" not in {w.code for w in made.warnings}, spec


def test_attacks_in_one_text_and_what_is_no_split(plan):
    made = run(replace(plan, attacks="loss,entropy"))
    assert [f.attack for f in made.findings] == ["loss", "entropy"]
    with pytest.raises(InvalidInput, match="expected a Split of members and non-members, got None"):
        vs.audit(RECIPE.fit(plan.split.members, 5), None)
    with pytest.raises(InvalidInput, match="expected a model, got text; vestige.remote.Remote"):
        vs.audit("http://127.0.0.1:9/", plan.split)


def test_labels_out_of_range_are_found_by_the_first_answers(plan):
    asked = vs.defenses.TopK(RECIPE.fit(plan.split.members, 5), 3)
    members = plan.split.members
    wrong = replace(members, y=np.where(np.arange(len(members)) == 7, 9, members.y))
    with pytest.raises(InvalidInput, match="expected labels below 3"):
        run(replace(plan, target=asked, split=replace(plan.split, members=wrong), recipe=None))
    assert asked.n_queries <= 64 * 3


def test_how_to_repeat_it_names_the_filter(plan):
    made = run(replace(plan, answers="label", attacks=["loss"]))
    assert made.reproduce.python.endswith("attacks=['loss'], answers='label')")


@pytest.mark.parametrize("n_in, n_out", [(15, 3), (16, 2)])
def test_a_network_that_does_not_fit_the_records_is_said(plan, n_in, n_out):
    recipes = [
        replace(RECIPE, build=MLP(n_in, n_out, (32,))),
        replace(RECIPE, build=MLP(n_in, n_out, (32,)), precision="bfloat16"),
        replace(RECIPE, build=lambda: Branching(n_in, n_out)),
    ]
    for recipe in recipes:
        with pytest.raises(InvalidInput) as error:
            run(replace(plan, recipe=recipe))
        assert str(error.value).count(";") == 1 and "\n" not in str(error.value)


def test_a_target_that_is_trained_here_is_put_behind_the_filter(plan):
    made = run(replace(plan, answers="label", attacks=["loss"]))
    bare = run(replace(plan, attacks=["loss"]))
    auc = [r.finding("loss").metrics["auc"].value for r in (made, bare)]
    assert auc[0] < auc[1]
    with pytest.raises(InvalidInput, match="expected a filter like"):
        run(replace(plan, answers="tpo3"))
