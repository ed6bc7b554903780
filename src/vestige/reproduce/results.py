"""Finished rows as JSON: OUT/<experiment>/<scale>/<row>.json, each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vestige.errors import DamagedFile, InvalidInput
from vestige.metrics import Estimate
from vestige.training.store import write_atomically

__all__ = ["SCHEMA", "RowResult", "path_of", "read", "read_all", "save"]

SCHEMA = "vestige.reproduce/1"


@dataclass(frozen=True)
class RowResult:
    """A finished row.

    Attributes:
        experiment, scale, row: which.
        settings: the row's configuration, plain values.
        estimates, series, sizes, data: as measured, see `Measured`.
        seconds: wall clock of measuring it, less where models were there already.
        provenance: seed, versions, machine, load before it began, code.
    """

    experiment: str
    scale: str
    row: str
    settings: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    series: Mapping[str, Sequence[float]]
    sizes: Mapping[str, int | float | str]
    data: Mapping[str, str]
    seconds: float
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in a fixed order."""
        return {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "scale": self.scale,
            "row": self.row,
            "settings": dict(self.settings),
            "estimates": {name: e.to_json() for name, e in self.estimates.items()},
            "series": {name: [_short(v) for v in values] for name, values in self.series.items()},
            "sizes": dict(self.sizes),
            "data": dict(self.data),
            "seconds": round(self.seconds, 2),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RowResult:
        """The result that `to_json` wrote.

        Raises:
            InvalidInput: another schema, or a field is missing or unknown.
        """
        fields = set(cls.__dataclass_fields__)
        if data.get("schema") != SCHEMA or set(data) != fields | {"schema"}:
            raise InvalidInput(
                f"expected a stored row of {SCHEMA} with the fields {sorted(fields)}, got "
                f"{data.get('schema')!r} with {sorted(data)}"
            )
        given = {name: data[name] for name in fields}
        given["estimates"] = {n: Estimate.from_json(e) for n, e in data["estimates"].items()}
        return cls(**given)


def _short(value: float) -> float:
    """Enough digits for a figure; pages stay small."""
    return float(f"{value:.6g}")


def path_of(folder: Path, experiment: str, scale: str, row: str) -> Path:
    return folder / experiment / scale / f"{row}.json"


def save(folder: Path, result: RowResult) -> Path:
    """Write a row so that it is either whole or absent.

    Raises:
        StoreError: the disk cannot be written.
    """
    path = path_of(folder, result.experiment, result.scale, result.row)
    text = _layout(result.to_json())
    write_atomically(path, lambda part: _write(part, text))
    return path


def _write(part: Path, text: str) -> None:
    part.write_text(text, encoding="utf-8")


def _layout(data: dict[str, Any]) -> str:
    """JSON with a line for each estimate, series and entry: small, and fit for a diff."""
    parts = []
    for name, value in data.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(
                f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items()
            )
            parts.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(path: Path) -> RowResult:
    """A stored row.

    Raises:
        DamagedFile: it is not one, or another row's.
    """
    try:
        result = RowResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedFile(
            f"expected a stored row in {path}, but {error}; remove it and run that row again"
        ) from error
    if path.parts[-3:] != (result.experiment, result.scale, f"{result.row}.json"):
        raise DamagedFile(
            f"expected the row that its place names in {path}, got {result.experiment} "
            f"{result.scale} {result.row}; remove it and run that row again"
        )
    return result


def read_all(folder: Path) -> tuple[RowResult, ...]:
    """All stored rows of a folder, in order of their places.

    Raises:
        DamagedFile: one of them is not a stored row.
    """
    return tuple(read(path) for path in sorted(folder.glob("*/*/*.json")))
