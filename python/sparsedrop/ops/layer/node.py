"""A layer's autograd node, and the plan that it runs by: looked up by what its operands are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import apply_eagerly, is_transformed, is_watched
from sparsedrop.ops.layer.accumulation import NOT_FUSED, buffer_of, was_added
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
        made = _apply(x, weight, bias, options, layer)
        return made[0] if layer.remakes_x and x.requires_grad else made
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
    if is_transformed() or not x.layout is weight.layout is torch.strided:
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
    if not lies_well or at & ALIGNMENT_BITS:
        return None
    if options.generator is not None and options.generator.device != x.device:
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
    if of.bias_dtype is not None and of.features > _native.C.MAX_SUM_COLUMNS:
        return None
    choice = decide(of)
    if choice.path == "kernel":
        return KernelLayer(of, choice.products)
    return DenseLayer(of) if choice.path == "dense" and _native.has_blas() else None


layer_for = functools.lru_cache(maxsize=4096)(make_layer)


def decide(of: Facts) -> select.LayerChoice:
    """The way that is chosen for a layer."""
    if not kernels.gpu_facts(of.device)["tiles"] and select.is_free():
        return select.LayerChoice("dense", reason="no kernels for this GPU")
    return select.decide_layer(tuple(map(request_of, keys_of(of))))


class _DropoutLinear(torch.autograd.Function):
    """What is kept of x, where it is not x, is a second result that nobody is given: by it a
    gradient that is differentiated again depends on x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, layer: Layer
    ) -> Tensor | tuple[Tensor, Tensor]:
        out, saved = layer.forward(x, weight, bias, options)
        held = saved if ctx.needs_input_grad[1] else saved._replace(x=None)
        ctx.save_for_backward(*held)
        ctx.options, ctx.layer = options, layer
        ctx.parameters = weight, bias
        if layer.remakes_x and ctx.needs_input_grad[0]:
            assert saved.x is not None
            ctx.set_materialize_grads(False)
            return out, saved.x
        return out

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_of_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        saved, options, layer = Saved(*ctx.saved_tensors), ctx.options, ctx.layer
        needs = ctx.needs_input_grad[:3]
        if grad is None or grad_of_kept is not None or torch.is_grad_enabled():
            return *_gradients_again(ctx, saved, grad, grad_of_kept), None, None
        if options.fuse_wgrad_accumulation:
            buffers = _buffers_of(ctx.parameters, needs)
            fused = tuple(b if b is not None and layer.adds_into(b) else None for b in buffers)
            grads = _gradients(layer, saved, grad, options, needs, (fused[0], fused[1]))
            return *_added(ctx.parameters, buffers, grads), None, None
        return *_gradients(layer, saved, grad, options, needs), None, None


def _gradients_again(
    ctx: Any, saved: Saved, grad: Tensor | None, grad_of_kept: Tensor | None
) -> Grads:
    """The gradients under create_graph, by what can be differentiated; and in a pass over those."""
    options, layer, (weight, _) = ctx.options, ctx.layer, ctx.parameters
    if options.fuse_wgrad_accumulation:
        raise RuntimeError(NOT_FUSED)
    # As it was given, and with it what it depends on.
    saved = saved._replace(weight=weight.to(layer.facts.dtype))
    grad_x = grad_weight = grad_bias = None
    if grad is not None:
        needs = ctx.needs_input_grad[:3]
        grad_x, grad_weight, grad_bias = layer.backward_again(saved, grad, options, needs)
    if grad_of_kept is not None:
        through = layer.through_kept(saved, grad_of_kept)
        grad_x = through if grad_x is None else grad_x + through
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
