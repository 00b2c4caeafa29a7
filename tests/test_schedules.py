"""Rates that change during training."""

import math

import pytest
import torch

import sparsedrop
from sparsedrop import schedules
from sparsedrop.nn import SparseDropLinear


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (schedules.linear(0.0, 0.5, 10), {0: 0.0, 1: 0.05, 5: 0.25, 10: 0.5, 99: 0.5}),
        (schedules.linear(0.5, 0.1, 4), {0: 0.5, 1: 0.4, 2: 0.3, 4: 0.1, 5: 0.1}),
        (schedules.linear(0.3, 0.3, 1), {0: 0.3, 1: 0.3, 7: 0.3}),
        (schedules.cosine(0.0, 0.5, 4), {0: 0.0, 2: 0.25, 4: 0.5, 9: 0.5}),
        (schedules.cosine(0.4, 0.0, 3), {0: 0.4, 1: 0.3, 2: 0.1, 3: 0.0}),
        (schedules.off_for_the_last(0.3, 10, 2), {0: 0.3, 7: 0.3, 8: 0.0, 9: 0.0, 12: 0.0}),
        (schedules.off_for_the_last(0.3, 10, 0), {9: 0.3, 10: 0.0}),
        (schedules.off_for_the_last(0.3, 10, 10), {0: 0.0}),
        (
            schedules.off_for_the_last(schedules.linear(0.0, 0.5, 10), 20, 5),
            {0: 0.0, 5: 0.25, 14: 0.5, 15: 0.0},
        ),
    ],
)
def test_rates(schedule, rates):
    for step, p in rates.items():
        assert math.isclose(schedule(step), p, abs_tol=1e-12)


def test_a_cosine_starts_and_ends_slowly():
    straight, cosine = schedules.linear(0.0, 1.0, 100), schedules.cosine(0.0, 1.0, 100)
    assert cosine(10) < straight(10) / 3
    assert 1 - cosine(90) < (1 - straight(90)) / 3


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ends_are_exact_and_never_exceeded(make):
    schedule = make(0.1, 0.7, 7)
    rates = [schedule(step) for step in range(-1, 12)]
    assert rates[0] == rates[1] == 0.1
    assert rates[-1] == 0.7
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: schedules.linear(-0.1, 0.5, 3), r"p is a probability in \[0, 1\], not -0.1"),
        (lambda: schedules.cosine(0.1, 1.5, 3), r"p is a probability in \[0, 1\], not 1.5"),
        (lambda: schedules.linear(0.1, 0.5, 0), "steps must be at least 1, not 0"),
        (lambda: schedules.off_for_the_last(2, 5, 1), r"p is a probability in \[0, 1\], not 2"),
        (lambda: schedules.off_for_the_last(0.1, 5, 6), r"a number of steps in \[0, 5\], not 6"),
        (lambda: schedules.off_for_the_last(0.1, 5, -1), r"a number of steps in \[0, 5\], not -1"),
    ],
)
def test_what_is_wrong_is_said(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("number", [2.5, math.nan, math.inf, "3", None, True])
def test_numbers_of_steps_are_whole(number):
    for make in (
        lambda: schedules.linear(0.0, 0.5, number),
        lambda: schedules.cosine(0.0, 0.5, number),
        lambda: schedules.off_for_the_last(0.5, number, 0),
    ):
        with pytest.raises(TypeError, match=f"^steps must be a whole number, not {number!r}$"):
            make()
    with pytest.raises(TypeError, match=f"^last must be a whole number, not {number!r}$"):
        schedules.off_for_the_last(0.5, 3, number)
    assert schedules.linear(0.0, 0.5, 1e1)(5) == 0.25


def test_a_schedule_sets_the_rates_of_a_model():
    model = torch.nn.Sequential(SparseDropLinear(8, 8), torch.nn.Dropout(0.9))
    schedule = schedules.off_for_the_last(schedules.linear(0.0, 0.4, 4), 6, 1)
    seen = []
    for step in range(6):
        assert sparsedrop.set_rate(model, schedule(step)) == 1
        seen.append(model[0].p)
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.0])
    assert model[1].p == 0.9
