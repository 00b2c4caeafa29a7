"""How the grid of a mask is drawn, and the words that the kernels read are built from it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks.tensors import MAX_KERNEL_BLOCK, MaskTensors, grid_shape, words_shapes

_ADVANCING = threading.Lock()


def mask_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    """row_words and col_words of a BlockMask; empty where no kernel could read them."""
    row_words, col_words = empty_words(live, *grid)
    _fill_words(MaskTensors((live, row_words, col_words)), grid, live.device)
    return row_words, col_words


def _fill_words(mask: MaskTensors, grid: tuple[int, ...], device: torch.device) -> None:
    live, row_words, col_words = mask.addresses()
    if row_words:
        target = _native.launch_target(device)
        _native.C.mask_words(live, *grid, row_words, col_words, *target)


def _fill_bernoulli(
    mask: MaskTensors,
    grid: tuple[int, ...],
    p: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> None:
    """Drops each block on its own with probability p."""
    draws = (
        0 not in grid_shape(*grid)
        and max(grid[2:]) <= MAX_KERNEL_BLOCK
        and _native.runs_portable(device)
    )
    state = host_state(device, generator) if draws else None
    if state is None:
        mask.all()[0].bernoulli_(1.0 - p, generator=generator)
        _fill_words(mask, grid, device)
        return
    target = _native.launch_target(device)
    _native.C.bernoulli_mask(1.0 - p, *state, *grid, *mask.addresses(), *target)


def host_state(
    device: torch.device, generator: torch.Generator | None = None
) -> tuple[int, int] | None:
    """Seed and offset of one draw by a kernel of ours, which is taken; None where torch must draw.

    While a CUDA graph is being captured the state lies on the GPU, where each replay advances it.
    A generator of another device is refused by torch.
    """
    if generator is None:
        generator = _native.default_generator(device)
    elif generator.device != device:
        return None
    if is_capturing(device):
        return None
    # As a kernel of torch's that draws up to four numbers a thread. The lock is between two of our
    # draws; with one of torch's on another thread at the same time torch offers none.
    with _ADVANCING:
        offset = generator.get_offset()
        generator.set_offset(offset + 4)
    return generator.initial_seed(), offset


def is_capturing(device: torch.device) -> bool:
    """Whether that GPU's current stream is being captured."""
    if _native.gpus() < 2 or device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _fill_balanced(
    mask: MaskTensors,
    grid: tuple[int, ...],
    p: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> None:
    """Keeps equally many blocks in every block row.

    The block rows come in bands of L = C / gcd(count, C). Row j of a band keeps the arc of `count`
    places from place j * count on, modulo C, of that band's own random permutation of the columns.
    Over a whole band the arcs cover every place equally often, over a part of one to within one.
    """
    rows, columns = grid_shape(*grid)
    if not rows or not columns:
        return
    count = _balanced_count(columns, p, device, generator)
    bands = -(-rows * gcd(count, columns) // columns)
    # Drawn even where they decide nothing, so that the next rounding is another one.
    keys = torch.empty((bands, columns), dtype=torch.int32, device=device)
    keys.random_(generator=generator)
    if count in (0, columns):
        mask.all()[0].fill_(count == columns)
    elif _native.runs_portable(device):
        live, target = mask.addresses()[0], _native.launch_target(device)
        _native.C.balanced_live(keys.data_ptr(), rows, columns, count, live, *target)
    else:
        mask.all()[0].copy_(balanced_live(keys, rows, count))
    _fill_words(mask, grid, device)


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
    elif is_capturing(device):
        return nearest  # there is no state to read, and the graph replays one count anyhow
    else:
        # Not drawn from the GPU, which would wait for it. The state, seed and offset, lies on the
        # host, so that whatever replays a GPU's draws replays this one too.
        generator = generator or _native.default_generator(device)
        state = f"{generator.initial_seed()} {generator.get_offset()}"
        digest = hashlib.blake2b(state.encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "little") / 2**64
    return int(exact) + int(draw < exact - int(exact))


def balanced_live(keys: Tensor, rows: int, count: int) -> Tensor:
    """What `_C.balanced_live` computes: a column's place is the rank of its key, ties by index."""
    columns = keys.shape[1]
    place = keys.argsort(dim=1, stable=True).argsort(dim=1)  # [bands, C]
    row = torch.arange(rows, device=keys.device)
    band_rows = columns // gcd(count, columns)
    start = row % band_rows * count  # [R]
    return (place[row // band_rows] - start[:, None]) % columns < count


def empty_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    shapes = words_shapes(*grid) if _native.runs_on(live.device) else ((0, 0), (0, 0))
    row_words, col_words = (live.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return row_words, col_words


def empty_drawn(
    *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    live = torch.empty(grid_shape(*grid), dtype=torch.bool, device=device)
    return (live, *empty_words(live, *grid))


Fill = Callable[[MaskTensors, tuple[int, ...], float, torch.device, "torch.Generator | None"], None]

FILLS: dict[str, Fill] = {"bernoulli": _fill_bernoulli, "balanced": _fill_balanced}
"""What draws a mask into its tensors, by the sampler's name; `grid` as `grid_shape` takes it."""
