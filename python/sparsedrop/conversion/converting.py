"""convert: from a model and an example to a converted model and a report."""

from __future__ import annotations

import numbers
from typing import Any

from torch import nn

from sparsedrop.conversion import kinds
from sparsedrop.conversion.branches import Branch, find_branches
from sparsedrop.conversion.chains import chain_swaps
from sparsedrop.conversion.existing import already_converted
from sparsedrop.conversion.flow import Call, Graph
from sparsedrop.conversion.judging import (
    METHODS,
    SLICEOUT,
    Filter,
    Wishes,
    judge,
    with_shared_dropouts,
)
from sparsedrop.conversion.plans import plan
from sparsedrop.conversion.report import Entry, Report
from sparsedrop.conversion.sites import Site, find_sites
from sparsedrop.conversion.structure import from_structure
from sparsedrop.conversion.swapping import class_before, swap
from sparsedrop.conversion.tracing import trace
from sparsedrop.masks import check_block_shape, check_p, check_sampler, check_scale


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    method: str = "sparsedrop",
    p: float | None = None,
    filter: Filter | None = None,
    min_speedup: float = 1.0,
    block_shape: tuple[int, int] | None = None,
    sampler: str = "bernoulli",
    scale: str = "global",
) -> Report:
    """Makes linear layers next to dropouts drop blocks themselves, and skip the work on them.

    The modules of this instance are changed in place: they keep their names, parameters, hooks,
    flags and keys in the `state_dict`. In evaluation the model computes what it did, bit for bit.
    A dropout whose work a layer does stays where it is and holds the rate; `revert` undoes the
    swap, and leaves the rates as they are then.

    Found are Dropout -> Linear ("input"), Linear -> Dropout ("output"), Linear -> elementwise
    activation -> Dropout -> Linear ("mlp") and the same with a gate ("gated"), where one mask
    serves the layers before and behind the hidden value. In an nn.Sequential such layers run as
    one `nn.SparseDropStack`. Hugging Face's Conv1D counts as a linear layer. Two modules that share
    a parameter go on sharing it. For "sliceout" also channels between convolutions ("conv"), with
    batch norms, grouped convolutions and squeeze-excites among them.

    Args:
        model: any module.
        example_inputs: of one forward pass, a tuple of positional or a dict of keyword arguments
            (a tensor is one argument), by which the flow of tensors is found. The pass runs in
            training mode without gradients; generators, buffers and flags are put back. None: only
            neighbours in nn.Sequential and the feed-forward parts of torch's transformer layers.
        method: "sparsedrop" (blocks are dropped of inputs, outputs and hidden values), "sliceout"
            (hidden units as by `nn.SliceOutMLP`, and channels), "row-pattern" (hidden units as by
            `nn.RowPatternMLP`), or "tile-pattern" (tiles of the weight of a layer behind a dropout,
            as by `nn.TilePatternLinear`). What a method cannot do stays; `block_shape` and
            `sampler` are of "sparsedrop".
        p: the rate of all that is converted; None: each keeps its own.
        filter: called with the name and the layer of each site, in a block the one behind the
            dropout; where it returns False, the site stays.
        min_speedup: sites that are expected to gain less stay; 0 converts all that can be.
        block_shape: rows and columns of a block. None: 128x128, or finer by halves if the example
            has fewer rows or features, or so few blocks that all would be dropped together.
        sampler: "bernoulli" or "balanced", as for `nn.SparseDropLinear`.
        scale: of what a row or tile pattern keeps: "global" is 1 / (1 - p), "pattern" the period
            that was drawn, with which sums over units vary less from step to step.

    Returns:
        The report, with an entry for each place where the model drops. A second call finds nothing
        more to convert.

    Raises:
        ValueError: for an unknown method, sampler or scale, an invalid p or block shape, and where
            there is no dropout next to a linear layer at all; the model is then untouched.
        RuntimeError: where the pass over the example fails; likewise.
        TypeError: where `model` is no module, `example_inputs` neither tuple, dict nor tensor, or
            `filter` no function.
    """
    _check(model, method, min_speedup)
    if filter is not None and not callable(filter):
        raise TypeError(f"filter must be a function of a name and a module, not {filter!r}")
    if p is not None:
        p = check_p(p)
    if block_shape is not None:
        block_shape = check_block_shape(block_shape)
    check_sampler(sampler)
    check_scale(scale)
    graph = from_structure(model) if example_inputs is None else trace(model, example_inputs)
    linear_sites, refused = find_sites(graph)
    sites: list[Site | Branch] = list(linear_sites)
    if method == SLICEOUT:
        sites, refused = find_branches(graph, linear_sites, refused)
    refused = [refusal for refusal in refused if refusal.reason != kinds.CONVERTED]
    already = already_converted(model)
    if not sites and not already and not any(each.is_next_to_linear for each in refused):
        raise ValueError(_nothing(model, graph, example_inputs is not None))
    wishes = Wishes(method, p, filter, min_speedup, block_shape, sampler, scale)
    judged = with_shared_dropouts([judge(site, wishes) for site in sites])
    accepted = [each for each in judged if each.entry.reason is None]
    rates = {each.site.dropout.module: each.p for each in accepted}
    name = class_before(model).__name__
    swap(
        plan([(each.site, each.block) for each in accepted], wishes),
        {dropout: rate for dropout, rate in rates.items() if isinstance(dropout, nn.Dropout)},
    )
    swap(chain_swaps(model), {})
    staying = [(each.site.dropout, each.entry) for each in judged if each.entry.reason is not None]
    staying += [(each.call, Entry(each.name, each.kind, None, each.reason)) for each in refused]
    return Report(
        tuple(each.entry for each in accepted),
        (*already, *_in_order(staying, graph)),
        name,
    )


def _check(model: nn.Module, method: str, min_speedup: float) -> None:
    kinds.check_model(model)
    if method not in METHODS:
        known = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method is one of {known}, not {method!r}")
    is_number = isinstance(min_speedup, numbers.Real) and not isinstance(min_speedup, bool)
    if not is_number or not min_speedup >= 0:
        raise ValueError(f"min_speedup must be a number of at least 0, not {min_speedup!r}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no values yet: run the model once, then convert it")


def _in_order(staying: list[tuple[Call, Entry]], graph: Graph) -> list[Entry]:
    """Of the calls of the dropouts."""
    position = {call: i for i, call in enumerate(graph.calls)}
    return [entry for _, entry in sorted(staying, key=lambda pair: position[pair[0]])]


def _nothing(model: nn.Module, graph: Graph, was_run: bool) -> str:
    """What was seen of a model in which nothing can ever be converted."""
    drops = graph.of_kind("dropout", "functional dropout", "attention")
    linears = graph.of_kind("linear", "functional linear")
    name = type(model).__name__
    if was_run:
        what = f"{len(drops)} dropouts and {len(linears)} linear layers ran"
        return f"nothing to convert in {name}: {what}, none of them next to each other"
    held = sum(kinds.is_dropout(module) for module in model.modules())
    return (
        f"nothing to convert in {name}: it has {held} dropouts, none of them known to be next to "
        "a linear layer by nn.Sequential or a transformer layer of torch: give example_inputs"
    )
