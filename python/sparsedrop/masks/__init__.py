"""What is dropped: masks of blocks, and how they are drawn."""

from sparsedrop.masks.block_mask import BlockMask, Masks, draw, expand_live, scale
from sparsedrop.masks.checks import (
    SAMPLERS,
    check_block_shape,
    check_generator,
    check_p,
    check_sampler,
    check_side,
)
from sparsedrop.masks.patterns import SCALES, RowPattern, check_scale, probabilities
from sparsedrop.masks.samplers import FILLS, host_state, is_capturing
from sparsedrop.masks.slices import (
    Slice,
    all_kept,
    check_sliced_p,
    check_starts,
    kept_units,
    marginals,
)
from sparsedrop.masks.tensors import MASK_UNIT, Layout, MaskTensors, grid_shape, layout
from sparsedrop.masks.tiles import mask_of_diagonals, tile_mask

__all__ = [
    "FILLS",
    "MASK_UNIT",
    "SAMPLERS",
    "SCALES",
    "BlockMask",
    "Layout",
    "MaskTensors",
    "Masks",
    "RowPattern",
    "Slice",
    "all_kept",
    "check_block_shape",
    "check_generator",
    "check_p",
    "check_sampler",
    "check_scale",
    "check_side",
    "check_sliced_p",
    "check_starts",
    "draw",
    "expand_live",
    "grid_shape",
    "host_state",
    "is_capturing",
    "kept_units",
    "layout",
    "marginals",
    "mask_of_diagonals",
    "probabilities",
    "scale",
    "tile_mask",
]
