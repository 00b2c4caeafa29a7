"""Operands of a product: every sentence that a wrong one gets, and the dtype that it is cast to."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import BlockMask
from sparsedrop.ops.stack import Layer

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_matmul(a: Tensor, b: Tensor) -> torch.dtype:
    """The dtype of the product of a [M, K] and b [K, N]."""
    check_operand("a", a, 2)
    check_operand("b", b, 2)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a is {list(a.shape)} and b is {list(b.shape)}: inner extents differ")
    return agreed_dtype(("a", "b"), a, b)


def rows_of(x: Tensor) -> int:
    """M of x flattened to [M, K]."""
    return x.shape[0] if x.dim() == 2 else math.prod(x.shape[:-1])


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def check_operand(name: str, operand: Tensor, rank: int | None) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(operand).__name__}")
    if operand.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be of {known}, not {operand.dtype}")
    if operand.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, not a nested one: pad it, or take it apart"
        )
    if operand.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not one of layout {operand.layout}")
    if operand.dim() != rank if rank is not None else operand.dim() == 0:
        wanted = "at least one extent" if rank is None else f"{rank} extents"
        raise ValueError(f"{name} must have {wanted}, but is {list(operand.shape)}")


def _is_usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `check_linear` would find nothing, and autocast does nothing: in one look.

    The checks that have a sentence ready for each fault cost the host three times as much.
    """
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or x.is_nested:
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


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """The dtype of the product."""
    if _is_usual(x, weight, bias):
        return x.dtype
    check_operand("x", x, None)
    check_operand("weight", weight, 2)
    n, k = weight.shape
    if x.shape[-1] != k:
        raise ValueError(
            f"x is {list(x.shape)} and weight is {list(weight.shape)}: inner extents differ"
        )
    if bias is None:
        return agreed_dtype(("x", "weight"), x, weight)
    check_operand("bias", bias, 1)
    if bias.shape[0] != n:
        raise ValueError(
            f"bias is {list(bias.shape)} and weight is {list(weight.shape)}: outer extents differ"
        )
    return agreed_dtype(("x", "weight", "bias"), x, weight, bias)


def check_stack(x: Tensor, layers: Sequence[Layer]) -> torch.dtype:
    """The dtype of the products of layers one behind the other."""
    dtype, features = check_linear(x, layers[0].weight, layers[0].bias), x.shape[-1]
    for i, layer in enumerate(layers):
        _check_branch(x, "", i, (layer.weight, layer.bias), features, None)
        outputs = layer.weight.shape[0]
        if layer.gate is not None:
            _check_branch(x, "gate ", i, (layer.gate, layer.gate_bias), features, outputs)
        features = outputs
    return dtype


def _check_branch(
    x: Tensor,
    gate: str,
    i: int,
    parameters: tuple[Tensor, Tensor | None],
    features: int,
    outputs: int | None,
) -> None:
    """Weight and bias of layer i or, as the name says, of its gate; as many outputs as the layer's
    other product has, if there is one."""
    weight, bias = parameters
    weight_name, bias_name = f"{gate}weight of layer {i}", f"{gate}bias of layer {i}"
    check_operand(weight_name, weight, 2)
    outputs = weight.shape[0] if outputs is None else outputs
    if weight.shape != (outputs, features):
        raise ValueError(
            f"{weight_name} is {list(weight.shape)}, but {features} features go in and {outputs} "
            "come out"
        )
    if bias is None:
        agreed_dtype(("x", weight_name), x, weight)
        return
    check_operand(bias_name, bias, 1)
    if bias.shape[0] != outputs:
        raise ValueError(f"{bias_name} is {list(bias.shape)}, but {outputs} features come out")
    agreed_dtype(("x", weight_name, bias_name), x, weight, bias)


def agreed_dtype(names: tuple[str, ...], *tensors: Tensor) -> torch.dtype:
    """The dtype of all, as autocast leaves it; ValueError where it, or a device, disagrees."""
    first = tensors[0]
    device = first.device
    kind = "cuda" if first.is_cuda else device.type
    # Asking about a device that has no autocast, such as meta, is an error.
    is_cast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    dtype = _cast_dtype(first, kind) if is_cast else first.dtype
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.device != device:
            raise ValueError(
                f"{names[0]} is on {device} and {name} is on {tensor.device}: devices differ"
            )
        own = _cast_dtype(tensor, kind) if is_cast else tensor.dtype
        if own != dtype:
            raise ValueError(f"{names[0]} is {dtype} and {name} is {own}: dtypes differ")
    return dtype


def _cast_dtype(tensor: Tensor, kind: str) -> torch.dtype:
    """The dtype in which autocast has it; as for torch's own products, float64 is left alone."""
    return tensor.dtype if tensor.dtype == torch.float64 else torch.get_autocast_dtype(kind)


def check_masks(
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


def check_number(name: str, value: float) -> float:
    kinds = numbers.Real, torch.SymFloat, torch.SymInt
    if isinstance(value, kinds) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{name} must be a number, not {type(value).__name__}")
