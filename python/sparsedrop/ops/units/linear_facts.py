"""A linear layer of whose outputs, inputs or both some units are live, and all that decides how a
GPU runs it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsedrop import _native, select
from sparsedrop.ops.units.facts import COUNTED, WRAPPED_BYTES, Operand, Units, whole_vectors


class Live(NamedTuple):
    """What lives along an extent of the weight."""

    kept: int
    # Whether it wraps around the end, and so is two parts.
    wraps: bool = False
    # Whether it is one unit in every so many, and no neighbours.
    strides: bool = False


class Hidden(NamedTuple):
    """What lies between two layers of a chain: compact, with padding as products have it."""

    activation: str | None

    @property
    def keeps_input(self) -> bool:
        """Whether what went into the activation is kept, and not what came out: its gradient needs
        that, and the value is made again from it."""
        return self.activation not in (None, "relu")


class DrawnSides(NamedTuple):
    """A draw: which outputs, which inputs; None: all of them."""

    rows: Units | None
    cols: Units | None
    # What the product is multiplied by, but not the bias.
    alpha: float


class Facts(NamedTuple):
    """Operands without their data: contiguous, on one GPU, x in the dtype of the product.

    cuBLAS's fast kernels take extents of whole vectors: where as many units live that they are
    none, compact matrices are padded.
    """

    device: int
    x_shape: torch.Size
    dtype: torch.dtype
    weight: Operand
    bias: Operand | None
    # Of the outputs, the weight's rows, and of the inputs, its columns.
    rows: Live | None
    cols: Live | None
    # What it reads and what it makes, where that is between layers of a chain.
    reads: Hidden | None = None
    makes: Hidden | None = None

    @property
    def m(self) -> int:
        """Rows of x."""
        return self.x_shape.numel() // self.x_shape[-1]

    @property
    def live_shape(self) -> tuple[int, int]:
        """Of the live part of the weight: features of the result, and of x."""
        (n, k), rows, cols = self.weight[0], self.rows, self.cols
        return n if rows is None else rows.kept, k if cols is None else cols.kept

    @property
    def used_shape(self) -> tuple[int, int]:
        """The same as products have it."""
        n, k = self.live_shape
        return (
            n if self.rows is None else whole_vectors(n),
            k if self.cols is None else whole_vectors(k),
        )

    @property
    def pads(self) -> tuple[bool, bool]:
        """Whether there is padding in the features of the result, and in those of x."""
        (n, k), (used_n, used_k) = self.live_shape, self.used_shape
        return used_n > n, used_k > k

    @property
    def copies(self) -> tuple[bool, bool]:
        """Whether the result's gradient, and x, are copied to have that padding."""
        pads_y, pads_x = self.pads
        return pads_y and self.makes is None, pads_x and self.reads is None

    @property
    def gathers(self) -> bool:
        """Whether products are with a copy of what lives of the weight."""
        return self.weight[1] is not self.dtype or self.compacts

    @property
    def gathers_bias(self) -> bool:
        """Whether a copy of what lives of the bias is added."""
        is_used = self.rows is None and self.weight[1] is self.dtype
        return self.bias is not None and not is_used

    @property
    def compacts(self) -> bool:
        """Whether live units are worked on in a compact copy, and so is the weight's gradient."""
        shape, dtype = self.weight
        if (self.rows is not None and self.cols is not None) or True in self.pads:
            return True
        own = self.rows or self.cols
        assert own is not None
        is_small = shape.numel() * dtype.itemsize <= WRAPPED_BYTES
        return (own.wraps and is_small) or (own.strides and self.rows is None)

    @property
    def along(self) -> str:
        """Which extents of the weight are live units."""
        if self.rows is not None and self.cols is not None:
            return "both"
        return "cols" if self.rows is None else "rows"

    def are_legal(self) -> bool:
        """Whether kernels and cuBLAS run them."""
        if self.dtype not in (torch.bfloat16, torch.float16) or not self._fit():
            return False
        params = {self.weight[1]} if self.bias is None else {self.weight[1], self.bias[1]}
        if len(params) > 1 or not params <= {self.dtype, torch.float32}:
            return False
        (n, k), m = self.used_shape, self.m
        extents = m, n, k, *self.weight[0]
        elements = max(m * n, m * k, n * k, self.weight[0].numel())
        most = min(select.MAX_EXTENT, _native.C.MAX_SUM_COLUMNS)
        return max(extents) <= most and elements < COUNTED

    def _fit(self) -> bool:
        """Whether there is something to multiply, and x and the bias have the weight's extents."""
        shape = self.weight[0]
        if len(self.x_shape) == 0 or len(shape) != 2 or 0 in (*self.x_shape, *self.live_shape):
            return False
        is_read = self.x_shape[-1] == self.live_shape[1]
        return is_read and (self.bias is None or tuple(self.bias[0]) == tuple(shape[:1]))
