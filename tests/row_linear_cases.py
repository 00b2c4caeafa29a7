"""Linear layers whose outputs, inputs or both a row pattern keeps, as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cases import normal
from sparsedrop import RowPattern
from sparsedrop.ops import rows
from unit_linear_cases import random_layer

NAN = float("nan")


class Case(NamedTuple):
    """Period and offset of what is made, and of what is read; None: all of it."""

    make: tuple[int, int] | None
    read: tuple[int, int] | None
    bias: bool = True
    features: tuple[int, int] = (48, 80)

    @property
    def patterns(self) -> list[RowPattern | None]:
        """Of the outputs, and of the inputs."""
        sides = zip((self.make, self.read), self.features, strict=True)
        return [None if own is None else RowPattern(units, *own) for own, units in sides]


CASES = {
    "outputs": Case((2, 1), None),
    "an odd number of outputs": Case((5, 3), None),
    "inputs": Case(None, (2, 0)),
    "an odd number of inputs": Case(None, (3, 2)),
    "both": Case((2, 1), (5, 4)),
    "odd numbers of both": Case((5, 0), (7, 3)),
    "odd numbers of both, no bias": Case((7, 6), (3, 0), False),
    "all outputs": Case((1, 0), (8, 7)),
}


def _side(rng, units):
    period = rng.randint(1, 8)
    return period, rng.randrange(min(period, units))


def random_case(seed):
    """Any pattern that keeps something, of any width."""
    return Case(*random_layer(seed, _side))


def run_and_compare(case, precision, device="cpu"):
    """The layer, and its gradients, against plain indexing in float64; returns the result."""
    x_dtype, dtype, autocast = precision
    product, alpha = autocast or x_dtype, 2.0
    make, read = case.patterns
    n, k = case.features
    layer = nn.Linear(k, n, case.bias).to(device, dtype)
    with torch.no_grad():
        if read is not None:
            layer.weight[:, ~read.mask(device)] = NAN
        if make is not None:
            for parameter in layer.parameters():
                parameter[~make.mask(device)] = NAN
    inputs = k if read is None else read.count
    # Of the dtype of products, as whoever calls it has it.
    x = normal(3, 11, inputs).to(device, product).requires_grad_()
    leaves = [x, *layer.parameters()]
    out = rows.linear(x, layer.weight, layer.bias, read, make, alpha)
    upstream = normal(*out.shape).to(device, product)
    grads = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    exact_x, weight, *bias = exact = [
        t.detach().to(product).double().requires_grad_() for t in leaves
    ]
    if read is not None:
        weight = weight[:, read.kept]
    if make is not None:
        weight, bias = weight[make.kept], [b[make.kept] for b in bias]
    truth = alpha * nn.functional.linear(exact_x, weight)
    truth = truth if not bias else truth + bias[0]
    of_truth = torch.autograd.grad(truth, exact, upstream.double())
    for own, expected in zip((out, *grads), (truth, *of_truth), strict=True):
        assert own.shape == expected.shape
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(product).eps * expected.norm()
        assert not own[expected == 0].any()
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]
    # Nothing that was kept has changed.
    again = torch.autograd.grad(out, leaves, upstream)
    assert all(map(torch.equal, grads, again))
    return out
