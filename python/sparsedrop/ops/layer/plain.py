"""A layer in plain differentiable operations: what a compiler fuses, and what a CPU runs fastest
where skipping dropped blocks would not pay."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop import select
from sparsedrop._torch import is_watched
from sparsedrop.masks import draw
from sparsedrop.ops.drop import drop
from sparsedrop.ops.layer.facts import Options

Block = tuple[int, int]


def dropout_linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    """A layer on checked arguments."""
    if options.drops_output:
        return _drop(nn.functional.linear(x, weight, bias), options)
    return nn.functional.linear(_drop(x, options), weight, bias)


def _drop(x: Tensor, options: Options) -> Tensor:
    shape = x.shape[:-1].numel(), x.shape[-1]
    how = options.sampler, shape, options.p, options.block_shape
    return drop(x, draw(*how, x.device, options.generator), options.alpha)


def suits_cpu(x: Tensor, weight: Tensor, options: Options, dtype: torch.dtype) -> bool:
    """Whether a layer on a CPU is best run so: every product of it densely.

    Not in 16 bits, where to scale x is to round it; nor where somebody watches, who should see the
    same op for every layer.
    """
    if not x.is_cpu or dtype not in (torch.float32, torch.float64) or not select.is_free():
        return False
    if is_watched(x, weight):
        return False
    (n, k), percent = weight.shape, round(100 * (1.0 - options.p))
    how = options.block_shape, options.drops_output, percent
    return x.numel() > 0 and is_dense(x.numel() // k, n, k, dtype, *how)


@functools.lru_cache(maxsize=4096)
def is_dense(
    m: int, n: int, k: int, dtype: torch.dtype, block: Block, drops_output: bool, percent: int
) -> bool:
    """Whether a CPU runs every product of a layer of these extents densely."""
    keep = percent / 100
    of_a: Any = {"a_block": block, "a_keep": keep}
    of_out: Any = {"out_block": block, "out_keep": keep}
    forward, of_x = (of_out, of_a) if drops_output else (of_a, of_out)
    of_weight: Any = {"b_block": block, "b_keep": keep}
    if drops_output:
        of_weight = {"a_block": (block[1], block[0]), "a_keep": keep}
    requests = (
        select.Request("cpu", dtype, m, n, k, **forward),
        select.Request("cpu", dtype, m, k, n, **of_x),
        select.Request("cpu", dtype, n, k, m, **of_weight),
    )
    return all(select.choose(request).path == "dense" for request in requests)
