"""What draws a mask's grid and builds what the kernels read from it, and the registered ops of it.

They are ops, and not plain functions, so that torch.compile keeps each whole: the host's draw, the
kernel of ours and the generator's state are nothing that a graph could look into.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop import _native

K_TILE = 64
"""Depth of the kernels' K tile: one bit of a word stands for this many columns (or rows)."""

_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


def is_plain(*tensors: Tensor) -> bool:
    """True in eager mode where nobody watches: an op's implementation may then be called itself.

    The dispatcher and its lists cost the host as much as a launch, and they are there for
    torch.compile, dispatch modes, functorch's transforms and tensor subclasses only.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs more than all that it would ask
        if type(tensor) not in _PLAIN_TYPES:
            return False
    return True


def grid_shape(rows: int, cols: int, block_rows: int, block_cols: int) -> tuple[int, int]:
    """Extents of the grid of blocks over a matrix."""
    return -(-rows // block_rows), -(-cols // block_cols)


def words_shapes(
    rows: int, cols: int, block_rows: int, block_cols: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of row_words and col_words; (0, 0) where no tile of the kernels fits the blocks."""
    if block_rows % K_TILE or block_cols % K_TILE or max(block_rows, block_cols) >= 2**31:
        return (0, 0), (0, 0)
    grid_rows, grid_cols = grid_shape(rows, cols, block_rows, block_cols)
    bits_per_word = 32 * K_TILE
    return (grid_rows, -(-cols // bits_per_word)), (grid_cols, -(-rows // bits_per_word))


class Layout(NamedTuple):
    """How row_words, col_words and live lie one after the other in one buffer of int32."""

    row_words: tuple[int, int]
    col_words: tuple[int, int]
    live: tuple[int, int]
    # In bytes.
    col_words_at: int
    live_at: int
    # In elements.
    size: int


@functools.lru_cache(maxsize=4096)
def layout(*grid: int) -> Layout:
    """The layout for a matrix's extents and its blocks'."""
    row_words, col_words = words_shapes(*grid)
    live = grid_shape(*grid)
    words = row_words[0] * row_words[1], col_words[0] * col_words[1]
    size = sum(words) + -(-live[0] * live[1] // 4)
    return Layout(row_words, col_words, live, 4 * words[0], 4 * sum(words), size)


class MaskTensors:
    """live, row_words and col_words of a mask.

    Where a kernel of ours drew the mask they are one allocation, cut into the three when somebody
    asks for one: most masks are drawn, read by kernels and forgotten, and a view costs the host
    nearly as much as a launch.
    """

    __slots__ = ("_buffer", "_layout", "_tensors")

    _buffer: Tensor | None
    _layout: Layout | None
    _tensors: tuple[Tensor, Tensor, Tensor] | None

    def __init__(
        self,
        tensors: tuple[Tensor, Tensor, Tensor] | None,
        buffer: Tensor | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._tensors, self._buffer, self._layout = tensors, buffer, layout

    @property
    def device(self) -> torch.device:
        if self._buffer is not None:
            return self._buffer.device
        return self.all()[0].device

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """live, row_words, col_words: the same three tensors each time."""
        if self._tensors is not None:
            return self._tensors
        assert self._buffer is not None
        assert self._layout is not None
        tensors = _cut(self._buffer, self._layout)
        if not torch.compiler.is_compiling():  # a graph's own tensors must not outlive it
            self._tensors = tensors
        return tensors

    def words(self) -> tuple[int, int]:
        """Addresses of row_words and col_words; 0 where there are none."""
        if self._buffer is not None and self._layout is not None:
            address = self._buffer.data_ptr()
            return address, address + self._layout.col_words_at
        _, row_words, col_words = self.all()
        return row_words.data_ptr(), col_words.data_ptr()


def _cut(buffer: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    col_words_at, live_at = layout.col_words_at // 4, layout.live_at // 4
    rows, columns = layout.live
    live = buffer[live_at:].view(torch.bool)[: rows * columns].view(rows, columns)
    row_words = buffer[:col_words_at].view(layout.row_words)
    return live, row_words, buffer[col_words_at:live_at].view(layout.col_words)


def mask_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    """row_words and col_words of a BlockMask; empty where no kernel could read them."""
    row_words, col_words = _empty_words(live, *grid)
    _fill_words(live, row_words, col_words, *grid)
    return row_words, col_words


def _fill_words(live: Tensor, row_words: Tensor, col_words: Tensor, *grid: int) -> None:
    if row_words.numel() or col_words.numel():
        _native.C.mask_words(
            live.data_ptr(), *grid, row_words.data_ptr(), col_words.data_ptr(),
            *_native.launch_target(live.device),
        )  # fmt: skip


def bernoulli_mask(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """live, row_words, col_words of a mask whose blocks are dropped independently."""
    live, row_words, col_words = _empty_drawn(*grid, p=p, device=device)
    if row_words.numel() and _draws_itself(device, generator):
        addresses = (live.data_ptr(), row_words.data_ptr(), col_words.data_ptr())
        _draw_bernoulli(addresses, grid, p, device, generator)
    else:
        live.bernoulli_(1.0 - p, generator=generator)
        _fill_words(live, row_words, col_words, *grid)
    return live, row_words, col_words


def bernoulli_tensors(
    grid: tuple[int, ...], p: float, device: torch.device, generator: torch.Generator | None
) -> MaskTensors:
    """The same draw with fewer calls, outside of graphs."""
    lies = layout(*grid)
    if not lies.col_words_at or not _draws_itself(device, generator):
        return MaskTensors(bernoulli_mask(*grid, p=p, device=device, generator=generator))
    buffer = torch.empty(lies.size, dtype=torch.int32, device=device)
    at = buffer.data_ptr()
    addresses = (at + lies.live_at, at, at + lies.col_words_at)
    _draw_bernoulli(addresses, grid, p, device, generator)
    return MaskTensors(None, buffer, lies)


def _draws_itself(device: torch.device, generator: torch.Generator | None) -> bool:
    """Whether our kernel draws, from a state that the host knows; else torch's draws.

    While a CUDA graph is being captured the state lies on the GPU, where each replay advances it.
    A generator of another device is refused by torch.
    """
    return (
        _native.runs_on(device)
        and not torch.cuda.is_current_stream_capturing()
        and (generator is None or generator.device == device)
    )


def _draw_bernoulli(
    addresses: tuple[int, int, int],
    grid: tuple[int, ...],
    p: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> None:
    """Fills live, row_words and col_words, and advances the generator as a draw of torch's does."""
    if generator is None:
        generator = _native.default_generator(device)
    offset = generator.get_offset()
    generator.set_offset(offset + 4)
    seed = generator.initial_seed()
    target = _native.launch_target(device)
    _native.C.bernoulli_mask(1.0 - p, seed, offset, *grid, *addresses, *target)


def balanced_mask(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """live, row_words, col_words of a mask which keeps equally many blocks in every block row.

    The block rows come in bands of L = C / gcd(keep, C). Row j of a band keeps the arc of `keep`
    places from place j * keep on, modulo C, of that band's own random permutation of the columns.
    Over a whole band the arcs cover every place equally often, over a part of one to within one.
    """
    live, row_words, col_words = _empty_drawn(*grid, p=p, device=device)
    if live.numel():
        rows, columns = live.shape
        keep = _balanced_count(columns, p, device, generator)
        bands = -(-rows * gcd(keep, columns) // columns)
        # Drawn even where they decide nothing, so that the next rounding is another one.
        keys = torch.empty((bands, columns), dtype=torch.int32, device=device)
        keys.random_(generator=generator)
        if keep in (0, columns):
            live.fill_(keep == columns)
        elif _native.runs_on(device):
            _native.C.balanced_live(
                keys.data_ptr(),
                rows,
                columns,
                keep,
                live.data_ptr(),
                *_native.launch_target(device),
            )
        else:
            live.copy_(balanced_live(keys, rows, keep))
        _fill_words(live, row_words, col_words, *grid)
    return live, row_words, col_words


def balanced_tensors(
    grid: tuple[int, ...], p: float, device: torch.device, generator: torch.Generator | None
) -> MaskTensors:
    """The same draw, outside of graphs."""
    return MaskTensors(balanced_mask(*grid, p=p, device=device, generator=generator))


def _balanced_count(
    columns: int, p: float, device: torch.device, generator: torch.Generator | None
) -> int:
    """Blocks to keep in each row: (1 - p) * columns, rounded up or down at random."""
    exact = (1.0 - p) * columns
    nearest = round(exact)
    # p is a rounded number: 0.7 * 10 is no integer in floating point, but is meant as one.
    if abs(exact - nearest) <= 1e-9 * columns:
        return nearest
    if device.type != "cuda":
        draw = torch.rand((), dtype=torch.float64, device="cpu", generator=generator).item()
    elif torch.cuda.is_current_stream_capturing():
        return nearest  # there is no state to read, and the graph replays one count anyhow
    else:
        # Not drawn from the GPU, which would wait for it. The state, seed and offset, lies on the
        # host, so that whatever replays a GPU's draws replays this one too.
        generator = generator or _native.default_generator(device)
        state = f"{generator.initial_seed()} {generator.get_offset()}"
        digest = hashlib.blake2b(state.encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "little") / 2**64
    return int(exact) + int(draw < exact - int(exact))


def balanced_live(keys: Tensor, rows: int, keep: int) -> Tensor:
    """What `_C.balanced_live` computes: a column's place is the rank of its key, ties by index."""
    columns = keys.shape[1]
    place = keys.argsort(dim=1, stable=True).argsort(dim=1)  # [bands, C]
    row = torch.arange(rows, device=keys.device)
    band_rows = columns // gcd(keep, columns)
    start = row % band_rows * keep  # [R]
    return (place[row // band_rows] - start[:, None]) % columns < keep


def _empty_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    shapes = words_shapes(*grid) if _native.runs_on(live.device) else ((0, 0), (0, 0))
    row_words, col_words = (live.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return row_words, col_words


def _empty_drawn(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    live = torch.empty(grid_shape(*grid), dtype=torch.bool, device=device)
    return (live, *_empty_words(live, *grid))


def _register() -> torch.library.Library:
    """Defines the ops; the library must outlive them, so the module keeps it."""
    grid = "SymInt rows, SymInt cols, SymInt block_rows, SymInt block_cols"
    drawn = "float p, Device device, Generator? generator=None) -> (Tensor, Tensor, Tensor)"
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    # Tagged, so that compiled graphs neither merge two draws nor repeat one.
    random = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
    plain = (torch.Tag.pt2_compliant_tag,)
    for schema, tags, kernel, fake in (
        (f"mask_words(Tensor live, {grid}) -> (Tensor, Tensor)", plain, mask_words, _empty_words),
        (f"bernoulli_mask({grid}, *, {drawn}", random, bernoulli_mask, _empty_drawn),
        (f"balanced_mask({grid}, *, {drawn}", random, balanced_mask, _empty_drawn),
    ):
        name = schema.partition("(")[0]
        library.define(schema, tags=tags)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsedrop::{name}", fake, lib=library)
    return library


_library = _register()

DRAWS: dict[str, Callable[..., MaskTensors]] = {
    "bernoulli": bernoulli_tensors,
    "balanced": balanced_tensors,
}
"""What a sampler calls in eager mode."""

DRAW_OPS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "bernoulli": torch.ops.sparsedrop.bernoulli_mask,
    "balanced": torch.ops.sparsedrop.balanced_mask,
}
"""What it calls where somebody watches."""
