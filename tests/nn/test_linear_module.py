"""nn.SparseDropLinear against nn.Linear."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsedrop
from sparsedrop import BlockMask, reference
from sparsedrop.nn import SparseDropLinear


def test_training_is_dropout_linear(device):
    module = SparseDropLinear(
        192, 96, p=0.4, block_shape=(32, 64), sampler="balanced", device=device
    )
    x = torch.randn(4, 40, 192, device=device)
    torch.manual_seed(1)
    out = module(x)
    torch.manual_seed(1)
    expected = sparsedrop.dropout_linear(
        x, module.weight, module.bias, p=0.4, block_shape=(32, 64), sampler="balanced"
    )
    assert torch.equal(out, expected)
    assert not torch.equal(module(x), out)


def test_evaluation_is_the_linear_layer(device):
    module = SparseDropLinear(192, 96, device=device).eval()
    x = torch.randn(40, 192, device=device)
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_is_that_of_linear(bias):
    linear, module = nn.Linear(12, 8, bias), SparseDropLinear(12, 8, bias)
    assert isinstance(module, nn.Linear)
    module.load_state_dict(linear.state_dict())
    linear.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == list(linear.state_dict())
    assert torch.equal(module.weight, linear.weight)


def test_one_seed_gives_the_parameters_of_linear():
    torch.manual_seed(1)
    linear = nn.Linear(12, 8)
    torch.manual_seed(1)
    assert torch.equal(SparseDropLinear(12, 8).weight, linear.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_from_linear_shares_everything(bias, training):
    linear = nn.Linear(12, 8, bias, dtype=torch.float64).train(training)
    linear.weight.requires_grad_(False)
    state = torch.get_rng_state()
    module = SparseDropLinear.from_linear(linear, p=0.3, block_shape=(4, 4), sampler="balanced")
    assert torch.equal(torch.get_rng_state(), state)
    assert module.weight is linear.weight
    assert module.bias is linear.bias
    assert not module.weight.requires_grad
    assert module.training is training
    assert (module.in_features, module.out_features) == (12, 8)
    assert (module.p, module.block_shape, module.sampler) == (0.3, (4, 4), "balanced")


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_behind_a_layer(bias, device):
    module = SparseDropLinear(64, 96, bias, p=0.5, side="output", block_shape=(16, 32)).to(device)
    x = torch.randn(3, 32, 64, device=device)
    torch.manual_seed(3)
    out = module(x)
    torch.manual_seed(3)
    mask = BlockMask.bernoulli((96, 96), 0.5, block_shape=(16, 32), device=device)
    truth = reference.dropout_linear(x, module.weight, module.bias, mask, 0.5, "output")
    torch.testing.assert_close(out, truth, rtol=1e-4, atol=1e-4)
    assert not out.flatten(0, 1)[~mask.expand()].any()
    module.side = "input"
    torch.manual_seed(3)
    mask = BlockMask.bernoulli((96, 64), 0.5, block_shape=(16, 32), device=device)
    torch.manual_seed(3)
    truth = reference.dropout_linear(x, module.weight, module.bias, mask, 0.5)
    torch.testing.assert_close(module(x), truth, rtol=1e-4, atol=1e-4)
    linear = nn.Linear(64, 96, bias)
    assert SparseDropLinear.from_linear(linear, 0.5, side="output").side == "output"
    with pytest.raises(ValueError, match="side is one of 'input', 'output', not 'both'"):
        SparseDropLinear(4, 4, side="both")
    with pytest.raises(ValueError, match="side is one of"):
        module.side = None


def test_from_linear_takes_only_linear():
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, not Conv2d"):
        SparseDropLinear.from_linear(nn.Conv2d(3, 3, 3))


def test_p_can_be_set_and_is_checked():
    module = SparseDropLinear(12, 8)
    assert module.p == 0.5
    module.p = 0
    x = torch.randn(3, 12)
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    with pytest.raises(ValueError, match=r"p is a probability in \[0, 1\], not 1.5"):
        module.p = 1.5
    assert module.p == 0


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "orthogonal_"])
def test_an_initialiser_of_every_matrix_finds_nothing_in_the_dropout(name):
    module = SparseDropLinear(12, 8)
    for each in module.modules():
        if hasattr(each, "weight") and each.weight.dim() > 1:
            getattr(nn.init, name)(each.weight)


def test_repr_says_what_it_does():
    text = repr(SparseDropLinear(12, 8, p=0.25, block_shape=(64, 128)))
    assert text == (
        "SparseDropLinear(\n"
        "  in_features=12, out_features=8, bias=True, side='input', block_shape=(64, 128), "
        "sampler='bernoulli'\n"
        "  (dropout): DropoutRate(p=0.25, inplace=False)\n"
        ")"
    )


def test_dtype_and_device():
    module = SparseDropLinear(12, 8, device="meta", dtype=torch.bfloat16)
    assert module.weight.device.type == "meta"
    assert module.weight.dtype == torch.bfloat16
    assert module(torch.empty(5, 12, device="meta", dtype=torch.bfloat16)).shape == (5, 8)


def test_it_trains(device):
    model = nn.Sequential(
        SparseDropLinear(64, 64, p=0.25, block_shape=(32, 16), device=device),
        nn.ReLU(),
        SparseDropLinear(64, 10, p=0.25, block_shape=(32, 16), device=device),
    )
    x, target = torch.randn(256, 64, device=device), torch.randint(10, (256,), device=device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_rate_is_that_of_a_child_that_tools_find():
    module = SparseDropLinear(64, 48, p=0.5, block_shape=(8, 8))
    assert sum(isinstance(m, nn.Dropout) for m in module.modules()) == 1
    assert list(module.dropout.parameters()) == []
    assert set(module.state_dict()) == {"weight", "bias"}
    x = torch.randn(32, 64)
    dense = nn.functional.linear(x, module.weight, module.bias)
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.25
    assert module.p == 0.25
    module.eval()
    assert torch.equal(module(x), dense)
    module.dropout.train()  # as for Monte Carlo dropout
    assert not torch.equal(module(x), dense)
    module.train()
    module.dropout.eval()
    assert torch.equal(module(x), dense)
    module.dropout = nn.Identity()
    assert (module.p, torch.equal(module.train()(x), dense)) == (0.0, True)
    module.p = 0.5
    assert not torch.equal(module(x), dense)


def test_a_rate_that_a_tool_set_is_checked_when_it_is_used():
    module = SparseDropLinear(64, 48, block_shape=(8, 8))
    module.dropout.p = 1.5
    with pytest.raises(ValueError, match=r"p is a probability in \[0, 1\], not 1.5"):
        module(torch.randn(32, 64))


@pytest.mark.parametrize("p", [1, np.float32(0.25), np.int64(1), torch.tensor(0.25), 0.5])
def test_any_number_is_a_rate(p):
    module = SparseDropLinear(64, 48, p=p)
    assert module.p == float(p)
    assert type(module.p) is float
    for bad in (True, "0.5", torch.tensor([0.5]), 0.5j, None):
        with pytest.raises(TypeError, match="p must be a number"):
            module.p = bad


def test_any_integers_are_a_block_shape():
    for block in ((np.int32(8), torch.tensor(16)), [8, 16]):
        module = SparseDropLinear(64, 48, block_shape=block)
        assert module.block_shape == (8, 16)
        assert all(type(extent) is int for extent in module.block_shape)
    for bad in ((8.0, 16), (True, 16), (torch.tensor(8.0), 16), (torch.tensor(True), 16)):
        with pytest.raises(TypeError, match="block_shape must be two integers"):
            SparseDropLinear(64, 48, block_shape=bad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_to_linear_shares_everything(bias, training):
    module = SparseDropLinear(12, 8, bias).train(training)
    linear = module.to_linear()
    assert type(linear) is nn.Linear
    assert linear.weight is module.weight
    assert linear.bias is module.bias
    assert (linear.in_features, linear.out_features, linear.training) == (12, 8, training)


def test_what_is_no_parameter_is_not_taken_over():
    for make in (
        lambda linear: torch.nn.utils.parametrizations.weight_norm(linear),
        lambda linear: torch.nn.utils.parametrizations.orthogonal(linear),
        lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    ):
        made = make(nn.Linear(12, 8))
        with pytest.raises(ValueError, match=r"the weight is made of .*make a SparseDropLinear"):
            SparseDropLinear.from_linear(made)
        module = make(SparseDropLinear(12, 8, p=0.5, block_shape=(4, 4)))
        module(torch.randn(16, 12)).sum().backward()
        with pytest.raises(ValueError, match=r"the weight is made of .*take that off"):
            module.to_linear()
    with pytest.raises(ValueError, match="no weight yet: run a lazy module once"):
        SparseDropLinear.from_linear(nn.LazyLinear(8))


def test_what_is_set_later_is_checked():
    module = SparseDropLinear(64, 48)
    module.block_shape = [8, np.int64(16)]
    assert module.block_shape == (8, 16)
    with pytest.raises(ValueError, match=r"block_shape must be positive, not \(0, 4\)"):
        module.block_shape = (0, 4)
    with pytest.raises(ValueError, match=r"sampler is one of .* not 'foo'"):
        module.sampler = "foo"
    assert (module.block_shape, module.sampler) == ((8, 16), "bernoulli")


def test_a_rate_in_the_place_of_the_bias_is_refused():
    with pytest.raises(TypeError, match=r"bias is True or False, not 0.3: p is the"):
        SparseDropLinear(16, 4, 0.3)
