"""What runs a product, and which backend runs these tensors."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sparsedrop._torch import is_watched
from sparsedrop.masks import BlockMask
from sparsedrop.ops import cpu, cuda, op
from sparsedrop.ops.product import Product


class Backend(Protocol):
    """The modules `cpu`, `cuda` and `op` are backends."""

    def product(self, p: Product, /) -> Tensor:
        """The result [m, n], contiguous, its dropped blocks exactly 0."""

    def product_and_pre_activation(self, p: Product, /) -> tuple[Tensor, Tensor]:
        """The same with an activation other than relu, and what went into that, both [m, n].

        The latter is undefined in dropped blocks: what reads it must leave them out.
        """

    def column_sums(self, matrix: Tensor, mask: BlockMask | None, /) -> Tensor:
        """Sums of a [m, n] matrix over its rows, live blocks only: [n]."""


def backend_for(*tensors: Tensor) -> Backend:
    """What runs a product of these: an implementation itself, or the op where somebody watches."""
    if is_watched(*tensors):
        return op
    if tensors[0].is_cuda:
        return cuda
    return cpu if tensors[0].is_cpu else op
