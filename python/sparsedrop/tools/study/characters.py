"""The characters of a text, split by position."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study import text
from sparsedrop.tools.study.dataset import Dataset


def load(path: Path | None, context: int, device: torch.device) -> Dataset:
    """A text's first nine tenths to train on; halves of the last to validate and to test.

    Raises:
        ValueError: naming a file that cannot be read, or a text that is too short.
    """
    name = text.OWN_TEXT if path is None else str(path)
    codes = encode(text.own_text() if path is None else text.read(path))
    cut = len(codes) * 9 // 10
    middle = cut + (len(codes) - cut) // 2
    parts = codes[:cut], codes[cut:middle], codes[middle:]
    return text.as_dataset(name, parts, context, "characters", device)


def encode(characters: str) -> Tensor:
    """The place of each character among those that occur, by code point: int64 [characters]."""
    if not characters:
        return torch.empty(0, dtype=torch.int64)
    points = torch.frombuffer(bytearray(characters.encode("utf-32-le")), dtype=torch.int32)
    return points.unique(return_inverse=True)[1]
