"""Whether a CPU should multiply the live parts of a product only: calls against operations."""

from __future__ import annotations

from typing import NamedTuple

import torch

Block = tuple[int, int]

CALL = {torch.float64: 2e6, torch.float32: 4e6, torch.bfloat16: 16e6}
"""What one more BLAS call on views costs on a CPU, in floating-point operations of a large product:
some 20 us of two cores at 100, 200 and 400 GFLOP/s, and as much again in bfloat16 to gather."""

ELEMENT = 200.0
"""What masking one element by `where` costs, likewise: about 1 ns."""


LAYER_CALLS = 1.5
"""What a layer of ours costs the host more than nn.Dropout and nn.Linear, forward and backward, in
calls: some 30 us."""

DROPOUT_ELEMENT = 2800.0
"""What nn.Dropout costs for one element, forward and backward, in the same measure as ELEMENT: 14
ns, from the training step of 2048x2048x2048 in README. Most of it is drawing the random number."""

PARTS = 1.3
"""How much longer the products of live parts take than their share of the operations, from the same
step. Which way a product is run does not depend on it: dense ones cost more than they seem, too."""


class Costs(NamedTuple):
    """Of a product, in floating-point operations of a large one."""

    calls: float
    flops: float
    live_flops: float
    live: float
    dense: float


def costs(
    dtype: torch.dtype,
    extents: tuple[int, int, int],
    blocks: tuple[Block | None, Block | None, Block | None],
    keeps: tuple[float, float, float],
) -> Costs:
    """Of a [m, k] times b [k, n]: of its live parts one by one, and of all after masking.

    Args: as for `live_parts_pay`.
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
    return Costs(calls, flops, live, live + calls * CALL[dtype], flops + masking)


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
    of = costs(dtype, extents, blocks, keeps)
    live, flops = f"{of.live_flops:.1e}", f"{of.flops:.1e}"
    reason = f"{of.calls:.0f} calls for {live} of {flops} floating-point operations"
    return of.live < of.dense, reason


def _runs(blocks: int, keep: float) -> float:
    """Expected count of runs of live blocks in a line of so many."""
    return 1 + max(blocks - 1, 0) * keep * (1 - keep)
