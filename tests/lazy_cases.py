"""Models whose slices have gradients of their own, beside equal ones with whole gradients."""

import copy

from torch import nn

from sparsedrop.nn import SliceOutAttention, SliceOutMLP

MODELS = {
    "block": lambda: SliceOutMLP(8, 24, align=4),
    "gated": lambda: SliceOutMLP(8, 24, align=4, gated=True, bias=False),
    "attention": lambda: SliceOutAttention(8, 4, 2),
    "fused attention": lambda: SliceOutAttention(8, 4, 2, fused=True),
    "two": lambda: nn.Sequential(SliceOutMLP(8, 24, align=4), nn.Linear(8, 8),
                                 SliceOutMLP(8, 16, align=4)),
}  # fmt: skip


def pair(make):
    """Two equal models, with whole gradients and with those of slices."""
    dense = make().double()
    lazy = copy.deepcopy(dense)
    for module in lazy.modules():
        if hasattr(module, "gradients"):
            module.gradients = "lazy"
    return dense, lazy
