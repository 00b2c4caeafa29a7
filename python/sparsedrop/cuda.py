"""The operation on a GPU: the kernels of `_C` where `select` chooses them, else masked operands.

Nothing here waits for the GPU: sizes and choices come from what the host knows.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, reference, select
from sparsedrop.block_mask import BlockMask, Masks

_DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1}
_ACTIVATION_CODES = {None: 0, "relu": 1, "gelu": 2, "silu": 3}

_UNIT = 8
"""Elements in 16 bytes: the kernels' loads want addresses and strides in multiples of them."""


class Operand(NamedTuple):
    """How a matrix lies in memory. `in_place`: the kernels can read it as it is."""

    row_major: bool
    ld: int
    in_place: bool


def masked_mm(
    a: Tensor, b: Tensor, bias: Tensor | None, masks: Masks, alpha: float, activation: str | None
) -> Tensor:
    """The op's implementation for CUDA tensors; arguments as for `ops.masked_mm`."""
    a_lies, b_lies = describe(a), describe(b)
    capability, tiles = _gpu(a.device.index)
    request = select.request_for(
        "cuda",
        a,
        b,
        masks,
        a_k_major=a_lies.row_major,
        b_k_major=not b_lies.row_major,
        aligned=a_lies.in_place and b_lies.in_place and b.shape[1] % _UNIT == 0,
        capability=capability,
        tiles=tiles,
    )
    choice = select.decide(request)
    if choice.path == "sm90":
        return _run_kernel(a, b, bias, masks, alpha, activation, a_lies, b_lies, choice)
    return reference.masked_mm(a, b, bias, masks, alpha, activation)


def describe(matrix: Tensor) -> Operand:
    """The layout of a 2-D tensor."""
    rows, cols = matrix.shape
    row_stride, col_stride = matrix.stride()
    if col_stride == 1 and (row_stride >= cols or rows == 1):
        row_major, extent, ld = True, cols, row_stride if rows > 1 else cols
    elif row_stride == 1 and (col_stride >= rows or cols == 1):
        row_major, extent, ld = False, rows, col_stride if cols > 1 else rows
    else:
        return Operand(True, cols, False)
    in_place = extent % _UNIT == 0 and ld % _UNIT == 0 and matrix.data_ptr() % 16 == 0
    return Operand(row_major, ld, in_place)


@functools.cache
def _gpu(index: int) -> tuple[tuple[int, int], tuple[select.Tile, ...]]:
    """Compute capability, and the tiles that this build can run on it."""
    tiles = tuple(_native.C.TILES) if _native.runs_on(torch.device("cuda", index)) else ()
    return _native.capability(index), tiles


def _run_kernel(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    masks: Masks,
    alpha: float,
    activation: str | None,
    a_lies: Operand,
    b_lies: Operand,
    choice: select.Choice,
) -> Tensor:
    (m, k), n = a.shape, b.shape[1]
    # The extents that are contiguous in memory grow to whole units, in every operand alike: a zero
    # of the padding then meets a zero, and never a NaN.
    k_pad = _round_up(k) if a_lies.row_major or not b_lies.row_major else k
    m_pad, n_pad = m if a_lies.row_major else _round_up(m), _round_up(n)
    a, a_lies = _fit(a, a_lies, m_pad, k_pad)
    b, b_lies = _fit(b, b_lies, k_pad, n_pad)
    if bias is not None and (n_pad != n or bias.stride(0) != 1 or bias.data_ptr() % 16):
        bias = torch.cat([bias, bias.new_zeros(n_pad - n)])
    out = a.new_empty((m_pad, n_pad))
    device = a.device
    workspace = torch.empty(
        _native.C.workspace_bytes(m_pad, n_pad, choice.tile, choice.swap),
        dtype=torch.uint8,
        device=device,
    )
    a_mask, b_mask, out_mask = masks
    _native.C.matmul(
        _DTYPE_CODES[a.dtype], m_pad, n_pad, k_pad,
        a.data_ptr(), a_lies.ld, a_lies.row_major,
        b.data_ptr(), b_lies.ld, not b_lies.row_major,
        out.data_ptr(), n_pad,
        _mask_arg(a_mask), _mask_arg(b_mask), _mask_arg(out_mask),
        alpha, 0 if bias is None else bias.data_ptr(), _ACTIVATION_CODES[activation],
        choice.tile, choice.swap, workspace.data_ptr(),
        *_native.launch_target(device),
    )  # fmt: skip
    return out if (m_pad, n_pad) == (m, n) else out[:m, :n].contiguous()


def _fit(matrix: Tensor, lies: Operand, rows: int, cols: int) -> tuple[Tensor, Operand]:
    """The matrix itself where the kernels can read it, else an aligned copy, padded with zeros."""
    if lies.in_place and matrix.shape == (rows, cols):
        return matrix, lies
    zeros = matrix.new_zeros((rows, cols) if lies.row_major else (cols, rows))
    copy = zeros if lies.row_major else zeros.t()
    copy[: matrix.shape[0], : matrix.shape[1]] = matrix
    return copy, Operand(lies.row_major, cols if lies.row_major else rows, True)


def _round_up(extent: int) -> int:
    return -(-extent // _UNIT) * _UNIT


def _mask_arg(mask: BlockMask | None) -> tuple[int, int, int, int] | None:
    if mask is None:
        return None
    return (mask.row_words.data_ptr(), mask.col_words.data_ptr(), *mask.block_shape)
