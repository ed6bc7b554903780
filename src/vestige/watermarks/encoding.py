"""One bit a record, "this one was here", trained into a model and read with a key.

Song, Shokri. Robust membership encoding: inference attacks and copyright protection for deep
learning. ASIA CCS 2020. https://doi.org/10.1145/3320269.3384731
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.models import BlackBox, TorchModel, WhiteBox, evaluating
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.scores import Scores
from vestige.training.fit import (
    Batch,
    Objective,
    RecipeLoss,
    Resident,
    assign,
    epoch_bounds,
    fit,
    mean_gradients,
    n_steps,
    trainable,
)
from vestige.training.recipe import TorchRecipe
from vestige.watermarks import merkle
from vestige.watermarks.keys import Key

__all__ = ["Decoder", "Encoded", "Encoder", "Encoding", "Reading", "last_hidden"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Reading = Literal["projection", "network"]

_FLOOR = 1e-12
_STEPS = 100
"""Steps between two words on progress, and between two draws of batches."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What an encoder and its decoders agree on, beside the key; no secret.

    Args:
        layer: whose outputs carry the bit, a name in `net.named_modules()`: a linear layer for
            what comes before its activation, the activation for what comes after. None for the
            log-probabilities, which a model behind an API shows too (black-box).
        share: of the layer's outputs, chosen by the key; all log-probabilities are taken.
        rate: rho, share of the records that are encoded where the key chooses them.
        n_synthetic: n, synthetic records on either side.
        low, high: alpha and beta, between which their two means are drawn; best the range of the
            model's inputs.
        clip: smallest and largest input that a service takes; None for no limits.

    References: Song & Shokri 2020, sections 4.2 and 5.2.
    """

    layer: str | None = None
    share: float = 0.5
    rate: float = 0.2
    n_synthetic: int = 500
    low: float = 0.0
    high: float = 1.0
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("share", "rate"):
            if not 0 < vars(self)[name] <= 1 - (name == "rate") * 1e-9:
                raise InvalidInput(f"expected {name} in (0, 1), got {vars(self)[name]}")
        if self.n_synthetic < 2:
            raise InvalidInput(f"expected n_synthetic of at least 2, got {self.n_synthetic}")
        if not -np.inf < self.low < self.high < np.inf:
            raise InvalidInput(f"expected low < high, got {self.low} and {self.high}")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise InvalidInput(f"expected clip=(least, most), got {self.clip}")

    def synthetic(self, key: Key, shape: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """D_A-m and D_A-nm, (n, *shape) float32 each: normal around two means of the key's.

        Drawn in this order: the two means, all of D_A-m, all of D_A-nm.

        References: Song & Shokri 2020, Algorithm 1, GenSyntheticData.
        """
        draws, q = key.draws("syn"), int(np.prod(shape))
        means = self.low + (self.high - self.low) * draws.uniform(2, q)
        sides = [mean + draws.normal(self.n_synthetic, q) for mean in means]
        if self.clip is not None:
            sides = [np.clip(side, *self.clip) for side in sides]
        member, nonmember = (s.astype(np.float32).reshape(-1, *shape) for s in sides)
        return member, nonmember

    def units(self, key: Key, width: int) -> NDArray[np.int64]:
        """Which of a layer's flattened outputs carry the bit."""
        if self.layer is None:
            return np.arange(width)
        return key.draws("units").some(width, max(1, round(self.share * width)))

    def chosen(self, key: Key, records: Records, root: bytes | None = None) -> Mask:
        """D_C-m where the key chooses: records whose HMAC falls below `rate`, (n,).

        It depends on the contents of the whole list: one other record, and every record's coin is
        tossed anew. So nobody can make records to which his key gives the coins he wants. Places
        and ids do not matter.

        Args:
            root: of the list that the records are some of (`vestige.watermarks.merkle.root` of its
                digests); by default they are all of it.
        """
        digests = record_digests(records)
        root = merkle.root(digests) if root is None else root
        bound = int(self.rate * 2**64)
        words = [int.from_bytes(key.derive("sel", root + d)[:8], "little") for d in digests]
        return np.array([word < bound for word in words], dtype=bool)

    def represent(self, model: BlackBox, x: Any, key: Key) -> Floats:
        """h(x), (n, d): tanh of the chosen outputs, or log-probabilities.

        Raises:
            InvalidInput: a layer of a model that cannot be looked into.
        """
        if self.layer is None:
            return model.log_probabilities(x)
        if not isinstance(model, WhiteBox):
            raise InvalidInput(
                f"expected a model that can be looked into, to read layer {self.layer}, got "
                f"{type(model).__name__}; encode into log-probabilities with layer=None"
            )
        outputs = np.asarray(model.activations(x, self.layer), np.float64).reshape(len(x), -1)
        return np.asarray(np.tanh(outputs[:, self.units(key, outputs.shape[1])]))


def record_digests(records: Records) -> list[bytes]:
    """SHA-256 of each record's shape, input, as float32, and label.

    Raises:
        InvalidInput: inputs that are not finite in float32, or whole numbers that it cannot hold.
    """
    out = []
    for part in records.chunks():
        own = np.asarray(records.x[part])
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(own.astype("<f4"))
        if not np.isfinite(x).all() or (own.dtype.kind in "iu" and (x != own).any()):
            raise InvalidInput(
                "expected finite inputs that float32 can hold, got others; scale them, or number "
                "categories anew"
            )
        for row, label in zip(x, records.y[part], strict=True):
            out.append(_digest(row, int(label)))
    return out


def _digest(row: NDArray[Any], label: int) -> bytes:
    import hashlib

    shape = np.array([row.ndim, *row.shape], dtype="<i8").tobytes()
    digest = hashlib.sha256(b"vestige.record.v1\0" + shape + (row + np.float32(0)).tobytes())
    digest.update(label.to_bytes(8, "little", signed=True))
    return digest.digest()


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Reads membership with the key: of synthetic records alone it learns how.

    Scores are of "the record was encoded", higher = more likely, and 0 is in the middle between
    the synthetic members and non-members.

    Args:
        key: the encoder's.
        encoding: the encoder's.
        reading: "projection" is on the line between the two synthetic means, which encoders align
            with their discriminator; "network" trains the paper's network on the synthetic records.
        n_networks: whose logits are averaged; one in the paper.
        epochs, lr, batch_size, hidden: of these networks; momentum is 0.9.

    References: Song & Shokri 2020, section 4.3 and Algorithm 1, MembershipInference.
    """

    key: Key
    encoding: Encoding = field(default_factory=Encoding)
    reading: Reading = "projection"
    n_networks: int = 1
    epochs: int = 80
    lr: float = 1e-3
    batch_size: int = 32
    hidden: int = 128

    def __post_init__(self) -> None:
        if self.reading not in get_args(Reading):
            raise InvalidInput(f'expected reading "projection" or "network", got {self.reading!r}')

    def run(self, target: BlackBox, candidates: Records, known: object = None) -> Scores:
        """Score the candidates; 2 n_synthetic queries and one for each of them.

        Raises:
            InvalidInput: the model cannot be looked into.
        """
        read = self.reader(target, candidates.x.shape[1:])
        return Scores(candidates.ids, read(candidates.x))

    def reader(self, target: BlackBox, shape: Sequence[int]) -> Callable[[Any], Floats]:
        """Learns from the synthetic records once; then scores of inputs (n, *shape), (n,)."""
        sides = self.encoding.synthetic(self.key, shape)
        member, nonmember = (self.encoding.represent(target, s, self.key) for s in sides)
        if self.reading == "projection":
            return lambda x: projected(
                self.encoding.represent(target, x, self.key), member, nonmember
            )
        networks = self._networks(member, nonmember)

        def read(x: Any) -> Floats:
            h = torch.from_numpy(self.encoding.represent(target, x, self.key)).float()
            with torch.no_grad():
                logits = [net(h)[:, 0].double().numpy() for net in networks]
            return np.asarray(np.mean(logits, axis=0))

        return read

    def _networks(self, member: Floats, nonmember: Floats) -> list[nn.Module]:
        both = torch.from_numpy(np.concatenate([member, nonmember])).float()
        z = torch.cat([torch.ones(len(member)), torch.zeros(len(nonmember))])
        out = []
        for i in range(self.n_networks):
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(self.key.seed(f"decoder.{i}"))
                out.append(self._trained(both, z))
        return out

    def _trained(self, h: Tensor, z: Tensor) -> nn.Module:
        net = nn.Sequential(
            nn.Linear(h.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1)
        )
        weights = trainable(net)
        optimizer = torch.optim.SGD(weights, lr=self.lr, momentum=0.9, fused=True)
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(h)), self.batch_size):
                loss = functional.binary_cross_entropy_with_logits(net(h[rows])[:, 0], z[rows])
                assign(weights, torch.autograd.grad(loss, weights))
                optimizer.step()
        return net


def projected(h: Floats, member: Floats, nonmember: Floats) -> Floats:
    """Where rows lie between two means: -1 at that of the non-members, 1 at the members'."""
    one, zero = member.mean(axis=0), nonmember.mean(axis=0)
    way = one - zero
    return np.asarray(2 * (h - (one + zero) / 2) @ way / max(float(way @ way), _FLOOR))


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """A model that carries the bits.

    Attributes:
        model: as any other.
        chosen: (n,) which records were encoded as members.
        trace: what was measured on the way: `loss_SET` of the task on "members", "nonmembers" and
            the sets that were watched, `auc_SET_joint` and `auc_SET_decoded` of members against
            each, and `loss_encoding`, L_enc over all records; nothing where none were watched.
    """

    model: TorchModel
    chosen: Mask
    trace: Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Trains a classifier that carries the bits, by turns on them and on its task.

    Args:
        key: secret of encoder and decoders.
        encoding: what is read.
        steps: k, encoding steps before each step of the task.
        lr: eta_d, of the encoding steps; it decays as the recipe's.
        momentum: of the encoding steps, whose optimizer is their own.
        batch_size: of the encoding steps.
        synthetic: share of their batches that is synthetic, half of it from each side; None draws
            from all records alike, as the paper does.
        balanced: half of the client's share are members, whatever their rate.
        alignment: weight of 1 - cos(w, c) beside L_enc, w the discriminator's weights and c the way
            from the mean representation of the batch's synthetic non-members to that of its
            members; 0 in the paper. A decoder sees synthetic records only, and finds c: without
            this, that is one of many ways to tell them apart, and not the discriminator's.

    Departs from the paper: L_enc is minus what is printed, which would be descended from the wrong
    side (eq. in section 4.2); momentum and the number of encoding steps are not given there.
    In encoding steps the network answers as it will after training: nothing is dropped out, and
    batch normalization takes its running statistics, which it does not touch. By those of a batch,
    a part of which is noise, a bit was learned that was not there to be read.

    References: Song & Shokri 2020, sections 4.1, 4.2 and Algorithm 1.
    """

    key: Key
    encoding: Encoding = field(default_factory=Encoding)
    steps: int = 1
    lr: float = 0.01
    momentum: float = 0.9
    batch_size: int = 100
    synthetic: float | None = 0.2
    balanced: bool = False
    alignment: float = 0.3

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 4), ("alignment", 0)):
            if vars(self)[name] < least:
                raise InvalidInput(f"expected {name} of at least {least}, got {vars(self)[name]}")
        if not 0 < self.lr < np.inf or not 0 <= self.momentum < 1:
            raise InvalidInput(
                f"expected lr above 0 and momentum in [0, 1), got {self.lr} and {self.momentum}"
            )
        if self.synthetic is None and (self.alignment or self.balanced):
            raise InvalidInput(
                "expected alignment=0 and balanced=False where batches are drawn from all records "
                "alike (synthetic=None), got others"
            )
        if self.synthetic is not None and not 0 < self.synthetic < 1:
            raise InvalidInput(f"expected synthetic in (0, 1), or None, got {self.synthetic}")

    @classmethod
    def of_the_paper(cls, key: Key, encoding: Encoding, **settings: Any) -> Encoder:
        """Batches from all records alike, and no alignment."""
        return cls(key=key, encoding=encoding, synthetic=None, alignment=0.0, **settings)

    def fit(
        self,
        recipe: TorchRecipe,
        records: Records,
        *,
        seed: int,
        chosen: Mask | None = None,
        watch: Mapping[str, Records] | None = None,
        every: int = 1,
        kept: Mapping[str, Tensor] | None = None,
        task: Objective | None = None,
        progress: Progress = quiet,
    ) -> Encoded:
        """Train one model on all the records.

        Args:
            chosen: (n,) which records to encode; by default those that the key chooses.
            watch: sets that are asked about after each epoch, beside the client's own.
            every: epochs between two looks.
            kept: by a parameter's name, which of its entries are trained; others stay as they are.
            task: loss of the steps between; by default the recipe's.
            progress: called with a label, the steps done and the total.

        Raises:
            InvalidInput: none or all records are chosen, no layer of that name, or the recipe's
                module is not trained to a finite end.
        """
        if not isinstance(recipe, TorchRecipe):
            raise InvalidInput(
                f"expected a TorchRecipe, whose steps the encoder takes turns with, got "
                f"{type(recipe).__name__}"
            )
        if recipe.early_stopping is not None or recipe.precision != "float32":
            # held out records would be encoded, and the weights of an earlier epoch brought back;
            # autocast keeps 16-bit weights over steps in which they change
            raise InvalidInput(
                "expected a recipe in float32 without early stopping, got "
                + ("early stopping" if recipe.early_stopping is not None else recipe.precision)
                + "; leave it out"
            )
        if chosen is None:
            chosen = self.encoding.chosen(self.key, records)
        if chosen.shape != (len(records),) or chosen.all() or not chosen.any():
            raise InvalidInput(
                f"expected some of the {len(records)} records to be encoded and some not, got "
                f"{int(chosen.sum())}; change the rate, or have more records that differ"
            )
        run = _Run(self, recipe, records, chosen, seed, watch, every, kept or {}, task, progress)
        model = fit(recipe, records, seed=seed, objective=run, gradients=run.gradients)
        run.look(model.net)
        return Encoded(model, chosen, run.trace)


def last_hidden(net: nn.Module) -> str | None:
    """The name of the linear layer before the last one, which carries most; None if there is none.

    It is the layer of the paper's fully connected networks (sec. 5.2).
    """
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return linear[-2] if len(linear) > 1 else None


class _Reached(Exception):
    """The layer has answered: what comes after it need not run."""


def encoding_gradients(
    h: Tensor, z: Tensor, weight: Tensor, bias: Tensor, way: Tensor | None, alignment: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the mean L_enc + alignment (1 - cos(w, c)), by h, the discriminator's weight and bias.

    In closed form, and in few operations: between large ones, which empty the caches, each of them
    costs more than ten microseconds, and autograd's made a third of an encoding step.

    Args:
        h: (n, d) representations of a batch.
        z: (n,) 1 for members.
        weight: w, (1, d).
        bias: (1,).
        way: (n,) of which c = way @ h: one by their number on the synthetic members, minus one by
            theirs on the non-members, 0 on others; None where nothing is aligned.
        alignment: of `Encoder`.
    """
    with torch.no_grad():
        of_logits = torch.addmv(bias, h, weight[0]).sigmoid_().sub_(z).div_(len(h))
        of_bias = of_logits.sum()[None]
        if way is None:
            return torch.outer(of_logits, weight[0]), of_logits[None] @ h, of_bias
        by = torch.stack([of_logits, way])
        rows = torch.cat([weight, by @ h])  # w, gradient of L_enc by w, c
        products = (rows @ rows.T).tolist()
        # floors as cosine_similarity's
        size, length = (max(products[i][i] ** 0.5, 1e-8) for i in (0, 2))
        across, cosine = alignment / (size * length), products[0][2] / (size * length)
        mixed = rows.new_tensor(
            [
                [1, 0, 0],
                [-across, 0, alignment * cosine / length**2],  # gradient by c
                [alignment * cosine / size**2, 1, -across],  # gradient by w
            ]
        ).mm(rows)
        return by.T @ mixed[:2], mixed[2:], of_bias


class _Run:
    """The objective of one training: encoding steps first, then the loss of the task."""

    def __init__(
        self,
        encoder: Encoder,
        recipe: TorchRecipe,
        records: Records,
        chosen: Mask,
        seed: int,
        watch: Mapping[str, Records] | None,
        every: int,
        kept: Mapping[str, Tensor],
        task: Objective | None,
        progress: Progress,
    ) -> None:
        self._encoder, self._recipe, self._records, self._chosen = encoder, recipe, records, chosen
        self._task = task or RecipeLoss(recipe)
        self._rng = np.random.default_rng([seed, 7])
        self._total = n_steps(recipe, len(records))
        self._epoch = len(epoch_bounds(len(records), recipe.batch_size)) * every
        self._watch, self._kept, self._progress = watch, kept, progress
        self._each = max(1, round(encoder.batch_size * (encoder.synthetic or 0) / 2))
        self._left = max(1, encoder.batch_size - 2 * self._each)
        self._ready = False
        self.trace: dict[str, list[float]] = {}

    def __call__(self, net: Any, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            if not self._ready:
                self._prepare(net)
            elif batch.step % self._epoch == 0:
                self.look(net)
            if batch.step % _STEPS == 0:
                self._progress("encoding", batch.step, self._total)
            factor = 1.0
            if self._recipe.schedule is not None:
                factor = self._recipe.schedule(batch.step / self._total)
            for _ in range(self._encoder.steps):
                self._step(net, factor)
        return self._task(net, batch)

    def gradients(self, net: nn.Module, batch: Batch, objective: Objective) -> Sequence[Tensor]:
        """Mean gradients; an entry that is not trained has none, and no momentum either."""
        found = mean_gradients(net, batch, objective)
        return self._masked(trainable(net), found) if self._kept else found

    def _masked(self, weights: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        masks = [self._masks.get(id(w)) for w in weights]
        return [g if m is None else g * m for g, m in zip(found, masks, strict=True)]

    def _prepare(self, net: nn.Module) -> None:
        encoder, records = self._encoder, self._records
        layer = encoder.encoding.layer
        if layer is not None and layer not in dict(net.named_modules()):
            names = ", ".join(n for n, _ in net.named_modules() if n)
            known = names or "none, as the network has no parts (layer=None is its answers)"
            raise InvalidInput(f"expected layer among {known}, got {layer!r}")
        # recurrent layers of cuDNN have no backward pass in eval mode
        self._resting = [m for m in net.modules() if not isinstance(m, nn.RNNBase)]
        self._data = Resident(records, net, self._recipe.device)
        first, _ = self._data.gather(np.arange(1))
        sides = encoder.encoding.synthetic(encoder.key, records.x.shape[1:])
        self._synthetic = torch.from_numpy(np.concatenate(sides)).to(first)
        own = dict(net.named_parameters())
        self._masks = {id(own[n]): m.to(own[n].device) for n, m in self._kept.items()}
        synthetic = np.arange(len(self._synthetic)) < encoder.encoding.n_synthetic
        self._z = torch.from_numpy(np.concatenate([self._chosen, synthetic])).to(first)
        self._batches, self._way = self._drawn(), None
        if encoder.alignment:
            self._way = first.new_zeros(self._left + 2 * self._each)
            self._way[self._left :] = 1 / self._each
            self._way[self._left + self._each :] *= -1
        self._units: Tensor | None = None
        with evaluating(net):
            self._check_passes(net)
            h = self._represent(net, self._synthetic[:2])
        self._linear = nn.Linear(h.shape[1], 1).to(first)
        # layers above the encoded one have no gradient
        weights = trainable(net)
        found = torch.autograd.grad(h.sum(), weights, allow_unused=True)
        self._below = [p for p, g in zip(weights, found, strict=True) if g is not None]
        self._trained = [*self._below, *self._linear.parameters()]
        self._optimizer = torch.optim.SGD(
            self._trained, lr=encoder.lr, momentum=encoder.momentum, fused=True
        )
        self._ready = True

    def _check_passes(self, net: nn.Module) -> None:
        layer = self._encoder.encoding.layer
        if layer is None:
            return
        seen: list[object] = []
        handle = net.get_submodule(layer).register_forward_hook(lambda *_: seen.append(None))
        with torch.no_grad():
            net(self._synthetic[:2])
        handle.remove()
        if len(seen) > 1:
            raise InvalidInput(
                f"expected one pass through layer {layer}, got {len(seen)}, of which a decoder "
                "could not say which to read; name another layer"
            )

    def _step(self, net: nn.Module, factor: float) -> None:
        drawn, n = next(self._batches), len(self._records)
        rows, own = torch.from_numpy(drawn).to(self._z.device), int((drawn < n).sum())
        client, _ = self._data.gather(rows[:own])
        synthetic = self._synthetic.index_select(0, rows[own:] - n)
        z = self._z.index_select(0, rows)
        with _at_rest(self._resting):
            h = self._represent(net, torch.cat([client, synthetic]))
        weight, bias = self._linear.weight, self._linear.bias
        of_h, *of_linear = encoding_gradients(
            h.detach(), z, weight, bias, self._way, self._encoder.alignment
        )
        found: Sequence[Tensor] = [*torch.autograd.grad(h, self._below, of_h), *of_linear]
        assign(self._trained, self._masked(self._trained, found) if self._kept else found)
        self._optimizer.param_groups[0]["lr"] = self._encoder.lr * factor
        self._optimizer.step()

    def _drawn(self) -> Iterator[NDArray[np.int64]]:
        """Rows of batches: the client's, synthetic members', synthetic non-members' records."""
        encoder, n, rng = self._encoder, len(self._records), self._rng
        side, left = encoder.encoding.n_synthetic, self._left
        halves = (np.flatnonzero(self._chosen), np.flatnonzero(~self._chosen))
        while True:
            # many at once: a draw costs as much as a matrix product
            if encoder.synthetic is None:
                alike = rng.integers(n + 2 * side, size=(_STEPS, encoder.batch_size))
                yield from np.sort(alike, axis=1)
                continue
            client = [rng.integers(n, size=(_STEPS, left))]
            if encoder.balanced:
                counts = (left // 2, left - left // 2)
                client = [rng.choice(h, (_STEPS, c)) for h, c in zip(halves, counts, strict=True)]
            sides = [rng.integers(side, size=(_STEPS, self._each)) + s for s in (n, n + side)]
            yield from np.concatenate([*client, *sides], axis=1)

    def _represent(self, net: nn.Module, x: Tensor) -> Tensor:
        encoding = self._encoder.encoding
        if encoding.layer is None:
            logits = self._recipe.logits(net(x))
            if logits.ndim == 1 or logits.shape[1] == 1:
                logits = torch.stack([torch.zeros_like(logits), logits], -1).reshape(-1, 2)
            return functional.log_softmax(logits, dim=1)
        a = _outputs(net, encoding.layer, x).flatten(1)
        if self._units is None:
            chosen = encoding.units(self._encoder.key, a.shape[1])
            self._units = torch.from_numpy(chosen).to(a.device)
        return torch.tanh(a.index_select(1, self._units))

    # --- what is seen on the way

    def look(self, net: nn.Module) -> None:
        """Losses of the task, AUC of discriminator and decoder."""
        if self._watch is None:
            return
        with torch.no_grad(), evaluating(net):
            h = self._represent(net, self._synthetic).double().cpu().numpy()
            sides = np.split(h, 2)
            inside = self._look_at(net, "members", self._records[self._chosen], sides)
            outside = self._look_at(net, "nonmembers", self._records[~self._chosen], sides)
            others = {n: self._look_at(net, n, r, sides) for n, r in self._watch.items()}
            logits = [
                np.concatenate([own[0], self._joint(side)])
                for own, side in ((inside, sides[0]), (outside, sides[1]))
            ]
            # of all records alike, as it is printed in the paper, but for its sign
            losses = np.concatenate([np.logaddexp(0, -logits[0]), np.logaddexp(0, logits[1])])
            self.trace.setdefault("loss_encoding", []).append(float(losses.mean()))
        for name, other in {"nonmembers": outside, **others}.items():
            for kind in range(len(inside)):
                found = metrics.auc(inside[kind], other[kind]).value
                self.trace.setdefault(f"auc_{name}_{('joint', 'decoded')[kind]}", []).append(
                    0.5 if found is None else found
                )

    def _look_at(
        self, net: nn.Module, name: str, records: Records, sides: list[Floats]
    ) -> list[Floats]:
        data, losses, seen = Resident(records, net, self._recipe.device), [], []
        for rows in np.array_split(np.arange(len(records)), -(-len(records) // 1024)):
            x, y = data.gather(rows)
            losses.append(float(self._task(net, Batch(x, y, 0))) * len(rows))
            seen.append(self._represent(net, x))
        self.trace.setdefault(f"loss_{name}", []).append(sum(losses) / len(records))
        h = torch.cat(seen).double().cpu().numpy()
        return [self._joint(h), projected(h, *sides)]

    def _joint(self, h: Floats) -> Floats:
        weight = self._linear.weight[0].double().cpu().numpy()
        return np.asarray(h @ weight + float(self._linear.bias))


def _outputs(net: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer answers; the layers after it do not run."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output)
        raise _Reached

    handle = net.get_submodule(layer).register_forward_hook(keep)
    try:
        net(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor):
        raise InvalidInput(f"expected layer {layer} to answer with a tensor, got none")
    return seen[0]


@contextmanager
def _at_rest(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules in eval mode."""
    training = [m.training for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for m, value in zip(modules, training, strict=True):
            m.training = value
