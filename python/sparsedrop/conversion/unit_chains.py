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
from sparsedrop.ops.units.chain import Link, run_chain, ways_of
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
        rates = self._rates()
        if rates is None or torch.compiler.is_compiling() or not isinstance(x, Tensor):
            return None
        parameters = [(layer.weight, layer.bias) for layer in self.layers]
        given = [t for pair in parameters for t in pair if t is not None]
        if not x.is_cuda or is_transformed() or is_watched(x, *given):
            return None
        method = self.layers[0].method
        drawn = [
            method.draw(layer.out_features, p, x.device)
            for layer, p in zip(self.layers, rates, strict=False)
        ]
        steps = [
            _Step(read, make, method.factor(read, p, layer.in_features), activation)
            for read, make, p, layer, activation in zip(
                [None, *drawn], [*drawn, None], [0.0, *rates], self.layers,
                [*self.activations[:-1], None], strict=True,
            )
        ]  # fmt: skip
        return ACTIVATIONS[self.activations[-1]](_run(method, x, parameters, steps))

    def _rates(self) -> list[float] | None:
        """Those of the hidden values; None where one drops nothing, or not as it was converted."""
        applied = [layer._applied() for layer in self.layers]
        rates = [out_p for _, out_p in applied[:-1]]
        method = self.layers[0].method
        is_one = all(layer.method == method and layer.fits() for layer in self.layers)
        agrees = applied[0][0] == applied[-1][1] == 0.0
        agrees = agrees and rates == [p for p, _ in applied[1:]]
        return rates if is_one and agrees and all(rates) else None


class _Step(NamedTuple):
    """A layer: what it reads and makes of hidden values, None: all; its factor; and the activation
    in front of the next."""

    read: Any
    make: Any
    alpha: float
    activation: str | None


def _run(
    method: Method,
    x: Tensor,
    parameters: Sequence[tuple[Tensor, Tensor | None]],
    steps: Sequence[_Step],
) -> Tensor:
    """The layers by one node; where a GPU does not run them so, one by one."""

    def plain(x: Tensor, *parameters: Tensor | None) -> Tensor:
        for step, weight, bias in zip(steps, parameters[::2], parameters[1::2], strict=True):
            assert weight is not None
            made = method.linear(x, weight, bias, step.read, step.make, step.alpha)
            x = ACTIVATIONS[step.activation](made)
        return x

    x = operands.cast(x, dtype_of(x, *parameters[0])).contiguous()
    links = list[Link]()
    for step, own in zip(steps, parameters, strict=True):
        link = method.link(own, *step)
        if link is not None:
            links.append(link)
    ways = ways_of(x, links) if len(links) == len(steps) else None
    if ways is None:
        return plain(x, *(tensor for own in parameters for tensor in own))
    return run_chain(x, links, ways, plain)
