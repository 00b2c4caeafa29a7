"""The same in differentiable operations: what transforms, modes and second derivatives see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.masks import RowPattern, probabilities
from sparsedrop.ops.dense import ACTIVATIONS
from sparsedrop.ops.rows.arithmetic import Parameters
from sparsedrop.ops.rows.op import draw_numbers


class Rows(NamedTuple):
    """How hidden units are dropped, checked."""

    p: float
    # Of how many periods one is drawn.
    patterns: int
    # What kept units are multiplied by; None: the period.
    scale: float | None

    def draw(self, width: int) -> tuple[RowPattern, float]:
        """A pattern, and what kept units are multiplied by."""
        rows = RowPattern.draw(width, probabilities(self.p, self.patterns))
        return rows, float(rows.period) if self.scale is None else self.scale


def feed_forward_plain(
    x: Tensor, full: Parameters, rows: RowPattern, activation: str | None, scale: float
) -> Tensor:
    """The block of x [..., K], in the dtype of x."""

    def linear(weight: Tensor, bias: Tensor | None) -> Tensor:
        kept = None if bias is None else bias[rows.kept].to(x.dtype)
        return nn.functional.linear(x, weight[rows.kept].to(x.dtype), kept)

    hidden = linear(full.up, full.up_bias)
    if full.gate is None:
        hidden = ACTIVATIONS[activation](hidden)
    else:
        hidden = ACTIVATIONS[activation](linear(full.gate, full.gate_bias)) * hidden
    bias = None if full.down_bias is None else full.down_bias.to(x.dtype)
    return nn.functional.linear(hidden * scale, full.down[:, rows.kept].to(x.dtype), bias)


def drop_units(x: Tensor, how: Rows) -> Tensor:
    """x [..., H] with the units that a new pattern drops exactly 0, and the others scaled."""
    width = x.shape[-1]
    if torch.compiler.is_compiling():
        period, offset = draw_numbers(width, how.p, how.patterns, x.device)
        mask = (torch.arange(width, device=x.device) - offset) % period == 0
        scale: float | Tensor = period.to(x.dtype) if how.scale is None else how.scale
    else:
        rows, scale = how.draw(width)
        mask = rows.mask(x.device)
    return torch.where(mask, x * scale, 0)
