"""Imports go down only, siblings do not import each other, heavy packages stay in their room."""

import ast
from pathlib import Path

import pytest

import vestige

ROOT = Path(vestige.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up: a room may import its own floor's own files and everything below.
FLOORS = [
    {"errors", "fingerprint", "progress"},
    {"records"},
    {"gradients"},
    {"models", "scores", "signals"},
    {"reading", "metrics"},
    {"pool", "synthesis"},
    {"exchangeability"},
    {"training"},
    {"attacks", "datasets", "defenses", "remote", "watermarks"},
    {"report", "serving"},
    {"measure", "risk"},
    {"audit"},
    {"encode", "plans", "tables", "reproduce"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# What runs from PYTHONPATH=src on a bare machine.
CORE = {"numpy", "scipy", "sklearn", "torch", "safetensors", "threadpoolctl", "joblib", "skops"}
LAZY = {
    "matplotlib": {"report", "reproduce"},
    "jinja2": {"report"},
    "pyarrow": {"report", "tables"},
    "pandas": {"models"},
    "typer": {"cli"},
    "rich": {"progress"},
    "httpx": {"remote"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
    "torch": {"fingerprint", "models", "gradients", "training", "audit", "cli", "watermarks"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path):
    """(module, whether inside a function or only for types) of every import."""
    tree = ast.parse(path.read_text())
    inner = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, id(node) in inner
            if node.module == "vestige":
                for alias in node.names:
                    yield f"vestige.{alias.name}", id(node) in inner


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = room(path)
    if own == "__init__":
        return
    assert own in FLOOR, f"{own} has no floor: add it to FLOORS and to CONTRIBUTING.md"
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "vestige" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        if other == own:
            continue
        assert FLOOR[other] < FLOOR[own], f"{own} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_rooms(path):
    own = room(path)
    for module, _inside in imports(path):
        package = module.split(".")[0]
        if package in LAZY:
            assert own in LAZY[package], f"{own} imports {package}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_needs_nothing_else_at_import(path):
    if room(path) in ("report", "cli", "progress", "tables", "__main__"):
        return
    for module, inside in imports(path):
        package = module.split(".")[0]
        if inside or package == "vestige":
            continue
        import sys

        assert package in sys.stdlib_module_names or package in CORE, f"{path} imports {package}"


def test_every_attack_trains_no_model_of_its_own():
    """An attack is given a pool: it never trains a target, shadow or reference model."""
    for path in (ROOT / "attacks").glob("*.py"):
        # one's copy of the target is its result, the other takes the pool's models a step further
        if path.name in ("extraction.py", "indirect.py"):
            continue
        for module, _ in imports(path):
            assert not module.startswith("vestige.training"), path
