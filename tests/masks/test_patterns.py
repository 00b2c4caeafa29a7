"""Patterns of Approximate Random Dropout: the search, the draws, what keeps the expectation."""

import itertools
import math

import pytest
import torch

from sparsedrop import RowPattern, patterns

# METHODS: the first six of eight, to three digits.
KNOWN = {
    0.3: (0.571, 0.123, 0.074, 0.057, 0.049, 0.044),
    0.5: (0.314, 0.143, 0.110, 0.097, 0.090, 0.085),
    0.7: (0.083, 0.112, 0.124, 0.130, 0.134, 0.137),
}
WIDTHS = [1, 3, 7, 24, 64]


def _entropy(d):
    return -sum(value * math.log(value) for value in d if value > 0.0)


@pytest.mark.parametrize("p", KNOWN)
def test_known_probabilities(p):
    assert patterns.search(p)[:6] == pytest.approx(KNOWN[p], abs=6e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.875])
def test_the_rate_is_met(p, n):
    if p > (n - 1) / n:
        with pytest.raises(ValueError, match=rf"p = {p} is more than {n} periods give: at most"):
            patterns.search(p, n)
        return
    d = patterns.search(p, n)
    assert len(d) == n
    assert min(d) >= 0.0
    assert sum(d) == pytest.approx(1.0, abs=1e-12)
    assert patterns.rate(d) == pytest.approx(p, abs=1e-9)


def test_no_other_probabilities_of_that_rate_have_more_entropy():
    d = torch.tensor(patterns.search(0.4), dtype=torch.float64)
    rates = torch.tensor([i / (i + 1) for i in range(8)], dtype=torch.float64)
    kept = torch.stack([torch.ones(8, dtype=torch.float64), rates])
    for seed in range(200):
        step = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        step -= kept.t() @ torch.linalg.solve(kept @ kept.t(), kept @ step)
        other = d + 0.05 * step / step.norm()
        if (other >= 0).all():
            assert patterns.rate(other.tolist()) == pytest.approx(0.4, abs=1e-9)
            assert _entropy(other.tolist()) < _entropy(d.tolist())


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.7])
def test_the_papers_search_comes_near(p):
    state = torch.get_rng_state()
    d = patterns.search(p, method="sgd")
    assert abs(patterns.rate(d) - p) < 0.05
    assert sum(d) == pytest.approx(1.0)
    assert d == patterns.search(p, method="sgd")
    assert torch.equal(torch.get_rng_state(), state)


def _every(width, d):
    """All patterns, each with its probability."""
    for i, probability in enumerate(d):
        for offset in range(i + 1):
            yield probability / (i + 1), RowPattern(width, i + 1, offset)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
def test_each_unit_is_dropped_with_the_rate(p, width):
    d = patterns.search(p)
    every = list(_every(width, d))
    kept = sum(weight * pattern.mask().double() for weight, pattern in every)
    torch.testing.assert_close(
        kept, torch.full((width,), 1 - p, dtype=torch.float64), rtol=0, atol=1e-9
    )
    # Both scales keep the expectation.
    scaled = sum(weight * pattern.period * pattern.mask().double() for weight, pattern in every)
    torch.testing.assert_close(scaled, torch.ones(width).double(), rtol=0, atol=1e-9)
    assert all(pattern.count == pattern.mask().sum() for _, pattern in every)


def test_pairs_of_units_are_not_independent():
    """P(i and j kept) is the sum over the divisors k of their distance of d[k] / k."""
    width, d = 24, patterns.search(0.5)
    every = [(weight, pattern.mask()) for weight, pattern in _every(width, d)]
    for i, j in itertools.combinations(range(width), 2):
        found = sum(weight for weight, kept in every if kept[i] and kept[j])
        divisors = (k for k in range(1, 9) if (j - i) % k == 0)
        assert found == pytest.approx(sum(d[k - 1] / k for k in divisors), abs=1e-9)


def test_draws_follow_the_probabilities_and_repeat_by_seed():
    d = patterns.search(0.5)
    torch.manual_seed(0)
    drawn = [RowPattern.draw(64, d) for _ in range(20000)]
    shares = torch.stack([each.mask() for each in drawn]).double().mean(0)
    assert ((shares - 0.5).abs() < 5 * (0.25 / 20000) ** 0.5).all()
    for i, probability in enumerate(d):
        count = sum(each.period == i + 1 for each in drawn)
        assert abs(count / 20000 - probability) < 5 * (probability / 20000) ** 0.5
    assert sum(a != b for a, b in itertools.pairwise(drawn)) > 14000
    torch.manual_seed(0)
    assert [RowPattern.draw(64, d) for _ in range(100)] == drawn[:100]


def test_nothing_is_drawn_where_all_is_kept():
    state = torch.get_rng_state()
    assert RowPattern.draw(64, patterns.search(0.0)) == RowPattern(64, 1, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="method is one of 'exact', 'sgd', not 'adam'"):
        patterns.search(0.5, method="adam")
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, not 0"):
        patterns.search(0.5, 0)
    with pytest.raises(ValueError, match=r"at most .* = 0\.875; take a larger n"):
        patterns.search(1.0)
    with pytest.raises(ValueError, match=r"d are probabilities that add up to 1, not \[0.5, 0.4\]"):
        RowPattern.draw(8, [0.5, 0.4])
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, not 0"):
        RowPattern.draw(0, [1.0])
