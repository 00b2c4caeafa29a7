"""SparseDropMLP and SparseDropStack: what they compute."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sparsedrop import BlockMask, reference, select
from sparsedrop.nn import SparseDropMLP, SparseDropStack

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
BLOCK = (16, 32)
MLPS = {
    "plain": {},
    "no bias": {"bias": False},
    "gated": {"gated": True, "activation": "silu"},
    "dropped behind": {"out_p": 0.25},
    "gated and dropped behind": {"gated": True, "out_p": 0.25, "bias": False},
    "dropped behind alone": {"p": 0.0, "out_p": 0.5},
    "wider": {"d_out": 96, "sampler": "balanced"},
}


def _mlp(device, dtype=torch.float64, **kwargs):
    settings = {"p": 0.5, "block_shape": BLOCK, **kwargs}
    return SparseDropMLP(32, 128, **settings).to(device, dtype)


def _layers(mlp):
    gate = mlp.gate
    return (
        (mlp.up.weight, mlp.up.bias, mlp.activation, *((None, None) if gate is None else
         (gate.weight, gate.bias))),
        (mlp.down.weight, mlp.down.bias, None, None, None),
    )  # fmt: skip


def _masks(sampler, rates, sizes, rows, device):
    """Those that a block draws, in turn."""
    draw = getattr(BlockMask, sampler)
    return {
        i: draw((rows, n), p, block_shape=BLOCK, device=device)
        for i, (p, n) in enumerate(zip(rates, sizes, strict=True))
        if p > 0
    }


@pytest.mark.parametrize("path", [None, "cpu", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kwargs", MLPS.values(), ids=MLPS)
def test_a_block_is_the_reference_under_the_masks_it_draws(kwargs, activation, path):
    mlp = _mlp("cpu", **{"activation": activation, **kwargs})
    x = torch.randn(4, 24, 32, dtype=torch.float64)
    upstream = torch.randn(4, 24, mlp.down.out_features, dtype=torch.float64)
    leaves = list(mlp.parameters())

    def run(function):
        torch.manual_seed(3)
        inputs = [x.detach().requires_grad_(), *leaves]
        out = function(inputs[0])
        return out, *torch.autograd.grad(out, inputs, upstream)

    def exact(x):
        rates = 0.0, mlp.p, mlp.out_p
        sizes = 32, 128, mlp.down.out_features
        masks = _masks(mlp.sampler, rates, sizes, 96, "cpu")
        return reference.stack(x, _layers(mlp), masks, rates)

    with select.override(path=path):
        ours = run(mlp)
    for own, truth in zip(ours, run(exact), strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", [None, "cpu"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_stack_is_the_reference_under_the_masks_it_draws(activation, path):
    sizes = 32, 128, 64, 96
    stack = SparseDropStack(
        sizes, 0.5, activation=activation, last_activation=activation, block_shape=BLOCK
    ).double()
    x = torch.randn(96, 32, dtype=torch.float64)
    upstream = torch.randn(96, 96, dtype=torch.float64)
    leaves = list(stack.parameters())
    assert list(stack.state_dict()) == [
        f"layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")
    ]

    def run(function):
        torch.manual_seed(3)
        inputs = [x.detach().requires_grad_(), *leaves]
        out = function(inputs[0])
        return out, *torch.autograd.grad(out, inputs, upstream)

    def exact(x):
        rates = 0.5, 0.5, 0.5, 0.0
        masks = _masks("bernoulli", rates, sizes, 96, "cpu")
        layers = [(m.weight, m.bias, activation, None, None) for m in stack.layers]
        return reference.stack(x, layers, masks, rates)

    with select.override(path=path):
        ours = run(stack)
    for own, truth in zip(ours, run(exact), strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-11, atol=1e-11)


def _dense(mlp, x):
    hidden = reference.ACTIVATIONS[mlp.activation](mlp.up(x) if mlp.gate is None else mlp.gate(x))
    return mlp.down(hidden if mlp.gate is None else hidden * mlp.up(x))


@pytest.mark.parametrize("kwargs", MLPS.values(), ids=MLPS)
@pytest.mark.parametrize("how", ["evaluation", "rates of 0", "the child's switch"])
def test_without_dropout_it_is_the_dense_block_and_draws_nothing(kwargs, how, device):
    mlp = _mlp(device, torch.float32, **kwargs)
    x = torch.randn(5, 32, device=device)
    if how == "evaluation":
        mlp.eval()
    elif how == "rates of 0":
        mlp.p = mlp.out_p = 0.0
    else:
        for module in mlp.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    state = torch.get_rng_state()
    assert torch.equal(mlp(x), _dense(mlp, x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bias", [True, False])
def test_rates_of_one(bias, device):
    mlp = _mlp(device, torch.float32, p=1.0, bias=bias)
    x = torch.randn(64, 32, device=device)
    expected = mlp.down.bias.expand(64, 32) if bias else torch.zeros(64, 32, device=device)
    assert torch.equal(mlp(x), expected)
    mlp.out_p = 1.0
    assert not mlp(x).any()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_gradcheck(activation, gated):
    mlp = SparseDropMLP(
        4, 8, 6, 0.5, activation=activation, gated=gated, out_p=0.25, block_shape=(2, 2)
    ).double()
    names, values = zip(*mlp.named_parameters(), strict=True)
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        torch.manual_seed(1)
        return functional_call(mlp, dict(zip(names, values, strict=True)), x)

    for path in ("cpu", "dense"):
        with select.override(path=path):
            assert torch.autograd.gradcheck(run, (x, *values))
            assert torch.autograd.gradgradcheck(run, (x, *values), atol=1e-4)


def test_parameters_are_those_of_linear_layers():
    mlp = SparseDropMLP(8, 16, 4, gated=True, device="meta", dtype=torch.bfloat16)
    assert {name: tuple(p.shape) for name, p in mlp.named_parameters()} == {
        "up.weight": (16, 8), "up.bias": (16,), "gate.weight": (16, 8), "gate.bias": (16,),
        "down.weight": (4, 16), "down.bias": (4,),
    }  # fmt: skip
    assert {type(m) for m in (mlp.up, mlp.gate, mlp.down)} == {nn.Linear}
    assert all(p.dtype == torch.bfloat16 and p.is_meta for p in mlp.parameters())


def test_from_linears_holds_the_layers():
    up, gate, down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
    up.eval()
    mlp = SparseDropMLP.from_linears(up, down, 0.25, gate=gate, activation="silu", out_p=0.5)
    assert (mlp.up, mlp.gate, mlp.down) == (up, gate, down)
    assert (mlp.p, mlp.out_p, mlp.activation, mlp.training) == (0.25, 0.5, "silu", False)
    with pytest.raises(ValueError, match="up makes 16 features and down takes 8"):
        SparseDropMLP.from_linears(up, gate)
    with pytest.raises(ValueError, match=r"gate is 16 -> 4, and up 8 -> 16"):
        SparseDropMLP.from_linears(up, down, gate=down)
    with pytest.raises(TypeError, match=r"down must be an nn.Linear, not ReLU"):
        SparseDropMLP.from_linears(up, nn.ReLU())


def test_rates_are_those_of_children_that_tools_find():
    mlp = SparseDropMLP(8, 16, p=0.25, out_p=0.5)
    found = {name: m.p for name, m in mlp.named_modules() if isinstance(m, nn.Dropout)}
    assert found == {"dropout": 0.25, "out_dropout": 0.5}
    mlp.out_dropout.p = 0.125
    assert mlp.out_p == 0.125
    alone = SparseDropMLP(8, 16)
    assert alone.out_p == 0.0
    assert list(alone.state_dict()) == ["up.weight", "up.bias", "down.weight", "down.bias"]
    alone.out_p = 0.5
    assert alone.out_p == 0.5
