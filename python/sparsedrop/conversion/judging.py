"""Which sites are converted, how, and why others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from sparsedrop import select
from sparsedrop.conversion import channels, units
from sparsedrop.conversion.branches import Branch
from sparsedrop.conversion.planning import DEFAULT_BLOCK, Block, block_for, extents, gain
from sparsedrop.conversion.report import Entry
from sparsedrop.conversion.sites import Site
from sparsedrop.masks import all_kept, check_p, check_sliced_p
from sparsedrop.nn.rated import rate_of

SPARSEDROP, SLICEOUT, TILES = "sparsedrop", "sliceout", "tile-pattern"
METHODS = (SPARSEDROP, *units.METHODS, TILES)

Filter = Callable[[str, nn.Module], bool]


class Wishes(NamedTuple):
    """What the caller of `convert` asked for."""

    method: str
    p: float | None
    filter: Filter | None
    min_speedup: float
    block_shape: Block | None
    sampler: str  # of blocks
    scale: str  # of patterns


class Judged(NamedTuple):
    """A site, and what is to become of it. block: where blocks are dropped."""

    site: Site | Branch
    p: float
    block: Block
    entry: Entry


def judge(site: Site | Branch, wishes: Wishes) -> Judged:
    """Whether a site that can be converted should be."""
    p = rate_of(site.dropout.module) if wishes.p is None else wishes.p
    if isinstance(site, Branch):
        block, why_not = DEFAULT_BLOCK, _why_not_branch(site, p)
        gains = _by_share(channels.kept(site.channels, site.size, p)) if why_not is None else None
        return _judged(site, wishes, p, block, why_not, gains)
    if wishes.method == TILES and site.consumer is not None:
        site = Site("input", site.consumer.name, site.dropout, (), site.consumer)
    rows, width = extents(site)
    block = wishes.block_shape or block_for(rows, width, p)
    why_not = _why_not(site, wishes.method, p)
    gains = _gain(site, wishes.method, p, block) if why_not is None else None
    has_blocks = wishes.method == SPARSEDROP and wishes.block_shape is not None
    if why_not is None and has_blocks and block[1] > width:
        why_not = f"blocks of {block[0]}x{block[1]} are wider than its {width} features"
    return _judged(site, wishes, p, block, why_not, gains)


def _judged(
    site: Site | Branch,
    wishes: Wishes,
    p: float,
    block: Block,
    why_not: str | None,
    gains: select.Gain | None,
) -> Judged:
    """What the caller wishes comes first, and last what it gains."""
    reason = None
    if p == 0.0 and wishes.p is None:
        reason = "its rate is 0: give p"
    elif wishes.filter is not None and not wishes.filter(site.name, site.linear):
        reason = "excluded by filter"
    elif why_not is not None:
        reason = why_not
    elif gains is not None and gains.speedup < wishes.min_speedup:
        reason = (
            f"expected to gain less than min_speedup={wishes.min_speedup:g}: "
            f"{gains.speedup:.2f} times as fast, {gains.figures}"
        )
    speedup = None if gains is None else gains.speedup
    return Judged(site, p, block, Entry(site.name, site.kind, speedup, reason))


def _why_not_branch(branch: Branch, p: float) -> str | None:
    try:
        check_sliced_p(p)
    except ValueError as error:
        return str(error)
    units, size = branch.channels, branch.size
    if p > 0.0 and channels.kept(units, size, p) == 1.0:
        return all_kept("channels", units, channels.align_for(units, size), p)
    return None


def _why_not(site: Site, method: str, p: float) -> str | None:
    """Why a method cannot do what is dropped there; None where it can."""
    if method == SPARSEDROP:
        return None
    if method in units.METHODS and site.kind not in ("mlp", "gated"):
        return site.why_no_branch or f"{method} drops units between two linear layers"
    if method == TILES and site.consumer is None:
        return f"{method} drops parts of the weight of a layer behind a dropout"
    if not all(isinstance(call.module, nn.Linear) for call in site.layers):
        return f"{method} takes layers that are an nn.Linear"
    if site.has_views:
        return f"{method} makes fewer units, and the hidden value is reshaped on its way"
    if method in units.METHODS and site.is_measured:
        return f"{method} makes fewer units, and the model asks for the extents of the hidden value"
    check = units.METHODS[method].check if method in units.METHODS else units.check_pattern
    try:
        check(check_p(p))
    except ValueError as error:
        return str(error)
    width = extents(site)[1]
    if method == SLICEOUT and p > 0.0 and units.METHODS[method].kept(width, p) == 1.0:
        return all_kept("units", width, units.ALIGN, p)
    return None


def _gain(site: Site, method: str, p: float, block: Block) -> select.Gain:
    """What is expected: of blocks by the costs of the device, else by what is left to do."""
    if method == SPARSEDROP:
        return gain(site, p, block)
    kept = 1.0 - p
    if method in units.METHODS:
        kept = units.METHODS[method].kept(extents(site)[1], p)
    return _by_share(kept)


def _by_share(kept: float) -> select.Gain:
    return select.Gain(1.0 / kept, f"{kept:.0%} of the operations are left")


def with_shared_dropouts(judged: list[Judged]) -> list[Judged]:
    """A dropout is converted for all that it serves, or for none."""
    staying = {each.site.dropout.module: each for each in judged if each.entry.reason is not None}
    return [
        each._replace(entry=each.entry._replace(reason=_shares_with(staying[dropout])))
        if each.entry.reason is None and (dropout := each.site.dropout.module) in staying
        else each
        for each in judged
    ]


def _shares_with(other: Judged) -> str:
    return f"its dropout also serves {other.entry.name or 'the model'}, which stays"
