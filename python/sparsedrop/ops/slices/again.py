"""Second derivatives of nodes whose backward pass works in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_again(
    run: Callable[[], Tensor], inputs: Sequence[Tensor | None], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Under create_graph: of these inputs of `run`, by what can be differentiated."""
    wanted = [t for t, needed in zip(inputs, needs, strict=True) if needed and t is not None]
    with torch.enable_grad():
        made = iter(torch.autograd.grad(run(), wanted, grad, create_graph=True))
    return [
        next(made) if needed and t is not None else None
        for t, needed in zip(inputs, needs, strict=True)
    ]
