"""One threshold on what the target answers: no reference models, no population.

    Yeom, Giacomelli, Fredrikson, Jha. Privacy risk in machine learning: analyzing the connection
    to overfitting. CSF 2018. https://arxiv.org/abs/1709.01604
    Salem, Zhang, Humbert, Berrang, Fritz, Backes. ML-Leaks. NDSS 2019.
    https://arxiv.org/abs/1806.01246
    Song, Mittal. Systematic evaluation of privacy risks of machine learning models. USENIX
    Security 2021. https://arxiv.org/abs/2003.10595

The papers output a verdict at one threshold; here the threshold is left to whoever reads the
scores, so that the whole ROC is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vestige.attacks.attack import About, answers
from vestige.models import BlackBox
from vestige.pool import Pool
from vestige.records import Records
from vestige.scores import Scores
from vestige.signals import (
    Signal,
    correctness,
    cross_entropy_loss,
    max_confidence,
    modified_prediction_entropy,
    prediction_entropy,
)

__all__ = ["Confidence", "Correctness", "Entropy", "Loss", "ModifiedEntropy"]


def _scores(signal: Signal, sign: int, target: BlackBox, candidates: Records) -> Scores:
    values = sign * signal(answers(target, candidates), candidates.y)
    # adding 0.0 turns -0.0 into 0.0
    return Scores(candidates.ids, values + 0.0)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Members have a small loss: score = log p_y.

    References: Yeom et al. 2018, adversary 2 (threshold on the loss).
    """

    about: ClassVar[About] = About(
        title="Loss threshold",
        source="Yeom et al. 2018",
        question="Does the target find the record's label more probable than it does for others?",
        access="the probability of the record's class",
        knowledge="the record and its label",
    )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the negative cross-entropy; `known` is not used."""
        return _scores(cross_entropy_loss, -1, target, candidates)


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Members are answered with confidence: score = max_c log p_c, whatever the label.

    References: Salem et al. 2019, adversary 3 (threshold on the largest posterior).
    """

    about: ClassVar[About] = About(
        title="Confidence threshold",
        source="Salem et al. 2019",
        question="Is the target surer of its answer, right or wrong, than it is for others?",
        access="the largest class probability",
        knowledge="the record, without its label",
    )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the largest log-probability; `known` is not used."""
        return _scores(max_confidence, 1, target, candidates)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Members are answered with little entropy: score = sum_c p_c log p_c, in nats.

    References: Salem et al. 2019, adversary 3; Song & Mittal 2021, section 3.
    """

    about: ClassVar[About] = About(
        title="Entropy threshold",
        source="Salem et al. 2019",
        question="Is the target's whole answer more concentrated than it is for others?",
        access="class probabilities",
        knowledge="the record, without its label",
    )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the negative entropy of the answer; `known` is not used."""
        return _scores(prediction_entropy, -1, target, candidates)


@dataclass(frozen=True, kw_only=True)
class ModifiedEntropy:
    """Entropy that knows the label: confident and wrong counts as a large one.

    score = (1 - p_y) log p_y + sum_{c != y} p_c log(1 - p_c), in nats.

    One threshold for all classes; Song & Mittal fit one a class on shadow models.

    References: Song & Mittal 2021, equation 8.
    """

    about: ClassVar[About] = About(
        title="Modified entropy threshold",
        source="Song & Mittal 2021",
        question="Is the target's answer concentrated on the right label more than for others?",
        access="class probabilities",
        knowledge="the record and its label",
    )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by the negative modified entropy; `known` is not used."""
        return _scores(modified_prediction_entropy, -1, target, candidates)


@dataclass(frozen=True, kw_only=True)
class Correctness:
    """Members are classified correctly: score = 1 where the answer is the label, else 0.

    The baseline that anyone can mount: its advantage is the gap between train and test accuracy.

    References: Yeom et al. 2018, adversary 1 (on the zero-one loss, "gap attack").
    """

    about: ClassVar[About] = About(
        title="Prediction correctness",
        source="Yeom et al. 2018",
        question="Does the target classify the record correctly?",
        access="the predicted label",
        knowledge="the record and its label",
    )

    def run(
        self, target: BlackBox, candidates: Records, known: Pool[BlackBox] | None = None
    ) -> Scores:
        """Score by correctness; `known` is not used."""
        return _scores(correctness, 1, target, candidates)
