"""The three files of a report, each written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from vestige.errors import DamagedFile, InvalidInput, MissingExtra, StoreError
from vestige.report.report import SCHEMA, Report
from vestige.report.table import RecordTable

__all__ = ["load", "save", "write_html"]

JSON_NAME, HTML_NAME, RECORDS_NAME = "report.json", "report.html", "records.parquet"


def save(report: Report, folder: Path) -> Path:
    """Write `report.json`, then `records.parquet` (given records), then `report.html`."""
    text = json.dumps(report.to_json(), indent=1, allow_nan=False)
    _make(folder)
    _write(folder / JSON_NAME, (text + "\n").encode())
    if report.records is not None:
        _write(folder / RECORDS_NAME, _parquet(report.records))
    write_html(report, folder)
    return folder


def write_html(report: Report, folder: str | Path) -> Path:
    """Write `report.html` alone and return its path."""
    from vestige.report.html import render

    path = Path(folder) / HTML_NAME
    # a name read from a file system may hold half a character, which has no UTF-8
    _write(path, render(report).encode(errors="replace"))
    return path


def load(folder: Path) -> Report:
    """Read `report.json` of `folder`; see `Report.load`."""
    path = folder / JSON_NAME
    data = _read(path)
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise DamagedFile(
            f"expected a report of schema {SCHEMA} in {path}, got {found!r:.60}; "
            "write it again with this version of vestige."
        )
    try:
        return Report.from_json(data)
    except InvalidInput as problem:
        raise DamagedFile(f"{path} is not what was written: {problem}") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise StoreError(
            f"expected a {JSON_NAME} in {path.parent}, found none; "
            f"run `vestige audit --out {path.parent}` first."
        ) from None
    except OSError as problem:
        raise StoreError(f"{path} cannot be read: {problem.strerror}.") from None
    except (ValueError, RecursionError) as problem:
        raise DamagedFile(f"{path} is not JSON ({problem}); write the report again.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parquet(table: RecordTable) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("records.parquet needs pyarrow; run `pip install pyarrow`.") from None
    # from_pandas=True turns NaN into null and needs no pandas.
    arrays = {name: pa.array(column, from_pandas=True) for name, column in table.columns().items()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StoreError(
            f"{folder} cannot be made a folder: {problem.strerror}; choose another --out."
        ) from None


def _write(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {problem.strerror}; free some space or choose another "
            "folder."
        ) from None
