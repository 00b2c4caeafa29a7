"""Other libraries' product of a block-sparse matrix and a dense one, where they are installed.

They pack the masked operand first; the library reads it in place.
"""

from __future__ import annotations

import functools
import importlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import reference
from sparsedrop.masks import BlockMask, Masks
from sparsedrop.tools.bench.timing import Candidate, Turns
from sparsedrop.tools.clock import wall_ms

PACKINGS = 5
"""Times that an operand is packed, of which the median counts."""

TOLERANCE = 1e-2
"""On the norm of the error: looser than ours, since a peer may round more often."""


class Peer(NamedTuple):
    """How another library packs the masked operand, and multiplies it by a dense one."""

    name: str
    pack: Callable[[Tensor, BlockMask], Any]
    multiply: Callable[[Any, Tensor], Tensor]


class Prepared(NamedTuple):
    """A peer's product, ready to take its turns."""

    name: str
    product: Candidate
    packing_us: float


def _pack_bsr(a: Tensor, mask: BlockMask) -> Tensor:
    return reference.keep_live(a, mask).to_sparse_bsr(mask.block_shape)


def _pack_stk(a: Tensor, mask: BlockMask) -> Any:
    rows, cols = mask.block_shape
    if rows != cols:
        raise ValueError(f"its blocks are square, not {rows}x{cols}")
    return importlib.import_module("stk.ops").to_sparse(reference.keep_live(a, mask), rows)


def _multiply_stk(packed: Any, b: Tensor) -> Tensor:
    return importlib.import_module("stk.ops").dsd(packed, b)


PEERS = (Peer("torch BSR", _pack_bsr, torch.mm), Peer("STK", _pack_stk, _multiply_stk))


def prepare(
    peer: Peer, factors: Sequence[tuple[Tensor, Tensor]], masks: Masks, turns: Turns
) -> Prepared:
    """The peer's product of each pair of factors, the first of which has a mask.

    Raises: whatever the peer does, and RuntimeError where its result is wrong.
    """
    mask = masks[0]
    if mask is None:
        raise ValueError("the first factor must have a mask")
    packed = [(peer.pack(a, mask), b) for a, b in factors]
    a, b = factors[0]
    expected = reference.matmul(a, b, a_mask=mask).float()
    error = (peer.multiply(*packed[0]).float() - expected).norm() / expected.norm()
    if not error <= TOLERANCE:
        raise RuntimeError(f"its result is wrong by {error.item():.1e}")
    product = turns.prepare([functools.partial(peer.multiply, *pair) for pair in packed])
    return Prepared(peer.name, product, _wall_us(lambda: peer.pack(a, mask), a.device))


def prepare_all(
    factors: Sequence[tuple[Tensor, Tensor]], masks: Masks, turns: Turns
) -> tuple[list[Prepared], list[str]]:
    """Every peer that can run the product, and a sentence for each that cannot."""
    prepared, sentences = [], []
    for peer in PEERS:
        try:
            prepared.append(prepare(peer, factors, masks, turns))
        except Exception as error:  # whatever a peer raises must not end the run
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            sentences.append(f"{peer.name} left out: {reason}")
    return prepared, sentences


def _wall_us(call: Callable[[], object], device: torch.device) -> float:
    """Median wall-clock time, the host's work included: packing waits for the GPU."""
    return statistics.median(wall_ms(call, device) for _ in range(PACKINGS)) * 1e3
