"""The samplers: frequencies, counts, seeds and generators."""

import math

import pytest
import torch

from sparsedrop import BlockMask

SAMPLERS = (BlockMask.bernoulli, BlockMask.balanced)
DRAWS = 20_000


def _frequencies(sampler, p, grid, device):
    total = torch.zeros(grid, device=device)
    for _ in range(DRAWS):
        total += sampler(grid, p, block_shape=(1, 1), device=device).live
    return total.cpu() / DRAWS


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_block_is_dropped_with_probability_p(sampler, p, device):
    grid = (4, 6)  # (1 - p) * 6 is no integer for 0.1 and 0.7
    kept = _frequencies(sampler, p, grid, device)
    sigma = math.sqrt(p * (1 - p) / DRAWS)
    assert (kept - (1 - p)).abs().max() < 5 * sigma


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("grid", [(1, 1), (4, 8), (8, 4), (10, 7), (7, 10), (33, 12), (64, 64)])
def test_balanced_counts(grid, p, device):
    rows, columns = grid
    shape = (rows * 128 - 5, columns * 64 - 7)
    for _ in range(20):
        live = BlockMask.balanced(shape, p, block_shape=(128, 64), device=device).live
        assert tuple(live.shape) == grid
        in_rows, in_columns = live.sum(1), live.sum(0)
        count = int(in_rows[0])
        assert count in (math.floor((1 - p) * columns), math.ceil((1 - p) * columns))
        assert bool((in_rows == count).all())
        assert int(in_columns.max() - in_columns.min()) <= 1


def test_balanced_pairs_are_not_fixed(device):
    """Any two blocks of one row are kept together sometimes, and apart sometimes."""
    lives = torch.stack(
        [
            BlockMask.balanced((4, 8), 0.5, block_shape=(1, 1), device=device).live
            for _ in range(400)
        ]
    ).double()
    together = torch.einsum("drc,dre->rce", lives, lives) / len(lives)  # [R, C, C]
    pairs = together[:, ~torch.eye(8, dtype=torch.bool, device=device)]
    assert pairs.min() > 0.1
    assert pairs.max() < 0.35  # 3/14 if the kept columns are a uniform random half


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_seeds_repeat_and_draws_differ(sampler, p, device):
    def draw():
        return sampler((4096, 4096), p, device=device).live

    torch.manual_seed(7)
    first, second = draw(), draw()
    torch.manual_seed(7)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_a_given_generator_is_the_only_source(sampler, p, device):
    def draw(seed):
        generator = torch.Generator(device).manual_seed(seed)
        lives = [
            sampler((4096, 4096), p, device=device, generator=generator).live for _ in range(9)
        ]
        return torch.stack(lives)

    before = torch.get_rng_state()
    first = draw(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(draw(7), first)
    assert not torch.equal(draw(8), first)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("columns", [1, 5])
def test_balanced_rounds_both_ways(columns, given, device):
    generator = torch.Generator(device).manual_seed(0) if given else None
    lives = [
        BlockMask.balanced(
            (1, columns), 0.5, block_shape=(1, 1), device=device, generator=generator
        ).live.sum()
        for _ in range(400)
    ]
    counts = torch.stack(lives).tolist()
    below = columns // 2
    assert set(counts) == {below, below + 1}
    assert abs(counts.count(below) - 200) < 5 * 10  # five sigma


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_know_what_they_keep(sampler, device):
    mask = sampler((512, 512), 0.25, device=device)
    assert mask.keep == 0.75
    assert mask.live.is_contiguous()
    assert mask.live.dtype == torch.bool
    assert mask.T.keep == 0.75


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [(4, 8), (33, 12), (64, 64), (5, 7), (300, 1000)])
def test_balanced_kernel_follows_the_definition(grid):
    """The kernel and its description in plain torch draw the same grid from the same keys."""
    from sparsedrop.masks import samplers

    rows, columns = grid
    for keep in {1, columns // 2, columns - 1}:
        bands = -(-rows * math.gcd(keep, columns) // columns)
        torch.manual_seed(keep)
        live = BlockMask.balanced(
            grid, 1.0 - keep / columns, block_shape=(1, 1), device="cuda"
        ).live
        torch.manual_seed(keep)
        keys = torch.empty((bands, columns), dtype=torch.int32, device="cuda").random_()
        assert torch.equal(live, samplers.balanced_live(keys, rows, keep))
