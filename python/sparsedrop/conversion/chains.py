"""Converted layers that follow one another in an nn.Sequential: they run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from sparsedrop import functional, operands, sharded
from sparsedrop._torch import has_global_hooks, is_watched
from sparsedrop.conversion.layers import Converted, ConvertedLinear, DropoutStandIn
from sparsedrop.conversion.swapping import Swap
from sparsedrop.conversion.unit_chains import UnitChain
from sparsedrop.conversion.units import UnitLinear
from sparsedrop.nn.stack import layers_of
from sparsedrop.ops import stack as stacks
from sparsedrop.ops.stack import Dropped


class ConvertedSequential(nn.Sequential):
    """An nn.Sequential that runs converted layers around hidden values together: of blocks as a
    `SparseDropStack` does, in one call each way, and of units by one autograd node.

    They are called one by one where a hook is on one of them or on what is between them, and where
    another module has been put in the place of one.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential's."""
        modules, at = list(self), 0
        while at < len(modules):
            chain = chain_from(modules, at)
            found = None if chain is None else chain.run(input)
            if chain is None or found is None:
                input, at = modules[at](input), at + 1
            else:
                input, at = found, chain.stop
        return input


class BlockChain(NamedTuple):
    """Layers with a hidden value between each and the next, the activations behind them, and the
    position behind the last."""

    layers: tuple[ConvertedLinear, ...]
    activations: tuple[str | None, ...]
    stop: int

    def run(self, x: Tensor) -> Tensor | None:
        """The result for x [..., features]; None where the modules had better run one by one."""
        dropped = self._dropped()
        if dropped is None:
            return None
        layers = layers_of(self.layers, self.activations)
        if not torch.compiler.is_compiling() and sharded.are_sharded(x):
            return functional.dropped_stack(x, layers, dropped, True)
        if not x.is_cuda:
            is_seen = is_watched(x) and not torch.compiler.is_compiling()
            return None if is_seen else functional.dropped_stack(x, layers, dropped, True)
        if torch.compiler.is_compiling():
            dtype = operands.check_stack(x, layers)
            suits = stacks.suits_compiler(x, layers, dropped, dtype)
            return functional.dropped_stack(x, layers, dropped, True) if suits else None
        stack = stacks.stack_of(x, layers, dropped)
        return None if stack is None else stacks.run_stack(x, layers, dropped, stack)

    def _dropped(self) -> Dropped | None:
        """What is dropped now; None where nothing is, or not by one block shape and sampler."""
        applied = [layer._applied() for layer in self.layers]
        rates = applied[0][0], *(out_p for _, out_p in applied)
        if not any(rates) or any(p != rates[i] for i, (p, _) in enumerate(applied)):
            return None
        sides = [s for layer in self.layers for s in (layer.incoming, layer.outgoing) if s]
        ways = {(side.block_shape, side.sampler) for side in sides}
        return Dropped(rates, *ways.pop()) if len(ways) == 1 else None


Chain = BlockChain | UnitChain


def chain_from(modules: Sequence[nn.Module], start: int) -> Chain | None:
    """The chain that begins there; None: there is none."""
    first = modules[start]
    if not _is_link(first) or not _hands_over(first) or _takes_over(first):
        return None
    kind = _kind_of(first)
    assert kind is not None
    layers, activations = [first], [""]
    at, is_dropped = start + 1, False
    while at < len(modules):
        module, last = modules[at], layers[-1]
        if isinstance(module, Converted):
            if not _hands_over(last) or not _is_link(module) or not _follows(module, last):
                break
            layers.append(module)
            activations.append("")
            is_dropped = False
        elif _has_hooks(module):
            break
        elif _is_identity(module):
            is_dropped = is_dropped or isinstance(module, DropoutStandIn)
        else:
            name = _activation_of(module)
            drops_result = last.outgoing is not None and not _hands_over(last)
            if name is None or activations[-1] or is_dropped or drops_result:
                break
            activations[-1] = name
        at += 1
    if len(layers) < 2 or _hands_over(layers[-1]):
        return None
    return kind(tuple(layers), tuple(name or None for name in activations), at)


def _kind_of(module: nn.Module) -> Callable[[Any, Any, int], Chain] | None:
    """The kind of chain that it is a link of; None where it runs another forward."""
    code = getattr(module.forward, "__code__", None)
    if isinstance(module, ConvertedLinear) and code is ConvertedLinear.forward.__code__:
        return BlockChain
    if isinstance(module, UnitLinear) and code is UnitLinear.forward.__code__:
        return UnitChain
    return None


def _is_link(module: nn.Module) -> TypeGuard[Converted]:
    """Whether a call of it runs our forward, and nobody sees it."""
    return isinstance(module, Converted) and not _has_hooks(module) and _kind_of(module) is not None


def _has_hooks(module: nn.Module) -> bool:
    return has_global_hooks() or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _hands_over(layer: Converted) -> bool:
    """Whether the result is a hidden value that another layer reads."""
    return layer.outgoing is not None and layer.outgoing.handover is not None


def _takes_over(layer: Converted) -> bool:
    """Whether it reads the hidden value of another layer."""
    return layer.incoming is not None and layer.incoming.handover is not None


def _follows(layer: Converted, before: Converted) -> bool:
    """Whether it reads the hidden value that the other makes."""
    incoming, outgoing = layer.incoming, before.outgoing
    if incoming is None or outgoing is None:
        return False
    return incoming.handover is outgoing.handover


def _is_identity(module: nn.Module) -> bool:
    """Whether a call of it returns its argument: subclasses and instances may do something else."""
    return type(module) in (DropoutStandIn, nn.Identity) and "forward" not in vars(module)


def _activation_of(module: nn.Module) -> str | None:
    """Its name among `ops.ACTIVATIONS`; None where it is none of those."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))


def is_sequential(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it calls its children one after the other, and does nothing else."""
    is_one = type(module) is nn.Sequential or isinstance(module, ConvertedSequential)
    return is_one and "forward" not in vars(module)


def chain_swaps(model: nn.Module) -> list[Swap]:
    """What each nn.Sequential of a converted model becomes that has a chain."""
    return [
        Swap(module, ConvertedSequential, {}, {})
        for module in model.modules()
        if is_sequential(module)
        and not isinstance(module, ConvertedSequential)
        and any(chain_from(list(module), i) is not None for i in range(len(module)))
    ]
