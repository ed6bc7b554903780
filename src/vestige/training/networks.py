"""Small networks for tables and pictures; builders that a recipe can call and a store can name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["CNN", "MLP"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MLP:
    """Fully connected layers on the flattened record.

    Args:
        inputs: features of a record.
        classes: logits.
        hidden: widths of the hidden layers.
        activation: "relu" or "tanh".
    """

    inputs: int
    classes: int
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"

    def __call__(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = self.inputs
        for units in self.hidden:
            layers += [nn.Linear(width, units), _ACTIVATIONS[self.activation]()]
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
