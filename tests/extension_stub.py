"""A `_C` that does on CPU memory what programs do on a GPU: by their addresses, in float64.

What it cannot show is a kernel; all that Python does around one it can: plans, places, dtypes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from architecture_stub import ARCHITECTURES
from sparsedrop.masks import layout
from sparsedrop.masks.block_mask import expand_live
from sparsedrop.masks.samplers import balanced_live
from unit_steps import ALONG, DROPPED, UnitSteps

DTYPES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
_DTYPES = [getattr(torch, name) for name in DTYPES]


def at(address: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """What lies there."""
    size = dtype.itemsize * torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


class Launch:
    workspace_bytes = 64

    def __init__(self, **plan) -> None:
        self.plan = plan


class Call:
    """A call's addresses and numbers."""

    def __init__(self, places, numbers) -> None:
        self.places, self.numbers = places, numbers

    def address(self, place) -> int:
        number, offset = (place, 0) if isinstance(place, int) else place or (None, 0)
        base = 0 if number is None else self.places[number]
        return base + offset if base else 0

    def at(self, place, dtype: torch.dtype, *shape: int) -> Tensor:
        return at(self.address(place), dtype, *shape)

    def number(self, number: int | None) -> float:
        return 1.0 if number is None else self.numbers[number]

    def live(self, place, rows: int, cols: int, block) -> Tensor:
        """Of a grid's matrix, which elements are live."""
        if not self.address(place):
            return torch.ones(rows, cols, dtype=torch.bool)
        grid = -(-rows // block[0]), -(-cols // block[1])
        return expand_live(self.at(place, torch.bool, *grid), block, (rows, cols))

    def store(self, value: Tensor, place, dtype: torch.dtype, adds: bool = False) -> None:
        if self.address(place):
            held = self.at(place, dtype, *value.shape)
            held.copy_(held.double() + value if adds else value)


ACTIVATIONS = {
    "none": lambda x: x, "relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}  # fmt: skip


def _slope(act, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(act(x).sum(), x)[0]


class Program(UnitSteps):
    """Runs the steps one after the other. `C.grids` are those of the masks that steps have drawn.

    Where a step's words lie is remembered with the grid that lies beside them, since the stub reads
    that and not the words.
    """

    dtypes = _DTYPES

    def __init__(self, device: int) -> None:
        self.steps, self.grids = [], {}

    def run(self, places, numbers, stream) -> None:
        call = Call([int(place) for place in places], [float(number) for number in numbers])
        for step in self.steps:
            step(call)

    def _words(self, call: Call, words, shape, block) -> Tensor:
        """What the words say is live of a matrix; all, where there are none."""
        if words is None:
            return torch.ones(shape, dtype=torch.bool)
        rows, cols = (call.address(place) for place in words)
        if rows <= cols:
            return expand_live(_grid_beside(rows, shape, block), block, shape)
        turned = expand_live(_grid_beside(cols, shape[::-1], block[::-1]), block[::-1], shape[::-1])
        return turned.t()

    def draw(self, *, rows, cols, block, live, words=None, keep, seed) -> None:
        def step(call: Call) -> None:
            if words is not None:
                lies = layout(rows, cols, *block)
                assert call.address(words[1]) == call.address(words[0]) + lies.col_words_at
                assert call.address(live) == call.address(words[0]) + lies.live_at
            state = call.places[seed : seed + 2]
            C.grids.append(_draw(call.address(live), rows, cols, block, call.number(keep), *state))

        self.steps.append(step)

    def round(self, *, dtype, arrays) -> None:
        def step(call: Call) -> None:
            for source, source_dtype, to, count, factor in arrays:
                if call.address(to):
                    value = call.at(source, _DTYPES[source_dtype], count).double()
                    call.store(value * call.number(factor), to, _DTYPES[dtype])

        assert len(arrays) <= C.MAX_ROUNDINGS
        assert _DTYPES[dtype].itemsize == 2
        self.steps.append(step)

    def product(
        self, launch, *, a, b, d, a_words=None, b_words=None, d_words=None,
        alpha=None, bias=None, workspace=None, accumulates=False,
    ):  # fmt: skip
        plan = launch.plan
        m, n, k, dtype = plan["m"], plan["n"], plan["k"], _DTYPES[plan["dtype"]]
        out_dtype = torch.float32 if plan.get("d_is_fp32") else dtype
        act = next(name for name, code in C.ACTIVATIONS.items() if code == plan["activation"])
        for words, block in ((a_words, "a_block"), (b_words, "b_block"), (d_words, "d_block")):
            assert (words is None) == (plan[block] is None), block

        def operand(call, place, k_major, ld, shape, words, block):
            assert ld == (shape[1] if k_major else shape[0])
            lies = shape if k_major else shape[::-1]
            matrix = call.at(place, dtype, *lies).double()
            matrix = matrix if k_major else matrix.t()
            return torch.where(self._words(call, words, shape, block), matrix, 0)

        def step(call: Call) -> None:
            if not call.address(d):
                return
            left = operand(
                call, a, plan["a_k_major"], plan["a_ld"], (m, k), a_words, plan["a_block"]
            )
            right = operand(
                call, b, not plan["b_k_major"], plan["b_ld"], (k, n), b_words, plan["b_block"]
            )
            value = call.number(alpha) * left @ right
            if call.address(bias):
                value = value + call.at(bias, dtype, n).double()
            is_live = self._words(call, d_words, (m, n), plan["d_block"])
            call.store(torch.where(is_live, ACTIVATIONS[act](value), 0), d, out_dtype, accumulates)
            call.at(workspace, torch.uint8, 64).zero_()

        self.steps.append(step)

    def masked_copy(self, *, in_dtype, source, source_ld, out_dtype, out, rows, cols, block,
                    live=None, factor=None, keep=None, seed=None):  # fmt: skip
        def step(call: Call) -> None:
            if not call.address(out) or not call.address(source):
                return
            if seed is not None:
                state = call.places[seed : seed + 2]
                keeps = call.number(keep)
                C.grids.append(_draw(call.address(live), rows, cols, block, keeps, *state))
            height = rows if source_ld else 1
            value = call.at(source, _DTYPES[in_dtype], height, cols).double().expand(rows, cols)
            is_live = call.live(live, rows, cols, block)
            value = torch.where(is_live, value * call.number(factor), 0)
            call.store(value, out, _DTYPES[out_dtype])

        self.steps.append(step)

    def column_sums(self, *, dtype, matrix, rows, cols, block=None, words=None, out, out_dtype,
                    accumulates=False, factor=None):  # fmt: skip
        def step(call: Call) -> None:
            if not call.address(out):
                return
            value = call.at(matrix, _DTYPES[dtype], rows, cols).double()
            value = torch.where(self._words(call, words, (rows, cols), block), value, 0).sum(0)
            call.store(call.number(factor) * value, out, _DTYPES[out_dtype], accumulates)

        self.steps.append(step)

    def pointwise(self, *, kind, activation, dtype, rows, cols, block, a, b=None, grad=None, out,
                  out_b=None, live=None, bias_a=None, bias_b=None, bias_dtype=2, units=None,
                  count=0):  # fmt: skip
        assert _DTYPES[dtype].itemsize == 2
        assert cols % 8 == 0
        name = next(name for name, code in C.POINTWISE.items() if code == kind)
        act = ACTIVATIONS[next(n for n, code in C.ACTIVATIONS.items() if code == activation)]

        def step(call: Call) -> None:
            if not call.address(out):
                return
            assert not any(call.address(place) % 16 for place in (a, b, grad, out, out_b))
            is_live = call.live(live, rows, cols, block)
            one, two, g = (
                call.at(place, _DTYPES[dtype], rows, cols).double() if call.address(place) else None
                for place in (a, b, grad)
            )
            one = one + self._biases(call, bias_a, bias_dtype, units, count, cols)
            if two is not None:
                two = two + self._biases(call, bias_b, bias_dtype, units, count, cols)
            results = {
                "activate": lambda: (act(one),),
                "activation_grad": lambda: (g * _slope(act, one),),
                "gate": lambda: (act(one) * two,),
                "gate_grad": lambda: (g * two * _slope(act, one), g * act(one)),
                "add": lambda: (one + two,),
            }[name]()
            for value, place in zip(results, (out, out_b), strict=False):
                held = call.at(place, _DTYPES[dtype], rows, cols)
                held.copy_(torch.where(is_live, value, held.double()))

        self.steps.append(step)


def _draw(live: int, rows: int, cols: int, block, keep: float, seed: int, ahead: int) -> Tensor:
    """A copy of the grid, which is drawn there unless `ahead` is 0."""
    grid = -(-rows // block[0]), -(-cols // block[1])
    cells = at(live, torch.bool, *grid)
    if ahead:
        generator = torch.Generator().manual_seed(1000 * seed + ahead)
        cells.copy_(torch.rand(grid, generator=generator) < keep)
    return cells.clone()


def _grid_beside(words: int, shape, block) -> Tensor:
    """The grid of a mask whose buffer starts with the words of its block rows."""
    lies = layout(*shape, *block)
    return at(words + lies.live_at, torch.bool, *lies.live)


class C:
    """Stands for the extension."""

    DTYPES, ARCHITECTURES = DTYPES, ARCHITECTURES
    CUDA_ARCHS = "80, 90a-real, 120-real"
    ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3, "gelu_tanh": 4}  # noqa: RUF012
    MAX_SUM_COLUMNS = 64 * 65535
    POINTWISE = {"activate": 0, "activation_grad": 1, "gate": 2, "gate_grad": 3, "add": 4}  # noqa: RUF012
    MAX_ROUNDINGS = 8
    UNITS_ALONG = ALONG
    DROPPED = DROPPED
    Launch, Program = Launch, Program
    grids: list[Tensor] = []  # noqa: RUF012 - of the masks that were drawn, in turn

    @staticmethod
    def load_blas(release: int) -> bool:
        return True

    @staticmethod
    def mask_words(*args: int) -> None:
        pass

    @staticmethod
    def bernoulli_mask(keep, seed, offset, rows, cols, block_rows, block_cols, live, *others):
        C.grids.append(_draw(live, rows, cols, (block_rows, block_cols), keep, seed, offset + 1))

    @staticmethod
    def masked_copy(in_dtype, source, source_ld, out_dtype, out, out_ld, rows, cols, block_rows,
                    block_cols, live, row_stride, col_stride, factor, *target):  # fmt: skip
        assert (source_ld, out_ld) == (cols, cols)
        block = block_rows, block_cols
        grid = -(-rows // block_rows), -(-cols // block_cols)
        is_live = expand_live(at(live, torch.bool, *grid), block, (rows, cols))
        value = at(source, _DTYPES[in_dtype], rows, cols).double() * factor
        at(out, _DTYPES[out_dtype], rows, cols).copy_(torch.where(is_live, value, 0))

    @staticmethod
    def balanced_live(keys, rows, columns, count, live, device, stream):
        bands = -(-rows * torch.gcd(torch.tensor(count), torch.tensor(columns)).item() // columns)
        drawn = balanced_live(at(keys, torch.int32, bands, columns), rows, count)
        at(live, torch.bool, rows, columns).copy_(drawn)
