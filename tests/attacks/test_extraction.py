"""Surrogates from answers: known oracles, the identity of accuracy and fidelity, exact counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from vestige.attacks.extraction import (
    Extraction,
    _shared_out,
    _SoftLabels,
    _top1,
    budget_curve,
)
from vestige.errors import InvalidInput
from vestige.records import Records
from vestige.training import MLP, Batch, EstimatorRecipe, TorchRecipe

LINEAR = EstimatorRecipe(LogisticRegression(C=1e4, max_iter=2000))
NET = TorchRecipe(MLP(5, 3, hidden=()), epochs=60, batch_size=32, optimizer="adam", lr=0.05)


class Oracle:
    """Softmax of a linear function, counting what it is asked; it remembers nothing."""

    def __init__(self, classes=3, features=5, seed=0, power=1.0):
        self.weights = 3 * np.random.default_rng(seed).normal(size=(features, classes))
        self.power, self.n_queries, self.calls = power, 0, []

    def probabilities(self, x):
        return softmax(np.asarray(x) @ self.weights, axis=1) ** self.power

    def log_probabilities(self, x):
        self.n_queries += len(x)
        self.calls.append(len(x))
        return np.log(np.maximum(self.probabilities(x), 1e-12))


class Random(Oracle):
    """A label drawn for each record by its content, whatever is near it."""

    def probabilities(self, x):
        words = [int.from_bytes(np.asarray(row).tobytes()[:8], "little") for row in x]
        labels = [np.random.default_rng(word).integers(3) for word in words]
        return np.where(np.eye(3, dtype=bool)[labels], 0.98, 0.01)


def draw(n, seed, features=5):
    return np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32)


def labeled(oracle, n, seed, flipped=0.2):
    """Records whose label is the oracle's, but for a share of them."""
    x, rng = draw(n, seed), np.random.default_rng(seed + 1)
    y = oracle.probabilities(x).argmax(axis=1)
    y = np.where(rng.random(n) < flipped, rng.integers(0, 3, n), y)
    return Records.from_arrays(x, y, classes=["0", "1", "2"])


@pytest.mark.parametrize("answers", ["labels", "top1", "probabilities"])
@pytest.mark.parametrize("recipe", [LINEAR, NET], ids=["scikit-learn", "torch"])
def test_a_linear_oracle_is_copied(recipe, answers):
    oracle = Oracle()
    attack = Extraction(recipe=recipe, answers=answers)
    report = attack.run(oracle, draw(500, 1), labeled(oracle, 600, 2))
    assert report.fidelity.value > 0.95
    assert report.agreement.value > 0.95
    assert report.n_queries == 500 and report.n_test == 600
    # the thief learns what the oracle knows, not the flipped labels
    assert abs(report.accuracy.value - report.target_accuracy.value) < 0.05


@pytest.mark.parametrize("recipe", [LINEAR, NET], ids=["scikit-learn", "torch"])
def test_probabilities_are_copied_closer_than_labels_allow(recipe):
    oracle = Oracle()
    queries, test = draw(400, 1), labeled(oracle, 500, 2)
    report = Extraction(recipe=recipe).run(oracle, queries, test)
    truth = oracle.probabilities(test.x)
    # a hard surrogate is far from a soft oracle: its confidence grows without bound
    hard = Extraction(recipe=recipe, answers="labels").run(oracle, queries, test)
    gap = {}
    for name, made in (("soft", report), ("hard", hard)):
        own = np.exp(made.surrogate.log_probabilities(test.x))
        gap[name] = np.abs(own - truth).sum(axis=1).mean() / 2
    assert report.total_variation.value == pytest.approx(gap["soft"], abs=1e-9)
    assert gap["soft"] < 0.6 * gap["hard"]
    assert report.total_variation.low < gap["soft"] < report.total_variation.high
    assert hard.total_variation.value is None and "not shown" in hard.total_variation.reason


def test_a_random_oracle_is_not_copied():
    oracle = Random()
    test = Records.from_arrays(draw(900, 3), np.zeros(900, dtype=int), classes=["0", "1", "2"])
    report = Extraction(recipe=LINEAR, answers="labels").run(oracle, draw(600, 1), test)
    # 900 fresh records at 1/3: five standard errors are 0.079
    assert abs(report.fidelity.value - 1 / 3) < 0.08


class Sure(Oracle):
    """Class 0, always."""

    def probabilities(self, x):
        return np.repeat([[0.98, 0.01, 0.01]], len(x), axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("answers", ["labels", "probabilities"])
def test_accuracy_is_bounded_by_fidelity(answers, seed):
    oracle = [Oracle(seed=seed), Random(seed=seed), Oracle(seed=seed, power=3), Sure()][seed]
    recipe = TorchRecipe(MLP(5, 3, (8,)), epochs=3, optimizer="adam", lr=0.01)
    test = labeled(Oracle(seed=9), 300, 20 + seed)
    report = Extraction(recipe=recipe, answers=answers, seed=seed).run(oracle, draw(60, seed), test)
    gap = report.accuracy.value - report.target_accuracy.value
    assert abs(gap) <= 1 - report.fidelity.value + 1e-12


def test_an_oracle_is_faithful_to_itself():
    class Copy:
        suffix = ".none"

        def fit(self, records, seed):
            return Oracle()

    oracle = Oracle()
    report = Extraction(recipe=Copy()).run(oracle, draw(50, 1), labeled(oracle, 80, 2))
    assert report.fidelity.value == report.agreement.value == 1.0
    assert report.total_variation.value == pytest.approx(0.0, abs=1e-12)


def test_labels_of_the_queries_are_not_looked_at():
    oracle, x = Oracle(), draw(200, 1)
    test = labeled(oracle, 100, 2)
    mine = Records.from_arrays(x, np.zeros(200, dtype=int), classes=["0", "1", "2"])
    reports = [Extraction(recipe=NET).run(oracle, q, test) for q in (x, mine)]
    answers = [r.surrogate.log_probabilities(test.x) for r in reports]
    assert np.array_equal(*answers)


def test_the_budget_is_what_is_asked_and_nested():
    oracle = Oracle()
    x, seen = draw(300, 1), {}

    class Watched:
        suffix = ".none"

        def fit(self, records, seed):
            seen[len(records)] = {row.tobytes() for row in np.asarray(records.x)}
            return LINEAR.fit(records, seed)

    for budget in (60, 120):
        before = oracle.n_queries
        made = Extraction(recipe=Watched(), answers="labels", budget=budget).run(oracle, x)
        assert made.n_queries == oracle.n_queries - before == budget
        assert made.n_test == 0 and made.fidelity.value is None
    assert seen[60] < seen[120]
    assert Extraction(recipe=LINEAR, budget=9999, answers="labels").run(oracle, x).n_queries == 300


def test_the_budget_curve_asks_once():
    oracle = Oracle()
    test = labeled(oracle, 400, 2)
    attack = Extraction(recipe=NET, answers="labels", seed=3)
    told = []
    made = budget_curve(
        oracle, draw(400, 1), [10, 40, 400], extraction=attack, test=test,
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert oracle.calls == [400, 400]
    assert [r.n_queries for r in made] == [10, 40, 400]
    assert [r.n_test for r in made] == [400] * 3
    assert made[0].fidelity.high < made[2].fidelity.low
    assert told[-1] == ("surrogates", 3, 3)
    # a point of the curve is what a run of that budget is
    alone = Extraction(recipe=NET, answers="labels", seed=3, budget=40).run(oracle, draw(400, 1))
    x = test.x[:5]
    assert np.array_equal(
        alone.surrogate.log_probabilities(x), made[1].surrogate.log_probabilities(x)
    )


def test_fidelity_is_not_measured_on_queries():
    oracle, x = Oracle(), draw(120, 1)
    test = Records.from_arrays(np.concatenate([x[:70], draw(30, 5)]), np.zeros(100, dtype=int))
    report = Extraction(recipe=LINEAR, answers="labels").run(oracle, x, test)
    assert report.n_test == 30
    # the same numbers in another type are the same queries
    wide = Records.from_arrays(test.x.astype(np.float64), test.y)
    assert Extraction(recipe=LINEAR, answers="labels").run(oracle, x, wide).n_test == 30
    with pytest.raises(InvalidInput, match="not among the queries"):
        Extraction(recipe=LINEAR).run(oracle, x, test[:70])


def test_top1_spreads_the_rest_evenly():
    shown = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    assert _top1(shown) == pytest.approx(np.array([[0.7, 0.15, 0.15], [0.25, 0.5, 0.25]]))


def test_cut_answers_are_scaled_and_the_top_stays_on_top():
    class Cut(Oracle):
        def probabilities(self, x):
            # rounding to one digit of ten classes leaves nothing at all
            return np.zeros((len(x), 10))

    recipe = TorchRecipe(MLP(5, 10, ()), epochs=1)
    report = Extraction(recipe=recipe, answers="top1").run(Cut(), draw(30, 1))
    assert report.n_queries == 30


@pytest.mark.parametrize("recipe", [LINEAR, NET], ids=["scikit-learn", "torch"])
def test_answers_that_do_not_sum_to_one_teach_the_same(recipe):
    class Half(Oracle):
        def log_probabilities(self, x):
            return super().log_probabilities(x) - np.log(2)

    made = [Extraction(recipe=recipe).run(o, draw(80, 1)) for o in (Oracle(), Half())]
    answers = [np.exp(m.surrogate.log_probabilities(draw(20, 4))) for m in made]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_copies_are_shared_out_by_largest_remainders(copies):
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    counts = _shared_out(soft, copies)
    assert (counts.sum(axis=1) == copies).all()
    assert (np.abs(counts - copies * soft) < 1).all()
    assert _shared_out(np.array([[0.5, 0.25, 0.25]]), 4).tolist() == [[2, 1, 1]]


def test_the_objective_is_cross_entropy_with_the_record_s_own_vector():
    vectors = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    x, rows = torch.randn(4, 5), torch.tensor([5, 0, 3, 3])
    net = nn.Linear(5, 3)
    loss = _SoftLabels(NET, vectors, False)(net, Batch(x, rows, 0))
    wanted = torch.from_numpy(vectors[rows.numpy()]).float()
    expected = -(wanted * torch.log_softmax(net(x), dim=1)).sum(dim=1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_of_the_top_alone_it_is_cross_entropy_with_any_other_class_as_one():
    vectors = _top1(np.random.default_rng(0).dirichlet(np.ones(3), 6))
    x, rows = torch.randn(4, 5), torch.tensor([5, 0, 3, 3])
    net = nn.Linear(5, 3)
    loss = _SoftLabels(NET, vectors, True)(net, Batch(x, rows, 0))
    wanted = torch.from_numpy(vectors[rows.numpy()])
    (p, top), q = wanted.max(dim=1), torch.softmax(net(x), dim=1).double()
    shown = q[torch.arange(4), top]
    expected = -(p * shown.log() + (1 - p) * (1 - shown).log()).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_top_probabilities_teach_more_than_labels():
    oracle = Oracle(classes=6)
    recipe = TorchRecipe(MLP(5, 6, ()), epochs=60, batch_size=32, optimizer="adam", lr=0.05)
    test = Records.from_arrays(draw(400, 2), np.zeros(400, dtype=int), classes=list("abcdef"))
    made = {
        answers: Extraction(recipe=recipe, answers=answers).run(oracle, draw(300, 1), test)
        for answers in ("labels", "top1")
    }
    apart = {
        answers: np.abs(
            np.exp(report.surrogate.log_probabilities(test.x)) - oracle.probabilities(test.x)
        ).sum(axis=1).mean()
        for answers, report in made.items()
    }  # fmt: skip
    assert apart["top1"] < 0.5 * apart["labels"]


def test_a_report_reads_as_sentences():
    text = str(Extraction(recipe=LINEAR, answers="labels").run(Oracle(), draw(80, 1)))
    assert text.startswith("A surrogate from labels of 80 queries, tested on 0 other records")
    assert "agreement on the queries: " in text and "no test records" in text


def test_a_net_with_one_logit_learns_probabilities_too():
    oracle = Oracle(classes=2)
    test = Records.from_arrays(draw(300, 2), np.zeros(300, dtype=int), classes=["0", "1"])
    recipe = TorchRecipe(MLP(5, 1, ()), epochs=60, batch_size=32, optimizer="adam", lr=0.05)
    report = Extraction(recipe=recipe).run(oracle, draw(300, 1), test)
    assert report.fidelity.value > 0.95
    assert report.total_variation.value < 0.05


def test_one_seed_one_surrogate():
    oracle, test = Oracle(), draw(20, 4)
    made = [Extraction(recipe=NET, seed=s, budget=50).run(oracle, draw(200, 1)) for s in (1, 1, 2)]
    first, again, other = (m.surrogate.log_probabilities(test) for m in made)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_refusals():
    oracle = Oracle()
    for wrong in (
        {"answers": "logits"}, {"budget": 0}, {"copies": 1}, {"seed": -1},
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match="expected"):
            Extraction(recipe=LINEAR, **wrong)
    with pytest.raises(InvalidInput, match="at least one query"):
        Extraction(recipe=LINEAR).run(oracle, draw(0, 1))
    for budgets in ([], [0, 5], [5, 21]):
        with pytest.raises(InvalidInput, match="budgets from 1"):
            budget_curve(oracle, draw(20, 1), budgets, extraction=Extraction(recipe=LINEAR))
    for answers in ("labels", "probabilities"):
        recipe = TorchRecipe(MLP(5, 4, ()), epochs=1)
        with pytest.raises(InvalidInput, match="3 classes, got one for 4"):
            Extraction(recipe=recipe, answers=answers).run(oracle, draw(20, 1))
