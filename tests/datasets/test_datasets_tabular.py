from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from real_data import needs, real_folder
from sklearn.datasets import load_breast_cancer

from vestige import datasets
from vestige.datasets import tabular
from vestige.datasets.files import Arrays
from vestige.errors import DamagedFile

ADULT_TRAIN = b"""\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, \
2174, 0, 40, United-States, <=50K
50, ?, 83311, 11th, 7, Divorced, ?, Husband, Black, Female, 0, 0, 13, Cuba, >50K

"""
ADULT_TEST = b"""\
|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Sales, Own-child, Black, Male, 0, 0, 40, ?, >50K.

"""


def test_adult_is_packed_as_codes_in_sorted_order() -> None:
    packed = tabular.pack_adult({"adult.data": ADULT_TRAIN, "adult.test": ADULT_TEST})
    assert packed["y"].tolist() == [0, 1, 1]
    assert packed["columns"].tolist()[:4] == ["age", "workclass", "fnlwgt", "education"]
    assert packed["cat_workclass"].tolist() == ["Private", "State-gov"]
    assert packed["x"][:, 0].tolist() == [39, 50, 25]
    assert packed["x"][:, 1].tolist() == [1, -1, 0]
    assert packed["x"][:, 13].tolist() == [1, 0, -1]
    assert packed["x"].dtype == np.int32


def test_adult_is_one_hot_with_missing_cells_as_zeros() -> None:
    packed = tabular.pack_adult({"adult.data": ADULT_TRAIN, "adult.test": ADULT_TEST})
    packed["x"][1, 11] = 5  # a number needs two training values to have a scale
    arrays = Arrays(packed.pop("x"), packed.pop("y"), packed.pop("split"), packed)
    records = tabular.adult_records(arrays)
    row = dict(zip(records.columns, records.x[1].tolist(), strict=True))
    assert row["workclass=Private"] == row["workclass=State-gov"] == 0
    assert row["education=11th"] == row["sex=Female"] == row["age"] == 1
    assert row["sex=Male"] == 0
    assert row["fnlwgt"] == np.float32((83_311 - 77_516) / (226_802 - 77_516))
    assert records.classes == ("<=50K", ">50K")


def test_wisconsin_is_packed_without_the_sample_number() -> None:
    data = b"1000025,5,1,1,1,2,1,3,1,1,2\n1057013,8,4,5,1,2,?,7,3,1,4\n"
    packed = tabular.pack_wisconsin({"breast-cancer-wisconsin.data": data})
    assert packed["x"].tolist() == [[5, 1, 1, 1, 2, 1, 3, 1, 1], [8, 4, 5, 1, 2, -1, 7, 3, 1]]
    assert packed["y"].tolist() == [0, 1]
    records = tabular.wisconsin_records(Arrays(packed["x"], packed["y"]))
    np.testing.assert_allclose(records.x[1], [0.8, 0.4, 0.5, 0.1, 0.2, 0, 0.7, 0.3, 0.1])


def test_the_diagnostic_set_is_scikit_learns_standardized() -> None:
    records, bunch = datasets.load("breast_cancer"), load_breast_cancer()
    assert records.columns == tuple(bunch.feature_names)
    assert records.classes == tuple(bunch.target_names)
    np.testing.assert_array_equal(records.y, bunch.target)
    back = records.x * bunch.data.std(axis=0) + bunch.data.mean(axis=0)
    np.testing.assert_allclose(back, bunch.data, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(records.x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(records.x.std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(datasets.raw("breast_cancer").x, bunch.data)


@needs("adult")
def test_adult_has_its_published_numbers() -> None:
    records, raw = datasets.load("adult"), datasets.raw("adult")
    assert raw.split is not None
    train = raw.split == 0
    assert train.sum() == 32_561
    assert round(100 * records.y[train].mean(), 2) == 24.08
    assert round(100 * records.y[~train].mean(), 2) == 23.62
    assert (raw.x == -1).sum() == 6_465
    assert (raw.x != -1).all(axis=1).sum() == 45_222
    assert records.x.shape == (48_842, 105) and records.x.dtype == np.float32
    # each complete row names one level of each of the 8 categories
    np.testing.assert_array_equal(records.x[:, 6:].sum(axis=1), 8 - (raw.x == -1).sum(axis=1))
    np.testing.assert_array_equal(records.x[train, :6].min(axis=0), np.zeros(6))
    np.testing.assert_array_equal(records.x[train, :6].max(axis=0), np.ones(6))


@needs("adult")
def test_adult_one_hot_says_what_the_codes_say() -> None:
    one_hot, codes = datasets.load("adult"), datasets.load("adult_codes")
    raw = datasets.raw("adult")
    assert codes.x.shape == (48_842, 14) and len(codes.columns) == 14
    np.testing.assert_array_equal(one_hot.ids, codes.ids)
    for j, column in enumerate(codes.columns):
        for k, level in enumerate(raw.names(f"cat_{column}")):
            here = one_hot.x[:, one_hot.columns.index(f"{column}={level}")]
            np.testing.assert_array_equal(here == 1, codes.x[:, j] == k)
    # the first row of the original: 39, State-gov, 77516, Bachelors, 13, ...
    assert codes.x[0, [0, 2, 4]].tolist() == [39, 77_516, 13]
    assert raw.names("cat_workclass")[codes.x[0, 1]] == "State-gov"


@needs("breast_cancer_wisconsin_original")
def test_wisconsin_has_its_published_numbers() -> None:
    records = datasets.load("breast_cancer_wisconsin_original")
    raw = datasets.raw("breast_cancer_wisconsin_original")
    assert np.bincount(records.y).tolist() == [458, 241]
    assert (raw.x == -1).sum() == (records.x == 0).sum() == 16
    assert set(np.nonzero(raw.x == -1)[1].tolist()) == {records.columns.index("bare_nuclei")}
    assert records.x.max() == 1


@needs("location30")
def test_location30_has_its_published_numbers() -> None:
    records = datasets.load("location30")
    assert records.x.shape == (5_010, 446) and records.x.dtype == np.float32
    assert set(np.unique(records.x).tolist()) == {0.0, 1.0}
    assert round(100 * records.x.mean(dtype=np.float64), 2) == 12.04
    assert len(records.classes) == 30
    assert (np.bincount(records.y).min(), np.bincount(records.y).max()) == (97, 308)


@needs("location30")
def test_the_published_order_of_location30_is_a_permutation() -> None:
    order = datasets.location30_order()
    np.testing.assert_array_equal(np.sort(order), np.arange(5_010))
    assert order[:3].tolist() != [0, 1, 2]
    np.testing.assert_array_equal(order, datasets.location30_order(real_folder()))


def test_a_missing_or_wrong_order_is_named() -> None:
    x, y = np.zeros((3, 2)), np.zeros(3, dtype=np.int64)
    for extra in ({}, {"memguard_order": np.array([0, 1, 1])}):
        with pytest.raises(DamagedFile, match="memguard_order"):
            tabular.memguard_order(datasets.path("location30", "folder"), Arrays(x, y, extra=extra))


@needs("location30")
def test_location30_is_packed_from_the_released_text() -> None:
    raw = datasets.raw("location30")
    lines = [
        f'"{label + 1}",' + ",".join(map(str, row))
        for row, label in zip(raw.x[:40].tolist(), raw.y[:40].tolist(), strict=True)
    ]
    order = io.BytesIO()
    np.savez(order, x=np.arange(40)[::-1])
    packed = tabular.pack_location30(
        {"bangkok": "\n".join(lines).encode(), "shuffle_index.npz": order.getvalue()}
    )
    np.testing.assert_array_equal(packed["x"], raw.x[:40])
    np.testing.assert_array_equal(packed["y"], raw.y[:40])
    assert packed["memguard_order"].tolist() == list(range(39, -1, -1))


@needs("location30")
def test_the_pin_of_location30_is_that_of_the_released_text() -> None:
    raw = datasets.raw("location30")
    digest = hashlib.sha256()
    for row, label in zip(raw.x.tolist(), raw.y.tolist(), strict=True):
        digest.update(f'"{label + 1}",{",".join(map(str, row))}\n'.encode())
    assert digest.hexdigest() == tabular.LOCATION_ORIGINALS[0].sha256
