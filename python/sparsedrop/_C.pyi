"""The kernels of a build with CUDA. Addresses, devices and streams are integers; see sparsedrop.h.

Every function raises RuntimeError, with the values and CUDA's reason, where a launch fails.
"""

TILES: list[tuple[int, int, int, int]]
"""(tile_m, tile_n, tile_k, slot_n) of the compiled tiles; the position is the tile's id."""

MAX_PARTS: int
"""Into how many parts a tile may be split along k."""

MOST_SPLIT_N: int
"""The widest tile that may be split."""

MOST_SPLIT_SLOTS: int
"""How many slots all parts of a product may have."""

CUDA_ARCHS: str

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
def bernoulli_mask(
    keep: float,
    seed: int,
    offset: int,
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    live: int,
    row_words: int,
    col_words: int,
    device: int,
    stream: int,
    /,
) -> None: ...
def balanced_live(
    keys: int, grid_rows: int, grid_cols: int, keep: int, live: int, device: int, stream: int, /
) -> None: ...
def column_sums(
    dtype: int,
    data: int,
    rows: int,
    cols: int,
    ld: int,
    row_words: int,
    col_words: int,
    block_rows: int,
    block_cols: int,
    out: int,
    device: int,
    stream: int,
    /,
) -> None: ...

class Launch:
    """A product and how it is run, all but its addresses; a block of None: no mask."""

    def __init__(
        self,
        dtype: int,
        m: int,
        n: int,
        k: int,
        a_ld: int,
        a_k_major: bool,
        b_ld: int,
        b_k_major: bool,
        d_ld: int,
        a_block: tuple[int, int] | None,
        b_block: tuple[int, int] | None,
        d_block: tuple[int, int] | None,
        activation: int,
        tile: int,
        swap: bool,
        parts: int,
        device: int,
        /,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    def __call__(
        self,
        a: int,
        b: int,
        d: int,
        pre_activation: int,
        a_row_words: int,
        a_col_words: int,
        b_row_words: int,
        b_col_words: int,
        d_row_words: int,
        d_col_words: int,
        alpha: float,
        bias: int,
        workspace: int,
        stream: int,
        /,
    ) -> None:
        """Launches it. A mask's words are 0 where it has no block, and nowhere else.

        `pre_activation` and `bias` are 0 where there is none.
        """
