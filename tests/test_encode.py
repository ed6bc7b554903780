"""Marks and claims on the command line, from a key to a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from commands import run_in_process as run
from vestige.encode import _range_of, load_format
from vestige.errors import DamagedFile
from vestige.plans import plan_of
from vestige.records import Records
from vestige.training import TorchRecipe

PLAN = """
name = "mine"
[data]
set = "digits"
members = 1200
nonmembers = 500
[target]
network = "mlp"
hidden = [128, 64]
[training]
epochs = 40
batch_size = 50
optimizer = "sgd"
lr = 0.02
momentum = 0.9
"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, a key and a marked model."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "plan.toml").write_text(PLAN)
    assert run("encode", "key", folder / "key.json").code == 0
    made = run(
        "encode", "train", folder / "plan.toml", "--key", folder / "key.json",
        "--out", folder / "m", "--steps", 3, "--quiet",
    )  # fmt: skip
    assert made.code == 0, made.err
    commitment = json.loads((folder / "m" / "commitment.json").read_text())
    assert commitment["encoding"]["layer"] == "3" and commitment["n_records"] == 1200
    secret = json.loads((folder / "key.json").read_text())["key"]
    assert secret not in made.out + made.err + json.dumps(commitment)
    assert f"of {1200:,} records are encoded" in made.out and "commitment " in made.out
    return folder


def words(folder: Path, **changed: str) -> list[object]:
    """`vestige encode verify` on the files of a folder."""
    said = {
        "weights": "m/model.safetensors",
        "claim": "claim.json",
        "commitment": "m/commitment.json",
        "challenge": "challenge.json",
    }
    files = [w for name, file in said.items() for w in (f"--{name}", folder / file)]
    dates = {"deposited": "2026-01-10", "released": "2026-02-01", **changed}
    plan = folder / "plan.toml"
    return ["encode", "verify", plan, *files, *(w for n, v in dates.items() for w in (f"--{n}", v))]


@pytest.mark.slow
def test_from_a_key_to_a_verdict(marked: Path) -> None:
    decoded = run(
        "encode", "decode", marked / "plan.toml", "--key", marked / "key.json",
        "--encoding", marked / "m" / "encoding.json", "--weights", marked / "m/model.safetensors",
    )  # fmt: skip
    assert decoded.code == 0 and "(base rate 0.3" in decoded.out
    asked = run(
        "encode", "challenge", marked / "m/commitment.json", "--out", marked / "challenge.json"
    )
    assert asked.code == 0 and asked.out.startswith("1,200 records are asked for")
    claimed = run(
        "encode", "claim", marked / "plan.toml", "--opening", marked / "m/opening.json",
        "--challenge", marked / "challenge.json", "--out", marked / "claim.json",
    )  # fmt: skip
    assert claimed.code == 0, claimed.err
    found = run(*words(marked))
    assert found.code == 0 and found.out.startswith("accepted: "), found
    late = run(*words(marked, deposited="2026-02-01T00:00"))
    assert late.code == 1 and late.err.startswith("refused: the commitment was deposited")
    often = run(*words(marked), "--tries", str(10**300))
    assert often.code == 1 and "do not stand out" in often.err
    wrong = run(*words(marked, released="yesterday"))
    assert wrong.refusal.startswith("expected --released as 2026-03-01")


@pytest.mark.slow
def test_a_clean_model_is_not_the_owners(marked: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vestige.plans import plan_of

    plan = plan_of(str(marked / "plan.toml"))
    assert plan.recipe is not None
    save_file(plan.recipe.fit(plan.split.members, 0).net.state_dict(), tmp_path / "w.safetensors")
    answer = words(marked)
    answer[answer.index("--weights") + 1] = tmp_path / "w.safetensors"
    found = run(*answer)
    assert found.code == 1 and "do not stand out" in found.err


@pytest.mark.slow
def test_what_is_refused(marked: Path, tmp_path: Path) -> None:
    again = run(
        "encode", "train", marked / "plan.toml", "--key", marked / "key.json", "--out", marked / "m"
    )
    assert "expected no marked model in" in again.refusal
    assert "name another" in run("encode", "key", marked / "key.json").refusal
    decode = ["encode", "decode", marked / "plan.toml", "--encoding", marked / "m/encoding.json"]
    none = run(*decode, "--key", marked / "key.json")
    assert "give --weights" in none.refusal
    lost = run(*decode, "--key", marked / "none.json")
    assert "found none; check the path" in lost.refusal
    (tmp_path / "plan.toml").write_text(PLAN.replace("[128, 64]", "[128, 32]"))
    decode[2] = tmp_path / "plan.toml"
    other = run(*decode, "--key", marked / "key.json", "--weights", marked / "m/model.safetensors")
    assert "written for another architecture" in other.refusal
    (tmp_path / "encoding.json").write_text('{"format":"vestige.encoding.v1","colour":3}')
    with pytest.raises(DamagedFile, match="the format of an encoding in"):
        load_format(tmp_path / "encoding.json")


def test_a_marked_model_is_not_what_the_plan_trains(marked: Path, tmp_path: Path) -> None:
    short = PLAN.replace("epochs = 40", "epochs = 8")
    (tmp_path / "plan.toml").write_text(short)
    asked = ["encode", "check", tmp_path / "plan.toml", "--references", 9, "--alpha", 0.1,
             "--store", tmp_path / "models", "--seed", 3, "--quiet"]  # fmt: skip
    alarm = run(*asked, "--weights", marked / "m" / "model.safetensors")
    assert alarm.code == 1 and "Alarm: p = 0.1 at a false-alarm rate of 0.1" in alarm.err
    plan = plan_of(str(tmp_path / "plan.toml"))
    assert isinstance(plan.recipe, TorchRecipe)
    clean = plan.recipe.fit(plan.split.members, seed=10**6)
    (tmp_path / "clean.safetensors").write_bytes(plan.recipe.dumps(clean))
    models = sorted((tmp_path / "models").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in models]
    found = run(*asked, "--weights", tmp_path / "clean.safetensors")
    assert len(models) == 9 and [path.stat().st_mtime_ns for path in models] == times
    assert found.code in (0, 1) and "false-alarm rate of 0.1" in found.out + found.err
    few = run(*asked[:3], "--weights", tmp_path / "clean.safetensors", "--references", 9)
    assert few.code == 2 and "expected at least 19 references" in few.err
    none = run(*asked[:3])
    assert none.code == 2 and "expected a model" in none.err


def test_synthetic_means_lie_where_the_inputs_do() -> None:
    rng = np.random.default_rng(0)
    unit = Records.from_arrays(rng.random((200, 5)), np.arange(200) % 2)
    assert _range_of(unit) == pytest.approx((0, 1), abs=0.01)
    wide = Records.from_arrays(10 + 3 * rng.normal(size=(200, 5)), np.arange(200) % 2)
    assert _range_of(wide) == pytest.approx((7, 13), abs=0.5)
    flat = Records.from_arrays(np.ones((20, 5)), np.arange(20) % 2)
    low, high = _range_of(flat)
    assert low < 1 < high
