"""Linear layers on a slice in one call each way, without a GPU: against the reference."""

import pytest
import torch

from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import slice_out
from sparsedrop.ops.slices.gradients import gradient_of
from sparsedrop.ops.slices.products import Cut
from sparsedrop.slice_out.layers import run_linear
from stack_cases import BF16, PRECISIONS
from unit_linear_cases import CASES, ON_ONE_SIDE, operands_of, random_case, truth_of

pytestmark = pytest.mark.usefixtures("poisoned_gpu")


def _run(case, precision, x, layer):
    with autocast_on_stub(precision[2]):
        return slice_out.linear(x, layer.weight, layer.bias, **case.kwargs())


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_is_the_reference_in_one_call_each_way(launches, case, precision):
    _compare(launches, case, precision)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_parts_of_a_large_weight_are_not_joined(launches, case, precision):
    _compare(launches, case, precision)


def _compare(launches, case, precision):
    product = precision[2] or precision[0]
    x, layer = operands_of(case, precision)
    out = _run(case, precision, x, layer)
    upstream = normal(*out.shape).to(product)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], upstream)
    assert len(launches) == 2
    truth, leaves = truth_of(case, x, layer, product)
    exact = torch.autograd.grad(truth, leaves, upstream.double())
    dtypes = [product, x.dtype, *(p.dtype for p in layer.parameters())]
    for own, expected, of in zip((out, *grads), (truth, *exact), dtypes, strict=True):
        assert (own.dtype, own.shape) == (of, expected.shape)
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(product).eps * expected.norm()
        assert not own[expected == 0].any()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_wanted_gradients_are_made(case):
    x, layer = operands_of(case, PRECISIONS[2])
    leaves = [x, *layer.parameters()]
    out = _run(case, PRECISIONS[2], x, layer)
    upstream = normal(*out.shape).to(BF16)
    full = torch.autograd.grad(out, leaves, upstream)
    for leaf, expected in zip(leaves, full, strict=True):
        for other in leaves:
            other.requires_grad_(other is leaf)
        out = _run(case, PRECISIONS[2], x, layer)
        assert torch.equal(torch.autograd.grad(out, [leaf], upstream)[0], expected)


@pytest.mark.parametrize("seed", range(40))
def test_random_layers(launches, seed):
    _compare(launches, random_case(seed), PRECISIONS[seed % len(PRECISIONS)])


@pytest.mark.parametrize("case", [CASES["outputs"], CASES["odd numbers of both"]], ids=str)
def test_a_batch_of_gradients_goes_the_long_way(case):
    x, layer = operands_of(case, PRECISIONS[0])
    leaves = [x, *layer.parameters()]
    out = _run(case, PRECISIONS[0], x, layer)
    upstream = normal(3, *out.shape).to(BF16)
    found = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(upstream):
        expected = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        for own, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(own[i], truth, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("where", ["x", "the bias"])
def test_extents_that_do_not_fit_are_torchs_error(where):
    x, layer = operands_of(CASES["odd numbers of both"], PRECISIONS[0])
    cut = Cut(*(own.pieces for own in CASES["odd numbers of both"].chosen))
    x = x[..., :-1] if where == "x" else x
    bias = layer.bias[:-1] if where == "the bias" else layer.bias
    with pytest.raises((RuntimeError, ValueError), match=r"shape|extents|size"):
        run_linear(x, layer.weight, bias, cut)


def test_what_is_read_may_have_gaps(launches):
    x, layer = operands_of(CASES["an odd number of outputs"], PRECISIONS[0])
    cut = Cut(CASES["an odd number of outputs"].chosen[0].pieces)
    between = run_linear(x, layer.weight, layer.bias, cut)
    assert not between.is_contiguous()
    assert _run(CASES["an odd number of outputs"], PRECISIONS[0], x, layer).is_contiguous()
    second = torch.nn.Linear(40, 24).to(dtype=BF16)
    out = run_linear(between, second.weight, second.bias, cut.turned)
    assert len(launches) == 3
    expected = run_linear(between.contiguous(), second.weight, second.bias, cut.turned)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("case", ON_ONE_SIDE.values(), ids=ON_ONE_SIDE)
def test_lazy_gradients_are_the_live_part_of_dense_ones(case):
    x, layer = operands_of(case, PRECISIONS[2])
    cut = Cut(*(None if own is None else own.pieces for own in case.chosen))
    dim = 0 if case.cols is None else 1
    pieces = cut[dim]

    def step(lazy):
        with autocast_on_stub(BF16):
            out = run_linear(x, layer.weight, layer.bias, cut, 2.0, lazy)
        out.backward(torch.full_like(out, 0.5))
        return x.grad

    expected = step(False).clone()
    dense = [p.grad for p in layer.parameters()]
    x.grad = None
    layer.zero_grad()
    assert torch.equal(step(True), expected)
    for i, (parameter, whole) in enumerate(zip(layer.parameters(), dense, strict=True)):
        if i == 1 and dim == 1:
            assert torch.equal(parameter.grad, whole)
            continue
        found = gradient_of(parameter)
        assert (parameter.grad, found.pieces, found.dim) == (None, pieces, dim)
        parts = [whole.narrow(dim, start, stop - start) for start, stop in pieces]
        torch.testing.assert_close(found.values, torch.cat(parts, dim))
