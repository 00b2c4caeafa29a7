"""A converted network against the original with the same masks applied by hand."""

import copy

import pytest
import torch
from networks import BLOCK, CASES, Feedforward, by_hand, value_and_grads
from torch import nn

import sparsedrop

WITH_CASES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _network(case, dtype=torch.float64):
    torch.manual_seed(1)
    return case.make().to(dtype), torch.randn(case.shape, dtype=dtype)


def _convert(model, x, **kwargs):
    return sparsedrop.convert(model, (x,), min_speedup=0, block_shape=BLOCK, **kwargs)


@WITH_CASES
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
@pytest.mark.parametrize("path", [None, "dense", "cpu"])
def test_values_and_gradients(case, sampler, path):
    model, x = _network(case)
    original = copy.deepcopy(model)
    report = _convert(model, x, sampler=sampler)
    assert tuple(entry[:2] for entry in report.converted) == case.sites
    assert report.skipped == ()
    for seed in range(3):
        torch.manual_seed(seed)
        expected = value_and_grads(by_hand(original, case, sampler), x)
        torch.manual_seed(seed)
        with sparsedrop.select.override(path=path):
            ours = value_and_grads(model, x)
        for own, truth in zip(ours, expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=0, atol=1e-11)


@WITH_CASES
def test_evaluation_and_rate_zero_are_the_original_bit_for_bit(case):
    model, x = _network(case, torch.float32)
    original = copy.deepcopy(model).eval()
    expected = value_and_grads(original, x)
    _convert(model, x)
    state = torch.get_rng_state()
    for converted in (copy.deepcopy(model).eval(), copy.deepcopy(model).train()):
        if converted.training:
            sparsedrop.set_rate(converted, 0.0)
        for own, truth in zip(value_and_grads(converted, x), expected, strict=True):
            assert torch.equal(own, truth)
        torch.set_rng_state(state)
        converted(x)
        assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn


@WITH_CASES
def test_a_vanishing_rate_leaves_the_original(case):
    """Every block live: what is left is the order of the sums."""
    model, x = _network(case)
    expected = value_and_grads(copy.deepcopy(model).eval(), x)
    _convert(model, x)
    sparsedrop.set_rate(model, 1e-15)
    for own, truth in zip(value_and_grads(model, x), expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([nn.Dropout(), nn.Linear(32, 40)], "bias"),
        ([nn.Dropout(), nn.Linear(32, 40, bias=False)], "nothing"),
        ([nn.Linear(32, 40), nn.Dropout()], "nothing"),
        ([nn.Dropout(), nn.Linear(32, 40), nn.Dropout()], "nothing"),
    ],
)
def test_all_is_dropped_at_rate_one(layers, left):
    model, x = nn.Sequential(*layers), torch.randn(3, 16, 32)
    _convert(model, x, p=1.0)
    out = model(x)
    expected = model[1].bias if left == "bias" else torch.zeros(())
    assert torch.equal(out, expected.expand_as(out))


def test_a_block_at_rate_one_leaves_the_last_bias():
    model, x = Feedforward(32, 64), torch.randn(16, 32)
    _convert(model, x, p=1)
    assert torch.equal(model(x), model.down.bias.expand(16, 32))


def test_what_the_activation_makes_of_dropped_blocks_is_never_read():
    """log of 0 is minus infinity, and its derivative infinite."""
    model = Feedforward(32, 64, lambda x: torch.log(torch.exp(x)).reciprocal())
    x = torch.randn(48, 32)
    _convert(model, x)
    for tensor in value_and_grads(model, x):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", ["mlp", "gated", "mlp with a dropout behind it", "Conv1D"])
def test_dropped_blocks_of_a_hidden_value_are_not_computed(name):
    """The layers before it leave zeros there, whatever their bias."""
    case = CASES[name]
    model, x = _network(case, torch.float32)
    _convert(model, x)
    seen = []

    def watch(module, args, out):
        seen.append((args[0].detach(), out.detach()))

    linears = [m for m in model.modules() if getattr(m, "outgoing", None) is not None]
    linears = [m for m in linears if m.outgoing.handover is not None]
    for linear in linears:
        linear.register_forward_hook(watch)
    model(x)
    assert len(seen) == len(linears) > 0
    for _, out in seen:
        share = (out == 0).double().mean()
        assert 0.2 < share < 0.8


def test_a_step_draws_new_masks():
    case = CASES["mlp"]
    model, x = _network(case)
    _convert(model, x)
    assert not torch.equal(model(x), model(x))


def test_empty_batches_and_single_rows_run():
    model = Feedforward(32, 64)
    _convert(model, torch.randn(48, 32))
    assert model(torch.randn(0, 32)).shape == (0, 32)
    assert model(torch.randn(32)).shape == (32,)
    out = model(torch.randn(2, 3, 4, 32))
    assert out.shape == (2, 3, 4, 32)
    assert torch.isfinite(out).all()


def test_only_one_of_two_dropouts_may_be_switched_off():
    """As with nn.Dropout: a dropout's own flag decides."""
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 40), nn.Dropout(0.5)), torch.ones(8, 32)
    model[1].bias.data.fill_(1.0)
    _convert(model, x)
    model[0].eval()
    out = model(x)
    dense = nn.functional.linear(x, model[1].weight, model[1].bias)
    live = out != 0
    assert 0 < live.sum() < live.numel()
    torch.testing.assert_close(out[live], 2 * dense[live])
    model[2].p = 0.0
    torch.testing.assert_close(model(x), dense, rtol=0, atol=0)
