"""Many torch models of one architecture as one stack.

Parameters of K models become tensors with a leading axis of K; one batched forward and backward
and one fused optimizer call take a step of all of them. Plain networks run on explicit kernels,
others through `torch.func`. A probe in float64 decides whether a module may be stacked: what it
cannot show equal to training alone is trained alone.
"""

from __future__ import annotations

import inspect
import random
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from vestige.fingerprint import fingerprint
from vestige.models import first_line
from vestige.records import Records
from vestige.training import cuda
from vestige.training.fit import (
    Batch,
    Index,
    Objective,
    RecipeLoss,
    Resident,
    Streams,
    assign,
    built,
    epoch_bounds,
    make_optimizer,
    n_steps,
    one_thread,
    seeded,
    set_rate,
    train,
    trainable,
)
from vestige.training.kernels import Plain, PlainStack, plain_layers
from vestige.training.recipe import TorchRecipe, cross_entropy, tensors_of

__all__ = ["DROPS", "alike", "drops", "fit_stack", "plain", "why_alone"]

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

DROPS = "dropout is drawn for the whole stack: equal to training alone in distribution"
"""What provenance says where models of a stack do not have random streams of their own."""


class _Stack(Protocol):
    """Models together: something to optimize, and gradients for a step."""

    @property
    def weights(self) -> list[Tensor]: ...
    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes beside the weights, in place."""
        ...

    @property
    def same_each_step(self) -> bool:
        """Whether tensors alone decide what a step does."""
        ...

    def backward(self, x: Tensor, y: Tensor, step: int) -> None: ...
    def unstack(self) -> None: ...


def fit_stack(
    recipe: TorchRecipe,
    data: Resident,
    nets: Sequence[nn.Module],
    rows: Index,
    streams: Sequence[Streams],
    objective: Objective,
    layers: Plain | None = None,
) -> None:
    """Train all modules in place, each on its own rows, shape (n_models, n_records_each).

    Args:
        layers: of plain networks, which explicit kernels train; None for `torch.func`.
    """
    # what a forward pass draws comes from the first model's stream, for the whole stack
    with seeded(streams[0].noise):
        _train(
            recipe, data, nets, rows, streams, _stacked(recipe, nets, streams, objective, layers)
        )


def _train(
    recipe: TorchRecipe,
    data: Resident,
    nets: Sequence[nn.Module],
    rows: Index,
    streams: Sequence[Streams],
    stack: _Stack,
) -> None:
    captured = _can_be_captured(recipe, data, stack)
    optimizer = make_optimizer(recipe, stack.weights, capturable=captured)
    rates = [group["lr"] for group in optimizer.param_groups]
    noises = _generators(recipe, streams)
    total = n_steps(recipe, rows.shape[1])

    def gradients(index: Index | Tensor, step: int) -> None:
        x, y = data.gather(index)
        if recipe.augment is not None:
            x = torch.stack([recipe.augment(a, g) for a, g in zip(x, noises, strict=True)])
        stack.backward(x, y, step)

    if captured:
        few = islice(_together(recipe, rows, streams), total)
        _train_captured(recipe, stack, optimizer, gradients, few)
    else:
        # without what torch wraps around it for hooks and profilers, a thirtieth of a small step
        take = inspect.unwrap(type(optimizer).step)
        for step, index in zip(range(total), _together(recipe, rows, streams), strict=False):
            gradients(index, step)
            set_rate(optimizer, rates, recipe, step / total)
            with torch.no_grad():
                take(optimizer)
    stack.unstack()
    for net in nets:
        net.eval()


def _can_be_captured(recipe: TorchRecipe, data: Resident, stack: _Stack) -> bool:
    """Whether every step does the same to other numbers: then a GPU can take it as one graph."""
    # optimizers of the user's may begin from something else than zeros, or not be capturable
    usual = isinstance(recipe.optimizer, str)
    same = usual and recipe.schedule is None and recipe.augment is None and data.is_resident
    if not same or not recipe.device.startswith("cuda"):
        return False
    return stack.same_each_step


def _train_captured(
    recipe: TorchRecipe,
    stack: _Stack,
    optimizer: torch.optim.Optimizer,
    gradients: Callable[[Tensor, int], None],
    indices: Iterator[Index],
    capture: Callable[..., Any] = cuda.capture,
) -> None:
    def step(index: Tensor) -> None:
        gradients(index, 0)
        optimizer.step()

    def state() -> Iterator[Tensor]:
        yield from stack.weights
        yield from stack.buffers
        for own in optimizer.state.values():
            yield from (t for t in own.values() if isinstance(t, Tensor))

    take = cuda.Captured(step, state, torch.device(recipe.device), capture)
    for index in indices:
        take(torch.from_numpy(np.ascontiguousarray(index)))


def _stacked(
    recipe: TorchRecipe,
    nets: Sequence[nn.Module],
    streams: Sequence[Streams],
    objective: Objective,
    layers: Plain | None,
) -> _Stack:
    if layers is None:
        return _FunctionalStack(nets, objective)
    return _ExplicitStack(layers, nets, recipe.batch_size, _generators(recipe, streams))


def _generators(recipe: TorchRecipe, streams: Sequence[Streams]) -> list[torch.Generator]:
    return [torch.Generator(device=recipe.device).manual_seed(s.noise) for s in streams]


def _together(recipe: TorchRecipe, rows: Index, streams: Sequence[Streams]) -> Iterator[Index]:
    """Each model's batches, side by side: (n_models, batch) rows, without end.

    They are those of `batches`, drawn an epoch at a time.
    """
    while True:
        drawn = [own[s.order.permutation(len(own))] for own, s in zip(rows, streams, strict=True)]
        epoch = np.stack(drawn)
        for start, stop in epoch_bounds(rows.shape[1], recipe.batch_size):
            yield epoch[:, start:stop]


class _ExplicitStack:
    """Plain networks on the explicit kernels."""

    def __init__(
        self,
        layers: Plain,
        nets: Sequence[nn.Module],
        batch: int,
        noises: Sequence[torch.Generator],
    ) -> None:
        self._stack, self._noises = PlainStack(layers, nets, batch), noises
        self.weights, self.buffers = self._stack.trained, list[Tensor]()
        # a captured step cannot draw from each model's own generator
        self.same_each_step = not any(layer.dropout for layer in layers)

    def backward(self, x: Tensor, y: Tensor, step: int) -> None:
        self._stack.backward(x.reshape(*y.shape, -1), y, self._noises)

    def unstack(self) -> None:
        self._stack.unstack()


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


class _FunctionalStack:
    """Any other module, through `vmap(grad)`.

    Where nothing but tensors decides a step, its operations are traced once for each shape of
    batch and run without autograd and vmap, whose overhead is most of a small model's step.
    """

    def __init__(self, nets: Sequence[nn.Module], objective: Objective) -> None:
        wrapped = [_Objective(net.train(), objective) for net in nets]
        params, self._buffers = stack_module_state(list(wrapped))
        self._nets, self._wrapped = nets, wrapped[0]
        names = [name for name, p in nets[0].named_parameters(prefix="net") if p.requires_grad]
        self._fixed = {n: p.detach() for n, p in params.items() if n not in names}
        self._trained = {n: p.detach() for n, p in params.items() if n in names}
        self.weights = [params[name] for name in names]
        # an objective of one's own may depend on the number of the step
        self.same_each_step = isinstance(objective, RecipeLoss)
        self._traced: dict[tuple[int, ...], Callable[..., Any]] = {}
        # in place from here on, for a captured step
        self._buffers = {name: b.detach().clone() for name, b in self._buffers.items()}

    @property
    def buffers(self) -> list[Tensor]:
        return list(self._buffers.values())

    def backward(self, x: Tensor, y: Tensor, step: int) -> None:
        arguments = (self._trained, self._fixed, self._buffers, x, y)
        with torch.no_grad():
            if self.same_each_step:
                gradients, buffers = self._graph(arguments)(*arguments)
            else:
                with _batched_kernels():
                    gradients, buffers = self._gradients(
                        self._trained, self._fixed, self._buffers, x, y, step
                    )
            for name, held in self._buffers.items():
                if held is not buffers[name]:
                    held.copy_(buffers[name])
        names = list(self._trained)
        assign(self.weights, [gradients[name].detach() for name in names])

    def _gradients(
        self,
        trained: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        step: int,
        module: nn.Module | None = None,
    ) -> Any:
        called = self._wrapped if module is None else module

        def one(p: Any, f: Any, b: Any, x: Tensor, y: Tensor) -> Any:
            return functional_call(called, ({**p, **f}, b), (x, y, step))

        return vmap(grad(one, has_aux=True), randomness="different")(trained, fixed, buffers, x, y)

    def _graph(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        shape = tuple(arguments[3].shape)
        if shape not in self._traced:
            # a copy of all: the step that is traced is not taken
            module, given = deepcopy((self._wrapped, arguments))
            with _own_draws(), _batched_kernels():
                self._traced[shape] = _traced(
                    lambda t, f, b, x, y: self._gradients(t, f, b, x, y, 0, module), given
                )
        return self._traced[shape]

    def unstack(self) -> None:
        stacked = {**self._trained, **self._fixed, **self._buffers}
        with torch.no_grad():
            for k, net in enumerate(self._nets):
                for name, tensor in tensors_of(net).items():
                    tensor.copy_(stacked[f"net.{name}"][k])


def _traced(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The function's tensor operations on arguments of these shapes, as one flat program."""
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    graph = make_fx(function)(*arguments)
    better = {
        aten.bmm.default: _bmm,
        aten._log_softmax.default: _log_softmax,
        aten._log_softmax_backward_data.default: _log_softmax_backward,
        # what is computed in another order has other strides
        aten.view.default: aten.reshape.default,
        aten._unsafe_view.default: aten.reshape.default,
    }
    if not _may_be_reordered(graph.graph.nodes):
        return graph
    for node in list(graph.graph.nodes):
        if node.target in (aten.view.default, aten.expand.default) and _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        else:
            node.target = better.get(node.target, node.target)
    graph.recompile()
    return graph


_VIEWS = {"view", "_unsafe_view", "expand", "transpose", "permute", "t", "squeeze", "unsqueeze"}
_VIEWS |= {"select", "slice", "alias", "detach", "unbind", "diagonal"}


def _may_be_reordered(nodes: Iterable[Any]) -> bool:
    """Whether no operation writes through a view of what another one made.

    A result in another order is viewed by a copy, and what is written to the copy is lost.
    """
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        name = getattr(schema, "name", "").removeprefix("aten::")
        if "as_strided" in name:
            return False
        if schema is not None and schema.is_mutable and not _is_of_an_input(node.args[0]):
            return False
    return True


def _is_of_an_input(node: Any) -> bool:
    """Whether a node is an input (a buffer, say), or a view of one."""
    while node.op == "call_function":
        name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
        if name not in _VIEWS:
            return False
        node = node.args[0]
    return bool(node.op == "placeholder")


def _changes_nothing(node: Any) -> bool:
    shapes = [n.meta["val"].shape for n in (node, node.args[0]) if "val" in n.meta]
    return len(shapes) == 2 and shapes[0] == shapes[1]


FEW = 32
"""Columns below which products and softmaxes run across rows: along them, each row is a call."""


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; as (b' a')' where the result has few columns."""
    if b.shape[2] < FEW and b.shape[2] < a.shape[1]:
        return torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(a, b)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not _along_few(x, dim):
        return torch._log_softmax(x, dim, half_to_float)
    return torch._log_softmax(_across(x), x.ndim - 2, half_to_float).transpose(-1, -2)


def _log_softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: Any) -> Tensor:
    found: Tensor
    if not _along_few(output, dim):
        found = torch._log_softmax_backward_data(gradient, output, dim, dtype)
        return found
    found = torch._log_softmax_backward_data(
        _across(gradient), _across(output), output.ndim - 2, dtype
    )
    return found.transpose(-1, -2)


def _along_few(x: Tensor, dim: int) -> bool:
    return x.ndim > 2 and dim in (-1, x.ndim - 1) and x.shape[-1] < min(FEW, x.shape[-2])


def _across(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous()


@contextmanager
def _own_draws() -> Iterator[None]:
    """Tracing runs the step once more than it is taken: what it draws is given back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        yield


def _python_state(net: nn.Module) -> str:
    """A digest of what modules hold beside tensors and submodules."""
    known = vars(nn.Module())

    def plain(value: Any) -> bool:
        parts = value if isinstance(value, (list, tuple)) else [value]
        return not any(isinstance(part, (Tensor, weakref.ref)) for part in parts)

    return fingerprint(
        [{k: v for k, v in vars(m).items() if k not in known and plain(v)} for m in net.modules()]
    )


@contextmanager
def _batched_kernels() -> Iterator[None]:
    """Attention by plain products, which vmap can batch; what it must loop over, without a word."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


# --- what may be stacked -------------------------------------------------------------------------


def plain(recipe: TorchRecipe, net: nn.Module) -> Plain | None:
    """The layers, where the explicit kernels do all that the recipe asks, else None."""
    from vestige.models import default_logits

    usual = recipe.loss in (cross_entropy, functional.cross_entropy) and isinstance(
        recipe.optimizer, str
    )
    if not usual or recipe.logits is not default_logits or recipe.precision != "float32":
        return None
    layers = plain_layers(net)
    if layers is None:
        return None
    # torch's own cross-entropy of a single logit is always 0
    one_logit = dict(net.named_parameters())[layers[-1].weight].shape[0] == 1
    return None if one_logit and recipe.loss is functional.cross_entropy else layers


def why_alone(
    recipe: TorchRecipe,
    records: Records,
    rows: Index,
    objective: Objective,
    seed: int,
    layers: Plain | None = None,
) -> str:
    """Why models of this recipe are trained one by one; empty if they may be stacked.

    Args:
        rows: (n_models, n_records_each) rows of two or more of the models.
        layers: of plain networks, to ask about the explicit kernels.
    """
    if len(rows) < 2:
        return "there is only one model"
    if recipe.early_stopping is not None:
        return "early stopping ends each model at a step of its own"
    net = built(recipe, seed)
    mixing = _mixing_optimizer(recipe, trainable(net))
    if mixing:
        return f"{mixing} may treat a stack of weights otherwise than one model's"
    if any(isinstance(m, nn.Embedding) and m.padding_idx is not None for m in net.modules()):
        return "torch gives the padding row of a stacked embedding gradients, but of the first one"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters()):
        return "a hook changes the gradient of one of its parameters"
    own = [type(v).__name__ for m in net.modules() for v in vars(m).values() if _draws(v)]
    if own:
        return f"it draws random numbers from a generator of its own ({own[0]})"
    return _probe(recipe, records, rows[:2], objective, seed, layers)


def _probe(
    recipe: TorchRecipe,
    records: Records,
    rows: Index,
    objective: Objective,
    seed: int,
    layers: Plain | None,
) -> str:
    """Three steps of two models in float64, stacked and alone: where they part, or ''.

    Explicit kernels drop what each model drops alone; for `torch.func` nothing is dropped here.
    """
    size = min(recipe.batch_size, 16)
    short = replace(recipe, steps=3, batch_size=size)
    if isinstance(recipe.loss, nn.Module):  # class weights, say
        short = replace(short, loss=deepcopy(recipe.loss).double())
    if isinstance(objective, RecipeLoss):
        objective = RecipeLoss(short)
    # only the records that are used: all of them in float64 might not fit
    spread = np.unique(np.linspace(0, rows.shape[1] - 1, 3 * size).astype(np.int64))
    used, places = np.unique(rows[:, spread], return_inverse=True)
    few, records = places.reshape(len(rows), -1), records[used]

    def fresh() -> tuple[list[nn.Module], list[Streams]]:
        streams = [Streams.of(seed), Streams.of(seed + 1)]
        nets = [built(recipe, s.initial).double().to(recipe.device) for s in streams]
        return nets, streams

    undropped = nullcontext() if layers is not None else _NoDropout()
    with one_thread(), seeded(seed), undropped:
        try:
            apart, streams = fresh()
            data = Resident(records, apart[0], recipe.device)
            state = _deciding(apart[0], short, objective)
            for net, own, s in zip(apart, few, streams, strict=True):
                with seeded(s.noise):
                    train(short, net, data, own, s, objective)
        except Exception as error:  # it will be raised again where it can be understood
            return f"it could not be tried in float64 ({first_line(error)[:150]})"
        if _deciding(apart[0], short, objective) != state:
            return "what a step does depends on the steps before it"
        together, streams = fresh()
        before = _global_states()
        try:
            stack = _stacked(short, together, streams, objective, layers)
            _train(short, data, together, few, streams, stack)
        except Exception as error:  # whatever the module does that a stack cannot
            return _reason(error)
        if _global_states() != before:
            return "it draws random numbers while training: alone, each model has its own"
    return _difference(together, apart)


def _deciding(net: nn.Module, recipe: TorchRecipe, objective: Objective) -> str:
    """A digest of what decides a step beside tensors: Python state that steps may change."""
    parts = [
        (type(m), [v for n, v in vars(m).items() if n.endswith("_hooks")]) for m in net.modules()
    ]
    # of the recipe's own loss only what it is made of, which is the user's
    own = None if type(objective) is RecipeLoss else objective
    asked = [recipe.loss, recipe.logits, recipe.augment, own]
    return fingerprint([_python_state(net), parts, asked])


def alike(nets: Sequence[nn.Module]) -> bool:
    """Whether the networks differ in their tensors only: a stack runs the first one's forward."""
    first = (repr(nets[0]), [type(m) for m in nets[0].modules()], _python_state(nets[0]))
    return all(
        first == (repr(net), [type(m) for m in net.modules()], _python_state(net))
        for net in nets[1:]
    )


class _NoDropout(TorchFunctionMode):
    """Nothing is dropped: what differs between stacked and alone then is not chance."""

    met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            training = args[2] if len(args) > 2 else kwargs.get("training", True)
            self.met = self.met or (share > 0 and bool(training))
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            share = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
            self.met = self.met or share > 0
            causal = {"is_causal": args[5]} if len(args) > 5 else {}
            args, kwargs = args[:4], {**kwargs, **causal, "dropout_p": 0.0}
        return func(*args, **kwargs)


_DROPOUTS = frozenset(
    {
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
    }
)


def drops(recipe: TorchRecipe, records: Records, seed: int) -> bool:
    """Whether something is dropped in the forward pass of training."""
    net = built(recipe, seed).train().to(recipe.device)
    x, _ = Resident(records[:2], net, recipe.device).gather(np.arange(min(2, len(records))))
    mode = _NoDropout()
    with seeded(seed), torch.no_grad(), mode:
        net(x)
    return mode.met


def _mixing_optimizer(recipe: TorchRecipe, own: list[Tensor]) -> str:
    """The optimizer, if it may mix models or sorts weights by their axes or size; or ''."""
    alone = make_optimizer(recipe, own)
    many = [p.detach().unsqueeze(0).expand(32, *p.shape).requires_grad_() for p in own]
    stack = make_optimizer(recipe, many)
    groups = [_places(alone, own), _places(stack, many)]
    hooks = alone._optimizer_step_pre_hooks or alone._optimizer_step_post_hooks
    fits = type(alone) in _ELEMENTWISE and groups[0] == groups[1]
    changed = hooks or "step" in vars(alone)
    return "" if fits and not changed else type(alone).__name__


def _places(optimizer: torch.optim.Optimizer, own: Sequence[Tensor]) -> list[list[int]]:
    """Which of the parameters are in each group."""
    place = {id(p): k for k, p in enumerate(own)}
    return [[place.get(id(p), -1) for p in group["params"]] for group in optimizer.param_groups]


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
