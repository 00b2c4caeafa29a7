"""A dropout that several parts of a model share."""

import copy
import gc
import io
import weakref

import pytest
import torch
from networks import Feedforward, convert
from torch import nn

import sparsedrop


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Shared(nn.Module):
    """One dropout behind two layers, each in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Feedforward(32, 64), Feedforward(32, 64)
        self.two.drop = self.one.drop

    def forward(self, x):
        return self.two(self.one(x))


COPIES = {"itself": lambda m: m, "a copy": copy.deepcopy, "a file": saved_and_loaded}
PARTS = {
    "a layer": lambda m: m.one.up,
    "the dropout": lambda m: m.one.drop,
    "a block": lambda m: m.two,
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_what_shares_a_dropout_is_reverted_together(part, copied):
    """Else a value would be dropped twice, by the dropout and by the layer, or not at all."""
    model = Shared()
    assert len(convert(model).converted) == 2
    model = copied(model)
    assert sparsedrop.revert(part(model)) == 4
    assert [type(m) for m in model.modules()] == [type(m) for m in Shared().modules()]


def test_a_converted_model_is_freed_at_once():
    model = Feedforward(32, 64)
    convert(model)
    gc.collect()  # the flow of the pass holds modules, too
    up = weakref.ref(model.up)
    del model
    assert up() is None
