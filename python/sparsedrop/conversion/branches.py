"""Dropouts between convolutions, and the layers around their channels: functions of the flow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sparsedrop.conversion import kinds
from sparsedrop.conversion.flow import END, Call, Graph, Value, owner
from sparsedrop.conversion.neighbours import why_it_stays
from sparsedrop.conversion.sites import Key, Refused, Site
from sparsedrop.conversion.spreading import Left, Spread


@dataclass(eq=False)
class Branch:
    """A place where channels are dropped, and the layers that share a slice of them.

    Attributes:
        name: of the module that owns the branch.
        dropout: the call of it.
        makers: dense layers that make the channels, in their order; the first one draws.
        readers: dense layers that read them, in their order.
        passers: batch norms and grouped convolutions between.
        channels: how many there are.
        size: channels of a group; a slice is of whole ones.
    """

    name: str
    dropout: Call
    makers: tuple[Call, ...]
    readers: tuple[Call, ...]
    passers: tuple[Call, ...]
    channels: int
    size: int

    kind = "conv"

    @property
    def layers(self) -> tuple[Call, ...]:
        """All of them."""
        return (*self.makers, *self.passers, *self.readers)

    @property
    def linear(self) -> nn.Module:
        """The last layer that reads what is dropped."""
        module = self.readers[-1].module
        assert module is not None
        return module

    @property
    def key(self) -> Key:
        """Equal for calls of the same modules."""
        roles = self.makers, self.readers, self.passers
        return "conv", id(self.dropout.module), *(tuple(id(c.module) for c in r) for r in roles)


def find_branches(
    graph: Graph, sites: list[Site], refused: list[Refused]
) -> tuple[list[Site | Branch], list[Refused]]:
    """Of what `find_sites` found: the sites, of which some are branches, and what is refused."""
    blocks = [site for site in sites if site.kind in ("mlp", "gated")]
    taken = {site.dropout.module for site in blocks}
    found: dict[Call, Branch] = {}
    left: dict[Call, str] = {}
    for call in graph.of_kind("dropout"):
        assert call.module is not None
        if call.module in taken or why_it_stays(call) is not None:
            continue
        spread = Spread(call)
        try:
            branch = _branch(spread)
        except Left as reason:
            if spread.has_conv:
                left[call] = str(reason)
        else:
            if spread.has_conv:
                found[call] = branch
    while _leave_inconsistent(graph, found, left, blocks):
        pass
    modules = {call.module for call in found}
    every: list[Site | Branch] = [
        replace(site, why_no_branch=left.get(site.dropout))
        for site in sites
        if site.dropout.module not in modules
    ]
    every += {branch.key: branch for branch in reversed(found.values())}.values()
    every.sort(key=lambda site: site.dropout.order)
    return every, [_said(each, left) for each in refused if each.call not in found]


def _said(refusal: Refused, left: dict[Call, str]) -> Refused:
    """With the reason that its channels give, where no linear layer is next to it."""
    if refusal.call not in left or refusal.kind != "dropout" or refusal.is_next_to_linear:
        return refusal
    return replace(refusal, reason=left[refusal.call], kind="conv", is_next_to_linear=True)


def _branch(spread: Spread) -> Branch:
    """Raises: Left."""
    spread.run()
    makers, readers, passers = (
        tuple(sorted(calls, key=_order))
        for calls in (spread.makers, spread.readers, spread.passers)
    )
    layers = (*makers, *passers, *readers)
    calls = (*layers, *spread.inner)
    for call in layers:
        _check_layer(call)
    both = spread.makers & spread.readers
    if both:
        raise Left(f"{min(both, key=_order).what} reads the channels that it makes")
    if not readers or max(calls, key=_order) is not readers[-1]:
        raise Left("no convolution or linear layer reads its channels behind all else")
    if not makers or min(calls, key=_order) is not makers[0]:
        raise Left("no convolution or linear layer makes its channels before all else")
    _check_sides(spread, makers, readers)
    devices = {value.device for value in spread.values}
    if len(devices) > 1:
        named = " and ".join(sorted(map(str, devices)))
        raise Left(f"its layers are on several devices, {named}")
    has_numbers = any(call.has_numbers for call in spread.inner if call.kind == "elementwise")
    if has_numbers and any(value.is_measured for value in spread.values):
        raise Left("the model asks for its extents, and multiplies it by a number")
    frame = owner(sorted(calls, key=_order))
    name = "" if frame is None else frame.name
    return Branch(name, spread.dropout, makers, readers, passers, spread.channels, spread.size)


def _check_layer(call: Call) -> None:
    module = call.module
    assert module is not None
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise Left(f"{call.what} pads by padding_mode={module.padding_mode!r}")
        if not isinstance(module._parameters.get("weight"), Tensor):
            raise Left(f"{call.what}: its weight is no parameter of its own")
    elif call.kind == "linear":
        why = kinds.why_not_linear(module)
        if why is None and not isinstance(module, nn.Linear):
            why = "it is no nn.Linear"
        if why is not None:
            raise Left(f"{call.what}: {why}")


def _check_sides(spread: Spread, makers: tuple[Call, ...], readers: tuple[Call, ...]) -> None:
    """What is not behind the dropout, or joins behind it, has to be a squeeze-excite."""
    behind = _behind(spread.dropout.outputs, spread)
    before = _before(spread.dropout.inputs, spread)
    excites: set[Call] = set()
    outside = []
    for call in readers:
        reached = _reached(call, spread.makers)
        if reached is None:
            outside.append(call)
        else:
            excites |= reached
    for call in outside:
        if not behind.issuperset(call.inputs):
            raise Left(f"{call.what} reads the channels before they are dropped")
    if not outside:
        raise Left("no convolution or linear layer behind it reads its channels")
    for call in makers:
        if call not in excites and not before.issuperset(call.outputs):
            raise Left(f"the channels that {call.what} makes join behind it")


def _behind(values: list[Value], spread: Spread) -> set[Value]:
    """Those of the channels that are made of these, and these."""
    found, queue = set(values), list(values)
    while queue:
        for call in queue.pop().consumers:
            new = [v for v in call.outputs if v in spread.values and v not in found]
            if call in spread.inner or call in spread.passers:
                found.update(new)
                queue += new
    return found


def _before(values: list[Value], spread: Spread) -> set[Value]:
    """Those of the channels of which these are made, and these."""
    found, queue = set(values), list(values)
    while queue:
        call = queue.pop().producer
        if call is not None and (call in spread.inner or call in spread.passers):
            new = [v for v in call.inputs if v in spread.values and v not in found]
            found.update(new)
            queue += new
    return found


def _reached(reader: Call, makers: set[Call]) -> set[Call] | None:
    """The layers of the branch to which alone the result of a layer goes; None where it leaves."""
    found: set[Call] = set()
    seen, queue = set(reader.outputs), list(reader.outputs)
    while queue:
        for call in queue.pop().consumers:
            if call in makers:
                found.add(call)
            elif call.kind == END:
                return None
            else:
                new = [value for value in call.outputs if value not in seen]
                seen.update(new)
                queue += new
    return found


def _leave_inconsistent(
    graph: Graph, found: dict[Call, Branch], left: dict[Call, str], blocks: list[Site]
) -> bool:
    """Leaves branches that do not hold for every call of their modules; whether there were any."""
    taken = {call.module for site in blocks for call in site.layers}
    calls_of: dict[nn.Module | None, list[Call]] = {}
    for call in graph.of_kind("linear", "conv", "norm", "dropout"):
        calls_of.setdefault(call.module, []).append(call)
    roles = _roles(found.values())
    wrong: dict[Key, str] = {}
    for branch in found.values():
        for call in (branch.dropout, *branch.layers):
            calls = calls_of[call.module]
            if len({tuple(roles.get(other, ())) for other in calls}) > 1:
                wrong[branch.key] = (
                    f"{call.what} is called at {len(calls)} places, and not at each of them in the "
                    "same branch"
                )
            if call.module in taken:
                wrong[branch.key] = f"{call.what} is in a block that drops units of its own"
    wrong.update(_interleaved(found.values()))
    gone = [call for call, branch in found.items() if branch.key in wrong]
    for call in gone:
        left[call] = wrong[found.pop(call).key]
    return bool(gone)


def _roles(branches: Iterable[Branch]) -> dict[Call, list[tuple[str, Key]]]:
    """What each call is in which branches; a dropout may be that of several."""
    roles: dict[Call, list[tuple[str, Key]]] = {}
    for branch in branches:
        for role in ("makers", "readers", "passers"):
            for call in getattr(branch, role):
                roles.setdefault(call, []).append((role, branch.key))
        roles[branch.dropout] = [("dropout", ())]
    return {call: sorted(own, key=str) for call, own in roles.items()}


def _interleaved(branches: Iterable[Branch]) -> dict[Key, str]:
    """Branches that are begun again before they have ended."""
    end: dict[Key, int] = {}
    wrong: dict[Key, str] = {}
    for branch in sorted(branches, key=lambda each: each.makers[0].order):
        if branch.makers[0].order < end.get(branch.key, -1):
            wrong[branch.key] = "its layers are called again before they have all run"
        end[branch.key] = branch.readers[-1].order
    return wrong


def _order(call: Call) -> int:
    return call.order
