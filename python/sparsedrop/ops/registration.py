"""Ops for a GPU that graphs see and that have their node elsewhere: of a layer, and of a stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Op(NamedTuple):
    """schema: as torch writes it, from the name on. draws: whether it draws a mask."""

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]
    draws: bool


def register(*ops: Op) -> torch.library.Library:
    """Defines the ops; the library that is returned must outlive them."""
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    for op in ops:
        name = op.schema.partition("(")[0]
        tags = [torch.Tag.pt2_compliant_tag]
        if op.draws:  # so that compiled graphs neither merge two draws nor repeat one
            tags.append(torch.Tag.nondeterministic_seeded)
        library.define(op.schema, tags=tuple(tags))
        library.impl(name, op.kernel, "CUDA")
        torch.library.register_fake(f"sparsedrop::{name}", op.fake, lib=library)
    return library
