"""The autograd node of a convolution of which slices of channels are live."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop._torch import apply_eagerly
from sparsedrop.ops.slices import products
from sparsedrop.ops.slices.again import gradients_again
from sparsedrop.ops.slices.products import Cut
from sparsedrop.ops.slices.views import live

Pair = tuple[int, int]


class Convolution(NamedTuple):
    """How F.conv2d is called; `groups` are the live ones."""

    stride: Pair
    padding: Pair | str
    dilation: Pair
    groups: int
    cut: Cut
    """Of the weight [out, in / groups, height, width]."""
    alpha: float = 1.0
    """What multiplies the product, and not the bias."""


def by_views(x: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution) -> Tensor:
    """x [N, in', H, W] -> [N, out', ...], in plain differentiable operations."""
    own_bias = None if bias is None else live(bias, 0, how.cut.rows)
    return _convolved(x, _live_weight(weight, how.cut), own_bias, how)


def by_numbers(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: Convolution,
    numbers: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The same of the outputs and of the inputs that have these numbers, int64; None: all. Copies,
    of which the program knows the extents alone; there is no cut."""
    rows, cols = numbers
    own = weight if rows is None else weight.index_select(0, rows)
    own = own if cols is None else own.index_select(1, cols)
    own_bias = bias if bias is None or rows is None else bias.index_select(0, rows)
    return _convolved(x, own, own_bias, how)


def _convolved(x: Tensor, own: Tensor, own_bias: Tensor | None, how: Convolution) -> Tensor:
    own, own_bias = _scaled(own, how, x), None if own_bias is None else own_bias.to(x.dtype)
    return nn.functional.conv2d(x, own, own_bias, how.stride, how.padding, how.dilation, how.groups)


def _live_weight(weight: Tensor, cut: Cut) -> Tensor:
    return live(live(weight, 0, cut.rows), 1, cut.cols)


def _scaled(own: Tensor, how: Convolution, x: Tensor) -> Tensor:
    """In the dtype of x: the factor is in the weight, which is smaller than what it multiplies."""
    return (own if how.alpha == 1.0 else own * how.alpha).to(x.dtype)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution) -> Tensor:
    """The same, of tensors that nobody watches, and with padding in numbers."""
    return _apply(how, x, weight, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.how = how
        return by_views(x, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how, needs = ctx.how, ctx.needs_input_grad[1:]
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *gradients_again(
                lambda x, weight, bias: by_views(x, weight, bias, how),
                [x, weight, bias],
                grad,
                needs,
            )
        own = _scaled(_live_weight(weight, how.cut), how, x)
        made = torch.ops.aten.convolution_backward(
            grad, x, own, [own.shape[0]] if needs[2] else None, how.stride, how.padding,
            how.dilation, False, (0, 0), how.groups, needs,
        )  # fmt: skip
        of_x, of_weight, of_bias = made
        if needs[1] and how.alpha != 1.0:
            of_weight = of_weight.to(weight.dtype).mul_(how.alpha)
        if needs[1]:
            of_weight = products.in_place_of(weight, of_weight, how.cut)
        if needs[2]:
            of_bias = products.in_place_of(bias, of_bias, Cut(how.cut.rows))
        return None, of_x, of_weight, of_bias


_apply = apply_eagerly(_Convolution)
