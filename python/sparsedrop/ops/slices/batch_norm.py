"""The autograd node of a batch normalisation of which a slice of channels is live."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop._torch import (
    apply_eagerly,
    is_watched_gradient,
    normalized,
    normalized_backward,
)
from sparsedrop.ops.again import gradients_again
from sparsedrop.ops.slices import parts
from sparsedrop.ops.slices.products import Pieces
from sparsedrop.ops.slices.views import live, put_live


class BatchNorm(NamedTuple):
    """How F.batch_norm is called. Statistics are the batch's in training, else the running ones."""

    pieces: Pieces
    training: bool
    momentum: float
    eps: float


class Vectors(NamedTuple):
    """What F.batch_norm is given beside x: [C] each, or None."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None


def by_views(x: Tensor, vectors: Vectors, how: BatchNorm) -> Tensor:
    """x [N, C', ...] -> the same, in plain differentiable operations."""
    given = _readable(vectors, how)
    weight, bias, mean, var = (None if v is None else live(v, 0, how.pieces) for v in given)
    out = nn.functional.batch_norm(
        x, mean, var, weight, bias, how.training, how.momentum, how.eps
    )  # fmt: skip
    # Of a slice in one piece it has had a view, and of two a copy.
    if how.training and len(how.pieces) > 1:
        for whole, compact in zip(given[2:], (mean, var), strict=True):
            if whole is not None and compact is not None:
                put_live(whole, compact, how.pieces)
    return out


def _readable(vectors: Vectors, how: BatchNorm) -> Vectors:
    """The same; statistics that are written to are no concern of the backward pass, until which
    they may change again."""
    if not how.training:
        return vectors
    statistics = (None if v is None else v.data for v in vectors[2:])
    return Vectors(*vectors[:2], *statistics)


def batch_norm(x: Tensor, vectors: Vectors, how: BatchNorm) -> Tensor:
    """The same, of tensors that nobody watches."""
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, *vectors[:2])
    ):
        return _apply(how, x, *vectors)
    return _forward(x, vectors, how)[0]


def _forward(x: Tensor, vectors: Vectors, how: BatchNorm) -> tuple[Tensor, Any, Vectors]:
    """The result, what else the operation returns, and the live parts that it has had."""
    vectors = _readable(vectors, how)
    given = [v for v in vectors if v is not None]
    own = iter(parts.gathered(given, 0, how.pieces) if given else ())
    compact = Vectors(*(None if v is None else next(own) for v in vectors))
    out, *rest = normalized(
        x, *compact, how.training, how.momentum, how.eps, torch.backends.cudnn.enabled
    )
    statistics = [v for v in vectors[2:] if v is not None]
    if how.training and statistics:
        parts.put(statistics, [v for v in compact[2:] if v is not None], how.pieces)
    return out, rest, compact


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: BatchNorm, x: Tensor, *vectors: Tensor | None) -> Tensor:
        own = Vectors(*vectors)
        out, (mean, inverse, reserved, implementation), compact = _forward(x, own, how)
        statistics = (None,) * 4 if how.training else (*own[2:], *compact[2:])
        ctx.save_for_backward(
            x, *own[:2], compact.weight, *statistics, mean, inverse, reserved
        )  # fmt: skip
        ctx.how, ctx.implementation = how, implementation
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how, needs = ctx.how, ctx.needs_input_grad[1:4]
        x, weight, bias, own, mean, var, own_mean, own_var, *rest = ctx.saved_tensors
        if torch.is_grad_enabled() or is_watched_gradient(grad):

            def run(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return by_views(x, Vectors(weight, bias, mean, var), how)

            made = gradients_again(run, [x, weight, bias], grad, needs)
            return None, *made, None, None
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous(memory_format=torch.channels_last)
        else:
            grad = grad.contiguous()
        *statistics, reserved = rest
        of_x, *of_vectors = normalized_backward(
            ctx.implementation, x, grad, own, own_mean, own_var, *statistics, how.training,
            how.eps, needs, reserved,
        )  # fmt: skip
        if needs[0] and of_x is None:  # of a batch without samples
            of_x = torch.zeros_like(x)
        return None, of_x, *_whole((weight, bias), of_vectors, how, needs[1:]), None, None


def _whole(
    likes: tuple[Tensor | None, ...],
    made: list[Tensor | None],
    how: BatchNorm,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients of weight and bias that are needed, of those of their live parts."""
    wholes = [
        like for like, needed in zip(likes, needs, strict=True) if needed and like is not None
    ]
    own = [grad for grad, needed in zip(made, needs, strict=True) if needed and grad is not None]
    found = iter(parts.spread(wholes, own, 0, how.pieces) if wholes else ())
    return [next(found) if needed else None for needed in needs]


_apply = apply_eagerly(_BatchNorm)
