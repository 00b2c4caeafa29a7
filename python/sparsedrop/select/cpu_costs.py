"""Whether a CPU should multiply the live parts of a product only: calls against operations."""

from __future__ import annotations

import torch

Block = tuple[int, int]

CALL = {torch.float64: 2e6, torch.float32: 4e6, torch.bfloat16: 16e6}
"""What one more BLAS call on views costs on a CPU, in floating-point operations of a large product:
some 20 us of two cores at 100, 200 and 400 GFLOP/s, and as much again in bfloat16 to gather."""

ELEMENT = 200.0
"""What masking one element by `where` costs, likewise: about 1 ns."""


def live_parts_pay(
    dtype: torch.dtype,
    extents: tuple[int, int, int],
    blocks: tuple[Block | None, Block | None, Block | None],
    keeps: tuple[float, float, float],
) -> tuple[bool, str]:
    """Whether they do, and the figures, for a [m, k] times b [k, n].

    Args:
        dtype: one of CALL.
        extents: m, n, k.
        blocks: those of a, b and out; None where there is no mask.
        keeps: their expected live shares.
    """
    m, n, k = extents
    matrices = ((m, k), (k, n), (m, n))
    a_grid, b_grid, out_grid = (
        (0, 0) if block is None else (-(-rows // block[0]), -(-cols // block[1]))
        for block, (rows, cols) in zip(blocks, matrices, strict=True)
    )
    a_keep, b_keep, out_keep = keeps
    rows = max(a_grid[0], out_grid[0], 1)
    cols = max(b_grid[1], _runs(out_grid[1], out_keep))
    calls = rows * cols * _runs(max(a_grid[1], b_grid[0]), a_keep * b_keep)
    flops = 2.0 * m * n * k
    live = a_keep * b_keep * out_keep * flops
    masking = ELEMENT * sum(
        rows * cols
        for block, (rows, cols) in zip(blocks, matrices, strict=True)
        if block is not None
    )
    reason = f"{calls:.0f} calls for {live:.1e} of {flops:.1e} floating-point operations"
    return live + calls * CALL[dtype] < flops + masking, reason


def _runs(blocks: int, keep: float) -> float:
    """Expected count of runs of live blocks in a line of so many."""
    return 1 + max(blocks - 1, 0) * keep * (1 - keep)
