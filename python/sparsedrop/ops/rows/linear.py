"""A linear layer whose outputs, inputs or both a row pattern keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop._torch import apply_eagerly, is_transformed, is_watched, is_watched_gradient
from sparsedrop.masks import RowPattern
from sparsedrop.ops.again import gradients_again
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.units.facts import Units
from sparsedrop.ops.units.linear import LinearCall, linear_call
from sparsedrop.ops.units.linear_facts import DrawnSides, Live


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: RowPattern | None,
    make: RowPattern | None,
    alpha: float,
) -> Tensor:
    """alpha * x Wᵀ + bias, x [..., k'] -> [..., n']: of the units that are read those that are to
    be made; None: all. Of checked tensors, x in the dtype of the product.

    A result of as many features as are no whole vectors may have gaps between its rows.
    """
    given = [t for t in (x, weight, bias) if t is not None]
    is_plain = not (torch.compiler.is_compiling() or is_transformed() or is_watched(*given))
    call = None
    if is_plain and x.is_cuda:
        x = x.contiguous()
        call = linear_call(x, weight, bias, _live(make), _live(read))
    if call is None:
        return linear_plain(x, weight, bias, (read, make), alpha)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        found: Tensor = _apply(call, (read, make), alpha, x, weight, bias)
        return found
    return call.forward(x, weight, bias, _drawn((read, make), alpha))


Sides = tuple[RowPattern | None, RowPattern | None]
"""What is read, and what is made."""


def linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides, alpha: float
) -> Tensor:
    """The same in differentiable operations."""
    read, make = sides
    if make is not None:
        weight, bias = weight[make.kept], None if bias is None else bias[make.kept]
    if read is not None:
        weight = weight[:, read.kept]
    own_bias = None if bias is None else bias.to(x.dtype)
    return nn.functional.linear(x if alpha == 1.0 else x * alpha, weight.to(x.dtype), own_bias)


def _live(rows: RowPattern | None) -> Live | None:
    return None if rows is None else Live(rows.count, strides=rows.period > 1)


def _drawn(sides: Sides, alpha: float) -> DrawnSides:
    read, make = sides
    return DrawnSides(_units(make), _units(read), alpha)


def _units(rows: RowPattern | None) -> Units | None:
    return None if rows is None else (rows.period, rows.offset, rows.count, 0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: LinearCall,
        sides: Sides,
        alpha: float,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.call, ctx.how = call, (sides, alpha)
        return call.forward(x, weight, bias, _drawn(sides, alpha))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needs, (sides, alpha) = ctx.needs_input_grad[3:], ctx.how
        if torch.is_grad_enabled() or is_watched_gradient(grad):
            made = gradients_again(
                lambda x, weight, bias: linear_plain(x, weight, bias, sides, alpha),
                [x, weight, bias], grad, needs,
            )  # fmt: skip
            return None, None, None, *made
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        grads = ctx.call.backward(grad, (x, weight), _drawn(sides, alpha), needs)
        return None, None, None, *grads


_apply = apply_eagerly(_Linear)
