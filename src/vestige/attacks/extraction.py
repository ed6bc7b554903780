"""How much of a model its answers give away: a surrogate trained on queries alone.

Tramer, Zhang, Juels, Reiter, Ristenpart. Stealing machine learning models via prediction APIs.
USENIX Security 2016. https://arxiv.org/abs/1609.02943
Jagielski, Carlini, Berthelot, Kurakin, Papernot. High accuracy and high fidelity extraction of
neural networks. USENIX Security 2020. https://arxiv.org/abs/1909.01838
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.metrics import Estimate, rate
from vestige.models import BlackBox
from vestige.progress import Progress, quiet
from vestige.records import Records, as_inputs
from vestige.training import Batch, Recipe, TorchRecipe, cross_entropy, fit

__all__ = ["Answers", "Extraction", "ExtractionReport", "budget_curve"]

Floats = NDArray[np.float64]
Answers = Literal["labels", "top1", "probabilities"]

_RESAMPLES = 1000
_LEARNED = 0.8
_NO_TEST = "no test records were given; pass test=, records that are not among the queries"


@dataclass(frozen=True, eq=False)
class ExtractionReport:
    """A surrogate and what it is worth; S is the surrogate, O the target.

    A thief of the model wants accuracy, a scout for further attacks wants fidelity. They are
    bound to each other on the same records: accuracy - target_accuracy <= 1 - fidelity.

    Attributes:
        surrogate: the model trained on the target's answers.
        answers: what the target showed: "labels", "top1" or "probabilities".
        n_queries: what the target counted while the attack asked; the evaluation is not in it.
        n_test: test records that were not among the queries, on which the rates below are measured.
        accuracy: P[S(x) = y] on them.
        target_accuracy: P[O(x) = y] on them.
        fidelity: P[S(x) = O(x)] on them, argmax against argmax.
        total_variation: mean of sum |S_c(x) - O_c(x)| / 2 on them, where the answers were
            probabilities; else its value is None.
        agreement: P[S(x) = O(x)] on the queries themselves: how well the answers were learned.
            It is not fidelity, which is measured on records that were not asked.
    """

    surrogate: BlackBox = field(repr=False)
    answers: Answers
    n_queries: int
    n_test: int
    accuracy: Estimate
    target_accuracy: Estimate
    fidelity: Estimate
    total_variation: Estimate
    agreement: Estimate

    def __str__(self) -> str:
        rates = {
            "accuracy": self.accuracy,
            "the target's accuracy": self.target_accuracy,
            "fidelity": self.fidelity,
            "total variation": self.total_variation,
            "agreement on the queries": self.agreement,
        }
        lines = [f"{name}: {value}" for name, value in rates.items()]
        asked = f"A surrogate from {self.answers} of {self.n_queries:,} queries"
        if (self.agreement.high or 0.0) < _LEARNED:
            lines.append(
                "It has not learned the answers that it was given: train it longer, or otherwise, "
                "before reading anything into the rest."
            )
        return "\n".join([f"{asked}, tested on {self.n_test:,} other records", *lines])


class _Asked(NamedTuple):
    """Queries in the order in which they are spent, with the target's answers."""

    x: Any
    shown: Floats
    n_queries: int


class _Exam(NamedTuple):
    """Test records that are not among the queries, with the target's answers."""

    records: Records
    shown: Floats


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Train a surrogate on a target's answers to unlabeled queries.

    Answers are taken as shown and scaled to sum 1, so that a target behind a filter can be asked.
    "labels" trains on the most probable class. "top1" knows that class and its probability p, at
    least 1 / classes, and nothing of how 1 - p is spread over the others. "probabilities" trains on
    the whole vector.

    A torch recipe minimizes the cross-entropy between vector and answer, which is their
    Kullback-Leibler divergence up to a constant (for "top1", that of the two probabilities "this
    class" and "another"); its own `loss` is used with labels only. Any other recipe is fitted on
    `copies` of each query, shared out over the classes as the vector says (the largest remainders
    get the copies left over), since not every classifier takes weights; for "top1", 1 - p is then
    spread evenly: an assumption, since the target does not say.

    Args:
        recipe: how the surrogate is trained; it need not be the target's.
        answers: what is read off an answer.
        budget: queries at most; None asks about all. The queries of a smaller budget are among
            those of a larger one, for one seed.
        copies: of a query, for recipes that are not torch.
        seed: of the choice of queries, of the training and of the bootstrap.

    References: Tramer et al. 2016; accuracy and fidelity as in Jagielski et al. 2020, section 3.
    """

    recipe: Recipe
    answers: Answers = "probabilities"
    budget: int | None = None
    copies: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answers not in ("labels", "top1", "probabilities"):
            raise InvalidInput(
                f'expected answers "labels", "top1" or "probabilities", got {self.answers!r}'
            )
        if self.budget is not None and self.budget < 1:
            raise InvalidInput(f"expected a budget of at least one query, got {self.budget}")
        if self.copies < 2 or self.seed < 0:
            raise InvalidInput(
                f"expected copies >= 2 and seed >= 0, got {self.copies} and {self.seed}"
            )

    def run(
        self, target: BlackBox, queries: Records | Any, test: Records | None = None
    ) -> ExtractionReport:
        """Ask, train, and measure the surrogate on records that were not asked.

        Args:
            queries: records or inputs (n, ...); labels of records are not looked at.
            test: labeled records; those whose input is also a query are left out.

        Raises:
            InvalidInput: no queries, or no test record that is not a query.
        """
        asked = self._ask(target, queries, self.budget)
        exam = _exam(target, asked.x, test)
        return self._learned(asked, exam)

    def _ask(self, target: BlackBox, queries: Records | Any, budget: int | None) -> _Asked:
        x = queries.x if isinstance(queries, Records) else as_inputs(queries)
        if not len(x):
            raise InvalidInput("expected at least one query, got none")
        order = np.random.default_rng([self.seed, 0]).permutation(len(x))[:budget]
        chosen, before = np.asarray(x[order]), target.n_queries
        shown = _normalized(target.log_probabilities(chosen))
        return _Asked(chosen, shown, target.n_queries - before)

    def _learned(self, asked: _Asked, exam: _Exam | None) -> ExtractionReport:
        surrogate = self._train(asked)
        own = surrogate.log_probabilities(asked.x)
        if own.shape[1] != asked.shown.shape[1]:
            raise InvalidInput(
                f"expected a recipe for the target's {asked.shown.shape[1]} classes, got one for "
                f"{own.shape[1]}; change the last layer"
            )
        none = _missing(_NO_TEST)
        agreement = _same(own, asked.shown)
        report = ExtractionReport(
            surrogate, self.answers, asked.n_queries, 0, none, none, none, none, agreement
        )
        if exam is None:
            return report
        own = surrogate.log_probabilities(exam.records.x)
        y, n = exam.records.y, len(exam.records)
        return replace(
            report,
            n_test=n,
            accuracy=rate(int((own.argmax(axis=1) == y).sum()), n),
            target_accuracy=rate(int((exam.shown.argmax(axis=1) == y).sum()), n),
            fidelity=_same(own, exam.shown),
            total_variation=self._total_variation(own, exam.shown),
        )

    def _total_variation(self, own: Floats, shown: Floats) -> Estimate:
        if self.answers != "probabilities":
            return _missing("the target's probabilities were not shown")
        distance = np.abs(np.exp(own) - shown).sum(axis=1) / 2
        return _bootstrapped(distance, np.random.default_rng([self.seed, 1]))

    def _train(self, asked: _Asked) -> BlackBox:
        classes = asked.shown.shape[1]
        if self.answers == "labels":
            return self.recipe.fit(
                _records(asked.x, asked.shown.argmax(axis=1), classes), self.seed
            )
        soft = _top1(asked.shown) if self.answers == "top1" else asked.shown
        if isinstance(self.recipe, TorchRecipe):
            # labels are row numbers, by which the objective finds the vector of a record
            rows = _records(asked.x, np.arange(len(soft)), len(soft))
            objective = _SoftLabels(self.recipe, soft, self.answers == "top1")
            return fit(self.recipe, rows, seed=self.seed, objective=objective)
        counts = _shared_out(soft, self.copies)
        row, label = np.nonzero(counts)
        times = counts[row, label]
        row, label = np.repeat(row, times), np.repeat(label, times)
        return self.recipe.fit(_records(asked.x[row], label, classes), self.seed)


def budget_curve(
    target: BlackBox,
    queries: Records | Any,
    budgets: Sequence[int],
    *,
    extraction: Extraction,
    test: Records | None = None,
    progress: Progress = quiet,
) -> tuple[ExtractionReport, ...]:
    """A surrogate for each budget, from nested sets of queries.

    The target is asked once, for the largest budget, and once about the test records; the report
    of a budget says as many queries as this budget is.

    Args:
        queries: records or inputs (n, ...); at least as many as the largest budget.
        budgets: numbers of queries, in any order; the extraction's own budget is not used.
        extraction: recipe, kind of answers and seed.
        test: one set for all budgets: records whose input is among the largest set of queries are
            left out for the smaller ones too, so that the points of the curve compare.
        progress: called with "surrogates", the number trained and of all.

    Raises:
        InvalidInput: a budget below 1 or above the number of queries.
    """
    n = len(queries)
    if not len(budgets) or not 1 <= min(budgets) <= max(budgets) <= n:
        raise InvalidInput(
            f"expected budgets from 1 to the number of queries, {n}, got {list(budgets)}"
        )
    asked = extraction._ask(target, queries, max(budgets))
    exam = _exam(target, asked.x, test)
    reports = []
    for done, budget in enumerate(budgets):
        progress("surrogates", done, len(budgets))
        part = _Asked(asked.x[:budget], asked.shown[:budget], budget)
        reports.append(extraction._learned(part, exam))
    progress("surrogates", len(budgets), len(budgets))
    return tuple(reports)


@dataclass(frozen=True, eq=False)
class _SoftLabels:
    """Cross-entropy with the vector of each record; a batch's labels are its rows in `vectors`.

    With `top_alone`, that of two outcomes: the vector's largest class, and any other.
    """

    recipe: TorchRecipe
    vectors: Floats
    top_alone: bool

    def __call__(self, net: Any, batch: Batch) -> Any:
        logits = self.recipe.logits(net(batch.x))
        wanted = logits.new_tensor(self.vectors[batch.y.cpu().numpy()])
        if logits.ndim == 1 or logits.shape[-1] == 1:
            wanted = wanted[:, 1]
        elif logits.shape[-1] != wanted.shape[1]:
            raise InvalidInput(
                f"expected a recipe for the target's {wanted.shape[1]} classes, got one for "
                f"{logits.shape[-1]}; change the last layer"
            )
        elif self.top_alone:
            # of the other classes no more is known than what they have together
            largest, top = wanted.max(dim=-1, keepdim=True)
            others = logits.scatter(-1, top, -math.inf).logsumexp(dim=-1, keepdim=True)
            both = largest * logits.gather(-1, top) + (1 - largest) * others
            return (logits.logsumexp(dim=-1, keepdim=True) - both).mean()
        return cross_entropy(logits, wanted)


def _records(x: Any, y: NDArray[Any], classes: int) -> Records:
    # names of classes, so that a surrogate answers for those that no query was given
    names = tuple(str(c) for c in range(classes))
    return Records(np.arange(len(y)), x, y.astype(np.int64), (), names)


def _normalized(log_probabilities: Floats) -> Floats:
    """Probabilities (n, classes) with rows of sum 1, of what a filter may have cut."""
    shown = np.exp(log_probabilities)
    return np.asarray(shown / shown.sum(axis=1, keepdims=True))


def _top1(shown: Floats) -> Floats:
    """The largest probability where it is, and the rest spread evenly over the other classes."""
    n, classes = shown.shape
    largest = np.maximum(shown.max(axis=1), 1 / classes)
    soft = np.repeat(((1 - largest) / max(classes - 1, 1))[:, None], classes, axis=1)
    soft[np.arange(n), shown.argmax(axis=1)] = largest
    return soft


def _shared_out(soft: Floats, copies: int) -> NDArray[np.int64]:
    """Copies (n, classes), `copies` a row in all, by largest remainders."""
    exact = soft * copies
    counts = np.floor(exact).astype(np.int64)
    left = copies - counts.sum(axis=1)
    rank = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(counts + (rank < left[:, None]))


def _exam(target: BlackBox, queries: Any, test: Records | None) -> _Exam | None:
    if test is None:
        return None
    fresh = test[~np.isin(_inputs_only(test.x), _inputs_only(queries))]
    if not len(fresh):
        raise InvalidInput(
            f"expected test records that are not among the queries, got none of {len(test)}; "
            "fidelity on the queries themselves says nothing of other records"
        )
    return _Exam(fresh, _normalized(target.log_probabilities(fresh.x)))


def _inputs_only(x: Any) -> NDArray[np.uint64]:
    """A hash of each input, whatever its label."""
    nothing = np.zeros(len(x), dtype=np.int64)
    precision = np.float32 if x.dtype.kind == "f" else np.float64
    return Records(np.arange(len(x)), x, nothing).content_hash(precision)


def _same(own: Floats, shown: Floats) -> Estimate:
    return rate(int((own.argmax(axis=1) == shown.argmax(axis=1)).sum()), len(own))


def _bootstrapped(values: Floats, rng: np.random.Generator) -> Estimate:
    """The mean with its 95 % percentile bootstrap interval over records."""
    mean, n = float(values.mean()), len(values)
    means = [float(values[rng.integers(n, size=n)].mean()) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    method = f"percentile bootstrap over records, {_RESAMPLES} resamples"
    return Estimate(mean, min(float(low), mean), max(float(high), mean), method)


def _missing(reason: str) -> Estimate:
    return Estimate(None, None, None, "none", reason)
