"""Random stacks, and what judges their results: the reference, and how far rounding moves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from sparsedrop import BlockMask, reference
from sparsedrop.ops.stack import Layer
from sparsedrop.ops.stack.facts import parameters_of

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


class Spec(NamedTuple):
    """A layer: its features, what is behind it, and which of weight and bias, and of those of its
    gate, there are; of those that are there, which want a gradient."""

    outputs: int
    activation: str | None
    bias: bool
    gate: bool
    gate_bias: bool
    needs: tuple[bool, bool, bool, bool]


class Case(NamedTuple):
    lead: tuple[int, ...]
    inputs: int
    layers: tuple[Spec, ...]
    # One more than there are layers.
    rates: tuple[float, ...]
    block: tuple[int, int]
    sampler: str
    precision: tuple[torch.dtype, torch.dtype, torch.dtype | None]
    needs_x: bool
    x_lies: str
    upstream_lies: str
    path: str | None
    # Whether x and the upstream gradient are NaN in dropped blocks.
    is_poisoned: bool
    seed: int

    @property
    def features(self) -> tuple[int, ...]:
        return self.inputs, *(layer.outputs for layer in self.layers)

    @property
    def rows(self) -> int:
        return torch.Size(self.lead).numel()

    @property
    def product(self) -> torch.dtype:
        x, _, autocast = self.precision
        return x if autocast is None or x == F64 else autocast


RATES = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.9, 1.0])
LIES = st.sampled_from(["row", "row", "column", "strided", "offset", "broadcast"])


@st.composite
def stacks(draw, features, lead, blocks, precisions, paths, *, gates_everywhere, lies=LIES):
    count = draw(st.integers(1, 4))
    layers = []
    for i in range(count):
        gate = draw(st.booleans()) and (i == 0 or gates_everywhere)
        layers.append(
            Spec(
                draw(features), draw(st.sampled_from(ACTIVATIONS)), draw(st.booleans()), gate,
                draw(st.booleans()), draw(st.tuples(*[st.sampled_from([True, True, False])] * 4)),
            )
        )  # fmt: skip
    is_scaled = layers[-1].activation is None and not layers[-1].gate
    rates = [draw(RATES) for _ in range(count)] + [draw(RATES) if is_scaled else 0.0]
    if not any(rates):
        rates[0] = 0.5
    return Case(
        draw(lead), draw(features), tuple(layers), tuple(rates), draw(blocks),
        draw(st.sampled_from(["bernoulli", "balanced"])), draw(st.sampled_from(precisions)),
        draw(st.booleans()), draw(lies), draw(LIES), draw(st.sampled_from(paths)),
        draw(st.booleans()), draw(st.integers(0, 2**16)),
    )  # fmt: skip


def _lying(matrix: Tensor, how: str) -> Tensor:
    """The values of a tensor in other places of memory, or as many rows of equal values."""
    if how == "column" and matrix.dim() > 1:
        return matrix.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "strided":
        return matrix.repeat_interleave(2, -1)[..., ::2]
    if how == "offset":
        return torch.cat([matrix.new_zeros(1), matrix.flatten()])[1:].view(matrix.shape)
    if how == "broadcast" and matrix.dim() > 1 and matrix.shape[0]:
        return matrix[:1].expand(matrix.shape)
    return matrix


class Operands(NamedTuple):
    x: Tensor
    layers: tuple[Layer, ...]
    upstream: Tensor

    def leaves(self) -> list[Tensor]:
        """Those that want a gradient."""
        every = (self.x, *parameters_of(self.layers))
        return [t for t in every if t is not None and t.requires_grad]


def operands_of(case: Case) -> Operands:
    generator = torch.Generator().manual_seed(case.seed)
    x_dtype, dtype, _ = case.precision

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    layers, inputs = [], case.inputs
    for spec in case.layers:
        n = spec.outputs
        held = (True, spec.bias, spec.gate, spec.gate and spec.gate_bias)
        values = normal(n, inputs), normal(n), normal(n, inputs), normal(n)
        weight, bias, gate, gate_bias = (
            (value / inputs**0.5 if value.dim() == 2 else value).to(dtype).requires_grad_(needs)
            if there
            else None
            for value, there, needs in zip(values, held, spec.needs, strict=True)
        )
        layers.append(Layer(weight, bias, spec.activation, gate, gate_bias))
        inputs = n
    x = _lying(normal(*case.lead, case.inputs).to(x_dtype), case.x_lies)
    upstream = _lying(normal(*case.lead, inputs).to(case.product), case.upstream_lies)
    return Operands(x.detach().requires_grad_(case.needs_x), tuple(layers), upstream)


def poisoned(tensor: Tensor, mask: BlockMask | None) -> Tensor:
    """The tensor, lying as it does unless rows of it are one, with NaN where it is dropped."""
    if mask is None:
        return tensor
    dropped = ~mask.expand().view(tensor.shape)
    if 0 in tensor.stride():
        tensor = tensor.contiguous()
    bad = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return bad.copy_(tensor).masked_fill_(dropped, float("nan"))


def _reference(
    case: Case, operands: Operands, masks: dict[int, BlockMask], noise: Noise | None = None
) -> list[Tensor]:
    """The reference in float64 on the operands as they were rounded, or off by noise."""

    def leaf(t):
        if t is None:
            return None
        exact = t.detach().to(case.product).to(F64)
        return (exact if noise is None else noise.times(exact)).requires_grad_(t.requires_grad)

    x, given, upstream = operands
    layers = tuple(Layer(leaf(w), leaf(b), act, leaf(g), leaf(c)) for w, b, act, g, c in given)
    exact = Operands(leaf(x), layers, leaf(upstream))
    out = reference.stack(exact.x, layers, masks, case.rates)
    return with_gradients(out, exact)


class Noise:
    """What rounding to so many bits may do to operands and to what goes into an activation, and
    more: to random signs where relu's slope jumps."""

    def __init__(self, case: Case) -> None:
        self.generator = torch.Generator().manual_seed(case.seed)
        self.share = 4 * torch.finfo(case.product).eps * len(case.layers)

    def times(self, exact: Tensor) -> Tensor:
        return exact * (1 + self.share * self._normal(exact))

    def plus(self, exact: Tensor) -> Tensor:
        size = self.share * exact.detach().square().mean().sqrt()
        return exact + size * self._normal(exact)

    def activations(self) -> dict[str | None, Callable[[Tensor], Tensor]]:
        """The reference's, of arguments that are off."""
        return {
            name: lambda x, activation=activation: activation(self.plus(x))
            for name, activation in reference.ACTIVATIONS.items()
        }

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class Exact(NamedTuple):
    """The reference's results, and how far noise moves each of them."""

    results: list[Tensor]
    moved: list[float]


def exact_of(case: Case, operands: Operands, masks: dict[int, BlockMask]) -> Exact:
    results = _reference(case, operands, masks)
    moved, noise = [0.0] * len(results), Noise(case)
    with patch.dict(reference.ACTIVATIONS, noise.activations()):
        for _ in range(6):
            others = _reference(case, operands, masks, noise)
            for i, (truth, other) in enumerate(zip(results, others, strict=True)):
                moved[i] = max(moved[i], (truth - other).norm().item())
    return Exact(results, moved)


def with_gradients(out: Tensor, operands: Operands) -> list[Tensor]:
    leaves = operands.leaves()
    assert out.requires_grad == bool(leaves)
    grads = torch.autograd.grad(out, leaves, operands.upstream) if leaves else ()
    return [out.detach(), *grads]


def judge(case: Case, ours: list[Tensor], exact: Exact, dtypes: list[torch.dtype]) -> None:
    # Gates one behind the other multiply: half precision ends there.
    assume(all(truth.abs().max() < 1e4 for truth in exact.results if truth.numel()))
    tolerance = 16 * torch.finfo(case.product).eps * len(case.layers)
    for i, (own, truth, dtype) in enumerate(zip(ours, exact.results, dtypes, strict=True)):
        assert (own.dtype, own.shape) == (dtype, truth.shape)
        assert own.isfinite().all(), f"result {i}"
        allowed = tolerance * (1 + truth.norm()) + 2 * exact.moved[i]
        error = (own.double() - truth).norm()
        assert error <= allowed, f"result {i}: {error} of {truth.norm()}, {allowed} is allowed"
