"""Records keep their ids, stay on disk, and are told apart by what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import TensorDataset

from vestige.errors import InvalidInput
from vestige.records import (
    Records,
    Rows,
    Split,
    concatenate,
    duplicates,
    encode_labels,
    split,
)


class Counting:
    """An array that counts the rows that are read from it."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.n_read = 0

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        found = self._array[index]
        self.n_read += len(np.atleast_2d(found))
        return found


def records(n: int = 10, width: int = 3, classes: int = 2) -> Records:
    x = np.arange(n * width, dtype=np.float32).reshape(n, width)
    return Records.from_arrays(x, np.arange(n) % classes, ids=100 + np.arange(n))


def equal(a: Records, b: Records) -> bool:
    same = [np.array_equal(a.ids, b.ids), np.array_equal(a.y, b.y)]
    return all(same) and np.array_equal(np.asarray(a.x[:]), np.asarray(b.x[:]))


# --- slicing -----------------------------------------------------------------------------------


@st.composite
def arrays_and_indices(draw):
    parts = [
        np.asarray(draw(hnp.arrays(np.int16, (n, 2))))
        for n in draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    ]
    total = sum(len(p) for p in parts)
    positions = st.lists(st.integers(-total, total - 1), max_size=8) if total else st.just([])
    slices = st.slices(total)
    masks = hnp.arrays(bool, total)
    index = draw(st.one_of(positions.map(lambda p: np.array(p, dtype=np.int64)), slices, masks))
    return parts, index


@given(arrays_and_indices())
def test_rows_are_the_concatenation(case):
    parts, index = case
    rows, whole = Rows(parts), np.concatenate(parts)
    assert rows.shape == whole.shape and len(rows) == len(whole)
    np.testing.assert_array_equal(rows[index], whole[index])
    order = np.arange(len(whole))[index]
    np.testing.assert_array_equal(rows.take(order)[:], whole[index])
    np.testing.assert_array_equal(rows.take(order)[::-1], whole[index][::-1])
    backwards = np.arange(len(order))[::-1]
    np.testing.assert_array_equal(rows.take(order).take(backwards)[:], whole[index][::-1])
    np.testing.assert_array_equal(np.asarray(rows), whole)


@given(arrays_and_indices(), st.booleans())
def test_slicing_keeps_ids_with_their_records(case, lazy):
    parts, index = case
    if not isinstance(index, slice) and index.dtype != bool:
        n = sum(len(p) for p in parts)
        index = np.array(list(dict.fromkeys((index % max(n, 1)).tolist())), dtype=np.int64)
    x = Rows(parts) if lazy else np.concatenate(parts)
    n = len(x)
    made = Records.from_arrays(x, np.arange(n) % 3, ids=1000 - np.arange(n))
    chosen, want = made[index], np.arange(n)[index]
    np.testing.assert_array_equal(chosen.ids, 1000 - want)
    np.testing.assert_array_equal(chosen.y, want % 3)
    np.testing.assert_array_equal(np.asarray(chosen.x[:]), np.concatenate(parts)[index])
    # slicing twice is slicing once
    twice = chosen[::-1]
    np.testing.assert_array_equal(twice.ids, (1000 - want)[::-1])
    np.testing.assert_array_equal(np.asarray(twice.x[:]), np.concatenate(parts)[index][::-1])


def test_one_row_of_rows_has_no_leading_dimension():
    rows = Rows([np.arange(6).reshape(3, 2), np.arange(6, 8).reshape(1, 2)])
    np.testing.assert_array_equal(rows[3], [6, 7])
    np.testing.assert_array_equal(rows[-1], [6, 7])
    assert rows[np.int64(0)].shape == (2,)


def test_an_integer_gives_one_record():
    one = records()[3]
    assert len(one) == 1 and one.ids.tolist() == [103] and one.x.shape == (1, 3)


def test_columns_and_classes_survive_slicing():
    made = Records.from_arrays([[1.0], [2.0]], ["b", "a"], columns=("age",))
    assert made[:1].columns == ("age",) and made[:1].classes == ("a", "b")
    assert made[:1].n_classes == 2  # though only one of them is left


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans())
def test_concatenation_is_the_parts_in_order(sizes, lazy):
    parts, start = [], 0
    for n in sizes:
        x = np.arange(start, start + n, dtype=np.float64)[:, None]
        own = Rows([x]) if lazy else x
        parts.append(Records.from_arrays(own, np.zeros(n, int), ids=np.arange(start, start + n)))
        start += n
    both = concatenate(*parts)
    np.testing.assert_array_equal(both.ids, np.arange(start))
    np.testing.assert_array_equal(np.asarray(both.x[:])[:, 0], np.arange(start))
    for part in parts:
        assert equal(both[np.isin(both.ids, part.ids)], part)


def test_concatenation_refuses_an_id_twice():
    with pytest.raises(InvalidInput, match="unique ids"):
        concatenate(records(), records())


def test_rows_refuse_records_of_two_shapes():
    with pytest.raises(InvalidInput, match="one shape"):
        Rows([np.zeros((2, 3)), np.zeros((2, 4))])


# --- on disk -----------------------------------------------------------------------------------


def mapped(folder: Path, n: int = 1000, width: int = 4) -> np.memmap[Any, Any]:
    path = folder / "x.bin"
    made = np.memmap(path, dtype=np.float32, mode="w+", shape=(n, width))
    made[:] = np.arange(n * width).reshape(n, width)
    made.flush()
    return np.memmap(path, dtype=np.float32, mode="r", shape=(n, width))


def test_slices_of_a_memory_map_read_nothing(tmp_path):
    made = Records.from_arrays(mapped(tmp_path), np.arange(1000) % 2)
    part = concatenate(made[np.arange(500) * 2], made[1::2])[::-1]
    assert isinstance(made.x, np.memmap) and isinstance(part.x, Rows)
    np.testing.assert_array_equal(part.x[0], mapped(tmp_path)[999])


def test_slicing_an_array_that_is_not_in_memory_reads_no_row():
    x = Counting(np.arange(40.0).reshape(20, 2))
    made = Records.from_arrays(Rows([x]), np.arange(20) % 2)
    straight = Records(made.ids, x, made.y)
    parts = [made[::2], straight[1::2]]
    both = concatenate(*parts)[np.random.default_rng(0).permutation(20)]
    assert x.n_read == 0
    assert both.x[:3].shape == (3, 2) and x.n_read == 3


def test_content_and_digest_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr("vestige.records._CHUNK_BYTES", 64)
    x = Counting(np.arange(40.0).reshape(20, 2))
    lazy = Records.from_arrays(Rows([x]), np.arange(20) % 2)
    assert [s.stop - s.start for s in lazy.chunks()] == [4] * 5
    dense = Records.from_arrays(np.arange(40.0).reshape(20, 2), np.arange(20) % 2)
    assert lazy.digest() == dense.digest()
    np.testing.assert_array_equal(lazy.content_hash(), dense.content_hash())
    assert lazy.digest() == lazy.digest() and x.n_read == 40  # the digest is kept


def test_records_larger_than_a_limit_of_memory_are_sliced(tmp_path):
    import resource

    path, n = tmp_path / "large.bin", 1 << 16
    with path.open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB of holes
    x = np.memmap(path, dtype=np.float32, mode="r", shape=(n, 1 << 15))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = Records.from_arrays(x, np.arange(n) % 2)
    part = concatenate(made[::2], made[1::2])
    assert part.x[-5:].sum() == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 * 1024  # KiB: ids, labels and positions, not 8 GiB of inputs


# --- content -----------------------------------------------------------------------------------

contents = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.sampled_from([0, 1, -0.0, 2])
)


@given(contents, st.data())
def test_equal_hashes_are_equal_contents(x, data):
    y = np.asarray(data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, 1))))
    made = Records.from_arrays(x, y)
    hashes = made.content_hash()
    for i in range(len(x)):
        for j in range(len(x)):
            same = bool((x[i] == x[j]).all() and y[i] == y[j])
            assert (hashes[i] == hashes[j]) == same
    # naive oracle of "repeats an earlier one"
    seen: set[Any] = set()
    for i, repeated in enumerate(duplicates(made)):
        content = (*(x[i] + 0.0).tolist(), int(y[i]))
        assert repeated == (content in seen)
        seen.add(content)


def test_a_hash_does_not_depend_on_how_numbers_are_kept():
    x = np.array([[0, 1, 255], [3, 4, 5]])
    hashes = [
        Records.from_arrays(x.astype(t), [0, 1]).content_hash().tolist()
        for t in (np.uint8, np.int64, np.float32, np.float64)
    ]
    assert hashes[0] == hashes[1] == hashes[2] == hashes[3]
    assert hashes[0] != Records.from_arrays(x, [1, 0]).content_hash().tolist()


@pytest.mark.parametrize("what", ["ids", "x", "y"])
def test_a_digest_depends_on_everything(what):
    made = records()
    other = {"ids": made.ids.copy(), "x": np.array(made.x), "y": made.y.copy()}
    other[what][0] += 1
    if what == "ids":
        other["ids"][0] = 7
    assert Records(**other).digest() != made.digest()
    assert records().digest() == made.digest()


# --- from what people have ---------------------------------------------------------------------


def test_from_tensors_and_half_tensors():
    x = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    made = Records.from_arrays(x, torch.tensor([[0], [1], [1]]))
    assert type(made.x) is np.ndarray and made.y.tolist() == [0, 1, 1]
    half = Records.from_arrays(x.to(torch.bfloat16), [0, 1, 1])
    np.testing.assert_array_equal(half.x, made.x)


def test_from_a_frame():
    frame = pd.DataFrame({"age": [1, 2], "flag": [True, False], "w": [0.5, 1.0]})
    made = Records.from_arrays(frame, pd.Series(["no", "yes"], dtype="category"))
    assert made.columns == ("age", "flag", "w") and made.classes == ("no", "yes")
    assert made.x.tolist() == [[1, 1, 0.5], [2, 0, 1.0]]


def test_a_frame_with_text_is_refused_by_name():
    frame = pd.DataFrame({"age": [1, 2], "town": ["a", "b"]})
    with pytest.raises(InvalidInput, match="numeric columns, got text or dates in town; encode"):
        Records.from_arrays(frame, [0, 1])


def test_from_a_dataset():
    x, y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 1, 0])
    made = Records.from_dataset(TensorDataset(x, y))
    np.testing.assert_array_equal(made.x, x)
    assert made.y.tolist() == [0, 1, 1, 0] and made.ids.tolist() == [0, 1, 2, 3]
    listed = Records.from_dataset([(np.zeros(2), 1), (np.ones(2), 0)], ids=["a", "b"])
    assert listed.ids.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ([], "at least one item"),
        ([1, 2], "pairs"),
        (TensorDataset(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2)), "pairs"),
        ([(np.zeros(2), 0), (np.zeros(3), 1)], "one shape"),
        (iter([(np.zeros(2), 0)]), "with a length"),
    ],
)
def test_datasets_that_are_refused(dataset, why):
    with pytest.raises(InvalidInput, match=why):
        Records.from_dataset(dataset)


@pytest.mark.parametrize(
    ("labels", "codes", "classes"),
    [
        ([2, 0, 1], [2, 0, 1], ()),
        ([2.0, 0.0], [2, 0], ()),
        ([True, False], [1, 0], ()),
        (np.array([[1], [0]]), [1, 0], ()),
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (np.array([b"b", b"a"]), [1, 0], ("a", "b")),
        # numbers in a column of objects stay numbers: sorted as text, 10 comes before 2
        (np.array([10, 2, 0], dtype=object), [10, 2, 0], ()),
        (pd.Series([10, 2, 0], dtype="Int64"), [10, 2, 0], ()),
        (np.array(["b", "a"], dtype=object), [1, 0], ("a", "b")),
    ],
)
def test_labels(labels, codes, classes):
    found, names = encode_labels(labels)
    assert found.tolist() == codes and names == classes and found.dtype == np.int64


def test_named_classes_say_which_number_a_name_has():
    made = Records.from_arrays([[1.0], [2.0]], ["cat", "dog"], classes=("dog", "emu", "cat"))
    assert made.y.tolist() == [2, 0] and made.classes == ("dog", "emu", "cat")
    with pytest.raises(InvalidInput, match="among the classes dog, emu, got 'cat'"):
        Records.from_arrays([[1.0]], ["cat"], classes=("dog", "emu"))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0.5, 1.0], "fractions"),
        ([np.nan, 1.0], "NaN"),
        ([np.inf, 1.0], "infinity"),
        ([[0, 1], [1, 0]], "one-hot"),
        (np.array(["a", None], dtype=object), "all numbers or all text, got NoneType, str"),
        (np.array(["a", 1], dtype=object), "all numbers or all text, got int, str"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "class numbers or names"),
    ],
)
def test_labels_that_are_refused(labels, why):
    with pytest.raises(InvalidInput, match=why):
        encode_labels(labels)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            {"x": np.zeros((2, 1)), "y": [0]},
            "one label and one id a record, got 2 records, 1 labels and 1 ids",
        ),
        ({"x": np.zeros((2, 1)), "y": [0, -1]}, "labels from 0, got -1; map the classes"),
        ({"x": np.zeros((2, 1)), "y": [0, 1], "ids": [3, 3]}, "unique ids"),
        ({"x": np.zeros((2, 1)), "y": [0, 1], "ids": [0.5, 1]}, "integers or strings"),
        ({"x": np.zeros((2, 1)), "y": [0, 1], "ids": [[0, 1]]}, "1-D array"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "numbers as inputs"),
        ({"x": np.float64(3), "y": [0]}, "shape \\(n, ...\\)"),
        ({"x": np.zeros((2, 1)), "y": [0, 2], "classes": ("a", "b")}, "labels below 2"),
    ],
)
def test_records_that_are_refused(arguments, why):
    with pytest.raises(InvalidInput, match=why):
        Records.from_arrays(**arguments)


def test_inputs_must_be_an_array():
    with pytest.raises(InvalidInput, match="array of numbers, got torch.float32; use Records.from"):
        Records(np.arange(2), torch.zeros(2, 1), np.arange(2))
    with pytest.raises(InvalidInput, match="got list"):
        Records(np.arange(2), [[0], [1]], np.arange(2))


def test_ids_of_a_column_of_objects():
    made = Records.from_arrays(np.zeros((2, 1)), [0, 1], ids=pd.Series(["a", "b"]).to_numpy(object))
    assert made.ids.dtype.kind == "U"


# --- split -------------------------------------------------------------------------------------


def sides(n: int = 6) -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(2 * n, 2))
    return (x[:n], np.arange(n) % 2), (x[n:], np.arange(n) % 2)


def test_a_split_numbers_the_records_and_knows_the_members():
    members, nonmembers = sides()
    made = Split.from_arrays(members, nonmembers)
    assert made.members.ids.tolist() == list(range(6))
    assert made.nonmembers.ids.tolist() == list(range(6, 12)) and not len(made.population)
    np.testing.assert_array_equal(
        made.is_member(np.array([3, 6, 99, 0])), [True, False, False, True]
    )
    assert made.candidates.ids.tolist() == list(range(12))


def test_text_labels_mean_one_class_on_all_sides():
    (x, _), (z, _) = sides(3)
    made = Split.from_arrays((x, ["a", "c", "c"]), (z, ["b", "c", "a"]))
    assert made.members.classes == made.nonmembers.classes == ("a", "b", "c")
    assert made.members.y.tolist() == [0, 2, 2] and made.nonmembers.y.tolist() == [1, 2, 0]


def test_labels_of_two_kinds_are_refused():
    (x, y), (z, _) = sides(2)
    with pytest.raises(InvalidInput, match="labels of one kind on all sides"):
        Split.from_arrays((x, y), (z, ["a", "b"]))


def test_overlap_is_refused_or_dropped():
    (x, y), (z, w) = sides()
    z = np.concatenate([z, x[:2]])
    w = np.concatenate([w, y[:2]])
    with pytest.raises(InvalidInput, match="got 2 with the same content and label as a member"):
        Split.from_arrays((x, y), (z, w))
    made = Split.from_arrays((x, y), (z, w), drop_overlap=True)
    assert made.nonmembers.ids.tolist() == list(range(6, 12))


def test_overlap_is_seen_between_types_of_different_width():
    # 0.1 as float32 is not 0.1 as float64; the record is the same
    (x, y), (z, w) = sides()
    both = np.concatenate([z, x[:1]]), np.append(w, y[0])
    with pytest.raises(InvalidInput, match="got 1 with the same content"):
        Split.from_arrays((x.astype(np.float32), y), both)
    made = Split.from_arrays((x.astype(np.float32), y), both, drop_overlap=True)
    assert len(made.nonmembers) == 6


def test_a_population_must_be_disjoint_from_the_candidates():
    members, (z, w) = sides()
    with pytest.raises(
        InvalidInput, match="population disjoint from the candidates, got 1 records"
    ):
        Split.from_arrays(members, (z, w), (z[:1], w[:1]))
    made = Split.from_arrays(members, (z, w), (z[:1], w[:1]), drop_overlap=True)
    assert not len(made.population)


def test_overlap_by_id():
    made = records(10)
    with pytest.raises(InvalidInput, match=r"got 2 with a member's id \(for example 104\)"):
        Split(made[:6], made[4:], made[:0]).checked()
    with pytest.raises(InvalidInput, match="population disjoint from the non-members"):
        Split(made[:4], made[4:], made[8:]).checked()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_side_with_odd_values_is_named(bad):
    (x, y), (z, w) = sides()
    x[1, 0] = z[2, 1] = z[3, 1] = bad
    with pytest.raises(InvalidInput) as caught:
        Split.from_arrays((x, y), (z, w))
    assert "in 1 members; impute" in str(caught.value)
    assert "in 2 non-members; impute" in str(caught.value)


def test_columns_in_another_order_are_refused():
    left = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    right = pd.DataFrame({"b": [5.0, 6.0], "a": [7.0, 8.0]})
    with pytest.raises(InvalidInput, match="same columns in the same order on all sides, got a on"):
        Split.from_arrays((left, [0, 1]), (right, [0, 1]))
    made = Split.from_arrays((left, [0, 1]), (right[["a", "b"]], [0, 1]))
    assert made.candidates.columns == ("a", "b")


def test_empty_and_one_class_sides_are_refused():
    (x, y), (z, w) = sides()
    with pytest.raises(InvalidInput, match="at least one of the non-members, got none"):
        Split.from_arrays((x, y), (z[:0], w[:0]))
    with pytest.raises(InvalidInput, match="at least two classes, got only class 1"):
        Split.from_arrays((x, np.ones(6, int)), (z, np.ones(6, int)))
    with pytest.raises(InvalidInput, match="one shape"):
        Split.from_arrays((x, y), (z[:, :1], w))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 4), st.integers(0, 3))
def test_drawn_sides_are_disjoint_and_of_the_size_asked_for(m, n, p, seed):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(24, 2))
    x[20:] = x[:4]  # four repeat others
    y = np.arange(24) % 2
    y[20:] = y[:4]
    y[:2] = y[20:22] = [0, 1]
    made = Records.from_arrays(x, y)
    try:
        drawn = split(made, m, n, p, seed)
    except InvalidInput as error:
        assert "two classes" in str(error)
        return
    assert (len(drawn.members), len(drawn.nonmembers), len(drawn.population)) == (m, n, p)
    ids = [drawn.members.ids, drawn.nonmembers.ids, drawn.population.ids]
    assert len(np.unique(np.concatenate(ids))) == m + n + p
    assert not set(np.concatenate(ids).tolist()) & {20, 21, 22, 23}
    again = split(made, m, n, p, seed)
    assert equal(again.members, drawn.members) and equal(again.population, drawn.population)


def test_too_few_distinct_records_to_draw_from():
    made = records(10)
    with pytest.raises(InvalidInput, match="at least 11 distinct records .* got 10; ask for fewer"):
        split(made, 6, 5)
    with pytest.raises(InvalidInput, match="from 0"):
        split(made, -1, 5)
    with pytest.raises(InvalidInput, match="seed -1"):
        split(made, 1, 5, seed=-1)


def test_a_side_may_be_a_dataset_or_records():
    import torch
    from torch.utils.data import TensorDataset

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 2
    dataset = TensorDataset(torch.from_numpy(x[:10]), torch.from_numpy(y[:10]))
    by_hand = Split.from_arrays((x[:10], y[:10]), (x[10:], y[10:]))
    made = Split.from_arrays(dataset, Records.from_arrays(x[10:], y[10:]))
    assert made.members.digest() == by_hand.members.digest()
    assert made.nonmembers.digest() == by_hand.nonmembers.digest()
    named = Records.from_arrays(x, y, columns=("a", "b", "c"), classes=("no", "yes"))
    kept = Split.from_arrays(named[:10], named[10:])
    assert kept.members.columns == ("a", "b", "c") and kept.nonmembers.classes == ("no", "yes")
    with pytest.raises(InvalidInput, match="a tuple of 3"):
        Split.from_arrays((x, y, y), (x, y))
