"""A feed-forward block on a slice of its hidden units, by what runs these tensors best."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import operands
from sparsedrop._torch import is_transformed, is_watched
from sparsedrop.ops import slices
from sparsedrop.ops.slices import Choice, Layers, Live
from sparsedrop.ops.stack.facts import parameters_of
from sparsedrop.ops.units import block_of, run_block
from sparsedrop.slice_out.layers import check_lazy, check_not_watched


def dropped_feed_forward(x: Tensor, layers: Layers, choice: Choice, lazy: bool) -> Tensor:
    """x [..., d_model] -> [..., d_out] in training: the hidden units outside of a slice, which is
    drawn, are neither computed nor differentiated.

    Raises: as `sparsedrop.linear`.
    """
    drawn, parameters = None, parameters_of(layers)
    check_lazy(lazy, parameters)
    if not torch.compiler.is_compiling() and not choice.has_factors:
        drawn = choice.draw()
        wraps = len(drawn.pieces) > 1
        block = block_of(x, layers, choice.width, wraps=wraps, lazy=lazy)
        if block is not None:
            live = Live(drawn.pieces, choice.alpha)
            return run_block(x, layers, slices.drawn_units(live, lazy), block)
    if not _are_usual(x, layers):
        x = operands.cast(x, operands.check_stack(x, layers))
    if torch.compiler.is_compiling():
        return slices.feed_forward_compiled(x, layers, choice)
    live = choice.live(choice.draw() if drawn is None else drawn, x)
    if is_transformed() or is_watched(x, *(p for p in parameters if p is not None)):
        check_not_watched(lazy)
        return slices.by_views(x, layers, live)
    return slices.feed_forward(x, layers, live, lazy)


def _are_usual(x: Tensor, layers: Layers) -> bool:
    """Whether `check_stack` would find nothing, and autocast does nothing: in one look."""
    if type(x) is not Tensor or x.dtype not in operands.DTYPES or x.layout is not torch.strided:
        return False
    if x.is_nested or torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu"):
        return False
    dtype, device, features = x.dtype, x.device, x.shape[-1] if x.dim() else -1
    for weight, bias, _, gate, gate_bias in layers:
        shape = weight.shape
        if len(shape) != 2 or shape[1] != features or (gate is not None and gate.shape != shape):
            return False
        features = shape[0]
        for vector in (bias, gate_bias):
            if vector is not None and (vector.dim() != 1 or len(vector) != features):
                return False
        for given in (weight, bias, gate, gate_bias):
            if given is not None and (given.dtype is not dtype or given.device != device):
                return False
    return True


def drop_units(x: Tensor, choice: Choice, features: int = 1) -> Tensor:
    """x [..., units * features] with what lies outside of a slice exactly 0, the rest scaled."""
    mask, factors = slices.kept_mask(choice, x.device), choice.factors(None, x.dtype, x.device)
    if features > 1:
        mask = mask.repeat_interleave(features)
        factors = None if factors is None else factors.repeat_interleave(features)
    return torch.where(mask, x * (choice.alpha if factors is None else factors), 0)
