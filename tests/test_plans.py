"""Plans by name, from a file, from a function; and what is wrong with one, in a sentence."""

from __future__ import annotations

import pickle
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from skops import io as skops_io

from commands import PLAN, write_world
from vestige import attacks
from vestige.errors import BudgetSpent, DamagedFile, InvalidInput, PlanError, VestigeError
from vestige.models import EstimatorModel, TorchModel
from vestige.plans import BUILT_IN, built_in, plan_of
from vestige.remote import RemoteModel
from vestige.training.recipe import TorchRecipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    return tmp_path


# --- PLAN.toml ---------------------------------------------------------------------------------


def test_a_plan_says_what_is_audited(folder):
    plan = plan_of("plan.toml")
    sizes = [len(s) for s in (plan.split.members, plan.split.nonmembers, plan.split.population)]
    assert sizes == [60, 60, 30]
    assert (plan.name, plan.references, plan.seed, plan.data_name) == ("tiny", 4, 0, "records.npz")
    recipe = plan.recipe
    assert isinstance(recipe, TorchRecipe) and plan.target is None
    assert (recipe.epochs, recipe.optimizer, recipe.lr, recipe.batch_size) == (20, "adam", 0.02, 16)
    assert recipe.build().get_submodule("1").out_features == 16
    changed = plan_of("plan.toml", seed=3, references=8)
    assert (changed.seed, changed.references) == (3, 8)


def test_the_same_seed_draws_the_same_split(folder):
    a, b = (plan_of("plan.toml").split.members.ids for _ in range(2))
    np.testing.assert_array_equal(a, b)
    (folder / "plan.toml").write_text("seed = 5\n" + PLAN)
    assert plan_of("plan.toml").split.members.ids.tolist() != a.tolist()


def test_a_seed_on_the_command_line_is_that_of_the_split_too(folder):
    (folder / "seeded.toml").write_text("seed = 5\n" + PLAN)
    said, asked = plan_of("seeded.toml"), plan_of("plan.toml", seed=5)
    assert said.seed == asked.seed == 5
    np.testing.assert_array_equal(said.split.members.ids, asked.split.members.ids)


def test_all_of_training_can_be_said(folder):
    text = PLAN + 'steps = 30\nmomentum = 0.5\nweight_decay = 1e-3\nschedule = "cosine"\n'
    (folder / "plan.toml").write_text(text + 'patience = 3\ndevice = "cpu"\n')
    recipe = plan_of("plan.toml").recipe
    assert isinstance(recipe, TorchRecipe)
    assert (recipe.steps, recipe.momentum, recipe.weight_decay) == (30, 0.5, 1e-3)
    assert recipe.schedule is not None and recipe.early_stopping is not None
    assert recipe.early_stopping.patience == 3


def test_a_rate_that_decays_in_steps(folder):
    (folder / "plan.toml").write_text(PLAN + "decay_at = [0.6, 0.8]\n")
    recipe = plan_of("plan.toml").recipe
    assert isinstance(recipe, TorchRecipe) and recipe.schedule is not None
    np.testing.assert_allclose([recipe.schedule(p) for p in (0.59, 0.6, 0.8)], [1, 0.1, 0.01])
    for wrong, why in (
        ("[1.5]", "a list of numbers between 0 and 1"),
        ('[0.5]\nschedule = "cosine"', "schedule or decay_at in .training., got both"),
    ):
        (folder / "plan.toml").write_text(PLAN + f"decay_at = {wrong}\n")
        with pytest.raises(PlanError, match=why):
            plan_of("plan.toml")


def test_attacks_with_settings(folder):
    text = PLAN + '[attacks.gmia]\ndelta = 1\nn_train = 7\n[attacks.near]\nattack = "gmia"\n'
    (folder / "plan.toml").write_text(text + "[attacks.loss]\n")
    assert plan_of("plan.toml").attacks == {
        "gmia": attacks.GMIA(delta=1.0, n_train=7),
        "near": attacks.GMIA(),
        "loss": attacks.Loss(),
    }
    text = "[attacks.lira_online]\nfixed_variance = true\n[attacks.rmia_online]\ntemperature = 2\n"
    (folder / "plan.toml").write_text(PLAN + text)
    lira, rmia = plan_of("plan.toml").attacks.values()
    assert lira == attacks.LiRA(fixed_variance=True) and rmia == attacks.RMIA(temperature=2)


@pytest.mark.parametrize("name", attacks.BY_NAME)
def test_every_setting_of_an_attack_has_a_type_that_a_plan_can_check(folder, name):
    """A wrong type is refused in a sentence, whichever setting it is."""
    for setting in fields(attacks.BY_NAME[name]):
        (folder / "plan.toml").write_text(PLAN + f"[attacks.{name}]\n{setting.name} = 1979-05-27\n")
        with pytest.raises(PlanError, match=f"in .attacks.{name}. of plan.toml, got"):
            plan_of("plan.toml")


def test_sides_in_files_of_their_own(folder):
    stored = np.load(folder / "records.npz")
    for name, part in (("a", slice(0, 50)), ("b", slice(50, 110)), ("c", slice(110, 160))):
        np.savez(folder / f"{name}.npz", x=stored["x"][part], y=stored["y"][part])
    sides = 'members = "a.npz"\nnonmembers = "b.npz"\npopulation = "c.npz"\n'
    (folder / "p.toml").write_text(f'[data]\n{sides}[target]\nnetwork = "mlp"\n')
    plan = plan_of("p.toml")
    np.testing.assert_array_equal(plan.split.nonmembers.x, stored["x"][50:110])
    assert len(plan.split.population) == 50 and plan.name == "p"


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_dropout_is_that_of_the_plan(folder, network):
    text = PLAN.replace('network = "mlp"\nhidden = [16]', f'network = "{network}"\ndropout = 0.25')
    if network == "cnn":
        rng = np.random.default_rng(0)
        np.savez(folder / "records.npz", x=rng.random((160, 1, 8, 8)), y=np.arange(160) % 3)
    (folder / "plan.toml").write_text(text)
    net = plan_of("plan.toml").recipe.build()
    assert [m.p for m in net if isinstance(m, torch.nn.Dropout)] == [0.25]
    plain = text.replace("\ndropout = 0.25", "")
    (folder / "plan.toml").write_text(plain)
    assert not any(isinstance(m, torch.nn.Dropout) for m in plan_of("plan.toml").recipe.build())


def test_pictures_and_a_convolution(folder):
    rng = np.random.default_rng(0)
    np.savez(folder / "records.npz", x=rng.random((160, 1, 8, 8)), y=np.arange(160) % 3)
    text = PLAN.replace('network = "mlp"\nhidden = [16]', 'network = "cnn"')
    (folder / "plan.toml").write_text(text.replace("[target]", "image = [8, 8]\n[target]"))
    plan = plan_of("plan.toml")
    assert plan.image == (8, 8) and isinstance(plan.recipe, TorchRecipe)
    assert plan.recipe.build()(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def replaced(a: str, b: str) -> str:
    assert a in PLAN
    return PLAN.replace(a, b)


BAD: dict[str, tuple[str, str]] = {
    "not TOML": ("name =", "expected TOML in plan.toml, but"),
    "unknown key": ("colour = 3\n" + PLAN, "in plan.toml, got 'colour'; correct the name"),
    "unknown key in a table": (replaced("epochs", "epocs"), "[training] of plan.toml, got 'epocs'"),
    "unknown table": (PLAN + "[extra]\n", "got 'extra'"),
    "table as text": ('data = "digits"\n', "data = a table in plan.toml, got 'digits'"),
    "no data": ('name = "x"\n', "a table [data] in plan.toml, which says what was trained on"),
    "no model": ('[data]\nset = "digits"\n', "a model in plan.toml, got none; say in [target]"),
    "no records": ("[data]\nmembers = 5\n", "set = a data set, file = an .npz, or members"),
    "name a number": (replaced('"tiny"', "3"), "name = text in quotes in plan.toml, got 3"),
    "seed text": ('seed = "one"\n' + PLAN, "seed = a whole number from 0"),
    "seed negative": ("seed = -1\n" + PLAN, "seed = a whole number from 0 in plan.toml, got -1"),
    "references text": (replaced("references = 4", 'references = "many"'), "references = a whole"),
    "references true": (replaced("references = 4", "references = true"), "got True"),
    "attacks a number": ("attacks = 5\n" + PLAN, "attacks = text, a list of texts, or a table"),
    "attacks of no table": (PLAN + "[attacks]\ngmia = 3\n", "or a table for each attack"),
    "attack of another name": (
        PLAN + "[attacks.mine]\n",
        "as the attack of [attacks.mine] of plan.toml, got 'mine'; name it so, or say attack =",
    ),
    "setting that an attack lacks": (
        PLAN + "[attacks.gmia]\ndelt = 0.05\n",
        "expected attack, delta, beta, features, center, n_train, split_references, tail in [",
    ),
    "setting of another kind": (
        PLAN + '[attacks.gmia]\ndelta = "small"\n',
        "expected delta like 0.1 in [attacks.gmia] of plan.toml, got 'small'",
    ),
    "part of a record": (
        PLAN + "[attacks.gmia]\nn_train = 12.5\n",
        "expected n_train of type int in [attacks.gmia] of plan.toml, got 12.5",
    ),
    "name of another attack": (
        PLAN + '[attacks.gmia]\nattack = "loss"\n',
        "a name of its own for the attack loss of [attacks.gmia] of plan.toml, got that of",
    ),
    "switch as a number": (PLAN + "[attacks.gmia]\ncenter = 1\n", "center like False"),
    "setting that makes no sense": (PLAN + "[attacks.gmia]\ndelta = 3\n", "delta in [1e-05, 2]"),
    "lr text": (replaced("0.02", '"fast"'), "lr = a number above 0 in [training] of plan.toml"),
    "lr zero": (replaced("0.02", "0"), "lr = a number above 0"),
    "lr infinite": (replaced("0.02", "inf"), "lr = a number above 0"),
    "epochs negative": (replaced("epochs = 20", "epochs = -1"), "epochs = a whole number from 1"),
    "epochs a fraction": (replaced("epochs = 20", "epochs = 2.5"), "got 2.5"),
    "batch size zero": (replaced("batch_size = 16", "batch_size = 0"), "batch_size = a whole"),
    "optimizer": (replaced('"adam"', '"lion"'), 'optimizer = "sgd" or "adam" or "adamw"'),
    "schedule": (PLAN + 'schedule = "step"\n', 'schedule = "cosine" in [training]'),
    "patience": (PLAN + "patience = 0\n", "patience = a whole number from 1"),
    "device": (PLAN + 'device = "tpu"\n', 'device = "cpu" or "cuda"'),
    "weight decay": (PLAN + "weight_decay = -1.0\n", "weight_decay = a number from 0"),
    "network": (replaced('"mlp"', '"vit"'), 'network = "mlp" or "cnn" in [target]'),
    "convolution of rows": (replaced('"mlp"', '"cnn"'), 'network = "cnn", got (8,); use "mlp"'),
    "hidden a number": (replaced("[16]", "16"), "hidden = a list of whole numbers from 1"),
    "hidden of text": (replaced("[16]", '["a"]'), "hidden = a list of whole numbers from 1"),
    "hidden zero": (replaced("[16]", "[0]"), "hidden = a list of whole numbers from 1"),
    "activation": (replaced("hidden", 'activation = "gelu"\nhidden'), 'activation = "relu" or'),
    "dropout of all": (
        replaced("hidden", "dropout = 1.0\nhidden"),
        "dropout = a number from 0 and",
    ),
    "image text": (replaced("[target]", 'image = "8x8"\n[target]'), "image = a list of"),
    "image of another size": (
        replaced("population = 30", "population = 30\nimage = [3, 3]"),
        "make a record of shape (8,), got [3, 3]",
    ),
    "members true": (replaced("members = 60\nnon", "members = true\nnon"), "members = a whole"),
    "members negative": (replaced("\nmembers = 60", "\nmembers = -4"), "members = a whole number"),
    "members none": (replaced("\nmembers = 60", "\nmembers = 0"), "at least one of the members"),
    "too many": (replaced("nonmembers = 60", "nonmembers = 600"), "at least 690 distinct records"),
    "one file": (
        replaced("\nmembers = 60", '\nmembers = "a.npz"'),
        "all as files or all as numbers",
    ),
    "unknown set": (replaced('file = "records.npz"', 'set = "digitz"'), "one of the data sets"),
    "missing file": (replaced("records.npz", "none.npz"), "found no file; check the path"),
    "members drawn for a trained model": (
        '[data]\nfile = "records.npz"\n[target]\nnetwork = "mlp"\nweights = "w.safetensors"\n',
        "members = a file and nonmembers = a file in [data] beside weights =, since a model that",
    ),
    "members drawn for a service": (
        '[data]\nset = "digits"\n[target]\nurl = "http://127.0.0.1:9"\n',
        "beside url =",
    ),
    "members drawn for an estimator": (
        '[data]\nset = "digits"\nmembers = 50\n[target]\nestimator = "e.skops"\n',
        "beside estimator =",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_plans_that_are_refused(folder, name):
    text, why = BAD[name]
    (folder / "plan.toml").write_text(text)
    with pytest.raises(VestigeError) as caught:
        plan_of("plan.toml")
    assert why in str(caught.value)


def test_files_that_are_no_plan(folder):
    with pytest.raises(PlanError, match="a plan at none.toml, found no file; check the path"):
        plan_of("none.toml")
    (folder / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="TOML in bytes.toml"):
        plan_of("bytes.toml")
    (folder / "folder.toml").mkdir()
    with pytest.raises(PlanError, match="TOML in folder.toml"):
        plan_of("folder.toml")


def touch(path: str) -> None:
    Path(path).touch()


class Trap:
    """Unpickling it leaves a file behind."""

    def __reduce__(self) -> Any:
        return (touch, ("sprung",))


def test_records_that_are_damaged_or_pickled(folder):
    content = (folder / "records.npz").read_bytes()
    for bad in (b"", b"nonsense", content[:300], content[: len(content) // 2]):
        (folder / "records.npz").write_bytes(bad)
        with pytest.raises(DamagedFile, match="arrays x and y of numbers in records.npz, but"):
            plan_of("plan.toml")
    np.savez(folder / "records.npz", x=np.array([Trap()], dtype=object), y=[0])
    with pytest.raises(DamagedFile, match="pickled objects, which are not read; write it"):
        plan_of("plan.toml")
    np.savez(folder / "records.npz", x=np.zeros((3, 2)))
    with pytest.raises(DamagedFile, match="y is not a file in the archive"):
        plan_of("plan.toml")
    assert not (folder / "sprung").exists()


# --- models in files ---------------------------------------------------------------------------


def with_model(folder: Path, line: str, network: bool = True) -> None:
    kind = 'network = "mlp"\nhidden = [16]\n' if network else ""
    stored = np.load(folder / "records.npz")
    for side, rows in (("a", slice(0, 60)), ("b", slice(60, 120))):
        np.savez(folder / f"{side}.npz", x=stored["x"][rows], y=stored["y"][rows])
    text = '[data]\nmembers = "a.npz"\nnonmembers = "b.npz"\n[target]\n'
    (folder / "plan.toml").write_text(text + kind + line + "\n")


def test_weights_of_a_network(folder):
    net = plan_of("plan.toml").recipe.build()  # type: ignore[union-attr]
    save_file(net.state_dict(), folder / "w.safetensors")
    with_model(folder, 'weights = "w.safetensors"')
    target, x = plan_of("plan.toml").target, plan_of("plan.toml").split.members.x
    assert isinstance(target, TorchModel)
    np.testing.assert_array_equal(target.log_probabilities(x), TorchModel(net).log_probabilities(x))
    with_model(folder, 'weights = "w.safetensors"', network=False)
    with pytest.raises(PlanError, match='network = "mlp" or "cnn" beside weights'):
        plan_of("plan.toml")


def test_weights_that_are_refused(folder):
    other = torch.nn.Linear(3, 3)
    save_file(other.state_dict(), folder / "w.safetensors")
    with_model(folder, 'weights = "w.safetensors"')
    with pytest.raises(DamagedFile, match="written for another architecture"):
        plan_of("plan.toml")
    (folder / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DamagedFile, match="a safetensors file, w.safetensors is not one"):
        plan_of("plan.toml")
    with_model(folder, 'weights = "none.safetensors"')
    with pytest.raises(InvalidInput, match="a model at none.safetensors, found no file"):
        plan_of("plan.toml")


def test_pickled_weights_only_if_trusted(folder):
    net = plan_of("plan.toml").recipe.build()  # type: ignore[union-attr]
    torch.save(net.state_dict(), folder / "w.pt")
    with_model(folder, 'weights = "w.pt"')
    with pytest.raises(PlanError, match=r"weights as .safetensors, got w.pt; .* --trust-pickle"):
        plan_of("plan.toml")
    plan = plan_of("plan.toml", trust_pickle=True)
    np.testing.assert_array_equal(
        plan.target.log_probabilities(plan.split.members.x),
        TorchModel(net).log_probabilities(plan.split.members.x),
    )
    (folder / "w.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(PlanError, match="opening a pickle can run any program"):
        plan_of("plan.toml")
    assert not (folder / "sprung").exists()


def test_a_target_behind_http(folder):
    with_model(folder, 'url = "http://127.0.0.1:9/predict"\nbudget = 7')
    plan = plan_of("plan.toml")
    assert isinstance(plan.target, RemoteModel) and plan.target.url == "http://127.0.0.1:9/predict"
    assert isinstance(plan.recipe, TorchRecipe)
    with pytest.raises(BudgetSpent):
        plan.target.log_probabilities(plan.split.members.x)
    plan.target.close()
    with_model(folder, 'url = "http://127.0.0.1:9/predict"\nbudgte = 7')
    with pytest.raises(PlanError, match="got 'budgte'"):
        plan_of("plan.toml")
    # what was paid for is kept beside the plan
    assert (folder / "plan.answers.sqlite").exists()


def test_the_filter_of_a_target_is_in_its_plan(folder):
    with_model(folder, 'answers = "top1"')
    assert plan_of("plan.toml").answers == "top1"
    with_model(folder, "")
    assert plan_of("plan.toml").answers == ""


def test_one_model_is_audited(folder):
    with_model(folder, 'url = "http://127.0.0.1:9/predict"\nestimator = "e.skops"')
    with pytest.raises(PlanError, match="expected one of estimator, url in .target. of plan.toml"):
        plan_of("plan.toml")
    with_model(folder, 'url = "http://127.0.0.1:9/predict"\nhiden = [3]')
    with pytest.raises(PlanError, match="expected network, hidden, .*budget, .*got 'hiden'"):
        plan_of("plan.toml")


def test_estimators(folder):
    stored = np.load(folder / "records.npz")
    fitted = LogisticRegression().fit(stored["x"], stored["y"])
    skops_io.dump(fitted, folder / "e.skops")
    joblib.dump(fitted, folder / "e.pkl")
    for name in ("e.skops", "e.pkl"):
        with_model(folder, f'estimator = "{name}"', network=False)
        plan = plan_of("plan.toml", trust_pickle=True)
        assert isinstance(plan.target, EstimatorModel)
        np.testing.assert_allclose(
            np.exp(plan.target.log_probabilities(stored["x"])),
            fitted.predict_proba(stored["x"]),
            rtol=1e-6,
        )
    with pytest.raises(PlanError, match="an estimator as .skops, got e.pkl; .* --trust-pickle"):
        plan_of("plan.toml")
    (folder / "e.pkl").write_bytes(b"\x80nonsense")
    with pytest.raises(DamagedFile, match="a pickled estimator in e.pkl, but"):
        plan_of("plan.toml", trust_pickle=True)
    (folder / "e.skops").write_bytes(b"nonsense")
    with_model(folder, 'estimator = "e.skops"', network=False)
    with pytest.raises(DamagedFile, match="a skops file, e.skops is not one"):
        plan_of("plan.toml")
    with_model(folder, 'estimator = "none.skops"', network=False)
    with pytest.raises(InvalidInput, match="found no file"):
        plan_of("plan.toml")


def test_a_file_that_holds_no_classifier(folder):
    skops_io.dump({"not": "a model"}, folder / "e.skops")
    with_model(folder, 'estimator = "e.skops"', network=False)
    with pytest.raises(InvalidInput, match="predict_proba, got dict"):
        plan_of("plan.toml")


# --- built in ----------------------------------------------------------------------------------


def test_built_in_plans():
    for name in ("digits", "breast_cancer"):
        plan, row = plan_of(name, references=2), BUILT_IN[name]
        sizes = [len(s) for s in (plan.split.members, plan.split.nonmembers, plan.split.population)]
        assert tuple(sizes) == row.sizes and plan.references == 2 and plan.name == name
        assert plan_of(name).references == row.references
    a, b = (plan_of("digits", seed=seed).split.members.ids for seed in (0, 1))
    assert a.tolist() != b.tolist()
    x = built_in("breast_cancer").split.candidates.x
    assert abs(x.mean()) < 0.1 and 0.8 < x.std() < 1.2


def test_words_that_name_nothing():
    with pytest.raises(PlanError, match="one of digits, adult, .* PLAN.toml .* got 'digitz'"):
        plan_of("digitz")
    with pytest.raises(PlanError, match="seed from 0, got -1"):
        plan_of("digits", seed=-1)


# --- package.module:function -------------------------------------------------------------------


@pytest.fixture
def module(folder: Path):
    """Writes a module that can be imported by name, and forgets it."""
    made = []

    def write(name: str, text: str) -> str:
        (folder / f"{name}.py").write_text(text)
        made.append(name)
        return name

    path = list(sys.path)
    yield write
    sys.path[:] = path
    for name in made:
        sys.modules.pop(name, None)


GOOD = """
import vestige
from vestige.plans import plan_of

def make():
    return plan_of("plan.toml")

def wrong():
    return 3

def fails():
    {}["key"]

def needs(more):
    pass

def refuses():
    raise vestige.plans.PlanError("expected more, got less; add some")

constant = 3
"""


def test_a_function_of_ones_own(folder, module):
    name = module("own_plan_a", GOOD)
    plan = plan_of(f"{name}:make", references=6)
    assert plan.name == "tiny" and plan.references == 6


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("wrong", "to return a vestige.Plan, got int"),
        ("fails", "but KeyError: 'key' .own_plan_b.py, line 12.; correct it"),
        ("needs", "but TypeError: needs.. missing 1 required"),
        ("refuses", "^expected more, got less; add some$"),
        ("none", "a function none in own_plan_b, found none; check the name"),
        ("constant", "a function constant in own_plan_b, found none"),
        ("", "package.module:function, got 'own_plan_b:'"),
    ],
)
def test_functions_that_are_refused(folder, module, function, why):
    name = module("own_plan_b", GOOD)
    with pytest.raises(PlanError, match=why):
        plan_of(f"{name}:{function}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def (", "SyntaxError: "),
        ("x = undefined", "NameError: name 'undefined' is not defined .own_plan_c.py, line 1."),
    ],
)
def test_modules_that_cannot_be_imported(folder, module, text, why):
    name = module("own_plan_c", text)
    with pytest.raises(PlanError, match="a module own_plan_c that can be imported, but " + why):
        plan_of(f"{name}:make")


def test_names_that_are_no_module():
    with pytest.raises(PlanError, match="No module named 'not_there_at_all'"):
        plan_of("not_there_at_all:make")
    for what in (":make", ".relative:make"):
        with pytest.raises(PlanError, match="package.module:function, got"):
            plan_of(what)
