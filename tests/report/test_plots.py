"""Figures: the right data, clean SVG, the same bytes every time."""

import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from example import exact, realistic, small, small_finding, unresolved
from hostile import NAMES

from vestige.report import ClassFinding, Histogram, RocCurve, plots

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = {
    "roc": lambda report, key: plots.roc(report.findings[:2], key=key),
    "histogram": lambda report, key: plots.histogram(report.findings[0], key=key),
    "low_fpr": lambda report, key: plots.low_fpr(report.findings, key=key),
    "per_class": lambda report, key: plots.per_class(report.findings[0], key=key),
}


@pytest.fixture(params=FIGURES)
def figure(request):
    return lambda report, key="k": FIGURES[request.param](report, key)


def test_the_same_bytes_every_time(figure):
    assert figure(small()) == figure(small())


def test_the_user_s_style_changes_nothing(figure):
    before = figure(small())
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert figure(small()) == before


def test_it_is_described_for_those_who_do_not_see_it(figure):
    root = ElementTree.fromstring(figure(small()))
    title, description = root[0], root[1]
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == title.text
    assert (title.tag, description.tag) == (SVG + "title", SVG + "desc")
    assert root.attrib["aria-describedby"] == description.attrib["id"]
    assert len(description.text) > 30


def test_colors_follow_the_page_and_text_is_text(figure):
    svg = figure(small())
    assert not re.search("#[0-9a-f]{6}", re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", svg))
    assert "currentColor" in svg
    assert "font-family: '" not in svg and "DejaVu" not in svg
    assert len(ElementTree.fromstring(svg).findall(f".//{SVG}text")) >= 4


def test_ids_are_prefixed_and_all_of_them_are_used(figure):
    svg = figure(small(), key="mine")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert ids and all(name.startswith("mine-") for name in ids)
    assert len(set(ids)) == len(ids)
    assert set(used) | {"mine-desc"} == set(ids)


def test_nothing_but_a_picture(figure):
    svg = figure(realistic())
    for word in ("<script", "<style", "<metadata", "http://www.w3.org/1999/xlink", "dc:"):
        assert word not in svg
    assert len(svg) < 60_000


@pytest.mark.slow
def test_pyplot_stays_out():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from example import small;"
        "from vestige.report import render; render(small());"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    folder = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code, folder], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_text(figure, name):
    finding = small_finding("loss", 0.6)
    classes = tuple(replace(item, name=name) for item in finding.per_class)
    report = replace(small(), findings=(replace(finding, title=name, per_class=classes),) * 2)
    root = ElementTree.fromstring(figure(report))
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        "svg", "title", "desc", "g", "path", "use", "defs", "clipPath", "rect", "text", "pattern",
    }  # fmt: skip
    assert not [a for e in root.iter() for a in e.attrib if a.startswith("on")]


def points(svg, color):
    """Vertices of the widest open line of a color, in the units of the figure."""
    lines = [
        np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", e.attrib["d"]), dtype=float)
        for e in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if color in e.attrib.get("style", "") and "fill: none" in e.attrib["style"]
    ]
    return max(lines, key=len)


def test_the_curve_is_the_attained_staircase_on_log_axes():
    curve = RocCurve((0.0, 0.01, 0.1, 1.0), (0.1, 0.1, 1.0, 1.0), (0.1,) * 4, (1.0,) * 4, "x")
    finding = replace(small_finding("loss", 0.6), roc=curve, n_nonmembers=100)
    x, y = points(plots.roc([finding], key="k"), "--member").T
    # from 0.4% to 100%, so that 1%, 10%, 100% are evenly spaced on both axes
    left, right = x.min(), x.max()
    decade = (right - left) / np.log10(1 / 0.004)
    corners = {round((right - v) / decade, 2) for v in x}
    assert corners == {0.0, 1.0, 2.0, round(np.log10(1 / 0.004), 2)}
    # held at 10% up to an FPR of 10% and at 100% from there: two levels, one decade apart
    assert len(set(y)) == 2
    (jump,) = {v for v, before, after in zip(x[1:], y, y[1:], strict=False) if before != after}
    assert (right - jump) / decade == pytest.approx(1, abs=0.01)
    height = (max(y) - min(y)) / np.log10(1 / 0.1)
    # the axes are wider than high, both spanning the same decades
    assert 0.5 < height / decade < 1


def test_the_band_steps_with_the_curve():
    levels = (0.1, 0.1, 0.5, 0.5)
    curve = RocCurve((0.0, 0.01, 0.1, 1.0), levels, levels, (1.0,) * 4, "x")
    svg = plots.roc([replace(small_finding("loss", 0.6), roc=curve, n_nonmembers=100)], key="k")
    line = {(round(x, 1), round(y, 1)) for x, y in points(svg, "--member")}
    use = next(
        e for e in ElementTree.fromstring(svg).iter(f"{SVG}use") if "--member" in e.get("style", "")
    )
    band = next(
        e
        for e in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "#" + e.get("id", "") == use.get("href")
    )
    below = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", band.attrib["d"])
    offset = float(use.attrib["y"])
    corners = {(round(float(x), 1), round(float(y) + offset, 1)) for x, y in below}
    assert line <= corners


def test_thinning_keeps_the_ends_and_never_draws_too_high():
    rng = np.random.default_rng(0)
    fpr, tpr = np.sort(rng.random((2, 2000)).round(4), axis=1)
    fpr[:5], fpr[-1], tpr[-1] = 0, 1, 1
    curve = RocCurve(tuple(fpr), tuple(tpr), tuple(tpr), tuple(tpr), "x")
    kept = plots._thinned(curve, 60)
    assert len(kept) <= 62 and kept[0] == 4 and kept[-1] == 1999
    where = np.geomspace(fpr[5], 1, 500)
    full = tpr[np.searchsorted(fpr, where, side="right") - 1]
    thin = tpr[kept][np.searchsorted(fpr[kept], where, side="right") - 1]
    assert (thin <= full).all()
    assert (full - thin).max() < 0.1


def test_a_short_curve_is_not_thinned():
    curve = small().findings[0].roc
    assert plots._thinned(curve, 60).tolist() == [0, 1, 2, 3, 4]


def test_each_side_of_the_histogram_is_shares_of_its_own():
    histogram = Histogram((0.0, 1.0, 2.0), (1, 3), (30, 10))
    finding = replace(small_finding("loss", 0.6), histogram=histogram)
    outline = points(plots.histogram(finding, key="k"), "--nonmember")
    bottom = outline[:, 1].max()
    heights = sorted({round(float(bottom - y), 1) for y in outline[:, 1]} - {0.0})
    assert heights[1] / heights[0] == pytest.approx(3, rel=0.02)
    assert plots._shares((1, 3)).tolist() == [0.25, 0.75]
    assert plots._shares((0, 0)).tolist() == [0.0, 0.0]


def test_members_are_hatched():
    svg = plots.histogram(small().findings[0], key="k")
    assert "<pattern" in svg and "url(#k-" in svg


def test_classes_are_sorted_limited_and_resolved():
    classes = tuple(
        ClassFinding(i, str(i), 9, 9, {"auc": exact(0.4 + i / 100, 0.3, 0.9)}) for i in range(40)
    )
    missing = ClassFinding(99, "few", 1, 1, {"auc": unresolved("too few records")})
    shown = plots.classes_shown(replace(small().findings[0], per_class=(missing, *classes)))
    assert [item.label for item in shown] == list(range(39, 9, -1))


def test_rates_that_are_not_resolved_are_left_out():
    svg = plots.low_fpr(small().findings, key="k")
    assert "10%" in svg and "not resolvable" not in svg
    texts = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "0.1%" not in texts


def test_nothing_resolved_is_an_empty_figure():
    finding = replace(small_finding("loss", 0.6), metrics={}, per_class=())
    assert "Loss threshold" in plots.low_fpr([finding], key="k")
    assert plots.per_class(finding, key="k")


def test_a_curve_without_points_below_one_is_drawn():
    curve = RocCurve((0.0, 1.0), (0.0, 1.0), (0.0, 0.9), (0.1, 1.0), "x")
    assert plots.roc([replace(small_finding("loss", 0.5), roc=curve)], key="k", points=1)
