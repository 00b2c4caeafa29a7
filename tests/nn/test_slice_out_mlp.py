"""SliceOutMLP: what it computes, slice by slice, against the masked dense block."""

import itertools
import re
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

import sparsedrop
from slice_cases import assert_equal_to, drawing, every_slice, masked, value_and_grads
from sparsedrop.nn import SliceOutMLP, SparseDropMLP
from sparsedrop.ops.slices.products import SMALL

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
BLOCKS = {
    "plain": {},
    "no bias": {"bias": False},
    "gated": {"gated": True},
    "gated, no bias, other width": {"gated": True, "bias": False, "d_out": 24},
    "few": {"p": 0.9},
    "aligned": {"starts": "aligned", "p": 0.25},
    "anywhere, by how often": {"starts": "all", "normalization": "probabilistic", "gated": True},
    "aligned, by how often": {"starts": "aligned", "normalization": "probabilistic"},
    "cyclic, by how often": {"normalization": "probabilistic"},
    "not scaled": {"normalization": "none"},
}
UNITS = 48


def _mlp(dtype=torch.float64, device="cpu", **kwargs):
    settings = {"p": 0.5, "align": 8, **kwargs}
    return SliceOutMLP(32, UNITS, **settings).to(device, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kwargs", BLOCKS.values(), ids=BLOCKS)
def test_every_slice_is_the_masked_dense_block(kwargs, activation, device):
    mlp = _mlp(**{"activation": activation, **kwargs}).to(device)
    x = torch.randn(3, 5, 32, dtype=torch.float64, device=device)
    upstream = torch.randn(3, 5, mlp.down.out_features, dtype=torch.float64, device=device)
    names, parameters = zip(*mlp.named_parameters(), strict=True)
    every = every_slice(mlp, UNITS)
    assert len(every) > 1
    for chosen in every:
        with drawing(chosen):
            ours = value_and_grads(mlp, x, parameters, upstream)
        exact = value_and_grads(
            lambda x, chosen=chosen: masked(mlp, x, chosen), x, parameters, upstream
        )
        assert_equal_to(ours, exact)
        dropped = ~chosen.mask(device)
        for name, grad in zip(names, ours[2:], strict=True):
            if name.startswith("down"):
                assert name == "down.bias" or not grad[:, dropped].any()
            else:
                assert not grad[dropped].any()


@pytest.mark.parametrize("gated", [True, False])
def test_large_gradients_are_the_masked_ones(gated):
    """Of which only the rest is zeroed."""
    mlp = SliceOutMLP(256, 512, p=0.5, gated=gated).double()
    assert mlp.up.weight.numel() > SMALL
    x, upstream = torch.randn(4, 256).double(), torch.randn(4, 256).double()
    parameters = list(mlp.parameters())
    for chosen in every_slice(mlp, 512):
        with drawing(chosen):
            ours = value_and_grads(mlp, x, parameters, upstream)
        exact = value_and_grads(
            lambda x, chosen=chosen: masked(mlp, x, chosen), x, parameters, upstream
        )
        assert_equal_to(ours, exact)
        dropped = ~chosen.mask()
        assert not ours[2][dropped].any()
        assert not ours[-2][:, dropped].any()


def test_what_lies_outside_of_a_slice_is_never_read():
    mlp = _mlp(gated=True)
    x = torch.randn(5, 32, dtype=torch.float64)
    for chosen in every_slice(mlp, UNITS):
        bad = _mlp(gated=True)
        bad.load_state_dict(mlp.state_dict())
        with torch.no_grad():
            for layer in (bad.up, bad.gate):
                layer.weight[~chosen.mask()] = float("nan")
                layer.bias[~chosen.mask()] = float("nan")
            bad.down.weight[:, ~chosen.mask()] = float("nan")
        with drawing(chosen):
            assert torch.equal(bad(x), mlp(x))
            bad(x).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in bad.parameters())


@pytest.mark.parametrize("starts", ["cyclic", "aligned", "all"])
@pytest.mark.parametrize("normalization", ["constant", "probabilistic"])
def test_the_mean_over_all_slices_is_the_dense_block(starts, normalization):
    """Without an activation behind it the block is linear in what is dropped."""
    mlp = _mlp(starts=starts, normalization=normalization, gated=True)
    x = torch.randn(5, 32, dtype=torch.float64)
    outs = []
    for chosen in every_slice(mlp, UNITS):
        with drawing(chosen):
            outs.append(mlp(x))
    mean, dense = torch.stack(outs).mean(0), mlp.eval()(x)
    is_unbiased = normalization == "probabilistic" or starts == "cyclic"
    assert ((mean - dense).abs().max() < 1e-9) == is_unbiased


@pytest.mark.parametrize("kwargs", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("how", ["evaluation", "rate of 0", "the child's switch", "replaced"])
def test_without_dropout_it_is_the_dense_block_and_draws_nothing(kwargs, how, device):
    mlp = _mlp(torch.float32, device, **kwargs)
    x = torch.randn(5, 32, device=device)
    if how == "evaluation":
        mlp.eval()
    elif how == "rate of 0":
        assert sparsedrop.set_rate(mlp, 0.0) == 1
    elif how == "replaced":
        mlp.dropout = nn.Identity()
    else:
        mlp.dropout.eval()
    state = torch.get_rng_state()
    hidden = nn.functional.gelu(mlp.up(x) if mlp.gate is None else mlp.gate(x))
    hidden = hidden if mlp.gate is None else hidden * mlp.up(x)
    assert torch.equal(mlp(x), mlp.down(hidden))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_the_marginals_differ_and_repeat_by_seed():
    mlp = _mlp(activation=None, bias=False)
    with torch.no_grad():
        for layer in (mlp.up, mlp.down):
            layer.weight.zero_()
        mlp.up.weight[:, 0] = 1.0
        # Bit i of the first output says whether the i-th eight units are kept
        mlp.down.weight[0, ::8] = 2.0 ** torch.arange(6).double()
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, 0] = 0.5  # which the scale of 2 undoes
    torch.manual_seed(0)
    codes = torch.stack([mlp(x)[0, 0].detach() for _ in range(3000)]).long()
    kept = torch.stack([codes >> i & 1 for i in range(6)]).double().mean(1)
    assert ((kept - 0.5).abs() < 5 * (0.25 / 3000) ** 0.5).all()
    assert sum(a != b for a, b in itertools.pairwise(codes.tolist())) > 2000
    torch.manual_seed(0)
    assert [int(mlp(x)[0, 0]) for _ in range(50)] == codes[:50].tolist()


@pytest.mark.parametrize("kwargs", [{}, {"gated": True}, {"normalization": "probabilistic",
                                                          "starts": "all"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, kwargs):
    mlp = SliceOutMLP(3, 4, 2, activation=activation, align=1, **kwargs).double()
    names, values = zip(*mlp.named_parameters(), strict=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        torch.manual_seed(5)
        return functional_call(mlp, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values))
    assert torch.autograd.gradgradcheck(run, (x, *values), atol=1e-4)


@pytest.mark.parametrize("gated", [True, False])
def test_the_state_dict_is_that_of_the_dense_block_both_ways(gated):
    mlp = SliceOutMLP(8, 16, 4, gated=gated, align=4)
    other = SparseDropMLP(8, 16, 4, gated=gated)
    assert mlp.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(mlp.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(other.eval()(x), mlp.eval()(x))
    mlp.load_state_dict(SparseDropMLP(8, 16, 4, gated=gated).state_dict())


def test_from_linears_holds_the_layers():
    up, gate, down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
    up.eval()
    how = {"align": 4, "starts": "all", "normalization": "none", "gradients": "lazy"}
    mlp = SliceOutMLP.from_linears(up, down, 0.25, gate=gate, activation="silu", **how)
    assert (mlp.up, mlp.gate, mlp.down) == (up, gate, down)
    assert (mlp.p, mlp.activation, mlp.training) == (0.25, "silu", False)
    assert {name: getattr(mlp, name) for name in how} == how
    with pytest.raises(ValueError, match="up makes 16 features and down takes 8"):
        SliceOutMLP.from_linears(up, gate)
    with pytest.raises(ValueError, match=r"gate is 16 -> 4, and up 8 -> 16"):
        SliceOutMLP.from_linears(up, down, gate=down)
    with pytest.raises(TypeError, match=r"down must be an nn.Linear, not ReLU"):
        SliceOutMLP.from_linears(up, nn.ReLU())


WRONG = {
    "p must be below 1: a slice keeps some units": {"p": 1.0},
    "p is a probability in [0, 1], not 1.5": {"p": 1.5},
    "activation is one of None, 'relu', 'gelu', 'silu', 'gelu_tanh', not 'tanh'": {
        "activation": "tanh"
    },
    "align must be a whole number of at least 1, not 0": {"align": 0},
    "starts is one of 'cyclic', 'aligned', 'all', not 'any'": {"starts": "any"},
    "normalization is one of 'constant', 'probabilistic', 'none', not None": {
        "normalization": None
    },
    "gradients is one of 'dense', 'lazy', not 'sparse'": {"gradients": "sparse"},
}


@pytest.mark.parametrize(("sentence", "kwargs"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, kwargs):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        SliceOutMLP(8, 16, **kwargs)
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        setattr(SliceOutMLP(8, 16), name, value)


@pytest.mark.parametrize(
    ("units", "p", "advice"),
    [(64, 0.5, "align=32"), (256, 0.1, "align=32"), (3, 0.1, "a larger p")],
)
def test_a_slice_that_keeps_all_is_told_of_once(units, p, advice):
    block, x = SliceOutMLP(8, units, p=0.01), torch.randn(4, 8)
    with warnings.catch_warnings():  # where a schedule may start
        warnings.simplefilter("error")
        block(x)
    block.p = p
    with pytest.warns(UserWarning, match=f"of {units} hidden units .* It takes {advice}$"):
        out = block(x)
    assert torch.equal(out, block.eval()(x))
    block.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block(x)
        if advice.startswith("align"):
            block.align = int(advice.partition("=")[2])
            assert block.choice(units, p).width < units


def test_wrong_operands_and_rates():
    mlp = SliceOutMLP(8, 16, align=4)
    with pytest.raises(ValueError, match=r"x is \[4, 9\] and weight is \[16, 8\]: inner extents"):
        mlp(torch.randn(4, 9))
    with pytest.raises(ValueError, match=r"x is torch.float64 and weight is torch.float32"):
        mlp(torch.randn(4, 8).double())
    mlp.dropout.p = 1.0
    with pytest.raises(ValueError, match="p must be below 1: a slice keeps some units"):
        mlp(torch.randn(4, 8))
    with pytest.raises(ValueError, match="p must be below 1: a slice keeps some units"):
        sparsedrop.set_rate(mlp, 1.0)
