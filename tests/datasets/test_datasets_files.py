"""The .npz reader: maps what it can, and names what is wrong with everything else."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vestige.datasets import files
from vestige.datasets.files import Facts, read_npz, write_npz
from vestige.errors import DamagedFile, DatasetUnavailable, StoreError

X = np.arange(24, dtype=np.uint8).reshape(6, 4)
Y = np.array([0, 0, 1, 1, 1, 2])
FACTS = Facts(shape=(6, 4), counts=(2, 3, 1), total=276)


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_was_written_is_read_and_x_stays_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a" / "set.npz"
    split = np.array([0, 0, 0, 0, 1, 1], dtype=np.uint8)
    write_npz(path, {"x": X, "y": Y, "split": split, "columns": np.array(["a", "b", "c", "d"])})
    got = read_npz(path, FACTS)
    assert isinstance(got.x, np.memmap)
    np.testing.assert_array_equal(got.x, X)
    np.testing.assert_array_equal(got.y, Y)
    np.testing.assert_array_equal(got.split, split)
    assert got.names("columns") == ("a", "b", "c", "d")
    assert got.names("classes") == ()
    assert [p.name for p in path.parent.iterdir()] == ["set.npz"]


def test_writing_into_a_mapped_array_leaves_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", x=X, y=Y)
    read_npz(path).x[:] = 0
    np.testing.assert_array_equal(read_npz(path).x, X)


@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i4", "f4", "f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_array_reads_as_numpy_reads_it(
    tmp_path: Path, dtype: str, order: Any
) -> None:
    x = np.asarray(X % 7, dtype=dtype, order=order)
    got = read_npz(write(tmp_path / "set.npz", x=x, y=Y)).x
    np.testing.assert_array_equal(got, np.load(tmp_path / "set.npz")["x"])
    assert got.dtype == x.dtype
    assert got.flags.aligned


def test_a_large_array_is_mapped_even_where_it_is_not_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "set.npz", x=X.astype(np.float64), y=Y)
    assert not isinstance(read_npz(path).x, np.memmap)
    monkeypatch.setattr(files, "_COPIED_BELOW", 100)
    got = read_npz(path).x
    assert isinstance(got, np.memmap) and not got.flags.aligned
    np.testing.assert_array_equal(got, X)
    np.testing.assert_array_equal(got[[3, 1]] @ np.ones(4), X[[3, 1]].sum(axis=1))


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=X, y=Y)
    got = read_npz(tmp_path / "set.npz", FACTS).x
    assert not isinstance(got, np.memmap)
    np.testing.assert_array_equal(got, X)
    got[0, 0] = 1  # may be written to, like any array


def test_no_records_are_read_as_none(tmp_path: Path) -> None:
    got = read_npz(write(tmp_path / "set.npz", x=X[:0], y=Y[:0]))
    assert got.x.shape == (0, 4) and got.y.shape == (0,)


def test_an_absent_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable, match=r"expected the file set\.npz"):
        read_npz(tmp_path / "set.npz")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fraction=st.floats(0, 0.999))
def test_every_truncation_is_damage(tmp_path: Path, fraction: float) -> None:
    whole = write(tmp_path / "set.npz", x=X, y=Y).read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(DamagedFile, match=r"cut\.npz is damaged"):
        read_npz(cut)


def test_a_flipped_byte_of_the_arrays_is_damage(tmp_path: Path) -> None:
    x = np.resize(X, (6, 20_000))  # more than a zip reader reads ahead
    path = write(tmp_path / "set.npz", x=x, y=Y)
    whole = path.read_bytes()
    starts = [whole.index(x.tobytes()), whole.index(Y.astype(np.int64).tobytes())]
    for at in (starts[0], starts[0] + x.size - 1, starts[1], starts[1] + 47):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedFile, match="CRC"):
            read_npz(path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trap),)

    np.savez(tmp_path / "set.npz", x=X, y=np.array([Trap()] * 6, dtype=object))
    with pytest.raises(DamagedFile, match="pickled"):
        read_npz(tmp_path / "set.npz")
    assert not trap.exists()


def test_a_header_that_claims_more_than_there_is_is_damage(tmp_path: Path) -> None:
    head = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (2**50, 4)}
    np.lib.format.write_array_header_1_0(head, claim)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", head.getvalue() + X.tobytes())
    with pytest.raises(DamagedFile, match=r"x\.npy of \d+ bytes for shape"):
        read_npz(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "no 'y'"),
        ({"y": Y}, "no 'x'"),
        ({"x": X, "y": Y[:5]}, "as many labels as records, got 5 and 6"),
        ({"x": X, "y": Y, "split": Y[:5]}, "as many labels as records"),
        ({"x": X, "y": Y - 1}, "class numbers"),
        ({"x": X, "y": Y + 0.5}, "class numbers"),
        ({"x": X, "y": Y[:, None]}, "class numbers"),
        ({"x": X[:, 0], "y": Y}, "x as numbers"),
        ({"x": X.astype(str), "y": Y}, "x as numbers"),
    ],
)
def test_arrays_that_are_no_data_set_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DamagedFile, match=message):
        read_npz(write(tmp_path / "set.npz", **arrays))


def test_a_file_that_is_no_zip_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    for content in (b"", b"\x80\x04.", b"PK\x03\x04 but nothing else"):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match="damaged or another file"):
            read_npz(path)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :3], Y, r"expected shape \(6, 4\), got \(6, 3\)"),
        (X, np.array([0, 0, 0, 1, 1, 2]), r"expected class counts \(2, 3, 1\), got \(3, 2, 1\)"),
        (X + np.eye(6, 4, dtype=np.uint8), Y, "expected sum 276, got 280"),
    ],
)
def test_other_contents_under_a_known_name_are_refused(
    tmp_path: Path, x: Any, y: Any, message: str
) -> None:
    with pytest.raises(DamagedFile, match=f"holds another data set.*{message}"):
        read_npz(write(tmp_path / "set.npz", x=x, y=y), FACTS)


def test_missing_columns_and_categories_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", x=X, y=Y, columns=np.array(["a", "b", "c", "e"]))
    with pytest.raises(DamagedFile, match="expected columns"):
        read_npz(path, Facts((6, 4), (2, 3, 1), columns=("a", "b", "c", "d")))
    with pytest.raises(DamagedFile, match="cat_a"):
        read_npz(path, Facts((6, 4), (2, 3, 1), extra=("cat_a",)))


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "set.npz", x=X, y=Y)

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StoreError, match="No space left"):
        write_npz(path, {"x": X + 1, "y": Y})
    assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]
    np.testing.assert_array_equal(read_npz(path).x, X)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="expected to write set.npz in"):
        write_npz(tmp_path / "file" / "set.npz", {"x": X, "y": Y})
