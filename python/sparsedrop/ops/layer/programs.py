"""What a layer launches in each direction, as programs of `_C`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparsedrop import _native
from sparsedrop.ops.layer.facts import Facts
from sparsedrop.ops.program import ONE_BLOCK, MaskPlace, Pass

if TYPE_CHECKING:
    from sparsedrop import _C


class Forward:
    """The places of a forward pass. What is used is what was given, where nothing is rounded."""

    X, USED_X, WEIGHT, WEIGHT_TO, USED_WEIGHT, BIAS, USED_BIAS = range(7)
    OUT, MASK, SCRATCH, SEED, NEXT = range(7, 12)
    # Of the dense way only; whether parts of sums may be added in 16 bits stands behind the handle.
    HANDLE = 12


class Backward:
    """The places of a backward pass; what is not wanted has none."""

    GRAD, X, WEIGHT, MASK, GRAD_X, GRAD_WEIGHT, GRAD_BIAS, SCRATCH = range(8)
    # Of the dense way only: the gradient that is masked or not yet cast, and the handle as above.
    MADE, HANDLE = 8, 9


ALPHA, KEEP = range(2)
"""The numbers of a pass; the backward pass has the first."""

Into = tuple[bool, bool]
"""Whether the gradients of weight and bias are added to what is there."""


def mask_place(facts: Facts, number: int) -> MaskPlace:
    return MaskPlace(number, facts.masked_shape, facts.block_shape)


def rounds_bias(facts: Facts) -> bool:
    """Whether kernels need a bias of their own: rounded, or scaled with what dropout scales."""
    return facts.bias_dtype is not None and (
        facts.bias_dtype is not facts.dtype or facts.drops_output
    )


def kernel_forward(facts: Facts, launch: _C.Launch) -> _C.Program:
    """By the kernels that skip what is dropped."""
    program, mask = _native.C.Program(facts.device), mask_place(facts, Forward.MASK)
    (m, n, k), of = facts.extents, Forward
    wide = _native.dtype_code(torch.float32)
    program.draw(**mask.grid, live=mask.live, words=mask.words, keep=KEEP, seed=of.SEED)
    arrays: list[Any] = []
    if facts.x_dtype is not facts.dtype:
        arrays.append((of.X, wide, of.USED_X, m * k, None))
    if facts.weight_dtype is not facts.dtype:
        arrays.append((of.WEIGHT, wide, of.WEIGHT_TO, n * k, None))
    if facts.bias_dtype is not None and rounds_bias(facts):
        code = _native.dtype_code(facts.bias_dtype)
        if facts.dtype is torch.float32:  # nothing is rounded to that
            program.masked_copy(
                in_dtype=code, source=of.BIAS, source_ld=n, out_dtype=code, out=of.USED_BIAS,
                rows=1, cols=n, block=ONE_BLOCK, factor=ALPHA,
            )  # fmt: skip
        else:
            arrays.append((of.BIAS, code, of.USED_BIAS, n, ALPHA if facts.drops_output else None))
    _round(program, facts, arrays)
    words = {"d_words" if facts.drops_output else "a_words": mask.words}
    program.product(
        launch, a=of.USED_X, b=of.USED_WEIGHT, d=of.OUT, alpha=ALPHA, bias=of.USED_BIAS,
        workspace=of.SCRATCH, **words,
    )  # fmt: skip
    return program


def kernel_backward(facts: Facts, launches: Sequence[_C.Launch], adds: Into) -> _C.Program:
    """Likewise: the launches are those of the gradients of x and weight."""
    program, mask = _native.C.Program(facts.device), mask_place(facts, Backward.MASK)
    of, is_out = Backward, facts.drops_output
    x_words = {"a_words" if is_out else "d_words": mask.words}
    # The first factor is turned; where the weight is, it is x.
    left, right = (of.X, of.GRAD) if facts.weight_turned else (of.GRAD, of.X)
    is_left = is_out != facts.weight_turned
    weight_words = {"a_words": mask.turned_words} if is_left else {"b_words": mask.words}
    common = {"alpha": ALPHA, "workspace": of.SCRATCH}
    program.product(launches[0], a=of.GRAD, b=of.WEIGHT, d=of.GRAD_X, **common, **x_words)
    program.product(
        launches[1], a=left, b=right, d=of.GRAD_WEIGHT, accumulates=adds[0], **common,
        **weight_words,
    )  # fmt: skip
    masked = {"block": mask.block, "words": mask.words, "factor": ALPHA} if is_out else {}
    _sum(program, facts, of.GRAD, adds[1], masked)
    return program


def dense_forward(facts: Facts, handle: int) -> Pass:
    """By a dense product. handle: cuBLAS's, of now."""
    program, mask = _native.C.Program(facts.device), mask_place(facts, Forward.MASK)
    (m, n, k), of = facts.extents, Forward
    code, wide = _native.dtype_code(facts.dtype), _native.dtype_code(torch.float32)
    if not facts.drops_output:
        _copy(program, (of.X, facts.x_dtype), (of.USED_X, facts.dtype), mask, draws=True)
    elif facts.x_dtype is not facts.dtype:
        whole = MaskPlace(of.MASK, (m, k), ONE_BLOCK)
        _copy(program, (of.X, facts.x_dtype), (of.USED_X, facts.dtype), whole, is_masked=False)
    arrays: list[Any] = []
    if facts.weight_dtype is not facts.dtype:
        arrays.append((of.WEIGHT, wide, of.WEIGHT_TO, n * k, None))
    if facts.bias_dtype not in (None, facts.dtype):
        arrays.append((of.BIAS, wide, of.USED_BIAS, n, None))
    _round(program, facts, arrays)
    scratch = program.dense_product(
        m=m, n=n, k=k, a=of.USED_X, b=of.USED_WEIGHT, b_turned=not facts.weight_turned, out=of.OUT,
        dtype=code, out_dtype=code, alpha=None if facts.drops_output else ALPHA,
        bias=None if facts.bias_dtype is None else of.USED_BIAS, workspace=of.SCRATCH,
        handle=of.HANDLE, handle_now=handle,
    )  # fmt: skip
    if facts.drops_output:
        out = of.OUT, facts.dtype
        _copy(program, out, out, mask, factor=ALPHA, draws=True)
    return Pass(program, scratch)


def dense_backward(facts: Facts, adds: Into, handle: int) -> Pass:
    """Of what `dense_forward` saved. The gradients are of the dtypes of the facts."""
    program, mask = _native.C.Program(facts.device), mask_place(facts, Backward.MASK)
    (m, n, k), of = facts.extents, Backward
    dtype, code = facts.dtype, _native.dtype_code(facts.dtype)
    grad, made, made_dtype = of.GRAD, of.MADE, dtype
    alpha: int | None = ALPHA
    if facts.drops_output:
        _copy(program, (grad, dtype), (of.MADE, dtype), mask, factor=ALPHA)
        grad, alpha, made, made_dtype = of.MADE, None, of.GRAD_X, facts.x_dtype
    common = {
        "dtype": code, "alpha": alpha, "workspace": of.SCRATCH, "handle": of.HANDLE,
        "handle_now": handle,
    }  # fmt: skip
    of_x = program.dense_product(
        m=m, n=k, k=n, a=grad, b=of.WEIGHT, b_turned=facts.weight_turned, out=made,
        out_dtype=_native.dtype_code(made_dtype), **common,
    )  # fmt: skip
    if not facts.drops_output:
        _copy(program, (made, dtype), (of.GRAD_X, facts.x_dtype), mask)
    rows, cols, left, right = (k, n, of.X, grad) if facts.weight_turned else (n, k, grad, of.X)
    of_weight = program.dense_product(
        m=rows, n=cols, k=m, a=left, a_turned=True, b=right, out=of.GRAD_WEIGHT,
        out_dtype=_native.dtype_code(facts.weight_dtype), accumulates=adds[0], **common,
    )  # fmt: skip
    _sum(program, facts, grad, adds[1], {})
    return Pass(program, max(of_x, of_weight))


def _round(program: _C.Program, facts: Facts, arrays: list[Any]) -> None:
    if arrays:
        program.round(dtype=_native.dtype_code(facts.dtype), arrays=arrays)


def _sum(program: _C.Program, facts: Facts, grad: int, adds: bool, masked: dict[str, Any]) -> None:
    """The gradient of the bias."""
    m, n, _ = facts.extents
    program.column_sums(
        dtype=_native.dtype_code(facts.dtype), matrix=grad, rows=m, cols=n, out=Backward.GRAD_BIAS,
        out_dtype=_native.dtype_code(facts.bias_dtype or facts.dtype), accumulates=adds, **masked,
    )  # fmt: skip


Typed = tuple[int, torch.dtype]
"""A place, and what lies there."""


def _copy(
    program: _C.Program,
    source: Typed,
    out: Typed,
    mask: MaskPlace,
    factor: int | None = None,
    *,
    is_masked: bool = True,
    draws: bool = False,
) -> None:
    """Of a matrix, whose grid lies alone in a place, and is drawn where a forward pass `draws`."""
    drawn: dict[str, Any] = {"keep": KEEP, "seed": Forward.SEED} if draws else {}
    program.masked_copy(
        in_dtype=_native.dtype_code(source[1]), source=source[0], source_ld=mask.shape[1],
        out_dtype=_native.dtype_code(out[1]), out=out[0], **mask.grid,
        live=mask.number if is_masked else None, factor=factor, **drawn,
    )  # fmt: skip
