"""A layer in plain differentiable operations: what a compiler fuses, and what a CPU runs fastest
where skipping dropped blocks would not pay."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from sparsedrop import select
from sparsedrop._torch import is_watched
from sparsedrop.masks import draw
from sparsedrop.ops.layer.facts import Options


def dropout_linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    """`linear(dropout(x), weight, bias)` on checked arguments."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    shape = flat.shape[0], flat.shape[1]
    how = options.sampler, shape, options.p, options.block_shape
    mask = draw(*how, x.device, options.generator)
    masked = torch.where(mask.expand(), flat * options.alpha, 0)
    return nn.functional.linear(masked if x.dim() == 2 else masked.view(x.shape), weight, bias)


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
    return x.numel() > 0 and _is_dense(x.numel() // k, n, k, dtype, options.block_shape, percent)


@functools.lru_cache(maxsize=4096)
def _is_dense(
    m: int, n: int, k: int, dtype: torch.dtype, block: tuple[int, int], percent: int
) -> bool:
    keep = percent / 100
    requests = (
        select.Request("cpu", dtype, m, n, k, a_block=block, a_keep=keep),
        select.Request("cpu", dtype, m, k, n, out_block=block, out_keep=keep),
        select.Request("cpu", dtype, n, k, m, b_block=block, b_keep=keep),
    )
    return all(select.choose(request).path == "dense" for request in requests)
