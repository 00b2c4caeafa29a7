"""The kernels of a build with CUDA. Addresses, devices and streams are integers; see sparsedrop.h.

Every function raises RuntimeError, with the values and CUDA's reason, where a launch fails.
"""

CUDA_ARCHS: str
"""Compiled for: such as "90a"."""

MASK_UNIT: int
"""Elements that one bit of a mask's words stands for."""

MAX_SUM_COLUMNS: int
"""The most columns that `column_sums` takes."""

MAX_EXTENT: int
"""The largest extent of a product."""

DTYPES: dict[str, int]
"""What the kernels call a dtype, by its name in torch; float32 is for results only."""

ACTIVATIONS: dict[str, int]
"""Likewise for activations; "none" is among them."""

class Architecture:
    """A family of kernels."""

    @property
    def name(self) -> str: ...
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

class Layer:
    """Dropout and the linear layer behind it by the kernels: each way is one call.

    `forward`, `grad_x` and `grad_weight` are the products of [m, k] in blocks of `block`. The mask
    is one buffer: words of the block rows, of the block columns and the grid, at those bytes.
    """

    def __init__(
        self,
        *,
        forward: Launch,
        grad_x: Launch,
        grad_weight: Launch,
        block: tuple[int, int],
        col_words_at: int,
        live_at: int,
        bias_dtype: int,
    ) -> None: ...
    @property
    def forward_workspace_bytes(self) -> int: ...
    @property
    def backward_workspace_bytes(self) -> int: ...
    def forward(
        self,
        x: int,
        weight: int,
        bias: int,
        rounded_x: int,
        rounded_weight: int,
        rounded_bias: int,
        out: int,
        mask: int,
        workspace: int,
        keep: float,
        seed: int,
        offset: int,
        alpha: float,
        stream: int,
        /,
    ) -> None:
        """Draws the mask, unless `offset` is below 0, rounds float32 operands, and multiplies.

        What is rounded has somewhere to be rounded to, else 0.
        """
    def backward(
        self,
        grad: int,
        x: int,
        weight: int,
        mask: int,
        grad_x: int,
        grad_weight: int,
        grad_bias: int,
        workspace: int,
        alpha: float,
        accumulates_weight: bool,
        accumulates_bias: bool,
        stream: int,
        /,
    ) -> None:
        """The gradients whose address is not 0, added to what is there if asked for."""

class DenseLayer:
    """Such a layer by dense products of masked operands."""

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        outputs: int,
        block: tuple[int, int],
        x_dtype: int,
        dtype: int,
        weight_dtype: int,
        bias_dtype: int,
        device: int,
    ) -> None: ...
    def forward(
        self,
        x: int,
        masked_x: int,
        weight: int,
        rounded_weight: int,
        bias: int,
        out: int,
        live: int,
        keep: float,
        seed: int,
        offset: int,
        alpha: float,
        blas_handle: int,
        allows_narrow_sums: bool,
        stream: int,
        /,
    ) -> None:
        """Draws the grid, unless `offset` is below 0; masks, scales and rounds x; multiplies.

        With an `out` of 0 the product is left to the caller.
        """
    def backward(
        self,
        grad: int,
        masked_x: int,
        weight: int,
        live: int,
        product: int,
        grad_x: int,
        grad_weight: int,
        grad_bias: int,
        alpha: float,
        accumulates_weight: bool,
        accumulates_bias: bool,
        blas_handle: int,
        allows_narrow_sums: bool,
        stream: int,
        /,
    ) -> None:
        """The gradients whose address is not 0, added to what is there if asked for.

        `product` is of the dtype of the products: `grad_x` itself, where that has it.
        """

def load_blas(release: int, /) -> bool:
    """Looks up that release of cuBLAS, such as 13; False unless it is loaded in this process."""
