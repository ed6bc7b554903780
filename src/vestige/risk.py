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

from vestige.attacks.gmia import GMIA, Features, neighborhood, smooth_log_p_values
from vestige.errors import InvalidInput
from vestige.metrics import Estimate, benjamini_hochberg, clopper_pearson
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.signals import correctness, true_class_margin
from vestige.training.engines import Engine, Local
from vestige.training.many import train_many
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

    Records of equal content have equal rows, and count as one wherever records are counted.

    Attributes:
        ids: (n,) of the records.
        y: (n,) their labels.
        content: (n,) hashes of input and label, equal for copies.
        expected: (n,) E[N_n] in a training set of all these records: the neighbors it has in it,
            its own copies not among them.
        nearest: (n, m) ids of the nearest others, nearest first, m <= 5: those that make it safe.
        distance: (n, m) their cosine distances, in [0, 2]; below `delta` they are neighbors.
        caught: (n,) share of the models trained with the record that are caught, smoothed p-value
            <= cutoff against the models without it; 0 where it is not resolvable.
        low, high: (n,) its Clopper-Pearson interval, 95%, over models on the same other records.
        resolvable: (n,) whether a p-value at the cutoff could be had. It could not where there are
            too few models without the record, or where all of these answer it alike and some with
            it are surer: then p is 1 / (n_out + 1) however sure they are.
        n_in, n_out: (n,) models that were trained with the record's content, and without; both are
            the number of pairs.
        false: (n,) share of the models without it that would be caught, each against the others.
        evidence: (n,) mean of -log10 p over the models trained with it; breaks ties of `caught`.
        p_values: (n,) of "training on it does not raise its margin"; signed ranks over the pairs
            of halves.
        q_values: (n,) by Benjamini & Hochberg, over contents: the share of mistakes to expect
            among this record and all with a lower one, if called to stand out.
        overall: share of its own records, of those that are resolvable, that a model is caught on,
            the mean over models and its interval by their spread. This interval, as `low` and
            `high`, is for these very models without the record: with others drawn it would be wider
            by half.
        overall_false: the mean of `false` likewise: what `cutoff` is in truth.
        delta, beta, cutoff, fdr: as asked.
    """

    ids: NDArray[Any]
    y: NDArray[np.int64]
    content: NDArray[np.uint64]
    expected: Floats
    nearest: NDArray[Any]
    distance: Floats
    caught: Floats
    low: Floats
    high: Floats
    resolvable: Mask
    n_in: Counts
    n_out: Counts
    false: Floats
    evidence: Floats
    p_values: Floats
    q_values: Floats
    overall: Estimate
    overall_false: Estimate
    delta: float
    beta: float | None
    cutoff: float
    fdr: float = FDR

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def isolated(self) -> Mask:
        """(n,) fewer than beta neighbors: what the paper selects (sec. 4.3); all without a beta."""
        if self.beta is None:
            return np.ones(len(self), dtype=bool)
        return np.asarray(self.expected < self.beta)

    @property
    def stands_out(self) -> Mask:
        """(n,) models trained with it answer it otherwise, at a false discovery rate of `fdr`."""
        return np.asarray(self.q_values <= self.fdr)

    @property
    def distinct(self) -> Mask:
        """(n,) the first of its content."""
        out = np.zeros(len(self), dtype=bool)
        out[_distinct(self.content)[0]] = True
        return out

    @property
    def n_together(self) -> int:
        """Records that must share the smallest p-value, 2^-m of m pairs, for any to stand out.

        Above 1, "nobody stands out" says nothing of a record alone; above their number, nothing.
        """
        return max(1, int(np.ceil(self.distinct.sum() * self._smallest / self.fdr - 1e-9)))

    @property
    def order(self) -> NDArray[np.intp]:
        """(n,) rows, the riskiest first: by `caught`, then `evidence`, copies together.

        Those that are not resolvable come last; where no record is caught at all, `evidence`
        decides alone.
        """
        last = ~self.resolvable & self.caught.any()
        return np.lexsort((_distinct(self.content)[1], -self.evidence, -self.caught, last))

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
        k = int(self.n_out[0])
        return _extrapolated(k, self.cutoff) if self.resolvable.any() else ""

    @property
    def _pairs(self) -> int:
        return int(self.n_in[0])

    @property
    def _smallest(self) -> float:
        return float(0.5**self._pairs)

    def __str__(self) -> str:
        rows = [("id", "label", "neighbors", "nearest (distance)", "caught", "q")]
        order = self.order
        for i in order[self.distinct[order]][:SHOWN]:
            near = f"{self.nearest[i][0]} ({self.distance[i][0]:.2f})" if self.nearest.size else "-"
            copies = int((self.content == self.content[i]).sum()) - 1
            caught = f"{self.caught[i]:.0%} ({self.low[i]:.0%} to {self.high[i]:.0%})"
            rows.append(
                (
                    f"{self.ids[i]} (x{copies + 1})" if copies else str(self.ids[i]),
                    str(self.y[i]),
                    f"{self.expected[i]:.0f}",
                    near,
                    caught if self.resolvable[i] else "not resolvable",
                    f"{self.q_values[i]:.2g}",
                )
            )
        said = f"{self._standing_out()} {self._isolated()}{self._caught_overall()}"
        return "\n".join(
            [said, *filter(None, [self.note, self._unresolved()]), "", *_aligned(rows)]
        )

    def _standing_out(self) -> str:
        n, n_out = int(self.distinct.sum()), int((self.stands_out & self.distinct).sum())
        records = f"{n:,} records" if n == len(self) else f"{n:,} distinct records"
        count = f"{n_out:,} of {records} stand out (false discovery rate {self.fdr:.0%})."
        if self.n_together == 1:
            return count
        m, alone = self._pairs, 2 * int(np.ceil(np.log2(n / self.fdr) - 1e-9))
        least = f"with {m} pairs of models the smallest p-value is 2^-{m}"
        if n_out:
            return f"{count} One alone could not: {least}; for that ask for n_models={alone}."
        share = (
            f"which {self.n_together:,} would have to share"
            if self.n_together <= n
            else "too large for any number of them"
        )
        return (
            f"Which of {records} stand out (false discovery rate {self.fdr:.0%}) is not "
            f"resolvable: {least}, {share}; for one to stand out alone ask for n_models={alone}."
        )

    def _isolated(self) -> str:
        if self.beta is None:
            return ""
        count = int((self.isolated & self.distinct).sum())
        have = "has" if count == 1 else "have"
        return f"{count:,} {have} fewer than {self.beta:g} neighbors. "

    def _caught_overall(self) -> str:
        if self.overall.value is None:
            return f"How often a model is caught is {self.overall.reason}."
        return (
            f"At p <= {self.cutoff:g}, a model is caught on {_percent(self.overall)} of the "
            f"records it was trained on, and on {_percent(self.overall_false)} of the others."
        )

    def _unresolved(self) -> str:
        """Who cannot be judged by so many models, and how many it takes; or ""."""
        rows = self.order[~self.resolvable[self.order]]
        rows = rows[self.distinct[rows]]
        if not len(rows) or self._pairs < FEWEST:
            return ""
        named = ", ".join(str(i) for i in self.ids[rows[:SHOWN]])
        more = ", ..." if len(rows) > SHOWN else ""
        verb = "is" if len(rows) == 1 else "are"
        last = " and listed last" if self.caught.any() else ""
        return (
            f"{len(rows):,} {verb} not resolvable{last} ({named}{more}): "
            f"{_alike(self._pairs, self.cutoff)}."
        )


def records_at_risk(
    records: Records,
    recipe: Recipe,
    *,
    n_models: int = 64,
    delta: float = 0.1,
    beta: float | None = 0.1,
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
    more neighbors, and is safer as a rule. Records of equal content count as one: all copies are in
    the same half, no copy is a neighbor of another, and each content is one hypothesis.

    Args:
        records: the owner's, what a model is to be trained on.
        recipe: how it will be trained.
        n_models: even, at least 4. A record is judged by n_models / 2 models with it, against as
            many without; below 2 / cutoff of these, p-values at the cutoff extrapolate a shape. For
            a record to stand out alone among n it takes 2 log2(n / fdr).
        delta: neighbors are records at a cosine distance below it (sec. 4.3).
        beta: neighbors below which a record counts as isolated; all below 1 mean none, and None
            counts all records.
        features: "logits" of all models, stacked, or standardized "inputs".
        cutoff: p-value at which a model is caught, in (0, 1).
        fdr: false discovery rate at which a record is said to stand out, in (0, 1).
        seed: of the halves and of training.
        store: where models are kept; a second call trains nothing.
        engine: where models are trained and asked.
        progress: called with a label, the number done and the total.

    Raises:
        InvalidInput: an odd number of models or fewer than 4, fewer than 4 distinct records, NaN or
            infinity in them, or settings that make no sense; what `train_many` raises.

    References: Long et al. 2018, sections 4.2 to 4.4 and 6.2. In the paper references are
    bootstraps of other records; here they are halves of the records themselves, since an owner
    has no others, and asks before there is a target.
    """
    _check(records, recipe, n_models, cutoff, seed)
    _number("delta", delta)
    _number("fdr", fdr)
    if beta is not None:
        _number("beta", beta)
    # what it refuses is refused before models are trained
    GMIA(delta=delta, beta=beta, features=features)
    if not 0 < fdr < 1:
        raise InvalidInput(f"expected fdr between 0 and 1, got {fdr}")
    content = records.content_hash()
    pool = _halves(recipe, records, content, n_models, seed, store, engine, progress)
    n, of = len(pool.records), _distinct(content)[1]
    near = neighborhood(pool.records, pool, delta=delta, features=features, n_train=n)
    table = _trials(pool, cutoff)
    p_values = _signed_rank(_differences(table))
    low, high = clopper_pearson(table.hits_in, np.where(table.resolvable, table.n_in, 0))
    return AtRisk(
        ids=records.ids,
        y=records.y,
        content=content,
        expected=near.expected[of],
        nearest=near.nearest[of],
        # single precision may put equal answers at -1e-7
        distance=np.clip(near.distance, 0.0, 2.0)[of],
        caught=table.caught[of],
        low=low[of],
        high=high[of],
        resolvable=table.resolvable[of],
        n_in=table.n_in[of],
        n_out=table.n_out[of],
        false=(table.hits_out / table.n_out)[of],
        evidence=table.evidence[of],
        p_values=p_values[of],
        q_values=benjamini_hochberg(p_values)[of],
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
    """What is left after some records are left out; records of equal content count as one.

    Attributes:
        share: of the records, left out.
        chosen: "riskiest", or "random" for the control; "nobody" where none is.
        n_left_out: how many, each with all of its copies.
        accuracy: on the test records, of models trained on all that is left; its interval is over
            models, on the same test records, and absent where they are all alike.
        change: of that accuracy, from where nobody is left out; in [-1, 1].
        exposure: how many of the remaining records a model trained with them is caught on.
        false: how many of the remaining records a model trained without them would be caught on.
        n_exposed: remaining records that half of the models with them, or more, are caught on; None
            where that was not measured.
        n_newly_exposed: those of them that were not while nobody was left out: the onion has
            another layer, or, as many as in the control, luck. None where either was not measured.
        n_unresolved: remaining records that are not resolvable, see `AtRisk`; nowhere counted.
    """

    share: float
    chosen: str
    n_left_out: int
    accuracy: Estimate
    change: Estimate
    exposure: Estimate
    false: Estimate
    n_exposed: int | None
    n_newly_exposed: int | None
    n_unresolved: int


@dataclass(frozen=True)
class LeaveOut:
    """What leaving records out costs and buys, one arm for each share and choice.

    Attributes:
        arms: nobody first, then by share, the riskiest before their control.
        cutoff: p-value at which a model is caught.
        n_models: on halves, for each arm.
        n_test: test records that the accuracy is of.
        n_dropped: test records that are among the records, and were not asked.
    """

    arms: tuple[Arm, ...]
    cutoff: float
    n_models: int
    n_test: int
    n_dropped: int

    def of(self, chosen: str) -> tuple[Arm, ...]:
        """The arms of one choice, by share."""
        return tuple(arm for arm in self.arms if arm.chosen == chosen)

    @property
    def note(self) -> str:
        """What is to be known of the table: p-values, records that are not counted; or ""."""
        said: list[str] = []
        k = self.n_models // 2
        if any(arm.exposure.value is not None for arm in self.arms):
            said += filter(None, [_extrapolated(k, self.cutoff)])
        else:
            said.append(f"What is caught is {self.arms[0].exposure.reason}.")
        most = max(arm.n_unresolved for arm in self.arms)
        if most and k >= FEWEST:
            said.append(
                f"Up to {most:,} of an arm's records are not resolvable and not counted: "
                f"{_alike(k, self.cutoff)}."
            )
        if self.n_dropped:
            said.append(
                f"{self.n_dropped:,} of {self.n_dropped + self.n_test:,} test records are among "
                "the records, and do not count for the accuracy."
            )
        return "\n".join(said)

    def __str__(self) -> str:
        rows = [("left out", "", "accuracy", "change", "caught", "false", "exposed", "newly")]
        for arm in self.arms:
            rows.append(
                (
                    f"{arm.n_left_out} ({arm.share:.1%})",
                    arm.chosen,
                    _percent(arm.accuracy),
                    _percent(arm.change) if arm.n_left_out else "",
                    _percent(arm.exposure),
                    _percent(arm.false),
                    _count(arm.n_exposed),
                    _count(arm.n_newly_exposed) if arm.n_left_out else "",
                )
            )
        return "\n".join([*_aligned(rows), *(["", self.note] if self.note else [])])


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
            records are dropped, and counted as `n_dropped`.
        recipe: how a model is trained.
        at_risk: of the same records, by their content; says which are the riskiest.
        shares: of the records to leave out, each in (0, 0.5], beside nobody; rounded to whole
            records, at least one, each of which goes with all of its copies.
        n_models: on halves, for each arm: even, at least 4.
        n_full: on all that is left, for each arm: at least 2.
        cutoff: as in `records_at_risk`.
        seed: of training, halves and control; where it is that of `at_risk`, models are others.
        store, engine, progress: as in `records_at_risk`.

    Raises:
        InvalidInput: `at_risk` is of other records, all test records are among the records, NaN or
            infinity in either, shares or numbers that make no sense; what `train_many` raises.

    References: Long et al. 2018, section 6.2 (the proposal; the paper does not measure it).
    Carlini et al. 2022, The privacy onion effect, for what comes after the first layer.
    """
    _check(records, recipe, n_models, cutoff, seed)
    _check_leave_out(records, test, at_risk, shares, n_full)
    known = _among(test, records)
    if known.all():
        raise InvalidInput(
            "expected test records that no model is trained on, got none that is not among the "
            "records; keep some out of training"
        )
    # not the models that chose the riskiest, where the seed is the same
    seed = int(np.random.SeedSequence([seed, 62]).generate_state(1)[0] >> 1)
    content, rng = records.content_hash(), np.random.default_rng(seed)
    first, of = _distinct(content)
    n = len(first)
    counts = sorted({max(1, round(share * n)) for share in shares if share})
    test = test[~known]
    luck = rng.permutation(n)
    risky = of[at_risk.order[at_risk.distinct[at_risk.order]]]
    chosen = [("nobody", luck[:0])]
    for count in counts:
        chosen += [("riskiest", risky[:count]), ("random", luck[:count])]
    steps = _Steps(progress, len(chosen) * (n_models + n_full))
    records = replace(records, classes=_classes(records, test))
    measured: list[_Measured] = []
    for choice, gone in chosen:
        rows = np.flatnonzero(~np.isin(of, gone))
        rest = records[rows]
        halves = _halves(recipe, rest, content[rows], n_models, seed, store, engine, steps)
        steps.next(n_models)
        everyone = np.ones((n_full, len(rest)), dtype=bool)
        whole = train_many(
            recipe, rest, everyone, seed=seed, engine=engine, store=store, progress=steps
        )
        steps.next(n_full)
        right = whole.signals(correctness, test).mean(axis=1)
        kept = np.setdiff1d(np.arange(n), gone)
        measured.append(_Measured(choice, kept, right, _trials(halves, cutoff)))
    arms = tuple(_arm(one, measured[0], n) for one in measured)
    return LeaveOut(arms, cutoff, n_models, len(test), int(known.sum()))


@dataclass(frozen=True, eq=False)
class _Measured:
    """One arm as it was measured: contents that remain, accuracies (n_full,), and trials."""

    chosen: str
    kept: NDArray[np.int64]
    right: Floats
    trials: _Trials

    def exposed(self, n: int) -> Mask:
        """(n,) of all contents, which are caught by half of the models with them."""
        out = np.zeros(n, dtype=bool)
        out[self.kept] = self.trials.resolvable & (self.trials.caught >= 0.5)
        return out

    def resolved(self, n: int) -> Mask:
        """(n,) of all contents, which remain and are resolvable."""
        out = np.zeros(n, dtype=bool)
        out[self.kept] = self.trials.resolvable
        return out


def _arm(one: _Measured, first: _Measured, n: int) -> Arm:
    trials, exposed = one.trials, one.exposed(n)
    some, before = trials.resolvable.any(), first.resolved(n)
    newly = exposed & before & ~first.exposed(n)
    nothing = Estimate(0.0, 0.0, 0.0, "with itself")
    return Arm(
        share=1 - len(one.kept) / n,
        chosen=one.chosen,
        n_left_out=n - len(one.kept),
        accuracy=_mean(one.right, 0.0, 1.0),
        change=nothing if one is first else _change(one.right, first.right),
        exposure=trials.over_models(trials.inside),
        false=trials.over_models(trials.outside),
        n_exposed=int(exposed.sum()) if some else None,
        n_newly_exposed=int(newly.sum()) if some and before.any() else None,
        n_unresolved=int((~trials.resolvable).sum()),
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
        inside: (k, n) which models were trained with a record.
        hits: (k, n) whether a model is caught, inside, or would wrongly be, outside.
        evidence: (n,) mean of -log10 p of the models inside.
        resolvable: (n,) as in `AtRisk`; where not, there are no hits.
    """

    margins: Floats
    inside: Mask
    hits: Mask
    evidence: Floats
    resolvable: Mask

    @property
    def outside(self) -> Mask:
        return ~self.inside

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
        tried = side & self.resolvable
        some = tried.any(axis=1)
        if some.sum() < 2:
            k = int(self.n_out.max())
            reason = (
                f"not measured: a null distribution takes {FEWEST} models without a record, and "
                f"there are {k}; ask for n_models={2 * FEWEST}"
                if k < FEWEST
                else "not measured: hardly a record is resolvable"
            )
            return Estimate(None, None, None, "none", reason=reason)
        shares = (self.hits & tried)[some].sum(axis=1) / tried[some].sum(axis=1)
        return _mean(shares, 0.0, 1.0)


def _trials(pool: Pool[BlackBox], cutoff: float) -> _Trials:
    """All of a pool's models on all of its records, which are distinct."""
    margins, inside = pool.signals(true_class_margin, pool.records), pool.member
    n = len(pool.records)
    hits, evidence = np.zeros(inside.shape, dtype=bool), np.zeros(n)
    resolvable = np.zeros(n, dtype=bool)
    # a p-value at the cutoff to the last digit is at it
    limit = np.log(cutoff) + 1e-12
    for j in range(n):
        within, without = np.flatnonzero(inside[:, j]), np.flatnonzero(~inside[:, j])
        if len(without) < 2 or not len(within):
            continue
        null = margins[without, j]
        log_p = smooth_log_p_values(margins[within, j], null)
        evidence[j] = 0.0 - log_p.mean() / np.log(10)
        if len(without) < FEWEST or not _resolves(null, log_p, limit):
            continue
        resolvable[j] = True
        hits[within, j] = log_p <= limit
        hits[without, j] = _left_out_hits(null, cutoff, limit)
    return _Trials(margins, inside, hits, evidence, resolvable)


def _resolves(null: Floats, log_p: Floats, limit: float) -> bool:
    """Whether margins beyond the null's have a p-value at the limit, or there are none beyond it.

    A null without spread says nothing of what lies beyond it but that it is beyond: p is
    1 / (k + 1). Where no model with the record is surer than those without, p is 1 whatever k.
    """
    loss = np.logaddexp(0.0, -null)
    surer = (log_p < 0).any()
    return bool(loss.min() < loss.max() or not surer or -np.log(len(null) + 1) <= limit)


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
    """(k / 2, n) margins of a pair's model with the record less that without."""
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


def _distinct(content: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(d,) rows of the first of each content, and (n,) whose copy each record is, among these."""
    _, first, of = np.unique(content, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[of]


def _halves(
    recipe: Recipe,
    records: Records,
    content: NDArray[np.uint64],
    n_models: int,
    seed: int,
    store: Store | None,
    engine: Engine,
    progress: Progress,
) -> Pool[BlackBox]:
    """Models on halves of the contents; the pool's records are one of each content."""
    first, of = _distinct(content)
    member = _half_and_half(np.bincount(of), n_models, seed)
    pool = train_many(
        recipe, records, member[:, of], seed=seed, engine=engine, store=store, progress=progress
    )
    return replace(pool, records=records[first], member=member)


def _half_and_half(copies: Counts, n_models: int, seed: int) -> Mask:
    """(n_models, n) complementary halves of n contents: each is in exactly one model of each pair.

    Contents of equally many copies are halved together, so that training sets have two sizes at
    most and are trained in stacks; those left over are dealt out by turns, from a side that is
    tossed. Without copies, an even number has the halves of `vestige.half_and_half`.
    """
    member = np.zeros((n_models, len(copies)), dtype=bool)
    for pair in range(n_models // 2):
        rng = np.random.default_rng([seed, pair])
        order = rng.permutation(len(copies))
        left = []
        for times in np.unique(copies)[::-1]:
            alike = order[copies[order] == times]
            half = len(alike) // 2
            member[2 * pair, alike[:half]] = True
            left += alike[2 * half :].tolist()
        member[2 * pair, left[int(rng.integers(2)) :: 2]] = True
        member[2 * pair + 1] = ~member[2 * pair]
    return member


def _among(test: Records, records: Records) -> Mask:
    """(len(test),) which have the content of a record, which may be kept in another float."""
    floats = [side.x.dtype for side in (test, records) if side.x.dtype.kind == "f"]
    precision = min(floats, key=lambda kind: kind.itemsize, default=np.dtype(np.float64))
    return np.isin(test.content_hash(precision), records.content_hash(precision))


def _extrapolated(k: int, cutoff: float) -> str:
    """That p-values at the cutoff are not counted among k models; or ""."""
    if cutoff >= 2 / (k + 1):
        return ""
    enough = _even(2 * (2 / cutoff - 1))
    return (
        f"With {k} models without a record, p-values below {1 / (k + 1):.2g} go on along a "
        f"normal shape; to count them at {cutoff:g}, ask for n_models={enough}."
    )


def _alike(k: int, cutoff: float) -> str:
    """Why a record is not resolvable by k models without it, and how many resolve it."""
    return (
        "models without such a record all answer alike, so that p is not below "
        f"1/{k + 1} however sure one with it is; ask for n_models="
        f"{2 * int(np.ceil(1 / cutoff - 1 - 1e-9))}"
    )


def _mean(values: Floats, least: float, most: float) -> Estimate:
    """A mean over models with its t interval, cut off at what it can be; none without a spread."""
    n, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1))
    if not np.ptp(values):
        return Estimate(mean, None, None, f"none: {n} models alike")
    half = float(stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n))
    return Estimate(mean, max(mean - half, least), min(mean + half, most), f"t over {n} models")


def _change(values: Floats, before: Floats) -> Estimate:
    """The difference of two mean shares over models with Welch's t interval, within [-1, 1]."""
    mean = float(values.mean() - before.mean())
    if not (np.ptp(values) or np.ptp(before)):
        return Estimate(mean, None, None, "none: models alike")
    a, b = values.var(ddof=1) / len(values), before.var(ddof=1) / len(before)
    freedom = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(before) - 1))
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(a + b))
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0), "Welch's t over models")


def _check(records: Records, recipe: Recipe, n_models: int, cutoff: float, seed: int) -> None:
    _check_records("records", records)
    if not all(callable(getattr(recipe, name, None)) for name in ("fit", "key")):
        raise InvalidInput(
            f"expected a recipe, such as a vs.TorchRecipe, got {type(recipe).__name__}; say how a "
            "model is trained"
        )
    _whole("n_models", n_models)
    if n_models < 4 or n_models % 2:
        raise InvalidInput(
            f"expected an even number of models, at least 4, got {n_models}; ask for "
            f"{max(4, _even(n_models))}"
        )
    if len(records) < 4:
        raise InvalidInput(
            f"expected at least 4 records, got {len(records)}; halves of so few train no model"
        )
    n = len(np.unique(records.content_hash()))
    if n < 4:
        raise InvalidInput(
            f"expected at least 4 distinct records, got {n} among {len(records)}; copies of a "
            "record count as one"
        )
    _number("cutoff", cutoff)
    if not 0 < cutoff < 1:
        raise InvalidInput(f"expected a cutoff between 0 and 1, got {cutoff}")
    _whole("seed", seed)
    if seed < 0:
        raise InvalidInput(f"expected a seed from 0, got {seed}; choose another")


def _check_records(name: str, records: Records) -> None:
    if not isinstance(records, Records):
        raise InvalidInput(
            f"expected {name} as Records, got {type(records).__name__}; make them with "
            "vs.Records.from_arrays(x, y)"
        )
    if records.x.dtype.kind != "f":
        return
    bad = sum(
        int((~np.isfinite(records.x[part]).reshape(part.stop - part.start, -1).all(axis=1)).sum())
        for part in records.chunks()
    )
    if bad:
        raise InvalidInput(
            f"expected finite inputs, got NaN or infinity in {bad} {name}; impute or drop them"
        )


def _check_leave_out(
    records: Records, test: Records, at_risk: AtRisk, shares: Sequence[float], n_full: int
) -> None:
    if not isinstance(at_risk, AtRisk):
        raise InvalidInput(
            f"expected at_risk as records_at_risk returns it, got {type(at_risk).__name__}; call "
            "it on these records"
        )
    if not np.array_equal(at_risk.content, records.content_hash()):
        raise InvalidInput(
            f"expected at_risk of these {len(records)} records, got that of {len(at_risk)} others, "
            "or of these in another order; call records_at_risk on them"
        )
    _check_records("test records", test)
    if not len(test):
        raise InvalidInput("expected test records, got none; keep some out of training")
    if not isinstance(shares, Sequence | np.ndarray):
        raise InvalidInput(f"expected several shares, got {shares!r}; one is shares=(0.01,)")
    for share in shares:
        _number("a share", share)
    wrong = [share for share in shares if not 0 <= share <= 0.5]
    if wrong or not len(shares):
        raise InvalidInput(
            f"expected shares from 0 to 0.5, got {wrong[0] if wrong else 'none'}; 0.01 is one in a "
            "hundred"
        )
    _whole("n_full", n_full)
    if n_full < 2:
        raise InvalidInput(f"expected n_full of at least 2 models, got {n_full}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidInput(f"expected {name} as a number, got {value!r}; give one")


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidInput(f"expected {name} as a whole number, got {value!r}; give one")


def _classes(records: Records, test: Records) -> tuple[str, ...]:
    n_classes = max(records.n_classes, test.n_classes)
    return records.classes or tuple(str(c) for c in range(n_classes))


def _even(count: float) -> int:
    return 2 * int(np.ceil(count / 2))


def _percent(value: Estimate) -> str:
    if value.value is None:
        return "not measured"
    if value.low is None or value.high is None:
        return f"{_hundredths(value.value)}% (models alike)"
    low, high = _hundredths(value.low), _hundredths(value.high)
    return f"{_hundredths(value.value)}% ({low} to {high})"


def _hundredths(share: float) -> str:
    # adding 0.0 turns -0.0 into 0.0
    return f"{round(100 * share, 1) + 0.0:.1f}"


def _count(value: int | None) -> str:
    return "not measured" if value is None else str(value)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
