"""The rows of committed results, and Markdown of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Row = dict[str, Any]


def read(name: str) -> list[Row]:
    """The rows of bench/results/NAME.json."""
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())["rows"]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def shape_of(shape: str) -> str:
    return shape.replace("x", "×")
