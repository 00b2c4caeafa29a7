"""A layer under torch.compile: one op forward, one backward, and nothing around them.

The ops are for the kernels. Where dense products have to do, a compiler fuses the masking with what
stands before it, and is given plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsedrop import select
from sparsedrop._torch import constant_when_compiled, is_exporting
from sparsedrop.masks import MASK_UNIT
from sparsedrop.ops.layer.facts import Options
from sparsedrop.ops.layer.op import BACKWARD, FORWARD
from sparsedrop.ops.layer.plain import dropout_linear_plain
from sparsedrop.ops.spelling import spelled
from sparsedrop.select import UNIT, kernels


def dropout_linear_compiled(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor:
    """A layer on checked arguments on a GPU, while it is compiled."""
    # The ops draw from the default generator of the device, and have no rule without a node.
    is_free = options.generator is None and not is_exporting()
    if is_free and _suits_kernels(x, weight, options, dtype):
        # A compiler lets what made x round it, but fuses nothing with an op.
        return _DropoutLinear.apply(x.to(dtype), weight, bias, options, dtype)
    return dropout_linear_plain(x, weight, bias, options)


def _suits_kernels(x: Tensor, weight: Tensor, options: Options, dtype: torch.dtype) -> bool:
    """What holds for every product of these extents; costs are not looked at."""
    n, k = weight.shape
    block_rows, block_cols = options.block_shape
    return (
        x.dtype in (dtype, torch.float32)
        and weight.dtype in (dtype, torch.float32)
        and block_rows % MASK_UNIT == 0
        and block_cols % MASK_UNIT == 0
        and n % UNIT == 0
        and k % UNIT == 0
        and x.numel() > 0
        and n > 0
        and takes_kernels(x.device.index, dtype)
    )


@constant_when_compiled
def takes_kernels(index: int, dtype: torch.dtype) -> bool:
    """Whether some products in that dtype are run by kernels on GPU `index`."""
    of = {"tf32": select.multiplies_as_tf32(dtype), **kernels.gpu_facts(index)}
    return select.takes_kernels(select.Request("cuda", dtype, 1, 1, 1, **of))


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: Options,
        dtype: torch.dtype,
    ) -> Tensor:
        how = spelled(options.sampler, options.side, dtype)
        out, pack = FORWARD(x, weight, bias, options.p, *options.block_shape, how)
        # What was rounded is in the pack.
        ctx.save_for_backward(
            x if x.dtype == dtype else None, weight if weight.dtype == dtype else None, pack
        )
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.args = options.p, x.shape[-1], *options.block_shape
        ctx.side = options.side
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        how = spelled(ctx.side, *ctx.dtypes, needs)
        grads = BACKWARD(grad, *ctx.saved_tensors, *ctx.args, how)
        wanted = (g if need else None for g, need in zip(grads, needs, strict=True))
        return *wanted, None, None
