"""SparseDropStack: dropout, linear, activation, dropout, linear, ... with both sides skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from sparsedrop.functional import dropped_activation, dropped_stack
from sparsedrop.masks import check_block_shape, check_p, check_sampler
from sparsedrop.nn.coarse import warn_if_coarse
from sparsedrop.nn.features import check_features
from sparsedrop.nn.rated import Blocked, applied_rate_of
from sparsedrop.ops import ACTIVATIONS, check_activation
from sparsedrop.ops.explaining import ONE_BY_ONE, explain_stack, where
from sparsedrop.ops.stack import Dropped, Layer

NO_LAYERS = "a stack has a layer at least, but layers is empty"


class SparseDropStack(Blocked):
    """Linear layers, each behind a dropout of its input and in front of an activation (Lo 2024).

    The output mask of a layer is the input mask of the next: what will be dropped is not computed,
    forward or backward, so that a product with a mask on both sides has (1 - p)² of its work. The
    stack drops its own input, and not its output. In evaluation it is the dense stack.

    `layers` holds nn.Linear modules. Where one was replaced by another kind of module, or has
    hooks, they are called instead, with dropout between them.

    Args:
        sizes: features of the input, of what lies between the layers, and of the output.
        p: drop probability in [0, 1]; may be set later.
        activation: "relu", "gelu" (the exact one), "gelu_tanh" or "silu"; None: there is none.
        last_activation: of the output, likewise.
        bias: of the linear layers.
        block_shape: rows and columns of a block, of what is dropped flattened to [M, features].
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).
        device: as for nn.Linear.
        dtype: as for nn.Linear.

    Raises:
        ValueError, TypeError: if p, the sizes, an activation, the block shape or the sampler is
            invalid.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        p: float = 0.5,
        *,
        activation: str | None = "relu",
        last_activation: str | None = None,
        bias: bool = True,
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(sizes, Iterable):
            raise TypeError(f"sizes are those of an input and of outputs, not {sizes!r}")
        sizes = [check_features(f"size {i}", size) for i, size in enumerate(sizes)]
        if len(sizes) < 2:
            raise ValueError(f"sizes are those of an input and of an output at least, not {sizes}")
        check_p(p), check_block_shape(block_shape), check_sampler(sampler)
        check_activation(activation), check_activation(last_activation)
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(before, behind, bias, device=device, dtype=dtype)
            for before, behind in pairwise(sizes)
        )
        self.p, self.block_shape, self.sampler = p, block_shape, sampler
        self.activation, self.last_activation = activation, last_activation
        self._is_new = True

    @property
    def activation(self) -> str | None:
        """Behind all layers but the last."""
        return self._activation

    @activation.setter
    def activation(self, activation: str | None) -> None:
        self._activation = check_activation(activation)

    @property
    def last_activation(self) -> str | None:
        """Behind the last layer."""
        return self._last_activation

    @last_activation.setter
    def last_activation(self, activation: str | None) -> None:
        self._last_activation = check_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., sizes[0]] -> [..., sizes[-1]]."""
        p, linears = applied_rate_of(self._modules.get("dropout")), list(self.layers)
        count = len(linears)
        if not count:
            raise ValueError(NO_LAYERS)
        activations = self._activations()
        rates = *(p,) * count, 0.0
        dropped = Dropped(rates, self._block_shape, self._sampler)
        plain = [linear for linear in linears if is_plain(linear)]
        if len(plain) < count:
            return apply_by_modules(x, linears, activations, dropped)
        if p and not torch.compiler.is_compiling() and self._is_new:
            self._is_new = False
            narrowest = min(plain, key=lambda linear: linear.in_features)
            what = "input" if narrowest is plain[0] else "hidden activation"
            warn_if_coarse(what, x, narrowest.in_features, p, self._block_shape)
        return dropped_stack(x, layers_of(plain, activations), dropped, True)

    def explain(
        self,
        rows: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> str:
        """How a training step of so many rows would run, and why: as `SparseDropLinear.explain`."""
        linears: list[Any] = list(self.layers)
        if not linears:
            raise ValueError(NO_LAYERS)
        if not all(map(is_plain, linears)):
            return ONE_BY_ONE
        layers = layers_of(linears, self._activations())
        rates = *(self.p,) * len(linears), 0.0
        dropped = Dropped(rates, self._block_shape, self._sampler)
        names = [f"layers.{i}" for i in range(len(linears))]
        at = where(rows, linears[0].weight, dtype, device)
        return explain_stack(at, layers, dropped, names)

    def _activations(self) -> list[str | None]:
        """Behind each layer."""
        return [self._activation] * (len(self.layers) - 1) + [self._last_activation]

    def extra_repr(self) -> str:
        return (
            f"activation={self.activation!r}, last_activation={self.last_activation!r}, "
            f"block_shape={self.block_shape}, sampler={self.sampler!r}"
        )


def layers_of(linears: Sequence[nn.Linear], activations: Sequence[str | None]) -> tuple[Layer, ...]:
    """Layers of these modules, and what is behind each."""
    return tuple(
        Layer(linear.weight, linear.bias, activation)
        for linear, activation in zip(linears, activations, strict=True)
    )


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether to call a module is to multiply by its weight: its own kind, and nobody's hook."""
    return (
        runs_as_linear(linear)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not linear._backward_hooks
        and not linear._backward_pre_hooks
    )


def runs_as_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call of it runs nn.Linear's forward, which no subclass or instance has replaced."""
    # By the code: of all that could be asked, torch.compile knows this alone, and if it changes.
    code = nn.Linear.forward.__code__
    return isinstance(module, nn.Linear) and getattr(module.forward, "__code__", None) is code


def check_linears(up: nn.Linear, gate: nn.Linear | None, down: nn.Linear) -> None:
    """TypeError where one is no nn.Linear, ValueError where their features do not fit."""
    for name, linear in (("up", up), ("down", down), ("gate", gate)):
        if not isinstance(linear, nn.Linear) and not (name == "gate" and linear is None):
            raise TypeError(f"{name} must be an nn.Linear, not {type(linear).__name__}")
    if down.in_features != up.out_features:
        raise ValueError(f"up makes {up.out_features} features and down takes {down.in_features}")
    shape = up.in_features, up.out_features
    if gate is not None and (gate.in_features, gate.out_features) != shape:
        raise ValueError(
            f"gate is {gate.in_features} -> {gate.out_features}, and up {shape[0]} -> {shape[1]}"
        )


def activate(activation: str | None, x: Tensor) -> Tensor:
    return ACTIVATIONS[activation](x)


def apply_by_modules(
    x: Tensor,
    modules: Sequence[nn.Module],
    activations: Sequence[str | None],
    dropped: Dropped,
) -> Tensor:
    """The stack by calls of its modules, with dropout before, between and behind them."""
    for i, (module, activation) in enumerate(zip(modules, activations, strict=True)):
        x = activate(activation, module(dropped_activation(x, i, dropped)))
    return dropped_activation(x, len(modules), dropped)
