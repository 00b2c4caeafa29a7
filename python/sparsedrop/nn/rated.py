"""Modules with a drop probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.masks import (
    check_block_shape,
    check_p,
    check_sampler,
    check_scale,
    probabilities,
)
from sparsedrop.masks import scale as scale_of
from sparsedrop.ops.rows import Rows


class DropoutRate(nn.Dropout):
    """The child of a rated layer. It passes for a linear layer without weights where it has to:
    plans of tensor parallelism hand every module within a layer to what shards the layer's weight.
    An input, since initialisers that take every matrix divide by inputs and outputs.
    """

    bias = None

    @property
    def weight(self) -> Tensor:
        return torch.empty(0, 1)

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

    def check_rate(self, p: float) -> float:
        """p as a float; TypeError or ValueError if it is no rate of this module."""
        return check_p(p)

    def _set_rate(self, child: str, p: float) -> None:
        dropout, p = self._modules.get(child), self.check_rate(p)
        if isinstance(dropout, nn.Dropout):
            dropout.p = p
        else:
            setattr(self, child, DropoutRate(p).train(self.training))


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


class Patterned(Rated):
    """A module that drops by Approximate Random Dropout: periods and scale may be set, too."""

    _patterns: int
    _scale: str

    def check_rate(self, p: float) -> float:
        """p as a float; TypeError or ValueError if the periods do not give it."""
        p = check_p(p)
        probabilities(p, self._patterns)
        return p

    @property
    def patterns(self) -> int:
        """Of how many periods one is drawn: 1 to this."""
        return self._patterns

    @patterns.setter
    def patterns(self, patterns: int) -> None:
        probabilities(self.p, patterns)
        self._patterns = patterns

    @property
    def scale(self) -> str:
        """What is kept is multiplied by: 1 / (1 - p) with "global", the period with "pattern"."""
        return self._scale

    @scale.setter
    def scale(self, scale: str) -> None:
        self._scale = check_scale(scale)

    def _drops(self, p: float, patterns: int, scale: str) -> None:
        self._patterns, self._scale = patterns, check_scale(scale)
        self.p = p

    def _rows(self) -> Rows | None:
        """How units are dropped now; None: they are not."""
        p = applied_rate_of(self._modules.get("dropout"))
        if p == 0.0:
            return None
        scale = None if self._scale == "pattern" else scale_of(p)
        return Rows(p, self._patterns, scale)

    def extra_repr(self) -> str:
        return f"patterns={self._patterns}, scale={self._scale!r}"
