"""Records keep their ids when they are sliced; a split says who was trained on.

`Records` is three arrays. `Split` is the ground truth of an audit, and the only one: everything
that needs to know who is a member asks `Split.is_member(ids)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput

__all__ = ["Records", "Rows", "Split", "concatenate", "duplicates", "split"]

_CHUNK_BYTES = 32 * 2**20


class ArrayLike(Protocol):
    """What `Records.x` may be: a NumPy array, a memory map, or rows of several of them."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Rows:
    """Chosen rows of one or more arrays, read only when asked for.

    Slicing a memory map by index would load it; slicing `Rows` composes indices instead, and
    concatenating puts the parts behind one another without copying.

    Args:
        parts: arrays of shape (n_i, ...) with equal trailing shapes.
        index: rows of the virtual concatenation, shape (n,); all of them by default.
    """

    def __init__(self, parts: Sequence[ArrayLike], index: NDArray[np.int64] | None = None) -> None:
        shapes = sorted({tuple(p.shape[1:]) for p in parts})
        if len(shapes) != 1:
            raise InvalidInput(f"expected arrays with records of one shape, got {shapes}")
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(p) for p in parts)])
        self._index = np.arange(self._starts[-1]) if index is None else index
        self.dtype = np.result_type(*(p.dtype for p in parts))
        self.shape = (len(self._index), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        wanted = np.atleast_1d(self._index[index])
        out = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        for part, start, stop in zip(self._parts, self._starts, self._starts[1:], strict=False):
            here = (wanted >= start) & (wanted < stop)
            if here.any():
                out[here] = part[wanted[here] - start]
        return out if np.ndim(self._index[index]) else out[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def take(self, index: NDArray[np.int64]) -> Rows:
        """The same parts, other rows; nothing is read."""
        return Rows(self._parts, self._index[index])


@dataclass(frozen=True, eq=False)
class Records:
    """Records with ids that survive slicing.

    Attributes:
        ids: (n,) integers or strings, unique.
        x: (n, ...) inputs, in memory or memory-mapped.
        y: (n,) int64 class labels from 0.
        columns: names of the features where a record is a row, else empty.
        classes: names of the classes, else empty.
    """

    ids: NDArray[Any]
    x: Any
    y: NDArray[np.int64]
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if getattr(getattr(self.x, "dtype", None), "kind", "") not in (*"iufb",):
            raise InvalidInput(
                f"expected inputs as an array of numbers, got {_what(self.x)}; use "
                "Records.from_arrays, which converts them"
            )
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "iuU":
            raise InvalidInput(
                f"expected ids as a 1-D array of integers or strings, got {self.ids.dtype} of "
                f"shape {self.ids.shape}"
            )
        if self.y.ndim != 1 or self.y.dtype.kind not in "iu":
            raise InvalidInput(
                f"expected labels as a 1-D array of integers, got {self.y.dtype} of shape "
                f"{self.y.shape}; use Records.from_arrays, which encodes them"
            )
        if not len(self.ids) == len(self.x) == len(self.y):
            raise InvalidInput(
                f"expected one label and one id a record, got {len(self.x)} records, "
                f"{len(self.y)} labels and {len(self.ids)} ids; drop the extra ones"
            )
        if len(np.unique(self.ids)) != len(self.ids):
            raise InvalidInput("expected unique ids, got repeated ones; number the records anew")
        if len(self.y) and self.y.min() < 0:
            raise InvalidInput(
                f"expected labels from 0, got {self.y.min()}; map the classes to 0, 1, 2, ..."
            )
        if self.classes and len(self.y) and self.y.max() >= len(self.classes):
            raise InvalidInput(
                f"expected labels below {len(self.classes)} (the classes "
                f"{', '.join(self.classes[:5])}{', ...' if len(self.classes) > 5 else ''}), got "
                f"{self.y.max()}; name every class"
            )

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        ids: Any = None,
        columns: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> Records:
        """Records from NumPy arrays, tensors, or a pandas DataFrame and Series.

        Args:
            x: (n, ...) inputs; a DataFrame must be numeric and gives the column names.
            y: (n,) labels; text labels are numbered in sorted order, or in that of `classes`.
            ids: (n,) unique integers or strings; 0..n-1 by default.

        Raises:
            InvalidInput: what is wrong with them.
        """
        frame_columns = getattr(x, "columns", None)
        if frame_columns is not None:
            columns = [str(c) for c in frame_columns]
        labels, found = encode_labels(y, classes)
        n = len(labels)
        return cls(
            np.arange(n) if ids is None else _as_ids(ids),
            as_inputs(x),
            labels,
            tuple(columns),
            tuple(classes) or found,
        )

    @classmethod
    def from_dataset(cls, dataset: Any, ids: Any = None) -> Records:
        """Records from a torch `Dataset` whose items are (x, y) pairs; read once, in order."""
        if getattr(dataset, "__len__", None) is None:
            raise InvalidInput(
                f"expected a dataset with a length, got {type(dataset).__name__}; collect its "
                "items in a list first"
            )
        pairs = [dataset[i] for i in range(len(dataset))]
        if not pairs or not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs):
            raise InvalidInput(
                "expected a dataset of (x, y) pairs with at least one item; wrap it so that "
                "dataset[i] gives the input and its label"
            )
        items = [_as_array(a) for a, _ in pairs]
        shapes = sorted({a.shape for a in items})
        if len(shapes) > 1:
            raise InvalidInput(
                f"expected items of one shape, got {shapes[0]} and {shapes[1]}; resize or pad them"
            )
        return cls.from_arrays(np.stack(items), np.asarray([_as_array(b) for _, b in pairs]), ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Records:
        """The chosen records (a slice, a boolean mask or integer positions), with their ids."""
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        rows = np.arange(len(self))[index]
        return replace(self.drawn(rows), ids=self.ids[rows])

    def drawn(self, rows: NDArray[np.int64]) -> Records:
        """The records of these rows, some of them more than once, numbered anew."""
        x = _rows(self.x).take(rows) if _lazy(self.x) else self.x[rows]
        return Records(np.arange(len(rows)), x, self.y[rows], self.columns, self.classes)

    @property
    def n_classes(self) -> int:
        """Number of classes: as named, else the largest label plus one."""
        return len(self.classes) or (int(self.y.max()) + 1 if len(self) else 0)

    def chunks(self) -> Iterator[slice]:
        """Slices of about 32 MiB of inputs, for reading memory-mapped records in order."""
        width = max(1, int(np.prod(self.x.shape[1:])) * self.x.dtype.itemsize)
        step = max(1, _CHUNK_BYTES // width)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def content_hash(self, precision: Any = np.float64) -> NDArray[np.uint64]:
        """A hash of each record's input and label, shape (n,), equal for equal contents.

        Numbers are compared as float64, so that the same record stored as float32 and as uint8
        hashes alike when it holds the same values.

        Args:
            precision: round to this type first; for records kept in types of different width.
        """
        out = np.empty(len(self), dtype=np.uint64)
        for part in self.chunks():
            with np.errstate(over="ignore"):
                x = np.asarray(self.x[part]).astype(precision).astype(np.float64)
            # adding 0.0 turns -0.0 into 0.0
            x = np.ascontiguousarray(x.reshape(part.stop - part.start, -1) + 0.0)
            for i, (row, label) in enumerate(zip(x, self.y[part], strict=True)):
                digest = hashlib.blake2b(row.tobytes(), digest_size=8)
                digest.update(int(label).to_bytes(8, "little"))
                out[part.start + i] = int.from_bytes(digest.digest(), "little")
        return out

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.x.shape, str(self.x.dtype))).encode())
        ids = self.ids.astype(np.int64) if self.ids.dtype.kind in "iu" else self.ids
        digest.update(ids.tobytes())
        digest.update(self.y.astype(np.int64).tobytes())
        for part in self.chunks():
            digest.update(np.ascontiguousarray(self.x[part]).tobytes())
        return digest.hexdigest()

    def digest(self) -> str:
        """sha256 over ids, inputs and labels; the arrays are taken not to change."""
        return self._digest


def _rows(x: Any) -> Rows:
    return x if isinstance(x, Rows) else Rows([x])


def _lazy(x: Any) -> bool:
    """Whether taking rows of it should wait: all but an array in memory."""
    return type(x) is not np.ndarray


def _what(x: Any) -> str:
    return str(getattr(x, "dtype", type(x).__name__))


def _as_array(x: Any) -> NDArray[Any]:
    """A tensor, list or frame as a NumPy array."""
    detach = getattr(x, "detach", None)
    if detach is None:
        return np.asarray(x)
    tensor = detach().cpu()
    # NumPy has no bfloat16; float32 holds its values exactly
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def _as_ids(ids: Any) -> NDArray[Any]:
    """Ids as an array of integers or text; a column of objects is read as what it holds."""
    array = _as_array(ids)
    return np.asarray(array.tolist()) if array.dtype.kind == "O" and array.ndim == 1 else array


def as_inputs(x: Any) -> Any:
    """Inputs as an array: NumPy and memory maps as they are, tensors and frames converted."""
    if isinstance(x, (np.memmap, Rows)):
        return x
    if getattr(x, "columns", None) is not None:
        text = [str(c) for c, t in zip(x.columns, x.dtypes, strict=True) if t.kind not in "iufb"]
        if text:
            raise InvalidInput(
                f"expected numeric columns, got text or dates in {', '.join(text[:5])}; encode "
                "them (for example one-hot) before the audit"
            )
        made = x.to_numpy()
        # columns of several kinds (truth values beside numbers) come as objects
        x = made if made.dtype.kind != "O" else x.to_numpy(dtype=np.float64, na_value=np.nan)
    array = _as_array(x)
    if array.dtype.kind not in "iufb" or not array.ndim:
        raise InvalidInput(
            f"expected numbers as inputs, shape (n, ...), got {array.dtype} of shape "
            f"{array.shape}; encode text, fill gaps, and make sparse matrices dense first"
        )
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def encode_labels(y: Any, classes: Sequence[str] = ()) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as int64 from 0, and the names of the classes where they were text.

    Args:
        y: (n,) class numbers, or names.
        classes: the names in the order of their numbers; by default those found, sorted.
    """
    labels = _as_array(y)
    if labels.dtype.kind == "O":
        labels = _of_objects(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidInput(
            f"expected labels of shape (n,), got {labels.shape}; give class numbers, not one-hot"
        )
    if labels.dtype.kind in "US":
        return _numbered(labels.astype(str), classes)
    if labels.dtype.kind not in "iufb":
        raise InvalidInput(
            f"expected class numbers or names as labels, got {labels.dtype}; convert them"
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise InvalidInput(
            "expected class numbers as labels, got fractions, NaN or infinity; drop those records "
            "or give whole numbers"
        )
    return labels.astype(np.int64), ()


def _of_objects(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels from a column of Python objects: all numbers or all text, never a mixture.

    Numbers taken as text would be sorted as text, 10 before 2, and every class be another one.
    """
    found = labels.reshape(-1).tolist()
    if all(isinstance(v, (str, bytes)) for v in found) or all(
        isinstance(v, (bool, int, float, np.number, np.bool_)) for v in found
    ):
        return np.asarray(found, dtype=None if found else np.int64).reshape(labels.shape)
    odd = sorted({type(v).__name__ for v in found})
    raise InvalidInput(
        f"expected labels that are all numbers or all text, got {', '.join(odd)}; fill gaps and "
        "convert the column"
    )


def _numbered(
    labels: NDArray[np.str_], classes: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    names, codes = np.unique(labels, return_inverse=True)
    found = tuple(str(name) for name in names)
    if not classes:
        return codes.astype(np.int64), found
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise InvalidInput(
            f"expected labels among the classes {', '.join(classes[:10])}, got {unknown[0]!r}; "
            "name every class"
        )
    place = np.array([list(classes).index(name) for name in found], dtype=np.int64)
    return place[codes], tuple(classes)


def concatenate(*parts: Records) -> Records:
    """The records of all parts, in order; memory maps stay on disk."""
    full = [p for p in parts if len(p)] or [parts[0]]
    if any(_lazy(p.x) for p in full):
        x: Any = Rows([p.x for p in full])
    else:
        x = np.concatenate([p.x for p in full])
    ids = np.concatenate([p.ids for p in full])
    y = np.concatenate([p.y for p in full])
    classes = max((p.classes for p in full), key=len)
    return Records(ids, x, y, full[0].columns, classes)


def duplicates(records: Records) -> NDArray[np.bool_]:
    """Which records repeat the content of an earlier one, shape (n,)."""
    _, first = np.unique(records.content_hash(), return_index=True)
    repeated = np.ones(len(records), dtype=bool)
    repeated[first] = False
    return repeated


def _pair(side: Any) -> tuple[Any, Any]:
    """Inputs and labels of a side: a pair of arrays, records, or a dataset of pairs."""
    if isinstance(side, tuple):
        if len(side) != 2:
            raise InvalidInput(
                f"expected a side as a pair (x, y), got a tuple of {len(side)}; give the inputs "
                "and their labels"
            )
        return side
    records = side if isinstance(side, Records) else Records.from_dataset(side)
    return records.x, records.y


@dataclass(frozen=True, eq=False)
class Split:
    """Who was trained on, who was not, and what the adversary owns besides.

    Attributes:
        members: the target's training set, or a part of it.
        nonmembers: records of the same distribution that the target never saw.
        population: further such records, known to the adversary as non-members; may be empty.
    """

    members: Records
    nonmembers: Records
    population: Records

    @classmethod
    def from_arrays(
        cls,
        members: Any,
        nonmembers: Any,
        population: Any = None,
        *,
        classes: Sequence[str] = (),
        drop_overlap: bool = False,
    ) -> Split:
        """Number the records and check them.

        A side is a pair (x, y) of arrays, tensors or frames, a torch `Dataset` of such pairs, or
        `Records`, whose ids are then given anew.

        Args:
            drop_overlap: leave out non-members (and population) whose content is also a
                member's, instead of refusing them.

        Raises:
            InvalidInput: the sides overlap, a side is empty, values are not finite, ...
        """
        sides = [members, nonmembers] + ([population] if population is not None else [])
        pairs = [_pair(side) for side in sides]
        known = [side for side in sides if isinstance(side, Records)]
        named = sorted({r.classes for r in known if r.classes})
        if len(named) > 1 and not classes:
            raise InvalidInput(
                f"expected the same classes on all sides, got {', '.join(named[0][:6])} and "
                f"{', '.join(named[1][:6])}; encode the labels of all sides together"
            )
        classes = classes or (named[0] if named else ())
        labels, names = encode_labels(_joined_labels([y for _, y in pairs]), classes)
        names = tuple(classes) or names
        parts, start = [], 0
        for side, (x, y) in zip(sides, pairs, strict=True):
            stop = start + len(y)
            columns = side.columns if isinstance(side, Records) else ()
            ids = np.arange(start, stop)
            part = Records.from_arrays(x, labels[start:stop], ids, columns, names)
            parts.append(part)
            start = stop
        if population is None:
            parts.append(parts[1][:0])
        made = cls(*parts)
        return made.checked(drop_overlap=drop_overlap)

    @property
    def candidates(self) -> Records:
        """Members, then non-members: what an attack scores. Attacks see them shuffled."""
        return concatenate(self.members, self.nonmembers)

    def is_member(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each id was in the target's training set, shape of ids."""
        return np.isin(ids, self.members.ids)

    def checked(self, *, drop_overlap: bool = False) -> Split:
        """This split, once nothing is wrong with it.

        Raises:
            InvalidInput: names every problem found.
        """
        made = self._without_overlap() if drop_overlap else self
        found = made.problems()
        if found:
            raise InvalidInput("; ".join(found))
        return made

    def problems(self) -> list[str]:
        """Everything that makes an audit of this split meaningless, one clause each."""
        sides = (
            ("members", self.members),
            ("non-members", self.nonmembers),
            ("population", self.population),
        )
        found = [
            f"expected at least one of the {name}, got none; give records on both sides"
            for name, side in sides[:2]
            if not len(side)
        ]
        if found:
            return found
        shapes = {side.x.shape[1:] for _, side in sides if len(side)}
        if len(shapes) > 1:
            return [
                f"expected records of one shape, got {sorted(shapes)}; prepare both sides alike"
            ]
        classes = {side.classes for _, side in sides if len(side) and side.classes}
        if len(classes) > 1:
            return [
                "expected the same classes in the same order on all sides, got "
                + " and ".join(", ".join(c[:6]) for c in sorted(classes)[:2])
                + "; encode the labels of all sides together"
            ]
        columns = {side.columns for _, side in sides if len(side) and side.columns}
        if len(columns) > 1:
            return [
                "expected the same columns in the same order on all sides, got "
                f"{_differing(sorted(columns))}; select them alike"
            ]
        found += [_not_finite(name, side) for name, side in sides]
        labels = np.union1d(self.members.y, self.nonmembers.y)
        if len(labels) < 2:
            found.append(
                f"expected at least two classes, got only class {labels[0]}; membership of a "
                "one-class model cannot be read from its answers"
            )
        found += [] if any(found) else self._overlap()
        return [text for text in found if text]

    def _overlap(self) -> list[str]:
        found = []
        for name, side in (("non-members", self.nonmembers), ("population", self.population)):
            by_id = np.intersect1d(self.members.ids, side.ids)
            if len(by_id):
                found.append(
                    f"expected {name} that are not members, got {len(by_id)} with a member's id "
                    f"(for example {by_id[0]}); remove them from one side"
                )
        if np.intersect1d(self.nonmembers.ids, self.population.ids).size:
            found.append(
                "expected a population disjoint from the non-members, got shared ids; a record "
                "the adversary was given cannot be scored"
            )
        if found:
            return found
        precision = self._precision()
        candidates = self.candidates.content_hash(precision)
        members, others = np.split(candidates, [len(self.members)])
        shared = np.isin(others, members)
        if shared.any():
            example = self.nonmembers.ids[np.flatnonzero(shared)[0]]
            found.append(
                f"expected non-members that are not members, got {int(shared.sum())} with the "
                f"same content and label as a member (for example id {example}); remove them or "
                "pass drop_overlap=True"
            )
        if len(self.population):
            given = np.isin(self.population.content_hash(precision), candidates)
            if given.any():
                found.append(
                    f"expected a population disjoint from the candidates, got {int(given.sum())} "
                    "records with a candidate's content; remove them or pass drop_overlap=True"
                )
        return found

    def _precision(self) -> Any:
        """The narrowest type that a side is kept in: 0.1 as float32 is not 0.1 as float64."""
        sides = (self.members, self.nonmembers, self.population)
        floats = [side.x.dtype for side in sides if len(side) and side.x.dtype.kind == "f"]
        return min(floats, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))

    def _without_overlap(self) -> Split:
        precision = self._precision()
        members = self.members.content_hash(precision)
        others = self.nonmembers.content_hash(precision)
        kept = self.nonmembers[~np.isin(others, members)]
        population = self.population
        if len(population):
            taken = np.concatenate([members, others])
            population = population[~np.isin(population.content_hash(precision), taken)]
        return Split(self.members, kept, population)


def _differing(columns: Sequence[tuple[str, ...]]) -> str:
    """Where two lists of column names part."""
    pairs = zip_longest(columns[0], columns[1], fillvalue="nothing")
    return next(f"{a} on one and {b} on another" for a, b in pairs if a != b)


def _joined_labels(parts: Sequence[Any]) -> NDArray[Any]:
    """Labels of several sides behind one another, so that a name means one class on all of them."""
    arrays = [_as_array(y) for y in parts]
    arrays = [_of_objects(a) if a.dtype.kind == "O" else a for a in arrays]
    arrays = [a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for a in arrays]
    text = {a.dtype.kind in "US" for a in arrays}
    if len(text) > 1 or len({a.ndim for a in arrays}) > 1:
        kinds = ", ".join(f"{a.dtype} of shape {a.shape}" for a in arrays)
        raise InvalidInput(f"expected labels of one kind on all sides, got {kinds}; convert them")
    return np.concatenate(arrays)


def _not_finite(name: str, side: Records) -> str:
    if side.x.dtype.kind != "f":
        return ""
    bad = sum(
        int((~np.isfinite(side.x[part]).reshape(part.stop - part.start, -1).all(axis=1)).sum())
        for part in side.chunks()
    )
    if not bad:
        return ""
    return f"expected finite inputs, got NaN or infinity in {bad} {name}; impute or drop them"


def split(
    records: Records, n_members: int, n_nonmembers: int, n_population: int = 0, seed: int = 0
) -> Split:
    """Draw disjoint members, non-members and population at random.

    Records with the content of an earlier one are left out first: one of a pair of equal records
    would otherwise sit on either side.

    Raises:
        InvalidInput: fewer distinct records than asked for.
    """
    if min(n_members, n_nonmembers, n_population, seed) < 0:
        raise InvalidInput(
            f"expected numbers of records and a seed from 0, got {n_members} members, "
            f"{n_nonmembers} non-members, {n_population} population and seed {seed}"
        )
    distinct = np.flatnonzero(~duplicates(records))
    wanted = n_members + n_nonmembers + n_population
    if wanted > len(distinct):
        raise InvalidInput(
            f"expected at least {wanted} distinct records ({n_members} members, {n_nonmembers} "
            f"non-members, {n_population} population), got {len(distinct)}; ask for fewer"
        )
    drawn = np.random.default_rng(seed).permutation(distinct)[:wanted]
    parts = np.split(drawn, [n_members, n_members + n_nonmembers])
    return Split(*(records[part] for part in parts)).checked()
