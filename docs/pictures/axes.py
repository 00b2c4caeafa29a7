"""A pair of axes with a grid, for lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from svg import FAINT, GREY, INK, Picture, Point


class Axis(NamedTuple):
    """One extent: which values it spans, where they are marked, and what they are."""

    low: float
    high: float
    marks: Sequence[float]
    label: str
    is_log: bool = False

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class Axes:
    """A frame at (x, y) of that size in a picture."""

    def __init__(
        self, picture: Picture, place: tuple[float, float, float, float], axes: tuple[Axis, Axis]
    ) -> None:
        self.picture = picture
        self.x, self.y, self.width, self.height = place
        self.across, self.up = axes
        for mark in self.across.marks:
            x, _ = self.at(mark, self.up.low)
            picture.line([(x, self.y), (x, self.y + self.height)], FAINT)
            label_y = self.y + self.height + 17
            picture.text(x, label_y, f"{mark:g}", size=12, color=GREY, anchor="middle")
        for mark in self.up.marks:
            _, y = self.at(self.across.low, mark)
            picture.line([(self.x, y), (self.x + self.width, y)], FAINT)
            picture.text(self.x - 7, y + 4, f"{mark:g}", size=12, color=GREY, anchor="end")
        middle = self.x + self.width / 2, self.y + self.height / 2
        picture.text(middle[0], self.y + self.height + 37, self.across.label, anchor="middle")
        picture.text(self.x - 40, middle[1], self.up.label, anchor="middle", turned=True)

    def at(self, across: float, up: float) -> Point:
        """Where a pair of values lies."""
        return (
            self.x + self.width * self.across.share(across),
            self.y + self.height * (1 - self.up.share(up)),
        )

    def plot(self, values: Sequence[Point], color: str, width: float = 2.2, dash: str = "") -> None:
        self.picture.line([self.at(*value) for value in values], color, width, dash)

    def mark(self, value: Point, color: str) -> None:
        self.picture.dot(*self.at(*value), color)

    def name(self, value: Point, name: str, color: str = INK, dx: float = 8, dy: float = 4) -> None:
        """The name of a line, beside one of its points."""
        x, y = self.at(*value)
        self.picture.text(x + dx, y + dy, name, size=12, color=color, bold=True)
