"""Images as rows of patches, in an order in which neighbouring rows are a square of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PATCH = 2
"""Pixels on a side."""


def patches(pixels: Tensor) -> Tensor:
    """Square images [n, side²] -> patches [n, tokens, 4] in z-order.

    Zeros around it make the side a power of two, of 28 pixels 32. A run of 4^k patches that starts
    at a multiple of 4^k is a square of 2^k by 2^k patches, and so is a block of so many rows.
    """
    side = round(pixels.shape[1] ** 0.5)
    padded = max(PATCH, 1 << (side - 1).bit_length())
    before = (padded - side) // 2
    after = padded - side - before
    images = nn.functional.pad(pixels.view(-1, side, side), (before, after, before, after))
    grid = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [n, rows, columns, 2, 2]
    return grid.flatten(3).flatten(1, 2)[:, z_order(padded // PATCH)]


def z_order(side: int) -> Tensor:
    """The places of a grid [side, side], a power of two, in z-order: int64 [side²]."""
    bits = side.bit_length() - 1
    places = torch.arange(side * side).view([2] * (2 * bits))
    # From bits of the row, then of the column, to both in turns.
    turns = [axis for bit in range(bits) for axis in (bit, bits + bit)]
    return places.permute(turns).flatten()
