"""A matrix with its dropped blocks exactly 0: read once and written once where a kernel can.

A dropped block is taken out by a choice and not by a product, since 0 * NaN is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop._torch import is_watched
from sparsedrop.masks import BlockMask

_MAX_EXTENT = 2**31 - 1
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def keep_live(matrix: Tensor, mask: BlockMask | None) -> Tensor:
    """A copy of a 2-D matrix whose dropped blocks are 0; itself where there is no mask."""
    if mask is None:
        return matrix
    if not _has_kernel(matrix):
        return torch.where(mask.expand(), matrix, 0)
    # Row-major or not, the copy lies as the matrix does.
    row_stride, col_stride = matrix.stride()
    if row_stride == 1 and col_stride >= matrix.shape[0] > 1:
        return keep_live(matrix.t(), mask.T).t()
    if col_stride != 1 or row_stride < matrix.shape[1]:
        matrix = matrix.contiguous()
    out = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    copy_live(matrix, out, mask.live, mask.block_shape)
    return out


def _has_kernel(matrix: Tensor) -> bool:
    return (
        matrix.is_cuda
        and not is_watched(matrix)
        and matrix.dtype in _DTYPES
        and max(matrix.shape) <= _MAX_EXTENT
        and _native.runs_portable(matrix.device)
    )


def copy_live(
    matrix: Tensor,
    out: Tensor,
    live: Tensor,
    block_shape: tuple[int, int],
    factor: float = 1.0,
) -> None:
    """`factor` times the live blocks of a row-major matrix into `out`, which may be itself.

    Args:
        matrix: `[rows, cols]` on a GPU that runs the portable kernels; a last stride of 1.
        out: the same extents, row-major; of the same dtype, or float32 and 16 bits.
        live: the grid of blocks, bool, of any strides.
        block_shape: rows and columns of a block.
        factor: of the live elements.
    """
    (rows, cols), index = matrix.shape, matrix.get_device()
    _native.C.masked_copy(
        _native.dtype_code(matrix.dtype), matrix.data_ptr(), matrix.stride(0) if rows > 1 else cols,
        _native.dtype_code(out.dtype), out.data_ptr(), out.stride(0) if rows > 1 else cols,
        rows, cols, *block_shape, live.data_ptr(), *live.stride(), factor,
        index, _native.current_stream(index),
    )  # fmt: skip
