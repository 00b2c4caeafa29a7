"""What the kernels can run, and where the dense path is the only one. Pure functions.

The kernels have the last word: `refusal` in cpp/gemm/matmul.cpp decides alike, and a test compares
the two on every build with kernels.
"""

from __future__ import annotations

import torch

from sparsedrop.select.architectures import (
    MAX_EXTENT,
    TESTED,
    architecture,
    has_kernels,
    names_of,
)
from sparsedrop.select.request import Choice, Request, describe_blocks

PADDING_PAYS = 2**30
"""m * n * k above which copying operands to aligned ones costs less than it saves."""


def refusal(request: Request, choice: Choice) -> str | None:
    """Why the kernels cannot run the request that way; None where they can."""
    if not 0 <= choice.tile < len(request.tiles):
        return f"there are tiles 0 to {len(request.tiles) - 1}, not {choice.tile}"
    tile = request.tiles[choice.tile]
    _, dtypes, limits = architecture(tile.architecture)
    if request.dtype not in dtypes:
        return f"{tile.architecture} has no kernels for {request.dtype}"
    run = request.turned() if choice.swap else request
    if not 1 <= choice.split_k <= limits.max_split_k:
        return f"a tile is split into 1 to {limits.max_split_k} along k, not {choice.split_k}"
    can_split = run.out_block is None and not run.activates and tile.n <= limits.max_split_n
    if choice.split_k > 1 and not can_split:
        return (
            "tiles are split along k where the result has no mask and no activation, and up to "
            f"{limits.max_split_n} columns wide"
        )
    slots = -(-run.m // tile.m) * -(-run.n // tile.slot_n) * choice.split_k
    if choice.split_k > 1 and slots > limits.max_split_slots:
        return f"{slots} slots of all splits are more than {limits.max_split_slots}"
    # Inside a block the list of K tiles is one and the same, so a tile may not cross its border.
    units = ((tile.m, tile.k), (tile.k, tile.n), (tile.m, tile.slot_n))
    for name, block, unit in zip(("a", "b", "out"), run.blocks, units, strict=True):
        if block is not None and (block[0] % unit[0] or block[1] % unit[1]):
            role = f"{name} of the transposed problem" if choice.swap else name
            return f"blocks of {role} are {block[0]}x{block[1]}, no multiple of {unit[0]}x{unit[1]}"
    return None


def why_no_kernel(request: Request) -> str | None:
    """Why the kernels cannot run the request, whatever the tile."""
    if not request.tiles:
        return f"no kernels for compute capability {request.capability[0]}.{request.capability[1]}"
    if not _with_kernels(request):
        return f"no kernels for {request.dtype}"
    if request.dtype is torch.float32 and not request.tf32:
        return (
            "the kernels multiply float32 as TF32 only, which torch is not allowed to use: "
            'torch.set_float32_matmul_precision("high") allows it'
        )
    extents = (request.m, request.n, request.k)
    if min(extents) == 0:
        return f"nothing to multiply: m, n, k = {extents}"
    blocks = request.blocks
    if max(*extents, *(max(block) for block in blocks if block is not None)) > MAX_EXTENT:
        return (
            f"extents above {MAX_EXTENT}: m, n, k = {extents}, blocks of {describe_blocks(request)}"
        )
    return None


def why_dense(request: Request, *, asked: bool = False) -> str | None:
    """Why the dense path is the better one, or the only one; `asked` as for `best_architecture`."""
    why = why_no_kernel(request)
    if why is not None:
        return why
    if request.a_block is request.b_block is request.out_block is None:
        return "no mask"
    if not request.aligned and request.m * request.n * request.k < PADDING_PAYS:
        return "operands would have to be padded, for a small product"
    if best_architecture(request, asked=asked) is None:
        names = " and ".join(_with_kernels(request))
        return (
            f"the kernels of {names} have passed no tests on a GPU yet: an override of the "
            "architecture takes them, and so does `sparsedrop bench --tune --save`"
        )
    return None


def best_architecture(request: Request, *, asked: bool = False) -> str | None:
    """The first whose kernels multiply in the request's dtype, or None.

    asked: by the user, for kernels. Else only those count that are in TESTED, or of which the user
    has saved what they cost.
    """
    for name in _with_kernels(request):
        is_saved = request.saved is not None and request.saved.covers(name, request.precision)
        if asked or name in TESTED or is_saved:
            return name
    return None


def _with_kernels(request: Request) -> tuple[str, ...]:
    """The architectures of the request's GPU whose kernels take its dtype, best first."""
    names = names_of(request.tiles)
    return tuple(name for name in names if has_kernels(name, request.dtype))
