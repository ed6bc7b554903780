"""The owner's claim after what a thief does: rows at the smallest scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vestige.reproduce import encoding_ownership as own
from vestige.reproduce.experiment import Context
from vestige.training import Store

ROWS = {row.id: row for row in own.EXPERIMENT.rows}


def test_rows_are_what_a_thief_does_to_either_kind_of_model() -> None:
    assert len(ROWS) == 16
    for name, row in ROWS.items():
        assert set(row.settings) == {"ci", "laptop", "paper"}
        for settings in row.settings.values():
            assert settings.black_box == name.startswith("black")
            assert settings.n_asked <= settings.n_train
            if settings.thief == "extracted":
                assert settings.amount <= settings.n_test / 2
        assert row.settings["paper"].n_train == 50_000
    assert ROWS["white-pruned-50"].settings["laptop"].amount == 0.5
    assert ROWS["white-tuned"].settings["laptop"].amount == 20


@pytest.mark.slow
def test_the_owner_is_believed_and_a_copy_by_queries_is_not_his(tmp_path: Path) -> None:
    context = Context(0, "ci", Store(tmp_path))
    found = {}
    for name in ("white-none", "white-clean", "white-quantized", "white-extracted"):
        settings = ROWS[name].settings["ci"]
        found[name] = own.measure(replace(settings, n_keys=min(settings.n_keys, 20)), context)
    log2_p = {name: one.estimates["log2_p"].value for name, one in found.items()}
    assert log2_p["white-none"] < -64 and log2_p["white-quantized"] < -64
    assert log2_p["white-clean"] > -20 and log2_p["white-extracted"] > -64
    for name in ("white-none", "white-clean"):
        assert found[name].estimates["ks_p"].value > 1e-3
        assert found[name].estimates["least_p"].value > 1e-6
    assert "ks_p" not in found["white-quantized"].estimates
    for one in found.values():
        assert one.estimates["test_accuracy"].value > 0.7
        assert one.sizes["layer"] == "3"
    # one model of the owner's, and a clean one
    assert len(list(tmp_path.glob("encoding-*"))) == 2
