"""Slices of tensors in plain differentiable operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.ops.slices.products import Cut, Pieces


def live(tensor: Tensor, dim: int, pieces: Pieces | None) -> Tensor:
    """The pieces one behind the other: a view where it is one, else a copy."""
    if pieces is None:
        return tensor
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def put_live(whole: Tensor, compact: Tensor, pieces: Pieces) -> None:
    """Writes the inverse of `live` along the first extent, and nothing else."""
    begin = 0
    for start, stop in pieces:
        whole[start:stop] = compact[begin : begin + stop - start]
        begin += stop - start


def linear_by_views(
    x: Tensor, weight: Tensor, bias: Tensor | None, cut: Cut, alpha: float = 1.0
) -> Tensor:
    """alpha * x Wᵀ + bias of the live units, x [..., k'] -> [..., n']; what autograd and torch's
    transforms differentiate by themselves."""
    own = live(live(weight, 0, cut.rows), 1, cut.cols).to(x.dtype)
    own_bias = None if bias is None else live(bias, 0, cut.rows).to(x.dtype)
    return nn.functional.linear(x * alpha if alpha != 1.0 else x, own, own_bias)
