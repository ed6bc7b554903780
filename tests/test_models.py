"""Whatever a handle wraps, its answers are log-probabilities, and it is left as it was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from vestige.errors import DamagedFile, InvalidInput
from vestige.models import (
    FLOOR,
    BlackBox,
    EstimatorModel,
    Predictions,
    TorchModel,
    answers_alike,
    as_black_box,
    checked_probabilities,
    log_of_probabilities,
    read_pickled_weights,
)
from vestige.records import Records

X = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """A linear classifier whose output goes through a function."""

    def __init__(self, wrap: Any, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, classes)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(x))


def plain(classes: int = 3) -> nn.Module:
    return Wrapped(lambda out: out, classes)


def expected(net: nn.Module, x: Any = X) -> Any:
    """log-softmax of the linear layer, by NumPy."""
    weight, bias = (p.detach().double().numpy() for p in net.fc.parameters())
    return log_softmax(np.asarray(x, np.float64) @ weight.T + bias, axis=1)


def mixed() -> nn.Module:
    """Convolution, batch norm, dropout: every layer that behaves otherwise in training."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 4, 2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


# --- torch: answers ----------------------------------------------------------------------------


def test_answers_are_the_log_softmax_of_the_logits():
    net = plain()
    got = TorchModel(net).log_probabilities(X)
    assert got.shape == (37, 3) and got.dtype == np.float64
    np.testing.assert_allclose(got, expected(net), atol=1e-6)
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)
    assert isinstance(TorchModel(net), BlackBox)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: {"logits": out, "hidden": out * 0},
        lambda out: Output(out, out * 0),
        lambda out: (out, out * 0),
        lambda out: [out],
    ],
    ids=["dict", "dataclass", "tuple", "list"],
)
def test_logits_are_found_in_what_a_module_returns(wrap):
    net = Wrapped(wrap)
    np.testing.assert_allclose(TorchModel(net).log_probabilities(X), expected(net), atol=1e-6)


def test_logits_are_where_the_callable_says():
    net = Wrapped(lambda out: {"scores": {"deep": out}})
    with pytest.raises(InvalidInput, match="tensor of logits .* got dict; pass logits="):
        TorchModel(net).log_probabilities(X)
    model = TorchModel(net, logits=lambda out: out["scores"]["deep"])
    np.testing.assert_allclose(model.log_probabilities(X), expected(net), atol=1e-6)
    with pytest.raises(InvalidInput, match="refused .'missing'."):
        TorchModel(net, logits=lambda out: out["missing"]).log_probabilities(X)
    with pytest.raises(InvalidInput, match="tensor from logits=, got dict"):
        TorchModel(net, logits=lambda out: out["scores"]).log_probabilities(X)


@pytest.mark.parametrize("shape", ["(n,)", "(n, 1)", "squeezed"])
def test_one_logit_equals_its_twin_with_two(shape):
    reshape = {
        "(n,)": lambda out: out[:, 0],
        "(n, 1)": lambda out: out,
        "squeezed": lambda out: out.squeeze(),
    }[shape]
    net, twin = Wrapped(reshape, classes=1), plain(classes=2)
    with torch.no_grad():
        net.fc.weight.mul_(40)
        twin.fc.weight.copy_(torch.cat([torch.zeros(1, 4), net.fc.weight]))
        twin.fc.bias.copy_(torch.cat([torch.zeros(1), net.fc.bias]))
    got = TorchModel(net, batch_size=4).log_probabilities(X)  # the last batch is one record
    assert got.shape == (37, 2)
    np.testing.assert_allclose(got, TorchModel(twin).log_probabilities(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 1000])
def test_answers_do_not_depend_on_the_batch(batch_size):
    net = mixed()
    whole = TorchModel(net).log_probabilities(X)
    got = TorchModel(net, batch_size=batch_size).log_probabilities(X)
    np.testing.assert_allclose(got, whole, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_nets_own_precision_is_used(dtype):
    net = plain()
    want = expected(net)
    got = TorchModel(net.to(dtype)).log_probabilities(X)
    assert got.dtype == np.float64 and net.fc.weight.dtype == dtype
    np.testing.assert_allclose(got, want, atol={torch.float64: 1e-6}.get(dtype, 0.1))
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)


def test_whole_numbers_stay_whole_for_an_embedding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2))
    x = np.random.default_rng(0).integers(0, 9, (20, 2)).astype(np.uint8)
    want = torch.log_softmax(net(torch.from_numpy(x).long()), 1).detach().numpy()
    np.testing.assert_allclose(TorchModel(net).log_probabilities(x), want, atol=1e-6)


def test_bytes_become_floating_for_any_other_module():
    net = plain()
    x = np.random.default_rng(0).integers(0, 9, (20, 4)).astype(np.uint8)
    x.setflags(write=False)
    np.testing.assert_allclose(TorchModel(net).log_probabilities(x), expected(net, x), atol=1e-5)


def test_extreme_logits_stay_normalized_and_finite():
    net = Wrapped(lambda out: out * 1e4)
    got = TorchModel(net).log_probabilities(X)
    assert np.isfinite(got).all() and got.min() < -1000
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)


# --- torch: left as it was found ---------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
def test_eval_mode_always_and_each_modules_own_mode_after(fail):
    net = mixed()
    net.train()
    net[2].eval()  # a frozen batch norm inside a training module
    before = {name: t.clone() for name, t in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    want = TorchModel(mixed().eval()).log_probabilities(X)
    if fail:
        with pytest.raises(InvalidInput):
            TorchModel(net).log_probabilities(X[:, :3])
    else:
        np.testing.assert_array_equal(TorchModel(net).log_probabilities(X), want)
    assert [m.training for m in net.modules()] == modes and True in modes and False in modes
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name])
    assert all(p.grad is None for p in net.parameters())


def test_a_module_that_draws_random_numbers_in_eval_mode_is_told():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.fc(x) * 3, 0.5, training=True)

    assert not answers_alike(TorchModel(Noisy()), X)
    assert answers_alike(TorchModel(mixed().train()), X)


# --- torch: counting and refusals --------------------------------------------------------------


def test_queries_are_counted_by_record():
    model = TorchModel(plain(), batch_size=10)
    assert model.n_queries == 0
    model.log_probabilities(X)
    model.log_probabilities(X[:3])
    with pytest.raises(InvalidInput):
        model.log_probabilities(X[:, :2])
    assert model.n_queries == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_probabilities_given_as_logits_are_refused(dtype, classes):
    net = Wrapped(lambda out: torch.softmax(out, dim=1), classes).to(dtype)
    with pytest.raises(InvalidInput, match='got probabilities .* pass outputs="probabilities"'):
        TorchModel(net).log_probabilities(X)
    got = TorchModel(net, outputs="probabilities").log_probabilities(X)
    np.testing.assert_allclose(got, expected(net.float()), atol=0.2)
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)


def test_a_sigmoid_given_as_one_logit_is_refused():
    net = Wrapped(lambda out: torch.sigmoid(out)[:, 0], 1)
    with pytest.raises(InvalidInput, match="got probabilities"):
        TorchModel(net, batch_size=8).log_probabilities(X)
    got = TorchModel(net, outputs="probabilities").log_probabilities(X)
    p = 1 / (
        1
        + np.exp(
            -(X.astype(float) @ net.fc.weight.detach().double().numpy().T)[:, 0]
            - net.fc.bias.item()
        )
    )
    np.testing.assert_allclose(np.exp(got), np.stack([1 - p, p], axis=1), atol=1e-6)
    # a model of logits that happen to lie there is believed when it is said
    believed = TorchModel(net, outputs="logits").log_probabilities(X)
    np.testing.assert_allclose(np.exp(believed[:, 1]), 1 / (1 + np.exp(-p)), atol=1e-6)


def test_one_record_that_looks_like_a_probability_does_not_decide():
    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    x = np.array([[3.0, -1.0], [0.25, 0.75]], dtype=np.float32)
    got = TorchModel(Table(), batch_size=1).log_probabilities(x)
    np.testing.assert_allclose(got, log_softmax(x.astype(float), axis=1), atol=1e-7)


def test_log_probabilities_are_not_cut_at_the_floor():
    net = Wrapped(lambda out: torch.log_softmax(out * 100, dim=1))
    got = TorchModel(net, outputs="log_probabilities").log_probabilities(X)
    want = TorchModel(Wrapped(lambda out: out * 100)).log_probabilities(X)
    assert want.min() < math.log(FLOOR) - 10
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_impossible_classes_of_log_probabilities_come_last_and_finite():
    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    x = np.log(
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        where=[[1, 1, 0], [1, 0, 0]],
        out=np.full((2, 3), -np.inf),
    )
    got = TorchModel(Table(), outputs="log_probabilities").log_probabilities(x)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 2], math.log(FLOOR), rtol=1e-6)
    with pytest.raises(InvalidInput, match="finite log_probabilities"):
        TorchModel(Table(), outputs="log_probabilities").log_probabilities(x * np.nan)
    with pytest.raises(InvalidInput, match="sum to 1 in each row, got 1.1"):
        TorchModel(Table(), outputs="log_probabilities").log_probabilities(np.log([[0.5, 0.6]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused(bad):
    net = Wrapped(lambda out: torch.where(torch.arange(len(out))[:, None] < 2, bad, out))
    with pytest.raises(
        InvalidInput, match="finite answers, got NaN or infinity for 2 records; the"
    ):
        TorchModel(net).log_probabilities(X)


def test_inputs_of_another_shape_are_a_sentence():
    with pytest.raises(
        InvalidInput, match=r"a batch of shape \(37, 3\) which it refused .* reshape"
    ):
        TorchModel(plain()).log_probabilities(X[:, :3])


def test_whatever_a_module_raises_is_a_sentence():
    def fail(out: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(InvalidInput, match="which it refused .AssertionError."):
        TorchModel(Wrapped(fail)).log_probabilities(X)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: out[:-1],
        lambda out: out[:, :, None].expand(-1, -1, 2),
        lambda out: out.sum(),
        lambda out: out[:, :0],
    ],
)
def test_answers_of_another_shape_are_refused(wrap):
    with pytest.raises(InvalidInput, match=r"logits of shape \(n, classes\) or \(n,\) for 37"):
        TorchModel(Wrapped(wrap)).log_probabilities(X)


def test_batches_with_different_numbers_of_classes_are_refused():
    net = Wrapped(lambda out: out[:, : 2 + len(out) // 20])
    with pytest.raises(InvalidInput, match="as many logits for each batch"):
        TorchModel(net, batch_size=20).log_probabilities(X)


def test_modules_on_no_device_or_two_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].to("meta")
    with pytest.raises(InvalidInput, match=r"one device, got one on \['cpu', 'meta'\]; move it"):
        TorchModel(net)
    with pytest.raises(InvalidInput, match="got one on .'meta'."):
        TorchModel(nn.Linear(4, 2, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"net": 3}, "a torch module, got int"),
        ({"outputs": "softmax"}, "got 'softmax'"),
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
    ],
)
def test_handles_that_cannot_be_made(arguments, why):
    with pytest.raises(InvalidInput, match=why):
        TorchModel(**{"net": plain(), **arguments})


def test_no_records_are_no_question():
    for model in (TorchModel(plain()), EstimatorModel(DummyClassifier().fit(X, X[:, 0] > 0))):
        with pytest.raises(InvalidInput, match="at least one record"):
            model.log_probabilities(X[:0])


def test_pickled_weights(tmp_path):
    net, other = plain(), Wrapped(lambda out: out, 5)
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}, tmp_path / "w.pt")
    read_pickled_weights(net, tmp_path / "w.pt")
    assert (net.fc.weight == 1).all()
    with pytest.raises(DamagedFile, match="state dict of the network in w.pt, but Error"):
        read_pickled_weights(other, tmp_path / "w.pt")
    (tmp_path / "bad.pt").write_bytes(b"\x80nonsense")
    with pytest.raises(DamagedFile, match="bad.pt"):
        read_pickled_weights(net, tmp_path / "bad.pt")


# --- scikit-learn ------------------------------------------------------------------------------

Y = np.random.default_rng(1).integers(0, 3, 37)


def test_answers_are_those_of_the_estimator():
    fitted = LogisticRegression().fit(X, Y)
    model = EstimatorModel(fitted)
    np.testing.assert_allclose(
        np.exp(model.log_probabilities(X)), fitted.predict_proba(X), rtol=1e-6
    )
    model.log_probabilities(X[:5])
    assert model.n_queries == 42


def test_classes_with_names_are_numbered_in_order():
    names = np.array(["ant", "bee", "cow"])[Y]
    made = EstimatorModel(LogisticRegression().fit(X, names)).log_probabilities(X)
    np.testing.assert_array_equal(
        made, EstimatorModel(LogisticRegression().fit(X, Y)).log_probabilities(X)
    )


def test_classes_that_were_never_seen_are_improbable():
    seen = Y != 1
    model = EstimatorModel(LogisticRegression().fit(X[seen], Y[seen]), n_classes=5)
    got = model.log_probabilities(X)
    assert got.shape == (37, 5)
    np.testing.assert_allclose(got[:, [1, 3, 4]], math.log(FLOOR), atol=1e-6)
    np.testing.assert_allclose(logsumexp(got, axis=1), 0, atol=1e-9)
    assert EstimatorModel(LogisticRegression().fit(X[seen], Y[seen])).log_probabilities(
        X
    ).shape == (
        37,
        3,
    )


def test_an_estimator_of_one_class_is_sure_of_that_class():
    for only in (0, 1):
        fitted = DummyClassifier().fit(X, np.full(37, only))
        got = EstimatorModel(fitted).log_probabilities(X)
        assert got.shape == (37, 2) and (got.argmax(axis=1) == only).all()


def test_a_forest_is_given_half_a_vote_for_every_class():
    fitted = RandomForestClassifier(20, random_state=0).fit(X, Y)
    got = np.exp(EstimatorModel(fitted).log_probabilities(X))
    votes = fitted.predict_proba(X)
    want = (20 * votes + 0.5) / (20 + 3 / 2)  # Krichevsky and Trofimov
    np.testing.assert_allclose(got, want)
    assert (votes == 0).any()
    # the order of records by each class's probability is the forest's own, ties included
    for mine, theirs in zip(got.T, votes.T, strict=True):
        np.testing.assert_array_equal(rankdata(mine.round(12)), rankdata(theirs.round(12)))
    given = np.exp(EstimatorModel(fitted, floor=1e-3).log_probabilities(X))
    np.testing.assert_allclose(given.min(), 1e-3, rtol=0.01)


def test_only_zeros_of_a_table_are_raised():
    table = np.array([[1.0, 0.0, 0.0], [1 - 3e-20, 1e-20, 2e-20], [0.5, 0.5 - 1e-13, 1e-13]])
    got = log_of_probabilities(table)
    np.testing.assert_allclose(got[0, 1:], math.log(FLOOR))
    np.testing.assert_allclose(got[1], [-3e-20, math.log(1e-20), math.log(2e-20)], rtol=1e-12)
    np.testing.assert_allclose(got[2], np.log(table[2]), rtol=1e-9)


def test_a_saturated_model_and_its_table_give_the_same_losses():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 12, size=(500, 4))
    of_logits = Predictions(logits=logits)
    rows = np.arange(500)[:, None]
    logs = of_logits.log_probabilities(rows)
    of_table = Predictions(probabilities=np.exp(logs)).log_probabilities(rows)
    np.testing.assert_allclose(of_table, logs, rtol=1e-9, atol=1e-300)


def test_a_pipeline_fitted_on_a_frame_is_asked_without_warning():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    picked = ColumnTransformer([("scale", StandardScaler(), ["a", "c"])])
    fitted = make_pipeline(picked, LogisticRegression()).fit(frame, Y)
    got = EstimatorModel(fitted).log_probabilities(X)  # warnings are errors here
    np.testing.assert_allclose(np.exp(got), fitted.predict_proba(frame), rtol=1e-6)


def test_pictures_are_flattened_for_estimators():
    fitted = LogisticRegression().fit(X, Y)
    a = EstimatorModel(fitted).log_probabilities(X.reshape(37, 2, 2))
    np.testing.assert_array_equal(a, EstimatorModel(fitted).log_probabilities(X))


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (LogisticRegression(), "a LogisticRegression that was not fitted; call fit first"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "not fitted"),
        (SVC().fit(X, Y), "predict_proba, got SVC; calibrate it"),
        (DecisionTreeClassifier().fit(X, np.stack([Y, Y], axis=1)), "one label a record"),
        (LogisticRegression().fit(X, Y - 1), "classes from 0, got -1; relabel"),
        ("a path", "predict_proba, got str"),
    ],
)
def test_estimators_that_are_refused(estimator, why):
    with pytest.raises(InvalidInput, match=why):
        EstimatorModel(estimator)


def test_inputs_an_estimator_does_not_take_are_a_sentence():
    model = EstimatorModel(LogisticRegression().fit(X, Y))
    with pytest.raises(InvalidInput, match=r"got shape \(37, 3\) which it refused .* reshape"):
        model.log_probabilities(X[:, :3])
    assert model.n_queries == 0


def test_names_must_mean_the_same_to_estimator_and_records():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    names = np.array(["ant", "bee", "cow"])[Y]
    model = EstimatorModel(LogisticRegression().fit(frame, names))
    model.same_meaning(Records.from_arrays(frame, names))
    model.same_meaning(Records.from_arrays(X, Y))
    with pytest.raises(InvalidInput, match="estimator's columns a, b, c, d, got d, c, b, a; give"):
        model.same_meaning(Records.from_arrays(frame[["d", "c", "b", "a"]], names))
    # without a cow among the records, class 1 would be the bee here and the cow there
    few = names != "bee"
    with pytest.raises(InvalidInput, match="estimator's classes ant, bee, cow, got ant, cow"):
        model.same_meaning(Records.from_arrays(frame[few], names[few]))


# --- tables ------------------------------------------------------------------------------------


def test_a_table_answers_by_row_number():
    p = np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    model = Predictions(probabilities=p)
    assert len(model) == 3 and model.n_classes == 2
    got = model.log_probabilities(np.array([[2], [0], [2]]))
    np.testing.assert_allclose(np.exp(got), p[[2, 0, 2]], atol=1e-11)
    assert np.isfinite(got).all() and model.n_queries == 3
    np.testing.assert_allclose(got[0, 1], math.log(FLOOR), atol=1e-9)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_column_is_the_probability_of_class_one(shape):
    p = np.array([0.2, 0.5, 0.9])
    got = Predictions(probabilities=p.reshape(shape)).log_probabilities(np.arange(3)[:, None])
    np.testing.assert_allclose(np.exp(got), np.stack([1 - p, p], axis=1))
    raw = np.log(p / (1 - p))
    same = Predictions(logits=raw.reshape(shape)).log_probabilities(np.arange(3)[:, None])
    np.testing.assert_allclose(same, got)


def test_logits_and_their_probabilities_are_one_table():
    logits = np.random.default_rng(0).normal(0, 3, (9, 4))
    p = np.exp(log_softmax(logits, axis=1))
    rows = np.arange(9)[:, None]
    a = Predictions(logits=logits).log_probabilities(rows)
    np.testing.assert_allclose(Predictions(probabilities=p).log_probabilities(rows), a, rtol=1e-9)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({}, "either probabilities or logits, got both or neither"),
        ({"probabilities": [[1.0, 0]], "logits": [[1.0, 0]]}, "got both"),
        ({"probabilities": [[0.5, 0.6]]}, "sum to 1 in each row, got 1.1 in row 0; give all"),
        ({"probabilities": [[0.5, 0.3]]}, "sum to 1"),
        ({"probabilities": [[2.0, -1.0]]}, "between 0 and 1, got values from -1 to 2; if they are"),
        ({"probabilities": [[np.nan, 1.0]]}, "finite probabilities"),
        ({"probabilities": np.zeros((2, 2, 2))}, r"shape \(n, classes\), got \(2, 2, 2\)"),
        ({"probabilities": [["a", "b"]]}, "array of numbers"),
        ({"logits": [["a", "b"]]}, "logits as an array of numbers"),
        ({"logits": np.zeros((2, 2, 2))}, r"logits of shape \(n, classes\)"),
        ({"logits": [[np.inf, 1.0]]}, "finite answers"),
        ({"logits": np.full((20, 4), 0.25)}, "logits, got probabilities .* as probabilities"),
    ],
)
def test_tables_that_are_refused(tables, why):
    with pytest.raises(InvalidInput, match=why):
        Predictions(**tables)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 1)),  # not whole numbers
        np.zeros((2, 64), np.uint8),  # real inputs: their first column is no row number
        np.array([[3]]),
        np.array([[-1]]),
        np.arange(3),
    ],
)
def test_only_row_numbers_are_looked_up(x):
    model = Predictions(probabilities=np.full((3, 2), 0.5))
    with pytest.raises(InvalidInput, match=r"row numbers of shape \(n, 1\) below 3"):
        model.log_probabilities(x)


def test_the_floor_is_applied_once():
    p = np.array([[1.0, 0.0, 0.0]])
    got = np.exp(log_of_probabilities(p, 1e-3))
    np.testing.assert_allclose(got, [[1 / 1.002, 1e-3 / 1.002, 1e-3 / 1.002]])
    np.testing.assert_allclose(checked_probabilities(p), p)
    assert checked_probabilities([[0.5, 0.5 + 9e-4]]).shape == (1, 2)
    assert checked_probabilities([[0.5, 0.51]], tolerance=0.02).shape == (1, 2)


def test_a_handle_for_what_a_user_has():
    table = Predictions(probabilities=[[0.5, 0.5]])
    assert as_black_box(table) is table
    assert isinstance(as_black_box(plain()), TorchModel)
    assert isinstance(as_black_box(LogisticRegression().fit(X, Y)), EstimatorModel)
    with pytest.raises(InvalidInput, match="got dict"):
        as_black_box({})


def test_no_answer_changes_its_largest_class() -> None:
    tied = Predictions(probabilities=[[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    assert tied.log_probabilities(np.array([[0], [1]])).argmax(axis=1).tolist() == [0, 1]
    # of very many classes the largest is far below what is left
    table = np.full((1, 5000), 1 / 5000)
    found = Predictions(probabilities=table).log_probabilities(np.array([[0]]))
    np.testing.assert_allclose(found, np.log(1 / 5000), rtol=1e-12)


def test_a_zero_of_a_table_is_never_likelier_than_what_it_shows():
    table = Predictions(probabilities=[[1.0, 1e-14, 0.0], [0.7, 0.3, 0.0]])
    first, second = table.log_probabilities(np.array([[0], [1]]))
    assert first[2] <= first[1] < np.log(2e-14)
    assert second[2] == pytest.approx(np.log(1e-12), abs=1e-6)
