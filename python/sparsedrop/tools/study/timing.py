"""How long a step of each method takes: a pass of its own, in which methods take turns.

Training says little of it: a machine's speed changes within minutes, by half on virtual ones, and
runs side by side slow each other down.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from sparsedrop import capture
from sparsedrop.tools.clock import wall_ms
from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import TASKS
from sparsedrop.tools.study.trainer import Trainer

WARM_UP = 3
STEPS = 10
"""Steps of a lap, between two waits for the GPU: patterns differ in what they cost."""

LAPS = 5, 15
"""The least and the largest number of laps."""

BUDGET_MS = 4000.0
"""What all laps of the methods that take turns should take together."""

Step = Callable[[], object]


class Times(NamedTuple):
    """Milliseconds of a step: forward, backward and the optimiser, without loading a batch.

    graph_ms is of the step replayed as CUDA graphs; None where that cannot be: on a CPU, and of
    tasks whose steps cannot be captured.
    """

    eager_ms: float
    graph_ms: float | None
    dropout_eager_ms: float | None  # of nn.Dropout at the same rate, in turns with it
    dropout_graph_ms: float | None


def measure(
    data: Dataset, settings: Settings, show: Callable[[str], object]
) -> dict[Method, Times]:
    """The times of all methods. Those of one rate take turns; no dropout joins the first rate."""
    size = settings.preset.batch_size
    batch = Split(*(tensor[:size].contiguous() for tensor in data.train))
    found: dict[Method, Times] = {}
    for p, methods in _by_rate(settings.methods).items():
        show(f"timing steps at p = {p:g}")
        eager = _eager(methods, data, settings, batch)
        graph = _graph(methods, data, settings, batch)
        dropout = next((method for method in methods if method.word == "dropout"), None)
        for method in methods:
            base = None if method.word == "none" else dropout
            found[method] = Times(
                eager[method],
                graph.get(method),
                None if base is None else eager[base],
                None if base is None else graph.get(base),
            )
    return found


def _by_rate(methods: tuple[Method, ...]) -> dict[float, list[Method]]:
    rates = list(dict.fromkeys(method.p for method in methods if method.word != "none"))
    groups: dict[float, list[Method]] = {p: [] for p in rates or [0.0]}
    for method in methods:
        groups[method.p if method.word != "none" else next(iter(groups))].append(method)
    return groups


def _eager(
    methods: list[Method], data: Dataset, settings: Settings, batch: Split
) -> dict[Method, float]:
    steps: dict[Method, Step] = {}
    for method in methods:
        trainer = Trainer(method, data, settings)
        trainer.model.train()
        steps[method] = _step_of(trainer, batch)
    return _laps(steps, settings.device)


def _graph(
    methods: list[Method], data: Dataset, settings: Settings, batch: Split
) -> dict[Method, float]:
    if settings.device.type != "cuda" or not TASKS[settings.task].is_captured:
        return {}
    steps: dict[Method, Step] = {}
    for method in methods:
        trainer = Trainer(method, data, settings, is_captured=True)
        trainer.model.train()
        steps[method] = capture(trainer.model, _step_of(trainer, batch), warm_up=WARM_UP)
    return _laps(steps, settings.device) if steps else {}


def _step_of(trainer: Trainer, batch: Split) -> Step:
    return lambda: trainer.step(batch)


def _laps(steps: dict[Method, Step], device: torch.device) -> dict[Method, float]:
    """Milliseconds of a step: a median over laps of so many.

    It is the median of the ratio to the first method's time in the same lap, times the median of
    the latter: medians of the times alone would catch methods in slow and in fast moments.
    """
    for step in steps.values():
        wall_ms(step, device, WARM_UP)
    order = list(steps.items())
    laps: dict[Method, list[float]] = {
        method: [wall_ms(step, device, STEPS) / STEPS] for method, step in order
    }
    round_ms = STEPS * sum(ms for (ms,) in laps.values())
    least, most = LAPS
    for _ in range(min(most, max(least, int(BUDGET_MS / round_ms))) - 1):
        order.reverse()
        for method, step in order:
            laps[method].append(wall_ms(step, device, STEPS) / STEPS)
    base = next(iter(laps.values()))
    return {
        method: statistics.median(ms / other for ms, other in zip(own, base, strict=True))
        * statistics.median(base)
        for method, own in laps.items()
    }
