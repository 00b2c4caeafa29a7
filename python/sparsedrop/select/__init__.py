"""Which way a product is run: a printable request, a pure function, a printable choice.

Of all ways that are legal the one with the least expected time is taken: by costs that the user
measured on this GPU (`saved`), that are in the table (`gpus`), or that follow from what the GPU
says of itself (`worked_out`). `override` forces a way, for benchmarks and for a user who knows
better, and so does the environment variable SPARSEDROP_SELECT.
"""

from sparsedrop._native import multiplies_as_tf32
from sparsedrop.select.architectures import (
    KERNEL_DTYPES,
    MAX_EXTENT,
    TESTED,
    Tile,
    architecture,
    names_of,
)
from sparsedrop.select.choosing import candidates, choose, dense_us, expected_us
from sparsedrop.select.constants import sources
from sparsedrop.select.kernels import gpu_facts
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
from sparsedrop.select.overriding import (
    Override,
    decide,
    forced_architecture,
    is_free,
    override,
    override_from,
    takes_kernels,
)
from sparsedrop.select.request import UNIT, Choice, Request, describe
from sparsedrop.select.rules import PADDING_PAYS, refusal
from sparsedrop.select.sites import Gain, MaskedLayer, Place, expected_gain

__all__ = [
    "KERNEL_DTYPES",
    "MAX_EXTENT",
    "PADDING_PAYS",
    "TESTED",
    "UNIT",
    "Choice",
    "Gain",
    "LayerChoice",
    "MaskedLayer",
    "Override",
    "Place",
    "Request",
    "StackChoice",
    "Tile",
    "architecture",
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
    "forced_architecture",
    "gpu_facts",
    "is_free",
    "multiplies_as_tf32",
    "names_of",
    "override",
    "override_from",
    "refusal",
    "sources",
    "takes_kernels",
]
