"""The registered ops that draw a mask's grid and build what the kernels read from it.

They are ops, and not plain functions, so that torch.compile keeps each whole: the host's draw, the
kernel of ours and the generator's state are nothing that a graph could look into.
"""

from __future__ import annotations

import hashlib
from math import gcd

import torch
from torch import Tensor, nn

from sparsedrop import _native

K_TILE = 64
"""Depth of the kernels' K tile: one bit of a word stands for this many columns (or rows)."""


def is_plain(*tensors: Tensor) -> bool:
    """True in eager mode where nobody watches: an op's implementation may then be called itself.

    The dispatcher and its lists cost the host as much as a launch, and they are there for
    torch.compile, dispatch modes, functorch's transforms and tensor subclasses only.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors)
    )


def grid_shape(rows: int, cols: int, block_rows: int, block_cols: int) -> tuple[int, int]:
    """Extents of the grid of blocks over a matrix."""
    return -(-rows // block_rows), -(-cols // block_cols)


def mask_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    """row_words and col_words of a BlockMask; empty where no kernel could read them."""
    rows, cols, block_rows, block_cols = grid
    row_words, col_words = _empty_words(live, *grid)
    if row_words.numel() or col_words.numel():
        _native.C.mask_words(
            live.data_ptr(), rows, cols, block_rows, block_cols,
            row_words.data_ptr(), col_words.data_ptr(), *_native.launch_target(live.device),
        )  # fmt: skip
    return row_words, col_words


def bernoulli_mask(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """live, row_words, col_words of a mask whose blocks are dropped independently."""
    live = torch.empty(grid_shape(*grid), dtype=torch.bool, device=device)
    live.bernoulli_(1.0 - p, generator=generator)
    return (live, *mask_words(live, *grid))


def balanced_mask(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """live, row_words, col_words of a mask which keeps equally many blocks in every block row.

    The block rows come in bands of L = C / gcd(keep, C). Row j of a band keeps the arc of `keep`
    places from place j * keep on, modulo C, of that band's own random permutation of the columns.
    Over a whole band the arcs cover every place equally often, over a part of one to within one.
    """
    rows, columns = grid_shape(*grid)
    live = torch.empty((rows, columns), dtype=torch.bool, device=device)
    if live.numel():
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
    return (live, *mask_words(live, *grid))


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
        generator = generator or torch.cuda.default_generators[device.index]
        digest = hashlib.blake2b(bytes(generator.get_state().tolist()), digest_size=8).digest()
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
    rows, cols, block_rows, block_cols = grid
    shapes = [(0, 0), (0, 0)]
    in_tiles = block_rows % K_TILE == 0 and block_cols % K_TILE == 0
    if in_tiles and max(block_rows, block_cols) < 2**31 and _native.runs_on(live.device):
        bits_per_word = 32 * K_TILE
        grid_rows, grid_cols = live.shape
        shapes = [
            (grid_rows, -(-cols // bits_per_word)),
            (grid_cols, -(-rows // bits_per_word)),
        ]
    row_words, col_words = (live.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return row_words, col_words


def _fake_drawn(
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
        (f"bernoulli_mask({grid}, *, {drawn}", random, bernoulli_mask, _fake_drawn),
        (f"balanced_mask({grid}, *, {drawn}", random, balanced_mask, _fake_drawn),
    ):
        name = schema.partition("(")[0]
        library.define(schema, tags=tags)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsedrop::{name}", fake, lib=library)
    return library


_library = _register()
