"""What users call: arguments are checked here, once, before anything is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsedrop import _native, ops, reference
from sparsedrop.block_mask import BlockMask, Masks, check_block_shape, check_p

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    a_mask: BlockMask | None = None,
    b_mask: BlockMask | None = None,
    out_mask: BlockMask | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """The product alpha * (a ∘ a_mask) (b ∘ b_mask), its own dropped blocks exactly 0.

    Differentiable in a and b. Work on dropped blocks is skipped, and what stands in them, NaN
    included, never reaches the result or a gradient. Under autocast operands are cast as by
    `torch.mm`.

    Args:
        a: `[M, K]`, float16, bfloat16, float32 or float64, of any strides.
        b: `[K, N]`, of the same dtype and device.
        a_mask: mask of a.
        b_mask: mask of b.
        out_mask: mask of the result.
        alpha: factor of the product.

    Returns:
        `[M, N]`, contiguous, of the dtype of a.

    Raises:
        TypeError: for an operand that is no tensor of these dtypes, or a mask that is no BlockMask.
        ValueError: where extents, dtypes, devices or a mask disagree.
        RuntimeError: for CUDA tensors in a build without CUDA kernels; where differentiated twice.
    """
    _check_operand("a", a, 2)
    _check_operand("b", b, 2)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a is {list(a.shape)} and b is {list(b.shape)}: inner extents differ")
    _check_agree((("a", a), ("b", b)))
    a, b = _cast(a), _cast(b)
    masks = (a_mask, b_mask, out_mask)
    m, n, k = a.shape[0], b.shape[1], a.shape[1]
    _check_masks(("a_mask", "b_mask", "out_mask"), masks, ((m, k), (k, n), (m, n)), a.device)
    return ops.masked_mm(a, b, None, masks, _number("alpha", alpha), None)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_mask: BlockMask | None = None,
    weight_mask: BlockMask | None = None,
    out_mask: BlockMask | None = None,
    alpha: float = 1.0,
    activation: str | None = None,
) -> Tensor:
    """act(alpha * (x ∘ x_mask) (weight ∘ weight_mask)ᵀ + bias), its dropped blocks exactly 0.

    `F.linear`'s layout, differentiable in x, weight and bias. The leading extents of x are
    flattened: masks speak of x as `[M, K]`, of weight as `[N, K]` and of the result as `[M, N]`.
    What stands in dropped blocks, NaN included, never reaches the result or a gradient. Under
    autocast operands are cast as by `F.linear`.

    Args:
        x: `[..., K]`, rank 1 or more, float16, bfloat16, float32 or float64.
        weight: `[N, K]`, of the same dtype and device.
        bias: `[N]` or None.
        x_mask: mask of x.
        weight_mask: mask of weight.
        out_mask: mask of the result, applied last.
        alpha: factor of the product, not of the bias.
        activation: None, "relu", "gelu" (the exact one) or "silu".

    Returns:
        `[..., N]` of the dtype of x.

    Raises: as `matmul`, and ValueError for an unknown activation.
    """
    is_name = activation is None or isinstance(activation, str)
    if not is_name or activation not in reference.ACTIVATIONS:
        known = ", ".join(repr(name) for name in reference.ACTIVATIONS)
        raise ValueError(f"activation is one of {known}, not {activation!r}")
    _check_linear(x, weight, bias)
    n, k = weight.shape
    rows = math.prod(x.shape[:-1])
    masks = (x_mask, weight_mask, out_mask)
    _check_masks(
        ("x_mask", "weight_mask", "out_mask"), masks, ((rows, k), (n, k), (rows, n)), x.device
    )
    return _linear(x, weight, bias, masks, _number("alpha", alpha), activation)


def dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float = 0.5,
    training: bool = True,
    block_shape: tuple[int, int] = (128, 128),
    sampler: str = "bernoulli",
) -> Tensor:
    """`F.linear(dropout(x, p), weight, bias)`, where blocks of x are dropped and skipped (Lo 2024).

    The mask is drawn from torch's default generator of the device of x, and live blocks are scaled
    by 1 / (1 - p). With `training=False` or p = 0 this is `F.linear` and draws nothing; with p = 1
    the result is the bias.

    Args:
        x: `[..., K]`; its blocks are those of x flattened to `[M, K]`.
        weight: `[N, K]`.
        bias: `[N]` or None.
        p: drop probability in [0, 1].
        training: False for evaluation.
        block_shape: rows and columns of a block. On a GPU multiples of 128 rows and 64 columns are
            skipped by the kernels; blocks of other shapes are right, and save less or nothing.
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).

    Raises: as `linear`, and ValueError for p, a block shape or a sampler that is none.
    """
    p, block_shape = check_p(p), check_block_shape(block_shape)
    check_sampler(sampler)
    _check_linear(x, weight, bias)
    if not training or p == 0.0:
        return nn.functional.linear(x, weight, bias)
    _native.require_build_for(x.device)
    shape = (math.prod(x.shape[:-1]), x.shape[-1])
    mask = SAMPLERS[sampler](shape, p, block_shape=block_shape, device=x.device)
    return _linear(x, weight, bias, (mask, None, None), reference.dropout_scale(p), None)


def check_sampler(sampler: str) -> str:
    """The sampler's name; ValueError where there is none of that name."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        known = ", ".join(repr(name) for name in SAMPLERS)
        raise ValueError(f"sampler is one of {known}, not {sampler!r}")
    return sampler


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    masks: Masks,
    alpha: float,
    activation: str | None,
) -> Tensor:
    """`linear` on checked arguments."""
    x, weight, bias = _cast(x), _cast(weight), None if bias is None else _cast(bias)
    x_mask, weight_mask, out_mask = masks
    masks = (x_mask, None if weight_mask is None else weight_mask.T, out_mask)
    if x.dim() == 2:
        return ops.masked_mm(x, weight.t(), bias, masks, alpha, activation)
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    out = ops.masked_mm(flat, weight.t(), bias, masks, alpha, activation)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _check_operand(name: str, operand: Tensor, rank: int | None) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(operand).__name__}")
    if operand.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be of {known}, not {operand.dtype}")
    if operand.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not one of layout {operand.layout}")
    if operand.dim() != rank if rank is not None else operand.dim() == 0:
        wanted = "at least one extent" if rank is None else f"{rank} extents"
        raise ValueError(f"{name} must have {wanted}, but is {list(operand.shape)}")


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check_operand("x", x, None)
    _check_operand("weight", weight, 2)
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x is {list(x.shape)} and weight is {list(weight.shape)}: inner extents differ"
        )
    if bias is not None:
        _check_operand("bias", bias, 1)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(
                f"bias is {list(bias.shape)} and weight is {list(weight.shape)}: "
                "outer extents differ"
            )
    named = (("x", x), ("weight", weight))
    _check_agree(named if bias is None else (*named, ("bias", bias)))


def _check_agree(named: tuple[tuple[str, Tensor], ...]) -> None:
    """ValueError where devices, or dtypes as autocast leaves them, disagree."""
    first_name, first = named[0]
    for name, tensor in named[1:]:
        if tensor.device != first.device:
            raise ValueError(f"{first_name} is on {first.device} and {name} is on {tensor.device}")
    dtypes = [_dtype_of(tensor) for _, tensor in named]
    for (name, _), dtype in zip(named[1:], dtypes[1:], strict=True):
        if dtype != dtypes[0]:
            raise ValueError(f"{first_name} is {dtypes[0]} and {name} is {dtype}")


def _dtype_of(tensor: Tensor) -> torch.dtype:
    """The dtype in which autocast has it; as for torch's own products, float64 is left alone."""
    kind = tensor.device.type
    # Asking about a device that has no autocast, such as meta, is an error.
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return tensor.dtype if tensor.dtype == torch.float64 else torch.get_autocast_dtype(kind)
    return tensor.dtype


def _cast(tensor: Tensor) -> Tensor:
    return tensor.to(_dtype_of(tensor))


def _check_masks(
    names: tuple[str, str, str],
    masks: tuple[BlockMask | None, BlockMask | None, BlockMask | None],
    shapes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    device: torch.device,
) -> None:
    for name, mask, shape in zip(names, masks, shapes, strict=True):
        if mask is None:
            continue
        if not isinstance(mask, BlockMask):
            raise TypeError(f"{name} must be a BlockMask, not {type(mask).__name__}")
        if mask.shape != shape:
            raise ValueError(
                f"{name} is a mask of {list(mask.shape)}, but its matrix is {list(shape)}"
            )
        if mask.live.device != device:
            raise ValueError(f"{name} is on {mask.live.device}, but its matrix is on {device}")
        _native.require_build_for(device)


def _number(name: str, value: float) -> float:
    if isinstance(value, (int, float, torch.SymFloat, torch.SymInt)) and not isinstance(
        value, bool
    ):
        return float(value)
    raise TypeError(f"{name} must be a number, not {type(value).__name__}")
