"""Gradients of such blocks where somebody watches, or differentiates them again."""

import pytest
import torch

import slice_cases
from cases import normal
from sparsedrop import reference
from sparsedrop.ops.units import node as units_node
from stack_cases import BF16, PRECISIONS
from unit_cases import CASES, block_of, leaves_of, run, truth_of

pytestmark = pytest.mark.usefixtures("poisoned_gpu")


@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[3]], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_second_derivatives_are_those_of_the_reference(case, precision):
    x_dtype, dtype, autocast = precision
    block = block_of(case, dtype, activation="silu")
    x = normal(33, 24).to(x_dtype).requires_grad_()
    out = run(case, block, x, autocast)
    truth, exact_leaves = truth_of(case, block, x, autocast or x_dtype)

    def twice(out, leaves):
        grads = torch.autograd.grad(out.double().square().mean(), leaves, create_graph=True)
        penalty = sum(g.double().square().sum() for g in grads)
        return torch.autograd.grad(penalty, leaves, allow_unused=True)

    found = twice(out, leaves_of(block, x))
    for own, expected in zip(found, twice(truth, exact_leaves), strict=True):
        if expected is not None:
            assert (own.double() - expected).norm() <= 0.05 * (1e-6 + expected.norm())


def test_a_gradient_that_depends_on_what_x_was_made_of():
    """Of a weight that made x, too, a node's second derivatives count its own use only."""
    case = CASES["a slice"]
    block = block_of(case, BF16, d_out=24)
    given = normal(33, 48).to(BF16)
    up = block.up.weight
    live = case.mask()

    def loss(run):
        x = given[:, live] @ up[live]
        (grad,) = torch.autograd.grad(run(x).float().square().mean(), [up], create_graph=True)
        return grad

    own = loss(lambda x: run(case, block, x))
    expected = loss(lambda x: reference.feed_forward(
        x, [[torch.where(t.isnan(), 0, t) if isinstance(t, torch.Tensor) else t for t in layer]
            for layer in slice_cases.layers_of(block)], live, case.scale(block)))  # fmt: skip
    assert (own[live] - expected[live]).norm() <= 0.05 * expected[live].norm()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_gradients_of_whoever_watches_are_the_same(monkeypatch, case):
    block = block_of(case, BF16)
    x = normal(33, 24).to(BF16).requires_grad_()
    out = run(case, block, x)
    upstream = normal(*out.shape).to(BF16)
    usual = torch.autograd.grad(out, leaves_of(block, x), upstream, retain_graph=True)
    monkeypatch.setattr(units_node, "is_watched", lambda *tensors: True)
    watched = torch.autograd.grad(out, leaves_of(block, x), upstream)
    for own, other in zip(watched, usual, strict=True):
        assert own.dtype == other.dtype
        assert (own.double() - other.double()).norm() <= 0.02 * (1e-6 + other.double().norm())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_batch_of_gradients_goes_the_long_way(case):
    block = block_of(case, BF16)
    x = normal(3, 11, 24).to(BF16).requires_grad_()
    out = run(case, block, x)
    leaves = leaves_of(block, x)
    upstream = normal(2, *out.shape).to(BF16)
    found = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(upstream):
        expected = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        for own, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(own[i], truth, rtol=0.05, atol=0.05 * truth.abs().max())
