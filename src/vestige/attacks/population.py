"""Is a record's loss small among the target's losses on records it never saw? (attack P)

Ye, Maddi, Murakonda, Bindschaedler, Shokri. Enhanced membership inference attacks against
machine learning models. CCS 2022. https://arxiv.org/abs/2111.09679
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vestige.attacks.attack import About, answers, population_of
from vestige.errors import InvalidInput
from vestige.metrics import rank_p_values
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import cross_entropy_loss

__all__ = ["Population"]

Floats = NDArray[np.float64]

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Attack P: where a record's loss stands among the losses of known non-members.

    score = -ln F(loss), where F is the share of the population with a loss as small, interpolated
    between its losses. Without `per_class` this orders records as the loss does, to the last
    one; what the population adds is a threshold for any false positive rate, that is a p-value:
    p = (1 + #{population losses <= loss}) / (1 + n).

    Args:
        per_class: compare with the population of the record's own class (the paper's c_alpha(y)).
        min_per_class: classes with a smaller population are compared with all of it.

    Departs from the paper: it outputs a verdict at one alpha, we the score behind all of them;
    the p-value counts the record itself (the two ones), which makes it exact in finite samples,
    except that a class below `min_per_class` is only compared with a mixture of classes.

    References: Ye et al. 2022, attack P.
    """

    per_class: bool = False
    min_per_class: int = 30

    about: ClassVar[About] = About(
        title="Population",
        source="Ye et al. 2022",
        question="Is the record's loss smaller than the target's losses on records it never saw?",
        access="the probability of the record's class",
        knowledge="the record and its label; a population of non-members",
        needs_population=True,
    )

    def __post_init__(self) -> None:
        if self.min_per_class < 1:
            raise InvalidInput(f"expected min_per_class >= 1, got {self.min_per_class}")

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score and test the candidates against `known.without(candidates.ids)`.

        Raises:
            InvalidInput: `known` has no records beside the candidates.
        """
        population = population_of(known, candidates)
        null, losses = _losses(target, population), _losses(target, candidates)
        values, p_values = np.empty_like(losses), np.empty_like(losses)
        for group, background in self._groups(candidates.y, population.y):
            values[group] = -np.log(_share_below(losses[group], null[background]))
            p_values[group] = rank_p_values(-losses[group], -null[background])
        return Scores(candidates.ids, values, p_values)

    def _groups(
        self, y: NDArray[np.int64], population_y: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Candidates and what each group of them is compared with, as masks."""
        left, groups = np.ones(len(y), dtype=bool), []
        if self.per_class:
            labels, counts = np.unique(population_y, return_counts=True)
            for label in labels[counts >= self.min_per_class]:
                groups.append((y == label, population_y == label))
                left &= y != label
        groups.append((left, np.ones(len(population_y), dtype=bool)))
        return [(group, background) for group, background in groups if group.any()]


def _losses(target: BlackBox, records: Records) -> Floats:
    # a loss that rounded to zero (or below) is the smallest there is
    return np.maximum(cross_entropy_loss(answers(target, records), records.y), _TINY)


def _share_below(losses: Floats, null: Floats) -> Floats:
    """The share of null losses up to each loss, strictly increasing in the loss, in (0, 1).

    #{null <= loss} / (n + 1) at the null losses and linear between them; below the smallest it
    falls to 0 in proportion to the loss, above the largest it rises to 1 as 1 / distance. Without
    the two ends all members below every non-member would tie.
    """
    knots, counts = np.unique(null, return_counts=True)
    shares = np.cumsum(counts) / (len(null) + 1)
    # the minimum first: a large loss over a denormal one overflows
    below = shares[0] * (np.minimum(losses, knots[0]) / knots[0])
    above = 1 - (1 - shares[-1]) / (1 + np.maximum(losses - knots[-1], 0.0))
    inside = np.interp(losses, knots, shares)
    return np.where(losses < knots[0], below, np.where(losses > knots[-1], above, inside))
