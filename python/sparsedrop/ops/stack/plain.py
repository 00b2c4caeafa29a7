"""A stack in plain differentiable operations: dense products, and what is dropped masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsedrop import select
from sparsedrop._torch import is_watched
from sparsedrop.masks import BlockMask, draw, scale
from sparsedrop.ops.dense import ACTIVATIONS
from sparsedrop.ops.drop import drop
from sparsedrop.ops.layer.plain import is_dense
from sparsedrop.ops.stack.facts import Dropped, Layer


def plain(x: Tensor, layers: Sequence[Layer], dropped: Dropped) -> Tensor:
    """The stack on checked arguments; without anything dropped it is what torch makes of it."""
    for i, (weight, bias, activation, gate, gate_bias) in enumerate(layers):
        x = drop_at(x, i, dropped)
        activate = ACTIVATIONS[activation]
        out = nn.functional.linear(x, weight, bias)
        if gate is None:
            x = activate(out)
        else:
            x = activate(nn.functional.linear(x, gate, gate_bias)) * out
    return drop_at(x, len(layers), dropped)


def drop_at(x: Tensor, index: int, dropped: Dropped) -> Tensor:
    """x [..., n] as it is dropped in that place of a stack."""
    p = dropped.rates[index]
    if p == 0.0:
        return x
    mask = draw_mask(dropped, index, (x.shape[:-1].numel(), x.shape[-1]), x.device)
    return drop(x, mask, scale(p))


def draw_mask(
    dropped: Dropped, index: int, shape: tuple[int, int], device: torch.device
) -> BlockMask:
    """That of the input, of what lies between two layers, or of the result."""
    return draw(dropped.sampler, shape, dropped.rates[index], dropped.block_shape, device)


def suits_cpu(x: Tensor, layers: Sequence[Layer], dropped: Dropped, dtype: torch.dtype) -> bool:
    """Whether a stack on a CPU is best run so: as for a layer, every product of it densely."""
    if not x.is_cpu or dtype not in (torch.float32, torch.float64) or not select.is_free():
        return False
    if is_watched(x, layers[0].weight) or x.numel() == 0:
        return False
    rows = x.shape[:-1].numel()
    for i, layer in enumerate(layers):
        for rate, drops_output in zip(dropped.rates[i : i + 2], (False, True), strict=True):
            how = dropped.block_shape, drops_output, round(100 * (1.0 - rate))
            if rate > 0.0 and not is_dense(rows, *layer.weight.shape, dtype, *how):
                return False
    return True
