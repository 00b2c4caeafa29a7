"""Layers that the tests of `ops.layer` run: shapes and precisions as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import sparsedrop
from cases import normal, value_and_grads
from sparsedrop import BlockMask
from sparsedrop.ops.layer import layer_of

GPU = torch.device("cuda", 0)
SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}


class Precision(NamedTuple):
    """Of x, of the parameters, and of autocast (None: off)."""

    x: torch.dtype
    weight: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def product(self):
        return self.autocast or self.x


PRECISIONS = {
    "bfloat16": Precision(torch.bfloat16, torch.bfloat16),
    "float16": Precision(torch.float16, torch.float16),
    "float32": Precision(torch.float32, torch.float32),
    "float64": Precision(torch.float64, torch.float64),
    "amp": Precision(torch.bfloat16, torch.float32, torch.bfloat16),
    "amp of float32": Precision(torch.float32, torch.float32, torch.bfloat16),
    "amp in float16": Precision(torch.float16, torch.float32, torch.float16),
    "amp of 16-bit weights": Precision(torch.float32, torch.bfloat16, torch.bfloat16),
}

# Leading extents, n, k, block: kernels, ragged ones, and what only dense products can do.
SHAPES = {
    "kernel": ((512,), 384, 768, (128, 128)),
    "ragged": ((3, 100), 136, 328, (128, 64)),
    "rank 1": ((), 64, 256, (64, 64)),
    "ten outputs": ((256,), 10, 512, (128, 128)),
    "odd inputs": ((96,), 64, 65, (32, 32)),
    "odd blocks": ((70,), 72, 80, (7, 13)),
}


def inputs_of(shape, precision, bias=True):
    lead, n, k, _ = SHAPES[shape]
    x = normal(*lead, k).to(GPU, precision.x)
    params = [normal(n, k), normal(n)][: 1 + bias]
    upstream = normal(*lead, n).to(GPU, precision.product)
    return [x, *(t.to(GPU, precision.weight) for t in params)], upstream


def run(inputs, upstream, precision, **kwargs):
    def layer(*args):
        with torch.autocast("cuda", precision.autocast, enabled=precision.autocast is not None):
            return sparsedrop.dropout_linear(*args, **kwargs)

    return value_and_grads(layer, inputs, upstream)


def ops_of_compiled(function, inputs, upstream):
    """The names of this library's ops in the graphs of a function, forward and backward."""
    names = []

    def record(graph, _):
        targets = (node.target for node in graph.graph.nodes if node.op == "call_function")
        names.extend(str(t) for t in targets if str(t).startswith("sparsedrop."))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=record)
    value_and_grads(torch.compile(function, fullgraph=True, backend=backend), inputs, upstream)
    return names


def way_of(inputs, precision, options):
    with torch.autocast("cuda", precision.autocast, enabled=precision.autocast is not None):
        return layer_of(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, options)
