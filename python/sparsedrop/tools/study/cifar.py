"""CIFAR-10, from its batches in either of the forms that its authors give out."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedrop.tools.study.pictures import CLASSES, Images, Parts, hold_out
from sparsedrop.tools.study.sources import Source, unpacked

CHANNELS, SIDE = 3, 32
VALUES = CHANNELS * SIDE * SIDE
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"

BINARY = Source(tuple(f"{name}.bin" for name in BATCHES), ADDRESS, "cifar-10-batches-bin")
PICKLED = Source(BATCHES, ADDRESS, "cifar-10-batches-py")


def load(folder: Path | None) -> Parts:
    """Four batches to train on, the fifth to validate on, and the test batch.

    Raises:
        ValueError: naming files that are missing, damaged or cut off.
    """
    is_pickled = folder is not None and PICKLED.is_begun_in(folder)
    source, read = (PICKLED, read_pickled) if is_pickled else (BINARY, read_binary)
    paths = source.find("cifar-10", folder)
    *batches, test = map(read, paths)
    for path, batch in zip(paths, [*batches, test], strict=True):
        if len(batch.labels) != len(batches[0].labels):
            raise ValueError(
                f"{path} has {len(batch.labels)} images and {paths[0]} has "
                f"{len(batches[0].labels)}: one of them is cut off, fetch it again"
            )
    train = Images(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    return hold_out(train, len(batches[-1].labels), test)


def read_binary(path: Path) -> Images:
    """Records of a label and 3072 pixels, a byte each, colour by colour.

    Raises:
        ValueError: naming the file, where it is anything else.
    """
    content = unpacked(path)
    if not content or len(content) % (1 + VALUES):
        raise ValueError(
            f"{path} has {len(content)} bytes, which are no whole records of {1 + VALUES}: fetch "
            "it again"
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 1 + VALUES)
    return _images(path, records[:, 1:], records[:, 0])


def read_pickled(path: Path) -> Images:
    """A pickled dictionary of "data", an array [n, 3072] of bytes, and "labels".

    Raises:
        ValueError: naming the file, where it is anything else.
    """
    content = unpacked(path)
    try:
        found = _Arrays(io.BytesIO(content), encoding="bytes").load()
        data, labels = torch.from_numpy(found[b"data"]), torch.tensor(found[b"labels"])
    except Exception as error:  # pickle raises whatever the bytes lead it to
        raise ValueError(
            f"{path} is cut off, or not a batch of CIFAR-10 ({error}): fetch it again"
        ) from error
    if data.dtype != torch.uint8 or data.shape != (len(labels), VALUES):
        raise ValueError(
            f"{path} has {data.dtype} {list(data.shape)} and {len(labels)} labels, where bytes "
            f"[images, {VALUES}] and as many labels are expected"
        )
    return _images(path, data, labels)


def _images(path: Path, pixels: Tensor, labels: Tensor) -> Images:
    if labels.max() >= CLASSES:
        raise ValueError(f"{path} has the label {labels.max()}: labels are below {CLASSES}")
    return Images(pixels.reshape(-1, CHANNELS, SIDE, SIDE).float() / 255, labels.long())


class _Arrays(pickle.Unpickler):
    """Makes arrays and nothing else: any other pickle could run a program."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy

        # The private module of this function has another name in numpy 2 than in files of before.
        if module.endswith("core.multiarray") and name == "_reconstruct":
            return numpy.empty(0).__reduce__()[0]
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): numpy.ndarray,
            ("numpy", "dtype"): numpy.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]
