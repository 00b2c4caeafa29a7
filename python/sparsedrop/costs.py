"""How long the kernels take for a product: a small model, and what it knows of each GPU.

    time = launch + waves · (tile + k_tiles · k_tile)

A wave is one output tile for each SM. Where operands have to be read from memory again and again,
that is a limit of its own. `sparsedrop bench --tune` measures the constants of a GPU and prints its
entry for GPUS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

Tile = tuple[int, int, int, int]
"""tile_m, tile_n, tile_k, slot_n."""

CUBLAS = "cublas"
CUBLAS_TILE = (128, 256, 64, 256)
"""What cuBLAS mostly takes for large products in 16 bits; its constants are in these tiles."""

CUBLAS_COLUMNS = (256, 192, 128, 64)
"""Widths of the tiles it has; the narrower ones take in proportion."""

SINGLE = 0.62
"""What a tile with one of its two slots takes, of the time of a whole one: for the large tile 0.36
us a K tile on an H200, and its epilogue. It stands for the others too."""

CACHE_BYTES = 40e6
"""Of an operand that stays in the L2 cache of a Hopper GPU, 50 to 60 MB, while others are read
beside it. One of twice the size does not stay at all."""

MEMORY_BYTES_PER_US = 3.5e6
"""To and from memory while the kernels multiply: fitted to h200_tiles.json."""

PASSING_SHARE = 1 / 8
"""Of a result on its way to memory, what takes an operand's place in the cache: fitted likewise."""

LINES_IN_STEP = 8
"""Lines of output tiles that read the same part of b at the same time."""

MASKED_RESULT_US = 0.5
"""What it takes a CTA longer to find its first tile where the result is masked: an estimate.
Between 0.3 and 1.5 no choice in h200_tiles.json changes."""

OWN_LINES = 256
LIST_US, LIST_SLOT_US = 8.0, 0.5
"""Where there are more lines, or both b and the result are masked, a kernel of its own lists the
tiles; with both masks a warp counts the K tiles of every slot of its line, 32 lines at a time."""


class Cost(NamedTuple):
    """What a tile costs, in microseconds."""

    launch_us: float
    tile_us: float
    k_tile_us: float

    def us(self, waves: float, k_tiles: float) -> float:
        """The time of a product."""
        return self.launch_us + waves * (self.tile_us + k_tiles * self.k_tile_us)

    def tflops(self, tile: Tile, sms: int) -> float:
        """Of all SMs together within the K tiles."""
        tile_m, tile_n, tile_k = tile[:3]
        return 2e-6 * tile_m * tile_n * tile_k * sms / self.k_tile_us


class Gpu(NamedTuple):
    """The costs of the kernels' tiles, and of cuBLAS's."""

    sms: int
    costs: dict[Tile | str, Cost]


GPUS = {
    "NVIDIA H200": Gpu(
        sms=132,
        costs={
            # The first two are of an earlier run of --tune than the others: with the later one's,
            # (4.25, 1.774, 0.6600) and (3.52, 1.439, 0.3261), the choices in h200_tiles.json are
            # 1.1 % from the best in the mean, and not 0.5.
            (128, 256, 64, 128): Cost(launch_us=5.31, tile_us=1.264, k_tile_us=0.6289),
            (128, 128, 64, 64): Cost(launch_us=4.77, tile_us=1.253, k_tile_us=0.3248),
            (64, 128, 64, 64): Cost(launch_us=3.11, tile_us=0.981, k_tile_us=0.2321),
            (128, 192, 64, 64): Cost(launch_us=4.25, tile_us=1.5, k_tile_us=0.47),
            CUBLAS: Cost(launch_us=2.81, tile_us=1.993, k_tile_us=0.6419),
        },
    ),
}

TYPICAL = "NVIDIA H200"
"""Whose costs stand for those of a GPU without an entry; its count of SMs is its own."""


class Work(NamedTuple):
    """A product as the kernels run it, after any swap. Extents are at least 1, shares in [0, 1]."""

    m: int
    n: int
    k: int
    # Expected share of an output tile's K tiles that are live, and how many blocks they come in.
    keep: float
    k_blocks: int
    # Whether output tiles differ in their K tiles.
    is_uneven: bool
    has_b_mask: bool
    # Expected live share of the result, and its blocks; None: no mask.
    out_keep: float
    out_block: tuple[int, int] | None
    # Of the live part of a, and of all of b and the result.
    a_bytes: float
    b_bytes: float
    out_bytes: float


class _Tiles(NamedTuple):
    wholes: float
    singles: float


def costs_of(gpu: str) -> dict[Tile | str, Cost]:
    """The costs of a GPU by its name, or those of the typical one."""
    return {**GPUS[TYPICAL].costs, **GPUS.get(gpu, GPUS[TYPICAL]).costs}


def expected_us(work: Work, tile: Tile, cost: Cost, sms: int) -> float:
    """Expected time of a product by these tiles on so many SMs, in microseconds."""
    tile_m, tile_n, tile_k, slot_n = tile
    lines, slots, per_tile = -(-work.m // tile_m), -(-work.n // slot_n), tile_n // slot_n
    all_k_tiles = -(-work.k // tile_k)
    mean = all_k_tiles * work.keep
    longest = mean
    if work.is_uneven:
        # The largest of so many nearly normal counts.
        deviation = all_k_tiles * math.sqrt(work.keep * (1 - work.keep) / work.k_blocks)
        longest = min(all_k_tiles, mean + deviation * math.sqrt(1.4 * math.log(max(lines, 2))))

    def time(tiles: _Tiles) -> float:
        wholes, singles = _waves(tiles, per_tile, sms)
        waves = wholes + singles
        # Tiles that follow each other on one SM even out.
        k_tiles = mean + (longest - mean) / max(waves, 1.0) ** 1.5
        return cost.us(wholes + SINGLE * singles, k_tiles)

    if work.out_block is not None:
        cases = [time(tiles) for tiles in _masked_tiles(work, lines, slots, tile)]
        computing = MASKED_RESULT_US + sum(cases) / len(cases)
    else:
        computing = time(_Tiles(lines * (slots // per_tile), lines * (slots % per_tile)))
    return _listing_us(work, lines, slots) + _soft_maximum(computing, _memory_us(work, lines))


def _listing_us(work: Work, lines: int, slots: int) -> float:
    if work.has_b_mask and work.out_block is not None:
        return LIST_US + LIST_SLOT_US * slots * -(-lines // 32)
    return LIST_US if lines > OWN_LINES else 0.0


def _memory_us(work: Work, lines: int) -> float:
    """What memory takes: a is read once, b for each pass over it, the result written."""
    # The more of a result is dropped, the more its lines fall out of step.
    passes = max(lines / LINES_IN_STEP * (2.0 - work.out_keep), 1.0)
    cached = work.b_bytes + PASSING_SHARE * work.out_bytes
    missing = min(max(cached / CACHE_BYTES - 1.0, 0.0), 1.0)
    read = work.a_bytes + work.b_bytes * (1.0 + (passes - 1.0) * missing)
    return (read + work.out_bytes) / MEMORY_BYTES_PER_US


def _soft_maximum(one: float, other: float) -> float:
    """A little above the larger: what nearly takes as long is not quite hidden."""
    return (one**4 + other**4) ** 0.25


def dense_us(m: int, n: int, k: int, gpu: str, sms: int) -> float:
    """Expected time of the dense product by cuBLAS, in microseconds."""
    tile_m, tile_n, tile_k, _ = CUBLAS_TILE
    cost = costs_of(gpu)[CUBLAS]

    def time(columns: int) -> float:
        waves = math.ceil(-(-m // tile_m) * -(-n // columns) / sms)
        return cost.us(waves * columns / tile_n, -(-k // tile_k))

    return min(map(time, CUBLAS_COLUMNS))


def _waves(tiles: _Tiles, per_tile: int, sms: int) -> tuple[float, float]:
    """Waves of whole tiles, and of single slots: as in Records, the last takes the least time."""
    full, left = divmod(tiles.wholes, sms)
    if left == 0:
        return full, math.ceil(tiles.singles / sms)
    ways = [(full + 1, math.ceil(max(0.0, tiles.singles - (sms - left)) / sms))]
    if per_tile > 1:
        apart = math.ceil(tiles.singles / (sms - left))
        ways.append((full, apart) if SINGLE * apart > 1 else (full + 1, 0))
        ways.append((full, math.ceil((tiles.singles + per_tile * left) / sms)))
    return min(ways, key=lambda way: way[0] + SINGLE * way[1])


def _masked_tiles(work: Work, lines: int, slots: int, tile: Tile) -> Iterator[_Tiles]:
    """Live tiles at the mean count of live blocks, and 1.2 standard deviations beside it."""
    assert work.out_block is not None
    tile_m, tile_n, _, slot_n = tile
    block_m, block_n = work.out_block
    per_tile = tile_n // slot_n
    lines_per_block = min(max(1, block_m // tile_m), lines)
    slots_per_block = min(max(1, block_n // slot_n), slots)
    blocks, columns = lines / lines_per_block * slots / slots_per_block, slots / slots_per_block
    keep = work.out_keep
    mean, deviation = blocks * keep, math.sqrt(blocks * keep * (1 - keep))
    # A line has an odd count of live slots with this probability.
    odd = 0.0 if slots_per_block % per_tile == 0 else (1 - (1 - 2 * keep) ** round(columns)) / 2
    for aside in (-1.2, 0.0, 1.2):
        live_blocks = min(max(mean + aside * deviation, 0.0), blocks)
        live = live_blocks * lines_per_block * slots_per_block
        singles = min(lines * odd, live)
        yield _Tiles((live - singles) / per_tile, singles)
