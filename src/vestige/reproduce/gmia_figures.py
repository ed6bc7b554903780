"""Drawings of generalized membership inference: curves, digits, and the plane of figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.reproduce.experiment import Drawing, Figure
from vestige.reproduce.figures import COLORS, INK, LINES, MARKS, MUTED, Sheet
from vestige.reproduce.results import RowResult

__all__ = ["auc_by_neighbors", "density", "pictures", "precision_recall", "toy"]

Floats = NDArray[np.float64]


_Points = list[tuple[float, float]]


def precision_recall(*ways: str) -> Drawing:
    """Precision against recall over all cutoffs, a panel a data set, and the paper's points.

    Args:
        ways: of attacking, each with a curve of its own; none where there is only one.
    """

    def draw(results: Sequence[RowResult]) -> Figure | None:
        panels = _curves(results, ways)
        if not panels:
            return None
        sheet = Sheet(3.7, panels=len(panels))
        with sheet.styled():
            for axes, (title, lines) in zip(sheet.panels, panels.items(), strict=True):
                _curves_of(axes, lines)
                axes.set_title(title, fontsize=8)
            sheet.axes.set_ylabel("precision")
        caption = "Precision against recall over all cutoffs; open marks are the paper's figures."
        return Figure("precision-against-recall", caption, sheet.svg())

    return draw


def _curves(
    results: Sequence[RowResult], ways: Sequence[str]
) -> dict[str, dict[tuple[tuple[float, ...], ...], tuple[str, _Points]]]:
    """By data set: curves, each with its label and the paper's points."""
    from vestige.reproduce import row_of

    panels: dict[str, dict[tuple[tuple[float, ...], ...], tuple[str, _Points]]] = {}
    for result in results:
        row = row_of(result)
        for way in ways or ("",):
            paper = [f"{way}_{what}".strip("_") for what in ("recall", "precision")]
            names = [f"{way or 'curve'}_{what}" for what in ("recall", "precision")]
            line = tuple(tuple(result.series.get(name, ())) for name in names)
            if not line[0]:
                continue
            data, _, rest = row.title.split(", p ")[0].partition(", ")
            label = ", ".join(filter(None, (rest, way))) or "one pool"
            # rows that differ in the cutoff have one curve and several points
            _, points = panels.setdefault(data, {}).setdefault(line, (label, []))
            if set(paper) <= set(row.paper):
                points.append((row.paper[paper[0]], row.paper[paper[1]]))
    return panels


def _curves_of(
    axes: Any, lines: Mapping[tuple[tuple[float, ...], ...], tuple[str, _Points]]
) -> None:
    for k, ((recall, precision), (label, points)) in enumerate(lines.items()):
        color, mark = COLORS[k % len(COLORS)], MARKS[k % len(MARKS)]
        axes.plot(
            recall, precision, color=color, linestyle=LINES[k % len(LINES)], linewidth=1.2,
            marker=mark if points else None, markevery=[0], markersize=3, label=label,
        )  # fmt: skip
        if points:
            axes.plot(*zip(*points, strict=True), mark, color=color, markerfacecolor="none")
    axes.axhline(0.5, color=MUTED, linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="recall", xlim=(0, 1.01), ylim=(0, 1.04))
    axes.legend(fontsize=5.5, loc="lower right")


def auc_by_neighbors() -> Drawing:
    """AUC of records by how many neighbors they may expect in a training set."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if r.series.get("by_neighbors")]
        if not shown:
            return None
        sheet = Sheet(3.2)
        with sheet.styled():
            for k, result in enumerate(shown):
                # a tenth of a neighbor stands for none: the axis is logarithmic
                x = np.maximum(np.array(result.series["by_neighbors"]), 0.1)
                y, low, high = (
                    np.array(result.series[f"by_{name}"]) for name in ("auc", "auc_low", "auc_high")
                )
                color, mark = COLORS[k % len(COLORS)], MARKS[k % len(MARKS)]
                sheet.axes.errorbar(
                    x, y, np.stack([y - low, high - y]), fmt=mark + "-", color=color,
                    linewidth=1.2, label=row_of(result).title,
                )  # fmt: skip
            sheet.axes.axhline(0.5, color=MUTED, linestyle=":", label="chance")
            sheet.axes.set(
                xscale="log", xlabel="neighbors to expect in a training set (0.1: none)",
                ylabel="AUC of membership",
            )  # fmt: skip
            sheet.axes.legend(fontsize=7)
        caption = (
            "Every record of the pool, by the neighbors it may expect: AUC over all targets with "
            "its interval."
        )
        return Figure("auc-by-neighbors", caption, sheet.svg())

    return draw


def pictures(caption: str) -> Drawing:
    """Records as pictures, their labels in the caption; the last row's where there are several."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        shown = [r for r in results if r.series.get("pixels")]
        if not shown:
            return None
        series = shown[-1].series
        side = int(series["side"][0])
        table = np.array(series["pixels"]).reshape(-1, side, side)
        columns = min(10, len(table))
        rows = -(-len(table) // columns)
        sheet = Sheet(0.2 + 0.75 * rows)
        with sheet.styled():
            sheet.axes.imshow(
                _grid(table, rows, columns), cmap="gray_r", vmin=0, vmax=255, interpolation="none"
            )
            sheet.axes.set_axis_off()
        labels = ", ".join(f"{int(label)}" for label in series["label"])
        return Figure("pictures", f"{caption} Labels: {labels}.", sheet.svg())

    return draw


def _grid(table: Floats, rows: int, columns: int, gap: int = 2) -> Floats:
    """Pictures (n, side, side) side by side on a white sheet."""
    side = table.shape[1]
    sheet = np.zeros((rows * (side + gap), columns * (side + gap)))
    for k, picture in enumerate(table):
        top, left = (k // columns) * (side + gap), (k % columns) * (side + gap)
        sheet[top : top + side, left : left + side] = picture
    return sheet


def density(points: Floats) -> Any:
    """A kernel density of points (n, 2)."""
    from scipy.stats import gaussian_kde

    return gaussian_kde(points.T)


_GRID = 60


def toy() -> Drawing:
    """The attack in one look: a record, what models say with it and without, and the odds."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        shown = [r for r in results if r.series.get("in_1")]
        if not shown:
            return None
        series = {name: np.array(values) for name, values in shown[-1].series.items()}
        sheet = Sheet(2.7, panels=3)
        with sheet.styled():
            _plane(sheet.panels[0], series)
            _at_the_record(sheet.panels[1], series)
            _odds(sheet, sheet.panels[2], series)
        caption = (
            "Left: a lone record (star), where the models are asked (1: the record itself, 2: "
            "another point). Middle: what models say of 1, trained with the record (hatched) and "
            "without. Right: how much likelier an answer to both is with the record than without; "
            "points are models."
        )
        return Figure("toy", caption, sheet.svg())

    return draw


def _plane(axes: Any, series: Mapping[str, Floats]) -> None:
    x, y, label = (series[name][:-1] for name in ("x", "y", "label"))
    for sign, value, color in (("_", 0, COLORS[0]), ("+", 1, COLORS[1])):
        here = label == value
        axes.plot(x[here], y[here], sign, color=color, markersize=3, alpha=0.5, rasterized=True)
    axes.plot(series["x"][-1:], series["y"][-1:], "*", color=COLORS[1], markersize=11)
    for k, (at, up) in enumerate(zip(series["query_x"], series["query_y"], strict=True)):
        axes.plot([at], [up], "o", color=INK, markerfacecolor="none", markersize=13)
        axes.annotate(str(k + 1), (at, up), (9, 7), textcoords="offset points", fontsize=9)
    axes.set_title("(a) records", fontsize=8)
    axes.set(xlabel="feature 1", ylabel="feature 2", ylim=(None, max(series["query_y"]) + 0.9))


def _at_the_record(axes: Any, series: Mapping[str, Floats]) -> None:
    bins = np.linspace(0, 1, 26)
    for name, label in (("in_1", "with the record"), ("out_1", "without")):
        shares = np.histogram(_probability(series[name]), bins)[0] / len(series[name])
        inside = name == "in_1"
        axes.stairs(
            shares, bins, color=COLORS[1] if inside else COLORS[0], label=label,
            hatch="////" if inside else None, fill=inside, facecolor="none",
            edgecolor=COLORS[1] if inside else COLORS[0],
            linewidth=0.8 if inside else 1.6,
        )  # fmt: skip
    axes.set_title("(b) answers to query 1", fontsize=8)
    axes.set(xlabel='probability of "+"', ylabel="share of models", xlim=(0, 1))
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(fontsize=7, loc="upper right")


def _odds(sheet: Sheet, axes: Any, series: Mapping[str, Floats]) -> None:
    sides = [np.column_stack([series[f"{s}_1"], series[f"{s}_2"]]) for s in ("in", "out")]
    fitted = [density(side) for side in sides]
    p = (np.arange(_GRID) + 0.5) / _GRID
    logit = np.log(p / (1 - p))
    points = np.stack(np.meshgrid(logit, logit)).reshape(2, -1)
    logs = np.array([f.logpdf(points) for f in fitted])
    # where there are next to no models of either kind, nothing is known
    logs = np.maximum(logs, logs.max() - np.log(1e4))
    ratio = np.clip((logs[0] - logs[1]) / np.log(10), -2, 2).reshape(_GRID, _GRID)
    image = axes.imshow(
        ratio, cmap="PuOr_r", vmin=-2, vmax=2, origin="lower", extent=(0, 1, 0, 1),
        interpolation="none", aspect="auto",
    )  # fmt: skip
    for side, mark in zip(sides, ("x", "."), strict=True):
        at = _probability(side)
        axes.plot(
            at[:, 0], at[:, 1], mark, color=INK, markersize=2.5, alpha=0.6, rasterized=True,
            markeredgewidth=0.6,
        )  # fmt: skip
    bar = sheet.canvas.colorbar(image, ax=axes, ticks=[-2, 0, 2])
    bar.ax.set_yticklabels(["100 : 1 without", "1 : 1", "100 : 1 with"], fontsize=6, rotation=90)
    for label, end in zip(bar.ax.get_yticklabels(), ("bottom", "center", "top"), strict=True):
        label.set(verticalalignment=end)
    axes.grid(False)
    axes.set_title("(c) odds, from two queries", fontsize=8)
    axes.set(xlabel='"+" at query 1', ylabel='"+" at query 2')


def _probability(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))
