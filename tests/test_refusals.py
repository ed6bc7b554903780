"""What an audit refuses: a sentence with what was expected, what came, and what to do.

One row each. A row makes the request; the three patterns are looked for in order in the sentence.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

import vestige as vs
from commands import Finished, run_in_process, write_world
from vestige.errors import VestigeError
from vestige.training.networks import MLP

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6)).astype(np.float32)
Y = np.arange(80) % 3
MEMBERS, OTHERS = (X[:40], Y[:40]), (X[40:], Y[40:])
RECIPE = vs.TorchRecipe(MLP(6, 3, (8,)), epochs=2)
SPLIT = vs.Split.from_arrays(MEMBERS, OTHERS)


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, classes)


class Always(nn.Module):
    """Dropout that is on in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.fc(x), 0.5, training=True)


def audited(target: Any = None, split: vs.Split = SPLIT, **more: Any) -> vs.Report:
    return vs.audit(target or vs.TorchModel(net()), split, **more)


def with_value(value: float) -> Any:
    x = X[:40].copy()
    x[3, 2] = value
    return x


def two_devices() -> nn.Module:
    made = nn.Sequential(net(6), net())
    made[1].to("meta")
    return made


def labels(value: int) -> vs.Split:
    return vs.Split.from_arrays(MEMBERS, (X[40:], np.where(Y[40:] == 2, value, Y[40:])))


def table(folder: Path, **changes: Any) -> Path:
    p = np.full((40, 2), 0.5)
    good = {"probabilities": p, "labels": np.arange(40) % 2, "member": np.arange(40) // 2 % 2}
    np.savez(folder / "t.npz", **(good | changes))
    return folder / "t.npz"


def overlapping_ids() -> vs.Split:
    records = vs.Records.from_arrays(X, Y)
    return vs.Split(records[:50], records[40:], records[:0])


Row = tuple[Callable[[], Any], str, str, str]
ROWS: dict[str, Row] = {
    "overlap by id": (
        lambda: audited(split=overlapping_ids()),
        "expected non-members that are not members",
        "got 10 with a member's id (for example 40)",
        "remove them from one side",
    ),
    "overlap by content": (
        lambda: vs.Split.from_arrays(MEMBERS, (X[38:], Y[38:])),
        "expected non-members that are not members",
        "got 2 with the same content and label as a member",
        "remove them or pass drop_overlap=True",
    ),
    "label outside the classes": (
        lambda: audited(split=labels(7)),
        "expected labels below 3, the number of classes the target answers",
        "got 7",
        "give the labels it was trained with",
    ),
    "label below zero": (lambda: labels(-1), "expected labels from 0", "got -1", "map the classes"),
    "NaN": (
        lambda: vs.Split.from_arrays((with_value(np.nan), Y[:40]), OTHERS),
        "expected finite inputs",
        "got NaN or infinity in 1 members",
        "impute or drop them",
    ),
    "infinity": (
        lambda: vs.Split.from_arrays((with_value(-np.inf), Y[:40]), OTHERS),
        "expected finite inputs",
        "got NaN or infinity in 1 members",
        "impute or drop them",
    ),
    "empty": (
        lambda: vs.Split.from_arrays(MEMBERS, (X[:0], Y[:0])),
        "expected at least one of the non-members",
        "got none",
        "give records on both sides",
    ),
    "one class": (
        lambda: vs.Split.from_arrays((X[:40], Y[:40] * 0), (X[40:], Y[40:] * 0)),
        "expected at least two classes",
        "got only class 0",
        "membership of a one-class model cannot be read",
    ),
    "too few records": (
        lambda: audited(split=vs.Split.from_arrays((X[:9], Y[:9]), OTHERS)),
        "expected at least 10 records a side",
        "got 9 members",
        "no rate can be told from chance",
    ),
    "too few to draw": (
        lambda: vs.split(vs.Records.from_arrays(X, Y), 50, 50),
        "expected at least 100 distinct records",
        "got 80",
        "ask for fewer",
    ),
    "odd references": (
        lambda: audited(recipe=RECIPE, references=5),
        "expected an even number of reference models",
        "got 5",
        "each record is in one model of every pair",
    ),
    "no such attack": (
        lambda: audited(attacks="lira"),
        "expected attacks among loss",
        "got lira",
        "name at least one of them",
    ),
    "attack without models": (
        lambda: audited(attacks="lira_online"),
        "expected what lira_online needs",
        "there is no recipe",
        "",
    ),
    "probabilities that do not sum to one": (
        lambda: vs.Predictions(probabilities=np.full((4, 3), 0.5)),
        "expected probabilities that sum to 1 in each row",
        "got 1.5 in row 0",
        "give all classes, or logits",
    ),
    "logits given as probabilities": (
        lambda: vs.Predictions(probabilities=RNG.normal(0, 4, (9, 3))),
        "expected probabilities between 0 and 1",
        "got values from -",
        "if they are logits, give them as logits",
    ),
    "probabilities given as logits": (
        lambda: audited(nn.Sequential(net(), nn.Softmax(1))),
        "expected logits from the module",
        "got probabilities",
        'pass outputs="probabilities"',
    ),
    "random in eval mode": (
        lambda: audited(Always()),
        "expected the same answer to the same question",
        "got two different ones",
        "make it deterministic before the audit",
    ),
    "two devices": (
        lambda: audited(two_devices()),
        "expected a module on one device",
        "got one on ['cpu', 'meta']",
        "move it whole",
    ),
    "wrong input shape": (
        lambda: audited(nn.Linear(7, 3)),
        "expected records that the module takes",
        "got a batch of shape (64, 6) which it refused",
        "reshape the inputs",
    ),
    "shapes that differ": (
        lambda: vs.Split.from_arrays(MEMBERS, (X[40:, :5], Y[40:])),
        "expected records of one shape",
        "got [(5,), (6,)]",
        "prepare both sides alike",
    ),
    "diverged model": (
        lambda: audited(nn.Sequential(net(), nn.Threshold(1e9, float("nan")))),
        "expected finite answers",
        "got NaN or infinity for 64 records",
        "the model has diverged",
    ),
    "unfitted estimator": (
        lambda: audited(LogisticRegression()),
        "expected a fitted classifier",
        "got a LogisticRegression that was not fitted",
        "call fit first",
    ),
    "no model at all": (
        lambda: vs.audit(None, SPLIT),
        "expected a target, or a recipe to train one with",
        "got neither",
        "",
    ),
    "unknown data set": (
        lambda: vs.datasets.load("digitz"),
        "expected one of the data sets digits",
        "got neither for 'digitz'",
        "",
    ),
}


def in_order(sentence: str, *parts: str) -> bool:
    return re.search(".*".join(re.escape(part) for part in parts), sentence) is not None


@pytest.mark.parametrize("name", ROWS)
def test_refusals(name):
    request, *parts = ROWS[name]
    with pytest.raises(VestigeError) as caught:
        request()
    sentence = str(caught.value)
    assert in_order(sentence, *parts), sentence
    assert "\n" not in sentence and len(sentence) < 400


def test_the_check_of_the_sentences_can_fail():
    assert in_order("expected a, got b; do c", "expected a", "got b", "do c")
    assert not in_order("expected a, got b; do c", "got b", "expected a")


# --- with files, through the command line ------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_training_model_is_asked_in_eval_mode_and_left_training():
    made = nn.Sequential(nn.Dropout(0.5), net()).train()
    a, b = (audited(made, attacks="loss", seed=1).findings[0].metrics["auc"] for _ in range(2))
    assert a == b and made.training and made[0].training


def test_damaged_file(here):
    path = table(here)
    path.write_bytes(path.read_bytes()[:200])
    refusal = run_in_process("predictions", path).refusal
    assert in_order(refusal, "expected arrays of numbers in t.npz", "but", "write it with")


def test_pickle(here):
    path = table(here, labels=np.array([{}] * 40, dtype=object))
    refusal = run_in_process("predictions", path).refusal
    assert in_order(refusal, "expected arrays of numbers", "pickled objects, which are not read")


def test_pickled_estimator(here):
    for side, part in (("a", MEMBERS), ("b", OTHERS)):
        np.savez(here / f"{side}.npz", x=part[0], y=part[1])
    (here / "e.pkl").write_bytes(b"")
    (here / "p.toml").write_text(
        '[data]\nmembers = "a.npz"\nnonmembers = "b.npz"\n[target]\nestimator = "e.pkl"\n'
    )
    refusal = run_in_process("audit", "p.toml").refusal
    assert in_order(refusal, "expected an estimator as .skops", "got e.pkl", "--trust-pickle")


@pytest.mark.parametrize("other", ["seed", "references", "name"])
def test_output_folder_of_another_plan(finished: Finished, here, other):
    shutil.copytree(finished.folder, here, dirs_exist_ok=True)
    before = everything(here / "run")
    plan = here / "plan.toml"
    if other == "name":
        plan.write_text(plan.read_text().replace("lr = 0.02", "lr = 0.03"))
        words: list[str] = []
    else:
        words = [f"--{other}", "6"]
    refusal = run_in_process("audit", "plan.toml", "--out", "run", *words).refusal
    assert in_order(
        refusal, "expected run to be empty or to hold this audit", "it holds another", "--fresh"
    )
    assert everything(here / "run") == before


def test_output_folder_of_another_model(here):
    vs.audit(vs.TorchModel(net()), SPLIT, attacks="loss", out=here / "run")
    before = everything(here / "run")
    other = nn.Linear(6, 3)
    with pytest.raises(vs.errors.ForeignFolder) as caught:
        vs.audit(vs.TorchModel(other), SPLIT, attacks="loss", out=here / "run")
    assert in_order(str(caught.value), "expected the model", "begun with", "got one", "--fresh")
    assert everything(here / "run") == before


def test_no_space_left(here, monkeypatch):
    write_world(here)
    real, left = os.fsync, [3]

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refusal = run_in_process("audit", "plan.toml", "--out", "run").refusal
    assert in_order(refusal, "expected to write", "no space is left", "kept", "make room")
    assert not list((here / "run").rglob("*.part")) and not (here / "run/report.json").exists()
    again = run_in_process("audit", "plan.toml", "--out", "run")
    assert again.code == 0, again
    assert (here / "run" / "report.json").exists()


def test_no_space_left_for_the_report(here, finished: Finished, monkeypatch):
    shutil.copytree(finished.folder, here, dirs_exist_ok=True)
    before = (here / "run" / "report.json").read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refusal = run_in_process("audit", "plan.toml", "--out", "run").refusal
    assert in_order(refusal, "report.json cannot be written", "No space left", "free some space")
    assert (here / "run" / "report.json").read_bytes() == before


def test_no_data_set_and_no_network(here, monkeypatch):
    monkeypatch.setenv("VESTIGE_DATA", str(here / "empty"))

    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", unreachable)
    refusal = run_in_process("audit", "adult").refusal
    assert in_order(refusal, "adult is not on this machine", "adult.npz", "VESTIGE_DATA")
    assert not (here / "runs").exists()
