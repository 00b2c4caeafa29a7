"""A converted nn.Sequential on a GPU, without one: how many nodes it is."""

import pytest
import torch
from torch import nn

import sparsedrop
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import select


def _network(dtype):
    """The SparseDrop paper's: 784-1024-1024-10, here narrower."""
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(256, 10),
    ).to(dtype)  # fmt: skip


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_a_network_with_ten_outputs_is_one_node(autocast, request):
    dtype = torch.bfloat16 if autocast is None else torch.float32
    model, x = _network(dtype), normal(256, 784).to(dtype)
    sparsedrop.convert(model, x, min_speedup=0, block_shape=(128, 128), sampler="balanced")
    request.getfixturevalue("stub_gpu")
    with select.override(path="kernel"), autocast_on_stub(autocast):
        out = model(x)
    assert out.shape == (256, 10)
    assert type(out.grad_fn).__name__ == "_StackBackward"
    behind = {type(node).__name__ for node, _ in out.grad_fn.next_functions if node is not None}
    assert behind == {"AccumulateGrad"}
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in model.parameters())
