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
from sparsedrop.ops.dense import ACTIVATIONS
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.units.linear import LinearCall, linear_call
from sparsedrop.ops.units.linear_facts import DrawnSides, Hidden, Live


class Link(NamedTuple):
    """alpha * x Wᵀ + bias of the live units: `rows` of the outputs, `cols` of the inputs.

    `plain` is that of (x, weight, bias) in differentiable operations: the parameters are whole, and
    may be float32 where x is not; autocast is off. `activation` is of the hidden value behind it,
    which another link reads.
    """

    weight: Tensor
    bias: Tensor | None
    rows: Live | None
    cols: Live | None
    drawn: DrawnSides
    plain: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    activation: str | None = None

    @property
    def is_trained(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


Way = tuple[LinearCall, DrawnSides]
"""How a link is run, and what is drawn of it."""


def run_chain(x: Tensor, links: Sequence[Link | None]) -> Tensor | None:
    """The result of checked tensors, a call each way for each link; None where a GPU runs one of
    them the long way. Of as many features as are no whole vectors there may be gaps between rows.

    Args:
        x: [..., k], what lives of the inputs of the first link, in the dtype of the products.
        links: one at least; None: one that goes the long way.
    """
    given = [link for link in links if link is not None]
    return _chained(x.contiguous(), given) if len(given) == len(links) else None


def _chained(x: Tensor, links: Sequence[Link]) -> Tensor | None:
    if not torch.is_grad_enabled():
        return _run(x, links)
    start = 0
    if not x.requires_grad:
        start = next((i for i, link in enumerate(links) if link.is_trained), 0)
    # What nothing is trained of leaves nothing behind.
    for link in links[:start]:
        out = _run(x, [link])
        if out is None:
            return None
        x = ACTIVATIONS[link.activation](out).contiguous()
    links = links[start:]
    if not (x.requires_grad or any(link.is_trained for link in links)):
        return _run(x, links)
    ways = _ways_of(x, links)
    if ways is None:
        return None
    parameters = [t for link in links for t in (link.weight, link.bias)]
    found: Tensor = _apply(links, ways, x, *parameters)
    return found


def _run(x: Tensor, links: Sequence[Link]) -> Tensor | None:
    """Without a node."""
    ways = _ways_of(x, links)
    if ways is None:
        return None
    for link, (call, drawn) in zip(links, ways, strict=True):
        _, x = call.forward(x, link.weight, link.bias, drawn)
    return x


def _ways_of(x: Tensor, links: Sequence[Link]) -> list[Way] | None:
    """One for each link; None where one of them has none."""
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


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, links: Sequence[Link], ways: Sequence[Way], x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        kept, given = list[Tensor](), x
        for link, (call, drawn) in zip(links, ways, strict=True):
            own, given = call.forward(given, link.weight, link.bias, drawn)
            kept.append(own)
        # Of one layer no gradient but the weight's depends on what x held.
        is_held = ctx.needs_input_grad[3] or len(links) > 1
        ctx.save_for_backward(x if is_held else None, *parameters, *kept[:-1])
        ctx.ways, ctx.x_shape = ways, x.shape
        ctx.plain = [(link.plain, link.activation) for link in links]
        return given

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        x, *saved = ctx.saved_tensors
        parameters, kept = saved[: len(needs) - 1], saved[len(needs) - 1 :]
        if torch.is_grad_enabled() or is_watched_gradient(grad):
            x = like_of(grad, ctx.x_shape) if x is None else x
            run = _plainly(ctx.plain)
            return None, None, *gradients_again(run, [x, *parameters], grad, needs)
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        return None, None, *_gradients(ctx.ways, x, parameters, kept, grad, needs)


def _plainly(plain: Sequence[tuple[Callable[..., Tensor], str | None]]) -> Callable[..., Tensor]:
    """The chain in differentiable operations."""

    def run(x: Tensor, *parameters: Tensor | None) -> Tensor:
        for i, (layer, activation) in enumerate(plain):
            x = layer(x, *parameters[2 * i : 2 * i + 2])
            if i < len(plain) - 1:
                x = ACTIVATIONS[activation](x)
        return x

    return run


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
