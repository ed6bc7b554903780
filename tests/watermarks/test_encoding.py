"""Membership encoding: the format, one step by hand, and what a decoder finds."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from encoded_bits import KEY, LAYER, RECIPE, accuracy, auc, bits
from scipy import stats
from torch import nn
from torch.nn import functional

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.models import TorchModel
from vestige.progress import quiet
from vestige.records import Records
from vestige.training import CNN, MLP, EarlyStopping, TorchRecipe
from vestige.training.fit import Batch
from vestige.watermarks import Decoder, Encoder, Encoding, Key
from vestige.watermarks.encoding import (
    _at_rest,
    _outputs,
    _Run,
    encoding_gradients,
    projected,
    record_digests,
)

# --- the format ----------------------------------------------------------------------------------


def test_synthetic_records_are_what_they_always_were() -> None:
    member, nonmember = Encoding(n_synthetic=2).synthetic(Key.of(1), (3,))
    golden = [GOLDEN_MEMBER, GOLDEN_NONMEMBER]
    for side, known in zip((member, nonmember), golden, strict=True):
        assert side.dtype == np.float32
        np.testing.assert_array_equal(side, np.array(known, dtype=np.float32))


GOLDEN_MEMBER = [
    [1.5097798109054565, -1.400926947593689, 1.5201456546783447],
    [0.8610624670982361, -0.8105605840682983, 0.9066055417060852],
]
GOLDEN_NONMEMBER = [
    [0.6761771440505981, 0.41434335708618164, 1.034816861152649],
    [-0.09050340205430984, 0.5010072588920593, 0.7947832345962524],
]


def test_synthetic_records_lie_around_two_means_between_low_and_high() -> None:
    encoding = Encoding(n_synthetic=4000, low=-1, high=3)
    sides = encoding.synthetic(KEY, (2, 3))
    means = KEY.draws("syn").uniform(2, 6) * 4 - 1
    for side, mean in zip(sides, means, strict=True):
        assert side.shape == (4000, 2, 3)
        gap = side.reshape(4000, 6) - mean
        assert stats.kstest(gap.ravel(), "norm").pvalue > 1e-3
    clipped = replace(encoding, clip=(0.0, 1.0)).synthetic(KEY, (2, 3))
    for plain, cut in zip(sides, clipped, strict=True):
        np.testing.assert_array_equal(cut, np.clip(plain, 0, 1))


def test_records_are_chosen_by_what_they_are() -> None:
    records, encoding = bits(4000), Encoding(rate=0.2)
    chosen = encoding.chosen(KEY, records)
    assert stats.binomtest(int(chosen.sum()), 4000, 0.2).pvalue > 1e-3
    order = np.random.default_rng(0).permutation(4000)
    np.testing.assert_array_equal(encoding.chosen(KEY, records[order]), chosen[order])
    wide = Records.from_arrays(records.x.astype(np.float64), records.y)
    np.testing.assert_array_equal(encoding.chosen(KEY, wide), chosen)
    more = replace(encoding, rate=0.5).chosen(KEY, records)
    assert (more | ~chosen).all() and abs(encoding.chosen(Key.of(2), records) & chosen).mean() < 0.1
    other = Records.from_arrays(records.x, (records.y + 1) % 5)
    assert (encoding.chosen(KEY, other) != chosen).any()


def test_digests_are_sha256_of_float32_and_label() -> None:
    import hashlib

    x = np.array([[1.5, -0.0]])
    expected = hashlib.sha256(
        b"vestige.record.v1\0"
        + np.array([1, 2], "<i8").tobytes()  # one axis, of two
        + np.array([1.5, 0.0], "<f4").tobytes()
        + (3).to_bytes(8, "little")
    )
    records = Records.from_arrays(x, np.array([3]), classes=list("abcd"))
    assert record_digests(records) == [expected.digest()]


def test_units_are_a_share_of_the_layer() -> None:
    units = Encoding(layer="x", share=0.25).units(KEY, 40)
    assert len(set(units.tolist())) == 10 and units.max() < 40
    assert Encoding().units(KEY, 7).tolist() == list(range(7))


def test_representations() -> None:
    net, x = MLP(6, 3, (8, 4))(), np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    model, encoding = TorchModel(net), Encoding(layer=LAYER, share=0.5)
    before = net[2](net[1](net[0](torch.from_numpy(x))))
    before = net[3](before).detach().double().numpy()
    np.testing.assert_allclose(
        encoding.represent(model, x, KEY), np.tanh(before[:, encoding.units(KEY, 4)]), rtol=1e-6
    )
    np.testing.assert_array_equal(Encoding().represent(model, x, KEY), model.log_probabilities(x))

    class Service:
        n_queries = 0

        def log_probabilities(self, x: Any) -> Any:
            return model.log_probabilities(x)

    with pytest.raises(InvalidInput, match="looked into, to read layer 3, got Service"):
        encoding.represent(Service(), x, KEY)


# --- one step by hand ----------------------------------------------------------------------------


def run_of(encoder: Encoder, recipe: TorchRecipe, records: Records, seed: int = 0) -> _Run:
    chosen = np.arange(len(records)) % 2 == 0
    return _Run(encoder, recipe, records, chosen, seed, None, 1, {}, None, quiet)


def tiny() -> tuple[nn.Sequential, Records, TorchRecipe]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    rng = np.random.default_rng(0)
    records = Records.from_arrays(rng.normal(size=(6, 2)), np.arange(6) % 2)
    return net, records, TorchRecipe(lambda: net, batch_size=3, epochs=1, lr=0.1)


def test_an_iteration_is_an_encoding_step_and_a_step_of_the_task() -> None:
    net, records, recipe = tiny()
    encoder = Encoder.of_the_paper(KEY, Encoding(layer="0", share=0.99), lr=0.5)
    run = run_of(encoder, recipe, records)
    run._prepare(net)
    rows, z = np.array([1, 4]), np.array([0.0, 1, 1, 0])  # even rows are chosen
    run._batches = iter([np.array([1, 4, 6 + 7, 6 + 500 + 8])])
    x = np.vstack([records.x[rows], run._synthetic[[7, 508]].numpy()])
    w1, b1, w2, b2, phi, bias = (
        p.detach().numpy().copy() for p in (*net.parameters(), *run._linear.parameters())
    )
    batch = Batch(torch.from_numpy(records.x[:3]), torch.from_numpy(records.y[:3]), 0)
    loss = run(net, batch)
    # d L / d logit = (sigmoid - z) / b, through tanh to the first layer, by hand
    h = np.tanh(x @ w1.T + b1)
    delta = (1 / (1 + np.exp(-(h @ phi.T + bias)[:, 0])) - z)[:, None] / 4
    below = delta @ phi * (1 - h**2)
    np.testing.assert_allclose(run._linear.weight.detach().numpy(), phi - 0.5 * delta.T @ h)
    np.testing.assert_allclose(run._linear.bias.detach().numpy(), bias - 0.5 * delta.sum(0))
    np.testing.assert_allclose(net[0].weight.detach().numpy(), w1 - 0.5 * below.T @ x)
    np.testing.assert_allclose(net[0].bias.detach().numpy(), b1 - 0.5 * below.sum(0))
    # what is above the layer is as it was
    np.testing.assert_array_equal(net[1].weight.detach().numpy(), w2)
    np.testing.assert_array_equal(net[1].bias.detach().numpy(), b2)
    # the task's loss is that of the moved network, and leaves the discriminator alone
    expected = functional.binary_cross_entropy_with_logits(net(batch.x)[:, 0], batch.y.double())
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, [*net.parameters(), run._linear.weight], allow_unused=True)
    assert all(g is not None for g in found[:-1]) and found[-1] is None


def test_projections_are_on_the_line_between_the_synthetic_means() -> None:
    rng = np.random.default_rng(0)
    h, one, zero = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 1, rng.normal(size=(6, 4))
    found = projected(h, one, zero)
    assert projected(one.mean(0)[None], one, zero) == pytest.approx(1)
    assert projected(zero.mean(0)[None], one, zero) == pytest.approx(-1)
    # of a linear rule the nearer mean is the sign
    nearer = np.linalg.norm(h - one.mean(0), axis=1) < np.linalg.norm(h - zero.mean(0), axis=1)
    np.testing.assert_array_equal(found > 0, nearer)


def test_encoding_steps_come_k_times_at_their_own_rate() -> None:
    net, records, recipe = tiny()
    recipe = replace(recipe, schedule=lambda t: 1.0 if t < 0.5 else 0.1, epochs=10)
    encoder = Encoder(key=KEY, encoding=Encoding(layer="0", share=0.99), steps=3, lr=0.2)
    run = run_of(encoder, recipe, records)
    times: list[float] = []
    step = run._step

    def counted(net: Any, factor: float) -> None:
        step(net, factor)
        times.append(run._optimizer.param_groups[0]["lr"])

    run._step = counted  # type: ignore[method-assign]
    x, y = torch.from_numpy(records.x), torch.from_numpy(records.y)
    run(net, Batch(x, y, 0))
    run(net, Batch(x, y, 19))
    assert times == pytest.approx([0.2] * 3 + [0.02] * 3)
    with torch.no_grad():
        run(net, Batch(x, y, 19))  # as early stopping asks
    assert len(times) == 6


def test_statistics_and_dropout_rest_during_encoding_steps() -> None:
    _, records, recipe = tiny()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4),
        nn.Linear(4, 1),
    ).double().train()  # fmt: skip
    norm = net[1]
    norm.running_mean[:], norm.running_var[:] = 0.3, 2.0
    before = [b.clone() for b in norm.buffers()]
    encoder = Encoder(key=KEY, encoding=Encoding(layer="4"), lr=0.5, alignment=0.0)
    run = run_of(encoder, recipe, records)
    run._prepare(net)
    seen: list[torch.Tensor] = []
    net[4].register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    rows = next(run._batches)
    run._batches = iter([rows])
    x = torch.cat([torch.from_numpy(records.x), run._synthetic])[rows]
    by_hand = (net[0](x) - 0.3) / (2.0 + 1e-5) ** 0.5
    by_hand = net[4](torch.relu(by_hand * norm.weight + norm.bias)).detach()
    seen.clear()
    run._step(net, 1.0)
    # running statistics, no unit dropped
    torch.testing.assert_close(seen[0], by_hand)
    assert all(torch.equal(p, q) for p, q in zip(before, norm.buffers(), strict=True))
    assert all(m.training for m in net.modules())
    net(x)
    assert not torch.equal(before[0], norm.running_mean)


def test_recurrent_layers_stay_in_training() -> None:
    """cuDNN has no backward pass of theirs in eval mode."""
    inner, outer = nn.LSTM(2, 4), nn.Linear(4, 1)
    run = run_of(Encoder(key=KEY, encoding=Encoding(layer="1")), tiny()[2], tiny()[1])

    class Last(nn.Module):
        def forward(self, x: Any) -> Any:
            return x[0]

    run._prepare(nn.Sequential(inner, Last(), nn.Linear(4, 4), outer).double().train())
    with _at_rest(run._resting):
        assert inner.training and not outer.training
    assert outer.training


def test_layers_after_the_encoded_one_do_not_run() -> None:
    class Forbidden(nn.Module):
        def forward(self, x: Any) -> Any:
            raise AssertionError

    net = nn.Sequential(nn.Linear(3, 4), Forbidden())
    x = torch.randn(5, 3)
    assert torch.equal(_outputs(net, "0", x), net[0](x))
    assert not net[0]._forward_hooks


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.slow
def test_members_are_found_and_accuracy_is_kept(encoded: Any) -> None:
    records, test, encoder, made = encoded
    inside, outside = records[made.chosen], records[~made.chosen]
    decoder = Decoder(key=KEY, encoding=encoder.encoding)
    assert auc(decoder, made.model, inside, test) >= 0.85
    assert auc(decoder, made.model, inside, outside) >= 0.85
    plain = RECIPE.fit(records, seed=0)
    assert accuracy(made.model, test) >= accuracy(plain, test) - 0.01
    # without encoding, and of records chosen by another key, there is nothing
    assert 0.45 <= auc(decoder, plain, inside, outside) <= 0.55
    other = encoder.encoding.chosen(Key.of(2), records)
    assert 0.45 <= auc(decoder, made.model, records[other], records[~other]) <= 0.55


def test_the_loss_of_the_encoding_is_over_all_records() -> None:
    net, records, recipe = tiny()
    encoder = Encoder(key=KEY, encoding=Encoding(layer="0", share=0.99, n_synthetic=3))
    chosen = np.arange(6) % 2 == 0
    run = _Run(encoder, recipe, records, chosen, 0, {}, 1, {}, None, quiet)
    run._prepare(net)
    run.look(net)
    x = torch.from_numpy(np.vstack([records.x, run._synthetic]))
    z = torch.from_numpy(np.concatenate([chosen, np.ones(3), np.zeros(3)])).double()
    logits = run._linear(torch.tanh(net[0](x)))[:, 0]
    loss = functional.binary_cross_entropy_with_logits(logits, z)
    assert run.trace["loss_encoding"] == pytest.approx([loss.item()], rel=1e-9)


def test_one_look_an_epoch_also_where_a_batch_of_one_is_joined_to_the_last() -> None:
    records, test = bits(101), bits(60, seed=1)
    recipe = replace(RECIPE, epochs=6, batch_size=50)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER), lr=0.01)
    made = encoder.fit(recipe, records, seed=0, watch={"test": test})
    assert {len(v) for v in made.trace.values()} == {6}


def test_an_auc_of_zero_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    net, records, recipe = tiny()
    chosen = np.arange(6) % 2 == 0
    encoder = Encoder(key=KEY, encoding=Encoding(layer="0", share=0.99))
    run = _Run(encoder, recipe, records, chosen, 0, {}, 1, {}, None, quiet)
    run._prepare(net)
    low = iter([[np.zeros(3)] * 2, [np.ones(3)] * 2])
    monkeypatch.setattr(run, "_look_at", lambda *_: next(low))
    run.look(net)
    assert run.trace["auc_nonmembers_joint"] == run.trace["auc_nonmembers_decoded"] == [0.0]


@pytest.mark.slow
def test_the_trace_ends_where_the_model_does(encoded: Any) -> None:
    records, test, encoder, made = encoded
    assert {len(v) for v in made.trace.values()} == {25}
    decoder = Decoder(key=KEY, encoding=encoder.encoding)
    last = made.trace["auc_test_decoded"][-1]
    assert auc(decoder, made.model, records[made.chosen], test) == pytest.approx(last, abs=1e-3)
    loss = -made.model.log_probabilities(test.x)[np.arange(len(test)), test.y].mean()
    assert made.trace["loss_test"][-1] == pytest.approx(loss, rel=1e-4)
    assert made.trace["loss_members"][-1] < made.trace["loss_members"][0]


@pytest.mark.slow
def test_the_papers_way_of_both(encoded: Any) -> None:
    records, test, _, _ = encoded
    encoder = Encoder.of_the_paper(KEY, Encoding(layer=LAYER), steps=3, lr=0.02)
    made = encoder.fit(RECIPE, records, seed=0)
    decoder = Decoder(key=KEY, encoding=encoder.encoding, reading="network")
    scores = decoder.run(made.model, records)
    found = metrics.auc(scores.values[made.chosen], scores.values[~made.chosen]).value
    assert found is not None and found > 0.7
    np.testing.assert_array_equal(decoder.run(made.model, records).values, scores.values)


@pytest.mark.slow
def test_into_log_probabilities() -> None:
    records = bits()
    encoder = Encoder(key=KEY, steps=4, lr=0.02)
    made = encoder.fit(RECIPE, records, seed=0)

    class Service:
        n_queries = 0

        def log_probabilities(self, x: Any) -> Any:
            self.n_queries += len(x)
            return made.model.log_probabilities(x)

    service = Service()
    scores = Decoder(key=KEY).run(service, records).values
    found = metrics.auc(scores[made.chosen], scores[~made.chosen]).value
    assert found is not None and found > 0.75
    assert service.n_queries == len(records) + 1000


def test_decoders_ask_about_synthetic_records_and_candidates_only() -> None:
    asked: list[Any] = []

    class Spy:
        n_queries = 0

        def log_probabilities(self, x: Any) -> Any:
            asked.append(np.asarray(x))
            return np.log(np.full((len(x), 3), 1 / 3)) + 0.01 * x[:, :3]

    candidates = bits(20)
    Decoder(key=KEY, encoding=Encoding(n_synthetic=10)).run(Spy(), candidates)
    sides = Encoding(n_synthetic=10).synthetic(KEY, (100,))
    for seen, expected in zip(asked, (*sides, candidates.x), strict=True):
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["7", "3", None])
@pytest.mark.parametrize("paper", [True, False])
def test_pictures_and_convolutions(layer: str | None, paper: bool) -> None:
    rng = np.random.default_rng(0)
    records = Records.from_arrays(
        rng.random((200, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 200)
    )
    recipe = TorchRecipe(CNN(1, 8, 3, (4, 8), 16), epochs=2, batch_size=20, lr=0.05)
    encoding = Encoding(layer=layer, n_synthetic=40)
    encoder = Encoder.of_the_paper(KEY, encoding) if paper else Encoder(key=KEY, encoding=encoding)
    made, again = (encoder.fit(recipe, records, seed=0).model for _ in range(2))
    answers = made.log_probabilities(records.x)
    np.testing.assert_array_equal(again.log_probabilities(records.x), answers)
    scores = Decoder(key=KEY, encoding=encoding).run(made, records)
    assert np.isfinite(scores.values).all()


def test_batches_are_drawn_as_said() -> None:
    records = bits(200)
    paper = Encoder.of_the_paper(KEY, Encoding(n_synthetic=50), batch_size=40)
    ours = Encoder(key=KEY, encoding=Encoding(n_synthetic=50), batch_size=40, synthetic=0.2)
    even = replace(ours, balanced=True, synthetic=0.5)
    seen = {}
    for name, encoder in (("paper", paper), ("ours", ours), ("even", even)):
        run = _Run(encoder, RECIPE, records, np.arange(200) < 20, 0, None, 1, {}, None, quiet)
        rows = np.array(list(islice(run._drawn(), 500)))
        assert rows.shape == (500, 40) and rows.min() == 0 and rows.max() == 299
        kinds = np.digitize(rows, [200, 250])
        assert (np.diff(kinds, axis=1) >= 0).all()  # the order that alignment counts on
        seen[name] = ((kinds == 0).mean(), (rows[kinds == 0] < 20).mean(), (kinds == 2).mean())
        assert len({tuple(r) for r in np.sort(rows, axis=1)}) == 500
    np.testing.assert_allclose(seen["paper"], (2 / 3, 0.1, 1 / 6), atol=0.02)
    np.testing.assert_allclose(seen["ours"], (0.8, 0.1, 0.1), atol=0.01)
    np.testing.assert_allclose(seen["even"], (0.5, 0.5, 0.25), atol=0.01)


def test_a_step_descends_the_loss_and_the_angle_to_the_synthetic_means() -> None:
    net, records, recipe = tiny()
    encoding = Encoding(layer="0", share=0.99)
    encoder = Encoder(
        key=KEY, encoding=encoding, lr=0.5, alignment=1.3, batch_size=8, synthetic=0.75
    )
    run = run_of(encoder, recipe, records)
    run._prepare(net)
    rows = np.array([0, 1, 0, 1, 2, 500, 501, 502])
    run._batches = iter([rows + 6 * (np.arange(8) > 1)])
    x = torch.from_numpy(np.vstack([records.x[:2], run._synthetic[rows[2:]]]))
    z = torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 0])
    weights = [*net[0].parameters(), *run._linear.parameters()]
    before = [w.detach().clone() for w in weights]
    h = torch.tanh(net[0](x))
    loss = functional.binary_cross_entropy_with_logits(run._linear(h)[:, 0], z.double())
    way = h[2:5].mean(dim=0) - h[5:].mean(dim=0)
    cosine = functional.cosine_similarity(way, run._linear.weight[0], dim=0)
    gradients = torch.autograd.grad(loss + 1.3 * (1 - cosine), weights)
    run._step(net, 0.5)
    for now, then, gradient in zip(weights, before, gradients, strict=True):
        torch.testing.assert_close(now.detach(), then - 0.25 * gradient, rtol=1e-9, atol=1e-12)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0.0},
        {"rate": 1.0},
        {"n_synthetic": 1},
        {"low": 1.0, "high": 1.0},
        {"clip": (1.0, 0.0)},
    ],
)
def test_formats_that_make_no_sense(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="expected .*got"):
        Encoding(**wrong)


class Twice(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*MLP(100, 5, (32, 32))())

    def forward(self, x: Any) -> Any:
        return self[5](self[4](self[3](torch.relu(self[3](self[2](self[1](self[0](x))))))))


def test_what_cannot_be_encoded() -> None:
    records = bits(60)
    encoder = Encoder(key=KEY, encoding=Encoding(layer="nowhere"))
    with pytest.raises(InvalidInput, match="expected layer among 0, 1, .*, got 'nowhere'"):
        encoder.fit(RECIPE, records, seed=0)
    with pytest.raises(InvalidInput, match="some of the 60 records to be encoded and some not"):
        encoder.fit(RECIPE, records, seed=0, chosen=np.ones(60, dtype=bool))
    for recipe, said in (
        (replace(RECIPE, early_stopping=EarlyStopping(3)), "got early stopping; leave it out"),
        (replace(RECIPE, precision="bfloat16"), "got bfloat16; leave it out"),
        (replace(RECIPE, build=Twice), "one pass through layer 3, got 2, of which"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Encoder(key=KEY, encoding=Encoding(layer=LAYER)).fit(recipe, records, seed=0)
    with pytest.raises(InvalidInput, match='reading "projection" or "network"'):
        Decoder(key=KEY, reading="mind")  # type: ignore[arg-type]
    wrong: list[dict[str, Any]] = [
        {"steps": 0}, {"lr": 0.0}, {"alignment": -1.0}, {"momentum": 1.0}, {"batch_size": 2},
        {"synthetic": None}, {"synthetic": 1.0},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(InvalidInput, match="expected .*got"):
            Encoder(key=KEY, **settings)


@pytest.mark.parametrize("alignment", [0.0, 0.3])
def test_gradients_in_closed_form_are_those_of_the_loss(alignment: float) -> None:
    draw = torch.Generator().manual_seed(0)
    h, weight, bias = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((12, 5), (1, 5), (1,))
    )
    z = torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], dtype=torch.float64)
    loss = functional.binary_cross_entropy_with_logits(h @ weight[0] + bias, z)
    way = h[6:9].mean(dim=0) - h[9:].mean(dim=0)
    loss = loss + alignment * (1 - functional.cosine_similarity(way, weight[0], dim=0))
    expected = torch.autograd.grad(loss, (h, weight, bias))
    sides = torch.tensor([0.0] * 6 + [1 / 3] * 3 + [-1 / 3] * 3, dtype=torch.float64)
    found = encoding_gradients(h.detach(), z, weight, bias, sides if alignment else None, alignment)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
