"""A pass through a model that leaves no trace: what it may change is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsedrop.conversion.walking import tensors_in


@contextlib.contextmanager
def preserved(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Puts back generators, buffers, flags and attributes of modules, whatever happens within.

    Generators are torch's own of the CPU and of every GPU in use, and those that modules hold.
    Attributes are put back as objects: what a forward pass writes into a list stays, and so does
    what wrappers of torch.distributed set up in their first pass.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    own = {id(g): g for held in attributes for g in held.values() if _is_generator(g)}
    states = [(generator, generator.get_state()) for generator in own.values()]
    buffers = [dict(module._buffers.items()) for module in modules]
    copies = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(inputs)]
    gpus = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            for module, flag, held, named in zip(modules, flags, attributes, buffers, strict=True):
                module.training = flag
                if not _is_wrapper(module):
                    _put_back(vars(module), held)
                    _put_back(module._buffers, named)
            for buffer, copy in copies:
                _copy_back(buffer, copy)
            for generator, state in states:
                generator.set_state(state)


def _is_wrapper(module: nn.Module) -> bool:
    """Whether its attributes are not its own affair: of torch.distributed's and of scripts."""
    wrappers = "torch.distributed.", "torch.nn.parallel.", "torch.jit."
    return type(module).__module__.startswith(wrappers)


def _is_generator(thing: Any) -> bool:
    return isinstance(thing, torch.Generator)


def _copy_back(buffer: Tensor, copy: Tensor) -> None:
    if buffer.shape == copy.shape and (buffer.is_meta or torch.equal(buffer, copy)):
        return
    with torch.no_grad():
        # Observers of quantization size theirs in the first pass.
        buffer.resize_(copy.shape).copy_(copy)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, thing in before.items():
        if name not in now or now[name] is not thing:
            now[name] = thing
