"""Small networks and records for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vestige.records import Records
from vestige.training import MLP
from vestige.training.fit import RecipeLoss, Resident, Streams, built, seeded, train
from vestige.training.recipe import TorchRecipe, tensors_of
from vestige.training.stacked import fit_stack, plain

FEATURES, CLASSES = 6, 3


def some_records(n: int, shape: tuple[int, ...] = (FEATURES,), seed: int = 0) -> Records:
    """float64 inputs whose label can be learned in part."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    x = rng.normal(size=(n, *shape)) + y.reshape(n, *[1] * len(shape))
    return Records.from_arrays(x, y, ids=np.arange(n) + 100)


def double_mlp() -> nn.Module:
    return MLP(FEATURES, CLASSES, hidden=(5,), activation="tanh")().double()


def small_mlp() -> nn.Module:
    return MLP(FEATURES, CLASSES, hidden=(5,))()


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors_of(net).items()}


def gap(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between two modules' parameters and buffers."""
    left, right = state(a), state(b)
    assert left.keys() == right.keys()
    differences = [float((left[n].double() - right[n].double()).abs().max()) for n in left]
    assert np.isfinite(differences).all()
    return max(differences)


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    left, right = state(a), state(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def together_and_alone(
    recipe: TorchRecipe,
    records: Records,
    rows: NDArray[np.int64],
    seed: int = 5,
    *,
    explicit: bool = False,
) -> tuple[list[nn.Module], list[nn.Module]]:
    """The same models as one stack, and each by itself."""
    objective = RecipeLoss(recipe)
    sides: list[list[nn.Module]] = []
    for stacked in (True, False):
        streams = [Streams.of(seed + k) for k in range(len(rows))]
        nets = [built(recipe, s.initial) for s in streams]
        data = Resident(records, nets[0], recipe.device)
        if stacked:
            layers = plain(recipe, nets[0]) if explicit else None
            assert (layers is not None) == explicit
            fit_stack(recipe, data, nets, rows, streams, objective, layers)
        else:
            for net, own, s in zip(nets, rows, streams, strict=True):
                with seeded(s.noise):
                    train(recipe, net, data, own, s, objective)
        sides.append(nets)
    return sides[0], sides[1]


def random_rows(n_models: int, n_each: int, n: int, seed: int = 1) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.stack([np.sort(rng.permutation(n)[:n_each]) for _ in range(n_models)])


@dataclass(frozen=True)
class Answer:
    logits: Tensor


class Wrapped(nn.Module):
    """The small network with its logits in something."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = double_mlp(), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        kinds: dict[str, Any] = {
            "tensor": logits,
            "dict": {"loss": None, "logits": logits},
            "dataclass": Answer(logits),
            "tuple": (logits, x),
        }
        return kinds[self.kind]
