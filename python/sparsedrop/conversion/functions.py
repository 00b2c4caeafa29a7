"""What a call of a function of torch is to a conversion, from its arguments and its result."""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor

from sparsedrop.conversion import kinds

RECURRENT = {
    "lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN",
}  # fmt: skip
"""Functions of layers with dropout between them, and what a sentence calls those."""


def kind_of_call(
    name: str, args: Any, kwargs: dict[str, Any], read: list[Tensor], out: list[Tensor]
) -> str:
    """The kind of `flow.Call`; `read` are the tensors among the arguments, `out` those it made."""
    bare = name.strip("_")
    if bare.endswith(("dropout", "dropout1d", "dropout2d", "dropout3d")):
        p, training = _dropout_arguments(args, kwargs)
        if training and p > 0:
            return "functional dropout"
    elif name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        return "attention" if _attention_rate(name, args, kwargs) > 0 else "other"
    elif name in RECURRENT:
        return "recurrent" if _recurrent_rate(args) > 0 else "other"
    elif name == "linear":
        return "functional linear"
    elif len(out) == 1 and bare in kinds.RESHAPES and _keeps_rows(read, out[0]):
        return "reshape"
    elif len(out) == len(read) == 1 and bare in kinds.REARRANGEMENTS:
        return "rearrangement"
    elif len(out) == 1 and bare in kinds.ELEMENTWISE and _is_elementwise(read, out[0]):
        return "elementwise"
    return "other"


def _dropout_arguments(args: Any, kwargs: dict[str, Any]) -> tuple[float, bool]:
    """p and training of F.dropout, torch.dropout and what is like them."""
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return float(p), bool(training)


def _attention_rate(name: str, args: Any, kwargs: dict[str, Any]) -> float:
    if name == "scaled_dot_product_attention":
        return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    training = args[13] if len(args) > 13 else kwargs.get("training", True)
    return float(args[10] if len(args) > 10 else kwargs["dropout_p"]) if training else 0.0


def _recurrent_rate(args: Any) -> float:
    """Of (input, hx, weights, has_biases, layers, p, training, ...), or the same of packed
    sequences, which have the sizes of their batches behind the input."""
    p, training = args[6:8] if isinstance(args[3], (list, tuple)) else args[5:7]
    return float(p) if training else 0.0


def _keeps_rows(read: list[Tensor], out: Tensor) -> bool:
    """Whether a reshape leaves the last extent, and so the order of the rows."""
    return (
        len(read) == 1
        and not _is_any_nested(read, out)
        and out.dim() > 0
        and read[0].dim() > 0
        and out.shape[-1] == read[0].shape[-1]
        and out.numel() == read[0].numel()
        and out.dtype == read[0].dtype
    )


def _is_elementwise(read: list[Tensor], out: Tensor) -> bool:
    """Whether every operand is of the shape of the result, or a number that is not trained."""
    if _is_any_nested(read, out):
        return False
    return any(tensor.dim() for tensor in read) and all(
        tensor.shape == out.shape or (tensor.dim() == 0 and not tensor.requires_grad)
        for tensor in read
    )


def keeps_channels(
    name: str, args: Any, kwargs: dict[str, Any], read: list[Tensor], out: list[Tensor]
) -> bool:
    """Whether each channel of a result [N, C, ...] depends on that channel of the operands alone,
    and no argument names how many there are."""
    bare = name.strip("_")
    if len(out) != 1 or _is_any_nested(read, out[0]) or out[0].dim() < 2:
        return False
    shape, rank = out[0].shape, out[0].dim()
    for tensor in read:
        is_number = tensor.dim() == 0 and not tensor.requires_grad
        if not is_number and (tensor.dim() < 2 or tensor.shape[:2] != shape[:2]):
            return False
    if bare in kinds.ELEMENTWISE:
        return all(tensor.dim() in (0, rank) for tensor in read)
    if bare in kinds.POOLS:
        return True
    return len(read) == 1 and _leaves_channels(bare, args, kwargs, read[0].dim())


def _leaves_channels(bare: str, args: Any, kwargs: dict[str, Any], rank: int) -> bool:
    """Likewise of one operand, of so many extents, by the other arguments."""
    others = args[1:]
    if bare in kinds.OVER_PLACES:
        dims = others[0] if others else kwargs.get("dim", kwargs.get("axis"))
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        return all(isinstance(dim, int) and dim % rank > 1 for dim in dims)
    if bare == "getitem":
        index = others[0] if isinstance(others[0], tuple) else others
        return all(
            each is None or each is Ellipsis or (isinstance(each, slice) and each == slice(None))
            for each in index
        )
    if bare == "pad":
        return len(others[0] if others else kwargs["pad"]) <= 2 * (rank - 2)
    if bare in ("view", "reshape"):
        sizes = others[0] if others and isinstance(others[0], (tuple, list)) else others
        return len(sizes) > 1 and sizes[1] == -1
    return bare in kinds.SAME_ORDER


def has_numbers(args: Any, kwargs: dict[str, Any], read: list[Tensor]) -> bool:
    """Whether a number is among the arguments, as Python's or in a tensor."""
    given = (*args, *kwargs.values())
    is_one = any(isinstance(e, numbers.Number) and not isinstance(e, bool) for e in given)
    return is_one or any(tensor.dim() == 0 for tensor in read)


def _is_any_nested(read: list[Tensor], out: Tensor) -> bool:
    return any(tensor.is_nested for tensor in (*read, out))
