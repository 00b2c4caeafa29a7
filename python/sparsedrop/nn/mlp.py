"""SparseDropMLP: a feed-forward block whose dropped hidden units cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop.functional import dropped_feed_forward, dropped_stack
from sparsedrop.masks import check_block_shape, check_p, check_sampler
from sparsedrop.nn.activated import Activated
from sparsedrop.nn.coarse import warn_if_coarse
from sparsedrop.nn.features import check_features
from sparsedrop.nn.rated import Blocked, applied_rate_of, rate_of
from sparsedrop.nn.stack import (
    activate,
    apply_by_modules,
    check_linears,
    is_plain,
    runs_as_linear,
)
from sparsedrop.ops import check_activation
from sparsedrop.ops.explaining import ONE_BY_ONE, explain_stack, where
from sparsedrop.ops.stack import Dropped, Layer


class SparseDropMLP(Blocked, Activated):
    """`down(dropout(act(up(x))))`, or with a gate `down(dropout(act(gate(x)) * up(x)))`.

    Blocks of the hidden activation are dropped with probability p, and with `out_p` blocks of the
    output (Lo 2024). What is dropped is neither computed nor differentiated, on both sides of the
    hidden activation: all products of a training step have 1 - p of their work. In evaluation it is
    the dense block.

    `up`, `gate` and `down` are nn.Linear modules. Where one was replaced by another kind of module,
    or has hooks, they are called instead, with dropout between them.

    Args:
        d_model: features of the input.
        d_hidden: hidden features.
        d_out: features of the output; None: those of the input.
        p: drop probability of the hidden activation, in [0, 1]; may be set later.
        activation: "relu", "gelu" (the exact one), "gelu_tanh" or "silu"; None: there is none.
        bias: of the linear layers.
        gated: whether there is a gate; it shares the mask of `up`.
        out_p: drop probability of the output, bias included; may be set later.
        block_shape: rows and columns of a block, of what is dropped flattened to [M, features].
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).
        device: as for nn.Linear.
        dtype: as for nn.Linear.

    Raises:
        ValueError, TypeError: if a rate, a number of features, the activation, the block shape or
            the sampler is invalid.
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
        out_p: float = 0.0,
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # All of it before a parameter is drawn.
        check_p(p), check_p(out_p), check_block_shape(block_shape), check_sampler(sampler)
        check_activation(activation)
        d_model, d_hidden = check_features("d_model", d_model), check_features("d_hidden", d_hidden)
        d_out = d_model if d_out is None else check_features("d_out", d_out)
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.up = nn.Linear(d_model, d_hidden, bias, **where)
        self.gate = nn.Linear(d_model, d_hidden, bias, **where) if gated else None
        self.down = nn.Linear(d_hidden, d_out, bias, **where)
        self._drops(p, activation, out_p, block_shape, sampler)

    def _drops(
        self,
        p: float,
        activation: str | None,
        out_p: float,
        block_shape: tuple[int, int],
        sampler: str,
    ) -> None:
        self.p, self.activation = p, activation
        self.block_shape, self.sampler = block_shape, sampler
        if out_p:
            self.out_p = out_p
        self._is_new = True

    @classmethod
    def from_linears(
        cls,
        up: nn.Linear,
        down: nn.Linear,
        p: float = 0.5,
        *,
        gate: nn.Linear | None = None,
        activation: str | None = "gelu",
        out_p: float = 0.0,
        block_shape: tuple[int, int] = (128, 128),
        sampler: str = "bernoulli",
    ) -> SparseDropMLP:
        """The block of these layers, which it holds; in the training mode of `up`.

        Args:
            up: [d_model -> d_hidden].
            down: [d_hidden -> d_out].
            p: as for the constructor.
            gate: of the extents of `up`.
            activation: as for the constructor.
            out_p: likewise.
            block_shape: likewise.
            sampler: likewise.

        Raises:
            TypeError: where one of them is no nn.Linear.
            ValueError: where their features do not fit.
        """
        check_linears(up, gate, down)
        check_p(p), check_p(out_p), check_activation(activation)
        # On the meta device nothing is allocated or drawn for layers that are replaced at once.
        block = cls(1, 1, 1, p, gated=gate is not None, device="meta")
        block.up, block.gate, block.down = up, gate, down
        block._drops(p, activation, out_p, block_shape, sampler)
        return block.train(up.training)

    @property
    def out_p(self) -> float:
        """Drop probability of the output. It lives in a child `out_dropout`, as p in `dropout`."""
        return rate_of(self._modules.get("out_dropout"))

    @out_p.setter
    def out_p(self, out_p: float) -> None:
        self._set_rate("out_dropout", out_p)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> [..., d_out]."""
        modules = self._modules
        p, out_p = (applied_rate_of(modules.get(name)) for name in ("dropout", "out_dropout"))
        up, gate, down = self.up, self.gate, self.down
        dropped = Dropped((0.0, p, out_p), self._block_shape, self._sampler)
        if not (is_plain(up) and is_plain(down) and (gate is None or is_plain(gate))):
            linears = [up, down] if gate is None else [up, gate, down]
            if (p or out_p) and all(runs_as_linear(linear) for linear in linears):
                found = dropped_feed_forward(x, (up, gate, down), self._activation, dropped)
                if found is not None:
                    return found
            hidden = activate(self._activation, up(x) if gate is None else gate(x))
            hidden = hidden if gate is None else hidden * up(x)
            return apply_by_modules(hidden, [down], [None], dropped._replace(rates=(p, out_p)))
        if p and not torch.compiler.is_compiling() and self._is_new:
            self._is_new = False
            warn_if_coarse("hidden activation", x, up.out_features, p, self._block_shape)
        return dropped_stack(x, self._layers(), dropped, True)

    def _layers(self) -> tuple[Layer, Layer]:
        up, gate, down = self.up, self.gate, self.down
        of_gate = () if gate is None else (gate.weight, gate.bias)
        return Layer(up.weight, up.bias, self._activation, *of_gate), Layer(down.weight, down.bias)

    def explain(
        self,
        rows: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> str:
        """How a training step of so many rows would run, and why: as `SparseDropLinear.explain`."""
        modules = [self.up, self.down] if self.gate is None else [self.up, self.gate, self.down]
        if not all(map(is_plain, modules)):
            return ONE_BY_ONE
        at = where(rows, self.up.weight, dtype, device)
        dropped = Dropped((0.0, self.p, self.out_p), self._block_shape, self._sampler)
        names = ["up", "down"] if self.gate is None else ["gate", "up", "down"]
        return explain_stack(at, self._layers(), dropped, names)

    def extra_repr(self) -> str:
        return (
            f"activation={self.activation!r}, block_shape={self.block_shape}, "
            f"sampler={self.sampler!r}"
        )
