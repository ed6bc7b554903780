"""Handles to models: what the adversary may touch.

A `BlackBox` answers with log-probabilities and counts its queries. Whatever a handle wraps (a
torch module, a scikit-learn estimator, a table), its answers leave here checked: finite where a
probability is positive, floored where it is zero, one row a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vestige.errors import InvalidInput

__all__ = [
    "BlackBox",
    "EstimatorModel",
    "Predictions",
    "TorchModel",
    "checked_probabilities",
    "default_logits",
    "log_of_probabilities",
]

Floats = NDArray[np.float64]
Outputs = Literal["logits", "probabilities", "log_probabilities"]

# Given probabilities are floored once, here. A float32 softmax cannot say less than about 1e-45,
# but tables are often rounded to six or more digits, and below 1e-12 a zero means "not shown".
FLOOR = 1e-12


@runtime_checkable
class BlackBox(Protocol):
    """A model that can be asked."""

    @property
    def n_queries(self) -> int:
        """Records asked about so far."""
        ...

    def log_probabilities(self, x: Any) -> Floats:
        """Natural log of the class probabilities, shape (n, classes), for inputs (n, ...)."""
        ...


def default_logits(output: Any) -> Tensor:
    """The logits in a module's output: a tensor, `.logits`, `["logits"]`, or a tuple's first."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise InvalidInput(
            f"expected a tensor of logits from the module, got {type(output).__name__}; pass "
            "logits=lambda output: ... to say where they are"
        )
    return found


def inputs_tensor(x: Any, net: nn.Module, device: torch.device) -> Tensor:
    """Inputs as the module wants them: floating, in its own precision, on its device.

    Whole numbers stay so only for modules that embed them.
    """
    array = np.ascontiguousarray(x)
    # torch warns about arrays it could not write to; we never write to inputs
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    embeds = any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in net.modules())
    if array.dtype.kind != "f" and embeds:
        return tensor.to(device=device, dtype=torch.int64)
    floating = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    return tensor.to(device=device, dtype=floating)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode for every submodule, and each one's own mode restored after."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class TorchModel:
    """A torch classifier as a black box.

    Args:
        net: any module that maps a batch to logits (n, classes), or to one logit (n,) or (n, 1)
            for two classes. It is always asked in eval mode and left as it was found.
        logits: where the logits are in the module's output; see `default_logits`.
        outputs: what the module returns; "probabilities" for one that ends in a softmax (or a
            sigmoid), else its answers would silently be squashed twice.
        batch_size: records a forward pass.
        device: where to run it; by default where its parameters are. The module is not moved.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        logits: Callable[[Any], Tensor] = default_logits,
        outputs: Outputs = "logits",
        batch_size: int = 1024,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise InvalidInput(f"expected a torch module, got {type(net).__name__}")
        if outputs not in ("logits", "probabilities", "log_probabilities"):
            raise InvalidInput(
                'expected outputs to be "logits", "probabilities" or "log_probabilities", got '
                f"{outputs!r}"
            )
        self.net = net
        self.batch_size = batch_size
        self._logits = logits
        self._outputs = outputs
        self._n_queries = 0
        self.device = _device_of(net)

    @property
    def n_queries(self) -> int:
        return self._n_queries

    def log_probabilities(self, x: Any) -> Floats:
        if not len(x):
            raise InvalidInput("expected at least one record to ask about, got none")
        answers = []
        with evaluating(self.net), torch.inference_mode():
            for start in range(0, len(x), self.batch_size):
                answers.append(self._ask(x[start : start + self.batch_size]))
        self._n_queries += len(x)
        return np.concatenate(answers)

    def _ask(self, x: Any) -> Floats:
        try:
            output = self.net(inputs_tensor(x, self.net, self.device))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"expected records that the module takes, got a batch of shape {np.shape(x)} "
                f"which it refused ({str(error).splitlines()[0]}); reshape the inputs"
            ) from error
        raw = self._logits(output).detach().to("cpu", torch.float64)
        if raw.ndim == 1 or (raw.ndim == 2 and raw.shape[1] == 1):
            raw = raw.reshape(-1)
        if raw.ndim > 2 or len(raw) != len(x):
            raise InvalidInput(
                f"expected logits of shape (n, classes) or (n,) for {len(x)} records, got "
                f"{tuple(raw.shape)}; pass logits=lambda output: ... to pick them"
            )
        return _to_log_probabilities(raw, self._outputs)


def _device_of(net: nn.Module) -> torch.device:
    devices = {t.device for t in (*net.parameters(), *net.buffers())}
    if len(devices) > 1 or any(d.type == "meta" for d in devices):
        raise InvalidInput(
            f"expected a module on one device, got one on {sorted(map(str, devices))}; move it "
            'whole, for example net.to("cpu")'
        )
    return next(iter(devices), torch.device("cpu"))


def _to_log_probabilities(raw: Tensor, outputs: Outputs) -> Floats:
    if not torch.isfinite(raw).all() and not (outputs == "log_probabilities" and raw.ndim == 2):
        bad = int((~torch.isfinite(raw.reshape(len(raw), -1)).all(dim=1)).sum())
        raise InvalidInput(
            f"expected finite answers, got NaN or infinity for {bad} records; the model has "
            "diverged or its inputs are out of range"
        )
    if outputs == "logits":
        _refuse_probabilities(raw)
        if raw.ndim == 1:
            raw = torch.stack([-raw, raw], dim=1)
            return np.asarray(nn.functional.logsigmoid(raw).numpy())
        return np.asarray(torch.log_softmax(raw, dim=1).numpy())
    table = raw.exp() if outputs == "log_probabilities" else raw
    if table.ndim == 1:
        table = torch.stack([1 - table, table], dim=1)
    return log_of_probabilities(table.numpy())


def _refuse_probabilities(raw: Tensor) -> None:
    """A module that ends in a softmax would be squashed twice, and every number be off."""
    within = bool(((raw >= 0) & (raw <= 1)).all())
    if raw.ndim == 2:
        squashed = within and bool(((raw.sum(dim=1) - 1).abs() < 1e-4).all())
    else:
        squashed = within and len(raw) >= 16
    if squashed:
        raise InvalidInput(
            "expected logits from the module, got probabilities (every answer lies between 0 and "
            '1); pass outputs="probabilities"'
        )


def checked_probabilities(table: Any, what: str = "probabilities") -> Floats:
    """A table (n, classes) whose rows are probabilities, or a sentence saying what they are.

    A single column is taken as the probability of class 1.

    Raises:
        InvalidInput: wrong shape, NaN, negative values, or rows that do not sum to one.
    """
    array = np.asarray(table, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1:
        array = np.stack([1 - array, array], axis=1)
    if array.ndim != 2:
        raise InvalidInput(f"expected {what} of shape (n, classes), got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInput(f"expected finite {what}, got NaN or infinity; drop or repair the rows")
    if (array < -1e-6).any() or (array > 1 + 1e-6).any():
        raise InvalidInput(
            f"expected {what} between 0 and 1, got values from {array.min():.4g} to "
            f"{array.max():.4g}; if they are logits, give them as logits"
        )
    sums = array.sum(axis=1)
    if (np.abs(sums - 1) > 1e-3).any():
        worst = int(np.abs(sums - 1).argmax())
        raise InvalidInput(
            f"expected {what} that sum to 1 in each row, got {sums[worst]:.4g} in row {worst}; "
            "give all classes, or logits"
        )
    return array


def log_of_probabilities(table: Any, floor: float = FLOOR) -> Floats:
    """Log of checked probabilities, each floored once and the row renormalized."""
    array = np.maximum(checked_probabilities(table), floor)
    return np.asarray(np.log(array / array.sum(axis=1, keepdims=True)))


class EstimatorModel:
    """A scikit-learn classifier as a black box.

    Args:
        estimator: fitted, with `predict_proba`.
        n_classes: classes in the whole problem; by default those the estimator has seen.
        floor: smallest probability an answer is given. By default half of the estimator's own
            resolution where it counts votes (1 / (2 n_estimators) for forests and bagging, so
            that "no tree" and "one tree" are as far apart as "one" and "three"), else 1e-12.
    """

    def __init__(
        self, estimator: Any, *, n_classes: int | None = None, floor: float | None = None
    ) -> None:
        if getattr(estimator, "predict_proba", None) is None:
            raise InvalidInput(
                f"expected a fitted classifier with predict_proba, got "
                f"{type(estimator).__name__}; calibrate it (CalibratedClassifierCV) or give a "
                "table of predictions"
            )
        if getattr(estimator, "classes_", None) is None:
            raise InvalidInput(
                f"expected a fitted classifier, got a {type(estimator).__name__} that was not "
                "fitted; call fit first"
            )
        self.estimator = estimator
        self._columns = _class_columns(estimator.classes_)
        self._n_classes = max(n_classes or 0, int(self._columns.max()) + 1)
        self._floor = _vote_floor(estimator) if floor is None else floor
        self._n_queries = 0

    @property
    def n_queries(self) -> int:
        return self._n_queries

    def log_probabilities(self, x: Any) -> Floats:
        if not len(x):
            raise InvalidInput("expected at least one record to ask about, got none")
        table = np.zeros((len(x), self._n_classes))
        table[:, self._columns] = self._ask(np.asarray(x).reshape(len(x), -1))
        self._n_queries += len(x)
        return log_of_probabilities(table, self._floor)

    def _ask(self, x: NDArray[Any]) -> NDArray[Any]:
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is not None and len(names) == x.shape[1]:
            # fitted on a frame: asked with a frame, or scikit-learn warns on every call
            import pandas

            x = pandas.DataFrame(x, columns=names)
        try:
            return np.asarray(self.estimator.predict_proba(x))
        except ValueError as error:
            raise InvalidInput(
                f"expected records that the estimator takes, got shape {x.shape} which it "
                f"refused ({str(error).splitlines()[0]})"
            ) from error


def _class_columns(classes: Any) -> NDArray[np.int64]:
    """The label of each column: class numbers are themselves, names are numbered in order."""
    array = np.asarray(classes)
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and (array == np.rint(array)).all()):
        if array.min() < 0:
            raise InvalidInput(f"expected classes from 0, got {array.min()}; relabel and refit")
        return array.astype(np.int64)
    return np.arange(len(array), dtype=np.int64)


def _vote_floor(estimator: Any) -> float:
    votes = getattr(estimator, "estimators_", None)
    averages = type(estimator).__name__ in (
        "RandomForestClassifier",
        "ExtraTreesClassifier",
        "BaggingClassifier",
    )
    return 1 / (2 * len(votes)) if averages and votes is not None else FLOOR


class Predictions:
    """A table of predictions as a black box: no model, only its answers.

    A record's input is the number of its row, shape (n, 1).

    Args:
        probabilities: (n, classes) or (n,) for the probability of class 1.
        logits: (n, classes), instead of probabilities.
    """

    def __init__(self, *, probabilities: Any = None, logits: Any = None) -> None:
        if (probabilities is None) == (logits is None):
            raise InvalidInput("expected either probabilities or logits, got both or neither")
        if probabilities is not None:
            self._table = log_of_probabilities(probabilities)
        else:
            raw = torch.as_tensor(np.asarray(logits, dtype=np.float64))
            if raw.ndim == 2 and raw.shape[1] == 1:
                raw = raw.reshape(-1)
            self._table = _to_log_probabilities(raw, "logits")
        self._n_queries = 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def n_classes(self) -> int:
        return int(self._table.shape[1])

    @property
    def n_queries(self) -> int:
        return self._n_queries

    def log_probabilities(self, x: Any) -> Floats:
        rows = np.asarray(x)[:, 0]
        self._n_queries += len(rows)
        return np.asarray(self._table[rows])


def answers_alike(model: BlackBox, x: Any) -> bool:
    """Whether two identical queries get the same answer, as any model in eval mode gives."""
    first, second = model.log_probabilities(x), model.log_probabilities(x)
    return bool(np.allclose(np.exp(first), np.exp(second), rtol=0, atol=1e-5))


def as_black_box(model: Any) -> BlackBox:
    """A handle for what a user has: a handle, a torch module or a scikit-learn estimator."""
    if isinstance(model, nn.Module):
        return TorchModel(model)
    if isinstance(model, BlackBox):
        return model
    return EstimatorModel(model)


def n_classes_of(models: Sequence[BlackBox], x: Any) -> set[int]:
    """How many classes each model answers with."""
    return {model.log_probabilities(x).shape[1] for model in models}
