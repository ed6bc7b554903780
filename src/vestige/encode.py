"""What `vestige encode` does: plans, keys and files in; models, claims and verdicts out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vestige import metrics
from vestige.audit import Plan
from vestige.errors import DamagedFile, GateFailed, PlanError, StoreError
from vestige.metrics import Estimate, rate
from vestige.models import BlackBox
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.scores import Verification
from vestige.training.fit import built
from vestige.training.recipe import TorchRecipe
from vestige.training.store import Store
from vestige.watermarks.detection import Detection, Detector, resolvable
from vestige.watermarks.encoding import Decoder, Encoder, Encoding, Reading, last_hidden
from vestige.watermarks.keys import Key, read_document, write_document
from vestige.watermarks.ownership import Challenge, Claim, Commitment, commit, verify

__all__ = [
    "Decoded",
    "Marked",
    "asked_for",
    "checked",
    "decoded",
    "marked",
    "save_challenge",
    "tested",
]

_ENCODING, _CHALLENGE = "vestige.encoding.v1", "vestige.challenge.v1"

MODEL, FORMAT, OPENING, COMMITMENT = (
    "model.safetensors",
    "encoding.json",
    "opening.json",
    "commitment.json",
)
"""What is written into the folder of a marked model."""


@dataclass(frozen=True)
class Marked:
    """A model that carries a key's choice, and what was written beside it.

    Attributes:
        folder: of the model, its format, the opening and the commitment.
        commitment: to deposit before anybody else sees the model.
        n_chosen, n_records: encoded, of how many.
        decoded: what a decoder with the key finds.
    """

    folder: Path
    commitment: Commitment
    n_chosen: int
    n_records: int
    decoded: Decoded

    def __str__(self) -> str:
        return (
            f"{self.n_chosen:,} of {self.n_records:,} records are encoded. {self.decoded}\n\n"
            f"{self.folder / MODEL}\n"
            f"commitment {self.commitment.digest}: deposit it where its date can be proved before "
            f"anybody sees the model\n"
            f"{self.folder / OPENING} and the training records are what a claim takes: keep them, "
            "and the key, to yourself"
        )


@dataclass(frozen=True)
class Decoded:
    """What a decoder tells, on the records of a plan.

    Attributes:
        accuracy: of the model on the plan's non-members.
        against_test: AUC of encoded records against records that the model never saw.
        against_others: AUC against the training records that were not encoded.
        recall, fpr: of encoded records, and of unseen ones, above 0, the middle between the
            synthetic sides.
        base_rate: encoded records among these and the unseen ones.
    """

    accuracy: Estimate
    against_test: Estimate
    against_others: Estimate
    recall: Estimate
    fpr: Estimate
    base_rate: float

    def __str__(self) -> str:
        return (
            f"With the key they are told from unseen records at an AUC of {self.against_test}, "
            f"from the other training records at {self.against_others}; above 0 are "
            f"{self.recall} of them and {self.fpr} of the unseen (base rate {self.base_rate:.2f}). "
            f"Accuracy on unseen records: {self.accuracy}."
        )


def marked(
    plan: Plan,
    key: Key,
    out: Path,
    *,
    layer: str | None = "",
    rate: float = 0.2,
    steps: int = 1,
    lr: float | None = None,
    progress: Progress = quiet,
) -> Marked:
    """Train the plan's network on its members, carrying the key's choice, and commit to it.

    Args:
        layer: that carries it; "" for the linear layer before the last, None for log-probabilities.
        lr: of the encoding steps; by default the recipe's.

    Raises:
        PlanError: the plan has no recipe for a torch network, or names a model.
        StoreError: the folder holds a marked model.
    """
    recipe = plan.recipe
    if plan.target is not None or not isinstance(recipe, TorchRecipe):
        raise PlanError(
            "expected a plan that says how to train a network and names no model, got another; a "
            "mark is made in training"
        )
    if (out / OPENING).exists() or (out / MODEL).exists():
        raise StoreError(f"expected no marked model in {out}, found one; name another folder")
    if layer == "":
        layer = last_hidden(built(recipe, 0))
    low, high = _range_of(plan.split.members)
    encoding = Encoding(layer=layer, rate=rate, low=low, high=high)
    encoder = Encoder(key=key, encoding=encoding, steps=steps, lr=lr or recipe.lr)
    made = encoder.fit(recipe, plan.split.members, seed=plan.seed, progress=progress)
    opening = commit(key, encoding, plan.split.members, note=plan.name)
    out.mkdir(parents=True, exist_ok=True)
    opening.save(out / OPENING)
    opening.commitment.save(out / COMMITMENT)
    save_format(out / FORMAT, encoding)
    (out / MODEL).write_bytes(recipe.dumps(made.model))
    found = decoded(plan, key, encoding, made.model)
    n = len(plan.split.members)
    return Marked(out, opening.commitment, int(made.chosen.sum()), n, found)


def _range_of(records: Records) -> tuple[float, float]:
    """Where synthetic means are best drawn: the range of the inputs, or one deviation if wide."""
    x = np.asarray(records.x[: min(len(records), 1000)], dtype=np.float64)
    low, high = float(x.min()), float(x.max())
    if high - low > 2.0 or high <= low:
        low, high = float(x.mean() - x.std()) - 1e-3, float(x.mean() + x.std()) + 1e-3
    return low, high


def save_format(path: Path, encoding: Encoding, reading: Reading = "projection") -> None:
    write_document(path, {"format": _ENCODING, "reading": reading, **asdict(encoding)})


def load_format(path: Path) -> tuple[Encoding, Reading]:
    """
    Raises:
        DamagedFile: not the format of an encoding.
    """
    said = read_document(path, _ENCODING)
    reading = said.pop("reading", "projection")
    said.pop("format")
    try:
        if said.get("clip") is not None:
            said["clip"] = tuple(said["clip"])
        return Encoding(**said), reading
    except TypeError as error:
        raise DamagedFile(f"expected the format of an encoding in {path}, but {error}") from None


def model_of(plan: Plan, weights: Path | None) -> BlackBox:
    """The plan's model, or its network with the weights of a file.

    Raises:
        PlanError: the plan has neither.
        DamagedFile: the weights are of another network.
    """
    if weights is not None:
        if not isinstance(plan.recipe, TorchRecipe):
            raise PlanError("expected a plan with a network beside --weights, got one without")
        try:
            content = weights.read_bytes()
        except OSError as error:
            raise PlanError(f"expected weights at {weights}, but {error.strerror}") from None
        return plan.recipe.loads(content, weights.name, plan.split.members.n_classes)
    target: BlackBox | None = plan.target
    if target is None:
        raise PlanError(
            "expected a model, got a plan that names none; give --weights, or weights = or url = "
            "in its [target]"
        )
    return target


def decoded(
    plan: Plan,
    key: Key,
    encoding: Encoding,
    model: BlackBox,
    reading: Reading = "projection",
) -> Decoded:
    """Read the plan's members and non-members with a key."""
    members, others = plan.split.members, plan.split.nonmembers
    chosen = encoding.chosen(key, members)
    if not chosen.any() or chosen.all():
        raise PlanError(f"expected some of {len(members)} members to be encoded, and some not")
    decoder = Decoder(key=key, encoding=encoding, reading=reading)
    read = decoder.reader(model, members.x.shape[1:])
    inside, unseen = read(members.x), read(others.x)
    answers = model.log_probabilities(others.x).argmax(axis=1)
    n, n1 = len(unseen), int(chosen.sum())
    return Decoded(
        rate(int((answers == others.y).sum()), n),
        metrics.auc(inside[chosen], unseen),
        metrics.auc(inside[chosen], inside[~chosen]),
        rate(int((inside[chosen] > 0).sum()), n1),
        rate(int((unseen > 0).sum()), n),
        n1 / (n1 + n),
    )


def checked(
    plan: Plan,
    model: BlackBox,
    *,
    references: int,
    alpha: float,
    seed: int,
    store: Path | None = None,
    progress: Progress = quiet,
) -> Detection:
    """Whether a model is unusual among models that the plan trains on the same records.

    Args:
        seed: of the references and of what models are asked; one that nobody can guess.
        store: where the references are kept.

    Raises:
        PlanError: no recipe for a torch network, or too few references for the rate.
        GateFailed: it is; its words say how.
    """
    if not isinstance(plan.recipe, TorchRecipe):
        raise PlanError("expected a plan that says how its network is trained, got another")
    if not resolvable(references, alpha):
        least = math.ceil(1 / alpha - 1e-9) - 1
        raise PlanError(
            f"expected at least {least} references for a false-alarm rate of {alpha:g}, got "
            f"{references}; ask for more of either"
        )
    detector = Detector(
        recipe=plan.recipe,
        records=plan.split.members,
        held_out=plan.split.nonmembers,
        n_references=references,
        alpha=alpha,
        seed=seed,
        store=None if store is None else Store(store),
        progress=progress,
    )
    found = detector.run(model)
    if found.alarm:
        raise GateFailed(str(found))
    return found


# --- claims --------------------------------------------------------------------------------------


def save_challenge(path: Path, asked: Challenge) -> None:
    write_document(path, {"format": _CHALLENGE, **asdict(asked)})


def asked_for(path: Path) -> Challenge:
    """
    Raises:
        DamagedFile: not a challenge.
    """
    said: Mapping[str, Any] = read_document(path, _CHALLENGE)
    try:
        return Challenge(str(said["commitment"]), tuple(int(i) for i in said["places"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"expected a challenge in {path}, but {error}") from None


def tested(
    model: BlackBox,
    commitment: Path,
    asked: Path,
    answer: Path,
    *,
    deposited: str,
    released: str,
    tries: int,
) -> Verification:
    """Verify a claim on files.

    Raises:
        GateFailed: the claim is refused; its words are the reasons.
    """
    found = verify(
        model,
        Commitment.load(commitment),
        asked_for(asked),
        Claim.load(answer),
        deposited=_moment("deposited", deposited),
        released=_moment("released", released),
        tries=tries,
    )
    if not found.accepted:
        raise GateFailed("refused: " + "\nrefused: ".join(found.reasons))
    return found


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise PlanError(
            f"expected --{name} as 2026-03-01 or 2026-03-01T12:00, got {text!r}"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
