"""Drawings of membership encoding: trajectories, masks, capacity, pruning, and projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from vestige.metrics import Estimate
from vestige.reproduce.experiment import Drawing, Figure
from vestige.reproduce.figures import COLORS, INK, LINES, MARKS, Sheet
from vestige.reproduce.results import RowResult

__all__ = [
    "by_number", "by_parameters", "by_share", "by_width", "cells_of_a_grid", "losses",
    "on_the_way", "projection", "trajectories",
]  # fmt: skip

_SETS = (
    ("synthetic, member", "o", "#c2478f", True),
    ("synthetic, other", "^", "#d97a1c", True),
    ("client's, encoded", "o", "#1f5f93", False),
    ("client's, not encoded", "^", "#8a8f94", False),
)
"""Of the paper's Figures 5 and 6: pink circles, orange triangles, hollow blue, hollow gray."""


# --- series by the epoch -------------------------------------------------------------------------


def losses() -> Drawing:
    """The task's loss on encoded records, the client's others, and unseen ones; L_enc."""
    names = {
        "loss_members": "encoded", "loss_nonmembers": "others", "loss_test": "unseen",
        "loss_encoding": "the encoding's own",
    }  # fmt: skip
    caption = (
        "The task's loss by the epoch, on encoded records, the client's other records, and records "
        "that the model never saw; and the loss of the encoding, on all that it is trained on."
    )
    return _by_epoch("losses", names, "loss", caption)


def trajectories() -> Drawing:
    """AUC against unseen records on the way: of the joint discriminator, and decoded."""
    names = {"auc_test_joint": "joint discriminator", "auc_test_decoded": "decoded"}
    caption = (
        "AUC of encoded records against unseen ones by the epoch: by the discriminator that is "
        "trained with the model, and by projection on the line between the synthetic sides."
    )
    return _by_epoch("trajectories", names, "AUC, unseen records", caption)


def on_the_way() -> Drawing:
    """What is left by the epochs on another task."""
    names = {
        "after_auc": "AUC", "after_precision": "precision", "after_recall": "recall",
        "after_fpr": "false positive rate", "after_control_auc": "AUC without encoding",
    }  # fmt: skip
    caption = (
        "By the epochs on another task: AUC against unseen records, precision, recall and false "
        "positive rate at cut 0, and the AUC of the model without encoding."
    )
    return _by_epoch("on-the-way", names, "what is read", caption)


def _by_epoch(name: str, names: Mapping[str, str], label: str, caption: str) -> Drawing:
    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if set(names) | {"epoch"} <= set(r.series)]
        if not shown:
            return None
        sheet = Sheet(2.9, panels=len(shown))
        with sheet.styled():
            for axes, result in zip(sheet.panels, shown, strict=True):
                for k, (key, said) in enumerate(names.items()):
                    # a precision of no record at all is -1 there
                    y = np.array(result.series[key], dtype=float)
                    axes.plot(
                        result.series["epoch"], np.where(y < 0, np.nan, y), MARKS[k],
                        linestyle=LINES[k], color=COLORS[k], linewidth=1.2, markersize=3,
                        label=said,
                    )  # fmt: skip
                axes.set_title(fill(row_of(result).title, 60 // len(shown)), fontsize=7)
                axes.set(xlabel="epoch")
            sheet.axes.set_ylabel(label)
            sheet.axes.legend(fontsize=6 if len(shown) < 4 else 5)
        return Figure(name, caption, sheet.svg())

    return draw


# --- rows against what they were run with --------------------------------------------------------

_Line = list[tuple[float, Estimate, float | None]]
"""Where, what, and what the paper has."""
_At = Callable[[Any, RowResult], float]
"""Where a row of these settings stands."""


def by_number() -> Drawing:
    """AUC and false positive rate by the number of encoded records."""
    caption = (
        "By the share of the client's records that are encoded: AUC against unseen records, and "
        "the false positive rate at cut 0; open marks follow from the paper's figures."
    )
    titles = {"auc": "AUC, unseen records", "fpr": "FPR, cut 0"}

    def at(settings: Any, result: RowResult) -> float:
        return 100 * float(settings.n_encoded / settings.n_train)

    return _against("by-number", titles, "encoded, % of the client's", caption, at)


def by_parameters() -> Drawing:
    """AUC and accuracy by the size of the network."""
    caption = "By the number of parameters: AUC against unseen records, and test accuracy."

    def at(settings: Any, result: RowResult) -> float:
        return result.estimates["parameters"].value or np.nan

    titles = {"auc": "AUC, unseen records", "test_accuracy": "test accuracy"}
    return _against("by-parameters", titles, "parameters", caption, at, logarithmic=True)


def by_width() -> Drawing:
    """AUC by the width that is masked, a panel a data set."""
    caption = (
        "AUC against unseen records by the width that is masked, of 32 pixels; open marks are the "
        "paper's figures."
    )
    titles = {"auc": "AUC, unseen records"}
    return _panels("by-width", titles, "width", caption, lambda settings, _: settings.place)


def by_share() -> Drawing:
    """AUC and accuracy by the share of the weights that is pruned, a panel a network."""
    caption = "By the share of the weights that is zero: AUC against unseen records, and accuracy."
    titles = {"auc": "AUC", "test_accuracy": "accuracy"}
    return _panels(
        "by-share", titles, "pruned, %", caption, lambda settings, _: 100 * settings.pruned
    )


def _panels(name: str, titles: Mapping[str, str], label: str, caption: str, at: _At) -> Drawing:
    """A panel for each data set and network, whose titles end before the second comma."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        panels: dict[str, list[tuple[str, _Line]]] = {}
        for key, title in titles.items():
            for said, line in _lines(results, key, at).items():
                data, network, *rest = said.split(", ")
                words = [*rest, title] if len(titles) > 1 else rest
                panels.setdefault(f"{data}, {network}", []).append((", ".join(words), line))
        if not panels:
            return None
        sheet = Sheet(3.2, panels=len(panels))
        with sheet.styled():
            for axes, (title, lines) in zip(sheet.panels, panels.items(), strict=True):
                for k, (said, line) in enumerate(lines):
                    _draw_line(axes, k, said, line)
                axes.set_title(title, fontsize=7)
                axes.set(xlabel=label)
                axes.legend(fontsize=5.5)
            if len(titles) == 1:
                sheet.axes.set_ylabel(next(iter(titles.values())))
        return Figure(name, caption, sheet.svg())

    return draw


def _against(
    name: str, titles: Mapping[str, str], label: str, caption: str, at: _At,
    logarithmic: bool = False,
) -> Drawing:  # fmt: skip
    """A panel for each of several estimates."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        sheet = Sheet(3.6, panels=len(titles))
        drawn = 0
        with sheet.styled():
            for axes, (key, title) in zip(sheet.panels, titles.items(), strict=True):
                lines = _lines(results, key, at)
                drawn += len(lines)
                for k, (said, line) in enumerate(lines.items()):
                    _draw_line(axes, k, said, line)
                axes.set(xlabel=label, ylabel=title, xscale="log" if logarithmic else "linear")
            if not drawn:
                return None
            sheet.axes.legend(fontsize=5.5)
        return Figure(name, caption, sheet.svg())

    return draw


def _lines(results: Sequence[RowResult], key: str, at: _At) -> dict[str, _Line]:
    """Points of rows whose titles differ in what follows the last space, or comma, only."""
    from vestige.reproduce import row_of

    lines: dict[str, _Line] = {}
    for result in results:
        found = result.estimates.get(key)
        if found is None or found.value is None:
            continue
        row = row_of(result)
        # "MNIST, MLP, 20 % encoded" and "CIFAR-10, VGG, white-box, center 4"
        head, _, last = row.title.rpartition(", ")
        words = [w for w in last.split() if not w[0].isdigit() and w not in ("%", "encoded")]
        said = ", ".join([head, *words]) if words not in (["units"], ["filters"]) else head
        x = float(at(row.settings[result.scale], result))
        lines.setdefault(said, []).append((x, found, row.paper.get(key)))
    return lines


def _draw_line(axes: Any, k: int, said: str, line: _Line) -> None:
    color, mark, style = COLORS[k % len(COLORS)], MARKS[k % len(MARKS)], LINES[k % len(LINES)]
    x = np.array([point[0] for point in line])
    y = np.array([point[1].value for point in line], dtype=float)
    low = np.array([e.value if e.low is None else e.low for _, e, _ in line], dtype=float)
    high = np.array([e.value if e.high is None else e.high for _, e, _ in line], dtype=float)
    axes.errorbar(
        x, y, np.stack([y - low, high - y]).clip(0), fmt=mark, linestyle=style, color=color,
        linewidth=1.2, markersize=3.5, label=said,
    )  # fmt: skip
    known = [(point[0], point[2]) for point in line if point[2] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), mark, color=color, markerfacecolor="none")


# --- pictures ------------------------------------------------------------------------------------


def cells_of_a_grid() -> Drawing:
    """Recall where one of sixteen cells is masked, as a heat map a data set."""

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        tables: dict[str, dict[tuple[int, int], RowResult]] = {}
        for result in results:
            row = row_of(result)
            cell = divmod(row.settings[result.scale].place, 4)
            tables.setdefault(row.title.partition(", cell")[0], {})[cell] = result
        sheet = Sheet(3.3, panels=max(1, len(tables)))
        with sheet.styled():
            for axes, (title, cells) in zip(sheet.panels, tables.items(), strict=False):
                _heat(axes, title, cells)
        caption = (
            "With one of sixteen cells masked, in its place: precision / recall at cut 0, and "
            "below them the false positive rate; the darker, the higher the recall."
        )
        return Figure("cells", caption, sheet.svg()) if tables else None

    return draw


def _heat(axes: Any, title: str, cells: Mapping[tuple[int, int], RowResult]) -> None:
    table = np.full((4, 4), np.nan)
    for (down, right), result in cells.items():
        said = {name: result.estimates[name].value for name in ("precision", "recall", "fpr")}
        table[down, right] = np.nan if said["recall"] is None else said["recall"]
        words = {n: "-" if v is None else f"{v:.2f}" for n, v in said.items()}
        dark = (said["recall"] or 0) > 0.6
        axes.text(
            right, down, f"{words['precision']} / {words['recall']}\n{words['fpr']}", ha="center",
            va="center", fontsize=5.5, color="white" if dark else INK,
        )  # fmt: skip
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.grid(False)
    axes.set_title(title, fontsize=7)
    axes.set(xticks=range(4), yticks=range(4), xticklabels="1234", yticklabels="1234")


def projection(kind: str, title: str) -> Drawing:
    """The four sets on a plane, a panel a row.

    Args:
        kind: of the series `<kind>_x` and `<kind>_y`: as many points of each set, one set after
            the other.
        title: of the projection.
    """

    def draw(results: Sequence[RowResult]) -> Figure | None:
        from vestige.reproduce import row_of

        shown = [r for r in results if r.series.get(f"{kind}_x")]
        if not shown:
            return None
        sheet = Sheet(3.6, panels=len(shown))
        with sheet.styled():
            for axes, result in zip(sheet.panels, shown, strict=True):
                x, y = (np.array(result.series[f"{kind}_{one}"]).reshape(4, -1) for one in "xy")
                for k, (said, mark, color, filled) in enumerate(_SETS):
                    axes.plot(
                        x[k], y[k], mark, color=color, markersize=2.6, markeredgewidth=0.5,
                        markerfacecolor=color if filled else "none", label=said, rasterized=True,
                    )  # fmt: skip
                axes.set_title(f"{row_of(result).title}, {title}", fontsize=7)
                axes.set(xticks=[], yticks=[])
            sheet.axes.legend(fontsize=5.5, markerscale=1.5)
        caption = (
            f"{title} of what carries the bits, as many points of each set: synthetic members and "
            "others (filled), the client's encoded records and its others (hollow)."
        )
        return Figure(kind, caption, sheet.svg())

    return draw
