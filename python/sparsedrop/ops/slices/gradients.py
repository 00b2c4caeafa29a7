"""Gradients of slices beside the parameters that they belong to, until an optimiser's step."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop._torch import is_accumulated
from sparsedrop.ops.slices.products import Pieces

_NAME = "slice_gradient"

NOT_RETURNED = (
    'gradients="lazy" leaves gradients beside the parameters, where torch.autograd.grad cannot '
    'return them: use backward(), or gradients="dense"'
)


MOST_PASSES = 256
"""Whose gradients an optimiser's step takes together, without a word."""

NOT_TAKEN = (
    f'the gradients of {MOST_PASSES} backward passes with gradients="lazy" have been taken by no '
    "optimiser, so that nothing is trained: wrap it by sparsedrop.slice_out.lazy"
)


class SliceGradient(NamedTuple):
    """The gradient of pieces of a parameter along one extent, one behind the other in `values`;
    that of the rest is 0. It is the sum over so many backward passes."""

    dim: int
    pieces: Pieces
    values: Tensor
    passes: int = 1


def gradient_of(parameter: Tensor) -> SliceGradient | None:
    """What backward passes have left since the last `clear`."""
    return getattr(parameter, _NAME, None)


def clear(parameter: Tensor) -> None:
    """Forgets it."""
    if hasattr(parameter, _NAME):
        delattr(parameter, _NAME)


def keep_compact(parameter: Tensor, dim: int, pieces: Pieces, values: Tensor) -> None:
    """Adds the gradient of these pieces to what is there, in a backward pass that would add it to
    the parameter's `.grad`."""
    try:
        if not is_accumulated(parameter):
            return
    except RuntimeError:
        raise RuntimeError(NOT_RETURNED) from None
    found = SliceGradient(dim, pieces, values)
    before = gradient_of(parameter)
    if before is not None:
        found = _sum(before, found)._replace(passes=before.passes + 1)
        if before.passes == MOST_PASSES:
            warnings.warn(NOT_TAKEN, stacklevel=2)
    setattr(parameter, _NAME, found)


def _sum(a: SliceGradient, b: SliceGradient) -> SliceGradient:
    if a.pieces == b.pieces:
        return a._replace(values=a.values.add_(b.values))
    pieces = _union(a.pieces + b.pieces)
    shape = list(a.values.shape)
    shape[a.dim] = sum(stop - start for start, stop in pieces)
    total = torch.zeros(shape, dtype=a.values.dtype, device=a.values.device)
    for one in (a, b):
        begin = 0
        for start, stop in one.pieces:
            part = one.values.narrow(one.dim, begin, stop - start)
            total.narrow(a.dim, _place(pieces, start), stop - start).add_(part)
            begin += stop - start
    return SliceGradient(a.dim, pieces, total)


def _union(pieces: Pieces) -> Pieces:
    """Pieces apart from each other that hold the same units."""
    found = list[tuple[int, int]]()
    for start, stop in sorted(pieces):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def _place(pieces: Pieces, unit: int) -> int:
    """Where a unit of the whole stands in the compact tensor."""
    begin = 0
    for start, stop in pieces:
        if start <= unit < stop:
            return begin + unit - start
        begin += stop - start
    raise AssertionError(f"unit {unit} is in none of {pieces}")
