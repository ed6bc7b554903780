"""Who will stand out, before training: against loops, known effects and worlds without any."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

import vestige as vs
from vestige.attacks.gmia import smooth_log_p_values
from vestige.errors import InvalidInput
from vestige.pool import Pool
from vestige.records import Records
from vestige.risk import (
    _change,
    _differences,
    _half_and_half,
    _mean,
    _signed_rank,
    _trials,
    leave_out,
    records_at_risk,
)
from vestige.training import MLP
from worlds import Table


def numbered(n):
    """Records whose first column is their row, of two classes in turn."""
    return Records.from_arrays(np.arange(n, dtype=np.float64)[:, None], np.arange(n) % 2)


@dataclass(frozen=True)
class Toy:
    """A model's margin on a record is noise, and more by a known effect where it was trained on it.

    Attributes:
        effect: (n,) what training on a record adds to its margin.
        hidden: rows that have their effect only in models trained on none of `by`.
        by: rows that hide them.
    """

    effect: np.ndarray
    hidden: tuple = ()
    by: tuple = ()
    suffix = ".npz"

    def fit(self, records, seed):
        n = len(self.effect)
        rng = np.random.default_rng(seed)
        phi = rng.normal(size=n)
        rows = records.x[:, 0].astype(int)
        effect = self.effect.copy()
        if np.isin(self.by, rows).any():
            effect[list(self.hidden)] = 0.0
        phi[rows] += effect[rows]
        logits = np.zeros((n, 2))
        logits[np.arange(n), np.arange(n) % 2] = phi
        return Table(logits)

    def key(self):
        return f"{self.effect.tobytes()} {self.hidden} {self.by}"


# --- signed ranks ------------------------------------------------------------------------------


def naive_signed_rank(d):
    """P(sum of ranks with a positive sign >= the one seen), all signs being tossed."""
    order = sorted(range(len(d)), key=lambda i: (abs(d[i]), i))
    rank = {i: r + 1 for r, i in enumerate(order)}
    seen = sum(rank[i] for i in rank if d[i] > 0)
    sums = [
        sum(rank[i] * s for i, s in enumerate(signs)) for signs in product((0, 1), repeat=len(d))
    ]
    return np.mean([s >= seen for s in sums])


def test_signed_ranks_are_those_of_all_signs():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(7, 20))
    d[:, 10:] = rng.integers(-2, 3, (7, 10))  # ties and zeros
    expected = [naive_signed_rank(column) for column in d.T]
    np.testing.assert_allclose(_signed_rank(d), expected, rtol=1e-12)


def test_signed_ranks_agree_with_scipy():
    d = np.random.default_rng(1).normal(0.3, 1, (24, 30))
    expected = stats.wilcoxon(d, alternative="greater", method="exact", axis=0).pvalue
    np.testing.assert_allclose(_signed_rank(d), expected, rtol=1e-9)


def test_many_pairs_do_not_overflow():
    assert _signed_rank(np.ones((600, 1)))[0] == pytest.approx(2.0**-600, rel=1e-9)
    assert _signed_rank(-np.ones((600, 1)))[0] == pytest.approx(1.0)


# --- trials ------------------------------------------------------------------------------------


def naive_trials(margins, inside, cutoff):
    hits = np.zeros(inside.shape, dtype=bool)
    for j in range(inside.shape[1]):
        for m in range(len(inside)):
            others = [k for k in range(len(inside)) if not inside[k, j] and k != m]
            log_p = smooth_log_p_values(margins[m : m + 1, j], margins[others, j])[0]
            hits[m, j] = np.exp(log_p) <= cutoff * (1 + 1e-9)
    return hits


@pytest.mark.parametrize("cutoff", [0.01, 0.1, 0.3])
def test_trials_are_those_of_a_loop(cutoff):
    n, k = 30, 24
    rng = np.random.default_rng(2)
    recipe, records = Toy(np.where(np.arange(n) < 10, 3.0, 0.0)), numbered(n)
    member = vs.half_and_half(k, n, 0)
    models = [recipe.fit(records[row], 100 + i) for i, row in enumerate(member)]
    made = _trials(Pool(models, records, member), cutoff)
    np.testing.assert_array_equal(made.inside, member)
    np.testing.assert_array_equal(made.outside, ~member)
    np.testing.assert_array_equal(made.hits, naive_trials(made.margins, member, cutoff))
    j = int(rng.integers(n))
    log_p = smooth_log_p_values(made.margins[member[:, j], j], made.margins[~member[:, j], j])
    assert made.evidence[j] == pytest.approx(-log_p.mean() / np.log(10))


def test_a_pairs_difference_is_that_of_the_model_with_the_record():
    records, member = numbered(6), vs.half_and_half(8, 6, 0)
    models = [Toy(np.zeros(6)).fit(records[row], i) for i, row in enumerate(member)]
    made = _trials(Pool(models, records, member), 0.01)
    for pair, j in product(range(4), range(6)):
        one, other = made.margins[2 * pair, j], made.margins[2 * pair + 1, j]
        expected = one - other if member[2 * pair, j] else other - one
        assert _differences(made)[pair, j] == expected


def test_halves_of_distinct_records_are_the_usual_ones():
    made = _half_and_half(np.ones(10, dtype=int), 8, 3)
    np.testing.assert_array_equal(made, vs.half_and_half(8, 10, 3))


def test_halves_with_copies_are_complementary_and_of_two_sizes_and_tossed():
    copies = np.array([4, 1, 1, 2, 2, 2, 1, 7, 1, 1])
    made = _half_and_half(copies, 400, 0)
    np.testing.assert_array_equal(made[::2], ~made[1::2])
    sizes = made @ copies
    assert set(sizes) == {9, 13} and copies.sum() == 22
    # 200 tosses: outside of 65 to 135 once in a million
    first = made[::2].sum(axis=0)
    assert ((first > 65) & (first < 135)).all()


# --- records at risk ---------------------------------------------------------------------------


def at_risk_of(effect, **settings):
    settings = {"n_models": 32, "features": "inputs", "seed": 3, **settings}
    return records_at_risk(numbered(len(effect)), Toy(effect), **settings)


@pytest.fixture(scope="module")
def known():
    """Effects 8 and 2 on ten records each, none on 180."""
    effect = np.zeros(200)
    effect[:10], effect[10:20] = 8.0, 2.0
    return at_risk_of(effect)


def test_large_effects_are_caught_and_come_first(known):
    assert set(known.order[:10]) == set(range(10))
    assert set(known.riskiest(10)) == set(known.ids[:10])
    assert (known.caught[:10] > 0.9).all() and (known.low[:10] > 0.7).all()
    # P(N(2, 1) is beyond the 1 % point of N(0, 1)) = 0.37, and a normal fitted to 16 blurs that
    assert 0.2 < known.caught[10:20].mean() < 0.55
    assert (known.n_in == 16).all() and (known.n_out == 16).all()


def test_those_who_stand_out_are_the_right_ones(known):
    found = known.stands_out
    assert found[:10].all() and found[10:20].mean() >= 0.8
    # 5 % false discoveries of about 20: 6 or more have a probability of 0.001
    assert found[20:].sum() < 6
    np.testing.assert_array_equal(known.q_values, vs.metrics.benjamini_hochberg(known.p_values))


def test_neighbors_are_those_in_all_records(known):
    # standardized, a single column points up or down: half of the others are neighbors
    assert (known.expected == 99).all() and not known.isolated.any()
    assert replace(known, expected=np.zeros(200)).isolated.all()


def test_intervals_are_clopper_pearsons(known):
    hits = np.rint(known.caught * 16)
    low, high = vs.metrics.clopper_pearson(hits, 16)
    np.testing.assert_allclose([known.low, known.high], [low, high])


def test_without_any_effect_nobody_stands_out_and_mistakes_are_as_announced():
    none = at_risk_of(np.zeros(600), n_models=64, seed=5)
    assert not none.stands_out.any()
    # 600 uniform p-values on a grid of 2^-32: the KS distance has a 0.1 % point of 0.08
    assert stats.kstest(none.p_values, "uniform").statistic < 0.08
    # with a normal fitted to 32 the tail beyond 1 % is a little more; never twice that
    for overall in (none.overall, none.overall_false):
        assert 0.004 < overall.low and overall.high < 0.02
    assert none.overall.low < none.overall_false.value < none.overall.high


def test_the_interval_of_the_mean_is_over_models(known):
    assert known.overall.method == "t over 32 models"
    assert known.overall.value == pytest.approx(known.caught.mean(), abs=1e-9)
    assert known.overall.low < known.overall.value < known.overall.high


def test_the_same_seed_gives_the_same_answer():
    effect = np.linspace(0, 4, 40)
    one, two, other = (at_risk_of(effect, n_models=8, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.p_values, two.p_values)
    np.testing.assert_array_equal(one.caught, two.caught)
    assert (one.evidence != other.evidence).any()


def test_it_prints_the_riskiest_first(known):
    lines = str(known).splitlines()
    assert lines[0].startswith(f"{known.stands_out.sum()} of 200 records stand out (false ")
    assert known.n_together == 1 and "not resolvable" not in str(known)
    assert "ask for n_models=398" in lines[1]
    assert len(lines) == 2 + 1 + 1 + 10 and not lines[2]
    assert lines[4].split()[0] in {str(i) for i in range(10)}
    assert replace(known, n_out=known.n_out * 100).note == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_models": 7}, "at least 4, got 7; ask for 8"),
        ({"n_models": 2}, "at least 4, got 2; ask for 4"),
        ({"cutoff": 0.0}, "cutoff between 0 and 1, got 0.0"),
        ({"fdr": 1.0}, "fdr between 0 and 1"),
        ({"beta": 0.0}, "beta above 0"),
        ({"delta": 3.0}, "delta"),
        ({"features": "pixels"}, "features"),
        ({"delta": "x"}, "delta as a number, got 'x'"),
        ({"delta": None}, "delta as a number, got None"),
        ({"delta": True}, "delta as a number, got True"),
        ({"beta": "x"}, "beta as a number, got 'x'"),
        ({"fdr": None}, "fdr as a number, got None"),
        ({"cutoff": "x"}, "cutoff as a number, got 'x'"),
        ({"n_models": 8.0}, "n_models as a whole number, got 8.0"),
        ({"seed": -1}, "a seed from 0, got -1"),
        ({"seed": 0.5}, "seed as a whole number, got 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        records_at_risk(numbered(8), Untrained(), **{"n_models": 4, **settings})


class Untrained(Toy):
    """Refuses to train, so that what comes before is seen to."""

    def __init__(self):
        super().__init__(np.zeros(8))

    def fit(self, records, seed):
        raise AssertionError("trained before the settings were looked at")


@pytest.mark.parametrize(
    ("records", "recipe", "message"),
    [
        (numbered(8), None, "expected a recipe, such as a vs.TorchRecipe, got NoneType"),
        (numbered(8), np.mean, "expected a recipe, .* got "),
        ((np.zeros((8, 1)), np.zeros(8)), Untrained(), "expected records as Records, got tuple"),
        (
            Records.from_arrays(np.array([[0.0], [1], [2], [np.nan], [np.inf]]), np.arange(5)),
            Untrained(),
            "expected finite inputs, got NaN or infinity in 2 records; impute or drop them",
        ),
        (
            Records.from_arrays(np.zeros((120, 1)), np.zeros(120, dtype=int)),
            Untrained(),
            "at least 4 distinct records, got 1 among 120",
        ),
    ],
)
def test_what_is_no_records_or_no_recipe_is_refused_before_training(records, recipe, message):
    with pytest.raises(InvalidInput, match=message):
        records_at_risk(records, recipe, n_models=4)


def test_few_records_and_foreign_counts_are_refused(known):
    with pytest.raises(InvalidInput, match="at least 4 records, got 3"):
        at_risk_of(np.zeros(3))
    with pytest.raises(InvalidInput, match="expected 0 to 200 records, got 201"):
        known.riskiest(201)


# --- copies ------------------------------------------------------------------------------------


def copied(n, rows, times):
    """Numbered records, some of them once more, at the end; ids in their order."""
    x = np.arange(n, dtype=np.float64)
    x = np.concatenate([x, np.tile(x[list(rows)], times)])
    return Records.from_arrays(x[:, None], x.astype(int) % 2)


def test_copies_are_in_the_same_half_and_count_as_one():
    effect = np.zeros(41)
    effect[:4] = 8.0
    records = copied(41, range(3), 3)
    found = records_at_risk(records, Toy(effect), n_models=32, features="inputs", seed=0)
    assert (found.n_in == 16).all() and (found.n_out == 16).all()
    original = np.concatenate([np.arange(41), np.tile(np.arange(3), 3)])
    names = "expected nearest distance caught low high resolvable false evidence p_values q_values"
    for name in names.split():
        values = getattr(found, name)
        np.testing.assert_array_equal(values, values[original], err_msg=name)
    np.testing.assert_array_equal(found.distinct, np.arange(50) < 41)
    # one hypothesis each, whatever its copies
    q = vs.metrics.benjamini_hochberg(found.p_values[:41])
    np.testing.assert_array_equal(found.q_values[:41], q)
    # models on halves of 41 weigh alike, so that records nearly do
    assert found.overall.value == pytest.approx(found.caught[:41].mean(), abs=0.002)
    assert (found.caught[:4] > 0.9).all()
    # 13 rows of four contents come first, copies together
    first = found.content[found.order[:13]]
    assert len(np.unique(first)) == 4 and (first[1:] != first[:-1]).sum() == 3
    tied = replace(found, caught=np.zeros(50), evidence=np.zeros(50))
    first = tied.content[tied.order]
    assert (first[1:] != first[:-1]).sum() == 40
    lines = str(found).splitlines()
    n_out = found.stands_out[:41].sum()
    assert 4 <= n_out < found.stands_out.sum()
    assert f"{n_out} of 41 distinct records stand out" in lines[0]
    assert sum("(x4)" in line for line in lines) == 3 and len(lines) == 2 + 2 + 10


def test_a_copy_is_no_neighbor():
    plain = records_at_risk(numbered(10), Toy(np.zeros(10)), n_models=8, features="inputs")
    records = copied(10, [0, 9], 2)
    found = records_at_risk(records, Toy(np.zeros(10)), n_models=8, features="inputs")
    np.testing.assert_array_equal(found.expected[:10], plain.expected)
    np.testing.assert_array_equal(found.distance[:10], plain.distance)
    assert np.isin(found.nearest, np.arange(10)).all()
    assert (found.nearest[[0, 10, 12]] != 0).all()


def test_distances_are_not_below_0():
    # the same answers, the digits of single precision apart
    x = np.random.default_rng(0).normal(size=(20, 7))
    x[:, 0] = np.arange(20)
    records = Records.from_arrays(np.concatenate([x, x]), np.repeat([0, 1], 20))
    found = records_at_risk(
        records, Toy(np.zeros(20)), n_models=4, features="inputs", delta=0.01
    )  # fmt: skip
    assert found.distance.min() == 0.0 and (found.expected >= 1).all()
    assert (found.nearest[:, 0] == (np.arange(40) + 20) % 40).all()


# --- what cannot be told -----------------------------------------------------------------------


@dataclass(frozen=True)
class Memorizer:
    """Margins are -5, or 5 on some of the records, and 5 on all that it was trained on.

    Attributes:
        n: rows of the table.
        easy: rows that are right without training on them.
    """

    n: int
    easy: tuple = ()
    suffix = ".npz"

    def fit(self, records, seed):
        phi = np.full(self.n, -5.0)
        phi[list(self.easy)] = 5.0
        phi[records.x[:, 0].astype(int)] = 5.0
        logits = np.zeros((self.n, 2))
        logits[np.arange(self.n), np.arange(self.n) % 2] = phi
        return Table(logits)

    def key(self):
        return f"memorizer {self.n} {self.easy}"


def memorized(n_models, **settings):
    settings = {"features": "inputs", "seed": 0, **settings}
    return records_at_risk(numbered(40), Memorizer(40, range(2, 40)), n_models=n_models, **settings)


def test_references_that_tie_resolve_no_cutoff_that_they_cannot_count():
    few = memorized(64)
    np.testing.assert_array_equal(few.resolvable, np.arange(40) >= 2)
    assert (few.caught == 0).all() and not np.isnan(few.overall.value)
    assert (few.low[:2] == 0).all() and (few.high[:2] == 1).all() and (few.high[2:] < 0.2).all()
    # evidence is all there is, as long as nobody is caught
    assert set(few.order[:2]) == {0, 1} and "2 are not resolvable (0, 1): models" in str(few)
    one = replace(few, caught=np.where(np.arange(40) == 7, 0.5, 0.0))
    assert one.order[0] == 7 and set(one.order[-2:]) == {0, 1}
    assert "2 are not resolvable and listed last (0, 1): models" in str(one)
    assert "p is not below 1/33 however sure one with it is; ask for n_models=198" in str(few)
    enough = memorized(198)
    assert enough.resolvable.all() and (enough.caught[:2] == 1).all()
    assert set(enough.order[:2]) == {0, 1} and "not resolvable" not in str(enough)
    assert memorized(18, cutoff=0.1).resolvable.all()
    assert not memorized(16, cutoff=0.1).resolvable.all()


def test_where_none_is_resolvable_evidence_ranks():
    found = records_at_risk(numbered(8), Memorizer(8), n_models=8, features="inputs", seed=0)
    assert not found.resolvable.any() and found.overall.value is None and found.note == ""
    assert "How often a model is caught is not measured" in str(found)
    assert sum("  not resolvable" in line for line in str(found).splitlines()) == 8
    ranked = replace(found, evidence=np.arange(8.0))
    np.testing.assert_array_equal(ranked.order, np.arange(8)[::-1])


def test_four_models_are_too_few_for_a_null():
    effect = np.zeros(12)
    effect[5] = 30.0
    found = at_risk_of(effect, n_models=4)
    assert not found.resolvable.any() and (found.caught == 0).all() and (found.high == 1).all()
    assert found.overall.value is None and found.order[0] == 5
    text = str(found)
    assert "is not measured: a null distribution takes 3 models without a record, and" in text
    assert "ask for n_models=6" in text and "0%" not in text.split("q\n")[1]
    assert "2^-2, too large for any number of them" in text
    assert at_risk_of(effect, n_models=6).resolvable.all()


def test_nobody_is_no_finding_where_one_alone_could_not_stand_out():
    effect = np.zeros(400)
    effect[:3] = 8.0
    found = at_risk_of(effect, n_models=16)
    assert not found.stands_out.any() and found.n_together == 32
    assert "of 400 records stand out" not in str(found).replace("Which of 400", "")
    said = "smallest p-value is 2^-8, which 32 would have to share"
    assert said in str(found) and "to stand out alone ask for n_models=26." in str(found)
    # the counts are those of the false discovery rate, and of the models it takes
    p = np.where(np.arange(400) < 31, 2.0**-8, 1.0)
    assert vs.metrics.benjamini_hochberg(p)[0] > 0.05
    p[31] = 2.0**-8
    assert vs.metrics.benjamini_hochberg(p)[0] <= 0.05
    assert at_risk_of(effect, n_models=24).n_together == 2
    enough = at_risk_of(effect, n_models=26)
    assert enough.n_together == 1 and enough.stands_out[:3].all()
    some = replace(found, q_values=np.where(np.arange(400) < 40, 0.04, 1.0))
    assert "40 of 400 records stand out" in str(some) and "One alone could not" in str(some)


def test_without_a_beta_all_are_isolated():
    found = at_risk_of(np.zeros(8), n_models=4, beta=None)
    assert found.isolated.all() and "fewer than" not in str(found)


# --- networks ----------------------------------------------------------------------------------


def clusters(n=120, n_odd=4, seed=0):
    """Two clouds a class apart, and a few records on the wrong side, far from one another."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(0, 0.3, (n, 8)) + 2.0 * (2 * y[:, None] - 1)
    x[:n_odd] = 2.0 * (1 - 2 * y[:n_odd, None]) + 6.0 * np.eye(8)[:n_odd]
    return Records.from_arrays(x.astype(np.float32), y)


RECIPE = vs.TorchRecipe(MLP(8, 2, (32,)), epochs=40, batch_size=16, optimizer="adam", lr=0.01)


def test_planted_records_are_found_by_networks(tmp_path):
    records = clusters()
    store = vs.Store(tmp_path)
    found = records_at_risk(records, RECIPE, n_models=20, delta=0.05, seed=0, store=store)
    assert set(found.riskiest(4)) == set(records.ids[:4])
    assert found.stands_out[:4].all()
    assert found.caught[:4].min() > 0.8 and found.caught[4:].mean() < 0.2
    assert found.expected[:4].max() < np.median(found.expected[4:])
    # their neighbors are others, and named in order of distance
    assert (found.nearest != found.ids[:, None]).all()
    assert (np.diff(found.distance, axis=1) >= 0).all()
    asked = []
    again = records_at_risk(
        records,
        RECIPE,
        n_models=20,
        delta=0.05,
        seed=0,
        store=store,
        progress=lambda label, done, total: asked.append((done, total)),
    )
    assert asked[0] == (20, 20), "a second call trains nothing"
    np.testing.assert_array_equal(again.caught, found.caught)


# --- leaving out -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onion():
    """Ten records with an effect, and ten below them that have one once these are gone."""
    effect = np.zeros(200)
    effect[:20] = 8.0
    recipe = Toy(effect, hidden=tuple(range(10, 20)), by=tuple(range(10)))
    # the tables answer by the row below, so that what was trained on the first ten knows the test
    records, test = numbered(200), numbered(200)[np.arange(10)]
    test = replace(test, x=test.x + 0.5)
    at_risk = records_at_risk(records, recipe, n_models=32, features="inputs", seed=0)
    told = []
    made = leave_out(
        records,
        test,
        recipe,
        at_risk,
        shares=(0.05, 0.1),
        n_models=32,
        n_full=4,
        seed=1,
        progress=lambda label, done, total: told.append((done, total)),
    )
    return at_risk, made, told


def test_arms_come_in_order_with_their_controls(onion):
    _, made, _ = onion
    assert [(a.n_left_out, a.chosen) for a in made.arms] == [
        (0, "nobody"), (10, "riskiest"), (10, "random"), (20, "riskiest"), (20, "random"),
    ]  # fmt: skip
    assert [a.share for a in made.of("riskiest")] == pytest.approx([0.05, 0.1])


def test_the_next_layer_of_the_onion_is_counted(onion):
    at_risk, made, _ = onion
    assert set(at_risk.riskiest(10)) == set(range(10))
    nobody, riskiest, luck = made.arms[:3]
    # each of the ten is caught in its own models, the ten below in none
    assert nobody.n_exposed == 10 and nobody.n_newly_exposed == 0
    assert riskiest.n_exposed == 10 and riskiest.n_newly_exposed == 10
    assert luck.n_newly_exposed <= 1
    assert riskiest.exposure.value > 0.05 > riskiest.false.high


def test_none_of_the_models_that_chose_is_measured():
    seeds = []

    class Told(Toy):
        def fit(self, records, seed):
            seeds.append(seed)
            return super().fit(records, seed)

    records, recipe = numbered(40), Told(np.zeros(40))
    at_risk = records_at_risk(records, recipe, n_models=4, features="inputs", seed=0)
    chose = set(seeds)
    seeds.clear()
    test = replace(records, x=records.x + 0.5)
    leave_out(records, test, recipe, at_risk, shares=(0.1,), n_models=4, n_full=2, seed=0)
    assert len(chose) == 4 and len(seeds) == 3 * 6 and not chose & set(seeds)


def test_the_control_leaves_out_records_at_random(onion):
    at_risk, records, gone = onion[0], numbered(200), []

    class Told(Toy):
        def fit(self, own, seed):
            if len(own) == 180:  # the models trained on all that is left
                left = np.unique(np.asarray(own.x)[:, 0].astype(int))
                gone.append(np.setdiff1d(np.arange(200), left))
            return super().fit(own, seed)

    recipe = Told(np.zeros(200))
    test = replace(records, x=records.x + 0.5)
    for seed in (0, 1):
        leave_out(
            records, test, recipe, at_risk, shares=(0.1,), n_models=4, n_full=2, seed=seed
        )  # fmt: skip
    riskiest, _, control, _, _, _, other, _ = gone
    assert sorted(riskiest) == sorted(at_risk.order[:20])
    assert set(control) != set(other)
    # about ten of twenty are among the riskier half of the records; all or none are no draw
    place = np.argsort(at_risk.order)
    assert all(3 <= (place[rows] < 100).sum() <= 17 for rows in (control, other))


def test_progress_is_one_run(onion):
    told = onion[2]
    assert {total for _, total in told} == {5 * 36}
    done = [d for d, _ in told]
    assert done == sorted(done) and done[-1] == 180


def test_what_it_costs_is_measured(onion):
    nobody, riskiest, _, _, luck = onion[1].arms
    assert nobody.change.value == 0.0
    assert nobody.accuracy.value > 0.95 and luck.accuracy.value > 0.7
    assert riskiest.accuracy.value < 0.75 and riskiest.change.high < 0
    for arm in onion[1].arms:
        assert arm.change.value == pytest.approx(arm.accuracy.value - nobody.accuracy.value)
        for made in (arm.accuracy, arm.change):
            assert made.low is None or made.low <= made.value <= made.high
            assert made.low is None or made.low < made.high or arm is nobody


def test_a_change_has_welchs_interval():
    a, b = np.random.default_rng(0).normal(size=(2, 9)) * [[0.05], [0.15]]
    made = _change(a, b)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (made.low, made.high) == pytest.approx((low, high))


def test_intervals_of_shares_are_what_they_can_be_and_none_without_a_spread():
    wide = _change(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert (wide.low, wide.value, wide.high) == (-1.0, 0.0, 1.0)
    same = _change(np.ones(3), np.ones(3))
    assert (same.low, same.value, same.high) == (None, 0.0, None)
    same = _mean(np.full(3, 0.3), 0.0, 1.0)
    assert (same.low, same.high) == (None, None) and same.value == pytest.approx(0.3)


def test_it_prints_a_line_for_each_arm(onion):
    lines = str(onion[1]).splitlines()
    assert len(lines) == 6 + 2 and not lines[6]
    assert lines[0].split() == "left out accuracy change caught false exposed newly".split()
    assert lines[7].startswith("With 16 models without a record, p-values below 0.059 go on along")
    arm = onion[1].arms[2]
    assert f"{100 * arm.exposure.value:.1f}% (" in lines[3]
    assert f"{100 * arm.false.value:.1f}% (" in lines[3]
    assert lines[2].split()[:3] == ["10", "(5.0%)", "riskiest"]


def test_what_cannot_be_left_out_is_refused(onion):
    at_risk, recipe = onion[0], Toy(np.zeros(200))
    records = numbered(200)
    test = replace(records, x=records.x + 0.5)

    def refused(message, records=records, test=test, **settings):
        with pytest.raises(InvalidInput, match=message):
            leave_out(records, test, recipe, at_risk, **settings)

    refused("at_risk of these 199 records", records[:199])
    refused("expected test records, got none", test=test[:0])
    refused("got none that is not among the records", test=records[:50])
    refused("shares from 0 to 0.5, got 0.6", shares=(0.6,))
    refused("shares from 0 to 0.5, got none", shares=())
    refused("several shares, got 0.05; one is shares=", shares=0.05)
    refused("a share as a number, got 'x'", shares=("x",))
    refused("shares from 0 to 0.5, got nan", shares=(float("nan"),))
    refused("n_full of at least 2 models, got 1", n_full=1)
    refused("n_full as a whole number, got 2.5", n_full=2.5)
    refused("a seed from 0, got -1", seed=-1)
    bad = np.where(np.arange(200)[:, None] == 7, np.nan, test.x)
    refused("NaN or infinity in 1 test records", test=replace(test, x=bad))
    refused("expected test records as Records, got ndarray", test=test.x)
    with pytest.raises(InvalidInput, match="at_risk as records_at_risk returns it, got NoneType"):
        leave_out(records, test, recipe, None)
    # equal ids, other records
    refused("at_risk of these 200 records", records=replace(records, x=records.x[::-1].copy()))
    refused("at least 4, got 3", n_models=3)


def left_out(records, test, recipe, n_models=8, **settings):
    at_risk = records_at_risk(records, recipe, n_models=n_models, features="inputs", seed=0)
    settings = {"shares": (0.1,), "n_full": 2, "n_models": n_models, **settings}
    return leave_out(records, test, recipe, at_risk, **settings)


def test_other_ids_of_the_same_contents_are_the_same_records():
    records = numbered(40)
    at_risk = records_at_risk(records, Toy(np.zeros(40)), n_models=4, features="inputs")
    named = replace(records, ids=np.array([f"r{i}" for i in range(40)]))
    test = replace(records, x=records.x + 0.5)
    made = leave_out(
        named, test, Toy(np.zeros(40)), at_risk, shares=(0.1,), n_models=4, n_full=2
    )  # fmt: skip
    assert len(made.arms) == 3


def test_what_is_not_measured_is_no_number():
    records = numbered(40)
    made = left_out(records, replace(records, x=records.x + 0.5), Toy(np.zeros(40)), 4)
    for arm in made.arms:
        assert arm.exposure.value is None and arm.false.value is None
        assert arm.n_exposed is None and arm.n_newly_exposed is None
    lines = str(made).splitlines()
    assert lines[1].count("not measured") == 3
    assert lines[2].count("not measured") == lines[3].count("not measured") == 4
    assert "ask for n_models=6" in made.note and "normal shape" not in made.note


def test_ties_are_not_counted_as_unexposed():
    records = numbered(40)
    test = replace(records, x=records.x + 0.5)
    made = left_out(records, test, Memorizer(40, range(2, 40)), shares=(0.05,))
    nobody, riskiest, _ = made.arms
    assert nobody.n_unresolved == 2 and nobody.n_exposed == 0
    assert riskiest.n_left_out == 2 and "Up to 2 of an arm's records are not resolvable" in str(
        made
    )


def test_test_records_among_the_records_are_dropped_and_counted():
    records = replace(numbered(40), x=numbered(40).x + 0.1)
    # kept in another float, in which 0.1 is another number, with ids of their own
    own = Records.from_arrays(records.x[30:].astype(np.float32), np.arange(10) % 2)
    others = replace(own, x=own.x + np.float32(0.5))
    both = Records.from_arrays(
        np.concatenate([own.x, others.x]), np.concatenate([own.y, others.y])
    )  # fmt: skip
    made = left_out(records, both, Toy(np.zeros(40)))
    assert (made.n_dropped, made.n_test) == (10, 10)
    assert "10 of 20 test records are among the records" in str(made)
    alone = left_out(records, others, Toy(np.zeros(40)))
    assert alone.n_dropped == 0 and "test records" not in str(alone)
    assert [a.accuracy for a in alone.arms] == [a.accuracy for a in made.arms]


def test_a_record_goes_with_all_of_its_copies():
    effect = np.zeros(40)
    effect[:2] = 8.0
    records, seen = copied(40, range(2), 3), []

    class Told(Toy):
        def fit(self, own, seed):
            seen.append(np.asarray(own.x)[:, 0].astype(int))
            return super().fit(own, seed)

    at_risk = records_at_risk(records, Toy(effect), n_models=32, features="inputs", seed=0)
    test = replace(records, x=records.x + 0.5)
    made = leave_out(
        records, test, Told(effect), at_risk, shares=(0.05,), n_models=8, n_full=2
    )  # fmt: skip
    nobody, riskiest, luck = made.arms
    assert riskiest.n_left_out == luck.n_left_out == 2 and riskiest.share == pytest.approx(0.05)
    halves, full = seen[10:18], seen[18:20]
    assert all(set(rows) == set(range(2, 40)) for rows in full)
    assert not any({0, 1} & set(rows) for rows in halves)
    assert nobody.n_exposed <= 40


@pytest.mark.slow
def test_leaving_out_planted_records_of_networks():
    records, test = clusters(200, 6), clusters(400, 6, seed=1)[6:]
    at_risk = records_at_risk(records, RECIPE, n_models=32, seed=0)
    made = leave_out(records, test, RECIPE, at_risk, shares=(0.03,), n_models=32, n_full=4, seed=1)
    nobody, riskiest, luck = made.arms
    assert nobody.n_exposed == 6 and luck.n_exposed >= 4
    assert riskiest.n_exposed == riskiest.n_newly_exposed == 0
    assert riskiest.accuracy.value > 0.95
