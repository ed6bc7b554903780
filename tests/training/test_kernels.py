"""Explicit kernels: which networks they take, and that they train them as autograd does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small import CLASSES, FEATURES, gap, random_rows, same_bits, some_records, together_and_alone
from torch import Tensor, nn
from torch.nn import functional

from vestige.records import Records
from vestige.training import MLP, EarlyStopping, TorchRecipe, cosine, kernels
from vestige.training.kernels import PlainStack, plain_layers
from vestige.training.stacked import plain


class Written(nn.Module):
    """A chain as people write it, under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.inner = nn.Linear(5, CLASSES), nn.Linear(FEATURES, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(torch.tanh(self.inner(x)), 0.3, training=self.training)
        out: Tensor = self.out(x)
        return out


def chain(*between: nn.Module, bias: bool = True, classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 5, bias=bias), *between, nn.Linear(5, classes, bias=bias)
    )


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: chain(nn.ReLU()),
    "relu in place": lambda: chain(nn.ReLU(inplace=True)),
    "tanh": lambda: chain(nn.Tanh()),
    "sigmoid": lambda: chain(nn.Sigmoid()),
    "silu": lambda: chain(nn.SiLU()),
    "gelu": lambda: chain(nn.GELU()),
    "linear": lambda: chain(),
    "no bias": lambda: chain(nn.ReLU(), bias=False),
    "softmax regression": lambda: nn.Linear(FEATURES, CLASSES),
    "one logit": lambda: chain(nn.Tanh(), classes=1),
    "deep": lambda: MLP(FEATURES, CLASSES, (7, 4, 6), "tanh")(),
    "dropout": lambda: chain(nn.ReLU(), nn.Dropout(0.4)),
    "dropout after gelu": lambda: chain(nn.GELU(), nn.Dropout(0.4)),
    "dropout alone": lambda: chain(nn.Dropout(0.2)),
    "written": Written,
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_explicit_kernels_train_as_training_alone_does(name: str, optimizer: str) -> None:
    records = some_records(70)
    if name == "one logit":
        records = Records.from_arrays(records.x, (records.y > 0).astype(np.int64))
    recipe = TorchRecipe(
        lambda: PLAIN[name]().double(),
        steps=50,
        batch_size=8,
        optimizer=optimizer,
        lr=0.05 if optimizer == "sgd" else 0.003,
        momentum=0.9 if optimizer == "sgd" else 0.0,
        weight_decay=0.0 if optimizer == "adam" else 0.01,
        schedule=cosine,
    )
    together, alone = together_and_alone(recipe, records, random_rows(3, 33, 70), explicit=True)
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-10
    assert min(gap(together[0], together[1]), gap(alone[0], alone[2])) > 1e-3
    assert not any(m.training for net in together for m in net.modules())


def test_pictures_are_flattened_and_augmented_by_each_models_own_stream() -> None:
    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    recipe = TorchRecipe(lambda: MLP(36, CLASSES)().double(), epochs=2, batch_size=8, augment=noisy)
    records = some_records(70, (1, 6, 6))
    together, alone = together_and_alone(recipe, records, random_rows(3, 33, 70), explicit=True)
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-10


@pytest.mark.parametrize("n_models", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 7])
def test_gradients_are_those_of_autograd(n_models: int, batch: int) -> None:
    nets = [PLAIN["deep"]().double() for _ in range(n_models)]
    layers = plain_layers(nets[0])
    assert layers is not None
    stack = PlainStack(layers, nets, batch)
    x = torch.randn(n_models, batch, FEATURES, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (n_models, batch))
    stack.backward(x, y, ())
    expected = []
    for k, net in enumerate(nets):
        functional.cross_entropy(net(x[k]), y[k]).backward()
        expected.append({n: p.grad for n, p in net.named_parameters()})
    names = [n for layer in layers for n in (layer.weight, layer.bias)]
    flat = torch.cat([torch.stack([own[n] for own in expected]).reshape(-1) for n in names])
    (weights,) = stack.trained
    assert weights.grad is not None
    assert float((weights.grad - flat).abs().max()) < 1e-14


@pytest.mark.skipif(kernels.onednn is None, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_large_products_train_as_training_alone_does(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """oneDNN has no float64: the same steps in float32, as far as its digits go."""
    monkeypatch.setattr(kernels, "LARGE_PRODUCT", 8 * 9 * 5)
    recipe = TorchRecipe(
        MLP(FEATURES, CLASSES, (9, 5)), steps=20, batch_size=8, optimizer=optimizer, lr=0.01
    )
    records = some_records(70)
    nets = [MLP(FEATURES, CLASSES, (9, 5))() for _ in range(2)]
    layers = plain_layers(nets[0])
    assert layers is not None
    # two large matrices of two models each, and the rest
    assert len(PlainStack(layers, nets, 8).trained) == 1 + 2 * 2
    together, alone = together_and_alone(recipe, records, random_rows(3, 33, 70), explicit=True)
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 2e-5
    assert gap(together[0], together[1]) > 1e-3


@pytest.mark.skipif(kernels.onednn is None, reason="this build of torch has no oneDNN")
def test_a_bias_is_never_a_large_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGE_PRODUCT", 8 * 9)
    build = MLP(FEATURES, CLASSES, (9,))
    nets = [build() for _ in range(2)]
    layers = plain_layers(nets[0])
    assert layers is not None
    # both matrices of two models each, and the rest
    assert len(PlainStack(layers, nets, 8).trained) == 1 + 2 * 2
    recipe = TorchRecipe(build, steps=20, batch_size=8, lr=0.01)
    rows = random_rows(3, 33, 70)
    together, alone = together_and_alone(recipe, some_records(70), rows, explicit=True)
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 2e-5


def test_a_model_is_the_same_in_stacks_of_any_width() -> None:
    recipe = TorchRecipe(MLP(FEATURES, CLASSES), epochs=5, batch_size=8, optimizer="adam", lr=0.01)
    rows = random_rows(5, 33, 70)
    few, _ = together_and_alone(recipe, some_records(70), rows[:2], explicit=True)
    many, _ = together_and_alone(recipe, some_records(70), rows, explicit=True)
    assert max(gap(a, b) for a, b in zip(few, many, strict=False)) <= 1e-5
    again, _ = together_and_alone(recipe, some_records(70), rows, explicit=True)
    assert all(same_bits(a, b) for a, b in zip(many, again, strict=True))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        out: Tensor = self.last(inner + torch.relu(inner))
        return out


class Doubled(Branching):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)) * 2)
        return out


class Kept(Branching):
    """Its output is not the chain's end."""

    def forward(self, x: Tensor) -> Any:
        logits = self.last(torch.relu(self.first(x)))
        return {"logits": logits}


class Unused(Branching):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out


class Dependent(Branching):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x if x.sum() > 0 else -x)))
        return out


class Bounded(Branching):
    """Bounds its weights in the forward pass, which no trace of tensors shows."""

    def forward(self, x: Tensor) -> Tensor:
        for p in self.parameters():
            p.data.clamp_(-0.6, 0.6)
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def frozen() -> nn.Module:
    net = chain(nn.ReLU())
    next(net.parameters()).requires_grad_(False)
    return net


def hooked() -> nn.Module:
    net = chain(nn.ReLU())
    net[0].register_forward_hook(lambda module, given, output: output * 2)
    return net


OTHER: dict[str, Callable[[], nn.Module]] = {
    "residual": Branching,
    "a factor": Doubled,
    "dict": Kept,
    "unused layer": Unused,
    "data-dependent": Dependent,
    "bounded": Bounded,
    "tied": tied,
    "frozen": frozen,
    "hooked": hooked,
    "normalized": lambda: chain(nn.BatchNorm1d(5)),
    "layer norm": lambda: chain(nn.LayerNorm(5)),
    "two activations": lambda: chain(nn.ReLU(), nn.Tanh()),
    "activation after dropout": lambda: chain(nn.Dropout(0.2), nn.ReLU()),
    "dropout first": lambda: nn.Sequential(nn.Dropout(0.2), chain()),
    "ends in relu": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.ReLU()),
    "ends in softmax": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.Softmax(1)),
    "tanh of gelu": lambda: chain(nn.GELU(approximate="tanh")),
    "leaky": lambda: chain(nn.LeakyReLU(0.3)),
    "convolution": lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
    "flattened in part": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(6, 2)),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_networks_are_left_to_others(name: str) -> None:
    assert plain_layers(OTHER[name]()) is None


def own_loss(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, label_smoothing=0.1)


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": own_loss},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
        {"logits": lambda output: 2 * output},
        {"precision": "bfloat16"},
    ],
)
def test_what_the_kernels_do_not_do_is_not_theirs(changed: dict[str, Any]) -> None:
    net = PLAIN["relu"]()
    assert plain(TorchRecipe(PLAIN["relu"]), net) is not None
    assert plain(TorchRecipe(PLAIN["relu"], **changed), net) is None


def test_torchs_own_cross_entropy_of_one_logit_is_left_as_it_is() -> None:
    recipe = TorchRecipe(PLAIN["one logit"], loss=functional.cross_entropy)
    assert plain(recipe, PLAIN["one logit"]()) is None


def test_early_stopping_is_not_lost() -> None:
    import vestige as vs

    recipe = TorchRecipe(PLAIN["relu"], early_stopping=EarlyStopping())
    pool = vs.train_many(recipe, some_records(40), vs.half_and_half(2, 40, 0), seed=0)
    assert pool.provenance["path"] == "one by one"
    assert "early stopping" in pool.provenance["why"]
