"""What every module of branches of convolutions becomes."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsedrop.conversion.branches import Branch
from sparsedrop.conversion.channels import (
    ChannelSide,
    PassingBatchNorm2d,
    PassingConv2d,
    SlicedConv2d,
    SlicedLinear,
)
from sparsedrop.conversion.flow import Call
from sparsedrop.conversion.layers import Handover, Served
from sparsedrop.conversion.swapping import SERVED, Swap, stand_in


def plan_branches(branches: list[Branch]) -> list[Swap]:
    """Layers that make or read channels have the rate as a child; what lies between goes by the
    slice alone, so that a batch norm that is put into evaluation leaves the dropout on."""
    attributes: dict[nn.Module, dict[str, Any]] = {}
    children: dict[nn.Module, dict[str, nn.Module]] = {}
    passing: list[Swap] = []
    served: dict[nn.Module, list[nn.Module]] = {}
    for branch in branches:
        dropout, handover = branch.dropout.module, Handover(branch.kind)
        assert dropout is not None
        for calls, side, child in (
            (branch.makers, "outgoing", "out_dropout"),
            (branch.readers, "incoming", "dropout"),
        ):
            for call in calls:
                module = _module(call)
                ends = call is branch.makers[0], call is branch.readers[-1]
                sides = attributes.setdefault(module, {"incoming": None, "outgoing": None})
                sides[side] = ChannelSide(handover, branch.size, *ends)
                children.setdefault(module, {})[child] = dropout
        passing += [_passing(_module(call), handover, dropout) for call in branch.passers]
        served.setdefault(dropout, []).extend(_module(call) for call in branch.layers)
    layers = [
        Swap(module, _class(module), sides, children[module])
        for module, sides in attributes.items()
    ]
    return layers + passing + [stand_in(dropout, own) for dropout, own in served.items()]


def _module(call: Call) -> nn.Module:
    assert call.module is not None
    return call.module


def _class(module: nn.Module) -> type[nn.Module]:
    return SlicedLinear if isinstance(module, nn.Linear) else SlicedConv2d


def _passing(module: nn.Module, handover: Handover, dropout: nn.Module) -> Swap:
    cls = PassingConv2d if isinstance(module, nn.Conv2d) else PassingBatchNorm2d
    return Swap(module, cls, {"handover": handover, SERVED: Served([dropout])}, {})
