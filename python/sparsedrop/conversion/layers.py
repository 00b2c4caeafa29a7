"""What a converted model's modules become: layers that drop on either side, and stand-ins."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsedrop import functional
from sparsedrop._torch import is_in_backward
from sparsedrop.masks import BlockMask, check_p, draw, scale
from sparsedrop.nn.rated import DropoutRate, Rated, applied_rate_of
from sparsedrop.operands import rows_of
from sparsedrop.ops.layer import Options
from sparsedrop.ops.stack import Dropped
from sparsedrop.sharded import are_sharded


class Served:
    """The layers that do a dropout's work. They have it as a child, so it does not keep them."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = [weakref.ref(layer) for layer in layers]

    def __iter__(self) -> Iterator[nn.Module]:
        return (layer for ref in self._layers if (layer := ref()) is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Served, (list(self),)


class DropoutStandIn(DropoutRate):
    """At the place of a dropout whose work layers do: it holds the rate.

    Called, it returns its argument. The layers have it as a child, too, so that the rate and the
    training flag are the dropout's own. Its attribute `served` says which they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """What it is given."""
        return input


class Handover:
    """The mask of a hidden value on its way from the layer that makes it to the one that reads it.

    It is empty between two steps: neither a copy nor a file of the model has a mask in it. There is
    one for each device, on which nn.DataParallel runs replicas that share this object.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.masks: dict[torch.device, Any] = {}
        # Of the masks, those of an activation checkpoint that runs the layer before it again.
        self._again: set[torch.device] = set()

    def give(self, device: torch.device, mask: Any) -> None:
        """Keeps the mask of a new hidden value for the layer that reads it.

        Warns: where that of the value before it was not taken, as only a checkpoint may leave it.
        """
        if not torch.compiler.is_compiling():
            if device in self.masks and device not in self._again:
                warnings.warn(NOT_TAKEN, stacklevel=3)
            (self._again.add if is_in_backward() else self._again.discard)(device)
        self.masks[device] = mask

    def __getstate__(self) -> dict[str, Any]:
        return {"kind": self.kind, "masks": {}, "_again": set()}


NOT_TAKEN = (
    "a converted layer drops its result, and the layer that was behind it and scales what is left "
    "has not run since: replace layers before a model is converted, and copy it as a whole"
)


@dataclass
class Side:
    """The input or the output of a layer, where blocks of it are dropped.

    Without `handover` the layer draws a mask of its own and scales what is left. With one, the mask
    is that of a hidden value: of the layers that make it the one that `draws` draws it, the others
    use it too, and the layer that reads the value takes it, and scales.
    """

    block_shape: tuple[int, int]
    sampler: str
    handover: Handover | None = None
    draws: bool = True

    def drawn(self, x: Tensor, features: int, p: float) -> BlockMask:
        """A new mask for a matrix of the rows of x."""
        return draw(self.sampler, (rows_of(x), features), p, self.block_shape, x.device, None)

    def for_output(self, x: Tensor, features: int, p: float) -> BlockMask:
        """The mask of the result of a layer whose input is x."""
        if self.handover is None:
            return self.drawn(x, features, p)
        if self.draws:
            self.handover.give(x.device, self.drawn(x, features, p))
        mask = self.handover.masks.get(x.device)
        if mask is None:
            raise RuntimeError(
                "the layer that draws the mask of this hidden value has not run before this one, "
                "as it did when the model was converted: revert the model, and convert it anew"
            )
        return mask

    def for_input(self, x: Tensor, p: float) -> BlockMask:
        """The mask of a layer's input; it is handed over once."""
        mask = None
        if self.handover is not None:
            mask = self.handover.masks.pop(x.device, None)
            if mask is None and not torch.compiler.is_compiling() and is_in_backward():
                raise RuntimeError(
                    "a converted layer is run again in the backward pass, but not the layers "
                    "before it, whose mask it needs: checkpoint the whole block, from the layer "
                    "before the activation to the one behind the dropout"
                )
        return self.drawn(x, x.shape[-1], p) if mask is None else mask


class Dropping(Protocol):
    """A side of a layer that is dropped: by something of its own, or by what is handed over."""

    @property
    def handover(self) -> Handover | None:
        """By which layers around a hidden value know what lives; None: of its own."""


class Converted(Rated):
    """A linear layer whose input, output or both are dropped, as `incoming` and `outgoing` say.

    Its children `dropout`, of the input, and `out_dropout`, of the output, hold the rates. Where
    neither is applied it runs exactly what it ran before it was converted.
    """

    incoming: Dropping | None
    outgoing: Dropping | None

    @property
    def p(self) -> float:
        """The rate of the input, or where only the output is dropped, of that; 0 where the dropout
        was replaced by something else."""
        rates = self._rates()
        return check_p(rates[0].p) if rates else 0.0

    @p.setter
    def p(self, p: float) -> None:
        for rate in self._rates():
            rate.p = self.check_rate(p)

    def _rates(self) -> list[nn.Dropout]:
        children = (self._modules.get(name) for name in ("dropout", "out_dropout"))
        return [child for child in children if isinstance(child, nn.Dropout)]

    def _applied(self) -> tuple[float, float]:
        """The rates of the input and of the output that are applied now."""
        children = self._modules
        return applied_rate_of(children.get("dropout")), applied_rate_of(
            children.get("out_dropout")
        )

    def _size(self) -> str:
        raise NotImplementedError


class _ByBlocks(Converted):
    """Blocks are dropped of the input, the output or both."""

    incoming: Side | None
    outgoing: Side | None

    def _alone(self, p: float, out_p: float) -> tuple[float, Side, str] | None:
        """Rate, side and its name, where one side has a mask of its own and nothing else drops."""
        for rate, other, side, name in (
            (p, out_p, self.incoming, "input"),
            (out_p, p, self.outgoing, "output"),
        ):
            if rate > 0.0 and other == 0.0 and side is not None and side.handover is None:
                return rate, side, name
        return None

    def _dropped(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        p: float,
        out_p: float,
        *,
        turned: bool = False,
    ) -> Tensor:
        """`dropout(linear(dropout(x, p), weight, bias), out_p)`; a hidden result is not scaled.

        The weight is [n, k], or with `turned` [k, n].
        """
        alone = self._alone(p, out_p)
        if alone is not None:
            rate, side, name = alone
            how = Options(rate, side.block_shape, side.sampler, side=name, weight_turned=turned)
            return functional.dropped_linear(x, weight, bias, how, True)
        weight = weight.t() if turned else weight
        if not torch.compiler.is_compiling() and are_sharded(x, weight):
            return self._dropped_in_shards(x, weight, bias, p, out_p)
        x_mask = out_mask = None
        alpha = 1.0
        if self.incoming is not None and p > 0.0:
            x_mask, alpha = self.incoming.for_input(x, p), scale(p)
        if self.outgoing is not None and out_p > 0.0:
            out_mask = self.outgoing.for_output(x, weight.shape[0], out_p)
            if self.outgoing.handover is None:
                alpha *= scale(out_p)
                bias = None if bias is None else bias * scale(out_p)
        return functional.linear(x, weight, bias, x_mask=x_mask, out_mask=out_mask, alpha=alpha)

    def _dropped_in_shards(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, p: float, out_p: float
    ) -> Tensor:
        """The same for DTensors: a hidden value is dropped where it is read, each rank's part by a
        mask of its own, unless the layer before it was whole and has dropped it."""
        incoming, outgoing = self.incoming, self.outgoing
        if incoming is None or p == 0.0:
            out = nn.functional.linear(x, weight, bias)
        elif (
            incoming.handover is not None
            and incoming.handover.masks.pop(x.device, None) is not None
        ):
            out = nn.functional.linear(x * scale(p), weight, bias)
        else:
            how = Options(p, incoming.block_shape, incoming.sampler, side="input")
            out = functional.dropped_linear(x, weight, bias, how, True)
        if outgoing is None or out_p == 0.0 or outgoing.handover is not None:
            return out
        dropped = Dropped((out_p,), outgoing.block_shape, outgoing.sampler)
        return functional.dropped_activation(out, 0, dropped)

    def extra_repr(self) -> str:
        sides = (("input", self.incoming), ("output", self.outgoing))
        dropped = [
            f"{name}: block_shape={side.block_shape}, sampler={side.sampler!r}"
            for name, side in sides
            if side is not None
        ]
        return ", ".join([self._size(), *dropped])


class ConvertedLinear(_ByBlocks, nn.Linear):
    """See `Converted`: an nn.Linear, of which blocks are dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        p, out_p = self._applied()
        if p == 0.0 and out_p == 0.0:
            return nn.functional.linear(x, self.weight, self.bias)
        return self._dropped(x, self.weight, self.bias, p, out_p)

    def _size(self) -> str:
        return nn.Linear.extra_repr(self)


class ConvertedConv1D(_ByBlocks):
    """See `Converted`: Hugging Face's Conv1D, whose weight is [in, out]."""

    weight: Tensor
    bias: Tensor
    nf: int

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., nf]."""
        p, out_p = self._applied()
        if p == 0.0 and out_p == 0.0:
            flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
            return flat.view(*x.shape[:-1], self.nf)
        return self._dropped(x, self.weight, self.bias, p, out_p, turned=True)

    def _size(self) -> str:
        return f"nf={self.nf}, nx={self.weight.shape[0]}"
