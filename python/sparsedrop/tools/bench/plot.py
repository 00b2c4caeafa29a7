"""Speed-up against drop probability, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedrop.tools.bench.report import Panel

COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666"),
    *("#8c564b", "#808000"),
)
COLUMNS = 5

STYLES: dict[str, dict[str, Any]] = {
    "ideal": {"color": "black", "linewidth": 0.8},
    "figure": {"marker": "o", "markersize": 3.5},
    "bound": {"linestyle": "--", "linewidth": 1.0, "alpha": 0.7},
}


def save(panels: Sequence[Panel], title: str, y_label: str, path: Path) -> None:
    """Writes a PNG. It needs no window system and leaves matplotlib's global state alone."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(
        figsize=(max(3.2 * columns, 9), 1.6 + 3.0 * rows), dpi=120, layout="constrained"
    )
    figure.suptitle(title, fontsize=9)
    diagrams = figure.subplots(rows, columns, squeeze=False).flatten()
    labels = [line.label for panel in panels for line in panel.lines if line.kind == "figure"]
    distinct = enumerate(dict.fromkeys(labels))
    colors = {label: COLORS[i % len(COLORS)] for i, label in distinct}
    handles: dict[str, Any] = {}
    for diagram, panel in zip(diagrams, panels, strict=False):
        _draw(diagram, panel, colors)
        drawn, names = diagram.get_legend_handles_labels()
        handles |= dict(zip(names, drawn, strict=True))
    for diagram in diagrams[len(panels) :]:
        diagram.axis("off")
    figure.supylabel(y_label, fontsize=9)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=max(4, columns),
        fontsize=7,
    )
    figure.savefig(path)


def _draw(axes: Axes, panel: Panel, colors: dict[str, str]) -> None:
    """A bound has the colour of the figure before it."""
    axes.set_title(panel.title, fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.6, alpha=0.4)
    color = "black"
    for line in panel.lines:
        color = colors.get(line.label, color)
        axes.plot(
            *zip(*line.points, strict=True),
            label=line.label,
            **{"color": color, **STYLES[line.kind]},
        )
    axes.grid(alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("p", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
