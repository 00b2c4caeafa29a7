"""RowPatternMLP: what it computes, pattern by pattern."""

import re

import pytest
import torch
from torch import nn
from torch.func import functional_call

from cases import assert_accurate
from row_cases import drawing, draws_of, every_pattern, scale_of, weighted_patterns
from sparsedrop import RowPattern, patterns, reference, set_rate
from sparsedrop.nn import RowPatternMLP
from sparsedrop.ops.rows import arithmetic

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
BLOCKS = {
    "plain": {},
    "no bias": {"bias": False},
    "gated": {"gated": True},
    "gated, no bias": {"gated": True, "bias": False, "d_out": 20},
    "narrower than its largest period": {"d_hidden": 5},
    "by the pattern": {"scale": "pattern", "p": 0.7},
}


def _block(dtype=torch.float64, device="cpu", **kwargs):
    settings = {"d_model": 12, "d_hidden": 27, "p": 0.5, **kwargs}
    return RowPatternMLP(**settings).to(device, dtype)


def _layers(block):
    gate = block.gate
    of_gate = (None, None) if gate is None else (gate.weight, gate.bias)
    return (
        (block.up.weight, block.up.bias, block.activation, *of_gate),
        (block.down.weight, block.down.bias, None, None, None),
    )


def _with_grads(function, block, x, upstream):
    x = x.detach().requires_grad_()
    out = function(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *block.parameters()], upstream)]


def _exact(block, x, rows):
    scale = scale_of(block.scale, block.p, rows)
    return reference.feed_forward(x, _layers(block), rows.mask(x.device), scale)


@pytest.mark.parametrize("small", [0, arithmetic.SMALL])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kwargs", BLOCKS.values(), ids=BLOCKS)
def test_every_pattern_is_the_masked_dense_block(kwargs, activation, small, device, monkeypatch):
    monkeypatch.setattr(arithmetic, "SMALL", small)  # gradients zeroed in parts, and whole
    block = _block(device=device, activation=activation, **kwargs)
    x = torch.randn(2, 7, 12, dtype=torch.float64, device=device)
    upstream = torch.randn(2, 7, block.down.out_features, dtype=torch.float64, device=device)
    names = ["out", "x", *dict(block.named_parameters())]
    for rows in every_pattern(block.up.out_features, 8):
        with drawing(rows):
            ours = _with_grads(block, block, x, upstream)
        exact = _with_grads(lambda x, rows=rows: _exact(block, x, rows), block, x, upstream)
        for name, own, truth in zip(names, ours, exact, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-12, atol=1e-12)
            if name.startswith(("up", "gate")):
                assert not own[~rows.mask()].any()
            if name == "down.weight":
                assert not own[:, ~rows.mask()].any()


def test_a_pattern_without_units_gives_the_bias():
    block = _block(d_hidden=3)
    with drawing(RowPattern(3, 8, 7)):
        out = block(torch.randn(4, 12, dtype=torch.float64))
    assert torch.equal(out, block.down.bias.expand(4, 12))
    out.sum().backward()
    assert not block.up.weight.grad.any()
    assert not block.down.weight.grad.any()
    assert torch.equal(block.down.bias.grad, torch.full((12,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_other_dtypes_err_as_torch_does(activation, dtype, device):
    block = _block(dtype, device, d_model=64, d_hidden=128, activation=activation, gated=True)
    x = torch.randn(96, 64, device=device, dtype=dtype)
    upstream = torch.randn(96, 64, device=device, dtype=dtype)
    if activation == "relu":  # whose slope jumps at 0: in whole numbers its argument is exact
        for tensor in (x, block.gate.weight, block.gate.bias):
            tensor.data.copy_(torch.randint(-1, 2, tensor.shape))
    wide = _block(device=device, d_model=64, d_hidden=128, activation=activation, gated=True)
    wide.load_state_dict(block.state_dict())
    for rows in (RowPattern(128, 1, 0), RowPattern(128, 3, 1), RowPattern(128, 8, 7)):
        with drawing(rows):
            ours = _with_grads(block, block, x, upstream)
        plain = _with_grads(lambda x, rows=rows: _exact(block, x, rows), block, x, upstream)
        exact = _with_grads(
            lambda x, rows=rows: _exact(wide, x, rows), wide, x.double(), upstream.double()
        )
        assert_accurate(ours, exact, plain)


@pytest.mark.parametrize("kwargs", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("how", ["evaluation", "a rate of 0", "the child's switch"])
def test_without_dropout_it_is_the_dense_block_and_draws_nothing(kwargs, how, device):
    block = _block(device=device, **kwargs)
    x = torch.randn(5, 12, dtype=torch.float64, device=device)
    if how == "evaluation":
        block.eval()
    elif how == "a rate of 0":
        block.p = 0.0
    else:
        block.dropout.eval()
    state = torch.get_rng_state()
    out = block(x)
    assert torch.equal(torch.get_rng_state(), state)
    block.turned = False
    all_kept = torch.ones(block.up.out_features, dtype=torch.bool, device=device)
    dense = reference.feed_forward(x, _layers(block), all_kept)
    assert torch.equal(block(x), dense)
    # By columns a product may add in another order.
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", ["global", "pattern"])
@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
def test_units_keep_their_expectation(p, scale):
    every = weighted_patterns(27, p)
    kept = sum(weight * rows.mask().double() for weight, rows in every)
    torch.testing.assert_close(
        kept, torch.full((27,), 1 - p, dtype=torch.float64), rtol=0, atol=1e-9
    )
    scaled = sum(w * scale_of(scale, p, rows) * rows.mask().double() for w, rows in every)
    torch.testing.assert_close(scaled, torch.ones(27).double(), rtol=0, atol=1e-9)
    # So does what a block without activation makes.
    block = _block(activation=None, p=p, scale=scale)
    x, mean = torch.randn(3, 12, dtype=torch.float64), 0.0
    for weight, rows in every:
        with drawing(rows):
            mean = mean + weight * block(x)
    torch.testing.assert_close(mean, block.eval()(x), rtol=0, atol=1e-9)


def test_draws_follow_the_rate_and_repeat_by_seed():
    block, x = _block(p=0.3), torch.randn(1, 12, dtype=torch.float64)
    masks = draws_of(lambda: block(x), 20000, 27)
    shares = masks.double().mean(0)
    assert ((shares - 0.7).abs() < 5 * (0.21 / 20000) ** 0.5).all()
    assert (masks[1:] != masks[:-1]).any(1).double().mean() > 0.5
    torch.manual_seed(1)
    first = [block(x) for _ in range(5)]
    torch.manual_seed(1)
    assert all(torch.equal(block(x), out) for out in first)


@pytest.mark.parametrize("kwargs", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_gradcheck(activation, kwargs):
    settings = {**kwargs, "d_hidden": 6}
    block = _block(activation=activation, **settings)
    names, values = zip(*block.named_parameters(), strict=True)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        with drawing(RowPattern(6, 2, 1)):
            return functional_call(block, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values))
    assert torch.autograd.gradgradcheck(run, (x, *values), atol=1e-4)


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_dict_is_that_of_the_dense_block_both_ways(assign, tmp_path):
    block = RowPatternMLP(8, 16, 4, gated=True)
    dense = nn.ModuleDict(
        {"up": nn.Linear(8, 16), "gate": nn.Linear(8, 16), "down": nn.Linear(16, 4)}
    )
    shapes = {name: value.shape for name, value in dense.state_dict().items()}
    assert {name: value.shape for name, value in block.state_dict().items()} == shapes
    dense.load_state_dict(block.state_dict())
    assert all(torch.equal(dense.state_dict()[name], v) for name, v in block.state_dict().items())
    other = RowPatternMLP(8, 16, 4, gated=True)
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    other.load_state_dict(torch.load(tmp_path / "dense.pt"), assign=assign)
    x = torch.randn(3, 8)
    torch.testing.assert_close(other.eval()(x), block.eval()(x))
    for each in (block, other, other.to(torch.bfloat16)):
        assert each.down.weight.stride() == (1, 4)
    assert {type(m) for m in (block.up, block.gate, block.down)} == {nn.Linear}


def test_down_lies_by_columns_so_that_kept_units_are_views():
    block = RowPatternMLP(8, 16, 4, gated=True)
    rows = RowPattern(16, 3, 1)
    columns = block.down.weight[:, rows.kept]
    assert columns.data_ptr() == block.down.weight.data_ptr() + 4 * 4
    assert columns.stride() == (1, 3 * 4)
    block(torch.randn(5, 8)).sum().backward()
    assert block.down.weight.grad.stride() == (1, 4)
    block.turned = False
    assert block.down.weight.is_contiguous()
    assert RowPatternMLP(8, 16, device="meta").down.weight.stride() == (1, 8)


def test_from_linears_holds_the_layers():
    up, gate, down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
    before, x = down.weight.clone(), torch.randn(5, 8)
    expected = down(nn.functional.silu(gate(x)) * up(x))
    block = RowPatternMLP.from_linears(up.eval(), down, 0.25, gate=gate, activation="silu")
    assert (block.up, block.gate, block.down) == (up, gate, down)
    assert (block.p, block.activation, block.training) == (0.25, "silu", False)
    assert torch.equal(down.weight, before)
    assert down.weight.stride() == (1, 4)
    torch.testing.assert_close(block(x), expected)
    block.train()(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    with pytest.raises(ValueError, match="up makes 16 features and down takes 8"):
        RowPatternMLP.from_linears(up, gate)


def test_the_rate_is_that_of_a_child_that_tools_find():
    model = nn.Sequential(RowPatternMLP(8, 16, p=0.25), RowPatternMLP(8, 16))
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert found == {"0.dropout": 0.25, "1.dropout": 0.5}
    assert set_rate(model, 0.4) == 2
    assert (model[0].p, model[1].dropout.p) == (0.4, 0.4)
    model[1].patterns = 2
    with pytest.raises(ValueError, match=r"p = 0.6 is more than 2 periods give"):
        set_rate(model, 0.6)
    assert (model[0].p, model[1].p) == (0.4, 0.4)
    block = model[0]
    block.p, block.patterns, block.scale = 0.0, 2, "pattern"
    assert (block.p, block.patterns, block.scale) == (0.0, 2, "pattern")


TOO_LARGE = "p = 0.9 is more than 8 periods give: at most (n - 1) / n = 0.875; take a larger n"
WRONG = {
    "p is a probability in [0, 1], not 1.5": {"p": 1.5},
    TOO_LARGE: {"p": 0.9},
    "n must be a whole number of at least 1, not 8.0": {"patterns": 8.0},
    "scale is one of 'global', 'pattern', not 'none'": {"scale": "none"},
    "activation is one of None, 'relu', 'gelu', 'silu', 'gelu_tanh', not 'tanh'": {
        "activation": "tanh"
    },
}


@pytest.mark.parametrize(("sentence", "kwargs"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, kwargs):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        RowPatternMLP(8, 16, **kwargs)


def test_wrong_rates_and_operands():
    block = RowPatternMLP(8, 16)
    with pytest.raises(ValueError, match=re.escape(TOO_LARGE)):
        block.p = 0.9
    with pytest.raises(ValueError, match=r"p = 0.5 is more than 1 periods give"):
        block.patterns = 1
    assert (block.p, block.patterns) == (0.5, 8)
    with pytest.raises(ValueError, match=r"x is \[4, 9\] and weight is \[16, 8\]: inner extents"):
        block(torch.randn(4, 9))
    with pytest.raises(ValueError, match=r"x is torch.float64 and weight is torch.float32"):
        block(torch.randn(4, 8).double())
    block.dropout.p = 0.9  # by a tool that knows nothing of periods
    with pytest.raises(ValueError, match=re.escape(TOO_LARGE)):
        block(torch.randn(4, 8))
    assert patterns.rate(patterns.search(0.875)) == 0.875
