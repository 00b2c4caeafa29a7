"""A stack of linear layers, dropped between and around them, as one autograd node."""

from sparsedrop.ops.stack.facts import Dropped, Layer
from sparsedrop.ops.stack.node import run_stack, stack_of
from sparsedrop.ops.stack.plain import draw_mask, drop_at, plain, suits_cpu
from sparsedrop.ops.stack.products import by_products

__all__ = [
    "Dropped",
    "Layer",
    "by_products",
    "draw_mask",
    "drop_at",
    "plain",
    "run_stack",
    "stack_of",
    "suits_cpu",
]
