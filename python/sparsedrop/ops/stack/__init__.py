"""A stack of linear layers, dropped between and around them, as one autograd node."""

from sparsedrop.ops import flops
from sparsedrop.ops.stack.compiled import stack_compiled, suits_compiler
from sparsedrop.ops.stack.facts import Dropped, Layer, parameters_of
from sparsedrop.ops.stack.node import run_stack, stack_of
from sparsedrop.ops.stack.plain import draw_mask, drop_at, stack_plain, suits_cpu
from sparsedrop.ops.stack.products import by_products

flops.register_stack()

__all__ = [
    "Dropped",
    "Layer",
    "by_products",
    "draw_mask",
    "drop_at",
    "parameters_of",
    "run_stack",
    "stack_compiled",
    "stack_of",
    "stack_plain",
    "suits_compiler",
    "suits_cpu",
]
