"""Which records will stand out from a model trained on them, asked before it is trained.

Long, Bindschaedler, Wang, Bu, Wang, Tang, Gunter, Chen. Understanding membership inferences on
well-generalized learning models. 2018. https://arxiv.org/abs/1802.04889 (sections 4.3, 4.4, 6.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vestige.attacks.gmia import Features, neighborhood, smooth_log_p_values, trained_on_content
from vestige.errors import InvalidInput
from vestige.metrics import Estimate, benjamini_hochberg, clopper_pearson
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.signals import correctness, true_class_margin
from vestige.training.engines import Engine, Local
from vestige.training.many import half_and_half, train_many
from vestige.training.recipe import Recipe
from vestige.training.store import Store

__all__ = ["Arm", "AtRisk", "LeaveOut", "leave_out", "records_at_risk"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

FDR = 0.05
SHARES = (0.005, 0.01, 0.02, 0.05)
SHOWN = 10

FEWEST = 3
"""Models without a record that a null distribution takes; with two, leaving one out leaves none."""

LOCAL = Local()


@dataclass(frozen=True, eq=False)
class AtRisk:
    """What each record has to expect of a model that is trained on it, in the order given.

    Attributes:
        ids: (n,) of the records.
        y: (n,) their labels.
        expected: (n,) E[N_n] in a training set of all these records: the neighbors it has in it.
        nearest: (n, m) ids of the nearest others, nearest first, m <= 5: those that make it safe.
        distance: (n, m) their cosine distances, in [0, 2]; below `delta` they are neighbors.
        caught: (n,) share of the models trained with the record that are caught, smoothed p-value
            <= cutoff against the models without it; 0 where `n_in` is 0 or `n_out` below 2.
        low, high: (n,) its Clopper-Pearson interval, 95%, over models on the same other records.
        n_in, n_out: (n,) models that were trained with the record's content, and without.
        false: (n,) share of the models without it that would be caught, each against the others.
        evidence: (n,) mean of -log10 p over the models trained with it; breaks ties of `caught`.
        p_values: (n,) of "training on it does not raise its margin"; signed ranks over the pairs
            of halves.
        q_values: (n,) by Benjamini & Hochberg: the share of mistakes to expect among this record
            and all with a lower one, if called to stand out.
        overall: the mean of `caught`, its interval by the spread over models. This interval, as
            `low` and `high`, is for these very models without the record: with others drawn it
            would be wider by half.
        overall_false: the mean of `false` likewise: what `cutoff` is in truth.
        delta, beta, cutoff, fdr: as asked.
    """

    ids: NDArray[Any]
    y: NDArray[np.int64]
    expected: Floats
    nearest: NDArray[Any]
    distance: Floats
    caught: Floats
    low: Floats
    high: Floats
    n_in: Counts
    n_out: Counts
    false: Floats
    evidence: Floats
    p_values: Floats
    q_values: Floats
    overall: Estimate
    overall_false: Estimate
    delta: float
    beta: float
    cutoff: float
    fdr: float = FDR

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def isolated(self) -> Mask:
        """(n,) fewer than beta neighbors: what the paper selects (sec. 4.3)."""
        return np.asarray(self.expected < self.beta)

    @property
    def stands_out(self) -> Mask:
        """(n,) models trained with it answer it otherwise, at a false discovery rate of `fdr`."""
        return np.asarray(self.q_values <= self.fdr)

    @property
    def order(self) -> NDArray[np.intp]:
        """(n,) rows, the riskiest first: by `caught`, then `evidence`."""
        return np.lexsort((-self.evidence, -self.caught))

    def riskiest(self, count: int) -> NDArray[Any]:
        """(count,) ids, the riskiest first.

        Raises:
            InvalidInput: not 0 <= count <= n.
        """
        if not 0 <= count <= len(self):
            raise InvalidInput(f"expected 0 to {len(self)} records, got {count}")
        return self.ids[self.order[:count]]

    @property
    def note(self) -> str:
        """What p-values at the cutoff rest on, where models are too few to count them; or ""."""
        k = int(np.median(self.n_out))
        if self.cutoff >= 2 / (k + 1):
            return ""
        return (
            f"With {k} models without a record, p-values below {1 / (k + 1):.2g} go on along a "
            f"normal shape; to count them at {self.cutoff:g}, ask for n_models="
            f"{_even(2 * (2 / self.cutoff - 1))}."
        )

    def __str__(self) -> str:
        rows = [("id", "label", "neighbors", "nearest (distance)", "caught", "q")]
        for i in self.order[:SHOWN]:
            near = f"{self.nearest[i][0]} ({self.distance[i][0]:.2f})" if self.nearest.size else "-"
            rows.append(
                (
                    str(self.ids[i]),
                    str(self.y[i]),
                    f"{self.expected[i]:.0f}",
                    near,
                    f"{self.caught[i]:.0%} ({self.low[i]:.0%} to {self.high[i]:.0%})",
                    f"{self.q_values[i]:.2g}",
                )
            )
        said = (
            f"{int(self.stands_out.sum()):,} of {len(self):,} records stand out (false discovery "
            f"rate {self.fdr:.0%}), {int(self.isolated.sum()):,} have fewer than {self.beta:g} "
            f"neighbors. {self._caught_overall()}"
        )
        return "\n".join([said, *filter(None, [self.note]), "", *_aligned(rows)])

    def _caught_overall(self) -> str:
        if self.overall.value is None:
            return f"How often a model is caught is {self.overall.reason}."
        return (
            f"At p <= {self.cutoff:g}, a model is caught on {_percent(self.overall)} of the "
            f"records it was trained on, and on {_percent(self.overall_false)} of the others."
        )


def records_at_risk(
    records: Records,
    recipe: Recipe,
    *,
    n_models: int = 64,
    delta: float = 0.1,
    beta: float = 0.1,
    features: Features = "logits",
    cutoff: float = 0.01,
    fdr: float = FDR,
    seed: int = 0,
    store: Store | None = None,
    engine: Engine = LOCAL,
    progress: Progress = quiet,
) -> AtRisk:
    """How exposed each record would be in a model trained on records like these.

    Models are trained on complementary random halves of the records, so that each record is in one
    of every pair. A model that was trained with a record is attacked as `GMIA` would a target: the
    models without the record give the null distribution of its loss, and its smoothed p-value
    (sec. 4.4) is compared with the cutoff. The share of these models that are caught is what the
    record has to expect. Each model without the record, against the others without it, tells how
    often that is a mistake.

    Whether a record stands out at all is another question, with an exact answer: had training on
    it no effect, which model of a pair saw it would be a toss of a coin, and the sign of the
    difference of their margins with it. The p-value is that of the signed ranks of the differences
    (Wilcoxon), one-sided, zeros counted against the record; q-values are Benjamini and Hochberg's,
    whose guarantee takes records to be independent or positively dependent.

    What is caught is caught in training sets of half the size; in one of all records a record has
    more neighbors, and is safer as a rule. Records of equal content count as one.

    Args:
        records: the owner's, what a model is to be trained on.
        recipe: how it will be trained.
        n_models: even, at least 4. A record is judged by n_models / 2 models with it, against as
            many without; below 2 / cutoff of these, p-values at the cutoff extrapolate a shape.
        delta: neighbors are records at a cosine distance below it (sec. 4.3).
        beta: neighbors below which a record counts as isolated; all below 1 mean none.
        features: "logits" of all models, stacked, or standardized "inputs".
        cutoff: p-value at which a model is caught, in (0, 1).
        fdr: false discovery rate at which a record is said to stand out, in (0, 1).
        seed: of the halves and of training.
        store: where models are kept; a second call trains nothing.
        engine: where models are trained and asked.
        progress: called with a label, the number done and the total.

    Raises:
        InvalidInput: an odd number of models or fewer than 4, fewer than 4 records, or settings
            that make no sense; what `train_many` raises.

    References: Long et al. 2018, sections 4.2 to 4.4 and 6.2. In the paper references are
    bootstraps of other records; here they are halves of the records themselves, since an owner
    has no others, and asks before there is a target.
    """
    _check(records, n_models, cutoff)
    if not 0 < fdr < 1 or not beta > 0:
        raise InvalidInput(
            f"expected fdr between 0 and 1 and beta above 0, got fdr={fdr} and beta={beta}"
        )
    pool = _halves(recipe, records, n_models, seed, store, engine, progress)
    near = neighborhood(records, pool, delta=delta, features=features, n_train=len(records))
    table = _trials(pool, records, cutoff)
    p_values = _signed_rank(_differences(table))
    low, high = clopper_pearson(table.hits_in, np.where(table.n_out >= FEWEST, table.n_in, 0))
    return AtRisk(
        ids=records.ids,
        y=records.y,
        expected=near.expected,
        nearest=near.nearest,
        distance=near.distance,
        caught=table.caught,
        low=low,
        high=high,
        n_in=table.n_in,
        n_out=table.n_out,
        false=table.hits_out / np.maximum(table.n_out, 1),
        evidence=table.evidence,
        p_values=p_values,
        q_values=benjamini_hochberg(p_values),
        overall=table.over_models(table.inside),
        overall_false=table.over_models(table.outside),
        delta=delta,
        beta=beta,
        cutoff=cutoff,
        fdr=fdr,
    )


# --- leaving the riskiest out ------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """What is left after some records are left out.

    Attributes:
        share: of the records, left out.
        chosen: "riskiest", or "random" for the control; "nobody" where none is.
        n_left_out: how many.
        accuracy: on the test records, of models trained on all that is left; its interval is over
            models, on the same test records.
        change: of that accuracy, from where nobody is left out.
        exposure: how many of the remaining records a model trained with them is caught on.
        false: how many of the remaining records a model trained without them would be caught on.
        n_exposed: remaining records that half of the models with them, or more, are caught on.
        n_newly_exposed: those of them that were not while nobody was left out: the onion has
            another layer, or, as many as in the control, luck.
    """

    share: float
    chosen: str
    n_left_out: int
    accuracy: Estimate
    change: Estimate
    exposure: Estimate
    false: Estimate
    n_exposed: int
    n_newly_exposed: int


@dataclass(frozen=True)
class LeaveOut:
    """What leaving records out costs and buys, one arm for each share and choice.

    Attributes:
        arms: nobody first, then by share, the riskiest before their control.
        cutoff: p-value at which a model is caught.
    """

    arms: tuple[Arm, ...]
    cutoff: float

    def of(self, chosen: str) -> tuple[Arm, ...]:
        """The arms of one choice, by share."""
        return tuple(arm for arm in self.arms if arm.chosen == chosen)

    def __str__(self) -> str:
        rows = [("left out", "", "accuracy", "change", "caught", "exposed", "newly")]
        for arm in self.arms:
            rows.append(
                (
                    f"{arm.n_left_out} ({arm.share:.1%})",
                    arm.chosen,
                    _percent(arm.accuracy),
                    _percent(arm.change) if arm.n_left_out else "",
                    _percent(arm.exposure),
                    str(arm.n_exposed),
                    str(arm.n_newly_exposed) if arm.n_left_out else "",
                )
            )
        return "\n".join(_aligned(rows))


def leave_out(
    records: Records,
    test: Records,
    recipe: Recipe,
    at_risk: AtRisk,
    *,
    shares: Sequence[float] = SHARES,
    n_models: int = 32,
    n_full: int = 8,
    cutoff: float = 0.01,
    seed: int = 0,
    store: Store | None = None,
    engine: Engine = LOCAL,
    progress: Progress = quiet,
) -> LeaveOut:
    """Leave out the riskiest records, and as many random ones, and measure what is left.

    For each arm models are trained anew: `n_full` on all that is left, for the accuracy, and
    `n_models` on halves of it, for the exposure of the records that remain. All of them are other
    models than those that chose the riskiest: measured on the same, the riskiest would look worse
    than they are, and leaving them out better.

    Args:
        records: as in `records_at_risk`.
        test: records that no model is trained on, for the accuracy; those that are among the
            records are left out.
        recipe: how a model is trained.
        at_risk: of the same records; says which are the riskiest.
        shares: of the records to leave out, each in (0, 0.5], beside nobody; rounded to whole
            records.
        n_models: on halves, for each arm: even, at least 4.
        n_full: on all that is left, for each arm: at least 2.
        cutoff: as in `records_at_risk`.
        seed: of training, halves and control; where it is that of `at_risk`, models are others.
        store, engine, progress: as in `records_at_risk`.

    Raises:
        InvalidInput: `at_risk` is of other records, test records are among the records, shares or
            numbers that make no sense; what `train_many` raises.

    References: Long et al. 2018, section 6.2 (the proposal; the paper does not measure it).
    Carlini et al. 2022, The privacy onion effect, for what comes after the first layer.
    """
    _check(records, n_models, cutoff)
    _check_leave_out(records, test, at_risk, shares, n_full)
    # not the models that chose the riskiest, where the seed is the same
    seed = int(np.random.SeedSequence([seed, 62]).generate_state(1)[0] >> 1)
    n, rng = len(records), np.random.default_rng(seed)
    counts = sorted({max(1, round(share * n)) for share in shares if share})
    test = test[~np.isin(test.content_hash(), records.content_hash())]
    luck = rng.permutation(n)
    chosen = [("nobody", luck[:0])]
    for count in counts:
        chosen += [("riskiest", at_risk.order[:count]), ("random", luck[:count])]
    steps = _Steps(progress, len(chosen) * (n_models + n_full))
    records = replace(records, classes=_classes(records, test))
    measured: list[_Measured] = []
    for choice, rows in chosen:
        kept = np.setdiff1d(np.arange(n), rows)
        rest = records[kept]
        halves = _halves(recipe, rest, n_models, seed, store, engine, steps)
        steps.next(n_models)
        everyone = np.ones((n_full, len(rest)), dtype=bool)
        whole = train_many(
            recipe, rest, everyone, seed=seed, engine=engine, store=store, progress=steps
        )
        steps.next(n_full)
        right = whole.signals(correctness, test).mean(axis=1)
        measured.append(_Measured(choice, kept, right, _trials(halves, rest, cutoff)))
    return LeaveOut(tuple(_arm(one, measured[0], n) for one in measured), cutoff)


@dataclass(frozen=True, eq=False)
class _Measured:
    """One arm as it was measured: rows that remain, accuracies (n_full,), and trials."""

    chosen: str
    kept: NDArray[np.int64]
    right: Floats
    trials: _Trials

    def exposed(self, n: int) -> Mask:
        """(n,) of all records, which are caught by half of the models with them."""
        out = np.zeros(n, dtype=bool)
        out[self.kept] = self.trials.caught >= 0.5
        return out


def _arm(one: _Measured, first: _Measured, n: int) -> Arm:
    trials, exposed = one.trials, one.exposed(n)
    return Arm(
        share=1 - len(one.kept) / n,
        chosen=one.chosen,
        n_left_out=n - len(one.kept),
        accuracy=_mean(one.right, 0.0, 1.0),
        change=_change(one.right, first.right),
        exposure=trials.over_models(trials.inside),
        false=trials.over_models(trials.outside),
        n_exposed=int(exposed.sum()),
        n_newly_exposed=int((exposed & ~first.exposed(n)).sum()),
    )


class _Steps:
    """Progress over several calls of `train_many` as one."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, label: str, done: int, total: int) -> None:
        self._progress(label, self._done + done, self._total)

    def next(self, n_models: int) -> None:
        self._done += n_models


# --- what models that know say of models that do not ------------------------------------------


@dataclass(frozen=True, eq=False)
class _Trials:
    """Each model, tried on each record.

    Attributes:
        margins: (k, n) of the models on the records.
        inside, outside: (k, n) which models were trained with a record's content, and without.
        hits: (k, n) whether a model is caught, inside, or would wrongly be, outside.
        evidence: (n,) mean of -log10 p of the models inside.
    """

    margins: Floats
    inside: Mask
    outside: Mask
    hits: Mask
    evidence: Floats

    @property
    def n_in(self) -> Counts:
        return np.asarray(self.inside.sum(axis=0))

    @property
    def n_out(self) -> Counts:
        return np.asarray(self.outside.sum(axis=0))

    @property
    def hits_in(self) -> Counts:
        return np.asarray((self.hits & self.inside).sum(axis=0))

    @property
    def hits_out(self) -> Counts:
        return np.asarray((self.hits & self.outside).sum(axis=0))

    @property
    def caught(self) -> Floats:
        return np.asarray(self.hits_in / np.maximum(self.n_in, 1))

    def over_models(self, side: Mask) -> Estimate:
        """The share of hits on a side, its interval by the spread of the models' own shares."""
        tried = side & (self.n_out >= FEWEST)
        some = tried.any(axis=1)
        if some.sum() < 2:
            reason = f"not measured: hardly a record has {FEWEST} models without it"
            return Estimate(None, None, None, "none", reason=reason)
        shares = (self.hits & tried)[some].sum(axis=1) / tried[some].sum(axis=1)
        return _mean(shares, 0.0, 1.0)


def _trials(pool: Pool[BlackBox], records: Records, cutoff: float) -> _Trials:
    margins = pool.signals(true_class_margin, records)
    inside = trained_on_content(pool, records)
    hits, evidence = np.zeros(inside.shape, dtype=bool), np.zeros(len(records))
    # a p-value at the cutoff to the last digit is at it
    limit = np.log(cutoff) + 1e-12
    for j in range(len(records)):
        within, without = np.flatnonzero(inside[:, j]), np.flatnonzero(~inside[:, j])
        if len(without) < FEWEST:
            continue
        null = margins[without, j]
        if len(within):
            log_p = smooth_log_p_values(margins[within, j], null)
            hits[within, j] = log_p <= limit
            evidence[j] = -log_p.mean() / np.log(10)
        hits[without, j] = _left_out_hits(null, cutoff, limit)
    return _Trials(margins, inside, ~inside, hits, evidence)


def _left_out_hits(null: Floats, cutoff: float, limit: float) -> Mask:
    """(k,) whether each margin would be caught by the others.

    The i-th largest, from 0, has i of k - 1 others above it or at it, so that its p-value is at
    least i / k: only the first few can be caught.
    """
    out = np.zeros(len(null), dtype=bool)
    for i in np.argsort(-null, kind="stable")[: int(cutoff * len(null) + 1e-9) + 1]:
        out[i] = smooth_log_p_values(null[i : i + 1], np.delete(null, i))[0] <= limit
    return out


def _differences(trials: _Trials) -> Floats:
    """(k / 2, n) margins of a pair's model with the record less that without; 0 where neither."""
    even, odd = trials.inside[::2], trials.inside[1::2]
    sign = even.astype(np.float64) - odd.astype(np.float64)
    return np.asarray(sign * (trials.margins[::2] - trials.margins[1::2]))


def _signed_rank(differences: Floats) -> Floats:
    """(n,) exact one-sided p-values of differences (m, n) whose signs are tosses under the null.

    Ties get ranks by their place, which the signs do not decide, and zeros count as negative:
    the p-values are valid whatever ties there are.
    """
    m = len(differences)
    ranks = np.empty(differences.shape, dtype=np.int64)
    order = np.argsort(np.abs(differences), axis=0, kind="stable")
    np.put_along_axis(ranks, order, np.arange(1, m + 1)[:, None], axis=0)
    sums = (ranks * (differences > 0)).sum(axis=0)
    null = np.zeros(m * (m + 1) // 2 + 1)
    null[0] = 1.0
    for rank in range(1, m + 1):
        null[rank:] += null[:-rank].copy()
        null /= 2
    tail = np.minimum(np.cumsum(null[::-1])[::-1], 1.0)
    return np.asarray(tail[sums])


# --- small things ------------------------------------------------------------------------------


def _halves(
    recipe: Recipe,
    records: Records,
    n_models: int,
    seed: int,
    store: Store | None,
    engine: Engine,
    progress: Progress,
) -> Pool[BlackBox]:
    member = half_and_half(n_models, len(records), seed)
    pool = train_many(
        recipe, records, member, seed=seed, engine=engine, store=store, progress=progress
    )
    return pool


def _mean(values: Floats, least: float, most: float) -> Estimate:
    """A mean over models with its t interval, cut off at what it can be."""
    n, mean = len(values), float(values.mean())
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, max(mean - half, least), min(mean + half, most), f"t over {n} models")


def _change(values: Floats, before: Floats) -> Estimate:
    """The difference of two means over models with Welch's t interval."""
    mean = float(values.mean() - before.mean())
    a, b = values.var(ddof=1) / len(values), before.var(ddof=1) / len(before)
    if a + b == 0:
        return Estimate(mean, mean, mean, "Welch's t over models")
    freedom = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(before) - 1))
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(a + b))
    return Estimate(mean, mean - half, mean + half, "Welch's t over models")


def _check(records: Records, n_models: int, cutoff: float) -> None:
    if n_models < 4 or n_models % 2:
        raise InvalidInput(
            f"expected an even number of models, at least 4, got {n_models}; ask for "
            f"{max(4, _even(n_models))}"
        )
    if len(records) < 4:
        raise InvalidInput(
            f"expected at least 4 records, got {len(records)}; halves of so few train no model"
        )
    if not 0 < cutoff < 1:
        raise InvalidInput(f"expected a cutoff between 0 and 1, got {cutoff}")


def _check_leave_out(
    records: Records, test: Records, at_risk: AtRisk, shares: Sequence[float], n_full: int
) -> None:
    if not np.array_equal(at_risk.ids, records.ids):
        raise InvalidInput(
            f"expected at_risk of these {len(records)} records, got that of {len(at_risk)} others, "
            "or of these in another order; call records_at_risk on them"
        )
    if not len(test):
        raise InvalidInput("expected test records, got none; keep some out of training")
    if np.isin(test.content_hash(), records.content_hash()).all():
        raise InvalidInput(
            "expected test records that no model is trained on, got none that is not among the "
            "records; keep some out of training"
        )
    wrong = [share for share in shares if not 0 <= share <= 0.5]
    if wrong or not len(shares):
        raise InvalidInput(
            f"expected shares from 0 to 0.5, got {wrong[0] if wrong else 'none'}; 0.01 is one in a "
            "hundred"
        )
    if n_full < 2:
        raise InvalidInput(f"expected n_full of at least 2 models, got {n_full}")


def _classes(records: Records, test: Records) -> tuple[str, ...]:
    n_classes = max(records.n_classes, test.n_classes)
    return records.classes or tuple(str(c) for c in range(n_classes))


def _even(count: float) -> int:
    return 2 * int(np.ceil(count / 2))


def _percent(value: Estimate) -> str:
    if value.value is None:
        return "not measured"
    mean, low, high = (f"{100 * (v or 0.0):.1f}" for v in (value.value, value.low, value.high))
    return f"{mean}% ({low} to {high})"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
