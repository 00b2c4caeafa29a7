"""Converted layers in an nn.Sequential, which run as one stack: against the same one by one."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import nn

import sparsedrop
from cases import normal
from sparsedrop import functional
from sparsedrop.conversion.chains import ConvertedSequential
from sparsedrop.nn import SparseDropLinear

ROWS, BLOCK = 48, (8, 8)


def _mlp(sizes=(24, 40, 32, 10), activation=nn.ReLU, p=0.5, dtype=torch.float64):
    """Linear, activation, dropout, linear, ... without an activation behind the last."""
    torch.manual_seed(1)
    modules = []
    for n, m in pairwise(sizes):
        modules += [nn.Linear(n, m, dtype=dtype), activation(), nn.Dropout(p)]
    return nn.Sequential(*modules[:-2])


def _converted(model, features=24, **options):
    example = torch.zeros(ROWS, features, dtype=next(model.parameters()).dtype)
    options = {"min_speedup": 0, "block_shape": BLOCK, **options}
    sparsedrop.convert(model, example, **options)
    return model


@pytest.fixture
def stacks(monkeypatch):
    """How many layers each stack that runs has, and the rates by which it drops."""
    seen, run = [], functional.dropped_stack

    def recorded(x, layers, dropped, training):
        seen.append((len(layers), dropped.rates))
        return run(x, layers, dropped, training)

    monkeypatch.setattr(functional, "dropped_stack", recorded)
    return seen


def _one_by_one(model):
    """A copy whose modules are called, since somebody watches each of them."""
    other = copy.deepcopy(model)
    for module in other:
        module.register_forward_hook(lambda *_: None)
    return other


def _step(model, x, seed=3):
    torch.manual_seed(seed)
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(out.square().mean(), [leaf, *parameters], allow_unused=True)
    return [out.detach(), *grads]


def _input(leading, preceding):
    """In front of the first layer, and behind the last."""
    return [nn.Dropout(0.25)] if leading else [], [nn.Dropout(0.25)] if preceding else []


@pytest.mark.parametrize("behind", [False, True], ids=["", "dropped behind"])
@pytest.mark.parametrize("before", [False, True], ids=["", "dropped before"])
@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Identity]
)
def test_a_chain_is_its_modules_one_by_one(activation, before, behind, stacks):
    ahead, after = _input(before, behind)
    model = _converted(nn.Sequential(*ahead, *_mlp(activation=activation), *after))
    assert type(model) is ConvertedSequential
    x = normal(ROWS, 24)
    ours = _step(model, x)
    rates = 0.25 if before else 0.0, 0.5, 0.5, 0.25 if behind else 0.0
    assert stacks == [(3, rates)]
    theirs = _step(_one_by_one(model), x)
    assert len(stacks) == 1
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_an_activation_behind_the_last_layer_belongs_to_it(stacks):
    model = _converted(nn.Sequential(*_mlp(), nn.GELU(), nn.LayerNorm(10, dtype=torch.float64)))
    x = normal(ROWS, 24)
    ours, theirs = _step(model, x), _step(_one_by_one(model), x)
    assert stacks == [(3, (0.0, 0.5, 0.5, 0.0))]
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_evaluation_and_no_rate_are_the_dense_model_bit_for_bit(stacks):
    dense = _mlp()
    model = _converted(copy.deepcopy(dense))
    x = normal(ROWS, 24)
    assert torch.equal(model.eval()(x), dense.eval()(x))
    sparsedrop.set_rate(model.train(), 0.0)
    assert torch.equal(model(x), dense(x))
    assert not stacks


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(
            nn.Linear(24, 40), nn.ReLU(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 10)
        ),
        lambda: nn.Sequential(nn.Linear(24, 40), nn.Dropout(0.5), nn.ReLU(), nn.Linear(40, 10)),
        lambda: nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10), nn.Dropout(0.5)),
    ],
    ids=["an activation no kernel has", "a dropout before the activation", "no hidden value"],
)
def test_what_is_no_chain_stays_a_sequential(model):
    model = _converted(model().double())
    assert type(model) is nn.Sequential
    assert sparsedrop.revert(model) > 0


def _hook_an_activation(model):
    model[4].register_forward_hook(lambda *_: None)


def _replace_a_layer(model):
    model[6] = nn.Linear(32, 10, dtype=torch.float64)


def _replace_an_activation(model):
    model[4] = nn.Tanh()


def _forget_a_rate(model):
    model[3].dropout = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [_hook_an_activation, _replace_a_layer, _replace_an_activation, _forget_a_rate],
)
def test_what_was_changed_is_called(change, stacks):
    """Somebody else's modules and hooks run as they would have."""
    model = _converted(_mlp())
    change(model)
    x = normal(ROWS, 24)
    ours, theirs = _step(model, x), _step(_one_by_one(model), x)
    assert not stacks
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None and other is None) or torch.equal(own, other)


def test_hidden_values_dropped_in_other_blocks_run_apart(stacks):
    """Blocks that are chosen, and finer for the narrow one of two hidden values."""
    model = _converted(_mlp((24, 256, 64, 10)), block_shape=None)
    shapes = {model[i].incoming.block_shape for i in (3, 6)}
    assert len(shapes) == 2
    x = normal(ROWS, 24)
    assert all(map(torch.equal, _step(model, x), _step(_one_by_one(model), x)))
    assert not stacks
    assert sparsedrop.revert(model) == 3
    assert type(model) is nn.Sequential


def test_two_chains_in_one_sequential(stacks):
    between = nn.LayerNorm(16, dtype=torch.float64)
    model = _converted(nn.Sequential(*_mlp((24, 40, 16)), between, *_mlp((16, 32, 10))))
    x = normal(ROWS, 24)
    ours, theirs = _step(model, x), _step(_one_by_one(model), x)
    assert stacks == [(2, (0.0, 0.5, 0.0))] * 2
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_a_sequential_within_a_module_is_found_without_example_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(24, dtype=torch.float64)
            self.mlp = _mlp()

        def forward(self, x):
            return self.mlp(self.norm(x))

    model = Net()
    sparsedrop.convert(model, min_speedup=0)
    assert type(model.mlp) is ConvertedSequential
    again = sparsedrop.convert(model, min_speedup=0)
    assert not again.converted
    assert sparsedrop.revert(model) == 3
    assert type(model.mlp) is nn.Sequential


def test_copies_files_and_slices_are_chains_too(stacks):
    model = _converted(_mlp())
    x = normal(ROWS, 24)
    expected = _step(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), model[:]):
        stacks.clear()
        assert all(map(torch.equal, _step(other, x), expected))
        assert len(stacks) == 1
    assert list(model.state_dict()) == list(_mlp().state_dict())


def test_compiled_as_a_whole_and_not_again_for_another_rate():
    model, x = _converted(_mlp(dtype=torch.float32)), normal(ROWS, 24).float()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        outs = [compiled(x) for _ in range(3)]
    assert not torch.equal(outs[0], outs[1])
    assert all((out - model.eval()(x)).abs().max() > 0 for out in outs)


class _Shift(nn.Identity):
    def forward(self, input):
        return input + 100.0


def _shift(_):
    identity = nn.Identity()
    identity.forward = lambda x: x + 100.0
    return identity


@pytest.mark.parametrize("place", [1, 2, 4])
@pytest.mark.parametrize("make", [lambda _: _Shift(), _shift], ids=["a class", "an instance"])
def test_an_identity_that_is_none_is_called(make, place, stacks):
    modules = list(_mlp((24, 40, 32)))
    modules.insert(place, make(None))
    model = _converted(nn.Sequential(*modules))
    x = normal(ROWS, 24)
    ours, theirs = _step(model, x), _step(_one_by_one(model), x)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_reports_name_the_class_that_was_written():
    model = _mlp().float()
    report = sparsedrop.convert(model, torch.zeros(ROWS, 24), min_speedup=0)
    again = sparsedrop.convert(model, torch.zeros(ROWS, 24), min_speedup=0)
    for each in (report, again):
        assert "ConvertedSequential" not in str(each)
        assert "Sequential" in str(each)


def test_layers_of_our_own_are_left_alone():
    model = nn.Sequential(SparseDropLinear(24, 24), nn.ReLU(), *_mlp().float())
    _converted(model)
    assert type(model) is ConvertedSequential
    assert model(torch.randn(ROWS, 24)).shape == (ROWS, 10)


def test_a_hook_of_all_modules_sees_each(stacks):
    model, called = _converted(_mlp()), []
    x = normal(ROWS, 24)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: called.append(module)
    )
    try:
        model(x)
    finally:
        handle.remove()
    assert called == [*model, model]
    assert not stacks
    model(x)
    assert len(stacks) == 1
