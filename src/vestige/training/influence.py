"""What one record more does to trained models: their twins with it, and queries that show it.

Models are updated by a few steps on batches that hold the record (Long et al. 2018, section 4.5,
Figure 6), each beside a control that takes the same steps without it: further training alone
raises most probabilities, and the difference of the two is the record's. Models that cannot be
updated are trained anew, with and without the record.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vestige.errors import InvalidInput
from vestige.models import BlackBox, TorchModel, inputs_tensor
from vestige.records import Records, concatenate
from vestige.signals import cross_entropy_loss
from vestige.training.fit import Resident, assign, convolves, make_optimizer, n_steps, one_thread
from vestige.training.many import model_seed, train_many
from vestige.training.recipe import Recipe, TorchRecipe, tensors_of
from vestige.training.stacked import alike

__all__ = ["Hinge", "Twins", "hinge", "twins"]

Floats = NDArray[np.float64]
Table = NDArray[np.bool_]
Index = NDArray[np.int64]

TRULY_RETRAINED = 3
"""Models that are trained anew with the record, to see what its loss is then."""

WARM = 20
"""Batches that an optimizer sees before its first step, which of a fresh Adam has no size."""

LEAST_RATE = 0.1
"""Of the recipe's first learning rate: a schedule may end at a rate that moves nothing."""

AT_ONCE = 2**28
"""Bytes of weights of a stack."""

ANSWERS_AT_ONCE = 2**22
"""Numbers of inputs times models whose graph is kept for a gradient."""


@dataclass(frozen=True, eq=False)
class Twins:
    """Each model after it has seen the record, and after it has not.

    Attributes:
        positive: (k) models trained with the record.
        control: (k) models that took the same steps without it.
        steps: (k,) steps that were taken; 0 where the twins were trained anew.
        aim: the loss of the record at which a model was left alone; NaN if trained anew.
    """

    positive: Sequence[BlackBox]
    control: Sequence[BlackBox]
    steps: Index
    aim: float


def twins(
    recipe: Recipe,
    models: Sequence[BlackBox],
    records: Records,
    member: Table,
    record: Records,
    *,
    seed: int,
    retrain: bool = False,
) -> Twins:
    """Train models on with one record more, and beside each a control without it.

    A torch model takes steps on batches of its own training set and the record, at the learning
    rate it ended with (a tenth of the first at least), by an optimizer that has seen 20 batches
    before. It stops after the first step at which the record's loss is not above `aim`, the median
    loss of three models that are truly trained with it, or after one epoch. From a control's batch
    the record's term is left out, and the others keep their weight. Dropout is off and running
    statistics stay as they are, so that twins differ by the record alone. Models that are no torch
    modules of their own are trained anew, with and without the record, from equal seeds.

    Args:
        recipe: how the models were trained.
        models: (k) trained models.
        records: (n) records they were trained on.
        member: (k, n) which of them each was; a record that was drawn twice counts once.
        record: one record, which none of the models was trained on.
        retrain: train torch models anew too.

    Raises:
        InvalidInput: not one record, or a table of another shape.
    """
    if len(record) != 1 or member.shape != (len(models), len(records)) or not len(models):
        raise InvalidInput(
            f"expected one record and a membership table of shape ({len(models)}, "
            f"{len(records)}), got {len(record)} records and a table of shape {member.shape}"
        )
    joined = _joined(records, record)
    if retrain or not isinstance(recipe, TorchRecipe) or not _are_networks(models):
        positive = train_many(recipe, joined, _with(member), seed=seed).models
        control = train_many(recipe, joined, _with(member, False), seed=seed).models
        return Twins(positive, control, np.zeros(len(models), dtype=np.int64), math.nan)
    few = _with(member[:TRULY_RETRAINED])
    retrained = train_many(recipe, joined, few, seed=seed).models
    losses = [cross_entropy_loss(m.log_probabilities(record.x), record.y)[0] for m in retrained]
    return _updated(recipe, models, joined, member, float(np.median(losses)), seed)


def _joined(records: Records, record: Records) -> Records:
    """The records and, last, the one; numbered anew, since it may be among them."""
    classes = records.classes or tuple(str(c) for c in range(records.n_classes))
    if int(record.y[0]) >= len(classes):
        raise InvalidInput(
            f"expected a label below {len(classes)}, the number of classes of the models' "
            f"training records, got {record.y[0]}"
        )
    first = replace(records, ids=np.arange(len(records)), classes=classes)
    x = np.asarray(record.x[:], dtype=records.x.dtype)
    return concatenate(
        first, Records(np.array([len(records)]), x, record.y, records.columns, classes)
    )


def _with(member: Table, record: bool = True) -> Table:
    return np.column_stack([member, np.full(len(member), record)])


def _are_networks(models: Sequence[BlackBox]) -> TypeGuard[Sequence[TorchModel]]:
    """Whether each answers with its module's own outputs: then its weights may be moved."""
    return all(type(model) is TorchModel for model in models)


# --- taking steps --------------------------------------------------------------------------------


def _updated(
    recipe: TorchRecipe,
    models: Sequence[TorchModel],
    joined: Records,
    member: Table,
    aim: float,
    seed: int,
) -> Twins:
    """Groups of models take their steps together; none depends on who is in its group."""
    sides = [[_of_net(m, deepcopy(m.net).eval()) for m in models] for _ in range(2)]
    device = next(models[0].net.parameters()).device
    data = Resident(joined, models[0].net, str(device))
    rows = _batches(member, recipe.batch_size, seed)
    # the record is the last row
    rows = np.concatenate([rows, np.full((*rows.shape[:2], 1), len(joined) - 1)], axis=2)
    most = np.ceil(member.sum(axis=1) / recipe.batch_size).astype(np.int64)
    taken = np.zeros(len(models), dtype=np.int64)
    noises = [torch.Generator(device).manual_seed(model_seed(seed, k)) for k in range(len(models))]
    few, _ = data.gather(rows[0, 0, -2:])
    with one_thread():
        for group in _groups(sides[0], few):
            pair = (_Stack([sides[0][k] for k in group]), _Stack([sides[1][k] for k in group]))
            own = [noises[k] for k in group]
            taken[group] = _take(recipe, pair, data, rows[group], most[group], aim, own)
            for stack in pair:
                stack.unstack()
    return Twins(sides[0], sides[1], taken, aim)


def _of_net(model: TorchModel, net: nn.Module) -> TorchModel:
    return TorchModel(net, logits=model.logits, outputs=model.outputs, batch_size=model.batch_size)


def _batches(member: Table, batch_size: int, seed: int) -> Index:
    """Rows of each model's own records, (k, steps, batch - 1), those of an epoch in random order.

    A model has its own order; where the last batch is short, it is filled from the beginning.
    """
    sizes = member.sum(axis=1)
    width = int(min(batch_size - 1, sizes.min()))
    steps = int(np.ceil(sizes / batch_size).max())
    rows = np.empty((len(member), steps, width), dtype=np.int64)
    for k, own in enumerate(member):
        order = np.random.default_rng([seed, k]).permutation(np.flatnonzero(own))
        rows[k] = np.resize(order, steps * width).reshape(steps, width)
    return rows


def _take(
    recipe: TorchRecipe,
    pair: tuple[_Stack, _Stack],
    data: Resident,
    rows: Index,
    most: Index,
    aim: float,
    noises: Sequence[torch.Generator],
) -> Index:
    """Steps of models and controls until each model's loss of the record is low enough, (k,)."""
    record, y = data.gather(rows[0, 0, -1:])
    label = int(y[0])
    size = n_steps(recipe, int(most.max()) * recipe.batch_size)
    movers = [_Mover(recipe, stack, _last_rate(recipe, size)) for stack in pair]
    for step in range(WARM if rows.shape[2] > 1 else 0):
        x, y = data.gather(rows[:, step % rows.shape[1], :-1])
        for mover in movers:
            mover.warm(x, y)
    taken, running = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
    for step in range(int(most.max())):
        x, y = data.gather(rows[:, step])
        if recipe.augment is not None:
            x = torch.stack([recipe.augment(a, g) for a, g in zip(x, noises, strict=True)])
        movers[0].step(x, y, running)
        if x.shape[1] > 1:  # else a batch is the record alone, and the control takes no step
            movers[1].step(x[:, :-1], y[:, :-1], running, share=1 - 1 / x.shape[1])
        taken += running
        with torch.no_grad():
            loss = -pair[0].probability(record, label)[:, 0].double().log().cpu().numpy()
        running &= (loss > aim) & (taken < most)
        if not running.any():
            break
    return taken


class _Stack:
    """Networks of one architecture as one; a single one is moved where it is."""

    def __init__(self, models: Sequence[TorchModel]) -> None:
        self.models = models
        nets = [model.net for model in models]
        if len(nets) == 1:
            self.tensors = {n: t.detach()[None] for n, t in tensors_of(nets[0]).items()}
        else:
            parts = stack_module_state(nets)
            self.tensors = {n: t.detach() for part in parts for n, t in part.items()}
        names = [n for n, p in nets[0].named_parameters() if p.requires_grad]
        self.weights = [self.tensors[n] for n in names]

    def answers(self, x: Tensor, own: bool = False) -> Tensor:
        """Logits (k, n, ...) of all models on inputs (n, ...), or of each on its (k, n, ...)."""
        net, logits = self.models[0].net, self.models[0].logits

        def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
            return logits(functional_call(net, tensors, (x,)))

        if len(self.models) == 1:
            alone = {name: tensor[0] for name, tensor in self.tensors.items()}
            return one(alone, x[0] if own else x)[None]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            made: Tensor = vmap(one, in_dims=(0, 0 if own else None))(self.tensors, x)
        return made

    def probability(self, x: Tensor, label: int) -> Tensor:
        """(k, n) probabilities of a class."""
        raw, said = self.answers(x), self.models[0].outputs
        if raw.ndim == 2 or raw.shape[2] == 1:
            flat = raw.reshape(len(raw), -1)
            if said in (None, "logits"):
                return torch.sigmoid(flat if label else -flat)
            one = flat if said == "probabilities" else flat.exp()
            return one if label else 1 - one
        if said in (None, "logits"):
            return torch.softmax(raw, dim=2)[:, :, label]
        return raw[:, :, label] if said == "probabilities" else raw[:, :, label].exp()

    def unstack(self) -> None:
        """Write the weights back to the networks, where they are not theirs already."""
        if len(self.models) == 1:
            return
        with torch.no_grad():
            for k, model in enumerate(self.models):
                for name, tensor in tensors_of(model.net).items():
                    tensor.copy_(self.tensors[name][k])


class _Mover:
    """Optimizers of a stack: one for all of it, or one a model where it is the user's own."""

    def __init__(self, recipe: TorchRecipe, stack: _Stack, rate: float) -> None:
        self._loss, self._stack = recipe.loss, stack
        self._together = isinstance(recipe.optimizer, str)
        for weight in stack.weights:
            weight.requires_grad_()
        self._parts = [stack.weights]
        if not self._together:
            k = len(stack.models)
            self._parts = [
                [w.detach()[i].requires_grad_() for w in stack.weights] for i in range(k)
            ]
        self._optimizers = [make_optimizer(recipe, part) for part in self._parts]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * rate

    def warm(self, x: Tensor, y: Tensor) -> None:
        """Let the optimizers see a batch (k, n, ...); no model moves."""
        self.step(x, y, np.zeros(len(self._stack.models), dtype=bool))

    def step(self, x: Tensor, y: Tensor, running: Table, share: float = 1.0) -> None:
        """One step of the models that run, each on its own batch, (k, n, ...).

        Args:
            share: of a whole batch, over which the mean is taken, that these records are.
        """
        weights = self._stack.weights
        answers = self._stack.answers(x, own=True)
        losses = [self._loss(a, b) for a, b in zip(answers, y, strict=True)]
        total = share * torch.stack(losses).sum()
        found = torch.autograd.grad(total, weights, materialize_grads=True)
        still = torch.from_numpy(np.flatnonzero(~running)).to(x.device)
        kept = [w.detach().index_select(0, still) for w in weights]
        for k, part in enumerate(self._parts):
            assign(part, found if self._together else [g[k] for g in found])
        for optimizer in self._optimizers:
            optimizer.step()
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.index_copy_(0, still, old)


def _last_rate(recipe: TorchRecipe, steps: int) -> float:
    """Factor on the learning rate: the schedule's at its end, but `LEAST_RATE` at least."""
    if recipe.schedule is None:
        return 1.0
    return max(recipe.schedule(1 - 1 / steps), LEAST_RATE)


def _groups(models: Sequence[TorchModel], x: Tensor) -> list[Index]:
    """Which models are taken as one stack: those alike, where a stack answers x as they do."""
    nets = [model.net for model in models]
    every = np.arange(len(nets))
    if len(nets) == 1 or not _stackable(models, x):
        return [every[k : k + 1] for k in every]
    size = sum(t.numel() * t.element_size() for t in tensors_of(nets[0]).values())
    width = max(2, AT_ONCE // max(size, 1))
    return [every[k : k + width] for k in range(0, len(nets), width)]


def _stackable(models: Sequence[TorchModel], x: Tensor) -> bool:
    nets = [model.net for model in models]
    # grouped convolutions are slow on a CPU; torch gives stacked embeddings other gradients
    slow = convolves(nets[0]) and x.device.type == "cpu"
    if slow or _embeds(nets[0]) or not alike(nets):
        return False
    with torch.no_grad():
        try:
            stack = _Stack(models[:2])
            together, alone = stack.answers(x), [m.logits(m.net(x)) for m in models[:2]]
        except Exception:  # whatever the module does that a stack cannot
            return False
    return bool(torch.allclose(together, torch.stack(alone), rtol=1e-3, atol=1e-4))


def _embeds(net: nn.Module) -> bool:
    return any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in net.modules())


# --- which queries show it -----------------------------------------------------------------------


class Hinge(Protocol):
    """sum_i max(0, gamma - (p_i - c_i)) of each query, and its gradient (sec. 4.5, eq. 3).

    p_i and c_i are the probabilities that twin i and its control give the record's class.
    """

    def __call__(self, x: NDArray[Any]) -> tuple[Floats, Floats]:
        """Values (n,) and gradients (n, ...) for queries (n, ...)."""
        ...


def hinge(
    positive: Sequence[BlackBox], control: Sequence[BlackBox], label: int, gamma: float
) -> Hinge | None:
    """The hinge loss of these models, None where it has no gradient: other models than torch's,
    or modules that embed their inputs.
    """
    if not (_are_networks(positive) and _are_networks(control)):
        return None
    if _embeds(positive[0].net) or _embeds(control[0].net):
        return None
    return _Hinge([_evaluated(m) for m in positive], [_evaluated(m) for m in control], label, gamma)


def _evaluated(model: TorchModel) -> TorchModel:
    if not any(module.training for module in model.net.modules()):
        return model
    return _of_net(model, deepcopy(model.net).eval())


class _Hinge:
    """Models by groups, their gradients added up; weights are frozen."""

    def __init__(
        self,
        positive: Sequence[TorchModel],
        control: Sequence[TorchModel],
        label: int,
        gamma: float,
    ) -> None:
        self._sides, self._label, self._gamma = (positive, control), label, gamma
        self._pairs: list[tuple[_Stack, _Stack]] = []

    def __call__(self, x: NDArray[Any]) -> tuple[Floats, Floats]:
        net = self._sides[0][0].net
        inputs = inputs_tensor(x, net, next(net.parameters()).device)
        with one_thread():
            self._pairs = self._pairs or self._stacked(inputs[:2])
            widest = max(len(pair[0].models) for pair in self._pairs)
            size = max(1, ANSWERS_AT_ONCE // (widest * max(inputs[0].numel(), 64)))
            found = [self._of(part.clone()) for part in torch.split(inputs, size)]
        values, gradients = (
            torch.cat(side).double().cpu().numpy() for side in zip(*found, strict=True)
        )
        return values, gradients

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        value, gradient = x.new_zeros(len(x)), torch.zeros_like(x)
        for positive, control in self._pairs:
            gap = positive.probability(x, self._label) - control.probability(x, self._label)
            loss = torch.clamp(self._gamma - gap, min=0).sum(dim=0)
            gradient += torch.autograd.grad(loss.sum(), x, materialize_grads=True)[0]
            value += loss.detach()
        return value, gradient

    def _stacked(self, x: Tensor) -> list[tuple[_Stack, _Stack]]:
        groups = max((_groups(side, x) for side in self._sides), key=len)
        return [
            (_Stack([self._sides[0][k] for k in group]), _Stack([self._sides[1][k] for k in group]))
            for group in groups
        ]
