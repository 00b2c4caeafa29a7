"""Stacks that tests run, as data."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cases import normal
from sparsedrop import reference
from sparsedrop.ops.stack import Layer
from sparsedrop.ops.stack.facts import parameters_of

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# Of x, of the parameters, and of autocast.
PRECISIONS = [
    (BF16, BF16, None), (F16, F16, None), (BF16, F32, BF16), (F32, F32, BF16), (F32, BF16, BF16)
]  # fmt: skip
BLOCK = (128, 128)


class Case(NamedTuple):
    sizes: tuple[int, ...]
    activations: tuple[str | None, ...]
    rates: tuple[float, ...]
    bias: bool = True
    gated: bool = False


CASES = {
    **{str(act): Case((64, 256, 128), (act, None), (0.0, 0.5, 0.0)) for act in
       (None, "relu", "gelu", "gelu_tanh", "silu")},
    "gated": Case((64, 256, 128), ("silu", None), (0.0, 0.5, 0.0), gated=True),
    "gated by relu": Case((64, 256, 64), ("relu", None), (0.0, 0.5, 0.25), False, True),
    "gated and dropped before": Case((128, 128, 64), ("gelu", None), (0.5, 0.5, 0.5), gated=True),
    "dropped behind": Case((64, 256, 128), ("gelu", None), (0.0, 0.5, 0.25)),
    "no bias": Case((64, 256, 128), ("gelu", None), (0.0, 0.5, 0.25), False),
    "stack": Case((128, 256, 64, 136), ("relu", "relu", None), (0.5, 0.5, 0.5, 0.0)),
    "stack of gelu": Case((128, 256, 64, 136), ("gelu", "silu", None), (0.5, 0.5, 0.5, 0.0)),
    "a head of ten": Case((784, 256, 128, 10), ("relu", "relu", None), (0.0, 0.5, 0.5, 0.0)),
    "a head behind gelu": Case((64, 128, 3), ("gelu", None), (0.5, 0.5, 0.0)),
    "a head behind a gate": Case((64, 256, 10), ("silu", None), (0.0, 0.5, 0.0), gated=True),
    "a head without bias": Case((64, 128, 10), (None, None), (0.0, 0.5, 0.0), False),
    "65 inputs": Case((65, 128, 64), ("relu", None), (0.0, 0.5, 0.0)),
    "65 inputs and ten outputs": Case(
        (65, 128, 64, 10), ("gelu", "relu", None), (0.0, 0.5, 0.25, 0.0)
    ),
    "gated alone": Case((128, 64), ("silu",), (0.5, 0.0), gated=True),
    "gated alone, linearly": Case((128, 64), (None,), (0.5, 0.0), gated=True),
    "last relu": Case((128, 64, 64), ("relu", "relu"), (0.5, 0.5, 0.0)),
    "last gelu": Case((128, 64, 64), (None, "gelu"), (0.5, 0.5, 0.0)),
    "one layer": Case((128, 64), (None,), (0.5, 0.0)),
    "five layers": Case(
        (256, 64, 256, 64, 128, 64), ("gelu", "relu", None, "silu", "relu"), (0.25,) * 5 + (0.0,)
    ),
}  # fmt: skip


def layers_of(case, dtype, device="cpu"):
    layers = []
    for i, (act, k, n) in enumerate(
        zip(case.activations, case.sizes, case.sizes[1:], strict=False)
    ):
        gated = case.gated and i == 0
        weight, gate = (0.2 * normal(n, k) for _ in range(2))
        bias, gate_bias = normal(n), normal(n)
        tensors = (
            weight, bias if case.bias else None, gate if gated else None,
            gate_bias if gated and case.bias else None,
        )  # fmt: skip
        weight, bias, gate, gate_bias = (
            None if t is None else t.to(device, dtype).requires_grad_() for t in tensors
        )
        layers.append(Layer(weight, bias, act, gate, gate_bias))
    return tuple(layers)


def reference_of(x, layers, masks, rates, rounded, dtype=torch.float64):
    """The result of that dtype on operands that were rounded first, and its leaves."""

    def leaf(t):
        return None if t is None else t.detach().to(rounded).to(dtype).requires_grad_()

    x = leaf(x)
    layers = tuple(Layer(leaf(w), leaf(b), act, leaf(g), leaf(c)) for w, b, act, g, c in layers)
    leaves = [x, *(p for p in parameters_of(layers) if p is not None)]
    return reference.stack(x, layers, masks, rates), leaves
