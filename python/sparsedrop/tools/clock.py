"""Stopwatches for work on a CPU or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device) -> None:
    """Until a GPU is done with all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_ms(
    call: Callable[[], object], device: torch.device, calls: int = 1, *, wait: bool = True
) -> float:
    """Wall-clock time of so many calls; with `wait`, until the GPU is done with them."""
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    if wait:
        wait_for(device)
    return (time.perf_counter() - begin) * 1e3


class Clock:
    """Times the laps it is entered for: wall clock on a CPU, events on a GPU.

    A GPU is not waited for before the laps are asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._walls: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._start = 0.0

    def __enter__(self) -> None:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((start, end))
            start.record()
        else:
            self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._walls.append(1e3 * (time.perf_counter() - self._start))

    def laps_ms(self) -> list[float]:
        """All laps, in order. Waits for the GPU."""
        if not self._on_gpu:
            return list(self._walls)
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in self._events]

    def median_ms(self) -> float:
        """Of all laps. Waits for the GPU."""
        return statistics.median(self.laps_ms())
