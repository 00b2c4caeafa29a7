"""Rates that change during training: functions from a step to p.

    schedule = schedules.off_for_the_last(schedules.linear(0.0, 0.5, 1000), 10_000, 500)
    for step in range(10_000):
        sparsedrop.set_rate(model, schedule(step))

Under torch.compile every new rate compiles anew, as with nn.Dropout: change it in a few stages, for
instance every hundred steps.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from sparsedrop.masks import check_p

Schedule = Callable[[int], float]
"""From the number of a step, counted from 0, to the rate."""


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 to `end` at step `steps` and beyond, in a straight line.

    Raises:
        ValueError, TypeError: where a rate is no probability, or steps no whole number of at least
            1.
    """
    start, end, steps = _checked(start, end, steps)

    def schedule(step: int) -> float:
        return _between(start, end, _progress(step, steps))

    return schedule


def cosine(start: float, end: float, steps: int) -> Schedule:
    """The same along half a cosine: slowly at both ends.

    Raises: as `linear`.
    """
    start, end, steps = _checked(start, end, steps)

    def schedule(step: int) -> float:
        return _between(start, end, (1.0 - math.cos(math.pi * _progress(step, steps))) / 2.0)

    return schedule


def off_for_the_last(schedule: Schedule | float, steps: int, last: int) -> Schedule:
    """`schedule`, or a constant rate, but 0 in the last `last` of `steps` steps and beyond.

    The network then ends its training as it is evaluated.

    Raises:
        ValueError, TypeError: where a constant rate is no probability, or last no whole number in
            [0, steps].
    """
    steps, last = _whole("steps", steps, 0), _whole("last", last, None)
    if not 0 <= last <= steps:
        raise ValueError(f"last is a number of steps in [0, {steps}], not {last}")
    rate_of = schedule if callable(schedule) else _constant(check_p(schedule))

    def limited(step: int) -> float:
        return 0.0 if step >= steps - last else rate_of(step)

    return limited


def _constant(p: float) -> Schedule:
    return lambda step: p


def _checked(start: float, end: float, steps: int) -> tuple[float, float, int]:
    return check_p(start), check_p(end), _whole("steps", steps, 1)


def _whole(name: str, number: float, least: int | None) -> int:
    """The number as an integer; 1e4 is one."""
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not is_number or not float(number).is_integer():
        raise TypeError(f"{name} must be a whole number, not {number!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return int(number)


def _progress(step: int, steps: int) -> float:
    return min(max(step / steps, 0.0), 1.0)


def _between(start: float, end: float, share: float) -> float:
    """Exactly `start` and `end` at the ends, and never beyond them."""
    return start * (1.0 - share) + end * share
