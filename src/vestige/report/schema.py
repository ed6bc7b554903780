"""The published description of `report.json`."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report.json`; a fresh copy on every call.

    >>> schema()["properties"]["schema"]["const"]
    'vestige.report/1'
    """
    content: dict[str, Any] = json.loads(_text())
    return content


@cache
def _text() -> str:
    return files("vestige.report").joinpath("report.schema.json").read_text(encoding="utf-8")
