"""A table of predictions as an audit: no model at all, only what it answered.

`.npz`: `probabilities (n, classes)` or `logits`, `labels (n,)`, `member (n,)` 0/1, and optionally
`ids (n,)`, `population (n,)` 0/1 for non-members that the adversary owns, and
`reference_probabilities (n_models, n, classes)` with `reference_member (n_models, n)`.
`.csv` and `.parquet`: columns `p0, p1, ...` (or `logit0, logit1, ...`), `label`, `member`, and
optionally `id` and `population`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.audit import Plan
from vestige.errors import DamagedFile, InvalidInput
from vestige.models import BlackBox, Predictions
from vestige.pool import Pool
from vestige.records import Records, Split, encode_labels

__all__ = ["plan_of_table", "read_table"]

Arrays = Mapping[str, NDArray[Any]]


def plan_of_table(path: str | Path, *, seed: int = 0) -> Plan:
    """The plan that audits a table of predictions.

    Raises:
        InvalidInput: the table lacks what it needs, or holds what it must not.
        DamagedFile: the file cannot be read.
    """
    path = Path(path)
    arrays = read_table(path)
    target = Predictions(probabilities=arrays.get("probabilities"), logits=arrays.get("logits"))
    n = len(target)
    labels, names = _labels(arrays, n)
    if labels.max(initial=0) >= target.n_classes:
        raise InvalidInput(
            f"expected labels below {target.n_classes} (the columns of predictions), got "
            f"{labels.max()}; add the missing classes or drop the rows"
        )
    ids = np.asarray(arrays.get("ids", np.arange(n)))
    _same_length("ids", ids, n)
    x = np.arange(n)[:, None]
    classes = names or tuple(str(c) for c in range(target.n_classes))
    everyone = Records.from_arrays(x, labels, _as_ids(ids), classes=classes)
    member = _zero_or_one("member", arrays["member"], n)
    owned = _zero_or_one("population", arrays.get("population", np.zeros(n)), n)
    if (member & owned).any():
        raise InvalidInput(
            f"expected a population of non-members, got {int((member & owned).sum())} members "
            "in it; set their population to 0"
        )
    split = Split(everyone[member], everyone[~member & ~owned], everyone[owned])
    return Plan(
        split=split,
        target=target,
        seed=seed,
        name=path.stem,
        data_name=path.name,
        description=f"a table of {n} predictions over {target.n_classes} classes",
        known=_references(arrays, everyone) or Pool.of_population(everyone),
    )


def read_table(path: Path) -> Arrays:
    """The arrays of a table, by the names of the `.npz` form."""
    readers = {".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        pickled = path.suffix in (".pkl", ".pickle", ".joblib", ".npy", ".pt")
        why = "; pickles are not read, since opening one can run any program" if pickled else ""
        raise InvalidInput(f"expected a table as .npz, .csv or .parquet, got {path.name}{why}")
    if not path.is_file():
        raise InvalidInput(f"expected a file at {path}, found none; check the path")
    arrays = readers[path.suffix](path)
    missing = [n for n in ("labels", "member") if n not in arrays]
    if "probabilities" not in arrays and "logits" not in arrays:
        missing.insert(0, "probabilities (or logits)")
    if missing:
        raise InvalidInput(
            f"expected {', '.join(missing)} in {path.name}, got {', '.join(arrays) or 'nothing'}; "
            "add what is missing"
        )
    if "probabilities" in arrays and "logits" in arrays:
        raise InvalidInput(f"expected probabilities or logits in {path.name}, got both; keep one")
    return arrays


def _read_npz(path: Path) -> Arrays:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        pickled = "allow_pickle" in str(error)
        why = "it holds pickled objects, which are not read" if pickled else str(error)
        raise DamagedFile(
            f"expected arrays of numbers in {path.name}, but {why}; write it with numpy.savez"
        ) from None


def _read_csv(path: Path) -> Arrays:
    import pyarrow as pa
    from pyarrow import csv

    try:
        return _columns(path, csv.read_csv(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedFile(f"expected a table in {path.name}, but {_line(error)}") from None


def _read_parquet(path: Path) -> Arrays:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _columns(path, parquet.read_table(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedFile(
            f"expected a parquet file, {path.name} is not one ({_line(error)})"
        ) from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _columns(path: Path, table: Any) -> Arrays:
    names: list[str] = table.column_names
    out: dict[str, NDArray[Any]] = {}
    for prefix, name in (("p", "probabilities"), ("logit", "logits")):
        numbers = sorted(int(m[1]) for n in names if (m := re.fullmatch(rf"{prefix}(\d+)", n)))
        if not numbers:
            continue
        if numbers != list(range(len(numbers))):
            raise InvalidInput(
                f"expected columns {prefix}0, {prefix}1, ... without gaps in {path.name}, got "
                f"{', '.join(f'{prefix}{c}' for c in numbers[:8])}"
            )
        out[name] = np.stack([_column(path, table, f"{prefix}{c}") for c in numbers], axis=1)
    for column, name in (("label", "labels"), ("member", "member"), ("id", "ids")):
        if column in names:
            out[name] = _column(path, table, column)
    if "population" in names:
        out["population"] = _column(path, table, "population")
    return out


def _column(path: Path, table: Any, name: str) -> NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        raise InvalidInput(
            f"expected a value in every row of column {name} of {path.name}, got "
            f"{column.null_count} empty ones; fill or drop the rows"
        )
    return np.asarray(column.to_numpy())


def _labels(arrays: Arrays, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    _same_length("labels", arrays["labels"], n)
    return encode_labels(arrays["labels"])


def _same_length(name: str, array: NDArray[Any], n: int) -> None:
    if array.shape[:1] != (n,):
        raise InvalidInput(
            f"expected {n} {name}, one for each row of predictions, got {array.shape[:1]}"
        )


def _as_ids(ids: NDArray[Any]) -> NDArray[Any]:
    return ids.astype(str) if ids.dtype.kind in "OS" else ids


def _zero_or_one(name: str, array: NDArray[Any], n: int) -> NDArray[np.bool_]:
    _same_length(name, array, n)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise InvalidInput(f"expected 0 or 1 in {name}, got {np.unique(array)[:5].tolist()}")
    return array.astype(bool)


def _references(arrays: Arrays, everyone: Records) -> Pool[BlackBox] | None:
    given = [n for n in ("reference_probabilities", "reference_member") if n in arrays]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidInput(
            f"expected reference_probabilities and reference_member together, got only {given[0]}"
        )
    tables, member = (np.asarray(arrays[n]) for n in given)
    if tables.ndim != 3 or tables.shape[1] != len(everyone) or member.shape != tables.shape[:2]:
        raise InvalidInput(
            f"expected reference_probabilities (n_models, {len(everyone)}, classes) and "
            f"reference_member (n_models, {len(everyone)}), got {tables.shape} and {member.shape}"
        )
    models = [Predictions(probabilities=table) for table in tables]
    flat = _zero_or_one("reference_member", member.reshape(-1), member.size)
    return Pool(models, everyone, flat.reshape(member.shape))
