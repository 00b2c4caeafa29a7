"""The compiled extension, where this build has one, and the GPUs that it runs on.

`sparsedrop._C` exists only where a CUDA compiler was found at build time. It is looked up without
being imported, so that a broken extension raises its own error instead of passing
for a CPU-only build.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import empty_on_current_gpu, raw_stream


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


def gpu(index: int) -> torch.device:
    """GPU `index`."""
    return torch.device("cuda", index)


def runs_on(device: torch.device) -> bool:
    """True where this build has kernels for that device. The device must have its index."""
    if C is None or device.type != "cuda":
        return False
    return has_kernels(*capability(device.index))


@functools.cache
def has_kernels(major: int, minor: int) -> bool:
    """True where this build has kernels for a GPU of that compute capability."""
    return C is not None and any(family.runs_on(major, minor) for family in C.ARCHITECTURES)


PORTABLE_FROM = (8, 0)
"""The compute capability from which a GPU runs what is not of one architecture: draws, masked
copies, roundings and sums."""


def runs_portable(device: torch.device) -> bool:
    """True where this build's portable kernels run on that device. It must have its index."""
    return C is not None and device.type == "cuda" and capability(device.index) >= PORTABLE_FROM


@functools.cache
def dtype_code(dtype: torch.dtype) -> int:
    """What the kernels call that dtype; KeyError for others than theirs."""
    return C.DTYPES[str(dtype).removeprefix("torch.")]


def default_generator(device: torch.device) -> torch.Generator:
    """torch's default generator of that GPU. The device must have its index."""
    return torch.cuda.default_generators[device.index]


def launch_target(device: torch.device) -> tuple[int, int]:
    """Device index and address of torch's current stream there, as every launch takes them."""
    return device.index, current_stream(device.index)


current_stream = raw_stream


Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]
"""By shape, strides and dtype."""


def allocator(index: int) -> Allocate:
    """What allocates tensors on GPU `index`."""
    if gpus() == 1:
        return empty_on_current_gpu

    def allocate(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if torch.cuda.current_device() == index:
            return empty_on_current_gpu(shape, strides, dtype)
        return torch.empty_strided(shape, strides, dtype=dtype, device=gpu(index))

    return allocate


@functools.cache
def has_blas() -> bool:
    """True where `_C` can call the cuBLAS that torch has loaded."""
    release = torch.version.cuda
    return C is not None and release is not None and C.load_blas(int(release.partition(".")[0]))


_thread = threading.local()


def blas_handle(index: int) -> int:
    """Address of torch's cuBLAS handle for its current stream on GPU `index`."""
    if not hasattr(_thread, "has_context"):
        # A thread of autograd's has no CUDA context at first, and torch warns; this leaves one.
        torch.cuda.is_current_stream_capturing()
        _thread.has_context = True
    if gpus() > 1 and torch.cuda.current_device() != index:
        with torch.cuda.device(index):
            return torch.cuda.current_blas_handle()
    return torch.cuda.current_blas_handle()


def allows_narrow_sums(dtype: torch.dtype) -> bool:
    """Whether torch lets cuBLAS add up the parts of a product in that dtype."""
    settings = torch.backends.cuda.matmul
    if dtype is torch.bfloat16:
        return settings.allow_bf16_reduced_precision_reduction
    return settings.allow_fp16_reduced_precision_reduction if dtype is torch.float16 else True


def allows_tf32() -> bool:
    """Whether torch may multiply float32 matrices as TF32 on a GPU, whichever way that was set.

    `allow_tf32` and `torch.get_float32_matmul_precision` raise where a program sets
    `fp32_precision`, which in turn knows of both.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def multiplies_as_tf32(dtype: torch.dtype) -> bool:
    """Whether torch may multiply matrices of that dtype as TF32."""
    return dtype is torch.float32 and allows_tf32()


def require_build_for(device: torch.device) -> None:
    """Raises RuntimeError where `device` is a GPU and this build is a CPU-only one."""
    if C is None and device.type == "cuda":
        raise RuntimeError(
            "this build of sparsedrop has no CUDA kernels, so it cannot run a masked product on "
            f"{device}: install it again where nvcc is on the PATH, with `pip install "
            "--no-cache-dir --config-settings=cmake.define.SPARSEDROP_CUDA=ON`, or move the "
            "tensors to the CPU"
        )
