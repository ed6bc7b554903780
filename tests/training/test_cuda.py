"""Steps as CUDA graphs, and training on a GPU: what it gives is what the CPU gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import CLASSES, FEATURES, gap, random_rows, some_records
from torch import Tensor, nn

import vestige as vs
from vestige.training import CNN, MLP, TorchRecipe, cosine, cuda
from vestige.training import stacked as stacked_module

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def called(step: Callable[[], None]) -> Callable[[], None]:
    """A graph without a GPU: the step itself, which capture does not take."""
    return step


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_warms_up_a_graph_is_taken_back(optimizer: str) -> None:
    """Weights, buffers and an optimizer's moments after capture are those before it."""
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 2, (40,))
    index = [torch.randperm(40)[:n] for n in (8, 8, 5, 8, 5)]

    def trained(captured: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
        kinds: dict[str, Any] = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        }
        chosen = kinds[optimizer](net.parameters())

        def step(rows: Tensor) -> None:
            chosen.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            chosen.step()

        def state() -> Iterator[Tensor]:
            yield from net.state_dict().values()
            for own in chosen.state.values():
                yield from (t for t in own.values() if isinstance(t, Tensor))

        # state_dict makes new tensors of the same memory: ids must last
        kept = list(net.state_dict().values())

        def lasting() -> Iterator[Tensor]:
            yield from kept
            yield from list(state())[len(kept) :]

        take = cuda.Captured(step, lasting, torch.device("cpu"), called) if captured else step
        for rows in index:
            take(rows)
        return torch.cat([t.double().reshape(-1) for t in net.state_dict().values()])

    assert torch.equal(trained(captured=True), trained(captured=False))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("explicit", [True, False])
def test_captured_steps_of_a_stack_are_its_steps(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, explicit: bool
) -> None:
    from small import together_and_alone

    momentum = 0.9 if optimizer == "sgd" else 0.0
    normalized = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(FEATURES, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)
    ).double()
    build = (lambda: MLP(FEATURES, CLASSES, (5,))().double()) if explicit else normalized
    recipe = TorchRecipe(
        build, epochs=3, batch_size=8, optimizer=optimizer, lr=0.01, momentum=momentum
    )
    real, captured = stacked_module._train_captured, []

    def counted(*given: Any, **more: Any) -> None:
        captured.append(True)
        real(*given, capture=called)

    monkeypatch.setattr(stacked_module, "_can_be_captured", lambda *given: True)
    monkeypatch.setattr(stacked_module, "_train_captured", counted)
    together, alone = together_and_alone(
        recipe, some_records(70), random_rows(3, 33, 70), explicit=explicit
    )
    assert captured == [True]
    assert max(gap(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-10


def mlp() -> nn.Module:
    return MLP(FEATURES, CLASSES, (5,), "tanh")()


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("path", ["explicit", "torch.func", "one by one"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", [None, cosine])
def test_a_gpu_trains_what_a_cpu_trains(path: str, optimizer: str, schedule: Any) -> None:
    build = mlp if path == "explicit" else normalized
    recipe = TorchRecipe(
        lambda: build().double(),
        epochs=4,
        batch_size=8,
        optimizer=optimizer,
        lr=0.01,
        schedule=schedule,
    )
    member = vs.half_and_half(6, 70, seed=0)
    nets: dict[str, list[Any]] = {}
    for device in ("cpu", "cuda"):
        pool = vs.train_many(
            replace(recipe, device=device), some_records(70), member, seed=0, path=path
        )
        assert pool.provenance["path"] == path
        nets[device] = [model.net.cpu() for model in pool.models]  # type: ignore[attr-defined]
    gaps = [gap(a, b) for a, b in zip(nets["cpu"], nets["cuda"], strict=True)]
    assert max(gaps) <= 1e-9


@GPU
@pytest.mark.gpu
def test_a_gpu_stacks_many_models_and_convolutions() -> None:
    records = some_records(70, (1, 8, 8))
    recipe = TorchRecipe(CNN(1, 8, CLASSES, (2, 2), 4), epochs=2, batch_size=8, device="cuda")
    pool = vs.train_many(recipe, records, vs.half_and_half(512, 70, seed=0), seed=0)
    assert pool.provenance["path"] == "torch.func"
    answers = pool.signals(vs.signals.cross_entropy_loss, records)
    assert answers.shape == (512, 70) and np.isfinite(answers).all()


@GPU
@pytest.mark.gpu
def test_half_precision_on_a_gpu_learns() -> None:
    recipe = TorchRecipe(mlp, epochs=30, batch_size=8, device="cuda", precision="bfloat16")
    model = recipe.fit(some_records(70), seed=0)
    right = model.log_probabilities(some_records(70).x).argmax(1) == some_records(70).y
    assert right.mean() > 0.6
