"""Does the target favor the record more than it favors others from the population? (RMIA)

Zarifzadeh, Liu, Shokri. Low-cost high-power membership inference attacks. ICML 2024.
https://arxiv.org/abs/2312.03262
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import rankdata

from vestige.attacks.attack import About, answers, population_of, references_of
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import Signal, cross_entropy_loss

__all__ = ["RMIA"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_GRID = tuple(round(0.1 * k, 1) for k in range(11))


@dataclass(frozen=True, kw_only=True)
class RMIA:
    """Relative membership inference: a record's likelihood ratio against each population record's.

    LR(x, z) = (p_target(x) / p(x)) / (p_target(z) / p(z)), score(x) = share of population records
    z with LR(x, z) >= gamma. p is the probability of a record's class, and p(x) what a random
    model, half of them trained with x, gives it:

    Online:  p(x) = (mean over in-models + mean over out-models) / 2.
    Offline: p(x) = ((1 + a) mean over out-models + 1 - a) / 2.

    A population z that no reference saw has no in-models, and takes the offline form online too.
    Ratios are taken of logarithms, in float64.

    With n population records the share comes in steps of 1 / n, and every record favored over all
    of them ties at 1: where false positives are few, nothing would be resolved. The share is a
    step function of LR(x, .) alone, so that ties are broken by the ratio itself, by less than a
    step: what a population without end would do.

    Candidates without an out-model (online: or without an in-model) are left out. The target must
    not be among its own reference models.

    Args:
        online: use in-models too; else out-models alone.
        gamma: how much the record must be favored over z (the paper's gamma, at least 1 there).
        offline_a: a, from 0 (p(x) halfway from out to 1) to 1 (out-models alone). None tunes it:
            the first reference model stands in for the target, the others for its references,
            and a in 0, 0.1, ..., 1 with the best AUC is taken (the smallest of equals). The
            target is not asked.
        temperature: divide logits by it before the softmax; None (or 1) leaves them.
        break_ties: order records of equal share by their ratio; False gives the paper's score.

    Departs from the paper: ties are broken, as said; a is tuned by the AUC of the likelihood
    ratios themselves.

    References: Zarifzadeh et al. 2024, section 3.
    """

    online: bool = True
    gamma: float = 1.0
    offline_a: float | None = 0.3
    temperature: float | None = None
    break_ties: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.gamma < np.inf:
            raise InvalidInput(f"expected gamma > 0, got {self.gamma}")
        if self.offline_a is not None and not 0 <= self.offline_a <= 1:
            raise InvalidInput(f"expected offline_a in [0, 1] or None, got {self.offline_a}")
        if self.temperature is not None and not 0 < self.temperature < np.inf:
            raise InvalidInput(f"expected temperature > 0 or None, got {self.temperature}")

    @property
    def about(self) -> About:
        """Online and offline ask different things of the adversary."""
        seen = "with and without it" if self.online else "without it"
        return About(
            title="RMIA, online" if self.online else "RMIA, offline",
            source="Zarifzadeh et al. 2024",
            question="Does the target favor the record, compared with reference models, more "
            "than it favors records of the population?",
            access="the probability of the record's class",
            knowledge=f"the record and its label; reference models trained {seen}; a population "
            "of non-members",
            needs_models=True,
            needs_population=True,
            signals=(_loss_at(self.temperature),),
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score the candidates against `known.without(candidates.ids)`.

        Raises:
            InvalidInput: `known` is absent or has no records beside the candidates.
            MissingModels: no candidate, or no population record, has the models it needs.
        """
        pool, population = references_of(known), population_of(known, candidates)
        records, inside = _with_models(pool, candidates, self.online, "candidates")
        others, others_inside = _with_models(pool, population, False, "population records")
        signal = _loss_at(self.temperature)
        log_p = -pool.signals(signal, records)
        others_log_p = -pool.signals(signal, others)
        a = self.offline_a
        if a is None:
            a = _tuned(
                np.concatenate([log_p, others_log_p], axis=1),
                np.concatenate([inside, others_inside], axis=1),
            )
        ratio = -signal(answers(target, records), records.y)
        ratio = ratio - _log_expected(log_p, inside, a, self.online)
        others_ratio = -signal(answers(target, others), others.y)
        others_ratio = others_ratio - _log_expected(others_log_p, others_inside, a, self.online)
        # LR >= gamma where log ratio(z) <= log ratio(x) - log gamma: no table of all pairs
        below = np.searchsorted(np.sort(others_ratio), ratio - np.log(self.gamma), side="right")
        within = (1 + ratio / (1 + np.abs(ratio))) / 2 if self.break_ties else 0.0
        return Scores(records.ids, (below + within) / len(others))


def _loss_at(temperature: float | None) -> Signal:
    """Cross-entropy of softmax(logits / temperature)."""
    if temperature is None or temperature == 1:
        return cross_entropy_loss

    def signal(log_probabilities: Floats, y: NDArray[np.int64]) -> Floats:
        scaled = log_probabilities / temperature
        return cross_entropy_loss(scaled - logsumexp(scaled, axis=1, keepdims=True), y)

    # a pool keeps signals under their names: two temperatures must not share one
    signal.__qualname__ = f"_loss_at({temperature!r})"
    return signal


def _with_models(
    pool: Pool[BlackBox], records: Records, both: bool, what: str
) -> tuple[Records, Mask]:
    """The records with an out-model (and an in-model), and which model was trained on which."""
    inside = pool.trained_on(records.ids)
    enough = ~inside.all(axis=0)
    if both:
        enough &= inside.any(axis=0)
    if not enough.any():
        raise MissingModels(
            f"expected a reference model trained without{' and one with' if both else ''} a "
            f"record, got none for each of the {len(records)} {what}; train references on random "
            "halves of the candidates" + (", or use online=False" if both else "")
        )
    return (records if enough.all() else records[enough]), inside[:, enough]


def _log_mean(log_p: Floats, chosen: Mask) -> Floats:
    """Log of the mean probability (n,) over the models chosen for each record; -inf for none."""
    with np.errstate(divide="ignore"):
        total = logsumexp(np.where(chosen, log_p, -np.inf), axis=0)
    return np.asarray(total - np.log(np.maximum(chosen.sum(axis=0), 1)))


def _log_expected(log_p: Floats, inside: Mask, a: float, online: bool) -> Floats:
    """log p(x), shape (n,), from the models' log-probabilities (n_models, n)."""
    log_out = _log_mean(log_p, ~inside)
    with np.errstate(divide="ignore"):
        offline = np.logaddexp(np.log1p(a) + log_out, np.log1p(-a)) - np.log(2)
    if not online:
        return np.asarray(offline)
    halves = np.logaddexp(_log_mean(log_p, inside), log_out) - np.log(2)
    return np.asarray(np.where(inside.any(axis=0), halves, offline))


def _tuned(log_p: Floats, inside: Mask) -> float:
    """The a that serves best against the first reference model, judged by the others."""
    usable = ~inside[1:].all(axis=0)
    truth = inside[0, usable]
    if len(log_p) < 2 or truth.all() or not truth.any():
        raise MissingModels(
            "expected two reference models or more, the first trained on some of the records and "
            "not on others, to tune offline_a on it; give offline_a, for example 0.3"
        )
    stand_in, references, seen = log_p[0, usable], log_p[1:, usable], inside[1:, usable]
    areas = [_auc(stand_in - _log_expected(references, seen, a, False), truth) for a in _GRID]
    return float(_GRID[int(np.argmax(areas))])


def _auc(values: Floats, truth: Mask) -> float:
    """Area under the ROC curve by mid-ranks."""
    n = int(truth.sum())
    ranks = float(rankdata(values)[truth].sum())
    return (ranks - n * (n + 1) / 2) / (n * (len(truth) - n))
