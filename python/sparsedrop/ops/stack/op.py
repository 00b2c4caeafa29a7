"""The registered ops of a stack: what a compiled graph calls."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsedrop import select
from sparsedrop.ops.layer.facts import lie_well
from sparsedrop.ops.plan import request_of
from sparsedrop.ops.registration import Op, register
from sparsedrop.ops.stack.facts import (
    Dropped,
    Facts,
    Kind,
    branches,
    facts_of,
    kind_of,
    layers_of,
)
from sparsedrop.ops.stack.kernels import KernelStack, Saved, are_legal, keys_of
from sparsedrop.ops.stack.places import Pack, kept_of

ALONE = "an op of a stack ran on operands that no kernel takes: {}"


def _forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    activations: Sequence[str],
    gated: Sequence[bool],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    sampler: str,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The result, the pack, and what else the backward pass needs and is not given."""
    x, parameters = _well(x), [None if p is None else _well(p) for p in parameters]
    kinds = tuple(map(kind_of, layers_of(parameters, activations, gated)))
    dropped = Dropped(tuple(rates), (block_rows, block_cols), sampler)
    stack = _stack_for(facts_of(x, (x.dtype, _dtype_of(parameters), dtype), kinds, dropped))
    out, saved = stack.forward(x, parameters, dropped, shares=False)
    return [out, *to_list(saved, out, stack.facts)]


def _backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    pack: Tensor,
    kept: Sequence[Tensor],
    activations: Sequence[str],
    gated: Sequence[bool],
    biased: Sequence[bool],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    x_dtype: torch.dtype,
    param_dtype: torch.dtype,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and of the parameters in the order of the branches; empty where they are not
    needed."""
    kinds = kinds_of(weights, activations, gated, biased)
    dropped = Dropped(tuple(rates), (block_rows, block_cols), "bernoulli")
    stack = _stack_for(facts_of(x, (x_dtype, param_dtype, grad.dtype), kinds, dropped))
    saved = Saved(_well(x), pack, tuple(map(_well, weights)), tuple(kept))
    grads = stack.backward(saved, _well(grad), dropped, needs)
    return [grad.new_empty(0) if found is None else found for found in grads]


def _well(tensor: Tensor) -> Tensor:
    """A tensor as the kernels take it: a graph's may lie otherwise than when it was traced."""
    return tensor if lie_well(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _dtype_of(parameters: Sequence[Tensor | None]) -> torch.dtype:
    weight = parameters[0]
    assert weight is not None
    return weight.dtype


def _stack_for(facts: tuple[Any, ...]) -> KernelStack:
    """The stack for `Facts` in a plain tuple by the best kernels, whatever dense products take."""
    return _stack_of(facts, select.forced_architecture())


@functools.lru_cache(maxsize=1024)
def _stack_of(facts: tuple[Any, ...], architecture: str | None) -> KernelStack:
    of = Facts(*facts)
    requests = {branch: tuple(map(request_of, keys)) for branch, keys in keys_of(of).items()}
    found = select.best_stack(tuple(requests.values()), architecture=architecture)
    if isinstance(found, str):
        raise RuntimeError(ALONE.format(found))
    choices = dict(zip(requests, found, strict=True))
    if not are_legal(of, choices):
        raise RuntimeError(ALONE.format("a dense layer among them"))
    return KernelStack(of, choices)


def kinds_of(
    weights: Sequence[Tensor],
    activations: Sequence[str],
    gated: Sequence[bool],
    biased: Sequence[bool],
) -> tuple[Kind, ...]:
    """The kinds of a stack's layers; weights, and whether there is a bias, branch by branch."""
    rest, found = iter(zip(weights, biased, strict=True)), []
    for name, is_gated in zip(activations, gated, strict=True):
        gate = next(rest)[1] if is_gated else None
        weight, has_bias = next(rest)
        found.append(Kind(weight.shape[0], name or None, has_bias, gate))
    return tuple(found)


def _keeps_result(facts: Facts) -> bool:
    """Whether the last that is kept is the result itself."""
    last = facts.kinds[-1]
    return last.activation is not None and not last.keeps_input


def to_list(saved: Saved, out: Tensor, facts: Facts) -> list[Tensor]:
    """What a forward pass made beside its result: an op returns none of its operands, and nothing
    twice."""
    return [
        saved.pack,
        *([saved.x] if facts.rounds_x else []),
        *(saved.weights if facts.rounds_parameters else []),
        *(tensor for tensor in saved.kept if tensor is not out),
    ]


def from_list(
    made: Sequence[Tensor], out: Tensor, given: tuple[Tensor, Sequence[Tensor]], facts: Facts
) -> Saved:
    """The inverse; given: x and the weights."""
    (x, weights), (pack, *rest) = given, made
    if facts.rounds_x:
        x, *rest = rest
    if facts.rounds_parameters:
        count = len(weights)
        weights, rest = rest[:count], rest[count:]
    kept = (*rest, out) if _keeps_result(facts) else tuple(rest)
    return Saved(x, pack, tuple(weights), kept)


def _fake_forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    activations: Sequence[str],
    gated: Sequence[bool],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    sampler: str,
    dtype: torch.dtype,
) -> list[Tensor]:
    kinds = tuple(map(kind_of, layers_of(parameters, activations, gated)))
    dropped = Dropped(tuple(rates), (block_rows, block_cols), sampler)
    dtypes = x.dtype, _dtype_of(parameters), dtype
    facts = Facts(*facts_of(x, dtypes, kinds, dropped))
    out = x.new_empty(facts.out_shape, dtype=dtype)
    weights = [
        x.new_empty((facts.features[i + 1], facts.features[i]), dtype=dtype)
        for i, *_ in branches(kinds)
    ]
    kept = [
        x.new_empty((facts.rows, n), dtype=dtype)
        for i, n in enumerate(facts.features[1:])
        for _ in range(kept_of(facts, i))
    ]
    if _keeps_result(facts):
        kept[-1] = out
    pack = x.new_empty(Pack(facts).size // 4, dtype=torch.int32)
    saved = Saved(x.new_empty(x.shape, dtype=dtype), pack, tuple(weights), tuple(kept))
    return [out, *to_list(saved, out, facts)]


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    pack: Tensor,
    kept: Sequence[Tensor],
    activations: Sequence[str],
    gated: Sequence[bool],
    biased: Sequence[bool],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    x_dtype: torch.dtype,
    param_dtype: torch.dtype,
    needs: Sequence[bool],
) -> list[Tensor]:
    shapes = [x.shape]
    for weight in weights:
        shapes += [weight.shape, weight.shape[:1]]
    dtypes = [grad.dtype] + [param_dtype] * (2 * len(weights))
    return [
        grad.new_empty(shape, dtype=dtype) if needed else grad.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    ]


_HOW = "str[] activations, bool[] gated"
_DROPPED = "float[] rates, SymInt block_rows, SymInt block_cols"
_library = register(
    Op(
        f"stack(Tensor x, Tensor?[] parameters, {_HOW}, {_DROPPED}, str sampler, ScalarType dtype)"
        " -> Tensor[]",
        _forward,
        _fake_forward,
        draws=True,
    ),
    Op(
        f"stack_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor pack, Tensor[] kept, "
        f"{_HOW}, bool[] biased, {_DROPPED}, ScalarType x_dtype, ScalarType param_dtype, "
        "bool[] needs) -> Tensor[]",
        _backward,
        _fake_backward,
        draws=False,
    ),
)
FORWARD = torch.ops.sparsedrop.stack.default
BACKWARD = torch.ops.sparsedrop.stack_backward.default
