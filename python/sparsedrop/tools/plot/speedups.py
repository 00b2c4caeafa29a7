"""Speed-up over nn.Dropout against its rate, for whole networks, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedrop.tools.networks import DRAWN_ON_THE_GPU
from sparsedrop.tools.plot.theme import Theme, dress, legend, save

STYLES = {"graph": "-", "eager": "--", "reduce-overhead": "-.", "compile": ":"}
NAMES = {
    "graph": "CUDA graph",
    "eager": "eager",
    "compile": "torch.compile",
    "reduce-overhead": "reduce-overhead",
}
"""What modes are called in a legend."""

TITLES = {"mlp": "MLP", "vit": "ViT", "gpt": "GPT", "lstm": "LSTM", "gpt-12": "GPT, 12 layers"}


def save_speedups(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    """Writes the pictures of rows of `sparsedrop bench --network`; returns their paths.

    One panel a network, one line a method and mode. Rows without nn.Dropout have no speed-up (some
    row must have one), and steps in one graph none of methods that drop the same in each replay.
    """
    rows = [known for row in rows if (known := _known(row))["speedups"]]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    found: list[float] = [speedup for row in rows for speedup in row["speedups"].values()]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            _draw(axes, [row for row in rows if row["network"] == network], theme)
            axes.set_title(TITLES.get(network, network))
            dress(axes, theme)
        panels[0].set_ylim(min(0.8, *found) - 0.05, max(1.2, *found) + 0.05)
        panels[0].set_ylabel("× nn.Dropout")
        legend(figure, theme, panels[0])

    return save(draw, (max(4.5, 3.0 * len(networks)), 3.6), path)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """With the speed-ups that say something: of one graph those of what is drawn on the GPU."""

    def says_something(kind: str) -> bool:
        graphs = row.get("figures", {}).get(kind, {}).get("graphs") or 1
        return row["mode"] != "graph" or kind in DRAWN_ON_THE_GPU or graphs > 1

    speedups = {kind: ratio for kind, ratio in row["speedups"].items() if says_something(kind)}
    return {**row, "speedups": speedups}


def _draw(axes: Axes, rows: list[dict[str, Any]], theme: Theme) -> None:
    axes.axhline(1.0, color=theme.ink, linewidth=0.8, alpha=0.6)
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    for kind in dict.fromkeys(kind for row in rows for kind in row["speedups"]):
        for mode in modes:
            own = sorted(
                (row["p"], row["speedups"][kind])
                for row in rows
                if row["mode"] == mode and kind in row["speedups"]
            )
            if not own:
                continue
            axes.plot(
                [p for p, _ in own],
                [speedup for _, speedup in own],
                linestyle=STYLES[mode],
                marker="o",
                markersize=4,
                linewidth=1.6,
                color=theme.color(kind),
                label=f"{kind}, {NAMES[mode]}",
            )
    axes.set_xlabel("p")
