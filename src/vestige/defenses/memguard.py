"""Noise that fools the attacker's classifier, and not the user: MemGuard.

Jia, Salem, Backes, Zhang, Gong. MemGuard: defending against black-box membership inference
attacks via adversarial examples. CCS 2019. https://arxiv.org/abs/1909.10594
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from vestige.defenses.filters import Filter, content_keys, uniforms
from vestige.errors import InvalidInput
from vestige.models import BlackBox
from vestige.records import Records

__all__ = ["DefenseClassifier", "MemGuard", "Membership", "Perturbed"]

Floats = NDArray[np.float64]

# by how much the predicted class stays ahead, in logits
_MARGIN = 1e-6
# the walk: its first step in logits, what each next one is longer by, and how many at most; the
# last of them has gone about 250 logits
_STEP, _GROWTH, _STEPS = 0.1, 1.05, 100
# weights of the distance in the loss that is descended; each record takes its best
_PENALTIES = (0.0, 1.0, 10.0, 100.0)
# halvings of the last step of a walk, to where the classifier is undecided
_HALVINGS = 30
# records that walk together; it bounds the memory
_TOGETHER = 512


class Membership(Protocol):
    """What the defender fools: a differentiable classifier of members by their answers."""

    def logit(self, log_p: Floats) -> tuple[Floats, Floats]:
        """How surely an answer is a member's, and how that follows the answer.

        Args:
            log_p: (n, classes) log-probabilities.

        Returns:
            the logits (n,), 0 where it is undecided, above 0 for a member; and their gradients
            (n, classes) by the log-probabilities.
        """
        ...


@dataclass(frozen=True, eq=False)
class DefenseClassifier:
    """A fully connected network on sorted probabilities; see `fit`.

    Attributes:
        mean, spread: (classes,) what the sorted probabilities are standardized by.
        weights, biases: of the layers, (inputs, units) and (units,); ReLU between them.
    """

    mean: Floats = field(repr=False)
    spread: Floats = field(repr=False)
    weights: tuple[Floats, ...] = field(repr=False)
    biases: tuple[Floats, ...] = field(repr=False)

    @classmethod
    def fit(
        cls, members: Floats, nonmembers: Floats, *, hidden: tuple[int, ...] = (64,), seed: int = 0
    ) -> DefenseClassifier:
        """Train it on answers to the defender's own members and non-members.

        It is held back (L2 with alpha = 1): what fools a rugged classifier by a little fools no
        other one.

        Args:
            members, nonmembers: (n, classes) log-probabilities; of the larger side as many are
                drawn as the smaller one has.
            hidden: units of each hidden layer.
            seed: of the draw and of the training.

        Raises:
            InvalidInput: fewer than 10 of a side, or other classes on one than on the other.
        """
        if members.ndim != 2 or members.shape[1:] != nonmembers.shape[1:]:
            raise InvalidInput(
                f"expected answers of shape (n, classes) from members and non-members, got "
                f"{members.shape} and {nonmembers.shape}"
            )
        n = min(len(members), len(nonmembers))
        if n < 10:
            raise InvalidInput(
                f"expected at least 10 members and 10 non-members to train the defense on, got "
                f"{len(members)} and {len(nonmembers)}"
            )
        rng = np.random.default_rng(seed)
        sides = [side[rng.permutation(len(side))[:n]] for side in (members, nonmembers)]
        x = _sorted(np.concatenate(sides))[0]
        mean, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        y = np.repeat([1, 0], n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            net = MLPClassifier(hidden, alpha=1.0, max_iter=100, random_state=seed)
            net.fit((x - mean) / spread, y)
        return cls(mean, spread, tuple(net.coefs_), tuple(net.intercepts_))

    def logit(self, log_p: Floats) -> tuple[Floats, Floats]:
        x, order = _sorted(log_p)
        signal = (x - self.mean) / self.spread
        active = []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            signal = _product(signal, weight) + bias
            active.append(signal > 0)
            signal = np.where(active[-1], signal, 0.0)
        logits = _product(signal, self.weights[-1])[:, 0] + self.biases[-1][0]
        back = np.broadcast_to(self.weights[-1][:, 0], signal.shape)
        for weight, on in zip(self.weights[-2::-1], active[::-1], strict=True):
            back = _product(np.where(on, back, 0.0), np.ascontiguousarray(weight.T))
        gradient = np.empty_like(log_p)
        np.put_along_axis(gradient, order, x * back / self.spread, axis=1)
        return logits, gradient


def _sorted(log_p: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities from the largest on, and where they stood."""
    order = np.argsort(-log_p, axis=1, kind="stable")
    return np.exp(np.take_along_axis(log_p, order, axis=1)), order


def _product(a: Floats, b: Floats) -> Floats:
    """a @ b, a row of which depends on that row of a alone; BLAS picks its sums by the shape."""
    return np.asarray(np.einsum("ij,jk->ik", a, b))


class Perturbed(NamedTuple):
    """What phase I found for some answers, and what phase II makes of it.

    Attributes:
        log_p: (n, classes) the perturbed answers; the answers themselves where none was found.
        distance: (n,) their L1 distance from the answers, as probabilities.
        probability: (n,) with which they are shown; times the distance at most epsilon.
        logit: (n,) the classifier's, of the perturbed answers.
    """

    log_p: Floats
    distance: Floats
    probability: Floats
    logit: Floats


@dataclass(frozen=True, eq=False)
class MemGuard(Filter):
    """Answers perturbed so that a membership classifier is undecided, within an L1 budget.

    Phase I looks, in the logits, for the perturbation with the least L1 distance that makes the
    defender's classifier undecided and leaves the predicted class as it is. Phase II shows it with
    probability min(1, epsilon / distance), else the answer as it is, so that the expected distance
    is at most epsilon. Where the classifier was less sure of the answer as it is, nothing changes.

    The coin belongs to the record's content: asking twice gives the same answer.

    Args:
        classifier: what is fooled; see `DefenseClassifier` and `trained`.
        epsilon: the expected L1 distance of a shown vector from the true one, from 0 to 2.
        seed: of the coins; the service's secret.

    Departs from the paper: the predicted class is kept by projection, not by a penalty (c2); the
    walk lengthens its steps by 5 %, and its last step is halved to where the classifier is
    undecided; the weights of the distance (c3) 0, 1, 10 and 100 are tried side by side, not one
    after another until one fails; the classifier has one hidden layer, and is held back.

    References: Jia et al. 2019, Algorithm 1 (phase I), equations 8 to 12 (phase II).
    """

    classifier: Membership
    epsilon: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 2:
            raise InvalidInput(
                f"expected epsilon in [0, 2], the L1 distance that an answer may have on average, "
                f"got {self.epsilon}"
            )

    @classmethod
    def trained(
        cls,
        model: BlackBox,
        members: Records,
        nonmembers: Records,
        *,
        epsilon: float = 1.0,
        seed: int = 0,
    ) -> MemGuard:
        """The model behind a MemGuard whose classifier is trained on these records' answers.

        Args:
            members: records that the model was trained on.
            nonmembers: records like them that it was not trained on.
        """
        sides = (model.log_probabilities(side.x) for side in (members, nonmembers))
        return cls(model, DefenseClassifier.fit(*sides, seed=seed), epsilon, seed)

    def shown(self, x: Any, log_p: Floats) -> Floats:
        found = self.perturbed(log_p)
        coin = uniforms(content_keys(x, self.seed), 1)[:, 0]
        return np.exp(np.where((coin < found.probability)[:, None], found.log_p, log_p))

    def perturbed(self, log_p: Floats) -> Perturbed:
        """Phases I and II but for the coin, for answers (n, classes)."""
        parts = [
            self._perturbed(log_p[start : start + _TOGETHER])
            for start in range(0, len(log_p), _TOGETHER)
        ]
        return Perturbed(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _perturbed(self, log_p: Floats) -> Perturbed:
        before = self.classifier.logit(log_p)[0]
        penalties = np.repeat(_PENALTIES, len(log_p))
        found, there = _undecided(
            self.classifier, np.tile(log_p, (len(_PENALTIES), 1)), penalties[:, None]
        )
        found = found.reshape(len(_PENALTIES), *log_p.shape)
        distances = np.abs(np.exp(found) - np.exp(log_p)).sum(axis=2)
        distances = np.where(there.reshape(distances.shape), distances, np.inf)
        best, rows = distances.argmin(axis=0), np.arange(len(log_p))
        distance = distances[best, rows]
        # where no walk came to a crossing all of them are the answer itself
        distance = np.where(np.isinf(distance), 0.0, distance)
        after = self.classifier.logit(found[best, rows])[0]
        allowed = np.minimum(1.0, self.epsilon / np.maximum(distance, 1e-300))
        probability = np.where(np.abs(before) <= np.abs(after), 0.0, allowed)
        return Perturbed(found[best, rows], distance, probability, after)


def _undecided(
    classifier: Membership, start: Floats, penalty: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Walk from each answer down |the classifier's logit| + penalty x the L1 distance walked.

    A walk ends where the classifier changes sides, or after so many steps.

    Args:
        start: (n, classes) log-probabilities.
        penalty: (n, 1).

    Returns:
        (n, classes) where it changes sides, else the start; and (n,) whether it does.
    """
    label = start.argmax(axis=1)[:, None]
    # by how much the others stay below the predicted class
    margin = np.minimum(np.take_along_axis(start, label, axis=1) - start, _MARGIN)
    p_start = np.exp(start)
    logit, gradient = classifier.logit(start)
    side = np.sign(logit)
    last, beyond, there = start.copy(), start.copy(), np.zeros(len(start), dtype=bool)
    left = np.flatnonzero(side)
    z, gradient, size = start[left], gradient[left], _STEP
    for _ in range(_STEPS):
        if not len(left):
            break
        uphill = _uphill(z, side[left], gradient, penalty[left], p_start[left])
        ahead = z - size * uphill
        top = np.take_along_axis(ahead, label[left], axis=1)
        ahead = _log_softmax(np.minimum(ahead, top - margin[left]))
        logit, gradient = classifier.logit(ahead)
        over = side[left] * logit <= 0
        last[left[over]], beyond[left[over]], there[left[over]] = z[over], ahead[over], True
        z, gradient, left = ahead[~over], gradient[~over], left[~over]
        size *= _GROWTH
    last[there] = _halved(classifier, last[there], beyond[there], side[there])
    return last, there


def _uphill(z: Floats, side: Floats, gradient: Floats, penalty: Floats, p_start: Floats) -> Floats:
    """The gradient of the loss by the logits, of length 1 in each row."""
    p = np.exp(z)
    # through the log-softmax; then, of the distance, through the softmax
    out = side[:, None] * (gradient - p * gradient.sum(axis=1, keepdims=True))
    sign = np.sign(p - p_start)
    out += penalty * p * (sign - (p * sign).sum(axis=1, keepdims=True))
    length = np.sqrt((out * out).sum(axis=1, keepdims=True))
    return np.asarray(out / np.maximum(length, 1e-300))


def _halved(classifier: Membership, last: Floats, beyond: Floats, side: Floats) -> Floats:
    """Where between two points the classifier is undecided, on the side of non-members.

    All end on that side: the side would tell where a walk began.
    """
    if not len(last):
        return last
    near, far = np.zeros(len(last)), np.ones(len(last))
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        over = side * classifier.logit(_between(last, beyond, middle))[0] <= 0
        near, far = np.where(over, near, middle), np.where(over, middle, far)
    return _between(last, beyond, np.where(side > 0, far, near))


def _between(a: Floats, b: Floats, share: Floats) -> Floats:
    return _log_softmax(a + share[:, None] * (b - a))


def _log_softmax(z: Floats) -> Floats:
    gap = z - z.max(axis=1, keepdims=True)
    return np.asarray(gap - np.log(np.exp(gap).sum(axis=1, keepdims=True)))
