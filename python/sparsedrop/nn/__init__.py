"""Modules: what to put in place of nn.Dropout and nn.Linear."""

from sparsedrop.nn.linear import SparseDropLinear
from sparsedrop.nn.mlp import SparseDropMLP
from sparsedrop.nn.slice_out import SliceOutMLP
from sparsedrop.nn.slice_out_attention import SliceOutAttention
from sparsedrop.nn.stack import SparseDropStack

__all__ = [
    "SliceOutAttention",
    "SliceOutMLP",
    "SparseDropLinear",
    "SparseDropMLP",
    "SparseDropStack",
]
