"""A stack of models is what they are alone, to the last digits of float64, or is not made."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import (
    CLASSES,
    FEATURES,
    Wrapped,
    double_mlp,
    gap,
    random_rows,
    same_bits,
    small_mlp,
    some_records,
    together_and_alone,
)
from torch import Tensor, nn
from torch.nn import functional

from vestige.records import Records
from vestige.training import Batch, EarlyStopping, TorchRecipe, cosine, cross_entropy
from vestige.training.fit import RecipeLoss
from vestige.training.stacked import drops, why_alone

# --- networks that can be stacked --------------------------------------------------------------


class Tied(nn.Module):
    """The last layer's weight is the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x) @ self.first.weight))
        return out


def batch_norm() -> nn.Module:
    # no bias before it: its gradient is zero, and Adam makes steps out of that zero's rounding
    inner = nn.Linear(FEATURES, 5, bias=False)
    return nn.Sequential(inner, nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, CLASSES),
    )


class Residual(nn.Module):
    """A residual block with batch normalization, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.conv2(functional.relu(self.norm2(self.conv(functional.relu(self.norm(x))))))
        out: Tensor = self.head(functional.adaptive_avg_pool2d(x + inner, 1).flatten(1))
        return out


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).mean(1))
        return out


class Buffered(nn.Module):
    """A buffer changed in place, another assigned anew, a third that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_mlp()
        self.mean: Tensor
        self.top: Tensor
        self.sum: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("top", torch.zeros(FEATURES))
        self.register_buffer("sum", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            self.top = torch.maximum(self.top, x.detach().max(0).values)
            self.sum = self.sum + x.detach().sum()
        out: Tensor = self.net((x - self.mean) / (1 + self.top))
        return out


class Embedded(nn.Module):
    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 3, padding), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).flatten(1))
        return out


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.first(x)))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])
        return out


def tokens(n: int) -> Records:
    x = np.random.default_rng(0).integers(0, 9, (n, 4))
    return Records.from_arrays(x, x[:, 0] % CLASSES)


IMAGE = (1, 6, 6)
STACKABLE: dict[str, tuple[Callable[[], nn.Module], Records]] = {
    "mlp": (small_mlp, some_records(70)),
    "tied weights": (Tied, some_records(70)),
    "batch norm": (batch_norm, some_records(70)),
    "layer norm": (layer_norm, some_records(70)),
    "cnn": (cnn, some_records(70, IMAGE)),
    "residual block": (Residual, some_records(70, IMAGE)),
    "transformer": (Transformer, some_records(70, (3, 4))),
    "dict output": (lambda: Wrapped("dict"), some_records(70)),
    "buffers": (Buffered, some_records(70)),
    "embedding": (Embedded, tokens(70)),
    "frozen layer": (Frozen, some_records(70)),
    "lstm": (Recurrent, some_records(70)),
}


@pytest.mark.parametrize("name", STACKABLE)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_stack_equals_training_alone(name: str, optimizer: str) -> None:
    build, records = STACKABLE[name]
    lr, momentum = (0.05, 0.9) if optimizer == "sgd" else (0.003, 0.0)
    recipe = TorchRecipe(
        lambda: build().double(),
        steps=50,
        batch_size=8,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        # with an L2 penalty Adam makes steps out of the rounding of gradients that are zero
        weight_decay=0.0 if optimizer == "adam" else 0.01,
        schedule=cosine,
    )
    together, alone = together_and_alone(recipe, records, random_rows(3, 33, 70))
    gaps = [gap(a, b) for a, b in zip(together, alone, strict=True)]
    assert max(gaps) <= 1e-10
    # and the models are not one model three times, nor untrained
    assert min(gap(together[0], together[1]), gap(alone[0], alone[2])) > 1e-3
    assert not any(m.training for net in together for m in net.modules())


@pytest.mark.parametrize("name", [n for n in STACKABLE if n not in ("cnn", "residual block")])
def test_the_probe_lets_them_be_stacked(name: str) -> None:
    build, records = STACKABLE[name]
    recipe = TorchRecipe(build, batch_size=8)
    assert reason(recipe, records) == ""


def test_augmentation_is_each_models_own() -> None:
    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    recipe = TorchRecipe(double_mlp, epochs=2, batch_size=8, augment=noisy)
    together, alone = together_and_alone(recipe, some_records(70), random_rows(3, 33, 70))
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-10
    assert reason(recipe, some_records(70)) == ""


class Dropped(nn.Module):
    """Answers with what dropout left of its input's constant features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, CLASSES, bias=False)
        self.masks: Tensor
        self.register_buffer("masks", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        kept = functional.dropout(torch.ones_like(x), 0.5, self.training)
        self.masks = self.masks + kept[0].detach()
        out: Tensor = self.head(x * kept)
        return out


def test_dropout_differs_between_models_and_steps_of_a_stack_and_repeats() -> None:
    recipe, rows = TorchRecipe(Dropped, steps=40, batch_size=8), random_rows(6, 33, 70)
    assert reason(recipe, some_records(70)) == ""
    assert drops(recipe, some_records(70), seed=0)
    assert not drops(TorchRecipe(batch_norm), some_records(70), seed=0)
    before = torch.get_rng_state()
    together, alone = together_and_alone(recipe, some_records(70), rows)
    assert torch.equal(before, torch.get_rng_state())
    again, _ = together_and_alone(recipe, some_records(70), rows)
    assert all(same_bits(a, b) for a, b in zip(together, again, strict=True))
    for nets in (together, alone):
        # each feature was kept in about half of the steps, at twice its size
        sums = torch.stack([net.masks for net in nets])  # type: ignore[misc]
        assert len({tuple(row.tolist()) for row in sums}) == len(nets)
        assert abs(float(sums.mean()) - 40) < 4 * 2 * np.sqrt(40 / 4 / sums.numel())
        assert float(sums.std()) > 2


class Counting(nn.Module):
    """What it does in its fourth step cannot be read off its first one."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = double_mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        out: Tensor = self.net(x)
        return out * (0.1 if self.steps > 3 else 1.0)


def test_a_model_does_not_depend_on_how_many_are_beside_it() -> None:
    recipe = TorchRecipe(small_mlp, epochs=5, batch_size=8)
    rows = random_rows(5, 33, 70)
    two, _ = together_and_alone(recipe, some_records(70), rows[:2])
    five, _ = together_and_alone(recipe, some_records(70), rows)
    assert max(gap(a, b) for a, b in zip(two, five, strict=False)) <= 1e-5


def test_an_objective_of_ones_own_is_stacked() -> None:
    def smooth(net: Any, batch: Batch) -> Tensor:
        squares = torch.stack([(p**2).sum() for p in net.parameters()])
        return cross_entropy(net(batch.x), batch.y) + 0.1 * (1 + batch.step) * squares.sum()

    recipe = TorchRecipe(small_mlp, batch_size=8)
    assert reason(recipe, some_records(70), smooth) == ""


# --- what is trained alone, and why ------------------------------------------------------------


def reason(recipe: TorchRecipe, records: Records, objective: Any = None) -> str:
    rows = random_rows(2, 33, len(records))
    return why_alone(recipe, records, rows, objective or RecipeLoss(recipe), seed=3)


class Around(nn.Module):
    """The small network, and something done to its inputs or logits."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = small_mlp(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


class OwnGenerator(nn.Module):
    """Seldom changes anything: three steps of a probe would hardly notice."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rng = small_mlp(), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out * 0 if self.rng.random() < 1e-4 else out


class OwnMask(nn.Module):
    """A tensor that is neither a parameter nor a buffer differs between models."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.mask = small_mlp(), torch.rand(FEATURES, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * self.mask.to(x.dtype))
        return out


def seldom(draw: Callable[[], float]) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits * 0 if draw() < 1e-4 else logits


def jitter(logits: Tensor) -> Tensor:
    return logits * (1 + 1e-14 * torch.rand(()))


def branch(logits: Tensor) -> Tensor:
    return logits if logits.sum() > 0 else 2 * logits


def shift(logits: Tensor) -> Tensor:
    return logits + logits.mean().item()


ALONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "rand in forward": (lambda: Around(jitter), "draws random numbers"),
    "data-dependent if": (lambda: Around(branch), "it cannot be stacked"),
    "item": (lambda: Around(shift), "it cannot be stacked"),
    "numpy randomness": (lambda: Around(seldom(np.random.rand)), "draws random numbers"),
    "python randomness": (lambda: Around(seldom(random.random)), "draws random numbers"),
    "own generator": (OwnGenerator, "from a generator of its own"),
    "own mask": (OwnMask, "gave another net"),
    "padding": (lambda: Embedded(0), "padding row of a stacked embedding"),
}


@pytest.mark.parametrize("name", ALONE)
def test_the_probe_says_why_not_in_one_sentence(name: str) -> None:
    build, expected = ALONE[name]
    others = {"padding": tokens(70)}
    records = others.get(name, some_records(70))
    why = reason(TorchRecipe(build, batch_size=8), records)
    assert expected in why and "\n" not in why and len(why) < 300


def test_an_augmentation_that_ignores_its_generator_is_found_out() -> None:
    def careless(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.flip(1) if torch.rand(()) < 1e-4 else x

    why = reason(TorchRecipe(small_mlp, augment=careless), some_records(70))
    assert "draws random numbers" in why


class Clipped(torch.optim.SGD):
    """Clips the norm over all weights, at a height that a probe does not reach."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1e3)
        return super().step(closure)


def by_axes(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Weights decay, biases do not: in a stack a bias has two axes."""
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 1e-9},
        {"params": others},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=0.01)


@pytest.mark.parametrize("optimizer", [lambda p: Clipped(p, lr=0.01), by_axes])
def test_an_optimizer_that_could_mix_models_is_not_stacked(optimizer: Any) -> None:
    why = reason(TorchRecipe(small_mlp, optimizer=optimizer), some_records(70))
    assert "may treat a stack of weights otherwise" in why


def test_an_optimizer_of_torchs_own_is_stacked() -> None:
    recipe = TorchRecipe(small_mlp, optimizer=lambda p: torch.optim.RMSprop(p, lr=0.01))
    assert reason(recipe, some_records(70)) == ""


def test_early_stopping_and_single_models_are_trained_alone() -> None:
    recipe = TorchRecipe(small_mlp, early_stopping=EarlyStopping())
    assert "early stopping" in reason(recipe, some_records(70))
    rows = random_rows(1, 33, 70)
    plain = replace(recipe, early_stopping=None)
    assert why_alone(plain, some_records(70), rows, RecipeLoss(plain), 0) == (
        "there is only one model"
    )


def test_the_probe_leaves_generators_as_they_were() -> None:
    def states() -> tuple[bytes, str, Any]:
        return (
            bytes(torch.get_rng_state().numpy()),
            str(np.random.get_state()),
            random.getstate(),
        )

    before = states()
    for name in ("numpy randomness", "rand in forward", "python randomness"):
        reason(TorchRecipe(ALONE[name][0]), some_records(70))
    assert states() == before


# --- modules that would train otherwise in a stack than alone -------------------------------------


class Overwritten(nn.Module):
    """Writes to its activations through a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.view(-1).clamp_(min=0)
        out: Tensor = self.last(h)
        return out


def test_writes_through_a_view_are_not_lost() -> None:
    # so many records that products of few columns are taken in the other order
    recipe = TorchRecipe(lambda: Overwritten().double(), steps=10, batch_size=64)
    records = some_records(200)
    together, alone = together_and_alone(recipe, records, random_rows(3, 128, 200))
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-10


steps_taken = 0


class Counted(nn.Module):
    """A counter in a global decides what later steps do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_mlp()

    def forward(self, x: Tensor) -> Tensor:
        global steps_taken
        steps_taken += 1
        out: Tensor = self.net(x)
        return out * (0.1 if steps_taken > 1000 else 1.0)


elsewhere = np.random.default_rng(0)


class Drawing(nn.Module):
    """Noise from a generator that nobody hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out * float(elsewhere.uniform(1 - 1e-12, 1))


class Rising:
    """A loss that changes from step to step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return cross_entropy(logits, y) * (1 + self.calls // 100)


def clipped() -> nn.Module:
    net = small_mlp()
    for p in net.parameters():
        p.register_hook(lambda g: g.clamp(-1e3, 1e3))
    return net


def hooked_sgd(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    made = torch.optim.SGD(list(parameters), lr=0.1)
    made.register_step_pre_hook(
        lambda o, *_: torch.nn.utils.clip_grad_norm_(o.param_groups[0]["params"], 1e3)  # type: ignore[arg-type,return-value]
    )
    return made


def by_size(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    large = [p for p in parameters if p.numel() > 100]
    small = [p for p in parameters if p.numel() <= 100]
    groups = [{"params": large, "weight_decay": 1e-9}, {"params": small}]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=0.01)  # type: ignore[misc]


OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "global generator": ({"build": Drawing}, "depends on the steps before"),
    "global counter": ({"build": Counted}, "depends on the steps before"),
    "counter": ({"build": lambda: Counting()}, "depends on the steps before"),
    "loss with a state": ({"build": batch_norm, "loss": Rising()}, "depends on the steps before"),
    "clipped gradients": ({"build": clipped}, "a hook changes the gradient"),
    "optimizer with a hook": ({"build": small_mlp, "optimizer": hooked_sgd}, "SGD may treat"),
    "groups by size": ({"build": small_mlp, "optimizer": by_size}, "SGD may treat"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_a_probe_of_few_steps_would_not_see(name: str) -> None:
    given, why = OTHERWISE[name]
    assert why in reason(TorchRecipe(batch_size=8, **given), some_records(70))


def test_the_probe_never_raises() -> None:
    def broken(logits: Tensor, y: Tensor) -> Tensor:
        raise ValueError("not in float64")

    recipe = TorchRecipe(batch_norm, batch_size=8, loss=broken)
    assert "could not be tried in float64 (not in float64)" in reason(recipe, some_records(70))


def test_class_weights_are_no_reason_to_train_alone() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    recipe = TorchRecipe(small_mlp, batch_size=8, loss=nn.CrossEntropyLoss(weight=weights))
    assert reason(recipe, some_records(70)) == ""


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        made = functional.scaled_dot_product_attention(x, x, x, None, 0.0, True)
        out: Tensor = self.head(functional.dropout(made, 0.5, False).mean(1))
        return out


def test_what_drops_nothing_is_not_said_to_drop() -> None:
    records = some_records(70, (3, 4))
    recipe = TorchRecipe(Causal, batch_size=8)
    assert reason(recipe, records) == "" and not drops(recipe, records, seed=0)
