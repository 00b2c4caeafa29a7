"""Modules with a drop probability."""

from __future__ import annotations

from torch import nn

from sparsedrop.masks import check_p


class Rated(nn.Module):
    """A module whose drop probability `p` is checked, and may be set at any time."""

    _p: float

    @property
    def p(self) -> float:
        """Drop probability."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        self._p = check_p(p)
