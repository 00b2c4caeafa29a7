"""Layers, stacks and feed-forward blocks of DTensors: tensor parallelism, and sharded batches.

Each rank runs the layer of its shards. What is dropped has the same mask on every rank where it is
replicated: drawn from torch's default generator, whose state the first layer of a mesh takes over
from its first rank. Where it is sharded each rank has a mask of its own, from a generator that is
seeded by that one and the rank.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sparsedrop import _native
from sparsedrop.masks import host_state
from sparsedrop.ops.layer import Options
from sparsedrop.ops.stack import Dropped, Layer, drop_at, parameters_of, stack_plain

Local = Callable[[Tensor, Tensor, "Tensor | None", Options], Tensor]
"""A layer of plain tensors."""


def are_sharded(*tensors: Tensor | None) -> bool:
    """Whether one of them is a DTensor; without importing what makes them."""
    dtensors = sys.modules.get("torch.distributed.tensor")
    return dtensors is not None and any(isinstance(t, dtensors.DTensor) for t in tensors)


class _Case(NamedTuple):
    """How the operands lie along one extent of the mesh, their gradients, and the result."""

    x: Any
    weight: Any
    x_grad: Any
    weight_grad: Any
    bias: Any
    bias_grad: Any
    out: Any
    # Whether a bias is added up over the ranks.
    shares_bias: bool = False


def dropout_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, local: Local
) -> Tensor:
    """A layer of DTensors on one mesh; the result is one, too.

    Raises:
        ValueError: where their placements do not make a layer, with the placements.
    """
    from torch.distributed.tensor import DTensor

    mesh = next(t.device_mesh for t in (weight, x, bias) if isinstance(t, DTensor))
    x_laid, weight_laid = _laid(x, mesh), _laid(weight, mesh)
    cases = [
        _case_of(*placements, x.dim() - 1)
        for placements in zip(x_laid.placements, weight_laid.placements, strict=True)
    ]
    own_bias = None
    if bias is not None:
        spread = _laid(bias, mesh).redistribute(mesh, [case.bias for case in cases])
        own_bias = spread.to_local(grad_placements=[case.bias_grad for case in cases])
        shares = [mesh.size(i) for i, case in enumerate(cases) if case.shares_bias]
        for share in shares:
            own_bias = own_bias / share
    out = local(
        x_laid.to_local(grad_placements=[case.x_grad for case in cases]),
        weight_laid.to_local(grad_placements=[case.weight_grad for case in cases]),
        own_bias,
        _seeded(options, mesh, [_has_one_mask(case, options) for case in cases], x_laid.device),
    )
    return DTensor.from_local(out, mesh, [case.out for case in cases], run_check=False)


def _laid(tensor: Tensor, mesh: Any) -> Any:
    """A tensor of a mesh: a plain one is the same on all ranks."""
    from torch.distributed.tensor import DTensor, Replicate

    if isinstance(tensor, DTensor):
        return tensor
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _has_one_mask(case: _Case, options: Options) -> bool:
    """Whether all ranks along an extent drop the same: sums over ranks are dropped by their parts,
    of which each has the mask of the whole."""
    return not case.out.is_shard() if options.drops_output else case.x.is_replicate()


def _case_of(x: Any, weight: Any, last: int) -> _Case:
    from torch.distributed.tensor import Partial, Replicate, Shard

    whole, partial = Replicate(), Partial()
    if x.is_replicate() and weight.is_replicate():
        return _Case(x, weight, whole, whole, whole, whole, whole)
    if x.is_replicate() and weight.is_shard(0):  # by columns
        return _Case(x, weight, partial, weight, Shard(0), Shard(0), Shard(last))
    if x.is_shard(last) and weight.is_shard(1):  # by rows
        return _Case(x, weight, x, weight, whole, partial, partial, shares_bias=True)
    if x.is_shard() and not x.is_shard(last) and weight.is_replicate():  # a part of the batch
        return _Case(x, weight, x, partial, whole, partial, x)
    raise ValueError(
        f"x is placed {x} and weight {weight} along one extent of the mesh: a layer has x "
        "replicated and weight replicated or sharded by rows, both sharded by columns, or x "
        "sharded along another extent and weight replicated"
    )


Drops = TypeVar("Drops", Options, Dropped)
"""What is dropped of a layer, or of a stack."""

_in_step: set[tuple[int, int]] = set()
"""Meshes, and their extents, whose ranks' generators had the same state once."""

_generators: dict[torch.device, torch.Generator] = {}


def _seeded(options: Drops, mesh: Any, replicated: list[bool], device: torch.device) -> Drops:
    """What is dropped with the generator that this rank's mask is drawn from."""
    for i, is_replicated in enumerate(replicated):
        if is_replicated and options.generator is None and (hash(mesh), i) not in _in_step:
            _bring_in_step(mesh, i, device)
            _in_step.add((hash(mesh), i))
    if all(replicated):
        return options
    own = [mesh.get_local_rank(i) for i, is_whole in enumerate(replicated) if not is_whole]
    return options._replace(generator=_own_generator(options.generator, own, device))


def _own_generator(
    generator: torch.Generator | None, own: list[int], device: torch.device
) -> torch.Generator:
    """This rank's generator, seeded by one that all ranks have in step and its place in a mesh."""
    text = f"{_next_state(generator, device)} {own}"
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    found = _generators.setdefault(device, torch.Generator(device))
    return found.manual_seed(int.from_bytes(digest, "little"))


Stack = Callable[[Tensor, "tuple[Layer, ...]", Dropped, bool], Tensor]
"""Layers of plain tensors, in training."""


def drop(x: Any, index: int, dropped: Dropped) -> Any:
    """A DTensor as a stack drops it in that place: parts of a sum over the ranks by one mask, as
    the whole."""
    from torch.distributed.tensor import DTensor

    if dropped.rates[index] == 0.0:
        return x
    mesh, placements = x.device_mesh, x.placements
    dropped = _seeded(dropped, mesh, [not p.is_shard() for p in placements], x.device)
    # Shards may be uneven, and the result of dropping is contiguous.
    lies = {"shape": x.shape, "stride": torch.empty(x.shape, device="meta").stride()}
    own = drop_at(x.to_local(), index, dropped)
    return DTensor.from_local(own, mesh, placements, run_check=False, **lies)


def stack(x: Any, layers: tuple[Layer, ...], dropped: Dropped) -> Any:
    """A stack of DTensors on one mesh: torch's layers, with dropout between them."""
    from torch.distributed.tensor import DTensor

    given = x, *parameters_of(layers)
    mesh: Any = next(t.device_mesh for t in given if isinstance(t, DTensor))
    x = _laid(x, mesh)
    for i, (weight, bias, activation, gate, gate_bias) in enumerate(layers):
        own: Any = (None if t is None else _laid(t, mesh) for t in (weight, bias, gate, gate_bias))
        laid = Layer(next(own), next(own), activation, *own)
        x = stack_plain(drop(x, i, dropped), (laid,), dropped._replace(rates=(0.0, 0.0)))
    return drop(x, len(layers), dropped)


class FeedForward(NamedTuple):
    """The modules of a block `down(act(gate(x)) * up(x))`, or without a gate `down(act(up(x)))`."""

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear

    def is_sharded(self) -> bool:
        """Whether torch's plan alone has sharded it over a mesh of one extent, by columns and then
        by rows; then nothing else has hooks."""
        if not are_sharded(self.up.weight):
            return False
        from torch.distributed.tensor import DTensor, Replicate, Shard

        first = [self.up] if self.gate is None else [self.up, self.gate]
        wanted: list[Any] = [(module, Shard(0), Shard(0)) for module in first]
        wanted.append((self.down, Shard(1), Replicate()))
        mesh = getattr(self.up.weight, "device_mesh", None)
        for module, of_weight, of_bias in wanted:
            for tensor, placement in ((module.weight, of_weight), (module.bias, of_bias)):
                if tensor is None:
                    continue
                if not isinstance(tensor, DTensor) or tensor.device_mesh != mesh:
                    return False
                if tensor.placements != (placement,):
                    return False
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            if not all(hook.__module__.startswith("torch.distributed.") for hook in hooks):
                return False
            if module._backward_hooks or module._backward_pre_hooks:
                return False
        return True


def feed_forward(
    x: Tensor, block: FeedForward, activation: str | None, dropped: Dropped, local: Stack
) -> Tensor:
    """A block that is sharded, as its plan lays out input and result; each rank has a mask of its
    own for its part of the hidden activation, and all have one for the result."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    for pre_hook in block.up._forward_pre_hooks.values():
        given: Any = pre_hook(block.up, (x,))
        if given is not None:
            x = given[0] if isinstance(given, tuple) else given
    weight: Any = block.up.weight
    mesh = weight.device_mesh
    laid = _laid(x, mesh).redistribute(mesh, [Replicate()])
    bias: Any = block.down.bias
    if bias is not None:
        bias = bias.to_local(grad_placements=[Partial()]) / mesh.size()
    gate = (None, None) if block.gate is None else _locals_of(block.gate)
    layers = (
        Layer(*_locals_of(block.up), activation, *gate),
        Layer(_locals_of(block.down)[0], bias),
    )
    hidden = dropped._replace(rates=(*dropped.rates[:-1], 0.0))
    hidden = _seeded(hidden, mesh, [False], laid.device)
    out: Any = local(laid.to_local(grad_placements=[Partial()]), layers, hidden, True)
    out = DTensor.from_local(out, mesh, [Partial()], run_check=False)
    out = drop(out, len(layers), dropped)
    for hook in block.down._forward_hooks.values():
        found: Any = hook(block.down, (x,), out)
        out = out if found is None else found
    return out


def _locals_of(linear: nn.Linear) -> tuple[Any, Any]:
    """This rank's shards of weight and bias."""
    weight: Any = linear.weight
    bias: Any = linear.bias
    return weight.to_local(), None if bias is None else bias.to_local()


def _next_state(generator: torch.Generator | None, device: torch.device) -> Any:
    """What the next draw from a generator depends on; the generator moves on."""
    if device.type == "cuda":
        state = host_state(device, generator)
        if state is None:
            raise RuntimeError("a sharded input has no mask of its own in a CUDA graph")
        return state
    return torch.randint(2**62, (), device=device, generator=generator).item()


def _bring_in_step(mesh: Any, extent: int, device: torch.device) -> None:
    """Gives the default generators of all ranks along an extent the first one's state."""
    group = mesh.get_group(extent)
    generator = (
        _native.default_generator(device) if device.type == "cuda" else torch.default_generator
    )
    state = generator.get_state().to(device)
    torch.distributed.broadcast(state, group=group, group_src=0)
    generator.set_state(state.cpu())
