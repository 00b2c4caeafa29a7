"""Blocks whose hidden units live in part, as data: slices and row patterns."""

from __future__ import annotations

from typing import NamedTuple

import torch

import row_cases
import slice_cases
from gpu_stub import autocast_on_stub
from sparsedrop import RowPattern, reference
from sparsedrop.nn import RowPatternMLP, SliceOutMLP

NAN = float("nan")


class Case(NamedTuple):
    """A block of a kind, and what it draws."""

    kind: type
    units: int
    kwargs: dict
    drawn: tuple

    def mask(self, device="cpu") -> torch.Tensor:
        return self.draws()[1].mask(device)

    def draws(self):
        """What makes every draw give this one, and it."""
        if self.kind is SliceOutMLP:
            start, width = self.drawn
            chosen = slice_cases.Slice.at(start, width, self.units)
            return slice_cases.drawing(chosen), chosen
        rows = RowPattern(self.units, *self.drawn)
        return row_cases.drawing(*[rows] * 4), rows

    def scale(self, block) -> float:
        if self.kind is SliceOutMLP:
            return slice_cases.scale_of(block, self.units)
        return row_cases.scale_of(block.scale, block.p, RowPattern(self.units, *self.drawn))


CASES = {
    "a slice": Case(SliceOutMLP, 48, {}, (8, 24)),
    "a slice in two parts": Case(SliceOutMLP, 48, {}, (40, 24)),
    "a gated slice in two parts": Case(SliceOutMLP, 48, {"gated": True}, (32, 24)),
    "a gated slice, no bias": Case(SliceOutMLP, 48, {"gated": True, "bias": False}, (0, 24)),
    "a slice of odd places": Case(SliceOutMLP, 27, {"align": 1, "p": 0.6}, (22, 11)),
    "a slice, not scaled": Case(SliceOutMLP, 48, {"normalization": "none"}, (16, 24)),
    "rows": Case(RowPatternMLP, 48, {}, (2, 1)),
    "rows, by the pattern": Case(RowPatternMLP, 27, {"scale": "pattern"}, (4, 2)),
    "gated rows": Case(RowPatternMLP, 27, {"gated": True}, (3, 0)),
    "gated rows, no bias": Case(RowPatternMLP, 40, {"gated": True, "bias": False}, (8, 7)),
    "all rows": Case(RowPatternMLP, 40, {}, (1, 0)),
    # Of one unit relu's slope may round to the other sign, and nothing outweighs that.
    "one row": Case(RowPatternMLP, 5, {"d_out": 1, "activation": "silu"}, (5, 4)),
}
IN_TWO_PARTS = {
    name: case
    for name, case in CASES.items()
    if case.kind is SliceOutMLP and sum(case.drawn) > case.units
}


def block_of(case, dtype, device="cpu", **more):
    """With NaN in all that is dropped."""
    kwargs = {"d_model": 24, "d_hidden": case.units, "d_out": 40, "p": 0.5, **more, **case.kwargs}
    if case.kind is SliceOutMLP:
        kwargs.setdefault("align", 8)
    block = case.kind(**kwargs).to(device, dtype)
    dropped = ~case.mask(device)
    with torch.no_grad():
        for layer in (block.up, block.gate):
            if layer is not None:
                layer.weight[dropped] = NAN
                if layer.bias is not None:
                    layer.bias[dropped] = NAN
        block.down.weight[:, dropped] = NAN
    return block


def run(case, block, x, autocast=None):
    drawing, _ = case.draws()
    with drawing, autocast_on_stub(autocast):
        return block(x)


def truth_of(case, block, x, dtype):
    """The reference's result of operands that were rounded first, and the leaves in the order of
    `leaves_of`."""

    def leaf(t):
        if t is None:
            return None
        rounded = t.detach().to(dtype).double()
        return torch.where(rounded.isnan(), 0, rounded).requires_grad_()

    layers = [[leaf(t) if isinstance(t, torch.Tensor) else t for t in layer]
              for layer in slice_cases.layers_of(block)]  # fmt: skip
    x = leaf(x)
    (up, up_bias, _, gate, gate_bias), (down, down_bias, *_) = layers
    of_gate = [] if gate is None else [gate, gate_bias]
    leaves = [x, up, up_bias, *of_gate, down, down_bias]
    scale = case.scale(block)
    out = reference.feed_forward(x, layers, case.mask(x.device), scale)
    return out, [t for t in leaves if t is not None]


def leaves_of(block, x):
    return [x, *block.parameters()]


def assert_close(own, expected, dtype, activation):
    error, eps = (own.double() - expected).norm(), torch.finfo(dtype).eps
    # relu's slope jumps where its argument rounds to the other sign.
    tolerance = 8 * eps if activation != "relu" else 2 * eps**0.5
    assert error <= tolerance * (1e-3 + expected.norm())
