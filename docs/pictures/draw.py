"""Draws the pictures of README and of these pages: python docs/pictures/draw.py.

From committed results, from masks that the package draws, and from the kernels' own schedule (which
needs g++). The same sources give the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dropped
import results
import schedule
from svg import Picture

HERE = Path(__file__).parent

PICTURES: dict[str, Callable[[], Picture]] = {
    "results.svg": results.draw,
    "products.svg": dropped.draw_products,
    "methods.svg": dropped.draw_methods,
    "schedule.svg": schedule.draw,
}


def main() -> None:
    for name, draw in PICTURES.items():
        draw().save(HERE / name)


if __name__ == "__main__":
    main()
