"""A block within the ops that compiled programs call: its two calls, without a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.stack.facts import Layer, parameters_of
from sparsedrop.ops.units.block import Block
from sparsedrop.ops.units.facts import Drawn, Layers
from sparsedrop.ops.units.node import block_of


class InGraph(NamedTuple):
    """A block with its operands, which lie as it reads them."""

    block: Block
    x: Tensor
    layers: Layers

    def forward(
        self, drawn: Drawn, rooms: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The result, and what is kept: [rows, ld] for each layer before the activation, the gate
        first; in rooms, where there are any."""
        out, saved = self.block.forward(self.x, parameters_of(self.layers), drawn, rooms)
        return out, saved.kept

    def backward(
        self, kept: Sequence[Tensor], grad: Tensor, drawn: Drawn, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of x and of the parameters, the gate's first."""
        if not lie_well(grad):
            grad = grad.clone(memory_format=torch.contiguous_format)
        saved = self.block.saved_again(self.x, parameters_of(self.layers), kept, drawn)
        return self.block.backward(saved, grad, drawn, needs)


def in_graph(
    x: Tensor, layers: Layers, kept: int, *, wraps: bool = False, by_rows: bool = False
) -> InGraph | None:
    """How a GPU runs the block on x, which has the dtype of the products; None where it goes the
    long way.

    What is kept for the backward pass is not the same in both, so the answer has to be: it depends
    on dtypes, extents and the device alone, and neither on autocast nor on how tensors lie, which
    hooks around saved tensors may change. Where they lie in another way, copies are read.
    """
    if not x.is_cuda:
        return None
    up, down = layers
    weight = down.weight.t().contiguous().t() if by_rows else down.weight.contiguous()
    up = Layer(
        up.weight.contiguous(), _contiguous(up.bias), up.activation, _contiguous(up.gate),
        _contiguous(up.gate_bias),
    )  # fmt: skip
    x, layers = x.contiguous(), (up, Layer(weight, _contiguous(down.bias)))
    block = block_of(x, layers, kept, wraps=wraps, by_rows=by_rows, dtype=x.dtype)
    return None if block is None else InGraph(block, x, layers)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
