"""The images of a study as a data set: scikit-learn's digits, (Fashion-)MNIST or CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study import cifar, digits, idx
from sparsedrop.tools.study.dataset import Dataset, Split, digest
from sparsedrop.tools.study.pictures import CLASSES, Parts, padded

IN_FILES = (*idx.SOURCES, "cifar-10")
"""Sets whose files a user may have in a folder."""

NAMES = ("digits", *IN_FILES)


Shape = Callable[[Tensor], Tensor]
"""From images [n, channels, side, side] to what a network reads of them [n, ...]."""


def load(name: str, folder: Path | None, shape: Shape) -> Dataset:
    """The images of that name, in that shape.

    The files are in `folder`, or where the system's package has them; the digits have none.

    Raises:
        ValueError: naming files that are missing and where they are to be had, or a file that is
            not what its name says.
    """
    parts = _parts(name, folder)
    given = [images for images in parts if images is not None]
    train, validation, *test = (Split(shape(images.pixels), images.labels) for images in given)
    counts = [f"{len(train.targets)} training", f"{len(validation.targets)} validation"]
    counts += [f"{len(part.targets)} test" for part in test]
    return Dataset(
        train=train,
        validation=validation,
        test=test[0] if test else None,
        classes=CLASSES,
        rows=train.inputs[0].numel() // train.inputs.shape[-1],
        epoch=len(train.targets),
        summary=f"{', '.join(counts[:-1])} and {counts[-1]} images",
        digest=digest([tensor for images in given for tensor in images]),
    )


def _parts(name: str, folder: Path | None) -> Parts:
    if name in idx.SOURCES:
        return idx.load(name, folder)
    return cifar.load(folder) if name == "cifar-10" else digits.load()


def rows(pixels: Tensor) -> Tensor:
    """Images as rows of values [n, channels * side²]."""
    return pixels.flatten(1).contiguous()


def squares(pixels: Tensor) -> Tensor:
    """Images as convolutions read them, channels-last, their sides powers of two."""
    return padded(pixels).contiguous(memory_format=torch.channels_last)
