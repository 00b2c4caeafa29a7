"""The registered ops of slices: what a compiled graph calls.

The start is drawn when the graph runs, on the host, so that a graph holds no slice and no new one
compiles again. It is a tensor of the CPU, and torch leaves these ops out of CUDA graphs that it
makes by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedrop._torch import keep_apart
from sparsedrop.masks import Slice
from sparsedrop.ops.registration import Op, register
from sparsedrop.ops.slices.choice import Choice, inverse_marginals
from sparsedrop.ops.slices.feed_forward import Layers, backward, forward
from sparsedrop.ops.slices.linear import call_of, gradients, product
from sparsedrop.ops.slices.node import drawn_units
from sparsedrop.ops.slices.products import Cut, flat, unflat
from sparsedrop.ops.stack.facts import Layer
from sparsedrop.ops.units.facts import VECTOR
from sparsedrop.ops.units.in_graph import InGraph, in_graph


def _layers(parameters: Sequence[Tensor | None], activation: str) -> Layers:
    *first, weight, bias = parameters
    own, own_bias = first[-2:]
    gate, gate_bias = first[:2] if len(first) == 4 else (None, None)
    assert weight is not None
    assert own is not None
    return Layer(own, own_bias, activation or None, gate, gate_bias), Layer(weight, bias)


def _draw(units: int, p: float, align: int, starts: str, *, device: torch.device) -> Tensor:
    """The start of a slice, int64 []."""
    start = Slice.draw(units, p, align=align, starts=starts).pieces[0][0]
    return torch.tensor(start, device=device)


def _fake_draw(units: int, p: float, align: int, starts: str, *, device: torch.device) -> Tensor:
    keep_apart(torch.ops.sparsedrop.slice_start)
    return torch.empty((), dtype=torch.int64, device=device)


def _factors(
    units: int, p: float, align: int, starts: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return inverse_marginals(units, p, align, starts, dtype, device).clone()


def _fake_factors(
    units: int, p: float, align: int, starts: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(units, dtype=dtype, device=device)


def _forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    activation: str,
    p: float,
    align: int,
    starts: str,
    normalization: str,
) -> list[Tensor]:
    """The result, the start of the slice, and what the backward pass needs and is not given."""
    layers = _layers(parameters, activation)
    choice = Choice(layers[0].weight.shape[0], p, align, starts, normalization)
    drawn = choice.draw()
    live, block = choice.live(drawn, x), _block_of(x, layers, choice, drawn)
    if block is not None:
        out, kept = block.forward(drawn_units(live, False))
    else:
        out, kept = forward(flat(x), layers, live)
        out = unflat(out, x)
    start = torch.tensor(drawn.pieces[0][0], device="cpu")
    return [out, start, *kept]


def _block_of(x: Tensor, layers: Layers, choice: Choice, drawn: Slice) -> InGraph | None:
    """What runs it in one call, where that keeps as much as the program expects: in both passes, or
    in neither."""
    if choice.has_factors or choice.width % VECTOR:
        return None
    return in_graph(x, layers, choice.width, wraps=len(drawn.pieces) > 1)


def _fake_forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    activation: str,
    p: float,
    align: int,
    starts: str,
    normalization: str,
) -> list[Tensor]:
    keep_apart(torch.ops.sparsedrop.slice_out_mlp)
    up, down = _layers(parameters, activation)
    kept = Choice(up.weight.shape[0], p, align, starts, normalization).width
    rows = x.shape[:-1].numel()
    return [
        x.new_empty((*x.shape[:-1], down.weight.shape[0])),
        torch.empty((), dtype=torch.int64, device="cpu"),
        *(x.new_empty((rows, kept)) for _ in range(1 if up.gate is None else 2)),
    ]


def _backward(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    start: Tensor,
    kept: Sequence[Tensor],
    activation: str,
    p: float,
    align: int,
    starts: str,
    normalization: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and of the parameters; empty where they are not needed."""
    layers = _layers(parameters, activation)
    choice = Choice(layers[0].weight.shape[0], p, align, starts, normalization)
    drawn = choice.slice_at(int(start))
    live, block = choice.live(drawn, x), _block_of(x, layers, choice, drawn)
    if block is not None:
        grads = block.backward(kept, grad, drawn_units(live, False), needs)
    else:
        flat_x, flat_grad = flat(x), flat(grad)
        grads = backward(flat_grad, flat_x, layers, live, kept, needs)
        if grads[0] is not None:
            grads[0] = unflat(grads[0], x)
    return [grad.new_empty(0) if found is None else found for found in grads]


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    start: Tensor,
    kept: Sequence[Tensor],
    activation: str,
    p: float,
    align: int,
    starts: str,
    normalization: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    return [
        grad.new_empty(0) if not needed or given is None else given.new_empty(given.shape)
        for given, needed in zip([x, *parameters], needs, strict=True)
    ]


def _cut(start: Tensor, on_rows: bool, units: int, kept: int, features: int) -> Cut:
    """Of a weight whose rows or columns belong to units of so many features."""
    pieces = Slice.at(int(start), kept, units).times(features).pieces
    return Cut(pieces) if on_rows else Cut(None, pieces)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor, on_rows: bool,
    units: int, kept: int, features: int, alpha: float,
) -> Tensor:  # fmt: skip
    cut = _cut(start, on_rows, units, kept, features)
    # Without the gaps of padding: a program knows how results lie.
    return product(x, weight, bias, cut, alpha, call_of(x, weight, bias, cut)).contiguous()


def _fake_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor, on_rows: bool,
    units: int, kept: int, features: int, alpha: float,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], kept * features if on_rows else weight.shape[0]))


def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor, on_rows: bool,
    units: int, kept: int, features: int, alpha: float, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    cut = _cut(start, on_rows, units, kept, features)
    call = call_of(x, weight, bias, cut)
    grads = gradients((x, weight, bias), grad, cut, alpha, needs, call)
    return [grad.new_empty(0) if found is None else found.contiguous() for found in grads]


def _fake_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor, on_rows: bool,
    units: int, kept: int, features: int, alpha: float, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    return [
        grad.new_empty(0) if not needed or given is None else given.new_empty(given.shape)
        for given, needed in zip([x, weight, bias], needs, strict=True)
    ]


_DRAWN = "float p, int align, str starts"
_HOW = f"str activation, {_DRAWN}, str normalization"
_PLACE = "Tensor start, bool on_rows, int units, int kept, int features, float alpha"
_GIVEN = "Tensor x, Tensor weight, Tensor? bias"
_library = register(
    # By its device torch learns whose generator a compiled checkpoint has to bring back.
    Op(f"slice_start(int units, {_DRAWN}, *, Device device) -> Tensor",
       _draw, _fake_draw, True, "BackendSelect", may_be_captured=False),
    *(Op(schema, kernel, fake, draws, "CompositeExplicitAutograd", may_be_captured=False)
    for schema, kernel, fake, draws in (
        (f"slice_factors(int units, {_DRAWN}, ScalarType dtype, Device device) -> Tensor",
         _factors, _fake_factors, False),
        (f"slice_out_mlp(Tensor x, Tensor?[] parameters, {_HOW}) -> Tensor[]",
         _forward, _fake_forward, True),
        (f"slice_out_mlp_backward(Tensor grad, Tensor x, Tensor?[] parameters, Tensor start, "
         f"Tensor[] kept, {_HOW}, bool[] needs) -> Tensor[]", _backward, _fake_backward, False),
        (f"slice_out_linear({_GIVEN}, {_PLACE}) -> Tensor", _linear, _fake_linear, False),
        (f"slice_out_linear_backward(Tensor grad, {_GIVEN}, {_PLACE}, bool[] needs) -> Tensor[]",
         _linear_backward, _fake_linear_backward, False),
    )),
)  # fmt: skip
START = torch.ops.sparsedrop.slice_start.default
MLP = torch.ops.sparsedrop.slice_out_mlp.default
MLP_BACKWARD = torch.ops.sparsedrop.slice_out_mlp_backward.default
LINEAR = torch.ops.sparsedrop.slice_out_linear.default
LINEAR_BACKWARD = torch.ops.sparsedrop.slice_out_linear_backward.default
