"""The compiled extension, where this build has one, and the GPUs that it runs on.

`sparsedrop._C` exists only where a CUDA compiler was found at build time. It is looked up without
being imported, so that a broken extension raises its own error instead of passing
for a CPU-only build.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch


def _load() -> Any:
    if importlib.util.find_spec("sparsedrop._C") is None:
        return None
    return importlib.import_module("sparsedrop._C")


C: Any = _load()


@functools.cache
def capability(index: int) -> tuple[int, int]:
    """Compute capability of GPU `index`; asked once, since torch looks it up anew each time."""
    return torch.cuda.get_device_capability(index)


@functools.cache
def gpus() -> int:
    """How many GPUs this torch can use; asked once, likewise."""
    return torch.cuda.device_count()


def runs_on(device: torch.device) -> bool:
    """True where this build has kernels for that device. The device must have its index."""
    if C is None or device.type != "cuda":
        return False
    return _has_kernels(C.CUDA_ARCHS, *capability(device.index))


@functools.cache
def _has_kernels(architectures: str, major: int, minor: int) -> bool:
    # An architecture like "90a" runs on exactly that capability, so nothing newer counts.
    return f"{major}{minor}a" in architectures


def default_generator(device: torch.device) -> torch.Generator:
    """torch's default generator of that GPU. The device must have its index."""
    return torch.cuda.default_generators[device.index]


def launch_target(device: torch.device) -> tuple[int, int]:
    """Device index and address of torch's current stream there, as every launch takes them."""
    return device.index, current_stream(device.index)


def current_stream(index: int) -> int:
    """Address of torch's current stream on GPU `index`."""
    # The address alone: torch.cuda.current_stream() makes a Stream object around it.
    return torch._C._cuda_getCurrentRawStream(index)


def require_build_for(device: torch.device) -> None:
    """Raises RuntimeError where `device` is a GPU and this build is a CPU-only one."""
    if C is None and device.type == "cuda":
        raise RuntimeError(
            "this build of sparsedrop has no CUDA kernels, so it cannot run a masked product on "
            f"{device}: install it again where nvcc is on the PATH, with `pip install "
            "--no-cache-dir -C cmake.define.SPARSEDROP_CUDA=ON`, or move the tensors to the CPU"
        )
