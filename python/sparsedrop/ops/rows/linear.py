"""A linear layer whose outputs, inputs or both a row pattern keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop._torch import is_transformed, is_watched
from sparsedrop.masks import RowPattern
from sparsedrop.ops.units.chain import Link, run_chain
from sparsedrop.ops.units.facts import Units
from sparsedrop.ops.units.linear_facts import DrawnSides, Live


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: RowPattern | None,
    make: RowPattern | None,
    alpha: float,
) -> Tensor:
    """alpha * x Wᵀ + bias, x [..., k'] -> [..., n']: of the units that are read those that are to
    be made; None: all. Of checked tensors, x in the dtype of the product.

    A result of as many features as are no whole vectors may have gaps between its rows.
    """
    given = [t for t in (x, weight, bias) if t is not None]
    is_plain = not (torch.compiler.is_compiling() or is_transformed() or is_watched(*given))
    if is_plain and x.is_cuda:
        out = run_chain(x, [link_of(weight, bias, (read, make), alpha)])
        if out is not None:
            return out
    return linear_plain(x, weight, bias, (read, make), alpha)


Sides = tuple[RowPattern | None, RowPattern | None]
"""What is read, and what is made."""


def linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides, alpha: float
) -> Tensor:
    """The same in differentiable operations."""
    read, make = sides
    if make is not None:
        weight, bias = weight[make.kept], None if bias is None else bias[make.kept]
    if read is not None:
        weight = weight[:, read.kept]
    own_bias = None if bias is None else bias.to(x.dtype)
    return nn.functional.linear(x if alpha == 1.0 else x * alpha, weight.to(x.dtype), own_bias)


def link_of(
    weight: Tensor, bias: Tensor | None, sides: Sides, alpha: float, activation: str | None = None
) -> Link | None:
    """The layer, as a link of a chain; None where the patterns are of other extents."""
    read, make = sides
    for own, units in zip((make, read), weight.shape, strict=False):
        if own is not None and own.width != units:
            return None

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear_plain(x, weight, bias, sides, alpha)

    drawn = DrawnSides(_units(make), _units(read), alpha)
    return Link(weight, bias, _live(make), _live(read), drawn, plain, activation)


def _live(rows: RowPattern | None) -> Live | None:
    return None if rows is None else Live(rows.count, strides=rows.period > 1)


def _units(rows: RowPattern | None) -> Units | None:
    return None if rows is None else (rows.period, rows.offset, rows.count, 0)
