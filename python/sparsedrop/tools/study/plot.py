"""The study's courses of training as a picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from sparsedrop.tools.networks import METHODS
from sparsedrop.tools.study.report import Row

COLORS = dict(
    zip(
        METHODS.values(),
        ("#666666", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
        strict=True,
    )
)


def best_rates(rows: list[Row]) -> list[Row]:
    """The row of each method whose mean validation loss is least, in the order of `rows`."""
    best: dict[str, Row] = {}
    for row in rows:
        name = row.method.name
        if name not in best or row.loss.mean < best[name].loss.mean:
            best[name] = row
    return list(best.values())


def save(rows: list[Row], title: str, path: Path) -> None:
    """Writes a PNG: validation loss against steps and against seconds, one line a method.

    Seconds are steps at the row's time per step: measured ones would show the machine's load. It
    needs no window system and leaves matplotlib's global state alone.
    """
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(1, 2, sharey=True)
    for row in best_rates(rows):
        _draw(panels[0], row, 1)
        _draw(panels[1], row, row.step_ms / 1e3)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    if any(math.isfinite(row.loss.mean) for row in rows):
        _scale(panels[0])
    panels[0].set_ylabel("validation loss")
    panels[0].set_xlabel("steps")
    panels[1].set_xlabel("seconds of training, at the time per step of the table")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _scale(axes: Axes) -> None:
    """Logarithmic: ends of training differ by a tenth of what they have in common."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, row: Row, unit: float) -> None:
    """Means over the seeds with a dot at the least, and a band from the least seed to the most."""
    evaluations = list(zip(*(run.records for run in row.runs), strict=True))
    xs = [unit * each[0].step for each in evaluations]
    losses = [[record.loss for record in each] for each in evaluations]
    means = [statistics.mean(each) for each in losses]
    color = COLORS[row.method.name]
    axes.plot(xs, means, color=color, label=row.method.label)
    if len(row.runs) > 1:
        low, high = list(map(min, losses)), list(map(max, losses))
        axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    best = min(range(len(means)), key=means.__getitem__)
    axes.plot(xs[best], means[best], "o", color=color)
