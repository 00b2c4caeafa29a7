"""What the programs of `_C` are made of: what a call launches in one direction, with its addresses
by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import FILLS, Layout, MaskTensors, host_state, layout

if TYPE_CHECKING:
    from sparsedrop import _C

At = tuple[int, int]
"""The number of an address among a call's, and bytes from there."""


ONE_BLOCK = (2**30, 2**30)
"""Of matrices without a mask."""


class MaskPlace(NamedTuple):
    """A mask in a buffer of a call, from that byte on."""

    number: int
    shape: tuple[int, int]
    block: tuple[int, int]
    start: int = 0

    @property
    def lies(self) -> Layout:
        return layout(*self.shape, *self.block)

    @property
    def live(self) -> At:
        return self.number, self.start + self.lies.live_at

    @property
    def words(self) -> tuple[At, At]:
        """Of the block rows, and of the block columns."""
        return (self.number, self.start), (self.number, self.start + self.lies.col_words_at)

    @property
    def turned_words(self) -> tuple[At, At]:
        """Those of the transposed mask."""
        rows, cols = self.words
        return cols, rows

    @property
    def grid(self) -> dict[str, Any]:
        """The matrix and its blocks, as a step is told of them."""
        return {"rows": self.shape[0], "cols": self.shape[1], "block": self.block}


class Gathered(NamedTuple):
    """A matrix of whose units those that live are copied: where it is, with its dtype's code and
    leading dimension, where the copy is to be, of which the extents are, and along which its units
    lie; and the number of a factor."""

    source: int
    source_dtype: int
    source_ld: int
    to: int
    to_ld: int
    rows: int
    cols: int
    along: int
    factor: int | None = None


class Filled(NamedTuple):
    """A whole matrix, and the compact one where its live units come from, with its dtype's code;
    None: they stay, and its dtype says nothing. What becomes of the others is one of `_C.DROPPED`;
    by default they are zeroed. The compact one's leading dimension; 0: there are no gaps."""

    to: int
    dtype: int
    rows: int
    cols: int
    along: int
    live: int | None = None
    live_dtype: int = 0
    factor: int | None = None
    dropped: int = 0
    live_ld: int = 0


DRAWN = (0, 0)
"""In place of the seed and the offset, plus 1, of a mask that was drawn before the call."""


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def draw(
    sampler: str,
    p: float,
    generator: torch.Generator | None,
    grid: tuple[int, ...],
    device: torch.device,
    tensors: Callable[[], MaskTensors],
) -> tuple[int, int]:
    """Seed, and offset plus 1, of a mask that `_C` is to draw; or `DRAWN`, into those tensors."""
    state = host_state(device, generator) if sampler == "bernoulli" else None
    if state is not None:
        seed, offset = state
        return seed, offset + 1
    FILLS[sampler](tensors(), grid, p, device, generator)
    return DRAWN


class Pass(NamedTuple):
    """What one direction launches, and the bytes of scratch that it needs."""

    program: _C.Program
    scratch: int

    def room(self, allocate: _native.Allocate) -> Tensor | None:
        """The scratch of a call; None where none is needed."""
        return allocate((self.scratch,), (1,), torch.uint8) if self.scratch else None


class Space(NamedTuple):
    """A contiguous tensor that is allocated for every call."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Space:
        strides, stride = [], 1
        for extent in reversed(shape):
            strides.append(stride)
            stride *= extent
        return cls(tuple(shape), tuple(reversed(strides)), dtype)
