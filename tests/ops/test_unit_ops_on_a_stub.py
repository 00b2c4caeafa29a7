"""The ops of compiled programs in one call each way, without a GPU: against the nodes of eager
mode."""

import pytest
import torch

from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop.nn import SliceOutMLP
from sparsedrop.ops.slices import op as slice_op
from stack_cases import BF16, F16, F32
from unit_cases import CASES, Case, block_of, leaves_of, run
from unit_linear_cases import ON_ONE_SIDE, operands_of, truth_of

# What is kept of the others has rows of whole vectors, for which programs have no room.
WHOLE = {
    name: case
    for name, case in CASES.items()
    if (case.drawn[1] % 8 == 0 if case.kind is SliceOutMLP else case.units >= 8)
}
PRECISIONS = [(BF16, BF16), (F16, F16), (BF16, F32)]
pytestmark = pytest.mark.usefixtures("poisoned_gpu")


def _ops(case, block, x, grad, needs):
    """The result of the op, and the gradients of `leaves_of` that are needed."""
    ops, activation = torch.ops.sparsedrop, block.activation or ""
    drawing, drawn = case.draws()
    up, gate, down = block.up, block.gate, block.down
    gates = [] if gate is None else [gate.weight, gate.bias]
    with drawing, torch.no_grad():
        if case.kind is SliceOutMLP:
            parameters = [*gates, up.weight, up.bias, down.weight, down.bias]
            how = activation, block.p, block.align, block.starts, block.normalization
            out, start, *kept = ops.slice_out_mlp(x, parameters, *how)
            given = [True, *(needs[p] for p in parameters)]
            grads = ops.slice_out_mlp_backward(grad, x, parameters, start, kept, *how, given)
        else:
            parameters = [up.weight, up.bias, *(gates or (None, None)), down.weight, down.bias]
            pattern = torch.tensor([drawn.period, drawn.offset])
            how = pattern, activation, None if block.scale == "pattern" else case.scale(block)
            flat = x.flatten(0, -2)
            out, *kept = ops.row_pattern_mlp(flat, parameters, *how)
            given = [True, *(needs[p] for p in parameters)]
            flat_grad = grad.flatten(0, -2)
            grads = ops.row_pattern_mlp_backward(flat_grad, flat, parameters, kept, *how, given)
    found = dict(zip(parameters, grads[1:], strict=True))
    return out, grads[0], found


@pytest.mark.parametrize("activation", ["relu", "gelu", None])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", WHOLE.values(), ids=WHOLE)
def test_they_are_the_node(case, precision, activation, launches):
    dtype, param_dtype = precision
    block = block_of(case, param_dtype, activation=activation)
    x = normal(3, 11, 24).to(dtype).requires_grad_()
    out = run(case, block, x, dtype)
    upstream = normal(*out.shape).to(dtype)
    leaves = leaves_of(block, x)
    grads = torch.autograd.grad(out, leaves, upstream)
    launches.clear()
    needs = dict.fromkeys((*block.parameters(), None), True)
    made, of_x, found = _ops(case, block, x.detach(), upstream, needs)
    # Gathered weights are not kept, and so gathered again.
    assert len(launches) in (2, 3)
    assert torch.equal(made.view_as(out), out)
    assert torch.equal(of_x.view_as(x), grads[0])
    for parameter, exact in zip(leaves[1:], grads[1:], strict=True):
        assert torch.equal(found[parameter], exact)
        assert found[parameter].stride() == parameter.stride()


@pytest.mark.parametrize("name", ["a gated slice in two parts", "gated rows"])
def test_only_wanted_gradients_are_made(name):
    case = CASES[name]
    block = block_of(case, BF16)
    x, grad = normal(33, 24).to(BF16), normal(33, 40).to(BF16)
    parameters = list(block.parameters())
    *_, full = _ops(case, block, x, grad, dict.fromkeys((*parameters, None), True))
    for one in parameters:
        *_, found = _ops(case, block, x, grad, {p: p is one for p in (*parameters, None)})
        assert torch.equal(found[one], full[one])
        assert all(not found[p].numel() for p in parameters if p is not one)


@pytest.mark.parametrize("name", ["a slice in two parts", "rows"])
def test_how_tensors_lie_changes_nothing(name):
    """Hooks around saved tensors may bring them back in another layout."""
    case = CASES[name]
    block = block_of(case, BF16)
    x, grad = normal(33, 24).to(BF16), normal(33, 40).to(BF16)
    needs = dict.fromkeys((*block.parameters(), None), True)
    expected = _ops(case, block, x, grad, needs)
    found = _ops(case, block, x.t().contiguous().t(), grad.t().contiguous().t(), needs)
    assert all(map(torch.equal, found[:2], expected[:2]))
    assert all(torch.equal(found[2][p], expected[2][p]) for p in block.parameters())
    for weight in (block.up.weight, block.down.weight):
        is_turned = weight.t().is_contiguous()
        weight.data = weight.data.contiguous() if is_turned else weight.data.t().contiguous().t()
    found = _ops(case, block, x, grad, needs)
    assert all(map(torch.equal, found[:2], expected[:2]))
    assert all(torch.equal(found[2][p], expected[2][p]) for p in block.parameters())


def test_autocast_around_one_of_them_changes_nothing(launches):
    """A backward pass runs outside of the region in which the forward pass ran."""
    case = CASES["a slice in two parts"]
    block = block_of(case, F16)
    x, grad = normal(33, 24).to(F16), normal(33, 40).to(F16)
    needs = dict.fromkeys(block.parameters(), True)
    expected = _ops(case, block, x, grad, needs)
    with autocast_on_stub(BF16):
        found = _ops(case, block, x, grad, needs)
    assert all(map(torch.equal, found[:2], expected[:2]))
    assert all(torch.equal(found[2][p], expected[2][p]) for p in needs)
    assert launches == [4, 1, 9] * 2


@pytest.mark.parametrize("change", ["float32", "odd width", "factors"])
def test_what_is_unusual_goes_the_long_way(change, launches):
    kwargs = {"factors": {"starts": "all", "normalization": "probabilistic"}}.get(change, {})
    width = 11 if change == "odd width" else 24
    case = Case(SliceOutMLP, 48, {"align": 1, "p": 1 - width / 48, **kwargs}, (20, width))
    dtype = F32 if change == "float32" else BF16
    block = block_of(case, dtype)
    needs = dict.fromkeys(block.parameters(), True)
    out, *_ = _ops(case, block, normal(33, 24).to(dtype), normal(33, 40).to(dtype), needs)
    assert launches == []
    assert out.isfinite().all()


@pytest.mark.parametrize("case", ON_ONE_SIDE.values(), ids=ON_ONE_SIDE)
def test_linear_layers_are_one_call_each_way(case, launches):
    x, layer = operands_of(case, (BF16, BF16, None))
    on_rows = case.cols is None
    start, width = case.rows if on_rows else case.cols
    how = torch.tensor(start), on_rows, case.features[0 if on_rows else 1], width, 1, 1.0
    given = x.detach(), layer.weight, layer.bias, *how
    with torch.no_grad():
        out = torch.ops.sparsedrop.slice_out_linear(*given)
        upstream = normal(*out.shape).to(BF16)
        needs = [True, True, layer.bias is not None]
        grads = slice_op.LINEAR_BACKWARD(upstream, *given, needs)
    truth, leaves = truth_of(case, x, layer, BF16)
    exact = torch.autograd.grad(truth, leaves, upstream.double())
    for own, expected in zip((out, *grads), (truth, *exact), strict=False):
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(BF16).eps * expected.norm()
        assert own.is_contiguous()
    assert len(launches) == 2
