"""Layers of a converted model between which whole units are dropped: SliceOut's slices, or the row
patterns of Approximate Random Dropout.

The layers before a hidden value make its live units alone, compact, and the one behind it reads
those; the activation between them runs on what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsedrop import operands
from sparsedrop.conversion.layers import Converted, Handover
from sparsedrop.masks import RowPattern, Slice, check_p, check_sliced_p, probabilities
from sparsedrop.masks import scale as scale_of
from sparsedrop.ops.rows import Rows
from sparsedrop.ops.rows import drop_units as drop_rows
from sparsedrop.ops.rows import linear as linear_of_rows
from sparsedrop.ops.rows.linear import link_of as link_of_rows
from sparsedrop.ops.slices import Choice
from sparsedrop.ops.slices.linear import link_of as link_of_slices
from sparsedrop.ops.slices.numbers import draw_numbers
from sparsedrop.ops.slices.products import Cut
from sparsedrop.ops.units.chain import Link
from sparsedrop.slice_out.channels import linear_of
from sparsedrop.slice_out.feed_forward import drop_units as drop_outside
from sparsedrop.slice_out.layers import dtype_of

ALIGN, PATTERNS = 64, 8
"""The defaults of nn.SliceOutMLP and nn.RowPatternMLP."""


class Method(Protocol):
    """How units are drawn, and used.

    Attributes:
        word: what `convert` calls it.
        is_steady: whether every step keeps as many units, which a compiled program has to know.
    """

    word: str
    is_steady: bool

    def check(self, p: float) -> float:
        """p as a float; ValueError where units cannot be dropped so often."""

    def kept(self, width: int, p: float) -> float:
        """The share of the units that is kept, on average."""

    def draw(self, width: int, p: float, device: torch.device) -> Any:
        """Those that live in a step, from torch's default CPU generator. In a compiled program,
        which draws when it runs, their numbers on the device, int64 [kept]."""

    def factor(self, read: Any, p: float, width: int) -> float:
        """What the product of a layer that reads these units, of so many, is multiplied by."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, read: Any, make: Any, alpha: float
    ) -> Tensor:
        """A layer that reads these units alone, times alpha, and makes those alone; None: all."""

    def link(
        self,
        weight: Tensor,
        bias: Tensor | None,
        read: Any,
        make: Any,
        alpha: float,
        activation: str | None,
    ) -> Link | None:
        """The same as a link of a chain, with what is behind it; None where it is none."""

    def drop(self, hidden: Tensor, p: float) -> Tensor:
        """All units [..., width], those of a new draw scaled and the others 0."""


class _Slices:
    """See `nn.SliceOutMLP`."""

    word, is_steady = "sliceout", True

    def check(self, p: float) -> float:
        return check_sliced_p(p)

    def kept(self, width: int, p: float) -> float:
        return _choice(width, p).width / width

    def draw(self, width: int, p: float, device: torch.device) -> Slice | Tensor:
        choice = _choice(width, p)
        return draw_numbers(choice, device) if torch.compiler.is_compiling() else choice.draw()

    def factor(self, read: Slice | Tensor | None, p: float, width: int) -> float:
        return 1.0 if read is None else width / _choice(width, p).width

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        read: Slice | Tensor | None,
        make: Slice | Tensor | None,
        alpha: float,
    ) -> Tensor:
        return linear_of(x, weight, bias, read, make, alpha)

    def link(
        self,
        weight: Tensor,
        bias: Tensor | None,
        read: Slice | None,
        make: Slice | None,
        alpha: float,
        activation: str | None,
    ) -> Link | None:
        pieces = (None if own is None else own.pieces for own in (make, read))
        return link_of_slices(weight, bias, Cut(*pieces), alpha, activation)

    def drop(self, hidden: Tensor, p: float) -> Tensor:
        return drop_outside(hidden, _choice(hidden.shape[-1], p))


def _choice(width: int, p: float) -> Choice:
    return Choice(width, p, ALIGN, "cyclic", "constant")


def check_pattern(p: float) -> float:
    """p as a float; ValueError where the periods do not give it."""
    p = check_p(p)
    probabilities(p, PATTERNS)
    return p


@dataclass(frozen=True)
class _Patterns:
    """See `nn.RowPatternMLP`; scaled by the rate, "global", or by the "pattern"."""

    scale: str = "global"
    word, is_steady = "row-pattern", False

    def check(self, p: float) -> float:
        return check_pattern(p)

    def kept(self, width: int, p: float) -> float:
        return 1.0 - p

    def draw(self, width: int, p: float, device: torch.device) -> RowPattern:
        return RowPattern.draw(width, probabilities(p, PATTERNS))

    def factor(self, read: RowPattern | None, p: float, width: int) -> float:
        if read is None:
            return 1.0
        return float(read.period) if self.scale == "pattern" else scale_of(p)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        read: RowPattern | None,
        make: RowPattern | None,
        alpha: float,
    ) -> Tensor:
        x = operands.cast(x, dtype_of(x, weight, bias))
        return linear_of_rows(x, weight, bias, read, make, alpha)

    def link(
        self,
        weight: Tensor,
        bias: Tensor | None,
        read: RowPattern | None,
        make: RowPattern | None,
        alpha: float,
        activation: str | None,
    ) -> Link | None:
        return link_of_rows(weight, bias, (read, make), alpha, activation)

    def drop(self, hidden: Tensor, p: float) -> Tensor:
        return drop_rows(
            hidden, Rows(p, PATTERNS, None if self.scale == "pattern" else scale_of(p))
        )


METHODS: dict[str, Method] = {method.word: method for method in (_Slices(), _Patterns())}
"""By their words, with the scale of the classes."""


def method_of(word: str, scale: str) -> Method:
    """That of `METHODS`, patterns with this scale."""
    return _Patterns(scale) if word == _Patterns.word else METHODS[word]


@dataclass
class UnitSide:
    """The input or the output of a layer that is a hidden value of which units are dropped.

    Of the layers that make it the one that `draws` draws the units that live.
    """

    method: Method
    handover: Handover | None
    draws: bool = True


class UnitLinear(Converted, nn.Linear):
    """See `Converted`: an nn.Linear before or behind hidden values of which units are dropped.

    Under torch.compile a draw may not decide what is compiled. Of a slice, which always keeps as
    many units, parameters are gathered when the program runs. A row pattern keeps more or fewer:
    there the layers before a hidden value make all of it, and the layer behind masks it.
    """

    incoming: UnitSide | None
    outgoing: UnitSide | None

    @property
    def method(self) -> Method:
        """How units are drawn, of its input or its output."""
        side = self.incoming or self.outgoing
        assert side is not None
        return side.method

    def check_rate(self, p: float) -> float:
        """p as a float; ValueError where units cannot be dropped so often."""
        return self.method.check(p)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features], or its live units alone -> [..., out_features], or likewise."""
        p, out_p = self._applied()
        read = self._read(x) if self.incoming is not None and p > 0.0 else None
        if self.incoming is not None and p > 0.0 and read is None:
            x = self.method.drop(x, p)
        make = self._make(x, out_p) if self.outgoing is not None and out_p > 0.0 else None
        weight = self.weight  # once: it may be made of others
        if read is None and make is None:
            return nn.functional.linear(x, weight, self.bias)
        if not self.fits(weight):
            raise ValueError(
                f"weight is {list(weight.shape)}, but units are dropped of a layer with "
                f"{self.in_features} inputs and {self.out_features} outputs: convert a model when "
                "its weights have their shapes"
            )
        alpha = self.method.factor(read, p, self.in_features)
        return self.method.linear(x, weight, self.bias, read, make, alpha)

    def fits(self, weight: Tensor) -> bool:
        """Whether its weight is as large as the layer says."""
        return weight.shape == (self.out_features, self.in_features)

    def _read(self, x: Tensor) -> Any:
        """The units that x has; None: it has all."""
        assert self.incoming is not None
        assert self.incoming.handover is not None
        if torch.compiler.is_compiling() and not self.method.is_steady:
            return None
        units = self.incoming.handover.masks.pop(x.device, None)
        if units is None and x.shape[-1] != self.in_features:
            raise RuntimeError(BEFORE_IT)
        return units

    def _make(self, x: Tensor, p: float) -> Any:
        """The units that the result is to have; None: all."""
        assert self.outgoing is not None
        assert self.outgoing.handover is not None
        if torch.compiler.is_compiling() and not self.method.is_steady:
            return None
        masks = self.outgoing.handover.masks
        if self.outgoing.draws:
            drawn = self.method.draw(self.out_features, p, x.device)
            self.outgoing.handover.give(x.device, drawn)
        if x.device not in masks:
            raise RuntimeError(
                "the layer that draws the units of this hidden value has not run before this one, "
                "as it did when the model was converted: revert the model, and convert it anew"
            )
        return masks[x.device]

    def extra_repr(self) -> str:
        sides = ("input", self.incoming), ("output", self.outgoing)
        dropped = [f"{name}: {side.method.word}" for name, side in sides if side is not None]
        return ", ".join([nn.Linear.extra_repr(self), *dropped])


BEFORE_IT = (
    "a converted layer got the live units of a hidden value without knowing which: checkpoint the "
    "whole block, from the layer before the activation to the one behind the dropout"
)
