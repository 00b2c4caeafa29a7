"""How a layer is run, dropout and the linear layer behind it: its three products together.

They share what comes before them: the kernels read a mask, dense products a masked copy.
"""

from __future__ import annotations

import functools
from itertools import chain
from typing import NamedTuple

from sparsedrop.select import constants
from sparsedrop.select.choosing import best, candidates, copy_us, expected_us, product_us, weighed
from sparsedrop.select.overriding import Override, forced_way
from sparsedrop.select.request import Choice, Request, describe_blocks
from sparsedrop.select.rules import best_architecture, refusal, why_dense

PADDED = "operands have to be padded, each product's for itself"
UNMASKED = "nothing is dropped on either side of a layer"
EACH_FORCED = "each is forced"


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
    choices = _forced_kernels(requests, forced) if _forces_layers(forced) else EACH_FORCED
    if isinstance(choices, str):
        return LayerChoice("products", reason=choices)
    return LayerChoice("kernel", choices, "forced")


def _forces_layers(forced: Override) -> bool:
    """Whether only the kernels are forced, or those of an architecture: a layer can obey that."""
    alone = Override(forced.path, architecture=forced.architecture)
    return forced.path in (None, "kernel") and forced == alone


@functools.lru_cache(maxsize=4096)
def choose_layer(requests: tuple[Request, ...]) -> LayerChoice:
    """The way with the least expected time for the products of a layer on a GPU. Pure."""
    choices = best_kernels(requests)
    if isinstance(choices, str):
        return LayerChoice("products" if choices == PADDED else "dense", reason=choices)
    ours = sum(map(expected_us, requests, choices))
    dense = sum(map(product_us, requests)) + 2 * _masking_us(requests[0])
    gain, reason = _weigh(ours, dense, requests, choices)
    if gain * ours < dense:
        return LayerChoice("kernel", choices, reason)
    return LayerChoice("dense", reason=reason)


def _weigh(
    ours: float, dense: float, requests: tuple[Request, ...], choices: tuple[Choice, ...]
) -> tuple[float, str]:
    """By how much the kernels' time has to be shorter, and the figures in a sentence."""
    gain = max(map(constants.needed_gain, requests, choices))
    sources = dict.fromkeys(map(constants.source_of, requests, choices))
    return gain, f"{weighed(ours, dense, gain)}, by costs {' and '.join(sources)}"


def _forced_kernels(requests: tuple[Request, ...], forced: Override) -> tuple[Choice, ...] | str:
    return best_kernels(requests, architecture=forced.architecture, asked=True)


def best_kernels(
    requests: tuple[Request, ...], *, architecture: str | None = None, asked: bool = False
) -> tuple[Choice, ...] | str:
    """The kernels that take the least time, whatever dense products take; or why there are none.

    Args:
        requests: the products of a layer, or of a part of a stack.
        architecture: the one that the user forces.
        asked: whether the user forces kernels; see `rules.best_architecture`.
    """
    asked = asked or architecture is not None
    choices = []
    for request in requests:
        why = why_dense(request, asked=asked)
        if why is not None:
            return why
        name = architecture or best_architecture(request, asked=asked)
        ways = candidates(request, architecture=name)
        legal = [c for c in ways if refusal(request, c) is None]
        if not legal:
            return "no tile divides the blocks: " + describe_blocks(request)
        choices.append(best(request, legal))
    return tuple(choices) if _are_aligned(requests) else PADDED


def _are_aligned(requests: tuple[Request, ...]) -> bool:
    return all(request.aligned for request in requests)


def _masking_us(forward: Request) -> float:
    """A masked copy of what is dropped, x or the result: each direction makes one."""
    return copy_us(forward.m * (forward.k if forward.a_block is not None else forward.n), forward)


class StackChoice(NamedTuple):
    """path: as that of a layer."""

    path: str
    # Of the kernels, layer by layer, as a layer's.
    layers: tuple[tuple[Choice, ...], ...] = ()
    reason: str = ""


def decide_stack(layers: tuple[tuple[Request, ...], ...], dropped: tuple[int, ...]) -> StackChoice:
    """What `choose_stack` says, unless the user overrides it."""
    forced = forced_way()
    if forced is None:
        return choose_stack(layers, dropped)
    if forced.path == "dense":
        return StackChoice("dense", reason="forced")
    if not _forces_layers(forced):
        return StackChoice("products", reason=EACH_FORCED)
    found = tuple(
        _forced_kernels(requests, forced) if _is_masked(requests) else UNMASKED
        for requests in layers
    )
    choices = tuple(choice for choice in found if not isinstance(choice, str))
    if len(choices) < len(found):
        return StackChoice("products", reason=next(c for c in found if isinstance(c, str)))
    return StackChoice("kernel", choices, "forced")


@functools.lru_cache(maxsize=1024)
def choose_stack(layers: tuple[tuple[Request, ...], ...], dropped: tuple[int, ...]) -> StackChoice:
    """The way with the least expected time for the products of a stack on a GPU. Pure.

    Args:
        layers: the products of each weight, a gate's among them.
        dropped: the features of each matrix that is dropped: before dense products it is masked,
            once in each direction.
    """
    choices, ours, dense = [], 0.0, 0.0
    for requests in layers:
        found = best_kernels(requests) if _is_masked(requests) else UNMASKED
        if isinstance(found, str):
            apart = found in (PADDED, UNMASKED)
            return StackChoice("products" if apart else "dense", reason=found)
        choices.append(found)
        ours += sum(map(expected_us, requests, found))
        dense += sum(map(product_us, requests))
    forward = layers[0][0]
    dense += sum(2 * copy_us(forward.m * features, forward) for features in dropped)
    flat, chosen = tuple(chain(*layers)), tuple(chain(*choices))
    gain, reason = _weigh(ours, dense, flat, chosen)
    return StackChoice("kernel" if gain * ours < dense else "dense", tuple(choices), reason)


def _is_masked(requests: tuple[Request, ...]) -> bool:
    forward = requests[0]
    return forward.a_block is not None or forward.out_block is not None
