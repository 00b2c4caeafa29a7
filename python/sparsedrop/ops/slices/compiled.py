"""Slices under torch.compile: ops that draw and cut when the program runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop.ops.slices.choice import Choice
from sparsedrop.ops.slices.feed_forward import Layers
from sparsedrop.ops.slices.op import LINEAR, LINEAR_BACKWARD, MLP, MLP_BACKWARD, START
from sparsedrop.ops.stack.facts import parameters_of


def kept_mask(choice: Choice, device: torch.device) -> Tensor:
    """bool [units], True where a unit is kept: a new draw at each run."""
    if not torch.compiler.is_compiling():
        return choice.draw().mask(device)
    # A copy stays out of the CUDA graphs that torch makes, which take no tensor of the CPU.
    start = draw_start(choice).to(device, non_blocking=True)
    units = torch.arange(choice.units, device=device)
    return (units - start).remainder(choice.units) < choice.width


def draw_start(choice: Choice) -> Tensor:
    """int64 [] on the CPU."""
    how = choice.units, choice.p, choice.align, choice.starts
    drawn: Tensor = START(*how, device=torch.device("cpu"))
    return drawn


def feed_forward_compiled(x: Tensor, layers: Layers, choice: Choice) -> Tensor:
    """x [..., d_model] -> [..., d_out], of checked tensors."""
    return _FeedForward.apply(x, layers[0].activation or "", tuple(choice), *parameters_of(layers))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, activation: str, choice: Any, *parameters: Tensor | None
    ) -> Tensor:
        out, start, *kept = MLP(x, parameters, activation, *choice[1:])
        ctx.save_for_backward(x, start, *parameters, *kept)
        ctx.count, ctx.args = len(parameters), (activation, *choice[1:])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, start, *rest = ctx.saved_tensors
        parameters, kept = rest[: ctx.count], rest[ctx.count :]
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        grads = MLP_BACKWARD(grad, x, parameters, start, kept, *ctx.args, needs)
        wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return wanted[0], None, None, *wanted[1:]


def linear_compiled(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: Tensor,
    on_rows: bool,
    shape: tuple[int, int, int],
    alpha: float,
) -> Tensor:
    """alpha * x Wᵀ + bias of the rows or columns of live units, of checked tensors.

    shape: how many units there are, how many are live, and features of each.
    """
    return _Linear.apply(x, weight, bias, start, on_rows, shape, alpha)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        start: Tensor,
        on_rows: bool,
        shape: tuple[int, int, int],
        alpha: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, start)
        ctx.args = on_rows, *shape, alpha
        return LINEAR(x, weight, bias, start, on_rows, *shape, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = LINEAR_BACKWARD(grad, *ctx.saved_tensors, *ctx.args, needs)
        wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return *wanted, None, None, None, None
