"""Times of calls, the candidates taking turns.

On a GPU a candidate is captured as a CUDA graph, which takes the host out of the figure. Turns,
launch by launch, give every candidate the same clocks and temperature, which move by 10 % and more
while a chip warms up.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

from sparsedrop.tools.clock import Clock

MIN_LAP_US = 200.0
"""Shorter calls are repeated within a lap: what it costs to launch a graph should not show."""

MAX_ROUNDS = 50

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


class Budget(NamedTuple):
    """How long to measure: `ms` for all candidates together, but at least so many rounds."""

    ms: float
    min_rounds: int


BUDGETS = {"cuda": Budget(80.0, 10), "cpu": Budget(500.0, 3)}
"""Of one row. The products of a default run on an H200 have to be through in 100 s."""


class Candidate(NamedTuple):
    """`launch` runs `calls` calls in some `lap_us`; `inputs` keeps alive what they read."""

    launch: Call
    calls: int
    lap_us: float
    inputs: Sequence[Call]


class Turns:
    """The candidates of one row. A lap of each is a run through all its calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            # One pool: no two graphs are replayed at once, and no result is looked at.
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)

    def prepare(self, calls: Sequence[Call]) -> Candidate:
        """A candidate whose lap is `calls`, repeated as often as MIN_LAP_US asks for.

        Different calls read different inputs, so that no candidate finds its own in the L2 cache.
        """
        launch = self._record(calls)
        lap_us = self._lap_us(launch)
        repeats = max(1, math.ceil(MIN_LAP_US / lap_us))
        if repeats > 1:
            launch = self._record([*calls] * repeats)
        return Candidate(launch, len(calls) * repeats, lap_us * repeats, calls)

    def medians_us(self, candidates: Mapping[Key, Candidate]) -> dict[Key, float]:
        """Median time of one call of each candidate, in microseconds."""
        budget = BUDGETS[self._device.type]
        round_ms = sum(candidate.lap_us for candidate in candidates.values()) / 1e3
        rounds = min(MAX_ROUNDS, max(budget.min_rounds, int(budget.ms / max(round_ms, 1e-3))))
        clocks = {key: Clock(self._device) for key in candidates}
        for candidate in candidates.values():
            candidate.launch()
        # To and fro, so that none always follows the same one.
        order = list(candidates.items())
        for _ in range(rounds):
            for key, candidate in order:
                with clocks[key]:
                    candidate.launch()
            order.reverse()
        return {
            key: clocks[key].median_ms() * 1e3 / candidate.calls
            for key, candidate in candidates.items()
        }

    def _record(self, calls: Sequence[Call]) -> Call:
        """What runs the calls once: a graph's replay on a GPU."""
        if self._device.type != "cuda":
            return functools.partial(_call_all, calls)
        distinct = len(set(map(id, calls)))
        # On the stream of the capture, where libraries want to have been called before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for call in calls[:distinct]:
                call()
        graph = torch.cuda.CUDAGraph()
        # Results live as long as other inputs are in use, so that they rotate as these do.
        results: collections.deque[object] = collections.deque(maxlen=distinct)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            for call in calls:
                results.append(call())
        return graph.replay

    def _lap_us(self, launch: Call) -> float:
        launch()
        clock = Clock(self._device)
        with clock:
            launch()
        return max(clock.median_ms() * 1e3, 0.1)


def _call_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
