"""Gradients: against finite differences, only where needed, under autocast and checkpointing."""

import itertools

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


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
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


@pytest.mark.parametrize("path", ["cpu", "dense"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("sides", list(itertools.product((False, True), repeat=3)), ids=str)
def test_gradgradcheck_linear(sides, activation, path):
    device = torch.device("cpu")
    shapes = {"x_mask": (6, 8), "weight_mask": (4, 8), "out_mask": (6, 4)}
    masks = {
        name: random_mask(shape, (2, 2), device)
        for (name, shape), is_masked in zip(shapes.items(), sides, strict=True)
        if is_masked
    }
    inputs = [x.requires_grad_() for x in (normal(6, 8), normal(4, 8), normal(4))]
    with select.override(path=path):
        assert torch.autograd.gradgradcheck(
            lambda *args: sparsedrop.linear(*args, activation=activation, alpha=1.3, **masks),
            inputs,
        )


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_second_derivatives_are_those_of_the_reference(activation, device):
    inputs = [normal(64, 32).to(device), normal(48, 32).to(device), normal(48).to(device)]
    mask = random_mask((64, 32), (32, 16), device)

    def penalty(function):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, x_mask=mask, activation=activation)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)

    for own, truth in zip(penalty(sparsedrop.linear), penalty(reference.linear), strict=True):
        torch.testing.assert_close(own, truth)


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


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_transforms_of_torch_func(activation, device):
    x, weight, bias = normal(64, 32).to(device), normal(48, 32).to(device), normal(48).to(device)
    mask = random_mask((64, 32), (32, 16), device)

    def found(function):
        def layer(x, weight=weight, bias=bias):
            return function(x, weight, bias, x_mask=mask, activation=activation)

        def penalty(weight):
            return torch.func.grad(lambda x: layer(x, weight).square().sum())(x).square().sum()

        yield torch.func.grad(lambda x: layer(x).square().sum())(x)
        yield torch.func.vjp(layer, x)[1](torch.ones(64, 48, dtype=x.dtype, device=device))[0]
        yield torch.func.grad(penalty)(weight)
        yield torch.func.jacrev(lambda bias: layer(x, bias=bias).sum(0))(bias)
        yield torch.vmap(layer)(torch.stack([x, -x]))
        yield torch.vmap(torch.func.grad(lambda x: layer(x).square().sum()))(torch.stack([x, -x]))

    for own, truth in zip(found(sparsedrop.linear), found(reference.linear), strict=True):
        torch.testing.assert_close(own, truth)


def test_a_layer_under_transforms(device):
    layer = sparsedrop.nn.SparseDropLinear(32, 48, p=0.5, block_shape=(8, 8), device=device)
    x, parameters = torch.randn(64, 32, device=device), dict(layer.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    torch.manual_seed(2)
    grads = torch.func.grad(loss)(parameters)
    torch.manual_seed(2)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(grads[name], parameter.grad)
    with pytest.raises(RuntimeError, match=r"cannot be drawn under torch\.vmap"):
        torch.vmap(layer, randomness="different")(x.expand(3, 64, 32))


def test_forward_mode_raises(device):
    x, weight = torch.randn(64, 32, device=device), torch.randn(48, 32, device=device)
    mask = random_mask((64, 32), (32, 16), device)

    def layer(x):
        return sparsedrop.linear(x, weight, x_mask=mask)

    for transform in (torch.func.jvp, torch.autograd.functional.jvp):
        if transform is torch.func.jvp:
            with pytest.raises(RuntimeError, match="forward-mode"):
                transform(layer, (x,), (x,))
        else:  # by two backward passes
            out, tangent = transform(layer, (x,), (x,))
            torch.testing.assert_close(out, tangent)
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
