"""What the kernels' tiles and cuBLAS cost on each GPU: what `sparsedrop bench --tune` prints."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from sparsedrop.select.architectures import Tile

CUBLAS = "cublas"
CUBLAS_TILE = Tile(128, 256, 64, 256, "cublas")
"""What cuBLAS mostly takes for large products in 16 bits; its constants are in these tiles."""

HALF, TF32 = "16 bits", "TF32"
"""What operands are multiplied in; costs differ between the two."""


class Cost(NamedTuple):
    """What a tile costs, in microseconds: where CTAs share an SM, theirs together."""

    launch_us: float
    tile_us: float
    k_tile_us: float

    def us(self, waves: float, k_tiles: float) -> float:
        """The time of a product."""
        return self.launch_us + waves * (self.tile_us + k_tiles * self.k_tile_us)

    def tflops(self, tile: Tile, ctas: int) -> float:
        """Within the K tiles, of so many CTAs at a time."""
        tile_m, tile_n, tile_k = tile[:3]
        return 2e-6 * tile_m * tile_n * tile_k * ctas / self.k_tile_us


Costs = Mapping[Tile | str, Cost]
"""Of tiles, and of CUBLAS."""


class Gpu(NamedTuple):
    """The costs of the kernels' tiles, and of cuBLAS's, in 16 bits and in TF32."""

    sms: int
    costs: Costs
    tf32: Costs = MappingProxyType({})

    def of(self, precision: str) -> Costs:
        return self.tf32 if precision == TF32 else self.costs


class Memory(NamedTuple):
    """Of a GPU, while the kernels multiply.

    cache_bytes: the size of an operand that stays in the L2 cache while others are read beside it.
    One of twice the size does not stay at all.
    """

    bytes_per_us: float
    cache_bytes: float


H200_MEMORY = Memory(bytes_per_us=3.5e6, cache_bytes=40e6)
"""The first is fitted to h200_tiles.json; the L2 cache has 60 MB."""

GPUS = {
    "NVIDIA H200": Gpu(
        sms=132,
        costs={
            Tile(128, 256, 64, 128): Cost(launch_us=4.04, tile_us=1.341, k_tile_us=0.6349),
            Tile(128, 128, 64, 64): Cost(launch_us=2.78, tile_us=1.739, k_tile_us=0.3272),
            Tile(64, 128, 64, 64): Cost(launch_us=2.07, tile_us=1.259, k_tile_us=0.2353),
            Tile(128, 192, 64, 64): Cost(launch_us=3.14, tile_us=1.846, k_tile_us=0.4877),
            Tile(128, 256, 64, 128, "sm80"): Cost(launch_us=2.38, tile_us=3.975, k_tile_us=1.1359),
            Tile(128, 128, 64, 64, "sm80"): Cost(launch_us=0.30, tile_us=4.610, k_tile_us=1.1588),
            Tile(64, 128, 64, 64, "sm80"): Cost(launch_us=0.00, tile_us=4.320, k_tile_us=0.6817),
            CUBLAS: Cost(launch_us=2.99, tile_us=2.398, k_tile_us=0.6468),
        },
        tf32={
            Tile(128, 256, 64, 128, "sm80"): Cost(launch_us=3.81, tile_us=7.058, k_tile_us=2.6750),
            Tile(128, 128, 64, 64, "sm80"): Cost(launch_us=0.59, tile_us=6.422, k_tile_us=2.6727),
            Tile(64, 128, 64, 64, "sm80"): Cost(launch_us=1.11, tile_us=4.355, k_tile_us=1.7703),
            CUBLAS: Cost(launch_us=6.82, tile_us=1.867, k_tile_us=1.4233),
        },
    ),
}

TYPICAL = "NVIDIA H200"
"""From whose costs those of a GPU without an entry are worked out."""
