"""A layer by the kernels that skip what is dropped: one call into `_C` each way."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import BlockMask, Layout, MaskTensors, layout
from sparsedrop.ops import copies, dense
from sparsedrop.ops.autograd import multiply
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved, lie_well
from sparsedrop.ops.layer.memory import Memory, gradient_dtypes
from sparsedrop.ops.layer.programs import kernel_backward, kernel_forward, rounds_bias
from sparsedrop.ops.plan import Key, kernel_plan, layer_keys, request_of
from sparsedrop.ops.product import How, Product
from sparsedrop.ops.program import Space, address, draw
from sparsedrop.ops.spelling import spelled
from sparsedrop.select import kernels

if TYPE_CHECKING:
    from sparsedrop import _C


Rounds = tuple[bool, bool]
"""Whether x and weight are rounded before they are used."""


def keys_of(facts: Facts) -> tuple[Key, Key, Key]:
    """The products: forward, input gradient and weight gradient."""
    mask = facts.block_shape, facts.keep_percent
    masks = (None, mask) if facts.drops_output else (mask, None)
    dtypes = facts.dtype, facts.weight_dtype
    of = facts.device, facts.extents, dtypes, masks
    return layer_keys(*of, weight_turned=facts.weight_turned, tf32=facts.tf32)


class Packing(NamedTuple):
    """One buffer for the mask of x, and behind it for what is rounded: bytes from its start."""

    bias_at: int
    weight_at: int
    x_at: int
    # Elements of int32: of the mask and the bias, and of all.
    mask_size: int
    size: int


def packing(
    extents: tuple[int, int, int],
    block_shape: tuple[int, int],
    side: str,
    rounds: Rounds,
    dtype: torch.dtype,
) -> Packing:
    """For a layer of these extents, m, n and k; room for x and weight only if they are rounded.

    dtype: of the products.
    """
    m, n, k = extents
    masked = (m, n if side == "output" else k)
    bias_at = _aligned(4 * layout(*masked, *block_shape).size)
    size = dtype.itemsize
    weight_at = bias_at + _aligned(size * n)
    x_at = weight_at + (_aligned(size * n * k) if rounds[1] else 0)
    end = x_at + (_aligned(size * m * k) if rounds[0] else 0)
    return Packing(bias_at, weight_at, x_at, weight_at // 4, end // 4)


def _aligned(count: int) -> int:
    """Bytes, rounded up to 16."""
    return -(-count // 16) * 16


class Places(NamedTuple):
    """Addresses of what a call needs beside its operands. x and weight: as they are used."""

    mask: int
    x: int
    weight: int
    # Where the weight is rounded to, or 0.
    weight_to: int = 0


class KernelLayer:
    """See `facts.Layer`. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts, choices: tuple[select.Choice, ...]) -> None:
        self.facts = facts
        self.rounds = facts.x_dtype is not facts.dtype, facts.weight_dtype is not facts.dtype
        self.remakes_x = self.rounds[0]
        self._memory = Memory(facts)
        self._grid = (*facts.masked_shape, *facts.block_shape)
        self._layout: Layout = layout(*self._grid)
        self._rounds_bias = rounds_bias(facts)
        self.packing = packing(
            facts.extents, facts.block_shape, facts.side, self.rounds, facts.dtype
        )
        self._mask = Space((self.packing.mask_size,), (1,), torch.int32)
        self._pack = Space((self.packing.size,), (1,), torch.int32)
        self._choices = choices
        forward, *backward = self._launches(facts)
        self._forward = kernel_forward(facts, forward)
        self._forward_scratch = forward.workspace_bytes
        self._backward_scratch = max(launch.workspace_bytes for launch in backward)
        self._backward = kernel_backward(facts, backward, (False, False))
        self._others: dict[Any, _C.Program] = {}

    def _launches(self, facts: Facts) -> list[_C.Launch]:
        """Of the three products."""
        return [
            kernel_plan(key, request_of(key), choice).launch
            for key, choice in zip(keys_of(facts), self._choices, strict=True)
        ]

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        memory, stream = self._memory, _native.current_stream(self.facts.device)
        rounds_x, rounds_weight = self.rounds
        mask = memory.allocate(*self._mask)
        used_x = memory.allocate(*memory.x) if rounds_x else x
        used_weight, weight_to = weight, 0
        if rounds_weight:
            used_weight, weight_to = memory.rounded_weight(weight, stream)
        at = Places(mask.data_ptr(), used_x.data_ptr(), used_weight.data_ptr(), weight_to)
        out = self._launch_forward((x, weight, bias), mask, at, options, stream)
        if weight_to:
            copies.keep(weight, used_weight, stream)
        return out, Saved(used_x, used_weight, mask)

    def forward_packed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """The result, and a buffer of the mask and what was rounded: see `packing`."""
        rounds_x, rounds_weight = self.rounds
        pack, stream = self._memory.allocate(*self._pack), _native.current_stream(self.facts.device)
        start, packing = pack.data_ptr(), self.packing
        weight_to = start + packing.weight_at if rounds_weight else 0
        used_x = start + packing.x_at if rounds_x else x.data_ptr()
        at = Places(start, used_x, weight_to or weight.data_ptr(), weight_to)
        out = self._launch_forward((x, weight, bias), pack, at, options, stream)
        return out, pack

    def _launch_forward(
        self,
        operands: tuple[Tensor, Tensor, Tensor | None],
        mask: Tensor,
        at: Places,
        options: Options,
        stream: int,
    ) -> Tensor:
        memory, (x, weight, bias) = self._memory, operands
        out = memory.allocate(*memory.out)
        seed, next_offset = draw(
            options.sampler, options.p, options.generator, self._grid, memory.device,
            lambda: MaskTensors(None, mask, self._layout),
        )  # fmt: skip
        scratch, bias_at = memory.bytes(self._forward_scratch), address(bias)
        used_bias = at.mask + self.packing.bias_at if self._rounds_bias else bias_at
        self._forward.run(
            (
                x.data_ptr(), at.x, weight.data_ptr(), at.weight_to, at.weight, bias_at, used_bias,
                out.data_ptr(), at.mask, address(scratch), seed, next_offset,
            ),
            (options.alpha, 1.0 - options.p),
            stream,
        )  # fmt: skip
        return out

    def _backward_into(self, into: Buffers) -> _C.Program:
        """The backward pass whose gradients of weight and bias go there."""
        if into == (None, None):
            return self._backward
        key = gradient_dtypes(self.facts, into), (into[0] is not None, into[1] is not None)
        if key not in self._others:
            (weight_dtype, bias_dtype), adds = key
            facts = self.facts._replace(weight_dtype=weight_dtype, bias_dtype=bias_dtype)
            self._others[key] = kernel_backward(facts, self._launches(facts)[1:], adds)
        return self._others[key]

    def adds_into(self, buffer: Tensor) -> bool:
        is_wide = buffer.dtype is torch.float32 and buffer.layout is torch.strided
        return is_wide and buffer.device == self._memory.device and lie_well(buffer)

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        options: Options,
        needs: Needs,
        into: Buffers = (None, None),
    ) -> Grads:
        at = Places(*map(address, (saved.mask, saved.x, saved.weight)))
        return self._launch_backward(at, grad, options, needs, into)

    def backward_packed(
        self,
        x: Tensor | None,
        weight: Tensor | None,
        pack: Tensor,
        grad: Tensor,
        options: Options,
        needs: Needs,
    ) -> Grads:
        """`backward` with what `forward_packed` left; x and weight None where it rounded them."""
        start, packing = pack.data_ptr(), self.packing
        at = Places(
            start,
            start + packing.x_at if x is None else x.data_ptr(),
            start + packing.weight_at if weight is None else weight.data_ptr(),
        )
        return self._launch_backward(at, grad, options, needs, (None, None))

    def _launch_backward(
        self, at: Places, grad: Tensor, options: Options, needs: Needs, into: Buffers
    ) -> Grads:
        memory = self._memory
        # An input's gradient is of the dtype of the products: autograd casts it where x was not.
        grads = memory.gradients(memory.x, needs, into)
        scratch = memory.bytes(self._backward_scratch)
        self._backward_into(into).run(
            (
                grad.data_ptr(), at.x, at.weight, at.mask, address(grads[0]),
                address(grads[1] if into[0] is None else into[0]),
                address(grads[2] if into[1] is None else into[1]),
                address(scratch),
            ),
            (options.alpha,),
            _native.current_stream(self.facts.device),
        )  # fmt: skip
        return grads

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        backward = torch.ops.sparsedrop.dropout_linear_backward.default
        extents = facts.x_shape[-1], *facts.block_shape
        dtypes = facts.dtype, facts.weight_dtype, facts.bias_dtype
        x, weight, mask = saved
        if x is None:  # and no gradient is made of it
            x = grad.new_empty(facts.x_shape)
        weight = weight.t() if facts.weight_turned else weight
        how = spelled(facts.side, *dtypes, needs)
        grads = backward(grad, x, weight, mask, options.p, *extents, how)
        grad_x, grad_weight, grad_bias = (
            found if is_needed else None for found, is_needed in zip(grads, needs, strict=True)
        )
        if grad_weight is not None and facts.weight_turned:
            grad_weight = grad_weight.t()
        return grad_x, grad_weight, grad_bias

    def backward_again(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        (m, n, k), alpha = facts.extents, options.alpha
        tensors = MaskTensors(None, saved.mask, self._layout)
        mask = BlockMask(facts.masked_shape, facts.block_shape, 1.0 - options.p, tensors)
        of_x, of_grad = (None, mask) if facts.drops_output else (mask, None)
        flat = grad.reshape(m, n)
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            how = How(of_grad, None, of_x, alpha, None, False, facts.weight_turned)
            product = multiply(Product(flat, saved.weight, None, how))
            grad_x = product.reshape(facts.x_shape).to(facts.x_dtype)
        if needs[1]:
            assert saved.x is not None
            left, right = (flat, of_grad), (saved.x.reshape(m, k), of_x)
            if facts.weight_turned:
                left, right = right, left
            how = How(left[1], right[1], None, alpha, None, True, False)
            product = multiply(Product(left[0], right[0], None, how))
            grad_weight = product.to(facts.weight_dtype)
        if needs[2]:
            sums = dense.column_sums(flat, of_grad).to(facts.bias_dtype)
            grad_bias = sums * alpha if facts.drops_output else sums
        return grad_x, grad_weight, grad_bias

    def through_kept(self, saved: Saved, grad: Tensor) -> Tensor:
        return grad.to(self.facts.x_dtype)


@functools.lru_cache(maxsize=4096)
def kernel_layer_for(facts: tuple[Any, ...], architecture: str | None = None) -> KernelLayer | None:
    """The layer for `Facts` in a plain tuple by the best kernels; None where they cannot run it.

    architecture: the one that is forced.
    """
    of = Facts(*facts)
    if not of.are_legal() or not kernels.gpu_facts(of.device)["tiles"]:
        return None
    if of.bias_dtype is not None and of.features > _native.C.MAX_SUM_COLUMNS:
        return None
    requests = tuple(map(request_of, keys_of(of)))
    choices = select.best_kernels(requests, architecture=architecture)
    return None if isinstance(choices, str) else KernelLayer(of, choices)
