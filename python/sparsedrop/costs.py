"""How long the kernels take for a product: a small model, and what it knows of each GPU.

    time = launch + waves · (tile + k_tiles · k_tile)

A wave is one output tile for each SM; tiles that lack a slot take a share of one. Where operands
have to be read from memory again and again, that is a limit of its own. `sparsedrop bench --tune`
measures the constants of a GPU and prints its entry for GPUS.
"""

from __future__ import annotations

import cmath
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

Tile = tuple[int, int, int, int]
"""tile_m, tile_n, tile_k, slot_n."""

CUBLAS = "cublas"
CUBLAS_TILE = (128, 256, 64, 256)
"""What cuBLAS mostly takes for large products in 16 bits; its constants are in these tiles."""

CUBLAS_COLUMNS = (256, 192, 128, 64)
"""Widths of the tiles it has; the narrower ones take in proportion."""

REST = {(128, 256, 64, 128): 0.62, (64, 128, 64, 64): 1.0}
REST_OF_OTHERS = 0.7
"""What a tile that lacks slots takes, of the time of a whole one: fitted to h200_tiles.json. The
smallest tile has a slot for each half of its warps, and one half waits for the other."""

CACHE_BYTES = 40e6
"""Of an operand that stays in the L2 cache of a Hopper GPU, 50 to 60 MB, while others are read
beside it. One of twice the size does not stay at all."""

MEMORY_BYTES_PER_US = 3.5e6
"""To and from memory while the kernels multiply: fitted to h200_tiles.json."""

PASSING_SHARE = 1 / 8
"""Of a result on its way to memory, what takes an operand's place in the cache: fitted likewise."""

LINES_IN_STEP = 8
"""Lines of output tiles that read the same part of b at the same time, where b is more than stays
in the cache: there are fewer where it does (group_shift in tile_order.hpp)."""

LEAST_NARROW = 4
"""Fewer lines than one in so many are not cut narrower: kLeastNarrow in tile_order.hpp."""

MASKED_RESULT_US = 1.0
"""What it takes a CTA longer to find its first tile where the result is masked, measured within
kernels on an H200."""

MOST_PARTS, MOST_SPLIT_N, MOST_SPLIT_SLOTS = 8, 128, 8192
"""Into how many parts the kernels split a tile along k, up to which width, and how many slots all
parts may have."""

LEAVING_US, ADDING_US = 2.0, 0.9
"""To leave the sum of a part of 128x128 in memory and to wait for it, and to add one: estimates,
with which the times of split products in h200_small_layers_tiles.json are met to 6 % in the mean,
the worst, of 64x128 in four parts, to 27 %."""

CUBLAS_SPLITTING_US, CUBLAS_LEAST_K_TILES = 3.0, 8
"""What cuBLAS takes longer where it splits a product along k, and the least part: estimates."""

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
            (128, 256, 64, 128): Cost(launch_us=4.04, tile_us=1.341, k_tile_us=0.6349),
            (128, 128, 64, 64): Cost(launch_us=2.78, tile_us=1.739, k_tile_us=0.3272),
            (64, 128, 64, 64): Cost(launch_us=2.07, tile_us=1.259, k_tile_us=0.2353),
            (128, 192, 64, 64): Cost(launch_us=3.14, tile_us=1.846, k_tile_us=0.4877),
            CUBLAS: Cost(launch_us=2.99, tile_us=2.398, k_tile_us=0.6468),
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
    has_a_mask: bool
    # Columns of b's blocks; None: no mask.
    b_block_n: int | None
    # Expected live share of the result, and its blocks; None: no mask.
    out_keep: float
    out_block: tuple[int, int] | None
    # Of the live part of a, and of all of b and the result.
    a_bytes: float
    b_bytes: float
    out_bytes: float

    @property
    def is_uneven(self) -> bool:
        """Whether output tiles differ in their K tiles."""
        return self.has_a_mask or self.b_block_n is not None


class _Tiles(NamedTuple):
    wholes: float
    rests: float  # of lines, with fewer slots than a tile


def costs_of(gpu: str) -> dict[Tile | str, Cost]:
    """The costs of a GPU by its name, or those of the typical one."""
    return {**GPUS[TYPICAL].costs, **GPUS.get(gpu, GPUS[TYPICAL]).costs}


def parts_for(work: Work, tile: Tile, cost: Cost, sms: int) -> int:
    """Into how many parts each tile is best split along k, in one wave; 1: it stays whole."""
    tile_m, tile_n, *_ = tile
    if tile_n > MOST_SPLIT_N or work.out_block is not None:
        return 1
    most = min(MOST_PARTS, sms // (-(-work.m // tile_m) * -(-work.n // tile_n)))
    return min(range(1, max(most, 1) + 1), key=lambda p: expected_us(work, tile, cost, sms, p))


def expected_us(work: Work, tile: Tile, cost: Cost, sms: int, parts: int = 1) -> float:
    """Expected time of a product by these tiles on so many SMs, in microseconds."""
    tile_m, tile_n, tile_k, slot_n = tile
    lines, slots, per_tile = -(-work.m // tile_m), -(-work.n // slot_n), tile_n // slot_n
    all_k_tiles = -(-work.k // tile_k)
    mean, deviation = all_k_tiles * work.keep, 0.0
    if work.is_uneven:
        deviation = all_k_tiles * math.sqrt(work.keep * (1 - work.keep) / work.k_blocks)
    # The largest of so many nearly normal counts.
    longest = min(all_k_tiles, mean + deviation * math.sqrt(1.4 * math.log(max(lines, 2))))
    rest = REST.get(tile, REST_OF_OTHERS)

    def time(tiles: _Tiles) -> float:
        wholes, rests = _waves(tiles, per_tile, rest, sms)
        # Tiles that follow each other on one SM even out.
        k_tiles = mean + (longest - mean) / max(wholes + rests, 1.0) ** 1.5
        return cost.us(wholes + rest * rests, k_tiles)

    if parts > 1:
        waves = math.ceil(lines * -(-slots // per_tile) * parts / sms)
        computing = cost.us(waves, longest / parts) + _adding_us(tile, parts)
        return _soft_maximum(computing, _memory_us(work, lines))
    if work.out_block is not None:
        cases = [time(tiles) for tiles in _masked_tiles(work, lines, slots, tile)]
        computing = MASKED_RESULT_US + sum(cases) / len(cases)
    elif (narrow := _narrow_lines(work, tile, lines, slots, sms)) > 0:
        computing = cost.us(rest, longest)
        if narrow < lines:
            whole = mean + deviation * _nth_largest(narrow, lines)
            computing = max(computing, cost.us(1, min(max(whole, 0.0), longest)))
    else:
        rests = lines if slots % per_tile else 0
        computing = time(_Tiles(lines * (slots // per_tile), rests))
    return _listing_us(work, lines, slots) + _soft_maximum(computing, _memory_us(work, lines))


def _narrow_lines(work: Work, tile: Tile, lines: int, slots: int, sms: int) -> int:
    """How many of the lines with the most live K tiles are cut a slot narrower: see NarrowLines."""
    per_tile = tile[1] // tile[3]
    wide, narrow = -(-slots // per_tile), -(-slots // (per_tile - 1))
    idle = sms - lines * wide
    slots_are_parallel = tile[0] == 64  # one for each half of the warps
    # A narrower tile may not reach from one block of b into the next: their lists differ.
    would_cross = work.b_block_n is not None and work.b_block_n % (tile[1] - tile[3]) != 0
    if not work.has_a_mask or slots_are_parallel or idle <= 0 or narrow == wide or would_cross:
        return 0
    fitting = idle // (narrow - wide)
    return min(lines, fitting) if fitting * LEAST_NARROW >= lines else 0


def _nth_largest(n: int, count: int) -> float:
    """What to expect of so many normal numbers, in standard deviations; n counts from 0."""
    return statistics.NormalDist().inv_cdf(1 - (n + 0.5) / count)


def _adding_us(tile: Tile, parts: int) -> float:
    return (LEAVING_US + ADDING_US * (parts - 1)) * tile[0] * tile[1] / 128**2


def _listing_us(work: Work, lines: int, slots: int) -> float:
    if work.b_block_n is not None and work.out_block is not None:
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
        tiles, k_tiles = -(-m // tile_m) * -(-n // columns), -(-k // tile_k)
        parts = max(1, min(MOST_PARTS, sms // tiles, k_tiles // CUBLAS_LEAST_K_TILES))
        whole = cost.us(math.ceil(tiles / sms) * columns / tile_n, k_tiles)
        split = cost.us(columns / tile_n, k_tiles / parts) + CUBLAS_SPLITTING_US
        return min(whole, split) if parts > 1 else whole

    return min(map(time, CUBLAS_COLUMNS))


def _waves(tiles: _Tiles, per_tile: int, rest: float, sms: int) -> tuple[float, float]:
    """Waves of whole tiles, and of rests: as in Records, the last takes the least time."""
    full, left = divmod(tiles.wholes, sms)
    if left == 0:
        return full, math.ceil(tiles.rests / sms)
    ways = [(full + 1, math.ceil(max(0.0, tiles.rests - (sms - left)) / sms))]
    apart = math.ceil(tiles.rests / (sms - left))
    ways.append((full, apart) if rest * apart > 1 else (full + 1, 0))
    if per_tile == 2:
        ways.append((full, math.ceil((tiles.rests + per_tile * left) / sms)))
    return min(ways, key=lambda way: way[0] + rest * way[1])


def _masked_tiles(work: Work, lines: int, slots: int, tile: Tile) -> Iterator[_Tiles]:
    """Live tiles at the mean count of live blocks, and 1.2 standard deviations beside it."""
    assert work.out_block is not None
    tile_m, tile_n, _, slot_n = tile
    block_m, block_n = work.out_block
    lines_per_block = min(max(1, block_m // tile_m), lines)
    slots_per_block = min(max(1, block_n // slot_n), slots)
    blocks, columns = lines / lines_per_block * slots / slots_per_block, slots / slots_per_block
    mean, deviation = (
        blocks * work.out_keep,
        math.sqrt(blocks * work.out_keep * (1 - work.out_keep)),
    )
    share, of_rest = _rests(tile_n // slot_n, slots_per_block, round(columns), work.out_keep)
    for aside in (-1.2, 0.0, 1.2):
        live_blocks = min(max(mean + aside * deviation, 0.0), blocks)
        live = live_blocks * lines_per_block * slots_per_block
        in_rests = min(lines * of_rest, live)
        yield _Tiles((live - in_rests) / (tile_n // slot_n), min(lines * share, live))


def _rests(per_tile: int, slots_per_block: int, columns: int, keep: float) -> tuple[float, float]:
    """Share of the lines whose live slots do not fill their last tile; mean slots in those, a line.

    The live blocks of a line are binomial. That their count leaves r when it is divided by
    per_tile has the probability of a discrete Fourier transform of its characteristic function.
    """
    turns = [2j * math.pi * j / per_tile for j in range(per_tile)]
    powers = [(1 - keep + keep * cmath.exp(turn)) ** columns for turn in turns]
    share = slots = 0.0
    for r in range(per_tile):
        terms = (power * cmath.exp(-r * turn) for power, turn in zip(powers, turns, strict=True))
        # Rounded: what should be 0 would be a wave of its own.
        probability = round(abs(sum(terms).real) / per_tile, 9)
        left = r * slots_per_block % per_tile
        share += probability * (left > 0)
        slots += probability * left
    return share, slots
