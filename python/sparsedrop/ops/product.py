"""One product, described once: what every way of running it is given.

out ∘ M_out = act(alpha (a ∘ M_a) (b ∘ M_b) + bias) ∘ M_out
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sparsedrop.masks import BlockMask, Masks


class How(NamedTuple):
    """A product without its tensors: what the backward pass may hold on to.

    A mask is that of its matrix as it is given; with `a_turned` or `b_turned` the matrix and its
    mask are used transposed. out is never turned.
    """

    a_mask: BlockMask | None = None
    b_mask: BlockMask | None = None
    out_mask: BlockMask | None = None
    alpha: float = 1.0
    activation: str | None = None
    a_turned: bool = False
    b_turned: bool = False


class Product(NamedTuple):
    """a is used as [m, k], b as [k, n]; bias is [n]."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    how: How

    @property
    def out_shape(self) -> tuple[int, int]:
        """m and n."""
        return self.a.shape[self.how.a_turned], self.b.shape[not self.how.b_turned]


def straight(product: Product) -> tuple[Tensor, Tensor, Masks]:
    """a, b and the masks as they are used, in views."""
    a, b, _, how = product
    a_mask, b_mask = how.a_mask, how.b_mask
    if how.a_turned:
        a, a_mask = a.t(), None if a_mask is None else a_mask.T
    if how.b_turned:
        b, b_mask = b.t(), None if b_mask is None else b_mask.T
    return a, b, (a_mask, b_mask, how.out_mask)
