"""The command line: exit codes, one line for what is wrong, and nothing lost."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vestige
from commands import PLAN, Finished, Ran, Vestige, run_in_process, write_world
from vestige import cli
from vestige.plans import plan_of
from vestige.report import Report
from vestige.training.engines import Local, Ray

TIMES = ("date", "seconds")


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def numbers(folder: Path):
    return without_times(json.loads((folder / "report.json").read_text()))


SOURCE = str(Path(vestige.__file__).parents[1])
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE}


def run_alone(*words: object, cwd: Path) -> Ran:
    """`vestige WORDS` as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vestige", *map(str, words)],
        cwd=cwd,
        env=ALONE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


# --- help --------------------------------------------------------------------------------------


def test_version(vestige_command: Vestige):
    ran = vestige_command("--version")
    assert ran == Ran(0, vestige.__version__ + "\n", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["audit", "--help"], ["gate", "--help"], ["data", "--help"]]
)
def test_help(vestige_command: Vestige, words):
    ran = vestige_command(*words)
    assert ran.code == 0 and "Usage:" in ran.out and not ran.err


@pytest.mark.parametrize("words", [[], ["data"]])
def test_no_command_is_answered_with_help(vestige_command: Vestige, words):
    ran = vestige_command(*words)
    assert ran.code == 2 and not ran.out
    assert "Usage:" in ran.err and "Commands" in ran.err and "\n" in ran.err.strip()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["audti"], "No such command 'audti'"),
        (["audit", "--refs", "3"], "No such option"),
        (["audit", "--references", "many"], "--references"),
        (["audit", "--seed", "1.5"], "--seed"),
        (["audit", "digits", "more"], "unexpected extra argument"),
        (["gate"], "Missing argument"),
        (["report"], "Missing argument"),
        (["predictions"], "Missing argument"),
        (["data", "where"], "No such command 'where'"),
    ],
)
def test_misspelled_requests(vestige_command: Vestige, words, why):
    refusal = vestige_command(*words).refusal
    assert why.lower() in refusal.lower() and refusal.endswith("(see --help)")


# --- audit -------------------------------------------------------------------------------------


def test_an_audit_writes_its_report(finished: Finished):
    ran, out = finished.ran, finished.out
    assert ran.code == 0, ran
    assert {"report.json", "report.html", "records.parquet", "plan.json"} <= set(os.listdir(out))
    assert ran.out.startswith("tiny: ") and ran.out.rstrip().endswith("run/report.html")
    assert "lira_online" in ran.out
    assert "models 0/4" in ran.err and "4 trained" in ran.err and "attacks 12/12" in ran.err
    report = Report.load(out)
    assert report.data.n_members == 60 and report.provenance.seed == 0
    assert report.reproduce.command == "vestige audit plan.toml --seed 0 --references 4"


def test_the_same_command_again_trains_nothing(finished: Finished, tmp_path, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    before = numbers(finished.out)
    ran = run_in_process("audit", "plan.toml", "--out", "run", "--quiet")
    assert ran.code == 0 and ran.err == "" and numbers(Path("run")) == before
    loud = run_in_process("audit", "plan.toml", "--out", "run")
    assert "0 trained" in loud.err and "4 reused" in loud.err


def test_what_a_report_says_to_run_gives_the_same_report(finished: Finished, tmp_path, monkeypatch):
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(Report.load(finished.out).reproduce.command)
    assert program == "vestige"
    assert run_in_process(*words).code == 0  # into runs/NAME
    assert numbers(tmp_path / "runs" / "tiny") == numbers(finished.out)


def test_commands_are_quoted_for_a_shell():
    said = cli._command("audit", "my plan.toml", "loss,lira_online", 3, 4, "auto", True)
    assert said == (
        "vestige audit 'my plan.toml' --seed 3 --references 4 --attacks loss,lira_online "
        "--device auto --trust-pickle"
    )
    assert cli._command("predictions", "t.csv", "", 0) == "vestige predictions t.csv --seed 0"


def test_chosen_attacks_another_seed_and_fresh(finished: Finished, tmp_path, monkeypatch):
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["audit", "plan.toml", "--out", "run", "--attacks", "loss, entropy"]
    assert run_in_process(*words).code == 0
    assert [f.attack for f in Report.load("run").findings] == ["loss", "entropy"]
    refusal = run_in_process(*words, "--seed", "7").refusal
    assert "expected run to be empty or to hold this audit" in refusal and "--fresh" in refusal
    assert Report.load("run").provenance.seed == 0  # nothing lost
    assert run_in_process(*words, "--seed", "7", "--fresh").code == 0
    assert Report.load("run").provenance.seed == 7


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["digitz"], "one of digits, adult, breast_cancer"),
        (["none.toml"], "a plan at none.toml, found no file"),
        (["plan.toml", "--attacks", "los"], "attacks among loss, confidence"),
        (["plan.toml", "--attacks", "loss,,entropy"], "attacks among loss"),
        (["plan.toml", "--references", "3"], "even number of reference models, at least 2, got 3"),
        (["plan.toml", "--references", "0"], "at least 2, got 0"),
        (["plan.toml", "--references", "-2"], "at least 2, got -2"),
        (["plan.toml", "--seed", "-1"], "seed from 0, got -1"),
        (["plan.toml", "--device", "tpu"], "the device cpu, cuda or auto, got 'tpu'"),
        (["plan.toml", "--out", "plan.toml"], "plan.toml"),
        (["plan.toml", "--out", "plan.toml/below"], "plan.toml"),
        (["nowhere_at_all:make"], "No module named 'nowhere_at_all'"),
    ],
)
def test_audits_that_are_refused(vestige_command: Vestige, tmp_path, words, why):
    write_world(tmp_path)
    refusal = vestige_command("audit", *words).refusal
    assert why in refusal
    assert (tmp_path / "plan.toml").read_text() == PLAN


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--engine", "dask"], "the engine local or ray, got 'dask'"),
        (["--workers", "0"], "at least one worker, got 0"),
        (["--engine", "ray", "--workers", "-1"], "at least one worker, got -1"),
        (["--address", "head:6379"], "no address with the engine local, got head:6379"),
        (["--workers", "two"], "--workers"),
    ],
)
def test_engines_that_are_refused(vestige_command: Vestige, tmp_path, words, why):
    write_world(tmp_path)
    assert why in vestige_command("audit", "plan.toml", *words).refusal
    assert not (tmp_path / "runs").exists()


def test_ray_that_is_not_installed(vestige_command: Vestige, tmp_path, monkeypatch):
    write_world(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # also keeps the program's guard away from ours
    refusal = vestige_command("audit", "plan.toml", "--engine", "ray").refusal
    assert "run `pip install 'vestige[ray]'`" in refusal


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        ([], Local()),
        (["--workers", "3"], Local(3)),
        (["--engine", "ray"], Ray()),
        (["--engine", "ray", "--workers", "2", "--address", "head:6379"], Ray("head:6379", 2)),
    ],
)
def test_the_engine_that_is_asked_for(
    vestige_command: Vestige, tmp_path, monkeypatch, words, engine
):
    asked, guarded = [], []

    def run(plan: object, out: Path, **options: object) -> None:
        asked.append(options["engine"])

    monkeypatch.setattr("vestige.training.cluster.guard", lambda: guarded.append(True))
    monkeypatch.setattr(sys.modules["vestige.audit"], "run", run)
    write_world(tmp_path)
    assert vestige_command("audit", "plan.toml", *words).code == 0 and asked == [engine]
    assert bool(guarded) == (engine == Ray())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_engine_changes_no_number(finished: Finished, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    write_world(tmp_path)
    words = ["audit", "plan.toml", "--out", "run", "--engine", engine, "--workers", "2"]
    ran = run_alone(*words, cwd=tmp_path)
    assert ran.code == 0 and numbers(tmp_path / "run") == numbers(finished.out)
    assert ran.out.replace("run/report.html", "") == finished.ran.out.replace("run/report.html", "")
    assert "Traceback" not in ran.err and "ray" not in ran.err.lower().replace("array", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("where", ["option", "plan"])
def test_a_device_that_is_not_there(vestige_command: Vestige, tmp_path, where):
    write_world(tmp_path, PLAN + ('device = "cuda"\n' if where == "plan" else ""))
    words = ["--device", "cuda"] if where == "option" else []
    assert "a CUDA device, found none" in vestige_command("audit", "plan.toml", *words).refusal


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(vestige_command: Vestige, tmp_path):
    write_world(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked" in vestige_command("audit", "plan.toml", "--out", "locked/run").refusal


def test_a_folder_where_nothing_can_be_made(vestige_command: Vestige, tmp_path):
    write_world(tmp_path)
    assert "expected to write" in vestige_command("audit", "plan.toml", "--out", "/proc/x").refusal


# --- what is made of a report ------------------------------------------------------------------


def test_a_report_is_rendered_again(finished: Finished, tmp_path, vestige_command: Vestige):
    shutil.copy(finished.out / "report.json", tmp_path)
    ran = vestige_command("report", ".")
    assert ran.code == 0 and ran.out == "report.html\n"
    html = (tmp_path / "report.html").read_text()
    assert html == (finished.out / "report.html").read_text() and "tiny" in html


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "a report.json in"),
        ("{", "report.json is not JSON"),
        ("[]", "a report of schema vestige.report/1"),
        ('{"schema": "vestige.report/1"}', "report.json is not what was written"),
    ],
)
@pytest.mark.parametrize("command", ["report", "gate"])
def test_reports_that_cannot_be_read(vestige_command: Vestige, tmp_path, command, content, why):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert why in vestige_command(command, ".").refusal


def test_the_gate(finished: Finished, vestige_command: Vestige):
    passed = vestige_command("gate", finished.out, "--max", "auc=1", "--max", "advantage=1")
    assert passed == Ran(0, "passed: auc at most 1, advantage at most 1\n", "")
    broken = vestige_command("gate", finished.out, "--max", "auc=0.01")
    assert broken.code == 1 and not broken.out
    attacks = [f.attack for f in Report.load(finished.out).findings]
    assert [line.split(":")[0] for line in broken.err.splitlines()] == attacks
    assert all("exceeds 0.01" in line for line in broken.err.splitlines())
    # what cannot be measured is not below a limit
    unknown = vestige_command("gate", finished.out, "--max", "tpr@0.001=1")
    assert unknown.code == 1 and "tpr@0.001 is not known" in unknown.err
    assert vestige_command("gate", finished.out, "--max", "auc=0.99", "--bound", "low").code == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--max", "auc"], "METRIC=LIMIT, for example auc=0.55, got 'auc'"),
        (["--max", "auc=high"], "METRIC=LIMIT"),
        (["--max", "auk=0.5"], "a metric among auc"),
        (["--max", "=0.5"], "a metric among auc"),
        (["--max", "auc=nan"], "a number as the limit of auc, got NaN"),
        (["--bound", "middle"], "the bound value, low or high, got 'middle'"),
    ],
)
def test_gates_that_are_refused(finished: Finished, vestige_command: Vestige, words, why):
    assert why in vestige_command("gate", finished.out, *words).refusal


# --- predictions -------------------------------------------------------------------------------


def exported(finished: Finished, path: Path) -> None:
    """The answers of the audit's target, as a table for someone who has no model."""
    from vestige.plans import plan_of

    here = Path.cwd()
    os.chdir(finished.folder)
    try:
        plan = plan_of("plan.toml")
    finally:
        os.chdir(here)
    split = plan.split
    (weights,) = (p for p in finished.out.rglob("model-00000*") if len(_models(p.parent)) == 1)
    target = plan.recipe.loads(weights.read_bytes(), weights.name, 3)  # type: ignore[union-attr]
    everyone = vestige.records.concatenate(split.members, split.nonmembers, split.population)
    np.savez(
        path,
        probabilities=np.exp(target.log_probabilities(everyone.x)),
        labels=everyone.y,
        member=split.is_member(everyone.ids),
        population=np.isin(everyone.ids, split.population.ids),
        ids=everyone.ids,
    )


def _models(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*"))


def test_a_table_gives_the_numbers_of_the_audit_it_came_from(
    finished: Finished, vestige_command: Vestige, tmp_path
):
    exported(finished, tmp_path / "table.npz")
    ran = vestige_command("predictions", "table.npz", "--out", "table")
    assert ran.code == 0, ran
    ours, theirs = Report.load(finished.out), Report.load(tmp_path / "table")
    for name in ("loss", "confidence", "entropy", "modified_entropy", "correctness", "population"):
        a, b = ours.finding(name), theirs.finding(name)
        assert a is not None and b is not None
        assert a.metrics.keys() == b.metrics.keys() and a.n_members == b.n_members
        for metric, estimate in a.metrics.items():
            # the seeds of intervals by resampling differ, the numbers do not
            assert b.metrics[metric].value == pytest.approx(estimate.value, abs=1e-9), metric
    assert theirs.finding("lira_online") is None
    assert any("lira_online" in warning.message for warning in theirs.warnings)
    assert theirs.target.kind == "Predictions" and theirs.exchangeability.passed is None
    assert theirs.reproduce.command == "vestige predictions table.npz --seed 0"


def test_predictions_that_are_refused(vestige_command: Vestige, tmp_path):
    np.savez(tmp_path / "t.npz", probabilities=np.full((40, 2), 0.5), labels=np.arange(40) % 2)
    for words, why in (
        (["t.npz"], "expected member in t.npz, got probabilities, labels; add what is missing"),
        (["none.csv"], "a file at none.csv, found none"),
        (["t.pkl"], "pickles are not read"),
        (["t.npz", "--seed", "-1"], "seed from 0"),
    ):
        assert why in vestige_command("predictions", *words).refusal
    member = np.arange(40) // 2 % 2
    np.savez(
        tmp_path / "t.npz",
        probabilities=np.full((40, 2), 0.5),
        labels=np.arange(40) % 2,
        member=member,
    )
    refusal = vestige_command("predictions", "t.npz", "--attacks", "lira_online").refusal
    assert "reference model" in refusal
    assert not list(tmp_path.glob("runs/t/report.*"))


# --- data --------------------------------------------------------------------------------------


def test_data_is_listed(vestige_command: Vestige):
    ran = vestige_command("data", "list")
    rows = ran.out.splitlines()
    assert ran.code == 0 and [r.split()[0] for r in rows] == list(vestige.datasets.names())
    assert any("1797 x 64" in row and "10 classes" in row for row in rows)


def test_data_has_a_path(vestige_command: Vestige, tmp_path, monkeypatch):
    monkeypatch.setenv("VESTIGE_DATA", str(tmp_path))
    assert vestige_command("data", "path", "adult").out == f"{tmp_path / 'adult.npz'}\n"
    refusal = vestige_command("data", "path", "a/b").refusal
    assert "one of the data sets" in refusal and "'a/b'" in refusal
    assert "one of the data sets" in vestige_command("data", "prepare", ".", "digitz").refusal


def test_ctrl_c_is_told_and_is_no_success(vestige_command: Vestige, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vestige.datasets.names", interrupted)
    ran = vestige_command("data", "list")
    assert ran.code == 130 and ran.err.strip().startswith("vestige: interrupted; run the same")


# --- the program itself ------------------------------------------------------------------------


def test_errors_are_one_line_and_bugs_are_not_hidden(monkeypatch, capsys):
    def raising(error: BaseException):
        def app(*arguments: object, **options: object) -> None:
            raise error

        return app

    def code_of(error: BaseException) -> int:
        monkeypatch.setattr(cli, "app", raising(error))
        with pytest.raises(SystemExit) as done:
            cli.main([])
        return int(done.value.code or 0)

    assert code_of(vestige.errors.StoreError("one\ntwo\n  three")) == 2
    assert capsys.readouterr().err == "vestige: one two three\n"
    assert code_of(vestige.errors.GateFailed("a\nb")) == 1
    assert capsys.readouterr().err == "a\nb\n"
    assert code_of(KeyboardInterrupt()) == 130
    assert "interrupted; run the same command again (without --fresh)" in capsys.readouterr().err
    monkeypatch.setattr(cli, "app", lambda *arguments, **options: 130)  # as some versions of typer
    with pytest.raises(SystemExit) as done:
        cli.main([])
    assert done.value.code == 130 and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(cli, "app", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main([])


@pytest.mark.slow
def test_as_a_program(finished: Finished, tmp_path):
    assert run_alone("--version", cwd=tmp_path) == Ran(0, vestige.__version__ + "\n", "")
    gate = run_alone("gate", finished.out, "--max", "auc=0.01", cwd=tmp_path)
    assert gate.code == 1 and "exceeds" in gate.err and "Traceback" not in gate.err
    assert "one of digits" in run_alone("audit", "digitz", cwd=tmp_path).refusal


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_can_be_resumed(tmp_path, kind):
    text = PLAN.replace("epochs = 20", "epochs = 60").replace("references = 4", "references = 66")
    write_world(tmp_path, text)
    words = [sys.executable, "-m", "vestige", "audit", "plan.toml", "--out", "run"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ALONE) as job:
        until = time.monotonic() + 120
        # the first stack of models is on disk, others are not
        while len(list((tmp_path / "run").rglob("model-*.safetensors"))) < 3:
            assert job.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        job.send_signal(kind)
        assert job.stderr is not None
        said = job.stderr.read()
        code = job.wait(60)
    kept = len(list((tmp_path / "run").rglob("model-*.safetensors")))
    assert kept < 67 and not (tmp_path / "run" / "report.json").exists()
    assert "Traceback" not in said
    if kind == signal.SIGINT:
        assert code == 130 and "interrupted; run the same command again" in said
    again = run_alone("audit", "plan.toml", "--out", "run", cwd=tmp_path)
    assert again.code == 0, again
    # 66 references, of which the first 32 at most were finished before
    reused = int(again.err.split(" reused")[0].rsplit(" ", 1)[1])
    assert reused > 0


def test_answers_on_the_command_line_are_those_of_the_audit(
    vestige_command: Vestige, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    words = ("audit", "plan.toml", "--attacks", "loss,rmia_offline", "--answers", "label")
    assert vestige_command(*words, "--references", "2", "--out", "run").code == 0
    report = Report.load(tmp_path / "run")
    assert all(f.threat_model.access.endswith(", through label") for f in report.findings)
    assert report.reproduce.command.endswith("--answers label")
    # two answers are all that there is to see
    (loss,) = (f for f in report.findings if f.attack == "loss")
    assert len(loss.roc.fpr) <= 3


def test_what_is_served_has_a_secret_of_its_own(vestige_command: Vestige, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr("vestige.serving.serve", lambda model, **said: served.append(model))
    write_world(tmp_path)
    for words in (("--filter", "noise0.1"), ("--filter", "noise0.1"), ("--filter", "none")):
        assert vestige_command("serve", "plan.toml", "--quiet", *words).code == 0
    x = plan_of("plan.toml").split.members.x
    first, second, bare = (model.log_probabilities(x) for model in served)
    assert min(served[0].seed, served[1].seed) > 2**32 and served[0].seed != served[1].seed
    noises = [np.exp(noisy) - np.exp(bare) for noisy in (first, second)]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.5
    # what the plan says of the answers is what is served
    plan = tmp_path / "plan.toml"
    plan.write_text(plan.read_text().replace("[target]", '[target]\nanswers = "label"'))
    assert vestige_command("serve", "plan.toml", "--quiet").code == 0
    assert set(np.exp(served[3].log_probabilities(x)).round(9).ravel()) == {0.0, 1.0}


@pytest.mark.slow
def test_a_served_model_is_audited_as_if_it_were_here(finished: Finished, tmp_path):
    write_world(tmp_path)
    split = plan_of(str(finished.plan)).split
    for side in ("members", "nonmembers", "population"):
        records = getattr(split, side)
        np.savez(tmp_path / f"{side}.npz", x=records.x, y=records.y)
    words = [sys.executable, "-m", "vestige", "serve", "plan.toml", "--quiet"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=ALONE) as job:
        try:
            assert job.stdout is not None
            url = job.stdout.readline().split()[0]
            (tmp_path / "remote.toml").write_text(
                '[data]\nmembers = "members.npz"\nnonmembers = "nonmembers.npz"\n'
                f'population = "population.npz"\n[target]\nurl = "{url}"\n'
            )
            ran = run_alone("audit", "remote.toml", "--attacks", "loss", cwd=tmp_path)
            assert ran.code == 0, ran
        finally:
            job.send_signal(signal.SIGINT)
        assert job.wait(30) == 0
    served = json.loads((tmp_path / "runs" / "remote" / "report.json").read_text())
    here = json.loads((finished.out / "report.json").read_text())
    loss = [next(f for f in r["findings"] if f["attack"] == "loss") for r in (served, here)]
    assert loss[0]["metrics"]["auc"]["value"] == pytest.approx(loss[1]["metrics"]["auc"]["value"])
    assert loss[0]["threat_model"]["n_queries"] == loss[1]["threat_model"]["n_queries"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--filter", "nope"), "expected a filter like"),
        (("--outputs", "nope"), "expected outputs among"),
    ],
)
def test_what_cannot_be_served_is_refused_before_training(
    vestige_command: Vestige, tmp_path, monkeypatch, words, why
):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path, PLAN.replace("epochs = 20", "epochs = 100000"))
    assert why in vestige_command("serve", "plan.toml", *words).refusal


def test_a_service_is_not_served_again(vestige_command: Vestige, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for side in ("m", "n"):
        np.savez(tmp_path / f"{side}.npz", x=rng.normal(size=(20, 3)), y=rng.integers(0, 2, 20))
    sides = 'members = "m.npz"\nnonmembers = "n.npz"\n'
    (tmp_path / "p.toml").write_text(f'[data]\n{sides}[target]\nurl = "http://127.0.0.1:9/x"\n')
    assert "whose model is here" in vestige_command("serve", "p.toml").refusal


def test_experiments_are_listed_and_unknown_ones_refused(vestige_command: Vestige, tmp_path):
    ran = vestige_command("reproduce", "list")
    assert ran.code == 0 and "shadow-table2" in ran.out and "rows: " in ran.out
    assert "expected an experiment among" in vestige_command("reproduce", "table-9").refusal
    words = ("reproduce", "shadow-table2", "--out", tmp_path)
    assert "expected" in vestige_command(*words, "--scale", "huge").refusal
    assert "expected" in vestige_command(*words, "--row", "none").refusal
