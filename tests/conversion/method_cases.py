"""What the other methods convert: models, the dropouts in them, and how."""

import pytest
import torch
from networks import Feedforward, Gated
from torch import nn

import sparsedrop

D, HIDDEN, ROWS = 32, 256, 24
UNITS = ["sliceout", "row-pattern"]


def stack_model():
    return nn.Sequential(
        nn.Linear(D, HIDDEN), nn.GELU(), nn.Dropout(0.5), nn.Linear(HIDDEN, 192), nn.Tanh(),
        nn.Dropout(0.25), nn.Linear(192, D),
    )  # fmt: skip


# Of each its dropouts, in the order in which units are drawn, and their widths.
MODELS = {
    "mlp": (lambda: Feedforward(D, HIDDEN), (("drop", HIDDEN),), [("", "mlp")]),
    "gated": (lambda: Gated(D, HIDDEN), (("drop", HIDDEN),), [("", "gated")]),
    "stack": (stack_model, (("2", HIDDEN), ("5", 192)), [("", "mlp"), ("", "mlp")]),
}
WITH_MODELS = pytest.mark.parametrize("name", MODELS)
WITH_UNITS = pytest.mark.parametrize("method", UNITS)


def convert_by(model, method, x=None, **kwargs):
    x = torch.randn(ROWS, D, dtype=next(model.parameters()).dtype) if x is None else x
    return sparsedrop.convert(model, (x,), method=method, min_speedup=0, **kwargs)
