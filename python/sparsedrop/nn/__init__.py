"""Modules: what to put in place of nn.Dropout and nn.Linear."""

from sparsedrop.nn.linear import SparseDropLinear

__all__ = ["SparseDropLinear"]
