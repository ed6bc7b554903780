"""What an attack is: hyper-parameters, and one call. And what attacks ask of `known`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import Signal

__all__ = ["About", "Attack", "answers", "population_of", "references_of"]

H = TypeVar("H", bound=BlackBox, contravariant=True)


@dataclass(frozen=True)
class About:
    """What a report says of an attack, beside its numbers.

    Attributes:
        title: its name for people.
        source: authors and year of the paper.
        question: the question it answers, one sentence.
        access: what the target must give away, for example "class probabilities".
        knowledge: what else the adversary must have.
        needs_models: whether `known` must hold reference models.
        needs_population: whether `known` must hold records beside the candidates.
        needs_features: whether it reads the records themselves, which a table does not have.
        signals: what it reads off reference models, of the candidates, and of the population where
            it needs one; read beforehand for several attacks at once, where it can be.
        queries: records that the target is asked about for each candidate, at most.
    """

    title: str
    source: str
    question: str
    access: str
    knowledge: str
    needs_models: bool = False
    needs_population: bool = False
    needs_features: bool = False
    signals: tuple[Signal, ...] = ()
    queries: int = 1


class Attack(Protocol[H]):
    """Scores candidates by what a target tells about them; higher = more likely a member.

    Implementations are frozen dataclasses: hyper-parameters in the constructor, data in `run`.
    """

    @property
    def about(self) -> About:
        """What this configuration of the attack asks and needs."""
        ...

    def run(self, target: H, candidates: Records, known: Pool[H] | None = None) -> Scores:
        """Score the candidates.

        Raises:
            MissingModels: a record has no reference model of the kind the attack compares with.
            InvalidInput: `known` is absent or lacks what the attack needs.
        """
        ...


def answers(target: BlackBox, records: Records) -> NDArray[np.float64]:
    """The target's log-probabilities for the records, shape (n, classes); one query a record.

    Raises:
        InvalidInput: there are no records, or a label is outside the target's classes.
    """
    if not len(records):
        raise InvalidInput("expected at least one record to score, got none")
    table = target.log_probabilities(records.x)
    if records.y.max() >= table.shape[1]:
        raise InvalidInput(
            f"expected labels below {table.shape[1]}, the target's number of classes, got "
            f"{records.y.max()}; give the labels that the target was trained with"
        )
    return table


def references_of(known: Pool[BlackBox] | None) -> Pool[BlackBox]:
    """The pool, once it is sure that it holds reference models.

    Raises:
        InvalidInput: there is no pool.
        MissingModels: it has no models.
    """
    if known is None:
        raise InvalidInput("expected known= as a Pool of reference models, got none")
    if not len(known.models):
        raise MissingModels(
            "expected at least one reference model in the pool, got none; train some, or use an "
            "attack that needs no models"
        )
    return known


def population_of(known: Pool[BlackBox] | None, candidates: Records, at_least: int = 1) -> Records:
    """The pool's records that are not scored, taken to be no members of the target.

    So a pool must hold nothing but population beside the candidates: to score some of them, pass
    all, and select from the scores.

    Raises:
        InvalidInput: there is no pool, or it has too few records beside the candidates.
    """
    if known is None:
        raise InvalidInput("expected known= as a Pool that holds a population, got none")
    population = known.without(candidates.ids)
    if len(population) < at_least:
        raise InvalidInput(
            f"expected at least {at_least} population records (in the pool, and not scored), got "
            f"{len(population)}; set some non-members aside for the adversary"
        )
    return population
