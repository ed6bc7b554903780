"""What is drawn from a key, the same everywhere; and files that keep it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vestige.errors import DamagedFile, InvalidInput, StoreError
from vestige.watermarks import Key
from vestige.watermarks.keys import Draws, canonical, read_document, write_document


def test_draws_are_philoxs_words() -> None:
    # Random123's known answer: counter 0 is skipped by NumPy, so that the first block is counter 1
    first = np.random.Philox(key=5).random_raw(3)
    assert Draws(5).words(3).tolist() == first.tolist()
    words = Draws(5)
    assert [*words.words(1), *words.words(2)] == first.tolist()


def test_numbers_are_uniform_and_normal() -> None:
    draws = Draws(7)
    u, n = draws.uniform(200, 100), draws.normal(200, 100)
    assert u.shape == n.shape == (200, 100) and 0 < u.min() and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(n.ravel(), "norm").pvalue > 1e-3
    word = int(Draws(7).words(1)[0])
    assert u[0, 0] == ((word >> 11) + 0.5) / 2**53


def test_subsets_are_of_the_size_asked_for_and_each_as_likely() -> None:
    draws = Draws(1)
    counts = np.zeros(10)
    for _ in range(2000):
        some = draws.some(10, 3)
        assert len(set(some.tolist())) == 3 and (np.diff(some) > 0).all()
        counts[some] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_purposes_say_nothing_of_each_other() -> None:
    key = Key.of(1)
    assert key.derive("a") != key.derive("b") != Key.of(2).derive("b")
    # a purpose ends where what it is about begins
    assert key.derive("ab", b"c") != key.derive("a", b"bc")
    assert key.draws("a").words(4).tolist() != key.draws("b").words(4).tolist()
    assert key.seed("x") < 2**63 and Key.new() != Key.new()


def test_a_key_is_never_printed() -> None:
    key = Key.of(3)
    assert key.secret.hex() not in repr(key) and key.name in repr(key)
    assert key.secret.hex()[:16] != key.name
    with pytest.raises(InvalidInput, match="a key of 32 bytes, got another; use Key.new"):
        Key(b"short")


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    key, path = Key.new(), tmp_path / "deep" / "key.json"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600 and Key.load(path) == key
    with pytest.raises(StoreError, match="expected no file at .*; name another"):
        Key.new().save(path)
    assert Key.load(path) == key
    os.chmod(path, 0o644)
    with pytest.raises(InvalidInput, match="readable by its owner only.*chmod 600"):
        Key.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format":"other"}', b'{"format":"vestige.key.v1","key":"zz"}', b"\xff"],
)
def test_files_that_hold_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    os.chmod(path, 0o600)
    with pytest.raises(DamagedFile, match="expected"):
        Key.load(path)
    with pytest.raises(InvalidInput, match="found none; check the path"):
        Key.load(tmp_path / "none.json")


def test_documents_have_one_spelling(tmp_path: Path) -> None:
    document = {"format": "f", "b": [1, 2.5], "a": "ü"}
    assert canonical(document) == b'{"a":"\\u00fc","b":[1,2.5],"format":"f"}'
    write_document(tmp_path / "d.json", document)
    assert (tmp_path / "d.json").stat().st_mode & 0o044
    assert read_document(tmp_path / "d.json", "f") == document
    assert json.loads((tmp_path / "d.json").read_text()) == document
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"x": float("nan")})


def test_the_last_word_is_no_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Key.of(1).draws("syn")
    top = np.array([2**64 - 1, 0], dtype=np.uint64)
    monkeypatch.setattr(draws, "words", lambda n: top)
    assert draws.uniform(2)[0] < 1 and draws.uniform(2)[1] > 0
    assert np.isfinite(draws.normal(2)).all()


def test_a_path_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected to write .*file/key.json, but"):
        write_document(tmp_path / "file" / "key.json", {"format": "f"})


def test_keys_that_a_group_can_read_are_refused(tmp_path: Path) -> None:
    key, path = Key.new(), tmp_path / "key.json"
    key.save(path)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(InvalidInput, match="readable by its owner only"):
            Key.load(path)


def test_the_seed_of_a_decoder_is_part_of_the_format() -> None:
    assert Key.of(1).seed("decoder.0") == 892112136841420222
