"""Optimiser steps of slices: what the last backward pass did not reach stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsedrop.ops.slices.gradients import SliceGradient, clear, gradient_of

SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_REFUSED = ("fused", "differentiable")


def lazy(optimizer: torch.optim.Optimizer) -> LazyOptimizer:
    """An optimiser that steps the slices of parameters whose modules have `gradients="lazy"`.

        optimizer = slice_out.lazy(torch.optim.AdamW(model.parameters(), 1e-3))

    Gradients of such parameters are as large as the slice, and stand beside their `.grad`, which
    is None, until `step` or `zero_grad`. `step` runs the stock optimiser on the slice of the weight
    and of its state; of all else momentum, moments and weight decay stand still. So it does the
    same as `gradients="dense"` for plain SGD, and something else with momentum, weight decay and
    Adam, whose bias correction counts a parameter's steps as a whole. Other parameters, and what
    has a whole gradient, are stepped as ever. `state_dict` is that of the stock optimiser.

    Clear gradients by `optimizer.zero_grad()`, which `model.zero_grad()` does not replace, and clip
    them by `torch.nn.utils.clip_grad_norm_(optimizer.parameters(), norm)`. `GradScaler` works.

    Args:
        optimizer: a torch.optim.SGD, Adam or AdamW, neither fused nor differentiable.

    Raises:
        TypeError: for any other optimiser.
        ValueError: where it is fused or differentiable.
    """
    return LazyOptimizer(optimizer)


class LazyOptimizer(torch.optim.Optimizer):
    """See `lazy`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if type(optimizer) not in SUPPORTED:
            known = ", ".join(cls.__name__ for cls in SUPPORTED)
            raise TypeError(
                f"lazy takes an optimizer of {known}, not {type(optimizer).__name__}: use it with "
                'gradients="dense"'
            )
        for name in _REFUSED:
            if any(group.get(name) for group in optimizer.param_groups):
                raise ValueError(f"lazy takes no optimizer with {name}=True: leave {name} out")
        self.inner = optimizer
        """The stock optimiser, which holds all state."""

    def __getattr__(self, name: str) -> Any:
        # What the base class would have made: defaults, state, hooks.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"lazy({self.inner!r})"

    # A list that the base class stores; here it is made anew, since slices are.
    @property
    def param_groups(self) -> list[Any]:  # type: ignore[override]
        """Those of the stock optimiser, with the live slices in the place of sliced parameters:
        whoever scales or clips gradients finds these."""
        return [_Group(group) for group in self.inner.param_groups]

    def parameters(self) -> Iterator[Tensor]:
        """All, with the live slices in the place of sliced ones."""
        for group in self.param_groups:
            yield from group["params"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also of slices, which are forgotten in any case."""
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                clear(parameter)
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps what has a gradient, and forgets the gradients of slices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with _slices_in_place(self.inner):
            self.inner.step()
        return loss


class _Group(MutableMapping[str, Any]):
    """A parameter group, with slices in the place of sliced parameters."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._group = group

    def __getitem__(self, key: str) -> Any:
        if key != "params":
            return self._group[key]
        found: list[Tensor] = []
        for parameter in self._group["params"]:
            gradient = _gradient_of(parameter)
            found += [parameter] if gradient is None else _views(parameter, gradient)
        return found

    def __setitem__(self, key: str, value: Any) -> None:
        self._group[key] = value

    def __delitem__(self, key: str) -> None:
        del self._group[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


def _gradient_of(parameter: Tensor) -> SliceGradient | None:
    """That of a slice; where there is a whole one beside it, it is added to that."""
    found = gradient_of(parameter)
    if found is None or parameter.grad is None:
        return found
    for piece, values in zip(_narrowed(parameter.grad, found), _parts(found), strict=True):
        piece.add_(values)
    clear(parameter)
    return None


def _narrowed(tensor: Tensor, gradient: SliceGradient) -> list[Tensor]:
    return [tensor.narrow(gradient.dim, start, stop - start) for start, stop in gradient.pieces]


def _parts(gradient: SliceGradient) -> list[Tensor]:
    sizes = [stop - start for start, stop in gradient.pieces]
    return list(gradient.values.split(sizes, gradient.dim))


def _views(parameter: Tensor, gradient: SliceGradient) -> list[Tensor]:
    """The live pieces of a parameter, each with its gradient."""
    views = _narrowed(parameter.detach(), gradient)
    for view, values in zip(views, _parts(gradient), strict=True):
        view.grad = values
    return views


@contextmanager
def _slices_in_place(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it the optimiser has the live pieces, with their state, instead of parameters that
    have a gradient of a slice."""
    given = [group["params"] for group in optimizer.param_groups]
    sliced: list[tuple[Tensor, SliceGradient, list[Tensor]]] = []
    try:
        for group in optimizer.param_groups:
            members: list[Tensor] = []
            for parameter in group["params"]:
                gradient = _gradient_of(parameter)
                if gradient is None:
                    members.append(parameter)
                    continue
                views = _views(parameter, gradient)
                _lend_state(optimizer.state, parameter, gradient, views)
                sliced.append((parameter, gradient, views))
                members += views
            group["params"] = members
        yield
        for parameter, gradient, views in sliced:
            _take_state_back(optimizer.state, parameter, gradient, views)
            clear(parameter)
    finally:
        for group, parameters in zip(optimizer.param_groups, given, strict=True):
            group["params"] = parameters
        for _, _, views in sliced:
            for view in views:
                optimizer.state.pop(view, None)


State = MutableMapping[Any, Any]


def _lend_state(
    state: State, parameter: Tensor, gradient: SliceGradient, views: list[Tensor]
) -> None:
    """Views of what is as large as the parameter, copies of counts."""
    for name, value in state.get(parameter, {}).items():
        for i, view in enumerate(views):
            own = value
            if isinstance(value, Tensor):
                is_whole = value.shape == parameter.shape
                own = _narrowed(value, gradient)[i] if is_whole else value.clone()
            state[view][name] = own


def _take_state_back(
    state: State, parameter: Tensor, gradient: SliceGradient, views: list[Tensor]
) -> None:
    """What a step made anew: counts, and moments where there were none, which begin with 0."""
    own = state[parameter]
    for i, view in enumerate(views):
        for name, value in state[view].items():
            if not isinstance(value, Tensor) or value.shape != view.shape:
                own[name] = value
                continue
            if not isinstance(own.get(name), Tensor):
                own[name] = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
            place = _narrowed(own[name], gradient)[i]
            if place.data_ptr() != value.data_ptr():
                place.copy_(value)
