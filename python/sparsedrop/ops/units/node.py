"""A block's autograd node, and the plan that it runs by: looked up by what its operands are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import apply_eagerly, is_transformed, is_watched, is_watched_gradient
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.stack.facts import layers_of, parameters_of
from sparsedrop.ops.units.block import Block, Saved, block_for
from sparsedrop.ops.units.facts import NO_SECOND, VECTOR, Drawn, Layers, facts_of

NOT_WATCHED = 'gradients="lazy" is for plain tensors outside of modes: use gradients="dense"'


def block_of(
    x: Tensor,
    layers: Layers,
    kept: int,
    *,
    wraps: bool = False,
    lazy: bool = False,
    by_rows: bool = False,
    dtype: torch.dtype | None = None,
) -> Block | None:
    """How a GPU runs a block with so many live units in one call; None where it has to go the long
    way.

    The one look at operands that training takes: whatever is unusual about them, or wrong, is for
    the long way, which has a sentence for it.

    Args:
        x: [..., d_model].
        layers: of the block.
        kept: live hidden units.
        wraps: whether they wrap around the end.
        lazy: whether gradients are compact.
        by_rows: whether live units may be no neighbours, so that down's weight has to be turned.
        dtype: of the products, where that is settled; None: that of autocast, or of x.
    """
    if not isinstance(x, Tensor) or not x.is_cuda:
        return None
    parameters = parameters_of(layers)
    given = [p for p in parameters if p is not None]
    if is_watched(x, *given) or is_transformed():
        return None
    if x.layout is not torch.strided or not x.is_contiguous() or (lazy and kept % VECTOR):
        return None
    index, down = x.get_device(), layers[1].weight
    for tensor in given:
        if tensor.layout is not torch.strided or tensor.get_device() != index:
            return None
        if tensor is not down and not tensor.is_contiguous():
            return None
    is_turned = by_rows or not down.is_contiguous()
    if is_turned and not (down.dim() == 2 and down.t().is_contiguous()):
        return None
    casts = dtype is not None
    if dtype is None:
        dtype = x.dtype
        casts = torch.is_autocast_enabled("cuda") and dtype is not torch.float64
        if casts:
            dtype = torch.get_autocast_dtype("cuda")
    activation = layers[0].activation
    units = kept, wraps, is_turned
    return block_for(facts_of(x, (dtype, casts), activation, units, parameters))


def run_block(x: Tensor, layers: Layers, drawn: Drawn, block: Block) -> Tensor:
    """The block that `block_of` found for these operands."""
    parameters = parameters_of(layers)
    needs_grad = x.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    if needs_grad and torch.is_grad_enabled():
        made = _apply(block, drawn, layers, x, *parameters)
        return made[0] if block.remakes_x and x.requires_grad else made
    return block.forward(x, parameters, drawn)[0]


class _Block(torch.autograd.Function):
    """What is kept of x, where it is not x, is a second result that nobody is given: by it a
    gradient that is differentiated again depends on x."""

    @staticmethod
    def forward(
        ctx: Any,
        block: Block,
        drawn: Drawn,
        layers: Layers,
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        out, saved = block.forward(x, parameters, drawn)
        # The parameters too, where copies of them are used: they may not change until then.
        ctx.save_for_backward(*parameters, *saved.tensors())
        ctx.block, ctx.drawn, ctx.layers = block, drawn, layers
        if block.remakes_x and ctx.needs_input_grad[3]:
            ctx.set_materialize_grads(False)
            return out, saved.x
        return out

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_of_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        block, drawn, needs = ctx.block, ctx.drawn, ctx.needs_input_grad[3:]
        saved = Saved.of(ctx.saved_tensors[len(needs) - 1 :], block.branches)
        if grad is None or grad_of_kept is not None or torch.is_grad_enabled():
            grads = _gradients_again(ctx, saved, grad, grad_of_kept)
        elif is_watched_gradient(grad):
            if drawn.keep is not None:
                raise RuntimeError(NOT_WATCHED)
            grads = _gradients_again(ctx, saved, grad, None)
        else:
            if not lie_well(grad):
                grad = grad.clone(memory_format=torch.contiguous_format)
            grads = block.backward(saved, grad, drawn, needs)
            if drawn.keep is not None:
                drawn.keep(parameters_of(ctx.layers), grads)
        return None, None, None, *grads


def _gradients_again(
    ctx: Any, saved: Saved, grad: Tensor | None, grad_of_kept: Tensor | None
) -> list[Tensor | None]:
    """The gradients by what can be differentiated; and in a pass over those."""
    block, drawn, layers = ctx.block, ctx.drawn, ctx.layers
    if drawn.keep is not None:
        raise RuntimeError(NO_SECOND)
    parameters = parameters_of(layers)
    found: list[Tensor | None] = [None] * (1 + len(parameters))
    if grad is not None:
        # Each tensor by a view of its own: what one is made of is not its gradient's concern.
        with torch.enable_grad():
            views = [None if t is None else t.view_as(t) for t in (saved.x, *parameters)]
        found = _differentiated(drawn, layers, views, grad, ctx.needs_input_grad[3:])
    if found[0] is not None:
        found[0] = found[0].to(block.facts.x_dtype)
    if grad_of_kept is not None:
        through = grad_of_kept.to(block.facts.x_dtype)
        found[0] = through if found[0] is None else found[0] + through
    return found


def _differentiated(
    drawn: Drawn,
    layers: Layers,
    views: Sequence[Tensor | None],
    grad: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    x, *parameters = views
    assert x is not None
    up, down = layers_of(
        parameters, [layers[0].activation or "", ""], [layers[0].gate is not None, False]
    )
    assert drawn.plain is not None, "within an op there is no node"
    # The dtypes are settled: autocast around a backward pass may not change them again.
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        out = drawn.plain(x, (up, down))
    wanted = [t for t, needed in zip(views, needs, strict=True) if needed and t is not None]
    made = iter(torch.autograd.grad(out, wanted, grad, create_graph=is_differentiated))
    return [
        next(made) if needed and t is not None else None
        for t, needed in zip(views, needs, strict=True)
    ]


_apply = apply_eagerly(_Block)
