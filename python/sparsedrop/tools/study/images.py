"""The images of a study, as tensors: scikit-learn's digits, or (Fashion-)MNIST's IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop.tools.study.dataset import Dataset, Split, digest
from sparsedrop.tools.study.patches import patches

CLASSES = 10


class Images(NamedTuple):
    """float32 [n, side²] in [0, 1], and their int64 labels [n] below CLASSES."""

    pixels: Tensor
    labels: Tensor


class Parts(NamedTuple):
    """To train on, to choose a step by, and to report that step on."""

    train: Images
    validation: Images
    test: Images | None


class Source(NamedTuple):
    """Where the IDX files of a set of images are to be had."""

    address: str
    folder: Path | None = None  # where a package of the system puts them
    package: str | None = None  # of Debian


IDX_SOURCES = {
    "mnist": Source("https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": Source(
        "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion",
        Path("/usr/share/datasets/fashion-mnist"),
        "dataset-fashion-mnist",
    ),
}
NAMES = ("digits", *IDX_SOURCES)


def load(name: str, folder: Path | None, *, as_patches: bool) -> Dataset:
    """The images of that name, as rows of pixels [n, side²] or of patches [n, tokens, 4].

    The four IDX files of (Fashion-)MNIST are in `folder`, or where the system's package has them.

    Raises:
        ValueError: naming files that are missing and where they are to be had, or a file that is
            not what its name says.
    """
    parts = load_idx(name, folder) if name in IDX_SOURCES else load_digits()
    shaped = patches if as_patches else torch.Tensor.contiguous
    train, validation, test = (
        None if images is None else Split(shaped(images.pixels), images.labels) for images in parts
    )
    assert train is not None
    assert validation is not None
    counts = [f"{len(train.targets)} training", f"{len(validation.targets)} validation"]
    if test is not None:
        counts.append(f"{len(test.targets)} test")
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        classes=CLASSES,
        rows=train.inputs[0].numel() // train.inputs.shape[-1],
        epoch=len(train.targets),
        summary=f"{', '.join(counts[:-1])} and {counts[-1]} images",
        digest=digest([tensor for images in parts if images is not None for tensor in images]),
    )


def load_digits() -> Parts:
    """scikit-learn's 1797 digits, 64 pixels: stratified halves to train and to validate on.

    The split is the same in every study. Halves, as in scikit-learn's own example: 899 validation
    images tell accuracies 0.1 % apart, and the other 898 are few enough to overfit. That leaves
    none to test on: to choose a step on the images one reports flatters every method alike.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, validation = train_test_split(
        torch.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0
    )
    pixels, labels = torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels)
    return Parts(
        Images(pixels[train], labels[train]), Images(pixels[validation], labels[validation]), None
    )


def load_idx(name: str, folder: Path | None) -> Parts:
    """The training images, the last sixth of them to validate on, and the test images."""
    source = IDX_SOURCES[name]
    if folder is None and source.folder is not None and source.folder.is_dir():
        folder = source.folder
    files = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    paths = [] if folder is None else [_find(folder, file) for file in files]
    missing = [file for file, path in zip(files, paths, strict=False) if not path.exists()]
    if folder is None or missing:
        place = (
            "the folder that --data-dir names" if folder is None else f"{folder}, which lacks them"
        )
        package = f", or with apt install {source.package}" if source.package else ""
        raise ValueError(
            f"--data {name} reads {', '.join(missing or files)} (plain or .gz) from {place}; "
            f"they are to be had at {source.address}{package}"
        )
    images, test = _read_images(*paths[:2]), _read_images(*paths[2:])
    cut = len(images.labels) - len(images.labels) // 6
    train, validation = (
        Images(*(tensor[part] for tensor in images)) for part in (slice(cut), slice(cut, None))
    )
    return Parts(train, validation, test)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of that many dimensions in an IDX file, gzipped or not.

    Raises:
        ValueError: naming the file, where it cannot be read, is damaged or has other contents.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}): fetch it again") from error
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
    pixels, labels = read_idx(pixels_path, 3), read_idx(labels_path, 1)
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(
            f"{pixels_path} has {len(pixels)} images and {labels_path} has {len(labels)} labels"
        )
    if pixels.shape[1] != pixels.shape[2]:
        size = f"{pixels.shape[1]}x{pixels.shape[2]}"
        raise ValueError(f"{pixels_path} has images of {size} pixels: a study reads square ones")
    if labels.max() >= CLASSES:
        raise ValueError(f"{labels_path} has the label {labels.max()}: labels are below {CLASSES}")
    return Images(pixels.flatten(1).float() / 255, labels.long())


def _find(folder: Path, file: str) -> Path:
    """The file as it is there: plain, or with .gz; the plain name where it is not."""
    packed = folder / f"{file}.gz"
    return packed if packed.exists() else folder / file
