"""Figures of the generated pages, as SVG: the same results give the same bytes.

Each function returns a drawing: from the finished rows of one scale to a figure, or None where they
have nothing to draw. Color never carries a meaning alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vestige.errors import MissingExtra
from vestige.reproduce.experiment import Drawing, Figure
from vestige.reproduce.results import RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "beside_the_paper",
    "fidelity_against_accuracy",
    "gap_against_leakage",
    "histograms",
    "precision_by_class",
    "precision_curves",
]

Floats = NDArray[np.float64]

INK, MUTED, GRID = "#1b1f24", "#5f6770", "#d9dcdf"
COLORS = ("#1f5f93", "#a8481c", "#3b7a57", "#7b4fa3", "#8a6d00", "#4d4d4d")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKS = "osD^vPX*"
WIDTH = 6.4

_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "vestige",
    "path.simplify": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
}


class Sheet:
    """Axes side by side that become an SVG."""

    def __init__(self, height: float, panels: int = 1) -> None:
        try:
            from matplotlib import style
            from matplotlib.backends.backend_svg import FigureCanvasSVG
            from matplotlib.figure import Figure as Canvas
        except ImportError:
            raise MissingExtra(
                "expected matplotlib, which draws the figures; run `pip install matplotlib`"
            ) from None
        self._style = style
        with self.styled():
            self.canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
            FigureCanvasSVG(self.canvas)
            found = self.canvas.subplots(1, panels, squeeze=False)
        self.panels: list[Axes] = list(found[0])
        self.axes = self.panels[0]

    def styled(self) -> Any:
        """matplotlib's own defaults (not the user's), and ours on top."""
        return self._style.context(["default", _STYLE])

    def svg(self) -> bytes:
        out = io.BytesIO()
        with self.styled():
            self.canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        lines = [line.rstrip() for line in out.getvalue().decode().splitlines()]
        return ("\n".join(lines) + "\n").encode()


def beside_the_paper(key: str, title: str) -> Drawing:
    """One estimate of each row with its interval, and the paper's figure."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if key in r.estimates and r.estimates[key].value is not None]
        if not shown:
            return None
        sheet = Sheet(1.1 + 0.28 * len(shown))
        with sheet.styled():
            axes, places = sheet.axes, np.arange(len(shown))[::-1]
            for at, result in zip(places, shown, strict=True):
                e = result.estimates[key]
                assert e.value is not None
                low = e.value if e.low is None else e.low
                high = e.value if e.high is None else e.high
                axes.plot([low, high], [at, at], color=COLORS[0], linewidth=1.6)
                axes.plot([e.value], [at], "o", color=COLORS[0], label="ours" if not at else None)
            said = [(row_of(r).paper.get(key), at) for r, at in zip(shown, places, strict=True)]
            known = [(v, at) for v, at in said if v is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True), "D", color=COLORS[1], markerfacecolor="none",
                    label="paper", linestyle="none",
                )  # fmt: skip
            axes.set_yticks(places, [row_of(r).title for r in shown])
            axes.set(xlabel=title, ylim=(-0.7, len(shown) - 0.3))
            axes.legend(loc="best")
        caption = f"{title}, ours with its interval" + (" and the paper's (diamond)" * bool(known))
        return Figure(
            f"{key.replace('_', '-')}", f"{caption[0].upper()}{caption[1:]}.", sheet.svg()
        )

    return draw


def _precisions(result: RowResult) -> Floats:
    """Of every class that has a record called a member."""
    tp, fp = (np.array(result.series.get(k, ())) for k in ("tp", "fp"))
    called = tp + fp
    return np.asarray(tp[called > 0] / called[called > 0])


def precision_curves() -> Drawing:
    """Empirical distribution over classes of the precision of each, a curve a row."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [(r, _precisions(r)) for r in results if len(_precisions(r))]
        if not shown:
            return None
        sheet = Sheet(3.6)
        with sheet.styled():
            for k, (result, values) in enumerate(shown):
                x = np.concatenate([[0.0], np.sort(values), [1.0]])
                y = np.concatenate([[0.0], np.arange(1, len(values) + 1) / len(values), [1.0]])
                sheet.axes.step(
                    x, y, where="post", color=COLORS[k % len(COLORS)],
                    linestyle=LINES[k % len(LINES)], label=row_of(result).title,
                )  # fmt: skip
            sheet.axes.set(
                xlim=(0, 1.01), ylim=(0, 1.02),
                xlabel="precision", ylabel="share of classes with at most this precision",
            )  # fmt: skip
            sheet.axes.legend(loc="upper left")
        caption = "Empirical distribution over classes of the attack's precision; right is worse."
        return Figure("precision-over-classes", caption, sheet.svg())

    return draw


def precision_by_class(size: str, title: str) -> Drawing:
    """Precision of each class against a size of the row, medians connected, a line a data set."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        shown = [r for r in results if len(_precisions(r)) and size in r.sizes]
        if not shown:
            return None
        sheet = Sheet(3.4)
        with sheet.styled():
            for k, data in enumerate(sorted({_family(r) for r in shown})):
                rows = sorted((r for r in shown if _family(r) == data), key=lambda r: r.sizes[size])
                x = [float(r.sizes[size]) for r in rows]
                color, mark = COLORS[k % len(COLORS)], MARKS[k % len(MARKS)]
                for at, result in zip(x, rows, strict=True):
                    values = _precisions(result)
                    sheet.axes.plot([at] * len(values), values, "_", color=color, alpha=0.5)
                medians = [float(np.median(_precisions(r))) for r in rows]
                sheet.axes.plot(x, medians, mark + "-", color=color, label=f"{data}, median")
            sheet.axes.axhline(0.5, color=MUTED, linestyle=":", label="chance")
            sheet.axes.set(xlabel=title, ylabel="precision of a class", ylim=(0, 1.03))
            sheet.axes.legend(loc="lower right")
        return Figure(
            "precision-by-class", f"Precision of each class (ticks) and medians, by {title}.",
            sheet.svg(),
        )  # fmt: skip

    return draw


def _family(result: RowResult) -> str:
    name = result.data.get("name", "")
    return name.rsplit("_", 1)[0] if "_like_" in name else name


def histograms(what: str) -> Drawing:
    """Shares of members and non-members in the bins of one quantity, a panel a row."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if f"{what}_members" in r.series]
        if not shown:
            return None
        sheet = Sheet(2.6, panels=len(shown))
        with sheet.styled():
            for axes, result in zip(sheet.panels, shown, strict=True):
                inside = np.array(result.series[f"{what}_members"])
                outside = np.array(result.series[f"{what}_nonmembers"])
                edges = np.linspace(0, 1, len(inside) + 1)
                axes.stairs(
                    inside, edges, fill=True, facecolor="none", edgecolor=COLORS[1],
                    hatch="////", linewidth=0.8, label="members",
                )  # fmt: skip
                axes.stairs(outside, edges, color=COLORS[0], linewidth=1.6, label="non-members")
                axes.set_title(row_of(result).title.replace(", ", "\n"), fontsize=8)
                axes.set(xlabel=what, xlim=(0, 1))
            sheet.axes.set_ylabel("share of the side")
            sheet.axes.legend(fontsize=7)
        return Figure(what, f"{what.capitalize()} of members (hatched) and others.", sheet.svg())

    return draw


def gap_against_leakage() -> Drawing:
    """A point for each run: what the target fails to generalize, and what the attack wins."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        shown = [r for r in results if r.series.get("gap")]
        if not shown:
            return None
        sheet = Sheet(3.4)
        with sheet.styled():
            result = shown[-1]
            sheet.axes.plot(
                result.series["gap"], result.series["attack_accuracy"], "o", color=COLORS[0]
            )
            sheet.axes.axhline(0.5, color=MUTED, linestyle=":", label="chance")
            sheet.axes.set(
                xlabel="generalization gap (training - test accuracy)", ylabel="attack accuracy"
            )
            sheet.axes.legend(loc="lower right")
        return Figure("gap-against-leakage", "Every run as a point.", sheet.svg())

    return draw


def fidelity_against_accuracy() -> Drawing:
    """Accuracy and fidelity of surrogates by the number of queries, a color a kind of answer."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if r.series.get("budget")]
        if not shown:
            return None
        sheet = Sheet(3.2, panels=2)
        with sheet.styled():
            left, right = sheet.panels
            for k, result in enumerate(shown):
                color, mark = COLORS[k % len(COLORS)], MARKS[k % len(MARKS)]
                budget, accuracy = result.series["budget"], result.series["accuracy"]
                fidelity, title = result.series["fidelity"], row_of(result).title
                left.plot(budget, fidelity, mark + "-", color=color, label=f"{title}: fidelity")
                left.plot(budget, accuracy, mark + ":", color=color, label=f"{title}: accuracy")
                right.plot(accuracy, fidelity, mark + "-", color=color, label=title)
            level = shown[0].estimates["target_accuracy"].value
            if level is not None:
                left.axhline(level, color=MUTED, linestyle="--", label="the target's accuracy")
                right.axvline(level, color=MUTED, linestyle="--")
            left.set(xscale="log", xlabel="queries", ylabel="share of test records", ylim=(0, 1.02))
            right.set(xlabel="accuracy", ylabel="fidelity")
            left.legend(fontsize=6)
        caption = (
            "Accuracy (dotted) and fidelity of the surrogate by queries, and against each other; "
            "dashed: the target's accuracy."
        )
        return Figure("fidelity-against-accuracy", caption, sheet.svg())

    return draw
