"""A feed-forward block without a slice of its hidden units, by what runs these tensors best."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import operands
from sparsedrop._torch import is_transformed, is_watched
from sparsedrop.ops import slices
from sparsedrop.ops.slices import Choice, Layers
from sparsedrop.ops.stack.facts import parameters_of


def dropped_feed_forward(x: Tensor, layers: Layers, choice: Choice, lazy: bool) -> Tensor:
    """x [..., d_model] -> [..., d_out] in training: the hidden units outside of a slice, which is
    drawn, are neither computed nor differentiated.

    Raises: as `sparsedrop.linear`.
    """
    x = operands.cast(x, operands.check_stack(x, layers))
    if torch.compiler.is_compiling():
        if lazy:
            raise RuntimeError('gradients="lazy" is for eager mode, not torch.compile')
        return slices.feed_forward_compiled(x, layers, choice)
    live = choice.live(choice.draw(), x)
    parameters = (p for p in parameters_of(layers) if p is not None)
    if is_transformed() or is_watched(x, *parameters):
        return slices.by_views(x, layers, live)
    return slices.feed_forward(x, layers, live, lazy)


def drop_hidden(hidden: Tensor, choice: Choice) -> Tensor:
    """hidden [..., units] with what lies outside of a slice exactly 0, the rest scaled."""
    mask = slices.kept_mask(choice, hidden.device)
    factors = choice.factors(None, hidden.dtype, hidden.device)
    if factors is not None:
        hidden = hidden * factors
    elif choice.alpha != 1.0:
        hidden = hidden * choice.alpha
    return torch.where(mask, hidden, 0)
