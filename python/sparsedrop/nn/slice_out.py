"""SliceOutMLP: a feed-forward block that works on a slice of its hidden units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop._torch import is_exporting
from sparsedrop.masks import check_sliced_p, check_starts
from sparsedrop.nn.activated import Activated
from sparsedrop.nn.rated import applied_rate_of
from sparsedrop.nn.sliced import Sliced, check_align, check_gradients
from sparsedrop.nn.stack import activate, check_linears, is_plain
from sparsedrop.ops import check_activation
from sparsedrop.ops.slices import check_normalization
from sparsedrop.ops.stack import Layer
from sparsedrop.slice_out.feed_forward import drop_units, dropped_feed_forward


class SliceOutMLP(Sliced, Activated):
    """`down(dropout(act(up(x))))`, or with a gate `down(dropout(act(gate(x)) * up(x)))`.

    In training a slice of neighbouring hidden units is kept, a new one in each forward pass (Notin
    et al. 2020): dense products of views of the weights, forward and backward. What is dropped is
    neither computed nor stored. In evaluation it is the dense block.

    A slice is drawn on the host, from torch's default CPU generator. A CUDA graph repeats the slice
    that was drawn when it was captured: use `sparsedrop.capture`, which makes several, or eager
    mode or torch.compile, whose programs draw at each run.

    `up`, `gate` and `down` are nn.Linear modules. Where one was replaced by another kind of module,
    or has hooks, they are called instead, and the hidden activation is masked: right, and no
    faster.

    Args:
        d_model: features of the input.
        d_hidden: hidden units.
        d_out: features of the output; None: those of the input.
        p: drop probability of the hidden units, in [0, 1); may be set later. Kept are `align` times
            round((1 - p) * d_hidden / align) of them, at least `align`.
        activation: "relu", "gelu" (the exact one), "gelu_tanh" or "silu"; None: there is none.
        bias: of the linear layers.
        gated: whether there is a gate; it shares the slice of `up`.
        align: what starts and lengths of slices are multiples of; where it does not divide
            d_hidden, their largest common divisor.
        starts: "cyclic", "aligned" or "all", as for `Slice.draw`.
        normalization: "constant" (live units times d_hidden over the kept ones), "probabilistic"
            (each times the inverse of how often it is kept, which differs from "constant" unless
            `starts` is "cyclic") or "none" (for a batch norm that follows).
        gradients: "dense", or "lazy" (gradients and optimiser steps of the slice alone: see
            `sparsedrop.slice_out.lazy`).
        device: as for nn.Linear.
        dtype: as for nn.Linear.

    Raises:
        ValueError, TypeError: if one of these is invalid; p = 1 would leave nothing.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        d_out: int | None = None,
        p: float = 0.5,
        *,
        activation: str | None = "gelu",
        bias: bool = True,
        gated: bool = False,
        align: int = 64,
        starts: str = "cyclic",
        normalization: str = "constant",
        gradients: str = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # All of it before a parameter is drawn.
        check_sliced_p(p), check_align(align), check_starts(starts), check_activation(activation)
        check_normalization(normalization), check_gradients(gradients)
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.up = nn.Linear(d_model, d_hidden, bias, **where)
        self.gate = nn.Linear(d_model, d_hidden, bias, **where) if gated else None
        self.down = nn.Linear(d_hidden, d_model if d_out is None else d_out, bias, **where)
        self.p, self.activation = p, activation
        self.align, self.starts = align, starts
        self.normalization, self.gradients = normalization, gradients

    @classmethod
    def from_linears(
        cls,
        up: nn.Linear,
        down: nn.Linear,
        p: float = 0.5,
        *,
        gate: nn.Linear | None = None,
        activation: str | None = "gelu",
        align: int = 64,
        starts: str = "cyclic",
        normalization: str = "constant",
        gradients: str = "dense",
    ) -> SliceOutMLP:
        """The block of these layers, which it holds; in the training mode of `up`.

        Args:
            up: [d_model -> d_hidden].
            down: [d_hidden -> d_out].
            p: as for the constructor.
            gate: of the extents of `up`.
            activation: as for the constructor.
            align: likewise.
            starts: likewise.
            normalization: likewise.
            gradients: likewise.

        Raises:
            TypeError: where one of them is no nn.Linear.
            ValueError: where their features do not fit.
        """
        check_linears(up, gate, down)
        # On the meta device nothing is allocated or drawn for layers that are replaced at once.
        block = cls(
            1, 1, 1, p, activation=activation, gated=gate is not None, align=align, starts=starts,
            normalization=normalization, gradients=gradients, device="meta",
        )  # fmt: skip
        block.up, block.gate, block.down = up, gate, down
        return block.train(up.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> [..., d_out]."""
        p = applied_rate_of(self._modules.get("dropout"))
        up, gate, down = self.up, self.gate, self.down
        if not p or not (is_plain(up) and is_plain(down) and (gate is None or is_plain(gate))):
            return self._by_modules(x, p)
        choice = self.choice(up.out_features, p)
        if not self._leaves_out(choice, "hidden units") or is_exporting():
            return self._by_modules(x, p)
        layers = (
            Layer(up.weight, up.bias, self._activation)
            if gate is None
            else Layer(up.weight, up.bias, self._activation, gate.weight, gate.bias),
            Layer(down.weight, down.bias),
        )
        return dropped_feed_forward(x, layers, choice, self._gradients == "lazy")

    def _by_modules(self, x: Tensor, p: float) -> Tensor:
        if self.gate is None:
            hidden = activate(self._activation, self.up(x))
        else:
            hidden = activate(self._activation, self.gate(x)) * self.up(x)
        if p:
            hidden = drop_units(hidden, self.choice(hidden.shape[-1], p))
        return self.down(hidden)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, {super().extra_repr()}"
