"""A text, read and cut into the windows that a network reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study.dataset import Dataset, Split, digest

OWN_TEXT = "Python's language reference"
"""What stands in for a file: the topics of `help()`, which the standard library has as text."""


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


def as_dataset(
    name: str, parts: tuple[Tensor, Tensor, Tensor], context: int, unit: str, device: torch.device
) -> Dataset:
    """Codes int64 [n] to train on, to validate and to test, as windows of `context` of them.

    Training windows begin anywhere; the others do not overlap, and each code of them is predicted
    once.

    Raises:
        ValueError: for parts that are too short.
    """
    if min(map(len, parts)) <= context:
        count = sum(map(len, parts))
        raise ValueError(
            f"{name} has {count} {unit}, {min(map(len, parts[1:]))} of them to validate on or to "
            f"test, which is too few for windows of {context} and the next one: give a longer text "
            "with --data-file, or a smaller --context"
        )
    train, *others = (_windows(part.to(device), context) for part in parts)
    validation, test = (Split(*(tensor[::context] for tensor in split)) for split in others)
    counts = [f"{len(part)} {what}" for part, what in zip(parts, _PARTS, strict=True)]
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        classes=1 + max(int(part.max()) for part in parts),
        rows=context,
        epoch=len(parts[0]) // context,
        summary=f"{', '.join(counts[:-1])} and {counts[-1]} {unit}",
        digest=digest(parts),
    )


_PARTS = ("training", "validation", "test")


def _windows(codes: Tensor, context: int) -> Split:
    """Every window, and the codes that are each one later: views [n, context]."""
    return Split(codes[:-1].unfold(0, context, 1), codes[1:].unfold(0, context, 1))
