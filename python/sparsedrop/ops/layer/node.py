"""A layer's autograd node, and the plan that it runs by: looked up by what its operands are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import apply_eagerly, is_transformed, is_watched
from sparsedrop.ops.autograd import multiply
from sparsedrop.ops.layer.accumulation import buffer_of, was_added
from sparsedrop.ops.layer.dense import DenseLayer
from sparsedrop.ops.layer.facts import (
    Buffers,
    Facts,
    Grads,
    Layer,
    Needs,
    Options,
    Saved,
    facts_of,
    lie_well,
)
from sparsedrop.ops.layer.kernels import KernelLayer, keys_of
from sparsedrop.ops.layer.op import mask_of
from sparsedrop.ops.plan import ALIGNMENT_BITS, request_of
from sparsedrop.ops.product import How, Product
from sparsedrop.select import kernels


def dropout_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, layer: Layer
) -> Tensor:
    """`linear(dropout(x), weight, bias)` as a layer that `layer_of` found for these operands."""
    needs_grad = (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if needs_grad and torch.is_grad_enabled():
        return _apply(x, weight, bias, options, layer)
    return layer.forward(x, weight, bias, options)[0]


def layer_of(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Layer | None:
    """How a GPU runs this layer in one call; None where it has to go the long way.

    The one look at operands that training takes: whatever is unusual about them, or wrong, is for
    the long way, which has a sentence for it.
    """
    if is_watched(x, weight) if bias is None else is_watched(x, weight, bias):
        return None
    if not x.is_cuda:
        return None
    if not x.layout is weight.layout is torch.strided:
        return None
    index = x.get_device()
    at = x.data_ptr() | weight.data_ptr()
    lies_well = x.is_contiguous() and weight.is_contiguous() and weight.get_device() == index
    of_bias: tuple[Any, Any] = (None, None)
    if bias is not None:
        if bias.layout is not torch.strided:
            return None
        at |= bias.data_ptr()
        lies_well = lies_well and bias.is_contiguous() and bias.get_device() == index
        of_bias = bias.shape, bias.dtype
    if not lies_well or at & ALIGNMENT_BITS or is_transformed():
        return None
    dtype = x.dtype
    casts = torch.is_autocast_enabled("cuda") and dtype is not torch.float64
    if casts:
        dtype = torch.get_autocast_dtype("cuda")
    facts = facts_of(x, options, (dtype, casts), (weight.shape, weight.dtype), of_bias)
    return layer_for(facts) if select.is_free() else make_layer(facts)


def make_layer(facts: tuple[Any, ...]) -> Layer | None:
    """The layer for `Facts`, which may be a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if not of.are_legal() or not _native.runs_portable(_native.gpu(of.device)):
        return None
    if max(*of.extents, *of.block_shape) > select.MAX_EXTENT:
        return None
    if of.bias_dtype is not None and of.weight_shape[0] > _native.C.MAX_SUM_COLUMNS:
        return None
    choice = decide(of)
    if choice.path == "kernel":
        return KernelLayer(of, choice.products)
    return DenseLayer(of) if choice.path == "dense" and _native.has_blas() else None


layer_for = functools.lru_cache(maxsize=4096)(make_layer)


def decide(of: Facts) -> select.LayerChoice:
    """The way that is chosen for a layer."""
    if not kernels.gpu_facts(of.device)["tiles"]:
        return select.LayerChoice("dense", reason="no kernels for this GPU")
    return select.decide_layer(tuple(map(request_of, keys_of(of))))


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, layer: Layer
    ) -> Tensor:
        out, saved = layer.forward(x, weight, bias, options)
        ctx.save_for_backward(*saved)
        ctx.options, ctx.layer = options, layer
        if options.fuse_wgrad_accumulation:
            ctx.parameters = weight, bias
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, options, layer = Saved(*ctx.saved_tensors), ctx.options, ctx.layer
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            if not layer.saves_operands or options.fuse_wgrad_accumulation:
                raise RuntimeError(ONCE)
            return *_differentiable(layer, saved, grad, options, needs), None, None
        if options.fuse_wgrad_accumulation:
            buffers = _buffers_of(ctx.parameters, needs)
            fused = tuple(b if b is not None and layer.adds_into(b) else None for b in buffers)
            grads = _gradients(layer, saved, grad, options, needs, (fused[0], fused[1]))
            return *_added(ctx.parameters, buffers, grads), None, None
        return *_gradients(layer, saved, grad, options, needs), None, None


ONCE = (
    "a backward pass under create_graph needs what this layer does not keep: without autocast, in "
    "bfloat16 or float16 and without fuse_wgrad_accumulation it can be differentiated twice; or "
    "use sparsedrop.reference"
)


def _differentiable(
    layer: Layer, saved: Saved, grad: Tensor, options: Options, needs: Needs
) -> Grads:
    """The gradients by products that can be differentiated again."""
    (m, n, k), alpha = layer.facts.extents, options.alpha
    x, weight, mask = saved.x, saved.weight, mask_of(saved.mask, (m, k), options)
    flat = grad.reshape(m, n)
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        product = multiply(Product(flat, weight, None, How(None, None, mask, alpha)))
        grad_x = product.reshape(x.shape)
    if needs[1]:
        how = How(None, mask, None, alpha, None, True, False)
        grad_weight = multiply(Product(flat, x.reshape(m, k), None, how))
    if needs[2]:
        grad_bias = flat.sum(0)
    return grad_x, grad_weight, grad_bias


def _gradients(
    layer: Layer,
    saved: Saved,
    grad: Tensor,
    options: Options,
    needs: Needs,
    into: Buffers = (None, None),
) -> Grads:
    """`layer.backward` of any gradient; whoever watches sees ops, which add to no buffer."""
    if is_watched(grad):
        return layer.backward_by_ops(saved, grad, options, needs)
    if not lie_well(grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
    return layer.backward(saved, grad, options, needs, into)


def _buffers_of(parameters: tuple[Tensor, Tensor | None], needs: Needs) -> Buffers:
    """What the gradients that are needed accumulate in, where there is something."""
    weight, bias = parameters
    return (
        buffer_of(weight) if needs[1] else None,
        buffer_of(bias) if needs[2] and bias is not None else None,
    )


def _added(parameters: tuple[Tensor, Tensor | None], buffers: Buffers, grads: Grads) -> Grads:
    """The gradients, but those of parameters with a buffer: they have been added to it, or are."""
    grad_x, *of_parameters = grads
    for i, (parameter, buffer) in enumerate(zip(parameters, buffers, strict=True)):
        if parameter is None or buffer is None:
            continue
        made = of_parameters[i]
        if made is None:  # by the kernel, of which autograd knows nothing
            torch.autograd.graph.increment_version(buffer)
        else:
            buffer.add_(made)
        of_parameters[i] = None
        was_added(parameter)
    return grad_x, of_parameters[0], of_parameters[1]


_apply = apply_eagerly(_DropoutLinear)
