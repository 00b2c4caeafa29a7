"""Layers that drop by only a few blocks, or keep all: warnings that say so."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from sparsedrop.masks import all_kept
from sparsedrop.ops.slices import Choice

ALL_DROPPED = 0.02
"""The share of steps in which all may be dropped without a word."""

WANTED_BLOCKS = 4
"""In each extent, of the block shape that is recommended."""

STARTING_RATE = 0.1
"""Below it a slice may keep all without a word: a schedule comes from 0."""

FINEST = 8
"""Rows or columns below which a smaller block is not recommended."""


def warn_if_coarse(
    what: str, x: Tensor, features: int, p: float, block_shape: tuple[int, int]
) -> None:
    """A UserWarning where all of it would be dropped in more than a few steps.

    `what` names what is dropped, with as many rows as x has, of so many features.
    """
    if not isinstance(x, Tensor) or x.is_nested or x.dim() == 0 or x.numel() == 0:
        return
    if p in (0.0, 1.0):
        return
    shape = x.numel() // x.shape[-1], features
    rows, cols = (-(-n // block) for n, block in zip(shape, block_shape, strict=True))
    share = p ** (rows * cols)
    if share <= ALL_DROPPED:
        return
    fine = tuple(map(finer, shape, block_shape))
    blocks = "one block" if rows * cols == 1 else f"{rows * cols} blocks ({rows} by {cols})"
    advice = ""
    if fine != tuple(block_shape):
        advice = f" Blocks of {fine[0]}x{fine[1]} would do: block_shape={fine}."
    warnings.warn(
        f"the {what} of this layer, {shape[0]} rows of {shape[1]} features, is {blocks} of "
        f"{block_shape[0]}x{block_shape[1]}: with p = {p:g} all of it is dropped in {share:.0%} of "
        f"the steps.{advice}",
        stacklevel=5,  # behind torch's two calls of a module
    )


def warn_of_whole_slice(choice: Choice, what: str) -> None:
    """A UserWarning that a slice keeps all units, which `what` names, and what would help."""
    units, whole = choice.units, math.gcd(choice.units, choice.align)
    aligns = (d for d in range(whole - 1, 0, -1) if units % d == 0)
    helps = next((d for d in aligns if choice._replace(align=d).width < units), None)
    advice = "a larger p" if helps is None else f"align={helps}"
    warnings.warn(
        f"{all_kept(what, units, choice.align, choice.p)}: nothing is dropped. It takes {advice}",
        stacklevel=6,  # behind torch's two calls of a module
    )


def finer(extent: int, block: int) -> int:
    """A block of which an extent has several: by halves, and no finer than makes sense."""
    while block > FINEST and extent < WANTED_BLOCKS * block:
        block //= 2
    return block
