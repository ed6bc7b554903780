"""Marks and claims on the command line, from a key to a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import run_in_process as run
from vestige import encode, metrics
from vestige.encode import Decoded, Format, Marked, _moment, _range_of, load_format
from vestige.errors import DamagedFile, InvalidInput, PlanError, StoreError
from vestige.plans import plan_of
from vestige.records import Records
from vestige.training import MLP, TorchRecipe
from vestige.training.fit import built
from vestige.watermarks import Key
from vestige.watermarks.ownership import commit

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
    assert "With the key the encoded records are told (white-box, from layer 3)" in made.out
    return folder


def day(days: int) -> str:
    """So many days from now."""
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"


def words(folder: Path, **changed: str) -> list[object]:
    """`vestige encode verify` on the files of a folder."""
    said = {
        "weights": "m/model.safetensors",
        "claim": "claim.json",
        "commitment": "m/commitment.json",
        "challenge": "challenge.json",
    }
    files = [w for name, file in said.items() for w in (f"--{name}", folder / file)]
    dates = {"deposited": day(0), "released": day(30), **changed}
    plan = folder / "plan.toml"
    return ["encode", "verify", plan, *files, *(w for n, v in dates.items() for w in (f"--{n}", v))]


def bare(marked: Path, folder: Path) -> None:
    """A verifier has no data: his plan names the model only."""
    plan = PLAN[: PLAN.index("[data]")] + PLAN[PLAN.index("[target]") : PLAN.index("[training]")]
    (folder / "bare.toml").write_text(plan)
    (folder / "suspect.toml").write_text(plan + 'weights = "m/model.safetensors"\n')
    for name, left in (("bare.toml", []), ("suspect.toml", ["--weights"])):
        asked = words(marked)
        asked[2] = folder / name
        for word in left:
            at = asked.index(word)
            del asked[at : at + 2]
        found = run(*asked)
        assert found.code == 0 and found.out.startswith("accepted: "), found
    none = run("encode", "decode", folder / "bare.toml", "--key", marked / "key.json",
               "--encoding", marked / "m/encoding.json")  # fmt: skip
    assert "expected a table [data]" in none.refusal


def test_a_network_has_the_classes_of_its_weights(tmp_path: Path) -> None:
    recipe = TorchRecipe(MLP(5, 7, (4,)), epochs=1)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(recipe.dumps(recipe.handle(built(recipe, 0))))
    (tmp_path / "plan.toml").write_text(
        '[target]\nnetwork = "mlp"\nhidden = [4]\nweights = "w.safetensors"\n'
    )
    shown = Records.from_arrays(np.zeros((6, 5)), np.arange(6) % 3)
    plan = plan_of(str(tmp_path / "plan.toml"), shown=shown)
    assert plan.target.log_probabilities(shown.x).shape == (6, 7)
    (tmp_path / "plan.toml").write_text('[target]\nnetwork = "mlp"\nhidden = [4]\n')
    plan = plan_of(str(tmp_path / "plan.toml"), shown=shown, weights=weights)
    assert encode.model_of(plan, weights).log_probabilities(shown.x).shape == (6, 7)
    with pytest.raises(PlanError, match="give --weights"):
        encode.model_of(plan, None)
    many = replace(shown, y=np.full(6, 10**12))
    with pytest.raises(InvalidInput, match=r"labels below 7, the classes of w\.safetensors"):
        plan_of(str(tmp_path / "plan.toml"), shown=many, weights=weights)
    with pytest.raises(PlanError, match=r"a table \[data\]"):
        plan_of(str(tmp_path / "plan.toml"))


@pytest.mark.slow
def test_from_a_key_to_a_verdict(marked: Path) -> None:
    decoded = run(
        "encode", "decode", marked / "plan.toml", "--key", marked / "key.json",
        "--encoding", marked / "m" / "encoding.json", "--weights", marked / "m/model.safetensors",
    )  # fmt: skip
    assert decoded.code == 0 and "(base rate 0.3" in decoded.out
    assert decoded.out.startswith("With the key the encoded records are told (white-box, from laye")
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
    assert " encoded records are above the middle, and " in found.out
    assert "other records shown" in found.out
    none = run(*words(marked), "--tries", 0)
    assert none.code == 2 and "expected at least one try" in none.refusal
    bare(marked, marked)
    late = run(*words(marked, deposited=day(30)))
    assert late.code == 1 and late.err.startswith("refused: the commitment was deposited")
    often = run(*words(marked), "--tries", str(10**300))
    assert often.code == 1 and often.err.startswith("refused: ") and "cannot prove" in often.err
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


SMALL = """
[data]
set = "digits"
members = 300
nonmembers = 200
[target]
network = "mlp"
hidden = [16, 8]
[training]
epochs = 1
lr = 0.02
"""


@pytest.fixture
def small(tmp_path: Path) -> list[object]:
    """`vestige encode train` on a small plan, but for where it writes."""
    (tmp_path / "plan.toml").write_text(SMALL)
    # of a chance mark one key in forty would be read
    Key(bytes(range(32))).save(tmp_path / "key.json")
    return ["encode", "train", tmp_path / "plan.toml", "--key", tmp_path / "key.json", "--quiet"]


def test_a_mark_remembers_its_seed(small: list[object], tmp_path: Path) -> None:
    made = run(*small, "--seed", 3, "--out", tmp_path / "m")
    assert made.code == 1 and not made.err
    assert made.out.startswith("The mark did not take: ") and "deposit it" not in made.out
    assert "nothing to deposit" in made.out
    said = load_format(tmp_path / "m/encoding.json")
    drawn = plan_of(str(tmp_path / "plan.toml"), seed=3).split
    assert said.seed == 3 and said.members == drawn.members.digest()
    decode = ["encode", "decode", *small[2:5], "--encoding", tmp_path / "m/encoding.json",
              "--weights", tmp_path / "m/model.safetensors"]  # fmt: skip
    found = run(*decode)
    # the very numbers that were printed after training
    numbers = found.out[found.out.index("With the key") :].strip()
    assert numbers in made.out and found.out.startswith("Nothing was read: ")
    assert found.code == 1
    other = run(*decode, "--seed", 4)
    assert other.code == 2 and "drew with the seed 3, got others with the seed 4" in other.refusal
    run("encode", "challenge", tmp_path / "m/commitment.json", "--out", tmp_path / "c.json")
    claim = ["encode", "claim", small[2], "--opening", tmp_path / "m/opening.json",
             "--challenge", tmp_path / "c.json", "--out", tmp_path / "claim.json"]  # fmt: skip
    other = run(*claim, "--seed", 0)
    assert other.code == 2 and "with --seed 3" in other.refusal
    assert run(*claim).code == 0
    (tmp_path / "m/encoding.json").rename(tmp_path / "away.json")
    assert run(*claim[:-1], tmp_path / "again.json", "--seed", 3).code == 0


def test_formats_of_before_are_read(tmp_path: Path) -> None:
    old = {"format": "vestige.encoding.v1", "reading": "network", "layer": "3", "rate": 0.1,
           "clip": [0, 1]}  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    said = load_format(tmp_path / "old.json")
    assert said.reading == "network" and said.encoding.clip == (0, 1) and said.seed is None
    plan: Any = None
    assert encode.as_marked(plan, said) is plan
    new = Format(said.encoding, "network", 3, "ab")
    encode.save_format(tmp_path / "new.json", new)
    assert load_format(tmp_path / "new.json") == new
    for wrong in ({"seed": "3"}, {"seed": -1}, {"seed": True}, {"members": 3}):
        (tmp_path / "old.json").write_text(json.dumps({**old, **wrong}))
        with pytest.raises(DamagedFile, match="the format of an encoding in"):
            load_format(tmp_path / "old.json")


def test_what_was_read_is_said_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low, high = metrics.auc(rng.normal(size=50), rng.normal(size=50)), metrics.rate(3, 9)
    clear = metrics.auc(rng.normal(2, 1, 50), rng.normal(size=50))
    below = metrics.auc(rng.normal(-2, 1, 50), rng.normal(size=50))
    good = Decoded(high, clear, clear, high, high, 0.00412, "3")
    assert str(good).startswith("With the key the encoded records are told (white-box, from layer")
    assert "(base rate 0.0041)" in str(good) and "layer 3" in str(good)
    assert "black-box, from log-probabilities" in str(replace(good, layer=None))
    records = Records.from_arrays(np.arange(8.0).reshape(4, 2), np.arange(4) % 2)
    paper = commit(Key.new(), encode.Encoding(), records).commitment
    strong, weak = (Marked(tmp_path, paper, 1, 4, good, p) for p in (-64.0, -63.9))
    assert strong.proves and "deposit it" in str(strong)
    assert not weak.proves and str(weak).startswith("The mark is too weak for a claim: on 2,500 of")
    assert "2^-63.9, expected at most 2^-64" in str(weak) and paper.digest not in str(weak)
    # of a model that overfits any training records stand out from unseen ones
    for bad in (
        *(replace(good, against_test=found) for found in (low, below)),
        *(replace(good, against_others=found) for found in (low, below)),
    ):
        assert str(bad).startswith("Nothing was read: ") and "wrong key" in str(bad)
        marked = str(Marked(tmp_path, paper, 1, 4, bad))
        assert marked.startswith("The mark did not take: ") and "deposit it" not in marked
        assert paper.digest not in marked and "Nothing was read" not in marked


def test_training_is_refused_before_it_begins(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **named: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(encode.Encoder, "fit", never)
    both = run(*small, "--layer", "3", "--black-box")
    assert both.code == 2 and "expected --layer 3 or --black-box, got both" in both.refusal
    for lr in ("0", "-1", "nan"):
        assert f"expected --lr above 0, got {lr}" in run(*small, "--lr", lr).refusal
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "m"):
        taken = run(*small, "--out", out)
        assert taken.code == 2 and "expected a folder" in taken.refusal
        assert "name another with --out" in taken.refusal
    for name in (encode.FORMAT, encode.COMMITMENT):
        (tmp_path / name).write_text("")
        assert "expected no marked model" in run(*small, "--out", tmp_path).refusal
        (tmp_path / name).unlink()
    (tmp_path / "plan.toml").write_text(SMALL.replace("[16, 8]", "[]"))
    assert "use --black-box" in run(*small, "--out", tmp_path / "m").refusal
    assert not (tmp_path / "m").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match="room for the model, but No space left on device"):
        encode._new_folder(tmp_path / "m", 100, 10)


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
    for wrong in (("--seed", -1), ("--alpha", 0), ("--alpha", "nan"), ("--alpha", 1)):
        bad = run(*asked[:3], "--weights", tmp_path / "clean.safetensors", *wrong)
        assert bad.code == 2 and "rate of false alarms between 0 and 1 and a seed" in bad.err
    none = run(*asked[:3])
    assert none.code == 2 and "expected a model" in none.err


def test_ctrl_c_says_that_nothing_is_kept(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encode.Encoder, "fit", stopped)
    found = run(*small, "--out", tmp_path / "m")
    assert found.code == 130 and "nothing is kept, it begins anew" in found.err


def test_records_that_a_commitment_could_not_hold_are_refused_before_training(
    small: list[object], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] *= 1e300
    np.savez(tmp_path / "records.npz", x=x, y=np.arange(40) % 2)
    (tmp_path / "plan.toml").write_text(
        '[data]\nfile = "records.npz"\nmembers = 20\nnonmembers = 10\n[target]\nnetwork = "mlp"\n'
        "hidden = [4, 4]\n"
    )
    found = run(*small, "--out", tmp_path / "m")
    assert found.code == 2 and "that float32 can hold" in found.refusal


def test_synthetic_means_lie_where_the_inputs_do() -> None:
    rng = np.random.default_rng(0)
    unit = Records.from_arrays(rng.random((200, 5)), np.arange(200) % 2)
    assert _range_of(unit) == pytest.approx((0, 1), abs=0.01)
    wide = Records.from_arrays(10 + 3 * rng.normal(size=(200, 5)), np.arange(200) % 2)
    assert _range_of(wide) == pytest.approx((7, 13), abs=0.5)
    flat = Records.from_arrays(np.ones((20, 5)), np.arange(20) % 2)
    low, high = _range_of(flat)
    assert low < 1 < high


def test_a_day_alone_is_taken_against_the_claimant() -> None:
    end = _moment("deposited", "2026-03-01", timedelta(days=1))
    start = _moment("released", "2026-03-01T00:05", timedelta(0))
    assert end > start and _moment("deposited", "2026-03-01T00:01", timedelta(days=1)) < start
    assert _moment("released", "2026-03-02", timedelta(0)) == end
