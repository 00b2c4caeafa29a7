"""The flow of tensors as far as the structure of a model alone tells it, without a pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsedrop.conversion import kinds
from sparsedrop.conversion.chains import is_sequential
from sparsedrop.conversion.flow import END, Call, Frame, Graph, Value


def from_structure(model: nn.Module) -> Graph:
    """Neighbours in nn.Sequential, and the feed-forward parts of torch's transformer layers.

    Nothing is known of shapes. What runs elsewhere is not in the graph.
    """
    reader = _Reader(model)
    blocks = [module for module in model.modules() if kinds.is_block(module)]
    inside = {module for block in blocks for module in block.modules()}
    for name, module in model.named_modules():
        if module in inside:
            continue
        if is_sequential(module):
            reader.sequential(name, module)
        elif type(module) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
            reader.transformer_layer(name, module)
    reader.graph.elsewhere = _elsewhere(model)
    return reader.graph


def _elsewhere(model: nn.Module) -> dict[nn.Module, str]:
    """What a module that calls by code of its own has beside the ones that are read here."""
    held: dict[nn.Module, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for child in module.children():
            held.setdefault(child, []).append((name or type(module).__name__, module))
    return {
        child: name
        for child, parents in held.items()
        if len(parents) > 1
        for name, parent in parents
        if not is_sequential(parent)
    }


class _Reader:
    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self._root = Frame(model, "")
        self._names = {module: name for name, module in model.named_modules()}
        self._nested = {
            child
            for module in model.modules()
            if is_sequential(module)
            for child in module
            if is_sequential(child)
        }

    def sequential(self, name: str, module: nn.Sequential) -> None:
        """One after the other, those within others in their place."""
        if module not in self._nested:
            frame = Frame(module, name, self._root) if name else self._root
            self._chain(_flat(module, frame, self._names))

    def transformer_layer(self, name: str, layer: Any) -> None:
        """linear1, activation, dropout, linear2 and the dropout behind; attention is opaque."""
        frame = Frame(layer, name, self._root) if name else self._root
        is_encoder = isinstance(layer, nn.TransformerEncoderLayer)
        last = layer.dropout2 if is_encoder else layer.dropout3
        parts = [layer.linear1, layer.activation, layer.dropout, layer.linear2, last]
        self._chain([(part, frame) for part in parts])
        for dropout in [layer.dropout1] if is_encoder else [layer.dropout1, layer.dropout2]:
            self._chain([("attention", frame), (dropout, frame)])

    def _chain(self, parts: list[Any]) -> None:
        value = Value()
        for part, frame in parts:
            call = self._call(part, frame)
            call.inputs, value = [value], Value()
            call.outputs = [value]
            self.graph.connect(call)
        self.graph.connect(Call(END, "what comes behind", None, [value]))

    def _call(self, part: Any, frame: Frame) -> Call:
        if not isinstance(part, nn.Module):
            bare = getattr(part, "__name__", str(part))
            return Call("elementwise" if bare in kinds.ELEMENTWISE else "other", bare, frame)
        name, kind = self._names[part], kinds.kind_of(part)
        if kind is not None:
            return Call(kind, name, frame, module=part, name=name)
        is_elementwise = type(part) in kinds.ELEMENTWISE_MODULES
        return Call("elementwise" if is_elementwise else "other", name, frame)


def _flat(module: nn.Sequential, frame: Frame, names: dict[nn.Module, str]) -> list[Any]:
    """(module, frame) of all that a Sequential runs, in order."""
    parts: list[Any] = []
    for child in module:
        if is_sequential(child):
            parts += _flat(child, Frame(child, names[child], frame), names)
        else:
            parts.append((child, frame))
    return parts
