"""The registered op behind every masked product, and its gradient.

    sparsedrop::masked_mm:  out ∘ M_out = act(alpha (a ∘ M_a) (b ∘ M_b) + bias) ∘ M_out

The gradients are two more calls of it: the incoming gradient carries the output's mask, and the
gradient of an operand is an output under that operand's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsedrop import cpu, cuda, reference, select
from sparsedrop.block_mask import BlockMask, Masks, Side, expand_live, straight
from sparsedrop.mask_ops import is_plain
from sparsedrop.mask_tensors import MaskTensors

_aten = torch.ops.aten

_Product = tuple[Masks, float, "str | None", bool]
_Way = Callable[[Side, Side, "Tensor | None", "BlockMask | None", float, "str | None"], Tensor]


def masked_mm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    masks: Masks,
    alpha: float,
    activation: str | None,
    b_turned: bool = False,
) -> Tensor:
    """The operation on checked arguments: a [m, k], b [k, n], bias [n]; differentiable.

    With `b_turned` b is given as its transpose [n, k], and so is its mask.
    """
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    ):
        _refuse_transforms(a, b, bias)
    # A mask that is known to drop nothing costs nothing.
    a_mask, b_mask, out_mask = masks
    a_mask = None if a_mask is None or a_mask.keep == 1.0 else a_mask
    b_mask = None if b_mask is None or b_mask.keep == 1.0 else b_mask
    out_mask = None if out_mask is None or out_mask.keep == 1.0 else out_mask
    needs_grad = a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)
    if needs_grad and torch.is_grad_enabled():
        product = ((a_mask, b_mask, out_mask), alpha, activation, b_turned)
        apply = _MaskedMM.apply if torch.compiler.is_compiling() else _apply_eagerly
        return apply(a, b, bias, product)
    left, right = (a, a_mask, False), (b, b_mask, b_turned)
    way = _way_for(a, b) if bias is None else _way_for(a, b, bias)
    return way(left, right, bias, out_mask, alpha, activation)


def _refuse_transforms(*operands: Tensor | None) -> None:
    """RuntimeError under vmap, torch.func.grad and forward-mode differentiation.

    The op has no rule for them, and without this it would hand out tangents of zero.
    """
    is_dual = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(operand).tangent is not None
        for operand in operands
        if operand is not None
    )
    if is_dual or torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "a sparsedrop product has neither forward-mode derivatives nor rules for torch.func's "
            "transforms: compute what needs them with sparsedrop.reference"
        )


class _MaskedMM(torch.autograd.Function):
    """`product`: masks, alpha, activation and b_turned, as `masked_mm` takes them."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None, product: _Product) -> Tensor:
        (a_mask, b_mask, out_mask), alpha, activation, b_turned = product
        left, right = (a, a_mask, False), (b, b_mask, b_turned)
        way = _way_for(a, b) if bias is None else _way_for(a, b, bias)
        # relu's gradient follows from the output's sign; gelu's and silu's need what went in.
        if activation is None or activation == "relu":
            kept = out = way(left, right, bias, out_mask, alpha, activation)
        elif way is cuda.masked_mm:
            out, kept = cuda.masked_mm_and_before(left, right, bias, out_mask, alpha, activation)
        else:
            kept = way(left, right, bias, out_mask, alpha, None)
            out = reference.ACTIVATIONS[activation](kept)
        need_a, need_b, _, _ = ctx.needs_input_grad
        # An activation's gradient depends on both, which `_Once` must know.
        ctx.save_for_backward(
            a if need_b or activation is not None else None,
            b if need_a or activation is not None else None,
            None if activation is None else kept,
        )
        # Masks are constants, and small: they need no saving.
        ctx.product = product
        ctx.column_major = _is_column_major(a), _is_column_major(b)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b, kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _gradients(ctx, upstream, a, b, kept)
        with torch.no_grad():
            grads = _gradients(ctx, upstream, a, b, kept)
        if torch.compiler.is_compiling():
            return grads
        # Under create_graph: what these gradients depend on is not recorded, and says so.
        return _Once.apply(upstream, a, b, *grads)


# What Function.apply calls in the end, without its detour for the transforms of torch.func, which
# are refused: a tenth of the forward pass on the host.
_apply_eagerly = super(torch.autograd.Function, _MaskedMM).apply


def _gradients(
    ctx: Any, upstream: Tensor, a: Tensor, b: Tensor, kept: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Of a, b and bias: two products that read in place what the user gave, and the gradient.

    What no gradient needs was not saved, and is None. Where the output is dropped, `kept` and the
    gradient before the activation may hold anything: all that is done with them leaves it out.
    """
    (a_mask, b_mask, out_mask), alpha, activation, b_turned = ctx.product
    need_a, need_b, need_bias, _ = ctx.needs_input_grad
    a_column_major, b_column_major = ctx.column_major
    grad = upstream if activation is None else _ACTIVATION_GRADS[activation](upstream, kept)
    run = _way_for(grad, grad if a is None else a, grad if b is None else b)
    grad_a = grad_b = grad_bias = None
    if need_a:
        left, right = (grad, out_mask, False), (b, b_mask, not b_turned)
        grad_a = _gradient(run, left, right, a_mask, alpha, a_column_major)
    if need_b:
        left, right = (a, a_mask, True), (grad, out_mask, False)
        if b_turned:
            left, right = _turned(right), _turned(left)
        grad_b = _gradient(run, left, right, b_mask, alpha, b_column_major)
    if need_bias:
        is_ours = run is cuda.masked_mm and select.is_free()
        sums = cuda.column_sums(grad, out_mask) if is_ours else None
        grad_bias = _sum_live_rows(grad, out_mask) if sums is None else sums
    return grad_a, grad_b, grad_bias, None


def _gradient(
    run: _Way, left: Side, right: Side, mask: BlockMask | None, alpha: float, column_major: bool
) -> Tensor:
    """The gradient of an operand under its mask, lying as the operand does, with no copy.

    A product's result is row-major: that of a column-major operand is the transposed one, turned.
    """
    if not column_major:
        return run(left, right, None, mask, alpha, None)
    mask = None if mask is None else mask.T
    return run(_turned(right), _turned(left), None, mask, alpha, None).t()


def _turned(side: Side) -> Side:
    matrix, mask, turned = side
    return matrix, mask, not turned


class _Once(torch.autograd.Function):
    """Hands gradients through; raises where they are differentiated by what they depend on."""

    @staticmethod
    def forward(
        ctx: Any, upstream: Tensor, a: Tensor | None, b: Tensor | None, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a sparsedrop product can be differentiated once, not twice: "
            "compute what needs second derivatives with sparsedrop.reference"
        )


_ACTIVATION_GRADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, out: _aten.threshold_backward(grad, out, 0),
    "gelu": lambda grad, before: _aten.gelu_backward(grad, before),
    "silu": lambda grad, before: _aten.silu_backward(grad, before),
}


def _way_for(*operands: Tensor) -> _Way:
    """What runs a product of these: an implementation itself, or the op where somebody watches."""
    if not is_plain(*operands):
        return _by_op
    if operands[0].is_cuda:
        return cuda.masked_mm
    return _on_cpu if operands[0].is_cpu else _by_op


def _straightened(run: Callable[..., Tensor]) -> _Way:
    """`run(a, b, bias, masks, alpha, activation)` for operands as they lie."""

    def way(
        left: Side, right: Side, bias: Tensor | None, out_mask: BlockMask | None, *how: Any
    ) -> Tensor:
        (a, a_mask), (b, b_mask) = straight(left), straight(right)
        return run(a, b, bias, (a_mask, b_mask, out_mask), *how)

    return way


def _call_op(a: Tensor, b: Tensor, bias: Tensor | None, masks: Masks, *how: Any) -> Tensor:
    return _OP(a, b, bias, *_pack(masks), *how)


_on_cpu, _by_op = _straightened(cpu.masked_mm), _straightened(_call_op)


def _is_column_major(matrix: Tensor) -> bool:
    row_stride, col_stride = matrix.stride()
    return row_stride == 1 and col_stride != 1


def _sum_live_rows(grad: Tensor, mask: BlockMask | None) -> Tensor:
    """Gradient of the bias, [n]: the sum over the rows of grad [m, n], live blocks only."""
    if mask is None:
        return grad.sum(0)
    block_rows = mask.block_shape[0]
    whole = grad.shape[0] // block_rows * block_rows
    wide = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else grad.dtype
    sums = grad[:whole].unflatten(0, (whole // block_rows, block_rows)).sum(1, dtype=wide)  # [R, n]
    if whole < grad.shape[0]:
        sums = torch.cat([sums, grad[whole:].sum(0, keepdim=True, dtype=wide)])
    live = expand_live(mask.live, (1, mask.block_shape[1]), tuple(sums.shape))
    return torch.where(live, sums, 0).sum(0).to(grad.dtype)


def _pack(masks: Masks) -> tuple[list[Tensor], list[int], list[float]]:
    """Masks as the op takes them, three tensors each; blocks of 0: none, a keep of -1: unknown."""
    tensors: list[Tensor] = []
    blocks: list[int] = []
    keeps: list[float] = []
    for mask in masks:
        if mask is not None:
            tensors += (mask.live, mask.row_words, mask.col_words)
        blocks += (0, 0) if mask is None else mask.block_shape
        keeps.append(-1.0 if mask is None or mask.keep is None else mask.keep)
    return tensors, blocks, keeps


def _unpack(
    tensors: Sequence[Tensor],
    blocks: Sequence[int],
    keeps: Sequence[float],
    a_shape: torch.Size,
    b_shape: torch.Size,
) -> Masks:
    """The inverse of `_pack`."""
    (m, k), n = a_shape, b_shape[1]
    masks: list[BlockMask | None] = []
    used = 0
    for i, shape in enumerate(((m, k), (k, n), (m, n))):
        block_shape = (blocks[2 * i], blocks[2 * i + 1])
        if block_shape == (0, 0):
            masks.append(None)
            continue
        live, row_words, col_words = tensors[used : used + 3]
        keep = keeps[i] if keeps[i] >= 0 else None
        mask_tensors = MaskTensors((live, row_words, col_words))
        masks.append(BlockMask(shape, block_shape, keep, mask_tensors))
        used += 3
    return masks[0], masks[1], masks[2]


def _kernel(run: _Way) -> Callable[..., Tensor]:
    """The op's implementation by a function that takes the masks as BlockMasks."""

    def kernel(
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        mask_tensors: list[Tensor],
        blocks: list[int],
        keeps: list[float],
        alpha: float,
        activation: str | None,
    ) -> Tensor:
        a_mask, b_mask, out_mask = _unpack(mask_tensors, blocks, keeps, a.shape, b.shape)
        return run((a, a_mask, False), (b, b_mask, False), bias, out_mask, alpha, activation)

    return kernel


def _fake(a: Tensor, b: Tensor, *_: object) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


def _register() -> torch.library.Library:
    """Defines the op; the library must outlive it, so the module keeps it."""
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    library.define(
        "masked_mm(Tensor a, Tensor b, Tensor? bias, Tensor[] mask_tensors, SymInt[] blocks, "
        "float[] keeps, float alpha, str? activation) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.impl("masked_mm", _kernel(_on_cpu), "CPU")
    library.impl("masked_mm", _kernel(cuda.masked_mm), "CUDA")
    torch.library.register_fake("sparsedrop::masked_mm", _fake, lib=library)
    return library


_library = _register()
_OP = torch.ops.sparsedrop.masked_mm.default
