"""A few shapes as SVG text: the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

INK, GREY, FAINT, PAPER = "#24292f", "#6e7781", "#d0d7de", "#ffffff"
BLUE, ORANGE, GREEN, PINK, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
SERIES = (BLUE, ORANGE, GREEN, PINK, YELLOW)

Point = tuple[float, float]


class Picture:
    """White paper of that size, on which shapes are put one after the other."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.size = width, height
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" '
            f'role="img" font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
        ]
        self.box(0, 0, width, height, PAPER)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        line: str = "none",
        opacity: float = 1.0,
    ) -> None:
        self._parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
            f'fill="{fill}" stroke="{line}"{_opacity(opacity)}/>'
        )

    def line(self, points: Sequence[Point], color: str, width: float = 1, dash: str = "") -> None:
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" '
            f'stroke-width="{_n(width)}" stroke-linejoin="round"{dashed}/>'
        )

    def dot(self, x: float, y: float, color: str, radius: float = 4) -> None:
        self._parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{color}" stroke="{PAPER}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        color: str = INK,
        anchor: str = "start",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        turn = f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{color}" '
            f'text-anchor="{anchor}"{weight}{turn}>{escape(text)}</text>'
        )

    def svg(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])

    def save(self, path: Path) -> None:
        path.write_text(self.svg())


def _n(value: float) -> str:
    """At most two decimals, and no zeros behind them."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _opacity(opacity: float) -> str:
    return "" if opacity == 1.0 else f' fill-opacity="{_n(opacity)}"'
