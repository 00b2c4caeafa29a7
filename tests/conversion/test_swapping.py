"""What stays the same when modules are swapped, and the way back."""

import copy
import io

import pytest
import torch
from networks import BLOCK, CASES, Block, Conv1DBlock, Feedforward, X, convert, found
from torch import nn
from torch.nn.utils import parametrizations

import sparsedrop
from sparsedrop.conversion import converting
from sparsedrop.conversion.layers import Converted, ConvertedLinear, DropoutStandIn
from sparsedrop.nn import SparseDropLinear

WITH_CASES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _shape_of(model):
    """Names, classes and identities of all modules and parameters, and their flags."""
    modules = [(name, type(m), id(m), m.training) for name, m in model.named_modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    return modules, attributes, [(n, id(p)) for n, p in model.named_parameters()]


def _linears(model):
    return sum(isinstance(m, (Converted, SparseDropLinear)) for m in model.modules())


@WITH_CASES
def test_revert_restores_everything(case):
    model, x = case.make(), torch.randn(case.shape)
    before, keys = _shape_of(model), list(model.state_dict())
    values = {key: value.clone() for key, value in model.state_dict().items()}
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    for _ in range(2):
        report = convert(model, x, block_shape=BLOCK)
        assert found(report) == list(case.sites)
        assert list(model.state_dict()) == keys
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in before[2]]
        count = _linears(model)
        assert sparsedrop.set_rate(model, 0.125) == count > 0
        assert sparsedrop.revert(model) == count
        assert _shape_of(model) == before
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        assert {m.p for m in dropouts} == {0.125}
        for dropout, p in zip(dropouts, rates, strict=True):
            dropout.p = p
    assert sparsedrop.revert(model) == 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key])


@WITH_CASES
def test_a_second_convert_finds_nothing_more(case):
    model, x = case.make(), torch.randn(case.shape)
    convert(model, x)
    before = _shape_of(model)
    report = convert(model, x)
    assert report.converted == ()
    assert sorted(entry[:2] for entry in report.skipped) == sorted(case.sites)
    assert {entry.reason for entry in report.skipped} == {"already converted"}
    assert _shape_of(model) == before


def test_what_was_left_out_is_converted_later():
    model = nn.Sequential(Feedforward(32, 64), nn.LayerNorm(32), nn.Dropout(0.5), nn.Linear(32, 8))
    assert found(convert(model, filter=lambda name, module: name == "3")) == [("3", "input")]
    report = convert(model)
    assert found(report) == [("0", "mlp")]
    assert [entry[:2] for entry in report.skipped] == [("3", "input")]
    assert sparsedrop.revert(model) == 3


def test_classes():
    model = nn.Sequential(Block(32, 64), nn.Dropout(0.5), nn.Linear(32, 8), nn.Dropout(0.5))
    model.append(nn.Softmax(-1))
    convert(model[:3], torch.randn(4, 16, 32))
    assert type(model[0].mlp.up) is ConvertedLinear
    assert type(model[0].mlp.down) is ConvertedLinear
    assert type(model[2]) is SparseDropLinear
    assert type(model[1]) is DropoutStandIn
    assert isinstance(model[1], nn.Dropout)
    assert model[1](X) is X
    assert model[2].dropout is model[1]
    assert model[0].mlp.up.out_dropout is model[0].mlp.down.dropout is model[0].mlp.drop
    assert model[0].mlp.down.out_dropout is model[0].resid_drop


def test_a_plain_output_site_is_a_layer_with_that_side():
    model = nn.Sequential(nn.Linear(32, 8), nn.Dropout(0.5))
    convert(model)
    assert type(model[0]) is SparseDropLinear
    assert model[0].side == "output"


def test_rates_are_set_where_the_dropout_was():
    model = Feedforward(32, 64)
    convert(model)
    model.drop.p = 0.2
    assert (model.up.p, model.down.p) == (0.2, 0.2)
    model.down.p = 0.3
    assert (model.drop.p, model.up.p) == (0.3, 0.3)
    with pytest.raises(ValueError, match=r"p is a probability in \[0, 1\], not 2"):
        model.up.p = 2


def test_dropouts_may_be_replaced():
    """By a tool that puts nn.Identity where it finds nn.Dropout: nothing is dropped any more."""
    model = nn.Sequential(Feedforward(32, 64), nn.Dropout(0.5), Conv1DBlock(32, 64))
    original = copy.deepcopy(model).eval()
    convert(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    assert torch.equal(model(X), original(X))
    assert sparsedrop.set_rate(model, 0.5) == 4
    assert model[0].up.p == 0.0
    assert torch.equal(model(X), original(X))
    assert sparsedrop.revert(model) == 4
    assert type(model[0].up) is nn.Linear
    assert torch.equal(model(X), original(X))


def test_layers_say_what_they_drop():
    model = Feedforward(32, 64)
    convert(model, block_shape=(8, 16))
    assert repr(model.up) == (
        "ConvertedLinear(\n"
        "  in_features=32, out_features=64, bias=True, output: block_shape=(8, 16), "
        "sampler='bernoulli'\n"
        "  (out_dropout): DropoutStandIn(p=0.5, inplace=False)\n"
        ")"
    )
    conv = Conv1DBlock(32, 64)
    convert(conv, block_shape=(8, 16))
    assert "nf=64, nx=32, output: block_shape=(8, 16)" in repr(conv.c_fc)


@pytest.mark.parametrize("name", ["both sides", "gated", "Conv1D", "stack"])
def test_copies_and_files(name):
    case = CASES[name]
    model, x = case.make(), torch.randn(case.shape)
    original = copy.deepcopy(model)
    convert(model, x, block_shape=BLOCK)
    model(x).sum().backward()
    file = io.BytesIO()
    # Conv1D and the like are classes of this test, which a file knows by name.
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    for other in copies:
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.equal(other(x), expected)
        assert sparsedrop.set_rate(other, 0.25) == _linears(model)
        assert sparsedrop.revert(other) == _linears(model)
        assert [type(m) for m in other.modules()] == [type(m) for m in original.modules()]
        assert torch.equal(other.eval()(x), original.eval()(x))
    assert _linears(model) > 0


def test_revert_after_parameters_were_replaced():
    """As load_state_dict(assign=True), to(dtype) and sharding do."""
    model = Feedforward(32, 64)
    convert(model)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.to(torch.float64)
    parameters = dict(model.named_parameters())
    assert sparsedrop.revert(model) == 2
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, state[name].double())


def test_the_loaded_state_of_one_is_that_of_the_other():
    model, other = Feedforward(32, 64), Feedforward(32, 64)
    convert(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.eval()(X), other.eval()(X))
    other.load_state_dict(model.state_dict())


def test_part_of_a_model_can_be_reverted():
    model = nn.Sequential(Feedforward(32, 64), Feedforward(32, 64))
    convert(model)
    assert sparsedrop.revert(model[0]) == 2
    assert sparsedrop.revert(model) == 2


def test_optimizers_and_lists_keep_what_they_hold():
    model = Feedforward(32, 64)
    held, optimizer = [model.up, model.drop], torch.optim.SGD(model.parameters(), 0.1)
    convert(model)
    assert held[0] is model.up
    assert held[1] is model.drop
    model(X).square().sum().backward()
    before = model.up.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.up.weight, before)


def test_hooks_stay():
    model, calls = Feedforward(32, 64), []
    handles = [
        module.register_forward_hook(lambda m, a, out: calls.append(type(m)))
        for module in (model.up, model.drop, model.down)
    ]
    handles.append(model.down.register_full_backward_hook(lambda m, i, o: calls.append("back")))
    handles.append(model.up.register_forward_pre_hook(lambda m, a: calls.append("pre")))
    convert(model)
    calls.clear()
    model(X).sum().backward()
    assert calls == ["pre", ConvertedLinear, DropoutStandIn, ConvertedLinear, "back"]
    sparsedrop.revert(model)
    calls.clear()
    model(X).sum().backward()
    assert calls == ["pre", nn.Linear, nn.Dropout, nn.Linear, "back"]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(X).sum().backward()
    assert calls == []


@pytest.mark.parametrize("training", [True, False])
def test_flags_dtypes_and_gradients_stay(training):
    model = Feedforward(32, 64).to(torch.bfloat16).train(training)
    model.up.weight.requires_grad_(False)
    model.drop.train(not training)
    model.up.tag = "mine"
    convert(model, X.bfloat16())
    assert model.up.training is model.down.training is training
    assert model.drop.training is not training
    assert not model.up.weight.requires_grad
    assert model.down.weight.dtype is torch.bfloat16
    assert model.up.tag == "mine"


def test_a_parametrization_put_on_later_survives_revert():
    model = nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 8))
    convert(model)
    parametrizations.orthogonal(model[2])
    expected = model.eval()(X)
    assert sparsedrop.revert(model) == 1
    assert not isinstance(model[2], SparseDropLinear)
    assert isinstance(model[2], nn.Linear)
    assert torch.equal(model(X), expected)
    assert set(model.state_dict()) == {
        "2.bias",
        "2.parametrizations.weight.original",
        "2.parametrizations.weight.0.base",
    }


def test_a_swap_that_fails_midway_is_undone(monkeypatch):
    model = nn.Sequential(Feedforward(32, 64), Feedforward(32, 64))
    before = _shape_of(model)
    plan = converting.plan

    def bad_plan(*args):
        swaps = plan(*args)
        return [*swaps[:-1], swaps[-1]._replace(cls=int)]

    monkeypatch.setattr(converting, "plan", bad_plan)
    with pytest.raises(TypeError):
        convert(model, p=0.125)
    assert _shape_of(model) == before
    assert (model[0].drop.p, model[1].drop.p) == (0.5, 0.5)


def test_set_rate_counts_layers_built_by_hand():
    model = nn.Sequential(
        SparseDropLinear(32, 64, block_shape=(8, 8)), nn.Dropout(0.5), nn.Linear(64, 8)
    )
    assert sparsedrop.set_rate(model, 0.25) == 1
    assert (model[0].p, model[1].p) == (0.25, 0.5)
    convert(model)
    assert sparsedrop.set_rate(model, 0.125) == 2
    assert (model[0].p, model[1].p, model[2].p) == (0.125, 0.125, 0.125)
    assert sparsedrop.set_rate(nn.Linear(3, 3), 0.5) == 0
    with pytest.raises(ValueError, match=r"p is a probability in \[0, 1\], not -1"):
        sparsedrop.set_rate(model, -1)
    assert sparsedrop.revert(model) == 1
    assert type(model[0]) is SparseDropLinear


def test_a_layer_that_has_lost_the_one_before_it_says_so():
    model = Feedforward(32, 64)
    convert(model)
    model.up.outgoing.draws = False
    with pytest.raises(RuntimeError, match="has not run before this one"):
        model(X)
