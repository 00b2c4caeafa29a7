"""The autograd node of linear layers behind one another, with activations between them: of a hidden
value some units live, and one call into `_C` each way runs a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop._torch import apply_eagerly, is_watched_gradient
from sparsedrop.ops.again import gradients_again, like_of
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.units.linear import LinearCall, linear_call
from sparsedrop.ops.units.linear_facts import DrawnSides, Hidden, Live


class Link(NamedTuple):
    """act(alpha * x Wᵀ + bias) of the live units: `rows` of the outputs, `cols` of the inputs."""

    weight: Tensor
    bias: Tensor | None
    rows: Live | None
    cols: Live | None
    drawn: DrawnSides
    # Of the hidden value behind it, which another link reads.
    activation: str | None = None


Way = tuple[LinearCall, DrawnSides]
"""How a link is run, and what is drawn of it."""


def ways_of(x: Tensor, links: Sequence[Link]) -> list[Way] | None:
    """How a GPU runs links of checked tensors in a call each, x contiguous and in the dtype of the
    products; None where one of them has to go the long way."""
    index, shape, found, reads = x.get_device(), x.shape, list[Way](), None
    first, last = links[0], links[-1]
    for link in links:
        of = link.weight, link.bias
        if any(t is not None and t.get_device() != index for t in of):
            return None
        makes = None if link is last else Hidden(link.activation)
        call = linear_call((shape, x.dtype), index, of, (link.rows, link.cols), (reads, makes))
        if call is None or link.weight.dtype is not first.weight.dtype:
            return None
        found.append((call, link.drawn))
        shape, reads = torch.Size((*shape[:-1], call.facts.live_shape[0])), makes
    fit = (a.facts.used_shape[0] == b.facts.used_shape[1] for (a, _), (b, _) in pairwise(found))
    return found if all(fit) else None


def run_chain(
    x: Tensor, links: Sequence[Link], ways: Sequence[Way], plain: Callable[..., Tensor]
) -> Tensor:
    """The result by the ways that `ways_of` has found. A result of as many features as are no whole
    vectors may have gaps between its rows.

    Args:
        x: [..., k] of the first link, what lives of it.
        links: one at least.
        ways: of each.
        plain: the same of x, and of weight and bias of each link, in differentiable operations.
    """
    parameters = [t for link in links for t in (link.weight, link.bias)]
    needs_grad = any(t is not None and t.requires_grad for t in (x, *parameters))
    if needs_grad and torch.is_grad_enabled():
        found: Tensor = _apply(ways, plain, x, *parameters)
        return found
    return _forward(ways, x, parameters)[0]


def _forward(
    ways: Sequence[Way], x: Tensor, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """The result, and what is kept of the hidden values."""
    kept, given = list[Tensor](), x
    for i, (call, drawn) in enumerate(ways):
        weight, bias = parameters[2 * i], parameters[2 * i + 1]
        assert weight is not None
        own, given = call.forward(given, weight, bias, drawn)
        kept.append(own)
    return given, kept[:-1]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ways: Sequence[Way],
        plain: Callable[..., Tensor],
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        out, kept = _forward(ways, x, parameters)
        held = x if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(held, *parameters, *kept)
        ctx.how, ctx.x_shape = (ways, plain), x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ways, plain), needs = ctx.how, ctx.needs_input_grad[2:]
        x, *saved = ctx.saved_tensors
        parameters, kept = saved[: len(needs) - 1], saved[len(needs) - 1 :]
        if torch.is_grad_enabled() or is_watched_gradient(grad):
            x = like_of(grad, ctx.x_shape) if x is None else x
            return None, None, *gradients_again(plain, [x, *parameters], grad, needs)
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        return None, None, *_gradients(ways, x, parameters, kept, grad, needs)


def _gradients(
    ways: Sequence[Way],
    x: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
    grad: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Those that are needed of x and of the parameters."""
    found: list[Tensor | None] = [None] * len(needs)
    for i in reversed(range(len(ways))):
        call, drawn = ways[i]
        of_weight, of_bias = needs[2 * i + 1], needs[2 * i + 2]
        goes_on = any(needs[: 2 * i + 1])
        if grad is None or not (goes_on or of_weight or of_bias):
            break
        operands = x if i == 0 else kept[i - 1], parameters[2 * i]
        own = kept[i] if i < len(kept) else None
        grad, *of_parameters = call.backward(
            grad, operands, drawn, (goes_on, of_weight, of_bias), kept=own
        )
        found[2 * i + 1 : 2 * i + 3] = of_parameters
    found[0] = grad if needs[0] else None
    return found


_apply = apply_eagerly(_Chain)
