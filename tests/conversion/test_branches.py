"""Branches of convolutions by SliceOut: every slice is the masked dense network."""

import copy
import io

import pytest
import torch
from convolutions import CASES, convert, drawn, every, masked, run
from networks import found
from torch import nn

import sparsedrop
from sparsedrop.conversion.channels import PassingBatchNorm2d, align_for
from sparsedrop.nn.rated import Rated

WITH_CASES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _converted(case, dtype=torch.float32):
    """The original, its converted copy, and what both are given."""
    original, x = case.make().to(dtype), torch.randn(3, 8, 6, 6, dtype=dtype)
    model = copy.deepcopy(original)
    report = convert(model, x)
    assert found(report) == list(case.sites)
    assert report.skipped == ()
    return original, model, x


def _slices_of_norms(model, own):
    """The names of the statistics of batch norms between sliced layers, with their slices."""
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, PassingBatchNorm2d)]
    handovers = list(dict.fromkeys(module.handover for _, module in norms))
    return {
        f"{name}.{kind}": own[handovers.index(module.handover)].mask()
        for name, module in norms
        for kind in ("running_mean", "running_var")
    }


@WITH_CASES
def test_every_slice_is_the_masked_dense_network(case):
    original, model, x = _converted(case, torch.float64)
    state, seen = original.state_dict(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        own = drawn(case)
        seen.add(tuple(own))
        expected = run(masked(original, case, own), x)
        model.load_state_dict(state)
        torch.manual_seed(seed)
        ours = run(model, x)
        buffers = [name for name, _ in model.named_buffers()]
        kept = _slices_of_norms(model, own)
        for name, truth in zip(buffers, expected[len(ours) - len(buffers) :], strict=True):
            if name in kept:
                truth.copy_(torch.where(kept[name], truth, state[name]))
        for made, truth in zip(ours, expected, strict=True):
            torch.testing.assert_close(made, truth, rtol=1e-12, atol=1e-12)
        for name, live in kept.items():
            assert torch.equal(model.state_dict()[name][~live], state[name][~live])
    assert len(seen) > 3


@WITH_CASES
def test_gradients_of_what_is_dropped_are_exactly_0(case):
    _, model, x = _converted(case)
    model(x).square().sum().backward()
    for names, units, *_ in case.reads:
        for name in names:
            grad = model.get_submodule(name).weight.grad
            kept = grad.transpose(0, 1).flatten(1).any(1)
            assert 0 < int(kept.sum()) < units


@WITH_CASES
def test_each_channel_is_kept_as_often(case):
    for _, units, size, p in case.reads:
        slices = every(units, size, p)
        kept = torch.stack([each.mask() for each in slices]).double().mean(0)
        assert (kept - slices[0].width / units).abs().max() < 1e-9
        assert all(edge % size == 0 for each in slices for piece in each.pieces for edge in piece)
        assert slices[0].width < units


@pytest.mark.parametrize(
    ("units", "size", "align"),
    [(640, 1, 16), (160, 1, 16), (64, 1, 8), (32, 1, 4), (16, 1, 2), (8, 1, 1), (6, 1, 1),
     (64, 16, 16), (96, 3, 24), (96, 32, 32), (100, 1, 4), (30, 1, 2)],
)  # fmt: skip
def test_what_slices_are_multiples_of(units, size, align):
    assert align_for(units, size) == align


@WITH_CASES
def test_evaluation_reverting_and_copies(case):
    original, model, x = _converted(case)
    state = original.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    original.load_state_dict(model.state_dict())
    expected = run(copy.deepcopy(original).eval(), x)
    dense = copy.deepcopy(original)
    for module in dense.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    dense = run(dense, x)
    layers = sum(isinstance(module, Rated) for module in model.modules())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for each in (model, copy.deepcopy(model), torch.load(file, weights_only=False)):
        run(each, x)
        each.load_state_dict(state)
        assert all(map(torch.equal, run(each.eval(), x), expected))
        each.train()
        assert sparsedrop.set_rate(each, 0.0) == layers
        before = torch.get_rng_state()
        assert all(map(torch.equal, run(each, x), dense))
        assert torch.equal(torch.get_rng_state(), before)
        assert sparsedrop.revert(each) == layers
        assert [type(m) for m in each.modules()] == [type(m) for m in original.modules()]
        assert not any(hasattr(m, "handover") or hasattr(m, "served") for m in each.modules())
        each.load_state_dict(state)
        assert all(map(torch.equal, run(each, x), dense))


@WITH_CASES
def test_a_second_call_finds_nothing_more(case):
    _, model, x = _converted(case)
    report = convert(model, x)
    assert report.converted == ()
    assert [entry[:2] for entry in report.skipped] == list(case.sites)
    assert {entry.reason for entry in report.skipped} == {"already converted"}


@WITH_CASES
def test_a_part_reverts_what_drops_together(case):
    _, model, x = _converted(case)
    part = next((m for m in model.modules() if isinstance(m, PassingBatchNorm2d)), model)
    assert sparsedrop.revert(part) > 0
    torch.manual_seed(0)
    assert type(part) in (nn.BatchNorm2d, type(model))
    before = torch.get_rng_state()
    model(x)
    assert not torch.equal(torch.get_rng_state(), before)


@WITH_CASES
def test_compiled_it_draws_the_same_slices_without_compiling_again(case):
    original, model, x = _converted(case, torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outs = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(8):
            results = []
            for each in (model, compiled):
                model.load_state_dict(original.state_dict())
                torch.manual_seed(seed)
                results.append(run(each, x))
            for made, truth in zip(*results, strict=True):
                torch.testing.assert_close(made, truth, rtol=1e-12, atol=1e-12)
            outs.add(results[0][0].sum().item())
    assert len(outs) > 2
