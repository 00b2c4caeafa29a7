"""Draws of a few steps that stand for all."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sparsedrop import RowPattern, Slice
from sparsedrop.masks import probabilities
from sparsedrop.masks.strata import Strata, strata
from sparsedrop.nn import RowPatternMLP, SliceOutMLP


def _steps(count, draw):
    """What each of so many steps draws."""
    of, found = Strata(count), []
    for index in range(count):
        with of.step(index):
            found.append(draw())
    assert of.is_used
    return found


@pytest.mark.parametrize(("p", "steps"), [(0.5, 4), (0.5, 16), (0.25, 8), (0.75, 64), (0.5, 128)])
def test_every_unit_is_kept_as_often_as_the_others(p, steps):
    for _ in range(5):
        drawn = _steps(steps, lambda: Slice.draw(512, p, align=8))
        kept = torch.stack([own.mask() for own in drawn]).sum(0)
        assert (kept == (1 - p) * steps).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
def test_it_is_kept_as_often_to_one_step(p):
    steps = 16
    share = Slice.draw(640, p).width / 640
    drawn = _steps(steps, lambda: Slice.draw(640, p))
    kept = torch.stack([own.mask() for own in drawn]).sum(0)
    assert (kept - share * steps).abs().max() < 1


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
def test_periods_are_drawn_as_often_as_their_probabilities_say(p):
    steps, of_periods = 64, probabilities(p, 8)
    drawn = _steps(steps, lambda: RowPattern.draw(256, of_periods))
    for i, probability in enumerate(of_periods):
        count = sum(own.period == i + 1 for own in drawn)
        assert abs(count - probability * steps) <= 1
    assert all(0 <= own.offset < own.period for own in drawn)
    # A unit is kept in a stretch of numbers for each period: to less than one step each.
    kept = torch.stack([own.mask() for own in drawn]).double().mean(0)
    assert (kept - (1 - p)).abs().max() * steps < 8
    assert (kept - (1 - p)).abs().mean() * steps < 2


def test_layers_draw_in_orders_of_their_own():
    pairs = _steps(32, lambda: [Slice.draw(512, 0.5, align=8).pieces[0][0] for _ in range(2)])
    starts = torch.tensor(pairs, dtype=torch.float64).T
    assert len(set(starts[0].tolist())) == len(set(starts[1].tolist())) == 32
    assert torch.corrcoef(starts)[0, 1].abs() < 0.8
    again = _steps(32, lambda: Slice.draw(512, 0.5, align=8).pieces[0][0])
    assert again != starts[0].tolist()


def test_they_repeat_by_seed():
    def draw():
        torch.manual_seed(3)
        return _steps(8, lambda: (Slice.draw(512, 0.5), RowPattern.draw(64, probabilities(0.5, 8))))

    assert draw() == draw()


def test_outside_of_steps_nothing_changes():
    torch.manual_seed(5)
    expected = [Slice.draw(512, 0.5) for _ in range(4)]
    with Strata(2).step(0):
        pass
    assert strata() is None
    torch.manual_seed(5)
    assert [Slice.draw(512, 0.5) for _ in range(4)] == expected
    of = Strata(2)
    with of.step(0):  # a generator of the user's stays his
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        own, other = (Slice.draw(512, 0.5, generator=g) for g in generators)
        assert own == other
        RowPattern.draw(64, probabilities(0.5, 8), generator=generators[0])
    assert not of.is_used


@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP])
def test_a_checkpoint_draws_the_same_again(kind):
    first, second = kind(16, 64, p=0.5), kind(16, 64, p=0.5)
    x = torch.randn(8, 16, requires_grad=True)

    def gradients(run):
        torch.manual_seed(4)
        of, found = Strata(3), []
        for index in range(3):
            with of.step(index):
                out = run(second, run(first, x))
                found += torch.autograd.grad(out.sum(), [x, *first.parameters()])
        return found

    plain = gradients(lambda block, x: block(x))
    again = gradients(lambda block, x: checkpoint(block, x, use_reentrant=False))
    assert all(map(torch.equal, again, plain))
