"""What every module of the sites of a conversion becomes, by its method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from sparsedrop.conversion.branch_plans import plan_branches
from sparsedrop.conversion.branches import Branch
from sparsedrop.conversion.judging import TILES, Wishes
from sparsedrop.conversion.layers import ConvertedConv1D, ConvertedLinear, Handover, Side
from sparsedrop.conversion.planning import Block
from sparsedrop.conversion.sites import Site
from sparsedrop.conversion.swapping import Swap, stand_in
from sparsedrop.conversion.units import METHODS, PATTERNS, UnitLinear, UnitSide, method_of
from sparsedrop.nn import SparseDropLinear, TilePatternLinear

Sites = list[tuple[Site, Block]]

Dropped = tuple[Any, nn.Module]
"""A side of a layer, and the dropout that was there."""


def plan(accepted: list[tuple[Site | Branch, Block]], wishes: Wishes) -> list[Swap]:
    """What every module of these sites becomes."""
    sites = [(site, block) for site, block in accepted if isinstance(site, Site)]
    branches = [site for site, _ in accepted if isinstance(site, Branch)]
    return _plan_sites(sites, wishes) + plan_branches(branches)


def _plan_sites(sites: Sites, wishes: Wishes) -> list[Swap]:
    if wishes.method in METHODS:
        method = method_of(wishes.method, wishes.scale)
        return _plan(sites, lambda _, *handed: UnitSide(method, *handed), _by_units)
    by = functools.partial(_by_tiles, wishes.scale) if wishes.method == TILES else _by_blocks
    return _plan(sites, lambda block, *handed: Side(block, wishes.sampler, *handed), by)


def _plan(
    sites: Sites,
    side: Callable[[Block, Handover | None, bool], Any],
    swap_for: Callable[[nn.Module, Dropped | None, Dropped | None], Swap],
) -> list[Swap]:
    incoming: dict[nn.Module, Dropped] = {}
    outgoing: dict[nn.Module, Dropped] = {}
    for site, block in sites:
        dropout, consumer = site.dropout.module, site.consumer
        assert dropout is not None
        is_shared = bool(site.producers) and consumer is not None
        handover = Handover(site.kind) if is_shared else None
        for i, call in enumerate(site.producers):
            assert call.module is not None
            outgoing[call.module] = side(block, handover, i == 0), dropout
        if consumer is not None:
            assert consumer.module is not None
            incoming[consumer.module] = side(block, handover, True), dropout
    swaps = [
        swap_for(linear, incoming.get(linear), outgoing.get(linear))
        for linear in dict.fromkeys((*incoming, *outgoing))
    ]
    layers: dict[nn.Module, list[nn.Module]] = {}
    for linear, (_, dropout) in (*outgoing.items(), *incoming.items()):
        layers.setdefault(dropout, []).append(linear)
    return swaps + [stand_in(dropout, served) for dropout, served in layers.items()]


def _by_blocks(linear: nn.Module, incoming: Dropped | None, outgoing: Dropped | None) -> Swap:
    """SparseDropLinear where one side of its own is all, else a layer for any sides."""
    only = incoming or outgoing if incoming is None or outgoing is None else None
    if isinstance(linear, nn.Linear) and only is not None and only[0].handover is None:
        side, dropout = only
        made = SparseDropLinear.from_linear(
            linear,
            side="output" if incoming is None else "input",
            block_shape=side.block_shape,
            sampler=side.sampler,
        )
        return _like(made, linear, dropout)
    cls = ConvertedLinear if isinstance(linear, nn.Linear) else ConvertedConv1D
    return _with_sides(linear, cls, incoming, outgoing)


def _by_units(linear: nn.Module, incoming: Dropped | None, outgoing: Dropped | None) -> Swap:
    return _with_sides(linear, UnitLinear, incoming, outgoing)


def _by_tiles(
    scale: str, linear: nn.Module, incoming: Dropped | None, outgoing: Dropped | None
) -> Swap:
    assert isinstance(linear, nn.Linear)
    assert incoming is not None
    made = TilePatternLinear.from_linear(linear, 0.0, patterns=PATTERNS, scale=scale)
    return _like(made, linear, incoming[1])


def _like(made: nn.Module, linear: nn.Module, dropout: nn.Module) -> Swap:
    """The layer becomes as this one, which shares its parameters."""
    new = {k: v for k, v in vars(made).items() if k not in vars(linear)}
    return Swap(linear, type(made), new, {"dropout": dropout})


def _with_sides(
    linear: nn.Module, cls: type, incoming: Dropped | None, outgoing: Dropped | None
) -> Swap:
    sides = {
        "incoming": None if incoming is None else incoming[0],
        "outgoing": None if outgoing is None else outgoing[0],
    }
    children = {
        name: side[1]
        for name, side in (("dropout", incoming), ("out_dropout", outgoing))
        if side is not None
    }
    return Swap(linear, cls, sides, children)
