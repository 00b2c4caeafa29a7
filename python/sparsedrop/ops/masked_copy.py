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


def keep_live(matrix: Tensor, mask: BlockMask | None, factor: float = 1.0) -> Tensor:
    """A copy of a 2-D matrix, live blocks scaled and dropped ones 0; itself if there is no mask."""
    if mask is None:
        return matrix
    if not _has_kernel(matrix, mask):
        return torch.where(mask.expand(), matrix if factor == 1.0 else matrix * factor, 0)
    # Row-major or not, the copy lies as the matrix does.
    row_stride, col_stride = matrix.stride()
    if row_stride == 1 and col_stride >= matrix.shape[0] > 1:
        return keep_live(matrix.t(), mask.T, factor).t()
    if col_stride != 1 or row_stride < matrix.shape[1]:
        matrix = matrix.contiguous()
    out = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    (rows, cols), live, index = matrix.shape, mask.live, matrix.get_device()
    dtype = _native.dtype_code(matrix.dtype)
    _native.C.masked_copy(
        dtype, matrix.data_ptr(), matrix.stride(0) if rows > 1 else cols,
        dtype, out.data_ptr(), cols,
        rows, cols, *mask.block_shape, live.data_ptr(), *live.stride(), factor, index,
        _native.current_stream(index),
    )  # fmt: skip
    return out


def _has_kernel(matrix: Tensor, mask: BlockMask) -> bool:
    return (
        matrix.is_cuda
        and not is_watched(matrix)
        and matrix.dtype in _DTYPES
        and max(*matrix.shape, *mask.block_shape) <= _MAX_EXTENT
        and _native.runs_portable(matrix.device)
    )
