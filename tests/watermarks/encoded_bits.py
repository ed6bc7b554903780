"""Bits of five classes, and a network that carries which of them a key chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from vestige import metrics
from vestige.records import Records
from vestige.training import MLP, TorchRecipe
from vestige.watermarks import Decoder, Key

KEY = Key.of(1)
OTHER = Key.of(2)
LAYER = "3"  # of MLP(..., (a, b)): the second hidden layer, before its activation


def bits(n: int = 3000, features: int = 100, classes: int = 5, seed: int = 0) -> Records:
    """Bits around a prototype a class, as purchases are."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(99).random((classes, features)) < 0.5
    y = rng.integers(0, classes, n)
    x = prototypes[y] ^ (rng.random((n, features)) < 0.25)
    return Records.from_arrays(x.astype(np.float32), y)


def coins(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2, n).astype(np.uint8)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(20, 4, (16, 8))()


RECIPE = TorchRecipe(
    MLP(100, 5, (64, 32)), epochs=25, batch_size=50, optimizer="sgd", lr=0.02, momentum=0.9
)


def auc(decoder: Decoder, model: Any, inside: Records, outside: Records) -> float:
    found = metrics.auc(decoder.run(model, inside).values, decoder.run(model, outside).values)
    assert found.value is not None
    return found.value


def accuracy(model: Any, records: Records) -> float:
    return float((model.log_probabilities(records.x).argmax(axis=1) == records.y).mean())
