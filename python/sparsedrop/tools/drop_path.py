"""Residual branches, whole or for a part of the batch: what users have today."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Branch = Callable[[Tensor], Tensor]


class Residual(nn.Module):
    """x + branch(x), or x and the branch of something else."""

    def forward(self, x: Tensor, branch: Branch, read: Tensor | None = None) -> Tensor:
        """x [batch, ...] -> the same; the branch is of `read` [batch, ...]; None: of x."""
        return x + branch(x if read is None else read)


class DropPath(Residual):
    """Drops the branch of samples: stochastic depth (Huang et al., arXiv:1603.09382) by subsets.

    A step draws round((1 - p) * batch) samples, at least one; the branch runs on those alone, and
    what it gives is added to them, scaled by the batch over their number. In evaluation the branch
    runs on all of them.

    Args:
        p: the share of the samples that is dropped, below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, branch: Branch, read: Tensor | None = None) -> Tensor:
        """x [batch, ...] -> the same; the branch is of `read` [batch, ...]; None: of x."""
        if not self.training or self.p == 0.0:
            return super().forward(x, branch, read)
        batch, read = len(x), x if read is None else read
        count = max(1, int((1.0 - self.p) * batch + 0.5))
        kept = torch.rand(batch, device=x.device).argsort()[:count]
        return x.index_add(0, kept, branch(read[kept]).to(x.dtype), alpha=batch / count)

    def extra_repr(self) -> str:
        return f"p={self.p}"
