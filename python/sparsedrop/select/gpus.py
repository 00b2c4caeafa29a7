"""What the kernels' tiles and cuBLAS cost on each GPU: what `sparsedrop bench --tune` prints."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.select.kernels import Tile

CUBLAS = "cublas"
CUBLAS_TILE = Tile(128, 256, 64, 256, "cublas")
"""What cuBLAS mostly takes for large products in 16 bits; its constants are in these tiles."""


class Cost(NamedTuple):
    """What a tile costs, in microseconds."""

    launch_us: float
    tile_us: float
    k_tile_us: float

    def us(self, waves: float, k_tiles: float) -> float:
        """The time of a product."""
        return self.launch_us + waves * (self.tile_us + k_tiles * self.k_tile_us)

    def tflops(self, tile: Tile, sms: int) -> float:
        """Of all SMs together within the K tiles."""
        tile_m, tile_n, tile_k = tile[:3]
        return 2e-6 * tile_m * tile_n * tile_k * sms / self.k_tile_us


class Gpu(NamedTuple):
    """The costs of the kernels' tiles, and of cuBLAS's."""

    sms: int
    costs: dict[Tile | str, Cost]


GPUS = {
    "NVIDIA H200": Gpu(
        sms=132,
        costs={
            Tile(128, 256, 64, 128): Cost(launch_us=4.04, tile_us=1.341, k_tile_us=0.6349),
            Tile(128, 128, 64, 64): Cost(launch_us=2.78, tile_us=1.739, k_tile_us=0.3272),
            Tile(64, 128, 64, 64): Cost(launch_us=2.07, tile_us=1.259, k_tile_us=0.2353),
            Tile(128, 192, 64, 64): Cost(launch_us=3.14, tile_us=1.846, k_tile_us=0.4877),
            CUBLAS: Cost(launch_us=2.99, tile_us=2.398, k_tile_us=0.6468),
        },
    ),
}

TYPICAL = "NVIDIA H200"
"""Whose costs stand for those of a GPU without an entry; its count of SMs is its own."""


def costs_of(gpu: str) -> dict[Tile | str, Cost]:
    """The costs of a GPU by its name, or those of the typical one."""
    return {**GPUS[TYPICAL].costs, **GPUS.get(gpu, GPUS[TYPICAL]).costs}
