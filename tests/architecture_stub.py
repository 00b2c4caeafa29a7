"""The architectures of a build with both, for tests on a build with none."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop import select


class Architecture(NamedTuple):
    """A family of kernels, as `_C` has them; oldest: the first compute capability that runs it."""

    name: str
    tiles: list[tuple[int, int, int, int]]
    dtypes: list[str]
    oldest: tuple[int, int]
    newest: tuple[int, int] = (99, 0)
    limits: tuple[int, int, int] = (8, 128, 8192)

    def runs_on(self, major: int, minor: int) -> bool:
        return self.oldest <= (major, minor) <= self.newest


_NARROW = [(128, 256, 64, 128), (128, 128, 64, 64), (64, 128, 64, 64)]
ARCHITECTURES = [
    Architecture("sm90", [*_NARROW, (128, 192, 64, 64)], ["bfloat16", "float16"], (9, 0), (9, 0)),
    Architecture("sm80", _NARROW, ["bfloat16", "float16", "float32"], (8, 0)),
]
"""Best first: a Hopper GPU runs both."""

HOPPER = tuple(
    select.Tile(*extents, known.name) for known in ARCHITECTURES for extents in known.tiles
)
"""The tiles of a Hopper GPU, as a request has them."""

AMPERE = tuple(tile for tile in HOPPER if tile.architecture == "sm80")
"""Those of all other GPUs from 8.0 on."""
