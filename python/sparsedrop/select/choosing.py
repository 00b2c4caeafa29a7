"""The way with the least expected time, of all that are legal. Pure functions.

>>> print(choose(request))  # 4096x4096x4096 in bfloat16, half of a dropped in 128x128 blocks
Choice(path='kernel', tile=0, swap=False, split_k=1, reason='sm90 tile 128x256x64:
       95 us expected, dense 213, by costs measured on NVIDIA H200')
"""

from __future__ import annotations

import functools
import math

from sparsedrop.select import constants, cpu_costs, gpu_costs
from sparsedrop.select.architectures import Tile, ctas_per_sm
from sparsedrop.select.constants import cost_of
from sparsedrop.select.gpus import CUBLAS
from sparsedrop.select.request import Choice, Request, describe, describe_blocks
from sparsedrop.select.rules import best_architecture, refusal, why_dense

SMALLER, SMALLER_BEYOND_CACHE = 0.03, 0.065
"""By how much a tile of half the size has to be faster. It reads its operands more often, which the
costs do not know, and which counts most where their live parts are more than stays in the cache."""


MASKED_COPY_US = 4.0
"""What a masked copy costs the dense path on a GPU beside what it reads and writes: one launch,
whose host time counts where products are small."""


@functools.lru_cache(maxsize=4096)
def choose(request: Request) -> Choice:
    """The path, tile and orientation for a request. Pure."""
    if request.device != "cuda":
        return _choose_cpu(request)
    why = why_dense(request)
    if why is not None:
        return Choice("dense", reason=why)
    ways = candidates(request, architecture=best_architecture(request))
    legal = [c for c in ways if refusal(request, c) is None]
    if not legal:
        return Choice("dense", reason="no tile divides the blocks: " + describe_blocks(request))
    choice = best(request, legal)
    ours, dense = expected_us(request, choice) + padding_us(request), dense_us(request)
    gain, source = constants.needed_gain(request, choice), constants.source_of(request, choice)
    reason = f"{describe(request, choice)}: {weighed(ours, dense, gain)}, by costs {source}"
    return choice._replace(reason=reason) if gain * ours < dense else Choice("dense", reason=reason)


def weighed(ours: float, dense: float, gain: float) -> str:
    """The expected times, in microseconds, and by how much the kernels' have to be shorter."""
    need = f", where {gain:g} times as fast would be clear" if gain > 1.0 else ""
    return f"{ours:.0f} us expected, dense {dense:.0f}{need}"


def best(request: Request, legal: list[Choice]) -> Choice:
    """The one with the least expected time, smaller tiles at a handicap; the first of equals."""
    largest = max(_area(request, choice) for choice in legal)
    is_cached = sum(request.operand_bytes) <= constants.memory_of(request).cache_bytes
    smaller = SMALLER if is_cached else SMALLER_BEYOND_CACHE

    def cost(choice: Choice) -> float:
        halvings = math.log2(largest / _area(request, choice))
        return expected_us(request, choice) * (1 + smaller * halvings)

    return min(legal, key=cost)


def candidates(
    request: Request, split_k: int | None = None, architecture: str | None = None
) -> list[Choice]:
    """Every tile in both orientations, large tiles first, then by what the orientation wastes.

    Whole, and where that may be faster split along k; or split into `split_k`. Of one architecture,
    or of all.
    """
    choices = [
        Choice("kernel", tile, swap, count)
        for tile, of in enumerate(request.tiles)
        if architecture in (None, of.architecture)
        for swap in (False, True)
        for count in (_splits(request, tile, swap) if split_k is None else (split_k,))
    ]

    def rank(choice: Choice) -> tuple[float, ...]:
        return (-_area(request, choice), *_orientation_cost(request, choice))

    return sorted(choices, key=rank)


def _splits(request: Request, tile: int, swap: bool) -> tuple[int, ...]:
    if request.activates or 0 in (request.m, request.n, request.k):
        return (1,)
    size, work = request.tiles[tile], _work(request, swap)
    cost, memory = cost_of(request, size), constants.memory_of(request)
    count = gpu_costs.best_split(work, size, cost, _ctas(request, size), memory)
    return (1, count) if count > 1 else (1,)


def expected_us(request: Request, choice: Choice) -> float:
    """Expected time of the kernels, in microseconds."""
    tile, work = request.tiles[choice.tile], _work(request, choice.swap)
    cost, memory = cost_of(request, tile), constants.memory_of(request)
    ctas = _ctas(request, tile)
    return gpu_costs.expected_us(work, tile, cost, ctas, choice.split_k, memory)


def _ctas(request: Request, tile: Tile) -> int:
    """How many CTAs of a tile run at a time on the request's GPU."""
    return request.sms * ctas_per_sm(tile, request.capability)


def padding_us(request: Request) -> float:
    """Expected time of the copies to whole units that the kernels need, in microseconds."""
    m, n, k = request.m, request.n, request.k
    sizes = zip(request.padded, (m * k, k * n, m * n), strict=True)
    return sum(copy_us(size, request) for is_padded, size in sizes if is_padded)


def dense_us(request: Request) -> float:
    """Expected time of the dense path, in microseconds: matrices are masked, then multiplied."""
    m, n, k = request.m, request.n, request.k
    sizes = zip(request.blocks, (m * k, k * n, m * n), strict=True)
    copies = (copy_us(size, request) for block, size in sizes if block is not None)
    return product_us(request) + sum(copies)


def product_us(request: Request) -> float:
    """Expected time of the dense product alone, in microseconds."""
    cost = cost_of(request, CUBLAS)
    return gpu_costs.dense_us(request.m, request.n, request.k, cost, request.sms)


def copy_us(elements: int, request: Request) -> float:
    """Expected time of one masked copy, in microseconds."""
    moved = 2 * request.dtype.itemsize * elements
    return MASKED_COPY_US + moved / constants.copy_bytes_per_us(request)


def _work(request: Request, swap: bool) -> gpu_costs.Work:
    """The product as the kernels run it."""
    run = request.turned() if swap else request
    a_keep, b_keep, out_keep = run.keeps
    k_block = max(
        1 if run.a_block is None else run.a_block[1],
        1 if run.b_block is None else run.b_block[0],
    )
    itemsize = run.dtype.itemsize
    return gpu_costs.Work(
        run.m,
        run.n,
        run.k,
        a_keep * b_keep,
        -(-run.k // k_block),
        run.a_block is not None,
        None if run.b_block is None else run.b_block[1],
        out_keep,
        run.out_block,
        run.operand_bytes[0],
        float(itemsize * run.k * run.n),
        float(itemsize * run.m * run.n),
    )


def _choose_cpu(request: Request) -> Choice:
    """Live parts only, unless blocks are so small that calls cost more than they save."""
    if request.a_block is request.b_block is request.out_block is None:
        return Choice("dense", reason="no mask")
    if request.dtype not in cpu_costs.CALL:
        return Choice("cpu", reason=f"torch's own product in {request.dtype} is no BLAS call")
    extents = (request.m, request.n, request.k)
    keeps = request.keeps
    pays, reason = cpu_costs.live_parts_pay(request.dtype, extents, request.blocks, keeps)
    return Choice("cpu" if pays else "dense", reason=reason)


def _orientation_cost(request: Request, choice: Choice) -> tuple[float, ...]:
    """Smaller is better: padding of the last tiles, unpaired slots, b playing a for nothing."""
    tile = request.tiles[choice.tile]
    run = request.turned() if choice.swap else request
    waste = -(-run.m // tile.m) * tile.m * -(-run.n // tile.n) * tile.n
    # Slots pair up along a line of blocks; an odd count of live ones leaves half a tile empty,
    # which weighs less the more blocks there are in the line.
    unpaired = 0.0
    if run.out_block is not None and tile.n > tile.slot_n:
        unpaired = 1.0 / -(-run.n // run.out_block[1])
    masked = request.b_block is not None and request.a_block is None
    return (waste, unpaired, choice.swap != masked)


def _area(request: Request, choice: Choice) -> int:
    tile = request.tiles[choice.tile]
    return tile.m * tile.n
