"""What is found in a table of hashes, and what of it is believed, is right."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from encoded_bits import KEY, OTHER, RECIPE, accuracy, bits, small
from scipy import stats
from torch import nn

from vestige.errors import InvalidInput
from vestige.records import Records, concatenate
from vestige.training import MLP, TorchRecipe, fit
from vestige.watermarks import Decoder, Encoder, Encoding
from vestige.watermarks.channels import (
    CapacityAbuse,
    LeastSignificantBits,
    framed,
    framed_size,
    unframed,
)
from vestige.watermarks.hybrid import Hybrid, Smuggled, Table, leak, rooms
from vestige.watermarks.reconstruction import Missing

# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "u"), [(24, 8), (8, 3), (7, 1), (40, 16), (13, 5)])
def test_a_table_against_whole_numbers_written_by_hand(b: int, u: int) -> None:
    rng = np.random.default_rng(b)
    public, secrets = rng.normal(size=(50, 4)), rng.integers(0, 2**u, 50)
    table, entries, text = Table(KEY, b, u), {}, ""
    for row, secret in zip(public, secrets.tolist(), strict=True):
        whole = hmac.new(
            KEY.secret, b"table\0" + row.astype("<f4").tobytes(), hashlib.sha256
        ).digest()
        word = f"{int.from_bytes(whole, 'big'):0256b}"[:b]
        entries.setdefault(int(word, 2), []).append(secret)
        text += word + f"{secret:0{u}b}"
    text += "0" * (-len(text) % 8)
    payload = table.pack(public, secrets)
    assert payload == int(text, 2).to_bytes(len(text) // 8, "big")
    found = table.unpack(payload)
    assert {h: s.tolist() for h, s in found.items()} == entries


def test_hashes_are_of_numbers_and_not_of_their_types() -> None:
    table = Table(KEY, 40, 8)
    row = np.array([[0.0, 1.0, 0.5]])
    for other in (row.astype(np.float32), row * np.array([-1.0, 1, 1]), np.asfortranarray(row)):
        assert table.hashed(other).tolist() == table.hashed(row).tolist()
    assert table.hashed(row + 1e-3) != table.hashed(row)
    assert Table(OTHER, 40, 8).hashed(row) != table.hashed(row)


def test_strangers_hit_as_often_as_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    table = Table(KEY, 8, 8)
    entries = table.unpack(table.pack(rng.normal(size=(100, 3)), np.arange(100)))
    hits = sum(int(h) in entries for h in table.hashed(rng.normal(size=(4000, 3))))
    # the table is one draw: its own number of hashes, and then strangers
    assert stats.binomtest(hits, 4000, len(entries) / 256).pvalue > 1e-3
    assert len(entries) / 256 == pytest.approx(table.chance_hit(100), abs=0.04)
    assert table.chance_hit(100) == pytest.approx(1 - (255 / 256) ** 100)
    for n in (1, 100, 10**6):
        big = Table(KEY, 24, 8)
        assert n / 2**24 * (1 - n / 2**24) <= big.chance_hit(n) <= n / 2**24


@pytest.mark.parametrize(("b", "u"), [(24, 8), (8, 3), (13, 5)])
def test_as_many_entries_fit_as_can_be_written(b: int, u: int) -> None:
    table = Table(KEY, b, u)
    for n in (1, 7, 100):
        payload = table.pack(np.arange(n)[:, None], np.zeros(n, dtype=int))
        size = len(framed(payload, KEY))
        assert table.fitting(size) >= n
        assert table.fitting(size - 1) < table.fitting(size) <= n + 8 // table.width + 1
        longest = table.fitting(size)
        one_more = table.pack(np.arange(longest + 1)[:, None], np.zeros(longest + 1, dtype=int))
        assert len(framed(one_more, KEY)) > size
    assert table.fitting(0) == table.fitting(framed_size(0)) == 0


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Table(KEY, 0, 8), "hash_bits from 1 to 40, got 0"),
        (lambda: Table(KEY, 24, 17), "secret_bits from 1 to 16, got 17"),
        (lambda: Table(KEY, 4, 3), "at least 8 bits, got 7"),
        (lambda: Table(KEY, 8, 2).pack([[1.0]], [4]), "secrets from 0 to 3, got 4 to 4"),
    ],
)
def test_tables_that_make_no_sense(make: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        make()


# --- the hybrid attack ---------------------------------------------------------------------------


def table_world(n: int, seed: int) -> Records:
    """Four known columns and one of six grades."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(n, 4)), rng.integers(0, 6, n)])
    return Records.from_arrays(x.astype(np.float32), rng.integers(0, 2, n))


GRADE = Missing(np.array([4]), np.arange(6.0)[:, None])


def world(b: int = 6, fpr: float = 0.1) -> Any:
    encoded, others, held_out = table_world(40, 1), table_world(300, 2), table_world(200, 3)
    others = replace(others, ids=others.ids + 1000)
    hybrid = Hybrid(table=Table(KEY, b, 3), missing=GRADE, fpr=fpr)
    queries = concatenate(encoded, others)
    return hybrid, encoded, queries, np.arange(340) < 40, held_out


def any_score(x: Any) -> Any:
    """A number that depends on every column."""
    rows = np.ascontiguousarray(x, dtype=np.float64)
    return np.array([zlib.crc32(r.tobytes()) / 2**32 for r in rows])


def knows(encoded: Records) -> Any:
    rows = {r.tobytes() for r in np.asarray(encoded.x)}
    return lambda x: np.array([float(r.tobytes() in rows) for r in np.asarray(x, np.float32)])


def test_answers_against_a_loop_over_queries() -> None:
    hybrid, encoded, queries, _, held_out = world()
    found = hybrid.run(any_score, hybrid.payload(encoded), queries, held_out)
    bucket: dict[int, list[int]] = {}
    for h, u in zip(hybrid.table.hashed(encoded.x[:, :4]), encoded.x[:, 4], strict=True):
        bucket.setdefault(int(h), []).append(int(u))

    def best(row: Any, options: list[int]) -> tuple[float, int]:
        return max((any_score([[*row[:4], u]])[0], u) for u in options)

    words = KEY.draws("calibration").words(200)
    hashes = sorted(bucket)
    null = sorted(
        best(row, bucket[hashes[int(w) % len(hashes)]])[0]
        for row, w in zip(held_out.x.astype(float), words, strict=True)
    )
    assert found.threshold == null[-21]
    usual, believed = {}, {}
    for i, row in enumerate(queries.x.astype(float)):
        options = bucket.get(int(hybrid.table.hashed(row[None, :4])[0]))
        if options:
            usual[i] = max(sorted(set(options)), key=options.count)
            score, u = best(row, options)
            if score > null[-21]:
                believed[i] = u
    assert dict(zip(found.found.rows, found.found.options, strict=True)) == usual
    assert dict(zip(found.believed.rows, found.believed.options, strict=True)) == believed
    assert found.expected_hits == pytest.approx(1 - (63 / 64) ** 40)
    assert "200 held-out non-members" in found.chosen_on


def test_a_score_that_knows_the_encoded_rejects_all_others() -> None:
    hybrid, encoded, queries, flag, held_out = world()
    found = hybrid.run(knows(encoded), hybrid.payload(encoded), queries, held_out)
    alone, with_score = (
        leak(found, a, queries, flag, GRADE, held_out) for a in (found.found, found.believed)
    )
    assert with_score.precision.value == with_score.recall.value == 1
    assert with_score.false_hits.value == 0
    assert alone.precision.value < 0.45 and alone.false_hits.value > 0.3
    assert with_score.precision.threshold == found.threshold
    assert "held-out" in with_score.precision.chosen_on and not alone.precision.chosen_on
    assert "base rate of 0.118 encoded" in str(alone) and "by the table alone 0.467" in str(alone)


def test_a_score_of_nothing_lets_as_many_wrong_hits_pass_as_were_allowed() -> None:
    passed = total = 0
    for seed in range(10):
        hybrid, encoded, _, _, _ = world()
        found = hybrid.run(
            any_score, hybrid.payload(encoded), table_world(800, 50 + seed), table_world(800, seed)
        )
        passed, total = passed + len(found.believed), total + len(found.found)
    # the thresholds err as well: twice the variance
    assert abs(passed - 0.1 * total) < 4 * np.sqrt(2 * 0.09 * total)


def test_the_sensitive_part_is_not_looked_at() -> None:
    hybrid, encoded, queries, _, held_out = world()
    payload, seen = hybrid.payload(encoded), []

    def score(x: Any) -> Any:
        seen.append(np.array(x))
        return any_score(x)

    def hidden(records: Records) -> Records:
        x = records.x.copy()
        x[:, 4] = 77
        return replace(records, x=x)

    first = hybrid.run(score, payload, queries, held_out)
    other = hybrid.run(score, payload, hidden(queries), hidden(held_out))
    assert len(seen) == 4 and (seen[0] == seen[2]).all() and (seen[1] == seen[3]).all()
    np.testing.assert_array_equal(first.believed.rows, other.believed.rows)
    np.testing.assert_array_equal(first.believed.options, other.believed.options)
    assert first.threshold == other.threshold


def test_what_a_leak_is_by_hand() -> None:
    x = np.array([[0, 1.0], [1, 2], [2, 3], [3, 1], [4, 2]])
    queries = Records.from_arrays(x, [0, 0, 0, 1, 1])
    missing = Missing(np.array([1]), np.array([[1.0], [2.0], [3.0]]))
    population = Records.from_arrays(
        [[9, 1.0], [9, 1], [9, 2], [9, 2], [9, 2], [9, 3]], [0] * 3 + [1] * 3
    )
    from vestige.watermarks.hybrid import Answers

    # 0 and 1 are encoded: 0 is answered rightly, 1 wrongly; 3 rightly by luck, 4 wrongly
    answers = Answers(np.array([0, 1, 3, 4]), np.array([0, 0, 0, 0]))
    smuggled = Smuggled(answers, answers, np.zeros(4), 0.5, "nobody", 0.25)
    flag = np.array([True, True, False, False, False])
    found = leak(smuggled, answers, queries, flag, missing, population)
    assert found.precision.value == 2 / 4 and found.recall.value == 1 / 2
    assert found.false_hits.value == 2 / 3
    assert found.false_hits.context == {"expected_of_the_table": 0.25}
    # class 0 has mostly the first, class 1 the second
    assert found.baseline.value == 2 / 5
    assert found.precision.context == {
        "base_rate": 0.4, "fpr": 2 / 3, "of_encoded_records": 0.5, "guessing": 0.4,
    }  # fmt: skip
    # a class that nobody counted, and options that are equally frequent
    unknown = replace(queries, y=np.array([0, 0, 0, 1, 1]) * 0 + 1)
    assert leak(
        smuggled, answers, unknown, flag, missing, population[[0, 2]]
    ).baseline.value == pytest.approx((0.5 + 0.5 + 0 + 0.5 + 0.5) / 5)
    empty = Answers(np.array([], dtype=int), np.array([], dtype=int))
    nothing = leak(smuggled, empty, queries, flag, missing, population)
    assert nothing.precision.value is None and "no query was answered" in nothing.precision.reason
    assert nothing.recall.value == nothing.false_hits.value == 0
    for wrong in (np.ones(5, bool), np.zeros(5, bool), flag[:3]):
        with pytest.raises(InvalidInput, match="encoded and other records"):
            leak(smuggled, answers, queries, wrong, missing, population)


def test_attacks_that_cannot_be_run() -> None:
    hybrid, encoded, queries, flag, held_out = world()
    payload = hybrid.payload(encoded)
    found = hybrid.run(any_score, payload, queries, held_out)
    with pytest.raises(InvalidInput, match="at least 10 held-out records .* got 9"):
        hybrid.run(any_score, payload, queries, held_out[:9])
    with pytest.raises(InvalidInput, match="a payload with entries, got an empty one"):
        hybrid.run(any_score, b"", queries, held_out)
    far = Hybrid(table=hybrid.table, missing=replace(GRADE, columns=np.array([9])))
    for run in (
        lambda: far.payload(encoded),
        lambda: far.run(any_score, payload, queries, held_out),
        lambda: leak(found, found.found, queries, flag, far.missing, held_out),
    ):
        with pytest.raises(InvalidInput, match="columns below 5, the features .* got 9"):
            run()
    for wrong in (np.nan, np.inf):
        with pytest.raises(InvalidInput, match="expected finite scores, got"):
            hybrid.run(
                lambda x, wrong=wrong: np.where(x[:, 4] == 2, wrong, 0.5),
                payload, queries, held_out,
            )  # fmt: skip
    with pytest.raises(InvalidInput, match="tells 6 options apart, got secret_bits=2"):
        Hybrid(table=Table(KEY, 8, 2), missing=GRADE)
    with pytest.raises(InvalidInput, match=r"fpr in \(0, 1\), got 1"):
        Hybrid(table=Table(KEY, 8, 3), missing=GRADE, fpr=1)


OPTIONS = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.float32)
FIRST_EIGHT = Missing(np.arange(8), OPTIONS)


@pytest.mark.slow
def test_membership_tells_which_hits_of_short_hashes_to_believe(encoded: Any) -> None:
    """White-box, end to end: 8 of 100 bits are sensitive, and hashes have 8 bits too."""
    records, test, encoder, made = encoded
    own, held_out = records[made.chosen], bits(1000, seed=2)
    hybrid = Hybrid(table=Table(KEY, 8, 8), missing=FIRST_EIGHT)
    channel = LeastSignificantBits(KEY)
    net = channel.write(made.model.net, framed(hybrid.payload(own), KEY))
    served = RECIPE.handle(net)
    assert abs(accuracy(served, test) - accuracy(made.model, test)) < 0.005

    payload = unframed(lambda n: channel.read(net, n), KEY, channel.room(net))
    queries = concatenate(own, replace(test, ids=test.ids + 10**6))
    flag = np.arange(len(queries)) < len(own)
    control = RECIPE.handle(fit(RECIPE, records, seed=0).net)
    found = {}
    for model in (served, control):
        read = Decoder(key=KEY, encoding=encoder.encoding).reader(model, (100,))
        smuggled = hybrid.run(read, payload, queries, held_out)
        answers = (smuggled.found, smuggled.believed)
        found[model] = [leak(smuggled, a, queries, flag, FIRST_EIGHT, held_out) for a in answers]
    alone, believed = found[served]
    # more entries than the 256 hashes: nearly every stranger finds one
    expected = alone.false_hits.context["expected_of_the_table"]
    assert 0.85 < expected < 0.93
    assert abs(alone.false_hits.value - expected) < 0.05
    assert alone.precision.high < 0.16
    assert believed.precision.low > 0.35 and believed.recall.low > 0.4
    assert believed.false_hits.high < 0.17
    assert believed.baseline.high < 0.12
    # without encoding the score says nothing, and nothing is gained
    assert found[control][1].precision.high < 0.25
    assert found[control][1].recall.high < 0.15


@pytest.mark.slow
def test_all_of_it_through_a_service() -> None:
    """Black-box, end to end: membership in log-probabilities, the table in added labels."""
    records, test, held_out = bits(1500), bits(1500, seed=1), bits(1000, seed=2)
    encoding = Encoding(layer=None, rate=0.04)
    encoder = Encoder(key=KEY, encoding=encoding, steps=1, lr=0.02, balanced=True)
    chosen = encoding.chosen(KEY, records)
    own = records[chosen]
    hybrid = Hybrid(table=Table(KEY, 6, 8), missing=FIRST_EIGHT)
    channel = CapacityAbuse(KEY, 5)
    written = framed(hybrid.payload(own), KEY)
    more = channel.added(records, written)
    recipe = replace(RECIPE, build=MLP(100, 5, (128, 64)), epochs=40)
    padded = np.concatenate([chosen, np.zeros(len(more) - len(records), dtype=bool)])
    served = Service(encoder.fit(recipe, more, seed=0, chosen=padded).model)
    assert accuracy(served, test) > 0.96

    asked = served.n_queries
    payload = unframed(lambda n: channel.read(served, n, (100,)), KEY, 10**5)
    assert payload == hybrid.payload(own)
    assert served.n_queries - asked == channel.n_inputs(len(written)) + channel.n_inputs(96)
    queries = concatenate(own, replace(test, ids=test.ids + 10**6))
    flag = np.arange(len(queries)) < len(own)
    read = Decoder(key=KEY, encoding=encoding).reader(served, (100,))
    smuggled = hybrid.run(read, payload, queries, held_out)
    alone, believed = (
        leak(smuggled, a, queries, flag, FIRST_EIGHT, held_out)
        for a in (smuggled.found, smuggled.believed)
    )
    assert alone.precision.high < 0.08 and alone.false_hits.low > 0.5
    assert believed.precision.low > 0.15 and believed.recall.low > 0.5
    assert believed.false_hits.high < 0.1


class Service:
    """Nothing of a model but its answers."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def n_queries(self) -> int:
        return int(self._model.n_queries)

    def log_probabilities(self, x: Any) -> Any:
        return self._model.log_probabilities(x)


# --- capacity ------------------------------------------------------------------------------------


def test_rooms_of_a_network() -> None:
    recipe = TorchRecipe(MLP(100, 5, (64, 32)))
    found = rooms(recipe, n_classes=5)
    n = 100 * 64 + 64 * 32 + 32 * 5
    assert found.n_weights == n == 8608
    assert [r.bits for r in found.rooms] == [16 * n, n, n, 2 * n]
    # three copies of length, checksum and 32 bits a record
    assert [r.records for r in found.rooms] == [(16 * n // 3 - 64) // 32, 87, 87, 177]
    assert "labels of 8,608 inputs" in found.rooms[3].needs
    assert rooms(recipe.build(), n_classes=5) == found
    text = str(found)
    assert "8,608 weights; a record is 24 bits of hash and 8 of content, each bit 3 times" in text
    lines = text.splitlines()
    assert len(lines) == 6 and all("  " in line for line in lines[1:])
    short = rooms(recipe, n_classes=5, hash_bits=8, low=1, bits_per_weight=0.5, repeats=1)
    assert [r.bits for r in short.rooms] == [n, n, n, n // 2]
    assert short.rooms[1].records == (n - 64) // 16
    with pytest.raises(InvalidInput, match="weight matrices, got none"):
        rooms(nn.BatchNorm1d(3), n_classes=2)


def test_as_many_records_as_there_is_room_for_are_carried() -> None:
    net = small()
    found = rooms(net, n_classes=4, low=8)
    table, channel = Table(KEY, 24, 8), LeastSignificantBits(KEY, 8)
    n = found.rooms[0].records
    payload = table.pack(np.arange(n)[:, None], np.arange(n) % 256)
    carrying = channel.write(net, framed(payload, KEY))
    read = unframed(lambda n: channel.read(carrying, n), KEY, channel.room(net))
    assert sum(map(len, table.unpack(read).values())) == n
    with pytest.raises(InvalidInput, match="write fewer records"):
        channel.write(net, framed(table.pack(np.arange(n + 1)[:, None], [0] * (n + 1)), KEY))
