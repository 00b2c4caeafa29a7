"""What every operation means, in plain PyTorch: differentiable, in any dtype, on any device.

The oracle of tests and benchmarks: it imports torch alone. A dropped block is taken out by `where`
and not by a product, since 0 * NaN is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Mask(Protocol):
    """What is asked of a mask: a BlockMask has it."""

    @property
    def T(self) -> Mask:  # noqa: N802 - the name torch gives a transpose
        """That of the transposed matrix."""

    def expand(self) -> Tensor:
        """Bool [rows, cols], True where the element is live."""


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    out_mask: Mask | None = None,
    alpha: float = 1.0,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """act(alpha * (a ∘ a_mask) (b ∘ b_mask) + bias) ∘ out_mask; a [M, K], b [K, N], bias [N]."""
    a, b = keep_live(a, a_mask), keep_live(b, b_mask)
    if bias is None:
        out = torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=alpha)
    else:
        out = torch.addmm(bias, a, b, alpha=alpha)
    return keep_live(ACTIVATIONS[activation](out), out_mask)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_mask: Mask | None = None,
    weight_mask: Mask | None = None,
    out_mask: Mask | None = None,
    alpha: float = 1.0,
    activation: str | None = None,
) -> Tensor:
    """The same in `F.linear`'s layout: x [..., K] is flattened to [M, K], weight is [N, K]."""
    out = matmul(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        weight.t(),
        a_mask=x_mask,
        b_mask=None if weight_mask is None else weight_mask.T,
        out_mask=out_mask,
        alpha=alpha,
        bias=bias,
        activation=activation,
    )
    return out.reshape(*x.shape[:-1], weight.shape[0])


def dropout_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, p: float, side: str = "input"
) -> Tensor:
    """F.linear(dropout(x, p), weight, bias) for the mask that was drawn; with side="output"
    dropout(F.linear(x, weight, bias), p)."""
    if side == "output":
        out = linear(x, weight, bias, out_mask=mask)
        return out * dropout_scale(p)
    return linear(x, weight, bias, x_mask=mask, alpha=dropout_scale(p))


Layer = tuple[Tensor, "Tensor | None", "str | None", "Tensor | None", "Tensor | None"]
"""Weight, bias, activation, and weight and bias of a gate, or None."""


def stack(
    x: Tensor, layers: Sequence[Layer], masks: Mapping[int, Mask], rates: Sequence[float]
) -> Tensor:
    """Layers act(linear(x)), or act(gate(x)) · linear(x), with dropout before, between and behind
    them, for the masks that were drawn; one rate more than there are layers."""

    def dropped(x: Tensor, i: int) -> Tensor:
        if rates[i] == 0.0:
            return x
        flat = keep_live(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), masks[i])
        return flat.reshape(x.shape) * dropout_scale(rates[i])

    for i, (weight, bias, activation, gate, gate_bias) in enumerate(layers):
        x, activate = dropped(x, i), ACTIVATIONS[activation]
        out = nn.functional.linear(x, weight, bias)
        if gate is None:
            x = activate(out)
        else:
            x = activate(nn.functional.linear(x, gate, gate_bias)) * out
    return dropped(x, len(layers))


def feed_forward(
    x: Tensor, layers: Sequence[Layer], kept: Tensor, scale: float | Tensor = 1.0
) -> Tensor:
    """A feed-forward block of two layers whose hidden units are dropped, the others scaled.

    kept is bool [hidden], or of the shape of what is hidden.
    """
    (up, up_bias, activation, gate, gate_bias), (down, down_bias, *_) = layers
    hidden = nn.functional.linear(x, up, up_bias)
    if gate is None:
        hidden = ACTIVATIONS[activation](hidden)
    else:
        hidden = ACTIVATIONS[activation](nn.functional.linear(x, gate, gate_bias)) * hidden
    return nn.functional.linear(torch.where(kept, hidden * scale, 0), down, down_bias)


def lstm(
    module: nn.LSTM,
    x: Tensor | nn.utils.rnn.PackedSequence,
    kept: Sequence[Tensor],
    scales: Sequence[float],
    hx: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | nn.utils.rnn.PackedSequence, tuple[Tensor, Tensor]]:
    """An LSTM of these parameters, the input of each layer dropped: kept is bool [features]."""
    directions, states = 1 + module.bidirectional, []
    for i, (mask, scale) in enumerate(zip(kept, scales, strict=True)):
        own = slice(i * directions, (i + 1) * directions)
        layer = nn.LSTM(
            mask.shape[0], module.hidden_size, 1, module.bias, module.batch_first, 0.0,
            module.bidirectional, module.proj_size, device="meta",
        )  # fmt: skip
        weights = [weight for each in module.all_weights[own] for weight in each]
        names = [name for name, _ in layer.named_parameters()]
        named: dict[str, Tensor] = dict(zip(names, weights, strict=True))
        if isinstance(x, nn.utils.rnn.PackedSequence):
            x = x._replace(data=torch.where(mask, x.data * scale, 0))
        else:
            x = torch.where(mask, x * scale, 0)
        start = None if hx is None else (hx[0][own], hx[1][own])
        x, state = torch.func.functional_call(layer, named, (x, start))
        states.append(state)
    return x, (torch.cat([h for h, _ in states]), torch.cat([c for _, c in states]))


def dropout_scale(p: float) -> float:
    """What the live elements are multiplied by. At p = 1 there are none."""
    return 1.0 / (1.0 - p) if p < 1.0 else 1.0


def keep_live(matrix: Tensor, mask: Mask | None) -> Tensor:
    """The matrix with its dropped blocks exactly 0, whatever stands in them."""
    return matrix if mask is None else torch.where(mask.expand(), matrix, 0)


def keep_units(x: Tensor, kept: Tensor, scale: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """x with what is not kept along one extent exactly 0, the rest scaled; kept: bool [units]."""
    shape = [1] * x.dim()
    shape[dim] = -1
    factor = scale.reshape(shape) if isinstance(scale, Tensor) else scale
    return torch.where(kept.reshape(shape), x * factor, 0)


def attention(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor | None]],
    heads: tuple[int, int],
    kept: Tensor,
    scale: float | Tensor = 1.0,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """Self-attention of whose key-value heads, with their query heads, these are kept.

    layers: weight and bias of the projections q, k, v and out; heads: how many queries and
    key-values have; bias: added to the scores, [..., T, T].
    """
    queries, key_values = heads
    q, k, v = (nn.functional.linear(x, *layer) for layer in layers[:3])
    q, k, v = (
        t.unflatten(-1, (count, -1)).transpose(-3, -2)
        for t, count in ((q, queries), (k, key_values), (v, key_values))
    )
    group = queries // key_values
    k, v = (t.repeat_interleave(group, -3) for t in (k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias
    mixed = scores.softmax(-1) @ v
    if isinstance(scale, Tensor):
        scale = scale.repeat_interleave(group)
    dropped = keep_units(mixed, kept.repeat_interleave(group), scale, dim=-3)
    return nn.functional.linear(dropped.transpose(-3, -2).flatten(-2), *layers[3])
