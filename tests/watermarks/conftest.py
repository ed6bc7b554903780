"""What is trained once for all."""

from __future__ import annotations

from typing import Any

import pytest
from encoded_bits import KEY, LAYER, RECIPE, bits

from vestige.watermarks import Encoder, Encoding


@pytest.fixture(scope="session")
def encoded() -> Any:
    """Records, test records, the encoder, and what it made."""
    records, test = bits(), bits(1500, seed=1)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=LAYER), steps=3, lr=0.02)
    return records, test, encoder, encoder.fit(RECIPE, records, seed=0, watch={"test": test})
