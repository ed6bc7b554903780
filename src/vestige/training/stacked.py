"""Many torch models of one architecture as one stack, with `torch.func`.

Parameters of K models become tensors with a leading axis of K; one batched forward and backward
and one fused optimizer call take a step of all of them. A probe in float64 decides whether a
module may be stacked: what it cannot show equal to training alone is trained alone.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vestige.records import Records
from vestige.training.fingerprint import fingerprint
from vestige.training.fit import (
    Batch,
    Index,
    Objective,
    Resident,
    Streams,
    assign,
    batches,
    built,
    make_optimizer,
    n_steps,
    one_thread,
    seeded,
    set_rate,
    train,
    trainable,
)
from vestige.training.recipe import TorchRecipe, tensors_of

__all__ = ["fit_stack", "why_alone"]

# Above this size a model's own matrix products fill a CPU core and stacking gains nothing.
LARGEST_STACKED_ON_CPU = 100_000
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# These move each number by its own gradients alone: others (a norm over all weights, for one)
# would mix the models of a stack, perhaps only after the steps that the probe takes.
_ELEMENTWISE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
    }
)


class _Objective(nn.Module):
    """The objective as a module, so that `functional_call` swaps the network's tensors."""

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self._objective = objective

    def forward(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._objective(self.net, Batch(x, y, step))
        # read from the module: a buffer may have been assigned anew, not changed in place
        return loss, {f"net.{name}": b for name, b in self.net.named_buffers()}


def fit_stack(
    recipe: TorchRecipe,
    data: Resident,
    nets: Sequence[nn.Module],
    rows: Index,
    streams: Sequence[Streams],
    objective: Objective,
) -> None:
    """Train all modules in place, each on its own rows, shape (n_models, n_records_each)."""
    wrapped = [_Objective(net.train(), objective) for net in nets]
    params, buffers = stack_module_state(list(wrapped))
    trained = [name for name, p in nets[0].named_parameters(prefix="net") if p.requires_grad]
    optimizer = make_optimizer(recipe, [params[name] for name in trained])
    rates = [group["lr"] for group in optimizer.param_groups]
    noises = [torch.Generator(device=recipe.device).manual_seed(s.noise) for s in streams]
    orders = [batches(own, recipe, s.order) for own, s in zip(rows, streams, strict=True)]

    def one(p: Any, b: Any, x: Tensor, y: Tensor, step: int) -> Any:
        return functional_call(wrapped[0], (p, b), (x, y, step))

    total = n_steps(recipe, rows.shape[1])
    for step in range(total):
        x, y = data.gather(np.stack([next(order) for order in orders]))
        if recipe.augment is not None:
            x = torch.stack([recipe.augment(a, g) for a, g in zip(x, noises, strict=True)])
        with _batched_kernels():
            losses, buffers = vmap(one, (0, 0, 0, 0, None), randomness="error")(
                params, buffers, x, y, step
            )
        buffers = {name: b.detach() for name, b in buffers.items()}
        gradients = torch.autograd.grad(
            losses.sum(), [params[name] for name in trained], materialize_grads=True
        )
        assign([params[name] for name in trained], gradients)
        set_rate(optimizer, rates, recipe, step / total)
        optimizer.step()
    _unstack(nets, {**params, **buffers})


@contextmanager
def _batched_kernels() -> Iterator[None]:
    """Attention by plain products, which vmap can batch; what it must loop over, without a word."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def _unstack(nets: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for k, net in enumerate(nets):
            for name, tensor in tensors_of(net).items():
                tensor.copy_(stacked[f"net.{name}"][k])
            net.eval()


def why_alone(
    recipe: TorchRecipe, records: Records, rows: Index, objective: Objective, seed: int
) -> str:
    """Why models of this recipe are trained one by one; empty if they may be stacked.

    Args:
        rows: (n_models, n_records_each) rows of two or more of the models.
    """
    if len(rows) < 2:
        return "there is only one model"
    if recipe.early_stopping is not None:
        return "early stopping ends each model at a step of its own"
    net = built(recipe, seed)
    on_cpu = not recipe.device.startswith("cuda")
    if on_cpu and any(isinstance(m, _CONVOLUTIONS) for m in net.modules()):
        return "convolutions on a CPU are faster one model at a time"
    mixing = _mixing_optimizer(recipe, trainable(net))
    if mixing:
        return f"{mixing} may treat a stack of weights otherwise than one model's"
    if any(isinstance(m, nn.Embedding) and m.padding_idx is not None for m in net.modules()):
        return "torch gives the padding row of a stacked embedding gradients, but of the first one"
    own = [type(v).__name__ for m in net.modules() for v in vars(m).values() if _draws(v)]
    if own:
        return f"it draws random numbers from a generator of its own ({own[0]})"
    size = sum(p.numel() for p in net.parameters())
    if on_cpu and size > LARGEST_STACKED_ON_CPU:
        return f"{size:,} parameters fill a CPU core one model at a time"
    return _probe(recipe, records, rows[:2], objective, seed)


def _probe(
    recipe: TorchRecipe, records: Records, rows: Index, objective: Objective, seed: int
) -> str:
    """Three steps of two models in float64, stacked and alone: where they part, or ''."""
    size = min(recipe.batch_size, 16)
    short = replace(recipe, steps=3, batch_size=size)
    # only the records that are used: all of them in float64 might not fit
    spread = np.unique(np.linspace(0, rows.shape[1] - 1, 3 * size).astype(np.int64))
    used, places = np.unique(rows[:, spread], return_inverse=True)
    few, records = places.reshape(len(rows), -1), records[used]

    def fresh() -> tuple[list[nn.Module], list[Streams]]:
        streams = [Streams.of(seed), Streams.of(seed + 1)]
        nets = [built(recipe, s.initial).double().to(recipe.device) for s in streams]
        return nets, streams

    with one_thread(), seeded(seed):
        together, streams = fresh()
        data = Resident(records, together[0], recipe.device)
        before = _global_states()
        try:
            fit_stack(short, data, together, few, streams, objective)
        except Exception as error:  # whatever the module does that a stack cannot
            return _reason(error)
        if _global_states() != before:
            return "it draws random numbers while training: alone, each model has its own"
        apart, streams = fresh()
        for net, own, s in zip(apart, few, streams, strict=True):
            train(short, net, data, own, s, objective)
    return _difference(together, apart)


def _mixing_optimizer(recipe: TorchRecipe, own: list[Tensor]) -> str:
    """The optimizer, if it may mix models or sorts weights by their number of axes; or ''."""
    alone = make_optimizer(recipe, own)
    stack = make_optimizer(recipe, [torch.stack([p.detach()]).requires_grad_() for p in own])
    groups = [[len(group["params"]) for group in o.param_groups] for o in (alone, stack)]
    fits = type(alone) in _ELEMENTWISE and groups[0] == groups[1]
    return "" if fits else type(alone).__name__


def _draws(value: Any) -> bool:
    return isinstance(
        value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    )


def _global_states() -> list[str]:
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_gpu else []
    states = [torch.get_rng_state(), *cuda, np.random.get_state(), random.getstate()]
    return [fingerprint(state) for state in states]


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "random" in text:
        return "its forward pass draws random numbers (dropout): alone, each model has its own"
    return f"it cannot be stacked ({text[:200]})"


def _difference(together: Sequence[nn.Module], apart: Sequence[nn.Module]) -> str:
    for a, b in zip(together, apart, strict=True):
        own = tensors_of(b)
        for name, tensor in tensors_of(a).items():
            gap = (tensor.double() - own[name].double()).abs().max() if tensor.numel() else 0.0
            if not gap <= 1e-9:
                return f"stacked training gave another {name} than training alone"
    return ""
