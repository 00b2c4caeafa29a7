"""Modules that keep a slice of their units."""

from __future__ import annotations

import torch

from sparsedrop.masks import check_sliced_p, check_starts
from sparsedrop.nn.coarse import STARTING_RATE, warn_of_whole_slice
from sparsedrop.nn.rated import Rated
from sparsedrop.ops.slices import Choice, check_normalization

GRADIENTS = ("dense", "lazy")


class Sliced(Rated):
    """A module that keeps a slice of its units: how that is drawn may be set at any time."""

    _is_told = False

    def check_rate(self, p: float) -> float:
        """p as a float; ValueError where it is no probability, or 1."""
        return check_sliced_p(p)

    @property
    def align(self) -> int:
        """What starts and lengths of slices are multiples of."""
        return self._align

    @align.setter
    def align(self, align: int) -> None:
        self._align, self._is_told = check_align(align), False

    @property
    def starts(self) -> str:
        """Where slices begin."""
        return self._starts

    @starts.setter
    def starts(self, starts: str) -> None:
        self._starts = check_starts(starts)

    @property
    def normalization(self) -> str:
        """How live units are scaled."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization: str) -> None:
        self._normalization = check_normalization(normalization)

    @property
    def gradients(self) -> str:
        """Whether gradients are as large as the parameters."""
        return self._gradients

    @gradients.setter
    def gradients(self, gradients: str) -> None:
        self._gradients = check_gradients(gradients)

    def choice(self, units: int, p: float) -> Choice:
        """How a slice of so many units is drawn."""
        return Choice(units, check_sliced_p(p), self._align, self._starts, self._normalization)

    def _leaves_out(self, choice: Choice, what: str) -> bool:
        """Whether a slice keeps less than all units; a warning, once, where it does not."""
        if choice.width != choice.units:
            return True
        is_news = choice.p >= STARTING_RATE and not self._is_told
        if is_news and not torch.compiler.is_compiling():
            self._is_told = True
            warn_of_whole_slice(choice, what)
        return False

    def extra_repr(self) -> str:
        return (
            f"align={self.align}, starts={self.starts!r}, normalization={self.normalization!r}, "
            f"gradients={self.gradients!r}"
        )


def check_align(align: int) -> int:
    """The number; ValueError if it is below 1."""
    if not isinstance(align, int) or isinstance(align, bool) or align < 1:
        raise ValueError(f"align must be a whole number of at least 1, not {align!r}")
    return align


def check_gradients(gradients: str) -> str:
    """The name; ValueError if it is unknown."""
    if not isinstance(gradients, str) or gradients not in GRADIENTS:
        known = ", ".join(repr(name) for name in GRADIENTS)
        raise ValueError(f"gradients is one of {known}, not {gradients!r}")
    return gradients
