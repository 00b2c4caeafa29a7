"""What SparseDropMLP and SparseDropStack say to wrong arguments and operands."""

import re

import pytest
import torch
from torch import nn

from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack

WRONG = {
    "p is a probability in [0, 1], not 1.5": {"p": 1.5},
    "p is a probability in [0, 1], not -0.5": {"out_p": -0.5},
    "activation is one of None, 'relu', 'gelu', 'silu', 'gelu_tanh', not 'tanh'": {
        "activation": "tanh"
    },
    "block_shape must be positive, not (0, 4)": {"block_shape": (0, 4)},
    "sampler is one of 'bernoulli', 'balanced', not 'even'": {"sampler": "even"},
}


@pytest.mark.parametrize(("sentence", "kwargs"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, kwargs):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        SparseDropMLP(8, 16, **kwargs)


WRONG_FEATURES = {
    "d_out must be a whole number of features, not 0.5": lambda: SparseDropMLP(8, 16, 0.5),
    "d_hidden must not be negative, not -16": lambda: SparseDropMLP(8, -16),
    "size 1 must be a whole number of features, not 2.5": lambda: SparseDropStack([8, 2.5]),
    "size 1 must not be negative, not -1": lambda: SparseDropStack([8, -1]),
    "sizes are those of an input and of outputs, not 8": lambda: SparseDropStack(8),
    "sizes are those of an input and of an output at least, not [8]": lambda: SparseDropStack([8]),
}


@pytest.mark.parametrize(("sentence", "make"), WRONG_FEATURES.items(), ids=WRONG_FEATURES)
def test_wrong_features(sentence, make):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(sentence)}$"):
        make()


def _with(mlp, part, **parameters):
    for name, shape in parameters.items():
        setattr(getattr(mlp, part), name, nn.Parameter(torch.zeros(shape)))


WRONG_PARAMETERS = {
    "bias of layer 1 is [1], but 8 features come out": ("down", {"bias": (1,)}),
    "bias of layer 1 is [5], but 8 features come out": ("down", {"bias": (5,)}),
    "weight of layer 1 is [8, 12], but 16 features go in and 8 come out": (
        "down", {"weight": (8, 12)},
    ),
    "gate bias of layer 0 is [1], but 16 features come out": ("gate", {"bias": (1,)}),
    "gate weight of layer 0 is [4, 8], but 8 features go in and 16 come out": (
        "gate", {"weight": (4, 8), "bias": (4,)},
    ),
    "bias is [1] and weight is [16, 8]: outer extents differ": ("up", {"bias": (1,)}),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "wrong"), WRONG_PARAMETERS.items(), ids=WRONG_PARAMETERS)
def test_wrong_parameters(sentence, wrong):
    mlp = SparseDropMLP(8, 16, p=0.5, gated=True, block_shape=(2, 2))
    _with(mlp, wrong[0], **wrong[1])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mlp(torch.randn(4, 8))


NO_OPERANDS = {
    "x must be a tensor, not list": [1.0] * 8,
    "x must be a tensor, not NoneType": None,
    "x must be a dense tensor, not a nested one: pad it, or take it apart": (
        torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)], layout=torch.jagged)
    ),
}


@pytest.mark.parametrize(("sentence", "x"), NO_OPERANDS.items(), ids=NO_OPERANDS)
@pytest.mark.parametrize("make", [SparseDropMLP, SparseDropLinear, lambda *n: SparseDropStack(n)])
def test_what_is_no_operand(make, sentence, x):
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        make(8, 16)(x)


def test_wrong_operands():
    mlp = SparseDropMLP(8, 16, p=0.5, block_shape=(2, 2))
    with pytest.raises(ValueError, match=r"x is \[4, 9\] and weight is \[16, 8\]: inner extents"):
        mlp(torch.randn(4, 9))
    with pytest.raises(ValueError, match=r"x is torch.float64 and weight is torch.float32"):
        mlp(torch.randn(4, 8).double())
    stack = SparseDropStack([8, 8])
    del stack.layers[0]
    with pytest.raises(ValueError, match="a stack has a layer at least, but layers is empty"):
        stack(torch.randn(4, 8))
