"""The picture of README: what committed results say of speed and of quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axes import Axes, Axis
from svg import BLUE, GREY, ORANGE, PINK, Picture, Point

RESULTS = Path(__file__).parents[2] / "bench" / "results"
STEPS, STUDY = "h200_step.json", "study_gpt.json"

# By shape: the colour, and where the name stands from the line's end.
LAYERS = {
    "8192x8192x8192": (ORANGE, (-118, 4)),
    "16384x4096x1024": (BLUE, (-98, 52)),
    "1024x1024x1024": (PINK, (-75, 22)),
}
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
    """GPU time of a training step over that of the layer, for three sizes of it."""
    picture.text(70, 28, "A layer's training step on an H200", size=16, bold=True)
    picture.text(
        70, 48, "nn.Dropout + nn.Linear over SparseDropLinear, CUDA graphs, bfloat16", size=12
    )
    axes = Axes(
        picture,
        (70, 65, 400, 300),
        (
            Axis(0, 0.75, (0, 0.1, 0.3, 0.5, 0.7), "drop probability p"),
            Axis(0.9, 3.3, (1, 1.5, 2, 2.5, 3), "times the speed"),
        ),
    )
    rows = _read(STEPS)["rows"]
    axes.plot([(0, 1), (0.75, 1)], GREY, 1.2, "4 3")
    for shape, (color, (dx, dy)) in LAYERS.items():
        points = [(row["p"], _gpu_speedup(row)) for row in rows if row["shape"] == shape]
        axes.plot(points, color)
        for point in points:
            axes.mark(point, color)
        axes.name(points[-1], shape.replace("x", "×"), color, dx, dy)
    picture.text(70, 422, f"bench/results/{STEPS}", size=11, color=GREY)


def _gpu_speedup(row: dict[str, Any]) -> float:
    layers = row["layers"]
    return layers["Dropout + Linear"]["gpu_ms"] / layers["SparseDropLinear"]["gpu_ms"]


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
