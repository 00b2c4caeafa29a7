"""A feed-forward block of whose hidden units some are live, as one call into `_C` each way."""

from sparsedrop.ops.units.facts import Drawn
from sparsedrop.ops.units.node import block_of, run_block

__all__ = ["Drawn", "block_of", "run_block"]
