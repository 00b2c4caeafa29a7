"""The autograd node of a linear layer of which slices are live."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import apply_eagerly
from sparsedrop.ops.slices import products
from sparsedrop.ops.slices.again import gradients_again
from sparsedrop.ops.slices.gradients import keep_compact
from sparsedrop.ops.slices.products import Cut, flat, unflat
from sparsedrop.ops.slices.views import linear_by_views
from sparsedrop.ops.units.facts import NO_SECOND


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
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if needs_grad and torch.is_grad_enabled():
        return _apply(cut, alpha, lazy, x, weight, bias)
    return _product(x, weight, bias, cut, alpha)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, cut: Cut, alpha: float) -> Tensor:
    out = products.product(flat(x), weight, bias, cut, alpha)
    return unflat(out, x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cut: Cut, alpha: float, lazy: bool, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.how, ctx.owners = (cut, alpha, lazy), (weight, bias)
        return _product(x, weight, bias, cut, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cut, alpha, lazy), needs = ctx.how, ctx.needs_input_grad[3:]
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            if lazy:
                raise RuntimeError(NO_SECOND)
            made = gradients_again(
                lambda: linear_by_views(x, weight, bias, cut, alpha), [x, weight, bias], grad, needs
            )
            return None, None, None, *made
        flat_x, flat_grad = flat(x), flat(grad)
        of_x = of_weight = of_bias = None
        if needs[0]:
            of_x = unflat(products.input_gradient(flat_grad, weight, cut, alpha), x)
        if lazy:
            of_bias = _lazily(ctx.owners, flat_grad, flat_x, cut, alpha, needs)
            return None, None, None, of_x, None, of_bias
        if needs[1]:
            of_weight = products.weight_gradient(flat_grad, flat_x, weight, cut, alpha)
        if needs[2]:
            of_bias = products.bias_gradient(flat_grad, bias, cut.rows)
        return None, None, None, of_x, of_weight, of_bias


def _lazily(
    owners: tuple[Tensor, Tensor | None],
    grad: Tensor,
    x: Tensor,
    cut: Cut,
    alpha: float,
    needs: tuple[bool, ...],
) -> Tensor | None:
    """Hands compact gradients to the parameters; returns that of a bias that is not sliced."""
    weight, bias = owners
    dim, pieces = (0, cut.rows) if cut.rows is not None else (1, cut.cols)
    assert pieces is not None
    if needs[1]:
        found = products.compact_weight_gradient(grad, x, weight.dtype, alpha)
        keep_compact(weight, dim, pieces, found)
    if not needs[2] or bias is None:
        return None
    sums = grad.sum(0, dtype=bias.dtype)
    if dim == 1:
        return sums
    keep_compact(bias, 0, pieces, sums)
    return None


_apply = apply_eagerly(_Linear)
