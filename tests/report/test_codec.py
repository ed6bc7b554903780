"""JSON and back, and what is refused on the way."""

import json
import math
from typing import Literal

import numpy as np
import pytest
from example import PNG, exact, realistic, small

from vestige.errors import InvalidInput
from vestige.metrics import Estimate
from vestige.report import Finding, ImagePreview, Provenance, Report, RowPreview, ThreatModel
from vestige.report.codec import decode, encode


@pytest.mark.parametrize("make", [small, realistic])
def test_a_report_survives_json(make):
    report = make()
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_numpy_numbers_become_plain_ones():
    encoded = encode({"a": np.float32(0.5), "b": np.arange(2), "c": np.bool_(True)})
    assert encoded == {"a": 0.5, "b": [0, 1], "c": True}
    assert type(encoded["c"]) is bool


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float64("nan")])
def test_what_is_not_json_is_refused_with_its_place(bad):
    with pytest.raises(InvalidInput, match=r"report\.config\.lr\[1\]: expected a finite number"):
        encode({"config": {"lr": [1.0, bad]}})


def test_an_object_that_json_cannot_hold_is_refused():
    with pytest.raises(InvalidInput, match=r"report\.rule: expected a value that JSON can hold"):
        encode({"rule": object()})
    with pytest.raises(InvalidInput, match="expected keys that are strings, got 3"):
        encode({3: "x"})


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (ThreatModel, [], "expected an object, got an array of 0"),
        (ThreatModel, {"access": "x", "knowledge": "y"}, "expected the key 'n_models'"),
        (int, 1.5, "expected an integer, got 1.5"),
        (int, True, "expected an integer, got True"),
        (float, "1", "expected a number, got '1'"),
        (bool, 0, "expected true or false, got 0"),
        (str, None, "expected a string, got null"),
        (Estimate, {"value": 1}, "expected an estimate, got one that fails"),
        (Estimate, {"value": "1", "low": 0, "high": 2, "method": "x"}, "expected an estimate"),
        (Literal["a", "b"], "c", "expected 'a' or 'b', got 'c'"),
        (tuple[int, ...], {"a": 1}, "expected an array, got an object of 1"),
        (tuple[int, ...], [0, "one"], r"\[1\]: expected an integer, got 'one'"),
    ],
)
def test_what_does_not_fit_is_named(kind, data, message):
    with pytest.raises(InvalidInput, match=message):
        decode(kind, data)


def test_alternatives_are_told_apart_and_the_nearest_is_blamed():
    kind = ImagePreview | RowPreview | None
    assert decode(kind, None) is None
    assert decode(kind, {"kind": "row", "values": {"a": "1"}}) == RowPreview(values={"a": "1"})
    with pytest.raises(InvalidInput, match=r"report\.width: expected an integer"):
        decode(kind, {"kind": "image", "png": "", "width": "8", "height": 8})


@pytest.mark.parametrize("png", ["", "AAAA", PNG + '" onerror="alert(1)', PNG + "\n"])
def test_a_picture_is_a_png_and_nothing_else(png):
    with pytest.raises(InvalidInput, match=r"report: expected the base64 of a PNG file"):
        decode(ImagePreview, {"kind": "image", "png": png, "width": 1, "height": 1})


def test_unknown_keys_are_left_to_later_versions():
    data = small().provenance
    assert decode(Provenance, {**encode(data), "invented_later": 1}) == data


def test_a_whole_number_is_a_number():
    finding = small().findings[0]
    data = {**encode(finding), "seconds": 1}
    assert decode(Finding, data).seconds == 1.0
    assert encode(exact(1, 0, 1))["value"] == 1.0
