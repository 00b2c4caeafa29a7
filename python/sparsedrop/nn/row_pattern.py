"""RowPatternMLP: a feed-forward block of which every so many-th hidden unit is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop import operands
from sparsedrop.masks import check_p, check_scale, probabilities
from sparsedrop.nn.activated import Activated
from sparsedrop.nn.rated import Patterned
from sparsedrop.nn.stack import activate, check_linears, is_plain
from sparsedrop.ops import check_activation
from sparsedrop.ops.rows import Parameters, drop_units, feed_forward, feed_forward_at_once
from sparsedrop.ops.stack import Layer


class RowPatternMLP(Patterned, Activated):
    """`down(dropout(act(up(x))))`, or with a gate `down(dropout(act(gate(x)) * up(x)))`.

    Hidden units are dropped by the row pattern of Approximate Random Dropout (Song et al. 2018):
    of a period and an offset, drawn in each forward pass for all rows of x, the units offset,
    offset + period, ... are kept, and nothing else is computed, stored or differentiated. Each unit
    is dropped with probability p; units are not dropped independently of one another. In evaluation
    it is the dense block.

    A pattern is drawn on the host from torch's default CPU generator, and nothing waits for a GPU.
    In a CUDA graph that you capture, a pattern is fixed at the capture: every replay has the same.
    Under torch.compile each step draws one, without compiling again.

    `up`, `gate` and `down` are nn.Linear modules, with their names, shapes and values in the
    `state_dict`. The memory of `down.weight` alone is laid out by columns, strides (1, d_out), so
    that the weights of kept units are read in place. Optimizers, checkpoints and adapters see
    strides only. What insists on rows, FSDP2, `safetensors.torch.save_file`, `torch.optim.LBFGS`
    and `parameters_to_vector`, needs `turned = False` before it, or `.contiguous()` of what is
    saved. Where a module was replaced by another kind, or has hooks, they are called instead, and
    the hidden units masked.

    Args:
        d_model: features of the input.
        d_hidden: hidden features.
        d_out: features of the output; None: those of the input.
        p: drop probability of the hidden units; may be set later.
        activation: "relu", "gelu" (the exact one), "gelu_tanh" or "silu"; None: there is none.
        bias: of the linear layers.
        gated: whether there is a gate; it shares the pattern of `up`.
        patterns: of how many periods one is drawn: 1, ..., patterns.
        scale: of kept units: "global" is 1 / (1 - p), "pattern" the period. Both keep each unit's
            expectation; with "pattern" a sum over units varies less.
        device: as for nn.Linear.
        dtype: as for nn.Linear.

    Raises:
        ValueError, TypeError: if an argument is invalid, and for p above (patterns - 1) / patterns,
            the largest rate that the periods give.
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
        patterns: int = 8,
        scale: str = "global",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # All of it before a parameter is drawn.
        probabilities(check_p(p), patterns), check_scale(scale), check_activation(activation)
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.up = nn.Linear(d_model, d_hidden, bias, **where)
        self.gate = nn.Linear(d_model, d_hidden, bias, **where) if gated else None
        self.down = nn.Linear(d_hidden, d_model if d_out is None else d_out, bias, **where)
        self._drops(p, patterns, scale)
        self.activation = activation
        self.turned = True
        self.register_load_state_dict_post_hook(_lay_out)

    @classmethod
    def from_linears(
        cls,
        up: nn.Linear,
        down: nn.Linear,
        p: float = 0.5,
        *,
        gate: nn.Linear | None = None,
        activation: str | None = "gelu",
        patterns: int = 8,
        scale: str = "global",
    ) -> RowPatternMLP:
        """The block of these layers, which it holds; in the training mode of `up`.

        The weight of `down` is laid out by columns: see `turned`.

        Args:
            up: [d_model -> d_hidden].
            down: [d_hidden -> d_out].
            p: as for the constructor.
            gate: of the extents of `up`.
            activation: as for the constructor.
            patterns: likewise.
            scale: likewise.

        Raises:
            TypeError: where one of them is no nn.Linear.
            ValueError: where their features do not fit.
        """
        check_linears(up, gate, down)
        # On the meta device nothing is allocated or drawn for layers that are replaced at once.
        block = cls(
            1, 1, 1, p, activation=activation, gated=gate is not None, patterns=patterns,
            scale=scale, device="meta",
        )  # fmt: skip
        block.up, block.gate, block.down = up, gate, down
        _lay_out(block)
        return block.train(up.training)

    @property
    def turned(self) -> bool:
        """Whether `down.weight` lies by columns; by rows its kept columns are copied each time."""
        return self._turned

    @turned.setter
    def turned(self, turned: bool) -> None:
        self._turned = turned
        _lay_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> [..., d_out]."""
        up, gate, down = self.up, self.gate, self.down
        rows = self._rows()
        if rows is None or not all(is_plain(m) for m in (up, gate, down) if m is not None):
            hidden = activate(self._activation, up(x) if gate is None else gate(x))
            hidden = hidden if gate is None else hidden * up(x)
            return down(hidden if rows is None else drop_units(hidden, rows))
        gate_weight, gate_bias = (None, None) if gate is None else (gate.weight, gate.bias)
        first = Layer(up.weight, up.bias, self._activation, gate_weight, gate_bias)
        layers, drawn = (first, Layer(down.weight, down.bias)), None
        if not torch.compiler.is_compiling():
            drawn = rows.draw(up.out_features)
            out = feed_forward_at_once(x, layers, drawn)
            if out is not None:
                return out
        dtype = operands.check_stack(x, layers)
        full = Parameters(up.weight, up.bias, gate_weight, gate_bias, down.weight, down.bias)
        return feed_forward(x, full, self._activation, rows, dtype, drawn)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, {super().extra_repr()}"


def _lay_out(block: RowPatternMLP, *_: Any) -> None:
    """Lays out the memory of down's weight; after a state_dict was loaded by assignment, again."""
    weight = getattr(block.down, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.dim() == 2:
        rows = weight.data.t() if block.turned else weight.data
        if not rows.is_contiguous():
            rows = rows.contiguous()
            weight.data = rows.t() if block.turned else rows
