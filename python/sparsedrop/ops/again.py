"""Second derivatives of nodes whose backward pass works in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor


def gradients_again(
    run: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of `run(*inputs)`, by what can be differentiated: under create_graph."""
    creates, kind = torch.is_grad_enabled(), grad.device.type
    # The dtypes are settled: autocast around a backward pass may not change them again. Asking
    # about a device that has none, such as meta, is an error.
    is_cast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    settled = torch.autocast(kind, enabled=False) if is_cast else nullcontext()
    with torch.enable_grad(), settled:
        # Each by a view of its own: what an input was made of is not its gradient's concern.
        views = [None if t is None else t.view_as(t) for t in inputs]
        wanted = [t for t, needed in zip(views, needs, strict=True) if needed and t is not None]
        made = iter(torch.autograd.grad(run(*views), wanted, grad, create_graph=creates))
    return [
        next(made) if needed and t is not None else None
        for t, needed in zip(views, needs, strict=True)
    ]


def like_of(grad: Tensor, shape: torch.Size) -> Tensor:
    """In the place of an input that was not saved, since no gradient of a layer depends on what it
    held: so many zeros, of the memory of one. `grad` may be a batch of gradients."""
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    return zero.expand(shape).requires_grad_()
