"""What Python does around a stack's calls, without a GPU: against the reference."""

from collections import Counter

import pytest
import torch

import extension_stub
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import BlockMask, functional, select
from sparsedrop.ops import copies
from sparsedrop.ops.stack import Dropped
from sparsedrop.ops.stack import node as stack_node
from sparsedrop.ops.stack.facts import parameters_of
from stack_cases import BF16, BLOCK, CASES, F32, PRECISIONS, layers_of, reference_of

pytestmark = pytest.mark.usefixtures("stub_gpu")


def _run(case, precision, sampler="bernoulli"):
    """Result and gradients, and the same by the reference under the masks that were drawn."""
    x_dtype, dtype, autocast = precision
    product = autocast or x_dtype
    x = normal(3, 64, case.sizes[0]).to(x_dtype).requires_grad_()
    layers, dropped = layers_of(case, dtype), Dropped(case.rates, BLOCK, sampler)
    upstream = normal(3, 64, case.sizes[-1]).to(product)
    extension_stub.C.grids.clear()
    with select.override(path="kernel"), autocast_on_stub(autocast):
        out = functional.dropped_stack(x, layers, dropped, True)
    leaves = [x, *(p for p in parameters_of(layers) if p is not None)]
    grids = iter(extension_stub.C.grids)
    masks = {
        i: BlockMask.from_live(next(grids), (192, n), block_shape=BLOCK)
        for i, (n, p) in enumerate(zip(case.sizes, case.rates, strict=True))
        if p > 0
    }
    truth, exact_leaves = reference_of(x, layers, masks, case.rates, product)
    return out, leaves, upstream, truth, exact_leaves


@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stack_is_the_reference(case, precision, sampler):
    out, leaves, upstream, truth, exact_leaves = _run(case, precision, sampler=sampler)
    assert type(out.grad_fn).__name__ == "_StackBackward"
    grads = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    exact = torch.autograd.grad(truth, exact_leaves, upstream.double())
    dtypes = [out.dtype, *(leaf.dtype for leaf in leaves)]
    for own, expected, dtype in zip((out, *grads), (truth, *exact), dtypes, strict=True):
        assert (own.dtype, own.shape) == (dtype, expected.shape)
        error, eps = (own.double() - expected).norm(), torch.finfo(out.dtype).eps
        # relu's slope jumps where its argument rounds to the other sign.
        tolerance = 8 * eps if "relu" not in case.activations else 2 * eps**0.5
        assert error <= tolerance * (1 + expected.norm())
    # Nothing that was kept has changed.
    again = torch.autograd.grad(out, leaves, upstream)
    assert all(map(torch.equal, grads, again))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_second_derivatives_are_those_of_the_reference(monkeypatch, case):
    out, leaves, _, truth, exact_leaves = _run(case, PRECISIONS[2])
    # The products of the backward pass are the CPU's own.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: False))

    def twice(out, leaves):
        grads = torch.autograd.grad(out.double().square().mean(), leaves, create_graph=True)
        penalty = sum(g.double().square().sum() for g in grads)
        return torch.autograd.grad(penalty, leaves, allow_unused=True)

    for own, expected in zip(twice(out, leaves), twice(truth, exact_leaves), strict=True):
        if expected is not None:
            assert (own.double() - expected).norm() <= 0.05 * (1e-6 + expected.norm())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_gradients_of_whoever_watches_are_the_same(monkeypatch, case):
    out, leaves, upstream, _, _ = _run(case, PRECISIONS[2])
    usual = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: False))
    monkeypatch.setattr(stack_node, "is_watched", lambda *tensors: True)
    watched = torch.autograd.grad(out, leaves, upstream)
    for own, other in zip(watched, usual, strict=True):
        assert own.dtype == other.dtype
        assert (own.double() - other.double()).norm() <= 0.02 * (1e-6 + other.double().norm())


def _passes(case, dtype=BF16):
    """The backward pass of a stack, by what is needed of the leaves."""
    x, upstream = normal(192, case.sizes[0]).to(dtype), normal(192, case.sizes[-1]).to(dtype)
    layers, dropped = layers_of(case, dtype), Dropped(case.rates, BLOCK, "bernoulli")
    with select.override(path="kernel"):
        stack = stack_node.stack_of(x, layers, dropped)
    parameters = parameters_of(layers)
    _, saved = stack.forward(x, parameters, dropped)
    return parameters, lambda needs: stack.backward(saved, upstream, dropped, needs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_wanted_gradients_are_made(case):
    parameters, backward = _passes(case)
    every = backward([True, *(p is not None for p in parameters)])
    for i, grad in enumerate(every):
        if grad is not None:
            alone = backward([j == i for j in range(len(every))])
            assert torch.equal(alone[i], grad)
            assert [found is not None for found in alone] == [j == i for j in range(len(every))]


def test_what_no_gradient_needs_is_not_computed(monkeypatch):
    """Under a frozen layer nothing is, and an input that no weight's gradient reads is not made."""
    counts = Counter()

    def counted(name, function):
        def run(*args):
            counts[name] += 1
            return function(*args)

        return run

    gelu = counted("activations", extension_stub.ACTIVATIONS["gelu"])
    monkeypatch.setitem(extension_stub.ACTIVATIONS, "gelu", gelu)
    monkeypatch.setattr(extension_stub, "_slope", counted("slopes", extension_stub._slope))
    store = counted("results", extension_stub.Call.store)
    monkeypatch.setattr(extension_stub.Call, "store", store)
    _, backward = _passes(CASES["gelu"])
    # Results are products and sums of columns; a slope takes the activation, too.
    for wanted, results, slopes, activations in (
        (["x", "up", "up_bias", "down", "down_bias"], 6, 1, 2), (["down"], 1, 0, 1),
        (["down_bias"], 1, 0, 0), ([], 0, 0, 0), (["up"], 2, 1, 1),
        (["up_bias"], 2, 1, 1), (["x"], 2, 1, 1),
    ):  # fmt: skip
        counts.clear()
        backward([name in wanted for name in ("x", "up", "up_bias", "down", "down_bias")])
        found = counts["results"], counts["slopes"], counts["activations"]
        assert found == (results, slopes, activations), wanted


def test_rounded_weights_are_shared_and_forgotten():
    case = CASES["gated"]
    x = normal(64, 64).to(BF16)
    layers, dropped = layers_of(case, F32), Dropped(case.rates, BLOCK, "bernoulli")
    with select.override(path="kernel"), autocast_on_stub(BF16):
        first, second = (functional.dropped_stack(x, layers, dropped, True) for _ in range(2))
    assert len(copies._copies) == 3
    weights = [out.grad_fn.saved_tensors[2:5] for out in (first, second)]
    assert [w.data_ptr() for w in weights[0]] == [w.data_ptr() for w in weights[1]]
    del first, second, weights
    assert not copies._copies


def test_what_is_unusual_goes_the_long_way():
    case = CASES["gelu"]
    x = normal(64, 64).to(BF16)
    layers, dropped = layers_of(case, BF16), Dropped(case.rates, BLOCK, "bernoulli")
    with select.override(path="kernel"):
        assert stack_node.stack_of(x, layers, dropped) is not None
        assert stack_node.stack_of(x.t(), layers, dropped) is None
        wide = (layers[0], layers[1]._replace(bias=layers[1].bias.detach().float()))
        assert stack_node.stack_of(x, wide, dropped) is None
        short = (layers[0], layers[1]._replace(bias=layers[1].bias[:-8].detach().clone()))
        assert stack_node.stack_of(x, short, dropped) is None
