"""What modules and functions are to a conversion: linear layers, dropouts and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sparsedrop.conversion.layers import ConvertedConv1D, ConvertedLinear, DropoutStandIn
from sparsedrop.nn import SparseDropLinear
from sparsedrop.nn.rated import Rated
from sparsedrop.nn.stack import runs_as_linear

CONVERTED = "already converted"

LAYER_CONVERTED = f"its linear layer is {CONVERTED}"

COUSINS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Dropouts of other things than single elements."""

ELEMENTWISE = frozenset((
    "abs", "add", "celu", "clamp", "clamp_min", "clamp_max", "clip", "cos", "div", "divide",
    "elu", "erf", "exp", "expm1", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "log", "log1p", "logsigmoid", "log_sigmoid", "maximum", "minimum", "mish",
    "mul", "multiply", "neg", "negative", "pow", "radd", "rdiv", "reciprocal", "relu", "relu6",
    "rmul", "rpow", "rsqrt", "rsub", "rtruediv", "selu", "sigmoid", "sign", "silu", "sin",
    "softplus", "softshrink", "softsign", "sqrt", "square", "sub", "subtract", "tanh",
    "tanhshrink", "threshold", "truediv", "true_divide", "to", "type", "float", "half",
    "double", "bfloat16", "clone", "iadd", "imul", "isub", "itruediv",
))  # fmt: skip
"""Functions, by their names without underscores, whose result is of the shape of their operands and
depends, element by element, on the same element of each."""

RESHAPES = frozenset((
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous",
))  # fmt: skip
"""Functions that keep elements in their row-major order."""

REARRANGEMENTS = RESHAPES | {"transpose", "t", "permute", "swapaxes", "movedim"}
"""Functions that keep all elements: a dropout of single elements may as well come behind them."""

POOLS = frozenset((
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "lp_pool2d",
    "interpolate", "expand_as",
))  # fmt: skip
"""Functions that make each channel from that channel alone."""

OVER_PLACES = frozenset(("mean", "sum", "amax", "amin"))
"""Likewise, of which an argument says over which extents."""

SAME_ORDER = frozenset(("flatten", "unsqueeze", "squeeze", "contiguous"))
"""Functions that keep elements in their order, and whose arguments name no number of channels."""

LOOKS = frozenset((
    "size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "is_contiguous",
    "is_floating_point", "is_complex", "get_device", "__len__", "storage_offset", "__hash__",
    "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "randint_like",
    "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "has_names",
))  # fmt: skip
"""Functions that look at a tensor's description only."""

MEASURES = frozenset(("shape", "size", "numel", "nelement", "nbytes"))
"""Those that say how many features it has."""

PROPERTIES = frozenset((
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad_fn", "grad",
    "is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu", "is_xla", "is_sparse", "is_sparse_csr",
    "is_quantized", "is_nested", "is_mkldnn", "itemsize", "nbytes", "names", "output_nr",
    "retains_grad",
))  # fmt: skip

ELEMENTWISE_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh,
    nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
    nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold, nn.Identity,
)  # fmt: skip


PLAIN: dict[type, str] = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm"}
"""Modules of a class and none derived from it, whose calls are of these kinds."""


def check_model(model: nn.Module) -> None:
    """TypeError if it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")


def name_of(func: Callable[..., Any]) -> str:
    """A function's name as it was written, without what an overload adds."""
    name = getattr(func, "__name__", type(func).__name__)
    owner = getattr(func, "__self__", None)
    if name in ("__get__", "__set__") and owner is not None:
        return str(getattr(owner, "__name__", name))
    return name.partition(".")[0]


def only_looks(func: Callable[..., Any]) -> bool:
    """Whether a function reads a tensor's description, and none of its data."""
    if getattr(func, "__name__", "") == "__get__":
        return name_of(func) in PROPERTIES
    return name_of(func) in LOOKS


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is Hugging Face's Conv1D, a linear layer whose weight is [in, out]."""
    if isinstance(module, ConvertedConv1D):
        return True
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and weight.dim() == 2
        and isinstance(getattr(module, "bias", None), Tensor)
        and getattr(module, "nf", None) == weight.shape[1]
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a call of it is that of a linear layer, plain or one of ours."""
    if is_ours(module) or is_conv1d(module):
        return True
    return runs_as_linear(module)


def is_ours(module: nn.Module) -> bool:
    """Whether it is a linear layer that drops already."""
    return isinstance(module, (SparseDropLinear, ConvertedLinear, ConvertedConv1D))


def is_block(module: nn.Module) -> bool:
    """Whether it is a module of ours around linear layers, whose inside is its own affair."""
    return isinstance(module, Rated) and not is_ours(module)


def is_dropout(module: nn.Module) -> bool:
    """Whether it drops elements of its input, in whatever way."""
    return isinstance(module, (nn.Dropout, *COUSINS))


def kind_of(module: nn.Module) -> str | None:
    """Of the call of a module whose inside is not looked at; None of any other."""
    if is_dropout(module):
        return "dropout"
    if is_linear(module):
        return "linear"
    if is_block(module):
        return "block"
    is_plain = "forward" not in vars(module)
    return PLAIN.get(type(module)) if is_plain else None


def why_not_dropout(module: nn.Module) -> str | None:
    """Why a dropout cannot hand its work over to a linear layer; None where it can."""
    if isinstance(module, DropoutStandIn):
        return CONVERTED
    if type(module) is nn.Dropout and "forward" not in vars(module):
        return None
    return f"{type(module).__name__} drops in a way of its own, not as nn.Dropout does"


HARMLESS = frozenset((
    "__module__", "__doc__", "__init__", "__annotations__", "__constants__", "__dict__",
    "__static_attributes__", "__firstlineno__", "__parameters__", "__orig_bases__",
))  # fmt: skip
"""What a subclass of nn.Linear may define and still be one in all that it does."""


def why_not_linear(module: nn.Module) -> str | None:
    """Why a linear layer cannot drop on its own; None where it can."""
    if is_ours(module):
        return LAYER_CONVERTED
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if isinstance(module, nn.Linear):
        try:
            SparseDropLinear.from_linear(module)
        except ValueError as error:
            return str(error).partition(": ")[0]
    elif module._parameters.get("weight") is None or module._parameters.get("bias") is None:
        return "the weight or the bias is no parameter of its own"
    for cls in type(module).__mro__:
        if cls is nn.Linear or cls is nn.Module:
            return None
        own = vars(cls).keys() - HARMLESS
        if own and not is_conv1d(module):
            return f"{cls.__name__} is a linear layer with {', '.join(sorted(own))} of its own"
    return None
