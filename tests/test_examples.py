"""Examples and the code of the documentation run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


WORLD = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
from worlds import overfit_world

world = overfit_world(n_models=16)
target, split, candidates, pool = world.target, world.split, world.candidates, world.known


def flip(x):
    return x[::1]


"""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def run(program: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path, tmp_path):
    run(path.read_text(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    # an attack's page calls it on what its reader has: a target, candidates, a pool
    given = WORLD if page.parent.name in ("attacks", "defenses") else ""
    run(given + "\n".join(blocks(page)), tmp_path)


def test_every_attack_has_a_page_with_the_seven_headings():
    headings = [
        "question",
        "needs",
        "idea",
        "call",
        "read",
        "cost",
        "paper",
    ]
    files = {p.stem for p in (ROOT / "src/vestige/attacks").glob("[a-z]*.py")} - {"attack"}
    for name in files:
        text = (ROOT / "docs/attacks" / f"{name}.md").read_text()
        found = [line[3:].lower() for line in text.splitlines() if line.startswith("## ")]
        assert len(found) == 7, name
        for word, heading in zip(headings, found, strict=True):
            assert word in heading, f"{name}: {heading}"
