"""Weights rounded under autocast, once for all layers that use them, as torch does for its own.

A copy lives as long as a backward pass needs it, and is found by layers that run meanwhile. A
weight that is written to is rounded anew, if autograd can know of it: what is written through
`.data` while a backward pass is still to come shows neither here nor in what autograd has saved.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from sparsedrop.masks import is_capturing


class _Copy(NamedTuple):
    weight: weakref.ref[Tensor]
    copy: TensorWeakRef
    # Forgets the entry when the copy is gone.
    guard: weakref.ref[Tensor]
    # What it was rounded from, and the stream that did it.
    version: int
    at: int
    stream: int


_copies: dict[int, _Copy] = {}


def find(weight: Tensor, dtype: torch.dtype, stream: int) -> Tensor | None:
    """The copy of that dtype that is still there and up to date."""
    found = _copies.get(id(weight))
    if found is None or found.weight() is not weight or not _may_share(weight):
        return None
    copy = found.copy()
    is_good = (
        copy is not None
        and copy.dtype is dtype
        and found.version == weight._version
        and found.at == weight.data_ptr()
        and found.stream == stream
    )
    return copy if is_good else None


def keep(weight: Tensor, copy: Tensor, stream: int) -> None:
    """Lets others find the copy of a weight that has been filled, as long as it lives."""
    if not _may_share(weight):
        return
    key = id(weight)

    def forget(dead: weakref.ref[Tensor]) -> None:
        found = _copies.get(key)
        if found is not None and found.guard is dead:
            del _copies[key]

    _copies[key] = _Copy(
        weakref.ref(weight),
        TensorWeakRef(copy),
        weakref.ref(copy, forget),
        weight._version,
        weight.data_ptr(),
        stream,
    )


def _may_share(weight: Tensor) -> bool:
    # In a graph a copy from before its capture would be that of the capture's weights for ever.
    return (
        weight.requires_grad
        and torch.is_autocast_cache_enabled()
        and not weight.is_inference()
        and not is_capturing(weight.device)
    )
