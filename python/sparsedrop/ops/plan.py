"""How the products of one shape are run on a GPU: key -> request -> choice -> launch, cached.

All that does not depend on addresses is worked out once for a shape.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import BlockMask
from sparsedrop.ops.product import Product
from sparsedrop.select import UNIT, kernels

if TYPE_CHECKING:
    from sparsedrop import _C

ALIGNMENT_BITS = 15
"""Bits of an address that must be 0."""

Blocks = tuple[tuple[int, int], "int | None"]
"""A mask as a choice sees it: its blocks, and its share in whole percent."""


class Lies(NamedTuple):
    """How a matrix lies in memory. `in_place`: the kernels can read it as it is."""

    row_major: bool
    ld: int
    in_place: bool


class Fit(NamedTuple):
    """How an operand lies, and the extents to which it is copied where it cannot be read so."""

    lies: Lies
    rows: int
    cols: int


class Plan(NamedTuple):
    """How the products of one shape are run."""

    out_shape: tuple[int, int]
    # Elements of the operands' dtype.
    workspace: int
    launch: _C.Launch
    # Those of a and b, where one of them has to be copied or padded.
    fits: tuple[Fit, Fit] | None


class Key(NamedTuple):
    """All that decides how a product is run."""

    activation: str | None
    dtype: torch.dtype
    device: int
    # Shape, strides, whether it is aligned, and whether it is used transposed.
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    a_mask: Blocks | None
    b_mask: Blocks | None
    out_mask: Blocks | None
    # Of the result; None: that of the operands.
    out_dtype: torch.dtype | None = None
    # Whether float32 may be multiplied as TF32.
    tf32: bool = False


def key_of(p: Product) -> tuple[Any, ...]:
    """A `Key`, in plain tuples: it is looked up for every product."""
    a, b, _, (a_mask, b_mask, out_mask, _, activation, a_turned, b_turned) = p
    return (
        activation, a.dtype, a.get_device(),
        (a.shape, a.stride(), not a.data_ptr() & ALIGNMENT_BITS, a_turned),
        (b.shape, b.stride(), not b.data_ptr() & ALIGNMENT_BITS, b_turned),
        None if a_mask is None else _blocks_of(a_mask),
        None if b_mask is None else _blocks_of(b_mask),
        None if out_mask is None else _blocks_of(out_mask),
        None,
        a.dtype is torch.float32 and _native.allows_tf32(),
    )  # fmt: skip


def _blocks_of(mask: BlockMask) -> Blocks:
    """The share is coarse, since a rate may change a little with every step."""
    keep = mask.keep
    # round(keep, 2) goes by way of text: it takes the host four times as long.
    return mask.block_shape, None if keep is None else round(100 * keep)


def layer_keys(
    device: int,
    extents: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    masks: tuple[Blocks | None, Blocks | None],
    activation: str | None = None,
    *,
    weight_turned: bool = False,
    tf32: bool = False,
) -> tuple[Key, Key, Key]:
    """The products of a linear layer: forward, input gradient and weight gradient.

    Args:
        device: index of the GPU.
        extents: m, n and k of x [m, k] and weight, contiguous and aligned.
        dtypes: of the products, and of the weight's gradient.
        masks: of x, and of the result.
        activation: of the result.
        weight_turned: whether weight is [k, n], and not [n, k].
        tf32: whether float32 may be multiplied as TF32.
    """
    (m, n, k), (dtype, weight_dtype), (of_x, of_out) = extents, dtypes, masks
    rows, cols = (k, n) if weight_turned else (n, k)
    x, weight, grad = (
        ((m, k), (k, 1), True),
        ((rows, cols), (cols, 1), True),
        ((m, n), (n, 1), True),
    )
    common = dtype, device
    grad_weight = Key(None, *common, (*grad, True), (*x, False), of_out, of_x, None, weight_dtype)
    if weight_turned:
        factors = (*x, True), (*grad, False)
        grad_weight = Key(None, *common, *factors, of_x, of_out, None, weight_dtype)
    factors = (*x, False), (*weight, not weight_turned)
    forward = Key(activation, *common, *factors, of_x, None, of_out)
    grad_x = Key(None, *common, (*grad, False), (*weight, weight_turned), of_out, None, of_x)
    return (
        forward._replace(tf32=tf32),
        grad_x._replace(tf32=tf32),
        grad_weight._replace(tf32=tf32),
    )


def request_of(key: Key) -> select.Request:
    """What `select` is asked for the products of a key."""
    return request_on("cuda", key)._replace(**kernels.gpu_facts(key.device))


def request_on(device: str, key: Key) -> select.Request:
    """The same on a kind of device, of which nothing else is said."""
    a_shape, *a_memory, a_turned = key.a
    b_shape, *b_memory, b_turned = key.b
    m, k = a_shape[::-1] if a_turned else a_shape
    n = b_shape[not b_turned]
    a_lies, b_lies = lies_of(a_shape, *a_memory), lies_of(b_shape, *b_memory)
    (a_block, a_keep), (b_block, b_keep), (out_block, out_keep) = (
        _as_used(key.a_mask, a_turned),
        _as_used(key.b_mask, b_turned),
        _as_used(key.out_mask, False),
    )
    return select.Request(
        device, key.dtype, m, n, k, a_block, b_block, out_block, a_keep, b_keep, out_keep,
        a_k_major=a_lies.row_major != a_turned,
        b_k_major=b_lies.row_major == b_turned,
        activates=key.activation is not None,
        aligned=a_lies.in_place and b_lies.in_place and n % UNIT == 0,
        tf32=key.tf32,
    )  # fmt: skip


def make_plan(key: tuple[Any, ...]) -> Plan | None:
    """The plan for a Key, which may be a plain tuple; None for the dense path."""
    of = Key(*key)
    request = request_of(of)
    choice = select.decide(request)
    return kernel_plan(of, request, choice) if choice.path == "kernel" else None


def kernel_plan(of: Key, request: select.Request, choice: select.Choice) -> Plan:
    """How the products of a key are run by the kernels, as it was chosen for its request."""
    # The extents that are contiguous in memory grow to whole units, in every operand alike: a zero
    # of the padding then meets a zero, and never a NaN.
    m, n, k = request.m, request.n, request.k
    k_pad = _round_up(k) if request.a_k_major or request.b_k_major else k
    m_pad, n_pad = m if request.a_k_major else _round_up(m), _round_up(n)
    a_fit = _fit_for(of.a, (m_pad, k_pad))
    b_fit = _fit_for(of.b, (k_pad, n_pad))
    # Named only where it is asked for: an older build can then still be compared with.
    wide = {"d_is_fp32": True} if of.out_dtype is torch.float32 else {}
    launch = _native.C.Launch(
        dtype=_native.dtype_code(of.dtype),
        m=m_pad,
        n=n_pad,
        k=k_pad,
        a_ld=a_fit.lies.ld,
        a_k_major=request.a_k_major,
        b_ld=b_fit.lies.ld,
        b_k_major=request.b_k_major,
        d_ld=n_pad,
        a_block=request.a_block,
        b_block=request.b_block,
        d_block=request.out_block,
        activation=_native.C.ACTIVATIONS[of.activation or "none"],
        architecture=request.tiles[choice.tile].architecture,
        tile=kernels.id_within(request.tiles, choice.tile),
        swap=choice.swap,
        split_k=choice.split_k,
        device=of.device,
        **wide,
    )
    in_place = a_fit.lies.in_place and b_fit.lies.in_place and (m, n) == (m_pad, n_pad)
    workspace = -(-launch.workspace_bytes // of.dtype.itemsize)
    return Plan((m_pad, n_pad), workspace, launch, None if in_place else (a_fit, b_fit))


plan_for = functools.lru_cache(maxsize=4096)(make_plan)


def lies_of(shape: tuple[int, int], strides: tuple[int, int], aligned: bool) -> Lies:
    """The layout of a 2-D tensor, whose address is `aligned` or not."""
    (rows, cols), (row_stride, col_stride) = shape, strides
    if col_stride == 1 and (row_stride >= cols or rows == 1):
        row_major, extent, ld = True, cols, row_stride if rows > 1 else cols
    elif row_stride == 1 and (col_stride >= rows or cols == 1):
        row_major, extent, ld = False, rows, col_stride if cols > 1 else rows
    else:
        return Lies(True, cols, False)
    return Lies(row_major, ld, extent % UNIT == 0 and ld % UNIT == 0 and aligned)


def _as_used(mask: Blocks | None, turned: bool) -> tuple[tuple[int, int] | None, float | None]:
    """Blocks and keep of a mask, or of its transpose."""
    if mask is None:
        return None, None
    block, percent = mask
    keep = None if percent is None else percent / 100
    return (block[1], block[0]) if turned else block, keep


def _fit_for(operand: tuple[Any, ...], played: tuple[int, int]) -> Fit:
    """How an operand, described as in a `Key`, is given the extents that it is used with."""
    shape, strides, aligned, turned = operand
    wanted = played[::-1] if turned else played
    lies = lies_of(shape, strides, aligned)
    if lies.in_place and tuple(shape) == wanted:
        return Fit(lies, *wanted)
    # Until it is copied it is not in place; its leading dimension is the copy's already.
    return Fit(Lies(lies.row_major, wanted[1] if lies.row_major else wanted[0], False), *wanted)


def fitted(matrix: Tensor, fit: Fit) -> Tensor:
    """The matrix itself where the kernels can read it, else an aligned copy, padded with zeros."""
    lies, rows, cols = fit
    if lies.in_place:
        return matrix
    zeros = matrix.new_zeros((rows, cols) if lies.row_major else (cols, rows))
    copy = zeros if lies.row_major else zeros.t()
    copy[: matrix.shape[0], : matrix.shape[1]] = matrix
    return copy


def _round_up(extent: int) -> int:
    return -(-extent // UNIT) * UNIT
