"""The study's courses of training as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedrop.tools.networks import DROPOUT, NONE, SPARSEDROP
from sparsedrop.tools.study.report import Row

COLORS = {NONE: "#666666", DROPOUT: "#0072b2", SPARSEDROP: "#d55e00"}


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

    It needs no window system and leaves matplotlib's global state alone.
    """
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field in zip(panels, ("step", "seconds"), strict=True):
        for row in best_rates(rows):
            _draw(axes, row, field)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss")
    panels[0].set_xlabel("steps")
    panels[1].set_xlabel("seconds of training")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _draw(axes: Axes, row: Row, field: str) -> None:
    """Means over the seeds, a band of a standard deviation to either side, a dot at the best."""
    evaluations = list(zip(*(run.records for run in row.runs), strict=True))
    xs = [statistics.mean(getattr(record, field) for record in each) for each in evaluations]
    losses = [[record.loss for record in each] for each in evaluations]
    means = [statistics.mean(each) for each in losses]
    color = COLORS[row.method.name]
    axes.plot(xs, means, color=color, label=row.label)
    if len(row.runs) > 1:
        spreads = [statistics.stdev(each) for each in losses]
        low, high = (
            [mean + sign * std for mean, std in zip(means, spreads, strict=True)]
            for sign in (-1, 1)
        )
        axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    best = min(range(len(means)), key=means.__getitem__)
    axes.plot(xs[best], means[best], "o", color=color)
