"""What a network is trained on, and what it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Samples: what a network reads [n, ...], and the int64 answers [n] or [n, tokens]."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


class Dataset(NamedTuple):
    """Samples to train on, to choose a step by, and to report once that step is chosen."""

    train: Split
    validation: Split
    test: Split | None  # that no choice has seen
    classes: int
    rows: int  # that one sample has: 1, or its tokens, or its lines of pixels
    epoch: int  # samples that a pass over the training part has
    summary: str  # of its parts, in words
    digest: str  # equal for equal data

    def to(self, device: torch.device) -> Dataset:
        """With its samples on that device."""
        return self._replace(
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=None if self.test is None else self.test.to(device),
        )


def digest(tensors: Sequence[Tensor]) -> str:
    """Of the values of contiguous CPU tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
