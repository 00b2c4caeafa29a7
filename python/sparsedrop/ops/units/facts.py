"""A feed-forward block, its live hidden units, and all that decides how a GPU runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.ops.stack.facts import Layer

Layers = tuple[Layer, Layer]
"""Up, with a gate or without, and down."""

VECTOR = 8
"""Elements of 16 bytes. Rows of compact matrices are whole vectors: what a GPU reads fast."""

WRAPPED_BYTES = 2**25
"""A weight up to that size is copied where live units wrap around its end, and its gradient is made
of live units first. Else there is a product for each of the two parts: twice as many launches, of
extents that differ from step to step. For a larger weight the host's time does not matter, and the
memory of the copies does. The size is chosen, and not measured."""

COUNTED = 2**31
"""What kernels count elements of a matrix to."""


def whole_vectors(count: int) -> int:
    """So many elements, or as few more as make whole vectors."""
    return -(-count // VECTOR) * VECTOR


Units = tuple[int, int, int, int]
"""Of the live units so many, the third number, are every first-th from the second on; the others
likewise from the fourth on: the numbers of `_C`'s LiveUnits behind its count."""


class Drawn(NamedTuple):
    """A draw: which units live, and what is done with them."""

    units: Units
    alpha: float
    """What live units are multiplied by."""
    plain: Callable[[Tensor, Layers], Tensor] | None = None
    """The block for x [..., d_model] in differentiable operations; None where nobody asks for
    second derivatives."""
    keep: Callable[[Sequence[Tensor | None], list[Tensor | None]], None] | None = None
    """Takes compact gradients: those of the parameters that have them, which it replaces by None
    among all gradients, x's first. None: gradients are whole."""


NO_SECOND = 'gradients="lazy" has no second derivatives: use gradients="dense"'

Operand = tuple[torch.Size, torch.dtype]
"""A parameter without its data."""


class Facts(NamedTuple):
    """A block's operands without their data: on one GPU, and contiguous but for a turned weight."""

    device: int
    x_shape: torch.Size
    x_dtype: torch.dtype
    # Of the products: that of autocast, where it is on and casts float32 operands to it.
    dtype: torch.dtype
    casts: bool
    activation: str | None
    # Live units.
    kept: int
    # Whether they wrap around the end, and so are two parts.
    wraps: bool
    # Whether the memory of down's weight is [units, d_out].
    down_turned: bool
    # In the order of `stack.facts.parameters_of`.
    parameters: tuple[Operand | None, ...]

    @property
    def is_gated(self) -> bool:
        return len(self.parameters) == 6

    @property
    def branches(self) -> int:
        """Products with x: of the gate first, if there is one, and of up."""
        return len(self.parameters) // 2 - 1

    @property
    def rows(self) -> int:
        return self.x_shape.numel() // self.d_model

    @property
    def d_model(self) -> int:
        return self.x_shape[-1]

    @property
    def units(self) -> int:
        return self._weight(-2)[1]

    @property
    def d_out(self) -> int:
        return self._weight(-2)[0]

    @property
    def ld(self) -> int:
        """Of compact matrices with a column for each live unit."""
        return whole_vectors(self.kept)

    @property
    def param_dtype(self) -> torch.dtype:
        weight = self.parameters[-2]
        assert weight is not None
        return weight[1]

    @property
    def rounds_x(self) -> bool:
        return self.x_dtype is not self.dtype

    @property
    def rounds_bias(self) -> bool:
        """Whether that of the product with down's weight is rounded."""
        return self.has_bias(self.branches) and self.param_dtype is not self.dtype

    @property
    def gathers(self) -> bool:
        """Whether products are with copies of what lives of the weights."""
        return self.param_dtype is not self.dtype or self.compacts

    @property
    def compacts(self) -> bool:
        """Whether live units are worked on in compact copies, and so are the weights' gradients."""
        return self.joins or self.pads

    @property
    def pads(self) -> bool:
        """Whether these are padded to whole vectors: cuBLAS's fast kernels take no other extents.
        Live columns are left as they are, since slices of so few neighbours are rare. The padding
        of a row of x that has an infinite value is NaN, and so is then that row of the result."""
        return self.down_turned and self.kept != self.ld

    @property
    def width(self) -> int:
        """Of compact copies."""
        return self.ld if self.pads else self.kept

    @property
    def joins(self) -> bool:
        """Whether two parts are worked on as one."""
        features = max(self.d_model, self.d_out)
        return self.wraps and features * self.units * self.param_dtype.itemsize <= WRAPPED_BYTES

    @property
    def keeps_input(self) -> bool:
        """Whether the backward pass needs what went into the activation; that of relu does with the
        result."""
        return self.is_gated or self.activation not in (None, "relu")

    def has_bias(self, branch: int) -> bool:
        """Of the products with x, and behind them of the one with down's weight."""
        return self.parameters[2 * branch + 1] is not None

    def _weight(self, index: int) -> torch.Size:
        weight = self.parameters[index]
        assert weight is not None
        return weight[0]

    def are_legal(self) -> bool:
        """Whether there is a block of these operands that kernels and cuBLAS run."""
        if self.dtype not in (torch.bfloat16, torch.float16) or len(self.x_shape) == 0:
            return False
        given = (self.dtype, torch.float32) if self.casts else (self.dtype,)
        dtypes = {operand[1] for operand in self.parameters if operand is not None}
        if len(dtypes) != 1 or not dtypes | {self.x_dtype} <= set(given):
            return False
        if not self._fit() or 0 in self.x_shape or self.kept < 1:
            return False
        features = max(self.d_model, self.units, self.d_out)
        elements = max(self.x_shape.numel(), self.d_model * self.units, self.d_out * self.units)
        extent = min(select.MAX_EXTENT, _native.C.MAX_SUM_COLUMNS)
        return max(self.rows, features) <= extent and elements < COUNTED

    def _fit(self) -> bool:
        """Whether each layer takes what the one before it makes."""
        if any(len(self._weight(i)) != 2 for i in range(0, len(self.parameters), 2)):
            return False
        up = (self.units, self.d_model)
        shapes = [*(up for _ in range(self.branches)), (self.d_out, self.units)]
        fits = all(tuple(self._weight(2 * i)) == shape for i, shape in enumerate(shapes))
        biases = zip(self.parameters[1::2], shapes, strict=True)
        return fits and all(b is None or tuple(b[0]) == shape[:1] for b, shape in biases)


def facts_of(
    x: Tensor,
    of_products: tuple[torch.dtype, bool],
    activation: str | None,
    units: tuple[int, bool, bool],
    parameters: Sequence[Tensor | None],
) -> tuple[Any, ...]:
    """`Facts`, in a plain tuple: it is looked up for every call. `units`: how many are kept,
    whether they wrap, and whether down's weight is turned."""
    operands = tuple([None if p is None else (p.shape, p.dtype) for p in parameters])
    return x.get_device(), x.shape, x.dtype, *of_products, activation, *units, operands
