"""Which values have the channels that a dropout drops, and which layers make, pass and read them.

From the value that is dropped it goes back and forth: through what works on each channel by itself,
up to the layers that make the channels from others, and to those that make others from them.
"""

from __future__ import annotations

import math
from collections import deque

from torch import nn

from sparsedrop.conversion.flow import END, Call, Value

SUMS = ("add", "iadd", "radd", "sub", "isub", "rsub", "subtract")

NORMS = ("group_norm", "layer_norm", "instance_norm", "rms_norm", "local_response_norm")

FUNCTIONAL = {"conv2d": "F.conv2d", "batch_norm": "F.batch_norm", "linear": "F.linear"}


NO_PASS = "give example_inputs: which layers share channels is known from a forward pass alone"


class Left(Exception):  # noqa: N818 - no error: a reason
    """Why a dropout stays, in a sentence."""


class Spread:
    """See above.

    Attributes:
        values: that have the channels.
        makers, readers, passers: calls of layers, unordered.
        inner: calls of functions, and that of the dropout.
        has_conv: whether a convolution or a batch norm was met.
        channels: how many there are.
        size: of a group of the grouped convolutions.
    """

    def __init__(self, dropout: Call) -> None:
        self.dropout = dropout
        self.values: set[Value] = set()
        self.makers: set[Call] = set()
        self.readers: set[Call] = set()
        self.passers: set[Call] = set()
        self.inner: set[Call] = set()
        self.has_conv = False
        self.size = 1
        shape = dropout.outputs[0].shape
        self.channels = shape[1] if shape is not None and len(shape) > 1 else 0

    def run(self) -> None:
        """Raises: Left, where one of the calls keeps all channels; all others are seen still."""
        queue = deque([*self.dropout.inputs, *self.dropout.outputs])
        reasons = [] if self.channels else [NO_PASS]
        while queue:
            value = queue.popleft()
            if value in self.values:
                continue
            self.values.add(value)
            if value.producer is None:
                reasons.append("its channels are those of an input of the model, or of a parameter")
            for call in (value.producer, *value.consumers):
                try:
                    queue += () if call is None else self._visit(call, value)
                except Left as reason:
                    reasons.append(str(reason))
        if reasons:
            raise Left(reasons[0])

    def _visit(self, call: Call, value: Value) -> list[Value]:
        """The values of these channels on the other sides of a call."""
        self.has_conv = self.has_conv or call.kind in ("conv", "norm")
        module = call.module
        if call.kind in ("linear", "conv"):
            _check_rank(call, value)
        if call.kind == "linear" or (isinstance(module, nn.Conv2d) and module.groups == 1):
            (self.makers if value in call.outputs else self.readers).add(call)
            return []
        if call.kind in ("conv", "norm"):
            self.passers.add(call)
            self._check_passer(call)
        elif call is self.dropout or self._is_inner(call):
            self.inner.add(call)
        else:
            raise Left(_why_left(call, value))
        around = [v for v in (*call.inputs, *call.outputs) if not _is_number(v)]
        if any(v.shape is None or v.shape[1:2] != (self.channels,) for v in around):
            raise Left(f"{call.what} has other channels on its other side")
        return around

    def _check_passer(self, call: Call) -> None:
        module = call.module
        if isinstance(module, nn.BatchNorm2d):
            if module.momentum is None and module.track_running_stats:
                raise Left(
                    f"{call.what} has no momentum: it counts all batches, and of a slice each "
                    "channel sees fewer"
                )
            return
        assert isinstance(module, nn.Conv2d)
        ins, outs, groups = module.in_channels, module.out_channels, module.groups
        if ins != outs:
            raise Left(
                f"{call.what} makes {outs} channels of {ins} in {groups} groups, and a slice is of "
                "whole groups of as many channels on both sides"
            )
        self.size = math.lcm(self.size, ins // groups)

    def _is_inner(self, call: Call) -> bool:
        if call.what.strip("_") in SUMS and len({_roots(v) for v in _operands(call)}) > 1:
            raise Left(f"its channels meet a residual sum ({call.what}), which has all of them")
        return call.kind == "elementwise" or call.keeps_channels


def _check_rank(call: Call, value: Value) -> None:
    """Channels are the second extent, of a linear layer the last one, too."""
    rank = 0 if value.shape is None else len(value.shape)
    if call.kind == "linear" and rank not in (0, 2):
        raise Left(f"{call.what} is a linear layer along another extent than the channels")
    if call.kind == "conv" and rank not in (0, 4):
        raise Left(f"{call.what} takes images that are in no batch")


def _is_number(value: Value) -> bool:
    return value.shape == () and value.is_constant()


def _operands(call: Call) -> list[Value]:
    return [value for value in call.inputs if not _is_number(value)]


def _roots(value: Value) -> frozenset[Call | Value]:
    """What a value is an elementwise function of."""
    found: set[Call | Value] = set()
    queue, seen = [value], {value}
    while queue:
        value = queue.pop()
        call = value.producer
        if call is None or call.kind not in ("elementwise", "dropout"):
            found.add(value if call is None else call)
            continue
        new = [other for other in _operands(call) if other not in seen]
        seen.update(new)
        queue += new
    return frozenset(found)


def _why_left(call: Call, value: Value) -> str:
    what = call.what.strip("_")
    if what in NORMS:
        return f"{call.what} normalises over its channels: of norms a slice is for nn.BatchNorm2d"
    if what in FUNCTIONAL:
        return f"a call of {FUNCTIONAL[what]} cannot be swapped on an instance: make it a module"
    if call.kind == "dropout":
        return f"{call.what} drops the same channels"
    if call.kind in ("reshape", "rearrangement"):
        return (
            f"its channels go through {call.what}, whose arguments may name how many there are: "
            "use flatten, unsqueeze, [..., None, None] or -1"
        )
    if call.kind == END or value not in call.outputs:
        return f"its channels are read by {call.what}, which takes all of them"
    return f"its channels are made by {call.what}, which makes all of them"
