"""A layer by dense products of masked operands: as few launches as nn.Dropout and nn.Linear take.

All of a direction is one call into `_C`, the products of cuBLASLt or cuBLAS among it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import MaskTensors, expand_live, grid_shape
from sparsedrop.ops import copies
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved, lie_well
from sparsedrop.ops.layer.memory import Memory, gradient_dtypes
from sparsedrop.ops.layer.programs import dense_backward, dense_forward
from sparsedrop.ops.program import Pass, Space, address, draw


class DenseLayer:
    """See `facts.Layer`. What is saved of an x whose blocks are dropped is the masked copy."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        m, n, _ = facts.extents
        self._rounds_x = facts.x_dtype is not facts.dtype
        self.remakes_x = self._rounds_x or not facts.drops_output
        self._memory = Memory(facts)
        self._grid = (*facts.masked_shape, *facts.block_shape)
        self._live = Space.of(grid_shape(*self._grid), torch.bool)
        self._grad_x = self._memory.x._replace(dtype=facts.x_dtype)
        self._masked_grad = Space.of((m, n), facts.dtype)
        rounds_bias = facts.bias_dtype not in (None, facts.dtype)
        self._bias = Space((n,), (1,), facts.dtype) if rounds_bias else None
        self._handle = _native.blas_handle(facts.device)
        self._forward = dense_forward(facts, self._handle)
        self._backward = dense_backward(facts, (False, False), self._handle)
        self._others: dict[Any, Pass] = {}

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        facts, memory = self.facts, self._memory
        stream, device = _native.current_stream(facts.device), memory.device
        out, live = memory.allocate(*memory.out), memory.allocate(*self._live)
        used_x = memory.allocate(*memory.x) if self.remakes_x else x
        seed, next_offset = draw(
            options.sampler, options.p, options.generator, self._grid, device,
            lambda: _grid_alone(live),
        )  # fmt: skip
        used_weight, weight_to = weight, 0
        if facts.weight_dtype is not facts.dtype:
            used_weight, weight_to = memory.rounded_weight(weight, stream)
        used_bias = bias if self._bias is None else memory.allocate(*self._bias)
        scratch = self._forward.room(memory.allocate)
        self._forward.program.run(
            (
                x.data_ptr(), used_x.data_ptr(), weight.data_ptr(), weight_to,
                used_weight.data_ptr(), address(bias), address(used_bias), out.data_ptr(),
                live.data_ptr(), address(scratch), seed, next_offset, *self._blas(),
            ),
            (options.alpha, 1.0 - options.p),
            stream,
        )  # fmt: skip
        if weight_to:
            copies.keep(weight, used_weight, stream)
        return out, Saved(used_x, used_weight, live)

    def _blas(self) -> tuple[int, bool]:
        """torch's handle, and whether it adds parts of sums in 16 bits."""
        facts = self.facts
        return _native.blas_handle(facts.device), _native.allows_narrow_sums(facts.dtype)

    def _backward_into(self, into: Buffers) -> Pass:
        """The backward pass whose gradients of weight and bias go there."""
        if into == (None, None):
            return self._backward
        key = gradient_dtypes(self.facts, into), (into[0] is not None, into[1] is not None)
        if key not in self._others:
            (weight_dtype, bias_dtype), adds = key
            facts = self.facts._replace(weight_dtype=weight_dtype, bias_dtype=bias_dtype)
            self._others[key] = dense_backward(facts, adds, self._handle)
        return self._others[key]

    def adds_into(self, buffer: Tensor) -> bool:
        own = self.facts.dtype
        is_wide = own is not torch.float64 and buffer.dtype is torch.float32
        is_dense = (is_wide or buffer.dtype is own) and buffer.layout is torch.strided
        return is_dense and buffer.device == self._memory.device and lie_well(buffer)

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        options: Options,
        needs: Needs,
        into: Buffers = (None, None),
    ) -> Grads:
        facts, memory = self.facts, self._memory
        grads = memory.gradients(self._grad_x, needs, into)
        made = grads[0]
        if facts.drops_output:
            made = memory.allocate(*self._masked_grad)
        elif made is not None and self._rounds_x:
            made = memory.allocate(*memory.x)
        backward = self._backward_into(into)
        scratch = backward.room(memory.allocate)
        places = (
            grad.data_ptr(), address(saved.x), saved.weight.data_ptr(), saved.mask.data_ptr(),
            address(grads[0]),
            address(grads[1] if into[0] is None else into[0]),
            address(grads[2] if into[1] is None else into[1]),
            address(scratch), address(made), *self._blas(),
        )  # fmt: skip
        stream = _native.current_stream(facts.device)
        backward.program.run(places, (options.alpha,), stream)
        return grads

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        m, n, _ = facts.extents
        grad = grad.reshape(m, n)
        # The dtypes are settled: autocast around a backward pass may not change them again.
        with torch.autocast("cuda", enabled=False):
            return self._plain_gradients(saved, grad, options, needs)

    def _plain_gradients(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts, alpha = self.facts, options.alpha
        m, _, k = facts.extents
        is_live = expand_live(saved.mask, facts.block_shape, facts.masked_shape)
        if facts.drops_output:
            grad, alpha = torch.where(is_live, grad * alpha, 0), 1.0
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            weight = saved.weight.t() if facts.weight_turned else saved.weight
            product = _scaled_product(grad, weight, alpha).to(facts.x_dtype)
            grad_x = product if facts.drops_output else torch.where(is_live, product, 0)
            grad_x = grad_x.view(facts.x_shape)
        if needs[1]:
            assert saved.x is not None
            left, right = grad, saved.x.view(m, k)
            if facts.weight_turned:
                left, right = right, left
            grad_weight = _scaled_product(left.t(), right, alpha).to(facts.weight_dtype)
        if needs[2]:
            grad_bias = grad.sum(0, dtype=facts.bias_dtype)
        return grad_x, grad_weight, grad_bias

    backward_again = backward_by_ops

    def through_kept(self, saved: Saved, grad: Tensor) -> Tensor:
        facts = self.facts
        if not facts.drops_output:
            is_live = expand_live(saved.mask, facts.block_shape, facts.masked_shape)
            grad = torch.where(is_live, grad.reshape(facts.masked_shape), 0).view(facts.x_shape)
        return grad.to(facts.x_dtype)


def _scaled_product(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """alpha * a b, rounded once."""
    return torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=alpha)


def _grid_alone(live: Tensor) -> MaskTensors:
    """A mask whose words nobody reads."""
    words = torch.empty((0, 0), dtype=torch.int32, device=live.device)
    return MaskTensors((live, words, words))
