"""Blocks of slices and row patterns in one call each way, without a GPU: against the reference."""

import pytest
import torch

from cases import normal
from sparsedrop.nn import RowPatternMLP, SliceOutMLP
from sparsedrop.ops.slices.gradients import gradient_of
from stack_cases import BF16, F16, F32, PRECISIONS
from unit_cases import CASES, IN_TWO_PARTS, Case, assert_close, block_of, leaves_of, run, truth_of

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
pytestmark = pytest.mark.usefixtures("poisoned_gpu")


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_block_is_the_reference(case, activation, precision):
    _compare(case, activation, precision)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("case", IN_TWO_PARTS.values(), ids=IN_TWO_PARTS)
def test_two_parts_of_a_large_weight_are_not_joined(case, activation, precision):
    _compare(case, activation, precision)


def _compare(case, activation, precision):
    x_dtype, dtype, autocast = precision
    product = autocast or x_dtype
    block = block_of(case, dtype, activation=activation)
    x = normal(3, 11, 24).to(x_dtype).requires_grad_()
    out = run(case, block, x, autocast)
    assert type(out.grad_fn).__name__ == "_BlockBackward"
    upstream = normal(*out.shape).to(product)
    grads = torch.autograd.grad(out, leaves_of(block, x), upstream, retain_graph=True)
    truth, exact_leaves = truth_of(case, block, x, product)
    exact = torch.autograd.grad(truth, exact_leaves, upstream.double())
    dtypes = [product, *(leaf.dtype for leaf in leaves_of(block, x))]
    for own, expected, of in zip((out, *grads), (truth, *exact), dtypes, strict=True):
        assert (own.dtype, own.shape) == (of, expected.shape)
        assert_close(own, expected, product, activation)
    for own, expected in zip(grads[1:], exact[1:], strict=True):
        assert not own[expected == 0].any()
    of_down, down = grads[-1 if block.down.bias is None else -2], block.down.weight
    assert of_down.t().is_contiguous() == down.t().is_contiguous()
    # Nothing that was kept has changed.
    again = torch.autograd.grad(out, leaves_of(block, x), upstream)
    assert all(map(torch.equal, grads, again))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_wanted_gradients_are_made(case, activation):
    block = block_of(case, BF16, activation=activation)
    x = normal(33, 24).to(BF16).requires_grad_()
    leaves = leaves_of(block, x)
    upstream = normal(33, block.down.out_features).to(BF16)
    full = torch.autograd.grad(run(case, block, x), leaves, upstream)
    for i, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (alone,) = torch.autograd.grad(run(case, block, x), [leaf], upstream)
        assert torch.equal(alone, full[i])


@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[2], PRECISIONS[3]], ids=str)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("start", [8, 40])
def test_lazy_gradients_are_the_live_part_of_dense_ones(start, gated, precision):
    x_dtype, dtype, autocast = precision
    case = Case(SliceOutMLP, 48, {"gated": gated}, (start, 24))
    block = block_of(case, dtype)
    x = normal(33, 24).to(x_dtype)
    upstream = normal(33, 40).to(autocast or x_dtype)
    run(case, block, x, autocast).backward(upstream)
    dense = {name: p.grad for name, p in block.named_parameters()}
    block.zero_grad()
    block.gradients = "lazy"
    out = run(case, block, x, autocast)
    assert type(out.grad_fn).__name__ == "_BlockBackward"
    out.backward(upstream)
    live = case.draws()[1].pieces
    for name, parameter in block.named_parameters():
        if name == "down.bias":
            assert torch.equal(parameter.grad, dense[name])
            continue
        found, dim = gradient_of(parameter), int(name == "down.weight")
        assert parameter.grad is None
        assert (found.dim, found.pieces) == (dim, live)
        parts = [dense[name].narrow(dim, start, stop - start) for start, stop in live]
        assert torch.equal(found.values, torch.cat(parts, dim))
    with pytest.raises(RuntimeError, match='gradients="lazy" has no second derivatives'):
        torch.autograd.grad(run(case, block, x, autocast).sum(), [block.down.bias],
                            create_graph=True)  # fmt: skip


def test_each_way_is_one_call(launches):
    for name, precision, steps in (
        # Products and what is between them; backward also sums, and fills.
        ("a slice", PRECISIONS[0], [3, 9]),
        # Which is gathered first.
        ("a slice in two parts", PRECISIONS[0], [4, 9]),
        ("a slice in two parts", PRECISIONS[3], [4, 9]),
        ("a gated slice, no bias", PRECISIONS[0], [4, 9]),
        ("rows", PRECISIONS[0], [3, 9]),
    ):
        launches.clear()
        case, (x_dtype, dtype, autocast) = CASES[name], precision
        x = normal(33, 24).to(x_dtype).requires_grad_()
        run(case, block_of(case, dtype), x, autocast).sum().backward()
        assert launches == steps


@pytest.mark.parametrize("name", ["a slice", "a slice in two parts", "rows"])
@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[3]], ids=str)
def test_weights_may_not_change_before_the_backward_pass(name, precision):
    case, (x_dtype, dtype, autocast) = CASES[name], precision
    block = block_of(case, dtype)
    out = run(case, block, normal(33, 24).to(x_dtype), autocast)
    with torch.no_grad():
        block.up.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_without_gradients_a_block_is_one_call_too():
    case = CASES["gated rows"]
    block = block_of(case, F16)
    x = normal(33, 24).to(F16)
    with torch.no_grad():
        out = run(case, block, x)
    assert out.grad_fn is None
    assert torch.equal(out, run(case, block, x).detach())


def test_what_is_unusual_goes_the_long_way():
    def goes(case, x, dtype=BF16, change=lambda block: None, **kwargs):
        block = block_of(case, dtype, **kwargs)
        change(block)
        return type(run(case, block, x).grad_fn).__name__ == "_BlockBackward"

    def wider(block):
        block.up.bias.data = block.up.bias.data.double()

    def straight(block):
        block.turned = False

    a_slice, rows, x = CASES["a slice"], CASES["rows"], normal(33, 24).to(BF16)
    assert goes(a_slice, x)
    assert goes(rows, x)
    assert not goes(a_slice, normal(24, 33).to(BF16).t())
    assert not goes(a_slice, normal(33, 24).float(), F32)
    assert not goes(a_slice, x[:0])
    assert not goes(rows, x, change=straight)
    odd = CASES["a slice of odd places"]
    assert goes(odd, x)
    assert not goes(odd, x, gradients="lazy")
    aligned = {"starts": "aligned", "normalization": "probabilistic"}
    assert not goes(a_slice, x, **aligned)
    block = block_of(a_slice, BF16)
    wider(block)
    with pytest.raises(ValueError, match=r"is torch\.float64"):
        run(a_slice, block, x)


@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP])
def test_draws_differ_and_repeat_by_seed(kind):
    block = kind(24, 256).to(BF16)
    x = normal(5, 24).to(BF16)

    def outs():
        torch.manual_seed(1)
        return [block(x) for _ in range(8)]

    first, second = outs(), outs()
    assert all(map(torch.equal, first, second))
    assert len({tuple(out.flatten().tolist()) for out in first}) > 2
