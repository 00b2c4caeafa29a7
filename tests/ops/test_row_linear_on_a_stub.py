"""Linear layers between row patterns in one call each way, without a GPU: against the reference."""

import pytest
import torch
from torch import nn

from cases import normal
from row_linear_cases import CASES, random_case, run_and_compare
from sparsedrop import RowPattern
from sparsedrop.ops import rows
from sparsedrop.ops.rows.linear import linear_plain
from stack_cases import BF16, PRECISIONS

pytestmark = pytest.mark.usefixtures("poisoned_gpu")


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_is_the_reference_in_one_call_each_way(launches, case, precision):
    run_and_compare(case, precision)
    assert len(launches) == 3  # two passes back


@pytest.mark.parametrize("seed", range(40))
def test_random_layers(seed):
    run_and_compare(random_case(seed), PRECISIONS[seed % len(PRECISIONS)])


def test_what_is_read_may_have_gaps():
    make, read = RowPattern(40, 3, 0), RowPattern(40, 3, 1)
    first, second = (nn.Linear(40, 40).to(dtype=BF16) for _ in range(2))
    x = normal(4, 40).to(BF16)
    between = rows.linear(x, first.weight, first.bias, None, make, 1.0)
    assert not between.is_contiguous()
    of = second.weight, second.bias, RowPattern(40, 3, 0), read
    out = rows.linear(between, *of, 1.0)
    expected = rows.linear(between.contiguous(), *of, 1.0)
    assert torch.equal(out, expected)


def test_a_wrong_x_is_torchs_error():
    make, layer = RowPattern(48, 2, 0), nn.Linear(64, 48).to(dtype=BF16)
    x = normal(6, 32).to(BF16)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rows.linear(x, layer.weight, layer.bias, None, make, 1.0)


def test_a_pattern_that_keeps_nothing_leaves_the_bias():
    read, layer = RowPattern(4, 8, 6), nn.Linear(4, 24).to(dtype=BF16)
    assert read.count == 0
    out = rows.linear(torch.empty(5, 0, dtype=BF16), layer.weight, layer.bias, read, None, 2.0)
    assert torch.equal(out, layer.bias.expand(5, 24))


def test_saved_tensors_may_come_back_turned():
    sides = RowPattern(16, 2, 0), RowPattern(24, 5, 1)
    layer = nn.Linear(16, 24).to(dtype=BF16)
    x = normal(7, 8).to(BF16).requires_grad_()

    def turned(tensor):
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor

    def gradients(unpack):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            out = rows.linear(x, layer.weight, layer.bias, *sides, 1.0)
        return torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])

    for own, expected in zip(gradients(turned), gradients(lambda t: t), strict=True):
        assert torch.equal(own, expected)


def test_a_result_may_be_changed_in_place():
    make, layer = RowPattern(40, 3, 0), nn.Linear(16, 40).to(dtype=BF16)
    x = normal(4, 16).to(BF16)
    out = rows.linear(x, layer.weight, layer.bias, None, make, 1.0)
    positive = out.detach() > 0
    assert 0 < positive.sum() < positive.numel()
    torch.relu_(out).sum().backward()
    expected = torch.zeros(40)
    expected[make.kept] = positive.sum(0).float()
    assert torch.equal(layer.bias.grad.float(), expected)


def test_second_derivatives_are_those_of_plain_operations():
    sides = RowPattern(16, 3, 0), RowPattern(24, 5, 1)
    read, make = sides
    layer = nn.Linear(16, 24).to(dtype=BF16)
    x = normal(7, read.count).to(BF16).requires_grad_()
    leaves = [x, *layer.parameters()]

    def penalty(out):
        first = torch.autograd.grad(out.float().square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves)

    own = penalty(rows.linear(x, layer.weight, layer.bias, read, make, 2.0))
    plain = penalty(linear_plain(x, layer.weight, layer.bias, sides, 2.0))
    for found, expected in zip(own, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max())


def test_a_batch_of_gradients_goes_the_long_way():
    read, make = RowPattern(16, 3, 0), RowPattern(24, 5, 1)
    layer = nn.Linear(16, 24).to(dtype=BF16)
    x = normal(7, read.count).to(BF16).requires_grad_()
    out = rows.linear(x, layer.weight, layer.bias, read, make, 2.0)
    upstream = normal(3, *out.shape).to(BF16)
    (batched,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
    for own, grad in zip(batched, upstream, strict=True):
        (expected,) = torch.autograd.grad(out, x, grad, retain_graph=True)
        torch.testing.assert_close(own, expected, rtol=0.02, atol=0.05)
