"""The arithmetic of a feed-forward block on the hidden units that a pattern keeps.

Below this border stand plain tensors of one device: autograd, autocast and the draw are above it.
M rows, K features of the input, H hidden units of which h are kept, N features of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop.masks import RowPattern
from sparsedrop.ops.dense import ACTIVATIONS, activation_grad

# Elements of a gradient up to which one launch that zeroes all of it takes less than three.
SMALL = 1 << 18


class Parameters(NamedTuple):
    """Of a block; without a gate or a bias there is None."""

    up: Tensor  # [H, K]
    up_bias: Tensor | None  # [H]
    gate: Tensor | None  # [H, K]
    gate_bias: Tensor | None  # [H]
    down: Tensor  # [N, H]
    down_bias: Tensor | None  # [N]


def cut(full: Parameters, rows: RowPattern, dtype: torch.dtype) -> Parameters:
    """What belongs to the kept units: views of the weights, or copies of another dtype."""

    def bias(tensor: Tensor | None) -> Tensor | None:
        # The epilogues of products read biases that are contiguous.
        return None if tensor is None else _cast(tensor[rows.kept], dtype).contiguous()

    up, _, gate, _, down, _ = weights = cut_weights(full, rows, dtype)
    if full.up_bias is None and full.gate_bias is None and full.down_bias is None:
        return weights
    down_bias = None if full.down_bias is None else _cast(full.down_bias, dtype)
    return Parameters(up, bias(full.up_bias), gate, bias(full.gate_bias), down, down_bias)


def cut_weights(full: Parameters, rows: RowPattern, dtype: torch.dtype) -> Parameters:
    """The same without biases, which the backward pass does not read."""
    kept = rows.kept
    gate = None if full.gate is None else _cast(full.gate[kept], dtype)
    # Turned, the columns of kept units are rows, and a copy of them lies as they do.
    down = _cast(full.down.t()[kept], dtype).t()
    return Parameters(_cast(full.up[kept], dtype), None, gate, None, down, None)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def forward(
    x: Tensor,
    of: Parameters,
    activation: str | None,
    scale: float,
    buffers: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The result [M, N], and what the backward pass needs of the kept units, each [M, h].

    That is what went into the activation, or without a gate and with relu what came out.

    Args:
        x: [M, K].
        of: what `cut` found, of the dtype of x.
        activation: of the hidden units.
        scale: of the kept units.
        buffers: where to put what is kept; None: new tensors.
    """
    at = iter(buffers or ())
    before = _linear(x, of.up, of.up_bias, next(at, None))
    activate = ACTIVATIONS[activation]
    if of.gate is not None:
        gate = _linear(x, of.gate, of.gate_bias, next(at, None))
        hidden, saved = activate(gate).mul_(before) if activation else gate * before, [before, gate]
    else:
        hidden = before.relu_() if activation == "relu" else activate(before)
        saved = [before]
    return _product(hidden, of.down.t(), scale, of.down_bias), saved


def backward(
    grad: Tensor,
    x: Tensor,
    full: Parameters,
    of: Parameters,
    saved: Sequence[Tensor],
    rows: RowPattern,
    how: tuple[str | None, float],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x and of the parameters, those of units that were dropped exactly 0.

    Each is allocated once, the part of the kept units is written into its place by the product that
    makes it, and the rest is zeroed.

    Args:
        grad: [M, N], of the dtype of x.
        x: [M, K].
        full: the parameters.
        of: what `cut` found of them.
        saved: by `forward`.
        rows: the pattern.
        how: activation and scale.
        needs: of x and the parameters: whether a gradient is wanted.
    """
    (activation, scale), (before, *gates) = how, saved
    need_x, need_up, need_up_bias, need_gate, need_gate_bias, need_down, need_down_bias = needs
    found: list[Tensor | None] = [None] * 7
    activate = ACTIVATIONS[activation]
    active = activate(gates[0]) if gates else None
    if need_down:
        if active is not None:
            hidden = active * before
        else:
            hidden = before if activation == "relu" else activate(before)
        found[5] = _placed(full.down.t(), rows, hidden, grad, scale).t()
        del hidden
    if need_down_bias:
        found[6] = _sums(grad, full.down_bias)
    if not any(needs[:5]):
        return found
    upstream = _product(grad, of.down, scale)
    of_gate = None
    if active is None:
        of_up = activation_grad(activation, upstream, before)
    else:
        of_up = upstream * active
        of_gate = activation_grad(activation, upstream.mul_(before), gates[0])
    if need_x:
        found[0] = of_x = torch.mm(of_up, of.up)
        if of_gate is not None and of.gate is not None:
            of_x.addmm_(of_gate, of.gate)
    if need_up:
        found[1] = _placed(full.up, rows, of_up, x)
    if need_up_bias:
        found[2] = _placed_sums(full.up_bias, rows, of_up)
    if of_gate is not None and full.gate is not None:
        found[3] = _placed(full.gate, rows, of_gate, x) if need_gate else None
        found[4] = _placed_sums(full.gate_bias, rows, of_gate) if need_gate_bias else None
    return found


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _product(a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """scale * a b + bias."""
    if bias is None:
        return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    return torch.addmm(bias, a, b, alpha=scale)


def _placed(like: Tensor, rows: RowPattern, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * aᵀ b in the kept rows, and 0 in the others, of a tensor that lies as `like`.

    a is [M, h], b is [M, n], like is [H, n].
    """
    is_small = like.numel() <= SMALL
    full = torch.zeros_like(like) if is_small else torch.empty_like(like)
    place = full[rows.kept]
    if full.dtype is a.dtype:
        torch.addmm(place, a.t(), b, beta=0, alpha=scale, out=place)
    else:
        place.copy_(_product(a.t(), b, scale))
    if not is_small:
        zero_dropped(full, rows)
    return full


def zero_dropped(full: Tensor, rows: RowPattern) -> None:
    """Zeroes the rows of [H, ...] that are dropped, in three launches at most."""
    period, first = rows.period, rows.offset
    if period == 1:
        return
    full[:first].zero_()
    behind = full[first + 1 :]
    groups = behind.shape[0] // period
    whole = groups * period
    torch.unflatten(behind[:whole], 0, (groups, period))[:, :-1].zero_()
    behind[whole:].zero_()


def _sums(matrix: Tensor, like: Tensor | None) -> Tensor:
    assert like is not None
    return matrix.sum(0, dtype=like.dtype)


def _placed_sums(like: Tensor | None, rows: RowPattern, matrix: Tensor) -> Tensor:
    assert like is not None
    full = torch.zeros_like(like)
    full[rows.kept] = _sums(matrix, like)
    return full
