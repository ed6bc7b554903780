"""Data sets on disk: uncompressed .npz files, mapped instead of read, and checked before use.

A stored (not compressed) member of a zip file is a run of bytes, so an array inside an .npz can be
memory-mapped at its offset: opening CIFAR-10 costs no memory. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vestige.errors import DamagedFile, DatasetUnavailable, StoreError

__all__ = ["Arrays", "Facts", "read_npz", "write_npz"]

_CHUNK = 2**20
_COPIED_BELOW = 2**24
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a data set's file holds, as stored.

    Attributes:
        x: (n, ...) inputs, memory-mapped copy-on-write where the file allows it.
        y: (n,) int64 class labels from 0.
        split: (n,) 0 = published training row, 1 = published test row; None where the set was
            published without a split.
        extra: every other array of the file (`columns`, `cat_*`, `memguard_order`, ...).
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    split: NDArray[np.uint8] | None = None
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def names(self, key: str) -> tuple[str, ...]:
        """The texts of an extra array (column or category names); () where there is none."""
        return tuple(str(v) for v in self.extra[key]) if key in self.extra else ()


@dataclass(frozen=True)
class Facts:
    """What is known of a public set's content: enough to tell it from any other file.

    Attributes:
        shape: of x.
        counts: records of each class, in the order of the labels.
        total: the sum of x, exact for integers; None where x is not integer.
        columns: what the file must hold as `columns`; () where it need not.
        extra: further arrays that the file must hold besides x and y.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    total: int | None = None
    columns: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def read_npz(path: Path, facts: Facts | None = None) -> Arrays:
    """Read a data set's file; x stays on disk where it was stored uncompressed.

    Args:
        path: an .npz file with `x` (n, ...), `y` (n,) and optionally `split` (n,) and others.
        facts: what the file of this name is known to hold.

    Raises:
        DatasetUnavailable: no such file.
        DamagedFile: truncated, altered, not an .npz, pickled objects inside, x and y of different
            lengths, labels that are not integers from 0, or other contents than the known ones.
        StoreError: the file cannot be opened.
    """
    found = _members(path)
    missing = [f"'{key}'" for key in ("x", "y") if key not in found]
    if missing:
        raise _damaged(path, f"expected the arrays x and y, got no {' and no '.join(missing)}")
    x, y, split = found.pop("x"), found.pop("y"), found.pop("split", None)
    _check_form(path, x, y, split)
    arrays = Arrays(x, y.astype(np.int64), None if split is None else split.astype(np.uint8), found)
    if facts is not None:
        _check_facts(path, arrays, facts)
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays uncompressed; `path` is at any time absent, the old file or all of the new one.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            # np.savez takes arrays only by keyword, and its own arguments cannot be told apart
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"expected to write {path.name} in {path.parent}, got: {error.strerror or error}; free "
            "space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{path} is damaged or another file: {what}; remove it and prepare it again")


def _members(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info, file)
                for info in archive.infolist()
            }
    except FileNotFoundError:
        raise DatasetUnavailable(
            f"expected the file {path.name} in {path.parent}, got none; put it there"
        ) from None
    except OSError as error:
        raise StoreError(
            f"expected to read {path}, got: {error.strerror or error}; check its permissions"
        ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _damaged(path, f"expected a whole .npz of plain arrays, got: {error}") from error


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: IO[bytes]
) -> NDArray[Any]:
    """One array: mapped where its bytes lie in the file as they are, else read."""
    with archive.open(info) as member:
        shape, fortran, dtype = _array_header(member)
        start = member.tell()
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        # checked before anything is allocated: a damaged header may claim any shape
        if start + size != info.file_size:
            raise ValueError(f"{info.filename} of {info.file_size} bytes for shape {shape}")
        order: Literal["F", "C"] = "F" if fortran else "C"
        offset = _data_offset(info, file) + start
        # numpy.savez does not align: small arrays are copied, so that only large ones are slower
        worthwhile = size >= _COPIED_BELOW or (size > 0 and offset % dtype.alignment == 0)
        if info.compress_type != zipfile.ZIP_STORED or not worthwhile:
            data = bytearray(member.read())
            return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)
        while member.read(_CHUNK):  # reading to the end checks the zip's own CRC-32
            pass
    # copy-on-write: the array can be handed to anything, and the file stays as it is
    mapped: NDArray[Any] = np.memmap(path, dtype, "c", offset, shape, order)
    return mapped


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version not in _HEADER_READERS:
        raise ValueError(f"an array of format {version}")
    shape, fortran, dtype = _HEADER_READERS[version](member)
    if dtype.hasobject:
        raise ValueError("pickled Python objects, which are never loaded")
    return shape, fortran, dtype


def _data_offset(info: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Where a member's bytes begin: its local header may differ in length from the directory's."""
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
    return info.header_offset + 30 + name + extra


def _check_form(path: Path, x: NDArray[Any], y: NDArray[Any], split: NDArray[Any] | None) -> None:
    if x.ndim < 2 or x.dtype.kind not in "iufb":
        raise _damaged(path, f"expected x as numbers (n, ...), got {x.dtype} of shape {x.shape}")
    if y.ndim != 1 or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise _damaged(
            path, f"expected y as class numbers (n,) from 0, got {y.dtype} of shape {y.shape}"
        )
    lengths = {len(x), len(y)} | (set() if split is None else {len(split)})
    if len(lengths) > 1:
        raise _damaged(path, f"expected as many labels as records, got {len(y)} and {len(x)}")


def _check_facts(path: Path, arrays: Arrays, facts: Facts) -> None:
    counts = tuple(np.bincount(arrays.y).tolist())
    checks: list[tuple[str, object, object]] = [
        ("shape", facts.shape, arrays.x.shape),
        ("class counts", facts.counts, counts),
    ]
    if facts.columns:
        checks.append(("columns", facts.columns, arrays.names("columns")))
    if facts.total is not None and arrays.x.shape == facts.shape:
        checks.append(("sum", facts.total, int(arrays.x.sum(dtype=np.int64))))
    for what, expected, got in checks:
        if expected != got:
            raise DamagedFile(
                f"{path} holds another data set than its name says: expected {what} {expected}, "
                f"got {got}; rename or remove it"
            )
    missing = [key for key in facts.extra if key not in arrays.extra]
    if missing:
        raise _damaged(path, f"expected the arrays {', '.join(missing)} besides x and y, got none")
