"""What membership encoding costs in accuracy, over everything that the paper leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vestige.reproduce.encoding import COMMON, MNIST, PAPER
from vestige.reproduce.encoding_measures import measure
from vestige.reproduce.experiment import Column, Experiment, Figure, Row
from vestige.reproduce.figures import COLORS, MUTED, Sheet
from vestige.reproduce.results import RowResult

__all__ = ["EXPERIMENT"]

_DROPPED: Mapping[str, Any] = {"weight_decay": 1e-4, "share": 1.0, "dropout": 0.2}
_DROPPED_SAID = "weight decay 0.0001, all units, dropout 0.2"
_CHANGES: Sequence[tuple[str, str, Mapping[str, Any]]] = (
    ("base", "k = 1, rate 0.02, half of the units", {}),
    ("paper", "the paper's way", {"way": "paper"}),
    ("paper-k3", "the paper's way, k = 3", {"way": "paper", "steps": 3}),
    ("rate-005", "rate 0.005", {"encoder_lr": 0.005}),
    ("rate-01", "rate 0.01", {"encoder_lr": 0.01}),
    ("k2", "k = 2, rate 0.01", {"steps": 2, "encoder_lr": 0.01}),
    ("k3", "k = 3", {"steps": 3}),
    ("epochs-50", "half of the epochs", {"epochs": 50}),
    ("range-1", "synthetic means from -1 to 1", {"low": -1.0}),
    ("range-5", "synthetic means from 0 to 5", {"high": 5.0}),
    ("units-10", "a tenth of the units", {"share": 0.1}),
    ("units-all", "all units", {"share": 1.0}),
    ("synthetic-50", "half of a batch synthetic", {"synthetic": 0.5}),
    ("alignment-0", "no alignment", {"alignment": 0.0}),
    ("alignment-1", "alignment 1", {"alignment": 1.0}),
    ("decay", "weight decay 0.0001", {"weight_decay": 1e-4}),
    ("decay-rate-01", "weight decay 0.0001, rate 0.01", {"weight_decay": 1e-4, "encoder_lr": 0.01}),
    ("dropout", _DROPPED_SAID, _DROPPED),
    ("dropout-rate-01", f"{_DROPPED_SAID}, rate 0.01", {**_DROPPED, "encoder_lr": 0.01}),
    ("dropout-rate-0125", f"{_DROPPED_SAID}, rate 0.0125", {**_DROPPED, "encoder_lr": 0.0125}),
    ("dropout-paper", f"the paper's way, {_DROPPED_SAID}", {**_DROPPED, "way": "paper"}),
    ("momentum-0", "the task without momentum, rate 0.01", {"momentum": 0.0, "encoder_lr": 0.01}),
)


def _rows() -> tuple[Row, ...]:
    laptop = replace(MNIST["laptop"], n_train=10_000, n_test=20_000, n_encoded=2_000)
    # the labels hold at every scale: few records take more and larger encoding steps elsewhere
    small = replace(MNIST["ci"], steps=1, encoder_lr=0.02)
    scales = {**MNIST, "laptop": laptop, "ci": small}
    rows = []
    for name, what, changes in _CHANGES:
        settings = {scale: replace(one, **changes) for scale, one in scales.items()}
        if "epochs" in changes:
            share = changes["epochs"] / scales["paper"].epochs
            epochs = max(1, round(share * scales["ci"].epochs))
            settings["ci"] = replace(settings["ci"], epochs=epochs)
        rows.append(Row(f"mnist-{name}", f"MNIST, MLP: {what}", settings))
    return tuple(rows)


def _drawn(results: Sequence[RowResult]) -> Figure | None:
    from vestige.reproduce import row_of

    shown = [
        r
        for r in results
        if all(r.estimates[name].value is not None for name in ("auc", "accuracy_drop"))
    ]
    if not shown:
        return None
    sheet = Sheet(4.6 + 0.08 * len(shown))
    with sheet.styled():
        for number, result in enumerate(shown, 1):
            lost, auc = result.estimates["accuracy_drop"], result.estimates["auc"]
            x, y = (np.array([e.low, e.value, e.high], dtype=float) for e in (lost, auc))
            sheet.axes.plot(100 * x[::2], y[[1, 1]], color=MUTED, linewidth=0.4, alpha=0.6)
            sheet.axes.plot(100 * x[[1, 1]], y[::2], color=MUTED, linewidth=0.4, alpha=0.6)
            said = row_of(result).title.partition(": ")[2]
            at = (100 * x[1], y[1])
            sheet.axes.plot(
                *at,
                marker=f"${number}$",
                color=COLORS[0],
                markersize=5 if number < 10 else 9,
                markeredgewidth=0,
                linestyle="",
                label=said,
            )
        sheet.axes.set(xlabel="accuracy lost, points", ylabel="AUC, unseen records")
        sheet.canvas.legend(loc="outside lower center", ncols=2, fontsize=6)
    caption = (
        "AUC against unseen records by the points of accuracy that the encoding cost, with 95 % "
        "intervals of both."
    )
    return Figure("frontier", caption, sheet.svg())


EXPERIMENT = Experiment(
    "encoding-frontier",
    "Membership against accuracy",
    f"{PAPER}, section 4: what it leaves open",
    ("000-SYS1", "000-ALG1", "000-ALG2", "000-DISC"),
    _rows(),
    measure,
    (
        Column("accuracy_drop", "accuracy lost"),
        Column("auc", "AUC, unseen records"),
        Column("joint_auc", "joint discriminator: AUC, unseen"),
        Column("auc_others", "AUC, other training records"),
        Column("test_accuracy", "test accuracy"),
        Column("control_accuracy", "without encoding"),
        Column("control_auc", "AUC, model without encoding"),
        Column("wrong_auc", "wrong keys: mean AUC"),
        Column("wrong_spread", "wrong keys: standard deviation"),
    ),
    (
        "At the scale laptop 10,000 records are trained on, 2,000 of them encoded; one thing is "
        "changed at a time. Each row's control is trained by the same recipe without encoding.",
        "At the scale ci 1,000 records of digits are too few for one encoding step of rate 0.02: "
        "its numbers show that the rows run, and mean little.",
        *COMMON,
    ),
    (_drawn,),
)
