"""Tensor parallelism: two processes, each with its shards, against one with the same masks."""

import copy
import functools
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import sparsedrop
from process_group import RANKS, TWO_GPUS, run_in_processes
from sparsedrop import BlockMask, functional, reference, select, sharded
from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack
from sparsedrop.ops.layer import plain
from sparsedrop.ops.stack import plain as of_stacks

ROWS, BLOCK, P = 256, (64, 64), 0.5
SIZES = 256, 512, 256


class Masks:
    """Records what is drawn."""

    def __init__(self):
        self.found = []
        for module in (functional, plain, of_stacks):
            module.draw = self._recording(module.draw)

    def _recording(self, draw):
        def recorded(*args):
            self.found.append(draw(*args))
            return self.found[-1]

        return recorded


def _whole(mask, rank_has_own, dim=1, rows=None):
    """The mask of the whole input: each rank's own one behind the other, or the one of all."""
    lives = [torch.empty_like(mask.live) for _ in range(RANKS)]
    dist.all_gather(lives, mask.live.contiguous())
    if not rank_has_own:
        assert torch.equal(lives[0], lives[1])
        return mask
    assert not torch.equal(lives[0], lives[1])
    shape = (mask.shape[0], RANKS * mask.shape[1]) if dim else (rows, mask.shape[1])
    return BlockMask.from_live(torch.cat(lives, dim), shape, block_shape=mask.block_shape)


def _the_long_way(device):
    """Which draws its masks where they are recorded."""
    return select.override(split_k=1) if device.type == "cuda" else nullcontext()


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
    with _the_long_way(device):
        out = model(leaf)
        out.backward(upstream)
        model(leaf)
    plain_leaf = x.clone().requires_grad_()
    # What lies between the layers is sharded.
    each_has_own = (False, True) if side == "input" else (True, False)
    first, second = masks.found[:2], masks.found[2:]
    whole = [_whole(mask, own) for mask, own in zip(first, each_has_own, strict=True)]
    expected = _forward(alone, plain_leaf, whole, side)
    expected.backward(upstream)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(out.detach() + 0, expected.detach(), **tolerance)
    torch.testing.assert_close(leaf.grad, plain_leaf.grad, **tolerance)
    for ours, truth in zip(model.parameters(), alone.parameters(), strict=True):
        assert isinstance(ours.grad, DTensor)
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad, **tolerance)
    assert not torch.equal(first[0].live, second[0].live)


def _feed_forward(device, gated):
    """Up by columns, down by rows: one block of the shards, each rank's hidden mask its own."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float64
    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(0)
    mlp = SparseDropMLP(
        SIZES[0], SIZES[1], p=P, activation="silu", gated=gated, block_shape=BLOCK
    ).to(device, dtype)
    alone = copy.deepcopy(mlp)
    plan = {"up": ColwiseParallel(), "gate": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(mlp, mesh, plan if gated else {k: plan[k] for k in ("up", "down")})
    x = torch.randn(ROWS, SIZES[0], device=device, dtype=dtype)
    upstream = torch.randn(ROWS, SIZES[0], device=device, dtype=dtype)
    masks = Masks()
    leaf, plain_leaf = (x.clone().requires_grad_() for _ in range(2))
    with _the_long_way(device):
        out = mlp(leaf)
        out.backward(upstream)
    (mask,) = masks.found
    whole, alpha = _whole(mask, True), reference.dropout_scale(P)
    layers = (alone.up, alone.gate) if gated else (alone.up,)
    hidden, *gate = (nn.functional.linear(plain_leaf, m.weight, m.bias) for m in layers)
    hidden = nn.functional.silu(gate[0]) * hidden if gated else nn.functional.silu(hidden)
    down = alone.down.weight, alone.down.bias
    expected = reference.linear(hidden, *down, x_mask=whole, alpha=alpha)
    expected.backward(upstream)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(out.detach() + 0, expected.detach(), **tolerance)
    torch.testing.assert_close(leaf.grad, plain_leaf.grad, **tolerance)
    for ours, truth in zip(mlp.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad, **tolerance)
    mlp.eval()
    torch.testing.assert_close(mlp(x) + 0, alone.eval()(x), **tolerance)


def _converted_feed_forward(device):
    """Layers that `convert` has made, by columns and then by rows."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float64
    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(0)
    layers = [nn.Linear(*pair) for pair in pairwise(SIZES)]
    model = nn.Sequential(layers[0], nn.SiLU(), nn.Dropout(P), layers[1], nn.Dropout(P))
    model = model.to(device, dtype)
    alone = copy.deepcopy(model)
    x = torch.randn(ROWS, SIZES[0], device=device, dtype=dtype)
    upstream = torch.randn(ROWS, SIZES[-1], device=device, dtype=dtype)
    sparsedrop.convert(model, x, min_speedup=0, block_shape=BLOCK)
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "3": RowwiseParallel()})
    masks = Masks()
    leaf, plain_leaf = (x.clone().requires_grad_() for _ in range(2))
    with _the_long_way(device):
        out = model(leaf)
        out.backward(upstream)
    hidden_mask, out_mask = _whole(masks.found[0], True), _whole(masks.found[1], False)
    assert len(masks.found) == 2
    hidden = nn.functional.silu(alone[0](plain_leaf))
    expected = reference.dropout_linear(
        hidden, alone[3].weight, alone[3].bias, hidden_mask, P, "input"
    )
    expected = expected * out_mask.expand() * reference.dropout_scale(P)
    expected.backward(upstream)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(out.detach() + 0, expected.detach(), **tolerance)
    torch.testing.assert_close(leaf.grad, plain_leaf.grad, **tolerance)
    for ours, truth in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad, **tolerance)
    torch.testing.assert_close(model.eval()(x) + 0, alone.eval()(x), **tolerance)


def _feed_forward_with_hooks(device):
    """Whatever else hooks into a layer of a sharded block sees it called; the output is dropped
    alike on all ranks."""
    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(0)
    mlp = SparseDropMLP(64, 128, p=P, out_p=P, block_shape=(8, 8), device=device)
    parallelize_module(mlp, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    x = torch.randn(64, 64, device=device)
    seen = []
    for expected in (0, 1):
        out = mlp(x)
        assert len(seen) == expected
        parts = [torch.empty_like(out) for _ in range(RANKS)]
        dist.all_gather(parts, out.detach() + 0)
        assert torch.equal(parts[0] == 0, parts[1] == 0)
        assert (out == 0).any()
        mlp.down.register_forward_hook(lambda *_: seen.append(None))


def _stack(device, placement):
    """Layers that no plan has sharded run by torch; shards of the batch are uneven."""
    mesh, rows = init_device_mesh(device.type, (RANKS,)), 255
    torch.manual_seed(0)
    model = SparseDropStack((64, 96, 64), p=P, block_shape=(8, 8), dtype=torch.float64).to(device)
    alone = copy.deepcopy(model)
    distribute_module(model, mesh)
    x, upstream = (torch.randn(rows, 64, device=device, dtype=torch.float64) for _ in range(2))
    leaf = distribute_tensor(x, mesh, [placement]).requires_grad_()
    torch.manual_seed(7 + dist.get_rank())  # seeds of their own, until the first layer
    masks = Masks()
    out = model(leaf)
    assert out.shape == upstream.shape
    out.backward(distribute_tensor(upstream, mesh, [placement]))
    whole = [_whole(mask, placement.is_shard(), 0, rows) for mask in masks.found]
    plain_leaf = x.clone().requires_grad_()
    expected = plain_leaf
    for i, (layer, mask) in enumerate(zip(alone.layers, whole, strict=True)):
        expected = expected if i == 0 else expected.relu()
        expected = reference.dropout_linear(expected, layer.weight, layer.bias, mask, P, "input")
    expected.backward(upstream)
    torch.testing.assert_close(out.full_tensor(), expected)
    torch.testing.assert_close(leaf.grad.full_tensor(), plain_leaf.grad)
    for ours, truth in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad)


def _results_that_stay_sharded(device):
    """What a plan hands on as DTensors is dropped where it lies: sums over ranks alike."""
    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(0)
    stack = SparseDropStack((64, 64, 64), p=P, block_shape=(8, 8), device=device)
    mlp = SparseDropMLP(64, 64, p=P, out_p=P, block_shape=(8, 8), device=device)
    column = ColwiseParallel(use_local_output=False)
    row = RowwiseParallel(use_local_output=False)
    parallelize_module(stack, mesh, {"layers.0": column, "layers.1": row})
    parallelize_module(mlp, mesh, {"up": column, "down": row})
    x = torch.randn(64, 64, device=device)
    torch.manual_seed(7 + dist.get_rank())
    masks = Masks()
    out = mlp(distribute_tensor(x, mesh, [Shard(0)]))
    assert out.placements == (Replicate(),)
    hidden, of_out = masks.found
    _whole(hidden, True)
    dropped = ~_whole(of_out, False).expand()
    assert (out.full_tensor()[dropped] == 0).all()
    stack(out).full_tensor().sum().backward()
    _whole(masks.found[2], False)
    _whole(masks.found[3], True)
    for parameter in (*mlp.parameters(), *stack.parameters()):
        assert parameter.grad.full_tensor().any()


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
    "feed-forward": functools.partial(_feed_forward, gated=False),
    "gated feed-forward": functools.partial(_feed_forward, gated=True),
    "converted feed-forward": _converted_feed_forward,
    "feed-forward with hooks": _feed_forward_with_hooks,
    "stack of replicas": functools.partial(_stack, placement=Replicate()),
    "stack of a sharded batch": functools.partial(_stack, placement=Shard(0)),
    "results that stay sharded": _results_that_stay_sharded,
    "placements": _placements,
}


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def test_two_processes(name, device_type, tmp_path):
    run_in_processes(TESTS[name], device_type, tmp_path)


def test_plain_tensors_are_not_sharded():
    assert not sharded.are_sharded(torch.randn(3), None)
