"""What it gains to skip what a dropout drops: layers with nn.Dropout against ours. Pure functions.

>>> place = Place("cuda", torch.bfloat16, 8192, 4096, 0.5, (128, 128), facts)
>>> print(expected_gain(place, (MaskedLayer(4096, 1024, "output"), MaskedLayer(1024, 4096))))
Gain(speedup=2.06, figures='351 us expected, with nn.Dropout 723')
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from sparsedrop.select import cpu_costs
from sparsedrop.select.choosing import choose, copy_us, dense_us, expected_us, product_us
from sparsedrop.select.cpu_costs import Block
from sparsedrop.select.request import Request


class MaskedLayer(NamedTuple):
    """A linear layer of [n, k] whose input, [rows, k], or output, [rows, n], is dropped."""

    n: int
    k: int
    side: str = "input"


class Place(NamedTuple):
    """Where blocks of a [rows, width] are dropped with probability p.

    rows are None where they are not known; `facts` are those of `gpu_facts`, by their names, and
    whether float32 may be TF32.
    """

    device: str
    dtype: torch.dtype
    rows: int | None
    width: int
    p: float
    block: Block
    facts: tuple[tuple[str, Any], ...] = ()


class Gain(NamedTuple):
    """How many times as fast, and the figures in a sentence."""

    speedup: float
    figures: str


def expected_gain(place: Place, layers: tuple[MaskedLayer, ...]) -> Gain:
    """Of the layers around a dropout, forward and both gradients, over them with nn.Dropout.

    By the costs of the GPU, or of a CPU; by operations alone where there are none: on other
    devices, in dtypes that no model is for, and where the rows are not known, or none.
    """
    if place.rows and place.device == "cuda":
        return _on_gpu(place, layers)
    if place.rows and place.device == "cpu" and place.dtype in cpu_costs.CALL:
        return _on_cpu(place, layers)
    keep = 1.0 - place.p
    speedup = 1.0 / keep if keep > 0.0 else float("inf")
    return Gain(speedup, f"{keep:.0%} of the operations are left")


@functools.lru_cache(maxsize=4096)
def _products(place: Place, layer: MaskedLayer) -> tuple[Request, Request, Request]:
    """Forward, input gradient and weight gradient, as `ops` runs them."""
    assert place.rows is not None
    m, (n, k, side), keep = place.rows, layer, 1.0 - place.p
    block = place.block
    like = Request(place.device, place.dtype, m, n, k, **dict(place.facts))
    aligned = like._replace(aligned=n % 8 == 0 and k % 8 == 0)
    if side == "input":
        return (
            aligned._replace(a_block=block, a_keep=keep),
            aligned._replace(n=k, k=n, out_block=block, out_keep=keep, b_k_major=True),
            aligned._replace(
                m=n, n=k, k=m, b_block=block, b_keep=keep, a_k_major=False, b_k_major=False
            ),
        )
    turned = block[1], block[0]
    return (
        aligned._replace(out_block=block, out_keep=keep),
        aligned._replace(n=k, k=n, a_block=block, a_keep=keep, b_k_major=True),
        aligned._replace(
            m=n, n=k, k=m, a_block=turned, a_keep=keep, a_k_major=False, b_k_major=False
        ),
    )


def _on_gpu(place: Place, layers: tuple[MaskedLayer, ...]) -> Gain:
    ours, theirs = 0.0, 0.0
    for layer in layers:
        for request in _products(place, layer):
            choice = choose(request)
            is_kernel = choice.path == "kernel"
            ours += expected_us(request, choice) if is_kernel else dense_us(request)
            theirs += product_us(request)
    assert place.rows is not None
    # Forward and backward each read and write it once.
    request = _products(place, layers[0])[0]
    theirs += 2 * copy_us(place.rows * place.width, request)
    return _gain(ours, theirs, f"{ours:.0f} us expected, with nn.Dropout {theirs:.0f}")


def _on_cpu(place: Place, layers: tuple[MaskedLayer, ...]) -> Gain:
    call = cpu_costs.CALL[place.dtype]
    ours, theirs = 0.0, 0.0
    for layer in layers:
        ours += cpu_costs.LAYER_CALLS * call
        for request in _products(place, layer):
            extents = request.m, request.n, request.k
            costs = cpu_costs.costs(place.dtype, extents, request.blocks, request.keeps)
            in_parts = costs.live + (cpu_costs.PARTS - 1.0) * costs.live_flops
            ours += in_parts if costs.live < costs.dense else costs.dense
            theirs += costs.flops
    assert place.rows is not None
    theirs += cpu_costs.DROPOUT_ELEMENT * place.rows * place.width
    figures = f"{ours:.1e} floating-point operations expected, with nn.Dropout {theirs:.1e}"
    return _gain(ours, theirs, figures)


def _gain(ours: float, theirs: float, figures: str) -> Gain:
    return Gain(theirs / ours if ours > 0.0 else float("inf"), figures)
