"""SliceOut's slices of units (Notin et al. 2020): what lives of a layer in a step.

Drawn on the host, from torch's default CPU generator unless one is given: the GPU is never waited
for, and activation checkpointing replays the draw.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedrop.masks.checks import check_generator, check_one_draw, check_p
from sparsedrop.masks.strata import strata

STARTS = ("cyclic", "aligned", "all")


@dataclass(frozen=True)
class Slice:
    """Neighbouring units of a layer; a slice that wraps around the end is two pieces.

    Attributes:
        pieces: (start, stop) of each, in the order of the units that they make.
        units: of the layer.
    """

    pieces: tuple[tuple[int, int], ...]
    units: int

    @functools.cached_property
    def width(self) -> int:
        """Units that are kept."""
        return sum(stop - start for start, stop in self.pieces)

    @property
    def scale(self) -> float:
        """What keeps the expectation of units that are all kept as often: units / width."""
        return self.units / self.width

    @property
    def is_whole(self) -> bool:
        """Whether nothing is dropped."""
        return self.width == self.units

    def mask(self, device: torch.device | str | None = None) -> Tensor:
        """bool [units], True where a unit is kept."""
        kept = torch.zeros(self.units, dtype=torch.bool, device=device)
        for start, stop in self.pieces:
            kept[start:stop] = True
        return kept

    @classmethod
    def at(cls, start: int, width: int, units: int) -> Slice:
        """So many of the units from `start` on, around the end."""
        return cls(_pieces(start, width, units), units)

    def times(self, features: int) -> Slice:
        """The same of features, of which each unit has so many."""
        pieces = tuple((start * features, stop * features) for start, stop in self.pieces)
        return Slice(pieces, self.units * features)

    @classmethod
    def draw(
        cls,
        width: int,
        p: float,
        *,
        align: int = 64,
        starts: str = "cyclic",
        generator: torch.Generator | None = None,
    ) -> Slice:
        """A slice of a layer of `width` units, of which it keeps about 1 - p.

        Kept are `align` times round((1 - p) * width / align) units, rounded half up, at least
        `align`. Where that is all of them, nothing is drawn.

        Args:
            width: units of the layer.
            p: drop probability, in [0, 1).
            align: what starts and lengths are multiples of; where it does not divide the width,
                their largest common divisor.
            starts: "cyclic" (any multiple of `align`; the slice wraps around, and each unit is
                kept as often as the others), "aligned" (multiples that need no wrapping) or "all"
                (any unit, without wrapping): there units in the middle are kept more often.
            generator: of the CPU; None is torch's default one.

        Raises:
            TypeError: for a generator that is something else.
            ValueError: for p outside [0, 1), and a width or an `align` below 1.
        """
        check_generator(generator)
        every = _slices(width, check_p(p), align, starts)
        if len(every) == 1:
            return every[0]
        from_strata = strata() if generator is None else None
        if from_strata is not None:
            (where,) = from_strata.variates(1)
            return every[int(where * len(every))]
        drawn = torch.randint(len(every), (), generator=generator, device="cpu")
        check_one_draw(drawn)
        # A fake tensor has no value, and all slices have the same shapes.
        return every[0] if hasattr(drawn, "fake_mode") else every[int(drawn)]


def check_starts(starts: str) -> str:
    """The name of the starts; ValueError if it is unknown."""
    if not isinstance(starts, str) or starts not in STARTS:
        known = ", ".join(repr(name) for name in STARTS)
        raise ValueError(f"starts is one of {known}, not {starts!r}")
    return starts


def check_sliced_p(p: float) -> float:
    """p as a float; ValueError where it is no probability, or 1."""
    p = check_p(p)
    if p == 1.0:
        raise ValueError("p must be below 1: a slice keeps some units")
    return p


def kept_units(width: int, p: float, align: int) -> tuple[int, int]:
    """How many units a slice keeps, and what starts are multiples of."""
    p = check_sliced_p(p)
    for name, value in (("width", width), ("align", align)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    step = math.gcd(width, align)
    return max(step, step * math.floor((1.0 - p) * width / step + 0.5)), step


def all_kept(what: str, width: int, align: int, p: float) -> str:
    """That a slice keeps all of so many units, which `what` names."""
    step = math.gcd(width, align)
    slices = "a slice" if step == 1 else f"a slice of whole {step}s"
    return f"of {width} {what} {slices} keeps all at p = {p:g}"


def slices(width: int, p: float, *, align: int = 64, starts: str = "cyclic") -> tuple[Slice, ...]:
    """All that `Slice.draw` draws from, each as likely as the others."""
    check_starts(starts)
    kept, step = kept_units(width, p, align)
    if kept == width:
        return (Slice(((0, width),), width),)
    if starts == "all":
        first = range(width - kept + 1)
    else:
        first = range(0, width if starts == "cyclic" else width - kept + 1, step)
    return tuple(Slice(_pieces(start, kept, width), width) for start in first)


@functools.lru_cache(maxsize=256)
def _slices(width: int, p: float, align: int, starts: str) -> tuple[Slice, ...]:
    return slices(width, p, align=align, starts=starts)


def _pieces(start: int, kept: int, width: int) -> tuple[tuple[int, int], ...]:
    stop = start + kept
    if stop <= width:
        return ((start, stop),)
    return ((start, width), (0, stop - width))


def marginals(width: int, p: float, *, align: int = 64, starts: str = "cyclic") -> Tensor:
    """The probability that each unit is kept, float64 [width]."""
    every = slices(width, p, align=align, starts=starts)
    return torch.stack([each.mask() for each in every]).double().mean(0)
