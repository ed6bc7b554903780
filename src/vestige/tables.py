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
from vestige.models import BlackBox, Predictions, first_line
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
    if seed < 0:
        raise InvalidInput(f"expected a seed from 0, got {seed}; choose another")
    path = Path(path)
    arrays = read_table(path)
    target = Predictions(probabilities=arrays.get("probabilities"), logits=arrays.get("logits"))
    n = len(target)
    if not n:
        raise InvalidInput(f"expected at least one row in {path.name}, got none; write the records")
    labels, names = _labels(arrays, n)
    if names and len(names) != target.n_classes:
        raise InvalidInput(
            f"expected labels of {target.n_classes} classes, one for each column of predictions "
            f"in sorted order, got {len(names)} ({', '.join(names[:5])}); give class numbers from "
            "0 as labels, to say which column each is"
        )
    if labels.max(initial=0) >= target.n_classes:
        raise InvalidInput(
            f"expected labels below {target.n_classes} (the columns of predictions), got "
            f"{labels.max()}; add the missing classes or drop the rows"
        )
    ids = _one_each("ids", np.asarray(arrays.get("ids", np.arange(n))), n)
    x = np.arange(n)[:, None]
    classes = names or tuple(str(c) for c in range(target.n_classes))
    everyone = Records.from_arrays(x, labels, _text(ids), classes=classes)
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
        known=_references(arrays, everyone, target.n_classes) or Pool.of_population(everyone),
    )


def read_table(path: Path) -> Arrays:
    """The arrays of a table, by the names of the `.npz` form."""
    readers = {".npz": read_arrays, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        pickled = suffix in (".pkl", ".pickle", ".joblib", ".npy", ".pt")
        why = "; pickles are not read, since opening one can run any program" if pickled else ""
        raise InvalidInput(f"expected a table as .npz, .csv or .parquet, got {path.name}{why}")
    if not path.is_file():
        raise InvalidInput(f"expected a file at {path}, found none; check the path")
    arrays = readers[suffix](path)
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


def read_arrays(path: Path) -> Arrays:
    """The arrays of an `.npz`; nothing is unpickled.

    Raises:
        DamagedFile: it is no such file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        pickled = "allow_pickle" in str(error)
        why = "it holds pickled objects, which are not read" if pickled else first_line(error)
        raise DamagedFile(
            f"expected arrays of numbers in {path.name}, but {why}; write it with numpy.savez"
        ) from None


def _read_csv(path: Path) -> Arrays:
    import pyarrow as pa
    from pyarrow import csv

    # an empty cell is a gap in a column of text too, not a class without a name
    options = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    try:
        return _columns(path, csv.read_csv(path, convert_options=options))
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(
            f"expected a table with a header in {path.name}, but {first_line(error)}; repair it or "
            "write it again"
        ) from None


def _read_parquet(path: Path) -> Arrays:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _columns(path, parquet.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(
            f"expected a parquet file, {path.name} is not one ({first_line(error)}); write it again"
        ) from None


def _columns(path: Path, table: Any) -> Arrays:
    names: list[str] = table.column_names
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InvalidInput(
            f"expected each column of {path.name} once, got {twice[0]!r} twice; rename one"
        )
    out: dict[str, NDArray[Any]] = {}
    for prefix, name in (("p", "probabilities"), ("logit", "logits")):
        numbers = sorted(
            int(m[1]) for n in names if (m := re.fullmatch(rf"{prefix}(0|[1-9]\d*)", n))
        )
        if not numbers:
            continue
        # a single column would be read as the probability of class 1, whatever its name
        if numbers != list(range(len(numbers))) or len(numbers) < 2:
            raise InvalidInput(
                f"expected columns {prefix}0, {prefix}1, ... without gaps in {path.name}, one for "
                f"each class, got {', '.join(f'{prefix}{c}' for c in numbers[:8])}; add the others"
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
    labels = _one_each("labels", arrays["labels"], n)
    # numbers written as text name columns: sorted as text, 10 would come before 2
    if labels.dtype.kind in "OU" and all(str(v).isdecimal() for v in labels):
        labels = labels.astype(np.int64)
    return encode_labels(labels)


def _one_each(name: str, array: NDArray[Any], n: int) -> NDArray[Any]:
    if array.shape not in ((n,), (n, 1)):
        raise InvalidInput(
            f"expected {n} {name}, one for each row of predictions, got shape {array.shape}; "
            "write as many"
        )
    return array.reshape(n)


def _text(ids: NDArray[Any]) -> NDArray[Any]:
    return ids.astype(str) if ids.dtype.kind == "S" else ids


def _zero_or_one(name: str, array: NDArray[Any], n: int) -> NDArray[np.bool_]:
    array = _one_each(name, array, n)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        found = list(dict.fromkeys(array.tolist()))[:5]
        raise InvalidInput(f"expected 0 or 1 in {name}, got {found}; write 1 for a member")
    return array.astype(bool)


def _references(arrays: Arrays, everyone: Records, n_classes: int) -> Pool[BlackBox] | None:
    given = [n for n in ("reference_probabilities", "reference_member") if n in arrays]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidInput(
            f"expected reference_probabilities and reference_member together, got only {given[0]}; "
            "add the other"
        )
    tables, member = (np.asarray(arrays[n]) for n in given)
    expected = (len(everyone), n_classes)
    if tables.ndim != 3 or tables.shape[1:] != expected or member.shape != tables.shape[:2]:
        raise InvalidInput(
            f"expected reference_probabilities (n_models, {len(everyone)}, {n_classes}) and "
            f"reference_member (n_models, {len(everyone)}), got {tables.shape} and {member.shape}; "
            "give every model's answers for the records of the table"
        )
    models = [Predictions(probabilities=table) for table in tables]
    flat = _zero_or_one("reference_member", member.reshape(-1), member.size)
    return Pool(models, everyone, flat.reshape(member.shape))
