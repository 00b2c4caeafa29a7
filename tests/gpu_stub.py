"""What a GPU has beside its kernels, without one."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class Generator:
    """Stands for a GPU's, whose state is a seed and an offset."""

    def __init__(self) -> None:
        self.device, self.seed, self.offset = torch.device("cpu"), 3, 0

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


@contextmanager
def autocast_on_stub(dtype):
    """torch.autocast for a GPU, without one."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or before)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
