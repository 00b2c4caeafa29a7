"""SparseDropLinear: nn.Dropout and nn.Linear in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.functional import dropped_linear
from sparsedrop.masks import (
    check_block_shape,
    check_generator,
    check_p,
    check_sampler,
    check_side,
)
from sparsedrop.nn.coarse import warn_if_coarse
from sparsedrop.nn.rated import Blocked
from sparsedrop.ops.explaining import explain_layer, where
from sparsedrop.ops.layer import Options


class SparseDropLinear(Blocked, nn.Linear):
    """Drops blocks of the input with probability p, then applies a linear layer (Lo 2024).

    In training `F.linear(dropout(x, p), weight, bias)` whose work on dropped blocks is skipped, in
    evaluation `nn.Linear`. With `side="output"` it is `dropout(F.linear(x, weight, bias), p)`, the
    residual dropout of transformers: what is dropped of the result, its bias too, is not computed.

    Parameters and `state_dict` are those of `nn.Linear`. The rate, and whether it is applied, is
    that of the child `dropout`, an `nn.Dropout`.

    Args:
        in_features: as for `nn.Linear`.
        out_features: as for `nn.Linear`.
        bias: as for `nn.Linear`.
        p: drop probability in [0, 1]; may be set later.
        side: "input" or "output": what is dropped.
        block_shape: rows and columns of a block of the input, flattened to `[M, in_features]`, or
            of the output, flattened to `[M, out_features]`.
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).
        fuse_wgrad_accumulation: as for `dropout_linear`: gradients are added in place.
        generator: that masks are drawn from, of the device of the input; None is torch's default
            one. A deep copy of the module has a copy of it, which draws the same. An activation
            checkpoint does not bring it back: seed it within what is run again.
        device: as for `nn.Linear`.
        dtype: as for `nn.Linear`.

    Raises:
        ValueError, TypeError: if p, the side, the block shape or the sampler is invalid.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        *,
        side: str = "input",
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
        fuse_wgrad_accumulation: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(bias, float):
            raise TypeError(f"bias is True or False, not {bias!r}: p is the argument behind it")
        # All of it before a parameter is drawn.
        check_p(p), check_block_shape(block_shape), check_sampler(sampler)
        check_side(side), check_generator(generator)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.side = side
        self.p, self.block_shape, self.sampler = p, block_shape, sampler
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.generator = generator
        self._is_new = True

    @property
    def side(self) -> str:
        """What is dropped."""
        return self._side

    @side.setter
    def side(self, side: str) -> None:
        self._side = check_side(side)

    def to_linear(self) -> nn.Linear:
        """An `nn.Linear` that shares the parameters and the training flag.

        Raises:
            ValueError: where the weight or bias is no parameter of its own.
        """
        check_parameters(self, "take that off first")
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta"
        )
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        p: float = 0.5,
        *,
        side: str = "input",
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
        fuse_wgrad_accumulation: bool = False,
        generator: torch.Generator | None = None,
    ) -> SparseDropLinear:
        """The module that shares the parameters of `linear`, and its training flag.

        Args:
            linear: any nn.Linear; from a SparseDropLinear, too, only the parameters are taken over.
            p: as for the constructor.
            side: likewise.
            block_shape: likewise.
            sampler: likewise.
            fuse_wgrad_accumulation: likewise.
            generator: likewise.

        Raises:
            TypeError: where `linear` is not an nn.Linear.
            ValueError: where its weight or bias is no parameter of its own.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        check_parameters(linear, "make a SparseDropLinear first, and apply that to it")
        # On the meta device nothing is allocated or drawn for parameters that are replaced at once.
        module = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            p,
            side=side,
            block_shape=block_shape,
            sampler=sampler,
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
            generator=generator,
            device="meta",
        )
        module.weight, module.bias = linear.weight, linear.bias
        return module.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        dropout = self._modules.get("dropout")
        if not isinstance(dropout, nn.Dropout) or not dropout.training:
            return nn.functional.linear(x, self.weight, self.bias)
        p = check_p(dropout.p)
        if not torch.compiler.is_compiling() and self._is_new:
            self._is_new = False
            features = self.out_features if self._side == "output" else self.in_features
            warn_if_coarse(self._side, x, features, p, self._block_shape)
        options = Options(
            p,
            self._block_shape,
            self._sampler,
            self.fuse_wgrad_accumulation,
            self.generator,
            self._side,
        )
        return dropped_linear(x, self.weight, self.bias, options, True)

    def explain(
        self,
        rows: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> str:
        """How a training step of so many rows would run, and why; nothing is run.

        Args:
            rows: of the input, flattened to `[M, in_features]`.
            dtype: of the products; None: autocast's where it is on, else the weight's.
            device: "cpu", or a GPU; None: the weight's.

        Raises:
            TypeError, ValueError: where rows are no number above 0.
            RuntimeError: for a GPU that is not there, or that this build has no code for.
        """
        options = Options(self.p, self._block_shape, self._sampler, side=self._side)
        return explain_layer(
            where(rows, self.weight, dtype, device), self.weight, self.bias, options
        )

    def extra_repr(self) -> str:
        own = f"side={self.side!r}, block_shape={self.block_shape}, sampler={self.sampler!r}"
        return f"{super().extra_repr()}, {own}"


def check_parameters(linear: nn.Linear, advice: str) -> None:
    """ValueError where there is no weight yet, or it is made of others: it could not be shared."""
    for name in ("weight", "bias"):
        parameter = getattr(linear, name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"linear has no {name} yet: run a lazy module once, then convert it")
        if parameter is not None and linear._parameters.get(name) is not parameter:
            made_of = ", ".join(sorted(key for key, _ in linear.named_parameters()))
            raise ValueError(
                f"the {name} is made of {made_of}, by a norm, a parametrization or pruning: "
                f"{advice}"
            )
