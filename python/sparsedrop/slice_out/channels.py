"""A slice of channels that several layers share: modules whose parameters lie whole, run on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsedrop import operands
from sparsedrop.masks import Slice
from sparsedrop.ops.slices.choice import Choice
from sparsedrop.ops.slices.convolution import Convolution, by_numbers
from sparsedrop.ops.slices.numbers import draw_numbers
from sparsedrop.ops.slices.products import Cut
from sparsedrop.slice_out import norm as norms
from sparsedrop.slice_out.layers import dtype_of, run_conv2d, run_linear


@dataclass(frozen=True)
class Channels:
    """Which of so many are live.

    A compiled program draws when it runs, and has their numbers, int64 [width] on the device; else
    it is a `Slice`.
    """

    units: int
    width: int
    live: Slice | Tensor

    @classmethod
    def draw(cls, choice: Choice, device: torch.device) -> Channels | None:
        """From torch's default CPU generator; None, without a draw, where all are live."""
        units, width = choice.units, choice.width
        if width == units:
            return None
        is_compiled = torch.compiler.is_compiling()
        return cls(units, width, draw_numbers(choice, device) if is_compiled else choice.draw())

    @property
    def scale(self) -> float:
        """What live channels are multiplied by where a layer adds them up."""
        return self.units / self.width


def conv2d(x: Tensor, conv: nn.Conv2d, read: Channels | None, made: Channels | None) -> Tensor:
    """x [N, in', H, W] -> [N, out', ...]: of the channels that are read, which are scaled, those
    that are to be made; None: all. With groups both are the same, whole groups of as many channels
    on either side, and nothing is scaled."""
    operands.check_operand("x", x, 4)
    is_dense = conv.groups == 1
    groups, alpha = 1, 1.0
    if read is not None and is_dense:
        alpha = read.scale
    elif read is not None:
        groups = conv.groups * read.width // read.units
        read = None
    cut, (rows, cols) = _cut(_live(read), _live(made), x.device)
    how = Convolution(conv.stride, _padding(conv), conv.dilation, groups, cut, alpha)
    if rows is None and cols is None:
        return run_conv2d(x, conv.weight, conv.bias, how)
    x = operands.cast(x, dtype_of(x, conv.weight, conv.bias))
    return by_numbers(x, conv.weight, conv.bias, how, (rows, cols))


def _padding(conv: nn.Conv2d) -> tuple[int, ...] | str:
    """In numbers, where both ends of an extent get as much."""
    if isinstance(conv.padding, str):
        both = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding == "valid":
            return 0, 0
        if not any(total % 2 for total in both):
            return tuple(total // 2 for total in both)
    return conv.padding


def linear(x: Tensor, layer: nn.Linear, read: Channels | None, made: Channels | None) -> Tensor:
    """x [N, in'] -> [N, out'], likewise."""
    alpha = 1.0 if read is None else read.scale
    return linear_of(x, layer.weight, layer.bias, _live(read), _live(made), alpha)


def linear_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Slice | Tensor | None,
    made: Slice | Tensor | None,
    alpha: float,
) -> Tensor:
    """x [..., in'] -> [..., out']: of the units that are read, times alpha, those that are to be
    made; None: all."""
    cut, (rows, cols) = _cut(read, made, x.device)
    if rows is None and cols is None:
        return run_linear(x, weight, bias, cut, alpha)
    own = _numbered(_numbered(weight, rows), cols, 1)
    assert own is not None
    return nn.functional.linear(x * alpha, own, _numbered(bias, rows))


def batch_norm(x: Tensor, norm: nn.BatchNorm2d, own: Channels) -> Tensor:
    """x [N, C', H, W] -> the same, as the module does in its mode; statistics of channels that are
    not live stay."""
    mean, var = norm.running_mean, norm.running_var
    counts = norm.training and norm.track_running_stats
    if counts and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    by_batch = norm.training or mean is None
    if norm.training and not norm.track_running_stats:
        mean = var = None
    momentum = 0.0 if norm.momentum is None else norm.momentum
    how = by_batch, momentum, norm.eps
    if isinstance(own.live, Slice):
        return norms.batch_norm(x, mean, var, norm.weight, norm.bias, *how, out_slice=own.live)
    mine, own_var = _numbered(mean, own.live), _numbered(var, own.live)
    scale, shift = _numbered(norm.weight, own.live), _numbered(norm.bias, own.live)
    out = nn.functional.batch_norm(x, mine, own_var, scale, shift, *how)
    for whole, compact in ((mean, mine), (var, own_var)):
        if by_batch and whole is not None and compact is not None:
            whole.index_copy_(0, own.live, compact)
    return out


def _numbered(tensor: Tensor | None, numbers: Tensor | None, dim: int = 0) -> Tensor | None:
    """What has these numbers; None: all of it."""
    return tensor if tensor is None or numbers is None else tensor.index_select(dim, numbers)


def _live(own: Channels | None) -> Slice | Tensor | None:
    return None if own is None else own.live


def _cut(
    read: Slice | Tensor | None, made: Slice | Tensor | None, device: torch.device
) -> tuple[Cut, tuple[Tensor | None, Tensor | None]]:
    """Of a weight [out, in, ...]: its cut, or the numbers of rows and columns."""
    if isinstance(made, Tensor) or isinstance(read, Tensor):
        return Cut(), (_numbers(made, device), _numbers(read, device))
    pieces = (None if own is None else own.pieces for own in (made, read))
    return Cut(*pieces), (None, None)


def _numbers(live: Slice | Tensor | None, device: torch.device) -> Tensor | None:
    """A slice that was drawn outside of a program, inside of which another one was."""
    if not isinstance(live, Slice):
        return live
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in live.pieces])
