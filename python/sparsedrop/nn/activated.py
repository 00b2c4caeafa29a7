"""Modules with an activation."""

from __future__ import annotations

from torch import nn

from sparsedrop.ops import check_activation


class Activated(nn.Module):
    """A feed-forward block, whose activation is checked, and may be set at any time."""

    @property
    def activation(self) -> str | None:
        """Of the hidden units."""
        return self._activation

    @activation.setter
    def activation(self, activation: str | None) -> None:
        self._activation = check_activation(activation)
