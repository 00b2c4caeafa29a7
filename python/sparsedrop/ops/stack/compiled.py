"""A stack under torch.compile: one op forward, one backward, and nothing around them.

As for a layer: where dense products have to do, a compiler is given plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop._torch import constant_when_compiled, is_exporting
from sparsedrop.masks import MASK_UNIT
from sparsedrop.ops.layer.compiled import takes_kernels
from sparsedrop.ops.spelling import spelled
from sparsedrop.ops.stack.facts import (
    Dropped,
    Facts,
    Layer,
    facts_of,
    is_dense_layer,
    kind_of,
    parameters_of,
)
from sparsedrop.ops.stack.kernels import POINTWISE_DTYPES
from sparsedrop.ops.stack.op import BACKWARD, FORWARD, from_list, kinds_of
from sparsedrop.ops.stack.plain import stack_plain


def stack_compiled(
    x: Tensor, layers: tuple[Layer, ...], dropped: Dropped, dtype: torch.dtype
) -> Tensor:
    """A stack on checked arguments on a GPU, while it is compiled."""
    # The op has no rule without a node.
    if is_exporting() or not suits_compiler(x, layers, dropped, dtype):
        return stack_plain(x, layers, dropped)
    parameters = parameters_of(layers)
    activations = tuple(layer.activation for layer in layers)
    gated = tuple(layer.gate is not None for layer in layers)
    # A compiler lets what made x round it, but fuses nothing with an op.
    return _Stack.apply(x.to(dtype), dropped, dtype, activations, gated, *parameters)


def suits_compiler(
    x: Tensor, layers: tuple[Layer, ...], dropped: Dropped, dtype: torch.dtype
) -> bool:
    """Whether a compiled stack is one op on a GPU: what holds for every product of these extents;
    costs are not looked at."""
    weight = layers[0].weight
    are_equal = all(p is None or p.dtype == weight.dtype for p in parameters_of(layers))
    # Of the weights, whose extents the compiler knows; those of x may be symbols.
    features = [weight.shape[1], *(layer.weight.shape[0] for layer in layers)]
    return (
        are_equal
        and dtype in POINTWISE_DTYPES
        and x.dtype in (dtype, torch.float32)
        and weight.dtype in (dtype, torch.float32)
        and all(n % MASK_UNIT == 0 for n in dropped.block_shape)
        and all(n > 0 for n in features)
        and all(a > 0.0 or b > 0.0 for a, b in zip(dropped.rates, dropped.rates[1:], strict=False))
        and x.numel() > 0
        and _fits(max(features))
        and takes_kernels(x.device.index, dtype)
        and _can_be_mixed(layers, dropped.rates)
    )


def _can_be_mixed(layers: tuple[Layer, ...], rates: tuple[float, ...]) -> bool:
    """Whether the layers that would have to be padded for the kernels may run densely."""
    are_dense = [any(n % select.UNIT for n in layer.weight.shape) for layer in layers]
    if not any(are_dense):
        return True
    dense = [kind_of(layer) for layer, is_dense in zip(layers, are_dense, strict=True) if is_dense]
    drops = [p > 0.0 for p in rates]
    return (
        select.can_be_mixed(list(zip(drops, drops[1:], are_dense, strict=False)))
        and all(is_dense_layer(kind) for kind in dense)
        and _has_blas()
    )


@constant_when_compiled
def _has_blas() -> bool:
    return _native.has_blas()


@constant_when_compiled
def _fits(features: int) -> bool:
    return features <= min(select.MAX_EXTENT, _native.C.MAX_SUM_COLUMNS)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Dropped,
        dtype: torch.dtype,
        activations: tuple[str | None, ...],
        gated: tuple[bool, ...],
        *parameters: Tensor | None,
    ) -> Tensor:
        drops = list(dropped.rates), *dropped.block_shape
        how = spelled(dropped.sampler, dtype, gated, *activations)
        out, *made = FORWARD(x, parameters, *drops, how)
        weights = [p for p in parameters[::2] if p is not None]
        biased = [p is not None for p in parameters[1::2]]
        kinds = kinds_of([weight.shape[0] for weight in weights], activations, gated, biased)
        dtypes = x.dtype, weights[0].dtype, dtype
        facts = Facts(*facts_of(x.get_device(), x.shape, dtypes, kinds, dropped))
        saved = from_list(made, out, (x, weights), facts)
        ctx.save_for_backward(*saved.tensors())
        ctx.count, ctx.drops = len(weights), drops
        ctx.given, ctx.layers = (x.dtype, weights[0].dtype, biased), (gated, *activations)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, pack, *rest = ctx.saved_tensors
        weights, kept = rest[: ctx.count], rest[ctx.count :]
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        how = spelled(*ctx.given, needs, *ctx.layers)
        grads = BACKWARD(grad, x, weights, pack, kept, *ctx.drops, how)
        wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return wanted[0], None, None, None, None, *wanted[1:]
