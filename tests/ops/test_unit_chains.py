"""Converted layers behind one another by one node, on a GPU: against the masked model."""

import pytest
import torch

from sparsedrop.ops.units.chain import _Chain
from stack_cases import BF16, PRECISIONS
from unit_chain_cases import CASES, ROWS, SLICES, Case, one_by_one, random_case, run_and_compare

pytestmark = pytest.mark.gpu

LARGE = {
    "the paper's, slices": Case(SLICES, (784, 2048, 2048, 10), ("relu", "relu"), 0.7),
    "the paper's, rows": Case(ROWS, (784, 2048, 2048, 10), ("relu", "relu"), 0.7),
    "weights that are not copied": Case(SLICES, (256, 4096, 4096, 256), ("gelu", "relu"), 0.3),
}


@pytest.mark.parametrize("precision", PRECISIONS[:4], ids=str)
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_a_chain_is_the_masked_model_by_one_node(case, precision):
    out, *_ = run_and_compare(case, precision, "cuda")
    assert isinstance(out.grad_fn, _Chain._backward_cls)


@pytest.mark.parametrize("seed", range(100, 140))
def test_random_chains(seed):
    run_and_compare(random_case(seed), PRECISIONS[seed % 4], "cuda", seed)


@pytest.mark.parametrize("method", [SLICES, ROWS])
def test_a_step_in_a_graph_is_the_step(method):
    case = Case(method, (64, 256, 192, 16), ("relu", "gelu"))
    model = case.model("cuda", BF16)
    x = torch.randn(96, 64, device="cuda", dtype=BF16)

    def step():
        torch.default_generator.manual_seed(7)  # of the host, where units are drawn
        model.zero_grad()
        out = model(x)
        out.float().square().mean().backward()
        return out

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    grads = [p.grad for p in model.parameters()]
    x.normal_()
    graph.replay()
    found = [out.clone(), *(g.clone() for g in grads)]
    out = step()
    for own, expected in zip(found, (out, *(p.grad for p in model.parameters())), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("method", [SLICES, ROWS])
def test_units_are_drawn_as_one_by_one(method):
    case = Case(method, (64, 256, 192, 16), ("relu", "gelu"))
    model = case.model("cuda", BF16)
    x = torch.randn(96, 64, device="cuda", dtype=BF16)
    grads = []
    for each in (model, one_by_one(model)):
        torch.manual_seed(7)
        each.zero_grad()
        each(x).float().square().mean().backward()
        grads.append([p.grad for p in each.parameters()])
    for own, theirs in zip(*grads, strict=True):
        assert torch.equal(own == 0, theirs == 0)
