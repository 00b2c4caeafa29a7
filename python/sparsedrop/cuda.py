"""The operation on a GPU: the kernels of `_C` where `select` chooses them, else masked operands.

Nothing here waits for the GPU: sizes and choices come from what the host knows. All that does not
depend on addresses is worked out once for a shape, and kept as a plan.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, reference, select
from sparsedrop.block_mask import BlockMask, Masks, Side, straight

if TYPE_CHECKING:
    from sparsedrop import _C

_DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1}
_ACTIVATION_CODES = {None: 0, "relu": 1, "gelu": 2, "silu": 3}

_UNIT = 8
"""Elements in 16 bytes: the kernels' loads want addresses and strides in multiples of them."""

_ALIGNMENT_BITS = 15
"""Of an address, which must be 0."""


_NO_MASK = (0, 0, 0)

_Blocks = tuple[select.Block, int | None]
"""A mask as a choice sees it: its blocks, and its share in whole percent."""

_MOST_SUMS = 64 * 65535
"""Columns that one launch of `_C.column_sums` can sum up."""


class Operand(NamedTuple):
    """How a matrix lies in memory. `in_place`: the kernels can read it as it is."""

    row_major: bool
    ld: int
    in_place: bool


class Fit(NamedTuple):
    """How an operand lies, and the extents to which it is copied where it cannot be read so."""

    lies: Operand
    rows: int
    cols: int


class Plan(NamedTuple):
    """How the products of one shape are run."""

    out_shape: tuple[int, int]
    # 2-byte elements.
    workspace: int
    launch: _C.Launch
    # Of a and b, where one of them has to be copied or padded.
    fits: tuple[Fit, Fit] | None


def masked_mm(
    left: Side,
    right: Side,
    bias: Tensor | None,
    out_mask: BlockMask | None,
    alpha: float,
    activation: str | None,
) -> Tensor:
    """The op on CUDA tensors: `left` plays a [m, k], `right` b [k, n], `bias` is [n]."""
    return _run(left, right, bias, out_mask, alpha, activation, keeps_before=False)[0]


def masked_mm_and_before(
    left: Side,
    right: Side,
    bias: Tensor | None,
    out_mask: BlockMask | None,
    alpha: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """`masked_mm` with gelu or silu, and what went into the activation, both [m, n].

    Of the latter only live blocks are defined: what reads it must leave out the others.
    """
    out, before = _run(left, right, bias, out_mask, alpha, activation, keeps_before=True)
    assert before is not None
    return out, before


def _run(
    left: Side,
    right: Side,
    bias: Tensor | None,
    out_mask: BlockMask | None,
    alpha: float,
    activation: str | None,
    *,
    keeps_before: bool,
) -> tuple[Tensor, Tensor | None]:
    """The result, and with `keeps_before` what went into the activation."""
    a, a_mask, a_turned = left
    b, b_mask, b_turned = right
    a_at, b_at, index = a.data_ptr(), b.data_ptr(), a.get_device()
    # An activation and the parts of a _Key, as plain tuples: looked up for every product.
    key = (
        activation, a.dtype, index,
        (a.shape, a.stride(), not a_at & _ALIGNMENT_BITS, a_turned),
        (b.shape, b.stride(), not b_at & _ALIGNMENT_BITS, b_turned),
        None if a_mask is None else _blocks_of(a_mask),
        None if b_mask is None else _blocks_of(b_mask),
        None if out_mask is None else _blocks_of(out_mask),
    )  # fmt: skip
    plan = _plan(key) if select.is_free() else _make_plan(key)
    if plan is None:
        (a, a_mask), (b, b_mask) = straight(left), straight(right)
        fused = None if keeps_before else activation
        out = reference.masked_mm(a, b, bias, (a_mask, b_mask, out_mask), alpha, fused)
        return (reference.ACTIVATIONS[activation](out), out) if keeps_before else (out, None)
    out_shape, workspace, launch, fits = plan
    if fits is not None:
        a, b = _fit(a, fits[0]), _fit(b, fits[1])
        a_at, b_at = a.data_ptr(), b.data_ptr()
    bias_at = 0 if bias is None else bias.data_ptr()
    if bias is not None and (
        bias_at & _ALIGNMENT_BITS or not bias.is_contiguous() or bias.shape[0] != out_shape[1]
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
        a_at, b_at, out.data_ptr(), 0 if before is None else before.data_ptr(),
        a_rows, a_cols, b_rows, b_cols, out_rows, out_cols,
        alpha, bias_at, 0 if scratch is None else scratch.data_ptr(), _native.current_stream(index),
    )  # fmt: skip
    if fits is None:
        return out, before
    m, n = left[0].shape[a_turned], right[0].shape[not b_turned]
    if out_shape == (m, n):
        return out, before
    return out[:m, :n].contiguous(), None if before is None else before[:m, :n].contiguous()


def column_sums(matrix: Tensor, mask: BlockMask | None) -> Tensor | None:
    """Sums of a [m, n] matrix over its rows, live blocks only: [n]. None where no kernel can."""
    (m, n), (ld, step), at = matrix.shape, matrix.stride(), matrix.data_ptr()
    index = matrix.get_device()
    if (
        matrix.dtype not in _DTYPE_CODES
        or not gpu_facts(index)["tiles"]
        or step != 1
        or at & _ALIGNMENT_BITS
        or ld % _UNIT
        or n % _UNIT
        or not 0 < n <= _MOST_SUMS
        or m == 0
    ):
        return None
    words, block = _NO_MASK, (0, 0)
    if mask is not None:
        words, block = mask.tensors.addresses(), mask.block_shape
        if not words[2]:
            return None
    out = matrix.new_empty(n)
    _native.C.column_sums(
        _DTYPE_CODES[matrix.dtype], at, m, n, ld, *words[1:], *block, out.data_ptr(), index,
        _native.current_stream(index),
    )  # fmt: skip
    return out


def request_for(a: Tensor, b: Tensor, masks: Masks, activates: bool = False) -> select.Request:
    """What `select` is asked for the product of a [m, k] and b [k, n] on a GPU."""
    a_key, b_key = (
        (x.shape, x.stride(), not x.data_ptr() & _ALIGNMENT_BITS, False) for x in (a, b)
    )
    a_mask, b_mask, out_mask = (None if mask is None else _blocks_of(mask) for mask in masks)
    return _request(
        _Key(a.dtype, a.get_device(), a_key, b_key, a_mask, b_mask, out_mask), activates
    )


def _blocks_of(mask: BlockMask) -> _Blocks:
    """The share is coarse, since a rate may change a little with every step."""
    keep = mask.keep
    # round(keep, 2) goes by way of text: it takes the host four times as long.
    return mask.block_shape, None if keep is None else round(100 * keep)


class _Key(NamedTuple):
    """All that the way of a product depends on: shape, strides, aligned, turned of the operands."""

    dtype: torch.dtype
    device: int
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    a_mask: _Blocks | None
    b_mask: _Blocks | None
    out_mask: _Blocks | None


def _request(key: _Key, activates: bool) -> select.Request:
    a_shape, *a_memory, a_turned = key.a
    b_shape, *b_memory, b_turned = key.b
    m, k = a_shape[::-1] if a_turned else a_shape
    n = b_shape[not b_turned]
    a_lies, b_lies = describe(a_shape, *a_memory), describe(b_shape, *b_memory)
    (a_block, a_keep), (b_block, b_keep), (out_block, out_keep) = (
        _as_it_plays(key.a_mask, a_turned),
        _as_it_plays(key.b_mask, b_turned),
        _as_it_plays(key.out_mask, False),
    )
    return select.Request(
        "cuda", key.dtype, m, n, k, a_block, b_block, out_block, a_keep, b_keep, out_keep,
        a_k_major=a_lies.row_major != a_turned,
        b_k_major=b_lies.row_major == b_turned,
        activates=activates,
        aligned=a_lies.in_place and b_lies.in_place and n % _UNIT == 0,
        **gpu_facts(key.device),
    )  # fmt: skip


def _make_plan(key: tuple[Any, ...]) -> Plan | None:
    """The plan for what `masked_mm` looks up; None for the dense path."""
    activation, *parts = key
    of = _Key(*parts)
    request = _request(of, activation is not None)
    choice = select.decide(request)
    if choice.path != "sm90":
        return None
    # The extents that are contiguous in memory grow to whole units, in every operand alike: a zero
    # of the padding then meets a zero, and never a NaN.
    m, n, k = request.m, request.n, request.k
    k_pad = _round_up(k) if request.a_k_major or request.b_k_major else k
    m_pad, n_pad = m if request.a_k_major else _round_up(m), _round_up(n)
    a_fit = _fit_for(of.a, (m_pad, k_pad))
    b_fit = _fit_for(of.b, (k_pad, n_pad))
    launch = _native.C.Launch(
        _DTYPE_CODES[of.dtype], m_pad, n_pad, k_pad, a_fit.lies.ld, request.a_k_major,
        b_fit.lies.ld, request.b_k_major, n_pad, request.a_block, request.b_block,
        request.out_block, _ACTIVATION_CODES[activation], choice.tile, choice.swap, choice.parts,
        of.device,
    )  # fmt: skip
    in_place = a_fit.lies.in_place and b_fit.lies.in_place and (m, n) == (m_pad, n_pad)
    workspace = -(-launch.workspace_bytes // 2)
    return Plan((m_pad, n_pad), workspace, launch, None if in_place else (a_fit, b_fit))


_plan = functools.lru_cache(maxsize=4096)(_make_plan)


def describe(shape: tuple[int, int], strides: tuple[int, int], aligned: bool) -> Operand:
    """The layout of a 2-D tensor, whose address is `aligned` or not."""
    (rows, cols), (row_stride, col_stride) = shape, strides
    if col_stride == 1 and (row_stride >= cols or rows == 1):
        row_major, extent, ld = True, cols, row_stride if rows > 1 else cols
    elif row_stride == 1 and (col_stride >= rows or cols == 1):
        row_major, extent, ld = False, rows, col_stride if cols > 1 else rows
    else:
        return Operand(True, cols, False)
    return Operand(row_major, ld, extent % _UNIT == 0 and ld % _UNIT == 0 and aligned)


@functools.cache
def gpu_facts(index: int) -> dict[str, Any]:
    """What a `select.Request` says of a GPU: capability, name, SMs, and the tiles of this build."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "capability": _native.capability(index),
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "tiles": tuple(_native.C.TILES) if _native.runs_on(torch.device("cuda", index)) else (),
    }


def _as_it_plays(mask: _Blocks | None, turned: bool) -> tuple[select.Block | None, float | None]:
    """Blocks and keep of a mask, or of its transpose."""
    if mask is None:
        return None, None
    block, percent = mask
    keep = None if percent is None else percent / 100
    return (block[1], block[0]) if turned else block, keep


def _fit_for(operand: tuple[Any, ...], played: tuple[int, int]) -> Fit:
    """How an operand, described as in a `_Key`, is made one of the extents that it plays."""
    shape, strides, aligned, turned = operand
    wanted = played[::-1] if turned else played
    lies = describe(shape, strides, aligned)
    if lies.in_place and tuple(shape) == wanted:
        return Fit(lies, *wanted)
    # Until it is copied it is not in place; its leading dimension is the copy's already.
    return Fit(Operand(lies.row_major, wanted[1] if lies.row_major else wanted[0], False), *wanted)


def _fit(matrix: Tensor, fit: Fit) -> Tensor:
    """The matrix itself where the kernels can read it, else an aligned copy, padded with zeros."""
    lies, rows, cols = fit
    if lies.in_place:
        return matrix
    zeros = matrix.new_zeros((rows, cols) if lies.row_major else (cols, rows))
    copy = zeros if lies.row_major else zeros.t()
    copy[: matrix.shape[0], : matrix.shape[1]] = matrix
    return copy


def _round_up(extent: int) -> int:
    return -(-extent // _UNIT) * _UNIT
