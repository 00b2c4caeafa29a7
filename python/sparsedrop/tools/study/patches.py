"""Images as rows of patches, in an order in which neighbouring rows are a square of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop.tools.study.pictures import padded

PATCH = 2
"""Pixels on a side."""


def patches(images: Tensor) -> Tensor:
    """Square images [n, channels, side, side] -> patches [n, tokens, channels * 4] in z-order.

    The side is made a power of two. A run of 4^k patches that starts at a multiple of 4^k is a
    square of 2^k by 2^k patches, and so is a block of so many rows.
    """
    whole = padded(images)
    grid = whole.unfold(2, PATCH, PATCH).unfold(
        3, PATCH, PATCH
    )  # [n, channels, rows, columns, 2, 2]
    rows = grid.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return rows[:, z_order(whole.shape[-1] // PATCH)]


def z_order(side: int) -> Tensor:
    """The places of a grid [side, side], a power of two, in z-order: int64 [side²]."""
    bits = side.bit_length() - 1
    places = torch.arange(side * side).view([2] * (2 * bits))
    # From bits of the row, then of the column, to both in turns.
    turns = [axis for bit in range(bits) for axis in (bit, bits + bit)]
    return places.permute(turns).flatten()
