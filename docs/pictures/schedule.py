"""The schedule of tiles, as the kernels' own headers number and deal them: tiles.cpp asks them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from sparsedrop import BlockMask
from svg import FAINT, GREY, INK, ORANGE, PAPER, SERIES, Picture

HERE = Path(__file__).parent
CPP = HERE.parents[1] / "cpp"

CTAS, LINES, SLOTS, K_TILES = 12, 10, 8, 16


class Tile(NamedTuple):
    """One record: who computes it, when, and what it is."""

    cta: int
    turn: int
    line: int
    slot: int
    slots: int
    k_tiles: int


def tiles_of(live: list[int]) -> list[Tile]:
    """What the CTAs compute, of lines that have so many live K tiles."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tiles"
        source = str(HERE / "tiles.cpp")
        build = ["g++", "-std=c++17", "-I", str(CPP), source, "-o", str(program)]
        subprocess.run(build, check=True)
        sizes = [str(number) for number in (CTAS, SLOTS, *live)]
        out = subprocess.run([program, *sizes], check=True, capture_output=True, text=True).stdout
    return [Tile(*map(int, line.split())) for line in out.splitlines()]


def draw() -> Picture:
    """A mask of A, the tiles of D by wave, and the time of each CTA."""
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((LINES, K_TILES), 0.5, block_shape=(1, 1))
    tiles = tiles_of(mask.live.sum(1).tolist())
    picture = Picture(1000, 360, "From a mask to the work of each CTA")
    _mask(picture, mask)
    _tiles(picture, tiles)
    _time(picture, tiles)
    for wave in range(max(tile.turn for tile in tiles) + 1):
        x = 330 + 95 * wave
        picture.box(x, 330, 14, 14, SERIES[wave])
        picture.text(x + 20, 342, f"wave {wave}", size=12)
    return picture


def _mask(picture: Picture, mask: BlockMask) -> None:
    picture.text(30, 28, "1. The mask of A", size=15, bold=True)
    picture.text(30, 47, "one row a line of tiles, K tiles across", size=12, color=GREY)
    for i, row in enumerate(mask.live.tolist()):
        for j, is_live in enumerate(row):
            fill, line = (ORANGE, PAPER) if is_live else (PAPER, FAINT)
            picture.box(30 + 14 * j, 62 + 25 * i, 14, 25, fill, line=line)
        picture.text(262, 79 + 25 * i, str(sum(row)), size=12, color=GREY)


def _tiles(picture: Picture, tiles: list[Tile]) -> None:
    picture.text(330, 28, "2. The tiles of D", size=15, bold=True)
    picture.text(330, 47, "by wave, with the CTA's number", size=12, color=GREY)
    for tile in tiles:
        x, y = 330 + 36 * tile.slot, 62 + 25 * tile.line
        picture.box(x, y, 36 * tile.slots, 25, SERIES[tile.turn], line=PAPER)
        middle = x + 18 * tile.slots
        picture.text(middle, y + 17, str(tile.cta), size=12, color=PAPER, anchor="middle")


def _time(picture: Picture, tiles: list[Tile]) -> None:
    """A tile of one slot is taken to have half the time of a whole one."""
    picture.text(690, 28, "3. The work of each CTA", size=15, bold=True)
    picture.text(690, 47, "K tiles that it multiplies, one row a CTA", size=12, color=GREY)
    scale, ends = 5.0, dict.fromkeys(range(CTAS), 0.0)
    for tile in sorted(tiles, key=lambda tile: tile.turn):
        width = scale * tile.k_tiles * tile.slots / 2
        x, y = 690 + ends[tile.cta], 62 + 20.8 * tile.cta
        picture.box(x, y, width, 19, SERIES[tile.turn], line=PAPER)
        ends[tile.cta] += width
    for cta in range(CTAS):
        picture.text(684, 76 + 20.8 * cta, str(cta), size=11, color=INK, anchor="end")
