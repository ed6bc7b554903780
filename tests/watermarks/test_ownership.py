"""Ownership: exact where it is said to be, and thieves are told why they are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from vestige.errors import DamagedFile, InvalidInput
from vestige.models import TorchModel
from vestige.records import Records
from vestige.training import MLP
from vestige.watermarks import Encoding, Key, merkle
from vestige.watermarks.encoding import Decoder, record_digests
from vestige.watermarks.ownership import (
    Claim,
    Commitment,
    Opening,
    _bound,
    _by_counts,
    challenge,
    claim,
    commit,
    stratified_rank_test,
    verify,
)

BEFORE = datetime.now(UTC) + timedelta(hours=1)
RELEASED = BEFORE + timedelta(days=3)


# --- the tree ------------------------------------------------------------------------------------


def test_a_tree_of_three_by_hand() -> None:
    def h(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    digests = [bytes([i]) * 32 for i in range(3)]
    a, b, c = (h(b"\0" + d) for d in digests)
    root = h(b"\1" + h(b"\1" + a + b) + c)
    assert merkle.levels(digests)[-1] == [root]
    assert merkle.path(merkle.levels(digests), 2) == ["", h(b"\1" + a + b).hex()]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 100])
def test_every_leaf_leads_to_the_root_and_no_other_does(n: int) -> None:
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(n)]
    levels = merkle.levels(digests)
    for place in range(n):
        path = merkle.path(levels, place)
        assert merkle.root_of(digests[place], place, n, path) == levels[-1][0]
        assert merkle.root_of(b"x" * 32, place, n, path) != levels[-1][0]
        assert merkle.root_of(digests[place], place, n, [*path, "00" * 32]) is None
        if n > 1:
            assert merkle.root_of(digests[place], (place + 1) % n, n, path) != levels[-1][0]
            assert merkle.root_of(digests[place], place, n, path[:-1]) is None


# --- the test ------------------------------------------------------------------------------------


def test_one_class_is_the_rank_sum_test() -> None:
    rng = np.random.default_rng(0)
    scores, z = np.round(rng.normal(size=300), 1), rng.random(300) < 0.3
    scores[z] += 0.4
    expected = stats.mannwhitneyu(
        scores[z], scores[~z], alternative="greater", use_continuity=False, method="asymptotic"
    )
    log_p = stratified_rank_test(scores, z, np.zeros(300, dtype=int), 0.2)
    assert log_p == pytest.approx(np.log(expected.pvalue), rel=1e-9)


def test_classes_are_compared_within_themselves() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 900)
    z = rng.random(900) < 0.1 + 0.2 * y  # the classes hold more and less
    scores = 5.0 * y + rng.normal(size=900)  # and score higher and lower
    assert stratified_rank_test(scores, z, np.zeros(900, dtype=int), 0.2) < np.log(1e-6)
    assert stratified_rank_test(scores, z, y, 0.2) > np.log(1e-3)
    # van Elteren's statistic by hand
    top = variance = 0.0
    for label in range(3):
        s, own = scores[y == label], z[y == label]
        n, one = len(s), own.sum()
        rank = stats.rankdata(s)[own].sum()
        top += (rank - one * (n + 1) / 2) / (n + 1)
        variance += one * (n - one) / 12 / (n + 1)
    assert stratified_rank_test(scores, z, y, 0.2) == pytest.approx(
        stats.norm.logsf(top / np.sqrt(variance))
    )


def test_p_values_are_uniform_where_the_choice_is_tossed() -> None:
    rng = np.random.default_rng(2)
    y, scores = rng.integers(0, 4, 400), np.round(rng.normal(size=400), 1)
    p = [np.exp(stratified_rank_test(scores, rng.random(400) < 0.2, y, 0.2)) for _ in range(2000)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_small_sets_are_tested_exactly() -> None:
    rng = np.random.default_rng(3)
    y = np.array([0] * 12 + [1] * 9)
    scores = rng.normal(size=21)
    z = np.zeros(21, dtype=bool)
    z[[0, 3, 5, 13, 20]] = True
    high = np.concatenate([scores[y == k] > np.median(scores[y == k]) for k in (0, 1)])
    seen = int((high & z).sum())
    # every choice of as many records of each class is as likely
    times = np.zeros(6)
    for _ in range(20000):
        other = np.concatenate([rng.permutation(z[y == k]) for k in (0, 1)])
        times[(other & high).sum()] += 1
    found = np.exp(_by_counts(scores, z, y))
    assert found == pytest.approx(times[seen:].sum() / 20000, abs=0.015)
    assert stratified_rank_test(scores, z, y, 0.2) == _by_counts(scores, z, y)


def test_nothing_is_said_where_nothing_can_be() -> None:
    scores = np.random.default_rng(0).normal(size=100)
    every = np.ones(100, dtype=bool)
    assert stratified_rank_test(scores, every, np.zeros(100), 0.2) == 0
    # classes of one choice each
    half = np.arange(100) < 50
    assert stratified_rank_test(scores, half, half.astype(int), 0.2) == 0


# --- the protocol --------------------------------------------------------------------------------


class Carrier:
    """Log-probabilities that say which records a key chose, as loudly as asked."""

    def __init__(self, key: Key, encoding: Encoding, records: Records, loud: float = 3.0) -> None:
        chosen = encoding.chosen(key, records)
        self._of = dict(zip(record_digests(records), chosen, strict=True))
        self._records, self._loud = records, loud
        self._known = {row.tobytes(): i for i, row in enumerate(np.float32(records.x))}
        sides = encoding.synthetic(key, records.x.shape[1:])
        self._sides = [{row.tobytes() for row in side} for side in sides]
        self._noise = np.random.default_rng(0).normal(size=len(records))
        self._chosen = chosen
        self.n_queries = 0

    def log_probabilities(self, x: Any) -> Any:
        out = np.zeros(len(x))
        for i, row in enumerate(np.float32(x)):
            content = row.tobytes()
            if content in self._known:
                j = self._known[content]
                out[i] = self._loud * self._chosen[j] + self._noise[j]
            else:
                out[i] = 5.0 if content in self._sides[0] else -5.0 * (content in self._sides[1])
        self.n_queries += len(x)
        logits = np.column_stack([np.zeros(len(x)), out])
        return logits - np.logaddexp(0, out)[:, None]


def world(n: int = 3000) -> Records:
    rng = np.random.default_rng(0)
    return Records.from_arrays(rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n))


KEY, ENCODING = Key.of(1), Encoding()


@pytest.fixture(scope="module")
def owner() -> tuple[Records, Carrier, Opening]:
    records = world()
    return records, Carrier(KEY, ENCODING, records), commit(KEY, ENCODING, records)


def verified(
    opening: Opening,
    records: Records,
    model: Any,
    deposited: datetime = BEFORE,
    nonce: bytes | None = None,
    **how: Any,
) -> Any:
    asked = challenge(opening.commitment, 1000, nonce)
    return verify(
        model,
        opening.commitment,
        asked,
        claim(opening, records, asked),
        deposited=deposited,
        released=RELEASED,
        **how,
    )


def test_the_owner_is_believed(owner: Any) -> None:
    records, model, opening = owner
    found = verified(opening, records, model)
    assert found.accepted and found.log10_p < -64 * np.log10(2)
    assert 150 < found.total < 260 and found.matched > 0.8 * found.total


def test_records_may_be_in_another_order_and_type_and_among_others(owner: Any) -> None:
    records, model, opening = owner
    rng = np.random.default_rng(5)
    more = np.vstack([records.x, rng.normal(size=(50, 4))])[rng.permutation(3050)]
    mixed = Records.from_arrays(np.vstack([records.x]).astype(np.float64), records.y)
    order = rng.permutation(3000)
    assert len(more) == 3050 and verified(opening, mixed[order], model).accepted


def test_a_model_without_the_key_is_nobodys(owner: Any) -> None:
    records, _, opening = owner
    other = Carrier(Key.of(2), ENCODING, records)
    found = verified(opening, records, other)
    assert not found.accepted and found.log10_p > -5
    assert "do not stand out: p = 2^" in found.reasons[0]


def test_a_thief_who_knows_the_records_but_not_the_key(owner: Any) -> None:
    records, model, opening = owner
    # with the owner's commitment, and a key of his own
    asked = challenge(opening.commitment, 500)
    answer = replace(claim(opening, records, asked), key=Key.of(9))
    found = verify(model, opening.commitment, asked, answer, deposited=BEFORE, released=RELEASED)
    assert found.reasons == ("the key is not the one that was committed to",)
    # with a commitment of his own, made in time by chance
    own = commit(Key.of(9), ENCODING, records)
    found = verified(own, records, model)
    assert not found.accepted and found.log10_p > -5
    # or made once he had seen the model
    late = verified(own, records, model, deposited=RELEASED)
    assert "not before the model was released" in late.reasons[0]


def test_a_thief_who_picks_his_records_after_seeing_the_model(owner: Any) -> None:
    _, model, opening = owner
    rng, key = np.random.default_rng(8), Key.of(9)
    many = Records.from_arrays(rng.normal(size=(20000, 4)).astype(np.float32), np.zeros(20000, int))
    # a model whose answers on his records he can see: those that fit his key he keeps
    answers = rng.normal(size=20000)
    chosen = ENCODING.chosen(key, many)
    fits = np.where(chosen, answers > 0.5, answers < 0.5)
    assert stratified_rank_test(answers[fits], chosen[fits], many.y[fits], 0.2) < -64 * np.log(2)
    own = commit(key, ENCODING, many[fits])
    found = verified(own, many, model, deposited=RELEASED + timedelta(days=1))
    assert "choose key and records to fit it" in found.reasons[0]
    # records that are not in a list that was committed to in time
    asked = challenge(opening.commitment, 500)
    answer = claim(opening, world(), asked)
    swapped = replace(answer, records=many[np.arange(500)])
    found = verify(model, opening.commitment, asked, swapped, deposited=BEFORE, released=RELEASED)
    assert found.reasons == ("500 of 500 records are not in the list that was committed to",)


def test_a_thief_who_chooses_what_he_is_asked(owner: Any) -> None:
    records, model, opening = owner
    asked, other = challenge(opening.commitment, 500), challenge(opening.commitment, 500)
    answer = claim(opening, records, other)
    found = verify(model, opening.commitment, asked, answer, deposited=BEFORE, released=RELEASED)
    assert found.reasons == ("the records are not the ones that the verifier asked for",)
    twice = claim(opening, records, asked)
    one = twice.records[[0]]
    again = Records.from_arrays(np.repeat(one.x, 500, axis=0), np.repeat(one.y, 500))
    twice = replace(twice, records=again)
    found = verify(model, opening.commitment, asked, twice, deposited=BEFORE, released=RELEASED)
    assert found.reasons == ("a record is shown twice, or not at all",)


def test_how_keys_of_nobody_fare_is_shown(owner: Any) -> None:
    records, model, opening = owner
    torch.manual_seed(0)
    net = TorchModel(MLP(4, 3, (16,))().eval())
    others = verified(opening, records, net, nonce=b"one", n_controls=60)
    assert not others.accepted and len(set(others.controls)) == 60
    assert stats.kstest(10 ** np.array(others.controls), "uniform").pvalue > 1e-3
    again = verified(opening, records, net, nonce=b"one", n_controls=3)
    assert again.controls == others.controls[:3]
    found = verified(opening, records, model, nonce=b"one")
    by_chance = (found.others_matched + 1) / (found.others + 2)
    less = stats.binomtest(found.matched, found.total, by_chance, alternative="greater").pvalue
    assert 10**found.matched_log10_p == pytest.approx(less, rel=1e-6) and less < 1e-20
    assert found.controls == ()
    with pytest.raises(InvalidInput, match="bits of at least 20, got 19"):
        verified(opening, records, model, bits=19)


def test_grinding_costs_as_many_bits_as_there_were_tries(owner: Any) -> None:
    records, _, opening = owner
    faint = Carrier(KEY, ENCODING, records, loud=1.0)
    once = verified(opening, records, faint, bits=20, nonce=b"one")
    assert once.accepted
    bits = -once.log10_p / np.log10(2)
    often = verified(opening, records, faint, bits=20, nonce=b"one", tries=2 ** int(bits))
    assert not often.accepted and f"(of {2 ** int(bits)} tries)" in often.reasons[0]


def test_a_commitment_that_is_younger_than_its_deposit(owner: Any) -> None:
    records, model, opening = owner
    early = verified(opening, records, model, deposited=BEFORE - timedelta(days=3))
    assert (
        "says that it was made" in early.reasons[0] and "after it was deposited" in early.reasons[0]
    )
    # clocks differ
    assert verified(opening, records, model, deposited=BEFORE - timedelta(hours=20)).accepted
    silent = replace(opening, commitment=replace(opening.commitment, made=""))
    assert verified(silent, records, model, deposited=BEFORE - timedelta(days=3)).accepted


def test_challenges_are_the_verifiers(owner: Any) -> None:
    _, _, opening = owner
    a, b = (challenge(opening.commitment, 500) for _ in range(2))
    assert a.places != b.places and len(set(a.places)) == 500
    again = [challenge(opening.commitment, 500, b"nonce") for _ in range(2)]
    assert again[0] == again[1]
    assert challenge(opening.commitment, 10**6).places == tuple(range(3000))
    with pytest.raises(InvalidInput, match="at least 2 records, got 1"):
        challenge(opening.commitment, 1)


def test_equal_records_are_committed_to_once() -> None:
    x = np.array([[1.0], [2.0], [1.0], [3.0]], dtype=np.float32)
    opening = commit(KEY, ENCODING, Records.from_arrays(x, [0, 1, 0, 1]))
    assert opening.commitment.n_records == 3
    with pytest.raises(InvalidInput, match="at least 2 distinct records, got 1"):
        commit(KEY, ENCODING, Records.from_arrays(x[[0, 2]], [0, 0]))


def test_documents_come_back(owner: Any, tmp_path: Path) -> None:
    records, model, opening = owner
    opening.save(tmp_path / "opening.json")
    opening.commitment.save(tmp_path / "commitment.json")
    again = Opening.load(tmp_path / "opening.json")
    assert again == opening
    assert Commitment.load(tmp_path / "commitment.json") == opening.commitment
    asked = challenge(opening.commitment, 800)
    claim(again, records, asked).save(tmp_path / "claim.json")
    answer = Claim.load(tmp_path / "claim.json")
    found = verify(model, opening.commitment, asked, answer, deposited=BEFORE, released=RELEASED)
    assert found.accepted
    secret = [tmp_path / name for name in ("opening.json", "claim.json", "claim.json.npz")]
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in secret)
    assert KEY.secret.hex() not in (tmp_path / "commitment.json").read_text()
    assert KEY.secret.hex() not in repr(opening) + repr(answer)


def test_damaged_documents(owner: Any, tmp_path: Path) -> None:
    records, _, opening = owner
    asked = challenge(opening.commitment, 20)
    claim(opening, records, asked, bits=0).save(tmp_path / "claim.json")
    said = json.loads((tmp_path / "claim.json").read_text())
    for wrong in ({"key": None}, {"places": None}, {"places": [0.5] * 20}, {"paths": 3}):
        (tmp_path / "wrong.json").write_text(json.dumps({**said, **wrong}))
        shutil.copy(tmp_path / "claim.json.npz", tmp_path / "wrong.json.npz")
        with pytest.raises(DamagedFile, match="expected a claim in .*wrong.json, .* ask for it"):
            Claim.load(tmp_path / "wrong.json")
    (tmp_path / "wrong.json.npz").unlink()
    with pytest.raises(
        InvalidInput, match="wrong.json.npz, found no such file; it goes with wrong"
    ):
        Claim.load(tmp_path / "wrong.json")
    beside = tmp_path / "claim.json.npz"
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFile, match="not the ones it was written with"):
        Claim.load(tmp_path / "claim.json")
    with pytest.raises(DamagedFile, match="expected vestige.opening.v1 in .*, got vestige.claim"):
        Opening.load(tmp_path / "claim.json")
    opening.save(tmp_path / "opening.json")
    text = (tmp_path / "opening.json").read_text()
    (tmp_path / "opening.json").write_text(text.replace(KEY.secret.hex(), "00" * 32))
    os.chmod(tmp_path / "opening.json", 0o600)
    with pytest.raises(DamagedFile, match="the key of its own commitment"):
        Opening.load(tmp_path / "opening.json")
    (tmp_path / "c.json").write_text('{"format":"vestige.commitment.v1","encoding":{"share":9}}')
    with pytest.raises(DamagedFile, match="expected a commitment in"):
        Commitment.load(tmp_path / "c.json")


def test_a_challenge_for_another_commitment_and_records_that_are_lost(owner: Any) -> None:
    records, _, opening = owner
    other = commit(Key.of(4), ENCODING, records)
    with pytest.raises(InvalidInput, match="expected a challenge for this commitment"):
        claim(opening, records, challenge(other.commitment, 20))
    asked = challenge(opening.commitment, 3000)
    with pytest.raises(InvalidInput, match="got 1000 of 3000 that are asked for no more"):
        claim(opening, records[np.arange(2000)], asked)


# --- what a claimant can prepare -----------------------------------------------------------------


class Sides:
    """A model that nobody trained for a key: it tells the synthetic sides of any key apart."""

    n_queries = 0

    def log_probabilities(self, x: Any) -> Any:
        x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
        rows = np.random.default_rng(0).normal(size=(x.shape[1], 4))
        logits = np.tanh(x @ rows)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_records_cannot_be_made_to_fit_a_key() -> None:
    """He draws them around the synthetic means, and keeps those whose coin says so."""
    key, encoding = Key.of(11), Encoding(layer=None, high=8.0)
    member, nonmember = encoding.synthetic(key, (30,))
    rng, kept = np.random.default_rng(0), []
    means = (nonmember.mean(axis=0), member.mean(axis=0))
    for i in range(600):
        side = int(i % 5 == 0)
        for _ in range(40):
            x = (means[side] + rng.normal(size=30)).astype(np.float32)
            one = Records.from_arrays(x[None], [0])
            # the coin as it would be, were it of the record alone
            if encoding.chosen(key, one, bytes(32))[0] == bool(side):
                kept.append(x)
                break
    made = Records.from_arrays(np.array(kept), np.zeros(len(kept), dtype=int))
    opening = commit(key, encoding, made)
    found = verified(opening, made, Sides())
    assert not found.accepted and found.log10_p > -6
    # so much did the records fit: with coins of their own they would be a proof
    digests = encoding.chosen(key, made, bytes(32))
    scores = Decoder(key=key, encoding=encoding).reader(Sides(), (30,))(made.x)
    assert stratified_rank_test(scores, digests, made.y, 0.2) < -64 * np.log(2)


def test_one_record_more_tosses_every_coin_anew() -> None:
    records = world()
    whole = ENCODING.chosen(KEY, records)
    fewer = ENCODING.chosen(KEY, records[np.arange(1, len(records))])
    assert 0.25 < (whole[1:] != fewer).mean() < 0.4  # 2 x 0.2 x 0.8
    root = merkle.root(record_digests(records))
    some = np.arange(100)
    np.testing.assert_array_equal(ENCODING.chosen(KEY, records[some], root), whole[:100])
    assert abs(whole.mean() - 0.2) < 0.03


@pytest.mark.parametrize(("n", "chosen", "above"), [(2500, 25, 1), (2500, 50, 2), (2500, 500, 21)])
def test_tied_scores_are_no_proof(n: int, chosen: int, above: int) -> None:
    """A few records far above all others, which tie: the normal tail calls that 2^-70."""
    scores, z = np.zeros(n), np.zeros(n, dtype=bool)
    scores[:above], z[:chosen] = 1.0, True
    rate = chosen / n
    log_p = stratified_rank_test(scores, z, np.zeros(n), rate)
    # all that are above are chosen, each by a coin of its own, and no more of the others
    exact = above * np.log(rate) + stats.binom.logcdf(chosen - above, n - above, rate)
    assert exact - 1e-6 <= log_p < exact + 8


@pytest.mark.parametrize(
    ("size", "classes", "rate", "highs", "lows"),
    [
        (12, 208, 0.009, 13, 7),
        (12, 208, 0.01, 14, 9),
        (16, 156, 0.01, 9, 15),
        (12, 156, 0.009, 12, 5),
    ],
)
def test_classes_made_to_be_left_out_are_not(
    size: int, classes: int, rate: float, highs: int, lows: int
) -> None:
    """One record of each class far above the others: most classes have none that is chosen."""
    n = 2500
    y = np.concatenate([np.repeat(np.arange(classes), size), np.full(n - classes * size, classes)])
    scores, z = np.zeros(n), np.zeros(n, dtype=bool)
    scores[np.arange(classes) * size] = 1.0
    z[np.arange(highs) * size] = True
    z[np.arange(highs, highs + lows) * size + 1] = True
    z[classes * size : classes * size + max(0, 20 - highs - lows)] = True
    chance = stats.binom.logsf(highs - 1, classes, rate)
    chance += stats.binom.logcdf(lows, classes * (size - 1), rate)
    assert chance <= stratified_rank_test(scores, z, y, rate)


def test_the_bound_is_one_and_close_to_the_tail() -> None:
    """Against simulation where it can be simulated, and against the normal tail where it holds."""
    rng = np.random.default_rng(5)
    places = (stats.rankdata(np.round(rng.normal(size=60), 0)) - 30.5) / 61
    drawn = rng.random((200_000, 60)) < 0.2
    sums = drawn @ places
    for quantile in (0.5, 0.9, 0.99, 0.999, 0.9999):
        at = np.quantile(sums, quantile)
        z = drawn[np.argmin(np.abs(sums - at))]
        share = (sums >= float(places[z].sum()) - 1e-9).mean()
        assert np.exp(_bound(places, z, 0.2)) >= share - 4 * np.sqrt(share / 200_000)
    scores, z = rng.normal(size=2500), rng.random(2500) < 0.2
    scores[z] += 1.2
    log_p = stratified_rank_test(scores, z, np.zeros(2500), 0.2)
    normal = stats.mannwhitneyu(scores[z], scores[~z], alternative="greater").pvalue
    assert np.log(normal) <= log_p < 0.9 * np.log(normal)


def test_so_few_records_that_no_scores_would_do(owner: Any) -> None:
    records, model, opening = owner
    asked = challenge(opening.commitment, 60, b"few")
    with pytest.raises(InvalidInput, match="encoded ones among 60, .* show the key for nothing"):
        claim(opening, records, asked)
    answer = claim(opening, records, asked, bits=0)
    found = verify(model, opening.commitment, asked, answer, deposited=BEFORE, released=RELEASED)
    assert "cannot prove anything" in found.reasons[0] and "ask for more" in found.reasons[0]


class Overflowing(Sides):
    def log_probabilities(self, x: Any) -> Any:
        out = super().log_probabilities(x)
        out[0, 0] = np.nan
        return out


def test_answers_that_are_no_numbers_prove_nothing(owner: Any) -> None:
    records, _, opening = owner
    found = verified(opening, records, Overflowing())
    assert not found.accepted and "not finite" in found.reasons[0]
    with pytest.raises(InvalidInput, match="expected at least one try"):
        verified(opening, records, Sides(), tries=0)
    with pytest.raises(InvalidInput, match="time zone"):
        verified(opening, records, Sides(), deposited=BEFORE.replace(tzinfo=None))


def test_a_digest_is_of_one_input() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    square = Records.from_arrays(x.reshape(1, 4, 4), [0])
    assert record_digests(square) != record_digests(Records.from_arrays(x, [0]))
    for wrong in (np.full((1, 2), 1e39), np.array([[np.nan, 0.0]]), np.array([[2**24 + 1, 0]])):
        with pytest.raises(InvalidInput, match="expected finite inputs that float32 can hold"):
            record_digests(Records.from_arrays(wrong, [0]))


def test_malformed_claims_are_refused(owner: Any, tmp_path: Path) -> None:
    records, model, opening = owner
    asked = challenge(opening.commitment, 500)
    answer = claim(opening, records, asked)
    dates = {"deposited": BEFORE, "released": RELEASED}
    odd = replace(answer, paths=(("zz",), *answer.paths[1:]))
    assert "1 of 500 records are not in the list" in str(
        verify(model, opening.commitment, asked, odd, **dates).reasons
    )
    short = replace(answer, paths=answer.paths[1:])
    assert "not at all" in str(verify(model, opening.commitment, asked, short, **dates).reasons)
    for field, value in (("key", "\u00e9" * 64), ("n_records", "9"), ("root", "00")):
        document = {**opening.commitment._document(), field: value}
        path = tmp_path / f"{field}.json"
        path.write_text(json.dumps({"format": "vestige.commitment.v1", **document}))
        with pytest.raises(DamagedFile, match="expected a commitment in"):
            Commitment.load(path)


# --- what is easily lost -------------------------------------------------------------------------


def test_the_test_is_within_classes_by_the_committed_rate(owner: Any) -> None:
    records, model, opening = owner
    asked = challenge(opening.commitment, 1000, b"n")
    answer = claim(opening, records, asked)
    found = verify(model, opening.commitment, asked, answer, deposited=BEFORE, released=RELEASED)
    shown = answer.records
    z = ENCODING.chosen(KEY, shown, bytes.fromhex(opening.commitment.root))
    scores = Decoder(key=KEY, encoding=ENCODING).reader(model, (4,))(shown.x)
    log_p = stratified_rank_test(scores, z, shown.y, ENCODING.rate)
    assert found.log10_p == pytest.approx(log_p / np.log(10))
    assert log_p != pytest.approx(stratified_rank_test(scores, z, shown.y * 0, ENCODING.rate))
    assert (found.matched, found.total) == ((scores[z] > 0).sum(), z.sum())
    assert (found.others_matched, found.others) == ((scores[~z] > 0).sum(), (~z).sum())


def test_another_commitment_is_asked_for_other_records(owner: Any) -> None:
    records, _, opening = owner
    other = commit(Key.of(4), ENCODING, records)
    asked = [challenge(one.commitment, 500, b"same").places for one in (opening, other)]
    assert asked[0] != asked[1]


def test_every_digit_of_the_seal_counts(owner: Any) -> None:
    records, model, opening = owner
    seal = opening.commitment.key
    last = seal[:-1] + ("0" if seal[-1] != "0" else "1")
    other = replace(opening.commitment, key=last)
    asked = challenge(other, 500)
    answer = replace(claim(replace(opening, commitment=other), records, asked))
    found = verify(model, other, asked, answer, deposited=BEFORE, released=RELEASED)
    assert "the key is not the one that was committed to" in found.reasons


def test_ranks_are_compared_from_twenty_on() -> None:
    rng = np.random.default_rng(4)
    scores, y = rng.normal(size=200), np.zeros(200)
    for n in (19, 20):
        z = np.arange(200) < n
        counts = stratified_rank_test(scores, z, y, 0.1) == _by_counts(scores, z, y)
        assert counts == (n < 20)
