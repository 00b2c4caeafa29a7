"""Linear layers on a slice in one call each way, on a GPU: against plain slicing."""

import pytest
import torch

from cases import normal
from sparsedrop import slice_out
from stack_cases import BF16, PRECISIONS
from unit_linear_cases import CASES, Case, operands_of, random_case, truth_of

pytestmark = pytest.mark.gpu

LARGE = {
    "many outputs": Case((768, 512), None, True, (1024, 256)),
    "many inputs": Case(None, (768, 512), True, (256, 1024)),
    "many of both": Case((320, 384), (768, 512), True, (512, 1024)),
    "many odd ones": Case((320, 333), (768, 515), True, (512, 1024)),
}


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_a_layer_is_the_reference(case, precision):
    _compare(case, precision)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_two_parts_of_a_large_weight_are_not_joined(case, precision):
    _compare(case, precision)


@pytest.mark.parametrize("seed", range(100, 140))
def test_random_layers(seed):
    _compare(random_case(seed), PRECISIONS[seed % len(PRECISIONS)])


def _compare(case, precision):
    product = precision[2] or precision[0]
    x, layer = operands_of(case, precision, "cuda")
    with torch.autocast("cuda", product, enabled=precision[2] is not None):
        out = slice_out.linear(x, layer.weight, layer.bias, **case.kwargs())
    upstream = normal(*out.shape).to("cuda", product)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], upstream)
    truth, leaves = truth_of(case, x, layer, product)
    exact = torch.autograd.grad(truth, leaves, upstream.double())
    for own, expected in zip((out, *grads), (truth, *exact), strict=True):
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(product).eps * expected.norm()
        assert not own[expected == 0].any()


def test_a_captured_step_is_the_eager_one():
    case = LARGE["many of both"]
    x, layer = operands_of(case, PRECISIONS[0], "cuda")
    upstream = normal(3, 11, 384).to("cuda", BF16)

    def step():
        out = slice_out.linear(x, layer.weight, layer.bias, **case.kwargs())
        return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], upstream)]

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
