"""Twins of models with one record more, and the hinge loss that queries are optimized on."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from vestige.errors import InvalidInput
from vestige.models import TorchModel
from vestige.records import Records, concatenate
from vestige.signals import cross_entropy_loss
from vestige.training import CNN, MLP, EstimatorRecipe, TorchRecipe, cosine, influence, train_many
from vestige.training.influence import hinge, twins


def records(n=60, shape=(3,), classes=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    y = (x.reshape(n, -1)[:, 0] > 0).astype(np.int64) + rng.integers(0, classes - 1, n)
    return Records.from_arrays(x, y, classes=[str(c) for c in range(classes)])


def one(shape=(3,), label=0, at=2.0):
    return Records.from_arrays(np.full((1, *shape), at, np.float32), [label], ids=[999])


def member_of(k, n, size=40, seed=1):
    member = np.zeros((k, n), dtype=bool)
    for i in range(k):
        member[i, np.random.default_rng([seed, i]).permutation(n)[:size]] = True
    return member


def trained(recipe, own, k=4, size=40):
    member = member_of(k, len(own), size)
    return [recipe.fit(own[row], i) for i, row in enumerate(member)], member


def weights(models):
    return [
        np.concatenate([p.detach().numpy().ravel() for p in m.net.parameters()]) for m in models
    ]


SGD = TorchRecipe(MLP(3, 2, (5,)), epochs=3, batch_size=8, lr=0.1)


ADAM = replace(SGD, optimizer="adam", lr=0.02)


def by_hand(recipe, model, own, rows, record, aim, with_record, most=None):
    """One model, one step after the other; the steps until its loss is low enough."""
    net = copy.deepcopy(model.net).eval()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[recipe.optimizer](net.parameters(), lr=0.0)

    def step(x, y, size):
        optimizer.zero_grad()
        logits = net(torch.from_numpy(x))
        terms = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
        (terms / size).backward()
        optimizer.step()

    for i in range(20):
        batch = rows[i % 5]
        step(own.x[batch], own.y[batch], len(batch))
    optimizer.param_groups[0]["lr"] = recipe.lr
    for steps, batch in enumerate(rows[:most], 1):
        x, y = own.x[batch], own.y[batch]
        if with_record:
            x, y = np.concatenate([x, record.x]), np.concatenate([y, record.y])
        step(x, y, recipe.batch_size)
        loss = cross_entropy_loss(TorchModel(net).log_probabilities(record.x), record.y)[0]
        if with_record and loss <= aim:
            return net, steps
    return net, len(rows)


@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_updates_are_the_steps_taken_by_hand(recipe):
    own, record = records(), one()
    models, member = trained(recipe, own)
    made = twins(recipe, models, own, member, record, seed=3)
    batches = influence._batches(member, recipe.batch_size, 3)
    assert batches.shape == (4, 5, 7)  # an epoch of 40 records in batches of 8, one of them ours
    assert (made.steps < 5).any()
    for k, model in enumerate(models):
        assert np.isin(batches[k], np.flatnonzero(member[k])).all()
        assert len(np.unique(batches[k])) == 35
        net, steps = by_hand(recipe, model, own, batches[k], record, made.aim, True)
        assert steps == made.steps[k] >= 1
        control, _ = by_hand(recipe, model, own, batches[k], record, made.aim, False, steps)
        for mine, theirs in ((made.positive[k].net, net), (made.control[k].net, control)):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_models_stop_where_retrained_ones_would_be_and_after_an_epoch_at_most():
    own, record = records(n=300), one()
    recipe = TorchRecipe(MLP(3, 2, (5,)), epochs=4, batch_size=8, lr=0.3)
    models, member = trained(recipe, own, k=6, size=200)
    made = twins(recipe, models, own, member, record, seed=0)

    def loss(model):
        return cross_entropy_loss(model.log_probabilities(record.x), record.y)[0]

    joined = concatenate(own, record)
    with_it = np.column_stack([member[:3], np.ones(3, dtype=bool)])
    again = train_many(recipe, joined, with_it, seed=0).models
    assert made.aim == pytest.approx(np.median([loss(m) for m in again]))
    losses, most = np.array([loss(m) for m in made.positive]), 25
    assert ((losses <= made.aim) | (made.steps == most)).all()
    assert (made.steps < most).any()
    assert all(loss(a) < loss(b) for a, b in zip(made.positive, made.control, strict=True))


def test_models_are_left_as_they_were():
    own, record = records(), one()
    models, member = trained(SGD, own)
    before = weights(models)
    made = twins(SGD, models, own, member, record, seed=0)
    for a, b, c in zip(before, weights(models), weights(made.control), strict=True):
        assert (a == b).all() and (a != c).any()


def adagrad(parameters):
    return torch.optim.Adagrad(parameters, lr=0.05)


class Normalized(nn.Module):
    """Dropout, running statistics and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 6), nn.BatchNorm1d(6)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(6, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def add_noise(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


RECIPES = {
    "sgd": SGD,
    "momentum": TorchRecipe(MLP(3, 2, ()), epochs=2, batch_size=8, momentum=0.9),
    "adam": TorchRecipe(MLP(3, 2, (5,)), epochs=2, batch_size=8, optimizer="adam", lr=0.01),
    "own optimizer": TorchRecipe(MLP(3, 2, (5,)), epochs=2, batch_size=8, optimizer=adagrad),
    "statistics": TorchRecipe(Normalized, epochs=2, batch_size=8, lr=0.1),
    "augmented": TorchRecipe(MLP(3, 2, (5,)), epochs=2, batch_size=8, augment=add_noise),
    "one logit": TorchRecipe(MLP(3, 1, (5,)), epochs=2, batch_size=8, lr=0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_together_and_alone_come_to_the_same(name, monkeypatch):
    own, record, recipe = records(), one(), RECIPES[name]
    models, member = trained(recipe, own)
    together = twins(recipe, models, own, member, record, seed=0)
    assert len(influence._groups(together.positive, torch.zeros(2, 3))) == 1
    monkeypatch.setattr(influence, "_stackable", lambda *_: False)
    alone = twins(recipe, models, own, member, record, seed=0)
    np.testing.assert_array_equal(together.steps, alone.steps)
    for side in ("positive", "control"):
        pairs = zip(weights(getattr(together, side)), weights(getattr(alone, side)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(together.positive, models, strict=True):
        for x, y in zip(a.net.buffers(), b.net.buffers(), strict=True):
            assert torch.equal(x, y)


def test_pictures_and_convolutions():
    own, record = records(n=20, shape=(1, 8, 8)), one(shape=(1, 8, 8))
    recipe = TorchRecipe(CNN(1, 8, 2, (2, 3), 4), epochs=1, batch_size=5, lr=0.05)
    models, member = trained(recipe, own, k=3, size=12)
    made = twins(recipe, models, own, member, record, seed=0)
    loss = hinge(made.positive, made.control, 0, 0.1)
    value, gradient = loss(own.x[:4])
    assert value.shape == (4,) and gradient.shape == (4, 1, 8, 8) and np.abs(gradient).max() > 0


@pytest.mark.parametrize("k", [1, 6])
def test_a_record_without_a_gradient_changes_nothing_beside_its_control(k):
    # weights of a linear model without bias get no gradient from the origin
    own, record = records(), one(at=0.0)
    recipe = TorchRecipe(partial(nn.Linear, 3, 2, bias=False), epochs=1, batch_size=8, lr=0.05)
    models, member = trained(recipe, own, k=k)
    made = twins(recipe, models, own, member, record, seed=0)
    for a, b, c in zip(weights(made.positive), weights(made.control), weights(models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        # training went on all the same
        assert np.abs(a - c).max() > 1e-3


def test_a_batch_of_one_leaves_the_control_alone():
    own, record = records(), one()
    recipe = TorchRecipe(MLP(3, 2, ()), epochs=1, batch_size=1, lr=0.01)
    models, member = trained(recipe, own)
    made = twins(recipe, models, own, member, record, seed=0)
    for a, b, c in zip(weights(made.control), weights(models), weights(made.positive), strict=True):
        assert (a == b).all() and (a != c).any()


def test_a_rate_that_was_annealed_to_nothing_still_moves():
    recipe = TorchRecipe(MLP(3, 2, ()), epochs=3, batch_size=8, schedule=cosine)
    assert influence._last_rate(recipe, 100) == 0.1
    assert influence._last_rate(SGD, 100) == 1.0
    halved = TorchRecipe(MLP(3, 2, ()), schedule=lambda progress: 1 - progress / 2)
    assert influence._last_rate(halved, 100) == pytest.approx(0.505)


def test_estimators_are_trained_anew():
    own, record = records(), one(label=0)
    recipe = EstimatorRecipe(LogisticRegression(C=10.0))
    models, member = trained(recipe, own)
    made = twins(recipe, models, own, member, record, seed=0)
    joined = concatenate(own, record)
    for k, row in enumerate(member):
        rows = np.append(np.flatnonzero(row), len(own))
        expected = recipe.fit(joined[rows], 0).log_probabilities(own.x)
        np.testing.assert_allclose(made.positive[k].log_probabilities(own.x), expected)
        same = made.control[k].log_probabilities(own.x)
        np.testing.assert_allclose(same, models[k].log_probabilities(own.x))
    assert np.isnan(made.aim) and not made.steps.any()
    assert hinge(made.positive, made.control, 0, 0.1) is None


def test_what_is_no_module_of_its_own_is_trained_anew():
    class Wrapped:
        n_queries = 0

        def __init__(self, model):
            self.log_probabilities = model.log_probabilities

    own = records()
    models, member = trained(SGD, own)
    made = twins(SGD, [Wrapped(m) for m in models], own, member, one(), seed=0)
    assert np.isnan(made.aim) and all(type(m) is TorchModel for m in made.positive)


# --- the hinge loss ------------------------------------------------------------------------------


def linear(weight, outputs="logits"):
    net = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(weight))
    if outputs == "logits":
        return TorchModel(net, outputs="logits")
    squash = {"probabilities": nn.Softmax(1), "log_probabilities": nn.LogSoftmax(1)}[outputs]
    if len(weight) == 1:
        squash = nn.Sigmoid() if outputs == "probabilities" else nn.LogSigmoid()
    return TorchModel(nn.Sequential(net, squash), outputs=outputs)


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "log_probabilities"])
@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("at_once", [2**22, 700])
def test_hinge_and_its_gradient(outputs, n_logits, label, at_once, monkeypatch):
    monkeypatch.setattr(influence, "ANSWERS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    sides = [[linear(rng.normal(size=(n_logits, 4)), outputs) for _ in range(5)] for _ in range(2)]
    x, gamma = rng.normal(size=(7, 4)), 0.1

    def naive(x):
        p, c = (
            np.array([np.exp(m.log_probabilities(x)[:, label]) for m in side]) for side in sides
        )
        return np.maximum(0, gamma - (p - c)).sum(axis=0)

    value, gradient = hinge(*sides, label, gamma)(x)
    np.testing.assert_allclose(value, naive(x), rtol=1e-9)
    step = 1e-6 * np.eye(4)
    expected = np.stack([(naive(x + e) - naive(x - e)) / 2e-6 for e in step], axis=1)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_hinge_of_equal_models_is_the_margin_times_their_number():
    models = [linear(np.ones((2, 3)) * k) for k in range(6)]
    value, gradient = hinge(models, models, 1, 0.25)(np.ones((4, 3)))
    np.testing.assert_allclose(value, 6 * 0.25)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_hinge_asks_in_eval_mode_and_leaves_modes_alone():
    torch.manual_seed(0)
    models = [TorchModel(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))) for _ in range(3)]
    loss = hinge(models, models[::-1], 0, 0.1)
    x = np.ones((2, 3), dtype=np.float32)
    assert (loss(x)[0] == loss(x)[0]).all()
    assert all(m.net.training for m in models)


def test_hinge_of_what_embeds_its_inputs_has_no_gradient():
    model = TorchModel(nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2)))
    assert hinge([model], [model], 0, 0.1) is None


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


def test_what_cannot_be_stacked_is_taken_alone():
    torch.manual_seed(0)
    models = [TorchModel(Recurrent(), outputs="logits") for _ in range(4)]
    x = records().x[:3]
    assert len(influence._groups(models, torch.from_numpy(x))) == 4
    value, gradient = hinge(models[:2], models[2:], 0, 0.1)(x)
    p = np.exp([m.log_probabilities(x)[:, 0] for m in models])
    np.testing.assert_allclose(value, np.maximum(0, 0.1 - p[:2] + p[2:]).sum(axis=0), atol=1e-6)
    assert np.abs(gradient).max() > 0


def refusals():
    own = records()
    models = [TorchModel(MLP(3, 2, ())()) for _ in range(2)]
    member = np.ones((2, 60), dtype=bool)
    call = partial(twins, SGD, seed=0)
    return {
        "two records": lambda: call(models, own, member, own[:2]),
        "another table": lambda: call(models, own, member[:, :5], one()),
        "no models": lambda: call([], own, member[:0], one()),
        "another class": lambda: call(models, own, member, one(label=7)),
    }


@pytest.mark.parametrize("name", refusals())
def test_refusals(name):
    with pytest.raises(InvalidInput, match="expected .* got"):
        refusals()[name]()
