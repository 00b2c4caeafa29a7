"""A stack by single products: where the kernels cannot run it in one call, and for who watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop.masks import BlockMask
from sparsedrop.ops import dense
from sparsedrop.ops.autograd import multiply
from sparsedrop.ops.product import How, Product
from sparsedrop.ops.stack.facts import Dropped, Facts, Kind, Layer

Masks = dict[int, BlockMask]
"""By what they drop: the input, what lies between the layers, and the result."""


def by_products(x: Tensor, layers: Sequence[Layer], masks: Masks, dropped: Dropped) -> Tensor:
    """The result [m, n] for x [m, k], differentiable; all tensors are of one dtype."""
    for i, layer in enumerate(layers):
        how = How(masks.get(i), None, masks.get(i + 1), dropped.alpha(i), None, False, True)
        factor = dropped.bias_factor(i)
        bias = layer.bias if layer.bias is None or factor == 1.0 else layer.bias * factor
        activated = how._replace(activation=layer.activation)
        if layer.gate is None:
            x = multiply(Product(x, layer.weight, bias, activated))
        else:
            gated = multiply(Product(x, layer.gate, layer.gate_bias, activated))
            x = gated * multiply(Product(x, layer.weight, bias, how))
    return x


class Parts:
    """What a stack's node keeps of its forward pass, layer by layer."""

    def __init__(
        self, facts: Facts, x: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]
    ) -> None:
        self.kinds, self.x = facts.kinds, x.reshape(facts.rows, -1)
        self._weights = list(weights)
        # A result that is kept has the shape that the user sees.
        self._kept = [tensor.reshape(facts.rows, -1) for tensor in kept]

    def pop_weight(self) -> Tensor:
        """That of the last branch that is left; a gate stands before its layer."""
        return self._weights.pop()

    def pop_kept(self, kind: Kind, *, is_last: bool) -> tuple[Tensor, ...]:
        """Of the last layer that is left."""
        count = 2 if kind.is_gated else int(not is_last or kind.activation is not None)
        found = self._kept[len(self._kept) - count :]
        del self._kept[len(self._kept) - count :]
        return tuple(found)

    def kept(self, kind: Kind) -> tuple[Tensor, ...]:
        """Likewise, of a layer that is not the stack's last; it stays."""
        found = self.pop_kept(kind, is_last=False)
        self._kept += found
        return found


def gradients(parts: Parts, grad: Tensor, masks: Masks, dropped: Dropped) -> list[Tensor | None]:
    """Of x and of all parameters in the order of the branches, each with a bias or not; what stands
    in dropped blocks of what is kept is never read."""
    kinds, found = parts.kinds, list[Tensor]()
    gate_grad: Tensor | None = None
    for i in range(len(kinds) - 1, -1, -1):
        kept = parts.pop_kept(kinds[i], is_last=i == len(kinds) - 1)
        grad, gate_grad = _through(kinds[i], kept, grad)
        source = parts.x
        if i > 0:
            source = _result(kinds[i - 1], parts.kept(kinds[i - 1]))
        own = _Branch(i, masks, dropped)
        weight = parts.pop_weight()
        pairs = own.parameters(grad, source)
        back = own.input(grad, weight)
        if gate_grad is not None:
            pairs = own.parameters(gate_grad, source) + pairs
            back = back + own.input(gate_grad, parts.pop_weight())
        found = pairs + found
        grad = back
    return [grad, *found]


class _Branch:
    """The gradients of one product with weights."""

    def __init__(self, layer: int, masks: Masks, dropped: Dropped) -> None:
        self.of_x, self.of_out = masks.get(layer), masks.get(layer + 1)
        self.alpha, self.bias_factor = dropped.alpha(layer), dropped.bias_factor(layer)

    def parameters(self, grad: Tensor, source: Tensor) -> list[Tensor]:
        how = How(self.of_out, self.of_x, None, self.alpha, None, True, False)
        sums = dense.column_sums(grad, self.of_out) * self.bias_factor
        return [multiply(Product(grad, source, None, how)), sums]

    def input(self, grad: Tensor, weight: Tensor) -> Tensor:
        how = How(self.of_out, None, self.of_x, self.alpha)
        return multiply(Product(grad, weight, None, how))


def _result(kind: Kind, kept: tuple[Tensor, ...]) -> Tensor:
    """A layer's result, from what is kept of it."""
    activate = dense.ACTIVATIONS[kind.activation]
    if kind.is_gated:
        return activate(kept[0]) * kept[1]
    return activate(kept[0]) if kind.keeps_input else kept[0]


def _through(kind: Kind, kept: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients before a layer's activation, and of its gate."""
    if not kind.is_gated:
        return dense.activation_grad(kind.activation, grad, kept[0] if kept else grad), None
    gated, other = kept
    activated = dense.ACTIVATIONS[kind.activation](gated)
    before = gated if kind.activation != "relu" else activated
    return grad * activated, dense.activation_grad(kind.activation, grad * other, before)


def gradients_again(
    x: Tensor, layers: Sequence[Layer], masks: Masks, dropped: Dropped, grad: Tensor,
    inputs: Sequence[Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Under create_graph: of these inputs, and can be differentiated."""
    with torch.enable_grad():
        flat = x.reshape(-1, x.shape[-1])
        out = by_products(flat, layers, masks, dropped)
        return torch.autograd.grad(
            out, inputs, grad.reshape(out.shape), create_graph=True, allow_unused=True
        )
