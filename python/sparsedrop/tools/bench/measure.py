"""One row of the table: a product at one rate, timed in turn with what it is compared to."""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparsedrop
from sparsedrop import reference, select
from sparsedrop.masks import BlockMask, Masks
from sparsedrop.ops import How, Product, cpu, cuda
from sparsedrop.select.rules import why_no_kernel
from sparsedrop.tools.bench import peers, products
from sparsedrop.tools.bench.products import Extents, Operands, live_share
from sparsedrop.tools.bench.settings import Block, Settings, block_name
from sparsedrop.tools.bench.timing import Call, Candidate, Turns
from sparsedrop.tools.names import dtype_name

# Two results of a rounding each, in the norm: bfloat16 has 8 bits, float16 has 11. Sums of float32
# and float64 differ by their order.
TOLERANCES = {
    torch.bfloat16: 5e-3,
    torch.float16: 1e-3,
    torch.float32: 1e-5,
    torch.float64: 1e-13,
}

TF32_TOLERANCE = 2e-3
"""It has the 11 bits of float16, to which one of two products may round and the other cut."""

MAX_SETS = 32


def tolerance(dtype: torch.dtype) -> float:
    """How far two products in that dtype may be from each other, as torch multiplies now."""
    return TF32_TOLERANCE if select.multiplies_as_tf32(dtype) else TOLERANCES[dtype]


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Inside, torch multiplies float32 as TF32."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Case(NamedTuple):
    """What one row is about."""

    product: products.Product
    extents: Extents
    p: float
    dtype: torch.dtype
    block: Block  # of the mask of X
    out_block: Block | None  # of the mask of Y; None where there is none

    @property
    def label(self) -> str:
        """For a line of progress or a sentence."""
        return f"{self.extents}, p = {self.p:g}, {self.name}, {dtype_name(self.dtype)}"

    @property
    def name(self) -> str:
        """The product, with the block of Y's mask where it has one."""
        block = "" if self.out_block is None else f" {block_name(self.out_block)}"
        return f"{self.product.name}{block}"


class Row(NamedTuple):
    """Times of one call, in microseconds, and what follows; medians over the masks."""

    case: Case
    dense_us: float
    shrunk_us: float
    ours_us: float
    live_share: float  # live FLOPs over dense FLOPs
    of_shrunk: float  # our live FLOPs per second over the shrunk problem's FLOPs per second
    choice: str
    tiles_us: dict[str, float]  # of each tile, orientation and split along k, where asked for
    peers_us: dict[str, float]
    packing_us: dict[str, float]  # what a peer takes besides, to pack its operand; host included

    @property
    def times_dense(self) -> float:
        """Speed-up over the dense product."""
        return self.dense_us / self.ours_us

    @property
    def best_tile(self) -> str | None:
        """The fastest of the tiles, where they were timed."""
        return min(self.tiles_us, key=self.tiles_us.__getitem__) if self.tiles_us else None

    @property
    def regret(self) -> float | None:
        """How much longer our choice takes than the best tile does, as a fraction."""
        best = self.best_tile
        return None if best is None else self.ours_us / self.tiles_us[best] - 1


class WrongProductError(RuntimeError):
    """A product that is not what dense products of the masked operands are."""


def operand_sets(extents: Extents, dtype: torch.dtype, device: torch.device) -> list[Operands]:
    """Inputs to rotate: enough that twice the L2 cache has gone by before one is read again."""
    m, n, k = extents
    cache = 0
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    working_set = (m * k + n * k + m * n) * dtype.itemsize
    sets = min(MAX_SETS, max(1, math.ceil(2 * cache / working_set)))
    return [Operands.random(extents, dtype, device) for _ in range(sets)]


def measure(case: Case, steps: Sequence[Operands], settings: Settings, notes: list[str]) -> Row:
    """The row of a case. Why a peer is left out is added to `notes`.

    Raises:
        WrongProductError: where a product differs from its definition by more than rounding.
    """
    device = steps[0].x.device
    factors = [case.product.factors(step) for step in steps]
    draws = [draw(case, settings.sampler, device) for _ in range(settings.masks)]
    for i, masks in enumerate(draws):
        check(case, factors[i % len(factors)], masks)
    request = request_for(*factors[0], draws[0])
    tiles = {_name(request, choice): choice for choice in _legal(request) if settings.tiles}

    turns = Turns(device)
    few = case.product.shrunk(case.extents, case.p)
    few_factors = [case.product.factors(step.corner(few)) for step in steps]
    candidates: dict[tuple[str, int], Candidate] = {  # by name and mask
        ("dense", 0): turns.prepare([_dense(a, b) for a, b in factors]),
        ("shrunk", 0): turns.prepare([_dense(a, b) for a, b in few_factors]),
    }
    for i, masks in enumerate(draws):
        calls = [ours(a, b, masks) for a, b in factors]
        candidates["ours", i] = turns.prepare(calls)
        for name, choice in tiles.items():
            with select.override(choice.path, choice.tile, choice.swap, choice.split_k):
                check(case, factors[0], masks)
                candidates[name, i] = turns.prepare(calls)
    packing_us: dict[str, float] = {}
    if settings.peers and case.product.name == "forward":
        prepared, sentences = peers.prepare_all(factors, draws[0], turns)
        notes += sentences
        candidates |= {(peer.name, 0): peer.product for peer in prepared}
        packing_us = {peer.name: peer.packing_us for peer in prepared}

    times = turns.medians_us(candidates)
    extents = (request.m, request.n, request.k)
    live = [live_share(masks, *extents) for masks in draws]
    us = _medians(times)
    shrunk_rate = math.prod(few) / math.prod(case.extents) / us["shrunk"]
    rates = [share / times["ours", i] for i, share in enumerate(live)]
    return Row(
        case,
        us["dense"],
        us["shrunk"],
        us["ours"],
        statistics.median(live),
        of_shrunk=statistics.median(rates) / shrunk_rate,
        choice=_name(request, select.decide(request)),
        tiles_us={name: us[name] for name in tiles},
        peers_us={name: us[name] for name in packing_us},
        packing_us=packing_us,
    )


def _medians(times: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Of each name, over the masks."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for (name, _), us in times.items():
        by_name[name].append(us)
    return {name: statistics.median(values) for name, values in by_name.items()}


def check(case: Case, factors: tuple[Tensor, Tensor], masks: Masks) -> None:
    """WrongProductError where the library's product is not the dense one of the masked operands."""
    expected = reference.matmul(*factors, **_named(masks))
    error = relative_error(ours(*factors, masks)(), expected)
    if not error <= tolerance(case.dtype):
        raise WrongProductError(
            f"{case.label}: differs from the masked dense product by {error:.1e}"
        )


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected. Reads the device."""
    wide = torch.promote_types(expected.dtype, torch.float32)
    ours, expected = ours.to(wide), expected.to(wide)
    norm = expected.norm().item()
    return (ours - expected).norm().item() / (norm or 1.0)


def request_for(a: Tensor, b: Tensor, masks: Masks) -> select.Request:
    """What the library asks its selection for this product."""
    product = Product(a, b, None, How(*masks))
    return cuda.request_for(product) if a.is_cuda else cpu.request_for(product)


def _legal(request: select.Request) -> Iterator[select.Choice]:
    """Every tile in each orientation that can run the request."""
    if why_no_kernel(request) is not None:
        return
    for choice in select.candidates(request):
        if select.refusal(request, choice) is None:
            yield choice


def _name(request: select.Request, choice: select.Choice) -> str:
    """Such as "#0 128x256x64 swap", after the tile's id; the path where it has no tiles."""
    if choice.path != "kernel":
        return choice.path
    split = f" split {choice.split_k}" if choice.split_k > 1 else ""
    return f"#{choice.tile} {request.tiles[choice.tile]}{' swap' * choice.swap}{split}"


def draw(case: Case, sampler: str, device: torch.device) -> Masks:
    """New masks of X, and of Y where it has one."""
    (m, n, k), draw = case.extents, getattr(BlockMask, sampler)
    x_mask = draw((m, k), case.p, block_shape=case.block, device=device)
    if case.out_block is None:
        return case.product.masks(x_mask, None)
    y_mask = draw((m, n), case.p, block_shape=case.out_block, device=device)
    return case.product.masks(x_mask, y_mask)


def _dense(a: Tensor, b: Tensor) -> Call:
    return functools.partial(torch.mm, a, b)


def ours(a: Tensor, b: Tensor, masks: Masks) -> Callable[[], Tensor]:
    """The library's product, as a candidate."""
    return functools.partial(sparsedrop.matmul, a, b, **_named(masks))


def _named(masks: Masks) -> dict[str, Any]:
    return dict(zip(("a_mask", "b_mask", "out_mask"), masks, strict=True))
