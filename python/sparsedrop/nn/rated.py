"""Modules with a drop probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.masks import check_block_shape, check_p, check_sampler


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
        return rate_of(self._modules.get("dropout"))

    @p.setter
    def p(self, p: float) -> None:
        self._set_rate("dropout", p)

    def _set_rate(self, child: str, p: float) -> None:
        dropout = self._modules.get(child)
        if isinstance(dropout, nn.Dropout):
            dropout.p = check_p(p)
        else:
            setattr(self, child, Rate(check_p(p)).train(self.training))


def rate_of(dropout: nn.Module | None) -> float:
    """The rate of a child; 0 where it is no nn.Dropout."""
    return check_p(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0


def applied_rate_of(dropout: nn.Module | None) -> float:
    """The rate that is applied: in evaluation 0."""
    return rate_of(dropout) if dropout is not None and dropout.training else 0.0


class Blocked(Rated):
    """A module that drops blocks: their shape and the sampler may be set at any time, too."""

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of a block of what is dropped."""
        return self._block_shape

    @block_shape.setter
    def block_shape(self, block_shape: tuple[int, int]) -> None:
        self._block_shape = check_block_shape(block_shape)

    @property
    def sampler(self) -> str:
        """How masks are drawn."""
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: str) -> None:
        self._sampler = check_sampler(sampler)
