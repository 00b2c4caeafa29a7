"""sparsedrop.linear and dropout_linear: bias, activations, ranks, and what p and training mean."""

import itertools

import pytest
import torch
from torch import nn

import sparsedrop
from cases import (
    WITH_DTYPES,
    assert_accurate,
    normal,
    poisoned,
    random_mask,
    signs,
    value_and_grads,
)
from sparsedrop import BlockMask, reference

SIDES = ["input", "output"]
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}

# M, N, K, block shape: aligned, ragged, and with extents no kernel takes.
SHAPES = [(256, 384, 192, (128, 64)), (264, 200, 136, (128, 128)), (75, 10, 65, (32, 16))]


def _setup(shape, sides, values, dtype, device):
    """Inputs x, weight, bias, the masks of some sides, and an upstream gradient."""
    m, n, k, block = shape
    extents = {"x": (m, k), "weight": (n, k), "out": (m, n)}
    masks = {f"{side}_mask": random_mask(extents[side], block, device) for side in sides}
    inputs = [values(*extent).to(device, dtype) for extent in ((m, k), (n, k), (n,))]
    return inputs, masks, values(m, n).to(device, dtype)


def _run(function, inputs, upstream, **kwargs):
    return value_and_grads(lambda *args: function(*args, **kwargs), inputs, upstream)


EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
EACH_SIDE = pytest.mark.parametrize(
    "sides",
    [s for count in range(4) for s in itertools.combinations(("x", "weight", "out"), count)],
    ids=lambda sides: "-".join(sides) or "dense",
)


@EACH_SHAPE
@EACH_SIDE
@WITH_DTYPES
def test_exact(shape, sides, device, dtype):
    inputs, masks, upstream = _setup(shape, sides, signs, dtype, device)
    doubled = [x.double() for x in inputs]
    for activation in (None, "relu"):
        kwargs = {"alpha": 2.0, "activation": activation, **masks}
        ours = _run(sparsedrop.linear, inputs, upstream, **kwargs)
        exact = _run(reference.linear, doubled, upstream.double(), **kwargs)
        for own, truth in zip(ours, exact, strict=True):
            assert torch.equal(own.double(), truth)
            assert own.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@EACH_SHAPE
@EACH_SIDE
@WITH_DTYPES
def test_accurate(shape, sides, activation, device, dtype):
    inputs, masks, upstream = _setup(shape, sides, normal, dtype, device)
    kwargs = {"alpha": 0.1, "activation": activation, **masks}
    ours = _run(sparsedrop.linear, inputs, upstream, **kwargs)
    torchs = _run(reference.linear, inputs, upstream, **kwargs)
    exact = _run(reference.linear, [x.double() for x in inputs], upstream.double(), **kwargs)
    # relu's gradient jumps where a sum of almost 0 changes its sign: test_exact has it.
    compared = 1 if activation == "relu" else len(ours)
    assert_accurate(ours[:compared], exact[:compared], torchs[:compared])
    with torch.no_grad():  # then every activation is fused
        fused = sparsedrop.linear(*inputs, **kwargs)
    assert_accurate([fused], exact[:1], torchs[:1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@EACH_SHAPE
@WITH_DTYPES
def test_dropped_blocks_are_never_read(shape, activation, device, dtype):
    inputs, masks, upstream = _setup(shape, ("x", "weight", "out"), normal, dtype, device)
    kwargs = {"activation": activation, **masks}
    clean = _run(sparsedrop.linear, inputs, upstream, **kwargs)
    x, weight, bias = inputs
    bad = [poisoned(x, masks["x_mask"]), poisoned(weight, masks["weight_mask"]), bias]
    results = _run(sparsedrop.linear, bad, poisoned(upstream, masks["out_mask"]), **kwargs)
    for result, expected in zip(results, clean, strict=True):
        assert torch.equal(result, expected)
    assert not results[0][~masks["out_mask"].expand()].any()
    assert not results[1][~masks["x_mask"].expand()].any()


@pytest.mark.parametrize("lead", [(), (1,), (256,), (2, 128), (4, 8, 8)], ids=str)
def test_leading_extents_are_flattened(lead, device):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, weight = signs(*lead, 128).to(device, dtype), signs(64, 128).to(device, dtype)
    bias, upstream = signs(64).to(device, dtype), signs(*lead, 64).to(device, dtype)
    mask = random_mask((x.numel() // 128, 128), (64, 64), device)
    ours = _run(sparsedrop.linear, [x, weight, bias], upstream, x_mask=mask)
    truth = _run(reference.linear, [x, weight, bias], upstream, x_mask=mask)
    assert ours[0].shape == (*lead, 64)
    for own, expected in zip(ours, truth, strict=True):
        assert torch.equal(own, expected)


def test_a_transposed_batch_is_right(device):
    """x[T, B, K] seen as [B, T, K] flattens to a copy, not to a view."""
    x = signs(16, 32, 64).to(device, torch.float32).transpose(0, 1)
    weight = signs(48, 64).to(device, torch.float32)
    mask = random_mask((512, 64), (64, 32), device)
    out = sparsedrop.linear(x, weight, x_mask=mask)
    assert torch.equal(out, reference.linear(x, weight, x_mask=mask))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@WITH_DTYPES
def test_dropout_linear_is_linear_under_the_mask_it_draws(p, sampler, side, device, dtype):
    inputs, _, upstream = _setup((256, 384, 320, None), (), normal, dtype, device)
    x = inputs[0]
    how = {"p": p, "sampler": sampler, "block_shape": (128, 64), "side": side}
    torch.manual_seed(5)
    ours = _run(sparsedrop.dropout_linear, inputs, upstream, **how)
    torch.manual_seed(5)
    shape = x.shape if side == "input" else upstream.shape
    mask = SAMPLERS[sampler](shape, p, block_shape=(128, 64), device=x.device)

    def own(x, weight, bias):
        return reference.dropout_linear(x, weight, bias, mask, p, side)

    torchs = _run(own, inputs, upstream)
    exact = _run(own, [t.double() for t in inputs], upstream.double())
    assert_accurate(ours, exact, torchs)


@pytest.mark.parametrize("kwargs", [{"p": 0.0}, {"training": False}, {"p": 1.0, "training": False}])
@WITH_DTYPES
def test_eval_and_p_zero_are_the_dense_layer_and_draw_nothing(kwargs, device, dtype):
    inputs, _, upstream = _setup(SHAPES[2], (), normal, dtype, device)
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state())
    ours = _run(sparsedrop.dropout_linear, inputs, upstream, **kwargs)
    assert torch.equal(torch.get_rng_state(), states[0])
    if device.type == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), states[1])
    for own, truth in zip(ours, _run(nn.functional.linear, inputs, upstream), strict=True):
        assert torch.equal(own, truth)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@WITH_DTYPES
def test_p_one_gives_the_bias(shape, sampler, device, dtype):
    inputs, _, upstream = _setup(shape, (), signs, dtype, device)
    x, weight, bias = inputs
    out, grad_x, grad_weight, grad_bias = _run(
        sparsedrop.dropout_linear, inputs, upstream, p=1.0, sampler=sampler
    )
    assert torch.equal(out, bias.expand_as(out))
    assert torch.equal(grad_x, torch.zeros_like(x))
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    assert torch.equal(grad_bias, upstream.sum(0))
    no_bias = sparsedrop.dropout_linear(x, weight, p=1.0, sampler=sampler)
    assert torch.equal(no_bias, torch.zeros_like(no_bias))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@WITH_DTYPES
def test_p_one_behind_the_layer_gives_zeros(shape, sampler, device, dtype):
    inputs, _, upstream = _setup(shape, (), signs, dtype, device)
    how = {"p": 1.0, "sampler": sampler, "side": "output"}
    for found in _run(sparsedrop.dropout_linear, inputs, upstream, **how):
        assert not found.any()


@WITH_DTYPES
def test_what_is_dropped_behind_a_layer_may_be_nan(device, dtype):
    inputs, _, upstream = _setup(SHAPES[0], (), normal, dtype, device)
    how = {"p": 0.5, "side": "output", "block_shape": (64, 64)}
    torch.manual_seed(5)
    clean = _run(sparsedrop.dropout_linear, inputs, upstream, **how)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli(upstream.shape, 0.5, block_shape=(64, 64), device=device)
    poisoned = torch.where(mask.expand(), upstream, torch.nan)
    torch.manual_seed(5)
    for own, other in zip(
        _run(sparsedrop.dropout_linear, inputs, poisoned, **how), clean, strict=True
    ):
        assert torch.equal(own, other)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 5)], ids=str)
def test_an_empty_batch(lead, side, device):
    x = torch.randn(*lead, 64, device=device)
    weight, bias = torch.randn(32, 64, device=device), torch.randn(32, device=device)
    out, grad_x, grad_weight, grad_bias = _run(
        sparsedrop.dropout_linear,
        [x, weight, bias],
        torch.randn(*lead, 32, device=device),
        side=side,
    )
    assert out.shape == (*lead, 32)
    assert grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_no_inputs_give_the_bias(device):
    x, bias = torch.randn(5, 0, device=device), torch.randn(7, device=device)
    out = sparsedrop.dropout_linear(x, torch.randn(7, 0, device=device), bias)
    assert torch.equal(out, bias.expand(5, 7))
