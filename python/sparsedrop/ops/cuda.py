"""The operation on a GPU: the kernels of `_C` where `select` chooses them, else masked operands.

Nothing here waits for the GPU: sizes and choices come from what the host knows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import BlockMask
from sparsedrop.ops import dense
from sparsedrop.ops.plan import (
    ALIGNMENT_BITS,
    Key,
    fitted,
    key_of,
    make_plan,
    plan_for,
    request_of,
)
from sparsedrop.ops.product import Product

SUM_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

_NO_MASK = (0, 0, 0)


def product(p: Product) -> Tensor:
    """See `backend.Backend`."""
    results = _launch(p, keeps_before=False)
    return dense.product(p) if results is None else results[0]


def product_and_pre_activation(p: Product) -> tuple[Tensor, Tensor]:
    """See `backend.Backend`."""
    results = _launch(p, keeps_before=True)
    if results is None:
        return dense.in_two_steps(dense.product, p)
    out, before = results
    assert before is not None
    return out, before


def _launch(p: Product, *, keeps_before: bool) -> tuple[Tensor, Tensor | None] | None:
    """The result, and with `keeps_before` what went into the activation; None: to run densely."""
    a, b, bias, (a_mask, b_mask, out_mask, alpha, _, a_turned, b_turned) = p
    key = key_of(p)
    plan = plan_for(key) if select.is_free() else make_plan(key)
    if plan is None:
        return None
    out_shape, workspace, launch, fits = plan
    if fits is not None:
        a, b = fitted(a, fits[0]), fitted(b, fits[1])
    bias_at = 0 if bias is None else bias.data_ptr()
    if bias is not None and (
        bias_at & ALIGNMENT_BITS or not bias.is_contiguous() or bias.shape[0] != out_shape[1]
    ):
        bias = torch.cat([bias, bias.new_zeros(out_shape[1] - bias.shape[0])])
        bias_at = bias.data_ptr()
    # Extents one by one: from a tuple of them torch allocates in 1.3 us and not in 0.9.
    out = a.new_empty(*out_shape)
    before = a.new_empty(*out_shape) if keeps_before else None
    scratch = a.new_empty(workspace) if workspace else None
    _, a_rows, a_cols = _NO_MASK if a_mask is None else a_mask.tensors.addresses()
    _, b_rows, b_cols = _NO_MASK if b_mask is None else b_mask.tensors.addresses()
    _, out_rows, out_cols = _NO_MASK if out_mask is None else out_mask.tensors.addresses()
    if a_turned:
        a_rows, a_cols = a_cols, a_rows
    if b_turned:
        b_rows, b_cols = b_cols, b_rows
    launch(
        a.data_ptr(), b.data_ptr(), out.data_ptr(), 0 if before is None else before.data_ptr(),
        a_rows, a_cols, b_rows, b_cols, out_rows, out_cols,
        alpha, bias_at, 0 if scratch is None else scratch.data_ptr(),
        _native.current_stream(a.get_device()),
    )  # fmt: skip
    if fits is None or out_shape == p.out_shape:
        return out, before
    m, n = p.out_shape
    return out[:m, :n].contiguous(), None if before is None else before[:m, :n].contiguous()


def column_sums(matrix: Tensor, mask: BlockMask | None) -> Tensor:
    """See `backend.Backend`."""
    sums = sums_by_kernel(matrix, mask) if select.is_free() else None
    return dense.column_sums(matrix, mask) if sums is None else sums


def sums_by_kernel(matrix: Tensor, mask: BlockMask | None) -> Tensor | None:
    """`column_sums` by one launch; None where no kernel can."""
    (m, n), (ld, step), at = matrix.shape, matrix.stride(), matrix.data_ptr()
    index = matrix.get_device()
    if (
        matrix.dtype not in SUM_DTYPES
        or not _native.runs_portable(matrix.device)
        or step != 1
        or 0 < ld < n
        or not 0 < n <= _native.C.MAX_SUM_COLUMNS
        or m == 0
    ):
        return None
    words, block = _NO_MASK, (0, 0)
    if mask is not None:
        words, block = mask.tensors.addresses(), mask.block_shape
        if not words[2]:
            return None
    out = torch.empty(n, dtype=matrix.dtype, device=matrix.device)
    _native.C.column_sums(
        _native.dtype_code(matrix.dtype), at, m, n, ld, *words[1:], *block,
        out.data_ptr(), _native.dtype_code(out.dtype), False, index, _native.current_stream(index),
    )  # fmt: skip
    return out


def request_for(p: Product) -> select.Request:
    """What `select` is asked for a product on a GPU."""
    return request_of(Key(*key_of(p)))
