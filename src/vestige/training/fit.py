"""One model: the objective and the gradients are its seams.

Random numbers come in three streams spawned from the model's seed (initial weights, batch order,
everything drawn while training), so that a model is the same alone and among others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vestige.errors import InvalidInput
from vestige.models import TorchModel, evaluating
from vestige.records import Records
from vestige.training.recipe import TorchRecipe, tensors_of

__all__ = ["Batch", "Gradients", "Objective", "fit", "mean_gradients"]

Index = NDArray[np.int64]

LARGEST_RESIDENT = 2**30
"""Bytes of memory-mapped records that are read once and kept; more are read as they are used."""


@dataclass(frozen=True)
class Batch:
    """One step's records.

    Attributes:
        x: (n, ...) inputs on the model's device.
        y: (n,) int64 labels.
        step: optimizer steps taken before this one.
    """

    x: Tensor
    y: Tensor
    step: int


Objective = Callable[[Any, Batch], Tensor]
Gradients = Callable[[nn.Module, Batch, Objective], Sequence[Tensor]]


def mean_gradients(net: nn.Module, batch: Batch, objective: Objective) -> Sequence[Tensor]:
    """Gradients of the objective with respect to each trained parameter."""
    loss = objective(net, batch)
    if loss.numel() != 1:
        raise InvalidInput(
            f"expected the loss of a batch to be one number, got shape {tuple(loss.shape)}; take "
            "its mean"
        )
    return torch.autograd.grad(loss, trainable(net), materialize_grads=True)


@dataclass(frozen=True)
class RecipeLoss:
    """The objective that a recipe names: its loss on its logits."""

    recipe: TorchRecipe

    def __call__(self, net: Any, batch: Batch) -> Tensor:
        return self.recipe.loss(self.recipe.logits(net(batch.x)), batch.y)


@dataclass(frozen=True)
class Streams:
    """A model's random numbers: `initial` and `noise` seed torch, `order` draws batches."""

    initial: int
    order: np.random.Generator
    noise: int

    @classmethod
    def of(cls, seed: int) -> Streams:
        if seed < 0:
            raise InvalidInput(f"expected a seed from 0, got {seed}")
        initial, order, noise = np.random.SeedSequence(seed).spawn(3)
        return cls(_word(initial), np.random.default_rng(order), _word(noise))


def _word(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: two threads on small matrices are slower than one, by up to 37x."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, NumPy and Python drawn from the seed, then put back.

    A module may draw from any of them, for its initial weights or in its forward pass.
    """
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if on_gpu else ()
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def built(recipe: TorchRecipe, seed: int) -> nn.Module:
    """A new module, its initial weights drawn from the seed; global generators are untouched."""
    with seeded(seed):
        net = new_module(recipe.build)
    if not trainable(net):
        raise InvalidInput("expected a module with weights to train, got none that take gradients")
    return net


def trainable(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def new_module(build: Callable[[], nn.Module]) -> nn.Module:
    """What build makes, if it can be trained and stored.

    Raises:
        InvalidInput: not a module, or sizes left open.
    """
    net: Any = build()
    if not isinstance(net, nn.Module):
        raise InvalidInput(f"expected build to make a torch module, got {type(net).__name__}")
    if any(is_lazy(t) for t in (*net.parameters(), *net.buffers())):
        raise InvalidInput(
            "expected a module that knows its sizes, got lazy layers; give their input sizes"
        )
    return net


class Resident:
    """Records as tensors; where they are on disk and too many, gathered batch by batch."""

    def __init__(
        self, records: Records, net: nn.Module, device: str, channels_last: bool = False
    ) -> None:
        self._device = torch.device(device)
        self._channels_last = channels_last and len(records.x.shape) == 4
        self._y = torch.from_numpy(records.y.astype(np.int64)).to(self._device)
        self._dtype = _input_dtype(records, net)
        self._x = records.x
        size = int(np.prod(records.x.shape)) * records.x.dtype.itemsize
        in_memory = type(records.x) is np.ndarray or size <= LARGEST_RESIDENT
        self._resident = torch.from_numpy(_writable(records.x[:])) if in_memory else None
        if self._resident is not None:
            # whole numbers (pixels) stay small in memory and become floating a batch at a time
            keep = self._resident.dtype in (torch.uint8, torch.int8)
            self._resident = self._resident.to(self._device, None if keep else self._dtype)
            if self._channels_last:
                # rows of a tensor of channels-last strides would be gathered element by element
                self._resident = self._resident.permute(0, 2, 3, 1).contiguous()

    @property
    def is_resident(self) -> bool:
        return self._resident is not None

    def gather(self, index: Index | Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the rows; index may have any number of dimensions."""
        flat = index.reshape(-1)
        rows = flat if isinstance(flat, Tensor) else torch.from_numpy(flat)
        rows = rows.to(self._device)
        if self._resident is not None:
            x = self._resident.index_select(0, rows)
        else:
            x = torch.from_numpy(np.ascontiguousarray(self._x[rows.cpu().numpy()]))
        x = x.to(self._device, self._dtype)
        if self._channels_last and self._resident is not None:
            x = x.permute(0, 3, 1, 2)
        elif self._channels_last:
            x = x.to(memory_format=torch.channels_last)
        y = self._y.index_select(0, rows)
        if index.ndim == 1:
            return x, y
        return x.reshape(*index.shape, *x.shape[1:]), y.reshape(index.shape)


def _writable(x: Any) -> NDArray[Any]:
    array = np.ascontiguousarray(x)
    return array if array.flags.writeable else array.copy()


def _input_dtype(records: Records, net: nn.Module) -> torch.dtype:
    embeds = any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in net.modules())
    if records.x.dtype.kind != "f" and embeds:
        return torch.int64
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)


def make_optimizer(
    recipe: TorchRecipe, parameters: list[Tensor], capturable: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused: the default Adam is a Python loop over parameters.

    Args:
        capturable: whether its steps go into a CUDA graph, the count of steps with them.
    """
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=True
        )
    if isinstance(recipe.optimizer, str):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        made: torch.optim.Optimizer = kind(
            parameters, lr=recipe.lr, weight_decay=decay, fused=True, capturable=capturable
        )
        return made
    return recipe.optimizer(parameters)


def assign(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Set each parameter's gradient, in the parameter's own memory layout.

    Fused optimizers walk both memories in step: a transposed gradient, as autograd returns for a
    linear layer's weight, would silently be applied to the wrong entries.
    """
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)


def set_rate(
    optimizer: torch.optim.Optimizer, base: list[float], recipe: TorchRecipe, progress: float
) -> None:
    if recipe.schedule is not None:
        factor = recipe.schedule(progress)
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor


def n_steps(recipe: TorchRecipe, n_records: int) -> int:
    return recipe.steps or recipe.epochs * len(epoch_bounds(n_records, recipe.batch_size))


def epoch_bounds(n_records: int, batch_size: int) -> list[tuple[int, int]]:
    """Where batches begin and end; a last batch of one record joins the one before it.

    Batch normalization cannot train on a single record.
    """
    starts = list(range(0, n_records, batch_size))
    if len(starts) > 1 and n_records - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_records], strict=True))


def batches(rows: Index, recipe: TorchRecipe, order: np.random.Generator) -> Iterator[Index]:
    """Batches of rows, a new order each epoch, without end."""
    while True:
        shuffled = rows[order.permutation(len(rows))]
        for start, stop in epoch_bounds(len(rows), recipe.batch_size):
            yield shuffled[start:stop]


def fit(
    recipe: TorchRecipe,
    records: Records,
    *,
    seed: int,
    objective: Objective | None = None,
    gradients: Gradients = mean_gradients,
) -> TorchModel:
    """Train one model on all the records.

    Args:
        objective: (net, batch) -> scalar loss; by default the recipe's loss on its logits.
        gradients: (net, batch, objective) -> one gradient a trained parameter.

    Raises:
        InvalidInput: no records, or the loss stopped being finite.
    """
    if not len(records):
        raise InvalidInput("expected records to train on, got none")
    streams = Streams.of(seed)
    net = built(recipe, streams.initial).to(recipe.device)
    channels_last = convolves(net) and _takes_channels_last(recipe, net, records)
    if channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = Resident(records, net, recipe.device, channels_last)
    rows = np.arange(len(records))
    with one_thread(), seeded(streams.noise), shapes_explained(records):
        train(recipe, net, data, rows, streams, objective or RecipeLoss(recipe), gradients)
    # as it would be read back from a file, to the last bit of its answers
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return recipe.handle(checked(net))


@contextmanager
def shapes_explained(records: Records) -> Iterator[None]:
    """A module that does not fit the records raises `InvalidInput`, and torch's words after it."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        said = str(error).partition("\n")[0]
        if not any(word in said for word in ("shape", "size", "dimension", "out of bounds")):
            raise
        raise InvalidInput(
            f"expected a module for records of shape {tuple(records.x.shape[1:])}, but training "
            f"it fails: {said[:200]}; see to its first and its last layer"
        ) from error


def _takes_channels_last(recipe: TorchRecipe, net: nn.Module, records: Records) -> bool:
    """Whether the forward pass takes that layout: `x.view` after a convolution does not."""
    tried = deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    few = records[: min(2, len(records))]
    x, _ = Resident(few, tried, recipe.device, True).gather(np.arange(len(few)))
    try:
        with seeded(0), torch.no_grad():
            tried.eval()(x)
    except Exception:  # also what it raises in any layout, and will raise again
        return False
    return True


def convolves(net: nn.Module) -> bool:
    """Whether channels last is the faster layout in memory: float32 convolutions of images."""
    return any(isinstance(m, nn.Conv2d) and m.weight.dtype == torch.float32 for m in net.modules())


def train(
    recipe: TorchRecipe,
    net: nn.Module,
    data: Resident,
    rows: Index,
    streams: Streams,
    objective: Objective,
    gradients: Gradients = mean_gradients,
) -> None:
    """Train the module in place on the given rows."""
    watch = None
    if recipe.early_stopping is not None:
        rows, held_out = _held_out(rows, recipe.early_stopping.fraction, streams.order)
        watch = _Watch(recipe.early_stopping.patience, net, data, held_out, objective)
    trained = trainable(net)
    optimizer = make_optimizer(recipe, trained)
    rates = [group["lr"] for group in optimizer.param_groups]
    noise = torch.Generator(device=recipe.device).manual_seed(streams.noise)
    total, epoch = n_steps(recipe, len(rows)), len(epoch_bounds(len(rows), recipe.batch_size))
    net.train()
    for step, index in zip(range(total), batches(rows, recipe, streams.order), strict=False):
        x, y = data.gather(index)
        if recipe.augment is not None:
            x = recipe.augment(x.contiguous(), noise)
        with _in_precision(recipe):
            found = gradients(net, Batch(x, y, step), objective)
        assign(trained, found)
        set_rate(optimizer, rates, recipe, step / total)
        optimizer.step()
        due = (step + 1) % epoch == 0 or step + 1 == total
        if watch is not None and due and watch.should_stop():
            break
    if watch is not None:
        watch.restore()
    net.eval()


def _in_precision(recipe: TorchRecipe) -> AbstractContextManager[Any]:
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(recipe.device).type, dtype=torch.bfloat16)


def _held_out(rows: Index, fraction: float, order: np.random.Generator) -> tuple[Index, Index]:
    shuffled = rows[order.permutation(len(rows))]
    count = max(1, round(fraction * len(rows)))
    if count >= len(rows):
        raise InvalidInput(
            f"expected early stopping to leave records to train on, got {len(rows)} records and "
            f"a held-out share of {fraction}"
        )
    return np.sort(shuffled[count:]), shuffled[:count]


class _Watch:
    """Keeps the weights with the lowest loss on held-out records."""

    def __init__(
        self, patience: int, net: nn.Module, data: Resident, rows: Index, objective: Objective
    ) -> None:
        self._patience, self._net, self._objective = patience, net, objective
        self._parts = [data.gather(part) for part in np.array_split(rows, -(-len(rows) // 1024))]
        self._best, self._since = float("inf"), 0
        self._state: dict[str, Tensor] = {}

    def should_stop(self) -> bool:
        with evaluating(self._net), torch.no_grad():
            losses = [
                float(self._objective(self._net, Batch(x, y, 0))) * len(y) for x, y in self._parts
            ]
        if sum(losses) < self._best:
            self._best, self._since = sum(losses), 0
            self._state = {n: t.detach().clone() for n, t in tensors_of(self._net).items()}
        else:
            self._since += 1
        return self._since >= self._patience

    def restore(self) -> None:
        own = tensors_of(self._net)
        with torch.no_grad():
            for name, tensor in self._state.items():
                own[name].copy_(tensor)


def checked(net: nn.Module) -> nn.Module:
    """The module, if training left it finite."""
    bad = [n for n, p in net.named_parameters() if not torch.isfinite(p).all()]
    # a buffer may hold infinity on purpose (a mask), but not NaN
    bad += [n for n, b in net.named_buffers() if torch.isnan(b).any()]
    if bad:
        raise InvalidInput(
            f"expected training to converge, got NaN or infinite weights in {bad[0]}; lower the "
            "learning rate or scale the inputs"
        )
    return net
