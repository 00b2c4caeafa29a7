"""The picture of README: what committed results say of speed and of quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axes import Axes, Axis
from svg import BLUE, GREY, ORANGE, PINK, Picture, Point

RESULTS = Path(__file__).parents[2] / "bench" / "results"
NETWORKS, STUDY = "h200_network_rates.json", "study_gpt.json"

# By network: its name, the colour, and where the name stands from the captured line's end.
NAMES = {
    "mlp": ("MLP", ORANGE, (8, 4)),
    "vit": ("ViT", PINK, (8, -2)),
    "gpt": ("GPT", BLUE, (8, 12)),
}
DASHES = {"graph": "", "eager": "5 3"}
METHODS = {
    ("no dropout", 0.0): ("no dropout", GREY),
    ("nn.Dropout", 0.5): ("nn.Dropout, p = 0.5", BLUE),
    ("sparsedrop", 0.5): ("SparseDrop, p = 0.5", ORANGE),
}


def draw() -> Picture:
    picture = Picture(1000, 430, "Speed-up against p, and validation loss against time")
    _speed(picture)
    _quality(picture)
    return picture


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def _speed(picture: Picture) -> None:
    """Speed of a training step, forward and backward, over that with nn.Dropout."""
    picture.text(70, 28, "The paper's networks on an H200", size=16, bold=True)
    picture.text(70, 48, "speed over nn.Dropout; AMP, blocks of 128×128", size=12)
    axes = Axes(
        picture,
        (70, 65, 400, 300),
        (
            Axis(0, 0.56, (0, 0.1, 0.2, 0.3, 0.4, 0.5), "drop probability p"),
            Axis(0.9, 1.5, (0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5), "times the speed"),
        ),
    )
    rows = _read(NETWORKS)["rows"]
    axes.plot([(0, 1), (0.56, 1)], GREY, 1.2)
    for network, (name, color, (dx, dy)) in NAMES.items():
        for mode, dash in DASHES.items():
            points = _speedups(rows, network, mode)
            axes.plot(points, color, 2.2 if mode == "graph" else 1.6, dash)
            for point in points:
                axes.mark(point, color)
            if mode == "graph":
                axes.name(points[-1], name, color, dx, dy)
    for i, (text, dash) in enumerate((("CUDA graph", ""), ("eager", DASHES["eager"]))):
        y = 86 + 19 * i
        picture.line([(90, y - 4), (120, y - 4)], GREY, 2.0, dash)
        picture.text(127, y, text, size=12)
    picture.text(70, 422, f"bench/results/{NETWORKS}", size=11, color=GREY)


def _speedups(rows: list[dict[str, Any]], network: str, mode: str) -> list[Point]:
    """By p."""
    own = (row for row in rows if (row["network"], row["mode"]) == (network, mode))
    return [(row["p"], row["speedups"]["sparsedrop"]) for row in own]


def _quality(picture: Picture) -> None:
    """Validation loss against the seconds that training took, at the rate of the least loss."""
    picture.text(570, 28, "The paper's GPT on Shakespeare, an H200", size=16, bold=True)
    picture.text(570, 48, "validation loss, mean of 3 seeds; steps in CUDA graphs", size=12)
    axes = Axes(
        picture,
        (570, 65, 400, 300),
        (
            Axis(0, 40, (0, 10, 20, 30, 40), "seconds of training"),
            Axis(1.35, 1.75, (1.35, 1.45, 1.55, 1.65, 1.75), "validation loss"),
        ),
    )
    rows = {(row["method"], row["p"]): row for row in _read(STUDY)["rows"]}
    for i, (key, (name, color)) in enumerate(METHODS.items()):
        points = [point for point in _curve(rows[key]) if point[1] <= axes.up.high]
        axes.plot(points, color, 1.8)
        axes.mark(min(points, key=lambda point: point[1]), color)
        y = 86 + 19 * i
        picture.line([(790, y - 4), (815, y - 4)], color, 2.2)
        picture.text(822, y, name, size=12)
    picture.text(570, 422, f"bench/results/{STUDY}; dots: least loss", size=11, color=GREY)


def _curve(row: dict[str, Any]) -> Sequence[Point]:
    """Means over the seeds, which are evaluated at the same steps until the first of them ends."""
    records = [seed["records"] for seed in row["seeds"]]
    return [
        (
            row["times"]["graph_ms"] * 1e-3 * group[0]["step"],
            sum(record["loss"] for record in group) / len(group),
        )
        for group in zip(*records, strict=False)
    ]
