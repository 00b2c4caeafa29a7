"""What users call: arguments are checked here, once, before anything is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsedrop import _native, block_mask, ops, reference
from sparsedrop.block_mask import BlockMask, Masks, check_block_shape, check_p
from sparsedrop.mask_ops import SAMPLERS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    (m, k), (b_rows, n) = a.shape, b.shape
    if k != b_rows:
        raise ValueError(f"a is {list(a.shape)} and b is {list(b.shape)}: inner extents differ")
    dtype = _agreed_dtype(("a", "b"), a, b)
    masks = (a_mask, b_mask, out_mask)
    _check_masks(("a_mask", "b_mask", "out_mask"), masks, ((m, k), (k, n), (m, n)), a.device)
    alpha = _number("alpha", alpha)
    return ops.masked_mm(_cast(a, dtype), _cast(b, dtype), None, masks, alpha, None)


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
    dtype = _check_linear(x, weight, bias)
    n, k = weight.shape
    rows = _rows(x)
    masks = (x_mask, weight_mask, out_mask)
    _check_masks(
        ("x_mask", "weight_mask", "out_mask"), masks, ((rows, k), (n, k), (rows, n)), x.device
    )
    return _linear(x, weight, bias, dtype, masks, _number("alpha", alpha), activation)


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
        block_shape: rows and columns of a block. On a GPU the kernels skip multiples of 64 rows
            and columns, those of 128 fastest; blocks of other shapes are right, and save nothing.
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).

    Raises: as `linear`, and ValueError for p, a block shape or a sampler that is none.
    """
    p, block_shape = check_p(p), check_block_shape(block_shape)
    check_sampler(sampler)
    dtype = _check_linear(x, weight, bias)
    if not training or p == 0.0:
        return nn.functional.linear(x, weight, bias)
    device = x.device
    _native.require_build_for(device)
    mask = block_mask.draw(sampler, (_rows(x), x.shape[-1]), p, block_shape, device)
    masks = (mask, None, None)
    return _linear(x, weight, bias, dtype, masks, reference.dropout_scale(p), None)


def check_sampler(sampler: str) -> str:
    """The sampler's name; ValueError where there is none of that name."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        known = ", ".join(repr(name) for name in SAMPLERS)
        raise ValueError(f"sampler is one of {known}, not {sampler!r}")
    return sampler


def _rows(x: Tensor) -> int:
    """M of x flattened to [M, K]."""
    return x.shape[0] if x.dim() == 2 else math.prod(x.shape[:-1])


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    masks: Masks,
    alpha: float,
    activation: str | None,
) -> Tensor:
    """`linear` on checked arguments, in the dtype that autocast wants."""
    x, weight = _cast(x, dtype), _cast(weight, dtype)
    bias = None if bias is None else _cast(bias, dtype)
    if x.dim() == 2:
        return ops.masked_mm(x, weight, bias, masks, alpha, activation, b_turned=True)
    flat = x.reshape(_rows(x), x.shape[-1])
    out = ops.masked_mm(flat, weight, bias, masks, alpha, activation, b_turned=True)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _check_operand(name: str, operand: Tensor, rank: int | None) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(operand).__name__}")
    if operand.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be of {known}, not {operand.dtype}")
    if operand.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not one of layout {operand.layout}")
    if operand.dim() != rank if rank is not None else operand.dim() == 0:
        wanted = "at least one extent" if rank is None else f"{rank} extents"
        raise ValueError(f"{name} must have {wanted}, but is {list(operand.shape)}")


def _is_usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `_check_linear` would find nothing, and autocast does nothing: in one look.

    The checks that have a sentence ready for each fault cost the host three times as much.
    """
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        return False
    dtype, device = x.dtype, x.device
    x_shape, weight_shape = x.shape, weight.shape
    return (
        dtype in DTYPES
        and weight.dtype is dtype
        and x.layout is torch.strided
        and weight.layout is torch.strided
        and weight.device == device
        and len(weight_shape) == 2
        and len(x_shape) > 0
        and x_shape[-1] == weight_shape[1]
        and (
            bias is None
            or (
                isinstance(bias, Tensor)
                and bias.dtype is dtype
                and bias.layout is torch.strided
                and bias.device == device
                and bias.shape == (weight_shape[0],)
            )
        )
        and not torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")
    )


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """The dtype of the product."""
    if _is_usual(x, weight, bias):
        return x.dtype
    _check_operand("x", x, None)
    _check_operand("weight", weight, 2)
    n, k = weight.shape
    if x.shape[-1] != k:
        raise ValueError(
            f"x is {list(x.shape)} and weight is {list(weight.shape)}: inner extents differ"
        )
    if bias is None:
        return _agreed_dtype(("x", "weight"), x, weight)
    _check_operand("bias", bias, 1)
    if bias.shape[0] != n:
        raise ValueError(
            f"bias is {list(bias.shape)} and weight is {list(weight.shape)}: outer extents differ"
        )
    return _agreed_dtype(("x", "weight", "bias"), x, weight, bias)


def _agreed_dtype(names: tuple[str, ...], *tensors: Tensor) -> torch.dtype:
    """The dtype of all, as autocast leaves it; ValueError where it, or a device, disagrees."""
    first = tensors[0]
    device = first.device
    kind = "cuda" if first.is_cuda else device.type
    # Asking about a device that has no autocast, such as meta, is an error.
    is_cast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    dtype = _cast_dtype(first, kind) if is_cast else first.dtype
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.device != device:
            raise ValueError(f"{names[0]} is on {device} and {name} is on {tensor.device}")
        own = _cast_dtype(tensor, kind) if is_cast else tensor.dtype
        if own != dtype:
            raise ValueError(f"{names[0]} is {dtype} and {name} is {own}")
    return dtype


def _cast_dtype(tensor: Tensor, kind: str) -> torch.dtype:
    """The dtype in which autocast has it; as for torch's own products, float64 is left alone."""
    return tensor.dtype if tensor.dtype == torch.float64 else torch.get_autocast_dtype(kind)


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
        if mask.device != device:
            raise ValueError(f"{name} is on {mask.device}, but its matrix is on {device}")
        _native.require_build_for(device)


def _number(name: str, value: float) -> float:
    if isinstance(value, (int, float, torch.SymFloat, torch.SymInt)) and not isinstance(
        value, bool
    ):
        return float(value)
    raise TypeError(f"{name} must be a number, not {type(value).__name__}")
