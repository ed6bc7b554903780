"""`load`, `raw`, `path` and `prepare`: where a set is looked for, and what happens without it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import needs, real_folder

from vestige import datasets
from vestige.datasets import fetch, images
from vestige.datasets.fetch import Original
from vestige.datasets.files import Arrays, Facts
from vestige.errors import DamagedFile, DatasetUnavailable, InvalidInput, StoreError
from vestige.records import Records

DATA = bytes(range(12)) + bytes([0, 1, 1])
FETCHED = (
    "adult",
    "breast_cancer_wisconsin_original",
    "location30",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "orl_faces",
)


class Answer(io.BytesIO):
    """What a server sends; written out so that `fetch` sees only what it declares."""

    headers: dict[str, str] = {}


def pack(originals: Mapping[str, bytes]) -> dict[str, Any]:
    values = np.frombuffer(originals["tiny.bin"], dtype=np.uint8)
    return {"x": values[:12].reshape(3, 4), "y": values[12:].astype(np.int64)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A data set of three records on a made-up web, which the test may change."""
    web = {"https://data.example/tiny.bin": DATA}
    pinned = Original("tiny.bin", 15, hashlib.sha256(DATA).hexdigest(), tuple(web))
    row = datasets._Set(
        datasets.Description("tiny", "Tiny", 3, (4,), (), "", "", ""),
        lambda arrays: Records.from_arrays(np.asarray(arrays.x) / 11, arrays.y),
        Facts((3, 4), (1, 2), 66),
        originals=(pinned,),
        pack=pack,
    )
    monkeypatch.setitem(datasets._SETS, "tiny", row)
    monkeypatch.setattr(fetch, "open_url", lambda url, timeout: Answer(web[url]))
    return web


def test_every_set_is_described() -> None:
    assert datasets.names()[:2] == ("digits", "breast_cancer")
    for name in datasets.names():
        described = datasets.describe(name)
        assert described.name == name
        assert described.title and described.source and described.license and described.how_to_get
        assert ("synthetic" in name) == described.title.startswith("Synthetic")
        assert not described.image or np.prod(described.image) == np.prod(described.shape)


@pytest.mark.parametrize(
    "name", ["digits", "breast_cancer", "synthetic_gaussian", "synthetic_classification"]
)
def test_built_in_sets_need_nothing_and_are_as_described(name: str, tmp_path: Path) -> None:
    as_described(name, datasets.load(name, tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in FETCHED])
def test_real_sets_are_as_described(name: str) -> None:
    as_described(name, datasets.load(name))


def as_described(name: str, records: Records) -> None:
    described = datasets.describe(name)
    assert len(records) == described.n_records
    assert records.x.shape[1:] == described.shape
    assert records.classes == described.classes
    assert records.columns == () or len(records.columns) == described.shape[0]
    np.testing.assert_array_equal(records.ids, np.arange(len(records)))
    assert np.isfinite(records.x[:100]).all()
    assert set(records.y.tolist()) == set(range(len(described.classes)))


def test_a_set_is_looked_for_in_root_then_vestige_data_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VESTIGE_DATA", raising=False)
    assert datasets.path("mnist") == tmp_path / "cache" / "vestige" / "mnist.npz"
    monkeypatch.setenv("VESTIGE_DATA", str(tmp_path / "named"))
    assert datasets.path("mnist") == tmp_path / "named" / "mnist.npz"
    assert datasets.path("mnist", tmp_path) == tmp_path / "mnist.npz"
    assert datasets.path("adult_codes", tmp_path) == tmp_path / "adult.npz"


def test_a_file_of_a_built_in_name_comes_before_the_built_in_one(tmp_path: Path) -> None:
    made = images.builtin_digits()
    x = made.x[::-1].copy()
    np.savez(tmp_path / "digits.npz", x=x, y=made.y)
    np.testing.assert_array_equal(datasets.raw("digits", tmp_path).x, x)
    np.savez(tmp_path / "digits.npz", x=x[1:], y=made.y[1:])
    with pytest.raises(DamagedFile, match=r"digits\.npz holds another data set"):
        datasets.load("digits", tmp_path)


def test_a_file_of_ones_own_is_given_as_it_is(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.uint8).reshape(4, 2)
    np.savez(
        tmp_path / "mine.npz",
        x=x,
        y=np.array([0, 1, 1, 0]),
        columns=np.array(["a", "b"]),
        classes=np.array(["no", "yes"]),
    )
    records = datasets.load("mine", tmp_path)
    np.testing.assert_array_equal(records.x, x)
    assert isinstance(records.x, np.memmap)
    assert (records.columns, records.classes) == (("a", "b"), ("no", "yes"))


@pytest.mark.parametrize("name", ["digit", "../adult", "", "a/b", ".hidden"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="expected one of the data sets digits, "):
        datasets.load(name, tmp_path / "root")
    with pytest.raises(InvalidInput, match="expected one of the data sets"):
        datasets.describe(name)
    with pytest.raises(InvalidInput, match="expected one of the data sets"):
        datasets.prepare(tmp_path / "root", [name])
    assert not (tmp_path / "root").exists()


def test_a_name_does_not_reach_out_of_the_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((2, 2)), y=np.array([0, 1]))
    (tmp_path / "root").mkdir()
    for name in ("../mine", str(tmp_path / "mine")):
        with pytest.raises(InvalidInput, match="expected one of the data sets"):
            datasets.load(name, tmp_path / "root")


def test_a_made_up_world_has_no_file() -> None:
    with pytest.raises(InvalidInput, match="made up"):
        datasets.raw("synthetic_gaussian")


def test_without_file_and_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    # a package of the system may have one
    here = {n for n in FETCHED if any(Path(o.local).is_file() for o in datasets._SETS[n].originals)}
    for name in {*FETCHED, "adult_codes"} - here:
        with pytest.raises(DatasetUnavailable) as caught:
            datasets.load(name, folder)
        message = str(caught.value)
        file = datasets.path(name, folder)
        assert f"there is no {file}" in message
        assert "the network is unreachable" in message
        assert "set VESTIGE_DATA" in message and "vestige data prepare" in message
        assert "\n" not in message
    assert not folder.exists()


def test_a_fetched_set_is_kept_and_not_fetched_again(
    tiny: dict[str, bytes], tmp_path: Path
) -> None:
    first = datasets.load("tiny", tmp_path / "new")
    np.testing.assert_array_equal(first.x * 11, np.arange(12).reshape(3, 4))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tiny.npz"]
    tiny.clear()
    assert datasets.load("tiny", tmp_path / "new").digest() == first.digest()


@pytest.mark.parametrize("page", [DATA[:-1], DATA[:-1] + b"\2", b""])
def test_a_failed_fetch_leaves_nothing(tiny: dict[str, bytes], tmp_path: Path, page: bytes) -> None:
    tiny["https://data.example/tiny.bin"] = page
    with pytest.raises(DatasetUnavailable, match=r"tiny\.bin could not be fetched"):
        datasets.load("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tiny: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="expected to write"):
        datasets.load("tiny", tmp_path / "file")


def test_prepare_writes_what_it_can_and_names_what_it_cannot(
    tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []

    def opener(url: str, timeout: float) -> Answer:
        if url not in tiny:
            raise OSError("the network is unreachable")
        return Answer(tiny[url])

    monkeypatch.setattr(fetch, "open_url", opener)
    with pytest.raises(DatasetUnavailable, match="mnist is not on this machine"):
        datasets.prepare(tmp_path, ["mnist", "tiny", "digits"], lambda *a: told.append(a))
    assert told == [("tiny", 15, 0)]
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.npz"]
    assert datasets.prepare(tmp_path, ["tiny", "digits"]) == (tmp_path / "tiny.npz",)


def test_prepare_checks_what_is_there_and_leaves_it_alone(
    tiny: dict[str, bytes], tmp_path: Path
) -> None:
    (made,) = datasets.prepare(tmp_path, ["tiny"])
    stamp = made.stat().st_mtime_ns
    datasets.prepare(tmp_path, ["tiny"])
    assert made.stat().st_mtime_ns == stamp
    np.savez(made, x=np.zeros((3, 4)), y=np.zeros(3, dtype=int))
    with pytest.raises(DamagedFile, match="another data set"):
        datasets.prepare(tmp_path, ["tiny"])


@needs(*FETCHED)
def test_prepare_leaves_the_real_files_alone() -> None:
    files = datasets.prepare(real_folder())
    assert sorted(f.stem for f in files) == sorted(FETCHED)


@needs("orl_faces")
def test_a_real_set_comes_over_the_web_as_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = datasets.raw("orl_faces", real_folder())
    page = io.BytesIO()
    with zipfile.ZipFile(page, "w") as archive:
        for i, picture in enumerate(expected.x):
            name = f"orl-faces-main/s{i // 10 + 1}/{i % 10 + 1}.pgm"
            archive.writestr(name, images._PGM_HEADER + picture.tobytes())
    monkeypatch.setattr(fetch, "open_url", lambda url, timeout: Answer(page.getvalue()))
    records = datasets.load("orl_faces", tmp_path)
    assert records.digest() == datasets.load("orl_faces", real_folder()).digest()
    got: Arrays = datasets.raw("orl_faces", tmp_path)
    np.testing.assert_array_equal(got.x, expected.x)


def test_the_public_names_are_there() -> None:
    for name in datasets.__all__:
        assert getattr(datasets, name).__doc__ or name == "Progress"
    assert sorted(datasets.__all__) == datasets.__all__
