"""What every attack keeps, whatever it does. A new attack is in here before it has a test."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import pytest

from vestige import attacks, metrics
from vestige.attacks import BY_NAME, STANDARD, About, Attack
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from worlds import World, overfit_world, unseen_world

CLASSES = {
    name: found
    for name, found in ((name, getattr(attacks, name)) for name in attacks.__all__)
    if isinstance(found, type)
    and "about" in vars(found)
    and found is not Attack
    # it trains models further, which these tables are not
    and found is not attacks.IndirectGMIA
}
INSTANCES: dict[str, Attack[BlackBox]] = {
    **{name: cls() for name, cls in CLASSES.items()},
    **BY_NAME,
    "votes_learned": attacks.AugmentationVotes(learned=True),
    "shadow_pooled": attacks.Shadow(per_class=False, features="sorted_top3", with_loss=True),
    "population_per_class": attacks.Population(per_class=True),
    "rmia_tuned": attacks.RMIA(online=False, offline_a=None, temperature=2.0),
    "lira_own_variance": attacks.LiRA(fixed_variance=False),
    "gmia_all": attacks.GMIA(beta=None),
}
SELECTIVE = {"GMIA", "gmia"}
"""They say nothing of records that have neighbors."""

every_attack = pytest.mark.parametrize("name", INSTANCES)
both_worlds = pytest.mark.parametrize("n_classes", [2, 4])


@functools.cache
def world(n_classes: int = 4) -> World:
    return overfit_world(n_classes=n_classes)


@functools.cache
def scored(name: str, n_classes: int = 4) -> Scores:
    it = world(n_classes)
    return INSTANCES[name].run(it.target, it.candidates, it.known)


@functools.cache
def unseen(n_classes: int) -> World:
    return unseen_world(n_classes=n_classes)


def sides(scores: Scores, it: World) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    members = it.split.is_member(scores.ids)
    return scores.values[members], scores.values[~members]


def fingerprint(pool: Pool[BlackBox], records: Records) -> str:
    arrays = [records.ids, records.x, records.y, pool.member, pool.records.ids]
    arrays += [pool.records.x, pool.records.y]
    tables = [model.log_probabilities(records.x) for model in pool.models]
    return hashlib.sha256(b"".join(a.tobytes() for a in [*arrays, *tables])).hexdigest()


def test_every_attack_class_is_found() -> None:
    assert set(CLASSES) == {
        "AugmentationVotes",
        "BoundaryDistance",
        "Confidence",
        "Correctness",
        "Entropy",
        "GMIA",
        "LiRA",
        "Loss",
        "ModifiedEntropy",
        "Population",
        "QuantileRegression",
        "RMIA",
        "Shadow",
    }
    assert {type(attack) for attack in BY_NAME.values()} == set(CLASSES.values())


def test_the_standard_attacks_have_the_names_of_the_report() -> None:
    assert list(STANDARD) == [
        "loss", "confidence", "entropy", "modified_entropy", "correctness", "population",
        "lira_online", "lira_offline", "lira_fixed_variance", "rmia_online", "rmia_offline",
        "quantile",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_hyper_parameters_are_keyword_only_with_defaults(name: str) -> None:
    fields = dataclasses.fields(CLASSES[name])
    assert all(field.kw_only for field in fields)
    assert CLASSES[name]() == CLASSES[name]()


@every_attack
def test_frozen(name: str) -> None:
    attack = INSTANCES[name]
    for field in ("about", "something", *getattr(attack, "__dataclass_fields__")):  # noqa: B009
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(attack, field, 1)


@every_attack
def test_repr_round_trips(name: str) -> None:
    attack = INSTANCES[name]
    again = eval(repr(attack), vars(attacks))
    assert again == attack and type(again) is type(attack)


@every_attack
def test_says_what_it_is_and_needs(name: str) -> None:
    about = INSTANCES[name].about
    assert isinstance(about, About)
    assert about.title and about.access and about.knowledge
    assert about.question.endswith("?")
    assert any(character.isdigit() for character in about.source)
    assert ("reference models" in about.knowledge) == about.needs_models
    assert ("population" in about.knowledge) == about.needs_population


@every_attack
@both_worlds
def test_scores_candidates_with_finite_numbers(name: str, n_classes: int) -> None:
    scores, it = scored(name, n_classes), world(n_classes)
    assert np.isin(scores.ids, it.candidates.ids).all()
    # every record of this world has all the models and the population that an attack can want
    assert len(scores) == len(it.candidates) or name in SELECTIVE
    assert scores.values.dtype == np.float64 and np.isfinite(scores.values).all()


@every_attack
def test_same_inputs_same_scores(name: str) -> None:
    it = overfit_world()
    again = INSTANCES[name].run(it.target, it.candidates, it.known)
    np.testing.assert_array_equal(again.values, scored(name).values)
    if again.p_values is not None:
        np.testing.assert_array_equal(again.p_values, scored(name).p_values)


@every_attack
def test_shuffling_candidates_permutes_scores(name: str) -> None:
    it, before = world(), scored(name)
    order = np.random.default_rng(5).permutation(len(it.candidates))
    after = INSTANCES[name].run(it.target, it.candidates[order], it.known)
    place = {id_: k for k, id_ in enumerate(after.ids.tolist())}
    back = [place[id_] for id_ in before.ids.tolist()]
    # sums over records run in another order: equal up to rounding
    np.testing.assert_allclose(after.values[back], before.values, rtol=1e-9, atol=1e-12)
    if before.p_values is not None and after.p_values is not None:
        np.testing.assert_allclose(after.p_values[back], before.p_values, rtol=1e-9)


@every_attack
@both_worlds
def test_members_score_higher(name: str, n_classes: int) -> None:
    estimate = metrics.auc(*sides(scored(name, n_classes), world(n_classes)), level=0.999)
    assert estimate.low is not None and estimate.low > 0.5


@every_attack
@both_worlds
def test_at_chance_on_a_target_that_saw_neither_side(name: str, n_classes: int) -> None:
    it = unseen(n_classes)
    scores = INSTANCES[name].run(it.target, it.candidates, it.known)
    estimate = metrics.auc(*sides(scores, it), level=0.99)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low <= 0.5 <= estimate.high


@every_attack
@both_worlds
def test_p_values_of_nonmembers_are_not_anti_conservative(name: str, n_classes: int) -> None:
    for it in (world(n_classes), unseen(n_classes)):
        scores = INSTANCES[name].run(it.target, it.candidates, it.known)
        if scores.p_values is None:
            return
        null = scores.p_values[~it.split.is_member(scores.ids)]
        for level in (0.01, 0.05, 0.1, 0.25, 0.5):
            # 300 non-members against at least 150 that calibrate: the standard error of the rate
            # is sqrt(level (1 - level) (1/300 + 1/150)); 3.5 of them
            slack = 3.5 * np.sqrt(level * (1 - level) * (1 / len(null) + 1 / 150))
            assert (null <= level).mean() <= level + slack


@pytest.mark.parametrize(
    "name", [n for n in INSTANCES if scored(n).p_values is not None and "per_class" not in n]
)
def test_p_values_find_members(name: str) -> None:
    it, scores = world(), scored(name)
    assert scores.p_values is not None
    small = scores.p_values <= 0.1
    members = it.split.is_member(scores.ids)
    assert small[members].mean() > small[~members].mean() + 0.1


@every_attack
def test_inputs_are_not_changed(name: str) -> None:
    it = overfit_world(n_models=4)
    candidates = it.candidates
    before = fingerprint(it.known, candidates)
    answers = it.target.log_probabilities(it.known.records.x).tobytes()
    INSTANCES[name].run(it.target, candidates, it.known)
    assert fingerprint(it.known, candidates) == before
    assert it.target.log_probabilities(it.known.records.x).tobytes() == answers


@every_attack
def test_each_record_is_asked_once(name: str) -> None:
    if INSTANCES[name].about.access == "labels only":
        return  # these ask about changed records too, as often as their own tests say
    it = overfit_world(n_models=4)
    scores = INSTANCES[name].run(it.target, it.candidates, it.known)
    expected = len(scores if name in SELECTIVE else it.candidates)
    if INSTANCES[name].about.needs_population:
        expected += len(it.split.population)
    assert it.target.n_queries == expected


@every_attack
def test_inputs_that_cannot_be_written_to(name: str) -> None:
    it = overfit_world(n_models=4)
    candidates = it.candidates
    for records in (candidates, it.known.records):
        for array in (records.ids, records.x, records.y):
            array.setflags(write=False)
    it.known.member.setflags(write=False)
    assert len(INSTANCES[name].run(it.target, candidates, it.known))
