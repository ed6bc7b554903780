"""One attack's numbers on a hand-made split, against what can be counted by hand or in a loop."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from vestige import measure, metrics
from vestige.attacks import About
from vestige.records import Records, Split
from vestige.report import image_preview
from vestige.scores import Scores

CLASSES = ("ape", "bee", "cat")
MEMBER_SCORES = [*range(100, 112), 37.5, 30.0, 5.5, 10.0, 12.5, 20.0, 21.5, 3.0, -1.0, 25.0]
NONMEMBER_SCORES = range(39)
MEMBER_LABELS = 10 * [0] + 10 * [1] + 2 * [2]
NONMEMBER_LABELS = 15 * [0] + 20 * [1] + 4 * [2]
CONSTANT = 4


@dataclass(frozen=True)
class Attack:
    """Runs nowhere: it says what a report repeats."""

    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)

    about: ClassVar[About] = About("A title", "A source", "A question?", "answers", "records")


def mixed(values, seed):
    """The values in another order, so that no two lists happen to agree by position."""
    return np.asarray(values)[np.random.default_rng(seed).permutation(len(values))]


def made_split():
    """22 members and 39 non-members, ids without an order, column `CONSTANT` without a spread."""
    n1, n0 = len(MEMBER_SCORES), len(NONMEMBER_SCORES)
    x = np.random.default_rng(0).normal(size=(n1 + n0, 10))
    x[:, CONSTANT] = 7.0
    y = np.concatenate([mixed(MEMBER_LABELS, 1), mixed(NONMEMBER_LABELS, 2)])
    ids = mixed(range(500, 500 + n1 + n0), 3)
    columns = tuple(f"column {c}" for c in range(10))
    records = Records.from_arrays(x, y, ids, columns, CLASSES)
    return Split(records[:n1], records[n1:], records[:0])


SPLIT = made_split()
TRUTH = dict(
    zip(
        [*SPLIT.members.ids.tolist(), *SPLIT.nonmembers.ids.tolist()],
        [*mixed(MEMBER_SCORES, 4).tolist(), *mixed(NONMEMBER_SCORES, 5).tolist()],
        strict=True,
    )
)
LABEL = dict(zip(SPLIT.candidates.ids.tolist(), SPLIT.candidates.y.tolist(), strict=True))
MEMBERS = SPLIT.members.ids.tolist()
NONMEMBERS = SPLIT.nonmembers.ids.tolist()


def scores_of(ids):
    return Scores(np.asarray(ids), np.array([float(TRUTH[i]) for i in ids]))


def everyone():
    """Members and non-members in one mixed order, as an attack returns them."""
    return scores_of(mixed([*MEMBERS, *NONMEMBERS], 6).tolist())


def found(scores, split=SPLIT, seed=7):
    return measure.finding(
        "mine", Attack(), scores, split, n_models=3, n_queries=61, seconds=1.5, seed=seed
    )


def naive_auc(members, nonmembers):
    """Pairs in which the member is ahead, ties counted half."""
    ahead = sum((m > n) + 0.5 * (m == n) for m in members for n in nonmembers)
    return ahead / (len(members) * len(nonmembers))


def naive_p(identity, nonmembers):
    at_least = sum(TRUTH[other] >= TRUTH[identity] for other in nonmembers)
    return (1 + at_least) / (1 + len(nonmembers))


def naive_q(p, others):
    """The least false discovery rate at which a p-value is called (Benjamini & Hochberg)."""
    rates = [len(others) * c / sum(v <= c for v in others) for c in others if c >= p]
    return min([1.0, *rates])


def by_hand(members, nonmembers):
    """A finding on scores alone: as many members and non-members as there are scores."""
    n1, n = len(members), len(members) + len(nonmembers)
    records = Records.from_arrays(np.arange(n)[:, None], np.arange(n) % 2)
    values = np.asarray([*members, *nonmembers], dtype=np.float64)
    return found(Scores(records.ids, values), Split(records[:n1], records[n1:], records[:0]))


# --- one finding -------------------------------------------------------------------------------


def test_what_the_attack_is_and_cost_is_repeated():
    made = found(everyone())
    assert (made.attack, made.title, made.source) == ("mine", "A title", "A source")
    assert made.question == "A question?"
    assert (made.threat_model.access, made.threat_model.knowledge) == ("answers", "records")
    assert (made.threat_model.n_models, made.threat_model.n_queries) == (3, 61)
    assert (made.n_members, made.n_nonmembers, made.seconds) == (22, 39, 1.5)
    assert made.config == {"rate": 0.5, "sizes": "(1, 2)"}


def test_areas_and_rates_are_those_of_a_loop():
    m, n = [TRUTH[i] for i in MEMBERS], [TRUTH[i] for i in NONMEMBERS]
    made = found(everyone()).metrics
    assert made["auc"].value == pytest.approx(naive_auc(m, n), abs=1e-12)
    # 3 of 39 false positives are allowed: 12 members lie above everyone, one above 37
    assert made["tpr@0.1"].value == pytest.approx(13 / 22)
    assert list(made) == [
        "auc",
        "advantage",
        "balanced_accuracy",
        "precision",
        "tpr@0.1",
        "tpr@0.01",
        "tpr@0.001",
        "epsilon_lower_bound",
    ]


def test_what_is_drawn_at_random_follows_the_seed():
    m, n = (np.array([float(TRUTH[i]) for i in side]) for side in (MEMBERS, NONMEMBERS))
    scores = Scores(SPLIT.candidates.ids, np.concatenate([m, n]))
    for seed in (7, 8):
        made = found(scores, seed=seed).metrics
        for name in ("advantage", "balanced_accuracy", "precision", "epsilon_lower_bound"):
            assert made[name] == getattr(metrics, name)(m, n, seed=seed), name


def test_the_curve_of_eight_scores():
    made = by_hand([4, 3, 3, 1], [3, 2, 1, 0]).roc
    assert made.fpr == (0, 0, 0.25, 0.5, 0.75, 1)
    assert made.tpr == (0, 0.25, 0.75, 0.75, 1, 1)


def test_the_curve_is_what_a_loop_attains_and_lies_in_its_band():
    made = found(everyone()).roc
    m, n = [TRUTH[i] for i in MEMBERS], [TRUTH[i] for i in NONMEMBERS]
    attained = {(0.0, 0.0)} | {
        (sum(v >= t for v in n) / len(n), sum(v >= t for v in m) / len(m)) for t in (*m, *n)
    }
    assert set(zip(made.fpr, made.tpr, strict=True)) <= attained
    assert max(t for f, t in zip(made.fpr, made.tpr, strict=True) if f == 0) == 12 / 22
    low, high = metrics.tpr_band(m, n, made.fpr)
    assert made.low == tuple(np.minimum(low, made.tpr))
    assert made.high == tuple(np.maximum(high, made.tpr))


def counted(n, **where):
    """Counts of n bins, named b<bin>."""
    counts = [0] * n
    for name, count in where.items():
        counts[int(name[1:])] = count
    return tuple(counts)


def test_members_and_nonmembers_fill_their_own_bins():
    # the middle of 40 bins between 0 and 1 is the lower edge of bin 20
    made = by_hand([1, 1, 1, 0.5], [0, 0, 0, 0, 1]).histogram
    assert made.edges == pytest.approx(tuple(k / 40 for k in range(41)))
    assert made.members == counted(40, b20=1, b39=3)
    assert made.nonmembers == counted(40, b0=4, b39=1)


def test_the_outermost_scores_do_not_flatten_the_picture():
    # of 401 scores a hundredth are the two outermost at either end; they count in the end bins
    members, nonmembers = np.arange(1.0, 201.0), np.arange(-200.0, 1.0)
    members[-1], nonmembers[0] = 1e6, -1e6
    made = by_hand(members, nonmembers).histogram
    assert (made.edges[0], made.edges[-1]) == (-198, 198)
    assert (sum(made.members), sum(made.nonmembers)) == (200, 201)
    # 9.9 a bin: 188.1 to 198 holds 189 to 200
    assert (made.members[-1], made.members[0]) == (12, 0)
    assert (made.nonmembers[0], made.nonmembers[-1]) == (12, 0)


def test_equal_scores_have_a_histogram():
    made = by_hand([2, 2, 2], [2, 2])
    assert (made.histogram.edges[0], made.histogram.edges[-1]) == (1.5, 2.5)
    assert made.histogram.members == counted(40, b20=3)
    assert made.histogram.nonmembers == counted(40, b20=2)
    assert made.metrics["auc"].value == 0.5


def test_classes_are_those_of_the_records_scored():
    made = found(everyone()).per_class
    assert [(c.label, c.name) for c in made] == [(0, "ape"), (1, "bee"), (2, "cat")]
    for one in made:
        m = [TRUTH[i] for i in MEMBERS if LABEL[i] == one.label]
        n = [TRUTH[i] for i in NONMEMBERS if LABEL[i] == one.label]
        assert (one.n_members, one.n_nonmembers) == (len(m), len(n))
        if one.label == 2:
            assert one.metrics["auc"].value is None and "at least 10" in one.metrics["auc"].reason
            continue
        assert one.metrics["auc"].value == pytest.approx(naive_auc(m, n), abs=1e-12)
        assert one.metrics["tpr@0.1"] == metrics.tpr_at_fpr(m, n, 0.1)


def test_classes_without_names_are_numbers():
    bare = replace(
        SPLIT,
        members=replace(SPLIT.members, classes=()),
        nonmembers=replace(SPLIT.nonmembers, classes=()),
    )
    assert [c.name for c in found(everyone(), bare).per_class] == ["0", "1", "2"]


def test_an_attack_that_scored_everyone_warns_of_nothing():
    assert found(everyone()).warnings == ()


def test_abstentions_are_told_and_left_out():
    left_out = [MEMBERS[3], NONMEMBERS[5], NONMEMBERS[6]]
    kept = [i for i in everyone().ids.tolist() if i not in left_out]
    made = found(scores_of(kept))
    assert made.warnings == ("It abstained on 3 of 61 records.",)
    assert (made.n_members, made.n_nonmembers) == (21, 37)
    assert (sum(made.histogram.members), sum(made.histogram.nonmembers)) == (21, 37)
    for label, one in enumerate(made.per_class):
        assert one.n_members == sum(LABEL[i] == label for i in MEMBERS if i in kept)
        assert one.n_nonmembers == sum(LABEL[i] == label for i in NONMEMBERS if i in kept)


# --- the records it exposes --------------------------------------------------------------------


def test_p_and_q_values_are_those_of_a_loop():
    scores = everyone()
    tested, p_values = measure.exposure(scores, SPLIT)
    assert tested.ids.tolist() == [i for i in scores.ids.tolist() if i in MEMBERS]
    assert tested.values.tolist() == [TRUTH[i] for i in tested.ids.tolist()]
    p = [naive_p(i, NONMEMBERS) for i in tested.ids.tolist()]
    assert p_values.tolist() == pytest.approx(p)
    assert tested.p_values.tolist() == pytest.approx([naive_q(v, p) for v in p])


def test_the_most_exposed_record_comes_first():
    made = measure.exposed("mine", everyone(), SPLIT)
    p = {i: naive_p(i, NONMEMBERS) for i in MEMBERS}
    q = {i: naive_q(p[i], list(p.values())) for i in MEMBERS}
    assert [r.id for r in made.records] == sorted(MEMBERS, key=lambda i: -TRUTH[i])
    for record in made.records:
        assert record.score == TRUTH[record.id]
        assert record.p_value == pytest.approx(p[record.id])
        assert record.q_value == pytest.approx(q[record.id])
        assert record.exposed is (q[record.id] <= 0.05)
        assert record.label == LABEL[record.id]
        assert record.label_name == CLASSES[record.label]


def test_as_many_are_exposed_as_lie_above_every_nonmember():
    # p = 1/40 for 12 of 22: q = 22/40/12 = 0.046. The next has p = 0.05 and q = 22/20/13 = 0.085
    made = measure.exposed("mine", everyone(), SPLIT)
    assert (made.attack, made.fdr, made.n_exposed, made.n_tested) == ("mine", 0.05, 12, 22)
    assert made.expected_false == pytest.approx(0.6)
    assert [r.exposed for r in made.records] == 12 * [True] + 10 * [False]
    assert made.records[0].score == 111
    assert made.records[0].q_value == pytest.approx(22 / 40 / 12)
    assert made.records[12].p_value == pytest.approx(0.05)
    assert made.records[12].q_value == pytest.approx(22 / 20 / 13)


def test_who_was_not_scored_is_not_tested():
    kept = [i for i in everyone().ids.tolist() if i not in (MEMBERS[3], NONMEMBERS[5])]
    made = measure.exposed("mine", scores_of(kept), SPLIT)
    assert made.n_tested == 21
    assert MEMBERS[3] not in {r.id for r in made.records}
    others = [i for i in NONMEMBERS if i != NONMEMBERS[5]]
    for record in made.records:
        assert record.p_value == pytest.approx(naive_p(record.id, others))


def test_fifty_are_shown_and_all_are_counted():
    n1, n0 = 60, 40
    records = Records.from_arrays(np.zeros((n1 + n0, 1)), np.arange(n1 + n0) % 2)
    split = Split(records[:n1], records[n1:], records[:0])
    scores = Scores(records.ids, np.r_[np.arange(100.0, 100.0 + n1), np.arange(float(n0))])
    made = measure.exposed("mine", scores, split)
    assert (made.n_exposed, made.n_tested) == (60, 60)
    assert [r.id for r in made.records] == list(range(59, 9, -1))


def test_text_ids_stay_text():
    named = [replace(side, ids=side.ids.astype(str)) for side in (SPLIT.members, SPLIT.nonmembers)]
    scores = everyone()
    made = measure.exposed(
        "mine",
        replace(scores, ids=scores.ids.astype(str)),
        Split(*named, named[0][:0]),
    )
    assert [r.id for r in made.records] == sorted(map(str, MEMBERS), key=lambda i: -TRUTH[int(i)])
    assert all(type(r.id) is str for r in made.records)
    assert made.records[0].label == LABEL[int(made.records[0].id)]


# --- how they are shown ------------------------------------------------------------------------


def row_of(identity):
    return SPLIT.members.x[MEMBERS.index(identity)]


def test_a_row_shows_the_columns_in_which_it_is_unusual():
    x = SPLIT.members.x
    for record in measure.exposed("mine", everyone(), SPLIT).records[:12]:
        row = row_of(record.id)
        odd = {c: abs(row[c] - x[:, c].mean()) / x[:, c].std() for c in range(10) if c != CONSTANT}
        chosen = sorted(sorted(odd, key=lambda c: -odd[c])[:8])
        assert record.preview.kind == "row"
        assert record.preview.values == {f"column {c}": f"{row[c]:.4g}" for c in chosen}


def test_a_row_without_column_names_shows_their_numbers():
    members = replace(SPLIT.members, columns=())
    made = measure.exposed("mine", everyone(), replace(SPLIT, members=members))
    assert set(made.records[0].preview.values) <= {f"x{c}" for c in range(10)}
    assert len(made.records[0].preview.values) == 8


def test_a_picture_is_the_records_own():
    made = measure.exposed("mine", everyone(), SPLIT, image=(2, 5))
    for record in made.records[:12]:
        assert (record.preview.kind, record.preview.width, record.preview.height) == ("image", 5, 2)
        assert record.preview == image_preview(row_of(record.id).reshape(2, 5))


def test_records_that_are_not_exposed_are_not_shown():
    made = measure.exposed("mine", everyone(), SPLIT)
    assert all(r.preview is not None for r in made.records[:12])
    assert all(r.preview is None for r in made.records[12:])


@pytest.mark.parametrize("image", [(), (2, 5)])
def test_records_may_be_kept_out_of_the_report(image):
    made = measure.exposed("mine", everyone(), SPLIT, image=image, previews=False)
    assert made.n_exposed == 12
    assert all(record.preview is None for record in made.records)
