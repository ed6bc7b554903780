"""One model: a plain loop as oracle, the seams, early stopping, and what is left untouched."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import CLASSES, FEATURES, Wrapped, double_mlp, gap, same_bits, small_mlp, some_records
from torch import Tensor, nn
from torch.nn import functional

from vestige.errors import InvalidInput
from vestige.records import Records
from vestige.training import Batch, EarlyStopping, TorchRecipe, cosine, fit, mean_gradients
from vestige.training.fit import Objective, Streams, assign, epoch_bounds
from vestige.training.recipe import cross_entropy


def plain_loop(
    records: Records,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    build: Callable[[], nn.Module] = double_mlp,
    factor: Callable[[float], float] = lambda progress: 1.0,
) -> nn.Module:
    """What everyone writes: nothing of the package but where the random numbers come from."""
    streams = Streams.of(seed)
    torch.manual_seed(streams.initial)
    net = build()
    steps = optimizer(net.parameters())
    rates = [group["lr"] for group in steps.param_groups]
    dtype = next(net.parameters()).dtype
    x, y = torch.tensor(records.x, dtype=dtype), torch.tensor(records.y)
    n, step = len(records), 0
    total = epochs * -(-n // batch_size)
    net.train()
    for _ in range(epochs):
        order = streams.order.permutation(n)
        for start in range(0, n, batch_size):
            rows = order[start : start + batch_size]
            for group, rate in zip(steps.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step / total)
            steps.zero_grad()
            torch.autograd.backward(functional.cross_entropy(net(x[rows]), y[rows]))
            steps.step()
            step += 1
    return net.eval()


# --- the same as a plain loop ------------------------------------------------------------------


OPTIMIZERS: list[tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = [
    ({"optimizer": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1, foreach=False)),
    (
        {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    ),
    (
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=False),
    ),
    (
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    ),
    (
        {"optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01)},
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ),
]


@pytest.mark.parametrize("case", range(len(OPTIMIZERS)))
@pytest.mark.parametrize("schedule", [None, cosine])
def test_equals_a_plain_loop(case: int, schedule: Callable[[float], float] | None) -> None:
    options, optimizer = OPTIMIZERS[case]
    records = some_records(50)
    recipe = TorchRecipe(double_mlp, epochs=4, batch_size=16, schedule=schedule, **options)
    factor = schedule or (lambda progress: 1.0)
    expected = plain_loop(records, optimizer, seed=3, epochs=4, batch_size=16, factor=factor)
    assert gap(fit(recipe, records, seed=3).net, expected) < 1e-12
    assert gap(fit(recipe, records, seed=4).net, expected) > 1e-3


def test_cosine_falls_from_one_to_zero() -> None:
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_batch_normalization_equals_a_plain_loop_buffers_too() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES)
        ).double()

    records = some_records(40)
    recipe = TorchRecipe(build, epochs=3, batch_size=8)
    expected = plain_loop(
        records, lambda p: torch.optim.SGD(p, lr=0.1), seed=1, epochs=3, batch_size=8, build=build
    )
    assert gap(fit(recipe, records, seed=1).net, expected) < 1e-12


def test_a_transposed_gradient_reaches_the_right_weights() -> None:
    # Fused optimizers walk the memory of weight and gradient in step, whatever their strides;
    # autograd.grad returns a linear layer's weight gradient transposed.
    weight = torch.zeros(2, 3, requires_grad=True)
    gradient = torch.arange(6.0).reshape(3, 2).T
    assert gradient.stride() != weight.stride()
    assign([weight], [gradient])
    torch.optim.SGD([weight], lr=1.0, fused=True).step()
    assert torch.equal(weight.detach(), -gradient)


# --- batches and steps -------------------------------------------------------------------------


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert epoch_bounds(33, 16) == [(0, 16), (16, 33)]
    assert epoch_bounds(34, 16) == [(0, 16), (16, 32), (32, 34)]
    assert epoch_bounds(1, 16) == [(0, 1)]
    assert epoch_bounds(3, 1) == [(0, 1), (1, 3)]


def batches_seen(recipe: TorchRecipe, n: int) -> list[list[int]]:
    seen: list[list[int]] = []

    def noting(net: Any, batch: Batch) -> Tensor:
        seen.append(batch.x[:, 0].int().tolist())
        return cross_entropy(net(batch.x), batch.y)

    x = np.zeros((n, FEATURES))
    x[:, 0] = np.arange(n)
    fit(recipe, Records.from_arrays(x, np.arange(n) % CLASSES), seed=0, objective=noting)
    return seen


def test_each_epoch_sees_every_record_once_in_another_order() -> None:
    seen = batches_seen(TorchRecipe(small_mlp, epochs=2, batch_size=4, lr=1e-6), 9)
    assert [len(batch) for batch in seen] == [4, 5, 4, 5]
    first, second = sum(seen[:2], []), sum(seen[2:], [])
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_steps_instead_of_epochs() -> None:
    recipe = TorchRecipe(small_mlp, epochs=50, steps=3, batch_size=4, lr=1e-6)
    assert len(batches_seen(recipe, 20)) == 3
    assert len(batches_seen(replace(recipe, steps=7), 8)) == 7


def test_batch_normalization_trains_where_one_record_is_left_over() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))

    fit(TorchRecipe(build, epochs=1, batch_size=8), some_records(17), seed=0)


# --- what comes out of the module --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple"])
def test_logits_are_found_in_other_outputs(kind: str) -> None:
    records = some_records(30)
    plain = fit(TorchRecipe(lambda: Wrapped("tensor"), epochs=2), records, seed=0)
    other = fit(TorchRecipe(lambda: Wrapped(kind), epochs=2), records, seed=0)
    assert same_bits(plain.net, other.net)
    answers = plain.log_probabilities(records.x)
    assert np.array_equal(other.log_probabilities(records.x), answers)


def test_logits_where_the_recipe_says() -> None:
    recipe = TorchRecipe(lambda: Wrapped("tuple"), epochs=2, logits=lambda output: output[0] * 2)
    records = some_records(30)
    model = fit(recipe, records, seed=0)
    with torch.no_grad():
        logits = 2 * model.net.net(torch.tensor(records.x))  # type: ignore[operator]
    expected = torch.log_softmax(logits, 1).numpy()
    assert np.allclose(model.log_probabilities(records.x), expected, atol=1e-12)


@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_is_binary_cross_entropy(flat: bool) -> None:
    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(FEATURES, 1)]
        return nn.Sequential(*layers, nn.Flatten(0)) if flat else nn.Sequential(*layers)

    records = some_records(60)
    binary = Records(records.ids, records.x, (records.y > 0).astype(np.int64))
    model = fit(TorchRecipe(build, epochs=20), binary, seed=0)
    answers = model.log_probabilities(binary.x)
    assert answers.shape == (60, 2)
    assert (answers.argmax(1) == binary.y).mean() > 0.8
    z, y = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1, 0, 0])
    # -log sigmoid(z) for class 1, -log sigmoid(-z) for class 0
    by_hand = np.mean([np.log1p(np.exp(-0.3)), np.log1p(np.exp(-1.2)), np.log1p(np.exp(2.0))])
    assert float(cross_entropy(z if flat else z[:, None], y)) == pytest.approx(by_hand, rel=1e-6)


# --- the seams ---------------------------------------------------------------------------------


def test_an_objective_is_what_is_minimized() -> None:
    def penalized(net: Any, batch: Batch) -> Tensor:
        squares = torch.stack([(p**2).sum() for p in net.parameters()])
        return cross_entropy(net(batch.x), batch.y) + 0.05 * squares.sum()

    records, recipe = some_records(40), TorchRecipe(double_mlp, epochs=3)
    # lambda ||theta||^2 is weight decay 2 lambda
    by_decay = fit(replace(recipe, weight_decay=0.1), records, seed=0)
    assert gap(fit(recipe, records, seed=0, objective=penalized).net, by_decay.net) < 1e-12


def test_an_objective_knows_the_step() -> None:
    steps: list[int] = []

    def noting(net: Any, batch: Batch) -> Tensor:
        steps.append(batch.step)
        return cross_entropy(net(batch.x), batch.y)

    fit(TorchRecipe(small_mlp, steps=4), some_records(20), seed=0, objective=noting)
    assert steps == [0, 1, 2, 3]


def test_gradients_are_what_is_applied() -> None:
    def halved(net: nn.Module, batch: Batch, objective: Objective) -> Sequence[Tensor]:
        return [g / 2 for g in mean_gradients(net, batch, objective)]

    records, recipe = some_records(40), TorchRecipe(double_mlp, epochs=3, lr=0.2)
    slower = fit(replace(recipe, lr=0.1), records, seed=0)
    assert gap(fit(recipe, records, seed=0, gradients=halved).net, slower.net) < 1e-12


def test_frozen_and_unused_parameters_stay() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.unused = nn.Linear(FEATURES, 4), nn.Linear(2, 2)
            self.head = nn.Linear(4, CLASSES)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.frozen(x))
            return out

    recipe = TorchRecipe(Partly, epochs=2)
    net, start = (
        fit(recipe, some_records(30), seed=0).net,
        fit(replace(recipe, lr=1e-30), some_records(30), seed=0).net,
    )
    for name, tensor in net.named_parameters():
        same = torch.equal(tensor, start.get_parameter(name))
        assert same == (not name.startswith("head")), name


# --- augmentation ------------------------------------------------------------------------------


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_augmentation_draws_from_the_models_own_seed() -> None:
    records, recipe = some_records(30), TorchRecipe(double_mlp, epochs=3, augment=noisy)
    first = fit(recipe, records, seed=0)
    torch.manual_seed(999)
    assert same_bits(first.net, fit(recipe, records, seed=0).net)
    assert not same_bits(first.net, fit(replace(recipe, augment=None), records, seed=0).net)


def test_augmentation_leaves_the_records_as_they_are() -> None:
    def wiping(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.zero_()

    records = some_records(30)
    before = records.x.copy()
    fit(TorchRecipe(double_mlp, epochs=1, augment=wiping), records, seed=0)
    assert np.array_equal(records.x, before)


# --- early stopping ----------------------------------------------------------------------------


def held_out_losses(recipe: TorchRecipe, records: Records) -> tuple[nn.Module, list[float]]:
    """The trained module, and the loss on the held-out records after each epoch."""
    losses: list[float] = []

    def noting(net: nn.Module, batch: Batch) -> Tensor:
        loss = cross_entropy(net(batch.x), batch.y)
        if not net.training:
            losses.append(float(loss))
        return loss

    return fit(recipe, records, seed=0, objective=noting).net, losses


def test_early_stopping_restores_the_best_weights() -> None:
    records = some_records(60)
    shuffled = Records(records.ids, records.x, np.random.default_rng(0).permutation(records.y))
    recipe = TorchRecipe(
        double_mlp, epochs=200, lr=0.5, batch_size=8, early_stopping=EarlyStopping(3, 0.2)
    )
    net, losses = held_out_losses(recipe, shuffled)
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 200
    assert losses[-1] > losses[best]
    n_trained = 60 - 12
    until_best = replace(recipe, epochs=best + 1, early_stopping=EarlyStopping(1000, 0.2))
    again, same = held_out_losses(until_best, shuffled)
    assert same == losses[: best + 1] and n_trained % 8 == 0
    assert same_bits(net, again)


def test_early_stopping_holds_out_records_that_are_not_trained_on() -> None:
    seen: dict[bool, set[float]] = {True: set(), False: set()}

    def noting(net: nn.Module, batch: Batch) -> Tensor:
        seen[net.training] |= set(batch.x[:, 0].tolist())
        return cross_entropy(net(batch.x), batch.y)

    recipe = TorchRecipe(double_mlp, epochs=3, early_stopping=EarlyStopping(5, 0.25))
    fit(recipe, some_records(40), seed=0, objective=noting)
    assert len(seen[True]) == 30 and len(seen[False]) == 10
    assert not seen[True] & seen[False]


def test_early_stopping_within_the_first_epoch_keeps_what_was_trained() -> None:
    recipe = TorchRecipe(
        double_mlp, steps=2, batch_size=8, lr=0.1, early_stopping=EarlyStopping(5, 0.2)
    )
    net = fit(recipe, some_records(60), seed=0).net
    start = fit(replace(recipe, lr=1e-30), some_records(60), seed=0).net
    assert gap(net, start) > 1e-3


def test_early_stopping_looks_once_more_at_the_end() -> None:
    # six steps an epoch: after the first epoch, and after half of the second
    recipe = TorchRecipe(
        double_mlp, steps=9, batch_size=8, lr=0.01, early_stopping=EarlyStopping(5, 0.2)
    )
    net, losses = held_out_losses(recipe, some_records(60))
    assert len(losses) == 2 and losses[1] < losses[0]
    assert gap(net, held_out_losses(replace(recipe, steps=6), some_records(60))[0]) > 1e-4


def test_early_stopping_restores_buffers_that_are_not_stored_too() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = double_mlp()
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls = self.calls + 1
            out: Tensor = self.net(x)
            return out

    records = some_records(60)
    recipe = TorchRecipe(
        Counting, epochs=100, lr=1.0, batch_size=8, early_stopping=EarlyStopping(2, 0.2)
    )
    net, losses = held_out_losses(recipe, records)
    assert len(losses) < 100
    assert float(net.calls) == 6 * (1 + int(np.argmin(losses)))  # type: ignore[arg-type]


# --- what is left as it was --------------------------------------------------------------------


class Drawing(nn.Module):
    """Draws from every global generator, when made and when run."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = small_mlp(), nn.Dropout(0.3)
        self.scale = float(np.random.rand()) + random.random()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.dropout(x)) * self.scale * (1 + np.random.rand())
        return out


def test_global_generators_are_untouched_and_do_not_matter() -> None:
    def states() -> tuple[bytes, Any, Any]:
        numpys = np.random.get_state()
        return bytes(torch.get_rng_state().numpy()), str(numpys), random.getstate()

    recipe, records = TorchRecipe(Drawing, epochs=2), some_records(30)
    before = states()
    first = fit(recipe, records, seed=0)
    assert states() == before
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert same_bits(first.net, fit(recipe, records, seed=0).net)
    assert first.net.scale == fit(recipe, records, seed=0).net.scale
    assert not same_bits(first.net, fit(recipe, records, seed=1).net)


def test_the_thread_count_is_one_while_training_and_restored_after() -> None:
    seen: set[int] = set()

    def noting(net: Any, batch: Batch) -> Tensor:
        seen.add(torch.get_num_threads())
        if batch.step == 2:
            raise RuntimeError("stop")
        return cross_entropy(net(batch.x), batch.y)

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="stop"):
            fit(TorchRecipe(small_mlp), some_records(300), seed=0, objective=noting)
        assert torch.get_num_threads() == 2 and seen == {1}
    finally:
        torch.set_num_threads(1)


def test_the_module_is_left_in_eval_mode() -> None:
    assert not any(
        m.training
        for m in fit(TorchRecipe(Drawing, epochs=1), some_records(9), seed=0).net.modules()
    )


# --- records of other kinds --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int16])
def test_memory_mapped_records_give_the_same_model(tmp_path: Path, dtype: Any) -> None:
    x = (np.abs(some_records(40).x) * 20).astype(dtype)
    y = some_records(40).y
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    recipe = TorchRecipe(small_mlp, epochs=2, lr=0.001)
    model = fit(recipe, Records.from_arrays(x, y), seed=0)
    assert same_bits(model.net, fit(recipe, Records.from_arrays(mapped, y), seed=0).net)
    rows = np.arange(0, 40, 3)
    half = fit(recipe, Records.from_arrays(x, y)[rows], seed=0)
    assert same_bits(half.net, fit(recipe, Records.from_arrays(mapped, y)[rows], seed=0).net)


def test_whole_numbers_reach_an_embedding_as_they_are() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(3 * 4, CLASSES))

    x = np.random.default_rng(0).integers(0, 7, (30, 4))
    for dtype in (np.int64, np.uint8):
        records = Records.from_arrays(x.astype(dtype), np.arange(30) % CLASSES)
        model = fit(TorchRecipe(build, epochs=1), records, seed=0)
        assert model.log_probabilities(records.x).shape == (30, CLASSES)


# --- refusals ----------------------------------------------------------------------------------


def test_divergence_is_one_sentence() -> None:
    recipe = TorchRecipe(small_mlp, epochs=30, lr=1e30)
    with pytest.raises(InvalidInput, match="expected training to converge, got NaN or infinite"):
        fit(recipe, some_records(30), seed=0)
    early = replace(recipe, early_stopping=EarlyStopping(2, 0.2))
    with pytest.raises(InvalidInput, match="expected training to converge"):
        fit(early, some_records(30), seed=0)


def test_statistics_that_became_nan_are_divergence_too() -> None:
    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_mlp()
            self.mean: Tensor
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("mask", torch.full((2,), float("-inf")))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = self.mean * float("nan")
            out: Tensor = self.net(x)
            return out

    with pytest.raises(InvalidInput, match="in mean"):
        fit(TorchRecipe(Poisoned, epochs=1), some_records(30), seed=0)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(2)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: TorchRecipe(small_mlp()), "expected build to make a new module, got a module"),
    (lambda: TorchRecipe(small_mlp, optimizer="lion"), "expected optimizer \"sgd\".*got 'lion'"),
    (lambda: TorchRecipe(small_mlp, epochs=0), "expected positive values, got epochs=0"),
    (lambda: TorchRecipe(small_mlp, steps=0), "got steps=0"),
    (lambda: TorchRecipe(small_mlp, batch_size=-1, lr=0), "got batch_size=-1, lr=0"),
    (lambda: EarlyStopping(0), "expected a patience of at least one epoch"),
    (lambda: EarlyStopping(3, 1.5), "a share between 0 and 1"),
    (lambda: fit(TorchRecipe(small_mlp), some_records(0), seed=0), "expected records to train on"),
    (
        lambda: fit(TorchRecipe(lambda: 3), some_records(9), seed=0),  # type: ignore[arg-type,return-value]
        "expected build to make a torch module, got int",
    ),
    (lambda: fit(TorchRecipe(Lazy), some_records(9), seed=0), "got lazy layers"),
    (
        lambda: fit(TorchRecipe(nn.Identity), some_records(9), seed=0),
        "expected a module with weights to train",
    ),
    (
        lambda: fit(
            TorchRecipe(small_mlp, early_stopping=EarlyStopping(1, 0.9)), some_records(1), seed=0
        ),
        "expected early stopping to leave records",
    ),
    (
        lambda: fit(
            TorchRecipe(small_mlp, loss=nn.CrossEntropyLoss(reduction="none")),
            some_records(9),
            seed=0,
        ),
        r"expected the loss of a batch to be one number, got shape \(9,\)",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refusals_are_one_sentence(case: int) -> None:
    made, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message) as caught:
        made()
    assert "\n" not in str(caught.value)
