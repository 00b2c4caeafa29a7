"""A study as a picture: loss in the course of time, and what each rate reaches in which time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sparsedrop.tools.networks import NONE
from sparsedrop.tools.plot.theme import Theme, dress, legend, save

SIZE = 9.0, 4.2

Row = dict[str, Any]
"""A row of a study's JSON."""


def save_study(found: dict[str, Any], path: Path, mode: str = "eager") -> list[Path]:
    """Writes the pictures of a study's JSON; returns their paths.

    mode: whose time of a step counts, "eager" or "graph". Methods that have no such time are left
    out, unless none has: then steps stand for seconds.
    """
    rows = [row for row in found["rows"] if row["loss"]["mean"] is not None]
    timed = [row for row in rows if _ms(row, mode) is not None]
    shown = timed or rows

    def draw(figure: Figure, theme: Theme) -> None:
        left, right = figure.subplots(1, 2)
        _courses(left, shown, mode, theme)
        _reached(right, shown, mode, theme)
        legend(figure, theme, left)

    return save(draw, SIZE, path)


def best_rows(rows: list[Row]) -> list[Row]:
    """The row of least mean validation loss of each method."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(row["method"])
        if known is None or row["loss"]["mean"] < known["loss"]["mean"]:
            best[row["method"]] = row
    return list(best.values())


def _ms(row: Row, mode: str) -> float | None:
    return None if row["times"] is None else row["times"][f"{mode}_ms"]


def _unit(row: Row, mode: str) -> float:
    """Seconds of a step, or 1."""
    ms = _ms(row, mode)
    return 1.0 if ms is None else ms / 1e3


def _time_label(rows: list[Row], mode: str) -> str:
    if not rows or _ms(rows[0], mode) is None:
        return "steps"
    return "seconds of training" + (", in CUDA graphs" if mode == "graph" else "")


def _courses(axes: Axes, rows: list[Row], mode: str, theme: Theme) -> None:
    """Mean validation losses at the best rates, while all seeds train, a dot at the least."""
    for row in best_rows(rows):
        color = theme.color(row["method"])
        evaluations = list(zip(*(seed["records"] for seed in row["seeds"]), strict=False))
        known = [each for each in evaluations if all(r["loss"] is not None for r in each)]
        xs = [_unit(row, mode) * each[0]["step"] for each in known]
        losses = [[record["loss"] for record in each] for each in known]
        means = [statistics.mean(each) for each in losses]
        axes.plot(xs, means, color=color, linewidth=1.6, label=_label(row))
        if len(row["seeds"]) > 1:
            low, high = list(map(min, losses)), list(map(max, losses))
            axes.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)
        least = min(range(len(means)), key=means.__getitem__)
        axes.plot(xs[least], means[least], "o", color=color, markersize=5)
    axes.set_title("in the course of training, at the best rate")
    axes.set_xlabel(_time_label(rows, mode))
    axes.set_ylabel("validation loss")
    _show_differences(axes, rows)
    dress(axes, theme)


def _reached(axes: Axes, rows: list[Row], mode: str, theme: Theme) -> None:
    """What is reached by which time: a point a rate, the larger the higher, with its deviation."""
    judge = "loss" if any(row["test_loss"] is None for row in rows) else "test_loss"
    blocks = {row["block"] for row in rows} - {None}
    for name, block in dict.fromkeys((row["method"], row["block"]) for row in rows):
        own = [
            row
            for row in rows
            if (row["method"], row["block"]) == (name, block) and row[judge]["mean"] is not None
        ]
        xs = [_unit(row, mode) * row["step"]["mean"] for row in own]
        ys = [row[judge]["mean"] for row in own]
        errors = [row[judge]["std"] or 0.0 for row in own]
        color = theme.color(name)
        axes.errorbar(xs, ys, errors, color=color, linewidth=1.0, elinewidth=0.8, alpha=0.6)
        axes.scatter(xs, ys, [18 + 90 * row["p"] for row in own], color=color, zorder=3)
        if block is not None and len(blocks) > 1 and own:
            axes.annotate(
                block,
                (xs[-1], ys[-1]),
                xytext=(5, 5),
                textcoords="offset points",
                color=color,
                fontsize=8,
            )
    axes.set_title("reached at its best, larger dots: larger p")
    axes.set_xlabel(_time_label(rows, mode))
    axes.set_ylabel("validation loss" if judge == "loss" else "test loss")
    dress(axes, theme)


def _label(row: Row) -> str:
    return row["method"] if row["method"] == NONE else f"{row['method']}, p = {row['p']:g}"


def _show_differences(axes: Axes, rows: list[Row]) -> None:
    """Logarithmic where training begins far above its end: ends differ little."""
    losses = [r["loss"] for row in rows for seed in row["seeds"] for r in seed["records"]]
    known = [loss for loss in losses if loss]
    if known and max(known) > 3 * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
