"""Gradients of a torch classifier for each record: factored where they can be, always streamed.

The gradient of a fully connected layer z = W a + b for one record is of rank one: dL/dW is the
outer product of delta = dL/dz and a, and dL/db is delta. Keeping the pair costs in + out numbers a
record instead of in * out, and hardly more time than the forward pass. All other layers' gradients
are computed in full, a chunk of records at a time, by `vmap(grad)`, or record by record where a
module does not bear that.

How a layer is treated is not believed but tried: on a few records, each way is compared with plain
autograd on one record alone, and what differs (weights that are used twice, records that are mixed)
is done the slower way.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

from vestige.errors import InvalidInput, VestigeError
from vestige.records import Records

__all__ = [
    "Chunk",
    "Factored",
    "Loss",
    "Network",
    "activations",
    "cross_entropy",
    "factored",
    "norms",
    "stream",
]

Array = NDArray[Any]
Loss = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")

# What a chunk of records may take beside the model: the gradients that are written out and the
# activations that are kept for the backward pass, each counted twice for the copies on the way.
WORKING_BYTES = 64 * 2**20
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Factored:
    """Gradients of a fully connected layer for each record, as pairs (delta, a).

    Attributes:
        delta: (n, out) gradients of the losses by the layer's outputs; (n, T, out) where the layer
            is applied T times to a record (a sequence, or several uses in one pass).
        a: (n, in) or (n, T, in), the layer's inputs.
        bias: whether the layer has one; its gradient is delta, summed over T.
    """

    delta: Array
    a: Array
    bias: bool = True

    def __post_init__(self) -> None:
        if self.delta.ndim not in (2, 3) or self.delta.shape[:-1] != self.a.shape[:-1]:
            raise InvalidInput(
                "expected delta (n, out) and a (n, in), or (n, T, out) and (n, T, in), got "
                f"{self.delta.shape} and {self.a.shape}; give the pair of one layer"
            )

    def __len__(self) -> int:
        return len(self.delta)

    def __getitem__(self, rows: Any) -> Factored:
        """The chosen records (a slice, a boolean mask or integer positions)."""
        return Factored(np.asarray(self.delta[rows]), np.asarray(self.a[rows]), self.bias)

    def norms(self) -> NDArray[np.float64]:
        """Euclidean norm of each record's gradient, the bias included, shape (n,).

        |delta| sqrt(|a|^2 + 1), without the gradient itself; the 1 is the bias.
        """
        out = np.empty(len(self))
        for part in self._blocks():
            delta, a = (torch.tensor(np.asarray(v[part])) for v in (self.delta, self.a))
            out[part] = _squares(delta, a, self.bias).sqrt().numpy()
        return out

    def dense(self) -> Array:
        """Gradients by the weight, written out: (n, out, in). Slice first where n is large."""
        if self.delta.ndim == 2:
            return np.asarray(self.delta[:, :, None] * self.a[:, None, :])
        return np.asarray(self.delta.transpose(0, 2, 1) @ self.a)

    def dense_bias(self) -> Array:
        """Gradients by the bias: (n, out).

        Raises:
            InvalidInput: the layer has no bias.
        """
        if not self.bias:
            raise InvalidInput(
                "expected a layer with a bias, got one without; there is no gradient"
            )
        return np.asarray(self.delta if self.delta.ndim == 2 else self.delta.sum(axis=1))

    def dot(self, weight: Array, bias: Array | None = None) -> NDArray[np.float64]:
        """Inner product of each record's gradient with a direction, shape (n,).

        Args:
            weight: (out, in); the product is delta^T W a, and no gradient is written out.
            bias: (out,), added as delta^T b.
        """
        shapes = [(self.delta.shape[-1], self.a.shape[-1]), self.delta.shape[-1:]]
        given = [v.shape for v in (weight, bias) if v is not None]
        if given != shapes[: len(given)]:
            raise InvalidInput(
                f"expected a weight and a bias of shapes {shapes}, got {given}; give a direction "
                "of this layer"
            )
        out = np.empty(len(self))
        for part in self._blocks():
            along = np.asarray(self.a[part], np.float64) @ np.asarray(weight, np.float64).T
            along += 0.0 if bias is None else bias
            out[part] = (along * self.delta[part]).reshape(len(along), -1).sum(axis=1)
        return out

    def _blocks(self) -> Iterator[slice]:
        width = 8 * (math.prod(self.delta.shape[1:]) + math.prod(self.a.shape[1:]))
        step = max(1, _BLOCK_BYTES // max(1, width))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))


Chunk = dict[str, Factored | Mapping[str, Array]]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y of each record, shape (n,), from logits (n, classes), or (n,) for two classes.

    Written as log(1 + sum of exp(z_c - z_y) over c != y): the gradient p - onehot(y) of a record
    that the model is sure of keeps all its digits, where 1 - p_y would round to 0.
    """
    if logits.ndim == 1:
        return softplus(torch.where(y > 0, -logits, logits), threshold=40)
    own = y[:, None]
    rest = logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
    return softplus(rest - logits.gather(1, own)[:, 0], threshold=40)


def _residual(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of `cross_entropy` by the logits, p - onehot(y), in the shape of the logits.

    The true class has minus the sum of the others: all its digits, and half of autograd's time.
    """
    logits = logits.detach()
    if logits.ndim == 1:
        sign = torch.where(y > 0, -1.0, 1.0).to(logits)
        return sign * torch.sigmoid(sign * logits)
    own = y[:, None]
    p = logits.softmax(dim=1).scatter_(1, own, 0.0)
    return p.scatter_(1, own, -p.sum(dim=1, keepdim=True))


@dataclass(frozen=True)
class Network:
    """What has to be known of a handle.

    Attributes:
        net: the module; it is asked in eval mode and left as it was found.
        inputs: a batch of records as the module's input.
        logits: (the module's output, n) -> logits (n, classes), or (n,) for two classes.
        batch_size: records in one pass at most.
    """

    net: nn.Module
    inputs: Callable[[Any], Tensor]
    logits: Callable[[Any, int], Tensor]
    batch_size: int

    def losses(self, output: Any, y: Tensor, loss: Loss) -> Tensor:
        """Losses (n,) from the module's output."""
        return _by_record(loss, self.logits(output, len(y)), y)

    def read(self, records: Records, rows: Any) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some records, on the module's device."""
        # tensors made in a caller's inference mode could take no part in a graph
        with torch.inference_mode(False):
            x = self.inputs(records.x[rows])
            return x, torch.tensor(np.asarray(records.y[rows], dtype=np.int64), device=x.device)


def _by_record(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    found = loss(logits, y)
    if not isinstance(found, Tensor) or found.shape != (len(y),):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInput(
            f"expected a loss for each record, shape ({len(y)},), got {shape}; do not average "
            '(reduction="none")'
        )
    return found


def stream(
    network: Network, records: Records, layers: Sequence[str] | None, loss: Loss
) -> Iterator[tuple[slice, Chunk]]:
    """(rows, gradients of the layers for these records), in order; see `TorchModel.gradients`."""
    plan = _planned(network, records, _chosen(network, records, layers), loss, whole=False)

    def work(part: slice) -> Chunk:
        pairs, dense = plan.gradients(*network.read(records, part))
        return {name: plan.answer(name, pairs, dense) for name in plan.layers}

    return _chunks(len(records), plan.rows, work)


def factored(
    network: Network, records: Records, layer: str | None, loss: Loss, out: Factored | None
) -> Iterator[tuple[slice, Factored]]:
    """(rows, all gradients with these rows filled in), in order; the last is the whole.

    Raises:
        InvalidInput: the layer's gradients have no factors, or `out` has another shape.
    """
    for part, chunk in stream(network, records, None if layer is None else [layer], loss):
        name, found = next(iter(chunk.items()))
        if not isinstance(found, Factored):
            raise InvalidInput(
                f"expected a fully connected layer whose weights are used by it alone, got "
                f"{name!r}; take gradients(records, [{name!r}]), which gives them in full"
            )
        out = _room(found, len(records), out)
        out.delta[part], out.a[part] = found.delta, found.a
        yield part, out


def _room(first: Factored, n: int, out: Factored | None) -> Factored:
    """Arrays for n records like the first ones, or those given, checked."""
    expected = (n, *first.delta.shape[1:]), (n, *first.a.shape[1:])
    if out is None:
        delta, a = (np.empty(shape, first.delta.dtype) for shape in expected)
        return Factored(delta, a, first.bias)
    if (out.delta.shape, out.a.shape, out.bias) != (*expected, first.bias):
        raise InvalidInput(
            f"expected out with delta {expected[0]}, a {expected[1]} and bias={first.bias}, got "
            f"{out.delta.shape}, {out.a.shape} and bias={out.bias}; leave it away to have it made"
        )
    return out


def norms(
    network: Network, records: Records, layers: Sequence[str] | None, loss: Loss
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(rows, norms (rows,) of their gradients), in order; see `TorchModel.gradient_norms`."""
    chosen = [""] if layers is None else _chosen(network, records, layers)
    plan = _planned(network, records, chosen, loss, whole=True)

    def work(part: slice) -> NDArray[np.float64]:
        x, y = network.read(records, part)
        pairs, dense = plan.gradients(x, y)
        squares = torch.zeros(len(y), dtype=torch.float64, device=x.device)
        for name, (delta, a) in pairs.items():
            squares += _squares(delta, a, plan.factored[name].bias is not None)
        for g in dense.values():
            squares += _length(g.flatten(1)) ** 2
        return np.asarray(squares.sqrt().cpu().numpy())

    return _chunks(len(records), plan.rows, work)


def activations(network: Network, x: Any, layer: str | None) -> Array:
    """Outputs (n, ...) of a layer for inputs (n, ...); see `TorchModel.activations`."""
    if not len(x):
        raise InvalidInput("expected at least one record to ask about, got none")
    name = _last_linear(network, network.inputs(x[:2])) if layer is None else layer
    _known([name], [n for n, _ in network.net.named_modules(remove_duplicate=False)])
    parts = _chunks(len(x), network.batch_size, lambda part: _outputs(network, name, x[part]))
    first, found = next(parts)
    out = np.empty((len(x), *found.shape[1:]), found.dtype)
    out[first] = found
    for part, found in parts:
        out[part] = found
    return out


def _outputs(network: Network, layer: str, x: Any) -> Array:
    """What a layer puts out for a batch."""
    module = network.net.get_submodule(layer)
    seen: list[Any] = []
    # a copy: what comes after may change it in place
    keep = module.register_forward_hook(lambda _m, _a, out: seen.append(_copied(out)))
    try:
        with _still(network.net), torch.no_grad():
            network.net(network.inputs(x))
    finally:
        keep.remove()
    whole = len(seen) == 1 and isinstance(seen[0], Tensor) and seen[0].shape[:1] == (len(x),)
    if not whole:
        got = _what(seen[0]) if len(seen) == 1 else f"{len(seen)} passes through it"
        raise InvalidInput(
            f"expected layer {layer!r} to answer once with a tensor of {len(x)} rows, got {got}; "
            "choose a layer inside or around it"
        )
    return _as_numpy(seen[0])


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _what(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


# --- which layers, and how ----------------------------------------------------------------------


def _chosen(network: Network, records: Records, layers: Sequence[str] | None) -> list[str]:
    """The names of the layers, checked; by default the last fully connected one."""
    if not len(records):
        raise InvalidInput("expected at least one record to ask about, got none")
    if layers is None:
        return [_last_linear(network, network.read(records, slice(0, 2))[0])]
    names = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    modules = dict(network.net.named_modules(remove_duplicate=False))
    _known(names, [name for name, m in modules.items() if _parameters(m, name)])
    return names


def _known(names: Sequence[str], there: Sequence[str]) -> None:
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        # the whole module is called "": not a name to offer
        shown = [name for name in there if name][:60]
        rest = ", ..." if len(there) > len(shown) + 1 else ""
        raise InvalidInput(
            f"expected layers among {', '.join(shown)}{rest}, got "
            f"{repr(unknown[0]) if unknown else 'none'}; name them as net.named_modules() does"
        )


def _parameters(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of a layer by their names in the whole module."""
    own = module.named_parameters(prefix=name)
    return {key: p for key, p in own if p.is_floating_point()}


def _last_linear(network: Network, x: Tensor) -> str:
    """The last fully connected layer that the forward pass runs."""
    linear = {n: m for n, m in network.net.named_modules() if isinstance(m, nn.Linear)}
    ran: list[str] = []
    with ExitStack() as stack, _still(network.net), torch.no_grad():
        for name, module in linear.items():
            hook = module.register_forward_hook(lambda _m, _a, _o, name=name: ran.append(name))
            stack.callback(hook.remove)
        network.net(x)
    if not ran:
        raise InvalidInput(
            "expected a fully connected layer (nn.Linear) in the forward pass, got none; name a "
            "layer as net.named_modules() does"
        )
    return ran[-1]


def _own_linear(net: nn.Module, chosen: Sequence[nn.Module]) -> dict[str, nn.Linear]:
    """Those that are plain fully connected layers and share no weights with another module."""
    owners = Counter(id(p) for m in net.modules() for p in m._parameters.values() if p is not None)
    ids = {id(m) for m in chosen}
    return {
        name: m
        for name, m in net.named_modules()
        if id(m) in ids
        and isinstance(m, nn.Linear)
        and set(m._parameters) == {"weight", "bias"}
        and not m._modules
        and all(owners[id(p)] == 1 for p in m.parameters())
    }


@dataclass(frozen=True)
class _Plan:
    """How the gradients of some layers are computed.

    Attributes:
        layers: their names, as asked for.
        factored: the fully connected ones that are kept as (delta, a).
        dense: the other parameters.
        vmapped: whether `dense` is computed for many records at once.
        rows: records in a chunk.
    """

    network: Network
    loss: Loss
    layers: Sequence[str]
    factored: Mapping[str, nn.Linear]
    dense: Mapping[str, nn.Parameter]
    vmapped: bool
    rows: int

    def gradients(self, x: Tensor, y: Tensor) -> tuple[_Pairs, dict[str, Tensor]]:
        pairs: _Pairs = {}
        dense: dict[str, Tensor] = {}
        if self.factored:
            pairs = _pairs(self.network, self.factored, x, y, self.loss)
        if self.dense:
            way = _vmapped if self.vmapped else _one_by_one
            dense = way(self.network, self.dense, x, y, self.loss)
        _finite([*(v for pair in pairs.values() for v in pair), *dense.values()])
        return pairs, dense

    def answer(
        self, layer: str, pairs: _Pairs, dense: Mapping[str, Tensor]
    ) -> Factored | Mapping[str, Array]:
        # a module may have two names, and two modules one weight: they are computed once
        module = self.network.net.get_submodule(layer)
        for name, linear in self.factored.items():
            if linear is module:
                delta, a = map(_as_numpy, pairs[name])
                return Factored(delta, a, linear.bias is not None)
        names = {id(p): name for name, p in self.dense.items()}
        own = _parameters(module, layer)
        return {name: _as_numpy(dense[names[id(p)]]) for name, p in own.items()}


_Pairs = dict[str, tuple[Tensor, Tensor]]


def _planned(
    network: Network, records: Records, layers: Sequence[str], loss: Loss, *, whole: bool
) -> _Plan:
    """The quickest way for each layer that agrees with autograd on one record alone.

    Args:
        whole: only the whole gradient is of interest: also what lies inside a layer is factored.
    """
    if not len(records):
        raise InvalidInput("expected at least one record to ask about, got none")
    net = network.net
    modules = dict(net.named_modules(remove_duplicate=False))
    wanted = _union(_parameters(modules[name], name) for name in layers)
    if not wanted:
        raise InvalidInput("expected a module with parameters, got none; there is no gradient")
    asked = [m for n in layers for m in (modules[n].modules() if whole else [modules[n]])]
    with _refusing():
        trial = _Trial.of(network, records, loss, wanted)
    pairs = trial.factored(_own_linear(net, asked))
    inside = {id(p) for m in pairs.values() for p in m.parameters()}
    if not whole:
        # a layer around it wants the same parameters in full
        outer = [m for m in asked if all(m is not linear for linear in pairs.values())]
        inside -= {id(p) for m in outer for p in m.parameters()}
    dense = {name: p for name, p in wanted.items() if id(p) not in inside}
    size = trial.kept + sum(p.numel() * p.element_size() for p in dense.values())
    rows = max(1, min(network.batch_size, _budget(trial.x.device) // (2 * size + 1)))
    return _Plan(network, loss, layers, pairs, dense, trial.vmapped(dense), rows)


def _union(parts: Iterable[dict[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """Parameters of several layers, each one once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for part in parts:
        for name, p in part.items():
            found.setdefault(id(p), (name, p))
    return dict(found.values())


def _budget(device: torch.device) -> int:
    """Bytes that a chunk may take: `WORKING_BYTES`, or a quarter of what a GPU has left."""
    if device.type != "cuda":
        return WORKING_BYTES
    return max(WORKING_BYTES, torch.cuda.mem_get_info(device)[0] // 4)


@dataclass(frozen=True)
class _Trial:
    """A few records, and their gradients by autograd, one record at a time.

    Attributes:
        wanted: the parameters in question.
        loss: the user's, plus a fixed linear function of the logits: no gradient is zero only
            because the model is sure of these records.
        truth: the gradients, in lists with one entry a record.
        kept: bytes of one record that wait for the backward pass.
    """

    network: Network
    x: Tensor
    y: Tensor
    loss: Loss
    wanted: Mapping[str, nn.Parameter]
    truth: Mapping[str, Sequence[Tensor]]
    kept: int

    @classmethod
    def of(
        cls, network: Network, records: Records, loss: Loss, wanted: Mapping[str, nn.Parameter]
    ) -> _Trial:
        large = sum(p.numel() * p.element_size() for p in wanted.values()) > _BLOCK_BYTES
        spread = np.linspace(0, len(records) - 1, 2 if large else 4).astype(np.int64)
        x, y = network.read(records, np.unique(spread))
        with _still(network.net):
            logits = network.logits(network.net(x[:1]), 1)
            draw = torch.Generator().manual_seed(0)
            fixed = torch.randn(logits.shape[1:], generator=draw).to(logits)
        _labels_within(records, 2 if logits.ndim == 1 else logits.shape[1])

        def tried(logits: Tensor, y: Tensor) -> Tensor:
            return _by_record(loss, logits, y) + (logits * fixed).reshape(len(y), -1).sum(dim=1)

        kept = _Kept(network.net)
        with kept.counting():
            one = _one_by_one(network, wanted, x[:1], y[:1], tried)
        _finite(one.values())
        others = _one_by_one(network, wanted, x[1:], y[1:], tried) if len(x) > 1 else {}
        truth = {name: [*g, *others.get(name, ())] for name, g in one.items()}
        return cls(network, x, y, tried, wanted, truth, kept.bytes)

    def factored(self, linear: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
        """Those of the layers whose (delta, a) give the true gradients."""
        try:
            pairs = _pairs(self.network, linear, self.x, self.y, self.loss) if linear else {}
        except Exception:  # rows that are not records; whatever else a batch is refused for
            # find out which: one such layer does not spoil the others
            return {n: m for n, m in linear.items() if len(linear) > 1 and self.factored({n: m})}
        names = {id(p): name for name, p in self.wanted.items()}
        right = {}
        for name, (delta, a) in pairs.items():
            made = {"weight": torch.einsum("n...o,n...i->noi", delta, a)}
            made["bias"] = delta.flatten(1, -2).sum(dim=1) if delta.ndim > 2 else delta
            own = linear[name].named_parameters()
            if self._agree({names[id(p)]: made[key] for key, p in own}):
                right[name] = linear[name]
        return right

    def vmapped(self, dense: Mapping[str, nn.Parameter]) -> bool:
        """Whether `vmap` bears the module and gives the true gradients."""
        if not dense:
            return False
        try:
            found = _vmapped(self.network, dense, self.x, self.y, self.loss)
        except Exception:  # whatever the module does that vmap cannot
            return False
        owners: dict[str, dict[str, Tensor]] = {}
        for name, g in found.items():
            owners.setdefault(name.rpartition(".")[0], {})[name] = g
        return all(self._agree(part) for part in owners.values())

    def _agree(self, found: Mapping[str, Tensor]) -> bool:
        """Whether one layer's gradients are the true ones, but for rounding."""
        for i in range(len(self.x)):
            true = torch.cat([self.truth[name][i].flatten() for name in found]).double()
            gap = torch.cat([g[i].flatten() for g in found.values()]).double() - true
            rounding = min(0.1, 10 * torch.finfo(self.truth[next(iter(found))][i].dtype).eps ** 0.5)
            if not bool(gap.norm() <= rounding * true.norm() + 1e-30):
                return False
        return True


def _labels_within(records: Records, classes: int) -> None:
    if records.y.max() >= classes:
        raise InvalidInput(
            f"expected labels below {classes}, the number of classes that the model answers with, "
            f"got {records.y.max()}; give the records the model's classes"
        )


class _Kept:
    """Counts the bytes that autograd keeps for the backward pass, the parameters apart."""

    def __init__(self, net: nn.Module) -> None:
        self.bytes = 0
        self._seen = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda t: t):
            yield

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


# --- one chunk -----------------------------------------------------------------------------------


def _pairs(
    network: Network, layers: Mapping[str, nn.Linear], x: Tensor, y: Tensor, loss: Loss
) -> _Pairs:
    """(delta, a) of each layer that runs, from one forward pass.

    The graph starts at the layers' outputs: what comes before the first of them builds none.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            z = output if output.requires_grad else output.detach().requires_grad_()
            a = (*args, *kwargs.values())[0]
            # copies: what comes after may change either in place
            calls[name].append((a.detach().clone(), z))
            return z.clone()

        return hook

    with ExitStack() as stack:
        stack.enter_context(_still(network.net))
        for name, layer in layers.items():
            # before the user's own hooks, so that it is the layer's output
            hook = layer.register_forward_hook(watch(name), prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
        output = network.net(x)
        if loss is cross_entropy:
            end = network.logits(output, len(y))
            upstream = _residual(end, y)
        else:
            end = network.losses(output, y, loss)
            upstream = torch.ones_like(end)
        outputs = [z for uses in calls.values() for _, z in uses]
        if end.requires_grad:
            found = torch.autograd.grad(end, outputs, upstream, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(z) for z in outputs)
    deltas = iter(found)
    return {
        name: _joined([(next(deltas), a) for a, _ in uses], len(y))
        for name, uses in calls.items()
        if uses
    }


def _joined(uses: Sequence[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """One pair (n, out), (n, in), or with a middle axis of all uses of the layer by a record."""
    if any(delta.ndim < 2 or len(delta) != n for delta, _ in uses):
        raise InvalidInput(
            f"expected a layer's inputs with one row for each of {n} records, got "
            f"{[tuple(a.shape) for _, a in uses]}; put the records first"
        )
    if len(uses) == 1 and uses[0][0].ndim == 2:
        return uses[0]
    flat = [[v.reshape(n, -1, v.shape[-1]) for v in pair] for pair in uses]
    return torch.cat([d for d, _ in flat], dim=1), torch.cat([a for _, a in flat], dim=1)


def _vmapped(
    network: Network, wanted: Mapping[str, nn.Parameter], x: Tensor, y: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Gradients (n, *shape) by the parameters, of all records at once."""

    places = _places(network.net, wanted)

    def one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        everywhere = {place: params[name] for place, name in places.items()}
        # left to tie weights itself, it would not put those of a module with two names back
        output = functional_call(network.net, everywhere, (x[None],), tie_weights=False)
        return network.losses(output, y[None], loss)[0]

    params = {name: p.detach() for name, p in wanted.items()}
    with _still(network.net), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # what vmap must loop over is slow and right
        warnings.filterwarnings("ignore", "There is a performance drop")
        found: dict[str, Tensor] = vmap(grad(one), (None, 0, 0))(params, x, y)
    return found


def _places(net: nn.Module, wanted: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Where in the module the parameters are, each module under one name: place -> name."""
    names = {id(p): name for name, p in wanted.items()}
    return {
        f"{module_name}.{key}".strip("."): names[id(p)]
        for module_name, module in net.named_modules()
        for key, p in module._parameters.items()
        if id(p) in names
    }


def _one_by_one(
    network: Network, wanted: Mapping[str, nn.Parameter], x: Tensor, y: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Gradients (n, *shape) by the parameters, by autograd on each record alone."""
    params = list(wanted.values())
    rows = []
    with _still(network.net, params):
        for i in range(len(y)):
            losses = network.losses(network.net(x[i : i + 1]), y[i : i + 1], loss)
            if not losses.requires_grad:
                raise InvalidInput(
                    "expected logits that depend on the chosen layers, got ones that autograd "
                    "cannot trace to them; choose layers that the forward pass uses, undetached"
                )
            rows.append(torch.autograd.grad(losses[0], params, materialize_grads=True))
    columns = zip(*rows, strict=True)
    return {
        name: torch.stack([g.to_dense() if g.is_sparse else g for g in column])
        for name, column in zip(wanted, columns, strict=True)
    }


@contextmanager
def _still(net: nn.Module, wanted: Sequence[Tensor] = ()) -> Iterator[None]:
    """Eval mode, and gradients by the wanted parameters only; all is restored after."""
    modes = [(module, module.training) for module in net.modules()]
    asked = [(p, p.requires_grad) for p in net.parameters()]
    # the fused kernel of a transformer layer calls none of the layers inside it
    fused = torch.backends.mha.get_fastpath_enabled()
    chosen = {id(p) for p in wanted}
    try:
        net.eval()
        for p, _ in asked:
            p.requires_grad_(id(p) in chosen)
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for p, was in asked:
            p.requires_grad_(was)
        for module, mode in modes:
            module.training = mode


def _chunks(n: int, rows: int, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """(rows, work(rows)) for all n records; where memory runs out, in chunks of half the size."""
    _keep_freed_memory()
    start = 0
    while start < n:
        part = slice(start, min(start + rows, n))
        done = _unless_out_of_memory(work, part)
        if done is not None:
            yield part, done
            done, start = None, part.stop
        elif part.stop - part.start == 1:
            raise InvalidInput(
                "expected the gradient of one record to fit in memory, got out of memory; choose "
                "fewer layers"
            )
        else:
            rows = (part.stop - part.start) // 2


def _keep_freed_memory() -> None:
    """Have the C library keep what a chunk frees for the next one.

    glibc hands freed memory back to the system above twice the largest block that it has seen
    freed, 32 MiB at most; each chunk then pays for fresh pages, up to a tenth of a forward pass.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _unless_out_of_memory(work: Callable[[slice], T], part: slice) -> T | None:
    try:
        with _refusing():
            return work(part)
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        # what torch says on a CPU has no type of its own
        if "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def _refusing() -> Iterator[None]:
    """What a module's or a loss's own code raises, as one sentence; a lack of memory as it is."""
    try:
        yield
    except (VestigeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(
            f"expected a module and a loss that can be differentiated, one record at a time too, "
            f"got one that refused ({said}); try the loss on one record"
        ) from error


def _squares(delta: Tensor, a: Tensor, bias: bool) -> Tensor:
    """Squared norms (n,) float64 of the gradients sum_t outer(delta_t, a_t), and of the bias's."""
    if delta.ndim == 2:
        return _length(delta) ** 2 * (_length(a) ** 2 + bias)
    steps, out, inner = delta.shape[1], delta.shape[2], a.shape[2]
    # products of inputs times products of deltas, or the gradient itself where it is smaller
    by_steps = steps * (out + inner) <= out * inner
    numbers = steps * (out + inner) + (2 * steps * steps if by_steps else out * inner)
    block = max(1, _BLOCK_BYTES // (8 * numbers))
    found = torch.empty(len(delta), dtype=torch.float64, device=delta.device)
    for start in range(0, len(delta), block):
        d, b = (v[start : start + block].double() for v in (delta, a))
        if by_steps:
            squares = ((d @ d.mT) * (b @ b.mT + bias)).sum(dim=(1, 2)).clamp(min=0)
        else:
            squares = _length((d.mT @ b).flatten(1)) ** 2 + bias * _length(d.sum(dim=1)) ** 2
        found[start : start + block] = squares
    return found


def _length(rows: Tensor) -> Tensor:
    # in float64: the square of a small gradient is nothing in float32
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return length


def _finite(found: Iterable[Tensor]) -> None:
    for tensor in found:
        # a finite sum has finite terms, and is cheaper to see
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)).sum())
            raise InvalidInput(
                f"expected finite gradients, got NaN or infinity for {bad} records; the model has "
                "diverged or its inputs are out of range"
            )


def _as_numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.ascontiguousarray(tensor.numpy())
