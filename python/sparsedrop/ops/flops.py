"""What torch's FlopCounterMode counts: the operations on live parts that are to be expected.

Of a mask whose live share the host does not know half is expected, as in the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsedrop.masks import kept_units
from sparsedrop.ops.spelling import read
from sparsedrop.select.request import UNKNOWN_KEEP

Shape = Sequence[int]


def _masked_mm(
    a: Shape,
    b: Shape,
    bias: Shape | None,
    mask_tensors: Any,
    blocks: Sequence[int],
    keeps: Sequence[float],
    *_: Any,
    **__: Any,
) -> int:
    shares = (
        UNKNOWN_KEEP if keep < 0 else keep
        for block, keep in zip(blocks[::2], keeps, strict=True)
        if block > 0
    )
    return round(2 * a[0] * a[1] * b[1] * prod(shares))


def _forward(x: Shape, weight: Shape, bias: Shape | None, p: float, *_: Any, **__: Any) -> int:
    return round(2 * prod(x) * weight[0] * (1.0 - p))


def _backward(
    grad: Shape,
    x: Shape | None,
    weight: Shape | None,
    pack: Shape,
    p: float,
    features: int,
    *others: Any,
    **_: Any,
) -> int:
    needs = read(others[-1])[-1]
    return round(2 * prod(grad) * features * (1.0 - p)) * (needs[0] + needs[1])


def _stack(
    x: Shape,
    parameters: Sequence[Shape | None],
    rates: Sequence[float],
    *others: Any,
    **_: Any,
) -> int:
    gated = read(others[-1])[2]
    weights = [shape for shape in parameters[::2] if shape is not None]
    return sum(_of_branches(x, weights, gated, rates))


def _stack_backward(
    grad: Shape,
    x: Shape,
    weights: Sequence[Shape],
    pack: Shape,
    kept: Sequence[Shape],
    rates: Sequence[float],
    *others: Any,
    **_: Any,
) -> int:
    needs, gated = read(others[-1])[3:5]
    found, layers = _of_branches(x, weights, gated, rates), _layers_of(gated)
    parameters = zip(layers, needs[1::2], needs[2::2], strict=True)
    # Below the first layer with a gradient there is nothing.
    with_gradient = [layer for layer, *needed in parameters if any(needed)]
    first = -1 if needs[0] else min(with_gradient, default=len(gated))
    of_inputs = sum(n for layer, n in zip(layers, found, strict=True) if layer > first)
    of_weights = sum(n for n, needed in zip(found, needs[1::2], strict=True) if needed)
    return of_inputs + of_weights


def _layers_of(gated: Sequence[bool]) -> list[int]:
    """That of each weight; a gate stands before its layer."""
    return [i for i, is_gated in enumerate(gated) for _ in range(1 + is_gated)]


def _of_branches(
    x: Shape, weights: Sequence[Shape], gated: Sequence[bool], rates: Sequence[float]
) -> list[int]:
    """Of a product with each weight."""
    rows = prod(x[:-1])
    return [
        round(2 * rows * prod(weight) * (1.0 - rates[i]) * (1.0 - rates[i + 1]))
        for i, weight in zip(_layers_of(gated), weights, strict=True)
    ]


def register_stack() -> None:
    """Tells torch of the formulas of a stack's ops."""
    ops: Any = torch.ops.sparsedrop
    register_flop_formula(ops.stack)(_stack)
    register_flop_formula(ops.stack_backward)(_stack_backward)


def _slice_out_mlp(x: Shape, parameters: Sequence[Shape | None], *how: Any, **_: Any) -> int:
    return sum(_of_slices(x, parameters, how))


def _slice_out_mlp_backward(
    grad: Shape, x: Shape, parameters: Sequence[Shape | None], start: Shape, kept: Any,
    *how: Any, **_: Any,
) -> int:  # fmt: skip
    *of_up, of_down = _of_slices(x, parameters, how)
    needs = how[-1]
    of_weights = sum(n for n, needed in zip(of_up, needs[1::2], strict=False) if needed)
    return of_weights + of_down * (needs[-2] + any(needs[:-2])) + sum(of_up) * needs[0]


def _of_slices(x: Shape, parameters: Sequence[Shape | None], how: Sequence[Any]) -> list[int]:
    """Of a product with each weight, of which `how` keeps a slice."""
    _, p, align, *_ = how
    weights = [shape for shape in parameters[::2] if shape is not None]
    units = weights[0][0]
    kept = kept_units(units, p, align)[0]
    return [2 * prod(x[:-1]) * prod(weight) // units * kept for weight in weights]


def _slice_out_linear(
    x: Shape, weight: Shape, bias: Shape | None, start: Shape, on_rows: bool,
    units: int, kept: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return 2 * prod(x[:-1]) * prod(weight) // units * kept


def _slice_out_linear_backward(grad: Shape, *given: Any, **_: Any) -> int:
    *args, needs = given
    return _slice_out_linear(*args) * (needs[0] + needs[1])


def register_slices() -> None:
    """Tells torch of the formulas of the ops of slices."""
    ops: Any = torch.ops.sparsedrop
    register_flop_formula(ops.slice_out_mlp)(_slice_out_mlp)
    register_flop_formula(ops.slice_out_mlp_backward)(_slice_out_mlp_backward)
    register_flop_formula(ops.slice_out_linear)(_slice_out_linear)
    register_flop_formula(ops.slice_out_linear_backward)(_slice_out_linear_backward)


def register() -> None:
    """Tells torch of the formulas of a product's op, and of a layer's."""
    ops: Any = torch.ops.sparsedrop
    register_flop_formula(ops.masked_mm)(_masked_mm)
    register_flop_formula(ops.dropout_linear)(_forward)
    register_flop_formula(ops.dropout_linear_backward)(_backward)
