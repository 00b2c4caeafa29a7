"""Training steps of one layer: forward and backward through autograd, a new mask each time."""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.nn import SparseDropLinear
from sparsedrop.tools import markdown
from sparsedrop.tools.bench import timing
from sparsedrop.tools.bench.products import Extents
from sparsedrop.tools.bench.report import STOPPED, Line, Panel, Report, kept_when_stopped
from sparsedrop.tools.bench.settings import Settings, block_name
from sparsedrop.tools.bench.timing import Call, Turns
from sparsedrop.tools.clock import wait_for, wall_ms
from sparsedrop.tools.names import dtype_name

LINEAR, DROPOUT, SPARSEDROP = "Linear", "Dropout + Linear", "SparseDropLinear"
COMPILED = " compiled"

STEPS = 50
"""Between two waits for the GPU, as in a training loop."""

MAX_ROUNDS = 21

HOST_EXTENTS = Extents(1024, 1024, 1024)
"""A problem that a GPU has done before the host has launched the next one."""

HOST_CALLS = 50

HEADER = ["M×N×K", "dtype", "p", "layer", "wall ms", "GPU ms", "peak MB", "speed-up"]
HOST_HEADER = ["host µs per call", "dtype", "forward", "forward + backward"]


class Figures(NamedTuple):
    """Of one step of one layer; None where there is no GPU, or it could not be measured."""

    wall_ms: float  # host included
    gpu_ms: float | None  # replayed as a CUDA graph
    peak_mb: float | None  # above what is allocated before the step


class Row(NamedTuple):
    """All layers at one shape and rate."""

    extents: Extents
    p: float
    dtype: torch.dtype
    figures: dict[str, Figures]

    def speedup(self, name: str) -> float:
        """Over Dropout + Linear, compiled where the layer is; of wall time."""
        baseline = DROPOUT + COMPILED if name.endswith(COMPILED) else DROPOUT
        return self.figures[baseline].wall_ms / self.figures[name].wall_ms


class Host(NamedTuple):
    """The host's time of one call, which waits for nothing."""

    name: str
    dtype: torch.dtype
    forward_us: float
    step_us: float


class Layers:
    """The layers under comparison, sharing one weight, and what a step of them needs."""

    def __init__(self, extents: Extents, p: float, dtype: torch.dtype, settings: Settings) -> None:
        m, n, k = extents
        device = settings.device
        self._autocast = torch.autocast(device.type, dtype, enabled=settings.amp)
        weight_dtype = torch.float32 if settings.amp else dtype
        linear = nn.Linear(k, n, device=device, dtype=weight_dtype)
        self.x = torch.randn(m, k, device=device, dtype=dtype, requires_grad=True)
        self._grad = torch.randn(m, n, device=device, dtype=dtype)
        self.modules: dict[str, Callable[[Tensor], Tensor]] = {
            LINEAR: linear,
            DROPOUT: nn.Sequential(nn.Dropout(p), linear),
            SPARSEDROP: SparseDropLinear.from_linear(
                linear, p=p, block_shape=settings.block, sampler=settings.sampler
            ),
        }
        if settings.compiled:
            torch.compiler.reset()  # else the rates would soon reach the limit of recompilations
            for name in (DROPOUT, SPARSEDROP):
                compiled = torch.compile(self.modules[name], dynamic=False)
                self.modules[name + COMPILED] = compiled
        self.leaves = (self.x, *linear.parameters())

    def step(self, name: str) -> None:
        """One forward and backward, gradients made anew."""
        for leaf in self.leaves:
            leaf.grad = None
        self.forward(name).backward(self._grad)

    def forward(self, name: str) -> Tensor:
        """The result of a layer, under autocast if that is asked for."""
        with self._autocast:
            return self.modules[name](self.x)


def run(settings: Settings) -> Report:
    """Measures, with a line of progress to stderr for each row that is done."""
    rows: list[Row] = []
    notes: list[str] = []
    total = len(settings.shapes) * len(settings.dtypes) * len(settings.rates)
    each = itertools.product(settings.shapes, settings.dtypes, settings.rates)
    with kept_when_stopped(rows, notes):
        for extents, dtype, p in each:
            rows.append(_measure(extents, p, dtype, settings, notes))
            print(f"{len(rows)}/{total}  {_progress(rows[-1])}", file=sys.stderr, flush=True)
    hosts: list[Host] = []
    if settings.device.type == "cuda" and STOPPED not in notes:
        hosts = [host for dtype in settings.dtypes for host in _hosts(dtype, settings)]
    text = markdown.table(HEADER, [cells for row in rows for cells in _cells(row)], left=4)
    if hosts:
        text += "\n\n" + markdown.table(HOST_HEADER, list(map(_host_cells, hosts)), left=2)
    results = {
        "rows": [_as_json(row) for row in rows],
        "host": [{**host._asdict(), "dtype": dtype_name(host.dtype)} for host in hosts],
    }
    panels = list(_panels(rows))
    return Report(text, _sentences(rows, settings), notes, results, panels, "speed-up")


def _measure(
    extents: Extents, p: float, dtype: torch.dtype, settings: Settings, notes: list[str]
) -> Row:
    layers = Layers(extents, p, dtype, settings)
    walls = _walls_ms(layers, settings.device)
    gpu: dict[str, float] = {}
    peaks: dict[str, float] = {}
    if settings.device.type == "cuda":
        peaks = {name: _peak_mb(layers, name) for name in layers.modules}
        gpu, left_out = _gpu_ms(layers, settings.device)
        notes += [f"{extents}, p = {p:g}: {sentence}" for sentence in left_out]
    figures = {name: Figures(ms, gpu.get(name), peaks.get(name)) for name, ms in walls.items()}
    return Row(extents, p, dtype, figures)


def _gpu_ms(layers: Layers, device: torch.device) -> tuple[dict[str, float], list[str]]:
    """Time of one step of each layer as a CUDA graph, and a sentence for each that is left out."""
    turns, candidates, left_out = Turns(device), {}, []
    for name in layers.modules:
        try:
            candidates[name] = turns.prepare([functools.partial(layers.step, name)])
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            left_out.append(f"no GPU time of {name}: {reason}")
    return {name: us / 1e3 for name, us in turns.medians_us(candidates).items()}, left_out


def _walls_ms(layers: Layers, device: torch.device) -> dict[str, float]:
    """Wall-clock time of one step of each layer; they take turns, medians."""
    for name in layers.modules:  # compiles, and warms up
        for _ in range(3):
            layers.step(name)
    estimate_ms = sum(
        wall_ms(functools.partial(layers.step, name), device, 1) for name in layers.modules
    )
    budget = timing.BUDGETS[device.type]
    steps = STEPS if device.type == "cuda" else 1
    wanted = int(5 * budget.ms / (estimate_ms * steps))
    rounds = min(MAX_ROUNDS, max(budget.min_rounds, wanted))
    times: dict[str, list[float]] = {name: [] for name in layers.modules}
    for _ in range(rounds):
        for name in layers.modules:
            times[name].append(wall_ms(functools.partial(layers.step, name), device, steps) / steps)
    return {name: statistics.median(laps) for name, laps in times.items()}


def _peak_mb(layers: Layers, name: str) -> float:
    """The most that a step allocates above what there is before it, gradients included."""
    device = layers.x.device
    layers.step(name)
    for leaf in layers.leaves:
        leaf.grad = None
    wait_for(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    layers.step(name)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _hosts(dtype: torch.dtype, settings: Settings) -> Iterator[Host]:
    """The host's time of a forward, and of a step, of each layer at p = 0.5; they take turns."""
    layers = Layers(HOST_EXTENTS, 0.5, dtype, settings)
    calls: dict[tuple[str, str], Call] = {}
    for name in layers.modules:
        calls[name, "forward"] = functools.partial(layers.forward, name)
        calls[name, "step"] = functools.partial(layers.step, name)
    laps: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(MAX_ROUNDS):
        for key, call in calls.items():
            laps[key].append(wall_ms(call, settings.device, HOST_CALLS, wait=False))
    us = {key: statistics.median(ms) * 1e3 / HOST_CALLS for key, ms in laps.items()}
    for name in layers.modules:
        yield Host(name, dtype, us[name, "forward"], us[name, "step"])


def _sentences(rows: list[Row], settings: Settings) -> list[str]:
    names = [SPARSEDROP, SPARSEDROP + COMPILED] if settings.compiled else [SPARSEDROP]
    found = [
        f"Blocks of {block_name(settings.block)}, {settings.sampler} masks"
        f"{', float32 weights under autocast' if settings.amp else ''}. "
        "Speed-up: wall time of Dropout + Linear, compiled where the layer is, over the layer's."
    ]
    for name in names:
        worst = min(rows, key=lambda row: row.speedup(name))
        found.append(
            f"Least speed-up of {name}: {worst.speedup(name):.2f} ({worst.extents}, "
            f"p = {worst.p:g}, {dtype_name(worst.dtype)})."
        )
    return found


def _progress(row: Row) -> str:
    times = ", ".join(f"{name} {figures.wall_ms:.3f}" for name, figures in row.figures.items())
    return f"{row.extents}, p = {row.p:g}, {dtype_name(row.dtype)}: wall ms {times}"


def _cells(row: Row) -> Iterator[list[str]]:
    for name, (wall, gpu, peak) in row.figures.items():
        yield [
            str(row.extents),
            dtype_name(row.dtype),
            f"{row.p:g}",
            name,
            f"{wall:.3f}",
            "–" if gpu is None else f"{gpu:.3f}",
            "–" if peak is None else f"{peak:.0f}",
            f"{row.speedup(name):.2f}",
        ]


def _host_cells(host: Host) -> list[str]:
    times = (host.forward_us, host.step_us)
    return [host.name, dtype_name(host.dtype), *(f"{us:.0f}" for us in times)]


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "shape": str(row.extents),
        "p": row.p,
        "dtype": dtype_name(row.dtype),
        "layers": {
            name: {**figures._asdict(), "speedup": row.speedup(name)}
            for name, figures in row.figures.items()
        },
    }


def _panels(rows: list[Row]) -> Iterator[Panel]:
    """A diagram a shape and dtype: the speed-up of SparseDropLinear, and of leaving dropout out."""
    groups = dict.fromkeys((row.extents, row.dtype) for row in rows)
    for extents, dtype in groups:
        some = [row for row in rows if (row.extents, row.dtype) == (extents, dtype)]
        lines = [
            Line(
                "ideal: dense FLOPs / live FLOPs",
                "ideal",
                [(row.p, 1 / (1 - row.p)) for row in some],
            )
        ]
        for name in some[0].figures:
            if not name.startswith(DROPOUT):
                kind = "bound" if name == LINEAR else "figure"
                lines.append(Line(name, kind, [(row.p, row.speedup(name)) for row in some]))
        yield Panel(f"{extents}, {dtype_name(dtype)}", lines)
