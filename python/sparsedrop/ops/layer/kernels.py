"""A layer by the kernels that skip what is dropped: one call into `_C` each way."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import Layout, MaskTensors, fill, host_state, is_capturing, layout
from sparsedrop.ops.layer import copies
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved, lie_well
from sparsedrop.ops.plan import Key, kernel_plan, request_of
from sparsedrop.select import kernels

if TYPE_CHECKING:
    from sparsedrop import _C

DRAWN = (0, -1)
"""Seed and offset of a mask that was drawn before the call."""


def keys_of(facts: Facts) -> tuple[Key, Key, Key]:
    """The products: forward, input gradient and weight gradient."""
    m, n, k = facts.extents
    x, weight, grad = ((m, k), (k, 1), True), ((n, k), (k, 1), True), ((m, n), (n, 1), True)
    mask = facts.block_shape, facts.keep_percent
    common = None, facts.dtype, facts.device
    return (
        Key(*common, (*x, False), (*weight, True), mask, None, None),
        Key(*common, (*grad, False), (*weight, False), None, None, mask),
        Key(*common, (*grad, True), (*x, False), None, mask, None, facts.weight_dtype),
    )


def mask_size(m: int, n: int, k: int, block_shape: tuple[int, int]) -> int:
    """Elements of int32 for the mask of x, and behind it for a rounded bias."""
    return _bias_at(m, k, block_shape) // 4 + -(-n // 2)


def _bias_at(m: int, k: int, block_shape: tuple[int, int]) -> int:
    """In bytes, 16-byte aligned."""
    return -(-layout(m, k, *block_shape).size // 4) * 16


class KernelLayer:
    """See `facts.Layer`. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts, choices: tuple[select.Choice, ...]) -> None:
        self.facts = facts
        self.saves_operands = facts.x_dtype is facts.weight_dtype is facts.dtype
        m, n, k = facts.extents
        self._device = torch.device("cuda", facts.device)
        self._grid = (m, k, *facts.block_shape)
        self._layout: Layout = layout(*self._grid)
        self._rounds_bias = facts.bias_dtype not in (None, facts.dtype)
        self._bias_at = _bias_at(m, k, facts.block_shape)
        self._mask_size = mask_size(m, n, k, facts.block_shape)
        self._choices = choices
        self._launches = self._make_launches(facts.weight_dtype, facts.bias_dtype)
        self._out_shape = facts.out_shape
        self._forward_workspace = self._launches.forward_workspace_bytes
        self._backward_workspace = self._launches.backward_workspace_bytes

    @functools.cache  # noqa: B019 - layers live as long as the process
    def _make_launches(self, weight_dtype: torch.dtype, bias_dtype: torch.dtype | None) -> _C.Layer:
        """Those whose gradients of weight and bias are of these dtypes."""
        keys = keys_of(self.facts._replace(weight_dtype=weight_dtype))
        forward, grad_x, grad_weight = (
            kernel_plan(key, request_of(key), choice).launch
            for key, choice in zip(keys, self._choices, strict=True)
        )
        return _native.C.Layer(
            forward=forward,
            grad_x=grad_x,
            grad_weight=grad_weight,
            block=self.facts.block_shape,
            col_words_at=self._layout.col_words_at,
            live_at=self._layout.live_at,
            bias_dtype=_native.dtype_code(bias_dtype or self.facts.dtype),
        )

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        facts, device = self.facts, self._device
        dtype, stream = facts.dtype, _native.current_stream(facts.device)
        out = torch.empty(self._out_shape, dtype=dtype, device=device)
        mask = torch.empty(self._mask_size, dtype=torch.int32, device=device)
        state = host_state(device) if options.sampler == "bernoulli" else None
        if state is None:
            tensors = MaskTensors(None, mask, self._layout)
            fill(options.sampler, tensors, self._grid, options.p, device)
        used_x, x_at = x, 0
        if facts.x_dtype is not dtype:
            used_x = torch.empty(facts.x_shape, dtype=dtype, device=device)
            x_at = used_x.data_ptr()
        used_weight, weight_at = weight, 0
        if facts.weight_dtype is not dtype:
            used_weight, is_new = rounded_weight(weight, dtype, stream, device)
            weight_at = used_weight.data_ptr() if is_new else 0
        mask_at = mask.data_ptr()
        scratch = None
        if self._forward_workspace:
            scratch = torch.empty(self._forward_workspace, dtype=torch.uint8, device=device)
        self._launches.forward(
            x.data_ptr(),
            weight.data_ptr() if weight_at else used_weight.data_ptr(),
            _address(bias),
            x_at,
            weight_at,
            mask_at + self._bias_at if self._rounds_bias else 0,
            out.data_ptr(),
            mask_at,
            _address(scratch),
            1.0 - options.p,
            *(DRAWN if state is None else state),
            options.alpha,
            stream,
        )
        return out, Saved(used_x, used_weight, mask)

    def adds_into(self, buffer: Tensor) -> bool:
        is_wide = buffer.dtype is torch.float32 and buffer.layout is torch.strided
        return is_wide and buffer.device == self._device and lie_well(buffer)

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        options: Options,
        needs: Needs,
        into: Buffers = (None, None),
    ) -> Grads:
        facts, device = self.facts, self._device
        grad_x = grad_weight = grad_bias = scratch = None
        weight_sum, bias_sum = into
        launches = self._launches
        if weight_sum is not None or bias_sum is not None:
            launches = self._make_launches(
                facts.weight_dtype if weight_sum is None else weight_sum.dtype,
                facts.bias_dtype if bias_sum is None else bias_sum.dtype,
            )
        # An input's gradient is of the dtype of the products: autograd casts it where x was not.
        if needs[0]:
            grad_x = torch.empty(facts.x_shape, dtype=facts.dtype, device=device)
        if needs[1] and weight_sum is None:
            grad_weight = torch.empty(facts.weight_shape, dtype=facts.weight_dtype, device=device)
        if needs[2] and bias_sum is None:
            grad_bias = torch.empty(facts.weight_shape[:1], dtype=facts.bias_dtype, device=device)
        if self._backward_workspace:
            scratch = torch.empty(self._backward_workspace, dtype=torch.uint8, device=device)
        launches.backward(
            grad.data_ptr(),
            saved.x.data_ptr(),
            saved.weight.data_ptr(),
            saved.mask.data_ptr(),
            _address(grad_x),
            _address(grad_weight if weight_sum is None else weight_sum),
            _address(grad_bias if bias_sum is None else bias_sum),
            _address(scratch),
            options.alpha,
            weight_sum is not None,
            bias_sum is not None,
            _native.current_stream(facts.device),
        )
        return grad_x, grad_weight, grad_bias

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        dtypes = facts.weight_dtype, facts.bias_dtype
        backward = torch.ops.sparsedrop.dropout_linear_backward.default
        grads = backward(grad, *saved, options.p, *facts.block_shape, *dtypes, list(needs))
        grad_x, grad_weight, grad_bias = (
            found if is_needed else None for found, is_needed in zip(grads, needs, strict=True)
        )
        return grad_x, grad_weight, grad_bias


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def rounded_weight(
    weight: Tensor, dtype: torch.dtype, stream: int, device: torch.device
) -> tuple[Tensor, bool]:
    """Memory for the weight in another dtype, and whether it has yet to be filled."""
    # In a graph a copy from before its capture would be that of the capture's weights for ever.
    shares = torch.is_autocast_cache_enabled() and not is_capturing(device)
    copy = copies.find(weight, dtype, stream) if shares else None
    if copy is not None:
        return copy, False
    copy = torch.empty(weight.shape, dtype=dtype, device=device)
    if shares and weight.requires_grad:
        copies.keep(weight, copy, stream)
    return copy, True


@functools.lru_cache(maxsize=4096)
def kernel_layer_for(facts: tuple[Any, ...]) -> KernelLayer | None:
    """The layer for `Facts` in a plain tuple by the best kernels; None where they cannot run it."""
    of = Facts(*facts)
    if not of.are_legal() or not kernels.gpu_facts(of.device)["tiles"]:
        return None
    choices = select.best_kernels(tuple(map(request_of, keys_of(of))))
    return None if isinstance(choices, str) else KernelLayer(of, choices)
