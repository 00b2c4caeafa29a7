"""Measures the constants of one GPU, from which `sparsedrop.select` predicts its times."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

import sparsedrop
from sparsedrop import select
from sparsedrop.masks import BlockMask
from sparsedrop.select import saved
from sparsedrop.select.architectures import Tile, ctas_per_sm, id_within
from sparsedrop.select.gpus import CUBLAS, CUBLAS_TILE, HALF, TF32, Cost, Costs
from sparsedrop.tools import markdown
from sparsedrop.tools.bench.measure import (
    WrongProductError,
    operand_sets,
    relative_error,
    tf32_allowed,
    tolerance,
)
from sparsedrop.tools.bench.products import PRODUCTS, Extents
from sparsedrop.tools.bench.report import Report
from sparsedrop.tools.bench.settings import Settings
from sparsedrop.tools.bench.timing import Candidate, Turns
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import device_name, dtype_name

WAVES = (1, 2, 4)
K_TILES = (8, 16, 32, 64)

HEADER = ["tile", "launch µs", "µs per tile", "µs per K tile", "TFLOP/s", "worst residual"]


class Sample(NamedTuple):
    """A measured product: every SM has so many tiles, `waves`, of `k_tiles` K tiles each."""

    waves: int
    k_tiles: int
    us: float


class Timed(NamedTuple):
    """What is measured: a tile by its position among those of the GPU, or cuBLAS; in a dtype."""

    tile: Tile
    position: int | None
    dtype: torch.dtype
    name: str

    @property
    def key(self) -> Tile | str:
        return CUBLAS if self.position is None else self.tile

    @property
    def precision(self) -> str:
        return TF32 if self.dtype is torch.float32 else HALF


def fit(samples: Sequence[Sample], sharing: int = 1) -> Cost:
    """The constants with the least squared relative errors, none of them below 0.

    sharing: CTAs that run on an SM at a time, whose tiles are one wave.

    Raises:
        ValueError: where the samples do not tell the three constants apart.
    """
    waves = [_waves(s, sharing) for s in samples]
    rows = [[1.0, w, w * s.k_tiles] for w, s in zip(waves, samples, strict=True)]
    terms = torch.tensor(rows, dtype=torch.double).reshape(-1, 3)
    terms = terms / torch.tensor([[s.us] for s in samples], dtype=torch.double).reshape(-1, 1)
    if torch.linalg.matrix_rank(terms) < 3:
        raise ValueError(f"{len(samples)} samples do not tell launch, tile and K tile apart")
    found, free = torch.full((3,), -1.0, dtype=torch.double), [0, 1, 2]
    while found.min() < 0.0:  # what would be below is 0, and the others are fitted again
        ones = torch.ones(len(samples), 1, dtype=torch.double)
        solution = torch.linalg.lstsq(terms[:, free], ones).solution.flatten()
        found = torch.zeros(3, dtype=torch.double)
        found[free] = solution
        free = [i for i in free if found[i] > 0.0]
    return Cost(*found.tolist())


def _waves(sample: Sample, sharing: int) -> int:
    return -(-sample.waves // sharing)


def worst_residual(cost: Cost, samples: Sequence[Sample], sharing: int = 1) -> float:
    """The largest error of a prediction, as a fraction of what was measured."""
    return max(abs(cost.us(_waves(s, sharing), s.k_tiles) / s.us - 1) for s in samples)


def well_filled(tile: Tile, waves: int, k_tiles: int, sms: int) -> Extents:
    """The problem nearest to a square that gives every SM so many whole tiles."""
    tile_m, tile_n, tile_k, *_ = tile
    tiles = waves * sms
    divisors = [d for d in range(1, tiles + 1) if tiles % d == 0]

    def skew(rows: int) -> float:
        return abs(math.log(rows * tile_m / (tiles // rows * tile_n)))

    rows = min(divisors, key=skew)
    return Extents(rows * tile_m, tiles // rows * tile_n, k_tiles * tile_k)


def table_entry(gpu: str, sms: int, capability: tuple[int, int], costs: Mapping[str, Costs]) -> str:
    """Python to paste where the selection's constants are; costs by their precision."""
    lines = [f'"{gpu}": Gpu(', f"    sms={sms},"]
    for precision, some in costs.items():
        lines.append(f"    {'tf32' if precision == TF32 else 'costs'}={{")
        for tile, cost in some.items():
            of = tile if isinstance(tile, Tile) else CUBLAS_TILE
            key = f"Tile{_arguments(tile)}" if isinstance(tile, Tile) else "CUBLAS"
            rate = cost.tflops(of, sms * ctas_per_sm(of, capability))
            lines.append(
                f"        {key}: Cost(launch_us={cost.launch_us:.2f}, tile_us={cost.tile_us:.3f}, "
                f"k_tile_us={cost.k_tile_us:.4f}),  # {rate:.0f} TFLOP/s"
            )
        lines.append("    },")
    return "\n".join([*lines, "),"])


def _arguments(tile: Tile) -> tuple[object, ...]:
    """What makes the tile anew, without what is the default."""
    return tuple(tile)[: 4 if tile == Tile(*tile[:4]) else None]


def to_time(
    tiles: tuple[Tile, ...], architectures: Sequence[str], dtypes: Sequence[torch.dtype]
) -> list[Timed]:
    """The tiles of these architectures, or of all, and cuBLAS: in one dtype of each precision.

    Raises:
        UserError: for an architecture or a dtype without kernels.
    """
    there = select.names_of(tiles)
    for name in architectures:
        if name not in there:
            raise UserError(
                f"--architecture {name}: the kernels that run on this GPU are those of "
                f"{' and '.join(there) or 'no architecture'}"
            )
    found: list[Timed] = []
    for dtype in dtypes:
        if dtype is torch.float64:
            raise UserError("--tune is about what kernels multiply, which is not float64")
        if Timed(CUBLAS_TILE, None, dtype, "").precision in {timed.precision for timed in found}:
            continue
        for position, tile in enumerate(tiles):
            name = tile.architecture
            if name in (architectures or there) and dtype in select.architecture(name).dtypes:
                label = f"{name} #{id_within(tiles, position)} {tile}"
                found.append(Timed(tile, position, dtype, label))
        found.append(Timed(CUBLAS_TILE, None, dtype, CUBLAS))
    return found


def run(settings: Settings) -> Report:
    """Measures the tiles that run on the GPU, and cuBLAS, in the dtypes of the settings.

    Raises:
        UserError: for an architecture or a dtype without kernels, or a folder that cannot be
            written.
        WrongProductError: where a tile's product is not cuBLAS's.
    """
    facts = select.gpu_facts(settings.device.index)
    tiles, sms, gpu = facts["tiles"], facts["sms"], device_name(settings.device)
    capability = facts["capability"]
    all_timed = to_time(tiles, settings.architectures, settings.dtypes)
    samples: list[list[Sample]] = []
    for number, timed in enumerate(all_timed):
        with tf32_allowed():
            samples.append(_samples(timed, sms, settings.device))
        progress = f"{number + 1}/{len(all_timed)}  {timed.name} in {dtype_name(timed.dtype)}"
        print(progress, file=sys.stderr, flush=True)
    sharing = [ctas_per_sm(timed.tile, capability) for timed in all_timed]
    costs = list(map(fit, samples, sharing))
    by_precision: dict[str, dict[Tile | str, Cost]] = {}
    for timed, cost in zip(all_timed, costs, strict=True):
        by_precision.setdefault(timed.precision, {})[timed.key] = cost
    rows = [
        _cells(timed, cost, sms * ctas, worst_residual(cost, some, ctas))
        for timed, cost, some, ctas in zip(all_timed, costs, samples, sharing, strict=True)
    ]
    entry = table_entry(gpu, sms, capability, by_precision)
    results = {
        "costs": [
            {**_named(timed), **cost._asdict(), "samples": [s._asdict() for s in some]}
            for timed, cost, some in zip(all_timed, costs, samples, strict=True)
        ],
        "entry": entry,
    }
    sentences = ["Fitted to well-filled products, every block live."]
    if settings.save:
        sentences.append(_save(gpu, sms, tiles, by_precision))
    return Report(f"{markdown.table(HEADER, rows)}\n\n{entry}", sentences, [], results, [], "")


def _named(timed: Timed) -> dict[str, Any]:
    """JSON values."""
    return {"name": timed.name, "dtype": dtype_name(timed.dtype), "precision": timed.precision}


def _save(gpu: str, sms: int, tiles: tuple[Tile, ...], costs: Mapping[str, Costs]) -> str:
    try:
        path = saved.save(gpu, sms, tiles, costs)
    except OSError as error:
        raise UserError(f"--save: {error}") from error
    return f"Kept in {path}: from its next start on, a program's products are chosen by them."


def _samples(timed: Timed, sms: int, device: torch.device) -> list[Sample]:
    """The forward product by that tile, or by cuBLAS, at all WAVES and K_TILES; interleaved."""
    tile, position, dtype, _ = timed
    turns = Turns(device)
    candidates: dict[tuple[int, int], Candidate] = {}
    for waves in WAVES:
        for k_tiles in K_TILES:
            extents = well_filled(tile, waves, k_tiles, sms)
            calls: list[Callable[[], torch.Tensor]] = []
            for step in operand_sets(extents, dtype, device):
                a, b = PRODUCTS["forward"].factors(step)
                if position is None:
                    calls.append(functools.partial(torch.mm, a, b))
                else:
                    mask = _all_live(a, tile)
                    calls.append(functools.partial(sparsedrop.matmul, a, b, a_mask=mask))
            path = None if position is None else "kernel"
            with select.override(path, position, swap=False, split_k=1):
                if position is not None:
                    _check(timed, calls[-1](), torch.mm(a, b))
                candidates[waves, k_tiles] = turns.prepare(calls)
    times = turns.medians_us(candidates)
    return [Sample(waves, k_tiles, us) for (waves, k_tiles), us in times.items()]


def _check(timed: Timed, ours: torch.Tensor, dense: torch.Tensor) -> None:
    """What is measured for the selection to take has to be right."""
    error = relative_error(ours, dense)
    if not error <= tolerance(timed.dtype):
        name = f"{timed.name} in {dtype_name(timed.dtype)}"
        raise WrongProductError(f"{name}: differs from the dense product by {error:.1e}")


def _all_live(a: torch.Tensor, tile: Tile) -> BlockMask:
    block = (max(128, tile.m), 128)
    grid = (-(-a.shape[0] // block[0]), -(-a.shape[1] // block[1]))
    live = torch.ones(grid, dtype=torch.bool, device=a.device)
    return BlockMask.from_live(live, (a.shape[0], a.shape[1]), block_shape=block)


def _cells(timed: Timed, cost: Cost, ctas: int, residual: float) -> list[str]:
    return [
        f"{timed.name} in {dtype_name(timed.dtype)}",
        f"{cost.launch_us:.2f}",
        f"{cost.tile_us:.3f}",
        f"{cost.k_tile_us:.4f}",
        f"{cost.tflops(timed.tile, ctas):.0f}",
        f"{residual:.1%}",
    ]
