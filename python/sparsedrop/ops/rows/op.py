"""The registered ops of a block: what a compiled graph calls.

A graph cannot have a draw of the host within it: it would be the same in every step. The draw is an
op whose result the others read when they run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop._torch import keep_apart
from sparsedrop.masks import RowPattern, probabilities
from sparsedrop.ops.registration import Op, register
from sparsedrop.ops.rows import arithmetic
from sparsedrop.ops.rows.arithmetic import Parameters
from sparsedrop.ops.stack.facts import Layer
from sparsedrop.ops.units import Drawn
from sparsedrop.ops.units.in_graph import InGraph, in_graph


def draw_tensor(width: int, p: float, patterns: int) -> Tensor:
    """Period and offset of a new pattern: int64 [2] on the CPU."""
    drawn: Tensor = DRAW(width, p, patterns, device=torch.device("cpu"))
    return drawn


def draw_numbers(
    width: int, p: float, patterns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Period and offset of a new pattern on a device, int64 [] each, while a program is compiled.

    A copy stays out of the CUDA graphs that torch makes, which take no tensor of the CPU.
    """
    period, offset = draw_tensor(width, p, patterns).to(device, non_blocking=True).unbind()
    return period, offset


def _draw(width: int, p: float, patterns: int, *, device: torch.device) -> Tensor:
    rows = RowPattern.draw(width, probabilities(p, patterns))
    return torch.tensor([rows.period, rows.offset], device=device)


def _fake_draw(width: int, p: float, patterns: int, *, device: torch.device) -> Tensor:
    keep_apart(torch.ops.sparsedrop.row_pattern)
    return torch.empty(2, dtype=torch.int64, device=device)


def _read(pattern: Tensor, width: int, scale: float | None) -> tuple[RowPattern, float]:
    period, offset = pattern.tolist()
    return RowPattern(width, period, offset), float(period) if scale is None else scale


def _parameters(given: Sequence[Tensor | None]) -> Parameters:
    up, up_bias, gate, gate_bias, down, down_bias = given
    assert up is not None, "a block has no layer up"
    assert down is not None, "a block has no layer down"
    return Parameters(up, up_bias, gate, gate_bias, down, down_bias)


def _forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    pattern: Tensor,
    activation: str,
    scale: float | None,
) -> list[Tensor]:
    """The result, and buffers whose heads hold what the backward pass needs: a graph has to know
    their size, and period 1 keeps all units."""
    full = _parameters(parameters)
    width = full.up.shape[0]
    rows, factor = _read(pattern, width, scale)
    buffers = [x.new_empty(x.shape[0] * width) for _ in range(1 + (full.gate is not None))]
    found = _block_of(x, full, activation, rows)
    if found is not None:
        at = _heads(buffers, x.shape[0], found.block.facts.ld)
        out, _ = found.forward(_drawn(rows, factor), at)
    else:
        at = _heads(buffers, x.shape[0], rows.count)
        of = arithmetic.cut(full, rows, x.dtype)
        out, _ = arithmetic.forward(x, of, activation or None, factor, at)
    return [out, *buffers]


def _block_of(x: Tensor, full: Parameters, activation: str, rows: RowPattern) -> InGraph | None:
    """What runs it in one call, where what that keeps has room in the buffers: in both passes, or
    in neither."""
    up = Layer(full.up, full.up_bias, activation or None, full.gate, full.gate_bias)
    found = in_graph(x, (up, Layer(full.down, full.down_bias)), rows.count, by_rows=True)
    return None if found is None or found.block.facts.ld > rows.width else found


def _drawn(rows: RowPattern, factor: float) -> Drawn:
    return Drawn((rows.period, rows.offset, rows.count, 0), factor)


def _heads(buffers: Sequence[Tensor], count: int, width: int) -> list[Tensor]:
    return [b[: count * width].view(count, width) for b in buffers]


def _backward(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    buffers: Sequence[Tensor],
    pattern: Tensor,
    activation: str,
    scale: float | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and of the parameters; empty where they are not needed."""
    full = _parameters(parameters)
    rows, factor = _read(pattern, full.up.shape[0], scale)
    found = _block_of(x, full, activation, rows)
    if found is not None:
        kept = _heads(buffers, x.shape[0], found.block.facts.ld)
        order = _order(full)
        made = found.backward(kept, grad, _drawn(rows, factor), [needs[i] for i in order])
        grads = [made[order.index(i)] if i in order else None for i in range(len(needs))]
        if grads[5] is not None and full.down.is_contiguous():  # as its parameter lies
            grads[5] = grads[5].contiguous()
    else:
        saved = _heads(buffers, x.shape[0], rows.count)
        of = arithmetic.cut_weights(full, rows, x.dtype)
        how = activation or None, factor
        grads = arithmetic.backward(grad, x, full, of, saved, rows, how, needs)
    return [grad.new_empty(0) if found is None else found for found in grads]


def _order(full: Parameters) -> list[int]:
    """Of x and the parameters, as a block takes them: a gate's before those of up, or none."""
    return [0, *([] if full.gate is None else [3, 4]), 1, 2, 5, 6]


def _fake_forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    pattern: Tensor,
    activation: str,
    scale: float | None,
) -> list[Tensor]:
    full = _parameters(parameters)
    count = 1 + (full.gate is not None)
    out = x.new_empty((x.shape[0], full.down.shape[0]))
    return [out, *(x.new_empty(x.shape[0] * full.up.shape[0]) for _ in range(count))]


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    buffers: Sequence[Tensor],
    pattern: Tensor,
    activation: str,
    scale: float | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    # x of any layout has a gradient in rows.
    shapes = [x.new_empty(x.shape), *parameters]
    return [
        torch.empty_like(like) if needed and like is not None else grad.new_empty(0)
        for like, needed in zip(shapes, needs, strict=True)
    ]


_ALL = "CompositeExplicitAutograd"
_HOW = "Tensor pattern, str activation, float? scale"
_library = register(
    # An op without operands has no device that would choose among kernels. Of the one that it is
    # given torch learns whose generator a checkpoint has to bring back.
    Op(
        "row_pattern(int width, float p, int patterns, *, Device device) -> Tensor",
        _draw, _fake_draw, True, "BackendSelect", may_be_captured=False,
    ),
    Op(
        f"row_pattern_mlp(Tensor x, Tensor?[] parameters, {_HOW}) -> Tensor[]",
        _forward, _fake_forward, False, _ALL, may_be_captured=False,
    ),
    Op(
        "row_pattern_mlp_backward(Tensor grad, Tensor x, Tensor?[] parameters, Tensor[] buffers, "
        f"{_HOW}, bool[] needs) -> Tensor[]",
        _backward, _fake_backward, False, _ALL, may_be_captured=False,
    ),
)  # fmt: skip
DRAW = torch.ops.sparsedrop.row_pattern.default
FORWARD = torch.ops.sparsedrop.row_pattern_mlp.default
BACKWARD = torch.ops.sparsedrop.row_pattern_mlp_backward.default
