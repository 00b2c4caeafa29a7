"""What the tests of SliceOut share: each slice in turn, in the place of a draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sparsedrop import Slice, reference
from sparsedrop.masks.slices import slices


@contextmanager
def drawing(chosen: Slice) -> Iterator[None]:
    """Every draw gives this slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slice, "draw", classmethod(lambda *_, **__: chosen))
        yield


def every_slice(module, units: int) -> tuple[Slice, ...]:
    """What a module of so many units draws from."""
    return slices(units, module.p, align=module.align, starts=module.starts)


def scale_of(module, units: int, dtype: torch.dtype = torch.float64):
    """By the definition: of the width, or of how often a unit is kept."""
    every = every_slice(module, units)
    if module.normalization == "probabilistic":
        device = next(module.parameters()).device
        return 1.0 / torch.stack([each.mask(device) for each in every]).to(dtype).mean(0)
    return every[0].scale if module.normalization == "constant" else 1.0


def layers_of(mlp):
    """Of a feed-forward block, as the reference takes them."""
    gate = (None, None) if mlp.gate is None else (mlp.gate.weight, mlp.gate.bias)
    up = mlp.up.weight, mlp.up.bias, mlp.activation, *gate
    return up, (mlp.down.weight, mlp.down.bias, None, None, None)


def masked(mlp, x, chosen: Slice):
    """The block under a slice, masked and dense."""
    scale = scale_of(mlp, mlp.up.out_features, x.dtype)
    return reference.feed_forward(x, layers_of(mlp), chosen.mask(x.device), scale)


def live_of(x, own, dim):
    """What a slice keeps along that extent, in its order; None: all of it."""
    if own is None:
        return x
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in own.pieces], dim)


def value_and_grads(function, x, parameters, upstream):
    """The result, and the gradients of x and of the parameters."""
    inputs = [x.detach().requires_grad_(), *parameters]
    out = function(inputs[0])
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def assert_equal_to(ours, exact, tolerance: float = 1e-12):
    for own, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(own, truth, rtol=tolerance, atol=tolerance)
