"""Dropout of a matrix by a mask, differentiable: one launch each way where a kernel can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import is_watched
from sparsedrop.masks import BlockMask
from sparsedrop.ops.masked_copy import keep_live


def drop(x: Tensor, mask: BlockMask, alpha: float) -> Tensor:
    """x [..., n], dropped blocks of it flattened to [m, n] exactly 0, live ones times alpha."""
    flat = x if x.dim() == 2 else x.reshape(mask.shape)
    # In plain operations a compiler fuses it with what stands before.
    if is_watched(x) or not x.is_cuda:
        out = torch.where(mask.expand(), flat * alpha, 0)
    else:
        out = _Drop.apply(flat, mask, alpha)
    return out if x.dim() == 2 else out.view(x.shape)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: BlockMask, alpha: float) -> Tensor:
        ctx.mask, ctx.alpha = mask, alpha
        return keep_live(x, mask, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return drop(grad, ctx.mask, ctx.alpha), None, None
