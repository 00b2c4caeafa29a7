"""The projections of attention on a slice of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop import operands
from sparsedrop.masks import Slice
from sparsedrop.ops.slices.choice import Choice
from sparsedrop.ops.slices.compiled import draw_start, linear_compiled
from sparsedrop.ops.slices.products import Cut
from sparsedrop.ops.slices.views import live
from sparsedrop.slice_out.layers import check_lazy, dtype_of, run_linear


class LiveHeads:
    """One draw of a slice: projections to it and from it.

    A compiled program draws when it runs, so that its slice is a start on the CPU; else it is a
    `Slice`.
    """

    def __init__(self, choice: Choice, lazy: bool) -> None:
        self._choice, self._lazy = choice, lazy
        self._drawn: Slice | None = None
        if torch.compiler.is_compiling():
            check_lazy(lazy)
            self._start = draw_start(choice)
        else:
            self._drawn = choice.draw()

    def project_to(self, x: Tensor, linear: nn.Linear, features: int) -> Tensor:
        """x [..., d] -> [..., w * features], of a layer with so many features a unit."""
        return self._project(x, linear.weight, linear.bias, features, True, 1.0)

    def project_to_each(
        self, x: Tensor, linear: nn.Linear, features: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """x [..., d] -> [..., w * features] of each, of a layer that makes all of them, one behind
        the other: views of one result."""
        units, starts = self._choice.units, [0]
        for each in features:
            starts.append(starts[-1] + units * each)
        if self._drawn is None:
            return tuple(
                self._project(x, *_rows_of(linear, start, units * each), each, True, 1.0)
                for start, each in zip(starts, features, strict=False)
            )
        pieces = tuple(
            (start + first, start + stop)
            for start, each in zip(starts, features, strict=False)
            for first, stop in self._drawn.times(each).pieces
        )
        out = run_linear(x, linear.weight, linear.bias, Cut(pieces), 1.0, self._lazy)
        return out.split([self._drawn.width * each for each in features], -1)

    def project_from(self, x: Tensor, linear: nn.Linear, features: int) -> Tensor:
        """x [..., w * features] -> [..., d], with live units scaled."""
        choice = self._choice
        factors = choice.factors(None, x.dtype, x.device)
        if factors is not None:
            own = self.part(factors.repeat_interleave(features), 0, features)
            x = x * own
        return self._project(x, linear.weight, linear.bias, features, False, choice.alpha)

    def part(self, tensor: Tensor, dim: int, features: int) -> Tensor:
        """What belongs to live units along one extent, of so many features each."""
        if self._drawn is not None:
            return live(tensor, dim, self._drawn.times(features).pieces)
        units, kept = self._choice.units, self._choice.width
        index = torch.arange(kept * features, device=tensor.device) + self._start * features
        return tensor.index_select(dim, index.remainder(units * features))

    def _project(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        features: int,
        on_rows: bool,
        alpha: float,
    ) -> Tensor:
        if self._drawn is not None:
            pieces = self._drawn.times(features).pieces
            cut = Cut(pieces) if on_rows else Cut(None, pieces)
            return run_linear(x, weight, bias, cut, alpha, self._lazy)
        x = operands.cast(x, dtype_of(x, weight, bias))
        shape = self._choice.units, self._choice.width, features
        return linear_compiled(x, weight, bias, self._start, on_rows, shape, alpha)


def _rows_of(linear: nn.Linear, start: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Of the weight and of the bias."""
    bias = None if linear.bias is None else linear.bias.narrow(0, start, count)
    return linear.weight.narrow(0, start, count), bias
