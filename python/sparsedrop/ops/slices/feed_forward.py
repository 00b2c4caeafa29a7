"""A feed-forward block of which a slice of hidden units is live: the arithmetic both ways.

Everything that is as wide as the slice is compact, [rows, w]. What the backward pass needs is kept
once: what went into the activation (with a gate, of both branches), or with relu what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop.ops.dense import ACTIVATIONS
from sparsedrop.ops.slices import products
from sparsedrop.ops.slices.products import Cut, Pieces
from sparsedrop.ops.slices.views import linear_by_views
from sparsedrop.ops.stack.facts import Layer

Layers = tuple[Layer, Layer]
"""Up, with a gate or without, and down."""


class Live(NamedTuple):
    """The hidden units that are live, and what they are multiplied by."""

    pieces: Pieces
    alpha: float = 1.0
    factors: Tensor | None = None
    """One for each live unit, [w], beside the common one."""


def forward(x: Tensor, layers: Layers, live: Live) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result [m, d_out] for x [m, d_model], and what is kept."""
    up, down = layers
    rows = Cut(live.pieces)
    before = products.product(x, up.weight, up.bias, rows)
    if up.gate is not None:
        kept: tuple[Tensor, ...] = (products.product(x, up.gate, up.gate_bias, rows), before)
    elif up.activation == "relu":
        kept = (before.relu_(),)
    else:
        kept = (before,)
    hidden, _ = _hidden(kept, up)
    if live.factors is not None:
        hidden = hidden * live.factors
    out = products.product(hidden, down.weight, down.bias, rows.turned, live.alpha)
    return out, kept


def backward(
    grad: Tensor,
    x: Tensor,
    layers: Layers,
    live: Live,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    lazy: bool = False,
) -> list[Tensor | None]:
    """Gradients of x and of the parameters, gate, up and down, None where they are not needed.

    needs: of x, and of each parameter in their order. With `lazy` those of weights and biases along
    the slice are compact.
    """
    up, down = layers
    of_down = Cut(None, live.pieces)
    hidden, is_fresh = _hidden(kept, up)
    down_grads: list[Tensor | None] = [None, None]
    if needs[-2]:
        source = hidden if live.factors is None else hidden * live.factors
        down_grads[0] = _weight(grad, source, down.weight, of_down, lazy, live.alpha)
    if needs[-1] and down.bias is not None:
        down_grads[1] = products.bias_gradient(grad, down.bias, None)
    if not any(needs[:-2]):
        return [None] * (len(needs) - 2) + down_grads
    # In the place of the hidden activation, which is not needed any more.
    to = hidden if is_fresh else torch.empty_like(hidden)
    back = products.input_gradient_into(to, grad, down.weight, of_down, live.alpha)
    if live.factors is not None:
        back.mul_(live.factors)
    branches = _through(back, kept, up)
    found: list[Tensor | None] = []
    of_up, of_x = Cut(live.pieces), None
    for i, (own, weight, bias) in enumerate(branches):
        weight_needed, bias_needed = needs[1 + 2 * i], needs[2 + 2 * i]
        found.append(_weight(own, x, weight, of_up, lazy) if weight_needed else None)
        found.append(_bias(own, bias, live.pieces, lazy) if bias_needed else None)
        if needs[0]:
            of_x = products.input_gradient(own, weight, of_up, out=of_x)
    return [of_x, *found, *down_grads]


def _hidden(kept: Sequence[Tensor], up: Layer) -> tuple[Tensor, bool]:
    """The hidden activation from what is kept, and whether it lies in memory of its own."""
    if up.gate is not None:
        gate, before = kept
        return ACTIVATIONS[up.activation](gate).mul(before), True
    if up.activation in (None, "relu"):
        return kept[0], False
    return ACTIVATIONS[up.activation](kept[0]), True


def _through(
    back: Tensor, kept: Sequence[Tensor], up: Layer
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """The gradient before the activation, with weight and bias, of the gate first; `back`, that of
    the hidden activation, is overwritten."""
    if up.gate is None:
        return [(_before(up.activation, back, kept[0]), up.weight, up.bias)]
    gate, other = kept
    activated = ACTIVATIONS[up.activation](gate)
    of_other = torch.mul(back, activated)
    of_gate = _before(
        up.activation, back.mul_(other), activated if up.activation == "relu" else gate
    )
    return [(of_gate, up.gate, up.gate_bias), (of_other, up.weight, up.bias)]


_aten: Any = torch.ops.aten


def _before(activation: str | None, grad: Tensor, kept: Tensor) -> Tensor:
    """As `dense.activation_grad`, written over `grad`."""
    if activation is None:
        return grad
    if activation == "relu":
        return _aten.threshold_backward.grad_input(grad, kept, 0, grad_input=grad)
    if activation == "silu":
        return _aten.silu_backward.grad_input(grad, kept, grad_input=grad)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return _aten.gelu_backward.grad_input(grad, kept, approximate=approximate, grad_input=grad)


def _weight(
    grad: Tensor, source: Tensor, weight: Tensor, cut: Cut, lazy: bool, alpha: float = 1.0
) -> Tensor:
    if lazy:
        return products.compact_weight_gradient(grad, source, weight.dtype, alpha)
    return products.weight_gradient(grad, source, weight, cut, alpha)


def _bias(grad: Tensor, bias: Tensor | None, pieces: Pieces, lazy: bool) -> Tensor | None:
    if bias is None:
        return None
    if lazy:
        return grad.sum(0, dtype=bias.dtype)
    return products.bias_gradient(grad, bias, pieces)


def by_views(x: Tensor, layers: Layers, live: Live) -> Tensor:
    """The result for x [..., d_model] in plain differentiable operations."""
    up, down = layers
    rows = Cut(live.pieces)
    hidden = linear_by_views(x, up.weight, up.bias, rows)
    if up.gate is not None:
        gate = linear_by_views(x, up.gate, up.gate_bias, rows)
        hidden = ACTIVATIONS[up.activation](gate) * hidden
    else:
        hidden = ACTIVATIONS[up.activation](hidden)
    if live.factors is not None:
        hidden = hidden * live.factors
    return linear_by_views(hidden, down.weight, down.bias, rows.turned, live.alpha)
