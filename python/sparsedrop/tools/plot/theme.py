"""How pictures look: on a light and on a dark page, each method in a colour of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedrop.tools.networks import METHODS, RIVALS


class Theme(NamedTuple):
    suffix: str  # of a file's name
    page: str
    ink: str
    faint: str
    colors: tuple[str, ...]  # of the methods, in order

    def color(self, method: str) -> str:
        """The colour of the method with that name; a new one has the ink."""
        names = [*METHODS.values(), *RIVALS.values()]
        place = names.index(method) if method in names else len(self.colors)
        return self.colors[place] if place < len(self.colors) else self.ink


# Okabe and Ito's colours, which the colour-blind tell apart, and lighter ones of the same hues.
LIGHT = Theme(
    "",
    "#ffffff",
    "#1f2328",
    "#d0d7de",
    ("#6e7781", "#0072b2", "#d55e00", "#009e73", "#b5588c", "#c98600", "#8c564b"),
)
DARK = Theme(
    "-dark",
    "#0d1117",
    "#e6edf3",
    "#30363d",
    ("#9198a1", "#56b4e9", "#ff8c42", "#2ecc9b", "#e08fbf", "#f0b429", "#c49c94"),
)

Draw = Callable[[Figure, Theme], None]


def save(draw: Draw, size: tuple[float, float], path: Path) -> list[Path]:
    """Writes a PNG of each theme, NAME.png and NAME-dark.png; size in inches.

    It needs no window system and leaves matplotlib's global state alone.
    """
    paths = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, dpi=200, layout="constrained", facecolor=theme.page)
        draw(figure, theme)
        paths.append(path.with_name(f"{path.stem}{theme.suffix}.png"))
        figure.savefig(paths[-1])
    return paths


def dress(axes: Axes, theme: Theme) -> None:
    """Gives axes the colours of the theme: a grid, and no frame but to the left and below."""
    axes.set_facecolor(theme.page)
    axes.grid(color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(colors=theme.ink, labelsize=9, length=0, which="both")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(theme.ink)
        text.set_fontsize(10)


def legend(figure: Figure, theme: Theme, axes: Axes) -> None:
    """What the lines of axes mean, below all of the figure's."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, max(1, len(labels))),
        fontsize=9,
        frameon=False,
        labelcolor=theme.ink,
    )
