"""What is shown of an answer: known vectors, the label kept, and a pool behind the filter."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import nn

from vestige.defenses import (
    FILTERS,
    LabelOnly,
    Noisy,
    Rounded,
    Temperature,
    TopK,
    behind,
    filtered,
)
from vestige.defenses.filters import content_keys, uniforms
from vestige.errors import InvalidInput
from vestige.models import BlackBox, Predictions, TorchModel
from vestige.pool import Pool
from vestige.records import Records
from vestige.signals import log_probabilities
from vestige.training.asking import Stacks

Floats = NDArray[np.float64]

EVERY: dict[str, Callable[[BlackBox], BlackBox]] = {
    "top1": lambda m: TopK(m, 1),
    "top3": lambda m: TopK(m, 3),
    "round1": lambda m: Rounded(m, 1),
    "round3": lambda m: Rounded(m, 3),
    "temperature": lambda m: Temperature(m, 5.0),
    "cold": lambda m: Temperature(m, 0.2),
    "label": LabelOnly,
    "noise": lambda m: Noisy(m, 0.2),
    "noise_on_labels": lambda m: Noisy(m, 0.2, keep_label=False),
    "rounded_top": lambda m: Rounded(TopK(m, 2), 2),
}
every_filter = pytest.mark.parametrize("name", EVERY)


class Logits:
    """A model whose logits are its inputs."""

    def __init__(self) -> None:
        self.n_queries = 0

    def log_probabilities(self, x: Any) -> Floats:
        self.n_queries += len(x)
        z = np.asarray(x, dtype=np.float64)
        z = z - z.max(axis=1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def shown(handle: BlackBox, x: Any) -> Floats:
    return np.exp(handle.log_probabilities(np.asarray(x)))


def table(*rows: list[float]) -> tuple[Predictions, NDArray[np.int64]]:
    return Predictions(probabilities=np.array(rows)), np.arange(len(rows))[:, None]


def some_logits(n: int = 40, classes: int = 5, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, (n, classes))


logits = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(2, 7)),
    elements=st.floats(-40, 40, width=32),
)


# --- known answers -------------------------------------------------------------------------------


def test_temperature_has_the_known_answers() -> None:
    z = [[2.0, 1.0, 0.0]]
    for t, wanted in (
        (1, [0.66524, 0.24473, 0.09003]),
        (5, [0.40176, 0.32893, 0.26931]),
        (20, [0.35013, 0.33306, 0.31681]),
    ):
        np.testing.assert_allclose(shown(Temperature(Logits(), t), z)[0], wanted, atol=5e-6)


def test_top_k_keeps_places_and_does_not_normalize() -> None:
    model, x = table([0.1, 0.5, 0.1, 0.3], [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(
        shown(TopK(model, 3), x), [[0.1, 0.5, 0, 0.3], [0.25, 0.25, 0.25, 0]], atol=1e-11
    )
    np.testing.assert_allclose(
        shown(TopK(model, 1), x), [[0, 0.5, 0, 0], [0.25, 0, 0, 0]], atol=1e-11
    )
    np.testing.assert_allclose(shown(TopK(model, 9), x), shown(model, x))


def test_rounding_goes_to_even_and_does_not_normalize() -> None:
    model, x = table([0.25, 0.75], [0.375, 0.625], [0.5, 0.5], [0.96, 0.04])
    np.testing.assert_allclose(
        shown(Rounded(model, 1), x), [[0.2, 0.8], [0.4, 0.6], [0.5, 0.5], [1, 0]], atol=1e-11
    )
    # 0.5 goes to 0: nothing is left of the third
    np.testing.assert_allclose(
        shown(Rounded(model, 0), x), [[0, 1], [0, 1], [0, 0], [1, 0]], atol=1e-11
    )


def test_label_only_is_one_hot_and_the_lowest_class_wins() -> None:
    z = [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]]
    np.testing.assert_allclose(shown(LabelOnly(Logits()), z), [[0, 0, 1], [1, 0, 0]], atol=1e-11)


def test_zeros_are_shown_as_the_floor() -> None:
    model, x = table([0.2, 0.3, 0.5])
    answers = LabelOnly(model).log_probabilities(x)
    np.testing.assert_array_equal(answers, [[np.log(1e-12), np.log(1e-12), 0.0]])


# --- the noise -----------------------------------------------------------------------------------


def test_noise_has_the_scale_it_says() -> None:
    # two classes at 0.5: noise of scale 0.1 is clipped beyond 5 deviations, which is never
    x = np.column_stack([np.zeros((20_000, 2)), np.arange(20_000)])

    class Even(Logits):
        def log_probabilities(self, x: Any) -> Floats:
            return super().log_probabilities(np.asarray(x)[:, :2])

    noise = shown(Noisy(Even(), 0.1, keep_label=False), x) - 0.5
    # 20,000 draws: 4 standard errors of a mean are 4 * 0.1 / 141, of a deviation 4 * 0.1 / 200
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.0029)
    np.testing.assert_allclose(noise.std(axis=0), 0.1, atol=0.002)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / 141
    # neighbors in the batch, which differ in one number
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 4 / 141


def test_noise_belongs_to_content_and_seed() -> None:
    x = some_logits(6)
    model = Noisy(Logits(), 0.1, seed=3)
    first = model.log_probabilities(x)
    np.testing.assert_array_equal(model.log_probabilities(x), first)
    for other in (
        Noisy(Logits(), 0.1, seed=4).log_probabilities(x),
        model.log_probabilities(x + 1),
    ):
        assert not np.allclose(other, first)


def test_equal_numbers_of_other_types_have_equal_keys() -> None:
    x = np.array([[0, 1, 255], [3, 0, 7]], dtype=np.uint8)
    keys = content_keys(x, 0)
    below_zero = np.where(x == 0, -0.0, x)
    for other in (x.astype(np.float32), x.astype(np.int64), below_zero, torch.tensor(x)):
        np.testing.assert_array_equal(content_keys(other, 0), keys)
    assert len({*keys, *content_keys(x, 1)}) == 4


def test_uniforms_are_uniform_and_never_the_ends() -> None:
    draws = uniforms(np.arange(20_000, dtype=np.uint64), 3)
    # the largest deviation of the empirical distribution of n draws: P(> 1.95 / sqrt n) = .001
    for column in np.sort(draws, axis=0).T:
        assert np.abs(column - (np.arange(20_000) + 0.5) / 20_000).max() < 1.95 / np.sqrt(20_000)
    extreme = uniforms(np.array([0, 2**64 - 1], dtype=np.uint64), 1000)
    assert ((extreme > 0) & (extreme < 1)).all()


def test_the_label_is_kept_where_it_is_to_be() -> None:
    x = some_logits(500, 10)
    labels = Logits().log_probabilities(x).argmax(axis=1)
    for scale in (0.1, 1.0, 100.0):
        kept = Noisy(Logits(), scale).log_probabilities(x).argmax(axis=1)
        np.testing.assert_array_equal(kept, labels)
        # of two classes both are often clipped at the same end
        pair = Noisy(Logits(), scale).log_probabilities(x[:, :2]).argmax(axis=1)
        np.testing.assert_array_equal(pair, x[:, :2].argmax(axis=1))
    free = Noisy(Logits(), 1.0, keep_label=False).log_probabilities(x).argmax(axis=1)
    assert (free != labels).mean() > 0.3


# --- every filter --------------------------------------------------------------------------------


@given(z=logits)
def test_the_predicted_class_stays_among_the_largest(z: Floats) -> None:
    label = Logits().log_probabilities(z).argmax(axis=1)
    for name, make in EVERY.items():
        if name == "noise_on_labels":
            continue
        answers = make(Logits()).log_probabilities(z)
        assert answers.shape == z.shape and np.isfinite(answers).all(), name
        assert (answers[np.arange(len(z)), label] == answers.max(axis=1)).all(), name


@given(z=logits, k=st.integers(1, 8))
def test_top_k_shows_the_largest_and_nothing_else(z: Floats, k: int) -> None:
    p = np.exp(Logits().log_probabilities(z))
    answer = TopK(Logits(), k).shown(z, Logits().log_probabilities(z))
    kept = answer > 0
    # probabilities below 5e-324 are zero already
    assert (kept.sum(axis=1) <= min(k, z.shape[1])).all()
    np.testing.assert_array_equal(answer[kept], p[kept])
    for row, keep in zip(p, kept, strict=True):
        assert keep.all() or row[~keep].max() <= row[keep].min()


@given(z=logits, t=st.floats(0.01, 1000))
def test_temperature_keeps_the_order_and_the_sum(z: Floats, t: float) -> None:
    before = Logits().log_probabilities(z)
    after = Temperature(Logits(), t).shown(z, before)
    np.testing.assert_allclose(after.sum(axis=1), 1)
    for a, b in zip(before, after, strict=True):
        assert (np.diff(b[np.argsort(a)]) >= 0).all()


@given(z=logits, decimals=st.integers(0, 6))
def test_rounding_moves_nothing_by_more_than_half_a_digit(z: Floats, decimals: int) -> None:
    before = Logits().log_probabilities(z)
    after = Rounded(Logits(), decimals).shown(z, before)
    assert np.abs(after - np.exp(before)).max() <= 0.5 * 10.0**-decimals * (1 + 1e-9)
    np.testing.assert_allclose(after * 10**decimals, np.rint(after * 10**decimals), atol=1e-6)


@every_filter
def test_is_a_handle_that_counts_its_own_queries(name: str) -> None:
    inner = Logits()
    model = EVERY[name](inner)
    assert isinstance(model, BlackBox) and model.n_queries == 0
    inner.log_probabilities(some_logits(3))
    model.log_probabilities(some_logits(7))
    model.log_probabilities(some_logits(2))
    assert (model.n_queries, inner.n_queries) == (9, 12)


@every_filter
def test_an_answer_does_not_depend_on_what_else_is_asked(name: str) -> None:
    x = some_logits(20)
    model = EVERY[name](Logits())
    together = model.log_probabilities(x)
    alone = np.concatenate([model.log_probabilities(x[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(model.log_probabilities(x[::-1])[::-1], together)


@every_filter
def test_answers_are_the_models_alone(name: str) -> None:
    class Same(Logits):
        """Gives out its own array."""

        kept = Logits().log_probabilities(some_logits(8))

        def log_probabilities(self, x: Any) -> Floats:
            return self.kept

    x = some_logits(8)
    before = (x.copy(), Same.kept.copy())
    EVERY[name](Same()).log_probabilities(x)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(Same.kept, before[1])


@every_filter
def test_travels_to_other_processes(name: str) -> None:
    model = EVERY[name](Logits())
    again = pickle.loads(pickle.dumps(model))
    x = some_logits(5)
    np.testing.assert_array_equal(again.log_probabilities(x), model.log_probabilities(x))


def test_parameters_are_frozen() -> None:
    with pytest.raises(AttributeError):
        TopK(Logits(), 3).k = 4  # type: ignore[misc]


def test_filters_go_around_filters() -> None:
    model, x = table([0.56, 0.26, 0.18])
    np.testing.assert_allclose(shown(Rounded(TopK(model, 2), 1), x), [[0.6, 0.3, 0]], atol=1e-11)
    # the other way around, 0.2 is what is left of the last
    np.testing.assert_allclose(shown(TopK(Rounded(model, 1), 3), x), [[0.6, 0.3, 0.2]], atol=1e-11)
    assert (shown(LabelOnly(TopK(model, 2)), x) == shown(LabelOnly(model), x)).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: TopK(m, 0), "whole number k >= 1 of classes to show, got 0"),
        (lambda m: Rounded(m, -1), "expected 0 to 15 decimals to round to, got -1"),
        (lambda m: Rounded(m, 400), "expected 0 to 15 decimals to round to, got 400"),
        (lambda m: Temperature(m, 0.0), "expected a temperature t > 0, got 0.0"),
        (lambda m: Temperature(m, float("nan")), "expected a temperature t > 0, got nan"),
        (lambda m: Noisy(m, -0.1), "expected noise with a scale >= 0, got -0.1"),
    ],
)
def test_refusals(make: Callable[[BlackBox], BlackBox], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        make(Logits())


# --- by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("none", lambda m: m),
        ("top3", lambda m: TopK(m, 3)),
        ("round1", lambda m: Rounded(m, 1)),
        ("label", LabelOnly),
        ("temperature5", lambda m: Temperature(m, 5.0)),
        ("temperature0.5", lambda m: Temperature(m, 0.5)),
        ("noise0.1", lambda m: Noisy(m, 0.1, seed=7)),
        ("noise.1", lambda m: Noisy(m, 0.1, seed=7)),
        ("temperature5+round2", lambda m: Rounded(Temperature(m, 5.0), 2)),
        ("top2+noise0.1+round3", lambda m: Rounded(Noisy(TopK(m, 2), 0.1, seed=7), 3)),
    ],
)
def test_named_filters_are_the_filters(spec: str, same: Callable[[BlackBox], BlackBox]) -> None:
    x = some_logits()
    np.testing.assert_array_equal(
        behind(Logits(), spec, seed=7).log_probabilities(x), same(Logits()).log_probabilities(x)
    )


def test_examples_of_the_named_filters_work() -> None:
    x = some_logits()
    for name, kind in FILTERS.items():
        assert kind.example.startswith(name) and kind.says
        assert behind(Logits(), kind.example).log_probabilities(x).shape == x.shape


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tops3", "expected a filter like none, top3, round1, .*got 'tops3'"),
        ("", "expected a filter like .*got ''"),
        ("top-1", "expected a filter like .*got 'top-1'"),
        ("top3+", "expected a filter like .*got ''"),
        ("top", "expected a whole number after 'top', got 'top'; write top3"),
        ("top1.5", "expected a whole number after 'top', got 'top1.5'"),
        ("temperature", "expected a number after 'temperature'"),
        ("label1", "expected no number after 'label', got 'label1'"),
        ("top0", "whole number k >= 1"),
        ("temperature0", "expected a temperature t > 0, got 0.0"),
    ],
)
def test_unknown_names_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        behind(Logits(), spec)
    with pytest.raises(InvalidInput, match=said):
        filtered(a_pool(0)[0], spec)


# --- a pool --------------------------------------------------------------------------------------


def a_pool(n_models: int = 5, n: int = 30) -> tuple[Pool[TorchModel], Records]:
    rng = np.random.default_rng(0)
    records = Records.from_arrays(rng.normal(0, 1, (n, 4)), rng.integers(0, 3, n))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(n_models)]
    models = [TorchModel(net.double()) for net in nets]
    member = rng.random((n_models, n)) < 0.5
    return Pool(models, records, member, provenance={"recipe": "none"}, asker=Stacks()), records


@pytest.mark.parametrize("spec", ["top1", "round1", "temperature5+top2", "noise0.2", "none"])
def test_a_pool_behind_a_filter_is_each_model_behind_it(spec: str) -> None:
    pool, records = a_pool()
    whole = pool.signals(log_probabilities, records)
    after = filtered(pool, spec)
    found = after.signals(log_probabilities, records)
    wanted = [
        behind(model, spec, seed=1 + k).log_probabilities(records.x)
        for k, model in enumerate(pool.models)
    ]
    # stacks answer as the models do but for rounding
    np.testing.assert_allclose(np.exp(found), wanted_exp(wanted), atol=1e-9)
    np.testing.assert_array_equal(pool.signals(log_probabilities, records), whole)
    assert after.provenance == {"recipe": "none", "filter": spec}
    assert (after.member == pool.member).all() and after.records is pool.records


def wanted_exp(tables: list[Floats]) -> Floats:
    return np.exp(np.stack(tables))


def test_no_two_models_of_a_pool_share_their_noise() -> None:
    pool, records = a_pool()
    same = Pool([pool.models[0]] * 5, records, pool.member)
    found = np.exp(filtered(same, "noise0.1").signals(log_probabilities, records))
    target = shown(behind(pool.models[0], "noise0.1"), records.x)
    noises = [*found, target]
    for i in range(6):
        for j in range(i):
            assert not np.allclose(noises[i], noises[j], atol=1e-3)


def test_models_are_asked_in_stacks_behind_a_filter_too() -> None:
    pool, records = a_pool()
    asked = []

    class Counting(Stacks):
        def ask(self, models: Any, x: Any) -> Any:
            asked.append([type(m) for m in models])
            return super().ask(models, x)

    counting = Pool(pool.models, records, pool.member, asker=Counting())
    filtered(counting, "temperature5+round1").signals(log_probabilities, records)
    assert asked == [[TorchModel] * 5]
    handles = {id(model): TopK(model, 2) for model in pool.models}
    filtered(counting, lambda model: handles[id(model)]).signals(log_probabilities, records)
    assert [handle.n_queries for handle in handles.values()] == [30] * 5
    assert [model.n_queries for model in pool.models] == [60] * 5


def test_models_are_wrapped_when_they_are_taken() -> None:
    pool, records = a_pool()
    taken = []

    def by(model: BlackBox) -> BlackBox:
        taken.append(model)
        return TopK(model, 1)

    after = filtered(pool, by)
    assert not taken and len(after.models) == 5
    last = after.models[-1]
    assert isinstance(last, TopK) and last.model is pool.models[-1] and len(taken) == 1
    assert [m.model for m in after.models[1:3]] == list(pool.models[1:3])  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        after.models[5]
    assert "by" in after.provenance["filter"]


def test_slices_of_a_filtered_pool_keep_their_noise() -> None:
    pool, records = a_pool()
    models = filtered(pool, "noise0.1").models
    np.testing.assert_array_equal(
        models[2:][1].log_probabilities(records.x), models[3].log_probabilities(records.x)
    )


def test_any_handle_may_be_put_around_the_models_of_a_pool() -> None:
    class Blind:
        """No filter of this package, but a handle all the same."""

        n_queries = 0

        def __init__(self, model: BlackBox) -> None:
            self.model = model

        def log_probabilities(self, x: Any) -> Floats:
            return np.log(np.full((len(x), 3), 1 / 3))

    pool, records = a_pool()
    found = filtered(pool, Blind).signals(log_probabilities, records)
    np.testing.assert_allclose(np.exp(found), 1 / 3)


@pytest.mark.parametrize("by", ["top1", partial(Rounded, decimals=1)])
def test_a_filtered_pool_travels(by: Any) -> None:
    pool, records = a_pool()
    after = filtered(pool, by)
    again = pickle.loads(pickle.dumps((after.models, after.asker)))
    copy = Pool(again[0], records, pool.member, asker=again[1])
    np.testing.assert_array_equal(
        copy.signals(log_probabilities, records), after.signals(log_probabilities, records)
    )
