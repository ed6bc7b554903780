"""A pool knows who was trained on what, and reads each signal once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige import models as models_module
from vestige import pool as pool_module
from vestige import signals as signals_module
from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.pool import MemoryCache, Pool
from vestige.records import Records
from vestige.signals import cross_entropy_loss, true_class_margin


class Asked:
    """A table of predictions that counts how often it is asked."""

    def __init__(self, table: Predictions) -> None:
        self._table = table
        self.calls = 0

    @property
    def n_queries(self) -> int:
        return self._table.n_queries

    def log_probabilities(self, x: Any) -> Any:
        self.calls += 1
        return self._table.log_probabilities(x)


def records(ids: Any) -> Records:
    n = len(ids)
    return Records.from_arrays(np.arange(n)[:, None], np.arange(n) % 2, ids=ids)


def models(n_models: int, n: int, classes: int = 3) -> list[Asked]:
    rng = np.random.default_rng(0)
    return [Asked(Predictions(logits=rng.normal(0, 2, (n, classes)))) for _ in range(n_models)]


def pool(n_models: int = 3, n: int = 6) -> Pool[Asked]:
    member = np.random.default_rng(1).random((n_models, n)) < 0.5
    return Pool(models(n_models, n), records(np.arange(n)), member)


# --- who was trained on what -------------------------------------------------------------------

ids_of = {
    "numbers": lambda numbers: np.array(numbers, dtype=np.int64),
    "text": lambda numbers: np.array([f"r{n}" for n in numbers], dtype="U8"),
}


@given(
    st.lists(st.integers(-5, 30), unique=True, max_size=12),
    st.lists(st.integers(-5, 30), max_size=15),
    st.integers(0, 4),
    st.sampled_from(sorted(ids_of)),
    st.integers(0, 99),
)
def test_trained_on_is_a_look_up(own, asked, n_models, kind, seed):
    member = np.random.default_rng(seed).random((n_models, len(own))) < 0.5
    held = records(ids_of[kind](own))
    made: Pool[Asked] = Pool(
        models(n_models, len(own)) if own else [Asked] * n_models, held, member
    )
    got = made.trained_on(ids_of[kind](asked))
    assert got.shape == (n_models, len(asked)) and got.dtype == np.bool_
    for model in range(n_models):
        for place, identity in enumerate(asked):
            want = identity in own and bool(member[model, own.index(identity)])
            assert got[model, place] == want


def test_ids_of_another_kind_are_not_in_the_pool():
    assert not pool().trained_on(np.array(["0", "1"])).any()
    text = Pool(models(1, 2), records(["0", "1"]), np.ones((1, 2), dtype=bool))
    assert not text.trained_on(np.array([0, 1])).any()
    assert text.trained_on(np.array(["1", "x"])).tolist() == [[True, False]]


def test_a_membership_table_of_another_shape_is_refused():
    for member in (np.zeros((2, 6), bool), np.zeros((3, 5), bool), np.zeros((3, 6), int)):
        with pytest.raises(InvalidInput, match=r"\(n_models, n_records\) = \(3, 6\), got"):
            Pool(models(3, 6), records(np.arange(6)), member)


def test_without_is_the_population():
    made = Pool.of_population(records(np.arange(6)))
    assert made.without(np.array([0, 5, 77])).ids.tolist() == [1, 2, 3, 4]
    assert made.trained_on(np.arange(3)).shape == (0, 3) and not len(made.models)
    assert made.signals(cross_entropy_loss, made.records).shape == (0, 6)


def test_records_have_one_numbering():
    made = pool()
    made.same_records(made.records[[4, 1]])
    Pool.of_population(made.records[:0]).same_records(made.records)
    new = Records.from_arrays([[70], [71]], [0, 1], ids=[70, 71])
    made.same_records(new)
    turned = Records(made.records.ids[::-1], made.records.x, made.records.y)
    with pytest.raises(InvalidInput, match=r"got 5 that have another id there .for example 5."):
        made.same_records(turned[:5])
    renamed = Records(made.records.ids + 50, made.records.x, made.records.y)
    with pytest.raises(InvalidInput, match=r"got 6 that have another id there .for example 50."):
        made.same_records(renamed)
    wider = Records.from_arrays(np.zeros((2, 7)), [0, 1])
    with pytest.raises(InvalidInput, match="got 2 that have another id"):
        made.same_records(wider)


# --- signals -----------------------------------------------------------------------------------


def test_signals_are_each_models_own():
    made = pool()
    chosen = made.records[[5, 0, 3]]
    got = made.signals(true_class_margin, chosen)
    for row, model in zip(got, made.models, strict=True):
        want = true_class_margin(model.log_probabilities(chosen.x), chosen.y)
        np.testing.assert_array_equal(row, want)


def test_signals_are_read_once():
    made = pool()
    first = made.signals(cross_entropy_loss, made.records)
    again = made.signals(cross_entropy_loss, made.records[np.arange(6)])
    np.testing.assert_array_equal(first, again)
    assert [m.calls for m in made.models] == [1, 1, 1]
    made.signals(true_class_margin, made.records)
    made.signals(cross_entropy_loss, made.records[:5])
    assert [m.calls for m in made.models] == [3, 3, 3]


def test_kept_signals_cannot_be_written_to():
    made = pool()
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            made.signals(cross_entropy_loss, made.records)[:] = 0


def test_other_inputs_under_the_same_ids_are_other_records():
    made = pool()
    other = Records(made.records.ids, np.array(made.records.x[::-1]), made.records.y)
    a = made.signals(cross_entropy_loss, made.records)
    assert not np.array_equal(a, made.signals(cross_entropy_loss, other))


def test_functions_made_on_the_spot_are_not_mistaken_for_each_other():
    made = pool()

    def shifted(by: float) -> Any:
        return lambda table, y: cross_entropy_loss(table, y) + by

    a, b = (made.signals(shifted(by), made.records) for by in (0.0, 1.0))
    np.testing.assert_allclose(b - a, 1.0)


@pytest.mark.parametrize("changed", [models_module, signals_module], ids=["models", "signals"])
def test_what_is_kept_is_of_this_code(monkeypatch, changed):
    cache, real = MemoryCache(), pool_module._source
    made = pool()
    kept = Pool(made.models, made.records, made.member, cache)
    kept.signals(cross_entropy_loss, made.records)
    (before,) = cache._kept
    other = "another version"
    monkeypatch.setattr(pool_module, "_source", lambda m: other if m is changed else real(m))
    kept.signals(cross_entropy_loss, made.records)
    assert len(cache._kept) == 2 and before in cache._kept


def test_a_kept_signal_of_another_pool_is_not_used():
    cache = MemoryCache()
    small, large = pool(2), pool(3)
    Pool(small.models, small.records, small.member, cache).signals(
        cross_entropy_loss, small.records
    )
    made = Pool(large.models, large.records, large.member, cache)
    assert made.signals(cross_entropy_loss, large.records).shape == (3, 6)


def test_a_model_that_lacks_a_class_is_named():
    made = Pool(models(2, 6, classes=2), records(np.arange(6)), np.zeros((2, 6), bool))
    third = Records(made.records.ids, made.records.x, np.full(6, 2))
    with pytest.raises(
        InvalidInput, match="labels below 2, .* model 0 of the pool .* got 2; train"
    ):
        made.signals(cross_entropy_loss, third)
