from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.datasets import load_digits

from vestige import exchangeability as module
from vestige.errors import InvalidInput
from vestige.exchangeability import exchangeability

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 600, 12))
LABELS = RNG.choice(10, size=(2, 600))


def test_one_distribution_passes():
    result = exchangeability(A, B, member_y=LABELS[0], nonmember_y=LABELS[1])
    assert result.passed is True
    assert result.auc.low < 0.5 < result.auc.high
    assert "does not tell" in result.reason and "99 %" in result.auc.method


def test_digits_cut_at_random_pass_and_cut_in_file_order_fail():
    x, order = load_digits().data, np.random.default_rng(0).permutation(1797)
    assert exchangeability(x[order[:900]], x[order[900:]]).passed is True
    assert exchangeability(x[:900], x[900:]).passed is False


@pytest.mark.parametrize(
    "shifted",
    [
        B + 0.15,
        1.2 * B,
        np.where(np.arange(12) == 3, B + 0.8, B),
        np.where(np.arange(12) == 3, 2 * B, B),
        # marginals as before: only the signs of two features agree
        np.where(np.arange(12) == 0, np.abs(B) * np.sign(B[:, [1]]), B),
        np.concatenate([B[:450], 0.3 * B[450:] + 1.5]),
    ],
    ids=["mean", "variance", "mean of one", "variance of one", "interaction", "cluster"],
)
def test_a_shift_of_the_records_fails(shifted):
    result = exchangeability(A, shifted)
    assert result.passed is False
    assert result.auc.low > 0.5 and "tells members from non-members" in result.reason


def test_a_shift_of_the_labels_fails():
    rare = np.where(RNG.random(600) < 0.25, 0, LABELS[1])
    assert exchangeability(A, B, member_y=LABELS[0], nonmember_y=rare).passed is False
    assert exchangeability(A, B).passed is True


def test_labels_alone_can_fail_the_check_but_not_pass_it():
    rare = np.where(RNG.random(600) < 0.25, 0, LABELS[1])
    assert exchangeability(None, None, member_y=LABELS[0], nonmember_y=rare).passed is False
    equal = exchangeability(None, None, member_y=LABELS[0], nonmember_y=LABELS[1])
    assert equal.passed is None and equal.auc.value is not None
    assert "no features" in equal.reason


def test_pictures_wider_than_max_features():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 256, size=(2, 300, 3, 16, 16)).astype(np.uint8)
    assert exchangeability(first, second).passed is True
    marked = second.copy()
    marked[:, 0, 0, 0] = 255  # one pixel of 768, which projections alone would drown
    assert exchangeability(first, marked, max_features=16).passed is False
    assert exchangeability(first, (0.9 * second).astype(np.uint8)).passed is False


def worlds(n_seeds: int):
    """The check on that many pairs of sides that are exchangeable."""
    for seed in range(n_seeds):
        x = np.random.default_rng(seed).normal(size=(120, 4))
        yield exchangeability(x[:60], x[60:], seed=seed)


def test_false_alarms_few():
    # nominal 0.5 %, one side of 99 %: 2 or more of 12 have probability 1.6e-3
    assert sum(result.passed is False for result in worlds(12)) < 2


@pytest.mark.slow
def test_false_alarms_are_calibrated():
    """Over exchangeable worlds: alarms are rare, and the interval is as wide as the AUC spreads."""
    aucs = [result.auc for result in worlds(150)]
    # nominal 0.5 %: 5 or more of 150 have probability 1.1e-3
    assert sum(area.low > 0.5 for area in aucs) < 5
    values = np.array([area.value for area in aucs])
    deviation = np.mean([area.high - area.low for area in aucs]) / (2 * norm.ppf(0.995))
    ratio = values.var() / deviation**2
    # expected 1 (ridge alone) to 0.8 (with trees); a variance over 150 draws has a relative
    # standard error of sqrt(2/150) = 0.115, and scores taken as independent would give 1.8
    assert 0.8 - 3 * 0.115 < ratio < 1 + 3 * 0.115
    assert abs(values.mean() - 0.5) < 4 * deviation / np.sqrt(150)


def test_copies_teach_nothing():
    """A record on both sides, or several times on one, is never in training and test at once."""
    both = exchangeability(A[:300], A[:300])
    assert both.auc.value == pytest.approx(0.5, abs=0.02) and both.passed
    repeated = exchangeability(np.concatenate([A[:300], A[:300]]), B)
    assert repeated.passed is True


def test_groups_stay_whole_and_folds_are_balanced():
    x = np.concatenate([A[:200], A[:50], B[:150]])
    is_member = np.arange(400) < 200
    groups = module._groups(x, is_member)
    fold = module._folds(groups, is_member, np.random.default_rng(0))
    assert (groups[:50] == groups[200:250]).all() and len(np.unique(groups)) == 350
    assert (fold[:50] == fold[200:250]).all()
    for side in (is_member, ~is_member):
        assert np.abs(np.bincount(fold[side]) - 40).max() <= 2


def test_few_distinct_values_are_not_copies():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 3, size=(2, 500, 2))
    assert exchangeability(first, second).passed is True
    second[:120] = 0
    assert exchangeability(first, second).passed is False


def test_a_side_of_one_record_repeated_fails():
    assert exchangeability(np.repeat(A[:1], 60, axis=0), B).passed is False


def test_same_seed_same_answer_and_inputs_untouched():
    first, second = A.copy(), B.copy()
    one = exchangeability(first, second, seed=3)
    assert one == exchangeability(first, second, seed=3)
    assert one.auc.value != exchangeability(first, second, seed=4).auc.value
    assert (first == A).all() and (second == B).all()


def test_draws_at_most_max_records():
    result = exchangeability(A, B[:90], max_records=300)
    assert result.auc.context == {"n_members": 150.0, "n_nonmembers": 90.0}


def test_orientation():
    """Which side is called member does not matter: a difference is above one half both ways."""
    assert exchangeability(A + 0.3, B).auc.low > 0.5
    assert exchangeability(A, B + 0.3).auc.low > 0.5


def test_constant_features_and_extreme_values():
    assert exchangeability(np.full((60, 3), 0.1), np.full((70, 3), 0.1)).passed is True
    wild = np.concatenate([A, 1e12 * A[:, :1] ** 9], axis=1)
    wild_b = np.concatenate([B, 1e12 * B[:, :1] ** 9], axis=1)
    assert exchangeability(wild, wild_b).passed is True


def test_cannot_run():
    few = exchangeability(A[:49], B)
    assert few.passed is None and few.auc.value is None
    assert few.reason == ("it takes at least 50 members and as many non-members, got 49 and 600")
    for absent in (None, np.empty((600, 0))):
        assert exchangeability(absent, absent).passed is None
    with pytest.raises(InvalidInput, match="reason"):
        replace(few.auc, reason="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, B[:, :5]), "one shape"),
        ((A, None), "for both sides"),
        ((A, np.where(np.arange(12) == 0, np.nan, B)), "finite"),
        ((A, B.astype(str)), "array of numbers"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        exchangeability(*arguments)


def test_refusals_of_labels_and_limits():
    with pytest.raises(InvalidInput, match="labels for both sides"):
        exchangeability(A, B, member_y=LABELS[0])
    with pytest.raises(InvalidInput, match="one label a record"):
        exchangeability(A, B, member_y=LABELS[0], nonmember_y=LABELS[1][:5])
    with pytest.raises(InvalidInput, match="max_records"):
        exchangeability(A, B, max_records=10)
