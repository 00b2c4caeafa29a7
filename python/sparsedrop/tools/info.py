"""`sparsedrop info`: what this build can run on this machine, and how."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import torch

import sparsedrop
from sparsedrop import _native, select
from sparsedrop.operands import DTYPES
from sparsedrop.tools.names import device_name, dtype_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`sparsedrop info` has no options."""
    parser.description = "Prints what this build of sparsedrop can run on this machine, and how."


def run(args: argparse.Namespace) -> int:
    """`sparsedrop info`: one aligned line per fact."""
    facts = [*_build_facts(), ("paths", _TYPICAL), *_cpu_facts(), *_gpu_facts()]
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        print(f"{name:<{width}}  {fact}")
    return 0


_TYPICAL = "as chosen below for m, n, k = 4096, a in blocks of 128x128, p = 0.5"


def _build_facts() -> Iterator[tuple[str, str]]:
    yield "sparsedrop", sparsedrop.__version__
    yield "torch", torch.__version__
    if _native.C is None:
        yield "CUDA kernels", "none: this is a CPU-only build"
        return
    targets = re.findall(r"[^;, ]+", _native.C.CUDA_ARCHS)
    yield "CUDA kernels", ", ".join(map(_target, targets))
    for family in _native.C.ARCHITECTURES:
        tiles = ", ".join(f"{m}x{n}x{k}" for m, n, k, _ in family.tiles)
        yield f"tiles of {family.name}", f"{tiles} (m x n x k)"
        dtypes = map(_multiplied, select.architecture(family.name).dtypes)
        yield f"dtypes of {family.name}", ", ".join(dtypes)


def _target(arch: str) -> str:
    """One of CMake's CUDA_ARCHITECTURES, as nvcc calls it: machine code, PTX or both."""
    number, _, kind = arch.partition("-")
    names = {"real": f"sm_{number}", "virtual": f"compute_{number}"}
    return names.get(kind, f"sm_{number}, compute_{number}")


def _multiplied(dtype: torch.dtype) -> str:
    """A dtype of operands, and what the kernels make of it."""
    return f"{dtype_name(dtype)} as TF32" if dtype is torch.float32 else dtype_name(dtype)


def _cpu_facts() -> Iterator[tuple[str, str]]:
    threads = torch.get_num_threads()
    yield "CPU", f"{device_name(torch.device('cpu'))}, {threads} thread{'s' * (threads > 1)}"
    for dtype in DTYPES:
        yield f"  {dtype_name(dtype)}", _way_of(_typical_request("cpu", dtype))


def _gpu_facts() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        yield "GPU", "none that this torch can use"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = _native.capability(index)
        yield f"GPU {index}", f"{device_name(device)}, compute capability {major}.{minor}"
        if (major, minor) < _native.PORTABLE_FROM:
            oldest = ".".join(map(str, _native.PORTABLE_FROM))
            yield "  unused", f"there are no kernels below compute capability {oldest}: dense path"
        try:
            _native.require_build_for(device)
        except RuntimeError as error:
            yield "  unused", str(error)
            continue
        yield from _kernel_facts(_typical_request("cuda", torch.bfloat16, index))
        for dtype in DTYPES:
            yield f"  {dtype_name(dtype)}", _way_of(_typical_request("cuda", dtype, index))


def _kernel_facts(request: select.Request) -> Iterator[tuple[str, str]]:
    """Whose kernels run on a GPU, and by which costs they are chosen."""
    if not request.tiles:
        return
    names = select.names_of(request.tiles)
    yield "  kernels", ", ".join(map(_with_trust, names))
    yield "  costs", "; ".join(f"{name}: {source}" for name, source in select.sources(request))


def _with_trust(name: str) -> str:
    return name if name in select.TESTED else f"{name} (untested: only where forced or measured)"


def _typical_request(device: str, dtype: torch.dtype, index: int = 0) -> select.Request:
    """The product that stands for its dtype, as `_TYPICAL` says."""
    request = select.Request(
        device, dtype, m=4096, n=4096, k=4096, a_block=(128, 128), a_keep=0.5,
        tf32=select.multiplies_as_tf32(dtype),
    )  # fmt: skip
    return request if device == "cpu" else request._replace(**select.gpu_facts(index))


def _way_of(request: select.Request) -> str:
    """How the product is run, or why what is forced cannot be."""
    try:
        choice = select.decide(request)
    except ValueError as error:
        return str(error)
    return f"{choice.path}: {choice.reason}"
