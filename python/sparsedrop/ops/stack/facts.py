"""A stack of linear layers, what of it is dropped, and all that decides how a GPU runs it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import scale

Blocks = tuple[int, int]


class Layer(NamedTuple):
    """act(x Wᵀ + b); with a gate, which only the first layer of a stack may have, act(x Gᵀ + c) ·
    (x Wᵀ + b)."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Layer:
        """The layer with its tensors in that dtype."""
        weight, bias, activation, gate, gate_bias = self
        of_bias, of_gate, of_gate_bias = (
            None if t is None else t.to(dtype) for t in (bias, gate, gate_bias)
        )
        return Layer(weight.to(dtype), of_bias, activation, of_gate, of_gate_bias)


class Dropped(NamedTuple):
    """What is dropped, checked: of the input, of what lies between the layers, and of the result.

    One rate each, so one more than there are layers. 0: nothing is dropped there. Where the result
    is dropped, the last layer has neither activation nor gate: it is scaled within its product.
    """

    rates: tuple[float, ...]
    block_shape: Blocks
    sampler: str
    # None: the default one of the device.
    generator: torch.Generator | None = None

    def alpha(self, layer: int) -> float:
        """What the product of a layer is multiplied by: live parts of its input keep their
        expectation, and those of the stack's result."""
        return scale(self.rates[layer]) * self.bias_factor(layer)

    def bias_factor(self, layer: int) -> float:
        """What the bias of a layer is multiplied by: the last one is dropped with the result."""
        is_last = layer == len(self.rates) - 2
        return scale(self.rates[-1]) if is_last else 1.0


class Kind(NamedTuple):
    """A layer without its tensors."""

    outputs: int
    activation: str | None
    has_bias: bool
    # None: no gate. Else whether the gate has a bias.
    gate: bool | None

    @property
    def is_gated(self) -> bool:
        return self.gate is not None

    @property
    def keeps_input(self) -> bool:
        """Whether the activation's gradient needs what went into it; relu's follows from the
        result."""
        return self.is_gated or self.activation not in (None, "relu")


def kind_of(layer: Layer) -> Kind:
    gate = None if layer.gate is None else layer.gate_bias is not None
    return Kind(layer.weight.shape[0], layer.activation, layer.bias is not None, gate)


VECTOR = 8
"""Elements of 16 bits that an activation takes at once."""


def is_dense_layer(kind: Kind) -> bool:
    """Whether a stack's call may multiply densely for a layer."""
    activates = kind.activation is not None
    return not kind.is_gated and not (activates and kind.outputs % VECTOR)


class Facts(NamedTuple):
    """A stack's operands without their data: contiguous, 16-byte aligned, on one GPU."""

    device: int
    # Flattened to [rows, features].
    x_shape: torch.Size
    x_dtype: torch.dtype
    # Of all parameters.
    param_dtype: torch.dtype
    # Of the products.
    dtype: torch.dtype
    kinds: tuple[Kind, ...]
    # Live shares in percent; None: no mask.
    keeps: tuple[int | None, ...]
    block_shape: Blocks
    # Whether products in float32 may be TF32.
    tf32: bool = False

    @property
    def rows(self) -> int:
        return self.x_shape.numel() // self.x_shape[-1]

    @property
    def features(self) -> tuple[int, ...]:
        """Of the input, of what lies between the layers, and of the result."""
        return self.x_shape[-1], *(kind.outputs for kind in self.kinds)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return *self.x_shape[:-1], self.features[-1]

    @property
    def rounds_x(self) -> bool:
        return self.x_dtype is not self.dtype

    @property
    def rounds_parameters(self) -> bool:
        return self.param_dtype is not self.dtype


def facts_of(
    index: int,
    x_shape: torch.Size,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    kinds: tuple[Kind, ...],
    dropped: Dropped,
) -> tuple[Any, ...]:
    """`Facts`, in a plain tuple: it is looked up for every call.

    index: of the GPU.
    dtypes: of x, of the parameters and of the products.
    """
    keeps = tuple(round(100 * (1.0 - p)) if p > 0.0 else None for p in dropped.rates)
    tf32 = _native.multiplies_as_tf32(dtypes[2])
    return index, x_shape, *dtypes, kinds, keeps, dropped.block_shape, tf32


def parameters_of(layers: tuple[Layer, ...]) -> tuple[Tensor | None, ...]:
    """In the order of `branches`: weight and bias of each, None where there is no bias."""
    found: list[Tensor | None] = []
    for layer in layers:
        if layer.gate is not None:
            found += (layer.gate, layer.gate_bias)
        found += (layer.weight, layer.bias)
    return tuple(found)


def layers_of(
    parameters: Sequence[Tensor | None], activations: Sequence[str], gated: Sequence[bool]
) -> tuple[Layer, ...]:
    """The inverse of `parameters_of`; an activation of "" stands for None."""
    rest, found = iter(parameters), []
    for name, is_gated in zip(activations, gated, strict=True):
        gate, gate_bias = (next(rest), next(rest)) if is_gated else (None, None)
        weight, bias = next(rest), next(rest)
        assert weight is not None
        found.append(Layer(weight, bias, name or None, gate, gate_bias))
    return tuple(found)


class Branch(NamedTuple):
    """A product with weights: of a layer, or of its gate."""

    layer: int
    is_gate: bool
    has_bias: bool


def branches(kinds: tuple[Kind, ...]) -> tuple[Branch, ...]:
    """A gate stands before its layer."""
    found = []
    for i, kind in enumerate(kinds):
        if kind.gate is not None:
            found.append(Branch(i, True, kind.gate))
        found.append(Branch(i, False, kind.has_bias))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def needed_layers(
    branches: tuple[Branch, ...], needs: tuple[bool, ...]
) -> tuple[int, frozenset[int]]:
    """The first layer that a gradient is needed of, below which nothing is computed, and those
    whose weights' gradients are needed.

    needs: of x, and of weight and bias of each branch.
    """
    trained = {b.layer for b, need in zip(branches, needs[1::2], strict=True) if need}
    biased = {b.layer for b, need in zip(branches, needs[2::2], strict=True) if need}
    first = 0 if needs[0] else min(trained | biased, default=branches[-1].layer + 1)
    return first, frozenset(trained)


@functools.lru_cache(maxsize=256)
def numbers_of(rates: tuple[float, ...], *, keeps: bool) -> tuple[float, ...]:
    """The numbers of both directions' programs; keeps: and the live shares by which the forward one
    draws."""
    dropped = Dropped(rates, (1, 1), "bernoulli")
    found = [f(i) for i in range(len(rates) - 1) for f in (dropped.alpha, dropped.bias_factor)]
    return (*found, *(1.0 - p for p in rates)) if keeps else tuple(found)
