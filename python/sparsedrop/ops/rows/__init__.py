"""A feed-forward block of which one hidden unit in every so many is kept, and linear layers that
make or read such units; each as one autograd node."""

from sparsedrop.ops.rows.arithmetic import Parameters
from sparsedrop.ops.rows.linear import linear
from sparsedrop.ops.rows.node import feed_forward, feed_forward_at_once
from sparsedrop.ops.rows.op import draw_numbers
from sparsedrop.ops.rows.plain import Rows, drop_units

__all__ = [
    "Parameters",
    "Rows",
    "draw_numbers",
    "drop_units",
    "feed_forward",
    "feed_forward_at_once",
    "linear",
]
