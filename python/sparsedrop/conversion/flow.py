"""The flow of tensors through one forward pass: which call made a value, and which read it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

TRAINED = ("linear", "conv", "norm", "block")
"""The kinds of modules, which have parameters."""

END = "end"
"""The kind of whatever reads a value after the pass: the caller, or a module that keeps it."""


@dataclass(eq=False)
class Value:
    """What a tensor held at one time: an in-place operation makes another value of it.

    Nothing is known of a shape without a pass; a nested tensor has none.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    is_nested: bool = False
    # Itself, as a parameter is: under no_grad nothing that is made of one is.
    is_trained: bool = False
    # Whether the pass has asked how large it is: a number that may go anywhere.
    is_measured: bool = False
    # What has written something else in its place.
    overwritten_by: Call | None = None
    producer: Call | None = None
    consumers: list[Call] = field(default_factory=list)

    def is_constant(self) -> bool:
        """Whether nothing that is trained goes into it."""
        values, seen = [self], {self}
        while values:
            value = values.pop()
            call = value.producer
            if value.is_trained or (call is not None and call.kind in TRAINED):
                return False
            new = [] if call is None else [other for other in call.inputs if other not in seen]
            seen.update(new)
            values += new
        return True


@dataclass(eq=False)
class Frame:
    """One run of a module's forward; the root has no parent."""

    module: nn.Module
    name: str
    parent: Frame | None = None

    def path(self) -> list[Frame]:
        """From the root to this frame."""
        return [*(self.parent.path() if self.parent is not None else []), self]


@dataclass(eq=False)
class Call:
    """A function that ran, or a module of which the inside is not looked at.

    Attributes:
        kind: "linear", "conv", "norm" (an nn.BatchNorm2d), "dropout" or "block" of a module, a
            block being one of ours around linear layers; of a function "functional dropout",
            "functional linear", "attention" (with dropout of its probabilities), "recurrent" (with
            dropout between its layers), "elementwise",
            "reshape" (the last extent and the order of the rows stay), "rearrangement" (all
            elements stay) or "other"; or END.
        what: how a sentence names it.
        frame: the innermost module that was running; of a module's call the one around it.
        module, name: the linear layer, dropout or block; of a functional linear layer the nn.Linear
            whose own forward calls it, or only the name of the one that holds the weight.
        keeps_channels: of a function, whether it works on [N, C, ...] for each channel by itself,
            however many there are.
        has_numbers: whether a number is among the arguments of a function.
        order: its place among the calls of a graph.
    """

    kind: str
    what: str
    frame: Frame | None
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    module: nn.Module | None = None
    name: str = ""
    keeps_channels: bool = False
    has_numbers: bool = False
    order: int = -1


@dataclass
class Graph:
    """All calls of a pass in their order, of the model whose root is named "".

    `elsewhere` has the modules of which not all calls may be known, and what else has them.
    """

    calls: list[Call] = field(default_factory=list)
    elsewhere: dict[nn.Module, str] = field(default_factory=dict)

    def connect(self, call: Call) -> None:
        """Enters a call behind the others, and into the values that it reads and makes."""
        call.order = len(self.calls)
        self.calls.append(call)
        for value in call.inputs:
            if call not in value.consumers:
                value.consumers.append(call)
        for value in call.outputs:
            value.producer = call

    def of_kind(self, *kinds: str) -> list[Call]:
        """The calls of these kinds, in their order."""
        return [call for call in self.calls if call.kind in kinds]


def owner(calls: list[Call]) -> Frame | None:
    """The innermost frame within which all of these ran."""
    paths = [[] if call.frame is None else call.frame.path() for call in calls]
    shared = None
    for frames in zip(*paths, strict=False):
        if any(frame is not frames[0] for frame in frames):
            break
        shared = frames[0]
    return shared
