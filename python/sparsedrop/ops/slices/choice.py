"""How slices of a layer's units are drawn, and what the live ones are multiplied by."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop.masks import Slice, kept_units, marginals
from sparsedrop.ops.slices.feed_forward import Live
from sparsedrop.ops.slices.products import Pieces
from sparsedrop.ops.slices.views import live as live_part

NORMALIZATIONS = ("constant", "probabilistic", "none")


def check_normalization(normalization: str) -> str:
    """The name of the scale; ValueError if it is unknown."""
    if not isinstance(normalization, str) or normalization not in NORMALIZATIONS:
        known = ", ".join(repr(name) for name in NORMALIZATIONS)
        raise ValueError(f"normalization is one of {known}, not {normalization!r}")
    return normalization


class Choice(NamedTuple):
    """Checked arguments of `Slice.draw`, and the scale's name."""

    units: int
    p: float
    align: int
    starts: str
    normalization: str

    @property
    def width(self) -> int:
        """Units that are kept."""
        # The compiler looks into a function, and not into its cache.
        find = kept_width if torch.compiler.is_compiling() else _kept_width
        return find(self.units, self.p, self.align)

    @property
    def alpha(self) -> float:
        """The factor that all live units have in common."""
        is_constant = self.normalization == "constant" or (
            self.normalization == "probabilistic" and self.starts == "cyclic"
        )
        return self.units / self.width if is_constant else 1.0

    @property
    def has_factors(self) -> bool:
        """Whether live units have factors of their own, and not one in common."""
        return self.normalization == "probabilistic" and self.starts != "cyclic"

    def draw(self) -> Slice:
        """From torch's default CPU generator."""
        return Slice.draw(self.units, self.p, align=self.align, starts=self.starts)

    def slice_at(self, start: int) -> Slice:
        """The slice that has this start."""
        return Slice.at(start, self.width, self.units)

    def live(self, drawn: Slice, x: Tensor) -> Live:
        """What of a block lives; for products with x."""
        return Live(drawn.pieces, self.alpha, self.factors(drawn.pieces, x.dtype, x.device))

    def factors(
        self, pieces: Pieces | None, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Those of live units, or of all, where they differ: the inverse of how often one is
        kept."""
        if not self.has_factors:
            return None
        how = self.units, self.p, self.align, self.starts, dtype, device
        if torch.compiler.is_compiling():
            return live_part(torch.ops.sparsedrop.slice_factors(*how), 0, pieces)
        return live_part(inverse_marginals(*how), 0, pieces)


def kept_width(units: int, p: float, align: int) -> int:
    """How many of so many units a slice keeps."""
    return kept_units(units, p, align)[0]


_kept_width = functools.lru_cache(maxsize=256)(kept_width)


@functools.lru_cache(maxsize=256)
def inverse_marginals(
    units: int, p: float, align: int, starts: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[units]; not to be written to."""
    with torch.inference_mode(False):
        found = marginals(units, p, align=align, starts=starts).reciprocal()
        return found.to(device, dtype)
