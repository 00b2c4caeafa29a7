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
from sparsedrop.ops.spelling import read
from sparsedrop.ops.stack.facts import Blocks, Dropped, Facts, Kind, branches, facts_of
from sparsedrop.ops.stack.kernels import KernelStack, Saved, are_legal, keys_of
from sparsedrop.ops.stack.places import Pack, kept_of

ALONE = "an op of a stack ran on operands that no kernel takes: {}"


def _forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    how: str,
) -> list[Tensor]:
    """The result, the pack, and what else the backward pass needs and is not given.

    how: the sampler, the dtype of the products, which layers are gated, and the activations, as
    `spelled`.
    """
    if not lie_well(x, *[p for p in parameters if p is not None]):
        x, parameters = _well(x), [None if p is None else _well(p) for p in parameters]
    shapes = tuple([None if p is None else p.shape for p in parameters])
    stack, dropped = _forward_for(
        (x.get_device(), x.shape, x.dtype), shapes, _dtype_of(parameters), tuple(rates),
        (block_rows, block_cols), how, select.forced_architecture(),
    )  # fmt: skip
    out, saved = stack.forward(x, parameters, dropped, shares=False)
    return [out, *to_list(saved, out, stack.facts)]


def _backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    pack: Tensor,
    kept: Sequence[Tensor],
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    how: str,
) -> list[Tensor]:
    """Gradients of x and of the parameters in the order of the branches; empty where they are not
    needed.

    how: the dtypes of x and of the parameters as they were given, of which branches there is a
    bias, the gradients that are needed, which layers are gated, and the activations, as `spelled`.
    """
    if not lie_well(grad, x, *weights):
        grad, x, weights = _well(grad), _well(x), list(map(_well, weights))
    outputs = tuple([weight.shape[0] for weight in weights])
    stack, dropped, needs = _backward_for(
        (x.get_device(), x.shape, grad.dtype), outputs, tuple(rates),
        (block_rows, block_cols), how, select.forced_architecture(),
    )  # fmt: skip
    saved = Saved(x, pack, tuple(weights), tuple(kept))
    grads = stack.backward(saved, grad, dropped, needs)
    return [grad.new_empty(0) if found is None else found for found in grads]


def _well(tensor: Tensor) -> Tensor:
    """A tensor as the kernels take it: a graph's may lie otherwise than when it was traced."""
    return tensor if lie_well(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _dtype_of(parameters: Sequence[Tensor | None]) -> torch.dtype:
    weight = parameters[0]
    assert weight is not None
    return weight.dtype


OfTensor = tuple[int, torch.Size, torch.dtype]
"""Where it is, its shape and its dtype."""


@functools.lru_cache(maxsize=1024)
def _forward_for(
    of_x: OfTensor,
    shapes: tuple[torch.Size | None, ...],
    param_dtype: torch.dtype,
    rates: tuple[float, ...],
    block_shape: Blocks,
    how: str,
    architecture: str | None,
) -> tuple[KernelStack, Dropped]:
    """The stack of a forward pass, by the best kernels, whatever dense products take.

    shapes: of the parameters.
    """
    sampler, dtype, gated, *activations = read(how)
    index, x_shape, x_dtype = of_x
    kinds = _kinds_of_shapes(shapes, activations, gated)
    dropped = Dropped(rates, block_shape, sampler)
    facts = facts_of(index, x_shape, (x_dtype, param_dtype, dtype), kinds, dropped)
    return _stack_of(facts, architecture), dropped


@functools.lru_cache(maxsize=1024)
def _backward_for(
    of_grad: OfTensor,
    outputs: tuple[int, ...],
    rates: tuple[float, ...],
    block_shape: Blocks,
    how: str,
    architecture: str | None,
) -> tuple[KernelStack, Dropped, tuple[bool, ...]]:
    """That of a backward pass, and which gradients it is to make.

    of_grad: the shape is that of x.
    outputs: of the branches.
    """
    x_dtype, param_dtype, biased, needs, gated, *activations = read(how)
    index, x_shape, dtype = of_grad
    kinds = kinds_of(outputs, activations, gated, biased)
    dropped = Dropped(rates, block_shape, "bernoulli")
    facts = facts_of(index, x_shape, (x_dtype, param_dtype, dtype), kinds, dropped)
    return _stack_of(facts, architecture), dropped, needs


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
    outputs: Sequence[int],
    activations: Sequence[str | None],
    gated: Sequence[bool],
    biased: Sequence[bool],
) -> tuple[Kind, ...]:
    """The kinds of a stack's layers; features, and whether there is a bias, branch by branch."""
    rest, found = iter(zip(outputs, biased, strict=True)), []
    for activation, is_gated in zip(activations, gated, strict=True):
        gate = next(rest)[1] if is_gated else None
        features, has_bias = next(rest)
        found.append(Kind(features, activation, has_bias, gate))
    return tuple(found)


def _kinds_of_shapes(
    shapes: Sequence[torch.Size | None],
    activations: Sequence[str | None],
    gated: Sequence[bool],
) -> tuple[Kind, ...]:
    """Those of parameters of these shapes."""
    outputs = [shape[0] for shape in shapes[::2] if shape is not None]
    biased = [shape is not None for shape in shapes[1::2]]
    return kinds_of(outputs, activations, gated, biased)


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
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    how: str,
) -> list[Tensor]:
    sampler, dtype, gated, *activations = read(how)
    shapes = [None if p is None else p.shape for p in parameters]
    kinds = _kinds_of_shapes(shapes, activations, gated)
    dropped = Dropped(tuple(rates), (block_rows, block_cols), sampler)
    dtypes = x.dtype, _dtype_of(parameters), dtype
    facts = Facts(*facts_of(x.get_device(), x.shape, dtypes, kinds, dropped))
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
    rates: Sequence[float],
    block_rows: int,
    block_cols: int,
    how: str,
) -> list[Tensor]:
    _, param_dtype, _, needs, *_ = read(how)
    shapes = [x.shape]
    for weight in weights:
        shapes += [weight.shape, weight.shape[:1]]
    dtypes = [grad.dtype] + [param_dtype] * (2 * len(weights))
    return [
        grad.new_empty(shape, dtype=dtype) if needed else grad.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    ]


_DROPPED = "float[] rates, SymInt block_rows, SymInt block_cols"
_library = register(
    Op(
        f"stack(Tensor x, Tensor?[] parameters, {_DROPPED}, str how) -> Tensor[]",
        _forward,
        _fake_forward,
        draws=True,
    ),
    Op(
        "stack_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor pack, Tensor[] kept, "
        f"{_DROPPED}, str how) -> Tensor[]",
        _backward,
        _fake_backward,
        draws=False,
    ),
)
FORWARD = torch.ops.sparsedrop.stack.default
BACKWARD = torch.ops.sparsedrop.stack_backward.default
