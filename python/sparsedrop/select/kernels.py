"""The kernels' tiles and limits, architecture by architecture, and those of this build on a GPU."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from sparsedrop import _native

KERNEL_DTYPES = (torch.bfloat16, torch.float16)

MAX_EXTENT = 2**31 - 1 - 256 - 8
"""The largest extent: the kernels count to 2**31 - 1 in whole tiles, of 256 at most, and operands
may have been padded to multiples of 8 before."""


class Tile(NamedTuple):
    """The work of one CTA: n / slot_n slots side by side, k deep."""

    m: int
    n: int
    k: int
    slot_n: int
    architecture: str = "sm90"

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


class Limits(NamedTuple):
    """Of split-K: into how many, up to which width of a tile, and how many slots all may have."""

    max_split_k: int
    max_split_n: int
    max_split_slots: int


LIMITS = {"sm90": Limits(max_split_k=8, max_split_n=128, max_split_slots=8192)}


def tiles_on(major: int, minor: int) -> tuple[Tile, ...]:
    """This build's tiles for a GPU of that compute capability, best architecture first."""
    if _native.C is None:
        return ()
    return tuple(
        Tile(m, n, k, slot_n, architecture.name)
        for architecture in _native.C.ARCHITECTURES
        if architecture.runs_on(major, minor)
        for m, n, k, slot_n in architecture.tiles
    )


def id_within(tiles: tuple[Tile, ...], position: int) -> int:
    """The id by which its own architecture knows the tile at that position."""
    architecture = tiles[position].architecture
    return sum(tile.architecture == architecture for tile in tiles[:position])


@functools.cache
def gpu_facts(index: int) -> dict[str, Any]:
    """What a `Request` says of a GPU: capability, name, SMs, and the tiles of this build."""
    properties = torch.cuda.get_device_properties(index)
    capability = _native.capability(index)
    return {
        "capability": capability,
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "tiles": tiles_on(*capability),
    }
