"""Converted layers one behind the other, between which whole units are dropped: one autograd node
runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import operands
from sparsedrop._torch import is_transformed, is_watched
from sparsedrop.conversion.units import Method, UnitLinear
from sparsedrop.ops import ACTIVATIONS
from sparsedrop.ops.units.chain import run_chain
from sparsedrop.slice_out.layers import dtype_of


class UnitChain(NamedTuple):
    """Layers with a hidden value between each and the next, the activations behind them, and the
    position behind the last."""

    layers: tuple[UnitLinear, ...]
    activations: tuple[str | None, ...]
    stop: int

    def run(self, x: Tensor) -> Tensor | None:
        """The result for x [..., features]; None where the modules had better run one by one. Units
        are drawn as these would draw them."""
        if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not x.is_cuda:
            return None
        rates = self._rates()
        if rates is None or is_transformed():
            return None
        # Read once: a weight may be made of others.
        parameters = [(layer.weight, layer.bias) for layer in self.layers]
        if is_watched(x, *(t for pair in parameters for t in pair if t is not None)):
            return None
        if not all(layer.fits(own[0]) for layer, own in zip(self.layers, parameters, strict=True)):
            return None
        method = self.layers[0].method
        drawn = [
            method.draw(layer.out_features, p, x.device)
            for layer, p in zip(self.layers, rates, strict=False)
        ]
        steps = [
            _Step(weight, bias, read, make, method.factor(read, p, layer.in_features), activation)
            for (weight, bias), read, make, p, layer, activation in zip(
                parameters, [None, *drawn], [*drawn, None], [0.0, *rates], self.layers,
                [*self.activations[:-1], None], strict=True,
            )
        ]  # fmt: skip
        return ACTIVATIONS[self.activations[-1]](_run(method, x, steps))

    def _rates(self) -> list[float] | None:
        """Those of the hidden values; None where one drops nothing, or not as it was converted."""
        applied = [layer._applied() for layer in self.layers]
        rates = [out_p for _, out_p in applied[:-1]]
        method = self.layers[0].method
        is_one = all(layer.method == method for layer in self.layers)
        agrees = applied[0][0] == applied[-1][1] == 0.0
        agrees = agrees and rates == [p for p, _ in applied[1:]]
        return rates if is_one and agrees and all(rates) else None


class _Step(NamedTuple):
    """A layer: its parameters; what it reads and makes of hidden values, None: all; its factor; and
    the activation in front of the next."""

    weight: Tensor
    bias: Tensor | None
    read: Any
    make: Any
    alpha: float
    activation: str | None


def _run(method: Method, x: Tensor, steps: Sequence[_Step]) -> Tensor:
    """The layers by one node; where a GPU does not run them so, one by one."""
    x = operands.cast(x, dtype_of(x, steps[0].weight, steps[0].bias))
    found = run_chain(x, [method.link(*step) for step in steps])
    if found is not None:
        return found
    for weight, bias, read, make, alpha, activation in steps:
        x = ACTIVATIONS[activation](method.linear(x, weight, bias, read, make, alpha))
    return x
