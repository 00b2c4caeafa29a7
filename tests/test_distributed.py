"""Two processes that train one model: each drops blocks of its own, gradients are averaged."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from process_group import RANKS, TWO_GPUS, run_in_processes
from sparsedrop.nn import (
    RowPatternMLP,
    SliceOutAttention,
    SliceOutMLP,
    SparseDropLinear,
    SparseDropMLP,
    SparseDropStack,
    TilePatternLinear,
)

MODELS = {
    "layers": lambda: (
        SparseDropLinear(512, 768, p=0.5), nn.ReLU(), SparseDropLinear(768, 256, p=0.5),
    ),
    "blocks": lambda: (
        SparseDropMLP(512, 768, p=0.5, out_p=0.25, activation="gelu"),
        SparseDropStack((512, 256, 256), p=0.5),
    ),
    "slices": lambda: (
        SliceOutMLP(512, 768, p=0.5, gated=True), SliceOutAttention(512, 8, 4, p=0.5),
        nn.Linear(512, 256),
    ),
    "patterns": lambda: (
        RowPatternMLP(512, 768, p=0.5, gated=True), TilePatternLinear(512, 256, p=0.5),
    ),
}  # fmt: skip


def _averaged(model, step, kind):
    """A step's gradients, averaged over the ranks by torch's own means."""
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        for layer in (*model, model):
            if isinstance(layer, RowPatternMLP):
                layer.turned = False  # FSDP takes tensors that are stored by rows
            fully_shard(layer)
    step(model)
    grads = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


def _train(device, name, kind):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    model = nn.Sequential(*MODELS[name]()).to(device, dtype)
    rank = dist.get_rank()
    torch.manual_seed(1 + rank)
    x = torch.randn(256, 512, device=device, dtype=dtype)

    def step(module):
        torch.manual_seed(3 + rank)  # each rank's own masks
        module(x).float().square().mean().backward()

    alone = copy.deepcopy(model)
    step(alone)
    own = [parameter.grad.clone() for parameter in alone.parameters()]
    # By rows: NCCL takes no others, and a turned weight's gradient is turned.
    expected = [(grad / RANKS).contiguous() for grad in own]
    for grad in expected:
        dist.all_reduce(grad)
    assert any(not torch.equal(grad, mine) for grad, mine in zip(expected, own, strict=True))
    for grad, mean in zip(_averaged(model, step, kind), expected, strict=True):
        torch.testing.assert_close(grad, mean)


@pytest.mark.parametrize(
    ("kind", "device_type"),
    [
        ("ddp", "cpu"),
        ("fsdp", "cpu"),
        pytest.param("ddp", "cuda", marks=TWO_GPUS),
        pytest.param("fsdp", "cuda", marks=TWO_GPUS),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_averaged(name, kind, device_type, tmp_path):
    run_in_processes(_train, device_type, tmp_path, name, kind)
