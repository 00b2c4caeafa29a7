"""The products of a training step of Y = (X ∘ M_X) Wᵀ ∘ M_Y, and the dense problems beside them.

X is [M, K], W is [N, K] and dY is [M, N]; a problem is named by its extents MxNxK.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop.masks import BlockMask, Masks, expand_live

SHRUNK_UNIT = 128
"""Extents of the shrunk problem are multiples of it: others make cuBLAS up to 4 times slower."""


class Extents(NamedTuple):
    """Of one linear layer: rows of x, output features, input features."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Extents:
        """The extents in a text such as "16384x4096x1024"; ValueError where there are none."""
        words = text.split("x")
        if len(words) != 3 or not all(word.isdecimal() and int(word) for word in words):
            raise ValueError(f"is three extents such as 4096x4096x4096, not {text!r}")
        return cls(*map(int, words))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


class Operands(NamedTuple):
    """What the products of one step are made from."""

    x: Tensor  # [M, K]
    w: Tensor  # [N, K]
    dy: Tensor  # [M, N]

    @classmethod
    def random(cls, extents: Extents, dtype: torch.dtype, device: torch.device) -> Operands:
        """Normal data: a GPU runs zeros faster than it should."""
        m, n, k = extents
        shapes = ((m, k), (n, k), (m, n))
        return cls(*(torch.randn(shape, dtype=dtype, device=device) for shape in shapes))

    def corner(self, extents: Extents) -> Operands:
        """Contiguous operands of the smaller problem."""
        m, n, k = extents
        x, w, dy = self.x[:m, :k], self.w[:n, :k], self.dy[:m, :n]
        return Operands(x.contiguous(), w.contiguous(), dy.contiguous())


class Product(NamedTuple):
    """One product a · b with its masks; `shrinks` says how often 1 - p cuts M, N and K."""

    name: str
    factors: Callable[[Operands], tuple[Tensor, Tensor]]
    masks: Callable[[BlockMask, BlockMask | None], Masks]  # of those of X and Y
    shrinks: tuple[int, int, int]

    @property
    def two_sided(self) -> bool:
        """Whether Y has a mask, too."""
        return sum(self.shrinks) == 2

    def ideal(self, p: float) -> float:
        """Dense FLOPs over expected live FLOPs."""
        return (1 - p) ** -sum(self.shrinks)

    def shrunk(self, extents: Extents, p: float) -> Extents:
        """The dense problem with only the live extent."""
        pairs = zip(extents, self.shrinks, strict=True)
        return Extents(*(shrunk_extent(extent, (1 - p) ** times) for extent, times in pairs))


def _forward(step: Operands) -> tuple[Tensor, Tensor]:
    return step.x, step.w.t()


def _input_gradient(step: Operands) -> tuple[Tensor, Tensor]:
    return step.dy, step.w


def _weight_gradient(step: Operands) -> tuple[Tensor, Tensor]:
    return step.dy.t(), step.x


# An element of dW sums over the rows of x in which its x and its dy are both live.
_PRODUCTS = (
    Product("forward", _forward, lambda x, y: (x, None, None), (0, 0, 1)),
    Product("dX", _input_gradient, lambda x, y: (None, None, x), (0, 0, 1)),
    Product("dW", _weight_gradient, lambda x, y: (None, x, None), (1, 0, 0)),
    Product("both", _forward, lambda x, y: (x, None, y), (0, 1, 1)),
    Product("both-dX", _input_gradient, lambda x, y: (y, None, x), (0, 1, 1)),
    Product("both-dW", _weight_gradient, lambda x, y: (y and y.T, x, None), (2, 0, 0)),
)
PRODUCTS = {product.name: product for product in _PRODUCTS}


def shrunk_extent(extent: int, share: float) -> int:
    """That share of the extent, to the nearest multiple of SHRUNK_UNIT but 0, at most all."""
    units = max(1, math.floor(extent * share / SHRUNK_UNIT + 0.5))
    return min(extent, units * SHRUNK_UNIT)


def live_share(masks: Masks, m: int, n: int, k: int) -> float:
    """Live FLOPs over dense FLOPs of the product [m, k] · [k, n] -> [m, n]. Reads the masks."""
    a, b, out = masks
    # One cell of every grid below is `unit` elements of its extent: no block ends inside a cell.
    units = [
        math.gcd(*(mask.block_shape[side] for mask, side in sides if mask is not None)) or extent
        for extent, sides in (
            (m, ((a, 0), (out, 0))),
            (n, ((b, 1), (out, 1))),
            (k, ((a, 1), (b, 0))),
        )
    ]
    rows, cols, inner = (
        (extent - torch.arange(0, extent, unit)).clamp(max=unit).double()
        for extent, unit in zip((m, n, k), units, strict=True)
    )
    unit_m, unit_n, unit_k = units
    terms = (_cells(a, unit_m, unit_k, rows, inner) * inner) @ _cells(
        b, unit_k, unit_n, inner, cols
    )
    live = terms * _cells(out, unit_m, unit_n, rows, cols)
    return float(rows @ live @ cols) / (m * n * k)


def _cells(
    mask: BlockMask | None, row_unit: int, col_unit: int, rows: Tensor, cols: Tensor
) -> Tensor:
    """1 where a cell is live, on the CPU; [cells along the rows, cells along the columns]."""
    shape = (len(rows), len(cols))
    if mask is None:
        return torch.ones(shape, dtype=torch.double)
    block_rows, block_cols = mask.block_shape
    return expand_live(
        mask.live.cpu(), (block_rows // row_unit, block_cols // col_unit), shape
    ).double()
