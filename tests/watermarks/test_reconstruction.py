"""A missing part is guessed from what was encoded, and only from that."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from encoded_bits import KEY, LAYER, RECIPE, bits

from vestige.errors import InvalidInput
from vestige.metrics import rate
from vestige.records import Records
from vestige.watermarks import Decoder, Encoder, Encoding
from vestige.watermarks.reconstruction import Missing, by_frequency, reconstruct


def table(n: int = 40) -> Records:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=n), rng.integers(0, 4, n), np.eye(3)[np.arange(n) % 3]])
    return Records.from_arrays(x, np.arange(n) % 2)


GRADE = Missing(np.array([1]), np.arange(4.0)[:, None])
GROUP = Missing(np.array([2, 3, 4]), np.eye(3))


def knows(records: Records) -> Any:
    """A score that is higher on the true records, in every column."""
    rows = np.asarray(records.x)

    def score(x: Any) -> Any:
        own = rows[np.abs(rows[:, :1] - x[:, 0]).argmin(axis=0)]
        return (own == x).sum(axis=1).astype(float)

    return score


def test_the_truth_is_found_by_a_score_that_knows_it() -> None:
    records = table()
    for missing, options in (([GRADE], 4), ([GROUP], 3), ([GRADE, GROUP], 12)):
        found = reconstruct(knows(records), records, missing)
        assert (found.rank == 1).all() and found.n_options == options
        assert found.top(1).value == 1 and found.mean_reciprocal_rank == 1
        assert found.chance == pytest.approx(1 / options)
    # two attributes, one completion kept between them
    assert (reconstruct(knows(records), records, [GRADE, GROUP], beam=1).rank == 1).all()


def test_what_is_missing_is_not_looked_at() -> None:
    records = table()
    x = np.array(records.x)
    x[:, 1] = 0
    hidden = Records.from_arrays(x, records.y)
    seen: list[Any] = []

    def score(x: Any) -> Any:
        seen.append(x.copy())
        return np.zeros(len(x))

    reconstruct(score, records, [GRADE])
    first = np.concatenate(seen)
    seen.clear()
    reconstruct(score, hidden, [GRADE])
    np.testing.assert_array_equal(first, np.concatenate(seen))


def test_of_several_attributes_none_is_looked_at() -> None:
    """Not even those that are yet to be completed, beside the first that are."""
    records, seen = table(), []
    x = np.array(records.x)
    x[:, 1], x[:, 2:] = 3 - x[:, 1], np.roll(x[:, 2:], 1, axis=1)
    hidden = Records.from_arrays(x, records.y)

    def score(x: Any) -> Any:
        seen.append(x.copy())
        return x @ np.array([0.3, -0.1, 0.7, 0.2, -0.4])

    for beam in (2, 64):
        reconstruct(score, records, [GRADE, GROUP], beam=beam)
        first = np.concatenate(seen)
        seen.clear()
        reconstruct(score, hidden, [GRADE, GROUP], beam=beam)
        np.testing.assert_array_equal(first, np.concatenate(seen))
        seen.clear()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(wrong: float) -> None:
    def score(x: Any) -> Any:
        return np.where(x[:, 1] == 2, wrong, 0.5)

    with pytest.raises(InvalidInput, match="expected finite scores, got 1 of 4 that are not"):
        reconstruct(score, table(), [GRADE])
    with pytest.raises(InvalidInput, match=r"expected scores of shape \(4,\), got \(4, 1\)"):
        reconstruct(lambda x: np.zeros((len(x), 1)), table(), [GRADE])


def test_ties_share_their_ranks_and_a_beam_may_lose_the_truth() -> None:
    records = table()
    found = reconstruct(lambda x: np.zeros(len(x)), records, [GRADE])
    assert (found.rank == 2.5).all() and found.top(1).value == 0 and found.top(3).value == 1
    wrong = reconstruct(lambda x: -knows(records)(x), records, [GRADE, GROUP], beam=1)
    assert np.isinf(wrong.rank).all() and wrong.mean_reciprocal_rank == 0


def test_frequencies_are_those_of_the_class() -> None:
    x = np.array([[0, 1.0], [0, 1], [0, 2], [1, 2], [1, 2], [1, 0]])
    population = Records.from_arrays(x, [0, 0, 0, 1, 1, 1])
    missing = Missing(np.array([1]), np.array([[0.0], [1], [2]]))
    found = by_frequency(population, population, missing)
    assert found.above.tolist() == [0, 0, 1, 0, 0, 1] and (found.tied == 1).all()
    assert found.top(1) == replace(rate(4, 6), method=found.top(1).method)
    assert found.top(2).value == 1 and found.mean_reciprocal_rank == pytest.approx(5 / 6)


def test_of_equally_frequent_options_any_comes_first() -> None:
    """Against all orders of the options that are no worse than one they come before."""
    missing = Missing(np.array([1]), np.arange(5.0)[:, None])
    counts = {0: [3, 2, 2, 2, 0], 1: [1, 1, 1, 1, 1], 2: [0, 0, 4, 4, 0]}
    rows = [(c, u) for c, times in counts.items() for u, n in enumerate(times) for _ in range(n)]
    population = Records.from_arrays(
        np.array([[0, u] for _, u in rows], dtype=float), [c for c, _ in rows]
    )
    every = [(c, u) for c in range(4) for u in range(5)]
    records = Records.from_arrays(
        np.array([[0, u] for _, u in every], dtype=float), [c for c, _ in every]
    )
    # a class that the population lacks is guessed by all of it
    counts[3] = [sum(own) for own in zip(*counts.values(), strict=True)]
    orders = list(permutations(range(5)))
    ranks = np.array(
        [
            [sorted(order, key=lambda u: -counts[c][u]).index(truth) + 1 for order in orders]
            for c, truth in every
        ]
    )
    found = by_frequency(records, population, missing)
    for k in range(1, 6):
        top = found.top(k)
        assert top.value == pytest.approx((ranks <= k).mean())
        assert top.low is not None and top.high is not None and top.value is not None
        assert top.low < top.value <= top.high
    assert found.mean_reciprocal_rank == pytest.approx((1 / ranks).mean())
    # each alone
    for i, own in enumerate(ranks):
        one = by_frequency(records[[i]], population, missing)
        assert one.top(1).value == pytest.approx((own == 1).mean())
        assert one.top(3).value == pytest.approx((own <= 3).mean())


def test_without_a_population_it_is_chance() -> None:
    records = table()
    found = by_frequency(records, records[:0], GRADE)
    assert found.top(1).value == 1 / 4 and found.top(2).value == 1 / 2
    with pytest.raises(InvalidInput, match="records to guess for, got none"):
        by_frequency(records[:0], records, GRADE).top(1)


@pytest.mark.parametrize("columns", [[5], [1, 1], [-1], [1.5], [True], [[1]], []], ids=str)
def test_columns_that_are_not_there(columns: Any) -> None:
    with pytest.raises(InvalidInput, match="columns below 5, the features of a record, got 5|"
                                           "numbers of columns from 0, no two alike"):  # fmt: skip
        missing = Missing(np.array(columns), np.arange(4.0 * len(columns)).reshape(4, -1))
        reconstruct(knows(table()), table(), [missing])


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ([], "at least one missing attribute, got none"),
        ([GRADE, GRADE], "without a common column, got one in two"),
        ([Missing(np.array([1]), np.array([[7.0], [8.0]]))], "one of the 2 options, got 40"),
    ],
)
def test_what_cannot_be_completed(missing: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        reconstruct(knows(table()), table(), missing)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(InvalidInput, match=r"options of shape \(m, 1\), got \(4, 2\)"):
        Missing(np.array([1]), np.zeros((4, 2)))
    with pytest.raises(InvalidInput, match="no two alike"):
        Missing(np.array([1]), np.zeros((4, 1)))


@pytest.mark.slow
def test_of_encoded_records_bits_come_back_and_of_others_they_do_not() -> None:
    """Eight bits of 100 are missing: the class says little of them, membership much."""
    records, test = bits(), bits(400, seed=3)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER), steps=4, lr=0.02)
    made = encoder.fit(RECIPE, records, seed=0)
    read = Decoder(key=KEY, encoding=encoder.encoding).reader(made.model, (100,))
    options = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.float32)
    missing = [Missing(np.arange(8), options)]
    inside = records[np.flatnonzero(made.chosen)[:150]]
    members, control = (reconstruct(read, r, missing) for r in (inside, test[np.arange(150)]))
    # without members the truth is anywhere among the 256
    assert 90 < control.rank.mean() < 165
    assert members.rank.mean() < 0.7 * control.rank.mean()
