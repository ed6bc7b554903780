"""Tests on the real sets run where VESTIGE_DATA names a folder that has them, else say why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip unless every set's file is in $VESTIGE_DATA."""
    folder = os.environ.get("VESTIGE_DATA", "")
    missing = [n for n in names if not folder or not (Path(folder) / f"{n}.npz").is_file()]
    where = folder or "VESTIGE_DATA, which is not set"
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} in {where}")


def real_folder() -> Path:
    """The folder that `needs` looked in."""
    return Path(os.environ["VESTIGE_DATA"])
