"""Training steps of whole networks, in the ways that people run them.

Forward and backward, or with --whole-step the optimiser too, of each network without dropout, with
nn.Dropout and with this library, which take turns. Wall time has the host's work in it; a captured
step ("graph") has none, and so is the GPU's own time. What a graph holds does not show in the peak
of the memory that a step allocates: captured modes have none.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import capture
from sparsedrop.tools import markdown
from sparsedrop.tools.bench import timing
from sparsedrop.tools.bench.networks import NETWORKS
from sparsedrop.tools.bench.report import Report, kept_when_stopped
from sparsedrop.tools.bench.settings import CAPTURED_MODES, Settings
from sparsedrop.tools.clock import wait_for, wall_ms
from sparsedrop.tools.networks import DROPOUT, METHODS, NONE, ROW_PATTERN, Drop, loss_of

STEPS = 20
"""Between two waits for the GPU, as in a training loop."""

MAX_ROUNDS = 15
WARM_UP, WARM_UP_OF_PATTERNS = 3, 100
"""Steps before any is timed. Of a row pattern live sometimes more and sometimes fewer units, and a
layer is prepared for as many when that first happens."""

HEADER = ["network", "precision", "p", "mode"]


class Figures(NamedTuple):
    wall_ms: float
    peak_mb: float | None  # above what stands before the step; None on a CPU, and of captured modes
    graphs: int | None = None  # that were captured of it, in mode "graph"


class Row(NamedTuple):
    network: str
    precision: str
    p: float
    mode: str
    figures: dict[str, Figures]  # by kind

    @property
    def speedups(self) -> dict[str, float]:
        """Of each of ours over nn.Dropout in the same mode, by wall time; empty without that."""
        if DROPOUT not in self.figures:
            return {}
        dropout = self.figures[DROPOUT].wall_ms
        return {
            kind: dropout / figures.wall_ms
            for kind, figures in self.figures.items()
            if kind not in (NONE, DROPOUT)
        }


class Training:
    """A network with its batch, and a step of it in one mode. All kinds have the same weights."""

    def __init__(
        self, name: str, drop: Drop, precision: str, mode: str, settings: Settings
    ) -> None:
        network, device = NETWORKS[name], settings.device
        batch = settings.batch or network.batch_on(device)
        torch.manual_seed(settings.seed)
        self.model = network.build(drop).to(device)
        self.inputs, self.targets = network.inputs(batch, device), network.targets(batch, device)
        self._is_amp = precision == "amp"
        dtype = torch.bfloat16 if self._is_amp else getattr(torch, precision)
        if not self._is_amp:
            self.model = self.model.to(dtype)
            self.inputs = _floats_to(dtype, self.inputs)
        self.targets = _floats_to(dtype, self.targets)
        self._optimizer = None
        if settings.whole_step:
            is_captured = device.type == "cuda"
            self._optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=1e-4, fused=True, capturable=is_captured
            )
        if network.is_converted:
            with self._autocast():
                self.model = drop.converted(self.model, self.inputs)
        self._forward: Callable[[Tensor], Tensor] = self.model
        self._marks_steps = mode == "reduce-overhead"
        if mode in ("compile", "reduce-overhead"):
            how = "default" if mode == "compile" else mode
            self._forward = torch.compile(self.model, dynamic=False, mode=how)
        has_patterns = drop.kind == ROW_PATTERN and device.type == "cuda"
        for _ in range(WARM_UP_OF_PATTERNS if has_patterns else WARM_UP):
            self._step()
        self.step: Callable[[], object] = self._step
        self.graphs: int | None = None
        if mode == "graph":
            self.step = step = capture(self.model, self._step, warm_up=1)
            self.graphs = step.graphs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self._is_amp)

    def _step(self) -> None:
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        self.model.zero_grad(set_to_none=True)
        self.inputs.grad = None
        with self._autocast():
            output = self._forward(self.inputs)
        if self.targets.is_floating_point():
            output.backward(self.targets)
        else:
            loss_of(output, self.targets).backward()
        if self._optimizer is not None:
            self._optimizer.step()


def _floats_to(dtype: torch.dtype, x: Tensor) -> Tensor:
    """As a leaf that requires a gradient where x does; integers stay."""
    return x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x


def run(settings: Settings) -> Report:
    """Measures, with a line of progress to stderr for each row that is done."""
    rows: list[Row] = []
    notes: list[str] = []
    with kept_when_stopped(rows, notes):
        for name, precision in itertools.product(settings.networks, settings.precisions):
            for p, mode in itertools.product(settings.rates or (NETWORKS[name].p,), settings.modes):
                rows.append(_measure(name, precision, p, mode, settings))
                found = ", ".join(f"{k} {x:.2f}" for k, x in rows[-1].speedups.items())
                line = f"{name}, {precision}, p = {p:g}, {mode}: {found or 'measured'}"
                print(line, file=sys.stderr, flush=True)
    kinds, ours = rows[0].figures, rows[0].speedups
    times = [f"{kind} ms" for kind in kinds] + [f"{kind} × nn.Dropout" for kind in ours]
    text = markdown.table([*HEADER, *times], [_cells(row) for row in rows], left=4)
    if memory := [cells for row in rows if (cells := _memory_cells(row))]:
        header = [*HEADER, *(f"{kind} peak MB" for kind in kinds)]
        text += "\n\n" + markdown.table(header, memory, left=4)
    results = {"rows": [_as_json(row) for row in rows]}
    return Report(text, list(_sentences(rows)), notes, results, [], "")


def _measure(name: str, precision: str, p: float, mode: str, settings: Settings) -> Row:
    torch.compiler.reset()
    kinds = [METHODS[word] for word in settings.methods]
    trainings = {kind: Training(name, Drop(kind, p), precision, mode, settings) for kind in kinds}
    device = settings.device
    peaks: dict[str, float] = {}
    if device.type == "cuda" and mode not in CAPTURED_MODES:
        peaks = {kind: _peak_mb(training.step, device) for kind, training in trainings.items()}
    budget = timing.BUDGETS[device.type]
    steps = STEPS if device.type == "cuda" else 1
    round_ms = sum(wall_ms(training.step, device, steps) for training in trainings.values())
    rounds = min(MAX_ROUNDS, max(budget.min_rounds, int(10 * budget.ms / round_ms)))
    laps: dict[str, list[float]] = {kind: [] for kind in kinds}
    order = list(trainings.items())
    for _ in range(rounds):
        for kind, training in order:
            laps[kind].append(wall_ms(training.step, device, steps) / steps)
        order.reverse()
    return Row(
        name,
        precision,
        p,
        mode,
        {
            kind: Figures(statistics.median(laps[kind]), peaks.get(kind), trainings[kind].graphs)
            for kind in kinds
        },
    )


def _peak_mb(step: Callable[[], object], device: torch.device) -> float:
    """The most that a step allocates above what stands before it."""
    wait_for(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    wait_for(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _sentences(rows: list[Row]) -> Iterator[str]:
    yield "Wall time of a step; × nn.Dropout: its time over a method's, in the same mode."
    found = [(speedup, kind, row) for row in rows for kind, speedup in row.speedups.items()]
    if found:
        speedup, kind, row = min(found, key=lambda each: each[0])
        yield (
            f"Least: {kind} at {speedup:.2f} × nn.Dropout ({row.network}, {row.precision}, "
            f"p = {row.p:g}, {row.mode})."
        )


def _cells(row: Row) -> list[str]:
    times = [f"{figures.wall_ms:.3f}" for figures in row.figures.values()]
    return [*_names(row), *times, *(f"{speedup:.2f}" for speedup in row.speedups.values())]


def _memory_cells(row: Row) -> list[str]:
    """Empty where there is no figure of it."""
    peaks = [f.peak_mb for f in row.figures.values() if f.peak_mb is not None]
    return [*_names(row), *(f"{peak:.0f}" for peak in peaks)] if peaks else []


def _names(row: Row) -> list[str]:
    return [row.network, row.precision, f"{row.p:g}", row.mode]


def _as_json(row: Row) -> dict[str, Any]:
    figures = {kind: figure._asdict() for kind, figure in row.figures.items()}
    return {**row._asdict(), "figures": figures, "speedups": row.speedups}
