"""TilePatternLinear: what it computes, pattern by pattern."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cases import assert_accurate
from row_cases import drawing, every_pattern, scale_of, weighted_patterns
from sparsedrop import BlockMask, RowPattern, reference, select, set_rate
from sparsedrop.nn import TilePatternLinear

# Tiles of 8: with ragged last ones, a single tile, and a column of them.
SHAPES = [(32, 40), (27, 21), (5, 7), (8, 64)]


def _layer(k, n, device="cpu", dtype=torch.float64, **kwargs):
    return TilePatternLinear(k, n, **{"tile": 8, **kwargs}).to(device, dtype)


def _live(n, k, tile, period, offset):
    """bool [n, k], element by element."""
    return torch.tensor(
        [[(i // tile + j // tile - offset) % period == 0 for j in range(k)] for i in range(n)]
    )


def _with_grads(function, layer, x, upstream):
    x = x.detach().requires_grad_()
    out = function(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], upstream)]


def _exact(layer, x, rows, live):
    scale = scale_of(layer.scale, layer.p, rows)
    weight = torch.where(live, layer.weight, 0)
    return nn.functional.linear(x * scale, weight, layer.bias)


@pytest.mark.parametrize("path", [None, "cpu", "dense"])
@pytest.mark.parametrize("scale", ["global", "pattern"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_every_pattern_is_the_masked_dense_layer(k, n, bias, scale, path):
    layer = _layer(k, n, bias=bias, scale=scale)
    x = torch.randn(2, 7, k, dtype=torch.float64)
    upstream = torch.randn(2, 7, n, dtype=torch.float64)
    for rows in every_pattern(n, 8):
        live = _live(n, k, 8, rows.period, rows.offset)
        with drawing(rows), select.override(path=path):
            ours = _with_grads(layer, layer, x, upstream)
        exact = _with_grads(lambda x, r=rows, m=live: _exact(layer, x, r, m), layer, x, upstream)
        for own, truth in zip(ours, exact, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-12, atol=1e-12)
        assert not ours[2][~live].any()


def test_the_reference_says_the_same(device):
    layer = _layer(40, 32, device)
    x, rows = torch.randn(6, 40, dtype=torch.float64, device=device), RowPattern(32, 3, 1)
    mask = BlockMask.from_live(_live(4, 5, 1, 3, 1).to(device), (32, 40), block_shape=(8, 8))
    with drawing(rows):
        ours = layer(x)
    exact = reference.linear(x, layer.weight, layer.bias, weight_mask=mask, alpha=2.0)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", [64, 128])
def test_kernels_err_as_torch_does(tile, dtype):
    layer = _layer(512, 768, "cuda", dtype, tile=tile)
    wide = copy.deepcopy(layer).double()
    x = torch.randn(256, 512, device="cuda", dtype=dtype)
    upstream = torch.randn(256, 768, device="cuda", dtype=dtype)
    for rows in (RowPattern(768, 1, 0), RowPattern(768, 3, 1), RowPattern(768, 8, 7)):
        live = _live(768, 512, tile, rows.period, rows.offset).cuda()
        with drawing(rows):
            ours = _with_grads(layer, layer, x, upstream)
        plain = _with_grads(lambda x, r=rows, m=live: _exact(layer, x, r, m), layer, x, upstream)
        exact = _with_grads(
            lambda x, r=rows, m=live: _exact(wide, x, r, m), wide, x.double(), upstream.double()
        )
        assert_accurate(ours, exact, plain)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("scale", ["global", "pattern"])
def test_tiles_keep_their_expectation(p, scale):
    every = weighted_patterns(24, p)
    live = {rows: _live(4, 7, 1, rows.period, rows.offset).double() for _, rows in every}
    kept = sum(weight * live[rows] for weight, rows in every)
    ones = torch.ones(4, 7, dtype=torch.float64)
    torch.testing.assert_close(kept, (1 - p) * ones, rtol=0, atol=1e-9)
    scaled = sum(weight * scale_of(scale, p, rows) * live[rows] for weight, rows in every)
    torch.testing.assert_close(scaled, ones, rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", ["evaluation", "a rate of 0", "the child's switch"])
def test_without_dropout_it_is_the_dense_layer_and_draws_nothing(how, device):
    layer = _layer(40, 32, device, torch.float32)
    if how == "evaluation":
        layer.eval()
    elif how == "a rate of 0":
        layer.p = 0.0
    else:
        layer.dropout.eval()
    x, state = torch.randn(5, 40, device=device), torch.get_rng_state()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_the_rate_differ_and_repeat_by_seed():
    layer, x = _layer(8, 8, p=0.3, tile=1, bias=False), torch.eye(8, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    seen = torch.stack([layer(x).detach() != 0 for _ in range(2000)]).double()
    assert (weight != 0).all()
    assert ((seen.mean(0) - 0.7).abs() < 5 * (0.21 / 2000) ** 0.5).all()
    assert (seen[1:] != seen[:-1]).any(2).any(1).double().mean() > 0.5
    torch.manual_seed(1)
    first = [layer(x) for _ in range(5)]
    torch.manual_seed(1)
    assert all(torch.equal(layer(x), out) for out in first)


@pytest.mark.parametrize("scale", ["global", "pattern"])
@pytest.mark.parametrize("mode", ["compiled", "checkpointed", "exported"])
def test_other_modes_draw_what_eager_mode_does(mode, scale):
    torch._dynamo.reset()
    layer, x = _layer(40, 32, scale=scale), torch.randn(6, 40, dtype=torch.float64)
    if mode == "compiled":
        function = torch.compile(layer, fullgraph=True, backend="aot_eager")
    elif mode == "exported":
        function = torch.export.export(layer, (x,)).module()
    else:
        function = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(8):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(seed)
            ours = function(leaf)
            torch.manual_seed(seed)
            plain = layer(leaf)
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
            own, other = (torch.autograd.grad(o.square().sum(), leaf) for o in (ours, plain))
            torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)


def test_masks_are_made_once_and_not_when_the_module_has_moved():
    layer, x = _layer(40, 32), torch.randn(6, 40, dtype=torch.float64)
    for _ in range(200):
        layer(x)
    masks = dict(layer._masks)
    assert len(masks) <= 36
    for _ in range(20):
        layer(x)
    assert all(layer._masks[key] is mask for key, mask in masks.items())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False), layer.double()):
        assert other._masks == {}
        assert other(x).shape == (6, 32)
    layer.weight = nn.Parameter(torch.randn(24, 40, dtype=torch.float64))
    layer.bias = None
    assert layer(x).shape == (6, 24)


def test_it_shares_the_parameters_of_a_linear_layer():
    linear = nn.Linear(40, 32, bias=False).eval()
    layer = TilePatternLinear.from_linear(linear, 0.3, tile=8, patterns=4, scale="pattern")
    assert layer.weight is linear.weight
    assert (layer.bias, layer.training, layer.p, layer.tile) == (None, False, 0.3, 8)
    assert (layer.patterns, layer.scale) == (4, "pattern")
    assert layer.state_dict().keys() == linear.state_dict().keys()
    linear.load_state_dict(layer.state_dict())
    layer.load_state_dict(linear.state_dict())
    with pytest.raises(TypeError, match=r"linear must be an nn.Linear, not ReLU"):
        TilePatternLinear.from_linear(nn.ReLU())
    assert set_rate(nn.Sequential(layer), 0.2) == 1
    assert layer.dropout.p == 0.2


def test_autocast_gives_gradients_in_float32():
    layer = _layer(40, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(6, 40))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


WRONG = {
    "p = 0.9 is more than 8 periods give: at most (n - 1) / n = 0.875; take a larger n": {"p": 0.9},
    "tile must be a whole number of at least 1, not 0": {"tile": 0},
    "scale is one of 'global', 'pattern', not 1": {"scale": 1},
    "n must be a whole number of at least 1, not 0": {"patterns": 0},
}


@pytest.mark.parametrize(("sentence", "kwargs"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, kwargs):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        TilePatternLinear(8, 16, **kwargs)
    with pytest.raises(TypeError, match="p is a probability, not True"):
        TilePatternLinear(8, 16, True)
