"""Tensor parallelism: two processes, each with its shards, against one with the same masks."""

import copy
import functools
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import sparsedrop
from sparsedrop import BlockMask, functional, reference, select, sharded
from sparsedrop.nn import SparseDropLinear
from sparsedrop.ops.layer import plain

RANKS, ROWS, BLOCK, P = 2, 256, (64, 64), 0.5
SIZES = 256, 512, 256
TWO_GPUS = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < RANKS, reason="fewer than two GPUs"),
]


class Masks:
    """Records what is drawn."""

    def __init__(self):
        self.found = []
        for module in (functional, plain):
            module.draw = self._recording(module.draw)

    def _recording(self, draw):
        def recorded(*args):
            self.found.append(draw(*args))
            return self.found[-1]

        return recorded


def _whole(mask, rank_has_own):
    """The mask of the whole input: each rank's own side by side, or the one that all have."""
    lives = [torch.empty_like(mask.live) for _ in range(RANKS)]
    dist.all_gather(lives, mask.live.contiguous())
    if not rank_has_own:
        assert torch.equal(lives[0], lives[1])
        return mask
    assert not torch.equal(lives[0], lives[1])
    shape = mask.shape[0], RANKS * mask.shape[1]
    return BlockMask.from_live(torch.cat(lives, 1), shape, block_shape=BLOCK)


def _forward(model, x, masks, side):
    """The model as one process runs it, under these masks."""

    def layer(x, module, mask):
        return reference.dropout_linear(x, module.weight, module.bias, mask, P, side)

    return layer(layer(x, model[0], masks[0]).relu(), model[2], masks[1])


def _tensor_parallel(device, side):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float64
    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(0)
    layers = [
        SparseDropLinear(*pair, p=P, block_shape=BLOCK, side=side) for pair in pairwise(SIZES)
    ]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).to(device, dtype)
    alone = copy.deepcopy(model)
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = torch.randn(ROWS, SIZES[0], device=device, dtype=dtype)
    upstream = torch.randn(ROWS, SIZES[-1], device=device, dtype=dtype)
    torch.manual_seed(7 + dist.get_rank())  # seeds of their own, until the first layer
    masks = Masks()
    leaf = x.clone().requires_grad_()
    # The long way draws its masks where they are recorded.
    with select.override(swap=False) if device.type == "cuda" else nullcontext():
        out = model(leaf)
        out.backward(upstream)
    plain_leaf = x.clone().requires_grad_()
    # What lies between the layers is sharded.
    each_has_own = (False, True) if side == "input" else (True, False)
    whole = [_whole(mask, own) for mask, own in zip(masks.found, each_has_own, strict=True)]
    expected = _forward(alone, plain_leaf, whole, side)
    expected.backward(upstream)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(out.detach() + 0, expected.detach(), **tolerance)
    torch.testing.assert_close(leaf.grad, plain_leaf.grad, **tolerance)
    for ours, truth in zip(model.parameters(), alone.parameters(), strict=True):
        assert isinstance(ours.grad, DTensor)
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad, **tolerance)
    second = len(masks.found)
    model(leaf)
    assert not torch.equal(masks.found[second].live, masks.found[0].live)


def _placements(device):
    """A batch that is sharded has each rank's own masks; what makes no layer raises."""
    mesh = init_device_mesh(device.type, (RANKS,))
    layer = SparseDropLinear(64, 32, p=P, block_shape=(8, 8), device=device)
    torch.manual_seed(0)
    x = distribute_tensor(torch.randn(64, 64, device=device), mesh, [Shard(0)])
    weight, bias = (
        nn.Parameter(distribute_tensor(t.detach(), mesh, [Replicate()]))
        for t in (layer.weight, layer.bias)
    )
    out = sparsedrop.dropout_linear(x, weight, bias, p=P, block_shape=(8, 8))
    assert out.placements == (Shard(0),)
    out.sum().backward()
    assert (weight.grad.full_tensor().shape, bias.grad.full_tensor()[0].item()) == ((32, 64), 64.0)
    wrong = distribute_tensor(layer.weight.detach(), mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"x is placed S.* and weight S.*: a layer has"):
        sparsedrop.dropout_linear(x, wrong, p=P)


TESTS = {
    "dropped inputs": functools.partial(_tensor_parallel, side="input"),
    "dropped outputs": functools.partial(_tensor_parallel, side="output"),
    "placements": _placements,
}


def _run(rank, name, device_type, store):
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        device = torch.device(device_type, rank if device_type == "cuda" else None)
        if device_type == "cuda":
            torch.cuda.set_device(device)
        TESTS[name](device)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def test_two_processes(name, device_type, tmp_path):
    multiprocessing.spawn(_run, (name, device_type, tmp_path / "store"), RANKS)


def test_plain_tensors_are_not_sharded():
    assert not sharded.are_sharded(torch.randn(3), None)
