"""Models asked together answer as each does alone, whoever is asked beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import CLASSES, FEATURES
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from vestige import reading
from vestige.errors import InvalidInput
from vestige.models import BlackBox, Predictions, TorchModel
from vestige.pool import MemoryCache, Pool
from vestige.records import Records
from vestige.signals import log_probabilities
from vestige.training import CNN, MLP
from vestige.training import asking as asking_module
from vestige.training.asking import Stacks
from vestige.training.engines import Local

Floats = NDArray[np.float64]
N = 700


def inputs(n: int = N, features: int = FEATURES, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32)


def networks(build: Callable[[], nn.Module], count: int, spread: float = 3.0) -> list[nn.Module]:
    """Modules with weights large enough that some answers are confident."""
    torch.manual_seed(0)
    made = [build() for _ in range(count)]
    with torch.no_grad():
        for p in (p for net in made for p in net.parameters()):
            p.mul_(spread)
    return made


def answered(models: Sequence[BlackBox], x: Any) -> list[Floats]:
    """Each model's whole table."""
    tables: dict[int, Floats] = {}
    for k, rows, table in Stacks().ask(models, x):
        whole = tables.setdefault(k, np.full((len(x), table.shape[1]), np.nan))
        whole[rows] = table
    return [tables[k] for k in range(len(models))]


def stacked(models: Sequence[BlackBox], x: Any, monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """The same, with no model asked as a whole."""

    def alone(model: TorchModel, x: Any) -> Any:
        raise AssertionError("a model was asked by itself")

    with monkeypatch.context() as patched:
        patched.setattr(TorchModel, "log_probabilities", alone)
        return answered(models, x)


class Own(nn.Module):
    """A chain written as a module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 9), nn.Linear(9, CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.dropout(functional.gelu(self.first(x))))
        return logits


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = [type(layer)(*_arguments(layer)) for layer in layers]
        return nn.Sequential(*made)

    return build


def _arguments(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, layer.bias is not None
    return ()


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "tanh": MLP(FEATURES, CLASSES, hidden=(10, 5), activation="tanh"),
    "relu": MLP(FEATURES, CLASSES, hidden=(7,)),
    "wide": MLP(FEATURES, 12, hidden=(150, 30)),
    "large": MLP(FEATURES, 12, hidden=(400, 300)),
    "linear": chain(nn.Linear(FEATURES, CLASSES)),
    "two classes": MLP(FEATURES, 2, hidden=(4,), activation="tanh"),
    "one logit": MLP(FEATURES, 1, hidden=(4,), activation="tanh"),
    "no bias": chain(nn.Linear(FEATURES, 8, bias=False), nn.Sigmoid(), nn.Linear(8, CLASSES)),
    "silu": chain(nn.Linear(FEATURES, 8), nn.SiLU(), nn.Linear(8, CLASSES, bias=False)),
    "of one's own": Own,
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_stack_answers_as_its_models_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs()
    for double, exact in ((False, 1e-6), (True, 1e-12)):
        nets = networks(PLAIN[kind], 5)
        models = [TorchModel(net.double() if double else net) for net in nets]
        for model, table in zip(models, stacked(models, x, monkeypatch), strict=True):
            own = model.log_probabilities(x)
            scale = np.maximum(1.0, np.abs(own).max())
            assert np.abs(table - own).max() <= exact * scale, kind
            assert np.abs(np.exp(table).sum(axis=1) - 1).max() < 1e-12


def test_confident_answers_keep_their_digits_and_ties_are_ties() -> None:
    net = nn.Sequential(nn.Linear(2, 3).double())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        net[0].bias.zero_()
    x = np.array([[60.0, 1.0], [400.0, -3.0], [0.0, 0.0], [5.0, 5.0], [-2.0, -2.0]])
    (table,) = answered([TorchModel(net, outputs="logits")], x)
    own = TorchModel(net, outputs="logits").log_probabilities(x)
    np.testing.assert_allclose(table, own, rtol=1e-14, atol=0)
    assert -2e-26 > table[0, 0] > -3e-26 and table[1, 0] < 0  # 1 - p rounds to 0 there
    np.testing.assert_allclose(table[2], -np.log(3), rtol=1e-15)


def test_what_a_model_answers_does_not_depend_on_who_is_asked_beside_it() -> None:
    for kind in ("tanh", "wide", "large"):
        x = inputs(5000)
        models = [TorchModel(net) for net in networks(PLAIN[kind], 41)]
        together = answered(models, x)
        for chosen in (models[:1], models[:9], models[:33], models[5:8], models[::-1]):
            for model, table in zip(chosen, answered(chosen, x), strict=True):
                assert np.array_equal(table, together[models.index(model)]), kind


def test_nor_on_how_the_records_are_cut() -> None:
    x = inputs(3 * reading.STEP + 77)
    for kind in ("tanh", "wide", "large"):
        models = [TorchModel(net) for net in networks(PLAIN[kind], 3)]
        whole = answered(models, x)
        cuts = [0, reading.STEP, 3 * reading.STEP, len(x)]
        parts = [answered(models, x[a:b]) for a, b in pairwise(cuts)]
        for k, table in enumerate(whole):
            assert np.array_equal(np.concatenate([part[k] for part in parts]), table)


class EvalOnly(nn.Module):
    """Plain in training, not when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits if self.training else 2 * logits


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))


def softmaxed() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.Softmax(dim=1))


OTHERS: dict[str, Callable[[], BlackBox]] = {
    "batch norm": lambda: TorchModel(normed()),
    "other when asked": lambda: TorchModel(EvalOnly()),
    "probabilities": lambda: TorchModel(softmaxed(), outputs="probabilities"),
    "picked logits": lambda: TorchModel(PLAIN["relu"](), logits=lambda out: 3 * out),
    "half precision": lambda: TorchModel(PLAIN["relu"]().bfloat16()),
    "frozen": lambda: TorchModel(PLAIN["relu"]().requires_grad_(False)),
}


class Scaled(nn.Module):
    """Plain where its factor is 1; what it is made of does not say so."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(FEATURES, CLASSES), factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits if self.factor == 1 else self.factor * logits


@pytest.mark.parametrize("factors", [(1.0, 2.0, 1.0), (2.0, 1.0, 2.0)])
def test_networks_that_only_look_alike_are_told_apart(factors: tuple[float, ...]) -> None:
    x, models = inputs(90), [TorchModel(Scaled(factor)) for factor in factors]
    for model, table in zip(models, answered(models, x), strict=True):
        np.testing.assert_allclose(table, model.log_probabilities(x), atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_asked_as_they_are(kind: str) -> None:
    torch.manual_seed(1)
    x, models = inputs(300), [OTHERS[kind]() for _ in range(3)]
    for model, table in zip(models, answered(models, x), strict=True):
        assert np.array_equal(table, model.log_probabilities(x))
    assert Stacks().width(models) == (1, 1) or kind == "other when asked"


def test_any_models_in_any_order() -> None:
    torch.manual_seed(2)
    x = inputs(50)
    table = Predictions(logits=np.random.default_rng(0).normal(size=(50, CLASSES)))
    kinds = [*PLAIN.values()] * 2
    models: list[BlackBox] = [TorchModel(build(), outputs="logits") for build in kinds]
    models[3:3] = [OTHERS[kind]() for kind in OTHERS]
    for model, got in zip(models, answered(models, x), strict=True):
        np.testing.assert_allclose(got, model.log_probabilities(x), atol=1e-5)
    rows = np.arange(50)[:, None]
    assert np.array_equal(answered([table], rows)[0], table.log_probabilities(rows))


def test_pictures_are_flattened_as_the_network_does() -> None:
    x = np.random.default_rng(0).integers(0, 255, (60, 1, 8, 8)).astype(np.uint8)
    models = [TorchModel(MLP(64, 10, hidden=(9,))()) for _ in range(3)]
    for model, table in zip(models, answered(models, x), strict=True):
        np.testing.assert_allclose(table, model.log_probabilities(x), atol=1e-4)
    net = CNN(1, 8, 10, filters=(2, 3), units=8)()
    assert np.array_equal(answered([TorchModel(net)], x)[0], TorchModel(net).log_probabilities(x))


def test_a_network_for_other_inputs_says_so_itself() -> None:
    with pytest.raises(InvalidInput, match="expected records that the module takes"):
        answered([TorchModel(PLAIN["relu"]())], inputs(20, FEATURES + 1))


def test_a_model_that_diverged_is_refused_and_the_others_are_not() -> None:
    nets = networks(PLAIN["tanh"], 6)
    with torch.no_grad():
        next(iter(nets[4].parameters()))[0, 0] = torch.nan
    asked = Stacks().ask([TorchModel(net) for net in nets], inputs())
    got = []
    with pytest.raises(InvalidInput, match="expected finite answers, got NaN or infinity for 700"):
        for k, _, _ in asked:
            got.append(k)
    assert got == [0, 1, 2, 3, 5]


def test_answers_that_end_late_in_infinity_are_refused() -> None:
    x = inputs(9000)
    x[-1] = np.inf
    models = [TorchModel(net) for net in networks(PLAIN["relu"], 3)]
    with pytest.raises(InvalidInput, match="got NaN or infinity for 1 records"):
        answered(models, x)


def constant(values: Sequence[float]) -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, len(values)))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor(values))
    return net


def test_what_looks_like_probabilities_is_refused_unless_it_was_said() -> None:
    nets = [constant([0.2, 0.5, 0.3]), constant([0.7])]
    for net in nets:
        with pytest.raises(InvalidInput, match="expected logits from the module, got prob"):
            answered([TorchModel(net)], inputs(50))
        said = TorchModel(net, outputs="logits")
        np.testing.assert_allclose(
            answered([said], inputs(50))[0], said.log_probabilities(inputs(50)), atol=1e-6
        )


def test_a_plain_network_may_be_said_to_give_probabilities() -> None:
    model = TorchModel(constant([0.2, 0.5, 0.3]), outputs="probabilities")
    np.testing.assert_allclose(answered([model], inputs(9))[0], [np.log([0.2, 0.5, 0.3])] * 9)


def test_models_are_left_as_they_were_found_and_count_their_queries() -> None:
    nets = networks(Own, 3)
    nets[0].eval()
    nets[2].dropout.eval()
    before = [[m.training for m in net.modules()] for net in nets]
    models = [TorchModel(net) for net in nets]
    answered(models, inputs(130))
    assert [[m.training for m in net.modules()] for net in nets] == before
    assert [model.n_queries for model in models] == [130] * 3


def test_a_pool_may_ask_in_stacks() -> None:
    x = inputs(4000)
    records = Records.from_arrays(x, np.arange(len(x)) % CLASSES)
    models = [TorchModel(net) for net in networks(PLAIN["tanh"], 35)]
    member = np.zeros((35, len(x)), dtype=bool)
    pool = Pool(models, records, member, asker=Stacks())
    got = pool.signals(log_probabilities, records)
    assert got.shape == (35, 4000, CLASSES)
    expected = Pool(models, records, member).signals(log_probabilities, records)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.array_equal(got, expected)  # else no stack was asked


@pytest.mark.slow
def test_tiny_networks_are_asked_many_times_faster_than_by_a_data_loader() -> None:
    x = inputs(50_000, 104)
    nets = networks(MLP(104, 2, (10, 5), "tanh"), 64, spread=1.0)
    models = [TorchModel(net, outputs="logits") for net in nets]

    def loop() -> None:
        for net in nets[:2]:
            with torch.no_grad():
                for (batch,) in DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=128):
                    torch.log_softmax(net(batch), 1).numpy()

    def ours() -> None:
        for _ in Stacks().ask(models, x):
            pass

    ours()
    ratios = [seconds(loop) / 2 / (seconds(ours) / 64) for _ in range(3)]
    assert np.median(ratios) > 15, ratios


def seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def test_the_key_is_of_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Stacks().key()) == 64 and Stacks().key() != reading.OneByOne().key()
    monkeypatch.setattr(asking_module, "source_digest", lambda *files: "another")
    assert Stacks().key() == "another"


@pytest.mark.slow
def test_workers_read_what_is_read_here() -> None:
    x = inputs(3000)
    records = Records.from_arrays(x, np.arange(len(x)) % CLASSES)
    models = [TorchModel(net) for net in networks(PLAIN["tanh"], 40)]
    pool = Pool(models, records, np.zeros((40, len(x)), dtype=bool), asker=Stacks())
    here = pool.read([log_probabilities, lambda table, y: table[:, 0] - table[:, 1]], records)
    other = replace(pool, cache=MemoryCache())
    signals = [log_probabilities, lambda table, y: table[:, 0] - table[:, 1]]
    there = other.read(signals, records, engine=Local(2))
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
