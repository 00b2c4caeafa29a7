"""Gradients that are added in place to what a parameter has, with none made first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import is_accumulated, is_transformed

NOT_FUSED = (
    "fuse_wgrad_accumulation adds gradients in place, which cannot be differentiated: leave it out "
    "where a backward pass is under create_graph"
)


def buffer_of(parameter: Tensor) -> Tensor | None:
    """Where its gradient accumulates: `main_grad`, as frameworks with float32 gradients have it,
    or a `.grad` that is there already; None where a gradient has to be made, and in a backward pass
    that is not for the parameter, or hands its gradient to the caller."""
    if parameter.is_leaf and not _accumulates(parameter):
        return None
    buffer = getattr(parameter, "main_grad", None)
    if buffer is None:
        return parameter.grad if parameter.is_leaf else None
    if not isinstance(buffer, Tensor) or buffer.shape != parameter.shape:
        shape = list(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
        raise ValueError(f"main_grad is {shape}, but its parameter is {list(parameter.shape)}")
    if not buffer.is_floating_point():
        raise ValueError(f"main_grad is {buffer.dtype}, which holds no gradients")
    return buffer


def _accumulates(leaf: Tensor) -> bool:
    try:
        return is_accumulated(leaf)
    except RuntimeError:  # torch.autograd.grad of it
        return False


def was_added(parameter: Tensor) -> None:
    """Tells a framework that asks, by an attribute of the parameter, not to add once more."""
    if hasattr(parameter, "grad_added_to_main_grad"):
        parameter.grad_added_to_main_grad = True


class _AddInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        ctx.parameter = parameter
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        buffer = buffer_of(ctx.parameter)
        if buffer is None:
            return grad
        if torch.is_grad_enabled():
            raise RuntimeError(NOT_FUSED)
        buffer.add_(grad)
        was_added(ctx.parameter)
        return None


def adding_in_place(parameter: Tensor) -> Tensor:
    """The parameter for an operation that knows nothing of buffers."""
    if is_transformed():
        raise RuntimeError("fuse_wgrad_accumulation=True is not for transforms of torch.func")
    return _AddInPlace.apply(parameter)
