"""Timing on a GPU: candidates are captured as CUDA graphs and replayed in turn.

A graph takes the host out of the figure; taking turns, launch by launch, gives every candidate the
same clocks and temperature, which move by 10 % and more while a chip warms up.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import torch

CALLS_PER_GRAPH = 5


def interleaved_us(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 15
) -> dict[str, float]:
    """Median time of one call of each candidate, in microseconds."""
    graphs = {name: _captured(call) for name, call in candidates.items()}
    for graph in graphs.values():
        for _ in range(3):
            graph.replay()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    return {
        name: statistics.median(b.elapsed_time(e) for b, e in pairs) * 1e3 / CALLS_PER_GRAPH
        for name, pairs in events.items()
    }


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS_PER_GRAPH):
            call()
    return graph


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code, and which code it was."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }
    if torch.cuda.is_available():
        query = "clocks.max.sm,power.limit,driver_version"
        index = str(torch.cuda.current_device())
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "max SM clock, power limit, driver": _output(
                "nvidia-smi", "-i", index, f"--query-gpu={query}", "--format=csv,noheader"
            ),
        }
    else:
        facts |= {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
    return facts


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0]
