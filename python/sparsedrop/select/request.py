"""What a choice is made from, and the choice: both can be printed."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsedrop.select.architectures import Tile
from sparsedrop.select.cpu_costs import Block
from sparsedrop.select.gpus import GPUS, HALF, TF32, TYPICAL
from sparsedrop.select.saved import Saved
from sparsedrop.select.worked_out import Speed

UNKNOWN_KEEP = 0.5
"""The live share that is expected of a mask whose share the host does not know."""

UNIT = 8
"""Elements of 16 bits in 16 bytes: the kernels' loads want addresses and strides in multiples of
them. In float32 half as many would do."""

PATHS = ("kernel", "cpu", "dense")


class Request(NamedTuple):
    """All that the choice depends on, for a [m, k], b [k, n] and out [m, n]."""

    device: str
    dtype: torch.dtype
    m: int
    n: int
    k: int
    a_block: Block | None = None
    b_block: Block | None = None
    out_block: Block | None = None
    # Expected live shares; None where there is no mask, or its share is not known to the host.
    a_keep: float | None = None
    b_keep: float | None = None
    out_keep: float | None = None
    a_k_major: bool = True
    b_k_major: bool = False
    # The result goes through an activation.
    activates: bool = False
    # Operands can be read in place: addresses of 16 bytes, extents and strides of whole units.
    aligned: bool = True
    capability: tuple[int, int] = (0, 0)
    gpu: str = TYPICAL
    sms: int = GPUS[TYPICAL].sms
    # Those of this build for the GPU; a choice names one by its position.
    tiles: tuple[Tile, ...] = ()
    # Whether torch may multiply float32 as TF32, where that is the dtype.
    tf32: bool = False
    # What the GPU says of itself, and what the user has measured on it; None: nothing.
    speed: Speed | None = None
    saved: Saved | None = None

    @property
    def precision(self) -> str:
        """By which costs differ."""
        return TF32 if self.dtype is torch.float32 and self.tf32 else HALF

    @property
    def blocks(self) -> tuple[Block | None, Block | None, Block | None]:
        """Of the masks of a, b and out."""
        return self.a_block, self.b_block, self.out_block

    @property
    def keeps(self) -> tuple[float, float, float]:
        """Expected live shares of a, b and out."""
        a_keep, b_keep, out_keep = (
            1.0 if block is None else UNKNOWN_KEEP if keep is None else keep
            for block, keep in zip(
                self.blocks, (self.a_keep, self.b_keep, self.out_keep), strict=True
            )
        )
        return a_keep, b_keep, out_keep

    @property
    def operand_bytes(self) -> tuple[float, float]:
        """Sizes of the live parts of a and b."""
        a_keep, b_keep, _ = self.keeps
        line = self.dtype.itemsize * self.k
        return line * self.m * a_keep, line * self.n * b_keep

    @property
    def padded(self) -> tuple[bool, bool, bool]:
        """Whether the extents of a, b and out are such that each is copied to whole units."""
        pads_m, pads_n = not self.a_k_major and self.m % UNIT > 0, self.n % UNIT > 0
        pads_k = (self.a_k_major or self.b_k_major) and self.k % UNIT > 0
        return pads_m or pads_k, pads_n or pads_k, pads_m or pads_n

    def turned(self) -> Request:
        """The transposed problem: what a choice with `swap` runs."""
        a_block, b_block, out_block = (
            None if block is None else (block[1], block[0]) for block in self.blocks
        )
        return self._replace(
            m=self.n,
            n=self.m,
            a_block=b_block,
            b_block=a_block,
            out_block=out_block,
            a_keep=self.b_keep,
            b_keep=self.a_keep,
            a_k_major=self.b_k_major,
            b_k_major=self.a_k_major,
        )


class Choice(NamedTuple):
    """path: "kernel" (block-sparse), "cpu" (live parts only) or "dense" (masked operands)."""

    path: str
    # By its position among the request's.
    tile: int = 0
    # Whether the transposed problem is run.
    swap: bool = False
    # Into how many each tile is split along k.
    split_k: int = 1
    reason: str = ""


def describe_blocks(request: Request) -> str:
    """Such as "a 128x128, out 128x64"."""
    named = zip(("a", "b", "out"), request.blocks, strict=True)
    return ", ".join(f"{name} {block[0]}x{block[1]}" for name, block in named if block is not None)


def describe(request: Request, choice: Choice) -> str:
    """Such as "sm90 tile 128x256x64 transposed"."""
    split = f" split into {choice.split_k} along k" if choice.split_k > 1 else ""
    turned = " transposed" if choice.swap else ""
    tile = request.tiles[choice.tile]
    return f"{tile.architecture} tile {tile}{turned}{split}"
