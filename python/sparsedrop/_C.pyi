"""The kernels of a build with CUDA. Addresses, devices and streams are integers; see sparsedrop.h.

Every function raises RuntimeError, with the values and CUDA's reason, where a launch fails.
"""

from collections.abc import Sequence

CUDA_ARCHS: str
"""Compiled for: such as "80, 90a-real"."""

MASK_UNIT: int
"""Elements that one bit of a mask's words stands for."""

MAX_SUM_COLUMNS: int
"""The most columns that `column_sums` takes."""

MAX_EXTENT: int
"""The largest extent of a product."""

DTYPES: dict[str, int]
"""What the kernels call a dtype, by its name in torch; operands have `Architecture.dtypes`."""

ACTIVATIONS: dict[str, int]
"""Likewise for activations; "none" is among them."""

POINTWISE: dict[str, int]
"""Likewise for what a feed-forward block does between its products."""

MAX_ROUNDINGS: int
"""The most arrays that a step rounds."""

UNITS_ALONG: dict[str, int]
"""Along which extent of a matrix the units of a layer lie: "neither", "rows" or "cols"."""
DROPPED: dict[str, int]
"""What becomes of dropped units: "zeroed" or "kept"."""

class Architecture:
    """A family of kernels."""

    @property
    def name(self) -> str: ...
    @property
    def dtypes(self) -> list[str]:
        """Names in torch of what operands may be; float32 is multiplied as tf32."""
    @property
    def limits(self) -> tuple[int, int, int]:
        """max_split_k, max_split_n and max_split_slots."""
    @property
    def tiles(self) -> list[tuple[int, int, int, int]]:
        """m, n, k, slot_n of its tiles, by their ids."""
    @property
    def max_split_k(self) -> int: ...
    @property
    def max_split_n(self) -> int: ...
    @property
    def max_split_slots(self) -> int: ...
    def runs_on(self, major: int, minor: int) -> bool:
        """Whether a GPU of that compute capability runs its kernels."""

ARCHITECTURES: list[Architecture]
"""Best first."""

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
    keys: int, grid_rows: int, grid_cols: int, count: int, live: int, device: int, stream: int, /
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
    out_dtype: int,
    accumulates: bool,
    device: int,
    stream: int,
    /,
) -> None: ...
def masked_copy(
    in_dtype: int,
    in_: int,
    in_ld: int,
    out_dtype: int,
    out: int,
    out_ld: int,
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    live: int,
    live_row_stride: int,
    live_col_stride: int,
    factor: float,
    device: int,
    stream: int,
    /,
) -> None:
    """Into `out`, of the matrix's dtype or float32, or added to what it holds."""

class Launch:
    """A product and how it is run, all but its addresses; a block of None: no mask.

    With `d_is_fp32`, d is float32 and d_ld counts its elements; with `accumulates`, the product is
    added to it in place.
    """

    def __init__(
        self,
        *,
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
        architecture: str,
        tile: int,
        swap: bool,
        split_k: int,
        device: int,
        d_is_fp32: bool = False,
        accumulates: bool = False,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def refusal(self) -> str | None:
        """Why it cannot be launched, whatever the addresses; None where it can."""
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

At = int | tuple[int, int] | None
"""The number of an address among a call's, or that and bytes from there; None: null."""

Words = tuple[At, At] | None
"""Of a mask's block rows, and of its block columns."""

class Program:
    """What one direction of a layer or a block launches: steps, in the order of their adding.

    A factor is the number of one among a call's numbers; None is 1. A step whose result has no
    place, or one that is 0, is left out.

    `units` is the number of a call's live units, which are `count`: in that place and the three
    behind it stand step, first, first_count and second of live_units.h.
    """

    def __init__(self, device: int) -> None: ...
    def draw(
        self,
        *,
        rows: int,
        cols: int,
        block: tuple[int, int],
        live: At,
        words: Words = None,
        keep: int,
        seed: int,
    ) -> None:
        """A Bernoulli grid, by the seed in a place and the offset, plus 1, in the one behind it.

        Where that is 0, the grid is there already. Without `words` only the grid is drawn.
        """
    def round(self, *, dtype: int, arrays: Sequence[tuple[At, int, At, int, int | None]]) -> None:
        """In one launch: from, its dtype, to, count and factor of each; MAX_ROUNDINGS at most."""
    def product(
        self,
        launch: Launch,
        *,
        a: At,
        b: At,
        d: At,
        a_words: Words = None,
        b_words: Words = None,
        d_words: Words = None,
        alpha: int | None = None,
        bias: At = None,
        workspace: At = None,
        accumulates: bool = False,
    ) -> None: ...
    def masked_copy(
        self,
        *,
        in_dtype: int,
        source: At,
        source_ld: int,
        out_dtype: int,
        out: At,
        rows: int,
        cols: int,
        block: tuple[int, int],
        live: At = None,
        factor: int | None = None,
        keep: int | None = None,
        seed: int | None = None,
    ) -> None:
        """A `source_ld` of 0 repeats one row; the result has no gaps between rows. With a `seed`
        the grid is drawn as by `draw`, and written to `live`."""
    def dense_product(
        self,
        *,
        m: int,
        n: int,
        k: int,
        a: At,
        a_ld: int | None = None,
        a_turned: bool = False,
        b: At,
        b_ld: int | None = None,
        b_turned: bool = False,
        out: At,
        out_ld: int | None = None,
        dtype: int,
        out_dtype: int,
        alpha: int | None = None,
        accumulates: bool = False,
        bias: At = None,
        workspace: At,
        handle: int,
        units: int | None = None,
        live: str = "",
        whole: str = "",
        handle_now: int,
    ) -> int:
        """By cuBLASLt, which has torch's handle of cuBLAS, as it is now. Where it has no way, or
        live units are in two parts, by cuBLAS with the handle in that place, and whether parts of
        sums may be added in 16 bits in the one behind it.

        A bias is of the result's dtype, and compact along live units; what is accumulated has none.
        Returns bytes of workspace.

        A leading dimension of None: no gaps between rows. `live` is "m", "n" or "k", if that extent
        is one of live units, and `whole` names the matrices, of "a", "b" and "o", that have all
        units along it; the others have the live ones.
        """
    def gather(
        self,
        *,
        dtype: int,
        units: int,
        count: int,
        across: tuple[int, int] | None = None,
        arrays: Sequence[tuple[At, int, int, At, int, int, int, int, int | None]],
    ) -> None:
        """In one launch, rounded: from, its dtype and leading dimension, to and its leading
        dimension, rows and columns of the result, one of UNITS_ALONG, and the number of a factor,
        of each; 8 at most. Where units lie along both extents, those of columns are `across`: the
        place of their numbers, and how many live. Results that are larger are padded with 0."""
    def fill_units(
        self,
        *,
        units: int,
        count: int,
        across: tuple[int, int] | None = None,
        arrays: Sequence[tuple[At, int, int, int, int, At, int, int | None, int, int]],
    ) -> None:
        """In one launch, whole matrices: of each its place, dtype, rows, columns and one of
        UNITS_ALONG; the compact matrix where its live units come from, or None, in which case they
        stay, with its dtype and the number of a factor; one of DROPPED; and the compact one's
        leading dimension, or 0: no gaps. 8 at most; `across` as for `gather`."""
    def column_sums(
        self,
        *,
        dtype: int,
        matrix: At,
        rows: int,
        cols: int,
        block: tuple[int, int] | None = None,
        words: Words = None,
        out: At,
        out_dtype: int,
        accumulates: bool = False,
        factor: int | None = None,
    ) -> None: ...
    def pointwise(
        self,
        *,
        kind: int,
        activation: int,
        dtype: int,
        rows: int,
        cols: int,
        block: tuple[int, int],
        a: At,
        b: At = None,
        grad: At = None,
        out: At,
        out_b: At = None,
        live: At = None,
        bias_a: At = None,
        bias_b: At = None,
        bias_dtype: int = ...,
        units: int | None = None,
        count: int = 0,
    ) -> None:
        """`kind` is one of POINTWISE. Biases of all units are added to a and b, whose columns are
        live units, and padding behind them."""
    def run(self, places: Sequence[int], numbers: Sequence[float], stream: int, /) -> None:
        """Launches the steps, with a call's addresses and numbers."""

def load_blas(release: int, /) -> bool:
    """Looks up that release of cuBLAS, such as 13; False unless it is loaded in this process. With
    it cuBLASLt is looked up, which there may be or not."""
