"""The swap itself, and the way back: a module keeps its place, its parameters and its identity.

What changes is its class, and what it has beside its parameters: so whoever holds the module, a
hook, an optimizer or a list, holds the converted one, and nothing is kept of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from sparsedrop.conversion.kinds import check_model
from sparsedrop.conversion.layers import DropoutStandIn, Served
from sparsedrop.nn.rated import Rated

ORIGIN = "converted_from"
"""The attribute of a converted module that says what it was."""

SERVED = "served"
"""That of one which says with which others it drops, where they are not its children."""


class Origin(NamedTuple):
    """The class of a module before it was converted, and the names of what was added to it."""

    cls: type[nn.Module]
    attributes: tuple[str, ...]
    children: tuple[str, ...]


class Swap(NamedTuple):
    """What a module becomes."""

    module: nn.Module
    cls: type[nn.Module]
    attributes: dict[str, Any]
    children: dict[str, nn.Module]


def swap(swaps: list[Swap], rates: dict[nn.Dropout, float]) -> None:
    """Converts all of these modules, or if one cannot be, none; `rates` of the dropouts."""
    before = {dropout: dropout.p for dropout in rates}
    done: list[nn.Module] = []
    try:
        for dropout, p in rates.items():
            dropout.p = p
        for each in swaps:
            _become(each)
            done.append(each.module)
    except BaseException:
        for module in reversed(done):
            _go_back(module)
        for dropout, old in before.items():
            dropout.p = old
        raise


def revert(model: nn.Module) -> int:
    """Makes the modules of a converted model again what they were, with the rates of now.

    After a schedule that ends at 0 the dropouts are off, until their rates are set. Parameters,
    hooks, flags and modules stay the objects that they are. Also of a copy of a converted model,
    one that was saved whole, or a part of one.

    Args:
        model: converted or not.

    Returns:
        The number of layers with a rate that were put back. Not counted are their dropouts, which
        drop again, and what lies between convolutions.

    Raises:
        TypeError: where `model` is no module.
    """
    check_model(model)
    found = _with_what_they_share(model)
    count = sum(isinstance(module, Rated) for module in found)
    for module in found:
        _go_back(module)
    return count


def _with_what_they_share(model: nn.Module) -> list[nn.Module]:
    """The converted modules of a model, and those outside of it that drop together with them."""
    found = {module: None for module in model.modules() if _is_converted(module)}
    queue = list(found)
    while queue:
        module = queue.pop()
        shares: Iterable[nn.Module] = vars(module).get(SERVED, module.children())
        new = [other for other in shares if _is_converted(other) and other not in found]
        found.update(dict.fromkeys(new))
        queue += new
    return list(found)


def _is_converted(module: nn.Module) -> bool:
    return ORIGIN in vars(module)


def class_before(module: nn.Module) -> type[nn.Module]:
    """The class of a module, if it was converted that of before."""
    origin: Origin | None = vars(module).get(ORIGIN)
    return type(module) if origin is None else origin.cls


def _become(swap: Swap) -> None:
    module = swap.module
    added = tuple(name for name in swap.attributes if name not in vars(module))
    origin = Origin(type(module), (*added, ORIGIN), tuple(swap.children))
    module.__class__ = swap.cls
    vars(module).update(swap.attributes)
    vars(module)[ORIGIN] = origin
    module._modules.update(swap.children)


def _go_back(module: nn.Module) -> None:
    origin: Origin = vars(module)[ORIGIN]
    module.__class__ = _without(type(module), origin.cls)
    for name in origin.attributes:
        vars(module).pop(name, None)
    for name in origin.children:
        module._modules.pop(name, None)


def _without(cls: type, original: type) -> type:
    """The original class; if a tool derived one from ours since, that on top of the original.

    `fully_shard` and parametrizations do so.
    """
    ours = next(base for base in cls.__mro__ if base.__module__.startswith("sparsedrop."))
    if cls is ours:
        return original
    bases = tuple(
        _without(base, original) if issubclass(base, ours) else base for base in cls.__bases__
    )
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__.replace(ours.__name__, original.__name__), bases, own)


def stand_in(dropout: nn.Module, layers: list[nn.Module]) -> Swap:
    """What a dropout becomes, whose work these layers do."""
    return Swap(dropout, DropoutStandIn, {SERVED: Served(layers)}, {})
