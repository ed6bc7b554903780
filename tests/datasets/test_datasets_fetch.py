"""Fetching: what arrives is checked, every wait ends, and a failure leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import tracemalloc
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest

from vestige.datasets import fetch as module
from vestige.datasets.fetch import Original, Response, fetch_originals, open_url
from vestige.errors import DatasetUnavailable, StoreError

DATA = bytes(range(256)) * 40
BASE = "https://data.example/"


def original(*urls: str, **changes: object) -> Original:
    made = Original(
        "a.data", len(DATA), hashlib.sha256(DATA).hexdigest(), urls or (BASE + "a.data",)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class Web:
    """A made-up web: address -> bytes or an exception; counts what was asked for."""

    pages: dict[str, bytes | Exception]
    lengths: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, url: str, timeout: float) -> AbstractContextManager[Response]:
        self.asked.append(url)
        page = self.pages[url]
        if isinstance(page, Exception):
            raise page
        answer = io.BytesIO(page)
        answer.headers = {"Content-Length": str(self.lengths.get(url, len(page)))}  # type: ignore[attr-defined]
        return answer  # type: ignore[return-value]


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("url", "page"),
    [
        (BASE + "a.data", DATA),
        (BASE + "a.data.gz", gzip.compress(DATA)),
        (BASE + "set.tgz", tar({"set/README": b"hello", "set/a.data": DATA})),
        (BASE + "set.tar.gz", tar({"a.data": DATA})),
        (BASE + "set.zip", zipped({"other/xa.data": b"no", "set/a.data": DATA})),
    ],
)
def test_the_original_comes_out_of_every_container(url: str, page: bytes) -> None:
    assert fetch_originals([original(url)], opener=Web({url: page})) == {"a.data": DATA}


def test_members_are_joined_in_the_order_asked_for() -> None:
    files = {"x/s11/1.pgm": b"no", "x/s1/2.pgm": DATA[100:], "x/s1/1.pgm": DATA[:100]}
    wanted = original(BASE + "f.zip", BASE + "f.tgz", members=("s1/1.pgm", "s1/2.pgm"))
    for url, page in ((BASE + "f.zip", zipped(files)), (BASE + "f.tgz", tar(files))):
        assert (
            fetch_originals([replace(wanted, urls=(url,))], opener=Web({url: page}))["a.data"]
            == DATA
        )


def test_an_archive_of_several_originals_comes_once() -> None:
    url = BASE + "set.tgz"
    parts = {"b1.bin": b"one", "b2.bin": b"two"}
    web = Web({url: tar(parts)})
    pinned = [Original(n, 3, hashlib.sha256(d).hexdigest(), (url,)) for n, d in parts.items()]
    assert fetch_originals(pinned, opener=web) == parts
    assert web.asked == [url]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (DATA[:-1] + b"!", "expected sha256"),
        (DATA[:-1], f"expected {len(DATA)} bytes, got {len(DATA) - 1}"),
        (DATA + b"!", f"expected {len(DATA)} bytes, got {len(DATA) + 1}"),
        (TimeoutError("timed out"), "no answer within 20 s"),
        (URLError(TimeoutError("timed out")), "no answer within 20 s"),
        (URLError("unreachable"), "unreachable"),
        (ConnectionResetError(104, "reset by peer"), "reset by peer"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_address_is_tried(
    page: bytes | Exception, message: str
) -> None:
    first, second = BASE + "a.data", "https://mirror.example/a.data"
    web = Web({first: page, second: DATA})
    assert fetch_originals([original(first, second)], opener=web)["a.data"] == DATA
    assert web.asked == [first, second]
    with pytest.raises(
        DatasetUnavailable, match=f"a.data could not be .*data.example: .*{message}"
    ):
        fetch_originals([original(first)], opener=web)


@pytest.mark.parametrize("name", ["a.data.gz", "set.tgz", "set.zip"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_a_truncated_archive_is_refused(name: str, kept: float) -> None:
    whole = {
        "a.data.gz": gzip.compress(DATA),
        "set.tgz": tar({"a.data": DATA}),
        "set.zip": zipped({"a.data": DATA}),
    }[name]
    page = whole[: int(kept if kept > 1 else kept * len(whole))]
    with pytest.raises(DatasetUnavailable, match="damaged archive|expected .* bytes"):
        fetch_originals([original(BASE + name)], opener=Web({BASE + name: page}))


def test_a_connection_cut_off_early_is_named() -> None:
    url = BASE + "a.data"
    web = Web({url: DATA[:50]}, lengths={url: len(DATA)})
    with pytest.raises(DatasetUnavailable, match=f"cut off after 50 of {len(DATA)} bytes"):
        fetch_originals([original(url)], opener=web)


def test_more_than_the_limit_is_not_taken() -> None:
    url = BASE + "a.data"
    with pytest.raises(DatasetUnavailable, match="expected at most 100 bytes"):
        fetch_originals([original(url, limit=100)], opener=Web({url: DATA}))


@pytest.mark.parametrize("name", ["a.data.gz", "set.tgz", "set.zip"])
def test_a_bomb_is_unpacked_no_further_than_the_size(name: str) -> None:
    bomb = b"\0" * 20_000_000
    page = {
        "a.data.gz": gzip.compress(bomb),
        "set.tgz": tar({"a.data": bomb}),
        "set.zip": zipped({"a.data": bomb}),
    }[name]
    web = Web({BASE + name: page})
    tracemalloc.start()
    with pytest.raises(DatasetUnavailable, match=rf"expected {len(DATA)} bytes, got (more|10241)"):
        fetch_originals([original(BASE + name)], opener=web)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))  # half a minute passes at every look
    monkeypatch.setattr("vestige.datasets.fetch.time.monotonic", lambda: next(clock))

    class Trickle(io.BytesIO):
        headers: dict[str, str] = {}

        def read1(self, size: int | None = -1, /) -> bytes:
            return b"!"

    with pytest.raises(DatasetUnavailable, match="slower than 50 kB/s"):
        fetch_originals([original()], opener=lambda url, timeout: Trickle())


def test_progress_is_told_of_every_byte() -> None:
    told: list[tuple[str, int, int]] = []
    url = BASE + "a.data"
    fetch_originals([original(url)], opener=Web({url: DATA}), progress=lambda *a: told.append(a))
    assert told[-1] == (url, len(DATA), len(DATA))
    assert [t[1] for t in told] == sorted(t[1] for t in told)


def test_nothing_is_left_in_the_scratch_folder(tmp_path: Path) -> None:
    url = BASE + "a.data"
    seen = []

    def watching(address: str, timeout: float) -> AbstractContextManager[Response]:
        seen.append(list(tmp_path.iterdir()))  # what a kill at this moment would leave
        return Web({url: DATA[:-1]})(address, timeout)

    with pytest.raises(DatasetUnavailable):
        fetch_originals([original(url)], opener=watching, scratch=tmp_path)
    assert seen == [[]]
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected to write in"):
        fetch_originals([original()], opener=Web({}), scratch=tmp_path / "absent")


def test_a_tar_link_is_not_followed() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.data")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(info)
    url = BASE + "set.tgz"
    with pytest.raises(DatasetUnavailable, match="got 0"):
        fetch_originals([original(url)], opener=Web({url: out.getvalue()}))


# --- over a socket of this machine ---------------------------------------------------------------

Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def server(handle: Handler) -> Iterator[str]:
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            handle(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/a.data"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def answer(request: http.server.BaseHTTPRequestHandler, data: bytes, length: int) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length))
    request.end_headers()
    request.wfile.write(data)


def test_a_whole_answer_is_taken() -> None:
    agents = []

    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        agents.append(request.headers["User-Agent"])
        answer(request, DATA, len(DATA))

    with server(handle) as url:
        assert fetch_originals([original(url)], opener=open_url)["a.data"] == DATA
    assert agents == ["vestige"]


def test_a_connection_that_closes_early_is_refused() -> None:
    with (
        server(lambda request: answer(request, DATA[:99], len(DATA))) as url,
        pytest.raises(DatasetUnavailable, match="cut off"),
    ):
        fetch_originals([original(url)], opener=open_url)


def test_a_chunked_answer_that_closes_early_is_refused() -> None:
    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"5\r\nhello\r\n40\r\nhalf")

    with server(handle) as url, pytest.raises(DatasetUnavailable, match="cut off|bytes"):
        fetch_originals([original(url)], opener=open_url)


def test_a_silent_server_is_given_up() -> None:
    done = threading.Event()

    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        done.wait()

    with server(handle) as url:
        with pytest.raises(DatasetUnavailable, match=r"no answer within 0\.2 s"):
            fetch_originals([original(url)], opener=open_url, timeout=0.2)
        done.set()


def test_a_server_that_stops_halfway_is_given_up() -> None:
    done = threading.Event()

    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        answer(request, DATA[:99], len(DATA))
        request.wfile.flush()
        done.wait()

    with server(handle) as url:
        with pytest.raises(DatasetUnavailable, match=r"no answer within 0\.2 s"):
            fetch_originals([original(url)], opener=open_url, timeout=0.2)
        done.set()


def test_the_time_to_wait_reaches_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def watched(self: object, request: object, timeout: float) -> None:
        waits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", watched)
    with pytest.raises(DatasetUnavailable, match="no answer within 7 s"):
        fetch_originals([original()], opener=open_url, timeout=7)
    assert waits == [7]


def test_an_error_page_is_not_data() -> None:
    with (
        server(lambda request: request.send_error(404)) as url,
        pytest.raises(DatasetUnavailable, match="HTTP 404"),
    ):
        fetch_originals([original(url)], opener=open_url)


def test_a_redirect_to_http_is_refused() -> None:
    asked = []

    def handle(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_response(302)
        request.send_header("Location", "/elsewhere")
        request.end_headers()

    with server(handle) as url, pytest.raises(DatasetUnavailable, match="redirects to http"):
        fetch_originals([original(url)], opener=open_url)
    assert asked == ["/a.data"]


def test_a_redirect_to_https_is_followed() -> None:
    handler = module._OnlyEncrypted()
    request = Request(BASE + "a.data", headers={"User-Agent": "vestige"})
    to = handler.redirect_request(
        request, io.BytesIO(), 302, "Found", Message(), "https://mirror.example/a.data"
    )
    assert to is not None and to.full_url == "https://mirror.example/a.data"


@pytest.mark.parametrize(
    "url",
    [
        "http://data.example/a",
        "http://192.0.2.1/a",
        "http://127.0.0.1.example/a",
        "ftp://127.0.0.1/a",
        "file:///a",
    ],
)
def test_an_address_that_is_not_encrypted_is_not_opened(url: str) -> None:
    with pytest.raises(URLError, match="expected an https address"):
        open_url(url, 1.0)


def test_what_a_package_of_the_system_has_put_there_is_taken_first(tmp_path: Path) -> None:
    place, url = tmp_path / "a.data.gz", BASE + "a.data"
    place.write_bytes(gzip.compress(DATA))
    pinned = replace(original(url), local=str(place))
    assert fetch_originals([pinned], opener=Web({}))["a.data"] == DATA
    place.write_bytes(gzip.compress(DATA[::-1]))
    assert fetch_originals([pinned], opener=Web({url: DATA}))["a.data"] == DATA
    with pytest.raises(DatasetUnavailable, match="a.data.gz: expected sha256"):
        fetch_originals([pinned], opener=Web({url: URLError("unreachable")}))
