"""Recipes, one model, a whole pool."""

from vestige.training.engines import Engine, Local, Ray
from vestige.training.fit import Batch, fit, mean_gradients
from vestige.training.many import bootstraps, half_and_half, shadows, train_many
from vestige.training.networks import CNN, MLP
from vestige.training.recipe import (
    EarlyStopping,
    EstimatorRecipe,
    FunctionRecipe,
    Recipe,
    StepDecay,
    TorchRecipe,
    cosine,
    cross_entropy,
)
from vestige.training.store import Store

__all__ = [
    "CNN",
    "MLP",
    "Batch",
    "EarlyStopping",
    "Engine",
    "EstimatorRecipe",
    "FunctionRecipe",
    "Local",
    "Ray",
    "Recipe",
    "StepDecay",
    "Store",
    "TorchRecipe",
    "bootstraps",
    "cosine",
    "cross_entropy",
    "fit",
    "half_and_half",
    "mean_gradients",
    "shadows",
    "train_many",
]
