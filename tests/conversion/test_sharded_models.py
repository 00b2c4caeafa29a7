"""Converted models under FSDP2 and DDP, on two processes."""

import copy

import pytest
import torch
from networks import BLOCK, Block, convert, found, value_and_grads
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import sparsedrop
from process_group import RANKS, run_in_processes
from sparsedrop.conversion.layers import ConvertedLinear


def _model():
    """The same on every rank. FSDP2 takes nothing in place on what nn.Linear returns, a view."""
    torch.manual_seed(0)
    model, x = Block(32, 64), torch.randn(3, 16, 32)
    model.mlp.activation = nn.ReLU()
    convert(model, x, block_shape=BLOCK)
    return model, x


def _fsdp(device):
    model, x = _model()
    torch.manual_seed(1)
    expected = value_and_grads(copy.deepcopy(model), x)
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in (model.mlp.up, model.mlp.down, model):
        fully_shard(module, mesh=mesh)
    assert isinstance(model.mlp.up, FSDPModule)
    assert isinstance(model.mlp.up, ConvertedLinear)
    torch.manual_seed(1)
    out = model(x)
    assert torch.equal(out, expected[0])
    torch.manual_seed(7)
    out.backward(torch.randn_like(out))
    for parameter, grad in zip(model.parameters(), expected[2:], strict=True):
        assert torch.equal(parameter.grad.full_tensor(), grad)
    assert sparsedrop.revert(model) == 2
    assert isinstance(model.mlp.up, FSDPModule)
    assert isinstance(model.mlp.up, nn.Linear)
    assert not isinstance(model.mlp.up, ConvertedLinear)
    assert type(model.mlp.up).__name__ == "FSDPLinear"
    assert model(x).shape == x.shape


def _ddp(device):
    model, x = _model()
    torch.manual_seed(1)
    expected = value_and_grads(model, x)
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(1)
    out = wrapped(x)
    torch.manual_seed(7)
    out.backward(torch.randn_like(out))
    for parameter, grad in zip(model.parameters(), expected[2:], strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def _ddp_first(device):
    model = DistributedDataParallel(Block(32, 64))
    x = torch.randn(3, 16, 32)
    assert found(convert(model, x)) == [("module.mlp", "mlp"), ("module.mlp.down", "output")]
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert sparsedrop.revert(model) == 2


def _replicas(device):
    """A Sequential whose parameters and input are DTensors, the same on all ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32)).double()
    x, upstream = (torch.randn(48, 32, dtype=torch.float64) for _ in range(2))
    convert(model, x, block_shape=BLOCK)
    alone = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = alone(x)
    expected.backward(upstream)
    mesh = init_device_mesh("cpu", (RANKS,))
    distribute_module(model, mesh)
    torch.manual_seed(1)
    out = model(distribute_tensor(x, mesh, [Replicate()]))
    out.backward(distribute_tensor(upstream, mesh, [Replicate()]))
    torch.testing.assert_close(out.full_tensor(), expected)
    for ours, truth in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), truth.grad)


@pytest.mark.parametrize("function", [_fsdp, _ddp, _ddp_first, _replicas])
def test_in_a_process_group(function, tmp_path):
    run_in_processes(function, "cpu", tmp_path)
