"""A pool from a membership table: the same models however they were trained."""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small import CLASSES, FEATURES, double_mlp, gap, same_bits, small_mlp, some_records
from torch import Tensor, nn

from vestige.errors import InvalidInput, VestigeError
from vestige.models import EstimatorModel, TorchModel
from vestige.pool import Pool
from vestige.records import Records
from vestige.training import (
    MLP,
    Batch,
    EarlyStopping,
    EstimatorRecipe,
    FunctionRecipe,
    Store,
    TorchRecipe,
    bootstraps,
    cross_entropy,
    fit,
    half_and_half,
    mean_gradients,
    planner,
    shadows,
    train_many,
    travel,
)
from vestige.training import many as many_module
from vestige.training.engines import Local
from vestige.training.fit import Streams, built
from vestige.training.many import model_seed

QUICK = TorchRecipe(small_mlp, epochs=2, batch_size=8)


def nets_of(pool: Pool[Any]) -> list[nn.Module]:
    return [model.net for model in pool.models]


def table(n_models: int, n: int, seed: int = 0) -> NDArray[np.bool_]:
    return half_and_half(n_models, n, seed)


# --- the table ---------------------------------------------------------------------------------


@given(pairs=st.integers(1, 6), n=st.integers(2, 40), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_halves_are_balanced_and_complementary(pairs: int, n: int, seed: int) -> None:
    member = half_and_half(2 * pairs, n, seed)
    assert member.shape == (2 * pairs, n) and member.dtype == np.bool_
    assert (member.sum(axis=1) == n // 2).all()
    first, second = member[::2], member[1::2]
    assert not (first & second).any()
    # of an odd number, one record is left out of each pair
    assert ((first | second).sum(axis=1) == n - n % 2).all()


@given(small=st.integers(1, 4), more=st.integers(0, 4), n=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_a_larger_table_begins_with_the_smaller_one(small: int, more: int, n: int) -> None:
    larger = half_and_half(2 * (small + more), n, seed=7)
    assert np.array_equal(half_and_half(2 * small, n, seed=7), larger[: 2 * small])


def test_halves_differ_between_pairs_and_seeds() -> None:
    member = half_and_half(4, 60, 0)
    assert not np.array_equal(member[0], member[2])
    assert not np.array_equal(member, half_and_half(4, 60, 1))
    # each record is as often in as out, so the halves are not by position
    assert 0 < member[0, :30].sum() < 30


def test_shadows_are_trained_on_equally_many_and_leave_as_many() -> None:
    member = shadows(30, 41, 20, seed=3)
    assert member.shape == (30, 41) and (member.sum(axis=1) == 20).all()
    # independent draws: they overlap as chance has it, and no two are equal
    overlap = (member[:, None] & member[None]).sum(axis=2)[np.triu_indices(30, 1)]
    assert abs(overlap.mean() - 20 * 20 / 41) < 0.5 and overlap.max() < 20
    assert np.array_equal(shadows(12, 41, 20, seed=3), member[:12])
    assert not np.array_equal(shadows(12, 41, 20, seed=4), member[:12])


@pytest.mark.parametrize(("n_models", "n", "n_train"), [(0, 9, 4), (2, 9, 5), (2, 9, 0)])
def test_shadows_that_leave_too_few_are_refused(n_models: int, n: int, n_train: int) -> None:
    with pytest.raises(InvalidInput, match="twice as many records.*train on 4 at most"):
        shadows(n_models, n, n_train, 0)


@pytest.mark.parametrize(("n_models", "n", "ask"), [(3, 9, 4), (0, 9, 2), (-4, 9, 2), (2, 1, 2)])
def test_impossible_tables_are_refused(n_models: int, n: int, ask: int) -> None:
    with pytest.raises(InvalidInput, match=f"expected an even number.*ask for {ask} models"):
        half_and_half(n_models, n, 0)


def test_model_seeds_are_31_bit_words_that_differ() -> None:
    seeds = [model_seed(s, k) for s in range(5) for k in range(200)]
    assert len(set(seeds)) == 1000 and 0 <= min(seeds) and max(seeds) < 2**31


# --- which path, and why -----------------------------------------------------------------------


def test_a_stack_is_what_training_alone_gives() -> None:
    records, member = some_records(41), table(4, 41)
    recipe = TorchRecipe(double_mlp, epochs=3, batch_size=8)
    pool = train_many(recipe, records, member, seed=3)
    assert pool.provenance["path"] in ("explicit", "torch.func")
    assert "probe of two models" in pool.provenance["why"]
    for k, net in enumerate(nets_of(pool)):
        alone = fit(recipe, records[member[k]], seed=model_seed(3, k))
        assert gap(net, alone.net) <= 1e-10
    assert gap(*nets_of(pool)[:2]) > 1e-3


def test_models_do_not_depend_on_how_many_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    records, recipe = some_records(40), TorchRecipe(double_mlp, epochs=2, batch_size=8)
    six = nets_of(train_many(recipe, records, table(6, 40), seed=0))
    two = nets_of(train_many(recipe, records, table(2, 40), seed=0))
    monkeypatch.setitem(planner.WIDEST, "cpu", 4)
    chunked = nets_of(train_many(recipe, records, table(6, 40), seed=0))
    assert max(gap(a, b) for a, b in zip(two, six, strict=False)) <= 1e-10
    assert max(gap(a, b) for a, b in zip(chunked, six, strict=True)) <= 1e-10


def test_rows_of_different_sizes_are_stacked_by_size() -> None:
    records, recipe = some_records(40), TorchRecipe(double_mlp, epochs=2, batch_size=8)
    member = table(6, 40)
    member[1, np.flatnonzero(member[1])[:3]] = False
    member[4] = True
    pool = train_many(recipe, records, member, seed=0)
    assert pool.provenance["path"] in ("explicit", "torch.func")
    for k, net in enumerate(nets_of(pool)):
        alone = fit(recipe, records[member[k]], seed=model_seed(0, k))
        assert gap(net, alone.net) <= 1e-10


def test_one_by_one_is_bit_for_bit_fit() -> None:
    records, member = some_records(40), table(2, 40)
    recipe = replace(QUICK, build=lambda: nn.Sequential(nn.Dropout(0.2), small_mlp()))
    pool = train_many(recipe, records, member, seed=1, path="one by one")
    assert pool.provenance["path"] == "one by one"
    for k, net in enumerate(nets_of(pool)):
        assert same_bits(net, fit(recipe, records[member[k]], seed=model_seed(1, k)).net)


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES))


def own_gradients(net: Any, batch: Batch, objective: Any) -> Any:
    return mean_gradients(net, batch, objective)


@pytest.mark.parametrize(
    ("recipe", "gradients", "n_models", "why"),
    [
        (QUICK, own_gradients, 4, "it has gradients of its own"),
        (replace(QUICK, early_stopping=EarlyStopping()), mean_gradients, 4, "early stopping"),
        (replace(QUICK, build=normalized), mean_gradients, 1, "no two models with equally many"),
    ],
)
def test_why_models_are_trained_one_by_one(
    recipe: TorchRecipe, gradients: Any, n_models: int, why: str
) -> None:
    member = table(4, 40)[:n_models]
    pool = train_many(recipe, some_records(40), member, seed=0, gradients=gradients)
    assert pool.provenance["path"] == "one by one"
    assert why in pool.provenance["why"]
    assert pool.provenance["n_models"] == pool.provenance["n_trained"] == n_models


def test_an_objective_reaches_every_model() -> None:
    def squares(net: Any, batch: Batch) -> Tensor:
        loss: Tensor = ((net(batch.x) - 1) ** 2).mean()
        return loss

    records, member = some_records(40), table(2, 40)
    pool = train_many(
        TorchRecipe(double_mlp, epochs=40), records, member, seed=0, objective=squares
    )
    assert pool.provenance["path"] in ("explicit", "torch.func")
    with torch.no_grad():
        for net in nets_of(pool):
            assert float((net(torch.tensor(records.x)) - 1).abs().mean()) < 0.2


def test_an_error_of_the_users_own_is_raised_not_hidden() -> None:
    def broken(net: Any, batch: Batch) -> Tensor:
        raise KeyError("no such key")

    with pytest.raises(KeyError, match="no such key"):
        train_many(QUICK, some_records(40), table(2, 40), seed=0, objective=broken)


# --- with and without a store ------------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_a_store_changes_nothing(tmp_path: Path, alone: bool) -> None:
    records, member = some_records(40), table(4, 40)
    gradients = own_gradients if alone else mean_gradients
    kept = train_many(QUICK, records, member, seed=0, gradients=gradients)
    stored = train_many(QUICK, records, member, seed=0, gradients=gradients, store=Store(tmp_path))
    assert kept.provenance["key"] == stored.provenance["key"]
    for a, b in zip(kept.models, stored.models, strict=True):
        assert isinstance(a, TorchModel) and isinstance(b, TorchModel)
        assert same_bits(a.net, b.net)
        assert not any(m.training for net in (a.net, b.net) for m in net.modules())
        assert np.array_equal(a.log_probabilities(records.x), b.log_probabilities(records.x))
    assert len(stored.models[1:3]) == 2


def test_buffers_and_tied_weights_are_stored(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
            self.last.weight = self.first.weight
            self.norm = nn.BatchNorm1d(FEATURES)
            self.register_buffer("view", self.first.weight.detach()[0], persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.norm(x) @ self.first.weight.T @ self.first.weight)
            return out

    records, member = some_records(40), table(2, 40)
    kept = train_many(replace(QUICK, build=Tied), records, member, seed=0)
    stored = train_many(replace(QUICK, build=Tied), records, member, seed=0, store=Store(tmp_path))
    for a, b in zip(nets_of(kept), nets_of(stored), strict=True):
        assert same_bits(a, b)
        assert b.last.weight is b.first.weight  # type: ignore[union-attr]


def test_a_model_that_answers_at_random_is_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_mlp()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x + torch.randn_like(x))
            return out

    recipe = replace(QUICK, build=Noisy)
    for store in (None, Store(tmp_path)):
        with pytest.raises(InvalidInput, match="draws random numbers in eval mode"):
            train_many(recipe, some_records(40), table(2, 40), seed=0, store=store)


def test_a_model_that_its_file_does_not_describe_is_refused(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.mask = small_mlp(), torch.randn(FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x * self.mask)
            return out

    recipe = replace(QUICK, build=Masked)
    refused(recipe, Store(tmp_path), "parameters and buffers describe wholly.*register_buf")
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.part"))
    # a worker would send its tensors only: here it is the same
    refused(recipe, None, "parameters and buffers describe wholly.*register_buf")


def refused(recipe: Any, store: Store | None, message: str, **more: Any) -> None:
    with pytest.raises(InvalidInput, match=message):
        train_many(recipe, some_records(40), table(4, 40), seed=0, store=store, **more)


class Running(nn.Module):
    """What it divides by is learned, and a number."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.net, self.scale = small_mlp(), 1.0
        self.learns = not late or float(torch.rand(())) < 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.learns:
            self.scale = 0.9 * self.scale + float(x.abs().max())
        out: Tensor = self.net(x / self.scale)
        return out


def trains_a_running(x: NDArray[Any], y: NDArray[Any], seed: int) -> nn.Module:
    return fit(TorchRecipe(Running, epochs=2), Records.from_arrays(x, y), seed=seed).net


@pytest.mark.parametrize(
    "recipe",
    [replace(QUICK, build=Running), FunctionRecipe(trains_a_running, Running)],
    ids=["torch", "function"],
)
def test_what_is_learned_beside_tensors_is_refused_with_and_without_a_store(
    tmp_path: Path, recipe: Any
) -> None:
    refused(recipe, None, "parameters and buffers describe wholly", engine=Local(1))
    refused(recipe, Store(tmp_path), "parameters and buffers describe wholly", engine=Local(1))


def test_every_model_that_is_trained_alone_is_looked_at(tmp_path: Path) -> None:
    """With the first one all is well."""
    seed = next(s for s in range(50) if not learns(model_seed(s, 0)) and learns(model_seed(s, 1)))
    recipe = replace(QUICK, build=lambda: Running(late=True))
    with pytest.raises(InvalidInput, match="parameters and buffers describe wholly"):
        train_many(recipe, some_records(40), table(2, 40), seed=seed, path="one by one")


def learns(seed: int) -> bool:
    found: bool = built(replace(QUICK, build=lambda: Running(late=True)), seeds(seed)).learns  # type: ignore[assignment]
    return found


def seeds(seed: int) -> int:
    return Streams.of(seed).initial


def drawn() -> nn.Module:
    kind = nn.ReLU() if torch.rand(()) < 0.5 else nn.Tanh()
    return nn.Sequential(nn.Linear(FEATURES, 5), kind, nn.Linear(5, CLASSES))


def wider() -> nn.Module:
    return MLP(FEATURES, CLASSES, (5 + int(torch.randint(0, 9, ())),))()


@pytest.mark.parametrize(
    ("build", "message"), [(drawn, "describe wholly"), (wider, "build make the same architecture")]
)
def test_an_architecture_that_is_drawn_is_refused(build: Any, message: str) -> None:
    refused(replace(QUICK, build=build), None, message, path="one by one")


def test_looking_at_models_counts_no_query() -> None:
    pool = train_many(QUICK, some_records(40), table(2, 40), seed=0, path="one by one")
    assert [model.n_queries for model in pool.models] == [0, 0]


# --- the key, and what is trained again --------------------------------------------------------


def test_the_width_of_stacks_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        pool = train_many(QUICK, some_records(40), table(4, 40), seed=0)
        return str(pool.provenance["key"])

    wide = key()
    monkeypatch.setitem(planner.WIDEST, "cpu", 2)
    assert key() != wide


def squared(net: Any, batch: Batch) -> Tensor:
    loss: Tensor = (net(batch.x) ** 2).mean()
    return loss


def cubed(net: Any, batch: Batch) -> Tensor:
    loss: Tensor = (net(batch.x).abs() ** 3).mean()
    return loss


def doubled_gradients(net: Any, batch: Batch, objective: Any) -> Any:
    return [2 * g for g in mean_gradients(net, batch, objective)]


def test_the_objective_and_the_gradients_are_part_of_the_key() -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"objective": squared},
        {"objective": cubed},
        {"gradients": own_gradients},
        {"gradients": doubled_gradients},
    ]
    keys = {
        train_many(
            QUICK, some_records(40), table(2, 40), seed=0, path="one by one", **a
        ).provenance["key"]
        for a in asked
    }
    assert len(keys) == len(asked)


def test_a_stack_of_which_one_model_is_missing_is_trained_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[tuple[int, ...]] = []
    real = many_module._train

    def train(job: Any, group: tuple[int, ...]) -> Any:
        groups.append(group)
        return real(job, group)

    monkeypatch.setattr(many_module, "_train", train)
    monkeypatch.setitem(planner.WIDEST, "cpu", 4)
    recipe = replace(QUICK, build=MLP(FEATURES, CLASSES), optimizer="adam")

    told: list[str] = []

    def trained() -> Pool[Any]:
        records, member, store = some_records(40), table(6, 40), Store(tmp_path, told.append)
        return train_many(recipe, records, member, seed=0, store=store, engine=Local(1))

    first = nets_of(trained())
    groups.clear()
    (file,) = tmp_path.rglob("model-00001.safetensors")
    file.unlink()
    again = trained()
    assert len(told) == 1
    assert groups == [(0, 1, 2, 3)] and again.provenance["n_trained"] == 1
    assert all(same_bits(a, b) for a, b in zip(first, nets_of(again), strict=True))


# --- what workers import -----------------------------------------------------------------------

MODULE = """
from torch import nn
WIDTH, OTHER = 5, 1
def build():
    return nn.Sequential(nn.Linear({features}, WIDTH), nn.ReLU(), nn.Linear(WIDTH, {classes}))
def sized(width):
    return nn.Linear({features}, {classes})
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's."""
    (tmp_path / "of_the_user.py").write_text(MODULE.format(features=FEATURES, classes=CLASSES))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("of_the_user")
    del sys.modules["of_the_user"]


def test_what_travels_by_name(imported: Any) -> None:
    def read() -> Any:
        return imported.sized(imported.WIDTH)

    def named(value: Any) -> set[str]:
        return {name for module, name in travel.by_name(value) if module == "of_the_user"}

    assert named(replace(QUICK, build=imported.build)) == {"build"}
    assert named([read, np.zeros(3)]) == {"sized", "WIDTH"}
    assert named([small_mlp, QUICK, threading.Lock()]) == set()
    # neither what is installed nor this package
    assert travel.by_name([torch.relu, nn.Linear, LogisticRegression, MLP, Path]) == set()


def as_if_sent(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The work is done as it is by a worker for which the module is as it is after the change."""

    def run(self: Local, work: Any, shared: Any, tasks: Any, *, pack: Any = None) -> Any:
        change()
        data = travel.dumped((work, shared, pack))
        again, sent, packs = pickle.loads(data)
        for place, task in enumerate(tasks):
            yield place, packs(again(sent, task))

    monkeypatch.setattr(Local, "run", run)


@pytest.mark.parametrize("by", ["name", "content"])
def test_a_module_that_was_changed_after_its_import_is_refused(
    monkeypatch: pytest.MonkeyPatch, imported: Any, by: str
) -> None:
    module = imported
    recipe = replace(
        QUICK,
        build=module.build if by == "name" else lambda: MLP(FEATURES, CLASSES, (module.WIDTH,))(),
    )

    def train() -> Pool[Any]:
        return train_many(recipe, some_records(40), table(2, 40), seed=0, engine=Local(1))

    as_if_sent(monkeypatch, lambda: setattr(module, "OTHER", 2))
    assert len(train().models) == 2
    as_if_sent(monkeypatch, lambda: setattr(module, "WIDTH", 4))
    thing = "build" if by == "name" else "WIDTH"
    with pytest.raises(VestigeError, match=f"expected of_the_user.{thing} to be the same in a wor"):
        train()


@pytest.mark.slow
def test_a_worker_imports_a_module_anew(imported: Any) -> None:
    """A function that lies in no module may read what it likes of this one."""
    recipe, member = replace(QUICK, build=imported.build), table(2, 40)
    one, two = (
        train_many(recipe, some_records(40), member, seed=0, engine=Local(n)) for n in (1, 2)
    )
    assert all(same_bits(a, b) for a, b in zip(nets_of(one), nets_of(two), strict=True))
    imported.WIDTH = 6
    with pytest.raises(VestigeError, match="expected of_the_user.build to be the same"):
        train_many(recipe, some_records(40), member, seed=0, engine=Local(2))


def test_memory_mapped_records(tmp_path: Path) -> None:
    records, member = some_records(40), table(4, 40)
    np.save(tmp_path / "x.npy", records.x)
    mapped = Records(records.ids, np.load(tmp_path / "x.npy", mmap_mode="r"), records.y)
    expected = nets_of(train_many(QUICK, records, member, seed=0))
    found = nets_of(train_many(QUICK, mapped, member, seed=0))
    assert all(same_bits(a, b) for a, b in zip(expected, found, strict=True))


# --- scikit-learn ------------------------------------------------------------------------------


def same_trees(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(s.tree_.threshold, t.tree_.threshold)
        for s, t in zip(a.estimators_, b.estimators_, strict=True)
    )


def estimators_of(pool: Pool[Any]) -> list[Any]:
    return [model.estimator for model in pool.models]


def test_estimators_are_clones_with_their_own_seeds() -> None:
    records, member = some_records(40), table(4, 40)
    template = RandomForestClassifier(5, random_state=1)
    pool = train_many(EstimatorRecipe(template), records, member, seed=9, engine=Local(1))
    assert pool.provenance["path"] == "one by one"
    for k, estimator in enumerate(estimators_of(pool)):
        word = int(np.random.SeedSequence(model_seed(9, k)).generate_state(1)[0] >> 1)
        by_hand = clone(template).set_params(random_state=word)
        by_hand.fit(records.x[member[k]], records.y[member[k]])
        assert same_trees(estimator, by_hand)
    assert template.random_state == 1 and not same_trees(*estimators_of(pool)[:2])


@pytest.mark.slow
def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    records, member = some_records(60), table(6, 60)
    forest = EstimatorRecipe(RandomForestClassifier(5))
    pipe = EstimatorRecipe(
        make_pipeline(StandardScaler(), LogisticRegression(solver="saga", max_iter=2000))
    )
    for recipe in (forest, pipe):
        serial = train_many(recipe, records, member, seed=0, engine=Local(1))
        apart = train_many(recipe, records, member, seed=0, engine=Local(2))
        stored = train_many(
            recipe, records, member, seed=0, engine=Local(2), store=Store(tmp_path / recipe.key())
        )
        for a, b, c in zip(serial.models, apart.models, stored.models, strict=True):
            answers = a.log_probabilities(records.x)
            assert np.array_equal(b.log_probabilities(records.x), answers)
            assert np.array_equal(c.log_probabilities(records.x), answers)
        again = train_many(
            recipe, records, member, seed=0, engine=Local(2), store=Store(tmp_path / recipe.key())
        )
        assert again.provenance["n_reused"] == 6
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".npz", ".skops", ".sqlite"}


def test_a_pipelines_every_random_state_is_set() -> None:
    twice = make_pipeline(
        StandardScaler(), LogisticRegression(random_state=0), memory=None
    ).set_params(logisticregression__solver="saga", logisticregression__max_iter=2000)
    model = EstimatorRecipe(twice).fit(some_records(40), seed=3)
    assert model.estimator[-1].random_state not in (None, 0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_half_may_lack_a_class(tmp_path: Path, stored: bool) -> None:
    records = some_records(40)
    member = np.ones((2, 40), dtype=bool)
    member[0, records.y == CLASSES - 1] = False
    store = Store(tmp_path) if stored else None
    recipe = EstimatorRecipe(LogisticRegression())
    pool = train_many(recipe, records, member, seed=0, engine=Local(1), store=store)
    answers = [model.log_probabilities(records.x) for model in pool.models]
    assert [a.shape for a in answers] == [(40, CLASSES)] * 2
    assert np.exp(answers[0][:, -1]).max() < 1e-9 < np.exp(answers[1][:, -1]).min()


def test_what_an_estimator_refuses_is_one_sentence() -> None:
    member = np.ones((1, 40), dtype=bool)
    records = some_records(40)
    one_class = Records(records.ids, records.x, np.zeros(40, np.int64), classes=("a", "b"))
    with pytest.raises(InvalidInput, match="LogisticRegression can be trained on.*1 classes"):
        recipe = EstimatorRecipe(LogisticRegression())
        train_many(recipe, one_class, member, seed=0, engine=Local(1))
    with pytest.raises(InvalidInput, match="predict_proba, got LinearRegression"):
        from sklearn.linear_model import LinearRegression

        EstimatorRecipe(LinearRegression())


# --- the user's own function -------------------------------------------------------------------


def train_forest(x: NDArray[Any], y: NDArray[Any], seed: int) -> Any:
    return RandomForestClassifier(3, random_state=seed).fit(x, y)


def train_net(x: NDArray[Any], y: NDArray[Any], seed: int) -> nn.Module:
    return fit(QUICK, Records.from_arrays(x, y), seed=seed).net


class Odd(LogisticRegression):  # type: ignore[misc]
    """An estimator of the user's own."""


def train_odd(x: NDArray[Any], y: NDArray[Any], seed: int) -> Any:
    return Odd().fit(x, y)


@pytest.mark.parametrize(
    "recipe", [FunctionRecipe(train_forest), FunctionRecipe(train_net, small_mlp)]
)
def test_functions_train_and_are_stored(tmp_path: Path, recipe: FunctionRecipe) -> None:
    records, member = some_records(40), table(2, 40)
    kept = train_many(recipe, records, member, seed=0, engine=Local(1))
    stored = train_many(recipe, records, member, seed=0, engine=Local(1), store=Store(tmp_path))
    for k, (a, b) in enumerate(zip(kept.models, stored.models, strict=True)):
        own = records[member[k]]
        if recipe.build is None:
            by_hand: Any = EstimatorModel(train_forest(own.x, own.y, model_seed(0, k)))
        else:
            by_hand = TorchModel(train_net(own.x, own.y, model_seed(0, k)))
        expected = by_hand.log_probabilities(records.x)
        assert np.array_equal(a.log_probabilities(records.x), expected)
        assert np.array_equal(b.log_probabilities(records.x), expected)


REFUSED = [
    (FunctionRecipe(train_net), "expected build= beside a train function that returns a torch"),
    (FunctionRecipe(train_forest, small_mlp), "as build= says, got RandomForestClassifier"),
    (FunctionRecipe(lambda x, y, seed: 3), "a torch module or a fitted classifier, got int"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_a_function_returns_is_checked(case: int) -> None:
    recipe, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message):
        train_many(recipe, some_records(20), table(2, 20), seed=0, engine=Local(1))


def test_estimators_of_other_packages_are_stored_through_their_recipe(tmp_path: Path) -> None:
    records, member = some_records(40), table(2, 40)
    with pytest.raises(InvalidInput, match="read back without a pickle.*EstimatorRecipe"):
        train_many(
            FunctionRecipe(train_odd),
            records,
            member,
            seed=0,
            engine=Local(1),
            store=Store(tmp_path),
        )
    for estimator in (Odd(), make_pipeline(StandardScaler(), Odd())):
        recipe = EstimatorRecipe(estimator)
        pool = train_many(recipe, records, member, seed=0, engine=Local(1), store=Store(tmp_path))
        assert type(pool.models[0].estimator) is type(estimator)  # type: ignore[attr-defined]


# --- progress and refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [QUICK, replace(QUICK, early_stopping=EarlyStopping()), EstimatorRecipe(Odd())]
)
def test_progress_only_rises(monkeypatch: pytest.MonkeyPatch, recipe: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(planner.WIDEST, "cpu", 2)
    calls: list[tuple[str, int, int]] = []

    def progress(label: str, done: int, total: int) -> None:
        calls.append((label, done, total))

    def trained(n: int) -> list[int]:
        calls.clear()
        store = Store(tmp_path)
        member = table(6, 40)[:n]
        train_many(
            recipe,
            some_records(40),
            member,
            seed=0,
            store=store,
            progress=progress,
            engine=Local(1),
        )
        assert {(label, total) for label, _, total in calls} == {("models", n)}
        return [done for _, done, _ in calls]

    first = trained(6)
    assert first[0] == 0 and first[-1] == 6 and first == sorted(first) and len(first) >= 4
    assert trained(6) == [6]


def test_tables_that_do_not_fit_are_refused_before_anything_is_trained() -> None:
    records, member = some_records(40), table(4, 40)

    def refused(member: NDArray[Any], message: str, seed: int = 0) -> None:
        def never(net: Any, batch: Batch) -> Tensor:
            raise AssertionError("trained")

        with pytest.raises(InvalidInput, match=message):
            train_many(QUICK, records, member, seed=seed, objective=never)

    empty = member.copy()
    empty[2] = False
    refused(empty, "expected records for every model, got none for model 2")
    refused(member[:, :39], r"of shape \(n_models, 40\), .*got bool of shape \(4, 39\)")
    refused(np.hstack([member, member]), r"got bool of shape \(4, 80\)")
    refused(member[0], r"got bool of shape \(40,\)")
    refused(member.astype(float), "expected a membership table.*got float64")
    refused(member - np.ones(member.shape, dtype=int), "expected counts from 0, got -1")
    refused(member[:0], "expected a row for at least one model")
    refused(member, "expected a seed from 0, got -1", seed=-1)


def test_divergence_of_one_model_is_one_sentence() -> None:
    recipe = replace(QUICK, lr=1e30, epochs=20, loss=lambda z, y: cross_entropy(z, y) ** 2)
    with pytest.raises(InvalidInput, match="expected training to converge"):
        train_many(recipe, some_records(40), table(2, 40), seed=0)


# --- training sets drawn with replacement -------------------------------------------------------


def test_bootstraps_draw_with_replacement() -> None:
    counts = bootstraps(400, 50, 30, seed=3)
    assert counts.shape == (400, 50) and (counts.sum(axis=1) == 30).all()
    # each draw is uniform: a record is drawn 400 * 30 / 50 times, and missed (1 - 1/50) ** 30
    assert counts.sum(axis=0).mean() == 240 and abs(counts.sum(axis=0) - 240).max() < 5 * 240**0.5
    assert (counts == 0).mean() == pytest.approx(0.98**30, abs=0.02)
    assert np.array_equal(bootstraps(7, 50, 30, seed=3), counts[:7])
    assert not np.array_equal(bootstraps(7, 50, 30, seed=4), counts[:7])
    for wrong in ((0, 5, 5), (5, 0, 5), (5, 5, 0), (1, 1, 40_000)):
        with pytest.raises(InvalidInput, match="expected"):
            bootstraps(*wrong, seed=0)


@pytest.mark.parametrize("path", ["explicit", "torch.func", "one by one"])
def test_a_record_that_is_drawn_twice_is_trained_on_twice(path: str) -> None:
    """Counts train what a table of copies would."""
    records, counts = some_records(30), bootstraps(4, 30, 20, seed=0)
    assert counts.max() >= 2
    recipe = replace(QUICK, steps=5, batch_size=7)
    made = train_many(recipe, records, counts, seed=1, path=path)
    assert made.member.dtype == np.bool_ and np.array_equal(made.member, counts > 0)
    for k, row in enumerate(counts):
        alone = fit(recipe, records.drawn(np.repeat(np.arange(30), row)), seed=model_seed(1, k))
        assert made.models[k].log_probabilities(records.x) == pytest.approx(
            alone.log_probabilities(records.x), abs=1e-4
        )
    once = train_many(recipe, records, counts > 0, seed=1, path="one by one")
    apart = [
        np.abs(a.log_probabilities(records.x) - b.log_probabilities(records.x)).max()
        for a, b in zip(made.models, once.models, strict=True)
    ]
    assert min(apart) > 1e-3


def test_counts_for_estimators_and_those_that_make_no_sense() -> None:
    records = some_records(30)
    counts = np.ones((2, 30), dtype=np.int64)
    counts[0, 0] = 9
    seen: list[int] = []

    def count(x: Any, y: Any, seed: int) -> LogisticRegression:
        seen.append(len(x))
        return LogisticRegression().fit(x, y)

    train_many(FunctionRecipe(count), records, counts, seed=0, engine=Local(1))
    assert sorted(seen) == [30, 38]
    for wrong in (counts - 2, counts.astype(float)):
        with pytest.raises(InvalidInput, match="expected"):
            train_many(QUICK, records, wrong, seed=0)
