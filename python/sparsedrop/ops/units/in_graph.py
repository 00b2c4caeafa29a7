"""A block within the ops that compiled programs call: its two calls, without a node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.stack.facts import Layer, parameters_of
from sparsedrop.ops.units.block import Block
from sparsedrop.ops.units.facts import Drawn, Layers
from sparsedrop.ops.units.node import block_of


def laid_out(x: Tensor, layers: Layers, by_rows: bool = False) -> tuple[Tensor, Layers]:
    """x and the layers as `block_in_graph` wants them; copies where they lie in another way."""
    if not x.is_cuda:
        return x, layers
    up, down = layers
    weight = down.weight.t().contiguous().t() if by_rows else down.weight.contiguous()
    up = Layer(
        up.weight.contiguous(), _contiguous(up.bias), up.activation, _contiguous(up.gate),
        _contiguous(up.gate_bias),
    )  # fmt: skip
    return x.contiguous(), (up, Layer(weight, _contiguous(down.bias)))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def block_in_graph(
    x: Tensor, layers: Layers, kept: int, *, wraps: bool = False, by_rows: bool = False
) -> Block | None:
    """How a GPU runs the block on x, which has the dtype of the products; None where it goes the
    long way.

    What is kept for the backward pass is not the same in both, so the answer has to be: it depends
    on dtypes, extents and the device alone, and neither on autocast nor on how tensors lie, which
    hooks around saved tensors may change. `laid_out` sees to that.
    """
    return block_of(x, layers, kept, wraps=wraps, by_rows=by_rows, dtype=x.dtype)


def forward(
    block: Block, x: Tensor, layers: Layers, drawn: Drawn, rooms: Sequence[Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result, and what is kept: [rows, ld] for each layer before the activation, the gate
    first; in rooms, where there are any."""
    out, saved = block.forward(x, parameters_of(layers), drawn, rooms)
    return out, saved.kept


def backward(
    block: Block,
    x: Tensor,
    layers: Layers,
    kept: Sequence[Tensor],
    grad: Tensor,
    drawn: Drawn,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x and of the parameters, the gate's first."""
    if not lie_well(grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
    saved = block.saved_again(x, parameters_of(layers), kept, drawn)
    return block.backward(saved, grad, drawn, needs)
