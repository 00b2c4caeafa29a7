"""Modules: what to put in place of nn.Dropout and nn.Linear."""

from sparsedrop.nn.linear import SparseDropLinear
from sparsedrop.nn.mlp import SparseDropMLP
from sparsedrop.nn.row_pattern import RowPatternMLP
from sparsedrop.nn.stack import SparseDropStack

__all__ = ["RowPatternMLP", "SparseDropLinear", "SparseDropMLP", "SparseDropStack"]
