"""A feed-forward block by dense products of what lives of its weights: one call into `_C` each
way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.ops.program import Pass, Space, address
from sparsedrop.ops.units import programs
from sparsedrop.ops.units.facts import Drawn, Facts


class Saved(NamedTuple):
    """What a backward pass needs of the forward pass."""

    x: Tensor
    # As they are used: whole, or gathered and rounded.
    weights: tuple[Tensor, ...]
    # Of the hidden units, as given: of a gate first.
    biases: tuple[Tensor | None, ...]
    # What went into the activation, but for the biases; or relu's result.
    kept: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.x, *self.weights, *self.biases, *self.kept

    @classmethod
    def of(cls, tensors: Sequence[Tensor], branches: int) -> Saved:
        """The inverse of `tensors`."""
        x, *rest = tensors
        down = branches + 1
        weights, biases, kept = rest[:down], rest[down : down + branches], rest[down + branches :]
        return cls(x, tuple(weights), tuple(biases), tuple(kept))


class Block:
    """A block of some facts. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        rows, width = facts.rows, facts.width
        # Asked for in each call.
        self.remakes_x, self._gathers = facts.rounds_x, facts.gathers
        self.branches, self._keeps_input = facts.branches, facts.keeps_input
        self._allocate = _native.allocator(facts.device)
        self._out = Space.of((*facts.x_shape[:-1], facts.d_out), facts.dtype)
        self._x = Space.of(tuple(facts.x_shape), facts.dtype)
        self._grad_x = Space.of(tuple(facts.x_shape), facts.x_dtype)
        self._hidden = Space.of((rows, facts.ld), facts.dtype)
        self._sums = Space.of((facts.ld,), torch.float32)
        down = (width, facts.d_out) if facts.down_turned else (facts.d_out, facts.ld)
        self._gathered = [
            *(Space.of((width, facts.d_model), facts.dtype) for _ in range(facts.branches)),
            Space.of(down, facts.dtype),
        ]
        self._grads = {lazy: _gradients(facts, lazy) for lazy in (False, True)}
        self._compacts = facts.compacts
        self._bias = Space.of((facts.d_out,), facts.dtype) if facts.rounds_bias else None
        self._handle = _native.blas_handle(facts.device)
        self._forward = programs.forward(facts, self._handle)
        self._backward = programs.backward(facts, self._handle, lazy=False)

    @functools.cached_property
    def _lazy_backward(self) -> Pass:
        return programs.backward(self.facts, self._handle, lazy=True)

    def _settings(self, drawn: Drawn) -> tuple[int, ...]:
        """Live units, torch's handle, and whether it adds parts of sums in 16 bits."""
        facts = self.facts
        handle = _native.blas_handle(facts.device)
        return *drawn.units, handle, _native.allows_narrow_sums(facts.dtype)

    @functools.cached_property
    def _gather(self) -> Any:
        return programs.gather(self.facts)

    def forward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        drawn: Drawn,
        rooms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Saved]:
        """The result, and what `backward` needs. Parameters are in the order of the facts; rooms
        for what is kept are [rows, ld] each, or None: it is allocated."""
        allocate, branches = self._allocate, self.branches
        stream, out = _native.current_stream(self.facts.device), allocate(*self._out)
        used_x = allocate(*self._x) if self.remakes_x else x
        used_bias = None if self._bias is None else allocate(*self._bias)
        kept, used = list[Tensor](), list[Tensor]()
        places = list[int]()
        for i, space in enumerate(self._gathered):
            weight, bias = parameters[2 * i], parameters[2 * i + 1]
            assert weight is not None
            used.append(allocate(*space) if self._gathers else weight)
            made = used_bias
            if i < branches:
                made = allocate(*self._hidden) if rooms is None else rooms[i]
                kept.append(made)
            places += (weight.data_ptr(), used[-1].data_ptr(), address(bias), address(made))
        hidden = allocate(*self._hidden) if self._keeps_input else kept[0]
        scratch = self._forward.room(self._allocate)
        self._forward.program.run(
            (
                x.data_ptr(), used_x.data_ptr(), out.data_ptr(), hidden.data_ptr(),
                address(scratch), *self._settings(drawn), *places,
            ),
            (drawn.alpha,),
            stream,
        )  # fmt: skip
        return out, Saved(used_x, tuple(used), self._biases(parameters), tuple(kept))

    def _biases(self, parameters: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return tuple(parameters[1:-2:2]) if self._keeps_input else (None,) * self.branches

    def saved_again(
        self,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        kept: Sequence[Tensor],
        drawn: Drawn,
    ) -> Saved:
        """What `forward` has saved of an x that it does not remake, of which only `kept` is still
        there."""
        weights = [weight for weight in parameters[::2] if weight is not None]
        used = [self._allocate(*space) for space in self._gathered] if self._gathers else weights
        if self._gathers:
            places = list[int]()
            for weight, own in zip(weights, used, strict=True):
                places += (weight.data_ptr(), own.data_ptr(), 0, 0)
            stream = _native.current_stream(self.facts.device)
            self._gather.run((0, 0, 0, 0, 0, *drawn.units, 0, 0, *places), (drawn.alpha,), stream)
        return Saved(x, tuple(used), self._biases(parameters), tuple(kept))

    def backward(
        self, saved: Saved, grad: Tensor, drawn: Drawn, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients that are needed, of x and of the parameters; `grad` is contiguous, aligned
        and of the dtype of the products. With `drawn.keep` they are compact."""
        allocate, branches = self._allocate, self.branches
        lazy = drawn.keep is not None
        grads: list[Tensor | None] = [allocate(*self._grad_x) if needs[0] else None]
        for space, needed in zip(self._grads[lazy], needs[1:], strict=True):
            grads.append(allocate(*space) if needed else None)
        goes_back = any(needs[:-2])
        room = allocate(*self._hidden) if goes_back or needs[-2] else None
        hidden = room if self._keeps_input else saved.kept[0]
        places, rooms = list[int](), list[Tensor | None]()
        for i, weight in enumerate(saved.weights):
            of_weight, of_bias = grads[2 * i + 1], grads[2 * i + 2]
            bias = kept = back = made = sums = None
            if i < branches:
                bias, kept = saved.biases[i], saved.kept[i]
                back = room if i == 0 else (allocate(*self._hidden) if goes_back else None)
                if of_bias is not None and not lazy:
                    sums = allocate(*self._sums)
            if of_weight is not None and self._compacts and not lazy:
                made = allocate(*self._grads[True][2 * i])
            rooms += (back, made, sums)  # until the call is over
            places += (
                weight.data_ptr(), address(bias), address(kept), address(back) if goes_back else 0,
                address(of_weight), address(of_bias), address(made), address(sums),
            )  # fmt: skip
        backward = self._lazy_backward if lazy else self._backward
        scratch = backward.room(self._allocate)
        backward.program.run(
            (
                grad.data_ptr(), saved.x.data_ptr(), address(hidden) if needs[-2] else 0,
                address(grads[0]), address(scratch), *self._settings(drawn), *places,
            ),
            (drawn.alpha,),
            _native.current_stream(self.facts.device),
        )  # fmt: skip
        return grads


def _gradients(facts: Facts, lazy: bool) -> list[Space]:
    """Of weight and bias in turn, as torch sees them."""
    found, dtype = list[Space](), facts.param_dtype
    units = facts.width if lazy else facts.units
    for _ in range(facts.branches):
        found += (Space.of((units, facts.d_model), dtype), Space.of((units,), dtype))
    down = Space.of((facts.d_out, units), dtype)
    if facts.down_turned:
        down = Space((facts.d_out, units), (1, facts.d_out), dtype)
    return [*found, down, Space.of((facts.d_out,), dtype)]


def make_block(facts: tuple[Any, ...]) -> Block | None:
    """The block for `Facts` in a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if not (of.are_legal() and _native.runs_portable(_native.gpu(of.device))):
        return None
    return Block(of) if _native.has_blas() else None


block_for = functools.lru_cache(maxsize=1024)(make_block)
