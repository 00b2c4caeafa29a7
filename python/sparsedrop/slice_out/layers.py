"""A linear layer and a convolution on slices: tensors between them are compact."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsedrop import operands
from sparsedrop._torch import is_in_ddp, is_transformed, is_watched
from sparsedrop.masks import Slice
from sparsedrop.ops.slices.convolution import Convolution, Pair, by_views, convolution
from sparsedrop.ops.slices.linear import linear as linear_node
from sparsedrop.ops.slices.products import Cut, Pieces
from sparsedrop.ops.slices.views import linear_by_views


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_slice: Slice | None = None,
    out_slice: Slice | None = None,
) -> Tensor:
    """`F.linear` of a slice of the inputs, a slice of the outputs, or both (Notin et al. 2020).

    Weight and bias lie whole, and so do their gradients, which are exactly 0 outside of the slices.
    Nothing is scaled: multiply by `in_slice.scale` where it belongs.

    Args:
        x: `[..., k']`, with the features of `in_slice` only, in its order.
        weight: `[n, k]`.
        bias: `[n]` or None.
        in_slice: of k units; None: all of them.
        out_slice: of n units; None: all of them.

    Returns:
        `[..., n']`, with the features of `out_slice`.

    Raises:
        TypeError: for a slice that is no Slice, and as `sparsedrop.linear`.
        ValueError: where extents, dtypes or devices disagree.
    """
    if in_slice is None and out_slice is None:
        return nn.functional.linear(x, weight, bias)
    operands.check_operand("x", x, None)
    operands.check_operand("weight", weight, 2)
    cut = Cut(
        _pieces("out_slice", out_slice, "weight", weight, 0),
        _pieces("in_slice", in_slice, "weight", weight, 1),
    )
    _check_compact(x, -1, "features", in_slice, weight.shape[1])
    return run_linear(x, weight, bias, cut).contiguous()


def run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cut: Cut,
    alpha: float = 1.0,
    lazy: bool = False,
) -> Tensor:
    """The layer, where slices fit; `alpha` multiplies the product and not the bias."""
    _check_bias(bias, weight)
    check_lazy(lazy, (weight, bias))
    x = operands.cast(x, dtype_of(x, weight, bias))
    if torch.compiler.is_compiling() or is_transformed() or _is_watched(x, weight, bias):
        check_not_watched(lazy)
        return linear_by_views(x, weight, bias, cut, alpha)
    return linear_node(x, weight, bias, cut, alpha, lazy)


def check_lazy(lazy: bool, parameters: Iterable[Tensor | None] = ()) -> None:
    """RuntimeError where gradients="lazy" cannot be: somebody waits for gradients, or what they
    would stand beside is no parameter."""
    if not lazy:
        return
    if torch.compiler.is_compiling():
        raise RuntimeError('gradients="lazy" is for eager mode, not torch.compile')
    if is_in_ddp():
        raise RuntimeError(
            'gradients="lazy" leaves DistributedDataParallel without gradients to average: use '
            'gradients="dense"'
        )
    if not all(own is None or own.is_leaf for own in parameters):
        raise RuntimeError(
            'gradients="lazy" stand beside parameters, but a weight or bias is made of others, by '
            'a norm, a parametrization or pruning: use gradients="dense"'
        )


def check_not_watched(lazy: bool) -> None:
    """RuntimeError where gradients="lazy" cannot be, since somebody has to see an op."""
    if lazy:
        raise RuntimeError(
            'gradients="lazy" is for plain tensors outside of transforms and modes: use '
            'gradients="dense"'
        )


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    in_slice: Slice | None = None,
    out_slice: Slice | None = None,
) -> Tensor:
    """`F.conv2d` of a slice of the input channels, a slice of the output channels, or both.

    As `linear`. With groups both slices are given, and keep the same whole groups; a depthwise
    convolution is called with all its groups, and with one slice for both.

    Args:
        x: `[N, in', H, W]`, with the channels of `in_slice` only.
        weight: `[out, in / groups, height, width]`.
        bias: `[out]` or None.
        stride: as for `F.conv2d`.
        padding: likewise.
        dilation: likewise.
        groups: those of the whole layer.
        in_slice: of all input channels; None: all of them.
        out_slice: of all output channels; None: all of them.

    Returns:
        `[N, out', ...]`, with the channels of `out_slice`.

    Raises:
        TypeError: for a slice that is no Slice.
        ValueError: where extents, dtypes or devices disagree, or a slice cuts through a group.
    """
    if in_slice is None and out_slice is None:
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    operands.check_operand("x", x, 4)
    operands.check_operand("weight", weight, 4)
    rows = _pieces("out_slice", out_slice, "weight", weight, 0)
    channels = weight.shape[1] * groups
    cut, live_groups = Cut(rows), 1
    if groups == 1:
        cut = Cut(rows, _pieces("in_slice", in_slice, "weight", weight, 1))
    else:
        live_groups = _live_groups(in_slice, out_slice, groups, channels, weight.shape[0])
    _check_compact(x, 1, "channels", in_slice, channels)
    how = Convolution(
        _pair(stride), padding if isinstance(padding, str) else _pair(padding), _pair(dilation),
        live_groups, cut,
    )  # fmt: skip
    return run_conv2d(x, weight, bias, how)


def run_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution) -> Tensor:
    """The convolution, where slices fit."""
    _check_bias(bias, weight)
    x = operands.cast(x, dtype_of(x, weight, bias))
    is_plain = not isinstance(how.padding, str) and not torch.compiler.is_compiling()
    if not is_plain or is_transformed() or _is_watched(x, weight, bias):
        return by_views(x, weight, bias, how)
    return convolution(x, weight, bias, how)


def _live_groups(
    in_slice: Slice | None, out_slice: Slice | None, groups: int, channels: int, outputs: int
) -> int:
    """How many groups both slices keep; ValueError where they are not whole or not the same."""
    advice = f"a convolution with {groups} groups keeps the same whole groups of both"
    if in_slice is None or out_slice is None:
        missing = "in_slice" if in_slice is None else "out_slice"
        raise ValueError(f"{missing} is None: {advice}")
    found = []
    for name, own, units in (("in_slice", in_slice, channels), ("out_slice", out_slice, outputs)):
        _check_slice(name, own)
        if own.units != units:
            raise ValueError(f"{name} is of {own.units} units, but there are {units} channels")
        size = units // groups
        if any(stop % size for piece in own.pieces for stop in piece):
            raise ValueError(
                f"{name} keeps {own.pieces} of {units} channels, and a group has {size}: {advice}"
            )
        found.append(tuple((start // size, stop // size) for start, stop in own.pieces))
    if found[0] != found[1]:
        raise ValueError(f"in_slice keeps groups {found[0]} and out_slice {found[1]}: {advice}")
    return sum(stop - start for start, stop in found[0])


def _pieces(name: str, own: Slice | None, of: str, weight: Tensor, dim: int) -> Pieces | None:
    if own is None:
        return None
    _check_slice(name, own)
    if own.units != weight.shape[dim]:
        raise ValueError(
            f"{name} is of {own.units} units, but {of} is {list(weight.shape)}: it has "
            f"{weight.shape[dim]} {'outputs' if dim == 0 else 'inputs'}"
        )
    return own.pieces


def _check_slice(name: str, own: Slice) -> None:
    if not isinstance(own, Slice):
        raise TypeError(f"{name} must be a Slice, not {type(own).__name__}")


def _check_compact(x: Tensor, dim: int, what: str, own: Slice | None, units: int) -> None:
    kept = units if own is None else own.width
    if x.shape[dim] != kept:
        source = "there are" if own is None else "in_slice keeps"
        raise ValueError(f"x is {list(x.shape)}, with {x.shape[dim]} {what}, but {source} {kept}")


def _check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        return
    operands.check_operand("bias", bias, 1)
    if bias.shape[0] != weight.shape[0]:
        raise ValueError(
            f"bias is {list(bias.shape)} and weight is {list(weight.shape)}: outer extents differ"
        )


def dtype_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Of the product, as autocast leaves it; ValueError where dtypes or devices differ."""
    named = [("x", x), ("weight", weight), ("bias", bias)]
    given = [(name, tensor) for name, tensor in named if tensor is not None]
    return operands.agreed_dtype(tuple(name for name, _ in given), *(tensor for _, tensor in given))


def _is_watched(*tensors: Tensor | None) -> bool:
    return is_watched(*(tensor for tensor in tensors if tensor is not None))


def _pair(value: int | Pair) -> Pair:
    """As torch takes it: one number for both extents, or two."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return first, (rest or [first])[0]
