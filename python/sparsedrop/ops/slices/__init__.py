"""SliceOut: dense products of slices of weights that lie whole."""

from sparsedrop.ops import flops
from sparsedrop.ops.slices.choice import NORMALIZATIONS, Choice, check_normalization
from sparsedrop.ops.slices.compiled import feed_forward_compiled, kept_mask
from sparsedrop.ops.slices.feed_forward import Layers, Live, by_views
from sparsedrop.ops.slices.node import drawn_units, feed_forward
from sparsedrop.ops.slices.products import Cut, Pieces

flops.register_slices()

__all__ = [
    "NORMALIZATIONS",
    "Choice",
    "Cut",
    "Layers",
    "Live",
    "Pieces",
    "by_views",
    "check_normalization",
    "drawn_units",
    "feed_forward",
    "feed_forward_compiled",
    "kept_mask",
]
