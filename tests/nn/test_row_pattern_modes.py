"""RowPatternMLP in what PyTorch does with modules."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from row_cases import drawing
from sparsedrop import RowPattern
from sparsedrop.nn import RowPatternMLP

BLOCKS = {"plain": {}, "gated": {"gated": True, "scale": "pattern", "bias": False}}


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS)
def block(request, device):
    return RowPatternMLP(12, 27, 20, activation="silu", **request.param).to(device, torch.float64)


def _run(function, block, x, seed=3):
    """The result and all gradients of one draw."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    out = function(x)
    grads = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
    return [out.detach(), *grads]


def _assert_same(ours, theirs, tolerance=1e-11):
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def _x(block, *shape):
    return torch.randn(*shape, 12, dtype=torch.float64, device=block.up.weight.device)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_plain_ones(block, reentrant):
    x = _x(block, 5)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)
    out = checkpoint(block, leaf, use_reentrant=reentrant)
    out.square().sum().backward()
    again = [out.detach(), leaf.grad, *(p.grad for p in block.parameters())]
    _assert_same(again, _run(block, block, x))


def test_compiled_it_draws_anew_without_compiling_again(block):
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    x = _x(block, 2, 5)
    outs = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(12):
            ours = _run(compiled, block, x, seed)
            _assert_same(ours, _run(block, block, x, seed))
            outs.append(ours[0])
    assert len({tuple(out.flatten().tolist()) for out in outs}) > 5


def test_compiled_and_checkpointed(block):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x):
        return checkpoint(block, x, use_reentrant=False)

    x = _x(block, 5)
    for seed in range(4):
        _assert_same(_run(run, block, x, seed), _run(block, block, x, seed))


@pytest.mark.parametrize("how", ["hook", "replaced"])
@pytest.mark.parametrize("compiled", [False, True])
def test_modules_with_hooks_or_of_other_kinds_are_called(block, how, compiled):
    torch._dynamo.reset()
    plain = copy.deepcopy(block)
    if how == "hook":
        block.up.register_forward_hook(lambda module, args, out: 2 * out)
        plain.up.load_state_dict({k: 2 * v for k, v in plain.up.state_dict().items()})
    else:
        block.down = nn.Sequential(block.down, nn.Hardtanh(-1e-3, 1e-3))
    function = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
    x = _x(block, 6)
    for seed in range(5):
        torch.manual_seed(seed)
        out = function(x)
        torch.manual_seed(seed)
        expected = plain(x) if how == "hook" else plain(x).clamp(-1e-3, 1e-3)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_autocast_casts_inside_and_gives_gradients_in_float32(device):
    block = RowPatternMLP(32, 64, gated=True).to(device)
    x = torch.randn(16, 32, device=device, requires_grad=True)
    kind, rows = device.type, RowPattern(64, 2, 1)
    with torch.autocast(kind, torch.bfloat16), drawing(rows):
        out = block(x)
    assert out.dtype == torch.bfloat16
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *block.parameters()], upstream)
    assert {grad.dtype for grad in ours} == {torch.float32}
    with drawing(rows):
        exact = torch.autograd.grad(block(x), [x, *block.parameters()], upstream.float())
    for own, truth in zip(ours, exact, strict=True):
        assert (own - truth).norm() < 0.02 * truth.norm()
    # A backward pass within autocast computes what one outside does.
    with torch.autocast(kind, torch.bfloat16):
        with drawing(rows), torch.autocast(kind, enabled=False):
            out = block(x)
        inside = torch.autograd.grad(out, list(block.parameters()), upstream.float())
    assert all(torch.equal(own, truth) for own, truth in zip(inside, exact[1:], strict=True))


def test_transforms_of_torch_func(block):
    x = _x(block, 4)
    parameters = dict(block.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(block, parameters, (x,)).square().sum()

    torch.manual_seed(3)
    found = torch.func.grad(loss)(parameters, x)
    expected = _run(block, block, x)
    _assert_same(found.values(), expected[2:])
    with drawing(RowPattern(27, 2, 0), RowPattern(27, 2, 0)):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        sums = torch.func.grad(loss)(parameters, x)
    _assert_same([grad.sum(0) for grad in each.values()], sums.values())


def test_only_what_needs_a_gradient_gets_one(block):
    block.up.weight.requires_grad_(False)
    with drawing(RowPattern(27, 3, 2)):
        block(_x(block, 4)).sum().backward()
    assert block.up.weight.grad is None
    assert block.down.weight.grad.any()
    with torch.no_grad():
        assert not block(_x(block, 4)).requires_grad


def test_the_kept_units_alone_are_counted():
    block = RowPatternMLP(16, 64)
    with FlopCounterMode(display=False) as counter, drawing(RowPattern(64, 4, 0)):
        block(torch.randn(8, 16))
    assert counter.get_total_flops() == 2 * 2 * 8 * 16 * 16


def test_a_backward_pass_that_is_watched_alone(block):
    x, rows = _x(block, 4), RowPattern(27, 3, 1)
    with drawing(rows, rows):
        outs = block(x), block(x)
    expected = torch.autograd.grad(outs[0].square().sum(), list(block.parameters()))
    with FlopCounterMode(display=False) as counter:
        found = torch.autograd.grad(outs[1].square().sum(), list(block.parameters()))
    assert counter.get_total_flops() > 0
    assert not any(grad.requires_grad for grad in found)
    _assert_same(found, expected)


def test_no_leading_extent_an_empty_batch_and_strides(block):
    rows = RowPattern(27, 2, 1)
    x = _x(block, 6)
    with drawing(*[rows] * 4):
        out = block(x)
        torch.testing.assert_close(block(x[0]), out[0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(block(x.t().contiguous().t()), out, rtol=1e-11, atol=1e-11)
        empty = block(x[:0])
    assert empty.shape == (0, 20)
    empty.sum().backward()
    assert not block.up.weight.grad.any()


def test_copies_and_pickles_are_blocks(block):
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    x = _x(block, 4)
    for other in (copy.deepcopy(block), torch.load(buffer, weights_only=False)):
        assert other.down.weight.stride() == block.down.weight.stride()
        _assert_same(_run(other, other, x), _run(block, block, x))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_step_as_on_the_dense_layout(optimizer):
    block = RowPatternMLP(12, 27, 20)
    other = copy.deepcopy(block)
    other.turned = False
    for each in (block, other):
        steps = optimizer(each.parameters(), lr=0.1)
        torch.manual_seed(5)
        for _ in range(5):
            each(torch.randn(4, 12)).square().sum().backward()
            steps.step()
            steps.zero_grad()
    _assert_same(block.parameters(), other.parameters(), 1e-4)


def test_an_exported_program_draws(block):
    program = torch.export.export(block, (_x(block, 4),)).module()
    x = _x(block, 4)
    for seed in range(4):
        torch.manual_seed(seed)
        out = program(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(out, block(x), rtol=1e-11, atol=1e-11)
