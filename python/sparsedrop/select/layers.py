"""How a layer is run, dropout and the linear layer behind it: its three products together.

They share what comes before them: the kernels read a mask, dense products a masked copy.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from sparsedrop.select.choosing import best, candidates, copy_us, expected_us, product_us
from sparsedrop.select.overriding import Override, forced_way
from sparsedrop.select.request import Choice, Request, describe_blocks
from sparsedrop.select.rules import refusal, why_dense

PADDED = "operands have to be padded, each product's for itself"


class LayerChoice(NamedTuple):
    """path: "kernel", "dense" or "products": each product of the layer goes its own way."""

    path: str
    # Of the kernels: forward, input gradient and weight gradient.
    products: tuple[Choice, ...] = ()
    reason: str = ""


def decide_layer(requests: tuple[Request, ...]) -> LayerChoice:
    """What `choose_layer` says, unless the user overrides it."""
    forced = forced_way()
    if forced is None:
        return choose_layer(requests)
    if forced.path == "dense":
        return LayerChoice("dense", reason="forced")
    # What else is forced holds for the products of a pass, by what is forced when that pass runs.
    choices = best_kernels(requests) if forced == Override("kernel") else "each is forced"
    if isinstance(choices, str):
        return LayerChoice("products", reason=choices)
    return LayerChoice("kernel", choices, "forced")


@functools.lru_cache(maxsize=4096)
def choose_layer(requests: tuple[Request, ...]) -> LayerChoice:
    """The way with the least expected time for the products of a layer on a GPU. Pure."""
    choices = best_kernels(requests)
    if isinstance(choices, str):
        return LayerChoice("products" if choices == PADDED else "dense", reason=choices)
    ours = sum(map(expected_us, requests, choices))
    dense = sum(map(product_us, requests)) + 2 * _masking_us(requests[0])
    reason = f"{ours:.0f} us expected, dense {dense:.0f}"
    if ours < dense:
        return LayerChoice("kernel", choices, reason)
    return LayerChoice("dense", reason=reason)


def best_kernels(requests: tuple[Request, ...]) -> tuple[Choice, ...] | str:
    """The kernels that take the least time, whatever dense products take; or why there are none."""
    choices = []
    for request in requests:
        why = why_dense(request)
        if why is not None:
            return why
        legal = [c for c in candidates(request) if refusal(request, c) is None]
        if not legal:
            return "no tile divides the blocks: " + describe_blocks(request)
        choices.append(best(request, legal))
    return tuple(choices) if _are_aligned(requests) else PADDED


def _are_aligned(requests: tuple[Request, ...]) -> bool:
    return all(request.aligned for request in requests)


def _masking_us(forward: Request) -> float:
    """A masked copy of what is dropped, x or the result: each direction makes one."""
    return copy_us(forward.m * (forward.k if forward.a_block is not None else forward.n), forward)
