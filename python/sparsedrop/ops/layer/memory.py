"""What a layer's calls write to: results, rounded weights, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.ops import copies
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs
from sparsedrop.ops.program import Space


class Memory:
    """Where a layer's tensors lie. What does not depend on a call is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self.device = _native.gpu(facts.device)
        self.allocate = _native.allocator(facts.device)
        self.out = Space.of(facts.out_shape, facts.dtype)
        self.x = Space.of(tuple(facts.x_shape), facts.dtype)
        self.weight = Space.of(tuple(facts.weight_shape), facts.dtype)
        self._grad_weight = Space.of(tuple(facts.weight_shape), facts.weight_dtype)
        n = facts.features
        self._grad_bias = Space((n,), (1,), facts.bias_dtype or facts.dtype)

    def bytes(self, count: int) -> Tensor | None:
        """Scratch; None where none is needed."""
        return self.allocate((count,), (1,), torch.uint8) if count else None

    def rounded_weight(self, weight: Tensor, stream: int) -> tuple[Tensor, int]:
        """The weight in the dtype of the products, and its address if it has yet to be filled."""
        copy = copies.find(weight, self.weight.dtype, stream)
        if copy is not None:
            return copy, 0
        copy = self.allocate(*self.weight)
        return copy, copy.data_ptr()

    def gradients(self, x: Space, needs: Needs, into: Buffers) -> Grads:
        """Those that are needed and not added to a buffer."""
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            grad_x = self.allocate(*x)
        if needs[1] and into[0] is None:
            grad_weight = self.allocate(*self._grad_weight)
        if needs[2] and into[1] is None:
            grad_bias = self.allocate(*self._grad_bias)
        return grad_x, grad_weight, grad_bias


def gradient_dtypes(facts: Facts, into: Buffers) -> tuple[torch.dtype, torch.dtype | None]:
    """Of weight and bias, in a buffer or not."""
    weight_sum, bias_sum = into
    return (
        facts.weight_dtype if weight_sum is None else weight_sum.dtype,
        facts.bias_dtype if bias_sum is None else bias_sum.dtype,
    )
