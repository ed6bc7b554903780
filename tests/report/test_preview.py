"""Small pictures, read back by another PNG decoder, and rows as text."""

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from vestige.errors import InvalidInput
from vestige.report import image_preview, row_preview


def decoded(preview):
    """(h, w) or (h, w, 3) floats in [0, 1], by the decoder that matplotlib uses."""
    return imread(io.BytesIO(base64.b64decode(preview.png)), format="png")


def test_gray_pixels_survive():
    pixels = np.arange(12.0).reshape(3, 4)
    preview = image_preview(pixels)
    assert (preview.width, preview.height) == (4, 3)
    np.testing.assert_allclose(decoded(preview), pixels / 11, atol=1 / 255)


@pytest.mark.parametrize("axis", [0, 2])
def test_colors_survive_in_both_orders(axis):
    pixels = np.random.default_rng(0).random((5, 6, 3))
    preview = image_preview(np.moveaxis(pixels, 2, axis), low=0, high=1)
    np.testing.assert_allclose(decoded(preview), pixels, atol=1 / 255)


def test_the_range_is_given_or_found():
    np.testing.assert_allclose(decoded(image_preview([[2.0, 3.0]])), [[0, 1]])
    np.testing.assert_allclose(
        decoded(image_preview([[2, 9]], low=0, high=4)), [[0.5, 1]], atol=0.01
    )
    assert decoded(image_preview(np.ones((2, 2)))).max() == 0


def test_large_pictures_are_thinned():
    preview = image_preview(np.zeros((100, 224, 3)))
    assert (preview.width, preview.height) == (56, 25)


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (4, 4, 2), (0, 4), (1, 2, 3, 4)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InvalidInput, match="expected a picture of shape"):
        image_preview(np.zeros(shape))


def test_pictures_are_finite():
    with pytest.raises(InvalidInput, match="finite"):
        image_preview([[np.nan, 0.0]])


def test_rows_are_short_text():
    row = row_preview([39, 0.123456, "State-gov", "y" * 99], ["age", "rate", "work", "long"])
    assert row.values == {"age": "39", "rate": "0.1235", "work": "State-gov", "long": "y" * 40}


def test_rows_without_names_are_numbered_and_limited():
    assert list(row_preview(np.zeros(600), limit=3).values) == ["x0", "x1", "x2"]
