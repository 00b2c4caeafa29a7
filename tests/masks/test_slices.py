"""Slices of units: what is drawn, how often, and what keeps the expectation."""

import itertools

import pytest
import torch

from sparsedrop import Slice
from sparsedrop.masks.slices import marginals, slices

WIDTHS = [(1024, 64), (96, 64), (100, 64), (7, 64), (1, 1), (2048, 128), (1000, 8)]
RATES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9]
CASES = list(itertools.product(WIDTHS, RATES, ["cyclic", "aligned", "all"]))


@pytest.mark.parametrize(("extents", "p", "starts"), CASES, ids=str)
def test_every_slice_has_the_width_and_starts_where_it_may(extents, p, starts):
    width, align = extents
    step = torch.tensor([width, align]).gcd(torch.tensor([align, width]))[0].item()
    every = slices(width, p, align=align, starts=starts)
    kept = max(step, step * int((1 - p) * width / step + 0.5))
    assert {each.width for each in every} == {kept}
    assert all(each.scale == width / kept for each in every)
    first = [each.pieces[0][0] for each in every]
    if kept == width:
        assert every == (Slice(((0, width),), width),)
    elif starts == "cyclic":
        assert first == list(range(0, width, step))
    else:
        assert first == list(range(0, width - kept + 1, 1 if starts == "all" else step))
        assert all(len(each.pieces) == 1 for each in every)
    assert all(each.mask().sum() == kept for each in every)


@pytest.mark.parametrize(("extents", "p", "starts"), CASES, ids=str)
def test_a_scaled_unit_keeps_its_expectation(extents, p, starts):
    """On average over all units for every start, for each unit where the starts are cyclic."""
    width, align = extents
    found = marginals(width, p, align=align, starts=starts)
    scale = slices(width, p, align=align, starts=starts)[0].scale
    assert abs(found.mean() * scale - 1.0) < 1e-9
    if starts == "cyclic":
        assert ((found * scale - 1.0).abs() < 1e-9).all()


def test_slices_from_anywhere_starve_the_edges():
    found = marginals(1024, 0.25, starts="all")
    first_kept = torch.arange(1024).double()
    expected = (first_kept.clamp(max=256) - (first_kept - 767).clamp(min=0) + 1) / 257
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found == 1.0).sum() == 512


def test_draws_follow_the_marginals_and_repeat_by_seed():
    torch.manual_seed(0)
    drawn = [Slice.draw(256, 0.5, align=32) for _ in range(20000)]
    shares = torch.stack([each.mask() for each in drawn]).double().mean(0)
    assert ((shares - 0.5).abs() < 5 * (0.25 / 20000) ** 0.5).all()
    assert sum(a != b for a, b in itertools.pairwise(drawn)) > 15000
    torch.manual_seed(0)
    assert [Slice.draw(256, 0.5, align=32) for _ in range(100)] == drawn[:100]
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    one, other = (
        [Slice.draw(256, 0.5, generator=generator) for _ in range(9)] for generator in generators
    )
    assert one == other


def test_nothing_is_drawn_where_all_is_kept():
    state = torch.get_rng_state()
    assert Slice.draw(256, 0.0).is_whole
    assert Slice.draw(256, 0.01).is_whole
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((256, 1.0), "p must be below 1: a slice keeps some units"),
        ((256, 1.5), r"p is a probability in \[0, 1\], not 1.5"),
        ((0, 0.5), "width must be a whole number of at least 1, not 0"),
        ((2.5, 0.5), "width must be a whole number of at least 1, not 2.5"),
    ],
)
def test_wrong_arguments(args, sentence):
    with pytest.raises(ValueError, match=sentence):
        Slice.draw(*args)


def test_wrong_options():
    with pytest.raises(ValueError, match="align must be a whole number of at least 1, not -1"):
        Slice.draw(256, 0.5, align=-1)
    with pytest.raises(ValueError, match="starts is one of 'cyclic', 'aligned', 'all', not 'any'"):
        Slice.draw(256, 0.5, starts="any")
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, not int"):
        Slice.draw(256, 0.5, generator=3)
