"""A layer by dense products of masked operands: as many launches as nn.Dropout and nn.Linear.

What comes before them, drawing, masking, scaling and rounding, is one call into `_C`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import MaskTensors, expand_live, fill, grid_shape, host_state
from sparsedrop.ops.cuda import sums_by_kernel
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved
from sparsedrop.ops.layer.kernels import DRAWN, rounded_weight
from sparsedrop.ops.masked_copy import copy_live

if TYPE_CHECKING:
    from sparsedrop import _C


class DenseLayer:
    """See `facts.Layer`. What is saved of x is the masked and scaled copy."""

    saves_operands = False

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        m, n, k = facts.extents
        self._device = torch.device("cuda", facts.device)
        self._grid = (m, k, *facts.block_shape)
        self._grid_shape = grid_shape(*self._grid)
        self._launches: _C.DenseLayer = _native.C.DenseLayer(
            rows=m,
            cols=k,
            outputs=n,
            block=facts.block_shape,
            x_dtype=_native.dtype_code(facts.x_dtype),
            dtype=_native.dtype_code(facts.dtype),
            device=facts.device,
        )
        self._out_shape = facts.out_shape

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        facts, device = self.facts, self._device
        (m, n, k), dtype = facts.extents, facts.dtype
        stream = _native.current_stream(facts.device)
        out = torch.empty(self._out_shape, dtype=dtype, device=device)
        live = torch.empty(self._grid_shape, dtype=torch.bool, device=device)
        masked = torch.empty((m, k), dtype=dtype, device=device)
        state = host_state(device) if options.sampler == "bernoulli" else None
        if state is None:
            words = torch.empty((0, 0), dtype=torch.int32, device=device)
            fill(options.sampler, MaskTensors((live, words, words)), self._grid, options.p, device)
        used_weight, weight_at, used_bias, bias_at = weight, 0, bias, 0
        if facts.weight_dtype is not dtype:
            used_weight, is_new = rounded_weight(weight, dtype, stream, device)
            weight_at = used_weight.data_ptr() if is_new else 0
        if bias is not None and facts.bias_dtype is not dtype:
            used_bias = torch.empty(bias.shape, dtype=dtype, device=device)
            bias_at = used_bias.data_ptr()
        self._launches.prepare(
            x.data_ptr(),
            masked.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            weight_at,
            bias_at,
            live.data_ptr(),
            1.0 - options.p,
            *(DRAWN if state is None else state),
            options.alpha,
            stream,
        )
        # Into its own memory, and not a view of what a product returns: a user may write to it.
        flat = out if out.dim() == 2 else out.view(m, n)
        with torch.no_grad():
            if used_bias is None:
                torch.mm(masked, used_weight.t(), out=flat)
            else:
                torch.addmm(used_bias, masked, used_weight.t(), out=flat)
        return out, Saved(masked, used_weight, live)

    def adds_into(self, buffer: Tensor) -> bool:
        return False

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        options: Options,
        needs: Needs,
        into: Buffers = (None, None),
    ) -> Grads:
        facts, device = self.facts, self._device
        (m, n, k), dtype = facts.extents, facts.dtype
        masked, weight, live = saved
        grad = grad if grad.dim() == 2 else grad.view(m, n)
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            grad_x = torch.empty(facts.x_shape, dtype=facts.x_dtype, device=device)
            flat = grad_x if grad_x.dim() == 2 else grad_x.view(m, k)
            product = (
                flat if facts.x_dtype is dtype else torch.empty((m, k), dtype=dtype, device=device)
            )
            torch.mm(grad, weight, out=product)
            copy_live(product, flat, live, facts.block_shape, options.alpha)
        if needs[1]:
            grad_weight = _product(grad.t(), masked, facts.weight_dtype)
        if needs[2]:
            assert facts.bias_dtype is not None
            grad_bias = _sums(grad, facts.bias_dtype)
        return grad_x, grad_weight, grad_bias

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        m, n, k = facts.extents
        grad = grad.reshape(m, n)
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            is_live = expand_live(saved.mask, facts.block_shape, (m, k))
            product = torch.mm(grad, saved.weight).to(facts.x_dtype) * options.alpha
            grad_x = torch.where(is_live, product, 0).view(facts.x_shape)
        if needs[1]:
            grad_weight = torch.mm(grad.t(), saved.x).to(facts.weight_dtype)
        if needs[2]:
            grad_bias = grad.sum(0, dtype=facts.bias_dtype)
        return grad_x, grad_weight, grad_bias


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a times b in that dtype, from the accumulators."""
    return torch.mm(a, b) if a.dtype is dtype else torch.mm(a, b, out_dtype=dtype)


def _sums(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a gradient's columns, in the bias's dtype."""
    sums = sums_by_kernel(grad, None, dtype)
    return grad.sum(0, dtype=dtype) if sums is None else sums
