"""What an audit hands to its attacks, and what it says about itself: seen by an attack that looks.

A tree that memorizes random labels is the target; whoever is a member is known here, and nothing
that an attack is given may say so.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.tree import DecisionTreeClassifier

import vestige as vs
from vestige.attacks import STANDARD, About
from vestige.audit import _with_population, run
from vestige.errors import MissingModels, PlanError
from vestige.models import Predictions
from vestige.pool import Pool
from vestige.records import Records, Split
from vestige.scores import Scores
from vestige.tables import plan_of_table
from worlds import Table, overfit_world


@dataclass(frozen=True)
class Spy:
    """Writes down what it is given, and scores by the target's answer for the label."""

    seen: list = field(default_factory=list, repr=False)

    about: ClassVar[About] = About("Spy", "here", "?", "answers", "models", needs_models=True)

    def run(self, target, candidates, known=None):
        self.seen.append((candidates, known))
        return by_answer(target, candidates)


@dataclass(frozen=True)
class Own:
    """An attack of the user's own that trains nothing."""

    about: ClassVar[About] = About("Own", "here", "?", "answers", "nothing")

    def run(self, target, candidates, known=None):
        return by_answer(target, candidates)


def by_answer(target, candidates):
    answers = target.log_probabilities(candidates.x)
    return Scores(candidates.ids, answers[np.arange(len(candidates)), candidates.y])


class Trees:
    """A recipe that writes down on what, and with which seed, each model was trained."""

    def __init__(self):
        self._recipe = vs.EstimatorRecipe(DecisionTreeClassifier())
        self.suffix = self._recipe.suffix
        self.fits = []

    def fit(self, records, seed):
        self.fits.append((frozenset(records.ids.tolist()), seed))
        return self._recipe.fit(records, seed)

    def key(self):
        return self._recipe.key()

    def write(self, model, path):
        self._recipe.write(model, path)

    def read(self, path, n_classes):
        return self._recipe.read(path, n_classes)


def random_split(n_members, n_nonmembers, n_population=0):
    """Records of one distribution with random labels of three classes."""
    rng = np.random.default_rng(0)
    n = n_members + n_nonmembers + n_population
    records = Records.from_arrays(
        rng.normal(size=(n, 4)), rng.integers(0, 3, n), 1000 + np.arange(n)
    )
    cut = np.split(np.arange(n), [n_members, n_members + n_nonmembers])
    return Split(*(records[part] for part in cut))


def spied(split, references=4, seed=0, target=None):
    """What the spy saw: candidates, pool; and the recipe's notes, and the report."""
    spy, recipe = Spy(), Trees()
    plan = vs.Plan(split, target, recipe, references=references, attacks={"spy": spy}, seed=seed)
    report = run(plan)
    ((candidates, known),) = spy.seen
    return candidates, known, recipe.fits, report


def early(order, ids):
    """How much earlier in an order some ids come than the others: 1 all, 0 none, 0.5 chance."""
    inside = np.isin(order, ids)
    place = np.arange(len(order))
    return float((place[inside][:, None] < place[~inside]).mean())


def codes(report):
    return [warning.code for warning in report.warnings]


# --- what an attack is given -------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """60 members, 40 non-members, 45 population; 6 references."""
    split = random_split(60, 40, 45)
    return split, *spied(split, references=6)


def test_every_record_is_a_candidate_once(seen):
    split, candidates, *_ = seen
    assert sorted(candidates.ids) == sorted([*split.members.ids, *split.nonmembers.ids])
    both = split.candidates
    order = [both.ids.tolist().index(i) for i in candidates.ids.tolist()]
    np.testing.assert_array_equal(candidates.x, both.x[order])
    np.testing.assert_array_equal(candidates.y, both.y[order])


def test_the_order_of_candidates_does_not_tell_members(seen):
    # the standard deviation of a random order is 0.06
    split, candidates, *_ = seen
    assert 0.3 < early(candidates.ids, split.members.ids) < 0.7


def test_the_order_of_candidates_follows_the_seed(seen):
    split, candidates, *_ = seen
    target = vs.EstimatorRecipe(DecisionTreeClassifier()).fit(split.members, 0)
    orders = [spied(split, 2, seed, target)[0].ids.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_the_pool_holds_everyone_in_an_order_that_tells_nothing(seen):
    split, _, known, *_ = seen
    everyone = [*split.candidates.ids, *split.population.ids]
    assert sorted(known.records.ids) == sorted(everyone)
    scored = known.records.ids[np.isin(known.records.ids, split.candidates.ids)]
    assert 0.3 < early(scored, split.members.ids) < 0.7
    assert 0.3 < early(known.records.ids, split.population.ids) < 0.7


def test_references_are_complementary_halves_of_the_targets_size(seen):
    split, _, known, *_ = seen
    assert known.member.shape == (6, 145) and len(known.models) == 6
    assert known.member.sum(axis=1).tolist() == 6 * [60]
    trained = known.member.any(axis=0)
    for first, second in zip(known.member[::2], known.member[1::2], strict=True):
        np.testing.assert_array_equal(first ^ second, trained)
        assert not (first & second).any()
    assert len({row.tobytes() for row in known.member}) == 6
    # each half holds members and non-members
    of_members = known.member[:, np.isin(known.records.ids, split.members.ids)].sum(axis=1)
    assert ((of_members > 15) & (of_members < 45)).all()


def test_population_fills_the_references_up_to_the_targets_size(seen):
    # 2 x 60 are wanted, 100 are candidates
    split, _, known, *_ = seen
    trained = known.records.ids[known.member.any(axis=0)]
    assert set(split.candidates.ids) <= set(trained)
    assert np.isin(trained, split.population.ids).sum() == 20


@pytest.mark.parametrize(
    ("sizes", "trained", "size"),
    [
        ((30, 30, 30), 60, 30),  # enough candidates: the population stays unseen
        ((30, 40, 30), 70, 35),
        ((60, 20, 10), 90, 45),  # all there is does not reach the target's size
        ((40, 40, 0), 80, 40),
    ],
)
def test_as_much_population_is_trained_on_as_the_size_takes(sizes, trained, size):
    known = spied(random_split(*sizes), references=2)[1]
    assert known.member.any(axis=0).sum() == trained
    assert known.member.sum(axis=1).tolist() == [size, size]


def test_models_are_trained_on_what_the_table_says_and_with_seeds_of_their_own(seen):
    split, _, known, fits, _ = seen
    assert [ids for ids, _ in fits] == [
        frozenset(split.members.ids.tolist()),
        *(frozenset(known.records.ids[row].tolist()) for row in known.member),
    ]
    # a target with the seed of a reference would start from that one's weights
    assert len({seed for _, seed in fits}) == 7


def test_without_a_need_for_models_none_are_trained():
    recipe = Trees()
    made = run(vs.Plan(random_split(60, 60), recipe=recipe, attacks={"own": Own()}))
    assert len(recipe.fits) == 1
    assert made.finding("own").threat_model.n_models == 0
    assert made.provenance.training is None


def test_models_and_queries_are_counted(seen):
    finding = seen[4].finding("spy")
    assert (finding.threat_model.n_models, finding.threat_model.n_queries) == (6, 100)
    assert (finding.n_members, finding.n_nonmembers) == (60, 40)


# --- what is said of the target ----------------------------------------------------------------


def test_the_accuracy_gap_is_members_less_nonmembers(seen):
    split, *_, report = seen
    members, nonmembers = report.target.accuracy_members, report.target.accuracy_nonmembers
    tree = vs.EstimatorRecipe(DecisionTreeClassifier()).fit(split.members, 0)
    right = (tree.log_probabilities(split.nonmembers.x).argmax(1) == split.nonmembers.y).mean()
    assert members.value == 1
    # trees of another seed break ties otherwise
    assert nonmembers.value == pytest.approx(right, abs=0.2)
    gap = report.target.accuracy_gap
    assert gap.value == pytest.approx(members.value - nonmembers.value)
    assert gap.low > 0.3


def test_a_target_that_is_worse_on_its_members_has_a_negative_gap():
    split = random_split(50, 70)
    right = np.r_[np.arange(50) < 10, np.arange(70) < 56]
    y = split.candidates.y
    answers = np.full((120, 3), 0.1)
    answers[np.arange(120), np.where(right, y, (y + 1) % 3)] = 0.8
    rows = np.arange(120)[:, None]
    split = Split(
        replace(split.members, x=rows[:50]),
        replace(split.nonmembers, x=rows[50:]),
        replace(split.population, x=rows[:0]),
    )
    made = vs.audit(Predictions(probabilities=answers), split, attacks=["loss"]).target
    assert made.accuracy_members.value == pytest.approx(0.2)
    assert made.accuracy_nonmembers.value == pytest.approx(0.8)
    assert made.accuracy_gap.value == pytest.approx(-0.6)
    assert made.accuracy_gap.high < 0


# --- the population that is taken from the non-members -----------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (199, 0),  # a fifth is 39, too few to be of use
        (200, 40),
        (999, 199),
        (1000, 0),  # 1000 resolve a rate of 0.1 %
        (1039, 0),
        (1040, 40),
        (1100, 100),
        (1250, 250),
        (1300, 260),
        (20_000, 2000),
    ],
)
def test_a_fifth_of_the_nonmembers_is_taken_and_enough_are_left(given, taken):
    n = 10 + given
    records = Records.from_arrays(np.arange(n)[:, None], np.arange(n) % 2)
    plan = vs.Plan(Split(records[:10], records[10:], records[:0]), target=Own())
    made, note = _with_population(plan)
    assert (len(made.split.population), len(made.split.nonmembers)) == (taken, given - taken)
    both = np.concatenate([made.split.population.ids, made.split.nonmembers.ids])
    assert sorted(both) == list(range(10, n))
    assert made.split.members is plan.split.members
    assert note.startswith(f"{taken} of the {given} non-members") if taken else note == ""


def test_a_population_that_was_given_is_kept():
    plan = vs.Plan(random_split(20, 400, 30), target=Own())
    assert _with_population(plan) == (plan, "")


def test_the_report_tells_of_the_population_it_took():
    made = run(vs.Plan(random_split(60, 200), recipe=Trees(), attacks={"own": Own()}))
    assert (made.data.n_members, made.data.n_nonmembers, made.data.n_population) == (60, 160, 40)
    assert made.data.note.startswith("40 of the 200")
    assert made.finding("own").n_nonmembers == 160


# --- warnings ----------------------------------------------------------------------------------


def quiet_plan(n_members=200, n_nonmembers=1000, lift=0.0, **others):
    """An audit that has nothing to warn of: records enough, and a target that saw neither side."""
    world = overfit_world(
        n_members=n_members, n_nonmembers=n_nonmembers, n_population=0, n_models=2, lift=lift
    )
    return replace(vs.Plan(world.split, world.target, attacks=["loss"]), **others)


def one_too_few():
    plan = quiet_plan(200, 999)
    # a pool of one's own keeps the audit from taking a population
    return replace(plan, known=Pool.of_population(plan.split.candidates))


def shifted():
    plan = quiet_plan()
    x = plan.split.nonmembers.x + [0, 2, 2]
    return replace(plan, split=replace(plan.split, nonmembers=replace(plan.split.nonmembers, x=x)))


def repeated():
    plan = quiet_plan()
    members = plan.split.members
    x, y = members.x.copy(), members.y.copy()
    x[:3], y[:3] = x[3], y[3]
    return replace(plan, split=replace(plan.split, members=replace(members, x=x, y=y)))


def with_references(size, odds=None):
    """A pool of two models on `size` candidates each; right or wrong by chance, as the target."""
    plan = quiet_plan()
    everyone = plan.split.candidates
    rng = np.random.default_rng(1)
    member = np.zeros((2, len(everyone)), dtype=bool)
    for row in member:
        row[rng.permutation(len(everyone))[:size]] = True
    models = [plan.target, plan.target]
    if odds is not None:
        # right on the records trained on, wrong on the others
        models = []
        for row in member:
            logits = np.zeros((len(everyone), 4))
            rows = everyone.x[:, 0].astype(int)
            logits[rows, everyone.y] = np.where(row, odds, -odds)
            models.append(Table(logits))
    return replace(plan, known=Pool(models, everyone, member))


WARNED = {
    "nothing": (quiet_plan, []),
    "few members": (lambda: quiet_plan(99), ["few_records"]),
    "few non-members": (lambda: quiet_plan(200, 99), ["few_records", "unresolved_rates"]),
    "enough": (lambda: quiet_plan(100, 1000), []),
    "999 non-members": (one_too_few, ["unresolved_rates"]),
    "shifted": (shifted, ["not_exchangeable", "no_exposed_records"]),
    "repeated": (repeated, ["duplicates"]),
    "large references": (lambda: with_references(251), ["reference_size"]),
    "small references": (lambda: with_references(159), ["reference_size"]),
    "references of the size": (lambda: with_references(160), []),
    "rather large references": (lambda: with_references(250), []),
    "references unlike it": (lambda: with_references(200, odds=3.0), ["reference_unlike"]),
    "leaking": (lambda: quiet_plan(lift=6.0), ["epsilon_assumption"]),
    "no recipe": (lambda: quiet_plan(attacks="standard"), 2 * ["attacks_left_out"]),
}


@pytest.mark.parametrize("case", WARNED)
def test_each_warning_is_given_where_it_belongs_and_only_there(case):
    make, expected = WARNED[case]
    assert codes(run(make())) == expected


def message(plan, code):
    return next(w.message for w in run(plan).warnings if w.code == code)


def test_warnings_say_how_many():
    assert message(repeated(), "duplicates").startswith("3 records repeat")
    assert "99 members and 1000 non-members" in message(quiet_plan(99), "few_records")
    assert "on 300 records each, the target on 200 members" in message(
        with_references(300), "reference_size"
    )
    assert "below 0.005" in message(quiet_plan(100, 199), "unresolved_rates")
    assert "87% on records they were trained on and 2% on others" in message(
        with_references(200, odds=3.0), "reference_unlike"
    )


@pytest.mark.parametrize(
    ("trained", "others", "unlike"),
    [(3.0, 3.0, False), (-3.0, 3.0, True), (3.0, -3.0, True)],
)
def test_references_may_be_unlike_the_target_on_either_side(trained, others, unlike):
    """The target gives the label a logit of 3 on members and on non-members."""
    plan = with_references(200)
    member, everyone = plan.known.member, plan.known.records

    def model(inside):
        logits = np.zeros((len(everyone), 4))
        rows = everyone.x[:, 0].astype(int)
        logits[rows, everyone.y] = np.where(inside, trained, others)
        return Table(logits)

    logits = np.zeros((len(everyone), 4))
    logits[everyone.x[:, 0].astype(int), everyone.y] = 3.0
    known = replace(plan.known, models=[model(row) for row in member])
    made = run(replace(plan, target=Table(logits), known=known))
    assert ("reference_unlike" in codes(made)) is unlike


def test_references_of_another_kind_are_noticed_end_to_end():
    split = random_split(200, 200)
    assert "reference_unlike" not in codes(spied(split)[3])
    dull = vs.EstimatorRecipe(DummyClassifier()).fit(split.members, 0)
    assert "reference_unlike" in codes(spied(split, target=dull)[3])


def test_references_that_cannot_have_the_targets_size_are_noticed():
    assert "reference_size" not in codes(spied(random_split(60, 60), 2)[3])
    # halves of 160 candidates for a target of 60
    assert "reference_size" in codes(spied(random_split(60, 100), 2)[3])


def test_nobody_is_called_exposed_where_the_sides_differ():
    made = run(shifted())
    assert made.exposed_records is None
    assert made.exchangeability.passed is False


# --- tables of predictions ---------------------------------------------------------------------

N = 150


def table(path, *, lift=3.0, labels=None, reference_member=None):
    """A table of N members and N non-members; `labels` are given as those of the answers."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 2 * N) if labels is None else labels
    member = np.repeat([1, 0], N)

    def answers(inside):
        logits = rng.normal(0, 1, (2 * N, 4))
        logits[np.arange(2 * N), y] += 1 + lift * inside
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    given = {"probabilities": answers(member), "labels": y, "member": member}
    if reference_member is not None:
        given["reference_probabilities"] = np.stack([answers(row) for row in reference_member])
        given["reference_member"] = reference_member
    np.savez(path, **given)
    return path


def halves_of_members(n_models=6):
    """References that were trained on members of the target only."""
    rng = np.random.default_rng(1)
    out = np.zeros((n_models, 2 * N), dtype=int)
    for first, second in zip(out[::2], out[1::2], strict=True):
        order = rng.permutation(N)
        first[order[: N // 2]] = second[order[N // 2 :]] = 1
    return out


ONLINE = ["lira_online", "lira_fixed_variance"]


def test_attacks_that_can_score_one_side_only_are_left_out(tmp_path):
    path = table(tmp_path / "members.npz", reference_member=halves_of_members())
    made = run(plan_of_table(path))
    assert {f.attack for f in made.findings} == {
        "loss",
        "confidence",
        "entropy",
        "modified_entropy",
        "correctness",
        "lira_offline",
    }
    left_out = [w.message for w in made.warnings if w.code == "attacks_left_out"]
    for name in ONLINE:
        (text,) = (t for t in left_out if t.startswith(name))
        assert f"got {N} of members and 0 of non-members" in text
    # what was left out exposes nobody
    assert made.exposed_records.attack == "lira_offline"


def test_attacks_asked_for_by_name_are_refused_instead(tmp_path):
    path = table(tmp_path / "members.npz", reference_member=halves_of_members())
    with pytest.raises(MissingModels, match="0 of non-members"):
        run(replace(plan_of_table(path), attacks=["loss", "lira_online"]))


def test_labels_that_differ_between_the_sides_are_noticed(tmp_path):
    rng = np.random.default_rng(2)
    y = np.r_[rng.integers(0, 2, N), rng.integers(1, 4, N)]
    made = run(plan_of_table(table(tmp_path / "shifted.npz", labels=y)))
    assert made.exchangeability.passed is False
    assert codes(made).count("not_exchangeable") == 1
    assert made.exposed_records is None
    assert made.verdict.level == "unknown"


def test_row_numbers_of_a_table_are_no_features(tmp_path):
    """Members come first in the table, which says nothing about them."""
    made = run(plan_of_table(table(tmp_path / "alike.npz")))
    assert made.exchangeability.passed is None
    assert "labels" in made.exchangeability.reason
    assert "not_exchangeable" not in codes(made)


def test_a_table_has_no_features_to_regress_on(tmp_path):
    plan = plan_of_table(table(tmp_path / "table.npz"))
    made = run(plan)
    assert "quantile" not in {f.attack for f in made.findings}
    assert any("features: quantile not run" in w.message for w in made.warnings)
    with pytest.raises(PlanError, match="no features"):
        run(replace(plan, attacks=["quantile"]))


def test_records_of_a_table_have_no_previews(tmp_path):
    made = run(plan_of_table(table(tmp_path / "table.npz", lift=9.0)))
    assert made.exposed_records.n_exposed > 0
    assert all(r.preview is None for r in made.exposed_records.records)


# --- whose scores name the exposed records -----------------------------------------------------


@pytest.mark.parametrize(
    ("attacks", "named"),
    [
        ({"loss": STANDARD["loss"], "mine": Own()}, "mine"),
        ({"mine": Own(), "other": Own(), "loss": STANDARD["loss"]}, "mine"),
        (["loss", "modified_entropy"], "modified_entropy"),
        (["entropy", "loss"], "loss"),
        (["correctness", "entropy"], "correctness"),
    ],
)
def test_the_exposing_attack_is_fixed_beforehand_and_ones_own_comes_first(attacks, named):
    made = run(quiet_plan(100, 100, attacks=attacks))
    assert made.exposed_records.attack == named


def test_exposed_records_are_the_members_in_front(seen):
    """Every member is answered with certainty, about a third of the non-members too."""
    split, *_, report = seen
    made = report.exposed_records
    assert (made.attack, made.n_tested, made.n_exposed) == ("spy", 60, 0)
    assert {r.id for r in made.records} <= set(split.members.ids.tolist())
    certain = round(report.target.accuracy_nonmembers.value * 40)
    assert [r.p_value for r in made.records] == pytest.approx(50 * [(1 + certain) / 41])


def test_an_attack_need_not_be_a_dataclass():
    class Plain:
        about = vs.attacks.Loss.about

        def run(self, target, candidates, known=None):
            return vs.attacks.Loss().run(target, candidates, known)

        def __repr__(self):
            return "Plain()"

    made = run(replace(quiet_plan(100, 100), attacks={"plain": Plain()}))
    assert made.findings[0].config == {"attack": "Plain()"}


# --- how often reference models are asked ------------------------------------------------------


def overfit_plan(**changed):
    world = overfit_world(n_members=120, n_nonmembers=120, n_population=60, n_models=6)
    return vs.Plan(world.split, world.target, known=world.known, **changed)


def test_each_reference_model_is_asked_about_each_record_once():
    plan, told = overfit_plan(), []
    report = run(plan, progress=lambda *said: told.append(said))
    assert {"lira_online", "lira_offline", "rmia_online"} <= {f.attack for f in report.findings}
    assert [model.n_queries for model in plan.known.models] == [240 + 60] * 6
    signals = [said[1:] for said in told if said[0] == "signals"]
    assert signals == [(k, 12) for k in (*range(7), *range(6, 13))]
    assert told.index(("signals", 12, 12)) < [label for label, *_ in told].index("attacks")
    assert 0 < report.provenance.seconds["signals"] < report.provenance.seconds["total"]


@pytest.mark.parametrize("name", [n for n, a in STANDARD.items() if a.about.needs_models])
def test_attacks_read_the_signals_that_they_say(name):
    plan = overfit_plan()
    about = STANDARD[name].about
    candidates, known = plan.split.candidates, plan.known
    assert about.signals
    known.read(about.signals, candidates)
    if about.needs_population:
        known.read(about.signals, known.without(candidates.ids))
    before = [model.n_queries for model in known.models]
    STANDARD[name].run(plan.target, candidates, known)
    assert [model.n_queries for model in known.models] == before


def test_nothing_is_read_ahead_for_attacks_that_leave_records_out():
    plan = overfit_plan(attacks=["lira_offline"])
    # nobody saw the first record: online attacks leave it out
    member = plan.known.member.copy()
    member[:, plan.known.records.ids == plan.split.members.ids[0]] = False
    told = []
    run(
        replace(plan, known=replace(plan.known, member=member)),
        progress=lambda *said: told.append(said),
    )
    assert "signals" not in {label for label, *_ in told}


def test_references_that_lack_a_class_are_the_attacks_to_refuse():
    plan = overfit_plan()
    narrow = [Table(np.zeros((300, 2))) for _ in plan.known.models]
    report = run(replace(plan, known=replace(plan.known, models=narrow)))
    left_out = [w.message for w in report.warnings if w.code == "attacks_left_out"]
    assert sum("labels below 2, the number of classes that model 0" in m for m in left_out) >= 4
    assert "loss" in {f.attack for f in report.findings}


class Noted:
    """An engine that notes what it was asked to run."""

    name = "noted"

    def __init__(self):
        self.runs = []

    def run(self, work, shared, tasks, *, pack=None):
        self.runs.append(len(tasks))
        for place, task in enumerate(tasks):
            yield place, work(shared, task)


def test_models_are_trained_and_asked_where_the_engine_is():
    split, engine = random_split(60, 60, 40), Noted()
    recipe = vs.EstimatorRecipe(DecisionTreeClassifier())
    plan = vs.Plan(split, None, recipe, references=4, attacks=["lira_online", "rmia_online"])
    report = run(plan, engine=engine)
    # the target, its references, and the signals of candidates and of the population
    assert engine.runs == [1, 4, 4, 4]
    assert [f.metrics for f in report.findings] == [f.metrics for f in run(plan).findings]
