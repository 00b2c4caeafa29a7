"""What tiles cost on a GPU that nobody has measured, from what it says of itself. Pure functions.

All is in proportion to what was measured on the typical GPU: an SM multiplies as many numbers a
clock as its compute capability says, at its own clock, and reaches the same share of that.
"""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.select.architectures import Tile
from sparsedrop.select.gpus import CUBLAS, GPUS, H200_MEMORY, TYPICAL, Cost, Memory

SM90 = "sm90"
Capability = tuple[int, int]


class Speed(NamedTuple):
    """What a GPU says of itself: its boost clock, its memory and its L2 cache."""

    clock_ghz: float
    memory_bytes_per_us: float
    l2_bytes: float


TYPICAL_SPEED = Speed(clock_ghz=1.98, memory_bytes_per_us=4.9e6, l2_bytes=60 * 2**20)
"""Of an NVIDIA H200, and of a GPU that does not say."""


class Rate(NamedTuple):
    """Floating-point operations of one SM in one clock, in 16 bits with sums in float32.

    By the best instructions that there are, which cuBLAS and the kernels of sm90 take, and by
    mma.sync, which the kernels of sm80 take.
    """

    best: float
    mma_sync: float


RATES: dict[Capability, Rate] = {
    (8, 0): Rate(2048, 2048),
    (8, 6): Rate(1024, 1024),
    (8, 9): Rate(1024, 1024),
    (9, 0): Rate(4096, 0.629 * 4096),
    (10, 0): Rate(8192, 0.629 * 4096),
    (12, 0): Rate(1024, 1024),
}
"""By compute capability; one that is not named is taken for the next lower one.

8.0, 9.0 and 10.0 are as in torch/cuda/_device_limits.py. The others follow from NVIDIA's tables of
dense BF16 rates, over SMs and boost clock: A40 149.7 TFLOP/s (84 SMs, 1.74 GHz), L40S 362 (142,
2.52), RTX 5090 209.5 (170, 2.41; see GEFORCE). On Hopper mma.sync reaches 62.9 % of the best rate
(Luo et al., arXiv:2402.13499); that it reaches as much a clock on 10.0 is an assumption.
"""

GEFORCE = 0.5
"""GeForce cards add in float32 at half the rate of others of their capability: RTX 3090 71 TFLOP/s,
RTX 4090 165, RTX 5090 209.5, by the same tables."""

COPY_BYTES_PER_US = 3.0e6
"""What a masked copy reads and writes on the typical GPU."""


def rate_of(capability: Capability, gpu: str) -> Rate:
    """What one SM of that GPU does in one clock."""
    known = [each for each in RATES if each <= capability] or [min(RATES)]
    rate, share = RATES[max(known)], GEFORCE if "GeForce" in gpu else 1.0
    return Rate(share * rate.best, share * rate.mma_sync)


def cost_of(
    tile: Tile | str, capability: Capability, gpu: str, speed: Speed, precision: str
) -> Cost:
    """What a tile of the kernels, or CUBLAS, costs on that GPU.

    On all these GPUs TF32 has half the rate of 16 bits, so that costs of either are in proportion
    to those of the same precision on the typical GPU.
    """
    like = _alike(tile, precision)
    is_best = tile == CUBLAS or (isinstance(tile, Tile) and tile.architecture == SM90)
    own, typical = rate_of(capability, gpu), RATES[9, 0]
    slower = typical.best / own.best if is_best else typical.mma_sync / own.mma_sync
    clocks = TYPICAL_SPEED.clock_ghz / speed.clock_ghz
    return Cost(like.launch_us, like.tile_us * clocks, like.k_tile_us * clocks * slower)


def _alike(tile: Tile | str, precision: str) -> Cost:
    """What that tile costs on the typical GPU; else what the smallest of its architecture does, or
    of all, in proportion. A tile without costs in that precision is taken at those in 16 bits.
    """
    typical = GPUS[TYPICAL]
    costs = {**typical.costs, **typical.of(precision)}
    if tile in costs or not isinstance(tile, Tile):
        return costs[tile]
    tiles = [known for known in costs if isinstance(known, Tile)]
    of_same = [known for known in tiles if known.architecture == tile.architecture] or tiles
    least = min(of_same, key=lambda t: t.m * t.n)
    times = tile.m * tile.n * tile.k / (least.m * least.n * least.k)
    return costs[least]._replace(k_tile_us=costs[least].k_tile_us * times)


def memory_of(speed: Speed) -> Memory:
    """What the memory of a GPU does while the kernels multiply."""
    return Memory(
        H200_MEMORY.bytes_per_us * speed.memory_bytes_per_us / TYPICAL_SPEED.memory_bytes_per_us,
        H200_MEMORY.cache_bytes * speed.l2_bytes / TYPICAL_SPEED.l2_bytes,
    )


def copy_bytes_per_us(speed: Speed) -> float:
    """What a masked copy reads and writes there."""
    return COPY_BYTES_PER_US * speed.memory_bytes_per_us / TYPICAL_SPEED.memory_bytes_per_us
