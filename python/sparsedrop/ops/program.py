"""What the programs of `_C` are made of: what a call launches in one direction, with its addresses
by number."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsedrop.masks import Layout, layout

At = tuple[int, int]
"""The number of an address among a call's, and bytes from there."""


class MaskPlace(NamedTuple):
    """A mask in a buffer of a call, which may have more behind it."""

    number: int
    shape: tuple[int, int]
    block: tuple[int, int]

    @property
    def lies(self) -> Layout:
        return layout(*self.shape, *self.block)

    @property
    def live(self) -> At:
        return self.number, self.lies.live_at

    @property
    def words(self) -> tuple[At, At]:
        """Of the block rows, and of the block columns."""
        return (self.number, 0), (self.number, self.lies.col_words_at)

    @property
    def turned_words(self) -> tuple[At, At]:
        """Those of the transposed mask."""
        rows, cols = self.words
        return cols, rows

    @property
    def grid(self) -> dict[str, Any]:
        """The matrix and its blocks, as a step is told of them."""
        return {"rows": self.shape[0], "cols": self.shape[1], "block": self.block}
