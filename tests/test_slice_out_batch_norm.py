"""Batch norms of a slice of channels."""

import itertools

import pytest
import torch
from torch import nn

from slice_cases import assert_equal_to, live_of, value_and_grads
from sparsedrop import reference, slice_out
from sparsedrop.masks.slices import slices

EVERY = slices(24, 0.5, align=4)


@pytest.mark.parametrize("affine", [True, False])
def test_it_is_the_masked_one(affine):
    """And statistics outside of the slice are left alone."""
    x, upstream = (torch.randn(4, 24, 3, 3).double() for _ in range(2))
    for own, training in itertools.product(EVERY, (True, False)):
        norms = [nn.BatchNorm2d(24, affine=affine).double() for _ in range(2)]
        for norm in norms:
            torch.manual_seed(7)
            norm.running_mean.normal_(), norm.running_var.uniform_(1, 2)
            for parameter in norm.parameters():
                nn.init.normal_(parameter)
        (ours, dense), before = norms, norms[0].running_var.clone()
        made = value_and_grads(
            lambda x, own=own, norm=ours, training=training: slice_out.batch_norm(
                live_of(x, own, 1), norm.running_mean, norm.running_var, norm.weight, norm.bias,
                training, 0.1, norm.eps, out_slice=own,
            ),
            x, list(ours.parameters()), live_of(upstream, own, 1),
        )  # fmt: skip
        exact = value_and_grads(
            lambda x, own=own, norm=dense, training=training: reference.keep_units(
                norm.train(training)(x), own.mask(), dim=1
            ),
            x, list(dense.parameters()), upstream,
        )  # fmt: skip
        assert_equal_to(made, [live_of(exact[0], own, 1), *exact[1:]])
        kept = own.mask()
        for name in ("running_mean", "running_var"):
            found, expected = getattr(ours, name), getattr(dense, name)
            torch.testing.assert_close(found[kept], expected[kept], rtol=1e-12, atol=1e-12)
        assert torch.equal(ours.running_var[~kept], before[~kept])
        assert torch.equal(ours.running_var, before) != training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [EVERY[0], EVERY[4]], ids=lambda own: str(own.pieces))
def test_second_derivatives(own, training):
    statistics = torch.randn(24).double(), torch.rand(24).double() + 0.5
    leaves = [torch.randn(3, 12, 2).double(), torch.randn(24).double(), torch.randn(24).double()]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run(x, weight, bias):
        return slice_out.batch_norm(x, *statistics, weight, bias, training, out_slice=own)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("own", [EVERY[0], EVERY[4]], ids=lambda own: str(own.pieces))
def test_it_runs_twice_before_its_backward_pass(own):
    norm, xs = nn.BatchNorm1d(24), torch.randn(2, 8, 12)
    kept = own.mask()

    def step(run):
        norm.reset_running_stats(), norm.zero_grad()
        sum(run(x).square().sum() for x in xs).backward()
        return norm.running_var[kept].clone(), norm.weight.grad[kept], norm.bias.grad[kept]

    found = step(
        lambda x: slice_out.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, out_slice=own
        )
    )
    order = torch.cat([torch.arange(a, b) for a, b in own.pieces])
    whole = torch.zeros(2, 8, 24).index_copy_(2, order, xs)
    batches = iter(whole)
    exact = step(lambda x: norm(next(batches))[:, order])
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [EVERY[0], EVERY[4]], ids=lambda own: str(own.pieces))
def test_batched_gradients(own, training):
    norm = nn.BatchNorm1d(24).double()
    x, batch = torch.randn(6, 12).double().requires_grad_(), torch.randn(3, 6, 12).double()
    out = slice_out.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, out_slice=own
    )
    leaves = [x, norm.weight, norm.bias]
    found = torch.autograd.grad(out, leaves, batch, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, leaves, one, retain_graph=True) for one in batch]
    for one, others in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(others))


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_without_samples(affine):
    norm = nn.BatchNorm1d(24, affine=affine)
    x = torch.zeros(0, 12, requires_grad=True)
    out = slice_out.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, out_slice=EVERY[4]
    )
    assert torch.autograd.grad(out.sum(), [x])[0].shape == (0, 12)


@pytest.mark.parametrize("own", [EVERY[0], EVERY[4]], ids=lambda own: str(own.pieces))
def test_compiled(own):
    norms, x = [nn.BatchNorm1d(24) for _ in range(2)], torch.randn(6, 12)

    def run(x, norm):
        return slice_out.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, out_slice=own
        )

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, norms[0]), run(x, norms[1]))
    assert torch.equal(norms[0].running_var, norms[1].running_var)
