"""Converted models that keep units of several hidden values in a row, as data."""

from __future__ import annotations

import copy
import random
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

import sparsedrop
from cases import normal
from gpu_stub import autocast_on_stub

SLICES, ROWS = "sliceout", "row-pattern"
ACTIVATIONS = {
    None: nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
}  # fmt: skip


class Case(NamedTuple):
    """Widths from the input on, the activations of what is hidden, and the rates of that."""

    method: str
    sizes: tuple[int, ...]
    activations: tuple[str | None, ...]
    p: float = 0.5
    bias: bool = True

    def model(self, device="cpu", dtype=None) -> nn.Sequential:
        """Converted. What goes into relu is far from 0, since on either side of that a rounded
        product has another slope: biases are large, of either sign."""
        modules: list[nn.Module] = []
        for (n, m), activation in zip(pairwise(self.sizes), (*self.activations, None), strict=True):
            layer = nn.Linear(n, m, self.bias, device=device, dtype=dtype)
            with torch.no_grad():
                if self.bias:
                    layer.weight *= 0.25
                    layer.bias.copy_(3.0 * normal(m).sign())
            modules += [layer, ACTIVATIONS[activation](), nn.Dropout(self.p)]
        model = nn.Sequential(*modules[:-2])
        sparsedrop.convert(model, method=self.method, min_speedup=0)
        return model


CASES = {
    "slices, relu": Case(SLICES, (40, 256, 192, 10), ("relu", "relu")),
    "slices, gelu": Case(SLICES, (40, 256, 192, 24), ("gelu", "silu")),
    "slices, nothing between": Case(SLICES, (17, 128, 128, 8), (None, "gelu_tanh")),
    "slices, no bias": Case(SLICES, (64, 320, 128, 10), ("silu", "gelu"), 0.3, False),
    "one hidden value of slices": Case(SLICES, (65, 256, 33), ("gelu",)),
    "four hidden values of slices": Case(
        SLICES, (16, 128, 192, 128, 256, 16), ("relu", None, "gelu", "relu")
    ),
    "rows, relu": Case(ROWS, (40, 96, 50, 10), ("relu", "relu")),
    "rows, gelu": Case(ROWS, (40, 96, 50, 24), ("gelu", "silu"), 0.7),
    "rows, nothing between": Case(ROWS, (17, 33, 41, 8), (None, "gelu_tanh")),
    "rows, no bias": Case(ROWS, (64, 100, 30, 10), ("silu", "gelu"), 0.6, False),
    "one hidden value of rows": Case(ROWS, (65, 77, 33), ("gelu",)),
}  # fmt: skip


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    method, hidden = rng.choice([SLICES, ROWS]), rng.randint(1, 4)
    widths = [64 * rng.randint(2, 5) if method == SLICES else rng.randint(9, 150)
              for _ in range(hidden)]  # fmt: skip
    sizes = rng.randint(1, 90), *widths, rng.randint(1, 40)
    bias = rng.random() < 0.8
    names = [name for name in ACTIVATIONS if bias or name != "relu"]
    activations = tuple(rng.choice(names) for _ in range(hidden))
    return Case(method, sizes, activations, rng.choice([0.3, 0.5, 0.7]), bias)


def one_by_one(model: nn.Sequential) -> nn.Sequential:
    """A copy whose modules are called, since somebody watches each of them."""
    other = copy.deepcopy(model)
    for module in other:
        module.register_forward_hook(lambda *_: None)
    return other


def truth_of(model: nn.Sequential, x: torch.Tensor, dtype: torch.dtype, seed: int):
    """In float64, what the model drops from that seed on masked; and the leaves."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    between = [m for m in model if type(m) in (nn.Identity, nn.ReLU, nn.GELU, nn.SiLU)]
    parameters = [p for linear in linears for p in linear.parameters()]
    leaves = [t.detach().to(dtype).double().requires_grad_() for t in (x, *parameters)]
    torch.manual_seed(seed)
    out, rest = leaves[0], iter(leaves[1:])
    for i, linear in enumerate(linears):
        bias = () if linear.bias is None else (None,)
        out = nn.functional.linear(out, next(rest), *(next(rest) for _ in bias))
        if i < len(between):
            method, p = linear.method, linear.p if i == 0 else linear.out_dropout.p
            units = method.draw(linear.out_features, p, x.device)
            scale = method.factor(units, p, linear.out_features)
            out = torch.where(units.mask(x.device), between[i](out) * scale, 0)
    return out, leaves


def run_and_compare(case: Case, precision, device="cpu", seed: int = 3):
    """The chain, and its gradients, against that truth; returns the result and the leaves."""
    x_dtype, dtype, autocast = precision
    product = autocast or x_dtype
    model = case.model(device, dtype)
    x = normal(3, 11, case.sizes[0]).to(device, x_dtype).requires_grad_()
    leaves = [x, *model.parameters()]
    torch.manual_seed(seed)
    with autocast_on_stub(autocast):
        out = model(x)
    upstream = normal(*out.shape).to(device, product)
    grads = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    truth, exact = truth_of(model, x, product, seed)
    of_truth = torch.autograd.grad(truth, exact, upstream.double())
    for own, expected in zip((out, *grads), (truth, *of_truth), strict=True):
        assert own.shape == expected.shape
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(product).eps * expected.norm()
    for grad, leaf in zip(grads, leaves, strict=True):
        assert grad.dtype is leaf.dtype
    # Nothing that was kept has changed.
    again = torch.autograd.grad(out, leaves, upstream)
    assert all(map(torch.equal, grads, again))
    return out, model, x
