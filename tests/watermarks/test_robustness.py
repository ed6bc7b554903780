"""Masks that partition, weights that stay zero, and modules that are left as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vestige.errors import InvalidInput
from vestige.records import Records
from vestige.training import CNN, MLP, TorchRecipe
from vestige.watermarks import Encoder, Encoding, Key
from vestige.watermarks.robustness import (
    adversarially_pruned,
    border,
    center,
    columns,
    fine_tuned,
    grid,
    pruned,
    quantized,
    redacted,
    starting_from,
    transferred,
    weights_of,
)


def pictures(n: int = 40, classes: int = 3) -> Records:
    rng = np.random.default_rng(0)
    x = rng.random((n, 2, 8, 8)).astype(np.float32)
    return Records.from_arrays(x, np.arange(n) % classes)


# --- redaction -----------------------------------------------------------------------------------


def test_squares_borders_and_cells() -> None:
    middle, edge, cells = center(32, 8), border(32, 8), grid(32)
    assert middle.sum() == 64 and middle[12:20, 12:20].all()
    assert edge.sum() == 1024 - 576 == 448 and not edge[4:28, 4:28].any()
    assert len(cells) == 16 and (sum(c.astype(int) for c in cells) == 1).all()
    assert cells[1][0:8, 8:16].all() and cells[4][8:16, 0:8].all()
    assert not center(8, 0).any() and center(8, 8).all() and border(8, 8).all()
    with pytest.raises(InvalidInput, match="a width from 0 to 8, got 9"):
        center(8, 9)
    with pytest.raises(InvalidInput, match="cells that divide 10, got 4"):
        grid(10)


def test_masked_inputs_have_the_value_in_every_channel() -> None:
    records, mask = pictures(), center(8, 2)
    means = np.array([-0.5, 0.25]).reshape(2, 1, 1)
    of_channels = redacted(records, mask, means).x
    for channel, mean in enumerate(means.ravel()):
        np.testing.assert_array_equal(of_channels[:, channel][:, mask], np.float32(mean))
    hidden = redacted(records, mask, -0.5)
    assert (hidden.x[:, :, mask] == -0.5).all() and (records.x >= 0).all()
    np.testing.assert_array_equal(hidden.x[:, :, ~mask], records.x[:, :, ~mask])
    np.testing.assert_array_equal(hidden.ids, records.ids)
    with pytest.raises(InvalidInput, match=r"a mask of a record's shape \(2, 8, 8\), got \(9, 9\)"):
        redacted(records, center(9, 2))


def test_columns_by_name_and_by_group() -> None:
    names = ("age", "sex=f", "sex=m", "job=a", "sexton")
    records = Records.from_arrays(np.ones((3, 5)), [0, 1, 0], columns=names)
    assert columns(records, ["sex"]).tolist() == [False, True, True, False, False]
    assert columns(records, ["age", "job=a"]).tolist() == [True, False, False, True, False]
    hidden = redacted(records, columns(records, ["sex"]))
    assert hidden.x[0].tolist() == [1, 0, 0, 1, 1]
    with pytest.raises(InvalidInput, match="a column among age, sex, job, sexton, ..., got 'pay'"):
        columns(records, ["pay"])


# --- pruning -------------------------------------------------------------------------------------


def zeros(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: w == 0 for n, w in weights_of(net).items()}


def test_the_smallest_weights_go_first() -> None:
    net = CNN(2, 8, 3, (4, 8), 16)()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    small = pruned(net, 0.3)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    sizes = torch.cat([w.abs().reshape(-1) for w in weights_of(net).values()])
    bound = sizes.sort().values[round(0.3 * len(sizes)) - 1]
    for name, w in weights_of(small).items():
        gone = before[name].abs() <= bound
        assert torch.equal(w == 0, gone) and torch.equal(w[~gone], before[name][~gone])
    assert all(torch.equal(p, before[n]) for n, p in small.named_parameters() if n.endswith("bias"))
    for w in weights_of(pruned(net, 0.5, layerwise=True)).values():
        assert int((w == 0).sum()) == round(0.5 * w.numel())
    assert all((w == 0).all() for w in weights_of(pruned(net, 1.0)).values())


@pytest.mark.parametrize(("share", "gone"), [(0.3, 5), (0.28, 4), (0.35, 6), (0.03, 0)])
def test_the_share_is_rounded_to_the_nearest_number_of_weights(share: float, gone: int) -> None:
    net: Any = nn.Linear(4, 4)  # 16 weights: 4.8, 4.48, 5.6, 0.48
    for layerwise in (False, True):
        small: Any = pruned(net, share, layerwise=layerwise)
        assert int((small.weight == 0).sum()) == gone


def test_weights_are_rounded_to_the_nearest_value() -> None:
    net: Any = nn.Linear(7, 1)
    old = torch.tensor([[7.0, 1.4, 1.6, -1.4, -1.6, 0.6, -6.9]])
    with torch.no_grad():
        net.weight.copy_(old)
    made: Any = quantized(net, 4)
    torch.testing.assert_close(made.weight.detach(), torch.tensor([[7.0, 1, 2, -1, -2, 1, -7]]))


def test_of_equal_weights_the_first_go_first_and_norms_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm((2, 2)))
    with torch.no_grad():
        net[0].weight.fill_(0.5)
        net[2].weight.fill_(0.1)
    gone = (pruned(net, 0.25)[0].weight == 0).reshape(-1)
    assert gone.tolist() == [True] * 4 + [False] * 12
    assert list(weights_of(net)) == ["0.weight"]
    with pytest.raises(InvalidInput, match=r"a share in \[0, 1\], got 1.5"):
        pruned(net, 1.5)
    with pytest.raises(InvalidInput, match="weight matrices, got none"):
        pruned(nn.BatchNorm1d(3), 0.5)


@pytest.mark.slow
def test_what_is_pruned_stays_so_through_momentum_and_decay() -> None:
    records = pictures()
    recipe = TorchRecipe(
        CNN(2, 8, 3, (4, 8), 16),
        epochs=3,
        batch_size=8,
        optimizer="sgd",
        lr=0.05,
        momentum=0.9,
        weight_decay=0.01,
    )
    encoder = Encoder(key=Key.of(0), encoding=Encoding(layer="7", n_synthetic=20), lr=0.05)
    net = encoder.fit(recipe, records, seed=0).model.net
    small, made = pruned(net, 0.7), adversarially_pruned(encoder, recipe, net, 0.7, records, seed=1)
    for name, gone in zeros(small).items():
        w = weights_of(made.model.net)[name]
        assert torch.equal(w == 0, gone)
        assert not torch.equal(w[~gone], weights_of(small)[name][~gone])


# --- other ends ----------------------------------------------------------------------------------


def test_training_goes_on_from_the_weights_that_are_there() -> None:
    records = pictures()
    recipe = TorchRecipe(MLP(128, 3, (8,)), epochs=1, batch_size=10, lr=1e-12, optimizer="sgd")
    net = MLP(128, 3, (8,))()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    made = fine_tuned(recipe, net, records, seed=0)
    for name, p in made.net.named_parameters():
        torch.testing.assert_close(p, before[name])
    assert starting_from(recipe, net).epochs == 1


def test_another_task_has_a_head_of_its_own() -> None:
    records = pictures(classes=5)
    recipe = TorchRecipe(MLP(128, 3, (8,)), epochs=1, batch_size=10, lr=1e-12, optimizer="sgd")
    net = MLP(128, 3, (8,))()
    made = transferred(recipe, net, "3", records, seed=0)
    assert made.log_probabilities(records.x).shape == (40, 5) and net[3].out_features == 3
    torch.testing.assert_close(made.net[1].weight, net[1].weight)
    again = transferred(recipe, net, "3", records, seed=0)
    assert torch.equal(again.net[3].weight, made.net[3].weight)
    with pytest.raises(InvalidInput, match="the output layer among 1, 3, got '2'"):
        transferred(recipe, net, "2", records, seed=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_weights_take_few_values(bits: int) -> None:
    net: Any = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
    made: Any = quantized(net, bits)
    for old, new in ((net[0].weight, made[0].weight), (net[2].weight, made[2].weight)):
        assert len(new.unique()) <= 2**bits - 1
        step = old.abs().max() / (2 ** (bits - 1) - 1)
        assert (old - new).abs().max() <= step / 2 * 1.0001
        torch.testing.assert_close(new.abs().max(), old.abs().max())
    assert torch.equal(net[0].bias, made[0].bias)
    with pytest.raises(InvalidInput, match="2 to 16 bits, got 1"):
        quantized(net, 1)


def test_a_layer_of_zeros_can_be_quantized() -> None:
    net = nn.Linear(3, 3)
    with torch.no_grad():
        net.weight.zero_()
    assert not quantized(net).weight.any()  # type: ignore[union-attr]
