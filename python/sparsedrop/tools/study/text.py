"""The characters of a text, split by position, as windows that a network reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study.dataset import Dataset, Split, digest

OWN_TEXT = "Python's language reference"
"""What stands in for a file: the topics of `help()`, which the standard library has as text."""


def load(path: Path | None, context: int, device: torch.device) -> Dataset:
    """A text's first nine tenths to train on, and the last one to validate on.

    Training windows of `context` characters begin anywhere; those of the validation do not overlap.

    Raises:
        ValueError: naming a file that cannot be read, or a text that is too short.
    """
    name = OWN_TEXT if path is None else str(path)
    codes = encode(own_text() if path is None else read(path))
    cut = len(codes) * 9 // 10
    parts = codes[:cut], codes[cut:]
    if min(map(len, parts)) <= context:
        raise ValueError(
            f"{name} has {len(codes)} characters, {len(parts[1])} of them to validate on, which is "
            f"too few for windows of {context} and the next one: give a longer text with "
            "--data-file, or a smaller --context"
        )
    train, validation = (_windows(part.to(device), context) for part in parts)
    return Dataset(
        train=train,
        validation=Split(*(tensor[::context] for tensor in validation)),
        test=None,
        classes=int(codes.max()) + 1,
        rows=context,
        epoch=len(parts[0]) // context,
        summary=f"{len(parts[0])} training and {len(parts[1])} validation characters",
        digest=digest([codes]),
    )


def read(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        ValueError: naming the file, where it is missing or is no such text.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"cannot read --data-file {path}: {why.lower()}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--data-file {path} is not text in UTF-8, or is cut off: {error.reason} at byte "
            f"{error.start} of {len(error.object)}"
        ) from error


def own_text() -> str:
    """OWN_TEXT, some 400,000 characters; equal wherever Python's version is.

    Raises:
        ValueError: where Python came without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            f"this Python came without {OWN_TEXT} (pydoc_data): give a text with --data-file"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> Tensor:
    """The place of each character among those that occur, by code point: int64 [characters]."""
    if not text:
        return torch.empty(0, dtype=torch.int64)
    points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    return points.unique(return_inverse=True)[1]


def _windows(codes: Tensor, context: int) -> Split:
    """Every window, and the characters that are each one later: views [n, context]."""
    return Split(codes[:-1].unfold(0, context, 1), codes[1:].unfold(0, context, 1))
