"""WideResNet (Zagoruyko and Komodakis 2016), with one kind of dropout between the convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.tools.networks import Drop


class WideBlock(nn.Module):
    """Two convolutions of what was normalised first, with a dropout between them."""

    def __init__(self, channels: int, width: int, stride: int, drop: Drop) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.dropout = drop.between_convolutions()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        keeps = channels == width and stride == 1
        self.shortcut = None if keeps else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, H, W] -> [batch, width, H / stride, W / stride]."""
        before = nn.functional.relu(self.norm1(x), inplace=True)
        hidden = nn.functional.relu(self.norm2(self.conv1(before)), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(before)
        return shortcut + self.conv2(self.dropout(hidden))


class WideResNet(nn.Module):
    """Images [batch, 3, H, W] -> logits [batch, classes].

    Three groups of blocks of 16, 32 and 64 times `widen` channels; of `depth` layers four are not
    in blocks of two convolutions.
    """

    def __init__(self, depth: int, widen: int, classes: int, drop: Drop) -> None:
        super().__init__()
        channels, blocks = 16, []
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for group in range(3):
            width = 16 * widen * 2**group
            for i in range((depth - 4) // 6):
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(WideBlock(channels, width, stride, drop))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.blocks(self.stem(images))), inplace=True)
        return self.head(x.mean((2, 3)))


def wide_resnet(depth: int, widen: int, classes: int, drop: Drop) -> nn.Module:
    """The network, its weights channels-last."""
    model = WideResNet(depth, widen, classes, drop)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return drop.branches(model, torch.zeros(2, 3, 8, 8))
