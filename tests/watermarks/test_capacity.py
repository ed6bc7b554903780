"""Capacity curves: bits by closed forms, who chooses the cut, and one curve for real."""

from dataclasses import replace

import numpy as np
import pytest
from encoded_bits import KEY, LAYER, RECIPE, bits

from vestige.errors import InvalidInput
from vestige.models import Predictions
from vestige.records import Records
from vestige.training import MLP
from vestige.watermarks import Decoder, Encoder, Encoding, Key
from vestige.watermarks.capacity import (
    Capacity,
    _cut,
    capacity_of_networks,
    carried,
    carried_bits,
    encoding_capacity,
    first_records,
)


def naive_information(t, f, base):
    """The sum over the four cells of the joint distribution."""
    joint = {
        (1, 1): base * t,
        (1, 0): base * (1 - t),
        (0, 1): (1 - base) * f,
        (0, 0): (1 - base) * (1 - f),
    }
    own = {1: base, 0: 1 - base}
    said = {d: joint[1, d] + joint[0, d] for d in (0, 1)}
    return sum(p * np.log2(p / own[z] / said[d]) for (z, d), p in joint.items() if p > 0)


@pytest.mark.parametrize(
    ("hits", "n", "false", "others", "base"),
    [(90, 100, 10, 100, 0.5), (7, 30, 40, 200, 0.2), (0, 10, 10, 10, 0.3), (3, 10, 30, 100, 0.5)],
)
def test_bits_are_the_sum_over_the_four_cells(hits, n, false, others, base):
    found = carried_bits(hits, n, false, others, base=base)
    expected = naive_information(hits / n, false / others, base)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_a_perfect_reader_carries_the_entropy_of_the_bit_and_a_useless_one_nothing():
    assert carried_bits(500, 500, 0, 500, base=0.5).value == pytest.approx(1)
    assert carried_bits(500, 500, 0, 500, base=0.1).value == pytest.approx(0.4689955935892812)
    useless = carried_bits(50, 500, 50, 500, base=0.5)
    assert useless.value == pytest.approx(0, abs=1e-12)
    assert useless.low == 0 < useless.high


def test_the_interval_of_bits_is_of_both_rates_at_once():
    """All of 20 and none of 10: ends of a share at 97.5 % have a closed form, 1.25 % a side."""
    found = carried_bits(20, 20, 0, 10, base=0.5)
    t, f = 0.0125 ** (1 / 20), 1 - 0.0125 ** (1 / 10)
    assert found.low == pytest.approx(naive_information(t, f, 0.5), abs=1e-12)
    assert (found.value, found.high) == (1, 1)
    # nothing at all was called encoded: the most is where only one of the rates is at its end
    none = carried_bits(0, 20, 0, 10, base=0.5)
    f, t = 1 - 0.0125 ** (1 / 10), 1 - 0.0125 ** (1 / 20)
    most = max(naive_information(0, f, 0.5), naive_information(t, 0, 0.5))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(most, abs=1e-12)


def test_the_interval_of_bits_covers_and_is_not_idle():
    """150 draws of each world: misses of 5 % at most, so 15 or more have probability 0.01."""
    rng = np.random.default_rng(0)
    for t, f, base in [(0.8, 0.1, 0.5), (0.3, 0.1, 0.2), (0.2, 0.2, 0.5), (0.99, 0.01, 0.2)]:
        truth, missed, widths = naive_information(t, f, base), 0, []
        for _ in range(150):
            found = carried_bits(rng.binomial(400, t), 400, rng.binomial(400, f), 400, base=base)
            missed += not found.low - 1e-12 <= truth <= found.high + 1e-12
            widths.append(found.high - found.low)
        assert missed < 15
        assert np.mean(widths) < 0.25


def test_bits_say_what_they_expect():
    with pytest.raises(InvalidInput, match="base rate"):
        carried_bits(1, 2, 1, 2, base=1.0)
    with pytest.raises(InvalidInput):
        carried_bits(3, 2, 1, 2, base=0.5)


# --- reading one model ---------------------------------------------------------------------------


def tiny(n, seed):
    rng = np.random.default_rng(seed)
    return Records.from_arrays(rng.random((n, 3)).astype(np.float32), rng.integers(0, 2, n))


class Spoken:
    """A decoder whose scores are the first column; counts nothing else."""

    def reader(self, target, shape):
        assert shape == (3,)
        return lambda x: np.asarray(x[:, 0], np.float64)


class Half:
    """A model that always says the first class."""

    def log_probabilities(self, x):
        return np.log(np.tile([0.9, 0.1], (len(x), 1)))


def with_scores(records, scores):
    x = records.x.copy()
    x[:, 0] = scores
    return replace(records, x=x)


def test_rates_and_who_chose_the_cut():
    rng = np.random.default_rng(3)
    chosen = np.arange(400) < 100
    records = with_scores(tiny(400, 0), np.where(chosen, 2.0, -1.0) + rng.normal(size=400))
    test = with_scores(tiny(300, 1), rng.normal(size=300) - 0.5)
    found = carried(Half(), records, chosen, test, Spoken(), seed=4)
    scores, outside = np.asarray(records.x[:, 0], np.float64), np.asarray(test.x[:, 0], np.float64)
    order = np.random.default_rng(4).permutation(300)
    choosing, judged = outside[order[:150]], outside[order[150:]]
    best = min(c for c in np.concatenate([choosing, [9]]) if (choosing > c).mean() <= 0.1)
    assert found.tpr_cut.value == (scores[chosen] > best).mean()
    assert found.fpr_cut.value == (judged > best).mean()
    assert found.tpr.value == (scores[chosen] > 0).mean()
    assert found.fpr.value == (outside > 0).mean()
    # a second permutation halves the client's records
    rng = np.random.default_rng(4)
    rng.permutation(300)
    order = rng.permutation(400)
    middle, late = np.sort(scores[order[:200]])[-51], order[200:]
    high = scores[late] > middle
    spelled = naive_information(high[chosen[late]].mean(), high[~chosen[late]].mean(), 0.25)
    assert found.bits_others.value == pytest.approx(spelled, abs=1e-12)
    assert found.bits_unseen.value == pytest.approx(
        naive_information(found.tpr_cut.value, found.fpr_cut.value, 0.5), abs=1e-12
    )
    assert found.membership.value == pytest.approx(100 * found.bits_unseen.value)
    assert found.message.value == pytest.approx(400 * found.bits_others.value)
    assert found.message.value <= 400 * naive_information(1, 0, 0.25)
    assert found.base_rate == 0.25
    assert found.accuracy.value == (test.y == 0).mean()
    pairs = scores[chosen][:, None] > outside[None]
    assert found.auc.value == pytest.approx(pairs.mean())


@pytest.mark.parametrize("all_chosen", [False, True])
def test_a_message_that_nothing_can_judge_is_undefined(all_chosen):
    """The ten records of one side all fall into the half that chooses the cut."""
    order = np.random.default_rng(4)
    order.permutation(40)
    few = np.isin(np.arange(60), order.permutation(60)[:10])
    chosen = ~few if all_chosen else few
    rng = np.random.default_rng(0)
    records = with_scores(tiny(60, 0), rng.normal(size=60))
    test = with_scores(tiny(40, 1), rng.normal(size=40))
    found = carried(Half(), records, chosen, test, Spoken(), seed=4)
    said = f"undefined: {30 if all_chosen else 0} of the 30 records"
    for one in (found.bits_others, found.message):
        assert one.value is None and one.low is None and said in one.reason
    assert found.membership.value is not None
    assert str(Capacity("encoded", (found,), ())).splitlines()[2].endswith("  -")


def test_ties_at_the_cut_call_nobody_who_ties():
    records = with_scores(tiny(40, 0), np.repeat([1.0, 0.0], 20))
    test = with_scores(tiny(40, 1), 1.0)
    found = carried(Half(), records, np.arange(40) < 20, test, Spoken())
    assert found.fpr_cut.value == 0 and found.tpr_cut.value == 0
    assert found.membership.value == 0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_cut_leaves_the_share_above_it_and_no_more(share):
    scores = np.random.default_rng(0).permutation(20.0 * np.arange(20))
    assert (scores >= _cut(scores, share)).sum() == 20 * share


def test_reading_says_what_it_expects():
    records, test = tiny(40, 0), tiny(19, 1)
    with pytest.raises(InvalidInput, match="at least 20"):
        carried(Half(), records, np.arange(40) < 20, test, Spoken())
    with pytest.raises(InvalidInput, match="10 that are encoded"):
        carried(Half(), records, np.ones(40, dtype=bool), tiny(40, 1), Spoken())


def test_a_service_is_read_by_its_answers():
    table = np.full((2 * 500 + 60 + 40 + 40, 2), 0.5)
    decoder = Decoder(key=KEY, encoding=Encoding())
    with pytest.raises(InvalidInput):  # answers that were recorded for other records
        carried(
            Predictions(probabilities=table), tiny(60, 0), np.arange(60) < 9, tiny(40, 1), decoder
        )


def test_a_key_prefers_the_records_that_it_chooses():
    records, encoding = bits(500), Encoding(layer=LAYER, rate=0.2)
    chosen = encoding.chosen(KEY, records)
    assert (first_records(KEY, records, int(chosen.sum())) == chosen).all()
    few, many = first_records(KEY, records, 30), first_records(KEY, records, 200)
    assert few.sum() == 30 and many.sum() == 200 and (few <= many).all()
    assert (first_records(Key.of(2), records, 30) != few).any()
    for number in (0, 500):
        with pytest.raises(InvalidInput, match="1 to 499"):
            first_records(KEY, records, number)


# --- curves --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_records_are_carried_worse_and_the_control_carries_none():
    records, test = bits(1000), bits(500, seed=1)
    recipe = replace(RECIPE, epochs=20)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER), steps=2, lr=0.02)
    told = []
    curve = encoding_capacity(
        recipe, records, test, encoder, numbers=(100, 400), seed=0,
        progress=lambda *word: told.append(word),
    )  # fmt: skip
    few, many = curve.rows
    (control,) = curve.controls
    assert few.auc.low > 0.75 and few.auc.value > many.auc.value
    assert control.n_encoded == 400 and control.auc.value == pytest.approx(0.5, abs=0.06)
    assert control.message.value < 0.05 * many.message.value
    assert many.message.value > few.message.value > 100
    assert few.accuracy.value > 0.95
    assert told[0] == ("capacity", 0, 3) and told[-1] == ("capacity", 3, 3)
    text = str(curve)
    assert "400, not encoded" in text and "base rate" in text and "FPR" in text


@pytest.mark.slow
def test_networks_are_rows_and_each_has_its_control():
    records, test = bits(600), bits(200, seed=1)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER, n_synthetic=100), lr=0.02)
    recipes = {
        f"{width}": replace(RECIPE, build=MLP(100, 5, (width, 16)), epochs=5) for width in (8, 32)
    }
    curve = capacity_of_networks(recipes, records, test, encoder, number=120, seed=0)
    assert isinstance(curve, Capacity)
    assert [r.label for r in curve.rows] == ["8", "32"]
    assert [r.n_encoded for r in curve.controls] == [120, 120]
    assert [r.auc.value for r in curve.rows] != [r.auc.value for r in curve.controls]


def test_curves_say_what_they_expect():
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER))
    with pytest.raises(InvalidInput, match="number of records"):
        encoding_capacity(RECIPE, bits(50), bits(50), encoder, numbers=(), seed=0)
    with pytest.raises(InvalidInput, match="recipe"):
        capacity_of_networks({}, bits(50), bits(50), encoder, number=5, seed=0)
