"""A GPU that is none, for what Python does around the calls into the extension."""

import pytest
import torch

import extension_stub
from cases import TILES
from gpu_stub import Generator
from sparsedrop import _native
from sparsedrop.masks import samplers
from sparsedrop.ops.layer import kernels as layer_kernels
from sparsedrop.ops.layer import node
from sparsedrop.ops.layer import op as layer_op
from sparsedrop.ops.slices import parts
from sparsedrop.ops.stack import kernels as stack_kernels
from sparsedrop.ops.stack import op as stack_op
from sparsedrop.ops.units import block, facts, linear, linear_facts
from sparsedrop.select import kernels


@pytest.fixture
def stub_gpu(monkeypatch):
    """Lets CPU tensors pass for a GPU's, whose extension is the stub."""
    generator = Generator()
    gpu_facts = {"capability": (9, 0), "gpu": "NVIDIA H200", "sms": 132, "tiles": TILES}
    for name, value in {
        "C": extension_stub.C, "runs_portable": lambda device: True,
        "gpu": lambda index: torch.device("cpu"),
        "current_stream": lambda index: 0, "launch_target": lambda device: (0, 0),
        "default_generator": lambda device: generator, "has_blas": lambda: True,
        "blas_handle": lambda index: 0,
        "allocator": lambda index: lambda shape, strides, dtype: torch.empty_strided(
            shape, strides, dtype=dtype
        ),
    }.items():  # fmt: skip
        monkeypatch.setattr(_native, name, value)
    monkeypatch.setattr(samplers, "is_capturing", lambda device: False)
    monkeypatch.setattr("sparsedrop.ops.copies.is_capturing", lambda device: False)
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: gpu_facts)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(torch.Tensor, "get_device", lambda tensor: 0)
    caches = (
        node.layer_for, layer_kernels.kernel_layer_for, layer_op._forward_for,
        layer_op._backward_for, stack_kernels.stack_for, stack_op._stack_of, stack_op._forward_for,
        stack_op._backward_for, block.block_for, linear.call_for, parts.call_for,
    )  # fmt: skip
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def poisoned_gpu(stub_gpu, monkeypatch):
    """What a call allocates there comes as NaN: nothing may be read before it was written."""

    def allocate(shape, strides, dtype):
        tensor = torch.empty_strided(shape, strides, dtype=dtype)
        return tensor.fill_(float("nan") if dtype.is_floating_point else 99)

    monkeypatch.setattr(_native, "allocator", lambda index: allocate)


@pytest.fixture
def apart(monkeypatch):
    """Every weight is too large for slices in two parts to be joined."""
    for module in (facts, linear_facts):
        monkeypatch.setattr(module, "WRAPPED_BYTES", 0)
    caches = block.block_for, linear.call_for
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def launches(monkeypatch):
    """How many steps each call into the stub of the extension has."""
    found, original = [], extension_stub.Program.run

    def run(program, *args):
        found.append(len(program.steps))
        original(program, *args)

    monkeypatch.setattr(extension_stub.Program, "run", run)
    return found
