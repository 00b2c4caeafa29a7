"""The registered op of a product: for whoever watches, such as torch.compile and dispatch modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop.masks import BlockMask, Masks
from sparsedrop.masks.tensors import MaskTensors
from sparsedrop.ops import cpu, cuda, dense
from sparsedrop.ops.product import How, Product, straight

column_sums = dense.column_sums


def product(p: Product) -> Tensor:
    """See `backend.Backend`."""
    a, b, masks = straight(p)
    return _OP(a, b, p.bias, *_pack(masks), p.how.alpha, p.how.activation)


def product_and_pre_activation(p: Product) -> tuple[Tensor, Tensor]:
    """See `backend.Backend`."""
    return dense.in_two_steps(product, p)


def _pack(masks: Masks) -> tuple[list[Tensor], list[int], list[float]]:
    """Masks as the op takes them, three tensors each.

    Blocks of 0 mean that there is no mask, a keep of -1 that it is unknown.
    """
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


def _kernel(run: Callable[[Product], Tensor]) -> Callable[..., Tensor]:
    """The op's implementation by a backend's product."""

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
        masks = _unpack(mask_tensors, blocks, keeps, a.shape, b.shape)
        return run(Product(a, b, bias, How(*masks, alpha, activation)))

    return kernel


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, bias, mask_tensors, blocks, keeps, alpha, activation = inputs
    ctx.save_for_backward(a, b, bias, output, *mask_tensors)
    ctx.how = blocks, keeps, alpha, activation


def _backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    """Gradients as products of the same kind, which can be differentiated again."""
    a, b, bias, out, *mask_tensors = ctx.saved_tensors
    blocks, keeps, alpha, activation = ctx.how
    need_a, need_b, need_bias, *_ = ctx.needs_input_grad
    kept = out
    if activation not in (None, "relu"):
        kept = _OP(a, b, bias, mask_tensors, blocks, keeps, alpha, None)
    grad = dense.activation_grad(activation, upstream, kept)
    a_mask, b_mask, out_mask = _unpack(mask_tensors, blocks, keeps, a.shape, b.shape)
    grad_a = grad_b = grad_bias = None
    if need_a:
        masks = out_mask, None if b_mask is None else b_mask.T, a_mask
        grad_a = _OP(grad, b.t(), None, *_pack(masks), alpha, None)
    if need_b:
        masks = None if a_mask is None else a_mask.T, out_mask, b_mask
        grad_b = _OP(a.t(), grad, None, *_pack(masks), alpha, None)
    if need_bias:
        grad_bias = column_sums(grad, out_mask)
    return grad_a, grad_b, grad_bias, [None] * len(mask_tensors), None, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """One product after the other."""

    def sample(value: Any, dim: Any, i: int) -> Any:
        if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [sample(v, d, i) for v, d in zip(value, dim, strict=True)]
        return value.select(dim, i) if isinstance(value, Tensor) and dim is not None else value

    parts = (
        [sample(value, dim, i) for value, dim in zip(args, in_dims, strict=True)]
        for i in range(info.batch_size)
    )
    return torch.stack([_OP(*part) for part in parts]), 0


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
    library.impl("masked_mm", _kernel(cpu.product), "CPU")
    library.impl("masked_mm", _kernel(cuda.product), "CUDA")
    # Devices that nothing here knows, such as Apple's and Intel's, have torch's operations.
    library.impl("masked_mm", _kernel(dense.product), "CompositeExplicitAutograd")
    torch.library.register_fake("sparsedrop::masked_mm", _fake, lib=library)
    # For graphs and transforms that see the op alone; elsewhere `autograd` has a node around it.
    torch.library.register_autograd(
        "sparsedrop::masked_mm", _backward, setup_context=_setup_context, lib=library
    )
    torch.library.register_vmap("sparsedrop::masked_mm", _vmap, lib=library)
    return library


_library = _register()
_OP = torch.ops.sparsedrop.masked_mm.default
