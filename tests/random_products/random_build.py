"""Operands and masks of a random case: every layout, and poison in all dropped blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from random_cases import Case, Operand
from torch import Tensor

from sparsedrop import BlockMask

_Values = Callable[..., Tensor]


class Matrix(NamedTuple):
    """`given` to the library, poisoned and laid out; `clean` with zeros in dropped blocks.

    `live` is bool of the matrix's shape, expanded here and not by the library; None: no mask.
    """

    given: Tensor
    clean: Tensor
    mask: BlockMask | None
    live: Tensor | None

    def t(self) -> Matrix:
        mask, live = self.mask, self.live
        return Matrix(
            self.given.t(),
            self.clean.t(),
            None if mask is None else mask.T,
            None if live is None else live.t(),
        )


class Problem(NamedTuple):
    """a [m, k], b as it is given, bias [n] and the upstream gradient [m, n] under the out mask."""

    a: Matrix
    b: Matrix
    bias: Tensor | None
    upstream: Matrix


def build(case: Case, device: torch.device) -> Problem:
    """All from the case's seed, on the device and without waiting for it."""
    generator = torch.Generator(device).manual_seed(case.seed)
    dtype = getattr(torch, case.dtype)
    drawn = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape: int, exponent: int = 0) -> Tensor:
        if case.values == "signs":
            return torch.randint(-1, 2, shape, generator=generator, device=device).to(dtype)
        normal = torch.randn(shape, generator=generator, device=device, dtype=drawn)
        return (normal * 2.0**exponent if exponent else normal).to(dtype)

    poison = float(case.poison)
    b_shape = (case.n, case.k) if case.b_turned else (case.k, case.n)
    if case.function == "dropout_linear":
        a_mask = dropout_mask(case, device)
        a = _matrix(case.a, (case.m, case.k), values, poison, (a_mask, _spread(a_mask)))
    else:
        a = _masked(case.a, (case.m, case.k), values, poison, generator)
    b = _masked(case.b, b_shape, values, poison, generator)
    upstream = _masked(case.out, (case.m, case.n), values, poison, generator)
    bias = None
    if case.bias is not None:
        count = 1 if case.bias == "expanded" else case.n
        bias = LAYOUTS[case.bias](values(1, count))[0].expand(case.n)
    return Problem(a, b, bias, upstream)


def dropout_mask(case: Case, device: torch.device) -> BlockMask:
    """The mask that dropout_linear draws from the case's seed."""
    torch.manual_seed(case.seed)
    sampler, p = getattr(BlockMask, case.a.drawn), 1.0 - case.a.density
    return sampler((case.m, case.k), p, block_shape=case.a.block, device=device)


def _masked(
    operand: Operand,
    shape: tuple[int, int],
    values: _Values,
    poison: float,
    generator: torch.Generator,
) -> Matrix:
    if operand.block is None:
        return _matrix(operand, shape, values, poison, (None, None))
    how = {"block_shape": operand.block}
    if operand.drawn != "grid":
        how |= {"device": generator.device, "generator": generator}
        mask = getattr(BlockMask, operand.drawn)(shape, 1.0 - operand.density, **how)
        return _matrix(operand, shape, values, poison, (mask, _spread(mask)))
    grid = [-(-extent // block) for extent, block in zip(shape, operand.block, strict=True)]
    live = torch.rand(grid, generator=generator, device=generator.device) < operand.density
    mask = BlockMask.from_live(live, shape, **how)
    return _matrix(operand, shape, values, poison, (mask, _spread(mask, live)))


def _spread(mask: BlockMask, live: Tensor | None = None) -> Tensor:
    live = mask.live if live is None else live
    rows, cols = (
        torch.arange(extent, device=live.device) // block
        for extent, block in zip(mask.shape, mask.block_shape, strict=True)
    )
    return live[rows[:, None], cols]


def _matrix(
    operand: Operand,
    shape: tuple[int, int],
    values: _Values,
    poison: float,
    masked: tuple[BlockMask | None, Tensor | None],
) -> Matrix:
    (rows, cols), (mask, live), layout = shape, masked, operand.layout
    if layout == "windows":
        # Rows that overlap in memory, each one element further on.
        strip = values(rows + cols, exponent=operand.exponent)
        given = full = strip.as_strided(shape, (1, 1))
    else:
        stored = (
            1 if layout in ("expanded rows", "expanded") else rows,
            1 if layout in ("expanded columns", "expanded") else cols,
        )
        full = values(*stored, exponent=operand.exponent)
        poisoned = full if live is None else torch.where(_dead(live, stored), poison, full)
        given = LAYOUTS[layout](poisoned).expand(shape)
    full = full.expand(shape).contiguous()
    return Matrix(given, full if live is None else torch.where(live, full, 0), mask, live)


def _dead(live: Tensor, stored: tuple[int, int]) -> Tensor:
    """Where an element is dropped; of one that stands in many places, dropped in all."""
    dead = ~live
    for dim in (0, 1):
        if stored[dim] == 1:
            dead = dead.all(dim, keepdim=True)
    return dead


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], x.shape[1] + 24), float("nan"))
    wide[:, 8 : 8 + x.shape[1]] = x
    return wide[:, 8 : 8 + x.shape[1]]


def _odd_width(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], x.shape[1] + 1), float("nan"))
    wide[:, :-1] = x
    return wide[:, :-1]


def _shifted(x: Tensor) -> Tensor:
    flat = x.new_full((x.numel() + 1,), float("nan"))
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def _every_second(x: Tensor) -> Tensor:
    wide = x.new_full((2 * x.shape[0], 2 * x.shape[1]), float("nan"))
    wide[::2, ::2] = x
    return wide[::2, ::2]


def _every_second_column(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], 2 * x.shape[1]), float("nan"))
    wide[:, ::2] = x
    return wide[:, ::2]


def _turned(layout: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: layout(x.t()).t()


# A copy of a matrix that lies so; the expanded ones are expanded afterwards.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "row": torch.Tensor.contiguous,
    "column": _turned(torch.Tensor.contiguous),
    "sliced": _sliced,
    "sliced column": _turned(_sliced),
    "odd width": _odd_width,
    "shifted": _shifted,
    "shifted column": _turned(_shifted),
    "every second": _every_second,
    "every second column": _every_second_column,
    "negated": lambda x: torch._neg_view(-x),
    "expanded rows": torch.Tensor.contiguous,
    "expanded columns": torch.Tensor.contiguous,
    "expanded": torch.Tensor.contiguous,
    "turned batch": torch.Tensor.contiguous,
}
