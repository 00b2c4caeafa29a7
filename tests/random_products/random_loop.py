"""Many random cases from one seed, measured one by one and judged a few hundred at once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from random_cases import Case, Way, draw_case, tile_of
from random_rule import faults
from random_run import exact_sums, faults_of, line_of, measure
from random_source import Seeded
from torch import Tensor

CHUNK = 256
MAX_FAILURES = 20

_Waiting = list[tuple[Case, dict[str, Tensor]]]


@dataclass
class Tally:
    """What `run_many` did: cases, products by their way, and the first failures as text."""

    seed: int
    device: torch.device
    cases: int = 0
    failed: int = 0
    seconds: float = 0.0
    ways: Counter[str] = field(default_factory=Counter)
    failed_ways: Counter[str] = field(default_factory=Counter)
    tiles: set[tuple[object, object]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def count(self, case: Case) -> None:
        self.cases += 1
        for way in ways_used(case):
            self.ways[name_of(way)] += 1
            if (tile := tile_of(way)) is not None:
                self.tiles.add(tile)

    def fail(self, case: Case, lines: list[str]) -> None:
        self.failed += 1
        self.failed_ways.update(set(map(name_of, ways_used(case))))
        if len(self.failures) < MAX_FAILURES:
            self.failures.append("\n    ".join([line_of(case, self.device), *lines]))

    def summary(self) -> str:
        rate = f"{self.cases} cases in {self.seconds:.1f} s on {self.device}"
        if self.cases:
            rate += f", {1000 * self.seconds / self.cases:.2f} ms each"
        return f"--random-seed {self.seed}: {rate}; products by way: {_listed(self.ways)}"

    def __str__(self) -> str:
        failed = f"{self.failed} cases failed; their ways: {_listed(self.failed_ways)}"
        return "\n".join([self.summary(), failed, *self.failures])


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def ways_used(case: Case) -> list[Way]:
    """Of each product that the case runs."""
    gradients = [name for name in ("a", "b") if name in case.grads]
    if case.products:
        return [case.ways[0], *(case.ways[1 if name == "a" else 2] for name in gradients)]
    return [case.ways[0], *(case.ways[1] for _ in gradients)]


def name_of(way: Way) -> str:
    if (tile := tile_of(way)) is None:
        return str(way[0]) if way else "default"
    split = f" split {way[3]}" if way[3] != 1 else ""
    return f"tile {tile[0]}{' turned' if tile[1] else ''}{split}"


def run_many(
    device: torch.device, seed: int, seconds: float = float("inf"), most: int = 2**31
) -> Tally:
    """Random cases until the time is over, or so many were run."""
    tally, start = Tally(seed, device), time.perf_counter()
    waiting: _Waiting = []
    with exact_sums():
        while tally.cases < most and time.perf_counter() - start < seconds:
            case = draw_case(Seeded(seed * 2**32 + tally.cases), device.type)
            tally.count(case)
            try:
                waiting.append((case, measure(case, device)))
            except Exception as error:
                tally.fail(case, [_text(error)])
                if "CUDA error" in str(error):  # nothing works on this GPU any more
                    break
            if len(waiting) >= CHUNK:
                _judge(tally, waiting)
        _judge(tally, waiting)
    tally.seconds = time.perf_counter() - start
    return tally


def _judge(tally: Tally, waiting: _Waiting) -> None:
    """Waits for the device once, and empties the list."""
    if not waiting:
        return
    try:
        rows = torch.stack([row for _, measured in waiting for row in measured.values()]).tolist()
    except RuntimeError as error:  # of a launch some time ago
        before = f"It may be of any of the {len(waiting)} cases before, which were not judged."
        tally.fail(waiting[-1][0], [_text(error), before])
        rows = []
    for case, measured in waiting if rows else ():
        own, rows = rows[: len(measured)], rows[len(measured) :]
        found = faults(case, list(measured), own)
        if found:
            tally.fail(case, [*found, *_alone(case, tally)])
    waiting.clear()


def _alone(case: Case, tally: Tally) -> list[str]:
    """What a failing case does when it is run again."""
    if tally.failed >= MAX_FAILURES:
        return []
    try:
        return [] if faults_of(case, tally.device) else ["Run again alone it passes."]
    except RuntimeError as error:
        return [f"Run again alone: {_text(error)}"]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
