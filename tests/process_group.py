"""Tests that run in two processes of one process group."""

from __future__ import annotations

import gc
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

RANKS = 2

TWO_GPUS = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < RANKS, reason="fewer than two GPUs"),
]
"""Marks of what needs NCCL: gloo's collectives on tensors of one GPU crash in torch."""


def run_in_processes(function, device_type, folder, *args):
    """Calls `function(device, *args)` on every rank: on GPUs by NCCL, else by gloo."""
    multiprocessing.spawn(_run, (function, device_type, folder / "store", args), nprocs=RANKS)


def _run(rank, function, device_type, store, args):
    is_on_gpus = device_type == "cuda"
    backend = "nccl" if is_on_gpus else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        device = torch.device(device_type, rank if is_on_gpus else None)
        if is_on_gpus:
            torch.cuda.set_device(device)
        function(device, *args)
        dist.barrier()  # no rank leaves while another still talks to it
    finally:
        gc.collect()
        dist.destroy_process_group()
    # A thread of gloo's that still wants the interpreter while that ends would abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
