"""WideResNet (Zagoruyko and Komodakis 2016), with one kind of dropout between the convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.tools.networks import Drop

BASE = 16
"""Channels of the stem, and of the first group of a network that is not widened."""


class WideBlock(nn.Module):
    """Two convolutions of what was normalised first, with a dropout between them.

    The shortcut around them is a convolution of the same where the extents change.
    """

    def __init__(self, channels: int, width: int, stride: int, drop: Drop) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.dropout = drop.between_convolutions()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        keeps = channels == width and stride == 1
        self.shortcut = None if keeps else nn.Conv2d(channels, width, 1, stride, bias=False)
        self.add = drop.residual()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, H, W] -> [batch, width, H / stride, W / stride]."""
        if self.shortcut is None:
            return self.add(x, lambda part: self._convolved(self._normalised(part)))
        before = self._normalised(x)
        return self.add(self.shortcut(before), self._convolved, before)

    def _normalised(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm1(x), inplace=True)

    def _convolved(self, before: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.norm2(self.conv1(before)), inplace=True)
        return self.conv2(self.dropout(hidden))


class WideResNet(nn.Module):
    """Images [batch, colours, H, W] -> logits [batch, classes].

    Three groups of blocks of 16, 32 and 64 times `widen` channels; of `depth` layers four are not
    in blocks of two convolutions.
    """

    def __init__(self, depth: int, widen: int, colours: int, classes: int, drop: Drop) -> None:
        super().__init__()
        channels, blocks = BASE, []
        self.stem = nn.Conv2d(colours, channels, 3, padding=1, bias=False)
        for group in range(3):
            width = BASE * widen * 2**group
            for i in range(blocks_of_a_group(depth)):
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(WideBlock(channels, width, stride, drop))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        # Of grey images the stem's result is not yet: one channel is no sign of either layout.
        x = self.stem(images).contiguous(memory_format=torch.channels_last)
        x = nn.functional.relu(self.norm(self.blocks(x)), inplace=True)
        return self.head(x.mean((2, 3)))


def blocks_of_a_group(depth: int) -> int:
    """How many blocks of two convolutions each of three groups has.

    Raises:
        ValueError: if no network has so many layers.
    """
    count, rest = divmod(depth - 4, 6)
    if count < 1 or rest:
        raise ValueError(f"a WideResNet has 10, 16, 22, 28, ... layers, not {depth}")
    return count


def wide_resnet(depth: int, widen: int, colours: int, classes: int, drop: Drop) -> nn.Module:
    """The network, its weights channels-last."""
    model = WideResNet(depth, widen, colours, classes, drop)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return drop.branches(model, torch.zeros(2, colours, 8, 8))
