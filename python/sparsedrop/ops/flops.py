"""What torch's FlopCounterMode counts: the operations on live parts that are to be expected.

Of a mask whose live share the host does not know half is expected, as in the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

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
    needs = others[-1]
    return round(2 * prod(grad) * features * (1.0 - p)) * (needs[0] + needs[1])


def register() -> None:
    """Tells torch of the formulas of the registered ops."""
    ops: Any = torch.ops.sparsedrop
    register_flop_formula(ops.masked_mm)(_masked_mm)
    register_flop_formula(ops.dropout_linear)(_forward)
    register_flop_formula(ops.dropout_linear_backward)(_backward)
