"""Data sets by name: `load("adult")` gives `Records`.

A set is looked for as `<name>.npz` in `root`, else in `$VESTIGE_DATA`, else in the user's cache
folder; what is not there is made (`digits`, `breast_cancer`, the synthetic worlds) or fetched from
its public original, checked and kept in that same folder. A file of a known name is compared with
what is known of the set, so that no result carries the name of data it was not measured on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.datasets import images, tabular
from vestige.datasets.fetch import Original, Progress, fetch_originals
from vestige.datasets.files import Arrays, Facts, read_npz, write_npz
from vestige.datasets.synthetic import classification, gaussian_world
from vestige.errors import DatasetUnavailable, InvalidInput
from vestige.records import Records

__all__ = [
    "Arrays",
    "Description",
    "Progress",
    "classification",
    "describe",
    "gaussian_world",
    "load",
    "location30_order",
    "names",
    "path",
    "prepare",
    "raw",
]

Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Description:
    """What a data set is, as `load` gives it.

    Attributes:
        name: what `load` is called with.
        title: its full name.
        n_records: records in all.
        shape: of one record.
        classes: names of the classes, in the order of the labels.
        source: who made it, and the publication to cite.
        license: as stated by its makers.
        how_to_get: where it comes from when it is not on this machine.
        image: (height, width) or (height, width, 3) where a record is a picture, else ().
    """

    name: str
    title: str
    n_records: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    source: str
    license: str
    how_to_get: str
    image: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Set:
    """A row of the table below."""

    description: Description
    records: Callable[[Arrays], Records] | None = None
    facts: Facts | None = None
    stem: str = ""  # of the file, where it is not the name
    builtin: Callable[[], Arrays] | None = None
    originals: tuple[Original, ...] = ()
    pack: Callable[[Mapping[str, bytes]], dict[str, NDArray[Any]]] | None = None
    world: Callable[[], Records] | None = None

    @property
    def file(self) -> str:
        return (self.stem or self.description.name) + ".npz"


_BUILT_IN = "built in: nothing to get"
_FETCHED = "fetched from {} on first use, or by `vestige data prepare FOLDER`"
_RESEARCH = "none stated; used for research, cite the source"


def _adult(name: str, title: str, columns: int, records: Callable[[Arrays], Records]) -> _Set:
    description = Description(
        name=name,
        title=title,
        n_records=48_842,
        shape=(columns,),
        classes=tabular.ADULT_CLASSES,
        source="Kohavi and Becker 1996, UCI Machine Learning Repository, doi:10.24432/C5XW20",
        license="CC BY 4.0",
        how_to_get=_FETCHED.format("archive.ics.uci.edu"),
    )
    return _Set(
        description,
        records,
        tabular.ADULT_FACTS,
        stem="adult",
        originals=tabular.ADULT_ORIGINALS,
        pack=tabular.pack_adult,
    )


_TABLE = (
    _Set(
        Description(
            name="digits",
            title="Handwritten digits, 8x8",
            n_records=1_797,
            shape=(64,),
            classes=images.DIGITS_CLASSES,
            source="Alpaydin and Kaynak 1998, UCI Machine Learning Repository; scikit-learn's copy",
            license="CC BY 4.0",
            how_to_get=_BUILT_IN,
            image=(8, 8),
        ),
        images.digits_records,
        images.DIGITS_FACTS,
        builtin=images.builtin_digits,
    ),
    _Set(
        Description(
            name="breast_cancer",
            title="Breast Cancer Wisconsin (Diagnostic)",
            n_records=569,
            shape=(30,),
            classes=tabular.DIAGNOSTIC_CLASSES,
            source="Wolberg, Street and Mangasarian 1995, doi:10.24432/C5DW2B; scikit-learn's copy",
            license="CC BY 4.0",
            how_to_get=_BUILT_IN,
        ),
        tabular.diagnostic_records,
        tabular.DIAGNOSTIC_FACTS,
        builtin=tabular.builtin_diagnostic,
    ),
    _Set(
        Description(
            name="breast_cancer_wisconsin_original",
            title="Breast Cancer Wisconsin (Original)",
            n_records=699,
            shape=(9,),
            classes=tabular.WISCONSIN_CLASSES,
            source="Wolberg 1992, UCI Machine Learning Repository, doi:10.24432/C5HP4Z",
            license="CC BY 4.0",
            how_to_get=_FETCHED.format("archive.ics.uci.edu"),
        ),
        tabular.wisconsin_records,
        tabular.WISCONSIN_FACTS,
        originals=tabular.WISCONSIN_ORIGINALS,
        pack=tabular.pack_wisconsin,
    ),
    _adult("adult", "UCI Adult, one-hot", 105, tabular.adult_records),
    _adult("adult_codes", "UCI Adult, integer codes", 14, tabular.adult_code_records),
    _Set(
        Description(
            name="location30",
            title="Location30: places visited in Bangkok",
            n_records=5_010,
            shape=(446,),
            classes=tabular.location30_classes(),
            source="Shokri et al. 2017, from the check-ins of Yang, Zhang and Qu 2016",
            license=_RESEARCH,
            how_to_get=_FETCHED.format("github.com/privacytrustlab/datasets"),
        ),
        tabular.location30_records,
        tabular.LOCATION_FACTS,
        originals=tabular.LOCATION_ORIGINALS,
        pack=tabular.pack_location30,
    ),
    _Set(
        Description(
            name="mnist",
            title="MNIST",
            n_records=70_000,
            shape=(1, 28, 28),
            classes=images.MNIST_CLASSES,
            source="LeCun, Cortes and Burges 1998",
            license="CC BY-SA 3.0 as usually stated; copyright LeCun and Cortes",
            how_to_get=_FETCHED.format("ossci-datasets.s3.amazonaws.com"),
            image=(28, 28),
        ),
        images.mnist_records,
        images.MNIST_FACTS,
        originals=images.MNIST_ORIGINALS,
        pack=images.pack_idx,
    ),
    _Set(
        Description(
            name="fashion_mnist",
            title="Fashion-MNIST",
            n_records=70_000,
            shape=(1, 28, 28),
            classes=images.FASHION_CLASSES,
            source="Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
            license="MIT",
            how_to_get="Debian's package dataset-fashion-mnist, or "
            + _FETCHED.format("github.com"),
            image=(28, 28),
        ),
        images.fashion_records,
        images.FASHION_FACTS,
        originals=images.FASHION_ORIGINALS,
        pack=images.pack_idx,
    ),
    _Set(
        Description(
            name="cifar10",
            title="CIFAR-10",
            n_records=60_000,
            shape=(3, 32, 32),
            classes=images.CIFAR10_CLASSES,
            source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
            license=_RESEARCH,
            how_to_get=_FETCHED.format("www.cs.toronto.edu/~kriz"),
            image=(32, 32, 3),
        ),
        images.cifar10_records,
        images.CIFAR10_FACTS,
        originals=images.CIFAR10_ORIGINALS,
        pack=images.pack_cifar10,
    ),
    _Set(
        Description(
            name="orl_faces",
            title="ORL (AT&T) database of faces",
            n_records=400,
            shape=(1, 112, 92),
            classes=images.ORL_CLASSES,
            source="Samaria and Harter 1994; credit to Olivetti Research Laboratory",
            license="none stated; faces of real people: research use",
            how_to_get=_FETCHED.format("www.cl.cam.ac.uk"),
            image=(112, 92),
        ),
        images.orl_records,
        images.ORL_FACTS,
        originals=images.ORL_ORIGINALS,
        pack=images.pack_orl_faces,
    ),
    _Set(
        Description(
            name="synthetic_gaussian",
            title="Synthetic: two Gaussian classes, 10 % of the labels noise",
            n_records=4_000,
            shape=(20,),
            classes=("0", "1"),
            source="vestige.datasets.gaussian_world",
            license="none needed",
            how_to_get=_BUILT_IN,
        ),
        world=partial(gaussian_world, 4_000, 20, 2, label_noise=0.1),
    ),
    _Set(
        Description(
            name="synthetic_classification",
            title="Synthetic: four classes of scikit-learn's make_classification",
            n_records=4_000,
            shape=(20,),
            classes=("0", "1", "2", "3"),
            source="vestige.datasets.classification",
            license="none needed",
            how_to_get=_BUILT_IN,
        ),
        world=classification,
    ),
)
_SETS = {row.description.name: row for row in _TABLE}


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return tuple(_SETS)


def describe(name: str) -> Description:
    """What a data set is; nothing is read or fetched.

    Raises:
        InvalidInput: no data set of that name.
    """
    return _known(name).description


def path(name: str, root: Root = None) -> Path:
    """The file that `load` looks for, whether or not it is there.

    Args:
        name: one of `names()`, or the stem of a file of your own.
        root: a folder; `$VESTIGE_DATA` by default, else the user's cache folder.

    Raises:
        InvalidInput: a name that is no file's stem.
    """
    if name not in _SETS and not re.fullmatch(r"\w[\w.-]*", name):
        raise _unknown(name)
    return _folder(root) / (_SETS[name].file if name in _SETS else f"{name}.npz")


def load(name: str, root: Root = None) -> Records:
    """Records of a data set, scaled as a network wants them.

    Tables are float32, pictures float32 in [0, 1] with channels first. MNIST, Fashion-MNIST and
    CIFAR-10 stay on disk and are converted when rows are read. Ids are row numbers of the published
    order.

    Args:
        name: one of `names()`, or the stem of an .npz file of your own in `root` with `x` (n, ...),
            `y` (n,) and optionally `columns` and `classes`; that one is given as it is.
        root: a folder; `$VESTIGE_DATA` by default, else the user's cache folder.

    Raises:
        InvalidInput: no data set and no file of that name.
        DatasetUnavailable: neither on this machine nor to be fetched.
        DamagedFile: a file of that name with other contents.

    >>> load("digits").x.shape
    (1797, 64)
    """
    known = _SETS.get(name)
    if known is None:
        return _own(name, root)
    if known.world is not None:
        return known.world()
    assert known.records is not None
    return known.records(raw(name, root))


def raw(name: str, root: Root = None) -> Arrays:
    """The arrays of a data set as published: unscaled, with the published split.

    Raises:
        InvalidInput: no data set of that name, or one that is made up.
        DatasetUnavailable, DamagedFile: as `load`.
    """
    known = _known(name)
    if known.world is not None:
        raise InvalidInput(f"expected a set with a file, got {name}, which is made up; use load")
    file = path(name, root)
    if not file.exists():
        if known.builtin is not None:
            return known.builtin()
        _fetch(known, file)
    return read_npz(file, known.facts)


def location30_order(root: Root = None) -> NDArray[np.int64]:
    """The permutation of Location30 that MemGuard published, (5010,) row numbers.

    Rows `order[0:1000]` train the target, `order[2000:3000]` are its non-members,
    `order[3000:3500]` and `order[4000:4500]` the attacker's members and non-members (Jia et al.
    2019).
    """
    return tabular.memguard_order(path("location30", root), raw("location30", root))


def prepare(
    folder: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Fetch the public originals, check them and write `<name>.npz` files.

    A file that is already there is checked and left alone. One set that cannot be had does not
    keep the others from being written.

    Args:
        folder: made if absent; what `VESTIGE_DATA` or `root` should then name.
        names: some of `names()`; by default all that have an original. What is built in needs none.
        progress: called as bytes arrive with (data set, bytes so far, bytes of this download).

    Returns:
        The files, in the order asked for.

    Raises:
        InvalidInput: no data set of that name.
        DatasetUnavailable: which could not be had, and why.
        DamagedFile: a file that is already there is not that data set.
        StoreError: the folder cannot be written.
    """
    wanted = [_known(name) for name in (names if names is not None else _SETS)]
    files = {Path(folder) / row.file: row for row in wanted if row.originals}
    failures = []
    for file, row in files.items():
        if file.exists():
            read_npz(file, row.facts)
            continue
        try:
            _fetch(row, file, progress)
        except DatasetUnavailable as failure:
            failures.append(str(failure))
    if failures:
        raise DatasetUnavailable("; ".join(failures))
    return tuple(files)


def _known(name: str) -> _Set:
    if name not in _SETS:
        raise _unknown(name)
    return _SETS[name]


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(f"expected one of the data sets {', '.join(_SETS)}, got {name!r}")


def _folder(root: Root) -> Path:
    if root is not None:
        return Path(root)
    named = os.environ.get("VESTIGE_DATA")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vestige"


def _own(name: str, root: Root) -> Records:
    """A file of the user's own, as it is."""
    file = path(name, root)
    if not file.exists():
        raise InvalidInput(
            f"expected one of the data sets {', '.join(_SETS)} or a file {file.name} in "
            f"{file.parent}, got neither for {name!r}"
        )
    arrays = read_npz(file)
    return Records.from_arrays(
        arrays.x, arrays.y, columns=arrays.names("columns"), classes=arrays.names("classes")
    )


def _fetch(row: _Set, file: Path, progress: Progress | None = None) -> None:
    """The originals of a set, packed and checked, as a file."""
    assert row.pack is not None
    name = file.stem
    named = None if progress is None else lambda _, done, size: progress(name, done, size)
    try:
        # on the disk that will keep the file; its folder is made only once there is one
        scratch = next(folder for folder in file.absolute().parents if folder.is_dir())
        originals = fetch_originals(row.originals, progress=named, scratch=scratch)
    except DatasetUnavailable as failure:
        raise DatasetUnavailable(
            f"{name} is not on this machine: there is no {file}, and {failure}; put {file.name} "
            "there, set VESTIGE_DATA to a folder that has it, or run `vestige data prepare FOLDER` "
            "where there is a network"
        ) from failure
    write_npz(file, row.pack(originals))
