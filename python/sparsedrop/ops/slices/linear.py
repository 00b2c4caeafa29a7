"""The autograd node of a linear layer of which slices are live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import apply_eagerly, is_batch_of_gradients, is_watched
from sparsedrop.ops.again import gradients_again, like_of
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.slices import products
from sparsedrop.ops.slices.gradients import keep_compact
from sparsedrop.ops.slices.products import Cut, Pieces, flat, unflat, units_of
from sparsedrop.ops.slices.views import linear_by_views
from sparsedrop.ops.units.chain import Link
from sparsedrop.ops.units.facts import NO_SECOND
from sparsedrop.ops.units.linear import LinearCall, linear_call
from sparsedrop.ops.units.linear_facts import DrawnSides, Live


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cut: Cut,
    alpha: float = 1.0,
    lazy: bool = False,
) -> Tensor:
    """alpha * x Wᵀ + bias of the live units, x [..., k'] -> [..., n'], of checked tensors that
    nobody watches; `lazy` as for a feed-forward block, where one extent is cut."""
    if x.is_cuda:
        x = x.contiguous()  # what comes before it may leave gaps of padding
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if needs_grad and torch.is_grad_enabled():
        return _apply(cut, alpha, lazy, x, weight, bias)
    return product(x, weight, bias, cut, alpha, call_of(x, weight, bias, cut))


def call_of(x: Tensor, weight: Tensor, bias: Tensor | None, cut: Cut) -> LinearCall | None:
    """What runs it in one call, where something is cut."""
    if not x.is_cuda or not _is_one_call(cut, weight) or not x.is_contiguous():
        return None
    sides = _live(cut.rows), _live(cut.cols)
    return linear_call((x.shape, x.dtype), x.get_device(), (weight, bias), sides)


def _is_one_call(cut: Cut, weight: Tensor) -> bool:
    """Whether something is cut, of what is there, into no more parts than a call has."""
    if cut.rows is None and cut.cols is None:
        return False
    for pieces, units in zip(cut, weight.shape, strict=False):
        if pieces is not None and (len(pieces) > 2 or any(stop > units for _, stop in pieces)):
            return False
    return True


def link_of(
    weight: Tensor, bias: Tensor | None, cut: Cut, alpha: float, activation: str | None
) -> Link | None:
    """The layer, as a link of a chain; None where it is no call."""
    if not _is_one_call(cut, weight):
        return None

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear_by_views(x, weight, bias, cut, alpha)

    sides = _live(cut.rows), _live(cut.cols)
    return Link(weight, bias, *sides, _drawn(cut, alpha), plain, activation)


def _live(pieces: Pieces | None) -> Live | None:
    return None if pieces is None else Live(products.width(pieces, 0), len(pieces) > 1)


def _drawn(cut: Cut, alpha: float) -> DrawnSides:
    rows, cols = (None if pieces is None else units_of(pieces) for pieces in cut)
    return DrawnSides(rows, cols, alpha)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cut: Cut,
    alpha: float,
    call: LinearCall | None,
) -> Tensor:
    """alpha * x Wᵀ + bias of the live units, by what `call_of` has found."""
    if call is not None:
        return call.forward(x, weight, bias, _drawn(cut, alpha))[0]
    out = products.product(flat(x), weight, bias, cut, alpha)
    return unflat(out, x)


def gradients(
    operands: tuple[Tensor | None, Tensor, Tensor | None],
    grad: Tensor,
    cut: Cut,
    alpha: float,
    needs: Sequence[bool],
    call: LinearCall | None,
    lazy: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, weight and bias that are needed, likewise; with `lazy` the last two are of live
    units alone. Where the weight's is not, nothing is asked of x."""
    x, weight, bias = operands
    if call is not None and not is_watched(grad):
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        return call.backward(grad, (x, weight), _drawn(cut, alpha), needs, lazy)
    flat_grad = flat(grad)
    of_x = of_weight = of_bias = None
    if needs[0]:
        of_x = unflat(products.input_gradient(flat_grad, weight, cut, alpha), grad)
    if needs[1]:
        assert x is not None
        if lazy:
            of_weight = products.compact_weight_gradient(flat_grad, flat(x), weight.dtype, alpha)
        else:
            of_weight = products.weight_gradient(flat_grad, flat(x), weight, cut, alpha)
    if needs[2] and bias is not None:
        rows = None if lazy else cut.rows
        of_bias = products.bias_gradient(flat_grad, bias, rows)
    return of_x, of_weight, of_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cut: Cut, alpha: float, lazy: bool, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        needs_weight = ctx.needs_input_grad[4]
        ctx.save_for_backward(x if needs_weight else None, weight, bias)
        ctx.how, ctx.owners = (cut, alpha, lazy), (weight, bias)
        ctx.x_shape = x.shape
        ctx.call = call_of(x, weight, bias, cut)
        return product(x, weight, bias, cut, alpha, ctx.call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cut, alpha, lazy), needs = ctx.how, ctx.needs_input_grad[3:]
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batch_of_gradients(grad):
            if lazy:
                raise RuntimeError(NO_SECOND)
            x = like_of(grad, ctx.x_shape) if x is None else x
            made = gradients_again(
                lambda x, weight, bias: linear_by_views(x, weight, bias, cut, alpha),
                [x, weight, bias], grad, needs,
            )  # fmt: skip
            return None, None, None, *made
        of_x, of_weight, of_bias = gradients(
            (x, weight, bias), grad, cut, alpha, needs, ctx.call, lazy
        )
        if lazy:
            of_bias = _kept_compact(ctx.owners, cut, of_weight, of_bias)
            of_weight = None
        return None, None, None, of_x, of_weight, of_bias


def _kept_compact(
    owners: tuple[Tensor, Tensor | None],
    cut: Cut,
    of_weight: Tensor | None,
    of_bias: Tensor | None,
) -> Tensor | None:
    """Hands compact gradients to the parameters; returns that of a bias that is not sliced."""
    weight, bias = owners
    dim, pieces = (0, cut.rows) if cut.rows is not None else (1, cut.cols)
    assert pieces is not None
    if of_weight is not None:
        keep_compact(weight, dim, pieces, of_weight)
    if of_bias is None or bias is None or dim == 1:
        return of_bias
    keep_compact(bias, 0, pieces, of_bias)
    return None


_apply = apply_eagerly(_Linear)
