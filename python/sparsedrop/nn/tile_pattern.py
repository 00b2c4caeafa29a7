"""TilePatternLinear: a linear layer of which every so many-th diagonal of tiles is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop.functional import linear as masked_linear
from sparsedrop.masks import (
    BlockMask,
    RowPattern,
    check_p,
    check_scale,
    mask_of_diagonals,
    probabilities,
    tile_mask,
)
from sparsedrop.nn.linear import check_parameters
from sparsedrop.nn.rated import Patterned
from sparsedrop.ops.rows import draw_numbers


class TilePatternLinear(Patterned, nn.Linear):
    """Drops tiles of the weight with probability p: Approximate Random Dropout (Song et al. 2018).

    Of a period and an offset, drawn in each forward pass, tile (r, c) of the weight is kept where
    r + c - offset is a multiple of the period: diagonals, which spread over all inputs and outputs.
    What is dropped are connections and not units: the bias stays. The product and its gradients
    skip dropped tiles, whose gradient is exactly 0. In evaluation it is nn.Linear.

    A pattern is drawn on the host from torch's default CPU generator, and nothing waits for a GPU.
    In a CUDA graph that you capture, a pattern is fixed at the capture: every replay has the same.
    Under torch.compile each step draws one, without compiling again.

    The masks of all patterns, `patterns` * (`patterns` + 1) / 2 of them, are made when they are
    drawn first, and kept on the weight's device until the module moves.

    Args:
        in_features: as for `nn.Linear`.
        out_features: as for `nn.Linear`.
        bias: as for `nn.Linear`.
        p: drop probability; may be set later.
        tile: rows and columns of a tile; kernels skip tiles of 64 and 128.
        patterns: of how many periods one is drawn: 1, ..., patterns.
        scale: of what is kept: "global" is 1 / (1 - p), "pattern" the period.
        device: as for `nn.Linear`.
        dtype: as for `nn.Linear`.

    Raises:
        ValueError, TypeError: if an argument is invalid, and for p above (patterns - 1) / patterns,
            the largest rate that the periods give.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float = 0.5,
        *,
        bias: bool = True,
        tile: int = 128,
        patterns: int = 8,
        scale: str = "global",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(p, bool):
            raise TypeError(f"p is a probability, not {p!r}: bias is an argument by keyword")
        # All of it before a parameter is drawn.
        probabilities(check_p(p), patterns), check_scale(scale), _check_tile(tile)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.tile = tile
        self._drops(p, patterns, scale)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        p: float = 0.5,
        *,
        tile: int = 128,
        patterns: int = 8,
        scale: str = "global",
    ) -> TilePatternLinear:
        """The module that shares the parameters of `linear`, and its training flag.

        Args:
            linear: any nn.Linear.
            p: as for the constructor.
            tile: likewise.
            patterns: likewise.
            scale: likewise.

        Raises:
            TypeError: where `linear` is not an nn.Linear.
            ValueError: where its weight or bias is no parameter of its own.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        check_parameters(linear, "make a TilePatternLinear first, and apply that to it")
        # On the meta device nothing is allocated or drawn for parameters that are replaced at once.
        module = cls(
            linear.in_features,
            linear.out_features,
            p,
            bias=linear.bias is not None,
            tile=tile,
            patterns=patterns,
            scale=scale,
            device="meta",
        )
        module.weight, module.bias = linear.weight, linear.bias
        return module.train(linear.training)

    @property
    def tile(self) -> int:
        """Rows and columns of a tile."""
        return self._tile

    @tile.setter
    def tile(self, tile: int) -> None:
        self._tile = _check_tile(tile)
        self._masks: dict[tuple[int, int], BlockMask] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        rows = self._rows()
        if rows is None:
            return nn.functional.linear(x, self.weight, self.bias)
        n, k = self.weight.shape
        if torch.compiler.is_compiling():
            period, offset = draw_numbers(n, rows.p, rows.patterns, self.weight.device)
            mask = mask_of_diagonals((n, k), self._tile, period, offset, self.weight.device)
            if rows.scale is None:
                # No number that a graph could hold: of the input, and not of the product.
                x = x * period.to(x.dtype)
            scale = 1.0 if rows.scale is None else rows.scale
        else:
            pattern, scale = rows.draw(n)
            mask = self._mask(pattern)
        return masked_linear(x, self.weight, self.bias, weight_mask=mask, alpha=scale)

    def _mask(self, pattern: RowPattern) -> BlockMask:
        key, device = (pattern.period, pattern.offset), self.weight.device
        shape = self.weight.shape[0], self.weight.shape[1]
        mask = self._masks.get(key)
        # The weight may have been replaced, by one of another device or extent.
        if mask is None or mask.device != device or mask.shape != shape:
            mask = tile_mask(shape, self._tile, *key, device)
            if not hasattr(mask.live, "fake_mode"):  # which has no values for a later step
                self._masks[key] = mask
        return mask

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TilePatternLinear:
        """What moves a module: the masks do not move with it."""
        self._masks = {}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Of copies and pickles: they make their own masks."""
        return {**self.__dict__, "_masks": {}}

    def extra_repr(self) -> str:
        """Of both."""
        return f"{nn.Linear.extra_repr(self)}, tile={self._tile}, {super().extra_repr()}"


def _check_tile(tile: int) -> int:
    """The tile; ValueError where it is no extent."""
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(f"tile must be a whole number of at least 1, not {tile!r}")
    return tile
