"""What a mask keeps on its device: the grid, and the words that the kernels read."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop._torch import is_watched

MASK_UNIT = 64
"""One bit of a word stands for so many columns (or rows): the depth of the kernels' K tile."""


MAX_KERNEL_BLOCK = 2**31 - 1
"""The largest extent of a block that the kernels take."""


def grid_shape(rows: int, cols: int, block_rows: int, block_cols: int) -> tuple[int, int]:
    """Extents of the grid of blocks over a matrix."""
    return -(-rows // block_rows), -(-cols // block_cols)


def words_shapes(
    rows: int, cols: int, block_rows: int, block_cols: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of row_words and col_words; (0, 0) where no tile of the kernels fits the blocks."""
    if (
        block_rows % MASK_UNIT
        or block_cols % MASK_UNIT
        or max(block_rows, block_cols) > MAX_KERNEL_BLOCK
    ):
        return (0, 0), (0, 0)
    grid_rows, grid_cols = grid_shape(rows, cols, block_rows, block_cols)
    bits_per_word = 32 * MASK_UNIT
    return (grid_rows, -(-cols // bits_per_word)), (grid_cols, -(-rows // bits_per_word))


class Layout(NamedTuple):
    """How row_words, col_words and live lie one after the other in one buffer of int32."""

    row_words: tuple[int, int]
    col_words: tuple[int, int]
    live: tuple[int, int]
    # In bytes.
    col_words_at: int
    live_at: int
    # In elements.
    size: int


def layout(*grid: int) -> Layout:
    """The layout for a matrix's extents and its blocks'."""
    return _known_layout(*grid) if all(type(n) is int for n in grid) else _layout(*grid)


def _layout(*grid: int) -> Layout:
    row_words, col_words = words_shapes(*grid)
    live = grid_shape(*grid)
    words = row_words[0] * row_words[1], col_words[0] * col_words[1]
    size = sum(words) + -(-live[0] * live[1] // 4)
    return Layout(row_words, col_words, live, 4 * words[0], 4 * sum(words), size)


_known_layout = functools.lru_cache(maxsize=4096)(_layout)


class MaskTensors:
    """live, row_words and col_words of a mask.

    Where a kernel of ours drew the mask they are one allocation, cut into the three when somebody
    asks for one: most masks are drawn, read by kernels and forgotten, and a view costs the host
    nearly as much as a launch.
    """

    __slots__ = ("_buffer", "_layout", "_tensors")

    _buffer: Tensor | None
    _layout: Layout | None
    _tensors: tuple[Tensor, Tensor, Tensor] | None

    def __init__(
        self,
        tensors: tuple[Tensor, Tensor, Tensor] | None,
        buffer: Tensor | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._tensors, self._buffer, self._layout = tensors, buffer, layout

    @property
    def device(self) -> torch.device:
        if self._buffer is not None:
            return self._buffer.device
        return self.all()[0].device

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """live, row_words, col_words: the same three tensors each time."""
        if self._tensors is not None:
            return self._tensors
        assert self._buffer is not None
        assert self._layout is not None
        tensors = _cut(self._buffer, self._layout)
        # What a graph, a dispatch mode or a transform of torch.func sees must not outlive it.
        if not is_watched():
            self._tensors = tensors
        return tensors

    def addresses(self) -> tuple[int, int, int]:
        """Of live, row_words and col_words; 0 where there are no words."""
        if self._buffer is not None and self._layout is not None:
            at = self._buffer.data_ptr()
            return at + self._layout.live_at, at, at + self._layout.col_words_at
        live, row_words, col_words = self.all()
        return live.data_ptr(), row_words.data_ptr(), col_words.data_ptr()


def _cut(buffer: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    col_words_at, live_at = layout.col_words_at // 4, layout.live_at // 4
    rows, columns = layout.live
    cells = buffer[live_at:].view(torch.uint8)[: rows * columns].view(rows, columns)
    # The inductor of torch 2.11 knows no view as bool.
    live = cells != 0 if torch.compiler.is_compiling() else cells.view(torch.bool)
    row_words = buffer[:col_words_at].view(layout.row_words)
    return live, row_words, buffer[col_words_at:live_at].view(layout.col_words)
