"""Approximate Random Dropout's patterns (Song et al. 2018): one unit in every so many is kept.

A pattern has a period, drawn from probabilities that give the rate wanted, and an offset. Drawn on
the host, as slices are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedrop.masks.checks import check_generator, check_one_draw, check_p
from sparsedrop.masks.strata import strata

METHODS = ("exact", "sgd")
SCALES = ("global", "pattern")

# Of the paper's loss: how much the rate weighs, and the entropy.
_RATE_WEIGHT, _ENTROPY_WEIGHT = 0.95, 0.05


@dataclass(frozen=True)
class RowPattern:
    """Unit i of `width` is kept where i - offset is a multiple of the period."""

    width: int
    period: int
    offset: int

    @property
    def count(self) -> int:
        """Units that are kept: none, where the offset lies beyond the width."""
        return len(range(self.offset, self.width, self.period))

    @property
    def kept(self) -> slice:
        """What takes the kept units from a sequence."""
        return slice(self.offset, None, self.period)

    def mask(self, device: torch.device | str | None = None) -> Tensor:
        """bool [width], True where a unit is kept."""
        found = torch.zeros(self.width, dtype=torch.bool, device=device)
        found[self.kept] = True
        return found

    @classmethod
    def draw(
        cls, width: int, d: Sequence[float], *, generator: torch.Generator | None = None
    ) -> RowPattern:
        """A pattern of `width` units: its period i + 1 has probability d[i].

        Where the period is 1 for sure, nothing is drawn.

        Args:
            width: units of the layer.
            d: probabilities of the periods 1, 2, ..., as `search` finds them.
            generator: of the CPU; None is torch's default one.

        Raises:
            TypeError: for a generator that is something else.
            ValueError: for probabilities that are negative or do not add up to 1, and a width below
                1.
        """
        check_generator(generator)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a whole number of at least 1, not {width!r}")
        of_periods = check_probabilities(d)
        if of_periods[0] == 1.0:
            return cls(width, 1, 0)
        from_strata = strata() if generator is None else None
        if from_strata is not None:
            # Of one number, so that offsets are spread as periods are.
            (where,) = from_strata.variates(1)
            period, of_offset = _drawn(of_periods, where)
        else:
            drawn = torch.rand(2, dtype=torch.float64, generator=generator, device="cpu")
            check_one_draw(drawn)
            if hasattr(drawn, "fake_mode"):  # has no value: as much memory as any pattern takes
                return cls(width, 1, 0)
            where, of_offset = drawn.tolist()
            period, _ = _drawn(of_periods, where)
        return cls(width, period, min(int(of_offset * period), period - 1))


def _drawn(of_periods: tuple[float, ...], where: float) -> tuple[int, float]:
    """The period at that place of all probabilities laid end to end, and where in its own that
    is."""
    end, last, place = 0.0, 1, 0.0
    for i, probability in enumerate(of_periods):
        if probability == 0.0:
            continue
        last, place = i + 1, (where - end) / probability
        end += probability
        if where < end:
            break
    return last, place


def check_probabilities(d: Sequence[float]) -> tuple[float, ...]:
    """Those of periods as floats; ValueError if they are invalid."""
    found = tuple(float(value) for value in d)
    if not found or min(found) < 0.0 or not math.isclose(sum(found), 1.0, abs_tol=1e-6):
        raise ValueError(f"d are probabilities that add up to 1, not {list(found)}")
    return found


def rate(d: Sequence[float]) -> float:
    """The probability that a unit is dropped: the sum of d[i] * i / (i + 1)."""
    return sum(value * i / (i + 1) for i, value in enumerate(check_probabilities(d)))


def search(p: float, n: int = 8, *, method: str = "exact") -> tuple[float, ...]:
    """The probabilities of the periods 1 to n with which a unit is dropped with probability p.

    Of all that give the rate, "exact" finds those of the largest entropy: d[i] is proportional to
    exp(beta * i / (i + 1)), beta by bisection, off the rate by less than 1e-9. "sgd" minimises the
    paper's loss, in which the entropy competes with the rate, and comes within 0.05 of it.

    Raises:
        ValueError: for an unknown method, n below 1, and p above (n - 1) / n, the largest rate that
            n periods give.
    """
    p = check_p(p)
    if not isinstance(method, str) or method not in METHODS:
        known = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method is one of {known}, not {method!r}")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
    most = (n - 1) / n
    if p > most:
        raise ValueError(
            f"p = {p} is more than {n} periods give: at most (n - 1) / n = {most:.4g}; take a "
            "larger n"
        )
    if p in (0.0, most):
        return tuple(float(i == (0 if p == 0.0 else n - 1)) for i in range(n))
    return _by_bisection(p, n) if method == "exact" else _by_descent(p, n)


@functools.lru_cache(maxsize=1024, typed=True)
def probabilities(p: float, n: int) -> tuple[float, ...]:
    """What `search` finds, searched for once."""
    return search(p, n)


def check_scale(scale: str) -> str:
    """The scale; ValueError if it is unknown."""
    if not isinstance(scale, str) or scale not in SCALES:
        known = ", ".join(repr(name) for name in SCALES)
        raise ValueError(f"scale is one of {known}, not {scale!r}")
    return scale


def _by_bisection(p: float, n: int) -> tuple[float, ...]:
    rates = [i / (i + 1) for i in range(n)]

    def distribution(beta: float) -> tuple[float, ...]:
        largest = max(beta * rates[0], beta * rates[-1])
        weights = [math.exp(beta * each - largest) for each in rates]
        return tuple(weight / sum(weights) for weight in weights)

    low, high = -1.0, 1.0
    while rate(distribution(low)) > p:
        low *= 2.0
    while rate(distribution(high)) < p:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        if rate(distribution(middle)) < p:
            low = middle
        else:
            high = middle
    return distribution((low + high) / 2.0)


def _by_descent(p: float, n: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(0)
    values = 0.01 * torch.randn(n, dtype=torch.float64, generator=generator)
    values.requires_grad_()
    rates = torch.tensor([i / (i + 1) for i in range(n)], dtype=torch.float64)
    optimizer = torch.optim.SGD([values], lr=1.0, momentum=0.9)
    with torch.enable_grad():
        for _ in range(2000):
            d = values.softmax(0)
            entropy = (d * values.log_softmax(0)).sum() / n
            loss = _RATE_WEIGHT * (d @ rates - p).square() + _ENTROPY_WEIGHT * entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tuple(values.detach().softmax(0).tolist())
