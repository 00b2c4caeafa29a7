"""The registered ops of a layer: what a compiled graph calls, and compiled autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop.masks import BlockMask, MaskTensors, fill, layout
from sparsedrop.ops import cuda
from sparsedrop.ops.layer.facts import Grads, Options, Saved, facts_of, lie_well
from sparsedrop.ops.layer.kernels import KernelLayer, kernel_layer_for, mask_size
from sparsedrop.ops.product import How, Product

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    block_rows: int,
    block_cols: int,
    sampler: str,
    dtype: torch.dtype,
) -> Four:
    """The result, the mask's buffer, and x and weight where they had to be rounded."""
    options = Options(p, (block_rows, block_cols), sampler)
    layer = _layer(x, weight, bias, options, dtype)
    if layer is None:
        return _forward_by_products(x, weight, bias, options, dtype)
    out, saved = layer.forward(x, weight, bias, options)
    return out, saved.mask, _if_new(saved.x, x), _if_new(saved.weight, weight)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    p: float,
    block_rows: int,
    block_cols: int,
    weight_dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    needs: Sequence[bool],
) -> Three:
    """Gradients of x, weight and bias; empty where they are not needed."""
    options = Options(p, (block_rows, block_cols), "bernoulli")
    need_x, need_weight, need_bias = needs
    bias_shape = None if bias_dtype is None else weight.shape[:1]
    layer = None
    if lie_well(x, weight):
        layer = kernel_layer_for(
            facts_of(x, options, x.dtype, (weight.shape, weight_dtype), (bias_shape, bias_dtype))
        )
    if not lie_well(grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
    saved = Saved(x, weight, mask)
    if layer is None:
        grads = _gradients_by_products(saved, grad, options, (weight_dtype, bias_dtype))
    else:
        grads = layer.backward(saved, grad, options, (need_x, need_weight, need_bias))
    empty = grad.new_empty(0)
    grad_x, grad_weight, grad_bias = (
        found if is_needed and found is not None else empty
        for found, is_needed in zip(grads, needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias


def _layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, dtype: torch.dtype
) -> KernelLayer | None:
    """That of these operands; None where they have to be copied first."""
    if not lie_well(x, weight) or not (bias is None or lie_well(bias)):
        return None
    of_bias = (None, None) if bias is None else (bias.shape, bias.dtype)
    return kernel_layer_for(facts_of(x, options, dtype, (weight.shape, weight.dtype), of_bias))


def _mask_of(buffer: Tensor, x: Tensor, options: Options) -> BlockMask:
    """The mask that lies in the buffer of a layer's."""
    shape = (x.shape[:-1].numel(), x.shape[-1])
    lies = layout(*shape, *options.block_shape)
    return BlockMask(shape, options.block_shape, 1.0 - options.p, MaskTensors(None, buffer, lies))


def _forward_by_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, dtype: torch.dtype
) -> Four:
    (n, k), m = weight.shape, x.shape[:-1].numel()
    buffer = torch.empty(
        mask_size(m, n, k, options.block_shape), dtype=torch.int32, device=x.device
    )
    mask = _mask_of(buffer, x, options)
    fill(options.sampler, mask.tensors, (m, k, *options.block_shape), options.p, x.device)
    used_x, used_weight = x.to(dtype), weight.to(dtype)
    used_bias = None if bias is None else bias.to(dtype)
    how = How(mask, None, None, options.alpha, None, False, True)
    out = cuda.product(Product(used_x.reshape(m, k), used_weight, used_bias, how))
    return out.view(*x.shape[:-1], n), buffer, _if_new(used_x, x), _if_new(used_weight, weight)


def _gradients_by_products(
    saved: Saved, grad: Tensor, options: Options, dtypes: tuple[torch.dtype, torch.dtype | None]
) -> Grads:
    x, weight, buffer = saved
    (n, k), m = weight.shape, x.shape[:-1].numel()
    mask, grad, alpha = _mask_of(buffer, x, options), grad.view(m, n), options.alpha
    grad_x = cuda.product(Product(grad, weight, None, How(None, None, mask, alpha)))
    how = How(None, mask, None, alpha, None, True, False)
    grad_weight = cuda.product(Product(grad, x.reshape(m, k), None, how))
    weight_dtype, bias_dtype = dtypes
    grad_bias = None if bias_dtype is None else cuda.column_sums(grad, None).to(bias_dtype)
    return grad_x.view(x.shape), grad_weight.to(weight_dtype), grad_bias


def _if_new(used: Tensor, given: Tensor) -> Tensor:
    """What an op may return of it: its inputs it may not."""
    return given.new_empty(0) if used is given else used


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    block_rows: int,
    block_cols: int,
    sampler: str,
    dtype: torch.dtype,
) -> Four:
    (n, k), m = weight.shape, x.shape[:-1].numel()

    def used(given: Tensor) -> Tensor:
        return given.new_empty(0 if given.dtype == dtype else given.shape, dtype=dtype)

    size = mask_size(m, n, k, (block_rows, block_cols))
    mask = x.new_empty(size, dtype=torch.int32)
    return x.new_empty((*x.shape[:-1], n), dtype=dtype), mask, used(x), used(weight)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    p: float,
    block_rows: int,
    block_cols: int,
    weight_dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    needs: Sequence[bool],
) -> Three:
    need_x, need_weight, need_bias = needs
    return (
        x.new_empty(x.shape if need_x else 0),
        weight.new_empty(weight.shape, dtype=weight_dtype) if need_weight else grad.new_empty(0),
        grad.new_empty(weight.shape[0], dtype=bias_dtype) if need_bias else grad.new_empty(0),
    )


def _register() -> torch.library.Library:
    """Defines the ops; the library must outlive them, so the module keeps it."""
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    options = "float p, SymInt block_rows, SymInt block_cols"
    # Tagged, so that compiled graphs neither merge two draws nor repeat one.
    library.define(
        f"dropout_linear(Tensor x, Tensor weight, Tensor? bias, {options}, str sampler, "
        "ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
        tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
    )
    library.define(
        f"dropout_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor mask, {options}, "
        "ScalarType weight_dtype, ScalarType? bias_dtype, bool[] needs) "
        "-> (Tensor, Tensor, Tensor)",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    for name, kernel, fake in (
        ("dropout_linear", _forward, _fake_forward),
        ("dropout_linear_backward", _backward, _fake_backward),
    ):
        library.impl(name, kernel, "CUDA")
        torch.library.register_fake(f"sparsedrop::{name}", fake, lib=library)
    return library


_library = _register()
FORWARD = torch.ops.sparsedrop.dropout_linear.default
BACKWARD = torch.ops.sparsedrop.dropout_linear_backward.default
