"""Random stacks: against the reference under the masks that they draw, on the CPU by every path,
and on the stub of a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import extension_stub
from gpu_stub import autocast_on_stub
from random_stacks import (
    BF16,
    F16,
    F32,
    F64,
    Case,
    exact_of,
    judge,
    operands_of,
    poisoned,
    stacks,
    with_gradients,
)
from sparsedrop import BlockMask, functional, select
from sparsedrop.ops.stack import Dropped
from sparsedrop.ops.stack.node import stack_of

# Of x, of the parameters, and of autocast.
CPU_PRECISIONS = [
    (F64, F64, None), (F64, F64, None), (F32, F32, None), (BF16, BF16, None), (F16, F16, None),
    (F32, F32, BF16), (F64, F64, BF16), (BF16, F32, BF16), (F32, BF16, BF16), (F32, F16, F16),
]  # fmt: skip
STUB_PRECISIONS = [
    (BF16, BF16, None), (F16, F16, None), (F32, F32, BF16), (BF16, F32, BF16), (F32, BF16, BF16),
    (F32, F32, F16),
]  # fmt: skip


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
    operands = operands_of(case)
    torch.manual_seed(case.seed)
    masks = _masks_of(case, "cpu")
    exact = exact_of(case, operands, masks)
    if case.is_poisoned:
        x = poisoned(operands.x.detach(), masks.get(0)).requires_grad_(case.needs_x)
        upstream = poisoned(operands.upstream, masks.get(len(case.layers)))
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
    judge(case, with_gradients(out, operands), exact, dtypes)


# Of two that are no multiples of 8 the layers run densely, where kernels stand around them.
GPU_WIDTHS = st.sampled_from([8, 16, 64, 72, 136, 256, 10, 65])
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
    operands = operands_of(case)
    extension_stub.C.grids.clear()
    dropped = Dropped(case.rates, case.block, case.sampler)
    with select.override(path=case.path), autocast_on_stub(case.precision[2]):
        if stack_of(operands.x, operands.layers, dropped) is None:
            event("the long way")
            return
        out = functional.dropped_stack(operands.x, operands.layers, dropped, True)
    event(f"a node: {type(out.grad_fn).__name__}")
    masks = _stub_masks(case)
    upstream = poisoned(operands.upstream, masks.get(len(case.layers)))
    exact = exact_of(case, operands, masks)
    if case.is_poisoned:
        operands = operands._replace(upstream=upstream)
    dtypes = [case.product, *(leaf.dtype for leaf in operands.leaves())]
    judge(case, with_gradients(out, operands), exact, dtypes)
