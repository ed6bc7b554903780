"""What is written into a model comes back."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from encoded_bits import KEY, OTHER, RECIPE, accuracy, bits, coins, small
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from vestige import metrics
from vestige.defenses import LabelOnly
from vestige.errors import DamagedFile, InvalidInput
from vestige.models import EstimatorModel
from vestige.training import CNN, fit
from vestige.training.fit import Batch, RecipeLoss
from vestige.watermarks.channels import (
    CapacityAbuse,
    LeastSignificantBits,
    bit_error_rate,
    correlated_values,
    framed,
    framed_size,
    signs,
    unframed,
)
from vestige.watermarks.robustness import fine_tuned, pruned, quantized, weights_of

# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"a", bytes(range(256))])
@pytest.mark.parametrize("repeats", [1, 3, 5])
def test_a_payload_comes_back_from_a_longer_channel(payload: bytes, repeats: int) -> None:
    written = framed(payload, KEY, repeats)
    assert len(written) == framed_size(len(payload), repeats)
    channel = np.concatenate([written, coins(500)])
    assert unframed(lambda n: channel[:n], KEY, len(channel), repeats) == payload


def test_the_layout_of_a_frame_does_not_change() -> None:
    """Length and its copies, then payload with checksum and their copies, on the key's stream."""
    length, payload = (3).to_bytes(4, "big"), b"abc"
    check = zlib.crc32(length + payload).to_bytes(4, "big")
    clear = np.unpackbits(np.frombuffer(3 * length + 3 * (payload + check), dtype=np.uint8))
    words = KEY.draws("channel.stream").words(5)
    stream = np.unpackbits(
        np.frombuffer(b"".join(int(w).to_bytes(8, "little") for w in words), "u1")
    )
    np.testing.assert_array_equal(framed(b"abc", KEY), clear ^ stream[: len(clear)])
    assert hashlib.sha256(framed(b"abc", KEY).tobytes()).hexdigest()[:16] == "5ba591bdffb0da78"


def test_any_one_copy_may_be_lost_and_not_two() -> None:
    payload = bytes(range(40))
    written = framed(payload, KEY)
    for start, size in ((0, 32), (96, 8 * 44)):
        for copy in range(3):
            hurt = written.copy()
            hurt[start + copy * size : start + (copy + 1) * size] ^= 1
            assert unframed(lambda n, hurt=hurt: hurt[:n], KEY, len(hurt)) == payload
        twice = written.copy()
        twice[[start + 5, start + size + 5]] ^= 1
        with pytest.raises(DamagedFile):
            unframed(lambda n, twice=twice: twice[:n], KEY, len(twice))


def test_votes_survive_what_the_binomial_law_says() -> None:
    """A bit is lost with probability 3 e^2 - 2 e^3, and a frame with any of its bits."""
    payload, e = bytes(30), 0.02
    written, rng = framed(payload, KEY), np.random.default_rng(0)
    lost = 0
    for _ in range(400):
        read = written ^ (rng.random(len(written)) < e)
        try:
            assert unframed(lambda n, read=read: read[:n], KEY, len(read)) == payload
        except DamagedFile:
            lost += 1
    expected = 1 - (1 - 3 * e**2 + 2 * e**3) ** (32 + 8 * 30 + 32)
    assert stats.binomtest(lost, 400, expected).pvalue > 1e-3


def test_noise_other_keys_and_no_room_are_refused() -> None:
    written = framed(b"secret", KEY)
    for key, read in ((OTHER, written), (KEY, coins(2000)), (KEY, written[:150])):
        with pytest.raises(DamagedFile, match="expected"):
            unframed(lambda n, read=read: read[:n], key, len(read))
    with pytest.raises(DamagedFile, match="room for a frame of at least 96 bits, got 95"):
        unframed(lambda n: written[:n], KEY, 95)


def test_no_more_is_asked_for_than_the_frame_and_its_room() -> None:
    written, asked = framed(b"secret", KEY), []

    def read(n: int) -> Any:
        asked.append(n)
        return np.resize(written, n)

    assert unframed(read, KEY, 10**9) == b"secret"
    assert asked == [96, len(written)]
    asked.clear()
    with pytest.raises(DamagedFile, match="noise for its length"):
        unframed(lambda n: read(n) ^ 1, KEY, 10**6)
    assert asked == [96]


def test_what_is_written_has_as_many_ones_as_zeros() -> None:
    written = framed(bytes(2000), KEY)
    assert abs(written.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(written))


def test_error_rates_have_intervals() -> None:
    read = coins(100)
    found = bit_error_rate(read ^ (np.arange(100) < 7), read)
    assert found == metrics.rate(7, 100)
    with pytest.raises(InvalidInput, match="as many bits"):
        bit_error_rate(read[1:], read)


# --- least significant bits ----------------------------------------------------------------------


@pytest.mark.parametrize("low", [1, 8, 16, 23])
def test_lowest_bits_come_back_and_the_others_stay(low: int) -> None:
    net, channel = small(), LeastSignificantBits(KEY, low)
    before = [w.clone() for w in weights_of(net).values()]
    room = channel.room(net)
    assert room == (20 * 16 + 16 * 8 + 8 * 4) * low
    written = coins(room - 3)
    carrying = channel.write(net, written)
    np.testing.assert_array_equal(channel.read(carrying, len(written)), written)
    for old, own, new in zip(
        before, weights_of(net).values(), weights_of(carrying).values(), strict=True
    ):
        assert torch.equal(old, own)
        a, b = (t.detach().numpy().view(np.uint32) for t in (own, new))
        assert (a >> low == b >> low).all()
        # 2^low of 2^23 steps between a power of two and the next
        assert (torch.abs(new - own) <= torch.abs(own) * 2.0 ** (low - 23)).all()
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    assert all(torch.equal(p, q) for p, q in zip(
        biases, [p for n, p in carrying.named_parameters() if n.endswith("bias")], strict=True
    ))  # fmt: skip
    assert bit_error_rate(LeastSignificantBits(OTHER, low).read(carrying, 400), written[:400]) \
        .value > 0.35  # fmt: skip


def test_a_bit_is_where_the_order_of_the_key_says() -> None:
    net = nn.Linear(3, 2, bias=False)
    order = np.argsort(KEY.draws("channel.order").words(6), kind="stable")
    out = LeastSignificantBits(KEY, 2).write(net, np.array([1, 0, 0, 1, 1], dtype=np.uint8))
    words = out.weight.detach().numpy().reshape(-1).view(np.uint32)
    old = net.weight.detach().numpy().reshape(-1).view(np.uint32)
    assert [int(words[i] & 3) for i in order[:2]] == [0b01, 0b10]
    assert words[order[2]] == old[order[2]] & ~np.uint32(1) | 1
    assert (words[order[3:]] == old[order[3:]]).all()


def test_lowest_bits_of_filters_in_any_layout_of_memory() -> None:
    torch.manual_seed(0)
    net = CNN(1, 12, 3, (4, 4), 8)().to(memory_format=torch.channels_last)
    channel = LeastSignificantBits(KEY, 4)
    written = coins(channel.room(net))
    carrying = channel.write(net, written)
    np.testing.assert_array_equal(channel.read(carrying, len(written)), written)
    plain = carrying.to(memory_format=torch.contiguous_format)
    np.testing.assert_array_equal(channel.read(plain, len(written)), written)


def test_lowest_bits_survive_nothing() -> None:
    net, channel = small(), LeastSignificantBits(KEY, 8)
    written = coins(channel.room(net))
    carrying = channel.write(net, written)
    halved = small()
    halved.load_state_dict(carrying.bfloat16().float().state_dict())
    carrying = channel.write(net, written)
    moved = small()
    moved.load_state_dict({n: 1.01 * t for n, t in carrying.state_dict().items()})
    for net in (halved, moved, quantized(carrying), quantized(carrying, 16), pruned(carrying, 1)):
        found = bit_error_rate(channel.read(net, len(written)), written)
        assert found.value == pytest.approx(0.5, abs=0.05)


def test_lowest_bits_need_floats_of_32_bits_and_room() -> None:
    net, channel = small(), LeastSignificantBits(KEY, 8)
    for odd in (small().double(), nn.BatchNorm1d(3)):
        with pytest.raises(InvalidInput, match="weight matrices in float32, got"):
            channel.write(odd, coins(8))
    for call in (lambda: channel.write(net, coins(4000)), lambda: channel.read(net, 4000)):
        with pytest.raises(InvalidInput, match="at most 3840 bits, 8 of each of its 480 weights"):
            call()
    with pytest.raises(InvalidInput, match="1 to 23 bits"):
        LeastSignificantBits(KEY, 24)


# --- signs and correlated values -----------------------------------------------------------------


def test_penalties_are_those_of_the_paper() -> None:
    weights, wanted = torch.tensor([0.3, -0.2, 0.1, -0.4]), torch.tensor([1.0, 1, -1, -1])
    assert float(signs(KEY).code.penalty(weights, wanted)) == pytest.approx((0.2 + 0.1) / 4)
    found = float(correlated_values(KEY).code.penalty(weights, wanted))
    assert found == pytest.approx(-np.corrcoef(weights, wanted)[0, 1], abs=1e-6)
    assert signs(KEY).code.decided(weights.numpy()).tolist() == [1, 0, 1, 0]
    # mean -0.05
    assert correlated_values(KEY).code.decided(weights.numpy() + 2).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("make", [signs, correlated_values])
def test_the_penalty_is_on_the_places_of_the_key_beside_the_task(make: Any) -> None:
    net, channel = small(), make(KEY, 3.0)
    written = coins(100)
    batch = Batch(torch.zeros(1, 20), torch.zeros(1, dtype=torch.int64), 0)
    penalized = channel.objective(lambda net, batch: torch.tensor(7.0), written)
    flat = torch.cat([w.detach().reshape(-1) for w in weights_of(net).values()])
    here = np.argsort(KEY.draws("channel.order").words(len(flat)), kind="stable")[:100]
    wanted = torch.from_numpy(2.0 * written - 1).float()
    expected = 7 + 3 * float(channel.code.penalty(flat[here], wanted))
    for _ in range(2):
        loss = penalized(net, batch)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    moved = torch.cat([w.grad.reshape(-1) for w in weights_of(net).values()]).abs() > 0
    assert set(np.flatnonzero(moved)) <= set(here) and moved.sum() > 20
    assert channel.room(net) == len(flat)
    with pytest.raises(InvalidInput, match="at most 480 bits, one in each weight, got 481"):
        channel.objective(penalized, coins(481))(net, batch)
    with pytest.raises(InvalidInput, match="at most 480 bits"):
        channel.read(net, 481)


@pytest.mark.parametrize("make", [signs, correlated_values])
def test_a_payload_is_trained_into_weights(make: Any) -> None:
    records, test = bits(800), bits(1000, seed=1)
    recipe = replace(RECIPE, epochs=10)
    payload = bytes(range(60))
    written, channel = framed(payload, KEY), make(KEY)
    made = fit(recipe, records, seed=0, objective=channel.objective(RecipeLoss(recipe), written))
    control = fit(recipe, records, seed=0)
    before, after = (
        bit_error_rate(channel.read(m.net, len(written)), written).value for m in (control, made)
    )
    assert before == pytest.approx(0.5, abs=0.06) and after < 0.02
    assert unframed(lambda n: channel.read(made.net, n), KEY, channel.room(made.net)) == payload
    assert accuracy(made, test) > accuracy(control, test) - 0.02
    wrong = make(OTHER)
    assert bit_error_rate(wrong.read(made.net, len(written)), written).value > 0.4


@pytest.mark.slow
def test_correlated_values_outlive_what_signs_do_not() -> None:
    """Every weight carries a bit; then 8 bits, half of the weights, 25 epochs on other records."""
    records, others = bits(), bits(1500, seed=4)
    rates = {}
    for make in (signs, correlated_values):
        channel = make(KEY)
        written = coins(8608)
        objective = channel.objective(RecipeLoss(RECIPE), written)
        net = fit(RECIPE, records, seed=0, objective=objective).net
        after = [net, quantized(net), pruned(net, 0.5), fine_tuned(RECIPE, net, others, seed=3).net]
        rates[make] = [bit_error_rate(channel.read(m, 8608), written).value for m in after]
    assert all(r[0] < 0.02 for r in rates.values())
    assert (np.array(rates[correlated_values][1:]) < np.array(rates[signs][1:])).all()
    assert rates[correlated_values][1] < 0.02 and rates[signs][1] > 0.05


def test_a_strength_is_above_0() -> None:
    with pytest.raises(InvalidInput, match="strength above 0, got 0"):
        signs(KEY, 0)


# --- capacity abuse ------------------------------------------------------------------------------


def test_labels_spell_the_bits() -> None:
    records = bits(30)
    channel = CapacityAbuse(KEY, 5)
    assert channel.bits_per_input == 2 and channel.n_inputs(7) == 4
    written = np.array([1, 0, 1, 1, 0, 1, 1], dtype=np.uint8)
    more = channel.added(records, written)
    assert len(more) == 34 and more.ids.tolist() == list(range(34))
    np.testing.assert_array_equal(more.x[:30], records.x)
    # the last label is filled up with a zero
    assert more.y[30:].tolist() == [0b10, 0b11, 0b01, 0b10]
    assert more.x.dtype == records.x.dtype
    text = replace(records, ids=np.array([f"r{i}" for i in range(30)]))
    assert channel.added(text, written).ids[30:].tolist() == [f"smuggled-{i}" for i in range(4)]
    for classes, m in ((2, 1), (3, 1), (4, 2), (10, 3), (16, 4)):
        assert CapacityAbuse(KEY, classes).bits_per_input == m


def test_inputs_are_the_keys_and_begin_alike() -> None:
    channel = CapacityAbuse(KEY, 4, low=-1, high=2)
    x = channel.inputs(50, (3, 4))
    assert x.shape == (50, 3, 4) and x.dtype == np.float32
    assert set(np.unique(x)) == {-1.0, 2.0} and abs((x == 2).mean() - 0.5) < 0.08
    np.testing.assert_array_equal(channel.inputs(20, (3, 4)), x[:20])
    assert (CapacityAbuse(OTHER, 4, low=-1, high=2).inputs(50, (3, 4)) != x).mean() > 0.4
    # one of two values by the key's own stream for this, which no other purpose shares
    drawn = KEY.draws("capacity").uniform(50, 12)
    np.testing.assert_array_equal(x.reshape(50, 12), np.where(drawn < 0.5, -1, 2))


def test_a_payload_goes_through_any_model_that_shows_its_labels() -> None:
    """Nearest neighbors learn by heart; a service that shows labels only does not stop it."""
    records = bits(300)
    payload = bytes(range(100))
    channel = CapacityAbuse(KEY, 5)
    more = channel.added(records, framed(payload, KEY))
    estimator = KNeighborsClassifier(1).fit(more.x, more.y)
    model = LabelOnly(EstimatorModel(estimator))
    assert unframed(lambda n: channel.read(model, n, (100,)), KEY, 10**4) == payload
    n = framed_size(100)
    assert model.n_queries == channel.n_inputs(96) + channel.n_inputs(n)
    clean = EstimatorModel(KNeighborsClassifier(1).fit(records.x, records.y))
    with pytest.raises(DamagedFile):
        unframed(lambda n: channel.read(clean, n, (100,)), KEY, 10**4)


def test_labels_that_cannot_be_spelled() -> None:
    records = bits(30)
    whole = replace(records, x=records.x.astype(np.uint8))
    with pytest.raises(InvalidInput, match="floating numbers, got uint8"):
        CapacityAbuse(KEY, 5).added(whole, coins(4))
    with pytest.raises(InvalidInput, match="at least 2 classes, got 1"):
        CapacityAbuse(KEY, 1)
    with pytest.raises(InvalidInput, match="low < high"):
        CapacityAbuse(KEY, 2, low=1, high=1)
    model = EstimatorModel(KNeighborsClassifier(1).fit(records.x, records.y))
    with pytest.raises(InvalidInput, match="a model of 10 classes, got 5"):
        CapacityAbuse(KEY, 10).read(model, 4, (100,))


@pytest.mark.slow
def test_a_network_learns_labels_by_heart_beside_its_task() -> None:
    records, test = bits(), bits(1500, seed=1)
    channel, written = CapacityAbuse(KEY, 5), coins(1000)
    recipe = replace(RECIPE, epochs=50, optimizer="adam", lr=0.002)
    made = fit(recipe, channel.added(records, written), seed=0)
    assert bit_error_rate(channel.read(made, 1000, (100,)), written).value < 0.01
    assert accuracy(made, test) > 0.98
    control = fit(recipe, records, seed=0)
    assert bit_error_rate(channel.read(control, 1000, (100,)), written).value > 0.4
