"""An audit from end to end: a plan in, a report out. The one page that knows every room."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

import vestige
from vestige import measure, metrics
from vestige.attacks import BY_NAME, STANDARD
from vestige.attacks.attack import Attack
from vestige.attacks.gmia import GMIA
from vestige.defenses import Filter, behind, filtered, share_that_passed
from vestige.errors import (
    BudgetSpent,
    DamagedFile,
    ForeignFolder,
    InvalidInput,
    MissingModels,
    PlanError,
)
from vestige.exchangeability import Exchangeability, exchangeability
from vestige.fingerprint import fingerprint
from vestige.models import (
    BlackBox,
    EstimatorModel,
    Predictions,
    TorchModel,
    answers_alike,
    as_black_box,
)
from vestige.pool import Pool
from vestige.progress import Progress, quiet
from vestige.reading import name_of
from vestige.records import Records, Split, concatenate, duplicates
from vestige.remote import RemoteModel
from vestige.report import (
    Data,
    Finding,
    Provenance,
    RecordsAtRisk,
    RecordTable,
    Report,
    ReportWarning,
    Reproduce,
    Service,
    Target,
    Training,
    verdict,
)
from vestige.scores import Scores
from vestige.signals import Signal, sum_and_least, true_class_margin
from vestige.training.engines import Engine, Local
from vestige.training.many import half_and_half, train_many
from vestige.training.recipe import Recipe
from vestige.training.store import Store, write_atomically

__all__ = ["Plan", "audit", "run", "target_of"]

UNLIKE = 0.1
"""Reference models whose mean probability of the right class differs by more are unlike it."""

AGES = timedelta(days=1)
"""Answers further apart may be of another model."""

FEWEST = 10
"""Records a side below which nothing can be said."""

# Whose scores name the exposed records: the first of these whose p-values can be fine enough.
# Fixed beforehand, so that the choice cannot favor one.
EXPOSING = (
    "lira_online",
    "rmia_online",
    "lira_fixed_variance",
    "lira_offline",
    "rmia_offline",
    "gmia",
    "population",
    "modified_entropy",
    "loss",
)

FILTERED = ("rmia_online", "rmia_offline", *EXPOSING)
"""The same behind a filter, where a normal fit to margins of zeros finds nobody."""

LOCAL = Local()

Tell = Callable[[str], None]


def silent(text: str) -> None:
    """Nothing is told."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What to audit, and how: what `audit()` takes, as one value.

    Args:
        split: members, non-members and population.
        target: a handle, a torch module or a scikit-learn estimator; None has the recipe train
            one on the members.
        recipe: how a model like the target is trained; None leaves out the attacks that need
            reference models, unless `known` has some.
        references: number of reference models, even.
        attacks: "standard", names of `attacks.BY_NAME`, or attacks by a name of your own.
        seed: of everything random.
        name: of the audit, for the report.
        data_name: of the data set; the name by default.
        description: of the target, one line.
        image: shape of a picture where records are pictures, for example (8, 8).
        known: reference models that were trained elsewhere, instead of `recipe`.
        command: the shell command that repeats this audit.
        show_records: whether the report shows the exposed records themselves, beside their ids.
        answers: the filter that the target's answers pass, by its name in `defenses.behind`, for
            example "top3" or "label": reference models answer through the same, and so does the
            target, unless it is a service, a table or a handle of your own, whose answers are
            taken to have passed it already.
    """

    split: Split
    target: Any = None
    recipe: Recipe | None = None
    references: int = 64
    attacks: str | Sequence[str] | Mapping[str, Attack[BlackBox]] = "standard"
    seed: int = 0
    name: str = "audit"
    data_name: str = ""
    description: str = ""
    image: tuple[int, ...] = ()
    known: Pool[BlackBox] | None = None
    command: str = ""
    show_records: bool = True
    answers: str = ""


def audit(
    target: Any,
    split: Split,
    *,
    recipe: Recipe | None = None,
    references: int = 64,
    attacks: str | Sequence[str] | Mapping[str, Attack[BlackBox]] = "standard",
    seed: int = 0,
    out: str | Path | None = None,
    name: str = "audit",
    image: tuple[int, ...] = (),
    known: Pool[BlackBox] | None = None,
    show_records: bool = True,
    answers: str = "",
    fresh: bool = False,
    engine: Engine = LOCAL,
    progress: Progress = quiet,
    tell: Tell = silent,
) -> Report:
    """Measure how much a model gives away about the records it was trained on.

    Args:
        target: a handle, a torch module or a scikit-learn estimator.
        split: who was trained on, who was not, and what the adversary owns besides.
        recipe: how a model like the target is trained; see `Plan`.
        references: number of reference models, even.
        attacks: "standard", some of its names, or attacks by names of your own.
        seed: two audits with equal seeds give equal numbers.
        out: folder for models and report; with it, an interrupted audit resumes.
        name: of the audit, the title of its report.
        image: shape of a picture where records are pictures, for example (28, 28).
        known: reference models that were trained elsewhere, instead of `recipe`.
        show_records: whether the report shows the exposed records, beside their ids.
        answers: the filter that the target's answers pass, if any; see `Plan`.
        fresh: discard what another audit left in `out`.
        engine: where models are trained and asked: `Local()` or `Ray()`.
        progress: called with a label, the number done and the total.
        tell: called with a sentence for the terminal.

    Returns:
        The report; written to `out` where given.

    Raises:
        InvalidInput: records or target are not what was expected.
        PlanError: what was asked cannot be done; ForeignFolder: `out` holds another audit.
        StoreError: the disk is full; what was finished is kept.
    """
    plan = Plan(
        split,
        target,
        recipe,
        references,
        attacks,
        seed,
        name,
        image=image,
        known=known,
        show_records=show_records,
        answers=answers,
    )
    return run(plan, out, fresh=fresh, engine=engine, progress=progress, tell=tell)


def run(
    plan: Plan,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    engine: Engine = LOCAL,
    progress: Progress = quiet,
    tell: Tell = silent,
) -> Report:
    """Carry out a plan; see `audit`."""
    started = time.perf_counter()
    _check(plan)
    plan, note = _with_population(plan)
    attacks, skipped = _attacks(plan)
    seeds = _seeds(plan.seed)
    store = None if out is None else _opened(plan, Path(out), fresh, tell)
    target, target_seconds = _target(plan, seeds[0], store, engine, progress)
    target = _filtered_target(plan, target)
    candidates = _shuffled(plan.split, seeds[2])
    service = _service_of(target)
    if service is not None:
        # before the first query, and before anything is trained: attacks on labels ask for more
        beside = plan.split.population
        if plan.known is not None:
            beside = plan.known.without(candidates.ids)
        wanted = len(beside) and any(a.about.needs_population for a in attacks.values())
        service.afford(candidates.x, *([beside.x] if wanted else []))
        for name, attack in attacks.items():
            most = attack.about.queries
            if most > 1:
                tell(
                    f"{name} asks about up to {most:,} records for each of {len(candidates):,} "
                    f"candidates, {most * len(candidates):,} in all"
                )
    answers = _answers(plan, target, candidates, store, out)
    if service is not None:
        _tell_service(service, tell)
    alike = _exchangeable(plan, target, seeds[3])
    pool, training_seconds = _pool(plan, attacks, seeds[1], seeds[4], store, engine, progress)
    if pool.provenance:
        _tell_training(pool.provenance, tell)
    if plan.answers and len(pool.models):
        pool = filtered(pool, plan.answers)
    signals_seconds = _read_signals(attacks, candidates, pool, engine, progress)
    findings, scores, at_risk, failed = _run_attacks(
        plan, attacks, target, candidates, pool, seeds[3], progress
    )
    described = _described(plan, target, candidates, answers)
    warnings = [
        *skipped,
        *failed,
        *_warnings(plan, target, findings, alike, pool, candidates, answers),
    ]
    # where the sides differ without the model, a high score says nothing about membership
    shown = None if alike.passed is False else _exposing(plan, attacks, scores, pool)
    ranks = shown is not None and measure.names_by_ranks(
        attacks[shown], scores[shown], plan.split, pool
    )
    exposed = (
        measure.exposed(
            shown,
            scores[shown],
            plan.split,
            ranks=ranks,
            image=plan.image,
            previews=_shows(plan, target),
        )
        if shown
        else None
    )
    total = time.perf_counter() - started
    if plan.answers not in ("", "none"):
        findings = [_seen_through(plan.answers, found) for found in findings]
    report = Report(
        name=plan.name,
        verdict=verdict(
            findings,
            exchangeability=alike,
            warnings=warnings,
            exposed=exposed,
            at_risk=at_risk,
        ),
        target=described,
        data=_data(plan, note),
        exchangeability=alike,
        findings=tuple(findings),
        exposed_records=exposed,
        records_at_risk=at_risk,
        warnings=tuple(warnings),
        reproduce=_reproduce(plan),
        provenance=_provenance(
            plan,
            pool,
            _service(target),
            {
                "target": target_seconds,
                "training": training_seconds,
                "signals": signals_seconds,
                "attacks": sum(f.seconds for f in findings),
                "total": total,
            },
        ),
        records=_table(plan.split, scores, shown, ranks),
    )
    if out is not None:
        report.save(out)
    return report


def target_of(plan: Plan, *, engine: Engine = LOCAL, progress: Progress = quiet) -> BlackBox:
    """The plan's target; where there is none, the one that its audit would train."""
    _check(plan)
    return _filtered_target(plan, _target(plan, _seeds(plan.seed)[0], None, engine, progress)[0])


def _seeds(seed: int) -> list[int]:
    """Of target, references, order, check and population."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(5) >> 1]


def _exposing(
    plan: Plan,
    attacks: Mapping[str, Attack[BlackBox]],
    scores: Mapping[str, Scores],
    pool: Pool[BlackBox],
) -> str | None:
    """The attack whose scores name the exposed records; one of the user's own comes first.

    One whose p-values cannot be fine enough, as it scored too few, gives way to others.
    """
    own = [name for name in scores if name not in BY_NAME]
    order = FILTERED if plan.answers not in ("", "none") else EXPOSING
    names = [*own, *(n for n in order if n in scores), *scores]
    able = (n for n in names if measure.can_name(attacks[n], scores[n], plan.split, pool))
    return next(able, next(iter(names), None))


# --- what is asked -----------------------------------------------------------------------------


def _attacks(plan: Plan) -> tuple[dict[str, Attack[BlackBox]], list[ReportWarning]]:
    """The attacks to run; of the standard ones, those that the plan has the means for."""
    if isinstance(plan.attacks, Mapping):
        wrong = [
            n
            for n, a in plan.attacks.items()
            if getattr(a, "run", None) is None or getattr(a, "about", None) is None
        ]
        if wrong or not plan.attacks:
            raise PlanError(
                f"expected attacks by name, got {wrong[0] if wrong else 'none'}; give for example "
                '{"lira": vestige.attacks.LiRA()}'
            )
        return dict(plan.attacks), []
    if not isinstance(plan.attacks, (str, Sequence)):
        raise PlanError(f'expected attacks as "standard", names or a mapping, got {plan.attacks!r}')
    if plan.attacks == "standard":
        lacking = {name: _lacks(plan, attack) for name, attack in STANDARD.items()}
        warnings = [
            ReportWarning("attacks_left_out", f"{why}: {', '.join(names)} not run.")
            for why in dict.fromkeys(v for v in lacking.values() if v)
            for names in [[n for n, v in lacking.items() if v == why]]
        ]
        return {n: a for n, a in STANDARD.items() if not lacking[n]}, warnings
    names = plan.attacks.split(",") if isinstance(plan.attacks, str) else list(plan.attacks)
    unknown = [n for n in names if n not in BY_NAME]
    if unknown or not names:
        raise PlanError(
            f"expected attacks among {', '.join(BY_NAME)}, got "
            f"{', '.join(unknown) or 'none'}; name at least one of them"
        )
    chosen = {n: BY_NAME[n] for n in names}
    for name, attack in chosen.items():
        why = _lacks(plan, attack)
        if why:
            raise PlanError(f"expected what {name} needs, but {why[0].lower()}{why[1:]}")
    return chosen, []


def _lacks(plan: Plan, attack: Attack[BlackBox]) -> str:
    known = plan.known if plan.known is not None and len(plan.known.models) else None
    if attack.about.needs_models and plan.recipe is None and known is None:
        return "There is no recipe to train reference models with"
    if attack.about.needs_features and isinstance(plan.target, Predictions):
        return "A table of predictions has no features"
    if attack.about.needs_population and not len(plan.split.population):
        enough = 1250 if len(plan.split.nonmembers) >= 1000 else 5 * 4 * FEWEST
        return (
            "There are no population records, known to be no members (give some, or at least "
            f"{enough:,} non-members)"
        )
    return ""


def _check(plan: Plan) -> None:
    if not isinstance(plan.split, Split):
        raise InvalidInput(
            f"expected a Split of members and non-members, got {type(plan.split).__name__}; "
            "vestige.Split.from_arrays makes one"
        )
    plan.split.checked()
    numbers = {"seed": plan.seed, "references": plan.references}
    wrong = [f"{name}={value!r}" for name, value in numbers.items() if not _is_whole(value)]
    if wrong:
        raise PlanError(f"expected whole numbers, got {', '.join(wrong)}")
    if plan.seed < 0:
        raise PlanError(f"expected a seed from 0, got {plan.seed}")
    if plan.target is None and plan.recipe is None:
        raise PlanError("expected a target, or a recipe to train one with; got neither")
    if plan.recipe is not None and getattr(plan.recipe, "key", None) is None:
        raise PlanError(
            "expected a TorchRecipe, EstimatorRecipe or FunctionRecipe as the recipe, got "
            f"{type(plan.recipe).__name__}; wrap it, for example EstimatorRecipe(estimator)"
        )
    counts = {"members": len(plan.split.members), "non-members": len(plan.split.nonmembers)}
    few = [f"{count} {side}" for side, count in counts.items() if count < FEWEST]
    if few:
        raise PlanError(
            f"expected at least {FEWEST} records a side, got {' and '.join(few)}; with so few no "
            "rate can be told from chance"
        )
    if plan.answers:
        filtered(Pool.of_population(plan.split.members), plan.answers)  # refuses unknown ones now
    if plan.recipe is not None and (plan.references < 2 or plan.references % 2):
        raise PlanError(
            f"expected an even number of reference models, at least 2, got {plan.references}; "
            "each record is in one model of every pair"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _with_population(plan: Plan) -> tuple[Plan, str]:
    """A plan whose adversary owns a population, and a note where it was taken here.

    Several attacks compare with records known to be no members. Where none were given, a fifth of
    the non-members is set aside (at most 2,000, and never so many that a false positive rate of
    0.1 % can no longer be resolved).
    """
    split = plan.split
    n = len(split.nonmembers)
    count = min(n // 5, 2000) if n < 1000 else min(n // 5, 2000, n - 1000)
    if len(split.population) or plan.known is not None or count < FEWEST * 4:
        return plan, ""
    drawn = np.random.default_rng(plan.seed).permutation(n)
    kept, taken = np.sort(drawn[count:]), np.sort(drawn[:count])
    split = replace(split, nonmembers=split.nonmembers[kept], population=split.nonmembers[taken])
    note = (
        f"{count} of the {n} non-members given were set aside at random as the adversary's "
        "population; give a population to choose it."
    )
    return replace(plan, split=split), note


def _opened(plan: Plan, out: Path, fresh: bool, tell: Tell) -> Store:
    """The store of an output folder, once the folder is known to be this plan's."""
    asked = {"vestige": vestige.__version__, "name": plan.name, "plan": _plan_digest(plan)}
    path = out / "plan.json"
    if fresh and ((out / "store" / "manifest.sqlite").exists() or path.exists()):
        # only what an audit wrote: a folder that happens to be called store is not ours
        shutil.rmtree(out / "store", ignore_errors=True)
        path.unlink(missing_ok=True)
    if path.exists():
        try:
            found = json.loads(path.read_text())["plan"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DamagedFile(
                f"expected to read in {path} whose audit this folder holds, but it is damaged "
                f"({type(error).__name__}); choose another folder, or discard what is there with "
                "--fresh (fresh=True)"
            ) from None
        if found != asked["plan"]:
            raise ForeignFolder(
                f"expected {out} to be empty or to hold this audit, but it holds another one "
                "(other records, recipe, seed or number of references); choose another "
                "folder, or discard what is there with --fresh (fresh=True)"
            )
    else:
        write_atomically(path, lambda part: _write_json(part, asked))
    # a damaged file is named in any case: without a terminal the store warns
    return Store(out / "store") if tell is silent else Store(out / "store", tell)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _plan_digest(plan: Plan) -> str:
    sides = (plan.split.members, plan.split.nonmembers, plan.split.population)
    recipe = plan.recipe.key() if plan.recipe is not None else None
    digests = [side.digest() if len(side) else "" for side in sides]
    # not the filter: models are the same behind it
    return fingerprint([*digests, recipe, plan.references, plan.seed, plan.target is None])[:32]


# --- what is made ------------------------------------------------------------------------------


def _target(
    plan: Plan, seed: int, store: Store | None, engine: Engine, progress: Progress
) -> tuple[BlackBox, float]:
    if plan.target is not None:
        return as_black_box(plan.target, n_classes=len(_class_names(plan.split))), 0.0
    assert plan.recipe is not None
    members = plan.split.members
    # the whole split decides how many classes there are, not the members alone
    known = replace(members, classes=_class_names(plan.split))
    everyone = np.ones((1, len(members)), dtype=bool)
    pool = train_many(
        plan.recipe,
        known,
        everyone,
        seed=seed,
        engine=engine,
        store=store,
        progress=lambda label, done, total: progress("target", done, total),
    )
    return pool.models[0], float(pool.provenance["seconds"])


def _filtered_target(plan: Plan, target: BlackBox) -> BlackBox:
    # a handle of the user's own may have its filter already
    bare = plan.target is None or (isinstance(target, (TorchModel, EstimatorModel)))
    return behind(target, plan.answers) if plan.answers and bare else target


def _class_names(split: Split) -> tuple[str, ...]:
    count = max(side.n_classes for side in (split.members, split.nonmembers, split.population))
    return split.members.classes or tuple(str(c) for c in range(count))


def _shuffled(split: Split, seed: int) -> Records:
    """Candidates in an order that says nothing about who is a member."""
    candidates = split.candidates
    return candidates[np.random.default_rng(seed).permutation(len(candidates))]


def _answers(
    plan: Plan, target: BlackBox, candidates: Records, store: Store | None, out: str | Path | None
) -> NDArray[np.float64]:
    """The target's answers, once they are sure to be repeatable and this folder's."""
    if not answers_alike(target, candidates.x[: min(64, len(candidates))]):
        raise InvalidInput(
            "expected the same answer to the same question, got two different ones; the model "
            "draws random numbers in eval mode (dropout that is always on?): make it "
            "deterministic before the audit"
        )
    # those behind another filter are others of the same model
    suffix = f"-{fingerprint(plan.answers)[:8]}" if plan.answers not in ("", "none") else ""
    name = f"answers{suffix}.npz"
    path = None if store is None else store.find("target", name)
    before = None
    if path is not None:
        with np.load(path, allow_pickle=False) as stored:
            before = stored["answers"]
    # what is wrong with the first answers is said before all of them are paid for
    for n in (min(64, len(candidates)), len(candidates)):
        answers = target.log_probabilities(candidates.x[:n])
        if candidates.y.max() >= answers.shape[1]:
            raise InvalidInput(
                f"expected labels below {answers.shape[1]}, the number of classes the target "
                f"answers with, got {candidates.y.max()}; give the labels it was trained with"
            )
        if before is not None and not _same(before[:n], answers):
            raise ForeignFolder(
                f"expected the model that {out} was begun with, got one that answers otherwise; "
                "choose another folder, or discard what is there with --fresh (fresh=True)"
            )
        _check_filter(plan, answers)
    if isinstance(target, EstimatorModel):
        target.same_meaning(candidates)
    if store is not None and before is None:
        store.save("target", name, lambda part: _write_array(part, answers))
    return answers


def _same(before: NDArray[np.float64], answers: NDArray[np.float64]) -> bool:
    alike = before.shape == answers.shape
    return alike and bool(np.allclose(np.exp(before), np.exp(answers), atol=1e-4))


def _check_filter(plan: Plan, answers: NDArray[np.float64]) -> None:
    """Nothing, where the answers are what the filter that was named would show."""
    passed = share_that_passed(plan.answers, answers) if plan.answers else None
    if passed is not None and passed < 0.9:
        raise InvalidInput(
            f"expected answers that have passed {plan.answers}, got {1 - passed:.0%} of them that "
            "have not; say the filter that the target is behind, or none"
        )


def _write_array(path: Path, answers: NDArray[np.float64]) -> None:
    with path.open("wb") as file:
        np.savez(file, answers=answers)


def _exchangeable(plan: Plan, target: BlackBox, seed: int) -> Exchangeability:
    members, nonmembers = plan.split.members, plan.split.nonmembers
    # the inputs of a table are the numbers of its rows
    x = (None, None) if isinstance(target, Predictions) else (members.x, nonmembers.x)
    return exchangeability(*x, member_y=members.y, nonmember_y=nonmembers.y, seed=seed)


def _pool(
    plan: Plan,
    attacks: Mapping[str, Attack[BlackBox]],
    seed: int,
    order: int,
    store: Store | None,
    engine: Engine,
    progress: Progress,
) -> tuple[Pool[BlackBox], float]:
    """What the adversary has: reference models on random halves, and the population."""
    if plan.known is not None:
        plan.known.same_records(plan.split.candidates)
        return plan.known, 0.0
    sides = [plan.split.members, plan.split.nonmembers, plan.split.population]
    everyone = concatenate(*(side for side in sides if len(side)))
    # an order that says nothing about who is a member
    everyone = everyone[np.random.default_rng(order).permutation(len(everyone))]
    wanted = any(attack.about.needs_models for attack in attacks.values())
    if plan.recipe is None or not wanted:
        return Pool.of_population(everyone), 0.0
    everyone = replace(everyone, classes=_class_names(plan.split))
    member = _table_of_references(plan, everyone, seed)
    pool = train_many(
        plan.recipe, everyone, member, seed=seed, engine=engine, store=store, progress=progress
    )
    return pool, float(pool.provenance["seconds"])


def _table_of_references(plan: Plan, everyone: Records, seed: int) -> NDArray[np.bool_]:
    """Halves of the candidates, and of as much of the population as makes a half the target's size.

    A reference model imitates the target best when it is trained on equally many records.
    """
    scored = ~np.isin(everyone.ids, plan.split.population.ids)
    missing = max(0, 2 * len(plan.split.members) - int(scored.sum()))
    trained = scored.copy()
    trained[np.flatnonzero(~scored)[:missing]] = True
    member = np.zeros((plan.references, len(everyone)), dtype=bool)
    member[:, trained] = half_and_half(plan.references, int(trained.sum()), seed)
    return member


def _tell_training(made: Mapping[str, Any], tell: Tell) -> None:
    tell(
        f"{made['n_models']} reference models: {made['n_trained']} trained {made['path']} "
        f"({made['why']}), {made['n_reused']} reused"
    )


# --- what is measured --------------------------------------------------------------------------


def _read_signals(
    attacks: Mapping[str, Attack[BlackBox]],
    candidates: Records,
    pool: Pool[BlackBox],
    engine: Engine,
    progress: Progress,
) -> float:
    """Read what the attacks will, each model once for all of them; the seconds that it took.

    Where an attack will leave candidates out, it reads other records: then nothing is read ahead.
    """
    started, inside = time.perf_counter(), pool.trained_on(candidates.ids)
    abouts = [attack.about for attack in attacks.values()]
    # with them, in the same pass, what tells answers of a model from those of a filter
    own = _distinct([sum_and_least, *(signal for about in abouts for signal in about.signals)])
    beside = _distinct(s for about in abouts if about.needs_population for s in about.signals)
    if not len(pool.models) or not inside.any(axis=0).all() or inside.all(axis=0).any():
        return 0.0
    others = pool.without(candidates.ids)
    passes = [(s, r) for s, r in ((own, candidates), (beside, others)) if s and len(r)]
    n_models = len(pool.models)
    for done, (signals, records) in enumerate(passes):

        def shown(label: str, asked: int, total: int, before: int = done * n_models) -> None:
            progress(label, before + asked, total * len(passes))

        try:
            pool.read(signals, records, progress=shown, engine=engine)
        except InvalidInput:
            break  # the attack that needs it will say so, and others may go on
    return time.perf_counter() - started


def _distinct(signals: Iterable[Signal]) -> list[Signal]:
    """Each signal that a pool keeps, once."""
    return list({name: s for s in signals if (name := name_of(s))}.values())


def _run_attacks(
    plan: Plan,
    attacks: Mapping[str, Attack[BlackBox]],
    target: BlackBox,
    candidates: Records,
    pool: Pool[BlackBox],
    seed: int,
    progress: Progress,
) -> tuple[list[Finding], dict[str, Scores], RecordsAtRisk | None, list[ReportWarning]]:
    findings, all_scores, failed = [], {}, []
    at_risk: RecordsAtRisk | None = None
    nothing: Exception | None = None
    progress("attacks", 0, len(attacks))
    for done, (name, attack) in enumerate(attacks.items(), start=1):
        asked, started = target.n_queries, time.perf_counter()
        said, scores = None, None
        try:
            said = attack.run(target, candidates, pool)
            scores = _whole(said, plan.split)
        except (InvalidInput, MissingModels, BudgetSpent) as error:
            # that nobody stands out is an answer, where other attacks were asked too; and what
            # others found is not lost where there is no money for one
            nobody = isinstance(attack, GMIA) and isinstance(error, MissingModels)
            if nobody or isinstance(error, BudgetSpent):
                nothing = error
            elif plan.attacks != "standard":
                raise
            failed.append(ReportWarning("attacks_left_out", _left_out(name, said, error)))
        finally:
            progress("attacks", done, len(attacks))
        seconds = time.perf_counter() - started
        if isinstance(attack, GMIA) and at_risk is not None:
            failed.append(
                ReportWarning(
                    "other_records_at_risk",
                    f"Records at risk are those of {at_risk.attack}; {name}, which looks for such "
                    "records too, stands among the attacks only.",
                )
            )
        if isinstance(attack, GMIA) and at_risk is None:
            few = measure.few_references(name, attack, said, plan.split, pool)
            failed += [ReportWarning("few_references", few)] if few else []
            at_risk = measure.at_risk(
                name,
                attack,
                said,
                plan.split,
                pool,
                image=plan.image,
                previews=_shows(plan, target),
            )
        if scores is None:
            continue
        all_scores[name] = scores
        findings.append(
            measure.finding(
                name,
                attack,
                scores,
                plan.split,
                n_models=len(pool.models) if attack.about.needs_models else 0,
                n_queries=target.n_queries - asked,
                seconds=seconds,
                seed=seed,
            )
        )
    if nothing is not None and not findings:
        raise nothing
    return findings, all_scores, at_risk, failed


def _seen_through(answers: str, found: Finding) -> Finding:
    """The finding, with the filter that the adversary sees the target through."""
    access = f"{found.threat_model.access}, through {answers}"
    return replace(found, threat_model=replace(found.threat_model, access=access))


def _left_out(name: str, said: Scores | None, error: Exception) -> str:
    if said is None:
        return f"{name} not run: {error}"
    return f"{name} has no numbers of its own, as it scored one side only: {error}"


def _shows(plan: Plan, target: BlackBox) -> bool:
    """Whether the report shows records: the inputs of a table are the numbers of its rows."""
    return plan.show_records and not isinstance(target, Predictions)


def _whole(scores: Scores, split: Split) -> Scores:
    """The scores, if there are some on either side to compare.

    Raises:
        MissingModels: the attack abstained on all members, or on all non-members.
    """
    member = split.is_member(scores.ids)
    if member.all() or not member.any():
        raise MissingModels(
            f"expected scores on both sides, got {int(member.sum())} of members and "
            f"{int((~member).sum())} of non-members; the pool lacks models for the rest, or they "
            "are like others: name an attack beside it that scores all records, such as loss"
        )
    return scores


def _warnings(
    plan: Plan,
    target: BlackBox,
    findings: Sequence[Finding],
    alike: Exchangeability,
    pool: Pool[BlackBox],
    candidates: Records,
    answers: NDArray[np.float64],
) -> list[ReportWarning]:
    found = []
    n_members, n_nonmembers = len(plan.split.members), len(plan.split.nonmembers)
    if alike.passed is False:
        found.append(ReportWarning("not_exchangeable", alike.reason))
        found.append(
            ReportWarning(
                "no_exposed_records",
                "No record is called exposed, since members and non-members differ without it.",
            )
        )
    if min(n_members, n_nonmembers) < 100:
        found.append(
            ReportWarning(
                "few_records",
                f"With {n_members} members and {n_nonmembers} non-members every interval is wide.",
            )
        )
    if n_nonmembers < 1000:
        found.append(
            ReportWarning(
                "unresolved_rates",
                f"{n_nonmembers} non-members cannot resolve a false positive rate below "
                f"{1 / n_nonmembers:.2g}; give at least 1000 for 0.1 %.",
            )
        )
    twins = sum(int(duplicates(side).sum()) for side in (plan.split.members, plan.split.nonmembers))
    if twins:
        found.append(
            ReportWarning(
                "duplicates",
                f"{twins} records repeat another one of their side. Attacks with reference models "
                "miss them: a model trained without the one has seen the other.",
            )
        )
    size = pool.member.sum(axis=1).mean() if len(pool.models) else n_members
    if not 0.8 <= size / n_members <= 1.25:
        found.append(
            ReportWarning(
                "reference_size",
                f"Reference models were trained on {size:.0f} records each, the target on "
                f"{n_members} members given here; they imitate it less well.",
            )
        )
    less = "" if plan.answers else _shows_less(answers, pool, candidates)
    if less:
        found.append(ReportWarning("answers_filtered", less))
    service = _service_of(target)
    if service is not None and service.answered is not None and not service.n_rechecked:
        first, last = service.answered
        if last - first > AGES:
            found.append(
                ReportWarning(
                    "answers_of_many_days",
                    f"The target answered from {first:%Y-%m-%d} to {last:%Y-%m-%d}. If the model "
                    "was replaced meanwhile, these are numbers of two models: see to it with "
                    "recheck=, or begin with a new cache.",
                )
            )
    unlike = "" if less else _unlike(plan, pool, candidates, _sure(plan.split, candidates, answers))
    if unlike:
        found.append(ReportWarning("reference_unlike", unlike))
    backwards = [f.attack for f in findings if _is_backwards(f)]
    if backwards:
        found.append(
            ReportWarning(
                "below_chance",
                f"Members score lower than non-members in {', '.join(backwards)}, by more than "
                "chance explains. That is no evidence that nothing leaks: what the attack takes "
                "for granted does not hold here, for example that references are like the target.",
            )
        )
    if any(f.metrics["epsilon_lower_bound"].value for f in findings):
        found.append(
            ReportWarning(
                "epsilon_assumption",
                "The lower bound on epsilon takes records to be independent draws; for one "
                "trained model that is an assumption, not a proof about the training program.",
            )
        )
    return found


def _is_backwards(finding: Finding) -> bool:
    """Whether an AUC is plainly below chance, also for the lowest of a dozen."""
    auc = finding.metrics["auc"]
    if auc.value is None or auc.high is None:
        return False
    return auc.value + 1.5 * (auc.high - auc.value) < 0.5


def _shows_less(answers: NDArray[np.float64], pool: Pool[BlackBox], candidates: Records) -> str:
    """Where answers are plainly less than a reference model's, a sentence, else ''."""
    if not len(pool.models):
        return ""
    try:
        read = pool.signals(sum_and_least, candidates)[0]
    except InvalidInput:
        return ""  # attacks that need these models have said so
    tables = (sum_and_least(answers, candidates.y), read)
    off, usual = (float((np.abs(t[:, 0] - 1) > 1e-3).mean()) for t in tables)
    # by the least probable class, which sure models tell apart too; forests repeat themselves,
    # and so do the forests that they are compared with
    few, many = (len(np.unique(t[:, 1].round(6))) for t in tables)
    if off < usual + 0.01 and 4 * few > many:
        return ""
    why = f"{off:.0%} of them do not sum to 1" if off >= usual + 0.01 else "they repeat themselves"
    return (
        f"The target's answers seem to pass a filter ({why}), and those of the reference models "
        "do not: attacks that use them may be off either way. Say which, for example "
        'answers="round1" (--answers), or "none" for no filter.'
    )


def _sure(split: Split, candidates: Records, answers: NDArray[np.float64]) -> tuple[float, float]:
    """The target's mean probability of the right class, on members and on non-members.

    Of what is shown: behind a filter the rows need not sum to 1.
    """
    right = expit(true_class_margin(answers, candidates.y))
    member = split.is_member(candidates.ids)
    return float(right[member].mean()), float(right[~member].mean())


def _unlike(
    plan: Plan, pool: Pool[BlackBox], candidates: Records, sure: tuple[float, float]
) -> str:
    """Where reference models learn otherwise than the target did, a sentence, else ''.

    Args:
        sure: the probability that the target gives the right class, on average over members and
            over non-members.
    """
    if not len(pool.models):
        return ""
    try:
        # a signal that LiRA has read already: no model is asked again for this
        right = expit(pool.signals(true_class_margin, candidates))
    except InvalidInput:
        return ""  # attacks that need these models have said so
    inside = pool.trained_on(candidates.ids)
    if inside.all() or not inside.any():
        return ""
    own, others = float(right[inside].mean()), float(right[~inside].mean())
    # beyond what the draw of the records explains: a mean of n shares errs by 0.5 / sqrt(n)
    sides = zip((own, others), sure, (plan.split.members, plan.split.nonmembers), strict=True)
    beyond = [abs(a - b) - 1 / np.sqrt(len(side)) for a, b, side in sides]
    if max(beyond) <= UNLIKE:
        return ""
    return (
        f"Reference models give the right class a probability of {own:.0%} on records they were "
        f"trained on and {others:.0%} on others, on average; the target {sure[0]:.0%} and "
        f"{sure[1]:.0%}. Either the recipe does not train like the target, or the target's answers "
        f"pass {'another filter than' if plan.answers else 'a filter that'} theirs do"
        f"{'' if plan.answers else ' not'} (answers=); attacks that use them are weaker than they "
        "would be."
    )


def _described(
    plan: Plan, target: BlackBox, candidates: Records, answers: NDArray[np.float64]
) -> Target:
    right = answers.argmax(axis=1) == candidates.y
    member = plan.split.is_member(candidates.ids)
    hits, misses = int(right[member].sum()), int(right[~member].sum())
    sizes = int(member.sum()), int((~member).sum())
    return Target(
        name=plan.name,
        kind=type(target).__name__,
        description=plan.description or _description_of(target),
        n_classes=answers.shape[1],
        accuracy_members=metrics.rate(hits, sizes[0]),
        accuracy_nonmembers=metrics.rate(misses, sizes[1]),
        accuracy_gap=metrics.rate_difference(hits, sizes[0], misses, sizes[1]),
    )


def _description_of(target: BlackBox) -> str:
    service = _service_of(target)
    if service is not None:
        return f"a model behind {service.place}"
    net = getattr(target, "net", None)
    if net is not None:
        count = sum(p.numel() for p in net.parameters())
        return f"{type(net).__name__} with {count:,} parameters"
    estimator = getattr(target, "estimator", None)
    return " ".join(repr(estimator).split())[:200] if estimator is not None else ""


def _data(plan: Plan, note: str) -> Data:
    split = plan.split
    return Data(
        name=plan.data_name or plan.name,
        n_members=len(split.members),
        n_nonmembers=len(split.nonmembers),
        n_population=len(split.population),
        shape=tuple(split.members.x.shape[1:]),
        classes=_class_names(split),
        digest=fingerprint([split.members.digest(), split.nonmembers.digest()])[:32],
        note=note,
    )


def _reproduce(plan: Plan) -> Reproduce:
    said = [f"seed={plan.seed}"]
    if plan.recipe is not None:
        said = ["recipe=recipe", f"references={plan.references}", *said]
    if plan.known is not None:
        said.insert(0, "known=known")
    if plan.attacks != "standard":
        said.append(f"attacks={plan.attacks!r}")
    if plan.answers:
        said.append(f"answers={plan.answers!r}")
    return Reproduce(plan.command, f"vestige.audit(target, split, {', '.join(said)})")


def _service_of(target: BlackBox) -> RemoteModel | None:
    """The remote model that answers, in whatever filters; None where the model is here."""
    while isinstance(target, Filter):
        target = target.model
    return target if isinstance(target, RemoteModel) else None


def _tell_service(target: RemoteModel, tell: Tell) -> None:
    since = target.answered
    if target.n_paid or since is None:
        tell(f"the service was asked about {target.n_paid:,} records")
    else:
        tell(
            "the service was not asked: all answers are kept ones, given between "
            f"{since[0]:%Y-%m-%d %H:%M} and {since[1]:%Y-%m-%d %H:%M}"
        )


def _service(target: BlackBox) -> Service | None:
    """What a target behind HTTP has charged, and when it answered."""
    service = _service_of(target)
    if service is None or service.answered is None:
        return None
    first, last = (moment.isoformat(timespec="seconds") for moment in service.answered)
    return Service(service.place, service.spent, service.n_paid, first, last)


def _provenance(
    plan: Plan, pool: Pool[BlackBox], service: Service | None, seconds: Mapping[str, float]
) -> Provenance:
    made = pool.provenance
    training = (
        Training(str(made["path"]), str(made["why"]), int(made["n_models"])) if made else None
    )
    digests = {"plan": _plan_digest(plan)}
    if plan.recipe is not None:
        digests["recipe"] = plan.recipe.key()[:32]
    if made:
        digests["models"] = str(made["key"])
    return Provenance(
        vestige=vestige.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        device=str(getattr(plan.recipe, "device", "cpu")),
        seed=plan.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        digests=digests,
        training=training,
        service=service,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def _table(
    split: Split, scores: Mapping[str, Scores], shown: str | None, ranks: bool
) -> RecordTable:
    ids = np.concatenate([split.members.ids, split.nonmembers.ids])
    exposure = measure.exposure(scores[shown], split, ranks=ranks)[0] if shown else None
    return RecordTable.from_scores(
        ids,
        np.concatenate([split.members.y, split.nonmembers.y]),
        split.is_member(ids),
        scores,
        exposure=exposure,
        fdr=measure.FDR,
    )
