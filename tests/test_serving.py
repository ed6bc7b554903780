"""A model behind our own service: what it answers, whom it lets in, and what it counts."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vestige.defenses import behind
from vestige.errors import BudgetSpent, InvalidInput, MissingExtra, RemoteError
from vestige.models import EstimatorModel, Predictions
from vestige.remote import Backoff, RemoteModel
from vestige.serving import Running, _question, _Refused, app_of, serve

AT_ONCE = Backoff(first=0.0, longest=0.0)


def fitted() -> LogisticRegression:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    return LogisticRegression(C=100).fit(x, (3 * x[:, 0]).round().clip(-1, 1).astype(int) + 1)


def records(n: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, 3))


class Busy:
    """Notices when two ask it at once."""

    def __init__(self) -> None:
        self.n_queries = 0
        self.inside = self.together = 0

    def log_probabilities(self, x: Any) -> np.ndarray[Any, Any]:
        self.inside += 1
        self.together = max(self.together, self.inside)
        time.sleep(0.01)
        self.n_queries += len(x)
        self.inside -= 1
        return np.full((len(x), 2), np.log(0.5))


class Broken:
    """Fails with a secret in its words."""

    n_queries = 0

    def log_probabilities(self, x: Any) -> np.ndarray[Any, Any]:
        raise RuntimeError("s3cret of the machine")


# making the usual one takes longer than a request
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
PLAIN: dict[str, Any] = {"trust_env": False, "verify": NO_TLS}


JSON = "application/json"


def ask(
    url: str, body: Any = None, token: str = "", kind: str = JSON, **more: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Content-Type": kind} if kind else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + "/predict", content=content, headers=headers, **PLAIN, **more)


def stats(url: str, token: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    said = httpx.get(url + "/stats", headers=headers, **PLAIN)
    assert said.status_code == 200
    return dict(said.json())


@pytest.mark.parametrize("outputs", ["probabilities", "log_probabilities"])
def test_a_remote_model_says_what_the_model_says(outputs: Any) -> None:
    x, direct = records(100), EstimatorModel(fitted())
    with Running(app_of(fitted(), outputs=outputs)) as running:
        with RemoteModel(f"{running.url}/predict", outputs=outputs, batch_size=16) as model:
            answers = model.log_probabilities(x)
            np.testing.assert_allclose(answers, direct.log_probabilities(x), rtol=0, atol=1e-9)
            assert stats(running.url) == {"records": 100, "requests": 7, "budget": None}
            assert model.n_queries == 100


def test_numbers_are_read_back_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(5, 0.05), 200)
    direct = Predictions(probabilities=table)
    x = np.arange(200)[:, None]
    with Running(app_of(Predictions(probabilities=table), outputs="log_probabilities")) as running:
        with RemoteModel(f"{running.url}/predict", outputs="log_probabilities") as model:
            np.testing.assert_array_equal(model.log_probabilities(x), direct.log_probabilities(x))
    with Running(app_of(Predictions(probabilities=table))) as running:
        with RemoteModel(f"{running.url}/predict") as model:
            np.testing.assert_allclose(
                model.log_probabilities(x), direct.log_probabilities(x), rtol=0, atol=1e-9
            )


@pytest.mark.parametrize(
    "spec", ["none", "top3", "top1", "round1", "label", "temperature5", "noise0.1"]
)
def test_behind_a_filter_the_numbers_are_those_of_the_direct_handle(spec: str) -> None:
    rng = np.random.default_rng(0)
    # from flat to certain, and some that run out of digits
    logits = rng.normal(size=(400, 8)) * np.repeat([1, 3, 10, 30], 100)[:, None]
    x, model = np.arange(400)[:, None], behind(Predictions(logits=logits), spec, seed=7)
    direct = model.log_probabilities(x)
    with Running(app_of(model)) as running:
        with RemoteModel(f"{running.url}/predict", tolerance=9.0) as served:
            answers = served.log_probabilities(x)
        first = ask(running.url, {"inputs": x[:1].tolist()}).json()["probabilities"][0]
    atol = 1e-9 if spec == "none" else 0.0
    np.testing.assert_allclose(answers, direct, rtol=0, atol=atol)
    if spec == "round1":
        assert all(p == round(p, 1) for p in first)


def test_labels() -> None:
    x, direct = records(20), fitted()
    with Running(app_of(fitted(), outputs="labels")) as running:
        assert ask(running.url, {"inputs": x.tolist()}).json()["n_classes"] == 3
        url = f"{running.url}/predict"
        with RemoteModel(url, outputs="labels", n_classes=3) as model:
            np.testing.assert_array_equal(model.log_probabilities(x).argmax(1), direct.predict(x))


def test_ids_are_echoed_and_health_is_told() -> None:
    with Running(app_of(fitted())) as running:
        said = ask(running.url, {"inputs": records(2).tolist(), "ids": ["b", 7]}).json()
        assert said["ids"] == ["b", 7] and list(said) == ["probabilities", "ids"]
        assert "ids" not in ask(running.url, {"inputs": records(2).tolist()}).json()
        assert httpx.get(running.url + "/health", **PLAIN).json() == {"status": "ok"}
        assert httpx.get(running.url + "/predict", **PLAIN).status_code == 405
        assert httpx.get(running.url + "/docs", **PLAIN).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"", b"hello", b"\xff", b"[" * 4000, b'{"inputs": [[NaN, 1, 2]]}',
        b'{"inputs": [[1e999, 1, 2]]}', [], {}, {"inputs": None}, {"inputs": []},
        {"inputs": [[]]}, {"inputs": [[1, 2, 3], [1, 2]]}, {"inputs": [["a", "b", "c"]]},
        {"inputs": [[1, 2]]}, {"inputs": [1, 2, 3], "ids": "abc"}, {"inputs": [{}]},
        {"inputs": [[None, 1, 2]]}, {"inputs": [[1, 2, 3]], "ids": ["a", "b"]},
        {"inputs": [[1, 2, 3]], "ids": [{}]}, {"inputs": [[10**400, 1, 2]]},
        {"inputs": [[1.5, 2, 10**400]]}, {"inputs": [["1", "2", "3"]]}, {"inputs": [[[]]]},
        {"inputs": [[1, 2, 3], 4]}, {"inputs": [[[[[[[[[[1]]]]]]]]]]}, {"inputs": [[[1, 2, 3], 1]]},
    ],
    ids=lambda body: str(body)[:40],
)  # fmt: skip
def test_a_question_that_is_none_is_422_and_costs_nothing(body: Any, shared: Running) -> None:
    before = stats(shared.url)["records"]
    said = ask(shared.url, body)
    assert said.status_code == 422 and said.json()["detail"].startswith("expected")
    assert stats(shared.url)["records"] == before


def test_texts_get_no_room(shared: Running) -> None:
    # one text of half a megabyte beside a thousand short ones
    body = json.dumps({"inputs": ["a" * 500_000] + ["b"] * 1000}).encode()
    tracemalloc.start()
    try:
        for n in (1001, 2000):
            with pytest.raises(_Refused) as caught:
                _question(body, n, 2**20)
            assert caught.value.status == 422
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        # counted before anything is looked at
        with pytest.raises(_Refused) as caught:
            _question(body, 1000, 2**20)
        assert caught.value.status == 413
    finally:
        tracemalloc.stop()


def test_brackets_are_not_parsed() -> None:
    body = b'{"inputs": [1], "x": [' + b'{"": 0}, ' * 200_000 + b"0]}"
    with pytest.raises(_Refused, match="brackets"):
        _question(body, 10, 2**21)


@pytest.mark.parametrize(
    "records",
    [[1, 2], [[1, 2.5], [3, 4]], [[True], [False]], [[[1, 2], [3, 4]]], [[2**63, 1]], [[1, 0.5]]],
    ids=str,
)
def test_records_are_read_as_numpy_reads_them(records: Any) -> None:
    x, ids = _question(json.dumps({"inputs": records}).encode(), 10, 1000)
    expected = np.array(records)
    assert ids is None and x.dtype == expected.dtype
    np.testing.assert_array_equal(x, expected)


def test_other_kinds_than_json_are_415(shared: Running) -> None:
    body = {"inputs": records(1).tolist()}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        assert ask(shared.url, body, kind=kind).status_code == 415
    assert ask(shared.url, body, kind="Application/JSON; charset=utf-8").status_code == 200


def test_without_tokens_it_answers_to_this_machine_s_names_alone(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(url: str, host: str, token: str = "") -> int:
        headers = {"Host": host, "Content-Type": JSON}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        content = json.dumps({"inputs": records(1).tolist()})
        said = httpx.post(url + "/predict", headers=headers, content=content, **PLAIN)
        both = httpx.get(url + "/stats", headers=headers, **PLAIN).status_code
        assert both == said.status_code
        return said.status_code

    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "",
        "[::1",
        "10.0.0.1",
    ):
        assert answer(shared.url, host) == 403, host
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert answer(shared.url, host) == 200, host
    monkeypatch.setenv("TOKENS", "alpha")
    with Running(app_of(fitted(), token_env="TOKENS")) as running:
        assert answer(running.url, "models.example.com", "alpha") == 200


def test_who_sends_no_whole_request_does_not_keep_others_out() -> None:
    with Running(app_of(fitted()), patience=0.8) as running:
        host, port = running.url.removeprefix("http://").split(":")
        begun = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        idle = [begun + b"\r\n{"] * 8 + [b"", b"POST", begun] * 22
        sockets = [socket.create_connection((host, int(port))) for _ in idle]
        try:
            for one, words in zip(sockets, idle, strict=True):
                one.sendall(words)
            assert httpx.get(running.url + "/health", **PLAIN).status_code == 503
            for _ in range(6):
                time.sleep(0.2)
                for one in sockets:
                    with contextlib.suppress(OSError):  # a byte now and then does not help
                        one.sendall(b"x")
            assert httpx.get(running.url + "/health", **PLAIN).status_code == 200
        finally:
            for one in sockets:
                one.close()


def test_an_answer_may_take_longer_than_a_request() -> None:
    class Slow(Busy):
        def log_probabilities(self, x: Any) -> np.ndarray[Any, Any]:
            time.sleep(0.3)
            return super().log_probabilities(x)

    with Running(app_of(Slow()), patience=0.1) as running, httpx.Client(**PLAIN) as client:
        for wait in (0.0, 0.0, 0.2):
            # on a connection that is kept, too, and on one that was closed meanwhile
            time.sleep(wait)
            assert client.post(running.url + "/predict", json={"inputs": [[1]]}).status_code == 200


@pytest.fixture(scope="module")
def shared() -> Any:
    with Running(app_of(fitted(), max_records=10, max_bytes=5000)) as running:
        yield running


def test_too_much_is_413(shared: Running) -> None:
    assert ask(shared.url, {"inputs": records(10).tolist()}).status_code == 200
    assert ask(shared.url, {"inputs": records(11).tolist()}).status_code == 413
    assert ask(shared.url, b" " * 100_000).status_code == 413
    with RemoteModel(f"{shared.url}/predict", batch_size=11) as model:
        with pytest.raises(RemoteError, match="batch_size"):
            model.log_probabilities(records(11))


def test_only_who_has_a_token_and_each_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENS", "alpha, beta")
    body = {"inputs": records(4).tolist()}
    with Running(app_of(fitted(), token_env="TOKENS", budget=10)) as running:
        for wrong in ("", "gamma", "alpha, beta", "alph"):
            said = ask(running.url, body, wrong)
            assert said.status_code == 401 and said.headers["www-authenticate"] == "Bearer"
        assert httpx.get(running.url + "/stats", **PLAIN).status_code == 401
        headers = {"Authorization": "Basic alpha"}
        assert ask(running.url, body).status_code == 401
        refused = httpx.post(running.url + "/predict", headers=headers, json=body, **PLAIN)
        assert refused.status_code == 401
        assert ask(running.url, body, "alpha").status_code == 200
        assert ask(running.url, body, "alpha").status_code == 200
        assert ask(running.url, body, "alpha").status_code == 429
        assert ask(running.url, body, "beta").status_code == 200
        assert stats(running.url, "alpha") == {"records": 8, "requests": 2, "budget": 10}
        assert stats(running.url, "beta")["records"] == 4
        monkeypatch.setenv("MINE", "beta")
        url = f"{running.url}/predict"
        with RemoteModel(url, token_env="MINE", batch_size=2, backoff=AT_ONCE) as model:
            with pytest.raises(RemoteError, match="429") as caught:
                model.log_probabilities(records(20))
            # the client's count is the service's, and nothing was tried in vain
            assert "times" not in str(caught.value)
            assert model.n_paid == 6 and stats(running.url, "beta")["records"] == 10


def test_a_model_that_fails_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Running(app_of(Broken())) as running:
        said = ask(running.url, {"inputs": [[1, 2]]})
        assert said.status_code == 500 and said.json() == {"detail": "the model failed"}
        assert "s3cret" in caplog.text and "s3cret" not in said.text


def test_a_model_is_asked_by_one_at_a_time() -> None:
    model = Busy()
    with Running(app_of(model)) as running:
        body = {"inputs": [[1.0]] * 3}
        threads = [threading.Thread(target=ask, args=(running.url, body)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.together == 1 and model.n_queries == stats(running.url)["records"] == 24


def test_a_budget_on_either_side_agrees() -> None:
    with Running(app_of(fitted())) as running:
        with RemoteModel(f"{running.url}/predict", budget=25, batch_size=10) as model:
            model.log_probabilities(records(20))
            with pytest.raises(BudgetSpent):
                model.log_probabilities(records(6, seed=2))
            assert stats(running.url)["records"] == model.n_queries == 20


def test_nothing_is_left_running(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = set(threading.enumerate())
    for _ in range(2):
        with Running(app_of(fitted())) as running:
            assert ask(running.url, {"inputs": [[1, 2, 3]]}).status_code == 200
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        ask(running.url, {})
    assert not caplog.records


def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "example.com", "10.0.0.1", ""):
        with pytest.raises(InvalidInput, match="token"):
            serve(fitted(), host=host)
    monkeypatch.delenv("TOKENS", raising=False)
    with pytest.raises(InvalidInput, match="TOKENS"):
        serve(fitted(), host="0.0.0.0", token_env="TOKENS")
    with pytest.raises(InvalidInput, match="name of an environment variable") as caught:
        serve(fitted(), token_env="sk-live-s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"outputs": "logits"}, {"max_records": 0}, {"budget": 0}, {"max_bytes": 1.5}]
)
def test_settings_that_make_no_sense(settings: Any) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        app_of(fitted(), **settings)


def test_noise_that_everybody_can_take_off_is_not_served() -> None:
    for spec in ("noise0.1", "noise0.1+round2"):
        with pytest.raises(InvalidInput, match="secret seed for the Noisy"):
            app_of(behind(EstimatorModel(fitted()), spec))
        app_of(behind(EstimatorModel(fitted()), spec, seed=3))


def test_a_port_that_is_taken() -> None:
    with Running(app_of(fitted())) as running:
        port = int(running.url.rpartition(":")[2])
        with pytest.raises(InvalidInput, match="another port"):
            serve(fitted(), port=port)
    with pytest.raises(InvalidInput, match="expected"):
        serve(fitted(), port=99999)


def test_without_fastapi_or_uvicorn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(fitted())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"vestige\[serve\]"):
        Running(app)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtra, match=r"vestige\[serve\]"):
        app_of(fitted())


SERVE = """
import numpy as np
from vestige.models import Predictions
from vestige.serving import serve
serve(Predictions(probabilities=np.eye(3)), tell=lambda text: print(text, flush=True))
print("ended well")
"""


@pytest.mark.slow
def test_serving_until_interrupted() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    line = program.stdout.readline()
    url = line.split("/predict")[0]
    assert ask(url, {"inputs": [[1]]}, timeout=20).json()["probabilities"][0][1] > 0.99
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert program.returncode == 0 and out == "ended well\n" and err == ""
