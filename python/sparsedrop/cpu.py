"""The operation on the CPU: BLAS products of the live parts, read and written in place.

The output is cut into rectangles whose elements share one list of live K blocks, and neighbouring
blocks are merged: for a mask on a these are whole block rows, for a mask on b block columns, for one on
the output runs of live blocks. A rectangle sums one product for each run of live K blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop import reference, select
from sparsedrop.block_mask import BlockMask, Masks

CALL_FLOPS = 3e6
"""What a BLAS call on three views costs in Python, in floating-point operations: some 15 us of two
cores at 200 GFLOP/s."""

_ACTIVATE = {
    "relu": torch.relu_,
    "gelu": torch.ops.aten.gelu_,
    "silu": torch.ops.aten.silu_,
}

Run = tuple[int, int]
"""Start and end of a range of elements."""


class Rectangle(NamedTuple):
    """A part of the output, and the runs of K that reach it; None where it is dropped."""

    rows: Run
    cols: Run
    k_runs: tuple[Run, ...] | None


def masked_mm(
    a: Tensor, b: Tensor, bias: Tensor | None, masks: Masks, alpha: float, activation: str | None
) -> Tensor:
    """The op's implementation for CPU tensors; arguments as for `ops.masked_mm`."""
    choice = select.decide(select.Request("cpu", a.dtype, a.shape[0], b.shape[1], a.shape[1]))
    plan = list(rectangles(a.shape, b.shape, masks))
    if choice.path == "dense":
        a_mask, b_mask, out_mask = masks
        return reference.matmul(
            a, b, a_mask=a_mask, b_mask=b_mask, out_mask=out_mask,
            alpha=alpha, bias=bias, activation=activation,
        )  # fmt: skip
    out = a.new_empty((a.shape[0], b.shape[1]))
    for rectangle in plan:
        _compute(rectangle, a, b, bias, alpha, activation, out)
    return out


def _compute(
    rectangle: Rectangle,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    alpha: float,
    activation: str | None,
    out: Tensor,
) -> None:
    rows, cols = slice(*rectangle.rows), slice(*rectangle.cols)
    part = out[rows, cols]
    if rectangle.k_runs is None:
        part.zero_()
        return
    start = part if bias is None else bias[cols]
    beta = 0 if bias is None else 1
    pairs = [(a[rows, slice(*run)], b[slice(*run), cols]) for run in rectangle.k_runs]
    if len(pairs) > 1 and a.dtype == torch.bfloat16:
        # One sum: between two calls it would be rounded to bfloat16.
        a_parts, b_parts = zip(*pairs, strict=True)
        pairs = [(torch.cat(a_parts, 1), torch.cat(b_parts, 0))]
    for a_part, b_part in pairs:
        torch.addmm(start, a_part, b_part, beta=beta, alpha=alpha, out=part)
        start, beta = part, 1
    if not pairs:
        part.copy_(start) if beta else part.zero_()
    if activation is not None:
        _ACTIVATE[activation](part)


def rectangles(a_shape: torch.Size, b_shape: torch.Size, masks: Masks) -> Iterator[Rectangle]:
    """The output cut into rectangles of equal lists of live K blocks."""
    a_mask, b_mask, out_mask = masks
    rows = _segments(a_shape[0], *(m.block_shape[0] for m in (a_mask, out_mask) if m is not None))
    cols = _segments(b_shape[1], *(m.block_shape[1] for m in (b_mask, out_mask) if m is not None))
    ks = _segments(
        a_shape[1],
        *([] if a_mask is None else [a_mask.block_shape[1]]),
        *([] if b_mask is None else [b_mask.block_shape[0]]),
    )
    a_bits = _line_bits(a_mask, rows, ks)
    b_bits = _line_bits(None if b_mask is None else b_mask.T, cols, ks)
    live = None if out_mask is None else out_mask.live.tolist()

    def reach(row: int) -> tuple[int, ...]:
        """For each column segment the set of live K segments, as bits; -1 where it is dropped."""
        if out_mask is None or live is None:
            return tuple(a_bits[row] & bits for bits in b_bits)
        line = live[rows[row][0] // out_mask.block_shape[0]]
        width = out_mask.block_shape[1]
        return tuple(
            a_bits[row] & bits if line[start // width] else -1
            for bits, (start, _) in zip(b_bits, cols, strict=True)
        )

    for reached, members in groupby(range(len(rows)), reach):
        row_run = _span(rows, list(members))
        for bits, places in groupby(range(len(cols)), reached.__getitem__):
            k_runs = None if bits < 0 else tuple(_runs(ks, bits))
            yield Rectangle(row_run, _span(cols, list(places)), k_runs)


def _segments(extent: int, *blocks: int) -> list[Run]:
    """The pieces that blocks of these extents cut [0, extent) into."""
    cuts = sorted({0, extent}.union(*(range(0, extent, block) for block in blocks)))
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _line_bits(mask: BlockMask | None, lines: list[Run], ks: list[Run]) -> list[int]:
    """For each line the live segments of K, as bits of an integer."""
    if mask is None:
        return [(1 << len(ks)) - 1] * len(lines)
    block_rows, block_cols = mask.block_shape
    places = [start // block_cols for start, _ in ks]
    bits = [
        sum(1 << s for s, place in enumerate(places) if line[place]) for line in mask.live.tolist()
    ]
    return [bits[start // block_rows] for start, _ in lines]


def _runs(segments: list[Run], bits: int) -> Iterator[Run]:
    """The runs of adjacent segments whose bits are set."""
    for live, members in groupby(range(len(segments)), lambda s: bits >> s & 1):
        if live:
            yield _span(segments, list(members))


def _span(segments: list[Run], members: list[int]) -> Run:
    return segments[members[0]][0], segments[members[-1]][1]
