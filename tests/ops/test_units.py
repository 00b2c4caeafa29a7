"""Blocks of slices and row patterns in one call each way, on a GPU: against the reference."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cases import normal
from sparsedrop.nn import RowPatternMLP, SliceOutMLP
from sparsedrop.ops.slices.gradients import gradient_of
from stack_cases import BF16, PRECISIONS
from unit_cases import CASES, IN_TWO_PARTS, Case, assert_close, block_of, leaves_of, truth_of

pytestmark = pytest.mark.gpu

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
LARGE = {
    "a slice": Case(SliceOutMLP, 1024, {"d_model": 256, "d_out": 512}, (128, 512)),
    "a slice in two parts": Case(SliceOutMLP, 1024, {"d_model": 256, "d_out": 512}, (704, 512)),
    "a gated slice": Case(SliceOutMLP, 1024, {"d_model": 256, "gated": True}, (960, 512)),
    "rows": Case(RowPatternMLP, 1024, {"d_model": 256, "d_out": 512}, (2, 1)),
    "gated rows": Case(RowPatternMLP, 1000, {"d_model": 256, "gated": True}, (3, 2)),
}


def _run(case, block, x, autocast=None):
    drawing, _ = case.draws()
    enabled = autocast is not None
    with drawing, torch.autocast("cuda", autocast or BF16, enabled=enabled):
        return block(x)


def _x(block, *lead, dtype=BF16):
    return normal(*lead, block.up.in_features).to("cuda", dtype).requires_grad_()


def _compare(case, activation, precision, *lead):
    x_dtype, dtype, autocast = precision
    product = autocast or x_dtype
    block = block_of(case, dtype, "cuda", activation=activation)
    x = _x(block, *lead, dtype=x_dtype)
    out = _run(case, block, x, autocast)
    assert type(out.grad_fn).__name__ == "_BlockBackward"
    upstream = normal(*out.shape).to("cuda", product)
    grads = torch.autograd.grad(out, leaves_of(block, x), upstream)
    truth, exact_leaves = truth_of(case, block, x, product)
    exact = torch.autograd.grad(truth, exact_leaves, upstream.double())
    dtypes = [product, *(leaf.dtype for leaf in leaves_of(block, x))]
    for own, expected, of in zip((out, *grads), (truth, *exact), dtypes, strict=True):
        assert (own.dtype, own.shape) == (of, expected.shape)
        assert_close(own, expected, product, activation)
    for own, expected in zip(grads[1:], exact[1:], strict=True):
        assert not own[expected == 0].any()


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_block_is_the_reference(case, activation, precision):
    _compare(case, activation, precision, 3, 11)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("case", IN_TWO_PARTS.values(), ids=IN_TWO_PARTS)
def test_two_parts_of_a_large_weight_are_not_joined(case, activation, precision):
    _compare(case, activation, precision, 3, 11)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_a_large_block_is_the_reference(case, activation, precision):
    _compare(case, activation, precision, 1000)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("start", [128, 704])
def test_lazy_gradients_are_the_live_part_of_dense_ones(start, gated):
    case = Case(SliceOutMLP, 1024, {"d_model": 256, "gated": gated}, (start, 512))
    block = block_of(case, torch.float32, "cuda")
    x, upstream = _x(block, 500).detach(), normal(500, 40).to("cuda", BF16)
    _run(case, block, x, BF16).backward(upstream)
    dense = {name: p.grad for name, p in block.named_parameters()}
    block.zero_grad()
    block.gradients = "lazy"
    _run(case, block, x, BF16).backward(upstream)
    for name, parameter in block.named_parameters():
        found = gradient_of(parameter)
        if found is None:
            assert name == "down.bias"
            assert torch.equal(parameter.grad, dense[name])
            continue
        parts = [dense[name].narrow(found.dim, a, b - a) for a, b in case.draws()[1].pieces]
        torch.testing.assert_close(found.values, torch.cat(parts, found.dim), rtol=1e-5, atol=1e-4)


def _launched(run):
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in found.events()]
    return [n for n in names if "sparsedrop::" in n and "_kernel" in n], names


@pytest.mark.parametrize(
    ("name", "autocast", "count"),
    [("a slice", None, 6), ("rows", None, 6), ("a slice in two parts", BF16, 7), ("rows", BF16, 7)],
)
def test_beside_products_a_step_launches_so_many_kernels(name, autocast, count):
    """Forward the activation; backward the activation again, its gradient, two sums and what zeroes
    the rest. What is gathered under autocast is one more."""
    case = LARGE[name]
    block = block_of(case, torch.float32 if autocast else BF16, "cuda")
    x = _x(block, 512, dtype=torch.float32 if autocast else BF16)
    upstream = normal(512, 512).to("cuda", BF16)

    def step():
        torch.autograd.grad(_run(case, block, x, autocast), leaves_of(block, x), upstream)

    step()
    own, names = _launched(step)
    assert len(own) == count
    assert not {"aten::mm", "aten::addmm", "aten::copy_", "aten::zero_"} & set(names)


@pytest.mark.parametrize("name", LARGE)
def test_a_captured_step_is_the_eager_one(name):
    case = LARGE[name]
    block = block_of(case, BF16, "cuda")
    x = _x(block, 256)
    upstream = normal(256, block.down.out_features).to("cuda", BF16)

    def step():
        out = _run(case, block, x)
        return [out.detach(), *torch.autograd.grad(out, leaves_of(block, x), upstream)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    for own, truth in zip(captured, expected, strict=True):
        assert (own.double() - truth.double()).norm() <= 0.01 * truth.double().norm()


@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP])
def test_half_of_the_units_take_less_than_half_of_the_memory(kind):
    rows, width, hidden = 4096, 512, 4096
    x = normal(rows, width).to("cuda", BF16).requires_grad_()
    dense = nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.5), nn.Linear(hidden, width)
    ).to("cuda", BF16)
    drawn = (64, hidden // 2) if kind is SliceOutMLP else (2, 1)
    case = Case(kind, hidden, {"d_model": width, "d_out": width}, drawn)
    block = block_of(case, BF16, "cuda")

    def peak(run, module):
        for _ in range(2):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            out = run(x)
            grads = torch.autograd.grad(out, [x, *module.parameters()], torch.ones_like(out))
            found = torch.cuda.max_memory_allocated() - before
            del out, grads
        return found

    assert peak(lambda x: _run(case, block, x), block) < 0.45 * peak(dense, dense)
