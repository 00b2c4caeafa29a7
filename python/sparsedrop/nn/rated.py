"""Modules with a drop probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.masks import check_p


class Rate(nn.Dropout):
    """The child of a rated layer. It passes for a linear layer without weights where it has to:
    plans of tensor parallelism hand every module within a layer to what shards the layer's weight.
    """

    bias = None

    @property
    def weight(self) -> Tensor:
        return torch.empty(0, 0)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Has none, and takes none."""


class Rated(nn.Module):
    """A module whose drop probability `p` is checked, and may be set at any time.

    It lives in a child `dropout`, an `nn.Dropout` that is never called: what looks for those, to
    set their rate, to switch them off or to keep them on in evaluation, finds it. The child has
    neither parameters nor buffers. Where something else stands in its place, nothing is dropped.
    """

    dropout: nn.Module

    @property
    def p(self) -> float:
        """Drop probability."""
        dropout = self.dropout
        return check_p(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0

    @p.setter
    def p(self, p: float) -> None:
        dropout = self._modules.get("dropout")
        if isinstance(dropout, nn.Dropout):
            dropout.p = check_p(p)
        else:
            self.dropout = Rate(check_p(p)).train(self.training)
