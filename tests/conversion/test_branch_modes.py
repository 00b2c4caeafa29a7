"""Sliced branches of convolutions in the ways that people train them."""

import copy

import pytest
import torch
from convolutions import CASES, Inverted, Wide, convert, drawn, masked, run
from networks import found
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from process_group import RANKS, run_in_processes
from slice_cases import drawing
from sparsedrop import Slice, schedules, slice_out


def _model(make=Wide, dtype=torch.float32):
    model, x = make().to(dtype), torch.randn(3, 8, 6, 6, dtype=dtype)
    convert(model, x)
    return model, x


def _both():
    return nn.Sequential(Wide(), Inverted(by_linear=True))


def test_only_live_channels_are_computed():
    """Both convolutions have a slice on one side, of half of the channels."""
    model, x = Wide(), torch.randn(3, 8, 6, 6, requires_grad=True)

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        return counter.get_total_flops()

    before = flops()
    report = convert(model, x)
    assert report.converted[0].expected_speedup == 2.0
    assert 2 * flops() == before


def test_hooks_see_the_slice_and_stay():
    model, x = Wide(), torch.randn(3, 8, 6, 6)
    seen = []
    model.norm2.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    convert(model, x)
    seen.clear()
    model(x), model.eval()(x)
    sparsedrop.revert(model)
    model.train()(x)
    assert seen == [16, 32, 32]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_autocast_and_memory_formats(memory_format):
    """As accurate as the masked dense network, all gradients together."""
    case = CASES["two"]
    original, x = case.make(), torch.randn(3, 8, 6, 6)
    model = copy.deepcopy(original)
    convert(model, x)
    model, x = (each.to(memory_format=memory_format) for each in (model, x))
    torch.manual_seed(3)
    dense = masked(original, case, drawn(case))
    exact = run(copy.deepcopy(dense).double(), x.double())
    results = []
    for each in (model, dense):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(each, x))
    count = 2 + len(list(model.parameters()))
    for own, parameter in zip(results[0][2:count], model.parameters(), strict=True):
        assert (own.dtype, own.stride()) == (torch.float32, parameter.stride())
    ours, torchs = (
        sum((own - truth).square().sum() for own, truth in zip(made[:count], exact, strict=False))
        for made in results
    )
    assert ours <= 4 * torchs


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_of_a_branch_replays_the_draw(reentrant):
    model, x = _model(_both, torch.float64)
    results, state = [], copy.deepcopy(model.state_dict())
    for each in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        model.load_state_dict(state)
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        out = each(leaf)
        model.zero_grad()
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad.clone() for p in model.parameters())])
    assert all(map(torch.equal, *results))


def test_a_part_of_a_branch_cannot_be_run_again():
    model, x = _model()
    hidden = model.norm2(model.conv1(x)).relu()
    model.conv2(hidden)
    with pytest.raises(RuntimeError, match=r"got 16 channels, and 32 of 32 are live now: checkpo"):
        model.conv2(hidden)
    model.conv1(x)  # a step that is not finished
    with pytest.raises(RuntimeError, match=r"got 32 channels, and 16 of 32 are live now: checkpo"):
        model.norm2(torch.randn(3, 32, 6, 6))
    model.eval()
    assert model(x).shape == x.shape
    assert model.train()(x).shape == x.shape


def test_a_batch_norm_in_evaluation_leaves_the_dropout_on():
    original, x = Wide().double(), torch.randn(3, 8, 6, 6).double()
    original(x)
    model = copy.deepcopy(original)
    convert(model, x)
    for each in (model, original):
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    torch.manual_seed(5)
    own = drawn(CASES["wide"])
    expected = run(masked(original, CASES["wide"], own), x)
    torch.manual_seed(5)
    for made, truth in zip(run(model, x), expected, strict=True):
        torch.testing.assert_close(made, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kwargs", [{"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_batch_norms_of_all_kinds(kwargs, compiled):
    original, x = Wide().double(), torch.randn(3, 8, 6, 6).double()
    original.norm2 = nn.BatchNorm2d(32, **kwargs).double()
    model = copy.deepcopy(original)
    convert(model, x)
    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager") if compiled else model
    for seed in range(4):
        torch.manual_seed(seed)
        expected = masked(original, CASES["wide"], drawn(CASES["wide"]))(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(call(x), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_alone_is_compiled():
    """It reads a slice that was drawn outside, and draws another one."""
    case = CASES["chain"]
    original, x = case.make().double(), torch.randn(3, 8, 6, 6).double()
    model = copy.deepcopy(original)
    convert(model, x)
    torch._dynamo.reset()
    model[4].compile(backend="aot_eager")
    for seed in range(4):
        torch.manual_seed(seed)
        expected = run(masked(original, case, drawn(case)), x)
        torch.manual_seed(seed)
        for made, truth in zip(run(model, x)[:8], expected[:8], strict=True):
            torch.testing.assert_close(made, truth, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    model, x = _model(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Dropout(0.5),
                                            nn.Conv2d(8, 2, 1)), torch.float64)  # fmt: skip
    chosen = Slice.at(6, 4, 8)

    def call(x, weight):
        with drawing(chosen):
            return torch.func.functional_call(model, {"3.weight": weight}, (x,))

    weight = model[3].weight.detach().clone().requires_grad_()
    x = x[:1, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(call, (x, weight))


def test_two_passes_before_the_backward_passes():
    model, x = _model(_both, torch.float64)
    torch.manual_seed(0)
    state = copy.deepcopy(model.state_dict())
    first = model(x).square().sum()
    second = model(x + 1).square().sum()
    together = torch.autograd.grad(first + second, list(model.parameters()))
    model.load_state_dict(state)
    torch.manual_seed(0)
    apart = [
        torch.autograd.grad(model(inputs).square().sum(), list(model.parameters()))
        for inputs in (x, x + 1)
    ]
    for own, one, two in zip(together, *apart, strict=True):
        torch.testing.assert_close(own, one + two, rtol=1e-12, atol=1e-12)


def test_rates():
    model, x = _model(_both)
    layers = 6
    schedule = schedules.off_for_the_last(schedules.linear(0.2, 0.6, 8), 10, 2)
    widths = []
    model[0].norm2.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    for step in range(10):
        assert sparsedrop.set_rate(model, schedule(step)) == layers
        model(x).sum().backward()
    assert widths[-2:] == [32, 32]
    assert sorted(widths[:8], reverse=True) == widths[:8]
    assert (widths[0], widths[7]) == (24, 16)
    with pytest.raises(ValueError, match="p must be below 1: a slice keeps some units"):
        sparsedrop.set_rate(model, 1.0)
    assert model[0].drop.p == model[0].conv2.p == 0.0
    model[0].drop.p = 0.5
    assert model[0].conv1.p == model[0].conv2.p == 0.5
    report = convert(_both(), x, p=0.25)
    assert [entry.expected_speedup for entry in report.converted] == [32 / 24] * 2
    report = convert(_both(), x, min_speedup=3)
    assert report.converted == ()
    assert report.skipped[0].reason.startswith("expected to gain less than min_speedup=3: 2.00 tim")


def test_the_statistics_of_the_full_network():
    """Behind the slice the variance is that of larger sums, until it is measured anew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(64, 8, 1),
                          nn.BatchNorm2d(8))  # fmt: skip
    x = torch.randn(32, 8, 6, 6)
    convert(model, x)
    for _ in range(100):
        model(x)
    sliced = model[4].running_var.clone()
    assert slice_out.recalibrate_bn(model, [x]) == 1
    model.eval()
    normal = model(x)
    assert (normal.var((0, 2, 3)) - 1).abs().max() < 0.05
    assert (sliced / model[4].running_var).mean() > 1.2


def _ddp(device):
    """Each rank draws slices of its own; gradients are dense, and those of the mean."""
    torch.manual_seed(0)
    model, x = _model(_both, torch.float64)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model), broadcast_buffers=False)
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    wrapped(x).square().sum().backward()
    mean = [torch.zeros_like(p) for p in model.parameters()]
    for seed in range(RANKS):
        torch.manual_seed(seed)
        each = copy.deepcopy(model)
        each(x).square().sum().backward()
        for total, parameter in zip(mean, each.parameters(), strict=True):
            total += parameter.grad / RANKS
    for parameter, expected in zip(wrapped.parameters(), mean, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-12)


def _ddp_first(device):
    model, x = nn.parallel.DistributedDataParallel(Wide()), torch.randn(3, 8, 6, 6)
    assert found(convert(model, x)) == [("module", "conv")]
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert sparsedrop.revert(model) == 2


@pytest.mark.parametrize("function", [_ddp, _ddp_first])
def test_in_a_process_group(function, tmp_path):
    run_in_processes(function, "cpu", tmp_path)
