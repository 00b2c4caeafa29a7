"""The study's table as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedrop.tools.study.report import Row, Spread
from sparsedrop.tools.study.train import DENSE, DROPOUT, SPARSEDROP

COLORS = {DENSE: "#666666", DROPOUT: "#0072b2", SPARSEDROP: "#d55e00"}


def save(rows: list[Row], title: str, path: Path) -> None:
    """Writes a PNG, one line per row: accuracy and loss with spread and single runs, time per step.

    It needs no window system and leaves matplotlib's global state alone.
    """
    figure = Figure(figsize=(12, 1.6 + 0.42 * len(rows)), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    accuracy, loss, step = figure.subplots(1, 3, sharey=True)
    _draw_spreads(accuracy, rows, [row.accuracy for row in rows], 2)
    accuracy.set_xlabel("validation accuracy (%)")
    for y, row in enumerate(rows):
        _draw_runs(accuracy, [100 * run.accuracy for run in row.runs], y)
        _draw_runs(loss, [run.loss for run in row.runs], y)
    _draw_spreads(loss, rows, [row.loss for row in rows], 4)
    loss.set_xlabel("validation loss")
    _draw_times(step, rows)
    step.set_xlabel("time per step (ms), and × nn.Dropout")
    accuracy.set_yticks(range(len(rows)), [row.label for row in rows])
    accuracy.set_ylim(len(rows) - 0.4, -0.6)  # the table's order, from the top
    for axes in (accuracy, loss, step):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.savefig(path)


def _draw_spreads(axes: Axes, rows: list[Row], spreads: list[Spread], digits: int) -> None:
    """A dot at the mean, a bar of one standard deviation to either side, the figures above it."""
    for y, (row, spread) in enumerate(zip(rows, spreads, strict=True)):
        color = COLORS[row.method.name]
        axes.errorbar(spread.mean, y, xerr=spread.std, fmt="o", color=color, capsize=3)
        text = spread.text(digits)
        axes.annotate(
            text, (spread.mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.25)


def _draw_runs(axes: Axes, values: list[float], y: int) -> None:
    axes.plot(values, [y] * len(values), "|", color="black", alpha=0.35, markersize=9)


def _draw_times(axes: Axes, rows: list[Row]) -> None:
    """A bar as long as a step, its length at its end."""
    for y, row in enumerate(rows):
        axes.barh(y, row.step_ms, height=0.55, color=COLORS[row.method.name])
        speedup = "" if row.speedup is None else f"  ({row.speedup:.2f} ×)"
        axes.annotate(
            f"{row.step_ms:.2f}{speedup}",
            (row.step_ms, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.4)
