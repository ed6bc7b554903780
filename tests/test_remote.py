"""A target behind HTTP gives the direct model's numbers, within its budget, whoever answers."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vestige as vs
from hostile_server import Faulty, Hostile, Received, reply, unused_port
from vestige.errors import (
    BudgetSpent,
    DamagedFile,
    InvalidInput,
    MissingExtra,
    PlanError,
    RemoteError,
    StoreError,
    VestigeError,
)
from vestige.models import BlackBox
from vestige.remote import Backoff, JsonAnswers, JsonInputs, RemoteModel, in_order, remote_of
from vestige.remote.cache import Answers
from vestige.remote.mapping import logs_of
from vestige.serving import Running, app_of
from worlds import Table, overfit_world

AT_ONCE = Backoff(first=0.0, longest=0.0)
TOKEN = "s3cret-Token/with+signs=="

Send = Callable[[bytes], None]


class Linear:
    """A softmax of a linear map, by hand."""

    def __init__(self, n_features: int = 3, n_classes: int = 4) -> None:
        self._weights = np.random.default_rng(0).normal(0, 3, (n_features, n_classes))
        self.n_queries = 0

    def log_probabilities(self, x: Any) -> np.ndarray[Any, Any]:
        self.n_queries += len(x)
        logits = np.asarray(x, dtype=np.float64) @ self._weights
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def records(n: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, 3))


def answering(model: BlackBox | None = None) -> Faulty:
    """A server that does as it should."""
    return Faulty(Linear() if model is None else model, 0, ["fine"])


def saying(data: bytes) -> Callable[[Received, Send], None]:
    return lambda request, send: send(data)


def remote(url: str, **settings: Any) -> RemoteModel:
    said: dict[str, Any] = {"backoff": AT_ONCE, "timeout": 5.0, "retries": 0}
    return RemoteModel(url, **said | settings)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    return TOKEN


# --- the same numbers ---------------------------------------------------------------------------


def test_is_a_black_box_with_the_numbers_of_the_model() -> None:
    x = records(50)
    with Hostile(answering()) as server, remote(server.url, batch_size=16) as model:
        assert isinstance(model, BlackBox)
        answers = model.log_probabilities(x)
        assert answers.dtype == np.float64 and answers.shape == (50, 4)
        np.testing.assert_allclose(answers, Linear().log_probabilities(x), rtol=0, atol=1e-9)
        assert model.n_paid == 50 and model.n_cached == 0
        assert [len(json.loads(r.body)["inputs"]) for r in server.received] == [16, 16, 16, 2]


@pytest.mark.parametrize("seed", [1, 3])
def test_a_faulty_service_gives_the_same_numbers_and_is_counted_exactly(seed: int) -> None:
    x = records(60)
    service = Faulty(Linear(), seed, slow=0.4)
    with (
        Hostile(service) as server,
        remote(server.url, batch_size=6, retries=60, timeout=0.3) as model,
    ):
        answers = model.log_probabilities(x)
        np.testing.assert_allclose(answers, Linear().log_probabilities(x), rtol=0, atol=1e-9)
        assert len(set(service.met)) >= 6
        assert model.n_paid == model.spent == service.asked > 60
        model.log_probabilities(x)
        assert model.n_paid == service.asked and model.n_cached == 60


def test_confident_answers_keep_the_digits_that_a_number_near_one_has_no_room_for() -> None:
    rows = np.array([[1.0, 1e-20, 3e-18], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25]])
    logs = logs_of(rows, "probabilities", None, 1e-3)
    assert logs[0, 0] == pytest.approx(-3.01e-18, rel=1e-9, abs=0)
    np.testing.assert_allclose(np.exp(logs[1]), [1e-12, 1.0, 1e-12], rtol=1e-11)
    np.testing.assert_allclose(logs[2], np.log(rows[2]), atol=1e-15)


def test_a_uniform_row_of_many_classes_is_uniform() -> None:
    logs = logs_of(np.full((1, 5000), 1 / 5000), "probabilities", None, 1e-3)
    np.testing.assert_allclose(logs, np.log(1 / 5000), atol=1e-9)


def test_a_zero_is_never_likelier_than_what_is_shown_as_positive() -> None:
    logs = logs_of(np.array([[1.0, 1e-30, 0.0]]), "probabilities", None, 1e-3)
    assert logs[0, 2] <= logs[0, 1] == pytest.approx(np.log(1e-30))


def test_a_row_that_is_rounded_or_cut_is_taken_at_its_word() -> None:
    """Only where a number has run out of digits do the others say more of it than itself."""
    rows = np.array([[0.9, 0.1, 1e-7], [0.9999996, 3e-7, 0.0], [1.0, 0.0, 0.0], [0.7, 0.2, 0.1]])
    logs = logs_of(rows, "probabilities", None, 1e-3)
    np.testing.assert_array_equal(logs, np.log(np.maximum(rows, 1e-12)))


@pytest.mark.parametrize("outputs", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("tolerance", [1e-3, 1.0, 50.0])
def test_no_tolerance_lets_an_answer_through_that_says_nothing(
    outputs: Any, tolerance: float
) -> None:
    nothing = {"probabilities": 0.0, "log_probabilities": -1000.0}[outputs]
    for rows in ([[nothing] * 3], [[0.0 if outputs[0] == "l" else 1.0, nothing], [nothing] * 2]):
        with pytest.raises(RemoteError, match="no class is likely"):
            logs_of(np.array(rows), outputs, None, tolerance)
    logs_of(np.array([[nothing]]), outputs, None, tolerance)  # of two classes the other one


@pytest.mark.parametrize("missing", [0.3, 0.05, 0.0499999, 0.0010000001, 1e-2, 0.95, 0.5, 3.0])
def test_the_tolerance_that_an_error_names_is_enough(missing: float) -> None:
    rows = np.full((1, 4), (1 - missing) / 4) if missing < 1 else np.ones((1, 4))
    with pytest.raises(RemoteError, match="0.5 \\* classes") as caught:
        logs_of(rows, "probabilities", None, 1e-4)
    named = float(str(caught.value).split("tolerance=")[1].split()[0])
    assert missing < named < 1.3 * missing
    logs_of(rows, "probabilities", None, named)


def test_a_tolerance_is_enough_where_it_is_met() -> None:
    logs_of(np.array([[0.6, 0.3, 0.05]]), "probabilities", None, 0.05)
    logs_of(np.array([[0.3, 0.3, 0.3]]), "probabilities", None, 0.1)


def test_rows_that_do_not_sum_to_one_are_as_the_service_shows_them() -> None:
    shown = {"probabilities": [[0.6, 0.1, 0.0], [0.4, 0.4, 0.1]]}
    with Hostile(saying(reply(shown))) as server:
        x = records(2)
        with remote(server.url) as strict, pytest.raises(RemoteError, match="tolerance="):
            strict.log_probabilities(x)
        with remote(server.url, tolerance=0.5) as lenient:
            answers = np.exp(lenient.log_probabilities(x))
        np.testing.assert_allclose(answers, [[0.6, 0.1, 1e-12], [0.4, 0.4, 0.1]], rtol=1e-12)


def test_answers_that_were_paid_for_are_kept_when_they_are_not_what_was_expected(
    tmp_path: Path,
) -> None:
    with Hostile(saying(reply({"probabilities": [[0.6, 0.1]]}))) as server:
        x, cache = records(1), tmp_path / "answers.sqlite"
        with remote(server.url, cache=cache) as strict, pytest.raises(RemoteError):
            strict.log_probabilities(x)
        with remote(server.url, cache=cache, tolerance=0.5) as lenient:
            lenient.log_probabilities(x)
            assert lenient.n_paid == 0
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("outputs", "row", "expected"),
    [
        ("probabilities", [0.2], [0.8, 0.2]),
        ("probabilities", 0.2, [0.8, 0.2]),
        ("logits", [1000.0, 0.0, 999.0], None),
        ("logits", [np.log(4)], [0.2, 0.8]),
        ("log_probabilities", [np.log(0.1), np.log(0.9)], [0.1, 0.9]),
        ("log_probabilities", [np.log(0.1)], [0.9, 0.1]),
        ("labels", 1, [1e-12, 1.0]),
        ("labels", [1], [1e-12, 1.0]),
    ],
)
def test_what_a_row_may_hold(outputs: Any, row: Any, expected: Any) -> None:
    with Hostile(saying(reply({outputs: [row]}))) as server:
        n_classes = None if expected is None else 2
        with remote(server.url, outputs=outputs, n_classes=n_classes) as model:
            logs = model.log_probabilities(records(1))[0]
    if expected is None:
        np.testing.assert_allclose(logs, np.array([0, -1000, -1]) - np.log1p(np.exp(-1)))
    else:
        np.testing.assert_allclose(np.exp(logs), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("outputs", "row", "match"),
    [
        ("probabilities", [2.0, -1.0], "logits"),
        ("probabilities", [0.5, 0.4], "sum to 1"),
        ("log_probabilities", [-0.1, -0.1], "sum to 1"),
        ("labels", [2], "from 0 to 1"),
        ("labels", [0.5], "from 0 to 1"),
    ],
)
def test_what_is_not_what_outputs_says_stops_at_the_first_batch(
    outputs: Any, row: Any, match: str
) -> None:
    with Hostile(saying(reply({outputs: [row]}))) as server:
        settings = {"outputs": outputs, "n_classes": 2, "batch_size": 1, "retries": 5}
        with remote(server.url, **settings) as model, pytest.raises(RemoteError, match=match):
            model.log_probabilities(records(3))
        assert len(server.received) == 1


def test_the_way_to_logits_that_an_error_names_is_one_and_costs_nothing(tmp_path: Path) -> None:
    x, cache = records(2), tmp_path / "answers.sqlite"
    with Hostile(saying(reply({"probabilities": [[2.0, -1.0], [0.0, 3.0]]}))) as server:
        with remote(server.url, cache=cache) as model, pytest.raises(RemoteError) as caught:
            model.log_probabilities(x)
        assert 'outputs="logits"' in str(caught.value)
        assert 'decode=JsonAnswers("probabilities")' in str(caught.value)
        assert 'answers_field = "probabilities"' in str(caught.value)
        said = {"outputs": "logits", "cache": str(cache)}
        decode = JsonAnswers("probabilities")
        with remote(server.url, decode=decode, **said) as model:
            answers = model.log_probabilities(x)
        np.testing.assert_allclose(np.exp(answers).sum(axis=1), 1.0)
        plan = {"url": server.url, "answers_field": "probabilities", **said}
        with remote_of(plan) as model:
            np.testing.assert_array_equal(model.log_probabilities(x), answers)
            assert model.n_paid == 0
        assert len(server.received) == 1


@pytest.mark.parametrize("answer", [{"scores": [[0.5, 0.5]]}, {}, [[0.5, 0.5]], 7, None], ids=str)
def test_an_answer_without_the_field_is_not_asked_for_again(answer: Any) -> None:
    with Hostile(saying(reply(answer))) as server, remote(server.url, retries=6) as model:
        with pytest.raises(RemoteError, match=r"JsonAnswers\(.* answers_field="):
            model.log_probabilities(records(1))
        assert len(server.received) == model.n_paid == 1


def test_mappings_of_ones_own() -> None:
    def encode(x: Any, ids: Any) -> Any:
        return {"rows": [{"a": a, "b": b, "c": c} for a, b, c in x.tolist()]}

    def decode(answer: Any, ids: Any) -> Any:
        names = ["cat", "dog"]
        return [[p["scores"].get(name, 0.0) for name in names] for p in answer["predictions"]]

    said = {"predictions": [{"scores": {"dog": 0.75, "cat": 0.25}}, {"scores": {"cat": 1.0}}]}
    with Hostile(saying(reply(said))) as server:
        with remote(server.url, encode=encode, decode=decode) as model:
            answers = np.exp(model.log_probabilities(np.arange(6.0).reshape(2, 3)))
        np.testing.assert_allclose(answers, [[0.25, 0.75], [1, 1e-12]], rtol=1e-11)
        assert json.loads(server.received[0].body)["rows"][1] == {"a": 3.0, "b": 4.0, "c": 5.0}


def test_fields_by_other_names_and_places_instead_of_ids() -> None:
    said = {"out": {"p": [[0.1, 0.9], [0.7, 0.3]]}, "index": [1, 0]}
    inputs, answers = JsonInputs("instances", ids=""), JsonAnswers("out.p")
    with Hostile(saying(reply(said))) as server:
        with remote(server.url, encode=inputs, decode=answers) as model:
            first = np.exp(model.log_probabilities(records(2)))[0]
        np.testing.assert_allclose(first, [0.7, 0.3])
        assert list(json.loads(server.received[0].body)) == ["instances"]


@pytest.mark.parametrize("named", [["a"], ["a", "a"], ["a", "c"], ["a", ["b"]], "ab", None])
def test_ids_that_are_not_those_that_were_asked_about(named: Any) -> None:
    with pytest.raises(RemoteError):
        in_order([[1], [2]], named, ["a", "b"])


def test_ids_are_compared_as_texts() -> None:
    assert in_order([[1], [2]], ["8", 7], [7, 8]) == [[2], [1]]
    with pytest.raises(RemoteError):
        in_order([[1], [2]], ["7", 7], [7, 8])


@pytest.mark.parametrize("n", [2, 20_000])
def test_ids_that_collide_cost_no_more_than_others(n: int) -> None:
    # each of them has the hash 0: in a table they would cost the square of their number
    named = [k * (2**61 - 1) for k in range(n)]
    began = time.perf_counter()
    with pytest.raises(RemoteError):
        in_order([[0.0]] * n, named, ["a"])
    with pytest.raises(RemoteError):
        in_order([[0.0]] * n, named, [str(k) for k in range(n)])
    assert time.perf_counter() - began < 1


def test_inputs_reach_the_service_to_the_last_digit() -> None:
    x = (np.random.default_rng(0).normal(size=(4, 2, 3)) * 1e-7).astype(np.float32)
    with Hostile(saying(reply({"probabilities": [[1.0, 0.0]] * 4}))) as server:
        with remote(server.url) as model:
            model.log_probabilities(x)
            whole = np.arange(12).reshape(4, 3)
            model.log_probabilities(whole)
        sent = [np.array(json.loads(r.body)["inputs"]) for r in server.received]
    np.testing.assert_array_equal(sent[0].astype(np.float32), x)
    assert sent[1].dtype == np.int64


@pytest.mark.slow
def test_an_audit_over_a_faulty_service_gives_the_numbers_of_the_direct_one(
    tmp_path: Path,
) -> None:
    world = overfit_world(n_members=100, n_nonmembers=100, n_population=60, n_models=8)
    direct = vs.audit(world.target, world.split, known=world.known, seed=3)
    service = Faulty(fresh_target(world), 5)
    with (
        Hostile(service) as server,
        remote(
            server.url,
            batch_size=20,
            retries=60,
            timeout=0.5,
            cache=tmp_path / "answers.sqlite",
            budget=5000,
        ) as model,
    ):
        served = vs.audit(model, world.split, known=world.known, seed=3)
        assert model.spent == service.asked <= 5000
        charged = served.provenance.service
        assert charged is not None and model.answered is not None
        assert charged.address == server.url and charged.n_charged == service.asked
        first, last = (moment.isoformat(timespec="seconds") for moment in model.answered)
        assert (charged.first_answer, charged.last_answer) == (first, last)
        assert f"{service.asked:,} records charged" in vs.report.render(served)
    assert direct.provenance.service is None
    assert {f.attack for f in served.findings} == {f.attack for f in direct.findings}
    for a, b in zip(direct.findings, served.findings, strict=True):
        for name, estimate in a.metrics.items():
            assert b.metrics[name].value == pytest.approx(estimate.value, abs=1e-9), (a, name)
    assert served.verdict.sentence == direct.verdict.sentence


def test_what_becomes_of_answers_is_said(tmp_path: Path) -> None:
    with Hostile(saying(reply({"probabilities": [[0.5, 0.5]]}))) as server:
        for cache, said in ((None, "lost with this program"), ("a.sqlite", "kept in a.sqlite")):
            where = None if cache is None else tmp_path / cache
            with remote(server.url, budget=1, cache=where, batch_size=1) as model:
                model.log_probabilities(records(1))
                with pytest.raises(BudgetSpent, match=said):
                    model.log_probabilities(records(2))


def test_a_budget_that_an_audit_would_pass_is_said_before_the_first_query() -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=50, n_models=4)
    n_all = len(world.split.candidates) + len(world.split.population)
    with Running(app_of(world.target)) as service:
        with remote(f"{service.url}/predict", budget=n_all - 1) as model:
            with pytest.raises(BudgetSpent, match=f"{n_all} more are wanted"):
                vs.audit(model, world.split, known=world.known)
            assert model.n_paid == 0
        with remote(f"{service.url}/predict", budget=n_all) as model:
            vs.audit(model, world.split, known=world.known)
            assert model.n_paid == n_all


def test_answers_of_many_days_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=50, n_models=4)
    with Running(app_of(world.target)) as service:
        cache, days = tmp_path / "answers.sqlite", {1: False, 2: True}
        for age, warned in days.items():
            with remote(f"{service.url}/predict", cache=cache) as model:
                now = time.time() + age * 86_400 - 3_600
                monkeypatch.setattr("vestige.remote.cache.time.time", lambda now=now: now)
                model.log_probabilities(world.split.candidates.x[:1] + age)
                monkeypatch.undo()
                made = vs.audit(model, world.split, known=world.known, attacks=["loss"])
                codes = {warning.code for warning in made.warnings}
                assert ("answers_of_many_days" in codes) == warned, age


def test_a_budget_that_is_half_spent_is_enough_for_the_rest(tmp_path: Path) -> None:
    x = records(10)
    with Hostile(answering()) as server:
        with remote(server.url, cache=tmp_path / "a.sqlite", budget=10) as model:
            model.log_probabilities(x[:6])
            model.afford(x)
            with pytest.raises(BudgetSpent, match="5 more are wanted"):
                model.afford(x, records(1, seed=8))
        # what does not fit is asked again
        with remote(
            server.url, cache=tmp_path / "a.sqlite", budget=15, n_classes=9, tolerance=0.1
        ) as model:
            with pytest.raises(BudgetSpent, match="10 more are wanted .6 of them have answers"):
                model.afford(x)


def test_what_an_audit_will_ask_through_a_filter_or_of_a_pool_is_known_before() -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=50, n_models=4)
    split = replace(world.split, population=world.split.population[:10])
    with Running(app_of(world.target)) as service:
        for wrap in (lambda model: model, lambda model: vs.defenses.TopK(model, 2)):
            with remote(f"{service.url}/predict", budget=109) as model:
                with pytest.raises(BudgetSpent, match="110 more are wanted"):
                    vs.audit(wrap(model), split, known=world.known)
                assert model.n_paid == 0
            with remote(f"{service.url}/predict", budget=110) as model:
                made = vs.audit(wrap(model), split, known=world.known)
                assert made.provenance.service is not None
                assert made.provenance.service.n_now == model.n_paid == 110


def test_an_attack_that_nobody_can_pay_for_costs_no_other_its_numbers() -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=50, n_models=4)
    with Running(app_of(world.target)) as service:
        with remote(f"{service.url}/predict", budget=200) as model:
            said: list[str] = []
            made = vs.audit(
                model,
                world.split,
                known=world.known,
                attacks=["boundary_distance", "loss"],
                tell=said.append,
            )
            assert [f.attack for f in made.findings] == ["loss"]
            (left,) = (w.message for w in made.warnings if w.code == "attacks_left_out")
            assert "boundary_distance not run: expected at most 200 records asked" in left
            assert any(
                "up to 250 records for each of 60 candidates, 15,000 in all" in s for s in said
            )
            with pytest.raises(BudgetSpent):
                vs.audit(model, world.split, known=world.known, attacks=["boundary_distance"])


def test_what_was_asked_again_needs_no_warning(tmp_path: Path) -> None:
    world = overfit_world(n_members=30, n_nonmembers=30, n_population=50, n_models=4)
    cache = tmp_path / "a.sqlite"
    with Running(app_of(world.target)) as service:
        for recheck, now, warned in ((0, 110, False), (0, 0, True), (5, 5, False)):
            with remote(f"{service.url}/predict", cache=cache, recheck=recheck) as model:
                said: list[str] = []
                made = vs.audit(model, world.split, known=world.known, tell=said.append)
                assert model.n_paid == now and model.n_rechecked == recheck
                codes = {warning.code for warning in made.warnings}
                assert ("answers_of_many_days" in codes) == warned
                assert any("service was not asked: all answers are kept" in s for s in said) == (
                    not now
                )
            with sqlite3.connect(cache) as opened:
                opened.execute("UPDATE answered SET first = first - 200000")


def fresh_target(world: Any) -> Table:
    """The world's target, with a count of its own."""
    return pickle.loads(pickle.dumps(world.target))


# --- what is asked, and what it costs -----------------------------------------------------------


def test_a_record_is_asked_once() -> None:
    x = records(5)
    with Hostile(service := answering()) as server, remote(server.url) as model:
        twice = np.concatenate([x, x[::-1], x[:2]])
        answers = model.log_probabilities(twice)
        np.testing.assert_allclose(answers, Linear().log_probabilities(twice), atol=1e-9)
        assert model.n_paid == service.asked == 5 and model.n_cached == 7
        model.log_probabilities(np.concatenate([x[:1], records(1, seed=9)]))
        assert service.asked == 6 and model.n_cached == 8


def test_the_same_numbers_in_another_type_are_the_same_record() -> None:
    with Hostile(service := answering()) as server, remote(server.url) as model:
        x = records(3).astype(np.float32)
        for same in (x, x.astype(np.float64), x.astype(">f8"), np.asfortranarray(x), x[::1]):
            model.log_probabilities(same)
        assert service.asked == 3
        whole = np.arange(6).reshape(2, 3)
        for same in (whole, whole.astype(np.uint8), whole.astype(np.int16)):
            model.log_probabilities(same)
        assert service.asked == 5
        model.log_probabilities(whole.reshape(2, 3).astype(float))
        assert service.asked == 7  # 1 and 1.0 are two texts


def test_three_counters() -> None:
    """What a model at hand would count, what may have been charged, and what was free."""
    x, turns = records(4), [500, 500]
    service = answering()

    def behave(request: Received, send: Send) -> None:
        if turns:
            send(reply(b"", turns.pop()))
        else:
            service(request, send)

    with Hostile(behave) as server, remote(server.url, retries=2, budget=14) as model:
        direct = Linear()
        for part in (x, x[:3], np.concatenate([x[:1], x[:1], records(2, seed=5)])):
            model.log_probabilities(part)
            direct.log_probabilities(part)
        assert model.n_queries == direct.n_queries == 11
        assert (model.n_paid, model.n_cached, model.spent) == (14, 5, 14)
        with pytest.raises(BudgetSpent):
            model.log_probabilities(records(1, seed=7))
        assert model.n_queries == 11


def test_a_budget_is_a_hard_stop_before_anything_is_sent() -> None:
    with Hostile(service := answering()) as server, remote(server.url, budget=10) as model:
        model.log_probabilities(records(6))
        with pytest.raises(BudgetSpent, match="at most 10 .* 6 were and 5 more .*nothing was sent"):
            model.log_probabilities(records(5, seed=2))
        assert service.asked == 6
        mixed = np.concatenate([records(6), records(4, seed=2)])
        model.log_probabilities(mixed)
        assert service.asked == model.n_paid == 10


@pytest.mark.parametrize("seed", range(6))
def test_no_query_over_the_budget_with_retries(seed: int, tmp_path: Path) -> None:
    x, cache = records(24), tmp_path / "answers.sqlite"
    faults = ["429", "500", "truncated", "cut", "nan", "short", "reordered", "fine"]
    service = Faulty(Linear(), seed, faults)
    with Hostile(service) as server:
        settings = {"batch_size": 4, "retries": 40, "cache": cache}
        for budget in (24, 26, 30, 40, 60, 90, 2000):
            with remote(server.url, budget=budget, **settings) as model:
                try:
                    answers = model.log_probabilities(x)
                    break
                except BudgetSpent:
                    pass
                finally:
                    assert model.spent == service.asked <= budget
        np.testing.assert_allclose(answers, Linear().log_probabilities(x), atol=1e-9)
    assert set(service.answered.values()) == {1} and len(service.answered) == 24


@pytest.mark.parametrize(
    ("status", "attempts", "counted"),
    [
        (500, 4, 8), (503, 4, 8), (408, 4, 8), (409, 4, 8), (429, 4, 0), (425, 4, 0),
        (400, 1, 0), (401, 1, 0), (403, 1, 0), (404, 1, 0), (413, 1, 0), (422, 1, 0),
        (302, 1, 0), (307, 1, 0),
    ],
)  # fmt: skip
def test_what_is_retried_and_what_counts(status: int, attempts: int, counted: int) -> None:
    with (
        Hostile(saying(reply({"detail": "no"}, status))) as server,
        remote(server.url, retries=3) as model,
    ):
        with pytest.raises(RemoteError, match=str(status)):
            model.log_probabilities(records(2))
        assert len(server.received) == attempts
        assert model.n_paid == model.spent == counted


@pytest.mark.parametrize(("said", "status", "attempts"), [("false", 503, 1), ("true", 400, 4)])
def test_a_service_may_say_whether_to_retry(said: str, status: int, attempts: int) -> None:
    with Hostile(saying(reply(b"", status, [f"X-Should-Retry: {said}"]))) as server:
        with remote(server.url, retries=3) as model, pytest.raises(RemoteError):
            model.log_probabilities(records(2))
        assert len(server.received) == attempts


def test_no_connection_costs_nothing() -> None:
    with remote(f"http://127.0.0.1:{unused_port()}/predict", retries=2) as model:
        with pytest.raises(RemoteError, match="no connection .* 3 times"):
            model.log_probabilities(records(2))
        assert model.n_paid == 0


def test_backoff_doubles_up_to_a_limit_and_listens() -> None:
    backoff = Backoff(first=1.0, longest=10.0, jitter=0.5)
    assert [backoff.seconds(k, None, 0.0) for k in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.seconds(2, None, 1.0) == 2.0
    assert backoff.seconds(0, 7.0, 0.5) == 7.0
    assert backoff.seconds(5000, None, 0.0) == 10.0


def test_a_wait_that_the_service_asks_for_is_waited() -> None:
    turns = [reply(b"", 429, ["Retry-After: 0.2"])]
    fine = reply({"probabilities": [[0.5, 0.5]]})

    def behave(request: Received, send: Send) -> None:
        send(turns.pop() if turns else fine)

    with Hostile(behave) as server, remote(server.url, retries=1) as model:
        began = time.monotonic()
        model.log_probabilities(records(1))
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("after", ["100000", "Wed, 21 Oct 2115 07:28:00 GMT"])
def test_nobody_waits_for_days(after: str) -> None:
    with Hostile(saying(reply(b"", 503, [f"Retry-After: {after}"]))) as server:
        with remote(server.url, retries=5) as model, pytest.raises(RemoteError, match="patience"):
            model.log_probabilities(records(1))
        assert len(server.received) == 1


@pytest.mark.parametrize("after", ["soon", "nan", "inf", "-5", "1e999", "Wed, 99 Oct 2115", ""])
def test_a_wait_that_makes_no_sense_is_none(after: str) -> None:
    with Hostile(saying(reply(b"", 503, [f"Retry-After: {after}"]))) as server:
        with remote(server.url, retries=1) as model, pytest.raises(RemoteError, match="503"):
            model.log_probabilities(records(1))
        assert len(server.received) == 2


def test_requests_keep_to_the_rate() -> None:
    with (
        Hostile(answering()) as server,
        remote(server.url, batch_size=1, rate=20.0) as model,
    ):
        began = time.monotonic()
        model.log_probabilities(records(5))
        assert time.monotonic() - began >= 4 / 20


# --- the cache ----------------------------------------------------------------------------------


def test_a_second_run_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, cache = records(9), tmp_path / "deep" / "answers.sqlite"
    with Hostile(service := answering()) as server:
        for k in range(3):
            # a new token finds the old answers
            monkeypatch.setenv("SERVICE_TOKEN", f"token-{k}")
            with remote(server.url, cache=cache, token_env="SERVICE_TOKEN", budget=9) as model:
                answers = model.log_probabilities(x)
                np.testing.assert_allclose(answers, Linear().log_probabilities(x), atol=1e-9)
                assert (model.n_paid, model.n_cached) == ((9, 0) if k == 0 else (0, 9))
                assert model.spent == 9
        assert service.asked == 9
        with remote(
            server.url, cache=cache, decode=JsonAnswers(), encode=JsonInputs("inputs")
        ) as m:
            m.log_probabilities(x)
            assert m.n_paid == 0
        with remote(server.url, cache=cache, encode=JsonInputs("inputs", ids="ids2")) as model:
            with pytest.raises(RemoteError):
                model.log_probabilities(x)
            assert model.n_paid == 9  # asked otherwise, asked anew


FAULTY: dict[str, Any] = {
    "zeros": [0, 0, 0],
    "narrow": [0.2, 0.3],
    "narrow-and-whole": [0.4, 0.6],
    "one": [1],
    "wide": [0.2, 0.3, 0.25, 0.25],
}


@pytest.mark.parametrize("n_classes", [None, 3])
@pytest.mark.parametrize("name", FAULTY)
def test_one_bad_answer_does_not_spoil_a_paid_cache(
    name: str, n_classes: int | None, tmp_path: Path
) -> None:
    x, turns = records(10), [FAULTY[name]]

    def behave(request: Received, send: Send) -> None:
        ids = json.loads(request.body)["ids"]
        row = turns.pop() if turns else [0.2, 0.3, 0.5]
        send(reply({"probabilities": [row] * len(ids), "ids": ids}))

    settings = {"cache": tmp_path / "answers.sqlite", "batch_size": 5, "retries": 2}
    with Hostile(behave) as server:
        with remote(server.url, n_classes=n_classes, **settings) as model:
            try:
                answers = model.log_probabilities(x)
                assert n_classes == 3 or name == "zeros"
                assert model.n_paid == 15
            except RemoteError as error:
                # nobody has said how many classes there are
                assert n_classes is None and (
                    "n_classes=" in str(error) or "sum to 1" in str(error)
                )
        with remote(server.url, n_classes=3, **settings) as model:
            answers = model.log_probabilities(x)
            assert n_classes is None or model.n_paid == 0
        np.testing.assert_allclose(np.exp(answers), [[0.2, 0.3, 0.5]] * 10)
        with remote(server.url, **settings) as model:
            model.log_probabilities(x)
            assert model.n_paid == 0


def test_a_kept_answer_that_does_not_fit_is_asked_again_within_the_budget(tmp_path: Path) -> None:
    x, cache = records(6), tmp_path / "answers.sqlite"
    shown = [[0.6, 0.3]] * 2 + [[0.5, 0.5]] * 4

    def behave(request: Received, send: Send) -> None:
        n = len(json.loads(request.body)["ids"])
        send(reply({"probabilities": shown[:n]}))

    with Hostile(behave) as server:
        with remote(server.url, cache=cache, tolerance=0.2) as lenient:
            lenient.log_probabilities(x)
        with remote(server.url, cache=cache, budget=7) as strict:
            with pytest.raises(BudgetSpent, match=r"2 more .*2 of them have answers that outputs="):
                strict.log_probabilities(x)
        # they stay until there are others
        with remote(server.url, cache=cache, tolerance=0.2, budget=6) as lenient:
            lenient.log_probabilities(x)
            assert lenient.n_paid == 0
        shown[:2] = [[0.75, 0.25]] * 2
        with remote(server.url, cache=cache, budget=8) as strict:
            answers = np.exp(strict.log_probabilities(x))
            assert strict.n_paid == 2 and strict.n_cached == 4
        np.testing.assert_allclose(answers, [[0.75, 0.25]] * 2 + [[0.5, 0.5]] * 4)
        with remote(server.url, cache=cache, budget=8) as strict:
            np.testing.assert_allclose(np.exp(strict.log_probabilities(x)), answers)


def test_a_service_that_has_changed_its_classes(tmp_path: Path) -> None:
    shown, settings = [[0.5, 0.5]], {"cache": tmp_path / "answers.sqlite", "retries": 1}
    with Hostile(lambda request, send: send(reply({"probabilities": shown}))) as server:
        with remote(server.url, **settings) as model:
            model.log_probabilities(records(1))
        shown[0] = [0.25, 0.5, 0.25]
        with remote(server.url, **settings) as model:
            model.log_probabilities(records(1))
            with pytest.raises(RemoteError, match="rows of 3 numbers, after rows of 2.*new cache"):
                model.log_probabilities(records(1, seed=2))


def changing(shown: list[list[float]]) -> Callable[[Received, Send], None]:
    """Answers each record with what is first in the list when it is asked."""

    def behave(request: Received, send: Send) -> None:
        send(reply({"probabilities": [shown[0]] * len(json.loads(request.body)["ids"])}))

    return behave


def test_kept_answers_are_asked_for_again_before_they_are_used(tmp_path: Path) -> None:
    shown = [[0.6, 0.4]]
    settings = {"cache": tmp_path / "answers.sqlite", "recheck": 3, "batch_size": 2}
    with Hostile(changing(shown)) as server:
        with remote(server.url, **settings, budget=6) as model:
            model.afford(records(6))
            model.log_probabilities(records(4))
            model.log_probabilities(records(6))
            assert model.n_paid == 6  # what it was told itself is not asked again
        with remote(server.url, **settings, budget=11) as model:
            model.afford(records(6), records(2, seed=2))
            model.log_probabilities(records(6))
            assert model.n_paid == 3  # though nothing is new
            model.log_probabilities(records(6))
            model.log_probabilities(records(2, seed=2))
            assert model.n_paid == 3 + 2
        shown[0] = [0.6002, 0.3998]
        for x in (records(6), np.concatenate([records(6), records(4, seed=4)])):
            with remote(server.url, **settings) as model:
                with pytest.raises(
                    RemoteError, match=r"kept between 20\d\d-.* \d\d:\d\d and .*replaced, or answ"
                ):
                    model.log_probabilities(x)
                assert model.n_paid == 2
        with remote(server.url, cache=settings["cache"], budget=0) as model:
            kept = model.log_probabilities(records(6))
        np.testing.assert_allclose(np.exp(kept), [[0.6, 0.4]] * 6)


def test_what_is_asked_again_is_within_the_budget(tmp_path: Path) -> None:
    cache = tmp_path / "answers.sqlite"
    with Hostile(changing([[0.6, 0.4]])) as server:
        with remote(server.url, cache=cache) as model:
            model.log_probabilities(records(4))
        for budget, paid in ((6, 0), (7, 3)):
            with remote(server.url, cache=cache, budget=budget, recheck=2) as model:
                for ask in (model.afford, model.log_probabilities):
                    try:
                        ask(records(5))
                    except BudgetSpent as error:
                        assert budget == 6 and "3 more are wanted" in str(error)
                assert model.n_paid == paid


def test_when_a_service_answered_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter([0.0, 86_400.0, 43_200.0])
    with Hostile(changing([[0.6, 0.4]])) as server:
        for seed in range(3):
            with remote(server.url, cache=tmp_path / "answers.sqlite") as model:
                if not seed:
                    assert model.answered is None
                now = next(days)
                monkeypatch.setattr("vestige.remote.cache.time.time", lambda now=now: now)
                model.log_probabilities(records(1, seed=seed))
                assert model.answered is not None
                first, last = (f"{moment:%Y-%m-%d %H}" for moment in model.answered)
                assert first == "1970-01-01 00"
                assert last == ("1970-01-01 00" if seed == 0 else "1970-01-02 00")


def test_a_stop_in_the_middle_keeps_every_batch_before(tmp_path: Path) -> None:
    x, cache = records(12), tmp_path / "answers.sqlite"
    calls: list[int] = []

    def decode(answer: Any, ids: Any) -> Any:
        calls.append(len(ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return JsonAnswers()(answer, ids)

    with Hostile(service := answering()) as server:
        settings = {"cache": cache, "batch_size": 4, "decode": decode}
        with remote(server.url, **settings) as model:
            with pytest.raises(KeyboardInterrupt):
                model.log_probabilities(x)
            assert model.spent == 12
            # the same handle goes on
            model.log_probabilities(x)
            assert service.asked == 16 and model.n_paid == 16


def test_a_write_that_fails_leaves_nothing_locked(tmp_path: Path) -> None:
    first, second = (Answers(tmp_path / "answers.sqlite") for _ in range(2))
    with pytest.raises(VestigeError):
        first.spend(object(), 1, None)
    for answers in (second, first):
        assert answers.spend(b"service", 2, 4)
    assert not first.spend(b"service", 1, 4) and second.spent(b"service") == 4
    first.close()
    second.close()


def test_two_that_share_a_cache_share_a_budget(tmp_path: Path) -> None:
    cache, service = tmp_path / "answers.sqlite", Faulty(Linear(), 0, ["fine", "500"])
    stops: list[type] = []

    def ask(seed: int) -> None:
        with remote(server.url, cache=cache, batch_size=3, budget=100, retries=50) as model:
            for k in range(30):
                try:
                    model.log_probabilities(records(6, seed=seed + k % 20))
                except BudgetSpent as error:
                    stops.append(type(error))
                    return

    with Hostile(service) as server:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in (0, 5, 40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with remote(server.url, cache=cache) as model:
            assert model.spent == service.asked <= 100
    assert stops


def test_what_another_has_asked_meanwhile_is_not_asked_again(tmp_path: Path) -> None:
    x, cache, service = records(8), tmp_path / "answers.sqlite", answering()

    def behave(request: Received, send: Send) -> None:
        if service.asked == 0:
            service.asked = 1
            with remote(server.url, cache=cache, batch_size=2) as other:
                other.log_probabilities(x[4:])
            service.asked -= 1
        service(request, send)

    with Hostile(behave) as server, remote(server.url, cache=cache, batch_size=2) as model:
        model.log_probabilities(x)
        assert service.asked == 8 and model.n_paid == 4 and model.n_cached == 4


def test_a_forked_process_has_its_own_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, pid = records(3), os.getpid()
    with Hostile(service := answering()) as server:
        model = remote(server.url, cache=tmp_path / "answers.sqlite", budget=4)
        alone = remote(server.url, budget=4)
        for one in (model, alone):
            one.log_probabilities(x)
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: pid + 1)
            model.log_probabilities(x)
            assert service.asked == 6 and model.spent == 3
            with pytest.raises(BudgetSpent):
                model.log_probabilities(records(2, seed=3))
            with pytest.raises(InvalidInput, match="budget of its own"):
                alone.log_probabilities(x)


def test_closing_does_not_forget_what_was_spent() -> None:
    with Hostile(service := answering()) as server:
        model = remote(server.url, budget=5)
        for _ in range(2):
            model.log_probabilities(records(5))
            model.close()
        with pytest.raises(BudgetSpent):
            model.log_probabilities(records(1, seed=2))
        assert service.asked == 5


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        (row,) = connection.execute("SELECT row FROM answers").fetchone()
        row = row[:-1] + bytes([row[-1] ^ 1])
        connection.execute("UPDATE answers SET row = ?", (row,))
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (a, b)")
    connection.close()


@pytest.mark.parametrize("harm", [garbage, truncated, flipped, foreign])
def test_a_damaged_cache_is_named_and_nothing_is_asked(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    cache = tmp_path / "answers.sqlite"
    with Hostile(service := answering()) as server:
        with remote(server.url, cache=cache) as model:
            model.log_probabilities(records(1 if harm is flipped else 200))
        asked = service.asked
        harm(cache)
        with remote(server.url, cache=cache) as model, pytest.raises(DamagedFile) as caught:
            model.log_probabilities(records(200))
        assert str(cache) in str(caught.value) and "\n" not in str(caught.value)
        assert service.asked == asked


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Hostile(answering()) as server:
        for path in (tmp_path, tmp_path / "file" / "answers.sqlite"):
            with remote(server.url, cache=path) as model, pytest.raises(StoreError):
                model.log_probabilities(records(1))
        assert not server.received


def test_workers_get_a_copy_without_the_connection(tmp_path: Path) -> None:
    x, cache = records(4), tmp_path / "answers.sqlite"
    with Hostile(service := answering()) as server:
        with remote(server.url, cache=cache, budget=4) as model:
            model.log_probabilities(x)
            with pickle.loads(pickle.dumps(model)) as copy:
                np.testing.assert_array_equal(copy.log_probabilities(x), model.log_probabilities(x))
                assert copy.n_paid == 0 and service.asked == 4
                with pytest.raises(BudgetSpent):
                    copy.log_probabilities(records(1, seed=8))
        with remote(server.url, budget=4) as model, pytest.raises(InvalidInput, match="cache="):
            pickle.dumps(model)


ASK = """
import sys
import numpy as np
from vestige.remote import Backoff, RemoteModel
x = np.random.default_rng(1).normal(size=(40, 3))
model = RemoteModel(sys.argv[1], cache=sys.argv[2], batch_size=4, budget=60,
                    backoff=Backoff(first=0.0, longest=0.0))
print(model.log_probabilities(x).sum(), model.n_paid)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_without_asking_again(tmp_path: Path) -> None:
    cache, direct = tmp_path / "answers.sqlite", Faulty(Linear(), 3, ["fine", "500", "reordered"])
    held, release = threading.Event(), threading.Event()

    def behave(request: Received, send: Send) -> None:
        if direct.asked >= 24 and not release.is_set():
            held.set()
            release.wait(60)
        direct(request, send)

    with Hostile(behave) as server:
        command = [sys.executable, "-c", ASK, server.url, str(cache)]
        first = subprocess.Popen(command)
        assert held.wait(60)
        first.send_signal(signal.SIGKILL)
        first.wait()
        answered = dict(direct.answered)
        release.set()
        assert 0 < len(answered) < 40
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 0, second.stderr
        total, asked = second.stdout.split()
        assert float(total) == pytest.approx(
            Linear().log_probabilities(records(40)).sum(), abs=1e-9
        )
        # what had been answered was not asked again
        assert all(direct.answered[key] == 1 for key in answered)
        with remote(server.url, cache=cache) as model:
            assert model.spent == direct.asked <= 60
            model.log_probabilities(records(40))
            assert model.n_paid == 0 and int(asked) >= 40 - len(answered)


# --- whom nobody trusts -------------------------------------------------------------------------


def endless(head: bytes, part: bytes = b"1," * 32768) -> Callable[[Received, Send], None]:
    def behave(request: Received, send: Send) -> None:
        send(head)
        for _ in range(4000):
            send(part)

    return behave


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "behave",
    [
        endless(HEAD + b"\r\n"),
        endless(HEAD + b"Content-Length: 99999999999999999999999999999\r\n\r\n"),
        endless(HEAD + b"Content-Length: 262144000\r\n\r\n"),
        endless(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"1" * 65536 + b"\r\n"
        ),
        endless(b"HTTP/1.1 500 Oh\r\n\r\n"),
        endless(HEAD + b"X: ", b"x" * 65536),
        endless(HEAD + b"\r\n"[:0], b"X: y\r\n" * 8000),
    ],
    ids=["plain", "absurd-length", "large-length", "chunked", "error", "header", "headers"],
)
def test_an_endless_answer_is_not_read_to_its_end(behave: Callable[[Received, Send], None]) -> None:
    tracemalloc.start()
    try:
        with Hostile(behave) as server, remote(server.url, max_bytes=2**20) as model:
            with pytest.raises(RemoteError):
                model.log_probabilities(records(2))
            _, peak = tracemalloc.get_traced_memory()
        assert peak < 8 * 2**20
        # what the socket buffers of this machine took besides
        assert server.sent < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_does_not_go_off(encoding: str) -> None:
    bomb = gzip.compress(b"0" * (40 * 2**20), compresslevel=1)
    data = reply(bomb, headers=[f"Content-Encoding: {encoding}"])
    with Hostile(saying(data)) as server, remote(server.url, max_bytes=2**20) as model:
        tracemalloc.start()
        try:
            with pytest.raises(RemoteError):
                model.log_probabilities(records(2))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * 2**20


def test_a_compressed_answer_is_read() -> None:
    body = gzip.compress(json.dumps({"probabilities": [[0.5, 0.5]]}).encode())
    with Hostile(saying(reply(body, headers=["Content-Encoding: gzip"]))) as server:
        with remote(server.url) as model:
            np.testing.assert_allclose(np.exp(model.log_probabilities(records(1))), 0.5)
    for broken in (body[:-4], b"no gzip", b""):
        with Hostile(saying(reply(broken, headers=["Content-Encoding: gzip"]))) as server:
            with remote(server.url) as model, pytest.raises(RemoteError):
                model.log_probabilities(records(1))


DEEP = 200_000
MALFORMED: dict[str, Any] = {
    "empty": b"",
    "text": b"hello",
    "open": b'{"probabilities": [[0.5, 0.5]',
    "deep-list": b"[" * DEEP + b"]" * DEEP,
    "deep-object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep-rows": b'{"probabilities": ' + b"[" * 900 + b"]" * 900 + b"}",
    "bad-text": b'{"probabilities": "\xff\xfe"}',
    "long-number": b'{"probabilities": [[' + b"1" * 10_000 + b"]]}",
    "rows-null": {"probabilities": None},
    "rows-text": {"probabilities": "0.5"},
    "rows-object": {"probabilities": {"0": [0.5, 0.5]}},
    "value-null": {"probabilities": [[None, 1.0]]},
    "value-text": {"probabilities": [["a", "b"]]},
    "value-nan": b'{"probabilities": [[NaN, 1.0]]}',
    "value-infinite": b'{"probabilities": [[1e999, 1.0]]}',
    "value-large": {"probabilities": [[10**400, 1.0]]},
    "too-few": {"probabilities": []},
    "too-many": {"probabilities": [[0.5, 0.5]] * 2},
    "ragged": {"probabilities": [[0.5, [0.5]]]},
    "no-class": {"probabilities": [[]]},
    "three-axes": {"probabilities": [[[0.5, 0.5]]]},
    "other-ids": {"probabilities": [[0.5, 0.5]], "ids": ["x"]},
    "odd-ids": {"probabilities": [[0.5, 0.5]], "ids": {"x": 1}},
    "odd-index": {"probabilities": [[0.5, 0.5]], "index": [1.5]},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_tried_again_and_then_named(name: str) -> None:
    with Hostile(saying(reply(MALFORMED[name]))) as server, remote(server.url, retries=1) as model:
        with pytest.raises(RemoteError) as caught:
            model.log_probabilities(records(1))
        assert len(server.received) == model.n_paid == 2
        assert "2 times" in str(caught.value) and "\n" not in str(caught.value)


def test_rows_without_end_are_refused_before_there_is_an_array_of_them(tmp_path: Path) -> None:
    row = b"[1" + b",0" * 200_000 + b"]"
    data = reply(b'{"probabilities": [' + b",".join([row] * 2) + b"]}")
    with Hostile(saying(data)) as server:
        for said in ({}, {"n_classes": 3}, {"max_classes": 200_000}):
            with remote(server.url, cache=tmp_path / "answers.sqlite", retries=3, **said) as model:
                with pytest.raises(RemoteError, match="rows of 200,001 numbers"):
                    model.log_probabilities(records(2))
                assert model.n_paid == 2
        assert (tmp_path / "answers.sqlite").stat().st_size < 100_000
        with remote(server.url, max_classes=200_001) as model:
            assert model.log_probabilities(records(2)).shape == (2, 200_001)


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "image/png"])
def test_other_than_json_is_not_read(kind: str) -> None:
    with Hostile(saying(reply({"probabilities": [[0.5, 0.5]]}, kind=kind))) as server:
        with remote(server.url) as model, pytest.raises(RemoteError, match="other than JSON"):
            model.log_probabilities(records(1))


def test_an_answer_of_brackets_is_not_parsed() -> None:
    body = b"[" + b"[]," * 300_000 + b"[]]"
    with Hostile(saying(reply(body))) as server, remote(server.url, max_bytes=2**20) as model:
        with pytest.raises(RemoteError, match="brackets"):
            model.log_probabilities(records(1))


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, token: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"probabilities": [[0.5, 0.5]]}')
    with Hostile(saying(reply({"probabilities": [[0.5, 0.5]]}))) as other:
        for where in (other.url, f"file://{secret}", "//" + other.host, "\\\\" + other.host):
            data = reply(b"", status, [f"Location: {where}", "Refresh: 0; url=" + other.url])
            with Hostile(saying(data)) as server:
                with remote(server.url, token_env="SERVICE_TOKEN", retries=3) as model:
                    with pytest.raises(RemoteError, match="redirect"):
                        model.log_probabilities(records(1))
                    assert model.n_paid == 0
                assert len(server.received) == 1
        assert other.received == []


def trickling(head: bytes) -> Callable[[Received, Send], None]:
    def behave(request: Received, send: Send) -> None:
        send(head)
        for _ in range(200):
            time.sleep(0.02)
            send(b"1")

    return behave


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"\r\n", HEAD + b"Content-Length: 100000\r\n\r\n[", b"H"],
    ids=["header", "body", "length", "line"],
)
def test_an_answer_that_trickles_is_cut_off(head: bytes) -> None:
    with Hostile(trickling(head)) as server, remote(server.url, timeout=0.2) as model:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"within 0\.2 s"):
            model.log_probabilities(records(1))
        assert time.monotonic() - began < 2


def test_empty_promises_are_cut_off() -> None:
    def behave(request: Received, send: Send) -> None:
        for _ in range(400):
            time.sleep(0.01)
            send(b"HTTP/1.1 102 Processing\r\n\r\n")

    with Hostile(behave) as server, remote(server.url, timeout=0.2) as model:
        began = time.monotonic()
        with pytest.raises(RemoteError):
            model.log_probabilities(records(1))
        assert time.monotonic() - began < 2


def test_a_connection_that_was_cut_does_not_spoil_the_next_request() -> None:
    turns = [1]
    fine = answering()

    def behave(request: Received, send: Send) -> None:
        if turns:
            turns.pop()
            time.sleep(0.3)
        else:
            fine(request, send)

    with Hostile(behave) as server, remote(server.url, timeout=0.1, retries=5) as model:
        assert model.log_probabilities(records(3)).shape == (3, 4)


# --- secrets ------------------------------------------------------------------------------------


def leaks(error: BaseException, secret: str) -> bool:
    """Whether a secret is in an error: its text, its causes, or what its frames remember."""
    seen: list[str] = []
    while error is not None:
        seen += ["".join(traceback.format_exception(error)), repr(error), repr(error.args)]
        seen += [repr(vars(error))]
        frames = traceback.walk_tb(error.__traceback__)
        seen += [
            repr(frame.f_locals) for frame, _ in frames if "vestige" in frame.f_code.co_filename
        ]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return any(secret in text for text in seen)


def echoing(status: int) -> Callable[[Received, Send], None]:
    """A server that says the token wherever it can."""

    def behave(request: Received, send: Send) -> None:
        said = request.headers.get("authorization", "") + request.line
        body = json.dumps({"detail": said, said: [[1]], "probabilities": said}).encode()
        head = f"HTTP/1.1 {status} {TOKEN}\r\nX-Echo: {said}\r\nSet-Cookie: a={TOKEN}\r\n"
        head += f"Location: http://127.0.0.1/{TOKEN}\r\nContent-Type: application/json\r\n"
        send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    return behave


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 413, 422, 429, 500])
@pytest.mark.parametrize("place", ["header", "address"])
def test_the_token_is_in_nothing_but_the_request(
    status: int, place: str, token: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Hostile(echoing(status)) as server:
        url = server.url + "?key={token}&tenant=mine" if place == "address" else server.url
        cache = tmp_path / "answers.sqlite"
        with remote(url, token_env="SERVICE_TOKEN", cache=cache, retries=1) as model:
            with pytest.raises(RemoteError) as caught:
                model.log_probabilities(records(1))
            said = server.received[0]
            assert token in said.headers.get("authorization", "") or "s3cret" in said.line
            assert not leaks(caught.value, "s3cret")
            assert "s3cret" not in repr(model) + str(vars(model))
            assert b"s3cret" not in pickle.dumps(model)
            assert "tenant" not in str(caught.value) and "mine" not in repr(model)
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        assert files and all(b"s3cret" not in path.read_bytes() for path in files)
    assert "s3cret" not in caplog.text and "tenant" not in caplog.text


def test_the_token_is_not_in_the_log_of_the_transport(
    token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Hostile(answering()) as server:
        url = server.url + "?key={token}"
        header = "X-Api-Key: {token}"
        with remote(url, token_env="SERVICE_TOKEN", header=header) as model:
            model.log_probabilities(records(1))
        assert server.received[0].headers["x-api-key"] == token
        assert "s3cret-Token%2Fwith%2Bsigns%3D%3D" in server.received[0].line
    assert "s3cret" not in caplog.text


def test_the_token_is_read_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hostile(answering()) as server, remote(server.url, token_env="SERVICE_TOKEN") as model:
        for k in range(2):
            monkeypatch.setenv("SERVICE_TOKEN", f" token-{k}\n")
            model.log_probabilities(records(1, seed=k))
        for bad in (None, "", "two\nlines", "gänse"):
            if bad is None:
                monkeypatch.delenv("SERVICE_TOKEN")
            else:
                monkeypatch.setenv("SERVICE_TOKEN", bad)
            with pytest.raises(InvalidInput, match="SERVICE_TOKEN") as caught:
                model.log_probabilities(records(1, seed=7))
            assert "lines" not in str(caught.value) and model.n_paid == 2
        said = [r.headers["authorization"] for r in server.received]
    assert said == ["Bearer token-0", "Bearer token-1"]


def test_nothing_is_taken_from_the_environment(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    with Hostile(saying(reply(b"", 502))) as proxy, Hostile(answering()) as server:
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        with remote(server.url) as model:
            model.log_probabilities(records(1))
        assert not proxy.received and "authorization" not in server.received[0].headers


def test_cookies_are_not_kept() -> None:
    fine = reply({"probabilities": [[0.5, 0.5]]}, headers=["Set-Cookie: a=b; Path=/"])
    with Hostile(saying(fine)) as server, remote(server.url) as model:
        model.log_probabilities(records(1))
        model.log_probabilities(records(1, seed=2))
        assert "cookie" not in server.received[1].headers


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://host/s3cret", "host/predict", "user:s3cret@host", "", "http://",
        "https://user:s3cret@host/predict", "https://s3cret@host/predict", "http://[::1",
        "http://host:99999/s3cret", "https://host/a b?s3cret", "https://hôst/", "HTTP//s3cret",
        "https://host/\ns3cret", "unix:///var/run/s3cret",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RemoteModel(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"header": "X: {token}"},
        {"token_env": "A", "header": "X {token}"},
        {"token_env": "A", "header": "X: token"},
        {"token_env": "A", "header": "X\r\nY: {token}"},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"rate": 0},
        {"budget": -1},
        {"budget": True},
        {"tolerance": -1},
        {"tolerance": float("nan")},
        {"max_bytes": 0},
        {"outputs": "scores"},
        {"outputs": "labels"},
        {"n_classes": 1},
        {"max_classes": 1},
        {"token_env": "a b"},
        {"token_env": ""},
        {"token_env": "A\n"},
        {"token_env": 7},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: Any) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        RemoteModel("https://host/predict", **settings)


def test_a_token_in_the_place_of_its_variable_s_name_is_not_repeated() -> None:
    for token in ("sk-live-s3cret", "s3cret==", "s3cret token", "7s3cret", "gäs3cret"):
        with pytest.raises(InvalidInput, match="name of an environment variable") as caught:
            RemoteModel("https://host/predict", token_env=token)
        assert "s3cret" not in str(caught.value)
    for key in ("header", "token_env", "url"):
        table = {"url": "https://host/predict", key: ["Authorization: Bearer s3cret"]}
        with pytest.raises(PlanError, match=f"{key} = text in quotes .* got list") as wrong:
            remote_of(table)
        assert "s3cret" not in str(wrong.value)


def test_a_token_does_not_travel_in_the_clear() -> None:
    for host in ("example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com"):
        with pytest.raises(InvalidInput, match="https"):
            RemoteModel(f"http://{host}/predict", token_env="A")
        RemoteModel(f"http://{host}/predict", token_env="A", plain_http_token=True)
        RemoteModel(f"http://{host}/predict")
    for host in ("localhost", "127.0.0.1:80", "[::1]:8000"):
        RemoteModel(f"http://{host}/predict", token_env="A")
    with pytest.raises(InvalidInput, match="host"):
        RemoteModel("https://{token}.example.com/", token_env="A")
    with pytest.raises(InvalidInput, match="token_env"):
        RemoteModel("https://example.com/{token}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_only_certificates_that_are_trusted(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Hostile(answering(), context) as server:
        with remote(server.url) as model, pytest.raises(RemoteError, match="CERTIFICATE"):
            model.log_probabilities(records(1))
        assert model.n_paid == 0
        with remote(server.url, ca_file=certificate) as model:
            assert model.log_probabilities(records(1)).shape == (1, 4)
    with Hostile(trickling(HEAD + b"\r\n"), context) as server:
        with remote(server.url, ca_file=certificate, timeout=0.3) as model:
            began = time.monotonic()
            with pytest.raises(RemoteError):
                model.log_probabilities(records(1))
            assert time.monotonic() - began < 2
    with remote(server.url, ca_file=key) as model, pytest.raises(InvalidInput, match="ca_file"):
        model.log_probabilities(records(1))


# --- the rest -----------------------------------------------------------------------------------


def test_records_that_json_has_no_words_for() -> None:
    with Hostile(answering()) as server, remote(server.url) as model:
        for x in ([[np.nan, 1, 2]], [[np.inf, 1, 2]], np.zeros((0, 3)), [["a", "b", "c"]]):
            with pytest.raises(InvalidInput):
                model.log_probabilities(np.asarray(x))
        with remote(server.url, encode=lambda x, ids: {"x": x}) as other:
            with pytest.raises(InvalidInput, match="encode="):
                other.log_probabilities(records(1))
        assert not server.received
        assert model.log_probabilities(records(2).tolist()).shape == (2, 4)


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RemoteModel("http://127.0.0.1/predict")
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"vestige\[remote\]"):
        model.log_probabilities(records(1))
    assert model.n_paid == 0


def test_a_plan_describes_a_remote_model(tmp_path: Path, token: str) -> None:
    with Hostile(saying(reply({"scores": [[0.6, 0.3]], "names": ["x"]}))) as server:
        table = {
            "url": server.url, "outputs": "probabilities", "n_classes": 2, "batch_size": 8,
            "token_env": "SERVICE_TOKEN", "header": "X-Key: {token}", "timeout": 5, "retries": 0,
            "rate": 100, "budget": 3, "cache": "answers.sqlite", "tolerance": 0.2,
            "max_bytes": 10_000, "max_classes": 9, "inputs_field": "instances",
            "answers_field": "scores", "ids_field": "", "plain_http_token": False,
        }  # fmt: skip
        with remote_of(table, tmp_path) as model:
            answers = model.log_probabilities(records(1))
        np.testing.assert_allclose(np.exp(answers), [[0.6, 0.3]], rtol=1e-12)
        assert list(json.loads(server.received[0].body)) == ["instances"]
        assert server.received[0].headers["x-key"] == token
        assert (tmp_path / "answers.sqlite").is_file()
    with pytest.raises(PlanError, match="'bugdet'"):
        remote_of({"url": server.url, "bugdet": 3})
    with pytest.raises(PlanError, match="budget = a whole number"):
        remote_of({"url": server.url, "budget": "3"})
    with pytest.raises(PlanError, match="url ="):
        remote_of({"budget": 3})
    with pytest.raises(VestigeError, match="batch_size"):
        remote_of({"url": server.url, "batch_size": 0})
