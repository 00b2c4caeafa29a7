"""The products of a linear layer of which slices are live: the arithmetic, and nothing else.

Weights lie whole, [n, k]; activations are compact, with the columns of live units only. Weights are
read through views. Gradients of parameters are made whole: that of the slice is written into its
place, and only the rest is zeroed. All of it works in place, so that autocast around it changes no
dtype.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop._torch import without_base

Pieces = tuple[tuple[int, int], ...]
"""(start, stop) of each, in the order of the columns of a compact matrix."""

SMALL = 2**16
"""Elements of a gradient that one launch zeroes before several would have zeroed the rest of it."""

_Place = tuple[int, int] | None
"""Start and length; None: all of it."""


class Cut(NamedTuple):
    """What is live of a weight: pieces of its rows, the outputs, and of its columns, the inputs."""

    rows: Pieces | None = None
    cols: Pieces | None = None

    @property
    def turned(self) -> Cut:
        """That of the transposed weight."""
        return Cut(self.cols, self.rows)


def width(pieces: Pieces | None, extent: int) -> int:
    """How many of so many units are live."""
    return extent if pieces is None else sum(stop - start for start, stop in pieces)


def units_of(pieces: Pieces | None) -> tuple[int, int, int, int]:
    """One piece or two, as `_C` takes live units: step, start and length of the first, and start of
    the second."""
    assert pieces is not None, "nothing is cut"
    (start, stop), (second, _) = pieces[0], pieces[1] if len(pieces) > 1 else (0, 0)
    return 1, start, stop - start, second


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cut: Cut,
    alpha: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """alpha * x Wᵀ + bias of the live units: x [m, k'] -> [m, n'], in the dtype of x."""
    rows, cols = _places(cut.rows), _places(cut.cols)
    if out is None:
        out = x.new_empty((x.shape[0], width(cut.rows, weight.shape[0])))
    for place, row in rows:
        to, own = _narrow(out, 1, place), _narrow(weight, 0, row)
        for i, (source, col) in enumerate(cols):
            factor = _cast(_narrow(own, 1, col), x.dtype).t()
            a = _narrow(x, 1, source)
            if i > 0 or bias is None:
                to.addmm_(a, factor, beta=min(i, 1), alpha=alpha)
            else:
                torch.addmm(
                    _cast(_narrow(bias, 0, row), x.dtype), a, factor, alpha=alpha, out=to
                )  # fmt: skip
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, cut: Cut, alpha: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """alpha * grad W: grad [m, n'] -> [m, k']; added to `out` where one is given."""
    beta = 0 if out is None else 1
    if out is None:
        out = grad.new_empty((grad.shape[0], width(cut.cols, weight.shape[1])))
    return _add_input_gradient(grad, weight, cut, alpha, out, beta)


def input_gradient_into(
    out: Tensor, grad: Tensor, weight: Tensor, cut: Cut, alpha: float = 1.0
) -> Tensor:
    """The same, written over what stands in `out`."""
    return _add_input_gradient(grad, weight, cut, alpha, out, 0)


def _add_input_gradient(
    grad: Tensor, weight: Tensor, cut: Cut, alpha: float, out: Tensor, beta: int
) -> Tensor:
    for place, col in _places(cut.cols):
        to, own = _narrow(out, 1, place), _narrow(weight, 1, col)
        for i, (source, row) in enumerate(_places(cut.rows)):
            factor = _cast(_narrow(own, 0, row), grad.dtype)
            to.addmm_(_narrow(grad, 1, source), factor, beta=1 if i else beta, alpha=alpha)
    return out


def weight_gradient(grad: Tensor, x: Tensor, like: Tensor, cut: Cut, alpha: float = 1.0) -> Tensor:
    """alpha * gradᵀ x in its place of a gradient like the weight, all else exactly 0."""
    is_small = like.numel() <= SMALL
    found = like.new_zeros(like.shape) if is_small else like.new_empty(like.shape)
    for source, row in _places(cut.rows):
        own, a = _narrow(found, 0, row), _narrow(grad, 1, source).t()
        for place, col in _places(cut.cols):
            _write_product(_narrow(own, 1, col), a, _narrow(x, 1, place), alpha)
        if not is_small:
            _zero_rest(own, 1, cut.cols)
    if not is_small:
        _zero_rest(found, 0, cut.rows)
    return found


def compact_weight_gradient(
    grad: Tensor, x: Tensor, dtype: torch.dtype, alpha: float = 1.0
) -> Tensor:
    """The same of the live units alone, [n', k']."""
    found = grad.new_empty((grad.shape[1], x.shape[1]), dtype=dtype)
    _write_product(found, grad.t(), x, alpha)
    return found


def bias_gradient(grad: Tensor, like: Tensor, rows: Pieces | None) -> Tensor:
    """Sums of the columns of grad [m, n'] in their place, all else exactly 0."""
    if rows is None:
        return torch.sum(grad, 0, dtype=like.dtype)
    found = torch.zeros_like(like)
    for source, row in _places(rows):
        to = _narrow(found, 0, row)
        torch.sum(_narrow(grad, 1, source), 0, dtype=like.dtype, out=to)
    return found


def flat(x: Tensor) -> Tensor:
    """x [..., k] as [m, k]."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def unflat(x: Tensor, like: Tensor) -> Tensor:
    """x [m, n] with the leading extents of another tensor."""
    return x if like.dim() == 2 else without_base(x, [*like.shape[:-1], x.shape[1]])


def in_place_of(like: Tensor, compact: Tensor, cut: Cut) -> Tensor:
    """A gradient like the parameter, with a compact one in its place and all else exactly 0."""
    found = torch.empty_like(like)
    for source, row in _places(cut.rows):
        own, part = _narrow(found, 0, row), _narrow(compact, 0, source)
        for place, col in _places(cut.cols):
            _narrow(own, 1, col).copy_(_narrow(part, 1, place))
        if cut.cols is not None:
            _zero_rest(own, 1, cut.cols)
    _zero_rest(found, 0, cut.rows)
    return found


def _write_product(to: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """`to` = alpha * a b; where `to` is of another dtype the product is rounded on the way."""
    if to.dtype == a.dtype:
        to.addmm_(a, b, beta=0, alpha=alpha)
    else:
        rounded = a.new_empty(to.shape)
        to.copy_(rounded.addmm_(a, b, beta=0, alpha=alpha))


@functools.lru_cache(maxsize=4096)
def _places(pieces: Pieces | None) -> tuple[tuple[_Place, _Place], ...]:
    """Of each piece: where it is in a compact matrix, and where in the whole."""
    if pieces is None:
        return ((None, None),)
    if len(pieces) == 1:
        ((start, stop),) = pieces
        return ((None, (start, stop - start)),)
    found, begin = list[tuple[_Place, _Place]](), 0
    for start, stop in pieces:
        found.append(((begin, stop - start), (start, stop - start)))
        begin += stop - start
    return tuple(found)


def _zero_rest(tensor: Tensor, dim: int, pieces: Pieces | None) -> None:
    """What lies outside of the pieces."""
    if pieces is None:
        return
    for start, stop in rest_of(pieces, tensor.shape[dim]):
        tensor.narrow(dim, start, stop - start).zero_()


@functools.lru_cache(maxsize=4096)
def rest_of(pieces: Pieces, extent: int) -> Pieces:
    """What lies between the pieces, and around them."""
    found, begin = [], 0
    for start, stop in sorted(pieces):
        if start > begin:
            found.append((begin, start))
        begin = stop
    if begin < extent:
        found.append((begin, extent))
    return tuple(found)


def _narrow(tensor: Tensor, dim: int, place: _Place) -> Tensor:
    return tensor if place is None else tensor.narrow(dim, *place)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
