"""A product that can be differentiated.

Its gradients are two more products: the incoming gradient carries the output's mask, and the
gradient of an operand is an output under that operand's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import (
    apply_eagerly,
    is_exporting,
    is_forward_mode,
    is_transformed,
    without_dead_levels,
)
from sparsedrop.masks import BlockMask, MaskTensors
from sparsedrop.ops import dense, op
from sparsedrop.ops.backend import Backend, backend_for
from sparsedrop.ops.dense import activation_grad
from sparsedrop.ops.product import How, Product


def multiply(p: Product) -> Tensor:
    """The result of a product on checked arguments, differentiable in a, b and bias."""
    a, b, bias, how = p
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and is_forward_mode(a, b, bias):
        raise RuntimeError(FORWARD_MODE)
    live = _without_full_masks(how)
    if live is not how:
        how, p = live, Product(a, b, bias, live)
    if not is_compiling and is_transformed():
        return _Transformed.apply(a, b, bias, how)
    if is_compiling and is_exporting():
        return op.product(p)  # a program that is exported keeps no node, and the op has its rule
    needs_grad = a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)
    if needs_grad and torch.is_grad_enabled():
        if is_compiling:
            stripped, kinds, tensors = _strip(how)
            return _Compiled.apply(a, b, bias, stripped, kinds, *tensors)
        return _apply_eagerly(a, b, bias, how)
    return _backend_of(a, b, bias).product(p)


def _without_full_masks(how: How) -> How:
    """A mask that is known to drop nothing costs nothing."""
    a_mask, b_mask, out_mask, *_ = how
    if (
        (a_mask is None or a_mask.keep != 1.0)
        and (b_mask is None or b_mask.keep != 1.0)
        and (out_mask is None or out_mask.keep != 1.0)
    ):
        return how
    a_mask, b_mask, out_mask = (
        None if mask is None or mask.keep == 1.0 else mask for mask in (a_mask, b_mask, out_mask)
    )
    return how._replace(a_mask=a_mask, b_mask=b_mask, out_mask=out_mask)


def _backend_of(a: Tensor, b: Tensor, bias: Tensor | None) -> Backend:
    return backend_for(a, b) if bias is None else backend_for(a, b, bias)


FORWARD_MODE = (
    "a sparsedrop product has no forward-mode derivatives: compute what needs them with "
    "sparsedrop.reference"
)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None, how: How) -> Tensor:
        out, kept = _run(Product(a, b, bias, how))
        activation = how.activation
        need_a, need_b, _, _ = ctx.needs_input_grad
        # An activation's gradient depends on a, b and bias.
        ctx.save_for_backward(
            a if need_b or activation is not None else None,
            b if need_a or activation is not None else None,
            bias if activation is not None else None,
            None if activation is None else kept,
        )
        # Masks are constants, and small: they need no saving.
        ctx.how = how
        ctx.column_major = _is_column_major(a), _is_column_major(b)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b, bias, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # under create_graph
            kept = _kept_again(a, b, bias, kept, ctx.how)
            return _gradients(ctx, ctx.how, upstream, a, b, kept, multiply)
        return _gradients(ctx, ctx.how, upstream, a, b, kept)


def _run(p: Product) -> tuple[Tensor, Tensor]:
    """The result, and what the activation's gradient follows from."""
    backend = _backend_of(p.a, p.b, p.bias)
    # relu's gradient follows from the output's sign; gelu's and silu's need what went in.
    if p.how.activation is None or p.how.activation == "relu":
        out = backend.product(p)
        return out, out
    return backend.product_and_pre_activation(p)


class _Compiled(torch.autograd.Function):
    """The same under torch.compile, which has to see the masks' tensors as inputs of a node."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        stripped: How,
        kinds: tuple[Any, ...],
        *tensors: Tensor,
    ) -> Tensor:
        out, kept = _run(Product(a, b, bias, _with_masks(stripped, kinds, tensors)))
        ctx.save_for_backward(a, b, kept, *tensors)
        ctx.how, ctx.kinds = stripped, kinds
        ctx.column_major = _is_column_major(a), _is_column_major(b)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b, kept, *tensors = ctx.saved_tensors
        how = _with_masks(ctx.how, ctx.kinds, tensors)
        grads = _gradients(ctx, how, upstream, a, b, kept)
        return *grads, None, *(None for _ in tensors)


def _strip(how: How) -> tuple[How, tuple[Any, ...], list[Tensor]]:
    """A product's masks apart from it: what they are, and their tensors."""
    masks = how.a_mask, how.b_mask, how.out_mask
    kinds = tuple(None if m is None else (m.shape, m.block_shape, m.keep) for m in masks)
    tensors = [tensor for mask in masks if mask is not None for tensor in mask.tensors.all()]
    return how._replace(a_mask=None, b_mask=None, out_mask=None), kinds, tensors


def _with_masks(how: How, kinds: tuple[Any, ...], tensors: Sequence[Tensor]) -> How:
    """The inverse of `_strip`."""
    masks: list[BlockMask | None] = []
    used = 0
    for kind in kinds:
        if kind is None:
            masks.append(None)
            continue
        live, row_words, col_words = tensors[used : used + 3]
        shape, block_shape, keep = kind
        held = MaskTensors((live, row_words, col_words))
        masks.append(BlockMask(shape, block_shape, keep, held))
        used += 3
    return how._replace(a_mask=masks[0], b_mask=masks[1], out_mask=masks[2])


_apply_eagerly = apply_eagerly(_Multiply)


class _Transformed(torch.autograd.Function):
    """The same as transforms of torch.func want it: nothing is kept but inputs and the result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None, how: How) -> Tensor:
        return _backend_of(a, b, bias).product(Product(a, b, bias, how))

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, How], output: Tensor
    ) -> None:
        a, b, bias, how = inputs
        ctx.save_for_backward(a, b, bias, output)
        ctx.how = how
        ctx.column_major = _is_column_major(a), _is_column_major(b)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # A pullback may be called when the transform that it comes from is over.
        (a, b, bias, out), how, upstream = without_dead_levels(
            (ctx.saved_tensors, ctx.how, upstream)
        )
        kept = _kept_again(a, b, bias, out, how)
        return _gradients(ctx, how, upstream, a, b, kept, multiply)


def _kept_again(a: Tensor, b: Tensor, bias: Tensor | None, kept: Tensor, how: How) -> Tensor:
    """What an activation's gradient follows from, with its own dependence on the operands."""
    if how.activation in (None, "relu"):
        return kept
    return multiply(Product(a, b, bias, how._replace(activation=None)))


def _gradients(
    ctx: Any,
    how: How,
    upstream: Tensor,
    a: Tensor,
    b: Tensor,
    kept: Tensor,
    product: Callable[[Product], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Gradients of a, b and bias: two products that read in place what the user gave.

    What no gradient needs was not saved, and is None. Where the output is dropped, `kept` and the
    gradient before the activation may hold anything: all that is done with them leaves it out.
    `product`: what multiplies, where the gradients are to be differentiated again.
    """
    out_mask, alpha, activation, a_turned, b_turned = how[2:]
    need_a, need_b, need_bias, *_ = ctx.needs_input_grad
    a_column_major, b_column_major = ctx.column_major
    grad = activation_grad(activation, upstream, kept)
    backend = backend_for(grad, grad if a is None else a, grad if b is None else b)
    run = backend.product if product is None else product
    grad_a = grad_b = grad_bias = None
    upstream_side = grad, out_mask, False
    if need_a:
        left, right = upstream_side, (b, how.b_mask, not b_turned)
        grad_a = _gradient(run, left, right, alpha, how.a_mask, a_turned, a_column_major)
    if need_b:
        left, right = (a, how.a_mask, not a_turned), upstream_side
        grad_b = _gradient(run, left, right, alpha, how.b_mask, b_turned, b_column_major)
    if need_bias:
        sums = backend.column_sums if product is None else dense.column_sums
        grad_bias = sums(grad, out_mask)
    return grad_a, grad_b, grad_bias, None


_Side = tuple[Tensor, "BlockMask | None", bool]
"""A factor: its matrix, the matrix's mask, and whether the two are used transposed."""


def _gradient(
    run: Callable[[Product], Tensor],
    left: _Side,
    right: _Side,
    alpha: float,
    mask: BlockMask | None,
    turned: bool,
    column_major: bool,
) -> Tensor:
    """The gradient of an operand as it was given, under its mask, lying as it does, with no copy.

    left times right is that of the operand as it is used, so transposed where it is `turned`. A
    product's result is row-major: that of a column-major operand is the transposed one, turned.
    """
    if (not turned) if column_major else turned:
        left, right = right, left
        a_turned, b_turned = not left[2], not right[2]
    else:
        a_turned, b_turned = left[2], right[2]
    if column_major and mask is not None:
        mask = mask.T
    how = How(left[1], right[1], mask, alpha, None, a_turned, b_turned)
    result = run(Product(left[0], right[0], None, how))
    return result.t() if column_major else result


def _is_column_major(matrix: Tensor) -> bool:
    row_stride, col_stride = matrix.stride()
    return row_stride == 1 and col_stride != 1
