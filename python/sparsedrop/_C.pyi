"""The kernels of a build with CUDA. Addresses, devices and streams are integers; see sparsedrop.h.

Every function raises RuntimeError, with the values and CUDA's reason, where a launch fails.
"""

TILES: list[tuple[int, int, int, int]]
"""(tile_m, tile_n, tile_k, slot_n) of the compiled tiles; the position is the tile's id."""

CUDA_ARCHS: str

_Mask = tuple[int, int, int, int]
"""Addresses of row_words and col_words, block_rows, block_cols."""

def mask_words(
    live: int,
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    row_words: int,
    col_words: int,
    device: int,
    stream: int,
    /,
) -> None: ...
def balanced_live(
    keys: int, grid_rows: int, grid_cols: int, keep: int, live: int, device: int, stream: int, /
) -> None: ...
def workspace_bytes(m: int, n: int, tile: int, swap: bool, /) -> int: ...
def matmul(
    dtype: int,
    m: int,
    n: int,
    k: int,
    a: int,
    a_ld: int,
    a_k_major: bool,
    b: int,
    b_ld: int,
    b_k_major: bool,
    d: int,
    d_ld: int,
    a_mask: _Mask | None,
    b_mask: _Mask | None,
    out_mask: _Mask | None,
    alpha: float,
    bias: int,
    activation: int,
    tile: int,
    swap: bool,
    workspace: int,
    device: int,
    stream: int,
    /,
) -> None: ...
