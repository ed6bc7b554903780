"""How likely is the target's answer if it saw the record, and if it did not? (LiRA)

Carlini, Chien, Nasr, Song, Terzis, Tramer. Membership inference attacks from first
principles. IEEE S&P 2022. https://arxiv.org/abs/2112.03570
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vestige.attacks.attack import About, answers, references_of
from vestige.errors import InvalidInput, MissingModels
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import true_class_margin

__all__ = ["LiRA"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# smallest standard deviation: models that agree to the last digit would divide by zero
_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class LiRA:
    """Likelihood ratio attack on phi = log p_y - log(1 - p_y), with a normal fit on each side.

    Online:  score = log N(phi; mu_in, s_in^2) - log N(phi; mu_out, s_out^2).
    Offline: score = -log Q((phi - mu_out) / s_out), Q the normal upper tail; the same order as
    the paper's 1 - Q, but it does not saturate at 1.

    mu and s of a record are those of the reference models that saw it (in) and did not (out).

    The p-values, of all variants alike, are of phi among the record's own out-models: if phi is
    normal, a new out-model's (phi - mu_out) / (s_out sqrt(1 + 1 / n_out)) has Student's t
    distribution with n_out - 1 degrees of freedom, whatever the record. They never share s: on
    networks trained on digits a shared one made p <= 0.001 happen to 2 to 3.6 in 1,000
    non-members, the record's own to 0.7 (only a record with a single out-model, or whose
    out-models agree exactly, has no other choice). Far tails extrapolate the normal shape.
    Online they need not follow the scores.

    Records without an out-model (online: or without an in-model) are left out. The target must
    not be among its own reference models.

    Args:
        online: use in-models too (Algorithm 1); else the offline attack on out-models alone.
        fixed_variance: True for one s_in and one s_out for all records (the paper's fixed
            variance), False for one a record, None to decide for each record by `min_models`.
        min_models: with `fixed_variance=None`, a record has its own s from this many out-models
            (online: and in-models) on.
        augmentations: functions of a batch of inputs; each record is asked as it is and then
            under each of them, and references likewise.
        joint: fit a multivariate normal to phi of all views (a record with no more models on a
            side than views shares its covariance); else phi is averaged over the views.

    Departs from the paper: s has n - 1 (shared: N - n_records) in the denominator, not n; a
    shared s is that of residuals after subtracting each record's mean, not of raw phi, which
    would mix in how records differ; s is floored at 1e-6; p-values are added.

    References: Carlini et al. 2022, Algorithm 1 (online) and its offline variant.
    """

    online: bool = True
    fixed_variance: bool | None = None
    min_models: int = 32
    augmentations: tuple[Callable[[Any], Any], ...] = ()
    joint: bool = False

    def __post_init__(self) -> None:
        if self.min_models < 2:
            raise InvalidInput(f"expected min_models >= 2, got {self.min_models}")
        if not all(callable(a) for a in self.augmentations):
            raise InvalidInput("expected augmentations as functions of a batch of inputs")
        if self.joint and not (self.online and self.augmentations):
            raise InvalidInput(
                "expected joint=True only with online=True and augmentations: a one-sided tail of "
                "a multivariate normal is not defined, and one view has nothing to be joint with"
            )

    @property
    def about(self) -> About:
        """Online and offline ask different things of the adversary."""
        kind = "online" if self.online else "offline"
        seen = "models trained with it and without it" if self.online else "models without it"
        return About(
            title=f"LiRA, {kind}" + (", fixed variance" if self.fixed_variance else ""),
            source="Carlini et al. 2022",
            question=f"Is the target's answer on the record what {seen} would say?"
            if self.online
            else "Is the target surer of the record's label than models that never saw it?",
            access="class probabilities",
            knowledge="the record and its label; reference models trained with and without it"
            if self.online
            else "the record and its label; reference models trained without it",
            needs_models=True,
            signals=(true_class_margin,),
        )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score the candidates; one query a record and view.

        Raises:
            InvalidInput: `known` is absent.
            MissingModels: no record has the reference models it needs.
        """
        pool = references_of(known)
        records, inside = self._scorable(pool, candidates)
        views = [records, *(_viewed(records, a) for a in self.augmentations)]
        phi = np.stack([true_class_margin(answers(target, v), v.y) for v in views])
        references = np.stack([pool.signals(true_class_margin, v) for v in views])
        p_values = _p_values(phi.mean(axis=0), references.mean(axis=0), ~inside)
        return Scores(records.ids, self._values(phi, references, inside), p_values)

    def _values(self, phi: Floats, references: Floats, inside: Mask) -> Floats:
        """Scores (n,) from the target's phi (n_views, n) and the models' (n_views, n_models, n)."""
        own = self._own_spread(inside)
        if self.joint:
            own &= np.minimum(inside.sum(axis=0), (~inside).sum(axis=0)) > len(phi)
            log_in = _log_joint(phi, references, inside, own)
            return log_in - _log_joint(phi, references, ~inside, own)
        phi, references = phi.mean(axis=0), references.mean(axis=0)
        outs = _fit(references, ~inside, own)
        if not self.online:
            log_tail: Floats = stats.norm.logsf((phi - outs.mean) / outs.spread)
            return -log_tail
        ins = _fit(references, inside, own)
        ratio: Floats = stats.norm.logpdf(phi, ins.mean, ins.spread)
        ratio = ratio - stats.norm.logpdf(phi, outs.mean, outs.spread)
        return ratio

    def _scorable(self, pool: Pool[BlackBox], candidates: Records) -> tuple[Records, Mask]:
        """The records with enough models, and which model was trained on which of them."""
        inside = pool.trained_on(candidates.ids)
        needed = 2 if self.fixed_variance is False else 1
        enough = (~inside).sum(axis=0) >= needed
        if self.online:
            enough &= inside.sum(axis=0) >= needed
        if not enough.any():
            raise MissingModels(
                f"expected at least {needed} reference models trained without"
                f"{' and with' if self.online else ''} a record, got fewer for each of the "
                f"{len(candidates)} candidates; train references on random halves of them"
                + (", or use online=False" if self.online else "")
            )
        return (candidates if enough.all() else candidates[enough]), inside[:, enough]

    def _own_spread(self, inside: Mask) -> Mask:
        """Which records have a spread of their own, shape (n,)."""
        if self.fixed_variance is not None:
            return np.full(inside.shape[1], not self.fixed_variance)
        sides = (inside, ~inside) if self.online else (~inside,)
        return np.asarray(np.min([s.sum(axis=0) for s in sides], axis=0) >= self.min_models)


@dataclass(frozen=True)
class _Normal:
    """A normal fit a record, each (n,): mean, spread, its degrees of freedom, models behind it."""

    mean: Floats
    spread: Floats
    freedom: Floats
    n_models: NDArray[np.int64]


def _fit(phi: Floats, chosen: Mask, own: Mask) -> _Normal:
    """Fit a normal to each record's phi (n_models, n) over the models chosen for it."""
    n_models = chosen.sum(axis=0)
    mean = phi.sum(axis=0, where=chosen) / n_models
    # two passes: the sum of squares minus the square of the sum cancels for close models
    squares = ((phi - mean) ** 2).sum(axis=0, where=chosen)
    freedom = np.where(own, n_models - 1, _shared_freedom(n_models, own))
    total = np.where(own, squares, squares.sum())
    spread = np.maximum(np.sqrt(total / freedom), _FLOOR)
    return _Normal(mean, spread, freedom.astype(np.float64), n_models)


def _shared_freedom(n_models: NDArray[np.int64], own: Mask) -> int:
    """Residuals left once every record's mean is subtracted; at least one is needed."""
    freedom = int(n_models.sum()) - len(n_models)
    if freedom < 1 and not own.all():
        raise MissingModels(
            "expected some record with two reference models on the same side, to see how much "
            "they differ, got one a record; train more"
        )
    return freedom


def _p_values(phi: Floats, references: Floats, out: Mask) -> Floats:
    """P(a model that never saw the record has a phi as large), (n,): a t prediction interval."""
    own = out.sum(axis=0) >= 2
    # answers that are counted (votes of trees) can agree exactly; that is no certainty
    own &= _fit(references, out, own).spread > _FLOOR
    fit = _fit(references, out, own)
    z = (phi - fit.mean) / (fit.spread * np.sqrt(1 + 1 / fit.n_models))
    return np.asarray(stats.t.sf(z, fit.freedom))


def _log_joint(phi: Floats, references: Floats, chosen: Mask, own: Mask) -> Floats:
    """Log density (n,) of phi (n_views, n) under a normal fit to the chosen models' views.

    Args:
        phi: (n_views, n) of the target.
        references: (n_views, n_models, n).
        chosen: (n_models, n) which models to fit.
        own: (n,) which records have a covariance of their own; others share one.
    """
    n_models = chosen.sum(axis=0)
    mean = references.sum(axis=1, where=chosen) / n_models
    residuals = np.where(chosen, references - mean[:, None], 0.0)
    scatter = np.einsum("kmn,lmn->nkl", residuals, residuals, optimize=True)
    freedom = _shared_freedom(n_models, own)
    divisor = np.where(own, n_models - 1, freedom)[:, None, None]
    covariance = np.where(own[:, None, None], scatter, scatter.sum(axis=0)) / divisor
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, _FLOOR**2)
    along = np.einsum("nkl,kn->nl", axes, phi - mean)
    logs = np.log(2 * np.pi * variances) + along**2 / variances
    return np.asarray(-0.5 * logs.sum(axis=1))


def _viewed(records: Records, augmentation: Callable[[Any], Any]) -> Records:
    """The same records under an augmentation."""
    x = np.asarray(augmentation(np.asarray(records.x)))
    if len(x) != len(records):
        raise InvalidInput(
            f"expected an augmentation to return {len(records)} inputs, got {len(x)}"
        )
    return Records(records.ids, x, records.y, records.columns, records.classes)
