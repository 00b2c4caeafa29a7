"""From sites to swaps: block shapes, expected gains, and what each module becomes."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparsedrop import select
from sparsedrop.conversion import kinds
from sparsedrop.conversion.flow import Call
from sparsedrop.conversion.sites import Site
from sparsedrop.nn.coarse import ALL_DROPPED, WANTED_BLOCKS, finer

Block = tuple[int, int]

DEFAULT_BLOCK = (128, 128)


def extents(site: Site) -> tuple[int | None, int]:
    """Rows, None without a pass, and features of what a site drops."""
    width = site.layers[-1]
    n, k = _weight_shape(width)
    value = width.outputs[0].shape
    rows = None if value is None else math.prod(value[:-1])
    return rows, n if site.consumer is None else k


def block_for(rows: int | None, width: int, p: float) -> Block:
    """128x128, halved along an extent that is shorter, or along both if all may drop out together.

    Then until there are four blocks along it, or eight rows or columns to a block.
    """
    many = DEFAULT_BLOCK[0] * WANTED_BLOCKS
    shape = (many if rows is None else rows, width)
    block = tuple(finer(n, b) if n < b else b for n, b in zip(shape, DEFAULT_BLOCK, strict=True))
    count = math.prod(-(-n // b) for n, b in zip(shape, block, strict=True))
    if 0.0 < p < 1.0 and p**count > ALL_DROPPED:
        block = tuple(finer(n, b) for n, b in zip(shape, DEFAULT_BLOCK, strict=True))
    return block[0], block[1]


def gain(site: Site, p: float, block: Block) -> select.Gain:
    """What is expected of converting a site."""
    rows, width = extents(site)
    value = site.layers[-1].outputs[0]
    weight = _weight(site.layers[-1])
    device = value.device if value.device is not None else weight.device
    dtype = value.dtype if value.dtype is not None else weight.dtype
    facts: dict[str, Any] = {}
    if device.type == "cuda":
        facts = {**select.gpu_facts(device.index), "tf32": select.multiplies_as_tf32(dtype)}
    place = select.Place(device.type, dtype, rows, width, p, block, tuple(facts.items()))
    layers = tuple(
        select.MaskedLayer(*_weight_shape(call), "input" if call is site.consumer else "output")
        for call in site.layers
    )
    return select.expected_gain(place, layers)


def _weight(call: Call) -> torch.Tensor:
    weight = getattr(call.module, "weight", None)
    assert isinstance(weight, torch.Tensor)
    return weight


def _weight_shape(call: Call) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    assert call.module is not None
    n, k = _weight(call).shape
    return (k, n) if kinds.is_conv1d(call.module) else (n, k)
