"""Dropout and the linear layer behind it, as one autograd node: one call into `_C` each way."""

from sparsedrop.ops import flops
from sparsedrop.ops.layer.accumulation import adding_in_place
from sparsedrop.ops.layer.compiled import dropout_linear_compiled
from sparsedrop.ops.layer.facts import Options
from sparsedrop.ops.layer.node import dropout_linear, layer_of
from sparsedrop.ops.layer.plain import dropout_linear_plain, suits_cpu

flops.register()

__all__ = [
    "Options",
    "adding_in_place",
    "dropout_linear",
    "dropout_linear_compiled",
    "dropout_linear_plain",
    "layer_of",
    "suits_cpu",
]
