"""What the tests of Approximate Random Dropout share: its patterns, all or one of them."""

from unittest import mock

import torch

from sparsedrop import RowPattern, patterns


def every_pattern(width, n):
    """All patterns of n periods."""
    return [RowPattern(width, period, b) for period in range(1, n + 1) for b in range(period)]


def weighted_patterns(width, p, n=8):
    """All patterns, each with its probability."""
    d = patterns.search(p, n)
    return [(d[each.period - 1] / each.period, each) for each in every_pattern(width, n)]


def drawing(*drawn):
    """Every draw, each of as many units, gives these periods and offsets in turn."""
    turns = iter(drawn)

    def draw(width, *_, **__):
        rows = next(turns)
        return RowPattern(width, rows.period, rows.offset)

    return mock.patch.object(RowPattern, "draw", draw)


def scale_of(scale, p, rows):
    """What kept units are multiplied by."""
    return 1 / (1 - p) if scale == "global" else rows.period


def draws_of(run, count, width):
    """[count, width]: which units were kept in each call."""
    found, real = [], RowPattern.draw.__func__

    def draw(cls, *args, **kwargs):
        found.append(real(cls, *args, **kwargs))
        return found[-1]

    with mock.patch.object(RowPattern, "draw", classmethod(draw)):
        for _ in range(count):
            run()
    assert {rows.width for rows in found} == {width}
    return torch.stack([rows.mask() for rows in found])
