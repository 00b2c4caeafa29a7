"""What Python does around a layer's calls, without a GPU: against the reference."""

import itertools

import pytest
import torch

import extension_stub
import sparsedrop
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import BlockMask, functional, reference, select
from sparsedrop.ops import copies
from sparsedrop.ops.layer import Options, op
from sparsedrop.ops.layer.kernels import KernelLayer
from sparsedrop.ops.spelling import spelled

CPU = torch.device("cpu")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

# Of x, of the parameters, and of autocast.
PRECISIONS = [
    (BF16, BF16, None), (F16, F16, None), (F32, F32, None), (F64, F64, None),
    (BF16, F32, BF16), (F32, F32, BF16), (F16, F32, F16), (F32, BF16, BF16),
]  # fmt: skip
SHAPES = [((6, 32), 48, 64, (64, 64)), ((192,), 10, 65, (32, 16)), ((), 16, 64, (64, 64))]


pytestmark = pytest.mark.usefixtures("stub_gpu")

SIDES = ["input", "output"]


def _mask(x, weight, side, block=(64, 64)):
    """The mask that was drawn last, for a layer of these."""
    shape = x.shape[:-1].numel(), weight.shape[0] if side == "output" else x.shape[-1]
    return BlockMask.from_live(extension_stub.C.grids[-1], shape, block_shape=block)


def _layer(shape, precision, bias=True, side="input", turned=False, **kwargs):
    """Result, gradients, and the same by the reference under the mask that was drawn."""
    (lead, n, k, block), (x_dtype, dtype, autocast) = shape, precision
    product = autocast or x_dtype
    weight = normal(k, n) if turned else normal(n, k)
    inputs = [normal(*lead, k).to(x_dtype), *(t.to(dtype) for t in (weight, normal(n)))]
    leaves = [t.requires_grad_() for t in inputs[: 2 + bias]]
    upstream = normal(*lead, n).to(product)
    with autocast_on_stub(autocast):
        if turned:
            options = Options(0.5, block, side=side, weight_turned=True, **kwargs)
            given = leaves if bias else [*leaves, None]
            out = functional.dropped_linear(*given, options, True)
        else:
            out = sparsedrop.dropout_linear(*leaves, p=0.5, block_shape=block, side=side, **kwargs)
    grads = torch.autograd.grad(out, leaves, upstream)
    mask = _mask(leaves[0], leaves[1].t() if turned else leaves[1], side, block)
    rounded = [t.detach().to(product).double().requires_grad_() for t in leaves]
    x, weight, *rest = rounded
    weight = weight.t() if turned else weight
    truth = reference.dropout_linear(x, weight, *(rest or [None]), mask, 0.5, side)
    exact = torch.autograd.grad(truth, rounded, upstream.double())
    return out, grads, truth, exact


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_is_the_reference(shape, precision, sampler, side, turned):
    for bias, path in itertools.product((True, False), ("dense", "kernel")):
        has_kernel = shape[2] % 8 == shape[1] % 8 == 0 and (precision[2] or precision[0]) in (
            BF16,
            F16,
        )
        if path == "kernel" and not has_kernel:
            continue
        with select.override(path=path):
            out, grads, truth, exact = _layer(shape, precision, bias, side, turned, sampler=sampler)
        node_layer = out.grad_fn.layer
        assert type(node_layer) is KernelLayer or path == "dense"
        dtypes = [precision[2] or precision[0], precision[0], precision[1], precision[1]]
        for own, expected, dtype in zip((out, *grads), (truth, *exact), dtypes, strict=False):
            assert own.dtype == dtype
            assert own.shape == expected.shape
            error = (own.double() - expected).norm()
            assert error <= 4 * torch.finfo(out.dtype).eps * (1 + expected.norm())


def test_results_are_no_views():
    for path, side in itertools.product(("dense", "kernel"), SIDES):
        with select.override(path=path):
            out = _layer(SHAPES[0], PRECISIONS[0], side=side)[0]
        assert not out._is_view()
        out.add_(1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("path", ["dense", "kernel"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_gradients_are_added_in_place(dtype, path, side):
    x, upstream = normal(128, 64).to(BF16), normal(128, 32).to(BF16)
    weight, bias = (normal(*s).to(dtype).requires_grad_() for s in ((32, 64), (32,)))
    for parameter in (weight, bias):
        parameter.main_grad = torch.ones(parameter.shape)
    with select.override(path=path), autocast_on_stub(BF16):
        out = sparsedrop.dropout_linear(
            x, weight, bias, p=0.5, block_shape=(64, 64), fuse_wgrad_accumulation=True, side=side
        )
    out.backward(upstream)
    mask = _mask(x, weight, side)
    leaves = [t.detach().to(BF16).double().requires_grad_() for t in (weight, bias)]
    truth = reference.dropout_linear(x.double(), *leaves, mask, 0.5, side)
    exact = torch.autograd.grad(truth, leaves, upstream.double())
    for parameter, grad in zip((weight, bias), exact, strict=True):
        assert parameter.grad is None
        torch.testing.assert_close(parameter.main_grad.double(), grad + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["dense", "kernel"])
def test_gradients_that_the_caller_asks_for_are_not_added(path):
    x, upstream = normal(128, 64).to(BF16).requires_grad_(), normal(128, 32).to(BF16)
    weight = normal(32, 64).to(BF16).requires_grad_()
    weight.main_grad = torch.ones(weight.shape)
    found = []
    for fuses, wanted in ((False, weight), (True, weight), (True, x)):
        torch.manual_seed(0)
        with select.override(path=path):
            out = sparsedrop.dropout_linear(
                x, weight, p=0.5, block_shape=(64, 64), fuse_wgrad_accumulation=fuses
            )
        found += torch.autograd.grad(out, [wanted], upstream)
    assert torch.equal(found[0], found[1])
    assert torch.equal(weight.main_grad, torch.ones(weight.shape))


def test_a_rounded_weight_is_shared_while_it_is_needed():
    weight = normal(64, 64).float().requires_grad_()
    x = normal(64, 64).to(BF16)
    with select.override(path="kernel"), autocast_on_stub(BF16):
        first, second = (
            sparsedrop.dropout_linear(x, weight, p=0.5, block_shape=(64, 64)) for _ in range(2)
        )
        assert len(copies._copies) == 1
        kept = [out.grad_fn.saved_tensors[1].data_ptr() for out in (first, second)]
        assert kept[0] == kept[1]
        with torch.no_grad():
            weight.add_(1)
        third = sparsedrop.dropout_linear(x, weight, p=0.5, block_shape=(64, 64))
        assert third.grad_fn.saved_tensors[1].data_ptr() != kept[0]
    del first, second, third
    assert not copies._copies


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[4], PRECISIONS[5]], ids=str)
def test_the_ops_pack_what_was_rounded(precision, side):
    x_dtype, dtype, autocast = precision
    x, weight, bias = normal(3, 64, 64).to(x_dtype), normal(32, 64).to(dtype), normal(32).to(dtype)
    upstream, product = normal(3, 64, 32).to(BF16), autocast or x_dtype
    args = x, weight, bias, 0.5, 64, 64, spelled("bernoulli", side, product)
    out, pack = op._forward(*args)
    fake = op._fake_forward(*args)
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in (out, pack)]
    kept = [t if t.dtype == product else None for t in (x, weight)]
    args = 0.5, 64, 64, 64, spelled(side, x.dtype, dtype, dtype, [True] * 3)
    grads = op._backward(upstream, *kept, pack, *args)
    fakes = op._fake_backward(upstream, *kept, pack, *args)
    assert [(t.shape, t.dtype) for t in fakes] == [(t.shape, t.dtype) for t in grads]
    mask = _mask(x, weight, side)
    leaves = [t.to(product).double().requires_grad_() for t in (x, weight, bias)]
    truth = reference.dropout_linear(*leaves, mask, 0.5, side)
    exact = torch.autograd.grad(truth, leaves, upstream.double())
    for own, expected in zip((out, *grads), (truth, *exact), strict=True):
        error = (own.double() - expected).norm()
        assert error <= 0.02 * (1 + expected.norm())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize(
    ("path", "precision"),
    [
        (path, precision)
        for path, precision in itertools.product(("kernel", "dense"), PRECISIONS)
        if path == "dense" or (precision[2] or precision[0]) in (BF16, F16)
    ],
    ids=str,
)
def test_second_derivatives_are_those_of_the_reference(
    monkeypatch, precision, path, needs_x, side, turned
):
    x_dtype, weight_dtype, autocast = precision
    inputs = [
        normal(3, 64, 64).to(x_dtype).requires_grad_(needs_x),
        normal(*((64, 32) if turned else (32, 64))).to(weight_dtype).requires_grad_(),
        normal(32).to(weight_dtype).requires_grad_(),
    ]
    options = Options(0.5, (64, 64), "bernoulli", side=side, weight_turned=turned)
    with select.override(path=path), autocast_on_stub(autocast):
        out = functional.dropped_linear(*inputs, options, True)
    doubled = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    x, weight, bias = doubled
    weight = weight.t() if turned else weight
    truth = reference.dropout_linear(x, weight, bias, _mask(x, weight, side), 0.5, side)
    # The products of the backward pass are the CPU's own.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: False))

    def twice(out, inputs):
        leaves = [t for t in inputs if t.requires_grad]
        grads = torch.autograd.grad(out.double().square().mean(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in grads), leaves)

    for own, expected in zip(twice(out, inputs), twice(truth, doubled), strict=True):
        assert (own.double() - expected).norm() <= 0.03 * expected.norm()
