"""The rows of the shadow-model paper: complete, runnable, and what a row's pieces must hold."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from vestige import datasets, reproduce
from vestige.attacks.shadow import Shadow
from vestige.defenses import behind, filtered
from vestige.errors import DatasetUnavailable, InvalidInput
from vestige.metrics import auc, rate
from vestige.records import Records, concatenate
from vestige.reproduce import shadow, worlds
from vestige.reproduce.evaluation import attack_estimates
from vestige.reproduce.experiment import SCALES, Context
from vestige.reproduce.results import RowResult
from vestige.training import Store, shadows, train_many

ROWS = [
    pytest.param(experiment, row, id=f"{experiment.id}-{row.id}")
    for experiment in reproduce.listed()
    if experiment.id.startswith(("shadow-", "extraction-"))
    for row in experiment.rows
]
CI = shadow.Settings("purchase_like_5", 150, 3, epochs=20, pool=300)


@pytest.fixture
def context(tmp_path):
    return Context(0, "ci", Store(tmp_path))


def test_what_the_lecture_has_is_covered():
    covered = {c for e in reproduce.listed() for c in e.coverage}
    assert {
        "002-EXT1", "002-EXT2", "002-SH-T1", "002-SH-T2", "002-SH-F4", "002-SH-F7", "002-SH-F9",
        "002-SH-Fcls", "002-SH-Func", "002-SH-eval", "002-SH-syn", "002-SH-marg", "002-SH-noise",
        "002-MIT-topk", "002-MIT-label", "002-MIT-round", "002-MIT-temp", "002-MIT-L2", "002-PvL",
    } <= covered  # fmt: skip
    assert [row.id for row in shadow.TABLE_2.rows if "like" not in row.id] == [
        "adult", "mnist", "location30", "location30-published",
    ]  # fmt: skip


@pytest.mark.parametrize(("experiment", "row"), ROWS)
def test_every_row_has_all_scales(experiment, row):
    assert set(row.settings) == set(SCALES)
    keys = {column.key for column in experiment.columns}
    assert set(row.paper) <= keys, "the paper's figure needs a column to stand beside"
    assert all(0 <= v <= 1 for v in row.paper.values())
    for settings in row.settings.values():
        assert all(type(v) in (int, float, str, tuple) for v in asdict(settings).values())
        if isinstance(settings, shadow.Settings):
            assert settings.profile in shadow.PROFILES
            behind(_Nothing(), settings.answers)
            on = [d for d in experiment.differences if d.startswith(("All on", "On the"))]
            said = " ".join([row.title, experiment.title, *on])
            assert ("_like_" in settings.data) == ("stand-in" in said)


class _Nothing:
    n_queries = 0

    def log_probabilities(self, x):
        raise AssertionError("asked")


def test_ids_are_unique():
    for experiment in reproduce.listed():
        ids = [row.id for row in experiment.rows]
        assert len(set(ids)) == len(ids)
    assert len({e.id for e in reproduce.listed()}) == len(reproduce.listed())
    assert all(
        e.id.startswith(("shadow-", "extraction-", "gmia-", "encoding-"))
        for e in reproduce.listed()
    )


def test_the_penalty_is_twice_lambda():
    records = worlds.load("purchase_like_5", 20)
    assert shadow.recipe_of(replace(CI, l2=1e-3), records).weight_decay == 2e-3
    net = shadow.recipe_of(replace(CI, profile="nn"), records).build()
    assert "Tanh" in repr(net) and net[1].out_features == 128


def test_the_adversary_s_records_are_its_own():
    world = shadow._drawn(CI, 7)
    sides = (world.members, world.others, world.own)
    assert [len(s) for s in sides] == [150, 150, 300]
    ids = np.concatenate([s.ids for s in sides])
    contents = np.concatenate([s.content_hash() for s in sides])
    assert len(np.unique(ids)) == len(ids) == len(np.unique(contents))
    again = shadow._drawn(CI, 7)
    assert np.array_equal(again.members.ids, world.members.ids)
    assert not np.array_equal(shadow._drawn(CI, 8).members.ids, world.members.ids)


def test_repeated_records_are_on_one_side_only(monkeypatch):
    rng = np.random.default_rng(0)
    few = Records.from_arrays(rng.integers(0, 2, (2000, 5)), rng.integers(0, 2, 2000))
    monkeypatch.setattr(worlds, "load", lambda name, n: few)
    world = shadow._drawn(replace(CI, n_train=10, pool=0), 0)
    contents = np.concatenate([s.content_hash() for s in (world.members, world.others, world.own)])
    assert len(np.unique(contents)) == len(contents) == 64
    with pytest.raises(InvalidInput, match="expected at least 82 distinct records"):
        shadow._drawn(replace(CI, n_train=40, pool=0), 0)


@pytest.mark.parametrize("kind", ["real", "marginal", "model", "noisy20"])
def test_records_of_shadow_models(kind, context, monkeypatch):
    world = shadow._drawn(CI, 7)
    asked = []

    class Target:
        n_queries = 0

        def log_probabilities(self, x):
            self.n_queries += len(x)
            asked.append(len(x))
            p = np.full((len(x), 5), 0.02)
            p[np.arange(len(x)), np.asarray(x)[:, :3].sum(axis=1).astype(int)] = 0.92
            return np.log(p)

    settings = replace(CI, shadow_data=kind, budget=3000)
    made, cost = shadow._shadow_records(settings, world, Target(), 3, context)
    assert made.n_classes == 5
    assert cost.get("synthesis_queries", 0) == sum(asked) <= 3000
    if kind == "real":
        assert made is world.own and not cost
    elif kind == "noisy20":
        assert (np.asarray(made.x) != world.own.x).mean(axis=1) == pytest.approx(0.2)
        assert not np.isin(made.ids, world.own.ids).any()
    else:
        assert len(made) <= 300 and len(made) > 0
        label = np.asarray(made.x)[:, :3].sum(axis=1)
        assert np.array_equal(made.y, label)
    with pytest.raises(InvalidInput, match="expected shadow_data"):
        shadow._shadow_records(replace(CI, shadow_data="none"), world, Target(), 3, context)


def test_a_stand_in_is_no_real_set():
    first, again = worlds.load("purchase_like_20", 60), worlds.load("purchase_like_20", 60)
    assert first.x.shape == (60, 600) and first.n_classes == 20
    assert first.digest() == again.digest()
    assert set(np.unique(first.x)) == {0, 1}
    made = worlds.STAND_INS["purchase_like"]
    assert made.draw(20, 2, seed=1).digest() != made.draw(20, 2, seed=2).digest()
    # common features and classes too, not only the rows
    means = [made.draw(2000, 2, seed=s).x.mean(axis=0) for s in (1, 2)]
    assert np.abs(means[0] - means[1]).max() > 0.3
    assert worlds.load("texas_like_100", 5).x.shape == (5, 6170)
    with pytest.raises(DatasetUnavailable, match="expected cifar100.npz"):
        worlds.load("cifar100", 10)
    with pytest.raises(DatasetUnavailable, match="expected purchase_like.npz"):
        worlds.load("purchase_like", 10)


def test_more_classes_have_the_fewer_among_them():
    """The centers of class 0 and 1 are those of the two-class world."""
    two, ten = worlds.load("purchase_like_2", 4000), worlds.load("purchase_like_10", 20_000)
    for c in (0, 1):
        gap = two.x[two.y == c].mean(axis=0) - ten.x[ten.y == c].mean(axis=0)
        # 2,000 records a side at most 1/2 each: five standard errors are 0.08
        assert np.abs(gap).max() < 0.08


def point(gap, leak, **settings):
    base = rate(1, 2)
    estimates = {
        "gap": replace(base, value=gap, low=None, high=None),
        "attack_accuracy": replace(base, value=leak, low=None, high=None),
    }
    return RowResult("e", "ci", "r", settings, estimates, {}, {}, {}, 0.0, {})


def test_privacy_against_learning_counts_each_run_once(context):
    results = [point(g, 0.5 + g / 2, n=g) for g in (0.0, 0.1, 0.2, 0.3)]
    with_results = replace(context, results=lambda: [*results, results[0]])
    made = shadow.gap_and_leakage(shadow.All(), with_results)
    assert made.estimates["rank_correlation"].value == pytest.approx(1.0)
    assert made.sizes["n_rows"] == 4
    with pytest.raises(InvalidInput, match="at least 3 finished rows"):
        shadow.gap_and_leakage(shadow.All(), replace(context, results=lambda: results[:2]))


@pytest.mark.slow
def test_a_row_from_end_to_end(tmp_path):
    (made,) = reproduce.run("shadow-table2", "ci", row="purchase-like-100", out=tmp_path)
    assert made.sizes["n_members"] == made.sizes["n_nonmembers"] == 300
    assert made.sizes["attack_queries"] == 600
    found = made.estimates
    assert found["train_accuracy"].low > found["test_accuracy"].high
    assert found["attack_accuracy"].low > 0.5 and found["recall"].value > 0.5
    assert found["precision"].context["base_rate"] == 0.5
    # another table with the same row takes its models
    cost = made.sizes["training_seconds"]
    (same,) = reproduce.run("shadow-classes", "ci", row="purchase-like-100", out=tmp_path)
    assert same.estimates == made.estimates
    assert same.sizes["training_seconds"] == cost and same.seconds < made.seconds


def test_the_adversary_trains_behind_the_service_s_filter(context):
    """The same by hand: with the filter on the target alone the numbers are others."""
    settings = replace(CI, answers="temperature5", n_shadows=3)
    made = shadow.measure(settings, context)
    draw, for_target, for_shadows, _, for_attack = shadow._seeds(context.seed, 5)
    world = shadow._drawn(settings, draw)
    recipe = shadow.recipe_of(settings, world.members)
    whole = np.ones((1, len(world.members)), dtype=bool)
    model = train_many(recipe, world.members, whole, seed=for_target).models[0]
    target = behind(model, "temperature5")
    n_each = min(settings.n_train, len(world.own) // 2)
    table = shadows(3, len(world.own), n_each, for_shadows)
    pool = train_many(recipe, world.own, table, seed=for_shadows)
    found = []
    for known in (filtered(pool, "temperature5"), pool):
        attack = Shadow(seed=for_attack, calibration=0.0).trained(known)
        both = concatenate(world.members, world.others)
        scores = attack.score(target, shadow._shuffled(both, for_attack))
        member = np.isin(scores.ids, world.members.ids)
        found.append(auc(scores.values[member], scores.values[~member]).value)
    assert made.estimates["auc"].value == pytest.approx(found[0], abs=1e-9)
    assert abs(found[0] - found[1]) > 0.01


def test_stand_ins_are_what_they_were():
    """Rows that are stored are of these records."""
    said = {}
    for name in ("purchase_like_10", "texas_like_10"):
        records = worlds.load(name, 500)
        said[name] = (int(records.x[:500].sum()), records.y[:500].tolist()[:12])
    assert said == {
        "purchase_like_10": (60237, [8, 1, 0, 8, 5, 4, 7, 7, 0, 3, 0, 7]),
        "texas_like_10": (121546, [4, 1, 0, 8, 5, 9, 7, 7, 0, 3, 0, 7]),
    }


def test_the_published_cut_has_the_published_rows():
    try:
        records, order = datasets.load("location30"), datasets.location30_order()
    except DatasetUnavailable:
        pytest.skip("needs location30.npz in VESTIGE_DATA")
    world = shadow._published(records, 1000)
    assert np.array_equal(world.members.ids, records.ids[order[:1000]])
    assert np.isin(world.others.ids, records.ids[order[2000:3000]]).all()
    assert len(world.others) > 950
    contents = [side.content_hash() for side in (world.members, world.others, world.own)]
    assert not np.isin(contents[1], contents[0]).any()
    assert not np.isin(contents[2], np.concatenate(contents[:2])).any()


@pytest.mark.slow
def test_what_a_filter_leaves(tmp_path):
    run = "shadow-mitigation-purchase-like"
    none, label, strong = (
        reproduce.run(run, "ci", row=row, out=tmp_path)[0].estimates
        for row in ("none", "label", "l2-1e-2")
    )
    # the label is the same, and whether it is wrong says something still
    assert label["test_accuracy"] == none["test_accuracy"]
    assert 0.5 < label["attack_accuracy"].value < none["attack_accuracy"].value
    assert strong["auc"].value < none["auc"].value
    assert label["calibration_error"].value > none["calibration_error"].value


@pytest.mark.slow
def test_gap_and_precision_grow_with_the_number_of_classes(context):
    counts = (2, 5, 10, 20, 50)
    made = [
        shadow.measure(
            shadow.Settings(f"purchase_like_{c}", 600, 4, profile="nn", epochs=30, pool=1200),
            context,
        )
        for c in counts
    ]
    for name in ("gap", "precision"):
        values = [m.estimates[name].value for m in made]
        assert spearmanr(counts, values).statistic > 0.8, (name, values)


@pytest.mark.slow
def test_a_target_that_saw_neither_side_gives_nothing_away():
    """Neither was trained on: who is called a member is a coin."""
    settings = replace(CI, n_train=300, pool=600)
    world = shadow._drawn(replace(settings, pool=1200), 1)
    trained, own = world.own[:300], world.own[300:]
    recipe = shadow.recipe_of(settings, trained)
    target = train_many(recipe, trained, np.ones((1, 300), dtype=bool), seed=1).models[0]
    known = train_many(recipe, own, shadows(3, 900, 300, 2), seed=2)
    both = concatenate(world.members, world.others)
    scores = Shadow(calibration=0.0).run(target, both, known)
    member = np.isin(both.ids, world.members.ids)
    found, _ = attack_estimates(scores.values, member, both.y, 5)
    # 600 records: 1/2 within five standard errors of 0.02
    assert abs(found["attack_accuracy"].value - 0.5) < 0.1
    assert found["attack_accuracy"].low < 0.5 < found["attack_accuracy"].high
