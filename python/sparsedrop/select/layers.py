"""How a layer is run, dropout and the linear layer behind it: its three products together.

They share what comes before them: the kernels read a mask, dense products a masked copy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from sparsedrop.select import constants
from sparsedrop.select.choosing import (
    best,
    candidates,
    choose,
    copy_us,
    dense_us,
    expected_us,
    padding_us,
    product_us,
    weighed,
)
from sparsedrop.select.overriding import Override, forced_way
from sparsedrop.select.request import Choice, Request, describe_blocks
from sparsedrop.select.rules import best_architecture, refusal, why_dense

PADDED = "operands have to be padded, each product's for itself"
UNMASKED = "nothing is dropped on either side of a layer"
EACH_FORCED = "each is forced"

APART_HOST_US = 1000.0
"""What the host takes for a step of a layer whose products are padded, each for itself, measured
beside an H200; for the dense way it takes a third."""


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
    dense = sum(map(product_us, requests)) + 2 * _masking_us(requests[0])
    if isinstance(choices, str):
        path, reason = _unless_padded(choices, (requests,), dense)
        return LayerChoice(path, reason=reason)
    ours = sum(map(expected_us, requests, choices))
    gain, reason = _weigh(ours, dense, requests, choices)
    if gain * ours < dense:
        return LayerChoice("kernel", choices, reason)
    return LayerChoice("dense", reason=reason)


def _unless_padded(
    why: str, layers: tuple[tuple[Request, ...], ...], dense: float
) -> tuple[str, str]:
    """The path where kernels cannot run all products together, and dense ones take so long; and the
    reason."""
    if why != PADDED:
        return ("products" if why == UNMASKED else "dense"), why
    gpu = sum(_apart_us(request) for requests in layers for request in requests)
    host = APART_HOST_US * len(layers)
    figures = f"{why}: {gpu:.0f} us expected, {host:.0f} of the host, dense {dense:.0f}"
    return ("products" if max(gpu, host) < dense else "dense"), figures


def _apart_us(request: Request) -> float:
    """Expected time of a product that goes its own way, padding included."""
    choice = choose(request)
    if choice.path != "kernel":
        return dense_us(request)
    return expected_us(request, choice) + padding_us(request)


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
    """path: as that of a layer; "kernel" where those run one layer at least."""

    path: str
    # Of the kernels, for each product with weights as a layer's; empty: a dense product.
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
    choices = best_stack(layers, architecture=forced.architecture, asked=True)
    if isinstance(choices, str):
        return StackChoice("products", reason=choices)
    return StackChoice("kernel", choices, "forced")


@functools.lru_cache(maxsize=1024)
def choose_stack(layers: tuple[tuple[Request, ...], ...], dropped: tuple[int, ...]) -> StackChoice:
    """The way with the least expected time for the products of a stack on a GPU. Pure.

    Args:
        layers: the products of each weight, a gate's among them.
        dropped: the features of each matrix that is dropped: before dense products it is masked,
            once in each direction.
    """
    choices, forward = best_stack(layers), layers[0][0]
    dense = [sum(map(product_us, requests)) for requests in layers]
    all_dense = sum(dense) + sum(2 * copy_us(forward.m * features, forward) for features in dropped)
    if isinstance(choices, str):
        path, reason = _unless_padded(choices, layers, all_dense)
        return StackChoice(path, reason=reason)
    ours = sum(
        sum(map(expected_us, requests, found)) if found else otherwise
        for requests, found, otherwise in zip(layers, choices, dense, strict=True)
    )
    by_kernels = [requests for requests, found in zip(layers, choices, strict=True) if found]
    gain, reason = _weigh(ours, all_dense, tuple(chain(*by_kernels)), tuple(chain(*choices)))
    return StackChoice("kernel" if gain * ours < all_dense else "dense", choices, reason)


def best_stack(
    layers: tuple[tuple[Request, ...], ...],
    *,
    architecture: str | None = None,
    asked: bool = False,
) -> tuple[tuple[Choice, ...], ...] | str:
    """The kernels that take the least time, whatever dense products take, and none for a product
    that has to be dense; or why the stack cannot run so. The arguments are `best_kernels`'s."""
    found = [
        best_kernels(requests, architecture=architecture, asked=asked)
        if _is_masked(requests)
        else UNMASKED
        for requests in layers
    ]
    masked = [
        (r[0].a_block is not None, r[0].out_block is not None, isinstance(f, str))
        for r, f in zip(layers, found, strict=True)
    ]
    if not can_be_mixed(masked):
        return next(why for why in found if isinstance(why, str))
    return tuple(() if isinstance(choices, str) else choices for choices in found)


def can_be_mixed(layers: Sequence[tuple[bool, bool, bool]]) -> bool:
    """Whether products may run one behind the other where some of them are dense.

    A dense product reads a dropped value where a kernel has written zeros, and leaves one to a
    kernel, which does not read what is dropped: so of any two around a dropped value one is a
    kernel. Dense products of nothing that is dropped are torch's affair.

    Args:
        layers: of each, whether its input and its result are dropped, and whether it is dense.
    """
    last = len(layers) - 1
    for i, (reads, makes, is_dense) in enumerate(layers):
        if not is_dense:
            continue
        if not (reads or makes):
            return False
        if reads and (i == 0 or layers[i - 1][2]):
            return False
        if makes and (i == last or layers[i + 1][2]):
            return False
    return True


def _is_masked(requests: tuple[Request, ...]) -> bool:
    forward = requests[0]
    return forward.a_block is not None or forward.out_block is not None
