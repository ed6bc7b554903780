"""How a model like the target is trained.

A recipe holds hyper-parameters and fits one model from records and a seed; `train_many` fits a
pool of them. Everything random comes from the seed: initial weights, batch order, augmentation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vestige.errors import DamagedFile, InvalidInput
from vestige.fingerprint import fingerprint
from vestige.models import BlackBox, EstimatorModel, TorchModel, default_logits, named_columns
from vestige.records import Records
from vestige.training.forests import check_accelerated, fit_accelerated, fitted_by
from vestige.training.trees import are_arrays, dump_forest, load_forest

__all__ = [
    "EarlyStopping",
    "EstimatorRecipe",
    "FunctionRecipe",
    "Recipe",
    "StepDecay",
    "TorchRecipe",
    "cosine",
    "cross_entropy",
]


class Recipe(Protocol):
    """Trains a model, and writes and reads it without pickles."""

    @property
    def suffix(self) -> str:
        """The ending of a stored model's file name."""
        ...

    def fit(self, records: Records, seed: int) -> BlackBox: ...
    def key(self) -> str:
        """A digest of everything that decides what `fit` returns but the records and the seed."""
        ...

    def dumps(self, model: Any) -> bytes: ...
    def loads(self, data: bytes, name: str, n_classes: int) -> BlackBox: ...


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy; binary cross-entropy where there is one logit."""
    if logits.ndim == 1 or logits.shape[-1] == 1:
        flat = logits.reshape(-1)
        return functional.binary_cross_entropy_with_logits(flat, y.to(flat.dtype))
    return functional.cross_entropy(logits, y)


def cosine(progress: float) -> float:
    """Learning-rate factor (1 + cos(pi progress)) / 2, from 1 to 0 (Loshchilov & Hutter 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class StepDecay:
    """Learning-rate factor 1, times `factor` from each of these shares of the training on.

    Args:
        at: shares in (0, 1): of 100 epochs, 0.8 is after the 80th.
        factor: at each of them.

    >>> [round(StepDecay((0.5, 0.75))(progress), 4) for progress in (0.49, 0.5, 0.75)]
    [1.0, 0.1, 0.01]
    """

    at: tuple[float, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.at) or not 0 < self.factor < np.inf:
            raise InvalidInput(
                f"expected shares in (0, 1) and a factor above 0, got {self.at} and {self.factor}"
            )

    def __call__(self, progress: float) -> float:
        passed = sum(progress >= share for share in self.at)
        return float(self.factor**passed)


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the loss on held-out records of the model's own has not fallen for a while.

    Args:
        patience: epochs without a new best loss before stopping.
        fraction: share of the model's records held out for this; they are not trained on.
    """

    patience: int = 5
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 < self.fraction < 1:
            raise InvalidInput(
                "expected a patience of at least one epoch and a share between 0 and 1, got "
                f"patience={self.patience} and fraction={self.fraction}"
            )


@dataclass(frozen=True)
class TorchRecipe:
    """Mini-batch training of a torch module.

    Args:
        build: makes a new module; called with no arguments under the model's own seed.
        epochs: passes over the records, unless `steps` is given.
        steps: optimizer steps, instead of epochs.
        batch_size: records a step; the last batch of an epoch may be smaller.
        optimizer: "sgd", "adam", "adamw", or a function from parameters to a torch optimizer.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: torch's weight decay, w * theta added to the gradient (SGD, Adam) or
            decoupled (AdamW); an L2 penalty lambda ||theta||^2 is w = 2 lambda.
        schedule: factor on the learning rate at a progress in [0, 1), for example `cosine` or
            `StepDecay`.
        loss: mean loss of (logits, y).
        logits: where the logits are in the module's output.
        augment: (x, generator) -> x for one batch, applied in training only.
        early_stopping: see `EarlyStopping`; off by default.
        device: "cpu" or "cuda".
        precision: "float32", or "bfloat16" to take products and convolutions in 16 bits (torch's
            autocast; weights stay in 32). It is faster on hardware made for it, and another
            training program: references in bfloat16 suit a target trained so.
    """

    build: Callable[[], nn.Module]
    epochs: int = 20
    steps: int | None = None
    batch_size: int = 64
    optimizer: str | Callable[[list[Tensor]], torch.optim.Optimizer] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Callable[[float], float] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    logits: Callable[[Any], Tensor] = default_logits
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    early_stopping: EarlyStopping | None = None
    device: str = "cpu"
    precision: str = "float32"

    suffix = ".safetensors"

    def __post_init__(self) -> None:
        if isinstance(self.build, nn.Module):
            raise InvalidInput(
                "expected build to make a new module, got a module; pass a function, for example "
                "build=lambda: MyNet()"
            )
        if isinstance(self.optimizer, str) and self.optimizer not in ("sgd", "adam", "adamw"):
            raise InvalidInput(
                f'expected optimizer "sgd", "adam", "adamw" or a function, got {self.optimizer!r}'
            )
        if self.precision not in ("float32", "bfloat16"):
            raise InvalidInput(
                f'expected precision "float32" or "bfloat16", got {self.precision!r}'
            )
        counts = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        if self.steps is not None:
            counts["steps"] = self.steps
        wrong = [f"{name}={value}" for name, value in counts.items() if not value > 0]
        if wrong:
            raise InvalidInput(f"expected positive values, got {', '.join(wrong)}")

    def fit(self, records: Records, seed: int) -> TorchModel:
        """One model trained on all the records."""
        from vestige.training.fit import fit

        return fit(self, records, seed=seed)

    def key(self) -> str:
        from vestige.training.fit import built

        net = built(self, 0)
        # the classes too: a changed forward pass changes neither names nor shapes
        classes = [type(module) for module in net.modules()]
        return fingerprint([type(self).__name__, vars(self), repr(net), shapes(net), classes])

    def handle(self, net: nn.Module) -> TorchModel:
        # trained with a loss on logits, it answers with logits, whatever they look like
        known = self.loss is cross_entropy or self.loss is functional.cross_entropy
        return TorchModel(net, logits=self.logits, outputs="logits" if known else None)

    def dumps(self, model: Any) -> bytes:
        return dump_tensors(model.net)

    def loads(self, data: bytes, name: str, n_classes: int) -> TorchModel:
        from vestige.training.fit import built

        net = built(self, 0)
        load_tensors(net, data, name)
        return self.handle(net.to(self.device).eval())


def shapes(net: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(t.shape)) for name, t in tensors_of(net).items()]


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied weights once."""
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def dump_tensors(net: nn.Module) -> bytes:
    """A module's parameters and buffers as a safetensors file."""
    from safetensors.torch import save

    # copies: a buffer may be a view of a parameter
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in tensors_of(net).items()}
    return save(tensors)


def load_tensors(net: nn.Module, data: bytes, name: str) -> None:
    """Fill a module from the content of a file of this name.

    Raises:
        DamagedFile: it does not hold exactly this module's tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(data)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"expected a safetensors file, {name} is not one ({error})") from None
    own = tensors_of(net)
    same = {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in own.items()}
    if not same:
        raise DamagedFile(
            f"expected the tensors of {type(net).__name__} in {name}, got others; it was "
            "written for another architecture"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(stored[key])


@dataclass(frozen=True)
class EstimatorRecipe:
    """Training of a scikit-learn classifier: clones of it, each with its own random state.

    Args:
        estimator: unfitted or fitted; only its parameters are used.
        floor: see `EstimatorModel`.
        accelerate: fit random forests of fully grown trees by scikit-learn-intelex
            (`vestige[intelex]`), in about a third of the CPU time. They are scikit-learn's forests
            afterwards, but splits are chosen among 64 bins of a feature, so that they are not the
            very same.

    Raises:
        InvalidInput: no `predict_proba`; or to accelerate, not a random forest, or one with
            settings that scikit-learn-intelex treats otherwise.
    """

    estimator: Any
    floor: float | None = None
    accelerate: bool = False

    @property
    def suffix(self) -> str:
        return ".npz" if are_arrays(self.estimator) else ".skops"

    def __post_init__(self) -> None:
        if getattr(self.estimator, "predict_proba", None) is None:
            raise InvalidInput(
                f"expected a scikit-learn classifier with predict_proba, got "
                f"{type(self.estimator).__name__}; wrap it in CalibratedClassifierCV"
            )
        if self.accelerate:
            check_accelerated(self.estimator)

    def fit(self, records: Records, seed: int) -> EstimatorModel:
        """One clone fitted on all the records."""
        from sklearn.base import clone

        estimator = clone(self.estimator)
        named = sorted(n for n in estimator.get_params() if n.split("__")[-1] == "random_state")
        states = np.random.SeedSequence(seed).generate_state(len(named))
        estimator.set_params(**{n: int(s >> 1) for n, s in zip(named, states, strict=True)})
        x = np.asarray(records.x[:]).reshape(len(records), -1)
        columns = named_columns(x, records.columns)
        try:
            if self.accelerate:
                fit_accelerated(estimator, columns, records.y)
            else:
                estimator.fit(columns, records.y)
        except ValueError as error:
            raise InvalidInput(
                f"expected records that {type(estimator).__name__} can be trained on, got "
                f"{len(records)} of shape {x.shape[1:]} with {len(np.unique(records.y))} classes "
                f"which it refused ({str(error).splitlines()[0]})"
            ) from error
        return EstimatorModel(estimator, n_classes=records.n_classes, floor=self.floor)

    def key(self) -> str:
        by = [fitted_by()] if self.accelerate else []
        return fingerprint([type(self).__name__, self.estimator, self.floor, *by])

    def dumps(self, model: Any) -> bytes:
        write = dump_forest if are_arrays(self.estimator) else dump_estimator
        return write(model.estimator)

    def loads(self, data: bytes, name: str, n_classes: int) -> EstimatorModel:
        if are_arrays(self.estimator):
            estimator = load_forest(data, name, self.estimator)
        else:
            estimator = load_estimator(data, name, packages_of(self.estimator))
        return EstimatorModel(estimator, n_classes=n_classes, floor=self.floor)


_READABLE = frozenset({"sklearn", "numpy", "scipy"})


def packages_of(estimator: Any) -> frozenset[str]:
    """Packages that an estimator and its parts come from; never Python's own."""
    parts = [estimator, *estimator.get_params(deep=True).values()]
    owners = [p if callable(p) and isinstance(p, FunctionType) else type(p) for p in parts]
    tops = {str(owner.__module__).partition(".")[0] for owner in owners}
    return _READABLE | {top for top in tops if top not in sys.stdlib_module_names}


def dump_estimator(estimator: Any) -> bytes:
    """An estimator without a pickle.

    Raises:
        InvalidInput: it holds what skops cannot write.
    """
    from skops.io import dumps
    from skops.io.exceptions import UnsupportedTypeException

    try:
        data: bytes = dumps(estimator)
    except UnsupportedTypeException as error:
        raise InvalidInput(
            f"expected an estimator that can be stored without a pickle, got "
            f"{type(estimator).__name__} ({error}); train it without a store"
        ) from error
    return data


def load_estimator(data: bytes, name: str, packages: frozenset[str] = _READABLE) -> Any:
    """An estimator from the content of a file of this name; its types are of `packages` only.

    Raises:
        DamagedFile: not a skops file, or it names types of other packages.
    """
    from zipfile import BadZipFile

    from skops.io import get_untrusted_types, loads

    try:
        named = get_untrusted_types(data=data)
        foreign = [kind for kind in named if kind.split(".")[0] not in packages]
        if foreign:
            raise DamagedFile(
                f"expected scikit-learn objects in {name}, got {', '.join(foreign[:3])}; it "
                "was not loaded"
            )
        return loads(data, trusted=named)
    except (BadZipFile, OSError, KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"expected a skops file, {name} is not one ({error})") from None


@dataclass(frozen=True)
class FunctionRecipe:
    """Training by the user's own function.

    Args:
        train: (x, y, seed) -> a trained torch module or scikit-learn estimator.
        build: makes the untrained module that `train` fills, so that stored weights can be read
            back without pickles; needed for torch, unused for estimators.
        logits: where the logits are in a module's output.
    """

    train: Callable[[Any, Any, int], Any]
    build: Callable[[], nn.Module] | None = None
    logits: Callable[[Any], Tensor] = default_logits

    @property
    def suffix(self) -> str:
        return ".safetensors" if self.build is not None else ".skops"

    def fit(self, records: Records, seed: int) -> BlackBox:
        """One model trained by the function on all the records."""
        trained = self.train(np.asarray(records.x[:]), records.y, seed)
        if isinstance(trained, nn.Module):
            if self.build is None:
                raise InvalidInput(
                    "expected build= beside a train function that returns a torch module, so "
                    "that its weights can be stored and read back; pass build=lambda: MyNet()"
                )
            return TorchModel(trained, logits=self.logits)
        if self.build is not None:
            raise InvalidInput(
                f"expected train to return a torch module, as build= says, got "
                f"{type(trained).__name__}; leave build out for estimators"
            )
        if getattr(trained, "predict_proba", None) is None:
            raise InvalidInput(
                f"expected train to return a torch module or a fitted classifier, got "
                f"{type(trained).__name__}"
            )
        return EstimatorModel(trained, n_classes=records.n_classes)

    def key(self) -> str:
        net = self._built() if self.build is not None else nn.Identity()
        classes = [type(module) for module in net.modules()]
        return fingerprint([type(self).__name__, vars(self), repr(net), shapes(net), classes])

    def _built(self) -> nn.Module:
        from vestige.training.fit import new_module, seeded

        assert self.build is not None
        with seeded(0):
            return new_module(self.build)

    def dumps(self, model: Any) -> bytes:
        if isinstance(model, TorchModel):
            return dump_tensors(model.net)
        return dump_estimator(model.estimator)

    def loads(self, data: bytes, name: str, n_classes: int) -> BlackBox:
        if self.build is None:
            return EstimatorModel(load_estimator(data, name), n_classes=n_classes)
        net = self._built()
        load_tensors(net, data, name)
        return TorchModel(net.eval(), logits=self.logits)
