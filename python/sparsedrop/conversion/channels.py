"""Layers of a converted model between which a slice of channels is live.

The layers that make the channels make a slice of them, compact; batch norms and grouped
convolutions between run on what is there, and the layers that read the channels read the slice.
Which it is they know from what they share. The first of them draws it, and the last one takes it
away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsedrop.conversion.layers import Converted, Handover
from sparsedrop.masks import check_sliced_p
from sparsedrop.nn.rated import applied_rate_of
from sparsedrop.ops.slices import Choice
from sparsedrop.slice_out import channels
from sparsedrop.slice_out.channels import Channels

ALIGN, SLICES = 16, 8
"""Starts and widths are multiples of 16 channels, or of 8, 4, 2 or 1 where there would be fewer
than 8 starts."""


def align_for(units: int, size: int) -> int:
    """What slices of so many channels are multiples of; in whole groups of so many."""
    align = ALIGN
    while align > 1 and units < SLICES * align:
        align //= 2
    return math.gcd(units, math.lcm(align, size))


def choice(units: int, size: int, p: float) -> Choice:
    """How a slice is drawn."""
    return Choice(units, p, align_for(units, size), "cyclic", "constant")


def kept(units: int, size: int, p: float) -> float:
    """The share of the channels that is kept."""
    return choice(units, size, p).width / units


@dataclass
class ChannelSide:
    """The input or the output of a layer, of which a slice of channels is live.

    Attributes:
        handover: the slice, shared by all layers around these channels.
        size: channels of a group of the grouped convolutions among them.
        is_first: whether the layer draws it.
        is_last: whether the layer takes it away.
    """

    handover: Handover
    size: int = 1
    is_first: bool = False
    is_last: bool = False


class _OnChannels(Converted):
    """A layer whose input, output or both are a slice of channels."""

    incoming: ChannelSide | None
    outgoing: ChannelSide | None

    def check_rate(self, p: float) -> float:
        """p as a float; ValueError where it is no probability, or 1."""
        return check_sliced_p(p)

    def _read(self, x: Tensor, found: int, all_units: int) -> Channels | None:
        """What x has, which is so many channels; None: all of them."""
        side = self.incoming
        if side is None:
            return None
        masks: dict[Any, Channels] = side.handover.masks
        own = masks.pop(x.device, None) if side.is_last else masks.get(x.device)
        return checked(own, found, all_units)

    def _made(self, x: Tensor, units: int) -> Channels | None:
        """What the result is to have; None: all of so many channels."""
        side = self.outgoing
        if side is None:
            return None
        masks: dict[Any, Channels] = side.handover.masks
        if not side.is_first:
            return masks.get(x.device)
        # Of a step that was not finished.
        masks.pop(x.device, None)
        p = applied_rate_of(self._modules.get("out_dropout"))
        drawn = Channels.draw(choice(units, side.size, p), x.device) if p else None
        if drawn is not None:
            masks[x.device] = drawn
        return drawn

    def _sides(self) -> list[str]:
        names = (self.incoming, "input"), (self.outgoing, "output")
        return [f"{name}: slices of channels" for side, name in names if side is not None]


class SlicedConv2d(_OnChannels, nn.Conv2d):
    """An nn.Conv2d before or behind a slice of channels; see `nn.SliceOutMLP` for the draws."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, in, H, W], or live channels alone -> [N, out, ...], or likewise."""
        read = self._read(input, input.shape[-3], self.in_channels)
        made = self._made(input, self.out_channels)
        if read is None and made is None:
            return nn.Conv2d.forward(self, input)
        return channels.conv2d(input, self, read, made)

    def extra_repr(self) -> str:
        return ", ".join([nn.Conv2d.extra_repr(self), *self._sides()])


class SlicedLinear(_OnChannels, nn.Linear):
    """Likewise an nn.Linear of features that are channels, as in a squeeze-excite."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, in], or live channels alone -> [N, out], or likewise."""
        read = self._read(input, input.shape[-1], self.in_features)
        made = self._made(input, self.out_features)
        if read is None and made is None:
            return nn.functional.linear(input, self.weight, self.bias)
        return channels.linear(input, self, read, made)

    def extra_repr(self) -> str:
        return ", ".join([nn.Linear.extra_repr(self), *self._sides()])


class PassingConv2d(nn.Conv2d):
    """An nn.Conv2d with groups, between layers that make and read a slice of whole groups."""

    handover: Handover

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W], or live channels alone -> as many."""
        own = checked(self.handover.masks.get(input.device), input.shape[-3], self.in_channels)
        if own is None:
            return nn.Conv2d.forward(self, input)
        return channels.conv2d(input, self, own, own)


class PassingBatchNorm2d(nn.BatchNorm2d):
    """An nn.BatchNorm2d between layers that make and read a slice."""

    handover: Handover

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W], or live channels alone -> the same."""
        own = checked(self.handover.masks.get(input.device), input.shape[-3], self.num_features)
        if own is None:
            return nn.BatchNorm2d.forward(self, input)
        return channels.batch_norm(input, self, own)


def checked(own: Channels | None, found: int, all_units: int) -> Channels | None:
    """The slice; RuntimeError where so many channels are not those of it."""
    width = all_units if own is None else own.width
    if found != width:
        raise RuntimeError(
            f"a converted layer got {found} channels, and {width} of {all_units} are live now: "
            "checkpoint the whole branch, from the layer that makes the channels to the one behind "
            "the dropout, and run all of it"
        )
    return own
