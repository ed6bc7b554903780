"""Small networks for tables and pictures; builders that a recipe can call and a store can name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["CNN", "MLP", "VGG", "ResNet", "Residual"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MLP:
    """Fully connected layers on the flattened record.

    Args:
        inputs: features of a record.
        classes: logits.
        hidden: widths of the hidden layers.
        activation: "relu" or "tanh".
        dropout: share of the units of each hidden layer that a training step leaves out.
    """

    inputs: int
    classes: int
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    dropout: float = 0.0

    def __call__(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = self.inputs
        for units in self.hidden:
            layers += [nn.Linear(width, units), _ACTIVATIONS[self.activation]()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            width = units
        return nn.Sequential(*layers, nn.Linear(width, self.classes))


@dataclass(frozen=True)
class CNN:
    """Two convolutions with max-pooling and a fully connected layer (Shokri et al. 2017, VI-C).

    Args:
        channels: of the input, shape (channels, size, size).
        size: height and width of the input.
        classes: logits.
        filters: of the two convolutions, 5x5.
        units: of the fully connected layer.
        dropout: share of these units that a training step leaves out.
    """

    channels: int
    size: int
    classes: int
    filters: tuple[int, int] = (16, 32)
    units: int = 128
    dropout: float = 0.0

    def __call__(self) -> nn.Module:
        first, second = self.filters
        return nn.Sequential(
            nn.Conv2d(self.channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (self.size // 4) ** 2, self.units),
            nn.ReLU(),
            *([nn.Dropout(self.dropout)] if self.dropout else []),
            nn.Linear(self.units, self.classes),
        )


@dataclass(frozen=True)
class VGG:
    """Seven 3x3 convolutions with batch normalization in three stages, and an output layer.

    The paper says "9-layer VGG style" and no more: 64, 64, pool, 128, 128, pool, 256, 256, 256,
    pool is our reading.

    Args:
        channels: of the input, shape (channels, size, size).
        size: height and width of the input, at least 8.
        classes: logits.
        widths: filters of the stages.
    """

    channels: int
    size: int
    classes: int
    widths: tuple[int, ...] = (64, 128, 256)

    def __call__(self) -> nn.Module:
        layers: list[nn.Module] = []
        width = self.channels
        for filters, depth in zip(self.widths, (2, 2, 3), strict=True):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(width, filters, 3, padding=1, bias=False),
                    nn.BatchNorm2d(filters),
                    nn.ReLU(),
                ]
                width = filters
            layers.append(nn.MaxPool2d(2))
        features = width * (self.size // 8) ** 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, self.classes))


@dataclass(frozen=True)
class ResNet:
    """A residual network for small pictures: 6 blocks + 2 layers, 32 with five blocks a stage.

    Source: He, Zhang, Ren, Sun 2016, section 4.2; shortcuts between stages are 1x1 convolutions.

    Args:
        channels: of the input.
        classes: logits.
        widths: filters of the three stages.
        blocks: in each stage, of two convolutions each.
    """

    channels: int
    classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 5

    def __call__(self) -> nn.Module:
        width = self.widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(self.channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(),
        ]  # fmt: skip
        for stage, filters in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                layers += [Residual(width, filters, stride), nn.ReLU()]
                width = filters
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, self.classes)]
        return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    """Two convolutions and a shortcut, summed; the activation comes after."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = nn.Sequential()
        if inputs != filters or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.body(x) + self.shortcut(x))
