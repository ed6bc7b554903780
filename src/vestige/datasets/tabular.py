"""Tables: Adult, both Wisconsin breast cancer sets, Location30.

Inputs are scaled by fixed, documented transformations, so that a record's values do not depend on
who is drawn as a member.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.datasets.fetch import Original
from vestige.datasets.files import Arrays, Facts
from vestige.errors import DamagedFile
from vestige.records import Records

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
_UCI_ZIP = "https://archive.ics.uci.edu/static/public/"

# --- Adult (Kohavi and Becker 1996) --------------------------------------------------------------

ADULT_CLASSES = ("<=50K", ">50K")
ADULT_N_TRAIN = 32_561
_ADULT_NUMERIC = (
    "age",
    "fnlwgt",
    "education-num",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
)
_ADULT_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
)
_ADULT_CATEGORICAL = tuple(c for c in _ADULT_COLUMNS if c not in _ADULT_NUMERIC)
ADULT_FACTS = Facts(
    shape=(48_842, 14),
    counts=(37_155, 11_687),
    total=9_327_978_649,
    columns=_ADULT_COLUMNS,
    extra=tuple(f"cat_{c}" for c in _ADULT_CATEGORICAL),
)
ADULT_ORIGINALS = (
    Original(
        name="adult.data",
        size=3_974_305,
        sha256="5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        urls=(_UCI + "adult/adult.data", _UCI_ZIP + "2/adult.zip"),
        limit=8_000_000,
    ),
    Original(
        name="adult.test",
        size=2_003_153,
        sha256="a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        urls=(_UCI + "adult/adult.test", _UCI_ZIP + "2/adult.zip"),
        limit=8_000_000,
    ),
)


def pack_adult(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """Adult as integers: numbers as they are, categories as codes in sorted order, -1 = missing."""
    rows = _adult_rows(originals["adult.data"]) + _adult_rows(originals["adult.test"])
    # the test file writes its labels with a period
    y = np.array([row[-1].rstrip(".") == ">50K" for row in rows], dtype=np.int64)
    x = np.empty((len(rows), len(_ADULT_COLUMNS)), dtype=np.int32)
    arrays: dict[str, NDArray[Any]] = {}
    for j, column in enumerate(_ADULT_COLUMNS):
        cells = [row[j] for row in rows]
        if column in _ADULT_NUMERIC:
            x[:, j] = [int(cell) for cell in cells]
            continue
        levels = sorted(set(cells) - {"?"})
        codes = {level: code for code, level in enumerate(levels)} | {"?": -1}
        x[:, j] = [codes[cell] for cell in cells]
        arrays[f"cat_{column}"] = np.array(levels)
    split = (np.arange(len(rows)) >= ADULT_N_TRAIN).astype(np.uint8)
    return {"x": x, "y": y, "split": split, "columns": np.array(_ADULT_COLUMNS), **arrays}


def _adult_rows(data: bytes) -> list[list[str]]:
    lines = csv.reader(io.StringIO(data.decode("ascii")), skipinitialspace=True)
    # the test file opens with a remark, and both end with an empty line
    return [row for row in lines if len(row) == len(_ADULT_COLUMNS) + 1]


def adult_records(arrays: Arrays) -> Records:
    """Adult as (n, 105) float32: 6 numbers scaled to [0, 1], then one-hot categories.

    The scale is that of the published training rows (a test row can lie slightly outside); a
    missing category is all zeros.
    """
    values = dict(zip(_ADULT_COLUMNS, np.asarray(arrays.x).T, strict=True))
    parts = [_scaled(values[column]) for column in _ADULT_NUMERIC]
    names = list(_ADULT_NUMERIC)
    for column in _ADULT_CATEGORICAL:
        levels = arrays.names(f"cat_{column}")
        parts.append((values[column][:, None] == np.arange(len(levels))).astype(np.float32))
        names += [f"{column}={level}" for level in levels]
    x = np.concatenate(parts, axis=1)
    return Records.from_arrays(x, arrays.y, columns=names, classes=ADULT_CLASSES)


def _scaled(values: NDArray[Any]) -> NDArray[np.float32]:
    low, high = values[:ADULT_N_TRAIN].min(), values[:ADULT_N_TRAIN].max()
    scaled: NDArray[np.float64] = (values[:, None] - low) / float(high - low)
    return scaled.astype(np.float32)


def adult_code_records(arrays: Arrays) -> Records:
    """Adult as (n, 14) int32: numbers as they are, categories as codes, -1 = missing."""
    x = np.array(arrays.x)
    return Records.from_arrays(x, arrays.y, columns=_ADULT_COLUMNS, classes=ADULT_CLASSES)


# --- Breast Cancer Wisconsin, Original (Wolberg 1992) --------------------------------------------

WISCONSIN_CLASSES = ("benign", "malignant")
WISCONSIN_COLUMNS = (
    "clump_thickness",
    "uniformity_cell_size",
    "uniformity_cell_shape",
    "marginal_adhesion",
    "single_epithelial_cell_size",
    "bare_nuclei",
    "bland_chromatin",
    "normal_nucleoli",
    "mitoses",
)
WISCONSIN_FACTS = Facts(shape=(699, 9), counts=(458, 241), total=19_654)
WISCONSIN_ORIGINALS = (
    Original(
        name="breast-cancer-wisconsin.data",
        size=19_889,
        sha256="402c585309c399237740f635ef9919dc512cca12cbeb20de5e563a4593f22b64",
        urls=(
            _UCI + "breast-cancer-wisconsin/breast-cancer-wisconsin.data",
            _UCI_ZIP + "15/breast+cancer+wisconsin+original.zip",
        ),
        limit=1_000_000,
    ),
)


def pack_wisconsin(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The nine grades 1..10 as int8, -1 = missing; the sample number is left out."""
    text = originals["breast-cancer-wisconsin.data"].decode("ascii").replace("?", "-1")
    cells = np.array([line.split(",") for line in text.split()], dtype=np.int64)
    return {
        "x": cells[:, 1:10].astype(np.int8),
        "y": (cells[:, 10] == 4).astype(np.int64),
        "columns": np.array(WISCONSIN_COLUMNS),
    }


def wisconsin_records(arrays: Arrays) -> Records:
    """The grades divided by 10, (699, 9) float32; the 16 missing ones are 0."""
    x = np.maximum(np.asarray(arrays.x), 0).astype(np.float32) / np.float32(10)
    return Records.from_arrays(x, arrays.y, columns=WISCONSIN_COLUMNS, classes=WISCONSIN_CLASSES)


# --- Breast cancer, diagnostic (scikit-learn's) --------------------------------------------------

DIAGNOSTIC_CLASSES = ("malignant", "benign")
DIAGNOSTIC_FACTS = Facts(shape=(569, 30), counts=(212, 357))


def builtin_diagnostic() -> Arrays:
    """scikit-learn's `load_breast_cancer`: (569, 30) float64 in the units of the original."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    columns = np.array([str(c) for c in bunch.feature_names])
    return Arrays(bunch.data, bunch.target.astype(np.int64), extra={"columns": columns})


def diagnostic_records(arrays: Arrays) -> Records:
    """Each feature standardized over all 569 records, (569, 30) float32."""
    x = np.asarray(arrays.x, dtype=np.float64)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    columns = arrays.names("columns")
    return Records.from_arrays(x, arrays.y, columns=columns, classes=DIAGNOSTIC_CLASSES)


# --- Location30 (Shokri et al. 2017; Bangkok check-ins of Yang et al.) ---------------------------

LOCATION_FACTS = Facts(
    shape=(5_010, 446),
    # fmt: off
    counts=(
        169,
        178,
        147,
        155,
        97,
        182,
        120,
        308,
        145,
        210,
        189,
        184,
        141,
        122,
        229,
        110,
        176,
        128,
        180,
        254,
        228,
        117,
        158,
        170,
        139,
        139,
        155,
        152,
        149,
        179,
    ),
    # fmt: on
    total=269_047,
)
LOCATION_ORIGINALS = (
    Original(
        name="bangkok",
        size=4_492_469,
        sha256="2ca8f7fc231251e089823e44d39f2d1eed124574cc351c7f80368cfe631dd718",
        urls=(
            "https://raw.githubusercontent.com/privacytrustlab/datasets/"
            "169de9de00de049dd2e571cf7279e64698ac046a/dataset_location.tgz",
        ),
        limit=1_000_000,
    ),
    Original(
        name="shuffle_index.npz",
        size=40_316,
        sha256="ff3668c6392ff549e8da4cca462c72d78df4386a4462b1f306c6f7ac714f76d4",
        urls=(
            "https://raw.githubusercontent.com/jinyuan-jia/MemGuard/"
            "34e1859e37c133b6517fd01b834e1c091012b197/data/location/shuffle_index.npz",
        ),
        limit=1_000_000,
    ),
)


def pack_location30(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """446 bits as uint8, labels 1..30 as 0..29, and the published permutation."""
    text = originals["bangkok"].replace(b'"', b"").decode("ascii")
    cells = np.array([line.split(",") for line in text.split()], dtype=np.uint8)
    with np.load(io.BytesIO(originals["shuffle_index.npz"]), allow_pickle=False) as published:
        order = published["x"].astype(np.int32)
    return {
        "x": np.ascontiguousarray(cells[:, 1:]),
        "y": cells[:, 0].astype(np.int64) - 1,
        "memguard_order": order,
    }


def location30_records(arrays: Arrays) -> Records:
    """Places visited or not, (5010, 446) float32 of 0 and 1; 30 kinds of visitors."""
    x = np.asarray(arrays.x).astype(np.float32)
    return Records.from_arrays(x, arrays.y, classes=location30_classes())


def location30_classes() -> tuple[str, ...]:
    """Shokri et al. clustered the visitors; the clusters have no names."""
    return tuple(f"cluster {k}" for k in range(1, 31))


def memguard_order(path: Path, arrays: Arrays) -> NDArray[np.int64]:
    """The permutation MemGuard published with its code, (5010,) positions.

    Rows `order[0:1000]` train the target, `order[2000:3000]` are its non-members.

    Raises:
        DamagedFile: the file lacks it, or it is no permutation.
    """
    order = arrays.extra.get("memguard_order")
    if order is None or not np.array_equal(np.sort(order), np.arange(len(arrays.y))):
        raise DamagedFile(
            f"{path} is damaged or another file: expected the published permutation of its "
            f"{len(arrays.y)} records as memguard_order; remove it and prepare it again"
        )
    return order.astype(np.int64)
