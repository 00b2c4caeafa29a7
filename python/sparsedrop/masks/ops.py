"""The registered ops behind a mask: its draws, and the words that the kernels read.

They are ops, and not plain functions, so that torch.compile keeps each whole: the host's draw, the
kernel of ours and the generator's state are nothing that a graph could look into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop._torch import is_vmapped, is_watched, keep_apart
from sparsedrop.masks.samplers import FILLS, empty_drawn, empty_words, mask_words
from sparsedrop.masks.tensors import MaskTensors, layout


def words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    """row_words and col_words of a contiguous grid, on its device."""
    return torch.ops.sparsedrop.mask_words(live, *grid)


def draw_tensors(
    sampler: str,
    grid: tuple[int, ...],
    p: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> MaskTensors:
    """The tensors of a mask that a sampler draws; `grid` as `grid_shape` takes it."""
    if is_watched():
        if not torch.compiler.is_compiling() and is_vmapped():
            raise RuntimeError(
                "a mask cannot be drawn under torch.vmap: draw it outside, and pass it"
            )
        op = getattr(torch.ops.sparsedrop, f"{sampler}_mask")
        return MaskTensors(op(*grid, p=p, device=device, generator=generator))
    lies = layout(*grid)
    if lies.live_at and _native.runs_on(device):
        buffer = torch.empty(lies.size, dtype=torch.int32, device=device)
        mask = MaskTensors(None, buffer, lies)
    else:
        mask = MaskTensors(empty_drawn(*grid, p=p, device=device))
    FILLS[sampler](mask, grid, p, device, generator)
    return mask


def _kernel(sampler: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The sampler's op: the same draw into tensors of their own, as the outputs of an op are."""

    def draw(
        *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = empty_drawn(*grid, p=p, device=device)
        FILLS[sampler](MaskTensors(tensors), grid, p, device, generator)
        return tensors

    return draw


def _fake(sampler: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """What a compiler sees of the sampler's op."""

    def fake(*grid: int, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        keep_apart(getattr(torch.ops.sparsedrop, f"{sampler}_mask"))
        return empty_drawn(*grid, **how)

    return fake


def _register() -> torch.library.Library:
    """Defines the ops; the library must outlive them, so the module keeps it."""
    grid = "SymInt rows, SymInt cols, SymInt block_rows, SymInt block_cols"
    result = "float p, Device device, Generator? generator=None) -> (Tensor, Tensor, Tensor)"
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    # Tagged, so that compiled graphs neither merge two draws nor repeat one.
    random = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
    plain = (torch.Tag.pt2_compliant_tag,)

    def add(schema: str, tags: Any, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
        name = schema.partition("(")[0]
        library.define(schema, tags=tags)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsedrop::{name}", fake, lib=library)

    add(f"mask_words(Tensor live, {grid}) -> (Tensor, Tensor)", plain, mask_words, empty_words)
    for sampler in FILLS:
        add(f"{sampler}_mask({grid}, *, {result}", random, _kernel(sampler), _fake(sampler))
    return library


_library = _register()
