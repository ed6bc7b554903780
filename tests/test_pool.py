"""A pool knows who was trained on what, and reads each signal once."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige import models as models_module
from vestige import reading as reading_module
from vestige import signals as signals_module
from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.pool import MemoryCache, Pool
from vestige.reading import Block, OneByOne, are_whole
from vestige.records import Records
from vestige.signals import (
    cross_entropy_loss,
    log_probabilities,
    max_confidence,
    true_class_margin,
)
from vestige.training.asking import Stacks


class Asked:
    """A table of predictions that counts how often it is asked."""

    def __init__(self, table: Predictions) -> None:
        self._table = table
        self.calls = 0
        self.seen: list[int] = []

    @property
    def n_queries(self) -> int:
        return self._table.n_queries

    def log_probabilities(self, x: Any) -> Any:
        self.calls += 1
        self.seen.append(len(x))
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


SCALE = 1.0


def by_global(table: Any, y: Any) -> Any:
    return SCALE * cross_entropy_loss(table, y)


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def loss(self, table: Any, y: Any) -> Any:
        return self.by * cross_entropy_loss(table, y)

    @staticmethod
    def doubled(table: Any, y: Any) -> Any:
        return 2 * cross_entropy_loss(table, y)


def wrapped(by: float) -> Any:
    @functools.wraps(cross_entropy_loss)
    def signal(table: Any, y: Any) -> Any:
        return by * cross_entropy_loss(table, y)

    return signal


@functools.wraps(wrapped)
def of_another(table: Any, y: Any) -> Any:
    return cross_entropy_loss(table, y)


of_another.__qualname__ = "of_another"


def replaced(by: float) -> Any:
    """A function whose name its module has given to another since."""
    source = f"def by_global(table, y): return {by} * loss(table, y)"
    made = {"__name__": __name__, "loss": cross_entropy_loss}
    exec(source, made)
    return made["by_global"]


@pytest.mark.parametrize(
    "of",
    [
        lambda by: Scaled(by).loss,
        wrapped,
        replaced,
        lambda by: functools.partial(Scaled.loss, Scaled(by)),
    ],
    ids=["method", "wrapped", "replaced", "partial"],
)
def test_signals_that_share_a_name_are_not_mistaken_for_each_other(of):
    made = pool()
    plain = made.signals(cross_entropy_loss, made.records)
    made.signals(by_global, made.records)
    for by in (1.0, 3.0):
        np.testing.assert_allclose(made.signals(of(by), made.records), by * plain)
        assert reading_module.name_of(of(by)) == ""


def test_a_function_that_wraps_another_or_has_a_closure_has_no_name(monkeypatch):
    assert reading_module.name_of(of_another) == ""
    closure = wrapped(1.0)
    del closure.__wrapped__
    monkeypatch.setattr(signals_module, "cross_entropy_loss", closure)
    assert reading_module.name_of(closure) == ""


def test_a_signal_whose_global_was_changed_is_read_again(monkeypatch):
    made = pool()
    once = made.signals(by_global, made.records)
    made.signals(by_global, made.records)
    assert [m.calls for m in made.models] == [1, 1, 1]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    np.testing.assert_allclose(made.signals(by_global, made.records), 3 * once)


def test_functions_of_a_module_have_names():
    made = pool()
    for signal in (by_global, Scaled.doubled, cross_entropy_loss):
        before = made.models[0].calls
        for _ in range(2):
            made.signals(signal, made.records)
        assert made.models[0].calls == before + 1
        assert reading_module.name_of(signal) == f"{signal.__module__} {signal.__qualname__}"


@pytest.mark.parametrize("changed", [models_module, signals_module], ids=["models", "signals"])
def test_what_is_kept_is_of_this_code(monkeypatch, changed):
    cache, real = MemoryCache(), reading_module.source_digest
    made = pool()
    kept = Pool(made.models, made.records, made.member, cache)
    kept.signals(cross_entropy_loss, made.records)
    (before,) = cache._kept

    def of(*files):
        return real(*files) + ("another" if Path(changed.__file__) in files else "")

    monkeypatch.setattr(reading_module, "source_digest", of)
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


def test_parts_of_a_pool_have_signals_of_their_own():
    made = pool(4)
    whole = made.signals(cross_entropy_loss, made.records)
    parts = [
        dataclasses.replace(made, models=made.models[part], member=made.member[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    # nor do parts of a part
    parts += [dataclasses.replace(parts[0], models=made.models[1:3], member=made.member[1:3])]
    for part, at in zip(parts, (slice(0, 2), slice(2, 4), slice(1, 3)), strict=True):
        for _ in range(2):
            got = part.signals(cross_entropy_loss, made.records)
            np.testing.assert_array_equal(got, whole[at])
    assert [m.calls for m in made.models] == [2, 3, 3, 2]
    same = dataclasses.replace(made, provenance={"engine": "another"})
    same.signals(cross_entropy_loss, made.records)
    assert [m.calls for m in made.models] == [2, 3, 3, 2]


def test_what_was_read_one_by_one_is_not_what_stacks_answer():
    made = pool()
    made.signals(cross_entropy_loss, made.records)
    stacked = dataclasses.replace(made, asker=Stacks())
    assert stacked.cache is made.cache
    for _ in range(2):
        stacked.signals(cross_entropy_loss, made.records)
    assert [m.calls for m in made.models] == [2, 2, 2]


def test_a_model_that_lacks_a_class_is_named():
    made = Pool(models(2, 6, classes=2), records(np.arange(6)), np.zeros((2, 6), bool))
    third = Records(made.records.ids, made.records.x, np.full(6, 2))
    with pytest.raises(
        InvalidInput, match="labels below 2, .* model 0 of the pool .* got 2; train"
    ):
        made.signals(cross_entropy_loss, third)


# --- several signals in one pass ---------------------------------------------------------------


def shouted(told: list[tuple[str, int, int]]) -> Any:
    return lambda *said: told.append(said)


def test_several_signals_are_one_pass():
    made, told = pool(), []
    got = made.read(
        [cross_entropy_loss, true_class_margin, log_probabilities, cross_entropy_loss],
        made.records,
        progress=shouted(told),
    )
    assert [m.calls for m in made.models] == [1, 1, 1]
    assert [a.shape for a in got] == [(3, 6), (3, 6), (3, 6, 3), (3, 6)]
    for k, model in enumerate(made.models):
        table = model.log_probabilities(made.records.x)
        np.testing.assert_array_equal(got[2][k], table)
        np.testing.assert_array_equal(got[0][k], cross_entropy_loss(table, made.records.y))
    assert told == [("signals", done, 3) for done in range(4)]
    assert all(a.dtype == np.float64 and not a.flags.writeable for a in got)
    # what was read together is there alone, and what is there is not read again
    np.testing.assert_array_equal(made.signals(true_class_margin, made.records), got[1])
    told.clear()
    made.read([max_confidence, cross_entropy_loss], made.records, progress=shouted(told))
    assert [m.calls for m in made.models] == [3, 3, 3] and told[0] == ("signals", 0, 3)
    told.clear()
    made.read([max_confidence, cross_entropy_loss], made.records, progress=shouted(told))
    assert [m.calls for m in made.models] == [3, 3, 3] and told == [("signals", 3, 3)]


def test_nothing_is_read_of_no_models_or_for_no_signals():
    assert pool().read([], pool().records) == ()
    empty = Pool.of_population(pool().records)
    assert empty.read([log_probabilities], empty.records)[0].shape == (0, 6)


@pytest.fixture
def small_parts(monkeypatch):
    """Records come in parts of 4, but for a rest of less than 2."""
    monkeypatch.setattr(reading_module, "STEP", 2)
    monkeypatch.setattr(reading_module, "PART_BYTES", 8 * 2 * 4)


def test_many_records_are_read_in_parts(small_parts):
    for n, parts in ((3, [3]), (4, [4]), (5, [5]), (6, [4, 2]), (13, [4, 4, 5])):
        made = Pool(models(2, n), records(np.arange(n)), np.zeros((2, n), bool))
        sizes: list[list[int]] = [[], []]
        for model, seen in zip(made.models, sizes, strict=True):
            model.seen = seen
        got = made.read([log_probabilities, cross_entropy_loss], made.records)
        assert sizes == [parts, parts]
        whole = np.stack([m.log_probabilities(made.records.x) for m in made.models])
        np.testing.assert_array_equal(got[0], whole)
        np.testing.assert_array_equal(
            got[1], [cross_entropy_loss(table, made.records.y) for table in whole]
        )


def test_a_signal_that_takes_records_together_is_refused_where_they_come_in_parts(small_parts):
    def centered(table, y):
        loss = cross_entropy_loss(table, y)
        return loss - loss.mean()

    made = Pool(models(2, 26), records(np.arange(26)), np.zeros((2, 26), bool))
    with pytest.raises(InvalidInput, match="a signal of each record by itself"):
        made.signals(centered, made.records)
    few = made.records[:4]
    assert abs(made.signals(centered, few).mean()) < 1e-9


@pytest.mark.parametrize(
    "signal",
    [lambda t, y: t[:-1, 0], lambda t, y: t[:, :, None], lambda t, y: 1.0],
    ids=["a row short", "three axes", "one number"],
)
def test_a_signal_of_another_shape_is_refused(signal):
    with pytest.raises(InvalidInput, match=r"a signal of shape \(n,\) or \(n, columns\)"):
        pool().signals(signal, pool().records)


def test_models_with_other_classes_have_no_table_of_answers_together():
    both = [*models(1, 6, classes=3), *models(1, 6, classes=4)]
    made = Pool(both, records(np.arange(6)), np.zeros((2, 6), bool))
    assert made.signals(cross_entropy_loss, made.records).shape == (2, 6)
    with pytest.raises(InvalidInput, match="as many columns for each model"):
        made.signals(log_probabilities, made.records)


class Backwards:
    """An engine that is done with the last task first."""

    def run(self, work, shared, tasks):
        for place in reversed(range(len(tasks))):
            yield place, work(shared, tasks[place])


def test_blocks_may_come_in_any_order(small_parts):
    made = Pool(models(3, 13), records(np.arange(13)), np.zeros((3, 13), bool))
    told: list[tuple[str, int, int]] = []
    got = made.read([log_probabilities], made.records, engine=Backwards(), progress=shouted(told))
    plain = Pool(made.models, made.records, made.member)
    np.testing.assert_array_equal(got[0], plain.signals(log_probabilities, made.records))
    done = [d for _, d, _ in told]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 3 and max(done[:-1]) < 3


def test_a_pass_that_was_interrupted_goes_on():
    made = pool(4)
    stop = iter([False, False, True])

    def progress(label, done, total):
        if done and next(stop):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.read([cross_entropy_loss], made.records, progress=progress)
    assert [m.calls for m in made.models] == [1, 1, 1, 0]
    told: list[tuple[str, int, int]] = []
    made.read([cross_entropy_loss], made.records, progress=shouted(told))
    assert [m.calls for m in made.models] == [1, 1, 1, 1] and told[0] == ("signals", 3, 4)


class Wide(OneByOne):
    """So many models make a block, and nothing in the key says so."""

    wide = 1

    def width(self, models):
        return self.wide, 1


def test_interrupted_passes_of_other_cuts_do_not_add_up_to_a_whole(small_parts, monkeypatch):
    made = dataclasses.replace(pool(4, 8), asker=Wide())

    def interrupted(blocks):
        calls = iter(range(1000))

        def progress(label, done, total):
            if next(calls) == blocks:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.read([cross_entropy_loss], made.records, progress=progress)

    interrupted(4)  # two models, in two parts each
    monkeypatch.setattr(Wide, "wide", 2)
    interrupted(2)  # the same two again
    want = [
        cross_entropy_loss(m.log_probabilities(made.records.x), made.records.y) for m in made.models
    ]
    np.testing.assert_array_equal(made.signals(cross_entropy_loss, made.records), want)
    calls = [m.calls for m in made.models]
    made.signals(cross_entropy_loss, made.records)
    assert [m.calls for m in made.models] == calls


def test_other_cuts_are_kept_apart(monkeypatch):
    made = pool()
    for name, value in (("STEP", 2048), ("STEP", 1024), ("PART_BYTES", 2**20)):
        monkeypatch.setattr(reading_module, name, value)
        made.signals(cross_entropy_loss, made.records)
    assert [m.calls for m in made.models] == [3, 3, 3]


def test_whole_is_each_value_once():
    halves = [Block(0, 2, 0, 4), Block(2, 3, 0, 4)]
    assert are_whole(halves, 3, 4) and are_whole([Block(0, 3, 0, 0)], 3, 0)
    assert are_whole([Block(0, 3, 2, 4), Block(0, 3, 0, 2)], 3, 4)
    for blocks in (
        [],
        halves[:1],
        [*halves, Block(0, 2, 0, 2)],
        [Block(0, 3, 0, 2), Block(0, 3, 1, 3)],
        [Block(0, 3, 0, 3), Block(0, 3, 0, 1)],
        [Block(0, 2, 0, 4), Block(1, 2, 0, 4)],
    ):
        assert not are_whole(blocks, 3, 4)


def test_one_model_is_loaded_at_a_time():
    alive: set[int] = set()

    class Loaded(Asked):
        def __init__(self, k, table):
            super().__init__(table)
            self.k = k
            alive.add(k)

        def __del__(self):
            alive.discard(self.k)

        def log_probabilities(self, x):
            assert len(alive) <= 2, alive
            return super().log_probabilities(x)

    class Lazy(list):
        def __getitem__(self, index):
            if isinstance(index, slice):
                return Lazy(list.__getitem__(self, index))
            return Loaded(index, list.__getitem__(self, index))

        def __iter__(self):
            return (self[k] for k in range(len(self)))

    tables = Lazy(m._table for m in models(6, 6))
    made = Pool(tables, records(np.arange(6)), np.zeros((6, 6), bool))
    made.read([cross_entropy_loss, log_probabilities], made.records)
