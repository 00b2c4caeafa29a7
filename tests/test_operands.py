"""Bad input raises, with the values in the sentence and before anything is launched."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import sparsedrop
from sparsedrop import BlockMask, _native
from sparsedrop.nn import SparseDropLinear

X, W, B = torch.randn(64, 32), torch.randn(48, 32), torch.randn(48)
MASK = BlockMask.bernoulli((64, 32), 0.5, block_shape=(16, 16))
NESTED = torch.nested.nested_tensor([X, X[:3]])


BAD_CALLS = [
    (
        lambda: sparsedrop.matmul(X, W),
        ValueError,
        r"a is \[64, 32\] and b is \[48, 32\]: inner extents",
    ),
    (lambda: sparsedrop.matmul(X[0], W.t()), ValueError, r"a must have 2 extents, but is \[32\]"),
    (lambda: sparsedrop.matmul(X, [1.0]), TypeError, "b must be a tensor, not list"),
    (lambda: sparsedrop.matmul(X, W.t(), alpha="2"), TypeError, "alpha must be a number, not str"),
    (
        lambda: BlockMask.bernoulli((64, 32), 0.5, generator=3),
        TypeError,
        r"generator must be a torch\.Generator, not int",
    ),
    (
        lambda: BlockMask.balanced((64, 32), 0.5, generator="cpu"),
        TypeError,
        r"generator must be a torch\.Generator, not str",
    ),
    (lambda: sparsedrop.linear(X, W.t()), ValueError, r"x is \[64, 32\] and weight is \[32, 48\]"),
    (lambda: sparsedrop.linear(X.sum(), W), ValueError, r"x must have at least one extent"),
    (
        lambda: sparsedrop.linear(X, W, B[1:]),
        ValueError,
        r"bias is \[47\] and weight is \[48, 32\]",
    ),
    (
        lambda: sparsedrop.linear(X, W, B[None]),
        ValueError,
        r"bias must have 1 extents, but is \[1, 48\]",
    ),
    (lambda: sparsedrop.linear(X.long(), W), TypeError, r"x must be of float16.*, not torch.int64"),
    (lambda: sparsedrop.linear(X, W.bool()), TypeError, r"weight must be of .*, not torch.bool"),
    (
        lambda: sparsedrop.linear(X, W.cfloat()),
        TypeError,
        r"weight must be of .*, not torch.complex64",
    ),
    (
        lambda: sparsedrop.linear(X, W.double()),
        ValueError,
        "x is torch.float32 and weight is torch.float64",
    ),
    (
        lambda: sparsedrop.linear(X, W, B.half()),
        ValueError,
        "x is torch.float32 and bias is torch.float16",
    ),
    (lambda: sparsedrop.linear(X, W.to("meta")), ValueError, "x is on cpu and weight is on meta"),
    (lambda: sparsedrop.linear(X, W, B.to("meta")), ValueError, "x is on cpu and bias is on meta"),
    (
        lambda: sparsedrop.linear(X, W, x_mask=MASK.T),
        ValueError,
        r"x_mask is a mask of \[32, 64\], but its matrix is \[64, 32\]",
    ),
    (
        lambda: sparsedrop.linear(X, W, weight_mask=MASK),
        ValueError,
        r"weight_mask is a mask of \[64, 32\], but its matrix is \[48, 32\]",
    ),
    (
        lambda: sparsedrop.linear(X, W, out_mask=MASK),
        ValueError,
        r"out_mask is a mask of \[64, 32\], but its matrix is \[64, 48\]",
    ),
    (
        lambda: sparsedrop.linear(X, W, x_mask=MASK.to("meta")),
        ValueError,
        "x_mask is on meta, but its matrix is on cpu",
    ),
    (
        lambda: sparsedrop.matmul(X, W.t(), a_mask=MASK.live),
        TypeError,
        "a_mask must be a BlockMask, not Tensor",
    ),
    (
        lambda: sparsedrop.linear(X, W, activation="tanh"),
        ValueError,
        r"activation is one of None, 'relu', 'gelu', 'silu', 'gelu_tanh', not 'tanh'",
    ),
    (lambda: sparsedrop.dropout_linear(X, W, p=-0.1), ValueError, r"in \[0, 1\], not -0.1"),
    (lambda: sparsedrop.dropout_linear(X, W, p=1.1), ValueError, r"in \[0, 1\], not 1.1"),
    (lambda: sparsedrop.dropout_linear(X, W, p=float("nan")), ValueError, r"in \[0, 1\], not nan"),
    (lambda: sparsedrop.dropout_linear(X, W, p="half"), TypeError, "p must be a number .* not str"),
    (lambda: sparsedrop.dropout_linear(X, W, p=torch.tensor([0.5])), TypeError, "not Tensor"),
    (
        lambda: sparsedrop.dropout_linear(X, W, sampler="regular"),
        ValueError,
        r"sampler is one of 'bernoulli', 'balanced', not 'regular'",
    ),
    (
        lambda: sparsedrop.dropout_linear(X, W, block_shape=(0, 16)),
        ValueError,
        r"block_shape must be positive, not \(0, 16\)",
    ),
    (
        lambda: sparsedrop.dropout_linear(X, W, block_shape=(16, -1), training=False),
        ValueError,
        r"block_shape must be positive, not \(16, -1\)",
    ),
    (lambda: sparsedrop.dropout_linear(X, W, block_shape=16), TypeError, "two integers, not 16"),
    (
        lambda: sparsedrop.dropout_linear(X, W, block_shape=(16.0, 16)),
        TypeError,
        r"two integers, not \(16.0, 16\)",
    ),
    (lambda: sparsedrop.dropout_linear(X, W, B[1:]), ValueError, r"bias is \[47\]"),
    (lambda: sparsedrop.dropout_linear(X.int(), W), TypeError, "not torch.int32"),
    (lambda: sparsedrop.dropout_linear([1.0], W), TypeError, "x must be a tensor, not list"),
    (lambda: BlockMask.bernoulli((64, 32), 2), ValueError, r"in \[0, 1\], not 2"),
    (lambda: BlockMask.balanced((64, 32), float("nan")), ValueError, r"in \[0, 1\], not nan"),
    (
        lambda: BlockMask.bernoulli((64,), 0.5),
        TypeError,
        r"shape must be two integers, not \(64,\)",
    ),
    (lambda: BlockMask.bernoulli((64, -1), 0.5), ValueError, r"shape must not be negative"),
    (lambda: BlockMask.bernoulli((64, True), 0.5), TypeError, r"two integers, not \(64, True\)"),
    (
        lambda: BlockMask.from_live(torch.ones(2, 2, dtype=torch.bool), (300, 200)),
        ValueError,
        r"live is \[2, 2\], but a matrix of \[300, 200\] in blocks of .* has a grid of \[3, 2\]",
    ),
    (lambda: BlockMask.from_live(torch.ones(2, 2), (256, 256)), TypeError, "not torch.float32"),
    (lambda: BlockMask.from_live([[True]], (2, 2)), TypeError, "a tensor of torch.bool, not list"),
    (lambda: SparseDropLinear(8, 8, p=3.0), ValueError, r"in \[0, 1\], not 3.0"),
    (lambda: SparseDropLinear(8, 8, block_shape=(8, 0)), ValueError, r"not \(8, 0\)"),
    (lambda: SparseDropLinear(8, 8, sampler="none"), ValueError, "not 'none'"),
    (
        lambda: sparsedrop.linear(X, W, activation=[]),
        ValueError,
        r"activation is one of .* not \[\]",
    ),
    (lambda: sparsedrop.dropout_linear(X, W, sampler=[]), ValueError, r"sampler is .* not \[\]"),
    (lambda: sparsedrop.dropout_linear(X, W, p=True), TypeError, "a number in .*, not bool"),
    (lambda: sparsedrop.linear(X.to_sparse(), W), TypeError, "x must be a dense tensor"),
    (lambda: sparsedrop.linear(X, W, [1.0] * 48), TypeError, "bias must be a tensor, not list"),
    (lambda: sparsedrop.linear(X, W.to_sparse()), TypeError, "weight must be a dense tensor"),
    (lambda: sparsedrop.linear(X, W, B.to_sparse()), TypeError, "bias must be a dense tensor"),
    (lambda: sparsedrop.dropout_linear(NESTED, W), TypeError, "x must be .* not a nested one"),
    (lambda: sparsedrop.linear(X, W[None]), ValueError, r"weight must have 2 extents, but is \["),
]

# What disagrees is found out before a mask is drawn.
DISAGREE = [
    ((X, W.double(), None), "x is torch.float32 and weight is torch.float64"),
    ((X, W, B.half()), "x is torch.float32 and bias is torch.float16"),
    ((X, W.to("meta"), None), "x is on cpu and weight is on meta"),
]


@pytest.mark.parametrize(("operands", "sentence"), DISAGREE, ids=[d[1] for d in DISAGREE])
def test_dropout_linear_checks_before_it_draws(operands, sentence):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=sentence):
        sparsedrop.dropout_linear(*operands)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("call", "error", "sentence"), BAD_CALLS, ids=[c[2] for c in BAD_CALLS])
def test_bad_calls_raise(call, error, sentence):
    state = torch.get_rng_state()
    with pytest.raises(error, match=sentence):
        call()
    assert torch.equal(torch.get_rng_state(), state)


def test_dtypes_that_autocast_joins_still_disagree_without_it():
    with torch.autocast("cpu", torch.bfloat16):
        sparsedrop.linear(X, W.half(), x_mask=MASK)
        with pytest.raises(ValueError, match=r"x is torch\.bfloat16 and weight is torch.float64"):
            sparsedrop.linear(X, W.double(), x_mask=MASK)


def test_a_cpu_only_build_refuses_gpus(monkeypatch):
    monkeypatch.setattr(_native, "C", None)
    with pytest.raises(RuntimeError, match=r"no CUDA kernels.* cuda:1.*SPARSEDROP_CUDA=ON"):
        _native.require_build_for(torch.device("cuda", 1))
    _native.require_build_for(torch.device("cpu"))


@pytest.mark.gpu
def test_a_cpu_only_build_refuses_masked_products_of_gpu_tensors(monkeypatch):
    x, weight = X.cuda(), W.cuda()
    mask = MASK.to("cuda")
    monkeypatch.setattr(_native, "C", None)
    state = torch.cuda.get_rng_state()
    for call in (
        lambda: sparsedrop.dropout_linear(x, weight),
        lambda: sparsedrop.linear(x, weight, x_mask=mask),
        lambda: sparsedrop.matmul(x, weight.t(), a_mask=mask),
    ):
        with pytest.raises(RuntimeError, match="no CUDA kernels"):
            call()
    assert torch.equal(torch.cuda.get_rng_state(), state)
    sparsedrop.dropout_linear(x, weight, training=False)


@pytest.mark.gpu
def test_a_mask_on_another_device():
    with pytest.raises(ValueError, match="x_mask is on cpu, but its matrix is on cuda:0"):
        sparsedrop.linear(X.cuda(), W.cuda(), x_mask=MASK)


def test_alpha_is_any_real_number():
    for alpha in (2, Fraction(2), np.float32(2), torch.tensor(2.0).item()):
        assert torch.equal(sparsedrop.linear(X, W, alpha=alpha), sparsedrop.linear(X, W, alpha=2.0))
