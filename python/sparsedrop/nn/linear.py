"""SparseDropLinear: nn.Dropout then nn.Linear in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.functional import dropout_linear
from sparsedrop.masks import check_block_shape, check_p, check_sampler
from sparsedrop.nn.rated import Rated


class SparseDropLinear(Rated, nn.Linear):
    """Drops blocks of the input with probability p, then applies a linear layer (Lo 2024).

    In training `F.linear(dropout(x, p), weight, bias)` whose work on dropped blocks is skipped, in
    evaluation `nn.Linear`. Parameters and `state_dict` are those of `nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        p: drop probability in [0, 1]; may be set later.
        block_shape: rows and columns of a block of the input, flattened to `[M, in_features]`.
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).

    Raises:
        ValueError, TypeError: if p, the block shape or the sampler is invalid.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        *,
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_p(p)
        block_shape, sampler = check_block_shape(block_shape), check_sampler(sampler)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p, self.block_shape, self.sampler = p, block_shape, sampler

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        p: float = 0.5,
        *,
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
    ) -> SparseDropLinear:
        """The module that shares the parameters of `linear`, and its training flag.

        Args:
            linear: any nn.Linear; from a SparseDropLinear, too, only the parameters are taken over.
            p: as for the constructor.
            block_shape: likewise.
            sampler: likewise.

        Raises:
            TypeError: where `linear` is not an nn.Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        # On the meta device nothing is allocated or drawn for parameters that are replaced at once.
        module = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            p,
            block_shape=block_shape,
            sampler=sampler,
            device="meta",
        )
        module.weight, module.bias = linear.weight, linear.bias
        return module.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return dropout_linear(
            x,
            self.weight,
            self.bias,
            p=self.p,
            training=self.training,
            block_shape=self.block_shape,
            sampler=self.sampler,
        )

    def extra_repr(self) -> str:
        own = f"p={self.p}, block_shape={self.block_shape}, sampler={self.sampler!r}"
        return f"{super().extra_repr()}, {own}"
