"""Linear layers of which slices are live, as data."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import nn

from cases import normal
from sparsedrop import Slice

NAN = float("nan")


class Case(NamedTuple):
    """A slice of the outputs, of the inputs, or of both: start and width of each."""

    rows: tuple[int, int] | None
    cols: tuple[int, int] | None
    bias: bool = True
    features: tuple[int, int] = (40, 48)

    @property
    def chosen(self) -> list[Slice | None]:
        """Of the outputs, and of the inputs."""
        sides = zip((self.rows, self.cols), self.features, strict=True)
        return [None if own is None else Slice.at(*own, units) for own, units in sides]

    def kwargs(self) -> dict[str, Slice | None]:
        return dict(zip(("out_slice", "in_slice"), self.chosen, strict=True))


CASES = {
    "outputs": Case((8, 24), None),
    "outputs in two parts": Case((32, 24), None),
    "outputs, no bias": Case((24, 24), None, False),
    "an odd number of outputs": Case((37, 11), None),
    "inputs": Case(None, (16, 24)),
    "inputs in two parts": Case(None, (40, 24)),
    "inputs, no bias": Case(None, (0, 24), False),
    "an odd number of inputs": Case(None, (45, 7)),
    "both": Case((8, 24), (16, 16)),
    "both in two parts": Case((32, 24), (40, 24)),
    "both, no bias": Case((0, 16), (40, 24), False),
    "odd numbers of both": Case((37, 11), (45, 7)),
    "an odd number of outputs and a slice": Case((37, 11), (0, 8)),
}


def random_layer(seed, side):
    """What lives of the outputs, and of the inputs, as `side(rng, units)` draws it, or None;
    whether there is a bias; and how many of either there are."""
    rng = random.Random(seed)
    features = rng.randint(1, 70), rng.randint(1, 90)
    rows, cols = (side(rng, units) for units in features)
    which = rng.choice(["rows", "cols", "both", "both"])
    return (
        rows if which != "cols" else None,
        cols if which != "rows" else None,
        rng.random() < 0.7,
        features,
    )


def random_case(seed):
    """Any slices of layers of any extents."""
    return Case(*random_layer(seed, lambda rng, n: (rng.randrange(n), rng.randint(1, n))))


ON_ONE_SIDE = {name: case for name, case in CASES.items() if None in (case.rows, case.cols)}


def operands_of(case, precision, device="cpu"):
    """x, and a layer with NaN in all that is dropped."""
    x_dtype, dtype, _ = precision
    n, k = case.features
    layer = nn.Linear(k, n, case.bias).to(device, dtype)
    of_rows, of_cols = case.chosen
    with torch.no_grad():
        if of_cols is not None:
            layer.weight[:, ~of_cols.mask(device)] = NAN
        if of_rows is not None:
            layer.weight[~of_rows.mask(device)] = NAN
            if case.bias:
                layer.bias[~of_rows.mask(device)] = NAN
    inputs = k if of_cols is None else of_cols.width
    x = normal(3, 11, inputs).to(device, x_dtype).requires_grad_()
    return x, layer


def truth_of(case, x, layer, dtype):
    """By plain slicing, and the leaves."""
    leaves = [t.detach().to(dtype).double().requires_grad_() for t in (x, *layer.parameters())]
    x, weight, *bias = leaves
    rows, cols = (None if own is None else _units(own) for own in case.chosen)
    if cols is not None:
        weight = weight[:, cols]
    if rows is not None:
        weight, bias = weight[rows], [b[rows] for b in bias]
    return nn.functional.linear(x, weight, *bias), leaves


def _units(chosen):
    return torch.cat([torch.arange(start, stop) for start, stop in chosen.pieces])
