"""A layer's autograd node, and the plan that it runs by: looked up by what its operands are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import apply_eagerly, has_forward_tangents, is_watched
from sparsedrop.ops.autograd import ONCE, once
from sparsedrop.ops.layer.accumulation import buffer_of, was_added
from sparsedrop.ops.layer.dense import DenseLayer
from sparsedrop.ops.layer.facts import (
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
from sparsedrop.ops.plan import ALIGNMENT_BITS, request_of
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
    if is_watched(x, weight) or (bias is not None and is_watched(bias)) or not x.is_cuda:
        return None
    index = x.get_device()
    at = x.data_ptr() | weight.data_ptr()
    lies_well = x.is_contiguous() and weight.is_contiguous() and weight.get_device() == index
    of_bias: tuple[Any, Any] = (None, None)
    if bias is not None:
        at |= bias.data_ptr()
        lies_well = lies_well and bias.is_contiguous() and bias.get_device() == index
        of_bias = bias.shape, bias.dtype
    if not lies_well or at & ALIGNMENT_BITS or has_forward_tangents():
        return None
    dtype = x.dtype
    if torch.is_autocast_enabled("cuda") and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
    facts = facts_of(x, options, dtype, (weight.shape, weight.dtype), of_bias)
    return layer_for(facts) if select.is_free() else make_layer(facts)


def make_layer(facts: tuple[Any, ...]) -> Layer | None:
    """The layer for `Facts`, which may be a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if not of.are_legal() or not _native.runs_portable(torch.device("cuda", of.device)):
        return None
    if max(of.extents) > select.MAX_EXTENT:
        return None
    choice = decide(of)
    if choice.path == "kernel":
        return KernelLayer(of, choice.products)
    return DenseLayer(of) if _native.has_blas() else None


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
        if is_watched(grad):
            return *layer.backward_by_ops(saved, grad, options, needs), None, None
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        if not torch.is_grad_enabled():
            if options.fuse_wgrad_accumulation:
                return *_accumulate(ctx.parameters, layer, saved, grad, options, needs), None, None
            return *layer.backward(saved, grad, options, needs), None, None
        if not layer.saves_operands:
            raise RuntimeError(ONCE)
        with torch.no_grad():
            grads = layer.backward(saved, grad, options, needs)
        return *once(grads, grad, saved.x, saved.weight, None), None, None


def _accumulate(
    parameters: tuple[Tensor, Tensor | None],
    layer: Layer,
    saved: Saved,
    grad: Tensor,
    options: Options,
    needs: Needs,
) -> Grads:
    """`layer.backward`, the gradients of parameters that have a buffer added to it."""
    buffers = tuple(
        buffer_of(parameter) if parameter is not None and is_needed else None
        for parameter, is_needed in zip(parameters, needs[1:], strict=True)
    )
    weight_sum, bias_sum = (
        buffer if buffer is not None and layer.adds_into(buffer) else None for buffer in buffers
    )
    grad_x, *grads = layer.backward(saved, grad, options, needs, (weight_sum, bias_sum))
    for i, (parameter, buffer) in enumerate(zip(parameters, buffers, strict=True)):
        if parameter is None or buffer is None:
            continue
        made = grads[i]
        if made is not None:
            buffer.add_(made)
            grads[i] = None
        was_added(parameter)
    return grad_x, grads[0], grads[1]


_apply = apply_eagerly(_DropoutLinear)
