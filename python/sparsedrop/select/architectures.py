"""The architectures of the kernels: their tiles, dtypes and limits, as this build says them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsedrop import _native

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
"""What the kernels of every architecture take; some take float32 too, and multiply it as TF32."""

MAX_EXTENT = 2**31 - 1 - 256 - 8
"""The largest extent: the kernels count to 2**31 - 1 in whole tiles, of 256 at most, and operands
may have been padded to multiples of 8 before."""

TESTED = frozenset({"sm90", "sm80"})
"""The architectures whose kernels have passed their tests on a GPU: both on an H200, sm80 by its
PTX. The selection takes no others by itself, only where an override forces them or where
`sparsedrop bench --tune --save` measured them. Whoever has run the tests of another one on a GPU
adds it here."""


class Tile(NamedTuple):
    """The work of one CTA: n / slot_n slots side by side, k deep."""

    m: int
    n: int
    k: int
    slot_n: int
    architecture: str = "sm90"

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


def ctas_per_sm(tile: Tile, capability: tuple[int, int]) -> int:
    """How many CTAs of a tile share an SM of that compute capability.

    A CTA that has its SM for itself takes about as long as two that share it: it has a warp for
    every partition either way, and waits for memory (h200_tune_sm80.json, to 11 % at worst).
    """
    has_little_shared_memory = capability in ((8, 6), (8, 9)) or capability >= (12, 0)
    shares = tile.architecture == "sm80" and tile.n == 128  # see TileConfigs of cpp/gemm/sm80
    return 2 if shares and not has_little_shared_memory else 1


class Limits(NamedTuple):
    """Of split-K: into how many, up to which width of a tile, and how many slots all may have."""

    max_split_k: int
    max_split_n: int
    max_split_slots: int


class Architecture(NamedTuple):
    """What its kernels take: operands of these dtypes, float32 multiplied as TF32."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    limits: Limits


WITHOUT_BUILD = Architecture("sm90", KERNEL_DTYPES, Limits(8, 128, 8192))
"""What holds for its tiles where no build can be asked, as on a machine without nvcc."""


def architecture(name: str) -> Architecture:
    """What this build says of an architecture.

    Raises:
        KeyError: where the build lacks it.
    """
    if name not in built():
        return {WITHOUT_BUILD.name: WITHOUT_BUILD}[name]
    found = {known.name: known for known in _native.C.ARCHITECTURES}[name]
    if not hasattr(found, "dtypes"):  # a build older than this package, which it is compared with
        limits = Limits(found.max_split_k, found.max_split_n, found.max_split_slots)
        return Architecture(name, KERNEL_DTYPES, limits)
    dtypes = tuple(getattr(torch, each) for each in found.dtypes)
    return Architecture(name, dtypes, Limits(*found.limits))


def has_kernels(name: str, dtype: torch.dtype) -> bool:
    """Whether this build has kernels of that architecture for operands of that dtype."""
    return name in (WITHOUT_BUILD.name, *built()) and dtype in architecture(name).dtypes


def built() -> tuple[str, ...]:
    """The names of this build's architectures, best first."""
    return () if _native.C is None else tuple(each.name for each in _native.C.ARCHITECTURES)


def tiles_on(major: int, minor: int) -> tuple[Tile, ...]:
    """This build's tiles for a GPU of that compute capability, best architecture first."""
    if _native.C is None:
        return ()
    return tuple(
        Tile(m, n, k, slot_n, each.name)
        for each in _native.C.ARCHITECTURES
        if each.runs_on(major, minor)
        for m, n, k, slot_n in each.tiles
    )


def names_of(tiles: tuple[Tile, ...]) -> tuple[str, ...]:
    """The architectures of tiles, in their order."""
    return tuple(dict.fromkeys(tile.architecture for tile in tiles))


def id_within(tiles: tuple[Tile, ...], position: int) -> int:
    """The id by which its own architecture knows the tile at that position."""
    name = tiles[position].architecture
    return sum(tile.architecture == name for tile in tiles[:position])
