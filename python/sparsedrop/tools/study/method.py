"""One of the kinds of dropout that a study compares, at one rate."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.tools.networks import METHODS, RIVALS, Drop

NAMES = {**METHODS, **RIVALS}
"""The names of all methods, by the words for them."""

PATTERNED = ("row-pattern", "tile-pattern")
MOST_OF_PATTERNS = 7 / 8
"""The largest rate that eight periods give."""

Block = tuple[int, int]


class Method(NamedTuple):
    word: str  # a key of NAMES
    p: float
    block: Block | None = None  # rows and columns that sparsedrop drops at once

    @property
    def name(self) -> str:
        return NAMES[self.word]

    @property
    def block_name(self) -> str | None:
        """Such as "128x128"."""
        return None if self.block is None else f"{self.block[0]}x{self.block[1]}"

    @property
    def label(self) -> str:
        """With the rate where there is one."""
        return self.name if self.word == "none" else f"{self.name}, p = {self.p:g}"

    @property
    def file_name(self) -> str:
        """What tells its files from those of others."""
        rate = "" if self.word == "none" else f"-p{self.p!r}"
        block = "" if self.block is None else f"-{self.block_name}"
        return f"{self.word}{rate}{block}"

    def drop(self, sampler: str | None, scale: str | None) -> Drop:
        """As networks take it; None where the task has no such thing."""
        drop = Drop(self.name, self.p)
        if self.block is not None and sampler is not None:
            drop = drop._replace(block_shape=self.block, sampler=sampler)
        return drop if scale is None else drop._replace(scale=scale)
