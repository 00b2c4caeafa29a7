"""A layer by dense products of masked operands: as few launches as nn.Dropout and nn.Linear take.

All of a direction is one call into `_C`, cuBLAS's products among it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import MaskTensors, expand_live, grid_shape
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved, lie_well
from sparsedrop.ops.layer.memory import Memory, Space, address, draw, gradient_dtypes

if TYPE_CHECKING:
    from sparsedrop import _C


BIAS_FIRST_BYTES = 4e6
"""A result up to that size is filled with the bias, and the product added to it, within the call. A
larger one would keep the GPU busy for longer than the host takes for torch's product, which adds a
bias as it stores."""


class DenseLayer:
    """See `facts.Layer`. What is saved of x is the masked copy."""

    remakes_x = True

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        m, n, k = facts.extents
        self._memory = Memory(facts)
        self._grid = (m, k, *facts.block_shape)
        self._live = Space.of(grid_shape(*self._grid), torch.bool)
        self._grad_x = self._memory.x._replace(dtype=facts.x_dtype)
        result_bytes = m * n * facts.dtype.itemsize
        self._fuses_bias = facts.bias_dtype is not None and result_bytes > BIAS_FIRST_BYTES
        self._others: dict[tuple[Any, Any], _C.DenseLayer] = {}
        self._launches = self._make_launches(facts.weight_dtype, facts.bias_dtype)

    def _make_launches(
        self, weight_dtype: torch.dtype, bias_dtype: torch.dtype | None
    ) -> _C.DenseLayer:
        """Those whose gradients of weight and bias are of these dtypes."""
        facts = self.facts
        m, n, k = facts.extents
        return _native.C.DenseLayer(
            rows=m,
            cols=k,
            outputs=n,
            block=facts.block_shape,
            x_dtype=_native.dtype_code(facts.x_dtype),
            dtype=_native.dtype_code(facts.dtype),
            weight_dtype=_native.dtype_code(weight_dtype),
            bias_dtype=_native.dtype_code(bias_dtype or facts.dtype),
            device=facts.device,
        )

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        facts, memory = self.facts, self._memory
        stream, device = _native.current_stream(facts.device), memory.device
        out, live = memory.allocate(*memory.out), memory.allocate(*self._live)
        masked = memory.allocate(*memory.x)
        seed, offset = draw(options, self._grid, device, lambda: _grid_alone(live))
        used_weight, weight_at = weight, 0
        if facts.weight_dtype is not facts.dtype:
            used_weight, weight_at = memory.rounded_weight(weight, stream)
        self._launches.forward(
            x.data_ptr(),
            masked.data_ptr(),
            weight.data_ptr() if weight_at else used_weight.data_ptr(),
            weight_at,
            address(bias),
            0 if self._fuses_bias else out.data_ptr(),
            live.data_ptr(),
            1.0 - options.p,
            seed,
            offset,
            options.alpha,
            _native.blas_handle(facts.device),
            _native.allows_narrow_sums(facts.dtype),
            stream,
        )
        if weight_at:
            memory.share(weight, used_weight, stream)
        if self._fuses_bias:
            assert bias is not None
            self._multiply((masked, used_weight, bias), out, options.alpha)
        return out, Saved(masked, used_weight, live)

    def _multiply(self, operands: tuple[Tensor, Tensor, Tensor], out: Tensor, alpha: float) -> None:
        """The product, into memory that is no view: a user may write to the result."""
        facts, (masked, weight, bias) = self.facts, operands
        m, n, k = facts.extents
        with torch.no_grad():
            rounded = bias if facts.bias_dtype is facts.dtype else bias.to(facts.dtype)
            flat = masked.view(m, k), weight.t()
            torch.addmm(rounded, *flat, alpha=alpha, out=out.view(m, n))

    def _launches_into(self, dtypes: tuple[torch.dtype, torch.dtype | None]) -> _C.DenseLayer:
        if dtypes not in self._others:
            self._others[dtypes] = self._make_launches(*dtypes)
        return self._others[dtypes]

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
        facts, memory, launches = self.facts, self._memory, self._launches
        if into != (None, None):
            launches = self._launches_into(gradient_dtypes(facts, into))
        grads = memory.gradients(self._grad_x, needs, into)
        product = grads[0]
        if product is not None and facts.x_dtype is not facts.dtype:
            product = memory.allocate(*memory.x)
        launches.backward(
            grad.data_ptr(),
            saved.x.data_ptr(),
            saved.weight.data_ptr(),
            saved.mask.data_ptr(),
            address(product),
            address(grads[0]),
            address(grads[1] if into[0] is None else into[0]),
            address(grads[2] if into[1] is None else into[1]),
            options.alpha,
            into[0] is not None,
            into[1] is not None,
            _native.blas_handle(facts.device),
            _native.allows_narrow_sums(facts.dtype),
            _native.current_stream(facts.device),
        )
        return grads

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        m, n, _ = facts.extents
        grad = grad.reshape(m, n)
        # The dtypes are settled: autocast around a backward pass may not change them again.
        with torch.autocast("cuda", enabled=False):
            return self._plain_gradients(saved, grad, options, needs)

    def _plain_gradients(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        m, _, k = facts.extents
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            is_live = expand_live(saved.mask, facts.block_shape, (m, k))
            product = torch.mm(grad, saved.weight).to(facts.x_dtype) * options.alpha
            grad_x = torch.where(is_live, product, 0).view(facts.x_shape)
        if needs[1]:
            product = torch.mm(grad.t(), saved.x.view(m, k)).to(facts.weight_dtype)
            grad_weight = product * options.alpha
        if needs[2]:
            grad_bias = grad.sum(0, dtype=facts.bias_dtype)
        return grad_x, grad_weight, grad_bias

    backward_again = backward_by_ops

    def through_kept(self, saved: Saved, grad: Tensor) -> Tensor:
        rows, _, k = self.facts.extents
        is_live = expand_live(saved.mask, self.facts.block_shape, (rows, k))
        kept = torch.where(is_live, grad.reshape(rows, k), 0)
        return kept.view(self.facts.x_shape).to(self.facts.x_dtype)


def _grid_alone(live: Tensor) -> MaskTensors:
    """A mask whose words nobody reads."""
    words = torch.empty((0, 0), dtype=torch.int32, device=live.device)
    return MaskTensors((live, words, words))
