"""What draws a mask's grid and builds what the kernels read from it, and the registered ops of it.

They are ops, and not plain functions, so that torch.compile keeps each whole: the host's draw, the
kernel of ours and the generator's state are nothing that a graph could look into.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop import _native
from sparsedrop.mask_tensors import MaskTensors, grid_shape, layout, words_shapes

_ADVANCING = threading.Lock()

_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


def is_plain(*tensors: Tensor) -> bool:
    """True in eager mode where nobody watches: an op's implementation may then be called itself.

    The dispatcher and its lists cost the host as much as a launch, and they are there for
    torch.compile, dispatch modes, functorch's transforms, tensor subclasses and views that are
    negated only when they are read.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs more than all that it would ask
        if type(tensor) not in _PLAIN_TYPES or tensor.is_neg():
            return False
    return True


def mask_words(live: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
    """row_words and col_words of a BlockMask; empty where no kernel could read them."""
    row_words, col_words = _empty_words(live, *grid)
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
    live, row_words, col_words = mask.addresses()
    if not row_words or not _state_is_on_the_host(device, generator):
        mask.all()[0].bernoulli_(1.0 - p, generator=generator)
        _fill_words(mask, grid, device)
        return
    if generator is None:
        generator = _native.default_generator(device)
    # As a kernel of torch's that draws up to four numbers a thread. The lock is between two of our
    # draws; with one of torch's on another thread at the same time torch offers none.
    with _ADVANCING:
        offset = generator.get_offset()
        generator.set_offset(offset + 4)
    seed, target = generator.initial_seed(), _native.launch_target(device)
    _native.C.bernoulli_mask(1.0 - p, seed, offset, *grid, live, row_words, col_words, *target)


def _state_is_on_the_host(device: torch.device, generator: torch.Generator | None) -> bool:
    """Whether a GPU's draw may take seed and offset from here; else torch draws.

    While a CUDA graph is being captured the state lies on the GPU, where each replay advances it.
    A generator of another device is refused by torch.
    """
    if generator is not None and generator.device != device:
        return False
    return not _is_capturing(device)


def _is_capturing(device: torch.device) -> bool:
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

    The block rows come in bands of L = C / gcd(keep, C). Row j of a band keeps the arc of `keep`
    places from place j * keep on, modulo C, of that band's own random permutation of the columns.
    Over a whole band the arcs cover every place equally often, over a part of one to within one.
    """
    rows, columns = grid_shape(*grid)
    if not rows or not columns:
        return
    keep = _balanced_count(columns, p, device, generator)
    bands = -(-rows * gcd(keep, columns) // columns)
    # Drawn even where they decide nothing, so that the next rounding is another one.
    keys = torch.empty((bands, columns), dtype=torch.int32, device=device)
    keys.random_(generator=generator)
    if keep in (0, columns):
        mask.all()[0].fill_(keep == columns)
    elif _native.runs_on(device):
        live, target = mask.addresses()[0], _native.launch_target(device)
        _native.C.balanced_live(keys.data_ptr(), rows, columns, keep, live, *target)
    else:
        mask.all()[0].copy_(balanced_live(keys, rows, keep))
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
    elif _is_capturing(device):
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


_FILLS = {"bernoulli": _fill_bernoulli, "balanced": _fill_balanced}
SAMPLERS = tuple(_FILLS)


def drawn(
    sampler: str,
    grid: tuple[int, ...],
    p: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> MaskTensors:
    """The tensors of a mask that a sampler draws; `grid` as `grid_shape` takes it."""
    if not is_plain():
        op = getattr(torch.ops.sparsedrop, f"{sampler}_mask")
        return MaskTensors(op(*grid, p=p, device=device, generator=generator))
    lies = layout(*grid)
    if lies.live_at and _native.runs_on(device):
        buffer = torch.empty(lies.size, dtype=torch.int32, device=device)
        mask = MaskTensors(None, buffer, lies)
    else:
        mask = MaskTensors(_empty_drawn(*grid, p=p, device=device))
    _FILLS[sampler](mask, grid, p, device, generator)
    return mask


def _kernel(sampler: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The sampler's op: the same draw into tensors of their own, as the outputs of an op are."""

    def draw(
        *grid: int, p: float, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = _empty_drawn(*grid, p=p, device=device)
        _FILLS[sampler](MaskTensors(tensors), grid, p, device, generator)
        return tensors

    return draw


def _register() -> torch.library.Library:
    """Defines the ops; the library must outlive them, so the module keeps it."""
    grid = "SymInt rows, SymInt cols, SymInt block_rows, SymInt block_cols"
    result = "float p, Device device, Generator? generator=None) -> (Tensor, Tensor, Tensor)"
    library = torch.library.Library("sparsedrop", "FRAGMENT")
    # Tagged, so that compiled graphs neither merge two draws nor repeat one.
    random = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
    plain = (torch.Tag.pt2_compliant_tag,)

    def add(schema: str, tags: Any, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
        name = schema.partition("(")[0]
        library.define(schema, tags=tags)
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsedrop::{name}", fake, lib=library)

    add(f"mask_words(Tensor live, {grid}) -> (Tensor, Tensor)", plain, mask_words, _empty_words)
    for sampler in SAMPLERS:
        add(f"{sampler}_mask({grid}, *, {result}", random, _kernel(sampler), _empty_drawn)
    return library


_library = _register()
