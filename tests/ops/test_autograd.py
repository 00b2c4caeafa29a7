"""Gradients: against finite differences, only where needed, under autocast and checkpointing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsedrop
from cases import CASES, CountProducts, build, normal, random_mask, value_and_grads
from sparsedrop import reference, select
from sparsedrop.ops import How, Product, multiply

SMALL = [case for case in CASES if max(case.m, case.n, case.k) < 128]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_matmul(case):
    case = case._replace(m=min(case.m, 9), n=min(case.n, 7), k=min(case.k, 8))
    blocks = {name: block and (4, 3) for name, block in case._asdict().items() if "block" in name}
    problem = build(case._replace(**blocks), normal, torch.float64, torch.device("cpu"))
    a, b = problem.a.requires_grad_(), problem.b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: sparsedrop.matmul(a, b, alpha=1.3, **problem.masks), (a, b)
    )


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_linear(activation, masked):
    device = torch.device("cpu")
    shapes = {"x_mask": (10, 6), "weight_mask": (5, 6), "out_mask": (10, 5)}
    masks = {name: random_mask(shape, (2, 3), device) for name, shape in shapes.items()}
    inputs = [normal(2, 5, 6), normal(5, 6), normal(5)]
    kwargs = {"activation": activation, "alpha": 1.3, **(masks if masked else {})}
    assert torch.autograd.gradcheck(
        lambda *args: sparsedrop.linear(*args, **kwargs), [x.requires_grad_() for x in inputs]
    )


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_only_needed_gradients_are_computed(needed, activation, device):
    x, weight, bias = (
        torch.randn(shape, device=device).requires_grad_(bool(need))
        for shape, need in zip(((64, 32), (48, 32), (48,)), needed, strict=True)
    )
    mask = random_mask((64, 32), (32, 16), device)
    with CountProducts() as products:
        out = sparsedrop.linear(x, weight, bias, x_mask=mask, activation=activation)
        assert len(products.masks) == 1
        out.backward(torch.randn_like(out))
    assert len(products.masks) == 1 + needed[0] + needed[1]
    for tensor, need in zip((x, weight, bias), needed, strict=True):
        assert (tensor.grad is not None) == bool(need)


def test_no_graph_where_nothing_needs_one(device):
    x, weight = torch.randn(64, 32, device=device), torch.randn(48, 32, device=device)
    mask = random_mask((64, 32), (32, 16), device)
    assert not sparsedrop.linear(x, weight, x_mask=mask).requires_grad
    with torch.no_grad():
        assert not sparsedrop.linear(x.requires_grad_(), weight, x_mask=mask).requires_grad


@pytest.mark.parametrize("upstream_needs_grad", [False, True])
def test_a_second_derivative_raises(upstream_needs_grad, device):
    x = torch.randn(64, 32, device=device, requires_grad=True)
    weight = torch.randn(48, 32, device=device, requires_grad=True)
    out = sparsedrop.linear(x, weight, x_mask=random_mask((64, 32), (32, 16), device))
    upstream = torch.randn_like(out).requires_grad_(upstream_needs_grad)
    (grad,) = torch.autograd.grad(out, x, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        grad.square().sum().backward()


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_no_second_derivative_is_lost_in_silence(activation, device):
    x = torch.randn(64, 32, device=device, requires_grad=True)
    weight = torch.randn(48, 32, device=device, requires_grad=True)
    mask = random_mask((64, 32), (32, 16), device)

    def layer(x, weight):
        return sparsedrop.linear(x, weight, x_mask=mask, activation=activation)

    out = layer(x, weight)
    (grad,) = torch.autograd.grad(out, x, torch.randn_like(out), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.grad(grad.square().sum(), (x, weight), allow_unused=True)
    # Differentiates the backward pass by the upstream gradient.
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.functional.jvp(layer, (x, weight), (x.detach(), weight.detach()))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_no_second_derivative_by_the_bias_is_lost(activation, device):
    x, weight = torch.randn(64, 32, device=device), torch.randn(48, 32, device=device)
    bias = torch.randn(48, device=device, requires_grad=True)
    mask = random_mask((64, 32), (32, 16), device)
    out = sparsedrop.linear(x, weight, bias, x_mask=mask, activation=activation)
    (grad,) = torch.autograd.grad(out.sum(), bias, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        (out.sum() + grad.square().sum()).backward()


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
def test_gradients_of_turned_operands(a_turned, b_turned, device):
    """Each is that of the matrix as it was given, under the mask that it was given with."""
    a, b = normal(*(70, 90)[:: 1 if a_turned else -1]), normal(*(110, 70)[:: 1 if b_turned else -1])
    a, b, upstream = a.to(device), b.to(device), normal(90, 110).to(device)
    a_mask, b_mask = (random_mask(tuple(x.shape), (20, 30), device) for x in (a, b))
    out_mask = random_mask((90, 110), (40, 20), device)
    how = How(a_mask, b_mask, out_mask, 1.3, "gelu", a_turned, b_turned)
    masks = {
        "a_mask": a_mask.T if a_turned else a_mask,
        "b_mask": b_mask.T if b_turned else b_mask,
        "out_mask": out_mask,
    }

    def truth(a, b):
        a, b = a.t() if a_turned else a, b.t() if b_turned else b
        return reference.matmul(a, b, alpha=1.3, activation="gelu", **masks)

    ours = value_and_grads(lambda a, b: multiply(Product(a, b, None, how)), [a, b], upstream)
    for own, expected in zip(ours, value_and_grads(truth, [a, b], upstream), strict=True):
        torch.testing.assert_close(own, expected)


def test_forward_mode_and_transforms_raise(device):
    x, weight = torch.randn(64, 32, device=device), torch.randn(48, 32, device=device)
    mask = random_mask((64, 32), (32, 16), device)

    def layer(x):
        return sparsedrop.linear(x, weight, x_mask=mask)

    with pytest.raises(RuntimeError, match="forward-mode"):
        torch.func.jvp(layer, (x,), (x,))
    with pytest.raises(RuntimeError, match="transforms"):
        torch.func.grad(lambda x: layer(x).sum())(x)
    with pytest.raises(RuntimeError, match="transforms"):
        torch.vmap(layer)(x.expand(3, 64, 32))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward-mode"):
            layer(dual)
        assert layer(x).shape == (64, 48)  # what is not dual is none of its business


def test_create_graph_is_fine_where_nothing_is_differentiated_again(device):
    x = torch.randn(64, 32, device=device, requires_grad=True)
    weight = torch.randn(48, 32, device=device, requires_grad=True)
    out = sparsedrop.linear(x, weight, x_mask=random_mask((64, 32), (32, 16), device))
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (x, weight), upstream, create_graph=True, retain_graph=True)
    plain = torch.autograd.grad(out, (x, weight), upstream)
    for grad, expected in zip(grads, plain, strict=True):
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_f_linear(dtype, device):
    x, weight, bias = torch.randn(128, 64), torch.randn(96, 64), torch.randn(96)
    inputs = [t.to(device) for t in (x, weight, bias)]
    mask = random_mask((128, 64), (64, 64), device)
    upstream = torch.randn(128, 96, device=device).to(dtype)

    def ours(*args):
        with torch.autocast(device.type, dtype):
            return sparsedrop.linear(*args, x_mask=mask)

    def theirs(x, weight, bias):
        with torch.autocast(device.type, dtype):
            return nn.functional.linear(reference.keep_live(x, mask), weight, bias)

    for own, expected in zip(
        value_and_grads(ours, inputs, upstream),
        value_and_grads(theirs, inputs, upstream),
        strict=True,
    ):
        assert own.dtype == expected.dtype
        torch.testing.assert_close(own, expected, rtol=0.02, atol=0.05)


def test_autocast_mixes_dtypes_and_leaves_float64_alone(device):
    mask = random_mask((128, 64), (64, 64), device)
    x, weight = torch.randn(128, 64, device=device), torch.randn(96, 64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert sparsedrop.linear(x.half(), weight, x_mask=mask).dtype == torch.bfloat16
        assert sparsedrop.matmul(x, weight.t(), a_mask=mask).dtype == torch.bfloat16
        assert sparsedrop.linear(x.double(), weight.double(), x_mask=mask).dtype == torch.float64
        assert sparsedrop.dropout_linear(x, weight).dtype == torch.bfloat16
        assert sparsedrop.dropout_linear(x, weight, training=False).dtype == torch.bfloat16


@pytest.mark.parametrize("path", ["dense", None])
def test_autocast_around_a_backward_pass_changes_nothing(path, device):
    inputs = [torch.randn(shape, device=device) for shape in ((128, 64), (96, 64), (96,))]
    mask, upstream = random_mask((128, 64), (64, 64), device), torch.randn(128, 96, device=device)

    def step(enabled):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = sparsedrop.linear(*leaves, x_mask=mask, activation="gelu")
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            return torch.autograd.grad(out, leaves, upstream)

    with select.override(path=path):
        for own, expected in zip(step(True), step(False), strict=True):
            assert torch.equal(own, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_checkpointing_replays_the_mask(p, sampler, use_reentrant, device):
    inputs = [torch.randn(shape, device=device) for shape in ((640, 320), (64, 320), (64,))]
    upstream = torch.randn(640, 64, device=device)

    def layer(*args):
        return sparsedrop.dropout_linear(*args, p=p, sampler=sampler, block_shape=(64, 64))

    def step(function):
        torch.manual_seed(3)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        out.backward(upstream)  # a reentrant checkpoint knows no torch.autograd.grad
        return [out, *(leaf.grad for leaf in leaves)]

    replayed = step(lambda *args: checkpoint(layer, *args, use_reentrant=use_reentrant))
    for own, expected in zip(replayed, step(layer), strict=True):
        assert torch.equal(own, expected)
