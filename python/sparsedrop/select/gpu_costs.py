"""How long the kernels take for a product: a small model.

    time = launch + waves · (tile + k_tiles · k_tile)

A wave is one output tile for each CTA that runs at a time; tiles that lack a slot take a share of
one. Where operands have to be read from memory again and again, that is a limit of its own. The
constants of each GPU are in `gpus`, or `worked_out`.
"""

from __future__ import annotations

import cmath
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from sparsedrop.select.architectures import Tile, architecture
from sparsedrop.select.gpus import CUBLAS_TILE, H200_MEMORY, Cost, Memory

CUBLAS_COLUMNS = (256, 192, 128, 64)
"""Widths of the tiles that cuBLAS has; the narrower ones take in proportion."""

REST = {Tile(128, 256, 64, 128): 0.62}
REST_OF_OTHERS = 0.7
"""What a tile that lacks slots takes, of the time of a whole one: fitted to h200_tiles.json. Where
warps share out the slots, as much: some wait for the others."""

PASSING_SHARE = 1 / 8
"""The share of a result on its way to memory that takes an operand's place in the cache: fitted
likewise."""

LINES_IN_STEP = 8
"""Lines of output tiles that read the same part of b at the same time, where b is more than stays
in the cache: there are fewer where it does (kMaxGroupShift in cpp/schedule/grid.hpp)."""

NARROW_ONE_IN = 4
"""Lines are cut narrower only if at least one in so many can be: kNarrowOneIn in grid.hpp."""

MASKED_RESULT_US = 1.0
"""How much longer a CTA takes to find its first tile where the result is masked, measured within
kernels on an H200."""

LEAVING_US, ADDING_US = 2.0, 0.9
"""To leave the sum of one split of 128x128 in memory and to wait for it, and to add one: estimates,
with which the times of split products in h200_small_layers_tiles.json are met to 6 % in the mean,
the worst, 64x128 split into four, to 27 %."""

CUBLAS_MAX_SPLIT, CUBLAS_SPLITTING_US, CUBLAS_MIN_K_TILES = 8, 3.0, 8
"""Into how many cuBLAS splits a product along k at most, how much longer it then takes, and how few
K tiles it leaves to one split: estimates."""

MAX_OWN_LINES = 256
LIST_US, LIST_SLOT_US = 8.0, 0.5
"""Where there are more lines, or both b and the result are masked, a kernel of its own lists the
tiles; with both masks a warp counts the K tiles of every slot of its line, 32 lines at a time."""


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


def best_split(work: Work, tile: Tile, cost: Cost, ctas: int, memory: Memory = H200_MEMORY) -> int:
    """Into how many each tile is best split along k, in one wave; 1: it stays whole."""
    limits = architecture(tile.architecture).limits
    if tile.n > limits.max_split_n or work.out_block is not None:
        return 1
    most = min(limits.max_split_k, ctas // (-(-work.m // tile.m) * -(-work.n // tile.n)))
    splits = range(1, max(most, 1) + 1)
    return min(splits, key=lambda s: expected_us(work, tile, cost, ctas, s, memory))


def expected_us(
    work: Work,
    tile: Tile,
    cost: Cost,
    ctas: int,
    split_k: int = 1,
    memory: Memory = H200_MEMORY,
) -> float:
    """Expected time of a product by these tiles, so many at a time, in microseconds."""
    lines, slots = -(-work.m // tile.m), -(-work.n // tile.slot_n)
    per_tile, all_k_tiles = tile.n // tile.slot_n, -(-work.k // tile.k)
    mean, deviation = all_k_tiles * work.keep, 0.0
    if work.is_uneven:
        deviation = all_k_tiles * math.sqrt(work.keep * (1 - work.keep) / work.k_blocks)
    # The largest of so many nearly normal counts.
    longest = min(all_k_tiles, mean + deviation * math.sqrt(1.4 * math.log(max(lines, 2))))
    rest = 1.0 if _slots_are_parallel(tile) else REST.get(tile, REST_OF_OTHERS)

    def time(tiles: _Tiles) -> float:
        wholes, rests = _waves(tiles, per_tile, rest, ctas)
        # Tiles that follow each other on one SM even out.
        k_tiles = mean + (longest - mean) / max(wholes + rests, 1.0) ** 1.5
        return cost.us(wholes + rest * rests, k_tiles)

    if split_k > 1:
        waves = math.ceil(lines * -(-slots // per_tile) * split_k / ctas)
        computing = cost.us(waves, longest / split_k) + _adding_us(tile, split_k)
        return _soft_maximum(computing, _memory_us(work, lines, memory))
    if work.out_block is not None:
        cases = [time(tiles) for tiles in _masked_tiles(work, lines, slots, tile)]
        computing = MASKED_RESULT_US + sum(cases) / len(cases)
    elif (narrow := _narrow_lines(work, tile, lines, slots, ctas)) > 0:
        computing = cost.us(rest, longest)
        if narrow < lines:
            whole = mean + deviation * _nth_largest(narrow, lines)
            computing = max(computing, cost.us(1, min(max(whole, 0.0), longest)))
    else:
        rests = lines if slots % per_tile else 0
        computing = time(_Tiles(lines * (slots // per_tile), rests))
    return _listing_us(work, lines, slots) + _soft_maximum(
        computing, _memory_us(work, lines, memory)
    )


def _narrow_lines(work: Work, tile: Tile, lines: int, slots: int, ctas: int) -> int:
    """How many of the lines with the most live K tiles are cut a slot narrower: see NarrowLines."""
    per_tile = tile.n // tile.slot_n
    wide, narrow = -(-slots // per_tile), -(-slots // (per_tile - 1))
    idle = ctas - lines * wide
    # A narrower tile may not reach from one block of b into the next: their lists differ.
    would_cross = work.b_block_n is not None and work.b_block_n % (tile.n - tile.slot_n) != 0
    if (
        not work.has_a_mask
        or _slots_are_parallel(tile)
        or idle <= 0
        or narrow == wide
        or would_cross
    ):
        return 0
    fitting = idle // (narrow - wide)
    return min(lines, fitting) if fitting * NARROW_ONE_IN >= lines else 0


def _slots_are_parallel(tile: Tile) -> bool:
    """Whether warps of their own multiply each of a tile's slots, all at a time: kHasParallelSlots
    in both architectures' config.hpp."""
    return tile.m == 64 or (tile.architecture == "sm80" and tile.n == 128)


def _nth_largest(n: int, count: int) -> float:
    """What to expect of so many normal numbers, in standard deviations; n counts from 0."""
    return statistics.NormalDist().inv_cdf(1 - (n + 0.5) / count)


def _adding_us(tile: Tile, split_k: int) -> float:
    return (LEAVING_US + ADDING_US * (split_k - 1)) * tile.m * tile.n / 128**2


def _listing_us(work: Work, lines: int, slots: int) -> float:
    if work.b_block_n is not None and work.out_block is not None:
        return LIST_US + LIST_SLOT_US * slots * -(-lines // 32)
    return LIST_US if lines > MAX_OWN_LINES else 0.0


def _memory_us(work: Work, lines: int, memory: Memory) -> float:
    """What memory takes: a is read once, b for each pass over it, the result written."""
    # The more of a result is dropped, the more its lines fall out of step.
    passes = max(lines / LINES_IN_STEP * (2.0 - work.out_keep), 1.0)
    cached = work.b_bytes + PASSING_SHARE * work.out_bytes
    missing = min(max(cached / memory.cache_bytes - 1.0, 0.0), 1.0)
    read = work.a_bytes + work.b_bytes * (1.0 + (passes - 1.0) * missing)
    return (read + work.out_bytes) / memory.bytes_per_us


def _soft_maximum(one: float, other: float) -> float:
    """A little above the larger: what nearly takes as long is not quite hidden."""
    return (one**4 + other**4) ** 0.25


def dense_us(m: int, n: int, k: int, cost: Cost, sms: int) -> float:
    """Expected time of the dense product by cuBLAS, in microseconds; cost: of its tile."""
    if 0 in (m, n, k):
        return 0.0

    def time(columns: int) -> float:
        tiles, k_tiles = -(-m // CUBLAS_TILE.m) * -(-n // columns), -(-k // CUBLAS_TILE.k)
        split_k = max(1, min(CUBLAS_MAX_SPLIT, sms // tiles, k_tiles // CUBLAS_MIN_K_TILES))
        share = columns / CUBLAS_TILE.n
        whole = cost.us(math.ceil(tiles / sms) * share, k_tiles)
        split = cost.us(share, k_tiles / split_k) + CUBLAS_SPLITTING_US
        return min(whole, split) if split_k > 1 else whole

    return min(map(time, CUBLAS_COLUMNS))


def _waves(tiles: _Tiles, per_tile: int, rest: float, ctas: int) -> tuple[float, float]:
    """Waves of whole tiles, and of rests: as in Records, the last takes the least time."""
    full, left = divmod(tiles.wholes, ctas)
    if left == 0:
        return full, math.ceil(tiles.rests / ctas)
    ways = [(full + 1, math.ceil(max(0.0, tiles.rests - (ctas - left)) / ctas))]
    apart = math.ceil(tiles.rests / (ctas - left))
    ways.append((full, apart) if rest * apart > 1 else (full + 1, 0))
    if per_tile == 2:
        ways.append((full, math.ceil((tiles.rests + per_tile * left) / ctas)))
    return min(ways, key=lambda way: way[0] + rest * way[1])


def _masked_tiles(work: Work, lines: int, slots: int, tile: Tile) -> Iterator[_Tiles]:
    """Live tiles at the mean count of live blocks, and 1.2 standard deviations beside it."""
    assert work.out_block is not None
    block_m, block_n = work.out_block
    lines_per_block = min(max(1, block_m // tile.m), lines)
    slots_per_block = min(max(1, block_n // tile.slot_n), slots)
    per_tile = tile.n // tile.slot_n
    blocks, columns = lines / lines_per_block * slots / slots_per_block, slots / slots_per_block
    mean, deviation = (
        blocks * work.out_keep,
        math.sqrt(blocks * work.out_keep * (1 - work.out_keep)),
    )
    share, of_rest = _rests(per_tile, slots_per_block, round(columns), work.out_keep)
    for aside in (-1.2, 0.0, 1.2):
        live_blocks = min(max(mean + aside * deviation, 0.0), blocks)
        live = live_blocks * lines_per_block * slots_per_block
        in_rests = min(lines * of_rest, live)
        yield _Tiles((live - in_rests) / per_tile, min(lines * share, live))


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
