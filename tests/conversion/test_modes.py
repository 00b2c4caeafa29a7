"""Converted models under autocast, torch.compile and activation checkpointing."""

import copy
import warnings

import pytest
import torch
from networks import (
    BLOCK,
    CASES,
    Block,
    Feedforward,
    X,
    assert_handed_over,
    by_hand,
    convert,
    found,
    value_and_grads,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsedrop

MODELS = ["both sides", "output", "gated", "mlp with a dropout behind it", "Conv1D", "stack"]


def _converted(name):
    case = CASES[name]
    torch.manual_seed(0)
    model, x = case.make(), torch.randn(case.shape)
    convert(model, x, block_shape=BLOCK)
    return model, x


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name):
    """No further from the truth than twice what torch is with the same masks."""
    case = CASES[name]
    torch.manual_seed(0)
    original, x = case.make(), torch.randn(case.shape)
    model = copy.deepcopy(original)
    torch.manual_seed(1)
    masked = by_hand(original, case)
    with torch.autocast("cpu", torch.bfloat16):
        assert found(convert(model, x, block_shape=BLOCK)) == list(case.sites)
        torchs = value_and_grads(masked, x)
        torch.manual_seed(1)
        ours = value_and_grads(model, x)
    torch.manual_seed(7)
    upstream = torch.randn_like(ours[0]).double()
    exact = value_and_grads(masked.double(), x.double(), upstream)
    for own, truth, theirs in zip(ours, exact, torchs, strict=True):
        assert own.dtype == theirs.dtype
        error, allowed = (own.double() - truth).norm(), 2 * (theirs.double() - truth).norm()
        assert error <= allowed + 1e-6 * truth.norm()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_recompiling(name, backend):
    model, x = _converted(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            torch.manual_seed(seed)
            ours = value_and_grads(compiled, x)
            torch.manual_seed(seed)
            for own, truth in zip(ours, value_and_grads(model, x), strict=True):
                torch.testing.assert_close(own, truth, rtol=1e-5, atol=1e-5)


def test_a_compiled_model_may_be_converted_and_reverted():
    """What was compiled before is not run again."""
    model = nn.Sequential(Feedforward(32, 64), nn.LayerNorm(32), nn.Dropout(0.5), nn.Linear(32, 8))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(which):
        torch.manual_seed(1)
        return which(X)

    before = run(compiled)
    for given in (model, compiled):
        assert len(convert(given, block_shape=BLOCK).converted) == 2
        torch.testing.assert_close(run(compiled), run(model))
        assert not torch.equal(run(compiled), before)
        assert sparsedrop.revert(given) == 3
        assert torch.equal(run(compiled), before)


def test_a_mask_goes_from_one_compiled_program_to_the_next():
    model, x = _converted("mlp")
    assert_handed_over(model[0], model[0].up, model[0].down, x)


class Checkpointed(nn.Module):
    def __init__(self, block, *, use_reentrant=False) -> None:
        super().__init__()
        self.block, self.use_reentrant = block, use_reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed(name, use_reentrant):
    model, x = _converted(name)
    torch.manual_seed(1)
    expected = _trained(model, x)
    torch.manual_seed(1)
    ours = _trained(Checkpointed(model, use_reentrant=use_reentrant), x)
    for own, truth in zip(ours, expected, strict=True):
        assert torch.equal(own, truth)


def _trained(model, x):
    """Two forward passes before their backward passes, and the gradients."""
    model.zero_grad()
    outs = [model(x.clone().requires_grad_()) for _ in range(2)]
    torch.autograd.backward([out.square().sum() for out in reversed(outs)])
    return [out.detach() for out in outs] + [p.grad.clone() for p in model.parameters()]


def test_a_model_is_converted_with_its_checkpoints():
    model = nn.Sequential(Checkpointed(Block(32, 64)), Checkpointed(Block(32, 64)))
    report = convert(model, torch.randn(3, 16, 32))
    assert found(report)[:2] == [("0.block.mlp", "mlp"), ("0.block.mlp.down", "output")]
    assert len(report.converted) == 4


class Half(Feedforward):
    """A checkpoint around the last layer only, which needs a mask from before it."""

    def forward(self, x):
        hidden = self.drop(self.activation(self.up(x)))
        return checkpoint(self.down, hidden, use_reentrant=False)


def test_half_a_block_cannot_be_checkpointed():
    model = Half(32, 64)
    convert(model)
    loss = model(X).square().sum()
    with pytest.raises(RuntimeError, match="checkpoint the whole block"):
        loss.backward()


class FirstHalf(Feedforward):
    """A checkpoint around all but the last layer."""

    def forward(self, x):
        return self.down(checkpoint(self._hidden, x, use_reentrant=False))

    def _hidden(self, x):
        return self.drop(self.activation(self.up(x)))


@pytest.mark.parametrize("method", ["sparsedrop", "row-pattern"])
def test_a_mask_of_a_checkpoint_that_nothing_reads_is_not_told_of(method):
    whole = Feedforward(32, 64)
    half = FirstHalf(32, 64)
    half.load_state_dict(whole.state_dict())
    for model in (whole, half):
        assert len(convert(model, method=method).converted) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(1)
        expected = _trained(whole, X) + _trained(whole, X)
        torch.manual_seed(1)
        ours = _trained(half, X) + _trained(half, X)
    assert all(map(torch.equal, ours, expected))


def test_nothing_is_left_of_a_mask_between_steps():
    model, x = _converted("gated")
    model(x)
    assert model.down.incoming.handover.masks == {}


@pytest.mark.parametrize("replace", [lambda old: nn.Linear(64, 32), copy.deepcopy])
def test_a_layer_that_is_replaced_behind_a_hidden_value_is_told_of(replace):
    model = Feedforward(32, 64)
    convert(model, block_shape=BLOCK)
    for _ in range(2):
        model(X)
    kept, model.down = model.down, replace(model.down)
    model(X)
    with pytest.warns(UserWarning, match="the layer that was behind it and scales what is left"):
        model(X)
    model.down = kept
    model(X)
    assert kept.incoming.handover.masks == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)


def _replica(linear):
    """As nn.DataParallel makes it, for another device."""
    other = linear._replicate_for_data_parallel()
    other.weight, other.bias = linear.weight.to("meta"), linear.bias.to("meta")
    return other


def test_replicas_on_other_devices_have_masks_of_their_own():
    model = Feedforward(32, 64)
    convert(model, block_shape=BLOCK)
    up, down = _replica(model.up), _replica(model.down)
    torch.manual_seed(1)
    expected = model(X)
    torch.manual_seed(1)
    hidden = model.up(X)
    other = up(X.to("meta"))
    assert torch.equal(model.down(model.activation(hidden)), expected)
    assert down(other).shape == expected.shape
    assert model.down.incoming.handover.masks == {}


def test_a_rate_may_change_with_every_step_of_a_compiled_model():
    model, x = _converted("mlp")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    schedule = sparsedrop.schedules.linear(0.0, 0.5, 3)
    for step in range(4):
        assert sparsedrop.set_rate(model, schedule(step)) == 2
        torch.manual_seed(step)
        ours = value_and_grads(compiled, x)
        torch.manual_seed(step)
        for own, truth in zip(ours, value_and_grads(model, x), strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-5, atol=1e-5)
