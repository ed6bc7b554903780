"""Handles to models: what the adversary may touch.

A `BlackBox` answers with log-probabilities and counts its queries. Whatever a handle wraps (a
torch module, a scikit-learn estimator, a table), its answers leave here checked: finite where a
probability is positive, floored where it is zero, one row a record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vestige import gradients as per_record
from vestige.errors import DamagedFile, InvalidInput, MissingExtra
from vestige.gradients import Chunk, Factored, Loss, Network, cross_entropy
from vestige.records import Records

__all__ = [
    "BlackBox",
    "EstimatorModel",
    "Predictions",
    "TorchModel",
    "WhiteBox",
    "checked_probabilities",
    "default_logits",
    "log_of_probabilities",
    "look_like_probabilities",
    "rounding_of",
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


@runtime_checkable
class WhiteBox(BlackBox, Protocol):
    """A model that can be looked into; its layers are named as in `net.named_modules()`."""

    def activations(self, x: Any, layer: str | None = None) -> NDArray[Any]:
        """Outputs (n, ...) of a layer for inputs (n, ...)."""
        ...

    def gradients(self, records: Records, layers: Sequence[str] | None = None) -> Iterator[Chunk]:
        """The gradient of each record's loss by the layers' parameters, in chunks of records.

        A chunk holds the next records, in order, and has for each layer a pair (delta, a) where it
        is fully connected, else arrays (n, *shape) by the names of its parameters.
        """
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
    """A torch classifier as a black box, and as a white one.

    Args:
        net: any module that maps a batch to logits (n, classes), or to one logit (n,) or (n, 1)
            for two classes. It is always asked in eval mode and left as it was found.
        logits: where the logits are in the module's output; see `default_logits`.
        outputs: what the module returns: "logits", "probabilities" for one that ends in a softmax
            (or a sigmoid), or "log_probabilities". By default logits, and answers that look like
            probabilities are refused, since they would silently be squashed twice.
        batch_size: records a forward pass.

    It runs where its parameters are; the module is not moved.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        logits: Callable[[Any], Tensor] = default_logits,
        outputs: Outputs | None = None,
        batch_size: int = 1024,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise InvalidInput(f"expected a torch module, got {type(net).__name__}")
        if outputs not in (None, "logits", "probabilities", "log_probabilities"):
            raise InvalidInput(
                'expected outputs to be "logits", "probabilities" or "log_probabilities", got '
                f"{outputs!r}"
            )
        if batch_size < 1:
            raise InvalidInput(f"expected batch_size >= 1, got {batch_size}")
        self.net = net
        self.batch_size = batch_size
        self.logits = logits
        self.outputs = outputs
        self._n_queries = 0
        _device_of(net)

    @property
    def n_queries(self) -> int:
        return self._n_queries

    def log_probabilities(self, x: Any) -> Floats:
        if not len(x):
            raise InvalidInput("expected at least one record to ask about, got none")
        device, answers = _device_of(self.net), []
        with evaluating(self.net), torch.inference_mode():
            for start in range(0, len(x), self.batch_size):
                answers.append(self._ask(x[start : start + self.batch_size], device))
        # what the answers look like is judged over all of them, whatever the batches were
        raw = _joined(answers)
        table = _to_log_probabilities(raw.to(torch.float64), self.outputs, rounding_of(raw))
        self._n_queries += len(x)
        return table

    def activations(self, x: Any, layer: str | None = None) -> NDArray[Any]:
        """Outputs (n, ...) of a layer for inputs (n, ...), in the module's precision.

        Args:
            layer: its name in `net.named_modules()`; by default the last `nn.Linear` that the
                forward pass runs.

        Raises:
            InvalidInput: no layer of this name, or it does not answer once with n rows.
        """
        found = per_record.activations(self._checked(x), x, layer)
        self._n_queries += len(x)
        return found

    def gradients(
        self,
        records: Records,
        layers: Sequence[str] | None = None,
        *,
        loss: Loss = cross_entropy,
    ) -> Iterator[Chunk]:
        """The gradient of each record's loss by the layers' parameters, in chunks of records.

        Args:
            records: in memory or memory-mapped; read a chunk at a time.
            layers: names in `net.named_modules()`; by default the last `nn.Linear` that the
                forward pass runs.
            loss: (logits (n, classes) or (n,), labels (n,)) -> (n,).

        Returns:
            chunks of the next records, in order: for each layer `Factored` where it is an
            `nn.Linear` whose weights are its own, else arrays (n, *shape) by the names of its
            parameters. What is computed in full comes in chunks that take about 64 MiB, copies
            and activations included (on a GPU a quarter of its free memory), or one record's.

        Raises:
            InvalidInput: unknown layers, labels that are no class of the model, a loss that
                averages, values that are not finite.
        """
        return self._counted(per_record.stream(self._network(records), records, layers, loss))

    def factored_gradients(
        self,
        records: Records,
        layer: str | None = None,
        *,
        loss: Loss = cross_entropy,
        out: Factored | None = None,
    ) -> Factored:
        """The pairs (delta, a) of one fully connected layer for all records, in one pair of arrays.

        Args:
            layer: by default the last `nn.Linear` that the forward pass runs.
            out: arrays to fill, for example memory maps; by default they are made.

        Raises:
            InvalidInput: see `gradients`; or the layer's gradients have no factors.
        """
        if layer is not None and not isinstance(layer, str):
            raise InvalidInput(
                f"expected the name of one layer, got {layer!r}; ask for each by itself, or use "
                "gradients(records, layers)"
            )
        for part, found in per_record.factored(self._network(records), records, layer, loss, out):
            self._n_queries += part.stop - part.start
            out = found
        assert out is not None
        return out

    def gradient_norms(
        self,
        records: Records,
        layers: Sequence[str] | None = None,
        *,
        loss: Loss = cross_entropy,
    ) -> Floats:
        """The Euclidean norm of each record's gradient, shape (n,), in chunks as `gradients`.

        Fully connected layers, also those inside the chosen ones, need no gradient for it.

        Args:
            layers: names in `net.named_modules()`; by default all parameters, frozen ones too.
        """
        norms = np.empty(len(records))
        for part, values in per_record.norms(self._network(records), records, layers, loss):
            norms[part] = values
            self._n_queries += len(values)
        return norms

    def _counted(self, chunks: Iterator[tuple[slice, Chunk]]) -> Iterator[Chunk]:
        for part, chunk in chunks:
            self._n_queries += part.stop - part.start
            yield chunk

    def _network(self, records: Records) -> Network:
        if not isinstance(records, Records):
            raise InvalidInput(
                f"expected Records, whose labels a gradient needs, got {type(records).__name__}; "
                "give Records.from_arrays(x, y)"
            )
        return self._checked(records.x)

    def _checked(self, x: Any) -> Network:
        """What the gradients need to know, once the first answers look like what they should."""
        device = _device_of(self.net)
        if len(x):
            with evaluating(self.net), torch.inference_mode():
                raw = self._ask(x[: min(64, self.batch_size)], device)
            _to_log_probabilities(raw.to(torch.float64), self.outputs, rounding_of(raw))
        return Network(
            self.net,
            lambda x: inputs_tensor(x, self.net, device),
            self._differentiable_logits,
            self.batch_size,
        )

    def _differentiable_logits(self, output: Any, n: int) -> Tensor:
        """Logits (n, classes) or (n,), whatever the module returns, with their graph."""
        raw = self.logits(output)
        if raw.ndim == 1 and n == 1 and len(raw) > 1:
            raw = raw[None]  # of a module that squeezes a batch of one record
        if raw.ndim == 1 or raw.shape in ((), (n, 1)):
            raw = raw.reshape(-1)
        if raw.ndim not in (1, 2) or len(raw) != n:
            raise InvalidInput(
                f"expected logits of shape (n, classes) or (n,) for {n} records, got "
                f"{tuple(raw.shape)}; pass logits=lambda output: ... to pick them"
            )
        if self.outputs == "probabilities":
            return torch.logit(raw) if raw.ndim == 1 else raw.log()
        if self.outputs == "log_probabilities" and raw.ndim == 1:
            return raw - torch.log(-torch.expm1(raw))
        return raw

    def _ask(self, x: Any, device: torch.device) -> Tensor:
        """Answers (n, classes), or (n,) where there is one logit, on the CPU."""
        try:
            raw = self.logits(self.net(inputs_tensor(x, self.net, device)))
        except InvalidInput:
            raise
        except Exception as error:  # a module's code may raise anything
            raise InvalidInput(
                f"expected records that the module takes, got a batch of shape {np.shape(x)} "
                f"which it refused ({first_line(error)}); reshape the inputs"
            ) from error
        if not isinstance(raw, Tensor):
            raise InvalidInput(
                f"expected a tensor from logits=, got {type(raw).__name__}; return the logits"
            )
        raw = raw.detach().cpu()
        # one logit, also of a module that squeezes a batch of one record to a scalar
        if raw.ndim == 1 or raw.shape in ((), (len(x), 1)):
            raw = raw.reshape(-1)
        if raw.ndim > 2 or len(raw) != len(x) or not raw.numel():
            raise InvalidInput(
                f"expected logits of shape (n, classes) or (n,) for {len(x)} records, got "
                f"{tuple(raw.shape)}; pass logits=lambda output: ... to pick them"
            )
        return raw


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_pickled_weights(net: nn.Module, path: Path) -> None:
    """Fill a module from a file of `torch.save(net.state_dict())`; opening it can run any program.

    Raises:
        DamagedFile: it holds no state dict of this module.
    """
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=False))
    except Exception as error:  # unpickling raises whatever the file says
        raise DamagedFile(
            f"expected a state dict of the network in {path.name}, but {first_line(error)}; write "
            "it with torch.save(net.state_dict(), path)"
        ) from None


def _joined(answers: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(a.shape[1:]) for a in answers})
    if len(shapes) > 1:
        raise InvalidInput(
            f"expected as many logits for each batch, got rows of shape {shapes[0]} and "
            f"{shapes[1]}; pass logits=lambda output: ... to pick them"
        )
    return torch.cat(list(answers))


def rounding_of(raw: Tensor) -> float:
    """By how much a row of probabilities of this type may miss 1."""
    return 4 * torch.finfo(raw.dtype).eps if raw.is_floating_point() else 0.0


def _device_of(net: nn.Module) -> torch.device:
    devices = {t.device for t in (*net.parameters(), *net.buffers())}
    if len(devices) > 1 or any(d.type == "meta" for d in devices):
        raise InvalidInput(
            f"expected a module on one device, got one on {sorted(map(str, devices))}; move it "
            'whole, for example net.to("cpu")'
        )
    return next(iter(devices), torch.device("cpu"))


def _to_log_probabilities(raw: Tensor, outputs: Outputs | None, rounding: float = 0.0) -> Floats:
    if outputs == "log_probabilities":
        return _of_log_probabilities(raw, rounding)
    if not torch.isfinite(raw).all():
        bad = int((~torch.isfinite(raw.reshape(len(raw), -1)).all(dim=1)).sum())
        raise InvalidInput(
            f"expected finite answers, got NaN or infinity for {bad} records; the model has "
            "diverged or its inputs are out of range"
        )
    if outputs == "probabilities":
        table = checked_probabilities(raw.numpy(), tolerance=max(1e-3, rounding))
        return _floored(table, FLOOR)
    if outputs is None and look_like_probabilities(raw, max(1e-4, rounding)):
        raise InvalidInput(
            "expected logits from the module, got probabilities (every answer lies between 0 and "
            '1); pass outputs="probabilities", or outputs="logits" if you are sure that they are'
        )
    return _normalized(raw)


def _normalized(raw: Tensor) -> Floats:
    if raw.ndim == 1:
        return np.asarray(nn.functional.logsigmoid(torch.stack([-raw, raw], dim=1)).numpy())
    # not log_softmax: of a confident answer it keeps no digits below 1e-16, and losses would tie
    gap = raw - raw.amax(dim=1, keepdim=True)
    top = raw.argmax(dim=1, keepdim=True)
    rest = gap.exp().scatter(1, top, 0.0).sum(dim=1, keepdim=True)
    return np.asarray((gap - torch.log1p(rest)).numpy())


def _of_log_probabilities(raw: Tensor, rounding: float) -> Floats:
    """Log-probabilities as they are, not cut at the floor, once they are sure to be some."""
    table = raw.exp()
    if raw.ndim == 1:
        raw = torch.stack([torch.log(-torch.expm1(raw)), raw], dim=1)
        table = raw.exp()
    what = "log_probabilities whose exponentials are"
    checked_probabilities(table.numpy(), what, tolerance=max(1e-3, rounding))
    # a probability of zero: as unlikely as can be said without changing the order in its row
    least = torch.where(torch.isinf(raw), math.inf, raw).amin(dim=1, keepdim=True)
    lowest = torch.clamp(least, max=math.log(FLOOR))
    return _normalized(torch.where(torch.isinf(raw), lowest, raw))


def look_like_probabilities(raw: Tensor, tolerance: float = 1e-4) -> bool:
    """A module that ends in a softmax would be squashed twice, and every number be off."""
    within = len(raw) > 0 and bool(((raw >= 0) & (raw <= 1)).all())
    if raw.ndim == 2:
        return within and bool(((raw.sum(dim=1) - 1).abs() < tolerance).all())
    return within and len(raw) >= 16


def checked_probabilities(
    table: Any, what: str = "probabilities", *, tolerance: float = 1e-3
) -> Floats:
    """A table (n, classes) whose rows are probabilities, or a sentence saying what they are.

    A single column is taken as the probability of class 1.

    Args:
        tolerance: by how much the sum of a row may miss 1.

    Raises:
        InvalidInput: wrong shape, NaN, negative values, or rows that do not sum to one.
    """
    array = _numbers(table, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1:
        array = np.stack([1 - array, array], axis=1)
    if array.ndim != 2:
        raise InvalidInput(f"expected {what} of shape (n, classes), got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInput(f"expected finite {what}, got NaN or infinity; drop or repair the rows")
    if (array < -1e-6).any() or (array > 1 + tolerance).any():
        raise InvalidInput(
            f"expected {what} between 0 and 1, got values from {array.min():.4g} to "
            f"{array.max():.4g}; if they are logits, give them as logits"
        )
    sums = array.sum(axis=1)
    if (np.abs(sums - 1) > tolerance).any():
        worst = int(np.abs(sums - 1).argmax())
        raise InvalidInput(
            f"expected {what} that sum to 1 in each row, got {sums[worst]:.4g} in row {worst}; "
            "give all classes, or logits"
        )
    return array


def _numbers(table: Any, what: str) -> Floats:
    try:
        return np.asarray(table, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"expected {what} as an array of numbers, got something else ({first_line(error)})"
        ) from None


def log_of_probabilities(table: Any, floor: float = FLOOR) -> Floats:
    """Log of checked probabilities, normalized; zeros are raised to the floor."""
    return _floored(checked_probabilities(table), floor)


def _floored(table: Floats, floor: float) -> Floats:
    """Logs of probabilities whose zeros, and only they, are raised.

    The largest of a row is taken as one minus the others: near 1 it has no digits left to say by
    how much it misses it, and they do.
    """
    least = np.minimum(floor, np.where(table > 0, table, np.inf).min(axis=1, keepdims=True))
    array = np.where(table > 0, table, least)
    logs = np.log(array / array.sum(axis=1, keepdims=True))
    top = array.argmax(axis=1)[:, None]
    largest = np.take_along_axis(array, top, axis=1)
    np.put_along_axis(array, top, 0.0, axis=1)
    rest = array.sum(axis=1, keepdims=True)
    # others are normalized, so that their largest stays the largest
    exact = (rest < 0.5) & (np.abs(1 - rest - largest) <= 1e-6 * largest)
    np.put_along_axis(array, top, 1.0, axis=1)
    sharp = np.log(array)
    np.put_along_axis(sharp, top, np.log1p(-np.minimum(rest, 0.5)), axis=1)
    return np.asarray(np.where(exact, sharp, logs))


class EstimatorModel:
    """A scikit-learn classifier as a black box.

    Args:
        estimator: fitted, with `predict_proba`.
        n_classes: classes in the whole problem; by default those the estimator has seen.
        floor: added to every probability, which is then normalized. By default half a vote where
            the estimator counts votes (1 / (2 n_estimators) for forests and bagging: the estimate
            of Krichevsky & Trofimov 1981); else nothing is added, and zeros become 1e-12.
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
        # an estimator that has seen class 0 alone still answers for two
        self._n_classes = max(n_classes or 0, int(self._columns.max()) + 1, 2)
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
        if self._floor is None:
            return log_of_probabilities(table)
        # the same for every class and record: no two records change places
        table = checked_probabilities(table) + self._floor
        return np.asarray(np.log(table / table.sum(axis=1, keepdims=True)))

    def same_meaning(self, records: Records) -> None:
        """Nothing, where the records' classes and columns are in the estimator's order.

        Raises:
            InvalidInput: a number or a column means one thing here and another there.
        """
        classes = np.asarray(self.estimator.classes_)
        own = tuple(str(c) for c in classes) if classes.dtype.kind in "OUS" else ()
        names = getattr(self.estimator, "feature_names_in_", None)
        columns = () if names is None else tuple(str(n) for n in names)
        for what, mine, theirs in (
            ("classes", own, records.classes),
            ("columns", columns, records.columns),
        ):
            if mine and theirs and mine != theirs:
                raise InvalidInput(
                    f"expected the estimator's {what} {_listed(mine)}, got {_listed(theirs)}; give "
                    f"the {what} the estimator was fitted with, in their order"
                )

    def _ask(self, x: NDArray[Any]) -> NDArray[Any]:
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is not None and len(names) == x.shape[1]:
            # fitted on a frame: asked with a frame, or scikit-learn warns on every call
            x = named_columns(x, names)
        try:
            return np.asarray(self.estimator.predict_proba(x))
        except ValueError as error:
            raise InvalidInput(
                f"expected records that the estimator takes, got shape {x.shape} which it "
                f"refused ({first_line(error)}); reshape or encode the inputs"
            ) from error


def named_columns(x: NDArray[Any], names: Sequence[str]) -> Any:
    """Rows as a frame with these columns, for what picks columns by name; without names as is.

    Raises:
        MissingExtra: there are names, and no pandas.
    """
    if not len(names):
        return x
    try:
        import pandas
    except ImportError:
        raise MissingExtra(
            "expected pandas, which records with named columns need; run `pip install pandas`"
        ) from None
    return pandas.DataFrame(x, columns=list(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _class_columns(classes: Any) -> NDArray[np.int64]:
    """The label of each column: class numbers are themselves, names are numbered in order."""
    array = np.asarray(classes)
    if array.ndim != 1 or not len(array):
        raise InvalidInput(
            "expected an estimator of one label a record, got one of several; audit one at a time"
        )
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and (array == np.rint(array)).all()):
        if array.min() < 0:
            raise InvalidInput(f"expected classes from 0, got {array.min()}; relabel and refit")
        return array.astype(np.int64)
    return np.arange(len(array), dtype=np.int64)


def _vote_floor(estimator: Any) -> float | None:
    votes = getattr(estimator, "estimators_", None)
    averages = type(estimator).__name__ in (
        "RandomForestClassifier",
        "ExtraTreesClassifier",
        "BaggingClassifier",
    )
    return 1 / (2 * len(votes)) if averages and votes is not None else None


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
            raw = torch.as_tensor(_numbers(logits, "logits"))
            if raw.ndim == 2 and raw.shape[1] == 1:
                raw = raw.reshape(-1)
            if raw.ndim not in (1, 2):
                raise InvalidInput(f"expected logits of shape (n, classes), got {tuple(raw.shape)}")
            if look_like_probabilities(raw):
                raise InvalidInput(
                    "expected logits, got probabilities (every answer lies between 0 and 1); give "
                    "them as probabilities"
                )
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
        rows = np.asarray(x)
        whole = rows.ndim == 2 and rows.shape[1] == 1 and rows.dtype.kind in "iu"
        if not whole or (len(rows) and not 0 <= rows.min() <= rows.max() < len(self)):
            raise InvalidInput(
                f"expected row numbers of shape (n, 1) below {len(self)} to look predictions up, "
                f"got {rows.dtype} of shape {rows.shape}; a table has answers for its own records "
                "only, in their order"
            )
        self._n_queries += len(rows)
        return np.asarray(self._table[rows[:, 0]])


def answers_alike(model: BlackBox, x: Any) -> bool:
    """Whether two identical queries get the same answer, as any model in eval mode gives."""
    first, second = model.log_probabilities(x), model.log_probabilities(x)
    return bool(np.allclose(np.exp(first), np.exp(second), rtol=0, atol=1e-5))


def as_black_box(model: Any, n_classes: int | None = None) -> BlackBox:
    """A handle for what a user has: a handle, a torch module or a scikit-learn estimator.

    Args:
        n_classes: of the whole problem, for an estimator that has not seen all of them.
    """
    if isinstance(model, nn.Module):
        return TorchModel(model)
    if isinstance(model, BlackBox):
        return model
    if isinstance(model, str):
        raise InvalidInput(
            "expected a model, got text; vestige.remote.RemoteModel(url) is a model behind an "
            "address, and a file is loaded before"
        )
    return EstimatorModel(model, n_classes=n_classes)
