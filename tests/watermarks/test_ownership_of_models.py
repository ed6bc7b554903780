"""Ownership of models that were trained: the owner's, a clean one, and what a thief makes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from encoded_bits import KEY, LAYER, RECIPE, accuracy, bits
from scipy import stats

from vestige.attacks import Extraction
from vestige.models import TorchModel
from vestige.watermarks import Decoder, Encoder, Encoding, Key
from vestige.watermarks.ownership import challenge, claim, commit, stratified_rank_test, verify
from vestige.watermarks.robustness import fine_tuned, pruned, quantized

pytestmark = pytest.mark.slow

RELEASED = datetime.now(UTC) + timedelta(days=2)


def verified(model: Any, key: Key, encoding: Encoding, records: Any, n: int = 2500) -> Any:
    opening = commit(key, encoding, records)
    asked = challenge(opening.commitment, n, b"fixed")
    return verify(
        model,
        opening.commitment,
        asked,
        claim(opening, records, asked),
        deposited=RELEASED - timedelta(days=1),
        released=RELEASED,
    )


def test_the_owner_is_believed_and_others_are_not(encoded: Any) -> None:
    records, _, encoder, made = encoded
    found = verified(made.model, KEY, encoder.encoding, records)
    assert found.accepted and found.log10_p < -64 * np.log10(2)
    clean = RECIPE.fit(records, seed=0)
    assert not verified(clean, KEY, encoder.encoding, records).accepted
    assert not verified(made.model, Key.of(2), encoder.encoding, records).accepted
    # an owner of another model has a key that says nothing of this one
    other = Encoder(key=Key.of(3), encoding=encoder.encoding, steps=3, lr=0.02)
    theirs = other.fit(RECIPE, records, seed=1).model
    assert verified(theirs, Key.of(3), encoder.encoding, records).accepted
    assert not verified(theirs, KEY, encoder.encoding, records).accepted


@pytest.mark.parametrize("clean", [True, False])
def test_p_values_of_wrong_keys_are_uniform(encoded: Any, clean: bool) -> None:
    records, _, encoder, made = encoded
    model = RECIPE.fit(records, seed=0) if clean else made.model
    encoding, few = encoder.encoding, records[np.arange(1000)]
    p = []
    for number in range(100, 300):
        key = Key.of(number)
        scores = Decoder(key=key, encoding=encoding).run(model, few).values
        p.append(np.exp(stratified_rank_test(scores, encoding.chosen(key, few), few.y, 0.2)))
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert min(p) > 1e-6


def test_a_wrong_key_decodes_the_records_of_the_right_one_now_and_then(encoded: Any) -> None:
    """Why the key must choose the records: told which are encoded, wrong keys seem to decode."""
    records, _, encoder, made = encoded
    z = made.chosen
    found = []
    for number in range(100, 130):
        decoder = Decoder(key=Key.of(number), encoding=encoder.encoding)
        scores = decoder.run(made.model, records).values
        found.append(stratified_rank_test(scores, z, records.y, 0.2) / np.log(10))
    assert min(found) < -6  # of 30 keys, one that would convince


def test_what_is_left_after_what_a_thief_does(encoded: Any) -> None:
    records, test, encoder, made = encoded
    plain, net = replace(RECIPE, epochs=5, lr=0.005), made.model.net
    log10_p = {
        name: verified(model, KEY, encoder.encoding, records).log10_p
        for name, model in {
            "none": made.model,
            "quantized": TorchModel(quantized(net)),
            "pruned 30 %": TorchModel(pruned(net, 0.3)),
            "tuned": fine_tuned(plain, net, records, seed=1),
            "pruned 95 %": TorchModel(pruned(net, 0.95)),
        }.items()
    }
    bound = -64 * np.log10(2)
    assert log10_p["quantized"] < bound and log10_p["pruned 30 %"] < bound
    assert log10_p["tuned"] < bound
    assert log10_p["pruned 95 %"] > log10_p["pruned 30 %"]


def test_a_model_extracted_by_queries_is_another_model(encoded: Any) -> None:
    records, test, encoder, made = encoded
    queries = bits(3000, seed=7)
    stolen = Extraction(recipe=RECIPE).run(made.model, queries, test).surrogate
    assert accuracy(stolen, test) > 0.8
    # its layers are its own: said, not hidden
    assert verified(stolen, KEY, encoder.encoding, records).log10_p > -64 * np.log10(2)


def test_log_probabilities_are_claimed_through_a_service() -> None:
    records = bits()
    encoder = Encoder(key=KEY, steps=6, lr=0.02)
    made = encoder.fit(replace(RECIPE, epochs=40), records, seed=0)

    class Service:
        n_queries = 0

        def log_probabilities(self, x: Any) -> Any:
            self.n_queries += len(x)
            return np.round(made.model.log_probabilities(x), 4)

    service = Service()
    found = verified(service, KEY, encoder.encoding, records)
    assert found.accepted and service.n_queries == 2500 + 1000
    assert LAYER  # nothing of it was read
