"""A stack by the kernels that skip what is dropped: one call into `_C` each way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.masks import MaskTensors
from sparsedrop.ops import copies
from sparsedrop.ops.plan import Blocks, Key, kernel_plan, layer_keys, request_of
from sparsedrop.ops.program import Space, address, draw
from sparsedrop.ops.stack import programs
from sparsedrop.ops.stack.facts import (
    Branch,
    Dropped,
    Facts,
    branches,
    is_dense_layer,
    needed_layers,
    numbers_of,
)
from sparsedrop.ops.stack.places import Forward, Pack, kept_of
from sparsedrop.select import kernels

POINTWISE_DTYPES = (torch.bfloat16, torch.float16)
"""In which there are kernels for what stands between the products: in others a stack is run product
by product."""


class Saved(NamedTuple):
    """What a backward pass needs of the forward pass."""

    x: Tensor
    pack: Tensor
    weights: tuple[Tensor, ...]
    # Of all layers, in turn.
    kept: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.pack, *self.weights, *self.kept

    @classmethod
    def of(cls, tensors: Sequence[Tensor], count: int) -> Saved:
        """The inverse of `tensors`; count: of weights."""
        x, pack, *rest = tensors
        return cls(x, pack, tuple(rest[:count]), tuple(rest[count:]))


def keys_of(facts: Facts) -> dict[Branch, tuple[Key, Key, Key]]:
    """The products of each branch."""
    masks: list[Blocks | None] = [
        None if percent is None else (facts.block_shape, percent) for percent in facts.keeps
    ]
    features, dtypes = facts.features, (facts.dtype, facts.param_dtype)
    found = {}
    for branch in branches(facts.kinds):
        i = branch.layer
        kind = facts.kinds[i]
        extents = facts.rows, features[i + 1], features[i]
        activation = None if kind.keeps_input else kind.activation
        of = facts.device, extents, dtypes, (masks[i], masks[i + 1]), activation
        found[branch] = layer_keys(*of, tf32=facts.tf32)
    return found


class KernelStack:
    """A stack of some facts. What does not depend on addresses is worked out once.

    choices: of the kernels of each branch; none where its products are dense.
    """

    def __init__(self, facts: Facts, choices: dict[Branch, tuple[select.Choice, ...]]) -> None:
        assert not any(kind.is_gated for kind in facts.kinds[1:]), "a gate behind the first layer"
        self.facts, self._branches = facts, branches(facts.kinds)
        self.weight_count = len(self._branches)
        launches: programs.Launches = {}
        for branch, keys in keys_of(facts).items():
            if choices[branch]:
                forward, grad_x, grad_weight = (
                    kernel_plan(key, request_of(key), choice).launch
                    for key, choice in zip(keys, choices[branch], strict=True)
                )
                launches[branch] = forward, grad_x, grad_weight
        self._has_dense = len(launches) < len(self._branches)
        handle = _native.blas_handle(facts.device) if self._has_dense else 0
        self._forward = programs.forward(facts, launches, handle)
        self._backward = programs.backward(facts, launches, handle)
        self._allocate, self._device = _native.allocator(facts.device), _native.gpu(facts.device)
        self._out = Space.of(facts.out_shape, facts.dtype)
        self._x = Space.of(tuple(facts.x_shape), facts.dtype)
        self._pack_layout = Pack(facts)
        self._pack = Space.of((self._pack_layout.size // 4,), torch.int32)
        self._between = [Space.of((facts.rows, n), facts.dtype) for n in facts.features[1:]]
        self._kept = [kept_of(facts, i) for i in range(len(facts.kinds))]
        self._backward_spaces = self._between_backward()
        shapes = [(facts.features[i + 1], facts.features[i]) for i, *_ in self._branches]
        self._weights = [Space.of(shape, facts.dtype) for shape in shapes]
        # Of weight and bias, in turn.
        self._grads = [
            Space.of(extents, facts.param_dtype)
            for shape in shapes
            for extents in (shape, shape[:1])
        ]
        self._masks = self._pack_layout.masks(Forward.PACK)
        # Properties, which are asked for in each call.
        self._rounds_x, self._rounds_parameters = facts.rounds_x, facts.rounds_parameters
        self._is_gated = facts.kinds[0].is_gated
        last = len(facts.kinds) - 1
        # Of each layer: how many matrices are kept, whether the stack's result is the one, and
        # whether the layer's result has room of its own.
        self._rooms = [
            (space, kept, i == last and not kind.keeps_input, i < last and kind.keeps_input)
            for i, (space, kept, kind) in enumerate(
                zip(self._between, self._kept, facts.kinds, strict=True)
            )
        ]

    def forward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        dropped: Dropped,
        *,
        shares: bool = True,
    ) -> tuple[Tensor, Saved]:
        """The result, and what `backward` needs. Parameters are in the order of the branches.

        shares: whether rounded weights are found by other layers, and theirs used here.
        """
        facts, allocate = self.facts, self._allocate
        stream = _native.current_stream(facts.device)
        out, pack = allocate(*self._out), allocate(*self._pack)
        used_x = allocate(*self._x) if self._rounds_x else x
        scratch = self._forward.room(self._allocate)
        places = [
            x.data_ptr(), used_x.data_ptr(), out.data_ptr(), pack.data_ptr(), address(scratch)
        ]  # fmt: skip
        used: list[Tensor] = []
        fresh: list[tuple[Tensor, Tensor]] = []
        for i, space in enumerate(self._weights):
            weight, bias = parameters[2 * i], parameters[2 * i + 1]
            assert weight is not None
            copy, to = weight, 0
            if self._rounds_parameters:
                copy, to = self._rounded(weight, space, stream if shares else None)
                if to and shares:
                    fresh.append((weight, copy))
            used.append(copy)
            places += (weight.data_ptr(), to, copy.data_ptr(), address(bias))
        kept: list[Tensor] = []
        results: list[Tensor] = []
        for space, count, keeps_result, is_apart in self._rooms:
            for _ in range(count):
                kept.append(out if keeps_result else allocate(*space))
                places.append(kept[-1].data_ptr())
            if is_apart:
                results.append(allocate(*space))
            places.append(results[-1].data_ptr() if is_apart else 0)
        for i, mask in self._masks.items():
            places += self._draw(i, mask.start, pack, dropped)
        places += self._blas()
        self._forward.program.run(places, numbers_of(dropped.rates, keeps=True), stream)
        for weight, copy in fresh:
            copies.keep(weight, copy, stream)
        return out, Saved(used_x, pack, tuple(used), tuple(kept))

    def _blas(self) -> tuple[int, ...]:
        """What dense products need: torch's handle, and whether it adds parts of sums in 16
        bits."""
        if not self._has_dense:
            return ()
        facts = self.facts
        return _native.blas_handle(facts.device), _native.allows_narrow_sums(facts.dtype)

    def _rounded(self, weight: Tensor, space: Space, stream: int | None) -> tuple[Tensor, int]:
        """The weight as it is used, and its address if it has yet to be filled.

        stream: where a copy that others share was made; None: none is looked for.
        """
        found = None if stream is None else copies.find(weight, space.dtype, stream)
        if found is not None:
            return found, 0
        copy = self._allocate(*space)
        return copy, copy.data_ptr()

    def _draw(self, index: int, start: int, pack: Tensor, dropped: Dropped) -> tuple[int, int]:
        mask = self._masks[index]

        def tensors() -> MaskTensors:
            return MaskTensors(None, pack[start // 4 : start // 4 + mask.lies.size], mask.lies)

        grid = *mask.shape, *mask.block
        how = dropped.sampler, dropped.rates[index], dropped.generator
        return draw(*how, grid, self._device, tensors)

    def _between_backward(self) -> tuple[Space | None, Space | None, Space | None]:
        """Room for the gradients between layers, in turns, and for the first gate's."""
        kinds = self.facts.kinds
        even, odd = (
            [
                space
                for i, (kind, space) in enumerate(zip(kinds, self._between, strict=True))
                if i % 2 == parity
                and (i < len(kinds) - 1 or kind.activation is not None or kind.is_gated)
            ]
            for parity in (0, 1)
        )
        return (
            max(even, key=_size, default=None),
            max(odd, key=_size, default=None),
            self._between[0] if kinds[0].is_gated else None,
        )

    def masks(self, pack: Tensor) -> dict[int, MaskTensors]:
        """The masks that were drawn, by what they drop."""
        found = {}
        for i, mask in self._masks.items():
            start = mask.start // 4
            found[i] = MaskTensors(None, pack[start : start + mask.lies.size], mask.lies)
        return found

    def backward(
        self, saved: Saved, grad: Tensor, dropped: Dropped, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients that are needed, of x and of the parameters; `grad` is contiguous, aligned
        and of the dtype of the products."""
        facts, allocate = self.facts, self._allocate
        grads: list[Tensor | None] = [allocate(*self._x) if needs[0] else None]
        other = allocate(*self._x) if needs[0] and self._is_gated else None
        scratch = self._backward.room(self._allocate)
        places = [
            grad.data_ptr(), saved.x.data_ptr(), saved.pack.data_ptr(), address(grads[0]),
            address(other), address(scratch),
        ]  # fmt: skip
        for space, needed in zip(self._grads, needs[1:], strict=True):
            grads.append(allocate(*space) if needed else None)
        for i, weight in enumerate(saved.weights):
            of_weight, of_bias = grads[2 * i + 1], grads[2 * i + 2]
            places += (weight.data_ptr(), address(of_weight), address(of_bias))
        first, trained = needed_layers(self._branches, tuple(needs))
        kept = iter(saved.kept)
        between = [None if s is None else allocate(*s) for s in self._backward_spaces]
        for i, count in enumerate(self._kept):
            places += [next(kept).data_ptr() for _ in range(count)]
            # A layer's gradient is read while the one before it is written, and never after.
            room, of_gate = address(between[i % 2]), address(between[2]) if i == 0 else 0
            places += (room, of_gate) if i >= first else (0, 0)
            places.append(room if i + 1 in trained else 0)
        places += self._blas()
        stream = _native.current_stream(facts.device)
        self._backward.program.run(places, numbers_of(dropped.rates, keeps=False), stream)
        return grads


def _size(space: Space) -> int:
    return space.shape[0] * space.shape[1]


class PlainStack:
    """Dense products are faster, or all that there is."""


def make_stack(facts: tuple[Any, ...]) -> KernelStack | PlainStack | None:
    """The stack for `Facts`, which may be a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if 0 in of.x_shape or 0 in of.features:
        return None
    extents = of.rows, *of.features, *of.block_shape
    if max(extents) > min(select.MAX_EXTENT, _native.C.MAX_SUM_COLUMNS):
        return None
    if not kernels.gpu_facts(of.device)["tiles"] and select.is_free():
        return PlainStack()
    requests = {b: tuple(map(request_of, keys)) for b, keys in keys_of(of).items()}
    dropped = tuple(n for n, keep in zip(of.features, of.keeps, strict=True) if keep is not None)
    choice = select.decide_stack(tuple(requests.values()), dropped)
    if choice.path == "kernel" and of.dtype in POINTWISE_DTYPES:
        choices = dict(zip(requests, choice.layers, strict=True))
        return KernelStack(of, choices) if are_legal(of, choices) else None
    return PlainStack() if choice.path == "dense" else None


def are_legal(facts: Facts, choices: dict[Branch, tuple[select.Choice, ...]]) -> bool:
    """Whether the launches around dense products take the extents of those layers."""
    dense = {branch.layer for branch, choice in choices.items() if not choice}
    return not dense or (_native.has_blas() and all(is_dense_layer(facts.kinds[i]) for i in dense))


stack_for = functools.lru_cache(maxsize=1024)(make_stack)
