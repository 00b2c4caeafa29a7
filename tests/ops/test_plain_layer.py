"""A layer in plain operations: what a CPU runs where skipping would not pay."""

import pytest
import torch

import sparsedrop
from cases import CountProducts, normal, value_and_grads
from sparsedrop import BlockMask, reference, select
from sparsedrop.ops.layer import Options, dropout_linear_plain, suits_cpu

SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [((64,), 48, 64), ((3, 7), 10, 65), ((), 5, 30)], ids=str)
def test_it_is_the_reference_under_the_mask_it_draws(shape, sampler):
    lead, n, k = shape
    inputs = [normal(*lead, k), normal(n, k), normal(n)]
    upstream = normal(*lead, n)
    options = Options(0.3, (16, 8), sampler)
    assert suits_cpu(inputs[0], inputs[1], options, torch.float64)
    torch.manual_seed(2)
    ours = value_and_grads(
        lambda *args: sparsedrop.dropout_linear(*args, p=0.3, block_shape=(16, 8), sampler=sampler),
        inputs,
        upstream,
    )
    torch.manual_seed(2)
    rows = torch.Size(lead).numel()
    mask = SAMPLERS[sampler]((rows, k), 0.3, block_shape=(16, 8))
    exact = value_and_grads(
        lambda *args: reference.dropout_linear(*args, mask, 0.3), inputs, upstream
    )
    for own, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(own, truth, rtol=0, atol=1e-12)


def test_dropped_blocks_are_never_read():
    inputs, upstream = [normal(32, 32), normal(8, 32), normal(8)], normal(32, 8)
    mask = BlockMask.bernoulli((32, 32), 0.5, block_shape=(8, 8), generator=_seeded())

    def layer(*args):
        torch.manual_seed(4)
        return dropout_linear_plain(*args, Options(0.5, (8, 8), "bernoulli"))

    clean = value_and_grads(layer, inputs, upstream)
    inputs[0][~mask.expand()] = float("nan")
    for own, truth in zip(value_and_grads(layer, inputs, upstream), clean, strict=True):
        assert torch.equal(own, truth)


def _seeded():
    return torch.Generator().manual_seed(4)


def test_it_is_for_small_layers_of_a_cpu_that_nothing_forces():
    x, weight = torch.randn(512, 512), torch.randn(512, 512)
    small, large = Options(0.5, (8, 8), "bernoulli"), Options(0.5, (128, 128), "bernoulli")
    assert suits_cpu(x, weight, small, torch.float32)
    assert not suits_cpu(x, weight, large, torch.float32)
    assert not suits_cpu(x.bfloat16(), weight.bfloat16(), small, torch.bfloat16)
    assert not suits_cpu(x[:0], weight, small, torch.float32)
    with select.override(path="cpu"):
        assert not suits_cpu(x, weight, small, torch.float32)
    with CountProducts() as products:  # whoever watches sees the op of every other layer
        assert not suits_cpu(x, weight, small, torch.float32)
        sparsedrop.dropout_linear(x, weight, block_shape=(8, 8))
    assert products.masks == [1]


def test_it_can_be_differentiated_twice():
    inputs = [normal(8, 6).requires_grad_(), normal(4, 6).requires_grad_()]

    def layer(x, weight):
        torch.manual_seed(4)
        return dropout_linear_plain(x, weight, None, Options(0.5, (4, 2), "bernoulli"))

    assert torch.autograd.gradgradcheck(layer, inputs)
