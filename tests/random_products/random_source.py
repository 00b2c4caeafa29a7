"""Where random choices come from: hypothesis, or a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Where the choices come from. `integer` is all that a source has to know."""

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        raise NotImplementedError

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent

    def weighted(self, weights: dict[T, int]) -> T:
        """A key, as often as its weight says; the first ones are the simplest."""
        place = self.integer(0, sum(weights.values()) - 1)
        return next(
            key
            for key, end in zip(weights, itertools.accumulate(weights.values()), strict=True)
            if place < end
        )


class Seeded(Source):
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)
