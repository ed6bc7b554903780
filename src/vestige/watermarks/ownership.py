"""Whose model is it? Commit before release, claim with the key, verify by an exact test.

The paper leaves its test open ("only when there are enough encoded data records"), and its claim
that nobody without the key can decode does not hold for a thief who knows the records: wrong keys
decode at AUCs between 0.37 and 0.75, of which he shows the best. Here the key chooses which records
are encoded, and key and records are committed to before the model is released. Of a model that was
made without this key, the key's choice is then a toss of coins, whatever the model, the records and
the decoder are, and the p-value is that of the tosses.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from vestige.errors import DamagedFile, InvalidInput
from vestige.models import BlackBox
from vestige.records import Records
from vestige.scores import Verification
from vestige.watermarks import merkle
from vestige.watermarks.encoding import Decoder, Encoding, Reading, record_digests
from vestige.watermarks.keys import Key, canonical, read_document, write_document, write_new

__all__ = [
    "BITS",
    "Challenge",
    "Claim",
    "Commitment",
    "Opening",
    "challenge",
    "claim",
    "commit",
    "disproved",
    "least_log2_p",
    "stratified_rank_test",
    "verify",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

BITS = 64.0
"""A claim is accepted at p <= 2^-BITS."""

ASKED = 2_500
"""Records that a verifier asks for, by default."""

_CLOCKS = timedelta(days=1)
"""By how much an owner's clock may differ from a verifier's."""

_MODERATE = -20 * math.log(2)

FEW = 20
"""Encoded records, or others, below which counts are tested in place of ranks."""

_COMMITMENT, _OPENING, _CLAIM = (f"vestige.{n}.v1" for n in ("commitment", "opening", "claim"))


# --- commit --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commitment:
    """What an owner deposits before the model is released; it gives nothing away.

    Attributes:
        key: SHA-256 of key and salt, hexadecimal.
        root: Merkle root of the sorted digests of the records.
        n_records: how many these are.
        encoding: what a decoder needs beside the key.
        reading: how the decoder reads.
        note: the owner's words, for example whose model it is.
        made: when, by the owner's clock; what counts is when it was deposited.
    """

    key: str
    root: str
    n_records: int
    encoding: Encoding
    reading: Reading = "projection"
    note: str = ""
    made: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the whole: to print, to publish, to have time-stamped."""
        return hashlib.sha256(canonical(self._document())).hexdigest()

    def _document(self) -> dict[str, Any]:
        return {"format": _COMMITMENT, **asdict(self)}

    def save(self, path: Path | str) -> None:
        write_document(path, self._document())

    @classmethod
    def load(cls, path: Path | str) -> Commitment:
        """
        Raises:
            DamagedFile: not a commitment.
        """
        return cls._of(read_document(path, _COMMITMENT), str(path))

    @classmethod
    def _of(cls, document: Mapping[str, Any], where: str) -> Commitment:
        said = {k: v for k, v in document.items() if k != "format"}
        try:
            encoding = dict(said.pop("encoding"))
            if encoding.get("clip") is not None:
                encoding["clip"] = tuple(encoding["clip"])
            found = cls(encoding=Encoding(**encoding), **said)
            if len(bytes.fromhex(found.key)) != 32 or len(bytes.fromhex(found.root)) != 32:
                raise ValueError("key or root is no SHA-256")
            if type(found.n_records) is not int or found.n_records < 2:
                raise ValueError(f"n_records is {found.n_records!r}")
            return found
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise DamagedFile(f"expected a commitment in {where}, but {error}") from None


@dataclass(frozen=True, repr=False)
class Opening:
    """What the owner keeps: key, salt, and the committed list. Who has it can claim the model."""

    key: Key
    salt: bytes
    digests: tuple[bytes, ...]
    commitment: Commitment

    def __repr__(self) -> str:
        return f"Opening({self.commitment.digest[:16]})"

    def save(self, path: Path | str) -> None:
        """Write it to a new file that only its owner can read."""
        document = {
            "format": _OPENING,
            "key": self.key.secret.hex(),
            "salt": self.salt.hex(),
            "records": [d.hex() for d in self.digests],
            "commitment": self.commitment._document(),
        }
        write_document(path, document, secret=True)

    @classmethod
    def load(cls, path: Path | str) -> Opening:
        """
        Raises:
            InvalidInput: others may read the file.
            DamagedFile: not an opening, or not of its own commitment.
        """
        said = read_document(path, _OPENING, secret=True)
        try:
            found = cls(
                Key(bytes.fromhex(said["key"])),
                bytes.fromhex(said["salt"]),
                tuple(bytes.fromhex(d) for d in said["records"]),
                Commitment._of(said["commitment"], str(path)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"expected an opening in {path}, but {error}") from None
        if _sealed(found.key, found.salt) != found.commitment.key:
            raise DamagedFile(f"expected the key of its own commitment in {path}, got another")
        return found


def _sealed(key: Key, salt: bytes) -> str:
    return hashlib.sha256(b"vestige.seal\0" + key.secret + salt).hexdigest()


def commit(
    key: Key,
    encoding: Encoding,
    records: Records,
    *,
    reading: Reading = "projection",
    note: str = "",
) -> Opening:
    """Commit to a key and to the records that the model was trained on, encoded or not.

    Publish `opening.commitment` or its digest where its date can be proved, before anybody else
    sees the model. Keep the opening, and the records: a claim needs both.

    Raises:
        InvalidInput: fewer than 2 distinct records.
    """
    digests = tuple(sorted(set(record_digests(records))))
    if len(digests) < 2:
        raise InvalidInput(f"expected at least 2 distinct records, got {len(digests)}")
    salt = secrets.token_bytes(32)
    root = merkle.root(digests).hex()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    sealed = _sealed(key, salt)
    commitment = Commitment(sealed, root, len(digests), encoding, reading, note, made)
    return Opening(key, salt, digests, commitment)


# --- challenge, claim ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Challenge:
    """Which of the committed records a verifier wants to see.

    Attributes:
        commitment: the digest of the commitment it is for.
        places: sorted, in the committed list.
    """

    commitment: str
    places: tuple[int, ...]


def challenge(commitment: Commitment, n: int = ASKED, nonce: bytes | None = None) -> Challenge:
    """Draw records of the committed list, all of them where they are not more than n.

    Args:
        nonce: the verifier's random bytes; by default drawn, so that no owner knows before.
    """
    if n < 2:
        raise InvalidInput(f"expected to ask for at least 2 records, got {n}")
    nonce = secrets.token_bytes(32) if nonce is None else nonce
    seed = hashlib.sha256(nonce + bytes.fromhex(commitment.digest)).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    some = rng.permutation(commitment.n_records)[:n]
    return Challenge(commitment.digest, tuple(int(i) for i in np.sort(some)))


@dataclass(frozen=True, repr=False)
class Claim:
    """An owner's answer. It shows the key: from now on everybody can read, and prune, the bits.

    Attributes:
        key, salt: opened.
        places, paths: of the records in the committed list, with their siblings in the tree.
        records: themselves, in that order.
    """

    key: Key
    salt: bytes
    places: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]
    records: Records

    def __repr__(self) -> str:
        return f"Claim({len(self.places)} records)"

    def save(self, path: Path | str) -> None:
        """Write PATH, and PATH.npz with the records, both readable by their owner only."""
        path = Path(path)
        content = _packed(self.records)
        document = {
            "format": _CLAIM,
            "key": self.key.secret.hex(),
            "salt": self.salt.hex(),
            "places": list(self.places),
            "paths": [list(p) for p in self.paths],
            "records": hashlib.sha256(content).hexdigest(),
        }
        write_document(path, document, secret=True)
        write_new(path.with_name(path.name + ".npz"), content, secret=True)

    @classmethod
    def load(cls, path: Path | str) -> Claim:
        """
        Raises:
            DamagedFile: not a claim, or the records beside it are not its own.
        """
        import io

        path = Path(path)
        # a verifier was sent it, and what it shows is a secret no more
        said = read_document(path, _CLAIM)
        beside = path.with_name(path.name + ".npz")
        try:
            content = beside.read_bytes()
            if hashlib.sha256(content).hexdigest() != said["records"]:
                raise ValueError("they are not the ones it was written with")
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                records = Records.from_arrays(stored["x"], stored["y"])
        except FileNotFoundError:
            raise InvalidInput(
                f"expected the records of the claim in {beside}, found no such file; it goes with "
                f"{path.name}"
            ) from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"expected the records of the claim in {beside.name}, but {error}"
            ) from None
        try:
            if any(type(i) is not int for i in said["places"]):
                raise TypeError
            return cls(
                Key(bytes.fromhex(said["key"])),
                bytes.fromhex(said["salt"]),
                tuple(said["places"]),
                tuple(tuple(str(s) for s in p) for p in said["paths"]),
                records,
            )
        except (KeyError, TypeError, ValueError, InvalidInput):
            raise DamagedFile(
                f"expected a claim in {path}, as `vestige encode claim` writes it, got one whose "
                "key, salt, places or paths are not of its kind; ask for it again"
            ) from None


def _packed(records: Records) -> bytes:
    import io

    out = io.BytesIO()
    np.savez(out, x=np.asarray(records.x[:]), y=np.asarray(records.y))
    return out.getvalue()


def claim(opening: Opening, records: Records, asked: Challenge, *, bits: float = BITS) -> Claim:
    """Answer a challenge with the records that it asks for.

    Args:
        records: those that were committed to, others beside them do not matter.
        bits: what the verifier expects at least; where no scores could give them, no key is shown.

    Raises:
        InvalidInput: the challenge is for another commitment, a record is missing, or so few are
            asked for that no claim on them is accepted.
    """
    if asked.commitment != opening.commitment.digest:
        raise InvalidInput(
            "expected a challenge for this commitment, got one for another; ask for a new one"
        )
    own = {d: i for i, d in reversed(list(enumerate(record_digests(records))))}
    wanted = [opening.digests[p] for p in asked.places]
    missing = sum(d not in own for d in wanted)
    if missing:
        raise InvalidInput(
            f"expected all records that were committed to, got {missing} of {len(wanted)} that are "
            "asked for no more; find the training set as it was, in float32, and the seed that "
            "drew it"
        )
    tree = merkle.levels(opening.digests)
    paths = tuple(tuple(merkle.path(tree, p)) for p in asked.places)
    shown = records[np.array([own[d] for d in wanted])]
    encoding = opening.commitment.encoding
    z = encoding.chosen(opening.key, shown, bytes.fromhex(opening.commitment.root))
    least = least_log2_p(z, shown.y, encoding.rate)
    if least > -bits:
        raise InvalidInput(
            f"expected records that can prove something, got {int(z.sum())} encoded ones among "
            f"{len(z)}, whose p is 2^{least:.1f} at best and 2^-{bits:g} in a claim that is "
            "accepted; a claim would show the key for nothing: have more records asked for"
        )
    return Claim(opening.key, opening.salt, asked.places, paths, shown)


# --- verify --------------------------------------------------------------------------------------


def verify(
    model: BlackBox,
    commitment: Commitment,
    asked: Challenge,
    answer: Claim,
    *,
    deposited: datetime,
    released: datetime,
    tries: int = 1,
    bits: float = BITS,
    n_controls: int = 0,
) -> Verification:
    """Test a claim on a model. The verifier trusts nothing in it but what was deposited in time.

    H0: the model was made without this key. The committed list as a whole tosses the coins: to who
    has not tried the list, HMAC gives each record `rate` independently of all else, of what the
    model, the other records and the decoder are too. High scores of encoded records count only: the
    sign is fixed. A claimant may try lists and keys before he deposits; at 2^-64 he would have to
    try for ever.

    Args:
        model: the one that is claimed.
        commitment: as it was deposited.
        asked: the verifier's own challenge.
        deposited: when somebody whom the verifier trusts was shown the commitment or its digest.
        released: when the model could first be seen by others.
        tries: commitments that this claimant has deposited: he may show the luckiest.
        bits: p-value times tries must be at most 2^-bits; at least 20, above which p is that of a
            normal approximation.
        n_controls: keys that nothing was made with, whose p-values on the same records are found
            too, so that one sees how such keys fare; 99 take 99 times the queries.

    Returns:
        with `reasons` why it is refused; none if it is accepted.

    Raises:
        InvalidInput: no tries at all, too few bits, or dates of which one has no time zone.
    """
    if not bits >= -_MODERATE / math.log(2):
        raise InvalidInput(f"expected bits of at least 20, got {bits:g}")
    if (deposited.tzinfo is None) != (released.tzinfo is None):
        raise InvalidInput("expected both dates with a time zone, or none, got one of them")
    if tries < 1:
        raise InvalidInput(f"expected at least one try, the claim itself, got {tries}")
    reasons = disproved(commitment, asked, answer, deposited=deposited, released=released)
    if reasons:
        return Verification(0, 0, 1.0, 0.0, tuple(reasons))
    records, encoding = answer.records, commitment.encoding
    scores, z = _read(model, commitment, answer.key, records)
    if not np.isfinite(scores).all():
        reason = "the model's answers on the records are not finite, and say nothing"
        return Verification(0, 0, 1.0, 0.0, (reason,))
    log_p = stratified_rank_test(scores, z, records.y, encoding.rate)
    log10_p = float(log_p / np.log(10))
    needed = -bits - math.log2(tries)
    least = least_log2_p(z, records.y, encoding.rate)
    if not least <= needed:
        reasons.append(
            f"{int(z.sum())} encoded records among {len(z)} cannot prove anything: the least p "
            f"that they could have is 2^{least:.1f}, expected at most 2^{needed:.1f} "
            f"({_tries(tries)}); ask for more records"
        )
    elif not log_p / np.log(2) <= needed:
        reasons.append(
            f"the records that the key chose do not stand out: p = 2^{log_p / np.log(2):.1f}, "
            f"expected at most 2^{needed:.1f} ({_tries(tries)}); the model was not trained with "
            "this key, or too little of that is left in it"
        )
    matched, others_matched = int((scores[z] > 0).sum()), int((scores[~z] > 0).sum())
    total, others = int(z.sum()), int((~z).sum())
    by_chance = (others_matched + 1) / (others + 2)
    return Verification(
        matched,
        total,
        float(np.exp(log_p)),
        log10_p,
        tuple(reasons),
        others_matched,
        others,
        float(stats.binom.logsf(matched - 1, total, by_chance) / np.log(10)),
        tuple(_of_another_key(model, commitment, records, i) for i in range(n_controls)),
    )


def _tries(n: int) -> str:
    return "of one try" if n == 1 else f"of {n} tries"


def least_log2_p(z: Mask, y: NDArray[Any], rate: float) -> float:
    """Of scores that could not be better."""
    best = np.where(z, len(z), 0) + np.arange(len(z), dtype=np.float64)
    return float(stratified_rank_test(best, z, y, rate) / np.log(2))


def _read(
    model: BlackBox, commitment: Commitment, key: Key, records: Records
) -> tuple[Floats, Mask]:
    """Scores of records of the committed list, and which of them the key chooses."""
    encoding = commitment.encoding
    # what was committed to are numbers in float32: of others the same digest has many
    x = np.asarray(records.x)
    x = x.astype(np.float32) if x.dtype.kind == "f" else x
    decoder = Decoder(key=key, encoding=encoding, reading=commitment.reading)
    scores = decoder.reader(model, records.x.shape[1:])(x)
    return scores, encoding.chosen(key, records, bytes.fromhex(commitment.root))


def _of_another_key(model: BlackBox, commitment: Commitment, records: Records, i: int) -> float:
    """log10 of its p-value; the same at every verification."""
    key = Key(hashlib.sha256(f"vestige.control.v1\0{commitment.digest}\0{i}".encode()).digest())
    scores, z = _read(model, commitment, key, records)
    log_p = stratified_rank_test(scores, z, records.y, commitment.encoding.rate)
    return float(log_p / np.log(10))


def _made(commitment: Commitment) -> datetime:
    """When the owner says that it was made; long ago where nothing is said."""
    try:
        made = datetime.fromisoformat(commitment.made)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


def disproved(
    commitment: Commitment,
    asked: Challenge,
    answer: Claim,
    *,
    deposited: datetime,
    released: datetime,
) -> list[str]:
    """What disproves a claim before the model is asked; see `verify`."""
    out = []
    if _made(commitment) > deposited.astimezone(UTC) + _CLOCKS:
        out.append(
            f"the commitment says that it was made {commitment.made}, after it was deposited "
            f"{deposited:%Y-%m-%d %H:%M}: it is not the one that was deposited then"
        )
    if not deposited < released:
        out.append(
            f"the commitment was deposited {deposited:%Y-%m-%d %H:%M}, not before the model was "
            f"released {released:%Y-%m-%d %H:%M}: who has seen a model can choose key and records "
            "to fit it"
        )
    if not hmac.compare_digest(_sealed(answer.key, answer.salt), commitment.key):
        out.append("the key is not the one that was committed to")
    if asked.commitment != commitment.digest or asked.places != answer.places:
        out.append("the records are not the ones that the verifier asked for")
        return out
    try:
        digests = record_digests(answer.records)
    except InvalidInput as error:
        out.append(f"the records cannot be what was committed to: {error}")
        return out
    if len(set(digests)) != len(digests) or not (
        len(digests) == len(answer.places) == len(answer.paths)
    ):
        out.append("a record is shown twice, or not at all")
        return out
    root, n = bytes.fromhex(commitment.root), commitment.n_records
    wrong = sum(
        merkle.root_of(d, p, n, path) != root
        for d, p, path in zip(digests, answer.places, answer.paths, strict=True)
    )
    if wrong:
        out.append(f"{wrong} of {len(digests)} records are not in the list that was committed to")
    return out


def stratified_rank_test(scores: Floats, z: Mask, y: NDArray[Any], rate: float) -> float:
    """log of the one-sided p-value of "z is independent of the scores within each class".

    The rank sums of the classes, each over its number of records plus one, by the normal
    approximation with its correction for ties; below 2^-20, where the normal tail of few or tied
    scores is too small by dozens of powers of two, not less than a bound that always holds. Below
    20 records with z, or without, how many with z have a score above the class's median, by their
    exact (hypergeometric) distribution.

    The bound is Chernoff's. With r_i the rank of a score in its class, less the mean rank, over the
    class's number of records plus one, and z_i = 1 with probability rho independently,
    log P(sum z_i r_i >= T) <= min_t sum log(1 - rho + rho e^(t r_i)) - t T.

    Args:
        scores: (n,) higher = more likely z.
        z: (n,) the key's choice.
        y: (n,) classes; scores of a class are compared with each other only.
        rate: rho, with which the key chooses.

    References: van Elteren 1960, Bulletin of the Institute of International Statistics 37.
    """
    if min(z.sum(), (~z).sum()) < FEW:
        return _by_counts(scores, z, y)
    total, variance, places = 0.0, 0.0, np.zeros(len(z))
    for label in np.unique(y):
        here = y == label
        one, n = int(z[here].sum()), int(here.sum())
        ranks = stats.rankdata(scores[here])
        # also of classes that add nothing to the sum: that nobody was chosen there was a toss too
        places[here] = (ranks - (n + 1) / 2) / (n + 1)
        if not 0 < one < n:
            continue
        u = ranks[z[here]].sum() - one * (one + 1) / 2
        _, times = np.unique(ranks, return_counts=True)
        ties = float((times.astype(np.float64) ** 3 - times).sum()) / (n * (n - 1))
        total += (u - one * (n - one) / 2) / (n + 1)
        variance += one * (n - one) / 12 * (n + 1 - ties) / (n + 1) ** 2
    if variance <= 0:
        return 0.0
    log_p = float(stats.norm.logsf(total / np.sqrt(variance)))
    return log_p if log_p > _MODERATE else max(log_p, _bound(places, z, rate))


def _bound(places: Floats, z: Mask, rate: float) -> float:
    """Chernoff's, of sum z_i r_i; see `stratified_rank_test`."""
    seen = float(places[z].sum())

    def exponent(t: float) -> float:
        # log(1 - rho + rho e^(t r)) without overflow
        each = np.logaddexp(np.log1p(-rate), np.log(rate) + t * places)
        return float(each.sum() - t * seen)

    # convex in t, and every t gives a bound
    found = optimize.minimize_scalar(exponent, bounds=(0.0, 200.0), method="bounded")
    return min(0.0, float(found.fun))


def _by_counts(scores: Floats, z: Mask, y: NDArray[Any]) -> float:
    distribution, seen = np.ones(1), 0
    for label in np.unique(y):
        here = y == label
        n, one = int(here.sum()), int(z[here].sum())
        high = scores[here] > np.median(scores[here])
        seen += int((high & z[here]).sum())
        own = stats.hypergeom.pmf(np.arange(one + 1), n, int(high.sum()), one)
        distribution = np.convolve(distribution, own)
    return float(np.log(min(1.0, float(distribution[seen:].sum()))))
