"""A linear layer of whose outputs, inputs or both some units are live: one call into `_C` each
way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.program import Pass, Space, address
from sparsedrop.ops.units import linear_programs
from sparsedrop.ops.units.facts import Operand
from sparsedrop.ops.units.linear_facts import DrawnSides, Facts, Hidden, Live


class LinearCall:
    """A layer of some facts. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        (n, k), (used_n, used_k) = facts.live_shape, facts.used_shape
        copies_y, copies_x = facts.copies
        lead, param_dtype = facts.x_shape[:-1], facts.weight[1]
        self._allocate = _native.allocator(facts.device)
        # Features of the result, of x and of compact gradients, where these have padding.
        self._n, self._k = n if copies_y else None, k if copies_x else None
        self._out = Space.of((*lead, used_n), facts.dtype)
        self._x = Space.of((*lead, used_k), facts.dtype)
        self._used = Space.of((used_n, used_k), facts.dtype)
        self._bias, self._sums = (
            Space.of((used_n,), dtype) for dtype in (facts.dtype, torch.float32)
        )
        self._grads = {
            lazy: (Space.of(shape, param_dtype), Space.of(shape[:1], param_dtype))
            for lazy, shape in ((False, tuple(facts.weight[0])), (True, (used_n, used_k)))
        }
        self._keeps_input = facts.makes is not None and facts.makes.keeps_input
        self._remakes_x = facts.reads is not None and facts.reads.keeps_input
        self._handle = _native.blas_handle(facts.device)
        self._forward = linear_programs.forward(facts, self._handle)
        self._backward = linear_programs.backward(facts, self._handle, lazy=False)

    @functools.cached_property
    def _lazy_backward(self) -> Pass:
        return linear_programs.backward(self.facts, self._handle, lazy=True)

    def _rest(self, drawn: DrawnSides) -> tuple[int, ...]:
        """All places from those of units on."""
        facts, rows = self.facts, drawn.rows or drawn.cols
        assert rows is not None
        cols = drawn.cols or rows
        n, k = facts.live_shape
        handle = _native.blas_handle(facts.device)
        narrow = _native.allows_narrow_sums(facts.dtype)
        return *rows, *cols, 1, 0, n, 0, 1, 0, k, 0, handle, narrow

    def _padded(self, tensor: Tensor, space: Space, is_padded: bool) -> Tensor:
        """Room for a copy with padding, or the tensor."""
        return self._allocate(*space) if is_padded else tensor

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, drawn: DrawnSides
    ) -> tuple[Tensor, Tensor]:
        """What is kept of a hidden value, and the value; where it is none, both are the result,
        alpha * x Wᵀ + bias of the live units. Of as many features as are no whole vectors there are
        gaps between its rows."""
        facts, allocate = self.facts, self._allocate
        out, used = allocate(*self._out), self._used_weight(weight)
        hidden = allocate(*self._out) if self._keeps_input else out
        used_x = self._padded(x, self._x, self._k is not None)
        used_bias = allocate(*self._bias) if facts.gathers_bias else None
        scratch = self._forward.room(self._allocate)
        self._forward.program.run(
            (
                out.data_ptr(), x.data_ptr(), 0, weight.data_ptr(), used.data_ptr(), address(bias),
                0, 0, 0, 0, 0, used_x.data_ptr(), address(used_bias), hidden.data_ptr(), 0, 0,
                address(scratch), *self._rest(drawn),
            ),
            (drawn.alpha,),
            _native.current_stream(facts.device),
        )  # fmt: skip
        if self._n is not None:
            # Detached it counts for no view, which what stands behind a node may not change in
            # place.
            out = hidden = out[..., : self._n].detach()
        return out, hidden

    def _used_weight(self, weight: Tensor) -> Tensor:
        return self._allocate(*self._used) if self.facts.gathers else weight

    def backward(
        self,
        grad: Tensor,
        operands: tuple[Tensor | None, Tensor],
        drawn: DrawnSides,
        needs: Sequence[bool],
        lazy: bool = False,
        kept: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients that are needed of x, weight and bias; `grad` is contiguous and aligned.
        Of live units alone with `lazy`. Without the weight's nothing is asked of x.

        Of a hidden value `kept` is what `forward` says is kept of it, and so is x; `grad`, that of
        the value, is overwritten.
        """
        # Whatever keeps saved tensors may have turned them.
        x, kept = (t if t is None or lie_well(t) else _placed(t) for t in (operands[0], kept))
        weight, allocate, kept_x = operands[1].contiguous(), self._allocate, x
        if self._remakes_x or not needs[1]:
            x = allocate(*self._x) if needs[1] else None
        of_weight, of_bias = self._grads[lazy]
        grad_x = allocate(*self._x) if needs[0] else None
        grad_weight = allocate(*of_weight) if needs[1] else None
        has_bias = self.facts.bias is not None and needs[2]
        grad_bias = allocate(*of_bias) if has_bias else None
        is_placed = has_bias and self.facts.rows is not None and not lazy
        sums = allocate(*self._sums) if is_placed else None
        is_made = needs[1] and self.facts.compacts and not lazy
        made = allocate(*self._grads[True][0]) if is_made else None
        used = self._used_weight(weight) if needs[0] else None
        used_grad = self._padded(grad, self._out, self._n is not None)
        used_x = None if x is None else self._padded(x, self._x, self._k is not None)
        backward = self._lazy_backward if lazy else self._backward
        scratch = backward.room(self._allocate)
        backward.program.run(
            (
                grad.data_ptr(), address(x), address(grad_x),
                weight.data_ptr(), address(used), 0, address(grad_weight), address(grad_bias),
                address(made), address(sums), used_grad.data_ptr(), address(used_x), 0, 0,
                address(kept), address(kept_x), address(scratch), *self._rest(drawn),
            ),
            (drawn.alpha,),
            _native.current_stream(self.facts.device),
        )  # fmt: skip
        if grad_x is not None and self._k is not None:
            grad_x = grad_x[..., : self._k]
        if lazy:
            grad_weight = None if grad_weight is None else grad_weight[: self._n, : self._k]
            grad_bias = None if grad_bias is None else grad_bias[: self._n]
        return grad_x, grad_weight, grad_bias


def _placed(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def make_call(facts: tuple[Any, ...]) -> LinearCall | None:
    """The call for `Facts` in a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if not (of.are_legal() and _native.runs_portable(_native.gpu(of.device))):
        return None
    return LinearCall(of) if _native.has_blas() else None


call_for = functools.lru_cache(maxsize=4096)(make_call)
"""Between two row patterns a layer has some hundred kinds of facts."""


def linear_call(
    x: Operand,
    index: int,
    parameters: tuple[Tensor, Tensor | None],
    sides: tuple[Live | None, Live | None],
    hidden: tuple[Hidden | None, Hidden | None] = (None, None),
) -> LinearCall | None:
    """How GPU `index` runs a layer of checked parameters in one call; None where it goes the long
    way.

    Args:
        x: without its data, which is contiguous.
        index: of the GPU.
        parameters: weight and bias.
        sides: what lives of the outputs, and of the inputs. Live units that wrap around the end are
            two parts.
        hidden: what the layer reads and what it makes, where that is between layers of a chain.
    """
    weight, bias = parameters
    if not weight.is_contiguous():
        return None
    of_bias = None
    if bias is not None:
        if not bias.is_contiguous():
            return None
        of_bias = bias.shape, bias.dtype
    return call_for((index, *x, (weight.shape, weight.dtype), of_bias, *sides, *hidden))
