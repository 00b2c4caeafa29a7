"""gradients="lazy": who is told that it is not for them."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lazy_cases import MODELS, pair
from sparsedrop import slice_out
from sparsedrop.nn import SliceOutMLP
from sparsedrop.ops.slices import gradients
from sparsedrop.ops.slices.gradients import gradient_of


def test_gradients_that_no_optimiser_takes_are_told_of(monkeypatch):
    monkeypatch.setattr(gradients, "MOST_PASSES", 3)
    block = SliceOutMLP(8, 16, align=4, gradients="lazy")
    plain, x = torch.optim.SGD(block.parameters(), 0.1), torch.randn(4, 8)

    def step(optimizer):
        optimizer.zero_grad()
        block(x).sum().backward()
        optimizer.step()

    lazy = slice_out.lazy(torch.optim.SGD(block.parameters(), 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optimizer in [lazy] * 5 + [plain] * 3:
            step(optimizer)
    with pytest.warns(UserWarning, match=r"taken by no optimiser.*wrap it by sparsedrop.slice_out"):
        step(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(plain)


def test_what_is_refused():
    _, lazy = pair(MODELS["block"])
    parameters = list(lazy.parameters())
    for optimizer in (torch.optim.RMSprop(parameters), torch.optim.NAdam(parameters)):
        sentence = f"lazy takes an optimizer of SGD, Adam, AdamW, not {type(optimizer).__name__}: "
        with pytest.raises(TypeError, match=f"^{sentence}"):
            slice_out.lazy(optimizer)
    with pytest.raises(
        ValueError, match="lazy takes no optimizer with fused=True: leave fused out"
    ):
        slice_out.lazy(torch.optim.AdamW(parameters, fused=True))


def test_who_waits_for_gradients_is_told(tmp_path):
    _, lazy = pair(MODELS["block"])
    x = torch.randn(3, 8).double()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(lazy)
        with pytest.raises(RuntimeError, match="leaves DistributedDataParallel without gradients"):
            parallel(x)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(RuntimeError, match=re.escape('"lazy" has no second derivatives')):
        torch.autograd.grad(lazy(x).sum(), list(lazy.parameters()), create_graph=True)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="is for eager mode, not"):
        torch.compile(lazy, fullgraph=True, backend="eager")(x)
    with pytest.raises(RuntimeError, match="is for plain tensors outside of transforms"):
        torch.func.grad(lambda x: lazy(x).sum())(x)
    with pytest.raises(RuntimeError, match=re.escape("where torch.autograd.grad cannot return")):
        torch.autograd.grad(lazy(x).sum(), list(lazy.parameters()))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_pass_that_is_not_for_the_parameters_leaves_them_alone(make):
    _, lazy = pair(make)
    x = torch.randn(3, 4, 8).double().requires_grad_()
    torch.autograd.grad(lazy(x).sum(), [x])
    lazy(x).sum().backward(inputs=[x])
    assert x.grad is not None
    assert all(gradient_of(own) is None and own.grad is None for own in lazy.parameters())


@pytest.mark.parametrize(("make", "name"), [("block", "up"), ("attention", "q_proj")])
def test_a_weight_that_is_made_of_others_is_refused(make, name):
    _, lazy = pair(MODELS[make])
    nn.utils.parametrizations.weight_norm(lazy.get_submodule(name))
    with pytest.raises(RuntimeError, match="is made of others, by a norm"):
        lazy(torch.randn(3, 4, 8).double())
