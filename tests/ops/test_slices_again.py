"""Gradients of slices under create_graph, of operands that depend on each other."""

import pytest
import torch

from slice_cases import drawing, layers_of, scale_of
from sparsedrop import Slice, reference, slice_out
from sparsedrop.nn import SliceOutMLP

CHOSEN = Slice(((6, 8), (0, 2)), 8)


def _normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _mlp():
    block = SliceOutMLP(8, 8, 8, align=2).double()

    def run(x):
        with drawing(CHOSEN):
            return block(x)

    def masked(x):
        return reference.feed_forward(x, layers_of(block), CHOSEN.mask(), scale_of(block, 8))

    return block.up.weight, run, masked


def _linear():
    weight = _normal(8, 8).requires_grad_()
    live = torch.tensor([6, 7, 0, 1])
    return (
        weight,
        lambda x: slice_out.linear(x, weight, out_slice=CHOSEN),
        lambda x: x @ weight[live].t(),
    )


def _conv():
    weight = _normal(8, 8, 1, 1).requires_grad_()
    live = torch.tensor([6, 7, 0, 1])

    def run(x):
        out = slice_out.conv2d(x[..., None, None], weight, out_slice=CHOSEN)
        return out.flatten(1)

    return weight, run, lambda x: x @ weight[live].flatten(1).t()


@pytest.mark.parametrize("make", [_mlp, _linear, _conv])
def test_a_weight_that_made_x_too_has_the_gradient_of_both_uses(make):
    weight, run, expected = make()
    given = _normal(5, 8)
    results = []
    for function in (run, expected):
        x = given @ weight.flatten(1).t()
        loss = function(x).square().mean()
        (grad,) = torch.autograd.grad(loss, [weight], create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), [weight])
        results.append((grad, second))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
