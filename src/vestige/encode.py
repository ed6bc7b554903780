"""What `vestige encode` does: plans, keys and files in; models, claims and verdicts out."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
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
from vestige.watermarks.encoding import (
    Decoder,
    Encoder,
    Encoding,
    Reading,
    last_hidden,
    record_digests,
)
from vestige.watermarks.keys import Key, read_document, write_document, write_new
from vestige.watermarks.ownership import (
    ASKED,
    BITS,
    Challenge,
    Claim,
    Commitment,
    Opening,
    challenge,
    commit,
    disproved,
    stratified_rank_test,
    verify,
)

__all__ = [
    "Decoded",
    "Format",
    "Marked",
    "as_marked",
    "asked_for",
    "checked",
    "decoded",
    "format_beside",
    "load_format",
    "marked",
    "model_of",
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
        log2_p: of a claim on this model, of as many records as a verifier asks for by default.
    """

    folder: Path
    commitment: Commitment
    n_chosen: int
    n_records: int
    decoded: Decoded
    log2_p: float = 0.0

    @property
    def proves(self) -> bool:
        """Whether a claim on this model would be accepted."""
        return self.decoded.read and self.log2_p <= -BITS

    def __str__(self) -> str:
        told = f"{self.n_chosen:,} of {self.n_records:,} records are encoded."
        files = f"\n\n{self.folder / MODEL}\n"
        if not self.decoded.read:
            return (
                "The mark did not take: an AUC, against unseen or against other training records, "
                f"has an interval that is not above 0.5. {told} {self.decoded.told()}{files}"
                "there is nothing to deposit; train into another folder with more --steps, a "
                "larger --lr or more epochs"
            )
        if not self.proves:
            return (
                f"The mark is too weak for a claim: on {ASKED:,} of the records, or all, its p is "
                f"2^{self.log2_p:.1f}, expected at most 2^-{BITS:g}. {told} {self.decoded}{files}"
                "a claim would be refused and show the key for nothing; train into another folder "
                "with more --steps, a larger --lr, more epochs or more records"
            )
        return (
            f"{told} {self.decoded}{files}"
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
        layer: that is read, of a model that can be looked into; None for answers alone.
    """

    accuracy: Estimate
    against_test: Estimate
    against_others: Estimate
    recall: Estimate
    fpr: Estimate
    base_rate: float
    layer: str | None = None

    @property
    def read(self) -> bool:
        """Whether encoded records stand out: both AUCs have their whole interval above 0.5.

        From unseen records they also do where the model overfits, whatever the key; from other
        training records only by the mark.
        """
        lows = (self.against_test.low, self.against_others.low)
        return all(low is not None and low > 0.5 for low in lows)

    def __str__(self) -> str:
        if self.read:
            return self.told()
        return (
            "Nothing was read: an AUC, against unseen or against other training records, has an "
            "interval that is not above 0.5, as with the wrong key, format or model. "
            f"{self.told()}"
        )

    def told(self) -> str:
        """The numbers, with what they were read from."""
        access = "black-box, from log-probabilities"
        if self.layer is not None:
            access = f"white-box, from layer {self.layer}"
        return (
            f"With the key the encoded records are told ({access}) from unseen records at an AUC "
            f"of {self.against_test}, from the other training records at {self.against_others}; "
            f"above 0 are {self.recall} of them and {self.fpr} of the unseen (base rate "
            f"{self.base_rate:.2g}). Accuracy on unseen records: {self.accuracy}."
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
        PlanError: the plan has no recipe for a torch network, or names a model; its network has no
            linear layer before the last, or lr is not above 0.
        StoreError: the folder holds a marked model, or cannot be written; before anything is
            trained.
    """
    recipe = plan.recipe
    if plan.target is not None or not isinstance(recipe, TorchRecipe):
        raise PlanError(
            "expected a plan that says how to train a network and names no model, got another; a "
            "mark is made in training"
        )
    if lr is not None and not lr > 0:
        raise PlanError(f"expected --lr above 0, got {lr:g}; leave it out for the plan's own")
    if layer == "":
        layer = last_hidden(built(recipe, 0))
        if layer is None:
            raise PlanError(
                "expected a network with a linear layer before the last, which carries the mark, "
                "got one without; name another with --layer, or use --black-box"
            )
    record_digests(plan.split.members)  # refuses what a commitment could not hold
    low, high = _range_of(plan.split.members)
    encoding = Encoding(layer=layer, rate=rate, low=low, high=high)
    encoder = Encoder(key=key, encoding=encoding, steps=steps, lr=recipe.lr if lr is None else lr)
    _new_folder(out, len(recipe.dumps(recipe.handle(built(recipe, 0)))), len(plan.split.members))
    made = encoder.fit(recipe, plan.split.members, seed=plan.seed, progress=progress)
    opening = commit(key, encoding, plan.split.members, note=plan.name)
    opening.save(out / OPENING)
    opening.commitment.save(out / COMMITMENT)
    save_format(out / FORMAT, Format(encoding, seed=plan.seed, members=plan.split.members.digest()))
    write_new(out / MODEL, recipe.dumps(made.model))
    found = decoded(plan, key, encoding, made.model)
    n = len(plan.split.members)
    p = _provable(plan, opening, made.model)
    return Marked(out, opening.commitment, int(made.chosen.sum()), n, found, p)


def _provable(plan: Plan, opening: Opening, model: BlackBox) -> float:
    """log2 of the p-value of a claim, on records as a verifier would ask for them."""
    own = {d: i for i, d in enumerate(record_digests(plan.split.members))}
    places = challenge(opening.commitment).places
    shown = plan.split.members[np.array([own[opening.digests[p]] for p in places])]
    encoding = opening.commitment.encoding
    z = encoding.chosen(opening.key, shown, bytes.fromhex(opening.commitment.root))
    scores = Decoder(key=opening.key, encoding=encoding).run(model, shown).values
    return float(stratified_rank_test(scores, z, shown.y, encoding.rate) / np.log(2))


def _new_folder(out: Path, model: int, n_records: int) -> None:
    """Refuse before the training what could not be written after it.

    Args:
        model: bytes of a model.
    """
    if any((out / name).exists() for name in (OPENING, MODEL, FORMAT, COMMITMENT)):
        raise StoreError(f"expected no marked model in {out}, found one; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as room:
            # digests of all records are 64 digits each
            room.write(bytes(model + 80 * n_records + 2**14))
            room.flush()
            os.fsync(room.fileno())
    except OSError as error:
        raise StoreError(
            f"expected a folder {out} that can be written, with room for the model, but "
            f"{error.strerror or error}; make room, or name another with --out"
        ) from None


def _range_of(records: Records) -> tuple[float, float]:
    """Where synthetic means are best drawn: the range of the inputs, or one deviation if wide."""
    x = np.asarray(records.x[: min(len(records), 1000)], dtype=np.float64)
    low, high = float(x.min()), float(x.max())
    if high - low > 2.0 or high <= low:
        low, high = float(x.mean() - x.std()) - 1e-3, float(x.mean() + x.std()) + 1e-3
    return low, high


@dataclass(frozen=True)
class Format:
    """What a decoder needs beside the key, and which records were drawn for the model.

    Attributes:
        encoding, reading: of the mark.
        seed: of the plan that was trained; None in files that do not say.
        members: digest of its members; "" in files that do not say.
    """

    encoding: Encoding
    reading: Reading = "projection"
    seed: int | None = None
    members: str = ""


def save_format(path: Path, said: Format) -> None:
    beside = {"reading": said.reading, "seed": said.seed, "members": said.members}
    write_document(path, {"format": _ENCODING, **beside, **asdict(said.encoding)})


def load_format(path: Path) -> Format:
    """
    Raises:
        DamagedFile: not the format of an encoding.
    """
    said = read_document(path, _ENCODING)
    said.pop("format")
    beside = {name: said.pop(name) for name in ("reading", "seed", "members") if name in said}
    seed, members = beside.get("seed"), beside.get("members", "")
    try:
        if not (seed is None or (type(seed) is int and seed >= 0)) or type(members) is not str:
            raise TypeError(f"the seed is {seed!r} and the members' digest {members!r}")
        if said.get("clip") is not None:
            said["clip"] = tuple(said["clip"])
        return Format(Encoding(**said), **beside)
    except TypeError as error:
        raise DamagedFile(f"expected the format of an encoding in {path}, but {error}") from None


def format_beside(opening: Path) -> Format | None:
    """What was said beside an opening, where it still lies in its folder."""
    path = opening.with_name(FORMAT)
    return load_format(path) if path.exists() else None


def as_marked(plan: Plan, said: Format) -> Plan:
    """The plan, once its members are known to be those that the model was trained on.

    Raises:
        PlanError: they are others.
    """
    if said.members and plan.split.members.digest() != said.members:
        raise PlanError(
            f"expected the members that the mark was made on, which the plan drew with the seed "
            f"{said.seed}, got others with the seed {plan.seed}; use the plan and its data as they "
            f"were, with --seed {said.seed} or without --seed"
        )
    return plan


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
        encoding.layer,
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
    if not 0 < alpha < 1 or seed < 0:
        raise PlanError(
            f"expected a rate of false alarms between 0 and 1 and a seed from 0, got {alpha:g} and "
            f"{seed}"
        )
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
        places = tuple(said["places"])
        if any(type(i) is not int for i in places):
            raise TypeError
        return Challenge(str(said["commitment"]), places)
    except (KeyError, TypeError):
        raise DamagedFile(
            f"expected a challenge in {path}, as `vestige encode challenge` writes it, got one "
            "without its commitment or places"
        ) from None


def tested(
    model: Callable[[], BlackBox],
    commitment: Path,
    asked: Path,
    answer: Claim,
    *,
    deposited: str,
    released: str,
    tries: int,
    n_controls: int = 0,
) -> Verification:
    """Verify a claim on the files of a verifier.

    Args:
        model: loads it; not called where the claim is disproved without it.

    Raises:
        InvalidInput: no tries at all.
        GateFailed: the claim is refused; its words are the reasons.
    """
    paper, places = Commitment.load(commitment), asked_for(asked)
    # of a day alone: the end of it for one, its beginning for the other
    begin = _moment("deposited", deposited, timedelta(days=1))
    end = _moment("released", released, timedelta(0))
    reasons: Sequence[str] = disproved(paper, places, answer, deposited=begin, released=end)
    if not reasons:
        found = verify(
            model(), paper, places, answer, deposited=begin, released=end, tries=tries,
            n_controls=n_controls,
        )  # fmt: skip
        reasons = found.reasons
        if found.accepted:
            return found
    raise GateFailed("refused: " + "\nrefused: ".join(reasons))


def _moment(name: str, text: str, of_a_day: timedelta) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise PlanError(
            f"expected --{name} as 2026-03-01 or 2026-03-01T12:00, got {text!r}"
        ) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found if len(text) > len("2026-03-01") else found + of_a_day
