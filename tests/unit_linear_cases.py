"""Linear layers of which a slice is live, as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cases import normal
from sparsedrop import Slice

NAN = float("nan")


class Case(NamedTuple):
    """A slice of the outputs, or of the inputs."""

    on_rows: bool
    start: int
    width: int
    bias: bool = True
    features: tuple[int, int] = (40, 48)

    @property
    def chosen(self) -> Slice:
        return Slice.at(self.start, self.width, self.features[0 if self.on_rows else 1])

    def kwargs(self) -> dict[str, Slice]:
        return {"out_slice" if self.on_rows else "in_slice": self.chosen}


CASES = {
    "outputs": Case(True, 8, 24),
    "outputs in two parts": Case(True, 32, 24),
    "outputs, no bias": Case(True, 24, 24, False),
    "an odd number of outputs": Case(True, 37, 11),
    "inputs": Case(False, 16, 24),
    "inputs in two parts": Case(False, 40, 24),
    "inputs, no bias": Case(False, 0, 24, False),
    "an odd number of inputs": Case(False, 45, 7),
}


def operands_of(case, precision, device="cpu"):
    """x, and a layer with NaN in all that is dropped."""
    x_dtype, dtype, _ = precision
    n, k = case.features
    layer, dropped = nn.Linear(k, n, case.bias).to(device, dtype), ~case.chosen.mask(device)
    with torch.no_grad():
        if not case.on_rows:
            layer.weight[:, dropped] = NAN
        else:
            layer.weight[dropped] = NAN
            if case.bias:
                layer.bias[dropped] = NAN
    x = normal(3, 11, k if case.on_rows else case.width).to(device, x_dtype).requires_grad_()
    return x, layer


def truth_of(case, x, layer, dtype):
    """By plain slicing, and the leaves."""
    leaves = [t.detach().to(dtype).double().requires_grad_() for t in (x, *layer.parameters())]
    x, weight, *bias = leaves
    live = torch.cat([torch.arange(start, stop) for start, stop in case.chosen.pieces])
    if case.on_rows:
        return nn.functional.linear(x, weight[live], *(b[live] for b in bias)), leaves
    return nn.functional.linear(x, weight[:, live], *bias), leaves
