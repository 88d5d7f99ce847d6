"""Figures for people, drawn by matplotlib without a screen or global state."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_all(curves: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw the curves of stages/lib/evaluation/curves.py and two figures of the history."""
    history = curves["history"]
    drawings: dict[str, Callable[[Axes], None]] = {
        "roc": lambda axes: _curve(axes, curves["roc"], "fpr", "tpr"),
        "precision_recall": lambda axes: _curve(
            axes, curves["precision_recall"], "recall", "precision"
        ),
        "scores": lambda axes: _lines(axes, curves["scores"], "score", ["real", "fake"]),
        "confusion": lambda axes: _confusion(axes, curves["confusion"]),
        "calibration": lambda axes: _calibration(axes, curves["calibration"]),
        "loss": lambda axes: _lines(axes, history, "epoch", ["train_loss", "val_loss"]),
        "val_auc": lambda axes: _lines(axes, history, "epoch", ["val_auc", "val_accuracy"]),
    }
    if "robustness" in curves:
        drawings["robustness"] = lambda axes: _robustness(axes, curves["robustness"])
    if "risk_coverage" in curves:
        drawings["risk_coverage"] = lambda axes: _risk_coverage(axes, curves["risk_coverage"])
    figures = {}
    for name, draw in drawings.items():
        figure = Figure(figsize=(5, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(name.replace("_", " "))
        figures[name] = figure
    return figures


def _curve(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    axes.plot(table[x], table[y])
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(alpha=0.3)


def _lines(axes: Axes, table: pd.DataFrame, x: str, ys: list[str]) -> None:
    for y in ys:
        axes.plot(table[x], table[y], label=y, marker="." if len(table) < 50 else None)
    axes.set_xlabel(x)
    axes.legend()
    axes.grid(alpha=0.3)


def _calibration(axes: Axes, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    axes.plot(table["mean_score"], table["fake_share"], marker="o")
    for score, share, count in table.itertuples(index=False):
        axes.annotate(f"{count:,.0f}", (score, share), (5, -9), textcoords="offset points", size=7)
    axes.set(xlabel="mean score of a bin (number of images)", ylabel="share of fakes in it")
    axes.set(xlim=(-0.02, 1.06), ylim=(-0.06, 1.02))
    axes.legend()
    axes.grid(alpha=0.3)


def _robustness(axes: Axes, table: pd.DataFrame) -> None:
    _lines(axes, table, "severity", [name for name in table if name != "severity"])
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set(xlabel="severity (0: as it is)", ylabel="AUC", ylim=(0.4, 1.01))


def _risk_coverage(axes: Axes, table: pd.DataFrame) -> None:
    _lines(axes, table, "coverage", [name for name in table if name != "coverage"])
    axes.set(xlabel="share of images, the surest first", ylabel="share of wrong calls among them")


def _confusion(axes: Axes, table: pd.DataFrame) -> None:
    counts = table.pivot(index="actual", columns="predicted", values="count")
    order = ["real", "fake"]
    counts = counts.loc[order, order]
    axes.imshow(counts, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_xticks(range(2), order)
    axes.set_yticks(range(2), order)
    for i, row in enumerate(counts.to_numpy()):
        for j, count in enumerate(row):
            dark = count > counts.to_numpy().max() / 2
            axes.text(j, i, f"{count:,}", ha="center", va="center", color="w" if dark else "k")
