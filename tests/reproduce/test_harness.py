"""Rows one at a time: whole or absent on disk, resumed after a kill, refused in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import experiments
import pytest
from experiments import TINY, row

from vestige import reproduce
from vestige.errors import DamagedFile, DatasetUnavailable, InvalidInput, PlanError, StoreError
from vestige.metrics import rate
from vestige.reproduce import harness, results
from vestige.reproduce.harness import run_experiment


@pytest.fixture(autouse=True)
def go(tmp_path, monkeypatch):
    """Nothing waits, unless a test says so."""
    monkeypatch.setenv("GO", str(tmp_path))


def rows(out):
    return sorted(str(p.relative_to(out)) for p in out.glob("tiny/**/*") if p.is_file())


def test_every_row_is_a_file(tmp_path):
    made = run_experiment(TINY, "ci", out=tmp_path)
    assert [r.row for r in made] == ["a", "b", "c"]
    assert rows(tmp_path) == ["tiny/ci/a.json", "tiny/ci/b.json", "tiny/ci/c.json"]
    stored = json.loads((tmp_path / "tiny/ci/b.json").read_text())
    assert stored["estimates"]["share"]["value"] == 0.2
    assert stored["settings"] == {"hits": 2, "wait_for": "GO", "absent": False, "shape": [1, 2]}
    provenance = stored["provenance"]
    assert set(provenance) == {"seed", "when", "code", "versions", "machine", "load"}
    assert set(provenance["machine"]) == {"processor", "cores", "system"}
    assert len(provenance["code"]) == 12 and "torch" in provenance["versions"]
    assert made[1].estimates["share"] == rate(2, 10)
    assert results.read_all(tmp_path) == made


def test_rows_of_other_code_are_told_of(tmp_path, monkeypatch):
    run_experiment(TINY, "ci", row="a", out=tmp_path)
    told = []
    monkeypatch.setattr(harness, "source_digest", lambda *places: "another digest")
    run_experiment(TINY, "ci", row="a", out=tmp_path, tell=told.append)
    assert told == ["a: finished before, by other code: --fresh measures it again"]


def test_finished_rows_are_not_run_again(tmp_path):
    first = run_experiment(TINY, "ci", out=tmp_path)
    told = []
    again = run_experiment(TINY, "ci", out=tmp_path, tell=told.append)
    assert again == first
    assert told == ["a: finished before", "b: finished before", "c: finished before"]
    # another scale, another seed or other settings are other rows
    assert run_experiment(TINY, "laptop", out=tmp_path)[0].scale == "laptop"
    assert run_experiment(TINY, "ci", out=tmp_path, seed=5)[0].estimates["share"] == rate(1, 15)
    other = replace(TINY, rows=(row("a", hits=7),))
    assert run_experiment(other, "ci", out=tmp_path, seed=5)[0].estimates["share"] == rate(7, 15)
    fresh = run_experiment(TINY, "laptop", out=tmp_path, fresh=True, tell=told.append)
    assert len(told) == 3 and len(fresh) == 3


def test_a_row_is_finished_though_a_setting_came_after_it(tmp_path):
    run_experiment(TINY, "ci", row="a", out=tmp_path)
    path = tmp_path / "tiny/ci/a.json"
    for missing, told in (("shape", ["a: finished before"]), ("hits", [])):
        stored = json.loads(path.read_text())
        del stored["settings"][missing]
        path.write_text(json.dumps(stored))
        found = []
        run_experiment(TINY, "ci", row="a", out=tmp_path, tell=found.append)
        assert found == told


def test_one_row_a_call(tmp_path):
    made = run_experiment(TINY, "ci", row="c", out=tmp_path)
    assert [r.row for r in made] == ["c"]
    assert rows(tmp_path) == ["tiny/ci/c.json"]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_missing(tmp_path):
    out, go = tmp_path / "out", tmp_path / "go"
    program = [sys.executable, experiments.__file__, str(out)]
    environment = {**os.environ, "GO": str(go)}
    with subprocess.Popen(program, env=environment) as running:
        until = time.monotonic() + 120
        while not (out / "tiny/ci/a.json").exists():
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    assert rows(out) == ["tiny/ci/a.json"]
    before = (out / "tiny/ci/a.json").stat()
    go.touch()
    subprocess.run(program, env=environment, check=True, timeout=120)
    assert rows(out) == ["tiny/ci/a.json", "tiny/ci/b.json", "tiny/ci/c.json"]
    after = (out / "tiny/ci/a.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_row_is_whole_or_absent(tmp_path, monkeypatch):
    def torn(part, text):
        Path(part).write_text(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    (done,) = run_experiment(TINY, "ci", row="a", out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(results, "_write", torn)
        with pytest.raises(StoreError, match="no space is left"):
            run_experiment(TINY, "ci", out=tmp_path)
    assert rows(tmp_path) == ["tiny/ci/a.json"]
    assert results.read_all(tmp_path) == (done,)
    assert len(run_experiment(TINY, "ci", out=tmp_path)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: text.replace('"value"', '"valve"'),
        lambda text: text.replace("reproduce/1", "reproduce/9"),
        lambda text: text.replace('"row": "a"', '"row": "b"'),
        lambda text: "[]",
        lambda text: "\x00",
    ],
)
def test_damage_is_told_and_made_again(tmp_path, damage):
    (before,) = run_experiment(TINY, "ci", row="a", out=tmp_path)
    path = tmp_path / "tiny/ci/a.json"
    path.write_text(damage(path.read_text()))
    told = []
    with pytest.raises(DamagedFile, match="expected"):
        results.read(path)
    (again,) = run_experiment(TINY, "ci", row="a", out=tmp_path, tell=told.append)
    assert again.estimates == before.estimates
    assert len(told) == 1 and "made again" in told[0]


def test_absent_data_leave_the_other_rows(tmp_path):
    mixed = replace(TINY, rows=(row("x", hits=1, absent=True), row("a", hits=1)))
    told = []
    assert [r.row for r in run_experiment(mixed, "ci", out=tmp_path, tell=told.append)] == ["a"]
    assert told == ["x: expected nowhere.npz, found none"]
    with pytest.raises(DatasetUnavailable, match="nowhere"):
        run_experiment(mixed, "ci", row="x", out=tmp_path)
    with pytest.raises(DatasetUnavailable, match="nowhere"):
        run_experiment(replace(mixed, rows=mixed.rows[:1]), "ci", out=tmp_path)


def test_what_is_measured_from_results_is_measured_again(tmp_path):
    run_experiment(TINY, "ci", out=tmp_path)
    derived = replace(TINY, id="derived", rows=(row("a", hits=1),), from_results=True)
    assert run_experiment(derived, "ci", out=tmp_path)[0].sizes["others"] == 3
    run_experiment(replace(TINY, id="tiny2"), "ci", out=tmp_path)
    assert run_experiment(derived, "ci", out=tmp_path)[0].sizes["others"] == 6
    assert run_experiment(derived, "laptop", out=tmp_path)[0].sizes["others"] == 0


def test_progress_counts_rows(tmp_path):
    told = []
    run_experiment(TINY, "ci", out=tmp_path, progress=lambda *what: told.append(what))
    assert told == [("tiny", 0, 3), ("tiny", 1, 3), ("tiny", 2, 3), ("tiny", 3, 3)]


def test_no_number_that_is_none(tmp_path):
    (made,) = run_experiment(TINY, "ci", row="a", out=tmp_path)
    with pytest.raises(ValueError):
        results.save(tmp_path, replace(made, series={"bins": [float("nan")]}))
    with pytest.raises(InvalidInput, match="expected a stored row"):
        results.RowResult.from_json({"schema": "other"})


def test_refusals(tmp_path):
    with pytest.raises(PlanError, match=r"expected an experiment among shadow-.*got 'shadow-x'"):
        reproduce.run("shadow-x", "ci", out=tmp_path)
    with pytest.raises(PlanError, match="expected a scale among ci, laptop, paper, got 'huge'"):
        run_experiment(TINY, "huge", out=tmp_path)
    with pytest.raises(PlanError, match=r"expected a row of tiny \(a, b, c\), got 'z'"):
        run_experiment(TINY, "ci", row="z", out=tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_curves_keep_six_digits(tmp_path):
    (made,) = run_experiment(TINY, "ci", row="a", out=tmp_path)
    curve = replace(made, series={"x": [0.123456789, 1e-9, 12345.678]})
    results.save(tmp_path, curve)
    path = results.path_of(tmp_path, TINY.id, "ci", "a")
    assert results.read(path).series["x"] == [0.123457, 1e-9, 12345.7]
