"""What is between a dropout and the linear layers around it."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.conversion.flow import Call


class Region(NamedTuple):
    """The layers of which a dropped value is an elementwise function, in the order of their calls,
    and the calls between."""

    producers: tuple[Call, ...]
    inner: list[Call]

    @property
    def is_measured(self) -> bool:
        """Whether the pass has asked how large a value within is."""
        calls = (*self.producers, *self.inner)
        return any(value.is_measured for call in calls for value in call.outputs)


def reader_of(dropout: Call, *through: str) -> Call | None:
    """The linear layer that alone reads what a dropout leaves, through calls of these kinds."""
    value = dropout.outputs[0]
    while len(value.consumers) == 1:
        call = value.consumers[0]
        if call.kind == "linear":
            return call if call.inputs == [value] else None
        if call.kind not in through:
            return None
        value = call.outputs[0]
    return None


def region_of(dropout: Call) -> Region | None:
    """The layers of which a dropped value is an elementwise function.

    None where there is anything else in it, or where a value within is read from outside, or by one
    of these layers, too. A number that is trained is something else: its gradient would be a sum
    over dropped blocks, where a function may be infinite.
    """
    producers: list[Call] = []
    inner: list[Call] = []
    inside = {dropout}
    values = list(dropout.inputs)
    while values:
        value = values.pop()
        call = value.producer
        if call in inside or (value.shape == () and value.is_constant()):
            continue
        if call is None or call.kind not in ("linear", "elementwise", "reshape"):
            return None
        inside.add(call)
        (producers if call.kind == "linear" else inner).append(call)
        if call.kind != "linear":
            values += call.inputs
    readers = inside.difference(producers)
    for call in (*producers, *inner):
        if not all(reader in readers for value in call.outputs for reader in value.consumers):
            return None
    if not producers or len({call.module for call in producers}) < len(producers):
        return None
    return Region(tuple(sorted(producers, key=lambda call: call.order)), inner)
