"""A stack's autograd node, and the plan that it runs by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import apply_eagerly, is_transformed, is_watched
from sparsedrop.masks import BlockMask
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.stack.facts import Dropped, Layer, facts_of, kind_of, parameters_of
from sparsedrop.ops.stack.kernels import KernelStack, PlainStack, Saved, make_stack, stack_for
from sparsedrop.ops.stack.plain import stack_plain
from sparsedrop.ops.stack.products import Masks, Parts, gradients, gradients_again

Stack = KernelStack | PlainStack


def stack_of(x: Tensor, layers: tuple[Layer, ...], dropped: Dropped) -> Stack | None:
    """How a GPU runs this stack; None where it has to go the long way.

    The one look at operands that training takes: whatever is unusual about them, or wrong, is for
    the long way, which has a sentence for it.
    """
    parameters = [p for p in parameters_of(layers) if p is not None]
    if is_watched(x, *parameters) or not x.is_cuda or is_transformed():
        return None
    index, param_dtype = x.get_device(), layers[0].weight.dtype
    for tensor in (x, *parameters):
        is_here = tensor.layout is torch.strided and tensor.get_device() == index
        if not is_here or not lie_well(tensor):
            return None
    dtype = x.dtype
    casts = torch.is_autocast_enabled("cuda") and dtype is not torch.float64
    if casts:
        dtype = torch.get_autocast_dtype("cuda")
    if any(p.dtype is not param_dtype for p in parameters) or not _fit(x, layers):
        return None
    given = {x.dtype, param_dtype} - {dtype}
    if given and not (casts and given == {torch.float32}):
        return None
    if not _native.runs_portable(_native.gpu(index)):
        return None
    dtypes = x.dtype, param_dtype, dtype
    facts = facts_of(index, x.shape, dtypes, tuple(map(kind_of, layers)), dropped)
    return stack_for(facts) if select.is_free() else make_stack(facts)


def _fit(x: Tensor, layers: tuple[Layer, ...]) -> bool:
    """Whether each layer takes what the one before it makes."""
    features = x.shape[-1] if x.dim() else -1
    for weight, bias, _, gate, gate_bias in layers:
        if weight.dim() != 2 or weight.shape[1] != features:
            return False
        if gate is not None and gate.shape != weight.shape:
            return False
        features = weight.shape[0]
        if any(b is not None and b.shape != (features,) for b in (bias, gate_bias)):
            return False
    return True


def run_stack(x: Tensor, layers: tuple[Layer, ...], dropped: Dropped, stack: Stack) -> Tensor:
    """The stack that `stack_of` found for these operands."""
    if isinstance(stack, PlainStack):
        return stack_plain(x, layers, dropped)
    parameters = parameters_of(layers)
    needs_grad = x.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    if needs_grad and torch.is_grad_enabled():
        return _apply(stack, dropped, layers, x, *parameters)
    return stack.forward(x, parameters, dropped)[0]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stack: KernelStack,
        dropped: Dropped,
        layers: tuple[Layer, ...],
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        out, saved = stack.forward(x, parameters, dropped)
        ctx.save_for_backward(*saved.tensors())
        ctx.stack, ctx.dropped, ctx.layers = stack, dropped, layers
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stack, dropped, needs = ctx.stack, ctx.dropped, ctx.needs_input_grad[3:]
        saved = Saved.of(ctx.saved_tensors, stack.weight_count)
        grads: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            grads = _again(ctx, saved, grad, needs)
        elif is_watched(grad):
            facts = stack.facts
            parts = Parts(facts, saved.x, saved.weights, saved.kept)
            flat = grad.reshape(facts.rows, -1)
            made = gradients(parts, flat, _masks(stack, saved, dropped), dropped)
            made[0] = made[0].view(facts.x_shape) if made[0] is not None else None
            given = [facts.x_dtype] + [facts.param_dtype] * (len(made) - 1)
            grads = [
                g.to(dtype) if needed and g is not None else None
                for g, dtype, needed in zip(made, given, needs, strict=True)
            ]
        else:
            if not lie_well(grad):
                grad = grad.clone(memory_format=torch.contiguous_format)
            grads = stack.backward(saved, grad, dropped, needs)
        return None, None, None, *grads


def _masks(stack: KernelStack, saved: Saved, dropped: Dropped) -> Masks:
    facts = stack.facts
    return {
        i: BlockMask(
            (facts.rows, facts.features[i]), facts.block_shape, 1.0 - dropped.rates[i], tensors
        )
        for i, tensors in stack.masks(saved.pack).items()
    }


def _again(ctx: Any, saved: Saved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients under create_graph, by what can be differentiated."""
    stack, layers = ctx.stack, ctx.layers
    if stack.facts.rounds_x:
        raise RuntimeError(
            f"x is {stack.facts.x_dtype} and is rounded to {stack.facts.dtype} within this block, "
            "which keeps it rounded: for second derivatives cast it first"
        )
    parameters = parameters_of(layers)
    inputs = [saved.x, *parameters]
    wanted = [t for t, needed in zip(inputs, needs, strict=True) if needed and t is not None]
    dtype = stack.facts.dtype
    cast = tuple(layer.to(dtype) for layer in layers)
    masks = _masks(stack, saved, ctx.dropped)
    made = iter(gradients_again(saved.x, cast, masks, ctx.dropped, grad, wanted))
    return [
        next(made) if needed and t is not None else None
        for t, needed in zip(inputs, needs, strict=True)
    ]


_apply = apply_eagerly(_Stack)
