"""Which way a product is run: a printable request, a pure function, a printable choice.

    >>> print(choose(request))  # 4096x4096x4096 in bfloat16, half of a dropped in 128x128 blocks
    Choice(path='sm90', tile=0, swap=False, parts=1,
           reason='tile 128x256x64: 95 us expected, dense 213')

Of all ways that are legal the one with the least expected time is taken (see `costs`). `override`
forces a path, a tile, an orientation or how often tiles are split along k, for benchmarks and for a
user who knows better; so does the environment variable SPARSEDROP_SELECT, for example
`SPARSEDROP_SELECT=path=sm90,tile=1,swap=0,parts=1`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import costs, cpu_costs
from sparsedrop.block_mask import Masks
from sparsedrop.costs import Tile

Block = cpu_costs.Block

KERNEL_DTYPES = (torch.bfloat16, torch.float16)

SMALLER, SMALLER_BEYOND_CACHE = 0.03, 0.065
"""By how much a tile of half the size has to be faster. It reads its operands more often, which the
costs do not know, and which counts most where their live parts are more than stays in the cache."""

UNKNOWN_KEEP = 0.5
"""The live share that is expected of a mask whose share the host does not know."""

MASKING_US = 12.0
MASKED_BYTES_PER_US = 1.5e6
"""What masking one matrix costs the dense path on a GPU: some four launches, and reading and
writing it, each at 3 TB/s."""

PADDING_PAYS = 2**30
"""m * n * k above which copying operands to aligned ones costs less than it saves."""

MOST = 2**31 - 1 - 256 - 8
"""The largest extent: the kernels count to 2**31 - 1 in whole tiles, of 256 at most, and operands
may have been padded to multiples of 8 before."""


class Request(NamedTuple):
    """All that the choice depends on, for a [m, k], b [k, n] and out [m, n]."""

    device: str
    dtype: torch.dtype
    m: int
    n: int
    k: int
    a_block: Block | None = None
    b_block: Block | None = None
    out_block: Block | None = None
    # Expected live shares; None where there is no mask, or its share is not known to the host.
    a_keep: float | None = None
    b_keep: float | None = None
    out_keep: float | None = None
    a_k_major: bool = True
    b_k_major: bool = False
    # The result goes through an activation.
    activates: bool = False
    # Operands can be read in place: addresses of 16 bytes, extents and strides of 8 elements.
    aligned: bool = True
    capability: tuple[int, int] = (0, 0)
    gpu: str = costs.TYPICAL
    sms: int = costs.GPUS[costs.TYPICAL].sms
    # Compiled in for this capability; their positions are the ids.
    tiles: tuple[Tile, ...] = ()


def cpu_request(a: Tensor, b: Tensor, masks: Masks) -> Request:
    """The request of a product on the CPU: operands as the op takes them."""
    a_mask, b_mask, out_mask = masks
    return Request(
        "cpu",
        a.dtype,
        a.shape[0],
        b.shape[1],
        a.shape[1],
        None if a_mask is None else a_mask.block_shape,
        None if b_mask is None else b_mask.block_shape,
        None if out_mask is None else out_mask.block_shape,
        None if a_mask is None else a_mask.keep,
        None if b_mask is None else b_mask.keep,
        None if out_mask is None else out_mask.keep,
    )


class Choice(NamedTuple):
    """path: "sm90" (block-sparse kernels), "cpu" (live parts only) or "dense" (masked operands)."""

    path: str
    tile: int = 0
    swap: bool = False
    # Along k, of each tile.
    parts: int = 1
    reason: str = ""


class Override(NamedTuple):
    path: str | None = None
    tile: int | None = None
    swap: bool | None = None
    parts: int | None = None


_PATHS = ("sm90", "cpu", "dense")
_VARIABLE = "SPARSEDROP_SELECT"


def override_from(text: str) -> Override | None:
    """The override that SPARSEDROP_SELECT=text asks for; None where it is empty.

    Raises:
        ValueError: for text that is not path=..., tile=..., swap=0 or 1 or parts=..., separated by
            commas.
    """
    if not text:
        return None
    forced: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name == "path" and value in _PATHS:
            forced[name] = value
        elif name in ("tile", "parts") and value.isdecimal():
            forced[name] = int(value)
        elif name == "swap" and value in ("0", "1"):
            forced[name] = value == "1"
        else:
            raise ValueError(
                f"{_VARIABLE} has items such as path=dense ({', '.join(_PATHS)}), tile=1, swap=0 "
                f"or parts=2, separated by commas, not {item.strip()!r}"
            )
    return Override(**forced)


# A global and not a context variable: the backward pass runs on threads of its own.
_override: Override | None = override_from(os.environ.get(_VARIABLE, ""))


@contextmanager
def override(
    path: str | None = None,
    tile: int | None = None,
    swap: bool | None = None,
    parts: int | None = None,
) -> Iterator[None]:
    """Forces what is not None for every product inside, on all threads.

    Raises:
        ValueError: for an unknown path; inside, at a product that cannot be run that way.
    """
    global _override
    if path is not None and path not in _PATHS:
        raise ValueError(f"path is one of {', '.join(map(repr, _PATHS))}, not {path!r}")
    before, _override = _override, Override(path, tile, swap, parts)
    try:
        yield
    finally:
        _override = before


def is_free() -> bool:
    """True where nothing is forced: then equal requests are decided alike."""
    return _override is None


def decide(request: Request) -> Choice:
    """What `choose` says, unless the user overrides it."""
    return choose(request) if _override is None else _obey(request, _override)


@functools.lru_cache(maxsize=4096)
def choose(request: Request) -> Choice:
    """The path, tile and orientation for a request. Pure."""
    if request.device != "cuda":
        return _choose_cpu(request)
    why_dense = _why_dense(request)
    if why_dense is not None:
        return Choice("dense", reason=why_dense)
    legal = [c for c in candidates(request) if refusal(request, c) is None]
    if not legal:
        return Choice("dense", reason="no tile divides the blocks: " + _blocks(request))
    best = _best(request, legal)
    ours, dense = expected_us(request, best), dense_us(request)
    reason = f"{_name(request, best)}: {ours:.0f} us expected, dense {dense:.0f}"
    return best._replace(reason=reason) if ours < dense else Choice("dense", reason=reason)


def _best(request: Request, legal: list[Choice]) -> Choice:
    """The one with the least expected time, smaller tiles at a handicap; the first of equals."""
    largest = max(_area(request, choice) for choice in legal)
    smaller = SMALLER if sum(_operand_bytes(request)) <= costs.CACHE_BYTES else SMALLER_BEYOND_CACHE

    def cost(choice: Choice) -> float:
        halvings = math.log2(largest / _area(request, choice))
        return expected_us(request, choice) * (1 + smaller * halvings)

    return min(legal, key=cost)


def candidates(request: Request, parts: int | None = None) -> list[Choice]:
    """Every tile in both orientations, large tiles first, then by what the orientation wastes.

    Whole, and where that may be faster split along k; or in so many parts.
    """
    choices = [
        Choice("sm90", tile, swap, count)
        for tile in range(len(request.tiles))
        for swap in (False, True)
        for count in ((parts,) if parts is not None else _parts(request, tile, swap))
    ]

    def rank(choice: Choice) -> tuple[float, ...]:
        return (-_area(request, choice), *_orientation_cost(request, choice))

    return sorted(choices, key=rank)


def _parts(request: Request, tile: int, swap: bool) -> tuple[int, ...]:
    if request.activates or 0 in (request.m, request.n, request.k):
        return (1,)
    size = request.tiles[tile]
    cost = costs.costs_of(request.gpu)[size]
    best = costs.parts_for(_work(request, swap), size, cost, request.sms)
    return (1, best) if best > 1 else (1,)


def refusal(request: Request, choice: Choice) -> str | None:
    """Why the kernels cannot run the request that way; None where they can."""
    if not 0 <= choice.tile < len(request.tiles):
        return f"there are tiles 0 to {len(request.tiles) - 1}, not {choice.tile}"
    tile_m, tile_n, tile_k, slot_n = request.tiles[choice.tile]
    a_block, b_block, out_block = request.a_block, request.b_block, request.out_block
    if not 1 <= choice.parts <= costs.MOST_PARTS:
        return f"a tile has 1 to {costs.MOST_PARTS} parts, not {choice.parts}"
    can_split = out_block is None and not request.activates and tile_n <= costs.MOST_SPLIT_N
    if choice.parts > 1 and not can_split:
        return (
            "tiles are split along k where the result has no mask and no activation, and up to "
            f"{costs.MOST_SPLIT_N} columns wide"
        )
    m, n = (request.n, request.m) if choice.swap else (request.m, request.n)
    slots = -(-m // tile_m) * -(-n // slot_n) * choice.parts
    if choice.parts > 1 and slots > costs.MOST_SPLIT_SLOTS:
        return f"{slots} slots of all parts are more than {costs.MOST_SPLIT_SLOTS}"
    if choice.swap:
        a_block, b_block, out_block = (
            None if block is None else (block[1], block[0])
            for block in (b_block, a_block, out_block)
        )
    # Inside a block the list of K tiles is one and the same, so a tile may not cross its border.
    for name, block, unit in (
        ("a", a_block, (tile_m, tile_k)),
        ("b", b_block, (tile_k, tile_n)),
        ("out", out_block, (tile_m, slot_n)),
    ):
        if block is not None and (block[0] % unit[0] or block[1] % unit[1]):
            role = f"{name} of the transposed problem" if choice.swap else name
            return f"blocks of {role} are {block[0]}x{block[1]}, no multiple of {unit[0]}x{unit[1]}"
    return None


def expected_us(request: Request, choice: Choice) -> float:
    """Expected time of the kernels, in microseconds."""
    tile = request.tiles[choice.tile]
    known = costs.costs_of(request.gpu)
    work = _work(request, choice.swap)
    return costs.expected_us(work, tile, known[tile], request.sms, choice.parts)


def dense_us(request: Request) -> float:
    """Expected time of the dense path, in microseconds: matrices are masked, then multiplied."""
    m, n, k = request.m, request.n, request.k
    masked = [
        extent * other
        for block, extent, other in (
            (request.a_block, m, k),
            (request.b_block, k, n),
            (request.out_block, m, n),
        )
        if block is not None
    ]
    nbytes = request.dtype.itemsize * sum(masked)
    masking = MASKING_US * len(masked) + nbytes / MASKED_BYTES_PER_US
    return costs.dense_us(m, n, k, request.gpu, request.sms) + masking


def _keeps(request: Request) -> tuple[float, float, float]:
    """Expected live shares of a, b and out."""
    a_keep, b_keep, out_keep = (
        1.0 if block is None else UNKNOWN_KEEP if keep is None else keep
        for block, keep in (
            (request.a_block, request.a_keep),
            (request.b_block, request.b_keep),
            (request.out_block, request.out_keep),
        )
    )
    return a_keep, b_keep, out_keep


def _operand_bytes(request: Request) -> tuple[float, float]:
    """Of the live parts of a and b."""
    a_keep, b_keep, _ = _keeps(request)
    line = request.dtype.itemsize * request.k
    return line * request.m * a_keep, line * request.n * b_keep


def _work(request: Request, swap: bool) -> costs.Work:
    """The product as the kernels run it."""
    a_keep, b_keep, out_keep = _keeps(request)
    k_block = max(
        1 if request.a_block is None else request.a_block[1],
        1 if request.b_block is None else request.b_block[0],
    )
    m, n = (request.n, request.m) if swap else (request.m, request.n)
    if swap:
        b_block_n = None if request.a_block is None else request.a_block[0]
    else:
        b_block_n = None if request.b_block is None else request.b_block[1]
    a_bytes = _operand_bytes(request)[1 if swap else 0]
    b_bytes = float(request.dtype.itemsize * request.k * n)
    out_block = request.out_block
    if out_block is not None and swap:
        out_block = (out_block[1], out_block[0])
    return costs.Work(
        m,
        n,
        request.k,
        a_keep * b_keep,
        -(-request.k // k_block),
        (request.b_block if swap else request.a_block) is not None,
        b_block_n,
        out_keep,
        out_block,
        a_bytes,
        b_bytes,
        float(request.dtype.itemsize * m * n),
    )


def _obey(request: Request, forced: Override) -> Choice:
    if forced.path == "dense":
        return Choice("dense", reason="forced")
    if request.device != "cuda":
        if forced._replace(path=None) != Override() or forced.path == "sm90":
            raise ValueError(f"{forced} cannot be obeyed on the {request.device}: it has no tiles")
        return Choice("cpu", reason="forced") if forced.path == "cpu" else choose(request)
    if forced.path == "cpu":
        raise ValueError(f"{forced} cannot be obeyed: the operands are on a GPU")
    if forced == Override():
        return choose(request)
    why_not = _why_no_kernel(request)
    refusals = {
        choice: refusal(request, choice)
        for choice in (candidates(request, forced.parts) if why_not is None else ())
        if forced.tile in (None, choice.tile) and forced.swap in (None, choice.swap)
    }
    legal = [choice for choice, reason in refusals.items() if reason is None]
    if legal:
        return _best(request, legal)._replace(reason="forced")
    reasons = "; ".join(f"{_name(request, choice)}: {why}" for choice, why in refusals.items())
    no_tile = f"there are tiles 0 to {len(request.tiles) - 1}"
    raise ValueError(f"{forced} cannot be obeyed: {why_not or reasons or no_tile}")


def _choose_cpu(request: Request) -> Choice:
    """Live parts only, unless blocks are so small that calls cost more than they save."""
    if request.a_block is request.b_block is request.out_block is None:
        return Choice("dense", reason="no mask")
    if request.dtype not in cpu_costs.CALL:
        return Choice("cpu", reason=f"torch's own product in {request.dtype} is no BLAS call")
    extents = (request.m, request.n, request.k)
    blocks = (request.a_block, request.b_block, request.out_block)
    pays, reason = cpu_costs.live_parts_pay(request.dtype, extents, blocks, _keeps(request))
    return Choice("cpu" if pays else "dense", reason=reason)


def _why_no_kernel(request: Request) -> str | None:
    """Why the kernels cannot run the request, whatever the tile."""
    if not request.tiles:
        return f"no kernels for compute capability {request.capability[0]}.{request.capability[1]}"
    if request.dtype not in KERNEL_DTYPES:
        return f"no kernels for {request.dtype}"
    extents = (request.m, request.n, request.k)
    if min(extents) == 0:
        return f"nothing to multiply: m, n, k = {extents}"
    blocks = (request.a_block, request.b_block, request.out_block)
    if max(*extents, *(max(block) for block in blocks if block is not None)) > MOST:
        return f"extents above {MOST}: m, n, k = {extents}, blocks of {_blocks(request)}"
    return None


def _why_dense(request: Request) -> str | None:
    """Why the dense path is the better one, or the only one."""
    why = _why_no_kernel(request)
    if why is not None:
        return why
    if request.a_block is request.b_block is request.out_block is None:
        return "no mask"
    if not request.aligned and request.m * request.n * request.k < PADDING_PAYS:
        return "operands would have to be padded, for a small product"
    return None


def _orientation_cost(request: Request, choice: Choice) -> tuple[float, ...]:
    """Smaller is better: padding of the last tiles, unpaired slots, b playing a for nothing."""
    tile_m, tile_n, _, slot_n = request.tiles[choice.tile]
    m, n = (request.n, request.m) if choice.swap else (request.m, request.n)
    waste = -(-m // tile_m) * tile_m * -(-n // tile_n) * tile_n
    # Slots pair up along a line of blocks; an odd count of live ones leaves half a tile empty,
    # which weighs less the more blocks there are in the line.
    unpaired = 0.0
    if request.out_block is not None and tile_n > slot_n:
        unpaired = 1.0 / -(-n // request.out_block[0 if choice.swap else 1])
    masked = request.b_block is not None and request.a_block is None
    return (waste, unpaired, choice.swap != masked)


def _area(request: Request, choice: Choice) -> int:
    tile_m, tile_n, _, _ = request.tiles[choice.tile]
    return tile_m * tile_n


def _name(request: Request, choice: Choice) -> str:
    tile_m, tile_n, tile_k, _ = request.tiles[choice.tile]
    split = f" in {choice.parts} parts" if choice.parts > 1 else ""
    return f"tile {tile_m}x{tile_n}x{tile_k}{' transposed' if choice.swap else ''}{split}"


def _blocks(request: Request) -> str:
    named = (("a", request.a_block), ("b", request.b_block), ("out", request.out_block))
    return ", ".join(f"{name} {block[0]}x{block[1]}" for name, block in named if block is not None)
