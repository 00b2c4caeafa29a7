"""Images with labels, and the parts of a set of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

CLASSES = 10
"""Every set that a study reads has so many."""


class Images(NamedTuple):
    """float32 [n, channels, side, side] in [0, 1], and their int64 labels [n] below CLASSES."""

    pixels: Tensor
    labels: Tensor

    def part(self, which: slice) -> Images:
        return Images(self.pixels[which], self.labels[which])


class Parts(NamedTuple):
    """To train on, to choose a step by, and to report that step on."""

    train: Images
    validation: Images
    test: Images | None


def hold_out(images: Images, count: int, test: Images | None) -> Parts:
    """With the last `count` of the images to validate on."""
    cut = len(images.labels) - count
    return Parts(images.part(slice(cut)), images.part(slice(cut, None)), test)


def padded(pixels: Tensor) -> Tensor:
    """Square images [n, channels, side, side] with zeros around them.

    The side becomes a power of two from 2 on, of 28 pixels 32.
    """
    side = pixels.shape[-1]
    wanted = max(2, 1 << (side - 1).bit_length())
    before = (wanted - side) // 2
    after = wanted - side - before
    return nn.functional.pad(pixels, (before, after, before, after))
