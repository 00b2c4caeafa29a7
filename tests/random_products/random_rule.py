"""The rule by which a random product is judged, from figures that were measured on the device.

A result may err by twice what torch's own product of the masked operands errs in that dtype, and by
what its roundings explain: by norm, and in the single element that is furthest off.

- The result is rounded once: eps |value| each, eps = 2**-8 in bfloat16. That is at most about twice
  what torch errs, and where torch is exact by luck it is still all that one rounding may do.
- Sums of `inner` products round as often, to 2**-24 (float64: 2**-53, and the truth as well), each
  time as much as the sum is then large: in any order some 2**-24 sqrt(inner) of the root of the
  summed squares of the products, and of the result, since a sum may start at the bias. Where all
  products are equal all roundings may point one way: 2**-24 inner of the result.
- The gradient behind gelu and silu is taken, as in eager torch, at what went into the activation,
  which errs as the sums above and is rounded: |x act''(x)| <= 0.4, |act''| <= 0.8. It is rounded
  itself, and both reach all sums.

The last two are random: the norm of n such errors is their own sqrt(n) + 6 standard deviations with
less than 1 in 10**7 beyond (concentration of the norm), so few elements may have relatively more.
Operands from {-1, 0, 1} leave nothing to rounding: then results have to be equal to the last bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from random_cases import EXPANDED, Case
from torch import Tensor

SMOOTH = ("gelu", "silu")
DEVIATIONS = 6.0
EXACT_ALPHAS = (0.0, 0.5, 1.0, -1.0, 2.0)
SLOPE = 1.13
"""The largest of gelu's; silu's is 1.1."""


class Measured(NamedTuple):
    """Of one result: norms and largest elements of its error, torch's error and the truth.

    `before`: without activation. `spread`: root of the summed squares of all products, and a bound
    of a single sum's; `up_spread` with the upstream gradient in place of that behind the
    activation; `first_peak` is the bound of the forward product, `first_truth_peak` the largest of
    what goes into the activation.
    """

    error: float
    error_peak: float
    torch: float
    torch_peak: float
    before: float
    before_peak: float
    truth: float
    truth_peak: float
    spread: float
    spread_peak: float
    up_spread: float
    up_spread_peak: float
    first_peak: float
    first_truth_peak: float
    # Elements that are not 0; the largest in a dropped block; elements that differ from the truth.
    count: float
    dropped: float
    unequal: float


class Squares(NamedTuple):
    """Sums of a matrix's squares, and its largest element."""

    rows: Tensor
    cols: Tensor
    peak: Tensor

    def t(self) -> Squares:
        return Squares(self.cols, self.rows, self.peak)

    def of(self, right: Squares) -> tuple[Tensor, Tensor]:
        """Spread and peak of the product of this matrix and the right one."""
        return (self.cols @ right.rows).sqrt(), largest(self.rows).sqrt() * right.peak


def squares(matrix: Tensor) -> Squares:
    square = matrix.square()
    return Squares(square.sum(1), square.sum(0), largest(matrix))


def largest(x: Tensor) -> Tensor:
    """By absolute value, as float64; NaN where there is one."""
    return x.abs().amax().double() if x.numel() else x.new_zeros((), dtype=torch.float64)


def faults(case: Case, names: list[str], rows: list[list[float]]) -> list[str]:
    """A line for each result that is wrong."""
    return [
        line
        for name, row in zip(names, rows, strict=True)
        if (line := _fault(case, name, Measured(*row))) is not None
    ]


def _fault(case: Case, name: str, found: Measured) -> str | None:
    what = "result" if name == "out" else f"gradient of {name}"
    if found.dropped != 0:  # NaN as well
        return f"{what}: {found.dropped:.3g} in a dropped block, which should hold 0"
    if _is_exact(case, name) and found.unequal:
        return f"{what}: {found.unequal:.0f} elements differ, and all should be exact"
    norm, peak = allowed(case, name, found)
    if found.error <= norm and found.error_peak <= peak:
        return None
    return (
        f"{what}: error {found.error:.3e}, allowed {norm:.3e} (torch {found.torch:.3e}); largest "
        f"{found.error_peak:.3e}, allowed {peak:.3e} (torch {found.torch_peak:.3e})"
    )


def _inner(case: Case, name: str) -> int:
    return {"out": case.k, "a": case.n, "b": case.m, "bias": case.m}[name]


def _is_exact(case: Case, name: str) -> bool:
    """Sums that every dtype holds: to 128 always, to 1024 where they do not all point one way."""
    if case.values != "signs" or case.activation in SMOOTH or case.alpha not in EXACT_ALPHAS:
        return False
    return _inner(case, name) <= (128 if _alike(case, name) else 1024)


def _alike(case: Case, name: str) -> bool:
    """Whether all products in a sum may be equal, since both factors repeat one value."""
    layouts = {"out": (case.a, case.b), "a": (case.out, case.b), "b": (case.a, case.out)}
    return all(x.layout in EXPANDED for x in layouts.get(name, (case.out,)))


def allowed(case: Case, name: str, found: Measured) -> tuple[float, float]:
    """The largest norm of an error, and the largest error of an element."""
    info = torch.finfo(getattr(torch, case.dtype))
    eps, step = info.eps / 2, min(info.eps / 2, 2**-24)
    alpha = 1.0 if name == "bias" else abs(case.alpha)
    sums = step * math.sqrt(_inner(case, name))
    least = info.smallest_normal * eps
    rounding = eps * found.before + least * math.sqrt(found.count)
    rounding_peak = eps * found.before_peak + least
    whole = step * _inner(case, name) if _alike(case, name) else sums
    random = sums * alpha * found.spread + whole * found.before
    random_peak = DEVIATIONS * (sums * alpha * found.spread_peak + whole * found.before_peak)
    if case.activation in SMOOTH and name == "out":
        rounding, random = SLOPE * rounding + eps * found.truth, SLOPE * random
        rounding_peak = SLOPE * rounding_peak + eps * found.truth_peak
        random_peak *= SLOPE
    elif case.activation in SMOOTH:
        late = 0.4 * eps + 0.8 * _late(case, step, found)
        random += alpha * math.hypot(late * found.up_spread, eps * found.spread)
        reach = late * found.up_spread_peak + eps * found.spread_peak
        random_peak += DEVIATIONS * alpha * reach
    few = 1.0 + DEVIATIONS / math.sqrt(max(1.0, found.count / _repeats(case, name)))
    twice = 2.0 if case.dtype == "float64" else 1.0  # the truth errs as well
    norm = twice * (rounding + few * random)
    peak = twice * (rounding_peak + random_peak)
    return max(2 * found.torch, norm), max(2 * found.torch_peak, peak)


def _late(case: Case, step: float, found: Measured) -> float:
    """How far what goes into the activation may be off, by the roundings of its sums."""
    sums = step * math.sqrt(case.k)
    whole = step * case.k if _alike(case, "out") else sums
    return sums * abs(case.alpha) * found.first_peak + whole * found.first_truth_peak


def _repeats(case: Case, name: str) -> int:
    """How often each element of a result is there: expanded operands have equal rows or columns."""
    b = case.b.layout
    if case.b_turned:
        turned = {"expanded rows": "expanded columns", "expanded columns": "expanded rows"}
        b = turned.get(b, b)
    a, up = case.a.layout, case.out.layout
    rows = {"out": (a, "rows"), "a": (up, "rows"), "b": (a, "columns"), "bias": ("", "")}[name]
    cols = {"out": (b, "columns"), "a": (b, "rows"), "b": (up, "columns"), "bias": (up, "columns")}
    height = {"out": case.m, "a": case.m, "b": case.k, "bias": 1}[name]
    width = {"out": case.n, "a": case.k, "b": case.n, "bias": case.n}[name]
    repeats = 1
    for (layout, which), extent in ((rows, height), (cols[name], width)):
        if layout in ("expanded", f"expanded {which}"):
            repeats *= max(1, extent)
    return repeats
