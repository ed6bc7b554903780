"""Pages from stored rows: the paper beside ours, the same bytes, and the committed ones."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from vestige import reproduce
from vestige.errors import DamagedFile, InvalidInput
from vestige.metrics import Estimate, rate
from vestige.reproduce import pages, results
from vestige.reproduce.results import RowResult

DOCS = Path(__file__).parents[2] / "docs" / "reproductions"
PROVENANCE = {
    "seed": 0,
    "when": "2026-01-02T03:04:05+00:00",
    "code": "0123456789ab",
    "versions": {"vestige": "0", "python": "3"},
    "machine": {"processor": "a processor", "cores": 2, "system": "Linux"},
    "load": 0.5,
}


def result(experiment, row, scale="laptop", **changes):
    names = {c.key for c in reproduce.experiment(experiment).columns}
    estimates = {name: rate(61 + len(name), 100) for name in sorted(names)}
    series = {
        "tp": [9.0, 8.0, 0.0], "fp": [1.0, 8.0, 0.0],
        "uncertainty_members": [0.75, 0.25], "uncertainty_nonmembers": [0.5, 0.5],
        "confidence_members": [0.25, 0.75], "confidence_nonmembers": [0.5, 0.5],
        "gap": [0.1, 0.2, 0.3], "attack_accuracy": [0.55, 0.6, 0.7],
        "budget": [10.0, 100.0], "accuracy": [0.5, 0.6], "fidelity": [0.5, 0.8],
        **{f"{way}_{what}": [0.5, 1.0] for way in ("curve", "direct", "indirect")
           for what in ("recall", "precision")},
        "by_neighbors": [0.0, 9.0], "by_auc": [0.7, 0.5],
        "by_auc_low": [0.6, 0.4], "by_auc_high": [0.8, 0.6],
        "pixels": [0.0, 255.0, 127.0, 0.0], "side": [2.0], "label": [0.0, 1.0, 1.0],
        "x": [-1.0, 1.0, 0.0], "y": [0.0, 0.5, 2.0], "query_x": [0.0, 1.0], "query_y": [2.0, 2.0],
        "in_1": [0.0, 1.0, 2.0], "in_2": [0.5, 0.2, 1.0],
        "out_1": [-1.0, 0.0, 1.0], "out_2": [0.1, -0.4, 0.3],
            "epoch": [1.0, 2.0],
            **{f"loss_{name}": [0.5, 0.1] for name in ("members", "nonmembers", "test")},
            "loss_encoding": [0.6, 0.2],
            **{f"auc_test_{name}": [0.6, 0.9] for name in ("joint", "decoded")},
            **{
                f"after_{name}": [0.9, 0.8]
                for name in ("auc", "precision", "recall", "fpr", "control_auc")
            },
            **{f"{name}_{axis}": [0.0, 1.0, 2.0, 3.0] for name in ("pca", "tsne") for axis in "xy"},
    }  # fmt: skip
    sizes = {"n_members": 1600, "n_classes": 3, "training_seconds": 7.5, "training_path": "any"}
    made = RowResult(
        experiment, scale, row, {}, estimates, series, sizes,
        {"name": "some", "digest": "ffff"}, 12.3, PROVENANCE,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A row or two of every experiment; not to be written to."""
    folder = tmp_path_factory.mktemp("results")
    for experiment in reproduce.listed():
        for row in experiment.rows[:2]:
            results.save(folder, result(experiment.id, row.id))
    return folder


@pytest.fixture(scope="module")
def docs(stored, tmp_path_factory):
    """The pages of these; not to be written to."""
    folder = tmp_path_factory.mktemp("docs")
    pages.write(stored, folder)
    return folder


def test_a_page_for_every_experiment(docs):
    names = {p.name for p in docs.iterdir()}
    assert names == {f"{e.id}.md" for e in reproduce.listed()} | {"index.md", "images"}
    for experiment in reproduce.listed():
        text = (docs / f"{experiment.id}.md").read_text()
        assert text.startswith(f"# {experiment.title}\n")
        assert experiment.paper in text
        assert all(f"* {d}" in text for d in experiment.differences)
        assert f"vestige reproduce {experiment.id} --scale laptop" in text
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (docs / link).is_file()
        assert experiment.drawings and text.count("![") == len(experiment.drawings)
        assert "a processor, 2 cores" in text and "0123456789ab" in text


def test_the_paper_stands_beside_ours(docs):
    text = (docs / "shadow-table2.md").read_text()
    (line,) = [x for x in text.splitlines() if x.startswith("| Adult |") and "0.503" in x]
    cells = [c.strip() for c in line.strip("|").split("|")]
    said = rate(61 + len("precision"), 100)
    assert cells[cells.index("0.503") + 1] == f"0.700 [{said.low:.3f}, {said.high:.3f}]"
    assert cells[1] == "0.848"
    assert "Not stored here: Location30, random cut" in text
    index = (docs / "index.md").read_text()
    assert "[shadow-table2](shadow-table2.md)" in index and "2 of 10 laptop" in index


def test_rows_of_two_scales_have_sections_of_their_own(tmp_path):
    for scale in ("ci", "laptop"):
        results.save(tmp_path / "results", result("shadow-table2", "mnist", scale))
    pages.write(tmp_path / "results", tmp_path / "docs")
    text = (tmp_path / "docs" / "shadow-table2.md").read_text()
    assert re.findall("## Results, scale (.*)", text) == ["ci", "laptop"]


def test_an_experiment_without_results_shows_the_paper(tmp_path):
    results.save(tmp_path / "results", result("shadow-table2", "mnist"))
    pages.write(tmp_path / "results", tmp_path / "docs")
    text = (tmp_path / "docs" / "shadow-figure4.md").read_text()
    assert "No row is stored here yet." in text and "0.78" in text


def test_what_is_missing_is_a_dash(tmp_path):
    none = Estimate(None, None, None, "none", "undefined")
    bare = Estimate(0.25, None, None, "no interval")
    row = result("shadow-table2", "mnist", estimates={"precision": none, "recall": bare})
    results.save(tmp_path / "results", row)
    pages.write(tmp_path / "results", tmp_path / "docs")
    text = (tmp_path / "docs" / "shadow-table2.md").read_text()
    assert "| MNIST | 0.984 | - | 0.928 | - | - | 0.517 | - | 0.250 | - |" in text
    assert "![" not in text


@pytest.mark.slow
def test_the_same_bytes_every_time(stored, docs, tmp_path):
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        again = pages.write(stored, tmp_path)
    assert {p.relative_to(tmp_path) for p in again} == {
        p.relative_to(docs) for p in docs.rglob("*") if p.is_file()
    }
    assert all(p.read_bytes() == (docs / p.relative_to(tmp_path)).read_bytes() for p in again)
    figures = [p for p in again if p.suffix == ".svg"]
    assert len(figures) >= len(reproduce.EXPERIMENTS)
    for path in figures:
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "<dc:date>" not in text and "http://matplotlib" not in text
        assert len(text) < 200_000


def test_the_terminal_shows_the_same():
    listing = reproduce.listing()
    assert all(f"{e.id}\n    {e.title}" in listing for e in reproduce.listed())
    found = [result("shadow-table2", row) for row in ("adult", "texas-like")]
    head, adult, texas, empty, paper, *differences = reproduce.table(found).splitlines()
    said = rate(61 + len("precision"), 100)
    assert f"0.503  0.700 [{said.low:.3f}, {said.high:.3f}]" in adult
    assert head.index("attack precision: paper") + len("attack precision: paper") == (
        adult.index("0.503") + 5
    )
    assert texas.startswith("texas-like stand-in, 100 classes")
    assert all(line == line.rstrip() for line in (head, adult, texas))
    # a figure of the paper beside ours says nothing without what differs
    experiment = reproduce.experiment("shadow-table2")
    assert not empty and paper.startswith(experiment.paper) and "at the scale" in paper
    assert differences == [f"* {text}" for text in experiment.differences]


def test_a_row_on_other_data_than_its_title_says_so():
    row = reproduce.experiment("encoding-frontier").row("mnist-base")
    small = result("encoding-frontier", row.id, "ci", data={"name": "digits", "digest": "ff"})
    head, line, *_ = reproduce.table([small]).splitlines()
    assert line.startswith(f"{row.title} (run on digits)  ")
    assert head.index("accuracy lost") > len(row.title)
    real = result("encoding-frontier", row.id, data={"name": "mnist", "digest": "ff"})
    assert reproduce.table([real]).splitlines()[1].startswith(f"{row.title}  ")
    # settings that name no data
    toy = reproduce.experiment("gmia-figure1").rows[0]
    assert not hasattr(toy.settings["laptop"], "data")
    assert "run on" not in reproduce.table([result("gmia-figure1", toy.id, "ci")])


def test_labels_of_the_frontier_hold_at_every_scale():
    said = {
        "k = 1": ("steps", 1), "k = 2": ("steps", 2), "k = 3": ("steps", 3),
        "rate 0.02": ("encoder_lr", 0.02), "rate 0.005": ("encoder_lr", 0.005),
        "rate 0.01": ("encoder_lr", 0.01), "rate 0.0125": ("encoder_lr", 0.0125),
        "half of the units": ("share", 0.5),
        "a tenth of the units": ("share", 0.1), "all units": ("share", 1.0),
        "synthetic means from -1 to 1": ("low", -1.0),
        "synthetic means from 0 to 5": ("high", 5.0),
        "half of a batch synthetic": ("synthetic", 0.5),
        "no alignment": ("alignment", 0.0), "alignment 1": ("alignment", 1.0),
        "weight decay 0.0001": ("weight_decay", 1e-4), "the paper's way": ("way", "paper"),
        "the task without momentum": ("momentum", 0.0), "dropout 0.2": ("dropout", 0.2),
    }  # fmt: skip
    rows = reproduce.experiment("encoding-frontier").rows
    plain = next(row for row in rows if row.id == "mnist-base")
    for row in rows:
        parts = row.title.removeprefix("MNIST, MLP: ").split(", ")
        for scale, settings in row.settings.items():
            expected = plain.settings[scale]
            for part in parts:
                if part == "half of the epochs":
                    expected = replace(expected, epochs=expected.epochs // 2)
                else:
                    expected = replace(expected, **dict([said[part]]))
            # what a label says, and nothing else
            assert settings == expected, (row.id, scale)


def test_refusals(tmp_path):
    stored = tmp_path / "results"
    with pytest.raises(InvalidInput, match="expected stored rows of known experiments.*got none"):
        pages.write(tmp_path / "nothing", tmp_path / "docs")
    results.save(stored, replace(result("shadow-table2", "mnist"), experiment="other"))
    with pytest.raises(InvalidInput, match="got other"):
        pages.write(stored, tmp_path / "docs")
    (stored / "other" / "laptop" / "mnist.json").write_text("{")
    with pytest.raises(DamagedFile):
        pages.write(stored, tmp_path / "docs")


def test_the_committed_pages_are_those_of_the_committed_results(tmp_path):
    written = pages.write(DOCS / "results", tmp_path)
    for path in written:
        if path.suffix == ".md":  # figures differ with the version of matplotlib
            assert path.read_text() == (DOCS / path.name).read_text(), path.name
    ours = {p.relative_to(tmp_path) for p in written}
    committed = {
        p.relative_to(DOCS) for p in DOCS.rglob("*") if p.is_file() and p.suffix in (".md", ".svg")
    }
    assert ours == committed
