"""The tile patterns of Approximate Random Dropout as block masks of a weight."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsedrop.masks.block_mask import BlockMask
from sparsedrop.masks.tensors import grid_shape


def tile_mask(
    shape: tuple[int, int], tile: int, period: int, offset: int, device: torch.device
) -> BlockMask:
    """Tile (r, c) of a matrix is live where r + c - offset is a multiple of the period."""
    found = mask_of_diagonals(shape, tile, period, offset, device)
    return replace(found, keep=1.0 / period)


def mask_of_diagonals(
    shape: tuple[int, int],
    tile: int,
    period: int | Tensor,
    offset: int | Tensor,
    device: torch.device,
) -> BlockMask:
    """The same for numbers in tensors, as a compiled graph has them."""
    rows, cols = grid_shape(*shape, tile, tile)
    diagonals = torch.arange(rows, device=device)[:, None] + torch.arange(cols, device=device)
    live = (diagonals - offset) % period == 0
    return BlockMask.from_live(live, shape, block_shape=(tile, tile))
