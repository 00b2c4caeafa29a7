"""The autograd node of a feed-forward block of which a slice of hidden units is live."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import apply_eagerly, is_batch_of_gradients
from sparsedrop.ops.again import gradients_again
from sparsedrop.ops.slices.feed_forward import Layers, Live, backward, by_views, forward
from sparsedrop.ops.slices.gradients import keep_compact
from sparsedrop.ops.slices.products import Pieces, flat, unflat, units_of
from sparsedrop.ops.stack.facts import Layer, parameters_of
from sparsedrop.ops.units import Drawn
from sparsedrop.ops.units.facts import NO_SECOND


def feed_forward(x: Tensor, layers: Layers, live: Live, lazy: bool) -> Tensor:
    """x [..., d_model] -> [..., d_out], of checked tensors that nobody watches.

    With `lazy` the gradients along the slice go to the parameters as `gradients` keeps them, and
    autograd gets none.
    """
    parameters = parameters_of(layers)
    needs_grad = x.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    if needs_grad and torch.is_grad_enabled():
        return _apply(layers, live, lazy, x, *parameters)
    out, _ = forward(flat(x), layers, live)
    return unflat(out, x)


def drawn_units(live: Live, lazy: bool) -> Drawn:
    """The same slice for a block that runs in one call; all live units have one factor."""
    return Drawn(
        units_of(live.pieces),
        live.alpha,
        lambda x, layers: by_views(x, layers, live),
        functools.partial(_keep, pieces=live.pieces) if lazy else None,
    )


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: Layers, live: Live, lazy: bool, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        out, kept = forward(flat(x), layers, live)
        ctx.save_for_backward(x, *parameters, *kept)
        ctx.layers, ctx.live, ctx.lazy = layers, live, lazy
        return unflat(out, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, lazy, live = ctx.needs_input_grad[3:], ctx.lazy, ctx.live
        x, *rest = ctx.saved_tensors
        parameters, kept = rest[: len(needs) - 1], rest[len(needs) - 1 :]
        layers = layers_like(ctx.layers, parameters)
        if torch.is_grad_enabled() or is_batch_of_gradients(grad):
            if lazy:
                raise RuntimeError(NO_SECOND)

            def run(x: Tensor, *parameters: Tensor | None) -> Tensor:
                return by_views(x, layers_like(layers, parameters), live)

            made = gradients_again(run, [x, *parameters], grad, needs)
            return None, None, None, *made
        flat_x, flat_grad = flat(x), flat(grad)
        grads = backward(flat_grad, flat_x, layers, live, kept, needs, lazy)
        if grads[0] is not None:
            grads[0] = unflat(grads[0], x)
        if lazy:
            _keep(parameters_of(ctx.layers), grads, pieces=live.pieces)
        return None, None, None, *grads


def _keep(owners: Sequence[Tensor | None], grads: list[Tensor | None], *, pieces: Pieces) -> None:
    """Hands compact gradients to the parameters; the last bias is not sliced."""
    weight = len(owners) - 2
    for i, owner in enumerate(owners[:-1]):
        found = grads[i + 1]
        if owner is not None and found is not None:
            keep_compact(owner, int(i == weight), pieces, found)
            grads[i + 1] = None


def layers_like(layers: Layers, parameters: Sequence[Tensor | None]) -> Layers:
    """The same layers with these parameters."""
    rest, found = iter(parameters), list[Layer]()
    for layer in layers:
        gate, gate_bias = (None, None) if layer.gate is None else (next(rest), next(rest))
        weight, bias = next(rest), next(rest)
        assert weight is not None
        found.append(Layer(weight, bias, layer.activation, gate, gate_bias))
    return found[0], found[1]


_apply = apply_eagerly(_FeedForward)
