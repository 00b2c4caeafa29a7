"""Tensors within whatever a function is given or returns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LEAVES = (
    str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Generator,
    nn.Module, types.ModuleType, types.BuiltinFunctionType,
)  # fmt: skip


_MAX_DEPTH = 12


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, dataclasses, attributes of objects, and in what functions
    have beside their arguments, each once."""
    seen: set[int] = set()
    stack = [(thing, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, _LEAVES) or id(item) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        else:
            stack += [(part, depth + 1) for part in reversed(_inside(item))]


def _inside(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        inside = list(item.values())
    elif isinstance(item, (list, tuple, set, frozenset)):
        inside = list(item)
    elif dataclasses.is_dataclass(item):
        inside = [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    elif isinstance(item, types.MethodType):
        inside = [item.__self__, item.__func__]
    elif isinstance(item, functools.partial):
        inside = [item.func, item.args, item.keywords]
    elif isinstance(item, types.FunctionType):
        inside = [*(item.__defaults__ or ()), item.__kwdefaults__, *_enclosed(item)]
    else:
        inside = []
    return inside + list(getattr(item, "__dict__", {}).values())


def _enclosed(function: types.FunctionType) -> list[Any]:
    """The variables of functions around it that it has, where they have a value."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found
