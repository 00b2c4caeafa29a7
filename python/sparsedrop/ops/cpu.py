"""The operation on the CPU: BLAS products of the live parts, read and written in place.

The output is cut into rectangles whose elements share one list of live K blocks, and neighbouring
blocks are merged: for a mask on a these are whole block rows, for a mask on b block columns, for
one on the output runs of live blocks. A rectangle sums a product for each run of live K blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import select
from sparsedrop.masks import BlockMask, Masks
from sparsedrop.ops import dense
from sparsedrop.ops.product import Product, straight

column_sums = dense.column_sums

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "gelu": torch.ops.aten.gelu_,
    "silu": torch.ops.aten.silu_,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_, approximate="tanh"),
}

Run = tuple[int, int]
"""Start and end of a range of elements."""


class Rectangle(NamedTuple):
    """A part of the output, and the runs of K that reach it; None where it is dropped."""

    rows: Run
    cols: Run
    k_runs: tuple[Run, ...] | None


def product(p: Product) -> Tensor:
    """See `backend.Backend`."""
    a, b, masks = straight(p)
    key = _key(a, b, masks)
    choice = _choose(key) if select.is_free() else select.decide(select.Request(*key))
    if choice.path == "dense":
        return dense.product(p)
    if a.dtype == torch.float16:
        # There is no half-precision BLAS: torch's own product is a hundred times slower than this.
        bias = None if p.bias is None else p.bias.float()
        return product(Product(p.a.float(), p.b.float(), bias, p.how)).half()
    out = a.new_empty((a.shape[0], b.shape[1]))
    for rectangle in rectangles(a.shape[0], a.shape[1], b.shape[1], masks):
        _compute(rectangle, a, b, p, out)
    return out


def product_and_pre_activation(p: Product) -> tuple[Tensor, Tensor]:
    """See `backend.Backend`."""
    return dense.in_two_steps(product, p)


def request_for(p: Product) -> select.Request:
    """What `select` is asked for a product on the CPU."""
    return select.Request(*_key(*straight(p)))


def _key(a: Tensor, b: Tensor, masks: Masks) -> tuple[Any, ...]:
    """The fields of a request, as a plain tuple: it is looked up for every product."""
    a_mask, b_mask, out_mask = masks
    return (
        "cpu", a.dtype, a.shape[0], b.shape[1], a.shape[1],
        None if a_mask is None else a_mask.block_shape,
        None if b_mask is None else b_mask.block_shape,
        None if out_mask is None else out_mask.block_shape,
        None if a_mask is None else a_mask.keep,
        None if b_mask is None else b_mask.keep,
        None if out_mask is None else out_mask.keep,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _choose(key: tuple[Any, ...]) -> select.Choice:
    return select.choose(select.Request(*key))


def _compute(rectangle: Rectangle, a: Tensor, b: Tensor, p: Product, out: Tensor) -> None:
    """One rectangle of `out`; a and b as they play in p."""
    bias, alpha, activation = p.bias, p.how.alpha, p.how.activation
    rows, cols = slice(*rectangle.rows), slice(*rectangle.cols)
    part = out[rows, cols]
    if rectangle.k_runs is None:
        part.zero_()
        return
    pairs = [(a[rows, slice(*run)], b[slice(*run), cols]) for run in rectangle.k_runs]
    if len(pairs) > 1 and a.dtype == torch.bfloat16:
        # One sum: between two calls it would be rounded to bfloat16.
        a_parts, b_parts = zip(*pairs, strict=True)
        pairs = [(_join(a_parts, 1), _join(b_parts, 0))]
    # Two threads of MKL fill a wide row-major result at 118 GFLOP/s, a column-major one at 198.
    wide = part.shape[1] >= 4 * part.shape[0] and a.dtype != torch.bfloat16
    total = part.new_empty(part.shape[::-1]).t() if wide else part
    start, beta = (total, 0) if bias is None else (bias[cols], 1)
    for a_part, b_part in pairs:
        torch.addmm(start, a_part, b_part, beta=beta, alpha=alpha, out=total)
        start, beta = total, 1
    if not pairs:
        total.copy_(start) if beta else total.zero_()
    if activation is not None:
        _ACTIVATE[activation](total)
    if wide:
        part.copy_(total)


def _join(parts: tuple[Tensor, ...], dim: int) -> Tensor:
    """torch.cat in the parts' own layout: to turn them on the way takes 40 times as long."""
    if parts[0].stride(0) == 1:
        return torch.cat([part.t() for part in parts], 1 - dim).t()
    return torch.cat(parts, dim)


def rectangles(m: int, k: int, n: int, masks: Masks) -> Iterator[Rectangle]:
    """The output [m, n] cut into rectangles of equal lists of live K blocks."""
    a_mask, b_mask, out_mask = masks
    if a_mask is not None:
        yield from _by_rows(m, k, n, a_mask, b_mask, out_mask)
        return
    # The lists differ by column only. Cutting those first makes tall rectangles, which are faster.
    b_lines, out_lines = (None if mask is None else mask.T for mask in (b_mask, out_mask))
    for cols, rows, k_runs in _by_rows(n, k, m, b_lines, None, out_lines):
        yield Rectangle(rows, cols, k_runs)


def _by_rows(
    m: int,
    k: int,
    n: int,
    a_mask: BlockMask | None,
    b_mask: BlockMask | None,
    out_mask: BlockMask | None,
) -> Iterator[Rectangle]:
    """Rows of equal lists first, then the runs of columns in them."""
    a_rows, a_ks = (None, None) if a_mask is None else a_mask.block_shape
    b_ks, b_cols = (None, None) if b_mask is None else b_mask.block_shape
    out_rows, out_cols = (None, None) if out_mask is None else out_mask.block_shape
    rows, cols, ks = (
        _segments(m, a_rows, out_rows),
        _segments(n, b_cols, out_cols),
        _segments(k, a_ks, b_ks),
    )
    a_bits = _line_bits(a_mask, rows, ks)
    b_bits = _line_bits(None if b_mask is None else b_mask.T, cols, ks)
    out_bits = _line_bits(out_mask, rows, cols)

    def reach(row: int) -> tuple[int, ...]:
        """For each column segment the set of live K segments, as bits; -1 where it is dropped."""
        return tuple(
            a_bits[row] & bits if out_bits[row] >> c & 1 else -1 for c, bits in enumerate(b_bits)
        )

    for reached, members in groupby(range(len(rows)), reach):
        row_run = _span(rows, list(members))
        for bits, places in groupby(range(len(cols)), reached.__getitem__):
            k_runs = None if bits < 0 else tuple(_runs(ks, bits))
            yield Rectangle(row_run, _span(cols, list(places)), k_runs)


def _segments(extent: int, *blocks: int | None) -> list[Run]:
    """The pieces that blocks of these extents cut [0, extent) into."""
    cuts = sorted({0, extent}.union(*(range(0, extent, block) for block in blocks if block)))
    return list(pairwise(cuts))


def _line_bits(mask: BlockMask | None, lines: list[Run], places: list[Run]) -> list[int]:
    """For each piece of the rows the live pieces of the columns, as bits of an integer."""
    if mask is None:
        return [(1 << len(places)) - 1] * len(lines)
    block_rows, block_cols = mask.block_shape
    columns = [start // block_cols for start, _ in places]
    bits = [sum(1 << i for i, c in enumerate(columns) if line[c]) for line in mask.live.tolist()]
    return [bits[start // block_rows] for start, _ in lines]


def _runs(segments: list[Run], bits: int) -> Iterator[Run]:
    """The runs of adjacent segments whose bits are set."""
    for live, members in groupby(range(len(segments)), lambda s: bits >> s & 1):
        if live:
            yield _span(segments, list(members))


def _span(segments: list[Run], members: list[int]) -> Run:
    return segments[members[0]][0], segments[members[-1]][1]
