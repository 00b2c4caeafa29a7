"""The ways in which this build's kernels may run a product on this GPU, and how one is forced."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager

import pytest
import torch

from cases import Case
from sparsedrop import select
from sparsedrop.select import kernels
from sparsedrop.select.request import PATHS


def capability() -> tuple[int, int]:
    """Of the GPU; of Hopper where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)


def tiles_here() -> tuple[select.Tile, ...]:
    """Those of this build that run on this GPU, best architecture first."""
    return kernels.tiles_on(*capability())


def legal_ways(
    case: Case,
    splits: tuple[int, ...] = (1,),
    architecture: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[select.Choice]:
    """Every tile and orientation, of one architecture or of all, that may run the case, split so
    often."""
    tiles = tiles_here()
    request = select.Request(
        "cuda", dtype, case.m, case.n, case.k, case.a_block, case.b_block, case.out_block,
        capability=capability(), tiles=tiles,
    )  # fmt: skip
    numbers = [i for i, of in enumerate(tiles) if architecture in (None, of.architecture)]
    ways = itertools.product(["kernel"], numbers, (False, True), splits)
    choices = [select.Choice(*way) for way in ways]
    return [choice for choice in choices if select.refusal(request, choice) is None]


def forced(way: str | None) -> AbstractContextManager[None]:
    """Forces a path, or the kernels of an architecture; nothing for None.

    Skips the test where this GPU does not run that architecture.
    """
    if way is None or way in PATHS:
        return select.override(path=way)
    if way not in select.names_of(tiles_here()):
        pytest.skip(f"no kernels of {way} on this GPU")
    return select.override(architecture=way)
