"""Four figures as SVG that lives inside a page: its colors, its font, light and dark.

matplotlib draws, without pyplot and without its global state; then the SVG is cleaned: text stays
text in the font of the page, each color becomes a CSS variable with a fallback (so that a figure
also works alone), ids are made unique in the page, what nobody refers to goes, and a title and a
description are added for those who do not see it. The same report gives the same bytes.

Color never carries a meaning alone: members are hatched, non-members are an outline, curves and
rates differ by line style and marker.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vestige.errors import MissingExtra
from vestige.metrics import Estimate
from vestige.report.report import ClassFinding, Finding, RocCurve
from vestige.report.wording import estimate, number, rate_name, strongest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["histogram", "low_fpr", "per_class", "roc"]

WIDTH = 4.4
"""Inches. Narrow, so that 9 point labels stay readable on a telephone and grow on a desk."""

INK, MUTED, GRID = "#1b1f24", "#5f6770", "#d9dcdf"
MEMBER, NONMEMBER = "#a8481c", "#1f5f93"
THEME = {
    INK: "currentColor",
    MUTED: f"var(--muted, {MUTED})",
    GRID: f"var(--rule, {GRID})",
    MEMBER: f"var(--member, {MEMBER})",
    NONMEMBER: f"var(--nonmember, {NONMEMBER})",
}
RATES = {"tpr@0.1": "o", "tpr@0.01": "s", "tpr@0.001": "^"}
MAX_CLASSES = 30


def roc(findings: Sequence[Finding], *, key: str, points: int = 300, height: float = 3.7) -> str:
    """ROC curves on log-log axes with their bands, chance, and the end of what is resolved.

    Args:
        findings: one or two of them; more could not be told apart.
        key: prefix of the ids in the SVG, unique in the page.
        points: largest number of points drawn of a curve.
        height: inches.
    """
    resolution = max(1 / max(f.n_nonmembers, 1) for f in findings)
    start = min(0.4 * resolution, 0.05)
    with _drawing():
        figure, axes = _figure(height)
        styles = ((MEMBER, "-", 1.8, 0.22), (NONMEMBER, "--", 1.5, 0.16))
        for finding, style in zip(findings, styles, strict=False):
            _curve(axes, finding, style, start, points)
        axes.plot([start, 1], [start, 1], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
        axes.axvspan(start, resolution, color=GRID, alpha=0.5, linewidth=0)
        axes.axvline(resolution, color=MUTED, linewidth=0.7)
        if height >= 3:
            _note(axes, float(np.sqrt(start * resolution)), "not resolvable")
        axes.set(xscale="log", yscale="log", xlim=(start, 1), ylim=(start, 1))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        _percent_axis(axes.xaxis, start)
        _percent_axis(axes.yaxis, start)
        axes.legend(loc="lower right", frameon=False, handlelength=2.6)
        names = " and ".join(f.title for f in findings)
        return _svg(figure, key, f"ROC curve of {names}", _roc_words(findings))


def histogram(finding: Finding, *, key: str, height: float = 2.3) -> str:
    """Scores of members (hatched) and non-members (outline), each as shares of its own side."""
    edges = np.array(finding.histogram.edges)
    members = _shares(finding.histogram.members)
    nonmembers = _shares(finding.histogram.nonmembers)
    with _drawing():
        figure, axes = _figure(height)
        axes.stairs(members, edges, fill=True, facecolor=MEMBER, alpha=0.18, linewidth=0)
        axes.stairs(
            members, edges, fill=True, facecolor="none", edgecolor=MEMBER, hatch="////",
            linewidth=0.8, label=f"members ({finding.n_members:,})",
        )  # fmt: skip
        axes.stairs(
            nonmembers, edges, color=NONMEMBER, linewidth=1.8,
            label=f"non-members ({finding.n_nonmembers:,})",
        )  # fmt: skip
        axes.set(xlabel="score, higher = more likely a member", ylabel="share of each side")
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%")
        axes.set_ylim(0, 1.28 * max(float(members.max()), float(nonmembers.max()), 1e-9))
        axes.legend(loc="upper right", frameon=False, ncols=2, borderaxespad=0)
        words = (
            f"Between {number(float(edges[0]))} and {number(float(edges[-1]))}; the median score "
            f"is about {number(_median(edges, members))} for members and "
            f"{number(_median(edges, nonmembers))} for non-members."
        )
        return _svg(figure, key, f"Scores of {finding.title}", words)


def low_fpr(findings: Sequence[Finding], *, key: str) -> str:
    """True positive rates at low false positive rates with their intervals, an attack a row."""
    findings = strongest_first(tuple(findings))
    resolved = [name for name in RATES if any(_has_value(f.metrics.get(name)) for f in findings)]
    start = _lowest_rate(findings, resolved)
    with _drawing():
        figure, axes = _figure(1.0 + 0.3 * len(findings), named_rows=True)
        for metric in resolved:
            _whiskers_of_rate(axes, findings, metric, start)
        _rows(axes, [_short(f.title) for f in findings])
        axes.set(xscale="log", xlim=(start, 1.04), xlabel="true positive rate (dotted: chance)")
        _percent_axis(axes.xaxis, start)
        if resolved:
            axes.legend(
                loc="lower center", bbox_to_anchor=(0.4, 1), frameon=False, ncols=3,
                title="at a false positive rate of", handletextpad=0.3,
            )  # fmt: skip
        words = "; ".join(
            f"{f.title}: {_words(f.metrics.get(name))} at {rate_name(name)}"
            for f in findings
            for name in resolved
        )
        return _svg(figure, key, "True positive rates at low false positive rates", words)


def per_class(finding: Finding, *, key: str) -> str:
    """AUC of each class with its interval, highest first; the first 30 that are resolved."""
    classes = classes_shown(finding)
    with _drawing():
        figure, axes = _figure(0.75 + 0.21 * max(len(classes), 2), named_rows=True)
        for row, item in enumerate(classes):
            _whisker(axes, item.metrics["auc"], row, "o", MEMBER)
        overall = finding.metrics.get("auc")
        axes.axvline(0.5, color=MUTED, linestyle=":", linewidth=1.2)
        if overall is not None and overall.value is not None:
            axes.axvline(overall.value, color=NONMEMBER, linestyle="--", linewidth=1.1)
        _rows(axes, [_short(item.name) for item in classes])
        lows = [item.metrics["auc"].low or 0.0 for item in classes]
        axes.set_xlim(min([0.45, *lows]) - 0.01, 1.01)
        axes.set_xlabel("AUC (dotted: chance, dashed: all classes together)")
        words = "; ".join(f"{item.name}: {_words(item.metrics['auc'], False)}" for item in classes)
        return _svg(figure, key, f"AUC of {finding.title} by class", words)


def classes_shown(finding: Finding) -> list[ClassFinding]:
    """The classes that `per_class` draws: those with an AUC, highest first, at most 30."""
    resolved = [item for item in finding.per_class if _has_value(item.metrics.get("auc"))]
    return sorted(resolved, key=lambda item: -(item.metrics["auc"].value or 0))[:MAX_CLASSES]


# --- parts of figures --------------------------------------------------------------------------


def _curve(
    axes: "Axes", finding: Finding, style: tuple[str, str, float, float], start: float, points: int
) -> None:
    """One staircase and its band; the part at a false positive rate of 0 begins at the left end."""
    color, line, width, alpha = style
    curve = finding.roc
    kept = _thinned(curve, points)
    fpr, tpr, low, high = (
        np.maximum(np.array(values)[kept], start)
        for values in (curve.fpr, curve.tpr, curve.low, curve.high)
    )
    axes.fill_between(fpr, low, high, step="post", color=color, alpha=alpha, linewidth=0)
    # matplotlib leaves labels out of the legend that begin with an underscore
    label = " " + _short(finding.title, 34)
    axes.step(fpr, tpr, where="post", color=color, linestyle=line, linewidth=width, label=label)


def _thinned(curve: RocCurve, points: int) -> NDArray[np.intp]:
    """Indices of at most about `points` attained points, evenly in log FPR, ends kept."""
    fpr = np.array(curve.fpr)
    if len(fpr) <= points:
        return np.arange(len(fpr))
    positive = np.flatnonzero(fpr > 0)
    at_zero = [positive[0] - 1] if len(positive) and positive[0] else []
    grid = np.geomspace(fpr[positive[0]], 1, points)
    # the last point at or below each place of the grid: a staircase is never drawn too high
    inside = np.searchsorted(fpr, grid, side="right") - 1
    kept: NDArray[np.intp] = np.unique(
        np.concatenate([at_zero, inside, [len(fpr) - 1]]).astype(int)
    )
    return kept


def _whiskers_of_rate(axes: "Axes", findings: Sequence[Finding], metric: str, start: float) -> None:
    place = list(RATES).index(metric)
    color = (NONMEMBER, MEMBER, INK)[place]
    fpr = float(metric.removeprefix("tpr@"))
    axes.axvline(fpr, color=MUTED, linestyle=":", linewidth=1.0)
    for row, finding in enumerate(findings):
        _whisker(
            axes, finding.metrics.get(metric), row + 0.26 * (place - 1), RATES[metric], color, start
        )
    axes.plot([], [], RATES[metric], color=color, markersize=5, label=rate_name(metric))


def _whisker(
    axes: "Axes",
    value: Estimate | None,
    row: float,
    marker: str,
    color: str,
    start: float = 0.0,
) -> None:
    """A dot and its interval; what lies left of the axis is drawn on its end, as an arrow."""
    if value is None or value.value is None:
        return
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    ends = [max(low, start), max(high, start)]
    axes.plot(ends, [row, row], color=color, linewidth=1.3, solid_capstyle="butt")
    inside = value.value > start
    axes.plot(
        [value.value if inside else 1.1 * start], [row], marker if inside else "<",
        color=color, markersize=4.6, clip_on=False,
    )  # fmt: skip


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(names) - 1):
        axes.axhline(row + 0.5, color=GRID, linewidth=0.5)


def _percent_axis(axis: Any, start: float) -> None:
    decades = range(int(np.ceil(np.log10(start))), 1)
    axis.set_ticks([10.0**d for d in decades], labels=[f"{100 * 10.0**d:g}%" for d in decades])
    axis.minorticks_off()


def _note(axes: "Axes", x: float, text: str) -> None:
    axes.text(
        x, 0.97, text, rotation=90, color=MUTED, fontsize=7.5, ha="center", va="top",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def _lowest_rate(findings: Sequence[Finding], metrics: Sequence[str]) -> float:
    """Left end of the axis: a third of the strictest chance or of the lowest positive end."""
    estimates = (f.metrics.get(name) for f in findings for name in metrics)
    ends = [e.low for e in estimates if e is not None and e.low is not None and e.low > 0]
    chance = min((float(name.removeprefix("tpr@")) for name in metrics), default=0.1)
    return max(min([chance, *ends]) / 1.5, chance / 6)


# --- words -------------------------------------------------------------------------------------


def _roc_words(findings: Sequence[Finding]) -> str:
    parts = []
    for finding in findings:
        rates = ", ".join(
            f"{_words(finding.metrics.get(name))} at {rate_name(name)}" for name in RATES
        )
        parts.append(f"{finding.title}: true positive rates {rates} false positive rate.")
    return " ".join(parts)


def _words(value: Estimate | None, as_percent: bool = True) -> str:
    return "not measured" if value is None else estimate(value, as_percent=as_percent)


def _short(name: str, limit: int = 22) -> str:
    """A name for an axis: one line, no control characters (XML has none), not too long."""
    name = _printable(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _printable(text: str) -> str:
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Cn") else c for c in text)


def _shares(counts: Sequence[int]) -> NDArray[np.float64]:
    values = np.array(counts, dtype=np.float64)
    shares: NDArray[np.float64] = values / max(values.sum(), 1.0)
    return shares


def _median(edges: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    middle = min(int(np.searchsorted(np.cumsum(shares), 0.5)), len(shares) - 1)
    return float(edges[middle] + edges[middle + 1]) / 2


def _has_value(value: Estimate | None) -> bool:
    return value is not None and value.value is not None


# --- from matplotlib to a page -----------------------------------------------------------------


@contextmanager
def _drawing() -> Iterator[None]:
    """matplotlib's own defaults (not the user's), and ours on top, inside the block only."""
    try:
        from matplotlib import style
    except ImportError:
        raise MissingExtra("report.html needs matplotlib; run `pip install matplotlib`.") from None
    ours = {
        "svg.hashsalt": "vestige",
        "svg.fonttype": "none",
        "text.parse_math": False,  # a class may be called "$5"
        "font.size": 9.0,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.fontsize": 9.0,
        "legend.title_fontsize": 9.0,
        "hatch.linewidth": 0.6,
    }
    with style.context(["default", ours]), warnings.catch_warnings():
        # only used to measure text; the page brings the fonts that have the character
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(height: float, *, named_rows: bool = False) -> tuple["Figure", "Axes"]:
    """A figure with one axes; room for names is measured, which costs as much as drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained" if named_rows else None)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    if not named_rows:
        left, right, bottom, top = 0.68, 0.2, 0.48, 0.1  # inches
        figure.subplots_adjust(left / WIDTH, bottom / height, 1 - right / WIDTH, 1 - top / height)
    return figure, axes


def _svg(figure: "Figure", key: str, title: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root, ("metadata", "style"))
    for element in root.iter():
        _clean(element)
    _keep_ids(root, key)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": _printable(title),
        "aria-describedby": f"{key}-desc",
        "class": "plot",
        "style": "stroke-linejoin: round; font-family: var(--sans, sans-serif)",
    }
    root.insert(0, _text_element("title", title))
    root.insert(1, _text_element("desc", description, id=f"{key}-desc"))
    return ElementTree.tostring(root, encoding="unicode")


def _text_element(tag: str, text: str, **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, attributes)
    element.text = _printable(text)
    return element


def _drop(root: ElementTree.Element, tags: tuple[str, ...]) -> None:
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] in tags]:
            parent.remove(child)


_COLOR = re.compile("#[0-9a-f]{6}")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def _clean(element: ElementTree.Element) -> None:
    """No namespaces, CSS variables for colors, the font of the page, two decimals."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {name.rpartition("}")[2]: v for name, v in element.attrib.items()}
    for name, value in element.attrib.items():
        if name == "style":
            value = _style(value)
        if name in ("d", "transform", "x", "y", "width", "height", "style"):
            value = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
        element.attrib[name] = " ".join(value.split())
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None


def _style(style: str) -> str:
    """Declarations without the font family, colors as variables of the page."""
    kept = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # "9px 'DejaVu Sans', ..., sans-serif"
            name, value = "font-size", value.split("px")[0].split()[-1] + "px"
        if name and name != "font-family":
            kept.append(f"{name}: {_COLOR.sub(lambda m: THEME.get(m[0], m[0]), value)}")
    return "; ".join(kept)


def _keep_ids(root: ElementTree.Element, key: str) -> None:
    """Drop ids that nothing refers to and prefix the rest: many figures share one page."""
    refers = re.compile(r"#([\w.-]+)")
    used = {
        name
        for element in root.iter()
        for attribute in ("href", "clip-path", "style", "fill")
        for name in refers.findall(element.attrib.get(attribute, ""))
    }
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.attrib["id"] = f"{key}-{own}"
        for attribute in ("href", "clip-path", "style", "fill"):
            if attribute in element.attrib:
                element.attrib[attribute] = re.sub(
                    r"(url\(#|^#)", rf"\g<1>{key}-", element.attrib[attribute]
                )
