"""The smoothed p-value's known answers, who stands out, and power where it has a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import PchipInterpolator

from vestige import metrics
from vestige.attacks.gmia import (
    GMIA,
    neighborhood,
    smooth_log_p_values,
    trained_on_content,
)
from vestige.errors import InvalidInput, MissingModels
from vestige.models import Predictions
from vestige.pool import Pool
from vestige.records import Records
from worlds import Table, overfit_world

Floats = np.ndarray[Any, np.dtype[np.float64]]


def margins(losses: Any) -> Floats:
    """phi of these losses: loss = log(1 + exp(-phi))."""
    return -np.log(np.expm1(np.asarray(losses, dtype=np.float64)))


REFERENCES = margins([0.1, 0.2, 0.2, 0.5, 0.9])


def p_at(losses: Any, tail: Any = "normal") -> Floats:
    return np.exp(smooth_log_p_values(margins(losses), REFERENCES, tail=tail))


# --- the smoothed distribution -------------------------------------------------------------------


def test_knots_ties_and_what_is_between() -> None:
    assert p_at([0.1, 0.2, 0.5, 0.9]) == pytest.approx(np.array([1, 3, 4, 5]) / 6)
    assert p_at([0.15, 0.35, 0.7]) == pytest.approx([0.370167, 0.605894, 0.757108], abs=1e-6)
    grid = p_at(np.linspace(0.001, 1.2, 3000))
    assert (np.diff(grid) >= 0).all() and (grid > 0).all()
    assert p_at([1.0, 50.0]).tolist() == [1.0, 1.0]


def test_tails() -> None:
    below = p_at([0.0999999, 0.05, 0.001])
    assert below[0] == pytest.approx(1 / 6, rel=1e-4)
    assert (np.diff(below) < 0).all() and below[-1] > 0
    phi, one = REFERENCES, margins([0.05])
    z = (np.append(one, phi.max()) - phi.mean()) / phi.std(ddof=1)
    assert below[1] == pytest.approx(stats.norm.sf(z[0]) / stats.norm.sf(z[1]) / 6)
    assert p_at([0.05], "conservative") == pytest.approx(1 / 6)
    assert p_at([0.05], "zero") == 0.0
    # far out there is still an order
    far = smooth_log_p_values(np.array([200.0, 400.0]), REFERENCES)
    assert far[1] < far[0] < -1000


def test_references_that_agree() -> None:
    same = np.full(3, 0.5)
    assert np.exp(smooth_log_p_values(np.array([0.5, 0.4, 0.6]), same)) == pytest.approx(
        [1, 1, 0.25]
    )


def test_it_is_below_the_exact_rank_by_one_rank_at_most() -> None:
    rng = np.random.default_rng(0)
    references, phi = rng.normal(size=40), np.sort(rng.normal(size=500))
    exact = metrics.rank_p_values(phi, references)
    smooth = np.exp(smooth_log_p_values(phi, references, tail="conservative"))
    within = (phi >= references.min()) & (phi <= references.max())
    assert (smooth <= exact + 1e-12).all()
    assert (smooth[within] >= exact[within] - 1 / 41 - 1e-12).all()


@pytest.mark.parametrize("n", [2, 3, 4, 9, 40])
def test_between_the_knots_it_is_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(30):
        losses = np.unique(rng.exponential(size=n) ** rng.uniform(0.5, 3) + 1e-6)
        heights = np.arange(1, n + 1) / (n + 1)
        at = rng.uniform(losses[0], losses[-1], 50)
        expected = PchipInterpolator(losses, heights)(at)
        found = np.exp(smooth_log_p_values(margins(at), margins(losses)))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sure", [50.0, 200.0, 320.0, 500.0, 700.0])
def test_losses_that_differ_by_hundreds_of_digits(sure: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        references = sure + 20 * rng.normal(size=16)
        phi = rng.permutation(references)[:3] + 1e-3
        exact = metrics.rank_p_values(phi, references)
        smooth = np.exp(smooth_log_p_values(phi, references, tail="conservative"))
        assert (smooth <= exact + 1e-9).all() and (smooth >= exact - 1 / 17 - 1e-9).all()


@pytest.mark.slow
def test_p_values_of_nonmembers_are_uniform() -> None:
    """One draw among k like it, 20,000 times over."""
    rng, k = np.random.default_rng(1), 100
    draws = rng.normal(2.0, 1.5, (20_000, k + 1))
    log_p = np.array([smooth_log_p_values(d[:1], d[1:])[0] for d in draws])
    # p = 1 above all references is an atom of 1 / (k + 1) that a uniform variable does not have
    p = np.exp(log_p)
    p[p == 1] = 1 - rng.random((p == 1).sum()) / (k + 1)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    low, high = metrics.clopper_pearson(int((p <= 0.01).sum()), len(p), level=0.999)
    # smaller than exact ranks by up to one: nominal 0.01 is at most 0.01 + 1 / 101
    assert low <= 0.01 + 1 / (k + 1) and high >= 0.01


@pytest.mark.parametrize(
    "phi, references, tail",
    [([1.0], [], "normal"), ([np.nan], [1.0], "normal"), ([1.0], [1.0], "bold")],
)
def test_refused_distributions(phi: list[float], references: list[float], tail: Any) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        smooth_log_p_values(np.array(phi), np.array(references), tail=tail)


# --- who stands out ------------------------------------------------------------------------------


def naive_neighbors(features: Floats, others: Floats, own: list[int], delta: float) -> list[int]:
    found = []
    for f, me in zip(features, own, strict=True):
        near = 0
        for k, g in enumerate(others):
            cosine = float(f @ g) / (float(np.linalg.norm(f)) * float(np.linalg.norm(g)))
            near += k != me and 1 - cosine < delta
        found.append(near)
    return found


@pytest.mark.parametrize("features", ["logits", "inputs"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("delta", [0.05, 0.3, 1.0])
def test_neighbors_are_counted_as_by_hand(features: Any, center: bool, delta: float) -> None:
    it = overfit_world(n_members=15, n_nonmembers=15, n_population=20, n_models=6)
    pool, candidates = it.known, it.candidates
    found = neighborhood(candidates, pool, delta=delta, features=features, center=center)
    sides = []
    for records in (candidates, pool.records):
        if features == "inputs":
            mean, spread = pool.records.x.mean(axis=0), pool.records.x.std(axis=0)
            sides.append((records.x - mean) / spread)
        else:
            answers = [m.log_probabilities(records.x) for m in pool.models]
            sides.append(np.concatenate([a - a.mean(axis=1, keepdims=True) for a in answers], 1))
    if center:
        sides = [side - sides[1].mean(axis=0) for side in sides]
    own = [int(np.flatnonzero(pool.records.ids == i)[0]) for i in candidates.ids]
    counts = naive_neighbors(sides[0], sides[1], own, delta)
    assert found.expected == pytest.approx(np.array(counts) * 15 / 50)
    assert not (found.nearest == candidates.ids[:, None]).any()
    assert (np.diff(found.distance, axis=1) >= 0).all()
    first = pool.records.ids == found.nearest[0, 0]
    a, b = sides[0][0], sides[1][first][0]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.distance[0, 0] == pytest.approx(1 - cosine, abs=1e-5)


def planted(times: int) -> tuple[Records, Pool[Predictions]]:
    """Records of which the first is in the pool that many times more, and five models."""
    rng = np.random.default_rng(3)
    x = np.concatenate([np.arange(40), np.zeros(times)]).astype(np.int64)[:, None]
    records = Records.from_arrays(x, np.zeros(len(x), dtype=np.int64), classes=["a", "b", "c"])
    models = [Predictions(logits=rng.normal(size=(40, 3))) for _ in range(5)]
    member = rng.random((5, len(x))) < 0.5
    return records[:40], Pool(models, records, member)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_copies_of_a_record_are_its_neighbors(times: int) -> None:
    records, pool = planted(times)
    found = neighborhood(records[:1], pool, delta=1e-4)
    size = pool.member.sum(axis=1).mean()
    assert found.expected[0] == pytest.approx(times * size / len(pool.records))
    larger = neighborhood(records[:1], pool, delta=1e-4, n_train=86)
    assert larger.expected[0] == pytest.approx(times * 86 / len(pool.records))
    if times:
        assert found.nearest[0, 0] >= 40 and found.distance[0, 0] < 1e-6
        inside = trained_on_content(pool, records[:1])[:, 0]
        assert (inside == pool.member[:, [0, *range(40, 40 + times)]].any(axis=1)).all()


def test_selection_grows_with_beta_and_shrinks_with_delta() -> None:
    it = overfit_world(n_members=60, n_nonmembers=60, n_population=60, n_models=8)
    chosen = {
        (delta, beta): set(
            np.flatnonzero(GMIA(delta=delta, beta=beta).selected(it.candidates, it.known))
        )
        for delta in (0.05, 0.2, 0.5)
        for beta in (0.1, 1.0, 5.0)
    }
    for (delta, beta), some in chosen.items():
        for (wider, more), others in chosen.items():
            if delta >= wider and beta <= more:
                assert some <= others


def test_only_those_that_stand_out_are_scored_and_asked() -> None:
    it = overfit_world(n_members=60, n_nonmembers=60, n_population=60, n_models=8)
    attack = GMIA(delta=0.3)
    chosen = attack.selected(it.candidates, it.known)
    scores = attack.run(it.target, it.candidates, it.known)
    assert 0 < chosen.sum() < len(chosen)
    assert scores.ids.tolist() == it.candidates.ids[chosen].tolist()
    assert it.target.n_queries == chosen.sum()
    with pytest.raises(MissingModels, match=r"fewer than 1e-09 neighbors .* beta=None"):
        GMIA(delta=2.0, beta=1e-9).run(it.target, it.candidates, it.known)


# --- what it can tell ----------------------------------------------------------------------------


def test_power_of_a_shift_is_that_of_the_normal_tail() -> None:
    """A member's margin is its models' plus a shift: P(p <= a) = Q(z_a - shift)."""
    rng, n, k, shift = np.random.default_rng(4), 3000, 400, 2.0
    phi = rng.normal(size=(k, n))
    own = np.concatenate([rng.normal(size=n // 2) + shift, rng.normal(size=n // 2)])

    def table(margin: Floats) -> Table:
        return Table(np.column_stack([margin, np.zeros(n)]))

    records = Records.from_arrays(
        np.arange(n)[:, None], np.zeros(n, dtype=np.int64), classes=["a", "b"]
    )
    pool = Pool([table(row) for row in phi], records, np.zeros((k, n), dtype=bool))
    scores = GMIA(beta=None).run(table(own), records, pool)
    for p in (np.exp(-scores.values), scores.p_values):
        assert p is not None
        for level in (0.05, 0.1):
            power, size = (float((side <= level).mean()) for side in np.split(p, 2))
            expected = stats.norm.sf(stats.norm.isf(level) - shift)
            assert power == pytest.approx(expected, abs=0.04)
            assert size == pytest.approx(level, abs=0.025)


def test_one_half_of_the_references_chooses_and_the_other_tests() -> None:
    """In noise, ranks of records that the same models chose are too small, of others exact."""
    rng, n, k = np.random.default_rng(5), 4000, 16
    records = Records.from_arrays(
        np.arange(n)[:, None], np.zeros(n, dtype=np.int64), classes=["a", "b"]
    )
    # most say much, and some records stand out as models happen to say little of them
    tables = [Table(np.column_stack([v, np.zeros(n)])) for v in rng.normal(2, size=(k + 1, n))]
    pool = Pool(tables[1:], records, np.zeros((k, n), dtype=bool))
    found = {}
    for split, delta in ((False, 0.05), (True, 0.02)):
        attack = GMIA(delta=delta, beta=2.0, n_train=n, split_references=split)
        scores = attack.run(tables[0], records, pool)
        judges = k // 2 if split else k
        assert scores.p_values is not None and len(scores) > 400
        ranks = np.rint(scores.p_values * (judges + 1)).astype(int)
        assert ranks.min() == 1 and ranks.max() == judges + 1
        times = np.bincount(ranks, minlength=judges + 2)[1:]
        found[split] = stats.chisquare(times).pvalue
        assert (attack.selected(records, pool)).sum() == len(scores)
    assert found[False] < 1e-3 < found[True]


def test_halves_of_the_references_keep_complementary_pairs_together() -> None:
    it = overfit_world(n_members=40, n_nonmembers=40, n_population=40, n_models=8)
    attack = GMIA(beta=None, split_references=True)
    scores = attack.run(it.target, it.candidates, it.known)
    # of the four that test, two were trained on each of these
    assert scores.p_values is not None
    inside = trained_on_content(it.known, it.candidates)[[2, 3, 6, 7]].sum(axis=0)
    np.testing.assert_allclose(
        np.rint(scores.p_values * (5 - inside)), scores.p_values * (5 - inside), atol=1e-9
    )


def test_a_tie_with_a_reference_counts_against_the_record() -> None:
    records = Records.from_arrays(np.arange(3)[:, None], np.zeros(3, dtype=int), classes="ab")
    models = [Table(np.array([[5 + m, 5.0]] * 3)) for m in (1.0, 2.0, 2.0, 3.0)]
    pool = Pool(models, records, np.zeros((4, 3), dtype=bool))
    target = Table(np.array([[7.0, 5.0], [8.0, 5.0], [8.5, 5.0]]))
    scores = GMIA(beta=None).run(target, records, pool)
    assert scores.p_values is not None and scores.p_values.tolist() == [4 / 5, 2 / 5, 1 / 5]


def test_ids_have_one_meaning_and_copies_are_known_in_any_type() -> None:
    it = overfit_world(n_members=20, n_nonmembers=20, n_population=20, n_models=4)
    other = Records(it.candidates.ids, it.candidates.x + 0.5, it.candidates.y)
    with pytest.raises(InvalidInput, match="under the ids of the candidates"):
        GMIA(beta=None).run(it.target, other, it.known)
    rng = np.random.default_rng(0)
    wide = Records.from_arrays(rng.normal(size=(9, 3)), np.zeros(9, dtype=int))
    narrow = Records(100 + wide.ids, wide.x.astype(np.float32), wide.y)
    pool: Pool[Any] = Pool([Table(np.zeros((9, 2)))], wide, np.ones((1, 9), dtype=bool))
    assert trained_on_content(pool, narrow).all()


def test_models_that_saw_none_of_the_pool_say_nothing_of_its_neighbors() -> None:
    it = overfit_world(n_members=20, n_nonmembers=20, n_population=20, n_models=4)
    blind = Pool(it.known.models, it.known.records, np.zeros_like(it.known.member))
    with pytest.raises(InvalidInput, match="say n_train="):
        neighborhood(it.candidates, blind)
    assert neighborhood(it.candidates, blind, n_train=20).expected.max() > 0


def test_a_record_that_every_model_saw_is_left_out() -> None:
    it = overfit_world(n_members=20, n_nonmembers=20, n_population=20, n_models=4)
    member = it.known.member.copy()
    first = np.flatnonzero(it.known.records.ids == it.candidates.ids[0])
    member[:-1, first] = True
    pool = Pool(it.known.models, it.known.records, member)
    assert it.candidates.ids[0] not in GMIA(beta=None).run(it.target, it.candidates, pool).ids
    everyone = Pool(it.known.models, it.known.records, np.ones_like(member))
    with pytest.raises(MissingModels, match="at least two reference models trained without"):
        GMIA().run(it.target, it.candidates, everyone)


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": 0.0},
        {"delta": 3.0},
        {"beta": 0.0},
        {"features": "x"},
        {"tail": "zero"},
        {"n_train": 0},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        GMIA(**settings)
