"""Modules: what to put in place of nn.Dropout and nn.Linear."""

from sparsedrop.nn.linear import SparseDropLinear
from sparsedrop.nn.mlp import SparseDropMLP
from sparsedrop.nn.row_pattern import RowPatternMLP
from sparsedrop.nn.row_pattern_lstm import RowPatternLSTM
from sparsedrop.nn.slice_out import SliceOutMLP
from sparsedrop.nn.slice_out_attention import SliceOutAttention
from sparsedrop.nn.stack import SparseDropStack
from sparsedrop.nn.tile_pattern import TilePatternLinear

__all__ = [
    "RowPatternLSTM",
    "RowPatternMLP",
    "SliceOutAttention",
    "SliceOutMLP",
    "SparseDropLinear",
    "SparseDropMLP",
    "SparseDropStack",
    "TilePatternLinear",
]
