"""A layer by the kernels that skip what is dropped: one call into `_C` each way."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import BlockMask, Layout, MaskTensors, layout
from sparsedrop.ops.autograd import multiply
from sparsedrop.ops.layer.facts import Buffers, Facts, Grads, Needs, Options, Saved, lie_well
from sparsedrop.ops.layer.memory import Memory, Space, address, draw, gradient_dtypes
from sparsedrop.ops.plan import Key, kernel_plan, request_of
from sparsedrop.ops.product import How, Product
from sparsedrop.select import kernels

if TYPE_CHECKING:
    from sparsedrop import _C


Rounds = tuple[bool, bool]
"""Whether x and weight are rounded before they are used."""


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


class Packing(NamedTuple):
    """One buffer for the mask of x, and behind it for what is rounded: bytes from its start."""

    bias_at: int
    weight_at: int
    x_at: int
    # Elements of int32: of the mask and the bias, and of all.
    mask_size: int
    size: int


def packing(extents: tuple[int, int, int], block_shape: tuple[int, int], rounds: Rounds) -> Packing:
    """For a layer of these extents, m, n and k; room for x and weight only if they are rounded."""
    m, n, k = extents
    bias_at = _aligned(4 * layout(m, k, *block_shape).size)
    weight_at = bias_at + _aligned(2 * n)
    x_at = weight_at + _aligned(2 * n * k) * rounds[1]
    end = x_at + _aligned(2 * m * k) * rounds[0]
    return Packing(bias_at, weight_at, x_at, weight_at // 4, end // 4)


def _aligned(count: int) -> int:
    """Bytes, rounded up to 16."""
    return -(-count // 16) * 16


class Places(NamedTuple):
    """Addresses of what a call needs beside its operands; 0 where nothing is rounded."""

    mask: int
    x: int = 0
    weight: int = 0


class KernelLayer:
    """See `facts.Layer`. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts, choices: tuple[select.Choice, ...]) -> None:
        self.facts = facts
        self.rounds = facts.x_dtype is not facts.dtype, facts.weight_dtype is not facts.dtype
        self.remakes_x = self.rounds[0]
        m, _, k = facts.extents
        self._memory = Memory(facts)
        self._grid = (m, k, *facts.block_shape)
        self._layout: Layout = layout(*self._grid)
        self._rounds_bias = facts.bias_dtype not in (None, facts.dtype)
        self.packing = packing(facts.extents, facts.block_shape, self.rounds)
        self._mask = Space((self.packing.mask_size,), (1,), torch.int32)
        self._pack = Space((self.packing.size,), (1,), torch.int32)
        self._choices = choices
        self._others: dict[tuple[Any, Any], _C.Layer] = {}
        self._launches = self._make_launches(facts.weight_dtype, facts.bias_dtype)
        self._forward_workspace = self._launches.forward_workspace_bytes
        self._backward_workspace = self._launches.backward_workspace_bytes

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
        memory, stream = self._memory, _native.current_stream(self.facts.device)
        rounds_x, rounds_weight = self.rounds
        mask = memory.allocate(*self._mask)
        used_x, x_at, weight_at = x, 0, 0
        if rounds_x:
            used_x = memory.allocate(*memory.x)
            x_at = used_x.data_ptr()
        used_weight = given = weight
        if rounds_weight:
            used_weight, weight_at = memory.rounded_weight(weight, stream)
            given = weight if weight_at else used_weight
        places = Places(mask.data_ptr(), x_at, weight_at)
        out = self._launch_forward((x, given, bias), mask, places, options, stream)
        if weight_at:
            memory.share(weight, used_weight, stream)
        return out, Saved(used_x, used_weight, mask)

    def forward_packed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """The result, and a buffer of the mask and what was rounded: see `packing`."""
        pack = self._memory.allocate(*self._pack)
        at, stream = pack.data_ptr(), _native.current_stream(self.facts.device)
        out = self._launch_forward((x, weight, bias), pack, self._places(at), options, stream)
        return out, pack

    def _places(self, at: int) -> Places:
        """Within a packed buffer at that address."""
        rounds_x, rounds_weight = self.rounds
        packing = self.packing
        return Places(
            at, at + packing.x_at if rounds_x else 0, at + packing.weight_at if rounds_weight else 0
        )

    def _launch_forward(
        self,
        operands: tuple[Tensor, Tensor, Tensor | None],
        mask: Tensor,
        places: Places,
        options: Options,
        stream: int,
    ) -> Tensor:
        memory, (x, weight, bias) = self._memory, operands
        out = memory.allocate(*memory.out)
        seed, offset = draw(
            options, self._grid, memory.device, lambda: MaskTensors(None, mask, self._layout)
        )
        scratch = memory.bytes(self._forward_workspace)
        self._launches.forward(
            x.data_ptr(),
            weight.data_ptr(),
            address(bias),
            places.x,
            places.weight,
            places.mask + self.packing.bias_at if self._rounds_bias else 0,
            out.data_ptr(),
            places.mask,
            address(scratch),
            1.0 - options.p,
            seed,
            offset,
            options.alpha,
            stream,
        )
        return out

    def _launches_into(self, dtypes: tuple[torch.dtype, torch.dtype | None]) -> _C.Layer:
        if dtypes not in self._others:
            self._others[dtypes] = self._make_launches(*dtypes)
        return self._others[dtypes]

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
        places = Places(*(tensor.data_ptr() for tensor in (saved.mask, saved.x, saved.weight)))
        return self._launch_backward(places, grad, options, needs, into)

    def backward_packed(
        self,
        x: Tensor | None,
        weight: Tensor | None,
        pack: Tensor,
        grad: Tensor,
        options: Options,
        needs: Needs,
    ) -> Grads:
        """`backward` with what `forward_packed` left; x and weight where they were not rounded."""
        places = self._places(pack.data_ptr())
        if x is not None:
            places = places._replace(x=x.data_ptr())
        if weight is not None:
            places = places._replace(weight=weight.data_ptr())
        return self._launch_backward(places, grad, options, needs, (None, None))

    def _launch_backward(
        self, places: Places, grad: Tensor, options: Options, needs: Needs, into: Buffers
    ) -> Grads:
        memory, launches = self._memory, self._launches
        if into != (None, None):
            launches = self._launches_into(gradient_dtypes(self.facts, into))
        # An input's gradient is of the dtype of the products: autograd casts it where x was not.
        grads = memory.gradients(memory.x, needs, into)
        scratch = memory.bytes(self._backward_workspace)
        launches.backward(
            grad.data_ptr(),
            places.x,
            places.weight,
            places.mask,
            address(grads[0]),
            address(grads[1] if into[0] is None else into[0]),
            address(grads[2] if into[1] is None else into[1]),
            address(scratch),
            options.alpha,
            into[0] is not None,
            into[1] is not None,
            _native.current_stream(self.facts.device),
        )
        return grads

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        backward = torch.ops.sparsedrop.dropout_linear_backward.default
        extents = facts.x_shape[-1], *facts.block_shape
        dtypes = facts.dtype, facts.weight_dtype, facts.bias_dtype
        x, weight, mask = saved
        grads = backward(grad, x, weight, mask, options.p, *extents, *dtypes, list(needs))
        grad_x, grad_weight, grad_bias = (
            found if is_needed else None for found, is_needed in zip(grads, needs, strict=True)
        )
        return grad_x, grad_weight, grad_bias

    def backward_again(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        facts = self.facts
        (m, n, k), alpha = facts.extents, options.alpha
        tensors = MaskTensors(None, saved.mask, self._layout)
        mask = BlockMask((m, k), facts.block_shape, 1.0 - options.p, tensors)
        flat = grad.reshape(m, n)
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            how = How(None, None, mask, alpha)
            product = multiply(Product(flat, saved.weight, None, how))
            grad_x = product.reshape(facts.x_shape).to(facts.x_dtype)
        if needs[1]:
            how = How(None, mask, None, alpha, None, True, False)
            product = multiply(Product(flat, saved.x.reshape(m, k), None, how))
            grad_weight = product.to(facts.weight_dtype)
        if needs[2]:
            grad_bias = flat.sum(0, dtype=facts.bias_dtype)
        return grad_x, grad_weight, grad_bias

    def through_kept(self, saved: Saved, grad: Tensor) -> Tensor:
        return grad.to(self.facts.x_dtype)


@functools.lru_cache(maxsize=4096)
def kernel_layer_for(facts: tuple[Any, ...]) -> KernelLayer | None:
    """The layer for `Facts` in a plain tuple by the best kernels; None where they cannot run it."""
    of = Facts(*facts)
    if not of.are_legal() or not kernels.gpu_facts(of.device)["tiles"]:
        return None
    if of.bias_dtype is not None and of.weight_shape[0] > _native.C.MAX_SUM_COLUMNS:
        return None
    choices = select.best_kernels(tuple(map(request_of, keys_of(of))))
    return None if isinstance(choices, str) else KernelLayer(of, choices)
