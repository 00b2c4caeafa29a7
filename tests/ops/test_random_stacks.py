"""Random stacks: against the reference under the masks that they draw, on the CPU by every path,
and on the stub of a GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import extension_stub
from gpu_stub import autocast_on_stub
from sparsedrop import BlockMask, functional, reference, select
from sparsedrop.ops.stack import Dropped, Layer
from sparsedrop.ops.stack.facts import parameters_of
from sparsedrop.ops.stack.node import stack_of

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

# Of x, of the parameters, and of autocast.
CPU_PRECISIONS = [
    (F64, F64, None), (F64, F64, None), (F32, F32, None), (BF16, BF16, None), (F16, F16, None),
    (F32, F32, BF16), (F64, F64, BF16), (BF16, F32, BF16), (F32, BF16, BF16), (F32, F16, F16),
]  # fmt: skip
STUB_PRECISIONS = [
    (BF16, BF16, None), (F16, F16, None), (F32, F32, BF16), (BF16, F32, BF16), (F32, BF16, BF16),
    (F32, F32, F16),
]  # fmt: skip


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


def _operands(case: Case) -> Operands:
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


def _poisoned(tensor: Tensor, mask: BlockMask | None) -> Tensor:
    """The tensor, lying as it does unless rows of it are one, with NaN where it is dropped."""
    if mask is None:
        return tensor
    dropped = ~mask.expand().view(tensor.shape)
    if 0 in tensor.stride():
        tensor = tensor.contiguous()
    bad = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return bad.copy_(tensor).masked_fill_(dropped, float("nan"))


def _exact(case: Case, operands: Operands, masks: dict[int, BlockMask]) -> list[Tensor]:
    """The reference in float64 on the operands as they were rounded."""

    def leaf(t):
        if t is None:
            return None
        return t.detach().to(case.product).to(F64).requires_grad_(t.requires_grad)

    x, given, upstream = operands
    layers = tuple(Layer(leaf(w), leaf(b), act, leaf(g), leaf(c)) for w, b, act, g, c in given)
    exact = Operands(leaf(x), layers, upstream.double())
    out = reference.stack(exact.x, layers, masks, case.rates)
    return _with_gradients(out, exact)


def _with_gradients(out: Tensor, operands: Operands) -> list[Tensor]:
    leaves = operands.leaves()
    assert out.requires_grad == bool(leaves)
    grads = torch.autograd.grad(out, leaves, operands.upstream) if leaves else ()
    return [out.detach(), *grads]


def _check(case: Case, ours: list[Tensor], exact: list[Tensor], dtypes: list[torch.dtype]) -> None:
    # Gates one behind the other multiply: half precision ends there.
    assume(all(truth.abs().max() < 1e4 for truth in exact if truth.numel()))
    has_relu = any(spec.activation == "relu" for spec in case.layers)
    tolerance = 16 * torch.finfo(case.product).eps * len(case.layers)
    for i, (own, truth, dtype) in enumerate(zip(ours, exact, dtypes, strict=True)):
        assert (own.dtype, own.shape) == (dtype, truth.shape)
        assert own.isfinite().all(), f"result {i}"
        # relu's slope jumps where its argument rounds to the other sign.
        allowed = 0.3 if has_relu and i > 0 and case.product != F64 else tolerance
        error = (own.double() - truth).norm()
        assert error <= allowed * (1 + truth.norm()), f"result {i}: {error} of {truth.norm()}"


def _masks_of(case: Case, device: str) -> dict[int, BlockMask]:
    """Those that torch's generator gives, in turn."""
    draw = getattr(BlockMask, case.sampler)
    return {
        i: draw((case.rows, n), p, block_shape=case.block, device=device)
        for i, (n, p) in enumerate(zip(case.features, case.rates, strict=True))
        if p > 0
    }


ODD = st.sampled_from([1, 3, 8, 16, 24, 40, 65])


@given(
    stacks(
        ODD,
        st.sampled_from([(), (0,), (1,), (7,), (48,), (3, 16), (2, 0), (2, 3, 5)]),
        st.sampled_from([(1, 1), (4, 8), (16, 16), (7, 5), (128, 128)]),
        CPU_PRECISIONS, [None, "cpu", "dense"], gates_everywhere=True,
    )
)  # fmt: skip
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_on_the_cpu(case):
    operands = _operands(case)
    torch.manual_seed(case.seed)
    masks = _masks_of(case, "cpu")
    exact = _exact(case, operands, masks)
    if case.is_poisoned:
        x = _poisoned(operands.x.detach(), masks.get(0)).requires_grad_(case.needs_x)
        upstream = _poisoned(operands.upstream, masks.get(len(case.layers)))
        operands = operands._replace(x=x, upstream=upstream)
    torch.manual_seed(case.seed)
    autocast = case.precision[2]
    with (
        select.override(path=case.path),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        dropped = Dropped(case.rates, case.block, case.sampler)
        out = functional.dropped_stack(operands.x, operands.layers, dropped, True)
    dtypes = [case.product, *(leaf.dtype for leaf in operands.leaves())]
    _check(case, _with_gradients(out, operands), exact, dtypes)


GPU_WIDTHS = st.sampled_from([8, 16, 64, 72, 136, 256])
GPU_LEADS = st.sampled_from([(1,), (3,), (64,), (2, 100), (), (0,), (130,)])


def _stub_masks(case: Case) -> dict[int, BlockMask]:
    """Those that were drawn on the stub."""
    grids = iter(extension_stub.C.grids)
    masks = {
        i: BlockMask.from_live(next(grids), (case.rows, n), block_shape=case.block)
        for i, (n, p) in enumerate(zip(case.features, case.rates, strict=True))
        if p > 0
    }
    assert next(grids, None) is None
    return masks


@pytest.mark.usefixtures("stub_gpu")
@given(
    stacks(
        GPU_WIDTHS, GPU_LEADS, st.sampled_from([(64, 64), (128, 128), (128, 64), (64, 128)]),
        STUB_PRECISIONS, ["kernel"], gates_everywhere=False,
        lies=st.just("row"),
    )
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_on_the_stub(case):
    operands = _operands(case)
    extension_stub.C.grids.clear()
    dropped = Dropped(case.rates, case.block, case.sampler)
    with select.override(path=case.path), autocast_on_stub(case.precision[2]):
        if stack_of(operands.x, operands.layers, dropped) is None:
            event("the long way")
            return
        out = functional.dropped_stack(operands.x, operands.layers, dropped, True)
    event(f"a node: {type(out.grad_fn).__name__}")
    masks = _stub_masks(case)
    upstream = _poisoned(operands.upstream, masks.get(len(case.layers)))
    exact = _exact(case, operands, masks)
    if case.is_poisoned:
        operands = operands._replace(upstream=upstream)
    dtypes = [case.product, *(leaf.dtype for leaf in operands.leaves())]
    _check(case, _with_gradients(out, operands), exact, dtypes)
