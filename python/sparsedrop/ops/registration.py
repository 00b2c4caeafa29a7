"""Ops that graphs see, and that have their node elsewhere: of layers, stacks, slices, patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Op(NamedTuple):
    """What torch is told of an op.

    Attributes:
        schema: as torch writes it, from the name on.
        kernel: what runs it.
        fake: the same on tensors without data.
        draws: whether it draws what is dropped.
        runs_on: torch's word for where the kernel runs.
        may_be_captured: False where a CUDA graph would repeat one draw of the host for ever.
    """

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]
    draws: bool
    runs_on: str = "CUDA"
    may_be_captured: bool = True


def register(*ops: Op) -> torch.library.Library:
    """Defines the ops; the library that is returned must outlive them."""
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    for op in ops:
        name = op.schema.partition("(")[0]
        tags = [torch.Tag.pt2_compliant_tag]
        if op.draws:  # so that compiled graphs neither merge two draws nor repeat one
            tags.append(torch.Tag.nondeterministic_seeded)
        if not op.may_be_captured:
            tags.append(torch.Tag.cudagraph_unsafe)
        library.define(op.schema, tags=tuple(tags))
        library.impl(name, op.kernel, op.runs_on)
        torch.library.register_fake(f"sparsedrop::{name}", op.fake, lib=library)
    return library
