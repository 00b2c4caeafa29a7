"""MNIST and Fashion-MNIST, from IDX files."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study.pictures import CLASSES, Images, Parts, hold_out
from sparsedrop.tools.study.sources import Source, unpacked

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

SOURCES = {
    "mnist": Source(FILES, "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": Source(
        FILES,
        "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion",
        folder=Path("/usr/share/datasets/fashion-mnist"),
        package="dataset-fashion-mnist",
    ),
}


def load(name: str, folder: Path | None) -> Parts:
    """The training images, the last sixth of them to validate on, and the test images."""
    paths = SOURCES[name].find(name, folder)
    images, test = _read_images(*paths[:2]), _read_images(*paths[2:])
    return hold_out(images, len(images.labels) // 6, test)


def read(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of that many dimensions in an IDX file, gzipped or not.

    Raises:
        ValueError: naming the file, where it cannot be read, is damaged or has other contents.
    """
    content = unpacked(path)
    # Big-endian: two zero bytes, 8 for unsigned bytes, the number of dimensions; then the extents.
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: it begins with "
            f"0x{content[:4].hex()} rather than the magic number 0x{magic.hex()}"
        )
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} has {len(content)} bytes, but its header of {header} bytes announces {shape}: "
            "fetch it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)


def _read_images(pixels_path: Path, labels_path: Path) -> Images:
    pixels, labels = read(pixels_path, 3), read(labels_path, 1)
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(
            f"{pixels_path} has {len(pixels)} images and {labels_path} has {len(labels)} labels"
        )
    if pixels.shape[1] != pixels.shape[2]:
        size = f"{pixels.shape[1]}x{pixels.shape[2]}"
        raise ValueError(f"{pixels_path} has images of {size} pixels: a study reads square ones")
    if labels.max() >= CLASSES:
        raise ValueError(f"{labels_path} has the label {labels.max()}: labels are below {CLASSES}")
    return Images(pixels[:, None].float() / 255, labels.long())
