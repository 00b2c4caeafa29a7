"""What is dropped, as the package draws it: blocks in three products, and what methods keep."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop import BlockMask, RowPattern, Slice, patterns
from sparsedrop.masks import tile_mask
from svg import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PAPER, Picture

CELL = 15
GAP = 20


def draw_products() -> Picture:
    """A mask on x [M, K] in the three products of a training step."""
    torch.manual_seed(3)
    live = BlockMask.bernoulli((1024, 768), 0.5).live
    w, dy = torch.ones(4, 6).bool(), torch.ones(8, 4).bool()
    x = ("x", live, ORANGE)
    picture = Picture(1000, 260, "The three products of a training step with a mask on x")
    _product(
        picture, 30, ("forward: y = x Wᵀ", "fewer K tiles for each tile"),
        (x, ("Wᵀ", w.T, GREY), ("y", dy, BLUE)),
    )  # fmt: skip
    _product(
        picture, 330, ("input gradient: dx = dy W", "fewer tiles"),
        (("dy", dy, GREY), ("W", w, GREY), ("dx", live, BLUE)),
    )  # fmt: skip
    _product(
        picture, 645, ("weight gradient: dW = dyᵀ x", "fewer K tiles for each tile"),
        (("dyᵀ", dy.T, GREY), x, ("dW", w, BLUE)),
    )  # fmt: skip
    left = 30
    for color, line, text in (
        (ORANGE, PAPER, "live blocks of x, which are read"),
        (BLUE, PAPER, "what is computed"),
        (PAPER, FAINT, "dropped: neither read nor computed"),
    ):
        picture.box(left, 232, 14, 14, color, line=line)
        picture.text(left + 20, 244, text)
        left += 250
    return picture


def _product(
    picture: Picture,
    x: float,
    words: tuple[str, str],
    operands: tuple[tuple[str, Tensor, str], ...],
) -> None:
    title, gain = words
    picture.text(x, 28, title, size=15, bold=True)
    picture.text(x, 47, gain, size=12, color=GREY)
    for (name, live, color), sign in zip(operands, ("·", "=", ""), strict=True):
        rows, cols = live.shape
        top = 125 - CELL * rows / 2
        _grid(picture, (x, top), live, color, CELL)
        picture.text(x + CELL * cols / 2, top + CELL * rows + 18, name, anchor="middle")
        x += CELL * cols + GAP
        picture.text(x - GAP / 2, 130, sign, size=18, anchor="middle")


def draw_methods() -> Picture:
    """Rows of a batch against hidden units, and for tiles the weight: what each method keeps."""
    torch.manual_seed(1)
    picture = Picture(1000, 250, "What SparseDrop, SliceOut and Approximate Random Dropout keep")
    units, rows, p = 24, 16, 0.5
    block = BlockMask.bernoulli((rows, units), p, block_shape=(4, 4)).expand()
    kept = Slice.draw(units, p, align=4).mask().expand(rows, units)
    pattern = RowPattern.draw(units, patterns.search(p)).mask().expand(rows, units)
    tiles = tile_mask((rows, units), 4, 2, 1, torch.device("cpu")).expand()
    panels = (
        ("SparseDrop", "random blocks of x", block, ORANGE),
        ("SliceOut", "one slice of units", kept, GREEN),
        ("row pattern", "every so many-th unit", pattern, BLUE),
        ("tile pattern", "diagonals of the weight", tiles, BLUE),
    )
    for i, (name, what, live, color) in enumerate(panels):
        x = 30 + 245 * i
        picture.text(x, 28, name, size=15, bold=True)
        picture.text(x, 47, what, size=12, color=GREY)
        _grid(picture, (x, 60), live, color, 9)
        below = ("input features", "output features") if i == 3 else ("units", "rows of the batch")
        picture.text(x + 108, 222, below[0], size=12, color=INK, anchor="middle")
        picture.text(x - 8, 132, below[1], size=12, color=INK, anchor="middle", turned=True)
    return picture


def _grid(
    picture: Picture, place: tuple[float, float], live: Tensor, color: str, cell: float
) -> None:
    x, y = place
    rows, cols = live.shape
    width, height = cell * cols, cell * rows
    for i, row in enumerate(live.tolist()):
        for start, stop in _runs(row):
            picture.box(x + cell * start, y + cell * i, cell * (stop - start), cell, color)
    for i in range(rows + 1):
        picture.line([(x, y + cell * i), (x + width, y + cell * i)], FAINT)
    for j in range(cols + 1):
        picture.line([(x + cell * j, y), (x + cell * j, y + height)], FAINT)


def _runs(row: list[bool]) -> list[tuple[int, int]]:
    """Where neighbours that are live begin and end."""
    edges = [j for j in range(len(row) + 1) if (j < len(row) and row[j]) != (j > 0 and row[j - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))
