"""Which way a pool is trained: a rule of shapes, and what is done where memory is short."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier
from small import CLASSES, FEATURES, gap, random_rows, some_records
from torch import Tensor, nn

import vestige as vs
from vestige.errors import InvalidInput
from vestige.records import Records
from vestige.training import (
    CNN,
    MLP,
    Batch,
    EarlyStopping,
    EstimatorRecipe,
    TorchRecipe,
    cross_entropy,
    planner,
)
from vestige.training import many as many_module
from vestige.training.planner import Choice, choose
from vestige.training.stacked import DROPS

RECORDS = some_records(70)
IMAGES = some_records(70, (1, 8, 8))


def chosen(recipe: Any, records: Records = RECORDS, n_models: int = 2, **more: Any) -> Choice:
    return choose(recipe, records, random_rows(n_models, 33, len(records)), 0, **more)


def mlp() -> nn.Module:
    return MLP(FEATURES, CLASSES, (5,))()


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES))


def wide() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 20_000))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), normalized())


def squares(net: Any, batch: Batch) -> Tensor:
    return (net(batch.x) ** 2).mean()


@pytest.mark.parametrize(
    ("build", "path", "why"),
    [
        (mlp, "explicit", "linear layers and activations"),
        (normalized, "torch.func", "a probe of two models gave what training alone gives"),
        (dropped, "torch.func", DROPS),
        (wide, "one by one", "140,012 parameters fill a CPU core"),
    ],
)
def test_the_rule(build: Callable[[], nn.Module], path: str, why: str) -> None:
    choice = chosen(TorchRecipe(build, batch_size=8))
    assert choice.path == path and why in choice.why
    assert choice.width == (1 if path == "one by one" else 32)


def test_the_rule_for_pictures_estimators_and_single_models() -> None:
    pictures = chosen(TorchRecipe(CNN(1, 8, CLASSES)), IMAGES)
    assert pictures.path == "one by one" and "convolutions on a CPU" in pictures.why
    trees = chosen(EstimatorRecipe(DecisionTreeClassifier()))
    assert trees.path == "one by one" and "only torch models" in trees.why
    assert chosen(TorchRecipe(mlp), n_models=1).path == "explicit"
    single = chosen(TorchRecipe(normalized), n_models=1)
    assert single.path == "one by one" and "no two models" in single.why


@pytest.mark.parametrize(
    ("changed", "path", "why"),
    [
        ({"objective": squares}, "torch.func", "probe"),
        ({"own_gradients": True}, "one by one", "gradients of its own"),
    ],
)
def test_an_objective_or_gradients_of_ones_own(changed: Any, path: str, why: str) -> None:
    choice = chosen(TorchRecipe(mlp), **changed)
    assert choice.path == path and why in choice.why


def test_half_precision_and_early_stopping_are_trained_one_by_one() -> None:
    assert "bfloat16" in chosen(TorchRecipe(mlp, precision="bfloat16")).why
    assert "early stopping" in chosen(TorchRecipe(mlp, early_stopping=EarlyStopping())).why


@pytest.mark.parametrize("path", ["explicit", "torch.func", "one by one"])
def test_a_path_that_is_asked_for_is_taken(path: str) -> None:
    assert chosen(TorchRecipe(mlp, batch_size=8), asked=path).path == path


@pytest.mark.parametrize(
    ("recipe", "asked", "message"),
    [
        (TorchRecipe(normalized), "explicit", "expected models that can be trained by explicit"),
        (EstimatorRecipe(DecisionTreeClassifier()), "torch.func", "only torch models are stacked"),
        (TorchRecipe(mlp), "fastest", "expected path among rule, timed"),
    ],
)
def test_a_path_that_cannot_be_taken_is_refused(recipe: Any, asked: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        chosen(recipe, asked=asked)


def test_convolutions_are_stacked_where_that_is_asked_for() -> None:
    recipe = TorchRecipe(lambda: CNN(1, 8, CLASSES, (2, 2), 4)().double(), steps=6, batch_size=8)
    member = vs.half_and_half(2, len(IMAGES), seed=0)
    stacked = vs.train_many(recipe, IMAGES, member, seed=0, path="torch.func")
    alone = vs.train_many(recipe, IMAGES, member, seed=0)
    assert stacked.provenance["path"] == "torch.func"
    assert alone.provenance["path"] == "one by one"
    for a, b in zip(stacked.models, alone.models, strict=True):
        assert gap(a.net, b.net) <= 1e-10  # type: ignore[attr-defined]


def test_timing_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"one by one": 3.0, "explicit": 64.0, "torch.func": 32.0}
    order = iter(times)
    monkeypatch.setattr(planner, "_seconds", lambda work: times[next(order)])
    # a stack of 32 models in 32 seconds is a second a model
    choice = chosen(TorchRecipe(mlp, batch_size=8), asked="timed")
    assert choice.path == "torch.func" and choice.layers is None
    for said in ("one by one 3e+03 ms", "explicit 2e+03 ms", "torch.func 1e+03 ms"):
        assert said in choice.why


def test_timing_trains_on_real_batches() -> None:
    choice = chosen(TorchRecipe(mlp, batch_size=8), asked="timed")
    assert "the fastest of those timed" in choice.why and choice.path != "one by one"


# --- memory --------------------------------------------------------------------------------------


def test_stacks_are_narrower_where_models_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    large = TorchRecipe(MLP(FEATURES, CLASSES, (300, 400)), batch_size=8)
    assert chosen(large).width == planner.WIDEST_OF_LARGE
    small = chosen(TorchRecipe(mlp, batch_size=8))
    monkeypatch.setitem(planner.BUDGET, "cpu", 5 * small.each)
    assert chosen(TorchRecipe(mlp, batch_size=8)).width == 5
    monkeypatch.setitem(planner.BUDGET, "cpu", 1)
    assert chosen(TorchRecipe(mlp, batch_size=8)).width == 1


@pytest.mark.parametrize("build", [mlp, normalized])
def test_the_memory_of_a_model_is_not_underestimated(build: Callable[[], nn.Module]) -> None:
    """Weights, gradients and Adam's two moments, and the inputs of a batch at least."""
    for batch in (8, 32):
        size = sum(p.numel() for p in build().parameters())
        least = 4 * (4 * size + batch * FEATURES)
        assert least <= chosen(TorchRecipe(build, batch_size=batch, optimizer="adam")).each
    few, many = (chosen(TorchRecipe(build, batch_size=b)).each for b in (8, 32))
    assert few < many < 4 * few


def trained(build: Callable[[], nn.Module] = mlp) -> tuple[list[Any], dict[str, Any]]:
    recipe = TorchRecipe(lambda: build().double(), steps=12, batch_size=8)
    pool = vs.train_many(recipe, RECORDS, vs.half_and_half(8, len(RECORDS), 0), seed=0)
    return list(pool.models), dict(pool.provenance)


@pytest.mark.parametrize("build", [mlp, normalized])
def test_a_stack_for_which_memory_is_short_is_halved(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]
) -> None:
    whole, said = trained(build)
    assert "memory" not in said["why"]
    sizes: list[int] = []
    real = many_module._stack

    def short(job: Any, group: Any) -> Any:
        sizes.append(len(group))
        if len(group) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes")
        return real(job, group)

    monkeypatch.setattr(many_module, "_stack", short)
    halved, said = trained(build)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert said["why"].endswith("2 at a time, for lack of memory")
    for a, b in zip(whole, halved, strict=True):
        assert gap(a.net, b.net) <= 1e-10


def test_memory_that_is_not_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    each = chosen(TorchRecipe(lambda: mlp().double(), batch_size=8)).each
    monkeypatch.setattr(many_module, "memory_left", lambda device: 3 * each)
    assert trained()[1]["why"].endswith("2 at a time, for lack of memory")


def test_no_memory_for_one_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(job: Any, group: Any) -> Any:
        raise MemoryError("none")

    monkeypatch.setattr(many_module, "_stack", never)
    with pytest.raises(InvalidInput, match="expected memory for one model"):
        trained()


def test_other_errors_of_training_are_raised_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Any, group: Any) -> Any:
        raise RuntimeError("mine")

    monkeypatch.setattr(many_module, "_stack", broken)
    with pytest.raises(RuntimeError, match="mine"):
        trained()


def test_what_is_trained_alone_for_lack_of_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six models three and three, of these one and two."""
    each = chosen(TorchRecipe(lambda: mlp().double(), batch_size=8)).each
    monkeypatch.setattr(many_module, "memory_left", lambda device: 2 * each)
    recipe = TorchRecipe(lambda: mlp().double(), steps=12, batch_size=8)
    pool = vs.train_many(recipe, RECORDS, vs.half_and_half(6, len(RECORDS), 0), seed=0)
    assert "some of them one by one" in pool.provenance["why"]


def test_what_is_left_of_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < planner.memory_left("cpu") < 2**50


MIB = 2**20
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which 1000 MiB are available."""
    monkeypatch.setattr(planner, "PROC", tmp_path / "proc")
    monkeypatch.setattr(planner, "GROUPS", tmp_path / "groups")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemFree: 5 kB\nMemAvailable: 1024000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,memory:/of/mine\n2:cpuset:/\n0::/of/mine\n")
    return tmp_path


def grouped(
    folder: Path, names: tuple[str, str, str], limit: object, taken: int, files: int
) -> None:
    folder.mkdir(parents=True)
    for name, value in zip(names[:2], (limit, taken), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\nactive_file 7\n")


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("group", ["of/mine", "of", ""], ids=["own", "around it", "root"])
def test_the_memory_of_a_control_group(machine: Path, names: Any, group: str) -> None:
    """Limited to 300 MiB, of which 280 are taken, 200 of these by copies of files."""
    assert planner.memory_left("cpu") == 1000 * MIB
    root = machine / "groups" / ("memory" if names == V1 else "")
    grouped(root / group, names, 300 * MIB, 280 * MIB, 200 * MIB)
    assert planner.memory_left("cpu") == 220 * MIB


def test_a_group_without_a_limit_and_another_system(machine: Path) -> None:
    grouped(machine / "groups/of/mine", V2, "max", 280 * MIB, 0)
    assert planner.memory_left("cpu") == 1000 * MIB
    (machine / "proc/self/cgroup").unlink()
    assert planner.memory_left("cpu") == 1000 * MIB
    (machine / "proc/meminfo").unlink()
    assert planner.memory_left("cpu") == sys.maxsize


def test_a_worker_takes_its_share(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.travel, "at_once", 4)
    assert planner.memory_left("cpu") == 250 * MIB


# --- 16 bits and channels last -------------------------------------------------------------------


def losses(recipe: TorchRecipe, records: Records) -> NDArray[np.float64]:
    model = recipe.fit(records, seed=0)
    own = model.log_probabilities(records.x)
    assert {t.dtype for t in model.net.parameters()} == {torch.float32}
    assert all(t.is_contiguous() for t in model.net.parameters())
    return -own[np.arange(len(records)), records.y]


def test_training_in_bfloat16_learns_what_float32_learns() -> None:
    recipe = TorchRecipe(CNN(1, 8, CLASSES, (4, 4), 16), epochs=8, batch_size=8, lr=0.05)
    exact = losses(recipe, IMAGES)
    rough = losses(replace(recipe, precision="bfloat16"), IMAGES)
    assert rough.mean() < 0.5 * np.log(CLASSES) and exact.mean() < 0.5 * np.log(CLASSES)
    assert 1e-6 < np.abs(rough - exact).max()


def test_channels_last_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TorchRecipe(CNN(1, 8, CLASSES, (4, 4), 16), steps=5, batch_size=8)
    fast = losses(recipe, IMAGES)
    # the module, not the function of its name
    monkeypatch.setattr(sys.modules["vestige.training.fit"], "convolves", lambda net: False)
    plain = losses(recipe, IMAGES)
    assert np.abs(fast - plain).max() < 1e-4


def test_precision_is_one_of_two() -> None:
    with pytest.raises(InvalidInput, match='expected precision "float32" or "bfloat16"'):
        TorchRecipe(mlp, precision="float16")


class LeNet(nn.Module):
    """Flattens by a view, which channels last does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out: Tensor = self.head(x.view(x.size(0), -1))
        return out


def test_a_view_after_a_convolution_is_trained_too() -> None:
    recipe = TorchRecipe(LeNet, epochs=8, batch_size=8, lr=0.01)
    assert losses(recipe, IMAGES).mean() < 0.7 * np.log(CLASSES)


def test_augmentation_sees_pictures_as_they_are() -> None:
    def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.view(len(x), -1).flip(1).view(x.shape)

    recipe = TorchRecipe(CNN(1, 8, CLASSES, (2, 2), 4), steps=3, batch_size=8, augment=flipped)
    assert np.isfinite(losses(recipe, IMAGES)).all()


def test_pictures_on_disk_are_trained_one_by_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.x.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    recipe = TorchRecipe(CNN(1, 8, CLASSES, (2, 2), 4), steps=5, batch_size=8)
    pools = [
        vs.train_many(recipe, Records.from_arrays(x, IMAGES.y), vs.half_and_half(2, 70, 0), seed=0)
        for x in (mapped, np.array(mapped))
    ]
    for a, b in zip(*(pool.models for pool in pools), strict=True):
        assert gap(a.net, b.net) <= 1e-6  # type: ignore[attr-defined]


# --- groups that turn out not to be stackable ----------------------------------------------------


def noted() -> nn.Module:
    """Modules that are not alike, though nothing depends on it."""
    net = normalized().double()
    net.note = float(torch.rand(()))  # type: ignore[assignment]
    return net


def late(net: Any, batch: Batch) -> Tensor:
    loss = cross_entropy(net(batch.x), batch.y)
    return loss if batch.step < 30 or loss.item() > 0 else 2 * loss


@pytest.mark.parametrize(
    ("recipe", "objective"),
    [
        (TorchRecipe(noted, steps=10, batch_size=8), None),
        (TorchRecipe(lambda: normalized().double(), steps=40, batch_size=8), late),
    ],
    ids=["drawn notes", "a late branch"],
)
def test_a_group_that_cannot_be_stacked_after_all_is_trained_alone(
    recipe: TorchRecipe, objective: Any
) -> None:
    member = vs.half_and_half(8, 70, seed=0)
    pool = vs.train_many(recipe, RECORDS, member, seed=0, objective=objective)
    for k, model in enumerate(pool.models):
        seed = many_module.model_seed(0, k)
        alone = vs.fit(recipe, RECORDS[member[k]], seed=seed, objective=objective)
        assert gap(model.net, alone.net) <= 1e-10  # type: ignore[attr-defined]
    one_by_one = pool.provenance["path"] == "one by one"
    assert one_by_one or "one by one, since they are not alike" in pool.provenance["why"]
