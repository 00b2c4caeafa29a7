"""Residual branches of a part of the batch."""

from __future__ import annotations

import pytest
import torch

from sparsedrop.tools.drop_path import DropPath, Residual
from sparsedrop.tools.networks import DROP_PATH, NONE, Drop, Size, Vit


@pytest.mark.parametrize(("p", "count"), [(0.25, 6), (0.3, 6), (0.5, 4), (0.99, 1)])
def test_the_branch_runs_on_its_share_and_is_scaled_by_it(p, count):
    seen = []

    def branch(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return 3 * x

    x = torch.randn(8, 5, 4, dtype=torch.float64, requires_grad=True)
    y = DropPath(p)(x, branch)
    assert seen == [(count, 5, 4)]
    kept = (y != x).flatten(1).any(1)
    assert kept.sum() == count
    torch.testing.assert_close(y[kept], x[kept] * (1 + 3 * 8 / count))
    assert torch.equal(y[~kept], x[~kept])
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient[kept], upstream[kept] * (1 + 3 * 8 / count))
    assert torch.equal(gradient[~kept], upstream[~kept])


def test_the_branch_may_read_something_else_than_it_is_added_to():
    x, other = torch.randn(8, 4), torch.randn(8, 6)
    assert torch.equal(Residual()(x, lambda part: part[:, :4], other), x + other[:, :4])
    path = DropPath(0.5)
    assert torch.equal(path.eval()(x, lambda part: part[:, :4], other), x + other[:, :4])
    y = path.train()(x, lambda part: part[:, :4], other)
    kept = (y != x).any(1)
    assert kept.sum() == 4
    torch.testing.assert_close(y[kept], (x + 2 * other[:, :4])[kept])


def test_each_sample_is_kept_equally_often():
    torch.manual_seed(0)
    x, path, draws = torch.ones(8, 1), DropPath(0.25), 4000
    kept = sum((path(x, lambda x: x) != 1).flatten() for _ in range(draws))
    deviation = (draws * 0.75 * 0.25) ** 0.5
    assert ((kept - 0.75 * draws).abs() < 5 * deviation).all()


@pytest.mark.parametrize("path", [Residual(), DropPath(0.0), DropPath(0.5).eval()])
def test_else_the_branch_runs_on_all_and_no_number_is_drawn(path):
    x, before = torch.randn(4, 3), torch.get_rng_state()
    assert torch.equal(path(x, torch.sin), x + x.sin())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_branch_in_another_dtype_is_added_in_the_inputs():
    x = torch.randn(4, 3)
    assert DropPath(0.5)(x, lambda x: x.bfloat16()).dtype == torch.float32


def test_a_transformer_drops_both_branches_of_each_block():
    torch.manual_seed(0)
    vit = Vit(4, 16, 10, Size(32, 2, 2), Drop(DROP_PATH, 0.5))
    torch.manual_seed(0)
    dense = Vit(4, 16, 10, Size(32, 2, 2), Drop(NONE, 0.0))
    patches = torch.randn(6, 16, 4)
    assert torch.equal(vit.eval()(patches), dense.eval()(patches))
    rows = []
    for block in vit.blocks:
        for layer in (block.qkv, block.feed_forward.up):
            layer.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    vit.train()(patches)
    assert rows == [3] * 4


@pytest.mark.gpu
def test_a_captured_step_draws_anew():
    x, path = torch.ones(8, 1, device="cuda"), DropPath(0.5)
    path(x, lambda x: x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = path(x, lambda x: x)
    found = set()
    for _ in range(20):
        graph.replay()
        kept = (y != 1).flatten()
        assert kept.sum() == 4
        found.add(tuple(kept.tolist()))
    assert len(found) > 1
