"""Where a model drops, and which linear layers could do it: pure functions of the flow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from sparsedrop.conversion import kinds
from sparsedrop.conversion.flow import Call, Graph, owner
from sparsedrop.conversion.functions import RECURRENT
from sparsedrop.conversion.neighbours import (
    ATTENTION,
    behind,
    drops_attention,
    linears_beside,
    why_it_stays,
    why_no_way,
)
from sparsedrop.conversion.regions import reader_of, region_of

FUNCTIONAL = "a functional dropout cannot be switched off on an instance: make it an nn.Dropout"


Key = tuple[object, ...]
"""What calls of the same modules have in common."""


@dataclass(eq=False)
class Site:
    """A place where a tensor is dropped, and the linear layers that can do it.

    Attributes:
        kind: "input", "output", "mlp" or "gated".
        name: of the layer, or of the module that owns the block.
        dropout: the call of it; of several the first.
        producers: the calls of the layers whose output is dropped, in their order.
        consumer: the call of the layer whose input is dropped.
        has_views: whether a hidden value is reshaped on its way.
        is_measured: whether the pass has asked how large it is.
        why_no_branch: why it is none of convolutions, where one is near.
    """

    kind: str
    name: str
    dropout: Call
    producers: tuple[Call, ...]
    consumer: Call | None
    has_views: bool = False
    is_measured: bool = False
    why_no_branch: str | None = None

    @property
    def layers(self) -> tuple[Call, ...]:
        """The calls of all linear layers."""
        return self.producers if self.consumer is None else (*self.producers, self.consumer)

    @property
    def linear(self) -> nn.Module:
        """The layer that reads what is dropped, or makes it where none does."""
        module = self.layers[-1].module
        assert module is not None
        return module

    @property
    def key(self) -> Key:
        """Equal for calls of the same modules."""
        modules = (id(call.module) for call in self.layers)
        return self.kind, id(self.dropout.module), self.consumer is None, *modules


@dataclass
class Refused:
    """A dropout that stays. `is_next_to_linear`: whether there would be something to skip."""

    call: Call
    name: str
    kind: str
    reason: str
    is_next_to_linear: bool


@dataclass(eq=False)
class _Candidate:
    """A call of a dropout, and the ways of converting it, best first."""

    call: Call
    options: list[Site] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def current(self) -> Site | None:
        return self.options[0] if self.options else None

    def reject(self, reason: str) -> None:
        """Goes on to the next way."""
        self.options.pop(0)
        self.reasons.append(reason)


def find_sites(graph: Graph) -> tuple[list[Site], list[Refused]]:
    """All dropouts that were called: those that linear layers can do, and the others."""
    candidates = [_candidate(call) for call in graph.of_kind("dropout")]
    wanted = {c.call: c.current for c in candidates}
    read_elsewhere = {call.name for call in graph.of_kind("functional linear") if call.name}
    for candidate in candidates:
        _drop_unfit(candidate, read_elsewhere, graph.elsewhere)
    while _drop_inconsistent(graph, candidates):
        pass
    sites: dict[Key, Site] = {}
    refused: list[Refused] = []
    for candidate in candidates:
        site = candidate.current
        if site is not None:
            sites.setdefault(site.key, site)
        else:
            refused.append(_refuse(candidate, wanted[candidate.call]))
    for call in graph.of_kind("functional dropout", "attention", "recurrent"):
        is_attention = call.kind == "attention" or drops_attention(call)
        kind, reason = ("attention", ATTENTION) if is_attention else ("functional", FUNCTIONAL)
        if call.kind == "recurrent":
            kind, reason = call.kind, f"it drops between the layers of nn.{RECURRENT[call.what]}"
        name = "" if call.frame is None else call.frame.name
        near = not is_attention and bool(linears_beside(call))
        refused.append(Refused(call, name, kind, reason, near))
    return list(sites.values()), list(_unique(refused))


def _unique(refused: list[Refused]) -> Iterable[Refused]:
    """One of those that the same module is called for again."""
    seen: set[Key] = set()
    for each in refused:
        key = id(each.call.module), each.name, each.kind, each.reason
        if each.call.module is None or key not in seen:
            yield each
        seen.add(key)


def _candidate(call: Call) -> _Candidate:
    """The ways of converting a dropout: within a block, before a layer, behind a layer."""
    candidate = _Candidate(call)
    why = why_it_stays(call)
    consumer, region = reader_of(call, "reshape", "rearrangement"), region_of(call)
    if consumer is not None and region is not None and reader_of(call, "reshape") is consumer:
        producers, inner = region
        kind = "mlp" if len(producers) == 1 else "gated"
        frame = owner([*producers, *inner, call, consumer])
        name = frame.name if frame is not None else ""
        has_views = any(each.kind == "reshape" for each in inner) or call.outputs[0] not in (
            consumer.inputs
        )
        is_measured = region.is_measured or call.outputs[0].is_measured
        candidate.options.append(
            Site(kind, name, call, producers, consumer, has_views, is_measured)
        )
    if consumer is not None:
        candidate.options.append(Site("input", consumer.name, call, (), consumer))
    if region is not None:
        producers, inner = region
        if len(producers) == 1 and all(each.kind == "reshape" for each in inner):
            candidate.options.append(Site("output", producers[0].name, call, producers, None))
    while why is not None and candidate.options:
        candidate.reject(why)
    if why is not None:
        candidate.reasons.append(why)
    return candidate


def _drop_unfit(
    candidate: _Candidate, read_elsewhere: set[str], elsewhere: dict[nn.Module, str]
) -> None:
    """Leaves out the ways that one of their layers cannot go."""
    fit = []
    for site in candidate.options:
        why = _why_unfit(site, read_elsewhere) or _why_not_seen(site, elsewhere)
        if why is None:
            fit.append(site)
        else:
            candidate.reasons.append(why)
    candidate.options = fit


def _why_unfit(site: Site, read_elsewhere: set[str]) -> str | None:
    for call in site.layers:
        assert call.module is not None
        why = kinds.why_not_linear(call.module)
        if why is not None:
            return why if len(site.layers) == 1 else f"{call.name}: {why}"
        if call.name in read_elsewhere:
            return f"the weight of {call.name} is read by a call of F.linear, too"
        if any(value.is_nested for value in (*call.inputs, *call.outputs)):
            return f"{call.name} runs on nested tensors, which have no blocks"
    devices = {call.outputs[0].device for call in site.layers}
    if len(devices) > 1:
        named = " and ".join(sorted(map(str, devices)))
        return f"its layers are on several devices, {named}"
    return None


def _why_not_seen(site: Site, elsewhere: dict[nn.Module, str]) -> str | None:
    for call in (site.dropout, *site.layers):
        if call.module in elsewhere:
            return (
                f"{call.name} belongs to {elsewhere[call.module]}, too, which may call it: give "
                "example_inputs"
            )
    return None


def _drop_inconsistent(graph: Graph, candidates: list[_Candidate]) -> bool:
    """Rejects ways that do not hold for every call of their modules; whether there were any."""
    sites = [site for candidate in candidates if (site := candidate.current) is not None]
    calls_of: dict[nn.Module | None, list[Call]] = {}
    for call in graph.of_kind("linear", "dropout"):
        calls_of.setdefault(call.module, []).append(call)
    stays = {candidate.call.module for candidate in candidates if candidate.current is None}
    wrong = _at_some_calls_only(sites, calls_of) or _interleaved(sites)
    for site in sites:
        if site.dropout.module in stays:
            count = len(calls_of[site.dropout.module])
            wrong[site.key] = (
                f"its dropout is called at {count} places, of which not all can be converted"
            )
    for candidate in candidates:
        if candidate.current is not None and candidate.current.key in wrong:
            candidate.reject(wrong[candidate.current.key])
    return bool(wrong)


def _at_some_calls_only(
    sites: list[Site], calls_of: dict[nn.Module | None, list[Call]]
) -> dict[Key, str]:
    """Sites of layers whose calls are not all alike; blocks first, which have other ways."""
    inputs = {site.consumer: site.key for site in sites if site.consumer is not None}
    outputs = {call: site.key for site in sites for call in site.producers}
    wrong: dict[Key, str] = {}
    for site in sites:
        for layer in site.layers:
            calls = calls_of[layer.module]
            if len({(inputs.get(call), outputs.get(call)) for call in calls}) > 1:
                wrong[site.key] = (
                    f"{layer.name} is called at {len(calls)} places, and not at each of them with "
                    "the same dropout"
                )
    return {key: why for key, why in wrong.items() if key[0] in ("mlp", "gated")} or wrong


def _interleaved(sites: list[Site]) -> dict[Key, str]:
    """Blocks of which a second hidden value is begun before the first has been read."""
    end: dict[Key, int] = {}
    wrong: dict[Key, str] = {}
    for site in sites:
        if site.producers and site.consumer is not None:
            if site.producers[0].order < end.get(site.key, -1):
                wrong[site.key] = "a second hidden value is made before the first has been read"
            end[site.key] = site.consumer.order
    return wrong


def _refuse(candidate: _Candidate, wanted: Site | None) -> Refused:
    """Why a dropout stays, under the name of the layer next to it if there is one."""
    call = candidate.call
    beside = linears_beside(call)
    if wanted is not None:
        return Refused(call, wanted.name, wanted.kind, candidate.reasons[0], True)
    reason = candidate.reasons[0] if candidate.reasons else why_no_way(call)
    readers = [other for other in beside if other in behind(call)]
    modules = [other for other in (readers or beside) if other.module is not None]
    if len(modules) == 1:
        kind = "input" if modules[0] in readers else "output"
        return Refused(call, modules[0].name, kind, reason, True)
    kind = "attention" if reason == ATTENTION else "dropout"
    return Refused(call, call.name, kind, reason, bool(beside))
