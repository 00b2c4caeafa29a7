"""Which way a product is run: a printable request, a pure function, a printable choice.

Of all ways that are legal the one with the least expected time is taken. `override` forces a way,
for benchmarks and for a user who knows better, and so does the environment variable
SPARSEDROP_SELECT.
"""

from sparsedrop.select.choosing import candidates, choose, dense_us, expected_us
from sparsedrop.select.kernels import KERNEL_DTYPES, LIMITS, MAX_EXTENT, Tile, gpu_facts
from sparsedrop.select.layers import (
    LayerChoice,
    StackChoice,
    best_kernels,
    best_stack,
    can_be_mixed,
    choose_layer,
    choose_stack,
    decide_layer,
    decide_stack,
)
from sparsedrop.select.overriding import Override, decide, is_free, override, override_from
from sparsedrop.select.request import Choice, Request, describe
from sparsedrop.select.rules import PADDING_PAYS, refusal
from sparsedrop.select.sites import Gain, MaskedLayer, Place, expected_gain

__all__ = [
    "KERNEL_DTYPES",
    "LIMITS",
    "MAX_EXTENT",
    "PADDING_PAYS",
    "Choice",
    "Gain",
    "LayerChoice",
    "MaskedLayer",
    "Override",
    "Place",
    "Request",
    "StackChoice",
    "Tile",
    "best_kernels",
    "best_stack",
    "can_be_mixed",
    "candidates",
    "choose",
    "choose_layer",
    "choose_stack",
    "decide",
    "decide_layer",
    "decide_stack",
    "dense_us",
    "describe",
    "expected_gain",
    "expected_us",
    "gpu_facts",
    "is_free",
    "override",
    "override_from",
    "refusal",
]
