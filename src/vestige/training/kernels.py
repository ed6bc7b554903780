"""Explicit stacked kernels for plain networks: linear layers and elementwise activations.

One batched product a layer forward, two backward, for all models at once, with no autograd and no
dispatch a model. Activations lie as (n_models, units, batch): of the layouts tried it is the one
in which every product and the softmax over classes are fast for small layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

__all__ = [
    "Layer",
    "Plain",
    "PlainStack",
    "is_large",
    "onednn",
    "plain_layers",
    "product",
    "products",
]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Activation:
    """In-place activation, and its derivative from the gradient and its own output or input."""

    apply: Callable[[Tensor], Any]
    backward: Callable[[Tensor, Tensor], Tensor]
    from_input: bool = False


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return _aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)  # type: ignore[no-any-return]


def _tanh_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return _aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)  # type: ignore[no-any-return]


def _sigmoid_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return _aten.sigmoid_backward.grad_input(gradient, output, grad_input=gradient)  # type: ignore[no-any-return]


def _silu_backward(gradient: Tensor, given: Tensor) -> Tensor:
    return _aten.silu_backward.grad_input(gradient, given, grad_input=gradient)  # type: ignore[no-any-return]


def _gelu_backward(gradient: Tensor, given: Tensor) -> Tensor:
    return _aten.gelu_backward.grad_input(gradient, given, grad_input=gradient)  # type: ignore[no-any-return]


ACTIVATIONS: dict[str, _Activation] = {
    "relu": _Activation(torch.relu_, _relu_backward),
    "tanh": _Activation(torch.tanh_, _tanh_backward),
    "sigmoid": _Activation(torch.sigmoid_, _sigmoid_backward),
    "silu": _Activation(functional.silu, _silu_backward, from_input=True),
    "gelu": _Activation(functional.gelu, _gelu_backward, from_input=True),
}


@dataclass(frozen=True)
class Layer:
    """A linear layer and what follows it.

    Attributes:
        weight: name of the parameter, shape (units, inputs).
        bias: name of the parameter, shape (units,); "" for none.
        activation: a name in `ACTIVATIONS`; "" for none.
        dropout: share of the outputs that are dropped in training.
    """

    weight: str
    bias: str
    activation: str = ""
    dropout: float = 0.0


Plain = tuple[Layer, ...]


# --- which networks are plain --------------------------------------------------------------------


def plain_layers(net: nn.Module) -> Plain | None:
    """The layers of a network that is a chain of linear layers and activations, else None.

    It is read off the trace of the forward pass in training mode, so that a chain written as a
    module of one's own counts as one too.
    """
    if any(True for _ in net.buffers()) or any(not p.requires_grad for p in net.parameters()):
        return None
    if any(hooks for m in net.modules() for n, hooks in vars(m).items() if n.endswith("_hooks")):
        return None
    try:
        # a copy, and in a module, since the one that is traced is no step of its own trace
        copy = deepcopy(net).train()
        with torch.no_grad():
            # so that a forward pass that bounds its weights changes them
            values = [p.mul_(1e3).clone() for p in copy.parameters()]
        traced = fx.symbolic_trace(nn.Sequential(copy))
    except Exception:  # whatever the forward pass does with what is no tensor
        return None
    if not all(torch.equal(p, v) for p, v in zip(copy.parameters(), values, strict=True)):
        return None
    layers: list[Layer] = []
    last: fx.Node | None = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if last is not None or node.args:
                return None
        elif node.op == "output":
            return _sound(tuple(layers), net) if node.args[0] is last else None
        elif last is None or not _follows(node, last) or not _add(layers, node, net):
            return None
        last = node
    return None


def _follows(node: fx.Node, last: fx.Node) -> bool:
    """Whether a node reads the one before it, and nobody else does."""
    return node.all_input_nodes == [last] and list(last.users) == [node]


def _sound(layers: Plain, net: nn.Module) -> Plain | None:
    """The layers, if they end in logits and their parameters are all that the network has."""
    named = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    own = dict(net.named_parameters())
    ends = layers and not layers[-1].activation and not layers[-1].dropout
    return layers if ends and sorted(named) == sorted(own) else None


_OF_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
_OF_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    functional.relu: "relu",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    functional.silu: "silu",
    functional.gelu: "gelu",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


def _add(layers: list[Layer], node: fx.Node, net: nn.Module) -> bool:
    """Take a node into the chain; whether it could be."""
    if node.op == "call_module":
        # "0" is the network itself, "0.name" a part of it
        module = net.get_submodule(str(node.target)[2:])
        if type(module) is nn.Linear:
            name = str(node.target)[1:] + "."
            bias = f"{name}bias" if module.bias is not None else ""
            layers.append(Layer(f"{name}weight".lstrip("."), bias.lstrip(".")))
            return True
        if type(module) is nn.Flatten:
            return not layers and (module.start_dim, module.end_dim) == (1, -1)
        if type(module) is nn.Dropout:
            return _drop(layers, module.p)
        exact = getattr(module, "approximate", "none") == "none"
        return exact and _activate(layers, _OF_MODULES.get(type(module), ""))
    if node.op == "call_function" and node.target in (torch.flatten, functional.dropout):
        if node.target is torch.flatten:
            arguments = [*node.args[1:], *node.kwargs.items()]
            return not layers and arguments in ([1], [("start_dim", 1)])
        share = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        plain = len(node.args) < 3 and not node.kwargs.get("inplace", False)
        return plain and node.kwargs.get("training", True) is True and _drop(layers, share)
    if node.op == "call_method" and node.target == "flatten":
        return not layers and list(node.args[1:]) == [1] and not node.kwargs
    plain = len(node.args) == 1 and not node.kwargs
    return plain and node.op != "get_attr" and _activate(layers, _name(node))


def _name(node: fx.Node) -> str:
    try:
        return _OF_FUNCTIONS.get(node.target, "")
    except TypeError:
        return ""


def _activate(layers: list[Layer], name: str) -> bool:
    if not layers or not name or layers[-1].activation or layers[-1].dropout:
        return False
    layers[-1] = replace(layers[-1], activation=name)
    return True


def _drop(layers: list[Layer], share: Any) -> bool:
    if not layers or not isinstance(share, float) or not 0 <= share < 1 or layers[-1].dropout:
        return False
    layers[-1] = replace(layers[-1], dropout=share)
    return True


# --- the kernels ---------------------------------------------------------------------------------


class PlainStack:
    """The weights of many plain networks in one piece of memory, and their gradients beside them.

    Args:
        layers: of all of them.
        nets: initialized networks of one architecture; `unstack` writes their weights back.
        batch: records of a step, which decides what is a large product.

    Attributes:
        trained: what an optimizer moves: all small layers as one tensor, so that a step of all of
            them is one call, and each large matrix, whose gradient comes without a copy.
    """

    def __init__(self, layers: Plain, nets: Sequence[nn.Module], batch: int) -> None:
        self._layers, self._nets = layers, nets
        own = [dict(net.named_parameters()) for net in nets]
        first = own[0]
        names = [n for layer in layers for n in (layer.weight, layer.bias) if n]
        weights = [layer.weight for layer in layers]
        large = [n for n in weights if is_large(first[n], batch * first[n].numel())]
        small = [n for n in names if n not in large]
        size = sum(first[n].numel() for n in small) * len(nets)
        flat = first[names[0]].new_empty(size).requires_grad_()
        flat.grad = torch.zeros_like(flat)
        self.trained = [flat]
        self._weights: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._apart: dict[str, list[Tensor]] = {}
        start = 0
        for name in small:
            shape = (len(nets), *first[name].shape)
            stop = start + math.prod(shape)
            self._weights[name] = flat.detach()[start:stop].view(shape)
            self._gradients[name] = flat.grad[start:stop].view(shape)
            start = stop
        for name in large:
            self._weights[name] = first[name].new_empty(len(nets), *first[name].shape)
            self._apart[name] = [w.requires_grad_() for w in self._weights[name].detach().unbind()]
            self.trained += self._apart[name]
        for name in names:
            torch.stack([p[name].detach() for p in own], out=self._weights[name])
        self._kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def unstack(self) -> None:
        """Put the weights back into the networks."""
        with torch.no_grad():
            for k, net in enumerate(self._nets):
                for name, p in net.named_parameters():
                    p.copy_(self._weights[name][k])

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor, noises: Sequence[torch.Generator]) -> None:
        """Gradients of each model's mean cross-entropy on its own batch.

        Args:
            x: (n_models, batch, inputs).
            y: (n_models, batch) int64.
            noises: each model's own generator, which draws what is dropped.
        """
        batch = x.shape[1]
        if batch not in self._kept:
            self._kept[batch] = self._space(batch), self._space(batch)
        outputs, deltas = self._kept[batch]
        inputs = x.transpose(1, 2)
        saved = []
        for layer, output in zip(self._layers, outputs, strict=True):
            products(self._weights[layer.weight], inputs, output)
            if layer.bias:
                output.add_(self._weights[layer.bias].unsqueeze(2))
            before, after, mask = output, output, None
            if layer.activation:
                activation = ACTIVATIONS[layer.activation]
                made = activation.apply(output)
                after = made if activation.from_input else output
            if layer.dropout:
                mask = _mask(after, layer.dropout, noises)
                # not in place: the derivative is taken from the output as it was
                after_drop = after * mask
            else:
                after_drop = after
            is_input = layer.activation and ACTIVATIONS[layer.activation].from_input
            saved.append((inputs, before if is_input else after, mask))
            inputs = after_drop
        delta = _cross_entropy_backward(inputs, y)
        for place in range(len(self._layers) - 1, -1, -1):
            layer, (given, kept, mask) = self._layers[place], saved[place]
            if mask is not None:
                delta.mul_(mask)
            if layer.activation:
                delta = ACTIVATIONS[layer.activation].backward(delta, kept)
            if layer.weight in self._apart:
                for k, p in enumerate(self._apart[layer.weight]):
                    p.grad = product(delta[k], given[k].t())
            else:
                products(delta, given.transpose(1, 2), self._gradients[layer.weight])
            if layer.bias:
                torch.sum(delta, 2, out=self._gradients[layer.bias])
            if place:
                back = self._weights[layer.weight].transpose(1, 2)
                delta = products(back, delta, deltas[place - 1])

    def _space(self, batch: int) -> list[Tensor]:
        weights = [self._weights[layer.weight] for layer in self._layers]
        return [w.new_empty(w.shape[0], w.shape[1], batch) for w in weights]


LARGE_PRODUCT = 2**21
"""Multiplications of a product from which oneDNN is called model by model: it is as fast as the
batched product on some processors, twice as fast on others, but costs a dozen microseconds a call.
"""


def is_large(like: Tensor, size: int) -> bool:
    """Whether a product of so many multiplications is oneDNN's."""
    usual = like.dtype == torch.float32 and like.device.type == "cpu"
    return onednn is not None and usual and size >= LARGE_PRODUCT


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by oneDNN, which must be there: see `is_large`."""
    assert onednn is not None
    return onednn(a, b.t(), None, "none", [], "")


def products(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a[k] @ b[k] for every model k."""
    if not is_large(a, a.shape[1] * a.shape[2] * b.shape[2]):
        return torch.bmm(a, b, out=out)
    for k in range(len(a)):
        out[k].copy_(product(a[k], b[k]))
    return out


def _found() -> Callable[..., Tensor] | None:
    """oneDNN's float32 product x @ w.T, which torch's compiler calls too; not in every build."""
    try:
        found: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        one = torch.ones(1, 1)
        return found if float(found(one, one, None, "none", [], "")) == 1 else None
    except Exception:  # a build without it may raise anything
        return None


onednn = _found()


def _cross_entropy_backward(logits: Tensor, y: Tensor) -> Tensor:
    """d(mean cross-entropy)/d(logits): (p - onehot) / batch; logits (n_models, classes, batch)."""
    batch = logits.shape[2]
    if logits.shape[1] == 1:
        return torch.sigmoid(logits).sub_(y.unsqueeze(1)).div_(batch)
    delta = torch.softmax(logits, 1).mul_(1 / batch)
    return delta.scatter_(1, y.unsqueeze(1), -1 / batch, reduce="add")


def _mask(like: Tensor, share: float, noises: Sequence[torch.Generator]) -> Tensor:
    """What nn.Dropout would draw for each model alone: 0 or 1 / (1 - share)."""
    n_models, units, batch = like.shape
    drawn = like.new_empty(n_models, batch, units)
    for own, noise in zip(drawn, noises, strict=True):
        own.bernoulli_(1 - share, generator=noise)
    return drawn.div_(1 - share).transpose(1, 2)
