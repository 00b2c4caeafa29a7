"""Which costs hold for a request: the user's own, those of the table, or worked out."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.select import worked_out
from sparsedrop.select.architectures import Tile, names_of
from sparsedrop.select.gpus import CUBLAS, GPUS, TYPICAL, Cost, Memory
from sparsedrop.select.request import Choice, Request
from sparsedrop.select.worked_out import TYPICAL_SPEED, Speed

HOPPER = (9, 0)

CLEAR_GAIN = 1.25
"""How many times as fast kernels have to be by costs that were worked out for a compute capability
on which nothing was measured: what the costs do not know may be as much."""


class Known(NamedTuple):
    """A cost, and where it is from."""

    cost: Cost
    source: str
    # Worked out, for a compute capability on which nothing was measured.
    is_guess: bool = False


def known(request: Request, tile: Tile | str) -> Known:
    """What a tile of the request's, or CUBLAS, costs."""
    precision = request.precision
    if request.saved is not None:
        cost = request.saved.cost(precision, tile)
        if cost is not None:
            return Known(cost, f"from {request.saved.path}")
    table = GPUS[request.gpu].of(precision) if request.gpu in GPUS else {}
    if tile in table:
        return Known(table[tile], f"measured on {request.gpu}")
    speed = request.speed or TYPICAL_SPEED
    cost = worked_out.cost_of(tile, request.capability, request.gpu, speed, precision)
    at = f" at {request.speed.clock_ghz:.2f} GHz" if request.speed is not None else ""
    source = f"worked out from {request.sms} SMs{at}"
    is_measured_elsewhere = tile in GPUS[TYPICAL].of(precision)
    if is_measured_elsewhere and request.capability == HOPPER:
        return Known(cost, f"{source}, as measured on {TYPICAL}")
    return Known(cost, source, is_guess=tile != CUBLAS)


def cost_of(request: Request, tile: Tile | str) -> Cost:
    """What a tile of the request's, or CUBLAS, costs."""
    return known(request, tile).cost


def source_of(request: Request, choice: Choice) -> str:
    """Where the costs of a choice's tile are from, such as "measured on NVIDIA H200"."""
    return known(request, request.tiles[choice.tile]).source


def needed_gain(request: Request, choice: Choice) -> float:
    """How many times as fast as the dense path the kernels have to be expected."""
    return CLEAR_GAIN if known(request, request.tiles[choice.tile]).is_guess else 1.0


def memory_of(request: Request) -> Memory:
    """That of the request's GPU."""
    return worked_out.memory_of(_memory_speed(request))


def copy_bytes_per_us(request: Request) -> float:
    """What a masked copy reads and writes on the request's GPU."""
    return worked_out.copy_bytes_per_us(_memory_speed(request))


def _memory_speed(request: Request) -> Speed:
    """As a GPU says it; the typical one's own constants are fitted, and hold as they are."""
    if request.gpu == TYPICAL or request.speed is None:
        return TYPICAL_SPEED
    return request.speed


def sources(request: Request) -> tuple[tuple[str, str], ...]:
    """Each architecture of the request's GPU, and where its costs are from."""
    first = {tile.architecture: tile for tile in reversed(request.tiles)}
    names = names_of(request.tiles)
    return tuple((name, known(request, first[name]).source) for name in names)
