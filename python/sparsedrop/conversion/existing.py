"""What of a model drops as ours do already."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sparsedrop.conversion.kinds import CONVERTED
from sparsedrop.conversion.layers import Converted, Handover
from sparsedrop.conversion.report import Entry
from sparsedrop.nn import (
    RowPatternLSTM,
    RowPatternMLP,
    SliceOutAttention,
    SliceOutMLP,
    SparseDropLinear,
    SparseDropMLP,
    SparseDropStack,
    TilePatternLinear,
)


def already_converted(model: nn.Module) -> list[Entry]:
    """An entry for each place where a module of ours drops, converted or built by hand."""
    owners = _owners(model)
    return [
        Entry(place, kind, None, CONVERTED)
        for name, module in model.named_modules()
        for place, kind in _places(name, module, owners)
    ]


def _places(name: str, module: nn.Module, owners: dict[Handover, str]) -> Iterator[tuple[str, str]]:
    """Name and kind of each."""
    inside = f"{name}." if name else ""
    if isinstance(module, SparseDropLinear):
        yield name, module.side
    elif isinstance(module, SparseDropMLP):
        yield name, "mlp" if module.gate is None else "gated"
        if module.out_p:
            yield f"{inside}down", "output"
    elif isinstance(module, (SliceOutMLP, RowPatternMLP)):
        yield name, "mlp" if module.gate is None else "gated"
    elif isinstance(module, (TilePatternLinear, RowPatternLSTM)):
        yield name, "input"
    elif isinstance(module, SliceOutAttention):
        yield name, "attention"
    elif isinstance(module, SparseDropStack):
        yield f"{inside}layers.0", "input"
        for _ in module.layers[1:]:
            yield name, "mlp"
    elif isinstance(module, Converted):
        if module.incoming is not None and getattr(module.incoming, "is_last", True):
            handover = module.incoming.handover
            yield (name, "input") if handover is None else (owners[handover], handover.kind)
        if module.outgoing is not None and module.outgoing.handover is None:
            yield name, "output"


def _owners(model: nn.Module) -> dict[Handover, str]:
    """The names of the modules that hold all layers around a hidden value."""
    around: dict[Handover, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Converted):
            for side in (module.incoming, module.outgoing):
                if side is not None and side.handover is not None:
                    around.setdefault(side.handover, []).append(name)
    return {handover: _shared_prefix(names) for handover, names in around.items()}


def _shared_prefix(names: list[str]) -> str:
    """The module that all of these are in."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
