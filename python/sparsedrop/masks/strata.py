"""Draws of the host in a few steps that stand for all: a CUDA graph repeats those of its capture.

Of independent draws a few would favour some units for a whole training. So each number that a step
asks for is drawn from strata of [0, 1), one for each of the steps, in an order of its own. Over all
of them a unit is kept as often as its probability says: to one step, where it is kept for one
stretch of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# For all threads: an activation checkpoint draws again in those of autograd.
_active: Strata | None = None


class Strata:
    """Numbers for so many steps, each of which asks for as many as the others."""

    def __init__(self, steps: int) -> None:
        self._steps, self._step = steps, 0
        self._generator = torch.Generator()
        self._generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
        # Of each number that a step asks for: where in its stratum, and the order of the strata.
        self._bases = list[float]()
        self._orders = list[list[int]]()
        self._found = dict[int, float]()

    @property
    def is_used(self) -> bool:
        """Whether a step has asked for anything."""
        return bool(self._bases)

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Within it `variates` gives the numbers of that step, from 0 on."""
        global _active
        before, self._step, self._found = _active, index, {}
        _active = self
        try:
            yield
        finally:
            _active = before

    def _variate(self) -> float:
        # Where an activation checkpoint brings torch's generator back, numbers are asked for again:
        # by each as many are taken from it as the first time.
        key = int(torch.randint(2**62, (), device="cpu"))
        if key not in self._found:
            at, own = len(self._found), self._generator
            if at == len(self._bases):
                base = torch.rand((), dtype=torch.float64, generator=own, device="cpu")
                order = torch.randperm(self._steps, generator=own, device="cpu")
                self._bases.append(float(base))
                self._orders.append(order.tolist())
            self._found[key] = (self._orders[at][self._step] + self._bases[at]) / self._steps
        return self._found[key]

    def variates(self, count: int) -> list[float]:
        """So many numbers of [0, 1)."""
        return [self._variate() for _ in range(count)]


def strata() -> Strata | None:
    """Where numbers come from now in the place of torch's default CPU generator; None: from it."""
    return _active
