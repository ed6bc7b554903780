"""Per-record gradients equal those of plain autograd on one record alone, whatever the module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vestige import gradients
from vestige.errors import InvalidInput
from vestige.gradients import Factored, cross_entropy
from vestige.models import EstimatorModel, TorchModel, WhiteBox
from vestige.records import Records

N, CLASSES = 11, 4


def records(shape: tuple[int, ...] = (6,), classes: int = CLASSES, tokens: int = 0) -> Records:
    rng = np.random.default_rng(0)
    x = rng.integers(0, tokens, (N, *shape)) if tokens else rng.normal(size=(N, *shape))
    return Records.from_arrays(x, rng.integers(0, classes, N))


def naive(net: nn.Module, data: Records, logits: Any = None, loss: Any = None) -> dict[str, Any]:
    """Gradients (n, *shape) by each parameter: a batch of one, backward, again."""
    net = copy.deepcopy(net).eval().requires_grad_(True)
    rows = []
    for x, y in zip(data.x, data.y, strict=True):
        net.zero_grad()
        x = torch.tensor(x[None], dtype=torch.int64 if data.x.dtype.kind == "i" else torch.float64)
        out = net(x) if logits is None else logits(net(x))
        if loss is not None:
            loss(out, torch.tensor([y])).sum().backward()
        elif out.ndim < 2 or out.shape[1] == 1:
            target = torch.tensor(float(y), dtype=out.dtype)
            F.binary_cross_entropy_with_logits(out.reshape(()), target).backward()
        else:
            F.cross_entropy(out, torch.tensor([y])).backward()
        # by every name: a tied weight has two
        rows.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
                for name, p in net.named_parameters(remove_duplicate=False)
            }
        )
    return {name: torch.stack([r[name] for r in rows]).numpy() for name in rows[0]}


def written_out(found: Any, layer: str) -> dict[str, Any]:
    """A layer's answer in full, by the names of its parameters."""
    if not isinstance(found, Factored):
        return dict(found)
    own = {f"{layer}.weight".strip("."): found.dense()}
    return {**own, f"{layer}.bias".strip("."): found.dense_bias()} if found.bias else own


def of_layer(truth: dict[str, Any], layer: str) -> dict[str, Any]:
    return {k: g for k, g in truth.items() if not layer or k.startswith(layer + ".")}


def layers_of(net: nn.Module) -> list[str]:
    return [n for n, m in net.named_modules(remove_duplicate=False) if list(m.parameters())]


def length(parts: dict[str, Any], net: nn.Module) -> Any:
    """Norms over distinct parameters."""
    distinct = [parts[k] for k, _ in net.named_parameters() if k in parts]
    return np.sqrt(sum((g.reshape(N, -1) ** 2).sum(axis=1) for g in distinct))


def agrees(net: nn.Module, data: Records, factored: set[str], **options: Any) -> None:
    """Every layer's gradients and norms are the true ones; just these layers have factors."""
    truth = naive(net, data, options.get("logits"))
    model = TorchModel(net, **{"batch_size": 4, **options})
    names = layers_of(net)
    seen: dict[str, list[Any]] = {name: [] for name in names}
    for chunk in model.gradients(data, names):
        assert list(chunk) == names
        for name in names:
            seen[name].append(written_out(chunk[name], name))
    for name in names:
        true = of_layer(truth, name)
        got = {k: np.concatenate([part[k] for part in seen[name]]) for k in seen[name][0]}
        own = net.get_submodule(name).named_parameters(prefix=name)
        assert set(got) == {k for k, _ in own}
        for key, values in got.items():
            np.testing.assert_allclose(values, true[key], rtol=0, atol=1e-10, err_msg=key)
        alone = model.gradient_norms(data, [name])
        mine = {k: true[k] for k in got}
        expected = np.sqrt(sum((g.reshape(N, -1) ** 2).sum(axis=1) for g in mine.values()))
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(model.gradient_norms(data), length(truth, net), rtol=0, atol=1e-10)
    chunk = next(model.gradients(data, names))
    assert {name for name in names if isinstance(chunk[name], Factored)} == factored


# --- modules ------------------------------------------------------------------------------------


def seeded(module: Any, *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return module(*args, **kwargs).double()


def mlp(bias: bool = True, out: int = CLASSES, inplace: bool = False) -> nn.Module:
    return seeded(
        nn.Sequential,
        nn.Linear(6, 8, bias=bias),
        nn.ReLU(inplace=inplace),
        nn.Linear(8, 5, bias=bias),
        nn.Tanh(),
        nn.Linear(5, out, bias=bias),
    )


class Forward(nn.Module):
    """A module from a function of itself, for short tests."""

    def __init__(self, run: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def convolutions(*norms: nn.Module) -> nn.Module:
    net = seeded(
        nn.Sequential,
        nn.Conv2d(2, 3, 3, padding=1),
        *norms,
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 7),
        nn.ReLU(),
        nn.Linear(7, CLASSES),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.track_running_stats:
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 3.0)
            m.weight = nn.Parameter(torch.randn_like(m.weight)) if m.affine else None
    return net


class Transformer(nn.Module):
    def __init__(self, width: int = 6, tied: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(CLASSES if tied else 9, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.wide = nn.Linear(width, 40)
        self.back = nn.Linear(40, width)
        self.head = nn.Linear(width, CLASSES, bias=False)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.emb(x))
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v))
        h = h + self.attn(h, h, h, need_weights=False)[0]
        h = h + self.back(F.gelu(self.wide(h)))
        return self.head(h.mean(dim=1))


TOKENS = records((5,), tokens=4)
PICTURES = records((2, 8, 8))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_fully_connected(bias, inplace):
    agrees(mlp(bias, inplace=inplace), records(), {"0", "2", "4"})


def test_a_bare_layer():
    agrees(seeded(nn.Linear, 6, CLASSES), records(), {""})


@pytest.mark.parametrize("shape", ["(n, 1)", "(n,)", "squeezed"])
def test_one_logit(shape):
    reshape = {"(n, 1)": lambda z: z, "(n,)": lambda z: z[:, 0], "squeezed": lambda z: z.squeeze()}
    net = Forward(lambda m, x: reshape[shape](m.body(x)), body=mlp(out=1))
    agrees(net, records(classes=2), {"body.0", "body.2", "body.4"})


def test_convolutions():
    agrees(convolutions(), PICTURES, {"7", "9"})


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.BatchNorm2d(3, affine=False), nn.InstanceNorm2d(3)],
    ids=["batch", "group", "batch without weights", "instance"],
)
def test_norms_in_eval_mode(norm):
    linear = {"8", "10"}
    agrees(convolutions(norm), PICTURES, linear)


def test_a_batch_norm_of_batches_is_asked_one_record_at_a_time():
    net = convolutions(nn.BatchNorm2d(3, track_running_stats=False))
    agrees(net, PICTURES, set())


def test_a_transformer_with_fully_connected_layers_on_sequences():
    factored = {"qkv", "out", "wide", "back", "head"}
    agrees(seeded(Transformer), TOKENS, factored)


def test_a_tied_embedding_gets_both_parts():
    agrees(seeded(Transformer, tied=True), TOKENS, {"qkv", "out", "wide", "back"})


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_transformer_layer(batch_first):
    net = torchs_own(batch_first)
    inside = {"body.linear1", "body.linear2"} if batch_first else set()
    # four records of four steps: rows must not be taken for records
    agrees(net, records((4, 6)), {"head"} | inside)


def test_a_layer_that_is_used_twice_has_both_uses():
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.tanh(m.twice(x))
        return m.head(torch.tanh(m.twice(h)) + h)

    net = seeded(Forward, run, twice=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))
    agrees(net, records(), {"twice", "head"})
    found = TorchModel(net).factored_gradients(records(), "twice")
    assert found.delta.shape == found.a.shape == (N, 2, 6)


def test_a_layer_with_two_names():
    layer = seeded(nn.Linear, 6, 6)
    net = seeded(nn.Sequential, layer, nn.Tanh(), layer, nn.Linear(6, CLASSES))
    agrees(net, records(), {"0", "2", "3"})
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.head(F.linear(torch.tanh(m.fc(x)), m.fc.weight)),
        lambda m, x: m.head(m.fc(x).flip(0).tanh().flip(0) + m.fc.bias),
        lambda m, x: m.head(m.fc(x.flip(0)).flip(0)),
        lambda m, x: m.head(m.fc(x) + x.mean(dim=0)),
        lambda m, x: m.head(m.fc(torch.cat([x, x]))[: len(x)]),
        lambda m, x: m.head(m.fc(x[:, None, None]).sum(dim=(1, 2))),
        lambda m, x: m.head(m.fc(input=x)),
        lambda m, x: m.head(m.fc(x).add_(x)),
    ],
    ids=[
        "weight used directly",
        "bias used directly",
        "shuffled",
        "mixed",
        "doubled",
        "more axes",
        "by keyword",
        "output changed in place",
    ],
)
def test_odd_uses_of_a_layer(run):
    net = seeded(
        Forward, lambda m, x: run(m, x.clone()), fc=nn.Linear(6, 6), head=nn.Linear(6, CLASSES)
    )
    data = records()
    truth = naive(net, data)
    model = TorchModel(net, batch_size=5)
    got = [written_out(c["fc"], "fc") for c in model.gradients(data, ["fc"])]
    for key in ("fc.weight", "fc.bias"):
        np.testing.assert_allclose(
            np.concatenate([g[key] for g in got]), truth[key], rtol=0, atol=1e-10
        )
    np.testing.assert_allclose(model.gradient_norms(data), length(truth, net), rtol=0, atol=1e-10)


def test_a_hook_of_the_users_own_stays_and_counts():
    net = mlp()
    net[2].register_forward_hook(lambda m, a, out: out**2)
    agrees(net, records(), {"0", "2", "4"})
    assert len(net[2]._forward_hooks) == 1


def test_a_parametrized_layer_is_not_taken_for_a_plain_one():
    net = mlp()
    torch.nn.utils.parametrizations.weight_norm(net[2])
    agrees(net, records(), {"0", "4"})


def test_a_module_that_takes_one_record_at_a_time():
    def run(m: Any, x: Tensor) -> Tensor:
        assert len(x) == 1
        return m.body(x)

    net, data = Forward(run, body=mlp()), records()
    got = TorchModel(net, batch_size=1).gradient_norms(data)
    np.testing.assert_allclose(got, length(naive(net, data), net), rtol=0, atol=1e-10)


def test_a_module_that_vmap_cannot_is_asked_one_by_one():
    def run(m: Any, x: Tensor) -> Tensor:
        h, _ = m.lstm(x)
        return m.head(h[:, -1]) * (2.0 if float(h.detach().sum()) > 1e9 else 1.0)

    net = seeded(Forward, run, lstm=nn.LSTM(6, 5, batch_first=True), head=nn.Linear(5, CLASSES))
    agrees(net, records((3, 6)), {"head"})


def torchs_own(batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=batch_first, dropout=0.3)

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.body(x if batch_first else x.transpose(0, 1))
        return m.head(h.mean(dim=1 if batch_first else 0))

    return seeded(Forward, run, body=layer, head=nn.Linear(6, CLASSES))


def test_padded_sequences_in_torchs_own_encoder():
    """Its shortcut in eval mode packs the records' steps; none of it is taken."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(m.emb(x), src_key_padding_mask=x == 0)[:, -1])

    layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
    body = nn.TransformerEncoder(layer, 1)
    net = seeded(Forward, run, emb=nn.Embedding(4, 6), body=body, head=nn.Linear(6, CLASSES))
    data = records((5,), tokens=4)
    data.x[:, -1] = 1 + data.x[:, -1] % 3
    agrees(net, data, {"body.layers.0.linear1", "body.layers.0.linear2", "head"})


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (lambda: convolutions(nn.BatchNorm2d(3)), PICTURES),
        (lambda: seeded(Transformer), TOKENS),
        (lambda: seeded(Transformer, tied=True), TOKENS),
        (torchs_own, records((4, 6))),
    ],
    ids=["convolutions", "transformer", "tied", "torch's own"],
)
def test_records_are_asked_together_where_they_can_be(build, data, monkeypatch):
    alone: list[int] = []
    real = gradients._one_by_one
    monkeypatch.setattr(
        gradients,
        "_one_by_one",
        lambda n, w, x, *rest: alone.append(len(x)) or real(n, w, x, *rest),
    )
    net = build()
    TorchModel(net).gradient_norms(data)
    assert sum(alone) == 4, "those of the trial"


def test_what_vmap_gets_wrong_is_not_believed(monkeypatch):
    real = gradients._vmapped
    monkeypatch.setattr(
        gradients, "_vmapped", lambda *args: {k: 1.1 * g for k, g in real(*args).items()}
    )
    agrees(convolutions(), PICTURES, {"7", "9"})


def test_a_trial_sees_more_than_the_loss_of_its_records():
    """Records of class 0, the trial's, have no loss; the weight is also used by itself."""
    net = seeded(
        Forward,
        lambda m, x: m.head(F.linear(torch.tanh(m.fc(x)), m.fc.weight)),
        fc=nn.Linear(6, 6),
        head=nn.Linear(6, CLASSES),
    )
    data = records()
    y = np.where(np.isin(np.arange(N), np.linspace(0, N - 1, 4).astype(int)), 0, 1 + data.y % 3)
    data = Records(data.ids, data.x, y)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none") * (y > 0)

    got = TorchModel(net).gradient_norms(data, loss=loss)
    np.testing.assert_allclose(got, length(naive(net, data, loss=loss), net), rtol=0, atol=1e-10)


def test_tied_weights_count_also_where_the_trial_does_not_meet_them():
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(m.a(x)) + m.b(torch.relu(x) * (x[:, :1] > 0)))

    net = seeded(Forward, run, a=nn.Linear(6, 6), b=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))
    net.b.weight, net.b.bias = net.a.weight, nn.Parameter(torch.zeros(6).double())
    data = records()
    data.x[np.linspace(0, N - 1, 4).astype(int), 0] = -1
    agrees(net, data, {"head"})


def test_padding_has_no_gradient():
    emb = nn.Embedding(4, 6, padding_idx=0)
    net = seeded(Forward, lambda m, x: m.head(m.emb(x).sum(1)), emb=emb, head=nn.Linear(6, CLASSES))
    agrees(net, TOKENS, {"head"})


def test_a_sparse_embedding():
    emb = nn.Embedding(4, 6, sparse=True)
    net = seeded(Forward, lambda m, x: m.head(m.emb(x).sum(1)), emb=emb, head=nn.Linear(6, CLASSES))
    agrees(net, TOKENS, {"head"})


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    ("wrap", "logits"),
    [
        (lambda z: {"logits": z, "hidden": z * 0}, None),
        (lambda z: Answer(z, z * 0), None),
        (lambda z: (z, z * 0), None),
        (lambda z: {"deep": [z]}, lambda out: out["deep"][0]),
    ],
)
def test_logits_are_found_as_the_handle_finds_them(wrap, logits):
    net = Forward(lambda m, x: wrap(m.body(x)), body=mlp())
    truth = naive(net.body, records())
    model = TorchModel(net) if logits is None else TorchModel(net, logits=logits)
    found = model.factored_gradients(records(), "body.2")
    np.testing.assert_allclose(found.dense(), truth["2.weight"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.gradient_norms(records()), length(truth, net.body), atol=1e-10)


@pytest.mark.parametrize("classes", [CLASSES, 2])
@pytest.mark.parametrize("outputs", ["probabilities", "log_probabilities"])
def test_a_module_that_ends_in_a_softmax_or_a_sigmoid(outputs, classes):
    ends = {
        ("probabilities", CLASSES): lambda z: z.softmax(1),
        ("log_probabilities", CLASSES): lambda z: z.log_softmax(1),
        ("probabilities", 2): lambda z: z.sigmoid(),
        ("log_probabilities", 2): F.logsigmoid,
    }
    body = mlp(out=1 if classes == 2 else classes)
    net = Forward(lambda m, x: ends[outputs, classes](m.body(x)), body=body)
    data = records(classes=classes)
    model = TorchModel(net, outputs=outputs)
    np.testing.assert_allclose(
        model.gradient_norms(data), length(naive(body, data), body), rtol=0, atol=1e-10
    )
    if outputs == "probabilities":
        with pytest.raises(InvalidInput, match='pass outputs="probabilities"'):
            TorchModel(net).gradients(records((6,), classes)) if classes > 2 else TorchModel(
                net
            ).gradients(Records.from_arrays(np.zeros((20, 6)), np.zeros(20)))


# --- the loss -----------------------------------------------------------------------------------


def test_any_loss_of_logits_and_label():
    def hinge(logits: Tensor, y: Tensor) -> Tensor:
        return F.multi_margin_loss(logits, y, reduction="none")

    def focal(logits: Tensor, y: Tensor) -> Tensor:
        own = cross_entropy(logits, y)
        return (1 - torch.exp(-own)) ** 2 * own

    def awkward(logits: Tensor, y: Tensor) -> Tensor:
        return torch.stack(
            [-row.log_softmax(0)[label.item()] for row, label in zip(logits, y, strict=True)]
        )

    net, data = convolutions(), PICTURES
    for loss in (hinge, focal, awkward):
        truth = naive(net, data, loss=loss)
        got = TorchModel(net).gradient_norms(data, loss=loss)
        np.testing.assert_allclose(got, length(truth, net), rtol=0, atol=1e-10)
        found = TorchModel(net).factored_gradients(data, loss=loss)
        np.testing.assert_allclose(found.dense(), truth["9.weight"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_cross_entropy_is_torchs(classes):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(200, classes)) * 30, requires_grad=True)
    y = torch.tensor(rng.integers(0, max(2, classes), 200))
    if classes == 1:
        ours = cross_entropy(logits[:, 0], y)
        theirs = F.binary_cross_entropy_with_logits(logits[:, 0], y.double(), reduction="none")
    else:
        ours, theirs = cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_of_records_the_model_is_sure_of_keep_their_digits(classes):
    """1 - p_y is 1e-9 to 1e-20 here: in float32, p - onehot(y) would be 0 or noise."""
    net = seeded(nn.Linear, 2, classes)
    with torch.no_grad():
        net.weight.zero_()[0, 0] = 1.0
        net.bias.copy_(torch.linspace(0, -0.5, classes))
    x = np.stack([np.linspace(21, 46, 40), np.ones(40)], axis=1)
    data = Records.from_arrays(x, np.full(40, int(classes == 1)))
    sharp = TorchModel(net).factored_gradients(data)
    # the true class's own entry: minus the sum of the others
    others = np.exp(-x[:, :1] + (net.bias.detach().numpy()[None, 1:] if classes > 1 else 0))
    np.testing.assert_allclose(sharp.delta[:, 0], -others.sum(axis=1), rtol=1e-6)
    rough = TorchModel(net.float()).factored_gradients(data)
    assert rough.delta.dtype == np.float32
    np.testing.assert_allclose(rough.delta, sharp.delta, rtol=2e-5)


def test_softmax_regression_has_p_minus_onehot():
    """The spec's known answer: W = I, x = (1, 2), y = 0."""
    net = seeded(nn.Linear, 2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    one = Records.from_arrays(np.array([[1.0, 2.0]]), np.array([0]))
    found = TorchModel(net).factored_gradients(one)
    np.testing.assert_allclose(found.delta, [[-0.731059, 0.731059]], atol=1e-6)
    np.testing.assert_array_equal(found.a, [[1, 2]])
    np.testing.assert_allclose(
        found.dense()[0], [[-0.731059, -1.462117], [0.731059, 1.462117]], atol=1e-6
    )
    np.testing.assert_allclose(found.norms(), [2.311811], atol=1e-6)
    np.testing.assert_allclose(TorchModel(net).gradient_norms(one), [2.311811], atol=1e-6)

    data = records()
    net = seeded(nn.Linear, 6, CLASSES)
    model = TorchModel(net)
    p = np.exp(model.log_probabilities(data.x))
    found = model.factored_gradients(data)
    np.testing.assert_allclose(found.delta, p - np.eye(CLASSES)[data.y], atol=1e-12)
    np.testing.assert_array_equal(found.a, data.x)


# --- the pair -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [None, 2, 9], ids=["flat", "few steps", "many steps"])
def test_what_a_pair_says_is_what_the_gradient_says(steps, bias, monkeypatch):
    monkeypatch.setattr(gradients, "_BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    middle = () if steps is None else (steps,)
    pair = Factored(rng.normal(size=(7, *middle, 3)), rng.normal(size=(7, *middle, 5)), bias)
    full = [
        np.einsum("no,ni->noi", d, a).sum(0)
        for d, a in zip(pair.delta.reshape(7, -1, 3), pair.a.reshape(7, -1, 5), strict=True)
    ]
    full_bias = pair.delta.reshape(7, -1, 3).sum(axis=1)
    np.testing.assert_allclose(pair.dense(), full, atol=1e-12)
    squares = (np.stack(full) ** 2).sum(axis=(1, 2)) + bias * (full_bias**2).sum(axis=1)
    np.testing.assert_allclose(pair.norms(), np.sqrt(squares), atol=1e-12)
    w, b = rng.normal(size=(3, 5)), rng.normal(size=3)
    along = (np.stack(full) * w).sum(axis=(1, 2))
    np.testing.assert_allclose(pair.dot(w), along, atol=1e-12)
    np.testing.assert_allclose(pair.dot(w, b), along + full_bias @ b, atol=1e-12)
    np.testing.assert_allclose(pair[2:5].dense(), full[2:5], atol=1e-12)
    assert len(pair) == 7 and len(pair[[1]]) == 1
    if bias:
        np.testing.assert_allclose(pair.dense_bias(), full_bias, atol=1e-12)
    else:
        with pytest.raises(InvalidInput, match="expected a layer with a bias"):
            pair.dense_bias()
    with pytest.raises(InvalidInput, match=r"shapes \[\(3, 5\), \(3,\)\], got"):
        pair.dot(w.T)
    with pytest.raises(InvalidInput, match=r"shapes \[\(3, 5\), \(3,\)\], got"):
        pair.dot(w, b[:2])


def test_tiny_gradients_have_a_norm():
    tiny = Factored(np.full((1, 2), 1e-30, np.float32), np.full((1, 3), 1e-5, np.float32), False)
    np.testing.assert_allclose(tiny.norms(), [1e-35 * np.sqrt(6)], rtol=1e-6)


def test_a_pair_is_of_one_layer():
    with pytest.raises(InvalidInput, match="expected delta"):
        Factored(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(InvalidInput, match="expected delta"):
        Factored(np.zeros(3), np.zeros(3))


# --- streaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 11, 1000])
def test_chunks_are_the_records_in_order(batch_size):
    net, data = mlp(), records()
    model = TorchModel(net, batch_size=batch_size)
    chunks = [c["4"] for c in model.gradients(data)]
    assert [len(c) for c in chunks][:-1] == [batch_size] * (len(chunks) - 1)
    truth = naive(net, data)["4.weight"]
    np.testing.assert_allclose(np.concatenate([c.dense() for c in chunks]), truth, atol=1e-10)
    whole = model.factored_gradients(data)
    np.testing.assert_allclose(whole.dense(), truth, atol=1e-10)


def test_what_is_handed_out_is_not_the_records():
    data, net = records(), mlp()
    before = data.x.copy()
    for chunk in TorchModel(net).gradients(data, ["0"]):
        chunk["0"].a[:] = 0
        chunk["0"].delta[:] = 0
    TorchModel(nn.Sequential(nn.Identity(), net)).activations(data.x, "0")[:] = 0
    np.testing.assert_array_equal(data.x, before)


def test_queries_are_counted_as_they_are_made():
    model, data = TorchModel(mlp(), batch_size=4), records()
    stream = model.gradients(data)
    assert model.n_queries == 0
    next(stream)
    assert model.n_queries == 4
    model.factored_gradients(data)
    model.gradient_norms(data)
    model.activations(data.x)
    assert model.n_queries == 4 + 3 * N


def test_memory_mapped_records_and_results(tmp_path):
    data, net = records(), mlp().float()
    for name, values in (("x", data.x.astype(np.float32)), ("y", data.y)):
        np.save(tmp_path / f"{name}.npy", values)
    x, y = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "xy")
    on_disk = Records(data.ids, x, y)
    model = TorchModel(net, batch_size=4)
    expected = model.factored_gradients(Records(data.ids, np.array(x), np.array(y)))
    out = Factored(
        np.lib.format.open_memmap(tmp_path / "delta.npy", "w+", np.float32, (N, CLASSES)),
        np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (N, 5)),
    )
    got = model.factored_gradients(on_disk, out=out)
    assert got is out
    out.delta.flush()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.load(tmp_path / "delta.npy"), expected.delta)
    np.testing.assert_array_equal(out.a, expected.a)
    np.testing.assert_allclose(out.norms(), expected.norms())
    # rows that are chosen from a memory map are read a chunk at a time
    chosen = on_disk[np.arange(N)[::-1]]
    np.testing.assert_allclose(
        model.gradient_norms(chosen), model.gradient_norms(on_disk)[::-1], rtol=1e-5
    )


def test_only_a_chunk_of_the_records_is_read_at_once():
    read: list[int] = []

    class Watched:
        shape, dtype = (N, 6), np.dtype(np.float64)

        def __len__(self) -> int:
            return N

        def __getitem__(self, rows: Any) -> Any:
            got = records().x[rows]
            read.append(len(got))
            return got

    data = records()
    data = Records(data.ids, Watched(), data.y)
    model = TorchModel(mlp(), batch_size=3)
    model._ask(data.x[:3], torch.device("cpu"))
    read.clear()
    stream = model.gradients(data)
    before = len(read)
    for _ in stream:
        pass
    assert read[before:] == [3, 3, 3, 2]


def test_chunks_are_sized_by_what_they_take(monkeypatch):
    seen: list[int] = []
    whole = gradients._vmapped
    monkeypatch.setattr(
        gradients,
        "_vmapped",
        lambda n, w, x, y, loss: seen.append(len(x)) or whole(n, w, x, y, loss),
    )
    net, data = convolutions(), PICTURES
    for budget, least, most in ((2**30, N, N), (100_000, 2, 8), (1, 1, 1)):
        monkeypatch.setattr(gradients, "WORKING_BYTES", budget)
        seen.clear()
        got = list(TorchModel(net).gradients(data, ["0", "3"]))
        assert seen[0] == 4  # the trial
        assert all(least <= rows <= most for rows in seen[1:-1] or seen[1:]), seen
        assert sum(len(c["3"]["3.weight"]) for c in got) == N == sum(seen[1:])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory_halves_and_goes_on(error, monkeypatch):
    net, data = mlp(), records()
    truth = naive(net, data)
    asked: list[int] = []
    real = gradients._pairs

    def hungry(network: Any, layers: Any, x: Tensor, y: Tensor, loss: Any) -> Any:
        asked.append(len(x))
        if len(x) > limit:
            raise error
        return real(network, layers, x, y, loss)

    limit = 4
    monkeypatch.setattr(gradients, "_pairs", hungry)
    model = TorchModel(net, batch_size=10)
    np.testing.assert_allclose(model.gradient_norms(data), length(truth, net), atol=1e-10)
    assert asked[1:] == [10, 5, 2, 2, 2, 2, 2, 1]
    found = model.factored_gradients(data)
    np.testing.assert_allclose(found.dense(), truth["4.weight"], atol=1e-10)
    stream = model.gradients(data)
    limit = 0
    with pytest.raises(InvalidInput, match="one record to fit in memory"):
        next(stream)


# --- the model is left as it was found ----------------------------------------------------------


def picture_of(net: nn.Module) -> Any:
    return (
        [(m, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()],
        [(id(p), p.requires_grad, p._version, id(p.grad)) for p in net.parameters()],
        {k: v.clone() for k, v in net.state_dict().items()},
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.get_rng_state().clone(),
    )


def same(a: Any, b: Any) -> bool:
    return (
        a[:2] == b[:2]
        and all(torch.equal(a[2][k], b[2][k]) for k in a[2])
        and a[3:5] == b[3:5]
        and torch.equal(a[5], b[5])
    )


def test_the_model_is_left_as_it_was_found():
    net = convolutions(nn.BatchNorm2d(3))
    torch.backends.mha.set_fastpath_enabled(True)
    net.train()
    net[2].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before = picture_of(net)
    model = TorchModel(net, batch_size=4)
    stream = model.gradients(PICTURES, ["0", "10"])
    next(stream)
    assert same(before, picture_of(net)), "also between two chunks"
    list(stream)
    model.gradient_norms(PICTURES)
    model.factored_gradients(PICTURES)
    model.activations(PICTURES.x, "5")
    assert same(before, picture_of(net))
    assert all(torch.all(g == 1) for g in [net[4].weight.grad])


def test_a_frozen_layer_has_gradients_too():
    net = mlp()
    truth = naive(net, records())
    for p in net.parameters():
        p.requires_grad_(False)
    model = TorchModel(net)
    np.testing.assert_allclose(model.gradient_norms(records()), length(truth, net), atol=1e-10)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_who_turned_gradients_off_gets_them(mode):
    net = mlp()
    truth = naive(net, records())
    with mode():
        got = TorchModel(net).gradient_norms(records())
        assert not torch.is_grad_enabled()
    np.testing.assert_allclose(got, length(truth, net), atol=1e-10)


@pytest.mark.parametrize("call", ["gradients", "gradient_norms", "factored_gradients"])
def test_the_model_is_left_as_it_was_found_when_it_raises(call):
    net = mlp()
    net.train()
    before = picture_of(net)

    def broken(logits: Tensor, y: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(InvalidInput, match="one that refused .'no such thing'"):
        getattr(TorchModel(net), call)(records(), loss=broken)
    assert same(before, picture_of(net))
    later = 0

    def breaks_later(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal later
        later += 1
        if later > 12:
            raise RuntimeError("now")
        return cross_entropy(logits, y)

    with pytest.raises(InvalidInput, match="one that refused .now"):
        list(TorchModel(net, batch_size=1).gradients(records(), ["0", "4"], loss=breaks_later))
    assert same(before, picture_of(net))


def test_the_body_before_the_layer_builds_no_graph():
    kept: list[int] = []
    net, data = mlp(), records()
    for loss in (cross_entropy, lambda logits, y: cross_entropy(logits, y)):
        stream = TorchModel(net).gradients(data, loss=loss)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ):
            next(stream)
    # a loss's own arithmetic only: nothing as wide as a hidden layer (8) or the inputs (6)
    assert kept and max(kept) <= N * CLASSES


# --- activations --------------------------------------------------------------------------------


def test_activations_are_the_layers_outputs():
    net, data = convolutions(nn.BatchNorm2d(3)), PICTURES
    net.train()
    model = TorchModel(net, batch_size=4)
    x = torch.tensor(data.x)
    quiet = copy.deepcopy(net).eval()
    with torch.no_grad():
        for k in range(len(net)):
            # not changed by the in-place ReLU that follows
            expected = quiet[: k + 1](x) if k != 1 else quiet[1](quiet[0](x))
            np.testing.assert_allclose(
                model.activations(data.x, str(k)), expected.numpy(), atol=1e-12, err_msg=str(k)
            )
    np.testing.assert_allclose(model.activations(data.x), model.activations(data.x, "10"))
    assert net.training


def test_activations_refuse_what_has_no_one_answer():
    layer = nn.Linear(6, 6)
    net = seeded(Forward, lambda m, x: m.head(m.fc(m.fc(x))), fc=layer, head=nn.Linear(6, 2))
    model = TorchModel(net)
    with pytest.raises(InvalidInput, match="'fc' to answer once .* got 2 passes"):
        model.activations(records().x, "fc")
    lstm = seeded(
        Forward,
        lambda m, x: m.h(m.l(x)[0][:, -1]),
        l=nn.LSTM(6, 3, batch_first=True),
        h=nn.Linear(3, 2),
    )
    with pytest.raises(InvalidInput, match="'l' to answer once .* got tuple"):
        TorchModel(lstm).activations(records((4, 6)).x, "l")
    with pytest.raises(InvalidInput, match="expected at least one record"):
        model.activations(records().x[:0], "fc")
    with pytest.raises(InvalidInput, match="expected layers among fc, head, got 'feet'"):
        model.activations(records().x, "feet")


# --- what is refused ----------------------------------------------------------------------------

CALLS = ["gradients", "gradient_norms", "factored_gradients"]


@pytest.mark.parametrize("call", CALLS)
def test_refusals(call):
    def ask(model: TorchModel, data: Records, *args: Any, **options: Any) -> Any:
        return getattr(model, call)(data, *args, **options)

    model, data = TorchModel(mlp()), records()
    with pytest.raises(InvalidInput, match="expected at least one record to ask about, got none"):
        ask(model, data[:0])
    with pytest.raises(InvalidInput, match="expected labels below 4, .* got 4"):
        ask(model, Records(data.ids, data.x, np.where(data.ids == 5, 4, data.y)))
    with pytest.raises(InvalidInput, match="expected labels below 2, .* got 3"):
        ask(TorchModel(mlp(out=1)), data)
    layers = "4.weight" if call == "factored_gradients" else ["0", "4.weight"]
    with pytest.raises(InvalidInput, match="expected layers among 0, 2, 4, got '4.weight'"):
        ask(model, data, layers)
    with pytest.raises(InvalidInput, match="expected layers among 0, 2, 4, got '1'"):
        ask(model, data, "1" if call == "factored_gradients" else ["1"])
    with pytest.raises(InvalidInput, match=r"loss for each record, shape \(1,\), got \(\)"):
        ask(model, data, loss=F.cross_entropy)
    with pytest.raises(InvalidInput, match="expected records that the module takes"):
        ask(model, records((3,)))
    with pytest.raises(InvalidInput, match="expected Records, .*, got ndarray"):
        ask(model, data.x)
    if call == "factored_gradients":
        with pytest.raises(InvalidInput, match="expected the name of one layer, got "):
            ask(model, data, ["0"])
    assert model.n_queries == 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", [0, 7, 200])
def test_values_that_are_not_finite_are_refused(call, place):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    x[place, 2] = np.nan
    data = Records.from_arrays(x, rng.integers(0, CLASSES, 300))
    with pytest.raises(InvalidInput, match="expected finite .* got NaN or infinity for 1 records"):
        list(getattr(TorchModel(mlp(), batch_size=64), call)(data))


def test_no_layers_and_none_to_be_found():
    with pytest.raises(InvalidInput, match="expected layers among .* got none"):
        TorchModel(mlp()).gradients(records(), [])
    net = seeded(nn.Sequential, nn.Conv2d(2, 4, 8), nn.Flatten())
    with pytest.raises(InvalidInput, match="expected a fully connected layer .* got none"):
        TorchModel(net).gradients(PICTURES)
    with pytest.raises(InvalidInput, match="expected a fully connected layer .* got none"):
        TorchModel(net).activations(PICTURES.x)
    with pytest.raises(InvalidInput, match="used by it alone, got '0'; take gradients"):
        TorchModel(net).factored_gradients(PICTURES, "0")
    with pytest.raises(InvalidInput, match="expected a module with parameters, got none"):
        TorchModel(nn.Flatten()).gradient_norms(records())


def test_a_layer_that_has_no_part_in_the_answer():
    unused = Forward(lambda m, x: m.body(x), body=mlp(), spare=nn.Linear(2, 2).double())
    with pytest.raises(InvalidInput, match="depend on the chosen layers"):
        TorchModel(unused).gradients(records(), ["spare"])
    detached = Forward(lambda m, x: m.b(m.a(x).detach()), a=mlp(), b=nn.Linear(4, 4).double())
    with pytest.raises(InvalidInput, match="depend on the chosen layers"):
        TorchModel(detached).gradients(records(), ["a.0"])
    # beside others it is zero, as autograd says
    truth = length(naive(unused, records()), unused)
    np.testing.assert_allclose(TorchModel(unused).gradient_norms(records()), truth, atol=1e-10)
    chunk = next(TorchModel(unused).gradients(records(), ["spare", "body.0"]))
    assert not chunk["spare"]["spare.weight"].any() and chunk["spare"]["spare.bias"].shape == (N, 2)


def test_what_autograd_refuses_is_refused():
    net = seeded(
        Forward,
        lambda m, x: m.head(m.second(x.clone().mul_(2))),
        second=nn.Linear(6, 6),
        head=nn.Linear(6, CLASSES),
    )
    agrees(net, records(), {"second", "head"})

    def overwrites(m: Any, x: Tensor) -> Tensor:
        h = x.clone()
        return m.head(h.mul_(m.second(h)))

    net.run = overwrites
    with pytest.raises(InvalidInput, match="got one that refused .* inplace operation"):
        TorchModel(net).gradients(records(), ["second"])


def test_arrays_to_fill_must_fit():
    with pytest.raises(InvalidInput, match=r"expected out with delta \(11, 4\), a \(11, 5\)"):
        TorchModel(mlp()).factored_gradients(
            records(), out=Factored(np.zeros((N, 4)), np.zeros((N, 6)))
        )


def test_a_handle_that_can_be_looked_into():
    from sklearn.dummy import DummyClassifier

    assert isinstance(TorchModel(mlp()), WhiteBox)
    fitted = DummyClassifier().fit(np.zeros((2, 1)), [0, 1])
    assert not isinstance(EstimatorModel(fitted), WhiteBox)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("build", [mlp, convolutions, lambda: seeded(Transformer)])
def test_on_a_gpu(build):
    net = build()
    data = TOKENS if isinstance(net, Transformer) else PICTURES if len(net) > 5 else records()
    truth = length(naive(net, data), net)
    model = TorchModel(net.cuda())
    np.testing.assert_allclose(model.gradient_norms(data), truth, rtol=0, atol=1e-9)
    found = model.factored_gradients(data)
    assert isinstance(found.delta, np.ndarray)
