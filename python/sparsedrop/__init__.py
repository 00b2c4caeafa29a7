"""Structured dropout whose zeros are skipped: block-sparse products for PyTorch.

    y = sparsedrop.dropout_linear(x, weight, bias, p=0.5)

is `F.linear(F.dropout(x, 0.5), weight, bias)` with whole blocks dropped, and their work with them.
"""

from importlib import metadata

from sparsedrop import nn, patterns, reference, schedules, select, slice_out
from sparsedrop.capturing import CapturedStep, capture
from sparsedrop.conversion import Report, convert, revert, set_rate
from sparsedrop.functional import dropout_linear, linear, matmul
from sparsedrop.masks import BlockMask, RowPattern, Slice

try:
    __version__ = metadata.version("sparsedrop")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "BlockMask",
    "CapturedStep",
    "Report",
    "RowPattern",
    "Slice",
    "__version__",
    "capture",
    "convert",
    "dropout_linear",
    "linear",
    "matmul",
    "nn",
    "patterns",
    "reference",
    "revert",
    "schedules",
    "select",
    "set_rate",
    "slice_out",
]
