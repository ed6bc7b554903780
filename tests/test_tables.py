"""A table of predictions becomes a plan, or a sentence saying what is wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from vestige.errors import DamagedFile, InvalidInput
from vestige.tables import plan_of_table, read_table

N, C = 30, 3


def table(n: int = N, classes: int = C, **changes: Any) -> dict[str, Any]:
    """A good table in the names of the .npz form, with changes; None takes a name out."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(classes), n)
    p[:, 0] = 1 - p[:, 1:].sum(axis=1)
    good = {
        "probabilities": p,
        "labels": np.arange(n) % classes,
        "member": np.arange(n) % 2,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def columns(arrays: dict[str, Any]) -> pd.DataFrame:
    out: dict[str, Any] = {}
    for name, prefix in (("probabilities", "p"), ("logits", "logit")):
        for c in range(np.shape(arrays.get(name, np.zeros((0, 0))))[1]):
            out[f"{prefix}{c}"] = arrays[name][:, c]
    for name, column in (("labels", "label"), ("member", "member"), ("ids", "id")):
        if name in arrays:
            out[column] = arrays[name]
    if "population" in arrays:
        out["population"] = arrays["population"]
    return pd.DataFrame(out)


def write(folder: Path, arrays: dict[str, Any], suffix: str = ".npz") -> Path:
    path = folder / f"table{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".csv":
        columns(arrays).to_csv(path, index=False)
    else:
        columns(arrays).to_parquet(path, index=False)
    return path


every_suffix = pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])


def answers(plan: Any) -> Any:
    both = plan.split.candidates
    return both.ids, both.y, plan.target.log_probabilities(both.x)


@every_suffix
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"probabilities": None, "logits": np.random.default_rng(1).normal(0, 3, (N, C))},
        {"ids": np.arange(N)[::-1] * 7},
        {"ids": np.array([f"r{i:03}" for i in range(N)])},
        {"labels": np.array(["ant", "bee", "cow"])[np.arange(N) % 3]},
        {"population": (np.arange(N) % 10 == 0).astype(int)},
        {"member": np.arange(N) % 2 == 1},
    ],
    ids=["plain", "logits", "ids", "text ids", "text labels", "population", "true and false"],
)
def test_all_forms_are_the_same_plan(tmp_path, suffix, changes):
    arrays = table(**changes)
    plan = plan_of_table(write(tmp_path, arrays, suffix))
    owned = np.asarray(arrays.get("population", np.zeros(N)), dtype=bool)
    member = np.asarray(arrays["member"], dtype=bool)
    ids = np.asarray(arrays.get("ids", np.arange(N)))
    assert plan.split.members.ids.tolist() == ids[member].tolist()
    assert plan.split.nonmembers.ids.tolist() == ids[~member & ~owned].tolist()
    assert plan.split.population.ids.tolist() == ids[owned].tolist()
    got_ids, y, table_ = answers(plan)
    rows = {identity: row for row, identity in enumerate(ids.tolist())}
    order = [rows[identity] for identity in got_ids.tolist()]
    np.testing.assert_array_equal(y, (np.arange(N) % 3)[order])
    if "logits" in arrays:
        raw = arrays["logits"] - np.log(np.exp(arrays["logits"]).sum(axis=1, keepdims=True))
    else:
        raw = np.log(arrays["probabilities"])
    np.testing.assert_allclose(table_, raw[order], atol=1e-6)
    assert plan.name == "table" and plan.data_name == f"table{suffix}"
    assert str(N) in plan.description


def test_more_than_ten_classes_keep_their_columns(tmp_path):
    arrays = table(n=48, classes=12)
    for suffix in (".csv", ".npz"):
        plan = plan_of_table(write(tmp_path, arrays, suffix))
        _, y, got = answers(plan)
        order = plan.split.candidates.x[:, 0]
        np.testing.assert_array_equal(y, (np.arange(48) % 12)[order])
        np.testing.assert_allclose(np.exp(got), arrays["probabilities"][order], atol=1e-9)
    # numbers written as text are numbers: "10" does not come before "2"
    text = plan_of_table(write(tmp_path, table(48, 12, labels=(np.arange(48) % 12).astype(str))))
    np.testing.assert_array_equal(text.split.candidates.y, y)


def test_one_probability_a_row_is_that_of_class_one(tmp_path):
    p = np.linspace(0.01, 0.99, 10)
    plan = plan_of_table(write(tmp_path, table(10, 2, probabilities=p)))
    _, _, got = answers(plan)
    np.testing.assert_allclose(np.exp(got[:, 1]), p[plan.split.candidates.x[:, 0]])


def references(k: int = 4, n: int = N, classes: int = C) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {
        "reference_probabilities": rng.dirichlet(np.ones(classes), (k, n)),
        "reference_member": (rng.random((k, n)) < 0.5).astype(int),
    }


def test_references_are_a_pool(tmp_path):
    given = references()
    plan = plan_of_table(write(tmp_path, table(**given, ids=np.arange(N) + 500)))
    pool = plan.known
    assert pool is not None and len(pool.models) == 4
    np.testing.assert_array_equal(
        pool.trained_on(np.arange(N) + 500), given["reference_member"].astype(bool)
    )
    np.testing.assert_allclose(
        np.exp(pool.models[2].log_probabilities(pool.records.x)),
        given["reference_probabilities"][2],
    )


def test_suffixes_may_be_in_capitals(tmp_path):
    path = write(tmp_path, table(), ".csv")
    assert len(plan_of_table(path.rename(tmp_path / "T.CSV")).target) == N


def bad(values: Any, row: int, value: Any) -> Any:
    changed = np.array(values, dtype=np.float64)
    changed[row] = value
    return changed


P = table()["probabilities"]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "expected labels in table"),
    "no member": ({"member": None}, "expected member in table"),
    "no predictions": ({"probabilities": None}, "expected probabilities (or logits) in table"),
    "both": ({"logits": P}, "got both; keep one"),
    "infinity": ({"probabilities": bad(P, 3, np.inf)}, "finite probabilities"),
    "not one": ({"probabilities": bad(P, 3, 0.5)}, "sum to 1 in each row, got 1.5 in row 3"),
    "logits as probabilities": ({"probabilities": P * 9 - 4}, "if they are logits"),
    "probabilities as logits": ({"probabilities": None, "logits": P}, "got probabilities"),
    "label too large": ({"labels": np.arange(N) % 4}, "labels below 3 (the columns"),
    "label negative": ({"labels": np.arange(N) % 3 - 1}, "labels from 0, got -1"),
    "label a fraction": ({"labels": np.arange(N) / 2}, "fractions"),
    "member 2": ({"member": np.arange(N) % 3}, "0 or 1 in member, got [0, 1, 2]"),
    "only members": ({"member": np.ones(N, int)}, "at least one of the non-members, got none"),
    "no members": ({"member": np.zeros(N, int)}, "at least one of the members, got none"),
    "one class": ({"labels": np.ones(N, int)}, "at least two classes, got only class 1"),
    "ids twice": ({"ids": np.arange(N) // 2}, "unique ids"),
    "members owned": ({"population": np.arange(N) % 2}, "15 members in it"),
    "too few names": (
        {"labels": np.array(["ant", "cow"])[np.arange(N) % 2]},
        "labels of 3 classes, one for each column of predictions in sorted order, got 2",
    ),
}


@every_suffix
@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_refused(tmp_path, suffix, name):
    changes, why = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        plan_of_table(write(tmp_path, table(**changes), suffix)).split.checked()
    assert why in str(caught.value)


NPZ_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "short labels": ({"labels": np.zeros(7, int)}, "30 labels, one for each row .* shape .7,."),
    "short member": ({"member": np.zeros(7, int)}, "30 member"),
    "wide member": ({"member": np.zeros((N, 2), int)}, r"30 member, .* shape \(30, 2\)"),
    "short ids": ({"ids": np.arange(7)}, "30 ids"),
    "one-hot labels": ({"labels": np.eye(3)[np.arange(N) % 3]}, "30 labels"),
    "no rows": ({k: v[:0] for k, v in table().items()}, "at least one row in table.npz, got none"),
    "text": ({"probabilities": P.astype(str)}, "sum|numbers"),
    "NaN": ({"probabilities": bad(P, 3, np.nan)}, "finite probabilities"),
    "half references": ({"reference_probabilities": P[None]}, "together, got only reference_prob"),
    "transposed": (
        {k: np.moveaxis(v, 0, 1) for k, v in references().items()},
        r"reference_probabilities \(n_models, 30, 3\)",
    ),
    "other classes": (references(classes=4), r"got \(4, 30, 4\) and \(4, 30\)"),
    "other records": (references(n=29), r"got \(4, 29, 3\)"),
    "odd references": (
        references() | {"reference_member": np.full((4, N), 3)},
        r"0 or 1 in reference_member, got \[3\]",
    ),
}


@pytest.mark.parametrize("name", NPZ_REFUSED)
def test_arrays_that_are_refused(tmp_path, name):
    changes, why = NPZ_REFUSED[name]
    if name == "text":
        changes = {"probabilities": np.full((N, C), "high")}
    with pytest.raises(InvalidInput, match=why):
        plan_of_table(write(tmp_path, table(**changes))).split.checked()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda f: f.rename(columns={"p1": "p7"}), "p0, p1, ... without gaps .* got p0, p2, p7"),
        (lambda f: f.rename(columns={"p1": "p01"}), "without gaps"),
        (lambda f: f[["p0", "label", "member"]], "one for each class, got p0"),
        (lambda f: f.assign(label=[None, *f["label"][1:]]), "column label .* got 1 empty ones"),
        (lambda f: f.assign(p1=[None, None, *f["p1"][2:]]), "column p1 .* got 2 empty ones"),
        (lambda f: f.assign(label=[None, *["a"] * (N - 1)]), "column label .* 1 empty"),
        (lambda f: f.assign(member="yes"), r"0 or 1 in member, got \['yes'\]"),
        (lambda f: f.iloc[:0], "at least one row in table"),
    ],
)
def test_columns_that_are_refused(tmp_path, suffix, edit, why):
    path = tmp_path / f"table{suffix}"
    frame = edit(columns(table()))
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    with pytest.raises(InvalidInput, match=why):
        plan_of_table(path).split.checked()


def test_a_column_twice_is_refused(tmp_path):
    frame = columns(table())
    frame.insert(0, "p0", frame["p0"], allow_duplicates=True)
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InvalidInput, match="each column of t.csv once, got 'p0' twice"):
        plan_of_table(tmp_path / "t.csv")
    parts = [pa.array(frame.iloc[:, i]) for i in range(frame.shape[1])]
    parquet.write_table(pa.Table.from_arrays(parts, list(frame.columns)), tmp_path / "t.parquet")
    with pytest.raises((InvalidInput, DamagedFile), match=r"t\.parquet"):
        plan_of_table(tmp_path / "t.parquet")


def test_categories_of_a_frame(tmp_path):
    frame = columns(table())
    frame["label"] = pd.Categorical(np.array(["ant", "bee", "cow"])[frame["label"]])
    frame.to_parquet(tmp_path / "t.parquet")
    plan = plan_of_table(tmp_path / "t.parquet")
    assert plan.split.members.classes == ("ant", "bee", "cow")
    np.testing.assert_array_equal(
        plan.split.candidates.y, (np.arange(N) % 3)[plan.split.candidates.x[:, 0]]
    )


# --- files -------------------------------------------------------------------------------------


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_not_opened(tmp_path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "t.npz", **table(labels=np.array([Trap(sprung)] * N, dtype=object)))
    with pytest.raises(DamagedFile, match="pickled objects, which are not read; write it"):
        plan_of_table(tmp_path / "t.npz")
    for suffix in (".pkl", ".npy", ".joblib"):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(pickle.dumps(Trap(sprung)))
        with pytest.raises(InvalidInput, match="pickles are not read, since opening one can run"):
            plan_of_table(path)
    (tmp_path / "named.npz").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DamagedFile, match="pickled objects"):
        plan_of_table(tmp_path / "named.npz")
    assert not sprung.exists()


@every_suffix
def test_truncated_files(tmp_path, suffix):
    path = write(tmp_path, table(), suffix)
    content = path.read_bytes()
    for keep in (0, 3, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:keep])
        with pytest.raises((DamagedFile, InvalidInput)) as caught:
            plan_of_table(path).split.checked()
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value) or suffix == ".csv"


def test_damaged_bytes_of_a_compressed_file(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, **table())
    content = bytearray(path.read_bytes())
    for place in range(100, len(content) - 300, 97):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = read_table(path)
        except (DamagedFile, InvalidInput):
            continue
        # a byte that nobody reads
        for name, array in table().items():
            np.testing.assert_array_equal(found[name], array)


def test_an_array_that_is_no_archive(tmp_path):
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DamagedFile, match="arrays of numbers in t.npz"):
        plan_of_table(tmp_path / "t.npz")


def test_files_that_are_not_there_or_not_tables(tmp_path):
    with pytest.raises(InvalidInput, match="a file at .*none.csv, found none; check the path"):
        plan_of_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InvalidInput, match="found none"):
        plan_of_table(tmp_path / "folder.csv")
    with pytest.raises(InvalidInput, match=r"table as .npz, .csv or .parquet, got t.xlsx"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(InvalidInput, match="seed from 0, got -1"):
        plan_of_table(write(tmp_path, table()), seed=-1)
