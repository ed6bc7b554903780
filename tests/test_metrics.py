import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.metrics import Estimate

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)


def gaussian(n: int, mu: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, n)


def known(n: int, mu: float = 1.0):
    """Scores at the quantiles of N(mu, 1) and N(0, 1): no randomness, known ROC."""
    grid = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return mu + grid, grid


# --- Estimate ----------------------------------------------------------------------------------


def test_estimate_through_json():
    full = Estimate(
        0.5, 0.4, np.float64(0.6), "m", "r", np.float64(1.5), "fixed", {"fpr": np.float64(0.1)}
    )
    text = json.dumps(full.to_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == full
    assert set(Estimate(0.5, None, None, "m").to_json()) == {"value", "low", "high", "method"}
    missing = Estimate(None, None, None, "none", "why")
    assert missing.to_json()["value"] is None and missing.to_json()["reason"] == "why"


@pytest.mark.parametrize(
    "arguments",
    [
        (np.nan, 0, 1, "m"),
        (0.5, 0.6, 0.7, "m"),
        (0.5, 0.1, 0.4, "m"),
        (None, None, None, "m"),
        (0.5, 0, np.inf, "m"),
        (0.5, 0, 1, "m", "", np.inf),
        (0.5, 0, 1, "m", "", None, "", {"fpr": np.nan}),
    ],
)
def test_estimate_refuses(arguments):
    with pytest.raises(InvalidInput):
        Estimate(*arguments)


def test_estimate_from_foreign_json():
    for data in ({"value": 1.0}, {"value": 1, "low": 0, "high": 1, "method": "m", "what": 2}):
        with pytest.raises(InvalidInput, match="fields"):
            Estimate.from_json(data)


# --- ROC ---------------------------------------------------------------------------------------


def naive_roc(members, nonmembers):
    points = [(np.inf, 0.0, 0.0)]
    for t in sorted({*members, *nonmembers}, reverse=True):
        fpr = sum(s >= t for s in nonmembers) / len(nonmembers)
        points.append((t, fpr, sum(s >= t for s in members) / len(members)))
    return points


@settings(deadline=None)
@given(scores, scores)
def test_roc_equals_counting(members, nonmembers):
    curve = metrics.roc(members, nonmembers)
    assert list(zip(curve.thresholds, curve.fpr, curve.tpr, strict=True)) == naive_roc(
        members, nonmembers
    )


def test_roc_moves_ties_together():
    curve = metrics.roc([2, 1, 1], [1, 0])
    assert curve.thresholds.tolist() == [np.inf, 2, 1, 0]
    assert curve.fpr.tolist() == [0, 0, 0.5, 1]
    np.testing.assert_allclose(curve.tpr, [0, 1 / 3, 1, 1])


@settings(deadline=None)
@given(scores, scores)
def test_area_under_the_staircase_is_the_auc(members, nonmembers):
    curve = metrics.roc(members, nonmembers)
    area = np.trapezoid(curve.tpr, curve.fpr)
    assert metrics.auc(members, nonmembers).value == pytest.approx(area, abs=1e-12)


def test_roc_of_known_gaussians():
    curve = metrics.roc(*known(2000))
    # a step of 1/2000 in FPR is one of up to 5/2000 in TPR where the curve is that steep
    inner = (curve.fpr > 0.02) & (curve.fpr < 1)
    expected = stats.norm.cdf(1 + stats.norm.ppf(curve.fpr[inner]))
    np.testing.assert_allclose(curve.tpr[inner], expected, atol=3e-3)


def test_band_is_clopper_pearson_of_each_point():
    curve = metrics.roc(*gaussian(60))
    low, high = curve.band(0.9)
    for i in (0, 5, 40, len(curve) - 1):
        exact = stats.binomtest(round(curve.tpr[i] * 60), 60).proportion_ci(0.9, method="exact")
        assert (low[i], high[i]) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert (low <= curve.tpr).all() and (curve.tpr <= high).all()


@pytest.mark.parametrize("n", [5, 300, 20_000])
@pytest.mark.parametrize("max_points", [8, 50, 300])
def test_thinned_keeps_attained_points_the_ends_and_low_fpr(n, max_points):
    curve = metrics.roc(*gaussian(n))
    thin = curve.thinned(max_points)
    assert len(thin) <= max_points
    points = set(zip(curve.thresholds, curve.fpr, curve.tpr, strict=True))
    assert set(zip(thin.thresholds, thin.fpr, thin.tpr, strict=True)) <= points
    assert (thin.fpr[0], thin.tpr[0], thin.fpr[-1], thin.tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(thin.fpr) >= 0).all() and (np.diff(thin.tpr) >= 0).all()
    # the best point without a false positive, and the first step to the right
    assert thin.tpr[thin.fpr == 0].max() == curve.tpr[curve.fpr == 0].max()
    corners = curve.thinned(10**6)
    assert corners.fpr[corners.fpr > 0].min() in thin.fpr


def test_thinning_a_short_curve_loses_only_points_inside_straight_runs():
    curve = metrics.roc([5, 6, 7, 8, 1], [0, 1, 2, 3])
    thin = curve.thinned()
    assert thin.thresholds.tolist() == [np.inf, 5, 2, 1, 0]
    assert np.trapezoid(thin.tpr, thin.fpr) == np.trapezoid(curve.tpr, curve.fpr)


# --- AUC ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(scores, scores)
def test_auc_equals_counting_pairs(members, nonmembers):
    pairs = [(m > s) + (m == s) / 2 for m in members for s in nonmembers]
    estimate = metrics.auc(members, nonmembers)
    assert estimate.value == pytest.approx(np.mean(pairs), abs=1e-12)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low > 0.05  # 25 a side never leave less


@settings(deadline=None)
@given(scores, scores)
def test_auc_of_swapped_and_of_negated_sides(members, nonmembers):
    one = metrics.auc(members, nonmembers)
    swapped = metrics.auc(nonmembers, members)
    negated = metrics.auc(-np.array(members), -np.array(nonmembers))
    mirror = pytest.approx((1 - one.value, 1 - one.high, 1 - one.low), abs=1e-9)
    assert (swapped.value, swapped.low, swapped.high) == mirror
    assert (negated.value, negated.low, negated.high) == mirror


def test_auc_of_known_gaussians():
    assert metrics.auc(*known(3000)).value == pytest.approx(0.7602, abs=1e-3)


def naive_delong(members, nonmembers):
    kernel = np.array([[(m > s) + (m == s) / 2 for s in nonmembers] for m in members])
    return kernel.mean(axis=1).var(ddof=1) / len(members) + kernel.mean(axis=0).var(ddof=1) / len(
        nonmembers
    )


def test_auc_interval_is_delong_on_the_logit_scale():
    members, nonmembers = (np.round(side, 1) for side in gaussian(80))
    estimate = metrics.auc(members, nonmembers, level=0.9)
    a = estimate.value
    half = 1.6448536 * np.sqrt(naive_delong(members, nonmembers)) / (a * (1 - a))
    logits = np.log(a / (1 - a)) + np.array([-half, half])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(1 / (1 + np.exp(-logits))))
    assert estimate.method == "DeLong, logit scale, 90 %"
    doubled = metrics.auc(members, nonmembers, variance_factor=2.0)
    assert doubled.high - doubled.low > 1.3 * (estimate.high - estimate.low)


def test_auc_without_spread_keeps_an_honest_interval():
    perfect = metrics.auc(np.arange(100) + 200, np.arange(150))
    # all of 100 disjoint pairs in order: the lower end A solves A^100 = 0.025
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.025 ** (1 / 100))
    constant = metrics.auc(np.zeros(50), np.zeros(50))
    assert constant.value == 0.5 and constant.low < 0.4 and constant.high > 0.6
    lonely = metrics.auc([1.0], [0.0])
    assert lonely.high == 1.0 and lonely.low == pytest.approx(0.025)


def coverage(draw, truth, measure, n_draws=300):
    """Share of draws whose interval holds the truth."""
    inside = 0
    for seed in range(n_draws):
        estimate = measure(*draw(np.random.default_rng(seed)))
        inside += estimate.low <= truth <= estimate.high
    return inside / n_draws


# 300 draws at a true coverage of 95 %: standard error 1.26 points, four of them 5 points
SLACK = 0.05


def lumps(n, share):
    """A share of the members below everyone, the others above everyone."""

    def draw(rng):
        low = rng.random(n) < share
        return np.where(low, -9, 9) + rng.normal(size=n), rng.normal(size=n)

    return draw


def normals(n, mu):
    return lambda rng: (rng.normal(mu, 1, n), rng.normal(0, 1, n))


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (normals(40, 0), 0.5),
        (normals(100, 1), stats.norm.cdf(1 / np.sqrt(2))),
        (normals(100, 4), stats.norm.cdf(4 / np.sqrt(2))),
        (lumps(100, 0.02), 0.98),
    ],
)
def test_auc_interval_covers(draw, truth):
    assert coverage(draw, truth, metrics.auc) > 0.95 - SLACK


# --- rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "n"), [(0, 10), (1, 10), (10, 10), (37, 200)])
def test_rate_is_clopper_pearson(s, n):
    exact = stats.binomtest(s, n).proportion_ci(0.95, method="exact")
    estimate = metrics.rate(s, n)
    assert estimate.value == s / n
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_rate_difference_known_answers():
    """Newcombe 1998, table II, method 10."""
    for counts, low, high in [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 10), 0.6075, 1.0000),
        ((5, 56, 0, 29), -0.0381, 0.1926),
    ]:
        estimate = metrics.rate_difference(*counts)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
    assert estimate.value == pytest.approx(5 / 56)


def test_paired_difference_covers_what_it_says():
    """Agresti 2002, section 10.1.1, approval ratings; coverage by enumeration."""
    known = metrics.paired_difference(150, 86, 1600)
    assert known.value == 0.04
    assert (known.low, known.high) == pytest.approx((0.0212, 0.0588), abs=2e-4)
    n = 60
    for first, second in [(0.05, 0.05), (0.2, 0.05), (0.01, 0.1), (0.3, 0.3)]:
        covered = 0.0
        for b in range(n + 1):
            for c in range(n + 1 - b):
                found = metrics.paired_difference(b, c, n)
                if found.low <= first - second <= found.high:
                    covered += stats.multinomial.pmf(
                        [b, c, n - b - c], n, [first, second, 1 - first - second]
                    )
        assert 0.93 < covered < 0.995, (first, second)
    with pytest.raises(InvalidInput, match="first_only"):
        metrics.paired_difference(6, 5, 10)


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_counts_are_refused(counts):
    with pytest.raises(InvalidInput, match="successes"):
        metrics.rate(*counts)


# --- TPR at FPR --------------------------------------------------------------------------------


def naive_tpr(members, nonmembers, fpr):
    """The best attained point with an FPR not above the one asked for."""
    allowed = [point for point in naive_roc(members, nonmembers) if point[1] <= fpr + 1e-12]
    return max(point[2] for point in allowed)


@settings(deadline=None)
@given(scores, scores, st.sampled_from([0.1, 0.2, 0.25, 0.5]))
def test_tpr_at_fpr_is_the_best_attained_point(members, nonmembers, fpr):
    estimate = metrics.tpr_at_fpr(members, nonmembers, fpr)
    if len(nonmembers) * fpr < 1 - 1e-9:
        assert estimate.value is None and "not resolvable" in estimate.reason
        return
    top = max([*members, *nonmembers])
    if nonmembers.count(top) / len(nonmembers) > fpr + 1e-12:
        assert estimate.value is None and "not attainable" in estimate.reason
        assert naive_tpr(members, nonmembers, fpr) == 0
        return
    assert estimate.value == naive_tpr(members, nonmembers, fpr)
    assert estimate.context["fpr"] <= fpr + 1e-12
    # the threshold says the same when it is applied again
    assert np.mean(np.array(members) >= estimate.threshold) == estimate.value
    assert np.mean(np.array(nonmembers) >= estimate.threshold) == estimate.context["fpr"]


def test_tpr_at_fpr_counts_exactly():
    # members 500.5 ... 2499.5; with k non-members allowed the threshold is above 1999 - k
    members, nonmembers = np.arange(2000) + 500.5, np.arange(2000)
    for fpr, allowed in ((0.001, 2), (0.01, 20), (0.1, 200)):
        estimate = metrics.tpr_at_fpr(members, nonmembers, fpr)
        assert estimate.value == (500 + allowed + 1) / 2000
        assert estimate.context["fpr"] == fpr


def test_tpr_below_the_resolution_is_not_interpolated():
    estimate = metrics.tpr_at_fpr(*gaussian(599), 0.001)
    assert estimate.value is None and estimate.low is None
    assert estimate.reason == (
        "not resolvable: an FPR of 0.001 takes at least 1000 non-members, got 599"
    )
    assert metrics.tpr_at_fpr(*gaussian(1000), 0.001).value is not None


def test_tpr_at_fpr_where_ties_allow_nobody():
    estimate = metrics.tpr_at_fpr([1, 1, 0], [1] * 10, 0.1)
    assert estimate.value is None and estimate.reason == (
        "not attainable: 10 of 10 non-members share the highest score, and an FPR of 0.1 allows 1"
    )


@pytest.mark.parametrize(
    ("n", "mu", "fpr"),
    [(200, 1, 0.1), (500, 1, 0.01), (1000, 1, 0.001), (1000, 3, 0.001), (300, 0, 0.01)],
)
def test_tpr_interval_covers_the_true_roc(n, mu, fpr):
    truth = stats.norm.cdf(mu + stats.norm.ppf(fpr))
    measured = coverage(normals(n, mu), truth, lambda m, s: metrics.tpr_at_fpr(m, s, fpr))
    assert measured > 0.95 - SLACK / 2


def test_tpr_interval_is_not_vacuous():
    estimate = metrics.tpr_at_fpr(*gaussian(2000), 0.1)
    assert 0.3891 - 0.1 < estimate.low and estimate.high < 0.3891 + 0.1
    outspoken = metrics.tpr_at_fpr(*gaussian(2000, mu=6), 0.001)
    # n0 fpr = 2 is too few for a threshold surely below: the scaled lower end, fpr / 0.00184
    assert outspoken.value > 0.99 and 0.5 < outspoken.low < 0.55


def test_clopper_pearson_at_the_chosen_threshold_is_in_the_context():
    members, nonmembers = gaussian(500)
    estimate = metrics.tpr_at_fpr(members, nonmembers, 0.1)
    exact = metrics.rate(int((members >= estimate.threshold).sum()), 500)
    assert estimate.context["tpr_low"] == exact.low and estimate.context["tpr_high"] == exact.high
    assert estimate.low < exact.low and exact.high < estimate.high


# --- one threshold -----------------------------------------------------------------------------


def test_at_a_fixed_threshold():
    members, nonmembers = [1, 2, 3, 4], [0, 1, 2, 3, 3]
    gap = metrics.advantage(members, nonmembers, threshold=3)
    assert gap.value == pytest.approx(2 / 4 - 2 / 5)
    assert (gap.chosen_on, gap.threshold) == ("fixed", 3)
    assert gap.context["base_rate"] == pytest.approx(4 / 9)
    half = metrics.balanced_accuracy(members, nonmembers, threshold=3)
    assert half.value == pytest.approx((2 / 4 + 3 / 5) / 2)
    assert half.low == pytest.approx((1 + gap.low) / 2)
    share = metrics.precision(members, nonmembers, threshold=3)
    assert share.value == 2 / 4 and share.context["fpr"] == 2 / 5
    assert {"base_rate", "fpr", "fpr_low", "fpr_high"} <= set(share.context)


def test_precision_of_nobody_is_undefined():
    estimate = metrics.precision([1, 2], [0, 1], threshold=5)
    assert estimate.value is None and "no record reaches" in estimate.reason
    assert estimate.context["base_rate"] == 0.5


def test_threshold_comes_from_the_other_half():
    members, nonmembers = gaussian(400)
    for measure in (metrics.advantage, metrics.balanced_accuracy, metrics.precision):
        estimate = measure(members, nonmembers)
        assert estimate.chosen_on == "other records (calibration half)"
        assert estimate == measure(members[::-1], nonmembers[::-1])  # order means nothing
        assert estimate != measure(members, nonmembers, seed=1)
    gap = metrics.advantage(members, nonmembers)
    # each side's measured half has 200 records: the rates are multiples of 1/200
    assert (gap.context["tpr"] * 200) % 1 == pytest.approx(0, abs=1e-9)


def test_a_chosen_threshold_is_a_score_of_the_calibration_half():
    members, nonmembers = gaussian(400)
    (calibration_1, _), (calibration_0, _) = metrics._halves(members, nonmembers, seed=0)
    for measure in (metrics.advantage, metrics.precision, metrics.epsilon_lower_bound):
        assert measure(members, nonmembers).threshold in {*calibration_1, *calibration_0}


def test_halves_share_no_record():
    members, nonmembers = np.arange(11.0), 100 + np.arange(8.0)
    (m_1, m_2), (n_1, n_2) = metrics._halves(members, nonmembers, seed=0)
    assert sorted([*m_1, *m_2]) == members.tolist() and sorted([*n_1, *n_2]) == nonmembers.tolist()
    assert (len(m_1), len(m_2), len(n_1), len(n_2)) == (5, 6, 4, 4)


def test_advantage_at_chance_is_unbiased_and_the_oracle_is_not():
    honest, oracle = [], []
    for seed in range(200):
        sides = gaussian(100, mu=0, seed=seed)
        honest.append(metrics.advantage(*sides, seed=seed).value)
        oracle.append(metrics.oracle_advantage(*sides).value)
    # sd of one is at most sqrt(2 / 50 / 4) = 0.1, of the mean of 200 is 0.0071
    assert abs(np.mean(honest)) < 4 * 0.0071
    assert np.mean(oracle) > 0.05


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_oracle_advantage_covers_the_true_maximum(mu):
    truth = 2 * stats.norm.cdf(mu / 2) - 1
    assert coverage(normals(200, mu), truth, metrics.oracle_advantage, 200) > 0.95 - SLACK
    estimate = metrics.oracle_advantage(*known(1000, mu))
    assert estimate.value == pytest.approx(truth, abs=2e-3)
    assert estimate.chosen_on == "the same records"
    slack = 2 * np.sqrt(np.log(4 / 0.05) / 2000)
    assert estimate.high == pytest.approx(estimate.value + slack)


@settings(deadline=None)
@given(scores, scores)
def test_oracle_advantage_is_the_best_point(members, nonmembers):
    best = max(tpr - fpr for _, fpr, tpr in naive_roc(members, nonmembers))
    estimate = metrics.oracle_advantage(members, nonmembers)
    assert estimate.value == pytest.approx(best, abs=1e-12)
    assert metrics.advantage(
        members, nonmembers, threshold=estimate.threshold
    ).value == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("measure", [metrics.advantage, metrics.precision])
def test_measured_interval_covers_at_its_threshold(measure):
    threshold, n1, n0 = 0.8, 150, 300
    tpr, fpr = stats.norm.sf(threshold - 1), stats.norm.sf(threshold)
    truth = tpr - fpr if measure is metrics.advantage else n1 * tpr / (n1 * tpr + n0 * fpr)
    covered = coverage(
        lambda rng: (rng.normal(1, 1, n1), rng.normal(0, 1, n0)),
        truth,
        lambda m, s: measure(m, s, threshold=threshold),
    )
    assert covered > 0.95 - SLACK


def test_too_few_to_cut_in_halves():
    for measure in (
        metrics.advantage,
        metrics.balanced_accuracy,
        metrics.precision,
        metrics.epsilon_lower_bound,
    ):
        estimate = measure([1.0], [0.0, 2.0])
        assert estimate.value is None and "at least 2 records a side" in estimate.reason


@settings(deadline=None)
@given(scores, scores)
def test_increasing_maps_of_the_scores_change_nothing(members, nonmembers):
    def numbers(m, s):
        found = [
            metrics.auc(m, s),
            metrics.tpr_at_fpr(m, s, 0.25),
            metrics.oracle_advantage(m, s),
            metrics.advantage(m, s),
            metrics.epsilon_lower_bound(m, s),
        ]
        return [(each.value, each.low, each.high) for each in found]

    stretched = [np.exp(np.array(side)) * 3 - 1 for side in (members, nonmembers)]
    assert numbers(members, nonmembers) == numbers(*stretched)


# --- per class ---------------------------------------------------------------------------------


def test_per_class_is_each_class_alone():
    members, nonmembers = gaussian(200)
    labels_1, labels_0 = np.arange(200) % 3, np.arange(200) % 4
    rows = metrics.per_class(members, labels_1, nonmembers, labels_0)
    assert [row[:3] for row in rows] == [(0, 67, 50), (1, 67, 50), (2, 66, 50), (3, 0, 50)]
    for label, _, _, found in rows[:3]:
        of_1, of_0 = members[labels_1 == label], nonmembers[labels_0 == label]
        assert found == {
            "auc": metrics.auc(of_1, of_0),
            "tpr@0.1": metrics.tpr_at_fpr(of_1, of_0, 0.1),
        }
    assert rows[3][3]["auc"].value is None and "got 0 and 50" in rows[3][3]["auc"].reason


def test_per_class_refuses_other_labels():
    with pytest.raises(InvalidInput, match="member labels to be 3 integers"):
        metrics.per_class([1, 2, 3], [0, 1], [1], [0])
    with pytest.raises(InvalidInput, match="float64"):
        metrics.per_class([1], [0.5], [1], [0])


# --- epsilon -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tp", "fp", "expected"),
    [(100, 1, 2.6926), (500, 0, 4.8462), (900, 100, 1.9897), (500, 500, 0)],
)
def test_epsilon_known_answers(tp, fp, expected):
    bound = metrics.epsilon_from_counts(tp, 1000, fp, 1000)
    assert bound.value == pytest.approx(expected, abs=5e-5)
    assert (bound.low, bound.high) == (bound.value, None)
    # through scores that are only 0 and 1
    members, nonmembers = (
        np.repeat([1.0, 0.0], [tp, 1000 - tp]),
        np.repeat([1.0, 0], [fp, 1000 - fp]),
    )
    test = metrics._test(members, nonmembers, 1.0, "fixed")
    assert metrics.epsilon_from_counts(test.tp, 1000, test.fp, 1000) == bound


def test_epsilon_of_500_perfect_runs():
    # each bound at level 0.005, so both hold at 99 %
    bound = metrics.epsilon_from_counts(500, 500, 0, 500, level=0.99)
    assert bound.value == pytest.approx(4.54, abs=5e-3)
    assert bound.context["attainable"] == bound.value


def test_epsilon_through_scores():
    """A perfect attack on 2 x 1000 is one of 2 x 500 on the half that is measured."""
    bound = metrics.epsilon_lower_bound(np.ones(1000), np.zeros(1000), level=0.99)
    assert bound.value == pytest.approx(4.54, abs=5e-3)
    assert bound.chosen_on == "other records (calibration half)"


def test_delta_lowers_epsilon():
    exact = metrics.epsilon_from_counts(100, 1000, 1, 1000, delta=0.05)
    low, high = exact.context["tpr_low"], exact.context["fpr_high"]
    assert exact.value == pytest.approx(np.log((low - 0.05) / high))
    assert metrics.epsilon_from_counts(100, 1000, 1, 1000, delta=0.2).value == 0


def test_epsilon_finds_the_direction():
    rng = np.random.default_rng(0)
    # 20 % of the non-members are below everyone: only their absence can be told
    nonmembers = np.where(rng.random(2000) < 0.2, -9, 0) + rng.normal(size=2000)
    bound = metrics.epsilon_lower_bound(rng.normal(size=2000), nonmembers)
    assert bound.context["direction"] == -1
    assert bound.value > 3
    mirrored = metrics.epsilon_lower_bound(-nonmembers, -rng.normal(size=2000))
    assert mirrored.context["direction"] == 1 and mirrored.value > 3


def randomized_response(n, epsilon, rng):
    """Scores that are the membership bit, flipped with probability 1 / (1 + e^eps)."""
    keep = 1 / (1 + np.exp(-epsilon))
    return (rng.random(n) < keep).astype(float), (rng.random(n) >= keep).astype(float)


def test_epsilon_bounds_hold_on_randomized_response_and_are_tight():
    bounds, one_run = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        bounds.append(metrics.epsilon_lower_bound(*randomized_response(1000, 1.0, rng)).value)
        sides = randomized_response(500, 1.0, rng)
        one_run.append(metrics.one_run_audit(*sides, n_in=500, n_out=500).value)
    for found in (bounds, one_run):
        # at most 5 % of 200 may be above; 4 standard errors of 1.54 points
        assert np.mean(np.array(found) > 1.0) < 0.05 + 4 * 0.0154
        assert np.median(found) > 0.75


def test_epsilon_of_chance_is_hardly_ever_positive():
    positive = sum(
        metrics.epsilon_lower_bound(*gaussian(300, mu=0, seed=seed)).value > 0
        for seed in range(200)
    )
    assert positive / 200 < 0.05 + 4 * 0.0154


def naive_one_run_p_value(epsilon, m, r, v, delta):
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    mass = [stats.binom.pmf(k, r, q) for k in range(r + 1)]
    beta = sum(mass[v:])
    alpha = max([sum(mass[v - i : v]) / i for i in range(1, v + 1)], default=0.0)
    return min(1.0, beta + 2 * m * delta * alpha)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize(("r", "v"), [(20, 0), (20, 13), (20, 20), (50, 31), (1, 1)])
def test_one_run_p_value_equals_the_loop(r, v, delta):
    for epsilon in (0.0, 0.3, 2.0):
        found = metrics.one_run_p_value(epsilon, 60, r, v, delta=delta)
        assert found == pytest.approx(naive_one_run_p_value(epsilon, 60, r, v, delta), abs=1e-12)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "expected"),
    [
        (1000, 100, 100, 0, 3.49297),
        (1000, 100, 90, 0, 1.63082),
        (1000, 100, 90, 1e-5, 1.62614),
        (1000, 1000, 600, 0, 0.29747),
        (1000, 1000, 500, 0, 0.0),
        (100, 50, 49, 0, 2.29668),
    ],
)
def test_one_run_known_answers(m, r, v, delta, expected):
    bound = metrics.one_run_epsilon(m, r, v, delta=delta)
    assert bound.value == pytest.approx(expected, abs=1e-5)
    # through scores: v of the r guesses right, the rest of the canaries abstained on
    n_members = max(m // 2, v)
    members = np.repeat([1.0, 0.0], [v, n_members - v])
    nonmembers = np.repeat([1.0, 0.0], [r - v, m - n_members - (r - v)])
    audit = metrics.one_run_audit(members, nonmembers, n_in=r, n_out=0, delta=delta)
    assert audit.value == bound.value and audit.context == bound.context


def test_one_run_bound_is_where_the_p_value_crosses():
    bound = metrics.one_run_epsilon(200, 80, 70, delta=1e-6, level=0.9).value
    p = [metrics.one_run_p_value(bound + step, 200, 80, 70, delta=1e-6) for step in (-1e-6, 1e-6)]
    assert p[0] <= 0.1 < p[1]
    assert metrics.one_run_epsilon(10, 10, 10).value == pytest.approx(
        np.log(0.05 ** (1 / 10) / (1 - 0.05 ** (1 / 10)))
    )


def test_one_run_guesses_top_in_and_bottom_out():
    bound = metrics.one_run_audit([9, 8, 1], [7, 2, 0], n_in=3, n_out=3)
    # in: 9 8 7 (two right), out: 0 1 2 (two right)
    assert bound.context["n_correct"] == 4 and bound.context["n_guesses"] == 6
    ties = [
        metrics.one_run_audit(np.zeros(50), np.zeros(50), n_in=30, n_out=0, seed=s)
        for s in range(40)
    ]
    # hypergeometric mean 15, sd 2.3: ties are broken at random, not in favor of members
    assert abs(np.mean([each.context["n_correct"] for each in ties]) - 15) < 4 * 2.3 / np.sqrt(40)


def test_epsilon_refusals():
    for call, words in [
        (lambda: metrics.epsilon_from_counts(5, 4, 0, 4), "tp"),
        (lambda: metrics.epsilon_from_counts(1, 4, 0, 4, delta=1.0), "delta"),
        (lambda: metrics.epsilon_lower_bound([1, 2], [1, 2], delta=-1), "delta"),
        (lambda: metrics.one_run_epsilon(10, 11, 5), "n_guesses"),
        (lambda: metrics.one_run_epsilon(10, 5, 6), "n_correct"),
        (lambda: metrics.one_run_p_value(-1.0, 10, 5, 5), "epsilon"),
        (lambda: metrics.one_run_audit([1], [0], n_in=2, n_out=1), "guesses"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()


# --- exposed records ---------------------------------------------------------------------------


@settings(deadline=None)
@given(scores, scores)
def test_rank_p_values_count(values, null):
    expected = [(1 + sum(n >= v for n in null)) / (1 + len(null)) for v in values]
    assert metrics.rank_p_values(values, null).tolist() == pytest.approx(expected)


def test_rank_p_values_of_nonmembers_are_valid():
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [metrics.rank_p_values(rng.normal(size=1), rng.normal(size=19)) for _ in range(4000)]
    )
    for level in (0.05, 0.1, 0.5):
        # exactly uniform on multiples of 1/20; four standard errors
        assert np.mean(p <= level) == pytest.approx(
            level, abs=4 * np.sqrt(level * (1 - level) / 4000)
        )


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.3, 1.0]), min_size=1, max_size=30))
def test_benjamini_hochberg_equals_scipy(p):
    np.testing.assert_allclose(
        metrics.benjamini_hochberg(p), stats.false_discovery_control(p, method="bh")
    )


def test_false_discoveries_are_controlled_with_shared_null_scores():
    """50 non-members and 50 members tested against 200 other non-members, at 10 %."""
    false_share, found = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        tested = np.concatenate([rng.normal(size=50), rng.normal(3, 1, 50)])
        q = metrics.benjamini_hochberg(metrics.rank_p_values(tested, rng.normal(size=200)))
        exposed = q <= 0.1
        false_share.append(exposed[:50].sum() / max(exposed.sum(), 1))
        found.append(exposed[50:].mean())
    # expected 0.1 x 50/100 = 0.05; the sd of one share is below 0.06, of the mean 0.0035
    assert np.mean(false_share) < 0.05 + 4 * 0.0035
    assert np.mean(found) > 0.6


def test_benjamini_hochberg_refuses():
    with pytest.raises(InvalidInput, match=r"\[0, 1\]"):
        metrics.benjamini_hochberg([0.5, 1.5])


# --- refusals ----------------------------------------------------------------------------------

MEASURES = [
    metrics.roc,
    metrics.auc,
    lambda m, n: metrics.tpr_at_fpr(m, n, 0.1),
    metrics.advantage,
    metrics.oracle_advantage,
    metrics.balanced_accuracy,
    metrics.precision,
    metrics.epsilon_lower_bound,
    lambda m, n: metrics.per_class(m, [0], n, [0]),
    lambda m, n: metrics.one_run_audit(m, n, n_in=1, n_out=0),
    metrics.rank_p_values,
]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "at least one"),
        ([np.nan], "finite"),
        ([1.0, -np.inf], "finite"),
        ([[1.0]], "shape"),
        (1.0, "shape"),
        (["a"], "numbers"),
    ],
)
def test_bad_scores_are_refused(measure, bad, words):
    for sides in ((bad, [1.0]), ([1.0], bad)):
        with pytest.raises(InvalidInput, match=words):
            measure(*sides)


def test_bad_numbers_are_refused():
    for fpr in (0.0, 1.0, -1, np.nan):
        with pytest.raises(InvalidInput, match="fpr"):
            metrics.tpr_at_fpr([1], [0], fpr)
    for level in (0, 1, 95):
        with pytest.raises(InvalidInput, match="level"):
            metrics.auc([1, 2], [0, 1], level=level)
    with pytest.raises(InvalidInput, match="threshold"):
        metrics.advantage([1], [0], threshold=np.inf)
    with pytest.raises(InvalidInput, match="max_points"):
        metrics.roc([1], [0]).thinned(2)


def test_inputs_are_not_mutated():
    members, nonmembers = gaussian(50)
    copies = members.copy(), nonmembers.copy()
    for measure in MEASURES[:8]:
        measure(members, nonmembers)
    assert (members == copies[0]).all() and (nonmembers == copies[1]).all()


def test_public_names_exist():
    assert sorted(metrics.__all__) == metrics.__all__
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)


def test_an_estimate_is_read_as_a_sentence() -> None:
    assert (
        str(metrics.Estimate(0.9434, 0.93192, 0.9531, "DeLong")) == "0.943 (0.932 to 0.953; DeLong)"
    )
    assert str(metrics.Estimate(0.5, 0.4, None, "one-sided")) == "0.5 (0.4 to ...; one-sided)"
    assert str(metrics.Estimate(None, None, None, "", reason="too few")) == "too few"


# --- several p-values of one hypothesis ---------------------------------------------------------

THREE = np.log([0.01, 0.05, 0.2])


def equally_correlated(n: int, r: float):
    return np.full((n, n), r) + (1 - r) * np.eye(n)


@pytest.mark.parametrize(
    "r, p, scale, freedom",
    [
        (0.0, 0.00526255, 1.0, 6.0),
        (0.5, 0.0245369, 1.90619, 3.14764),
        (1.0, 0.0464159, 3.0, 2.0),
        (-0.3, 0.00526255, 1.0, 6.0),
    ],
)
def test_combined_p_values_have_the_known_answers(r, p, scale, freedom):
    made = metrics.combine(THREE, equally_correlated(3, r))
    assert np.exp(made.log_p) == pytest.approx(p, abs=1e-6 * p * 10)
    assert (made.scale, made.freedom) == pytest.approx((scale, freedom), abs=1e-5)
    assert made.statistic == pytest.approx(18.4207, abs=1e-4)


def test_without_a_correlation_it_is_fishers():
    p = np.random.default_rng(0).random((50, 4))
    expected = [stats.combine_pvalues(row, "fisher").pvalue for row in p]
    assert np.exp(metrics.combine(np.log(p)).log_p) == pytest.approx(expected, rel=1e-9)


def test_copies_of_one_p_value_say_no_more_than_it():
    for p in (0.3, 1e-5, 1e-200):
        made = metrics.combine(np.full(7, np.log(p)), np.ones((7, 7)))
        assert made.log_p == pytest.approx(np.log(p), rel=1e-9)


@pytest.mark.parametrize("log_p, expected", [(-850.0, -1692.561028407604), (-3e5, None)])
def test_combined_p_values_below_the_smallest_double(log_p, expected):
    made = metrics.combine([log_p, log_p])
    # chi2 with 4 degrees of freedom: log P = -x/2 + log(1 + x/2)
    exact = 2 * log_p + np.log1p(-2 * log_p)
    assert made.log_p == pytest.approx(exact, rel=1e-12)
    assert expected is None or made.log_p == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("freedom", [0.7, 2.0, 7.159, 60.0, 501.0])
def test_the_far_tail_continues_the_near_one(freedom):
    x = np.linspace(300.0, 1270.0, 40) + freedom
    near = stats.chi2.logsf(x, freedom)
    far = metrics._log_chi2_sf(x + 0.0, freedom)
    assert far == pytest.approx(near, rel=1e-10)
    beyond = metrics._log_chi2_sf(np.array([1290.0, 1300.0]) + 2 * freedom, freedom)
    # its slope tends to -1/2 + (f/2 - 1) / x
    slope = (beyond[1] - beyond[0]) / 10
    assert slope == pytest.approx(-0.5 + (freedom / 2 - 1) / (1295 + 2 * freedom), abs=2e-2)


@pytest.mark.parametrize("r", [-0.4, 0.2, 0.6, 0.95])
def test_a_pair_of_correlated_tests_keeps_its_level(r):
    rng = np.random.default_rng(5)
    z = rng.multivariate_normal([0, 0], equally_correlated(2, r), 40_000)
    made = metrics.combine(stats.norm.logsf(z), equally_correlated(2, r))
    share = float((made.log_p <= np.log(0.05)).mean())
    # the clamp makes a negative correlation conservative
    assert share == pytest.approx(0.05, abs=0.004) if r > 0 else share < 0.05


@pytest.mark.parametrize(
    "log_p, correlation",
    [
        ([], None),
        ([-np.inf, -1.0], None),
        ([0.1, -1.0], None),
        ([np.nan, -1.0], None),
        ([-1.0, -1.0], np.eye(3)),
        ([-1.0, -1.0], [[1.0, 0.5], [0.4, 1.0]]),
        ([-1.0, -1.0], [[1.0, 2.0], [2.0, 1.0]]),
        ([-1.0, -1.0], [[0.5, 0.1], [0.1, 0.5]]),
    ],
)
def test_what_cannot_be_combined(log_p, correlation):
    with pytest.raises(InvalidInput, match="expected"):
        metrics.combine(log_p, correlation)
