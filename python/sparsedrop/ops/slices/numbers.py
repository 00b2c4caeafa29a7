"""The numbers of live units in a compiled program.

The op draws when the program runs, on the CPU, and the numbers are copied to the device: torch
leaves both out of the CUDA graphs that it makes by itself, and captures what reads the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsedrop._torch import keep_apart
from sparsedrop.masks import Slice
from sparsedrop.ops.registration import Op, register
from sparsedrop.ops.slices.choice import Choice, kept_width


def draw_numbers(choice: Choice, device: torch.device) -> Tensor:
    """int64 [w]: those of the units of a slice, which is drawn.

    By its argument torch learns that the generator is the CPU's, which a compiled checkpoint has to
    bring back.
    """
    how = choice.units, choice.p, choice.align, choice.starts
    drawn: Tensor = NUMBERS(*how, device=torch.device("cpu"))
    return drawn.to(device, non_blocking=True)


def _draw(units: int, p: float, align: int, starts: str, *, device: torch.device) -> Tensor:
    drawn = Slice.draw(units, p, align=align, starts=starts)
    start = drawn.pieces[0][0]
    return torch.arange(start, start + drawn.width, device=device).remainder_(units)


def _fake_draw(units: int, p: float, align: int, starts: str, *, device: torch.device) -> Tensor:
    keep_apart(torch.ops.sparsedrop.slice_numbers)
    return torch.empty(kept_width(units, p, align), dtype=torch.int64, device=device)


_library = register(
    Op(
        "slice_numbers(int units, float p, int align, str starts, *, Device device) -> Tensor",
        _draw,
        _fake_draw,
        draws=True,
        runs_on="BackendSelect",
        may_be_captured=False,
    )
)
NUMBERS = torch.ops.sparsedrop.slice_numbers.default
