"""The registered ops of a layer: what a compiled graph calls, and compiled autograd."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import keep_apart
from sparsedrop.masks import FILLS, BlockMask, MaskTensors, layout
from sparsedrop.ops import cuda
from sparsedrop.ops.layer.facts import Grads, Needs, Options, lie_well
from sparsedrop.ops.layer.kernels import KernelLayer, kernel_layer_for, packing
from sparsedrop.ops.product import How, Product
from sparsedrop.ops.registration import Op, register
from sparsedrop.ops.spelling import read

Three = tuple[Tensor, Tensor, Tensor]
Dtypes = tuple[torch.dtype, torch.dtype, "torch.dtype | None"]
Called = tuple[float, tuple[int, int], str]
"""The rate, the blocks, and the rest of an op's constants."""
State = tuple[bool, "str | None"]
"""Whether products may be TF32, and the architecture that is forced."""


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    block_rows: int,
    block_cols: int,
    how: str,
) -> tuple[Tensor, Tensor]:
    """The result, and a buffer of the mask, and of x and weight where they had to be rounded.

    how: the sampler, the side and the dtype of the product, as `spelled`.
    """
    of_bias = (None, None) if bias is None else (bias.shape, bias.dtype)
    given = x.shape, x.dtype, weight.shape, weight.dtype, *of_bias
    of = p, (block_rows, block_cols), how
    layer, options, dtype = _forward_for(x.get_device(), given, of, _state(read(how)[2]))
    lies_well = lie_well(x, weight) and (bias is None or lie_well(bias))
    if layer is None or not lies_well:
        return _forward_by_products(x, weight, bias, options, dtype)
    return layer.forward_packed(x, weight, bias, options)


def _backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    pack: Tensor,
    p: float,
    features: int,
    block_rows: int,
    block_cols: int,
    how: str,
) -> Three:
    """Gradients of x, weight and bias; empty where they are not needed.

    x and weight are None where they were rounded: then they are in the buffer.
    how: the side, the dtypes of x, weight and bias as they were given, and the gradients that are
    needed, as `spelled`.
    """
    given = grad.shape, grad.dtype, features
    of = p, (block_rows, block_cols), how
    layer, options, needs = _backward_for(grad.get_device(), given, of, _state(grad.dtype))
    if not lie_well(grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
    lies_well = (x is None or lie_well(x)) and (weight is None or lie_well(weight))
    if layer is None or not lies_well:
        dtypes = read(how)[1:4]
        grads = _gradients_by_products(x, weight, pack, grad, options, features, dtypes)
    else:
        grads = layer.backward_packed(x, weight, pack, grad, options, needs)
    # Each its own: outputs of an op may not be one tensor.
    grad_x, grad_weight, grad_bias = (
        found if is_needed and found is not None else grad.new_empty(0)
        for found, is_needed in zip(grads, needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias


def _state(dtype: torch.dtype) -> State:
    return _native.multiplies_as_tf32(dtype), select.forced_architecture()


@functools.lru_cache(maxsize=4096)
def _forward_for(
    index: int, given: tuple[Any, ...], of: Called, state: State
) -> tuple[KernelLayer | None, Options, torch.dtype]:
    """How a forward pass runs; None: by products.

    given: shape and dtype of x, weight and bias.
    """
    p, block_shape, how = of
    sampler, side, dtype = read(how)
    options = Options(p, block_shape, sampler, side=side)
    return _layer_of(index, given, dtype, options, state), options, dtype


@functools.lru_cache(maxsize=4096)
def _backward_for(
    index: int, given: tuple[Any, ...], of: Called, state: State
) -> tuple[KernelLayer | None, Options, Needs]:
    """Likewise of a backward pass, and which gradients are needed.

    given: shape and dtype of the gradient, and the features of x.
    """
    (shape, dtype, features), (p, block_shape, how) = given, of
    side, x_dtype, weight_dtype, bias_dtype, needs = read(how)
    options = Options(p, block_shape, "bernoulli", side=side)
    n = shape[-1]
    of_bias = (None, None) if bias_dtype is None else (torch.Size((n,)), bias_dtype)
    of_weight = torch.Size((n, features)), weight_dtype
    operands = torch.Size((*shape[:-1], features)), x_dtype, *of_weight, *of_bias
    return _layer_of(index, operands, dtype, options, state), options, needs


def _layer_of(
    index: int, given: tuple[Any, ...], dtype: torch.dtype, options: Options, state: State
) -> KernelLayer | None:
    """dtype: of the products."""
    percent, (tf32, architecture) = round(100 * (1.0 - options.p)), state
    of = dtype, True, percent, options.block_shape, options.side, False, tf32
    return kernel_layer_for((index, *given, *of), architecture)


def _mask_of(pack: Tensor, shape: tuple[int, int], options: Options) -> BlockMask:
    """The mask that stands at the head of a layer's buffer."""
    lies = layout(*shape, *options.block_shape)
    tensors = MaskTensors(None, pack, lies)
    return BlockMask(shape, options.block_shape, 1.0 - options.p, tensors)


def _forward_by_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    keep_apart(torch.ops.sparsedrop.dropout_linear)
    (n, k), m = weight.shape, x.shape[:-1].numel()
    rounds = x.dtype != dtype, weight.dtype != dtype
    lies = packing((m, n, k), options.block_shape, options.side, rounds, dtype)
    pack = torch.empty(lies.size, dtype=torch.int32, device=x.device)
    shape = m, n if options.drops_output else k
    mask = _mask_of(pack, shape, options)
    FILLS[options.sampler](mask.tensors, (*shape, *options.block_shape), options.p, x.device, None)
    used_x, used_weight = x.reshape(m, k).to(dtype), weight.to(dtype)
    if rounds[0]:
        _part(pack, lies.x_at, (m, k), dtype).copy_(used_x)
    if rounds[1]:
        _part(pack, lies.weight_at, (n, k), dtype).copy_(used_weight)
    used_bias = None
    if bias is not None:
        used_bias = (bias * options.alpha if options.drops_output else bias).to(dtype)
    x_mask, out_mask = (None, mask) if options.drops_output else (mask, None)
    how = How(x_mask, None, out_mask, options.alpha, None, False, True)
    out = cuda.product(Product(used_x, used_weight, used_bias, how))
    return out.view(*x.shape[:-1], n), pack


def _gradients_by_products(
    x: Tensor | None,
    weight: Tensor | None,
    pack: Tensor,
    grad: Tensor,
    options: Options,
    k: int,
    dtypes: Dtypes,
) -> Grads:
    lead, n = grad.shape[:-1], grad.shape[-1]
    m, alpha = lead.numel(), options.alpha
    rounds = x is None, weight is None
    lies = packing((m, n, k), options.block_shape, options.side, rounds, grad.dtype)
    used_x = _part(pack, lies.x_at, (m, k), grad.dtype) if x is None else x.reshape(m, k)
    if weight is None:
        weight = _part(pack, lies.weight_at, (n, k), grad.dtype)
    mask = _mask_of(pack, (m, n if options.drops_output else k), options)
    of_x, of_grad = (None, mask) if options.drops_output else (mask, None)
    grad = grad.view(m, n)
    grad_x = cuda.product(Product(grad, weight, None, How(of_grad, None, of_x, alpha)))
    how = How(of_grad, of_x, None, alpha, None, True, False)
    grad_weight = cuda.product(Product(grad, used_x, None, how))
    _, weight_dtype, bias_dtype = dtypes
    grad_bias = None
    if bias_dtype is not None:
        grad_bias = cuda.column_sums(grad, of_grad).to(bias_dtype)
        grad_bias = grad_bias * alpha if options.drops_output else grad_bias
    return grad_x.view(*lead, k), grad_weight.to(weight_dtype), grad_bias


def _part(pack: Tensor, at: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A matrix of 16 bits within a buffer of int32, from that byte on."""
    rows, cols = shape
    return pack[at // 4 :].view(dtype)[: rows * cols].view(rows, cols)


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    block_rows: int,
    block_cols: int,
    how: str,
) -> tuple[Tensor, Tensor]:
    keep_apart(torch.ops.sparsedrop.dropout_linear)
    _, side, dtype = read(how)
    (n, k), m = weight.shape, x.shape[:-1].numel()
    rounds = x.dtype != dtype, weight.dtype != dtype
    size = packing((m, n, k), (block_rows, block_cols), side, rounds, dtype).size
    out = x.new_empty((*x.shape[:-1], n), dtype=dtype)
    return out, x.new_empty(size, dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    pack: Tensor,
    p: float,
    features: int,
    block_rows: int,
    block_cols: int,
    how: str,
) -> Three:
    *_, weight_dtype, bias_dtype, (need_x, need_weight, need_bias) = read(how)
    n = grad.shape[-1]
    return (
        grad.new_empty((*grad.shape[:-1], features)) if need_x else grad.new_empty(0),
        grad.new_empty((n, features), dtype=weight_dtype) if need_weight else grad.new_empty(0),
        grad.new_empty(n, dtype=bias_dtype) if need_bias else grad.new_empty(0),
    )


_BLOCK = "SymInt block_rows, SymInt block_cols"
_library = register(
    Op(
        f"dropout_linear(Tensor x, Tensor weight, Tensor? bias, float p, {_BLOCK}, str how) "
        "-> (Tensor, Tensor)",
        _forward,
        _fake_forward,
        draws=True,
    ),
    Op(
        "dropout_linear_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor pack, float p, "
        f"SymInt features, {_BLOCK}, str how) -> (Tensor, Tensor, Tensor)",
        _backward,
        _fake_backward,
        draws=False,
    ),
)
FORWARD = torch.ops.sparsedrop.dropout_linear.default
BACKWARD = torch.ops.sparsedrop.dropout_linear_backward.default
