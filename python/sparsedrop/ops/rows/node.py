"""A block's autograd node, in eager mode and under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import (
    apply_eagerly,
    is_exporting,
    is_transformed,
    is_watched,
    is_watched_gradient,
    without_base,
)
from sparsedrop.masks import RowPattern
from sparsedrop.ops.again import gradients_again
from sparsedrop.ops.dense import ACTIVATIONS
from sparsedrop.ops.rows import arithmetic
from sparsedrop.ops.rows.arithmetic import Parameters
from sparsedrop.ops.rows.op import BACKWARD, FORWARD, draw_tensor
from sparsedrop.ops.rows.plain import (
    Rows,
    drop_units,
    feed_forward_plain,
)
from sparsedrop.ops.units import Drawn, block_of, run_block
from sparsedrop.ops.units.facts import Layers


def feed_forward(
    x: Tensor,
    full: Parameters,
    activation: str | None,
    how: Rows,
    dtype: torch.dtype,
    drawn: tuple[RowPattern, float] | None,
) -> Tensor:
    """down(dropout(act(up(x)))), or with a gate, of a pattern; on checked operands.

    Args:
        x: [..., K].
        full: the parameters.
        activation: of the hidden units.
        how: they are dropped.
        dtype: of the products.
        drawn: by `how`; None under torch.compile, whose programs draw when they run.
    """
    x = x if x.dtype is dtype else x.to(dtype)
    width = full.up.shape[0]
    if torch.compiler.is_compiling():
        if is_exporting():
            return _masked(x, full, activation, how)
        flat = x.reshape(-1, x.shape[-1])
        pattern = draw_tensor(width, how.p, how.patterns)
        out: Tensor = _Compiled.apply(flat, pattern, activation or "", how.scale, *full)
        return out.reshape(*x.shape[:-1], full.down.shape[0])
    assert drawn is not None, "eager mode draws first"
    rows, scale = drawn
    given = [t for t in (x, *full) if t is not None]
    if is_transformed() or is_watched(*given):
        return feed_forward_plain(x, full, rows, activation, scale)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        found: Tensor = _apply(rows, (activation, scale), x, *full)
        return found
    return _run(x, full, arithmetic.cut(full, rows, dtype), activation, scale)[0]


def feed_forward_at_once(
    x: Tensor, layers: Layers, drawn: tuple[RowPattern, float]
) -> Tensor | None:
    """The same in one call, where a GPU runs these operands so, which are looked at here; else
    None."""
    rows, scale = drawn
    block = block_of(x, layers, rows.count, by_rows=True)
    if block is None:
        return None

    def plain(x: Tensor, layers: Layers) -> Tensor:
        up, down = layers
        full = Parameters(up.weight, up.bias, up.gate, up.gate_bias, down.weight, down.bias)
        return feed_forward_plain(x, full, rows, up.activation, scale)

    units = rows.period, rows.offset, rows.count, 0
    return run_block(x, layers, Drawn(units, scale, plain), block)


def _run(
    x: Tensor, full: Parameters, of: Parameters, activation: str | None, scale: float
) -> tuple[Tensor, list[Tensor]]:
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    out, saved = arithmetic.forward(flat, of, activation, scale)
    return without_base(out, [*x.shape[:-1], full.down.shape[0]]), saved


def _masked(x: Tensor, full: Parameters, activation: str | None, how: Rows) -> Tensor:
    """An exported program has no node of ours: the dense block with its units masked."""
    linear = torch.nn.functional.linear
    hidden = linear(x, full.up, full.up_bias)
    if full.gate is None:
        hidden = ACTIVATIONS[activation](hidden)
    else:
        hidden = ACTIVATIONS[activation](linear(x, full.gate, full.gate_bias)) * hidden
    return linear(drop_units(hidden, how), full.down, full.down_bias)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: RowPattern, how: tuple[str | None, float], x: Tensor, *parameters: Any
    ) -> Tensor:
        full = Parameters(*parameters)
        of = arithmetic.cut(full, rows, x.dtype)
        out, saved = _run(x, full, of, *how)
        # Views are made again, copies are not.
        copies = (of.up, None, of.gate, None, of.down, None) if full.up.dtype is not x.dtype else ()
        ctx.save_for_backward(x, *full, *copies, *saved)
        ctx.rows, ctx.how, ctx.copies = rows, how, len(copies)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        full, rest = Parameters(*rest[:6]), rest[6:]
        copies, saved = rest[: ctx.copies], rest[ctx.copies :]
        rows, needs = ctx.rows, ctx.needs_input_grad[2:]
        kind = x.device.type
        # Asking about a device that has no autocast, such as meta, is an error.
        if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
            # The dtypes are settled: autocast around a backward pass may not change them again.
            with torch.autocast(kind, enabled=False):
                return _Eager.backward(ctx, grad)
        if torch.is_grad_enabled() or is_watched_gradient(grad):

            def run(x: Tensor, *full: Any) -> Tensor:
                return feed_forward_plain(x, Parameters(*full), rows, *ctx.how)

            return None, None, *gradients_again(run, [x, *full], grad, needs)
        of = Parameters(*copies) if copies else arithmetic.cut_weights(full, rows, x.dtype)
        features = x.shape[-1]
        flat = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, features)
        grads = arithmetic.backward(*flat, full, of, saved, rows, ctx.how, needs)
        if grads[0] is not None:
            grads[0] = grads[0].view(x.shape)
        return None, None, *grads


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pattern: Tensor,
        activation: str,
        scale: float | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        out, *buffers = FORWARD(x, parameters, pattern, activation, scale)
        ctx.save_for_backward(x, pattern, *parameters, *buffers)
        ctx.how = activation, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, pattern, *rest = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        grads = BACKWARD(grad, x, rest[:6], rest[6:], pattern, *ctx.how, needs)
        wanted = [found if need else None for found, need in zip(grads, needs, strict=True)]
        return wanted[0], None, None, None, *wanted[1:]


_apply = apply_eagerly(_Eager)
