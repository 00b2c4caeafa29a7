"""What is dropped: masks of blocks, and how they are drawn."""

from sparsedrop.masks.block_mask import BlockMask, Masks, draw, expand_live, scale
from sparsedrop.masks.checks import SAMPLERS, check_block_shape, check_p, check_sampler

__all__ = [
    "SAMPLERS",
    "BlockMask",
    "Masks",
    "check_block_shape",
    "check_p",
    "check_sampler",
    "draw",
    "expand_live",
    "scale",
]
