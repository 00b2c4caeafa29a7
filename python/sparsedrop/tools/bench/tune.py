"""Measures the constants of one GPU, from which `sparsedrop.costs` predicts its times."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

import sparsedrop
from sparsedrop import select
from sparsedrop.masks import BlockMask
from sparsedrop.select.architectures import Tile
from sparsedrop.select.gpus import CUBLAS, CUBLAS_TILE, Cost
from sparsedrop.tools import markdown
from sparsedrop.tools.bench.measure import operand_sets
from sparsedrop.tools.bench.products import PRODUCTS, Extents
from sparsedrop.tools.bench.report import Report
from sparsedrop.tools.bench.settings import Settings
from sparsedrop.tools.bench.timing import Candidate, Turns
from sparsedrop.tools.names import device_name, dtype_name

WAVES = (1, 2, 4)
K_TILES = (8, 16, 32, 64)

HEADER = ["tile", "launch µs", "µs per tile", "µs per K tile", "TFLOP/s", "worst residual"]


class Sample(NamedTuple):
    """A measured product: every SM has `waves` tiles of `k_tiles` K tiles each."""

    waves: int
    k_tiles: int
    us: float


def fit(samples: Sequence[Sample]) -> Cost:
    """The constants with the least squared relative errors.

    Raises:
        ValueError: where the samples do not tell the three constants apart.
    """
    terms = torch.tensor([[1.0, s.waves, s.waves * s.k_tiles] for s in samples], dtype=torch.double)
    weights = 1 / torch.tensor([[s.us] for s in samples], dtype=torch.double)
    terms = terms.reshape(-1, 3) * weights.reshape(-1, 1)
    if torch.linalg.matrix_rank(terms) < 3:
        raise ValueError(f"{len(samples)} samples do not tell launch, tile and K tile apart")
    found = torch.linalg.lstsq(terms, torch.ones(len(samples), 1, dtype=torch.double))
    return Cost(*found.solution.flatten().tolist())


def worst_residual(cost: Cost, samples: Sequence[Sample]) -> float:
    """The largest error of a prediction, as a fraction of what was measured."""
    return max(abs(cost.us(s.waves, s.k_tiles) / s.us - 1) for s in samples)


def well_filled(tile: Tile, waves: int, k_tiles: int, sms: int) -> Extents:
    """The problem nearest to a square that gives every SM so many whole tiles."""
    tile_m, tile_n, tile_k, *_ = tile
    tiles = waves * sms
    divisors = [d for d in range(1, tiles + 1) if tiles % d == 0]

    def skew(rows: int) -> float:
        return abs(math.log(rows * tile_m / (tiles // rows * tile_n)))

    rows = min(divisors, key=skew)
    return Extents(rows * tile_m, tiles // rows * tile_n, k_tiles * tile_k)


def table_entry(gpu: str, sms: int, tiles: dict[str, Tile], costs: dict[str, Cost]) -> str:
    """Python to paste where the selection's constants are."""
    lines = [f'"{gpu}": Gpu(', f"    sms={sms},", "    costs={"]
    for name, cost in costs.items():
        key = "CUBLAS" if name == CUBLAS else f"Tile{_arguments(tiles[name])}"
        lines.append(
            f"        {key}: Cost(launch_us={cost.launch_us:.2f}, tile_us={cost.tile_us:.3f}, "
            f"k_tile_us={cost.k_tile_us:.4f}),  # {cost.tflops(tiles[name], sms):.0f} TFLOP/s"
        )
    return "\n".join([*lines, "    },", "),"])


def _arguments(tile: Tile) -> tuple[object, ...]:
    """What makes the tile anew, without what is the default."""
    return tuple(tile)[: 4 if tile == Tile(*tile[:4]) else None]


def run(settings: Settings) -> Report:
    """Measures every tile that is compiled in, and cuBLAS, in the first dtype of the settings."""
    device, dtype = settings.device, settings.dtypes[0]
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    kernels = select.gpu_facts(device.index)["tiles"] if dtype in select.KERNEL_DTYPES else ()
    tiles: dict[str, Tile] = {f"#{index} {tile}": tile for index, tile in enumerate(kernels)}
    tiles[CUBLAS] = CUBLAS_TILE
    samples: dict[str, list[Sample]] = {}
    for index, (name, tile) in enumerate(tiles.items()):
        samples[name] = _samples(tile, None if name == CUBLAS else index, sms, settings)
        print(f"{index + 1}/{len(tiles)}  {name}", file=sys.stderr, flush=True)
    costs = {name: fit(some) for name, some in samples.items()}
    residuals = {name: worst_residual(cost, samples[name]) for name, cost in costs.items()}
    rows = [_cells(name, cost, tiles[name], sms, residuals[name]) for name, cost in costs.items()]
    entry = table_entry(device_name(device), sms, tiles, costs)
    results = {
        "dtype": dtype_name(dtype),
        "costs": {
            name: {**cost._asdict(), "tflops": cost.tflops(tiles[name], sms)}
            for name, cost in costs.items()
        },
        "samples": {name: [s._asdict() for s in some] for name, some in samples.items()},
        "entry": entry,
    }
    text = f"{markdown.table(HEADER, rows)}\n\n{entry}"
    sentences = [f"Fitted to well-filled products in {dtype_name(dtype)}, every block live."]
    return Report(text, sentences, [], results, [], "")


def _samples(tile: Tile, index: int | None, sms: int, settings: Settings) -> list[Sample]:
    """The forward product by that tile, or by cuBLAS, at all WAVES and K_TILES; interleaved."""
    device, dtype = settings.device, settings.dtypes[0]
    turns = Turns(device)
    candidates: dict[tuple[int, int], Candidate] = {}
    for waves in WAVES:
        for k_tiles in K_TILES:
            extents = well_filled(tile, waves, k_tiles, sms)
            calls = []
            for step in operand_sets(extents, dtype, device):
                a, b = PRODUCTS["forward"].factors(step)
                if index is None:
                    calls.append(functools.partial(torch.mm, a, b))
                else:
                    mask = _all_live(a, tile)
                    calls.append(functools.partial(sparsedrop.matmul, a, b, a_mask=mask))
            with select.override(None if index is None else "kernel", index, swap=False, split_k=1):
                candidates[waves, k_tiles] = turns.prepare(calls)
    times = turns.medians_us(candidates)
    return [Sample(waves, k_tiles, us) for (waves, k_tiles), us in times.items()]


def _all_live(a: torch.Tensor, tile: Tile) -> BlockMask:
    block = (max(128, tile.m), 128)
    grid = (-(-a.shape[0] // block[0]), -(-a.shape[1] // block[1]))
    live = torch.ones(grid, dtype=torch.bool, device=a.device)
    return BlockMask.from_live(live, (a.shape[0], a.shape[1]), block_shape=block)


def _cells(name: str, cost: Cost, tile: Tile, sms: int, residual: float) -> list[str]:
    return [
        name,
        f"{cost.launch_us:.2f}",
        f"{cost.tile_us:.3f}",
        f"{cost.k_tile_us:.4f}",
        f"{cost.tflops(tile, sms):.0f}",
        f"{residual:.1%}",
    ]
