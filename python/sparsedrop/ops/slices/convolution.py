"""The autograd node of a convolution of which slices of channels are live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop._torch import apply_eagerly, is_watched_gradient
from sparsedrop.ops.again import gradients_again
from sparsedrop.ops.slices import parts, products
from sparsedrop.ops.slices.products import Cut, Pieces
from sparsedrop.ops.slices.views import live

Pair = tuple[int, ...]
"""Of height and width, as torch types it."""


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


def _side(how: Convolution) -> tuple[int, Pieces] | None:
    """The one extent of the weight that is cut, where its live part is copied as one."""
    rows, cols = how.cut
    if rows is None and cols is not None:
        return 1, cols
    return (0, rows) if cols is None and rows is not None and how.alpha == 1.0 else None


def _live(
    x: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as they are used, of tensors that nobody watches."""
    side = _side(how)
    if side is None:
        own_bias = None if bias is None else live(bias, 0, how.cut.rows).to(x.dtype)
        return _scaled(_live_weight(weight, how.cut), how, x), own_bias
    dim, pieces = side
    if dim == 1 or bias is None:
        (own,) = parts.gathered([weight], dim, pieces, x.dtype, how.alpha)
        return own, None if bias is None else bias.to(x.dtype)
    own, own_bias = parts.gathered([weight, bias], 0, pieces, x.dtype)
    return own, own_bias


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        own, own_bias = _live(x, weight, bias, how)
        ctx.save_for_backward(x, weight, bias, own)
        ctx.how = how
        return nn.functional.conv2d(
            x, own, own_bias, how.stride, how.padding, how.dilation, how.groups
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how, needs = ctx.how, ctx.needs_input_grad[1:]
        x, weight, bias, own = ctx.saved_tensors
        if torch.is_grad_enabled() or is_watched_gradient(grad):
            return None, *gradients_again(
                lambda x, weight, bias: by_views(x, weight, bias, how),
                [x, weight, bias],
                grad,
                needs,
            )
        made = torch.ops.aten.convolution_backward(
            grad, x, own, [own.shape[0]] if needs[2] else None, how.stride, how.padding,
            how.dilation, False, (0, 0), how.groups, needs,
        )  # fmt: skip
        return None, made[0], *_whole(weight, bias, made[1:], how)


def _whole(
    weight: Tensor, bias: Tensor | None, made: Sequence[Tensor | None], how: Convolution
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias, of those of their live parts where these are made."""
    of_weight, of_bias = made
    side = _side(how)
    if of_weight is not None and side is not None:
        dim, pieces = side
        if dim == 0 and bias is not None and of_bias is not None:
            of_weight, of_bias = parts.spread([weight, bias], [of_weight, of_bias], 0, pieces)
            return of_weight, of_bias
        (of_weight,) = parts.spread([weight], [of_weight], dim, pieces, how.alpha)
    elif of_weight is not None:
        scaled = of_weight if how.alpha == 1.0 else of_weight.to(weight.dtype).mul_(how.alpha)
        of_weight = products.in_place_of(weight, scaled, how.cut)
    if bias is not None and of_bias is not None:
        of_bias = products.in_place_of(bias, of_bias, Cut(how.cut.rows))
    return of_weight, of_bias


_apply = apply_eagerly(_Convolution)
