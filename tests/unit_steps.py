"""The stub's steps of programs for blocks whose hidden units live in part, by address."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

ALONG = {"neither": 0, "rows": 1, "cols": 2, "both": 3}
DROPPED = {"zeroed": 0, "kept": 1}
FP32 = 2
MOST = 8
"""Matrices of a step."""


def matrix_at(address: int, dtype: torch.dtype, rows: int, cols: int, ld: int) -> Tensor:
    """What lies there, [rows, cols], and not one element more."""
    count = (rows - 1) * ld + cols if rows and cols else 0
    data = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(data, dtype=dtype).as_strided((rows, cols), (ld, 1))


def live_units(call, number: int, count: int) -> list[int]:
    """The live units of a call, in the order of a compact matrix."""
    step, first, first_count, second = (int(call.places[number + i]) for i in range(4))
    assert 0 <= first_count <= count
    rest = range(second, second + step * (count - first_count), step)
    units = [*range(first, first + step * first_count, step), *rest]
    assert len(set(units)) == count
    return units


def _indices(call, along: int, units, across) -> list[Tensor | None]:
    """The live units along rows and along columns; None: all lines live."""
    own = torch.tensor(live_units(call, *units))
    if along == ALONG["both"]:
        return [own, torch.tensor(live_units(call, *across))]
    return [own if along == ALONG[name] else None for name in ("rows", "cols")]


class UnitSteps:
    """To be inherited by the stub's Program, whose dtypes and steps these use."""

    dtypes: list[torch.dtype]

    def dense_product(
        self, *, m, n, k, a, a_ld=None, a_turned=False, b, b_ld=None, b_turned=False, out,
        out_ld=None, dtype, out_dtype, alpha=None, accumulates=False, bias=None, workspace, handle,
        units=None, live="", whole="", handle_now,
    ):  # fmt: skip
        assert (units is None) == (live == "")
        sizes = {"m": m, "n": n, "k": k}
        lies = {"a": ("mk", a, a_ld, a_turned, dtype), "b": ("kn", b, b_ld, b_turned, dtype),
                "o": ("mn", out, out_ld, False, out_dtype)}  # fmt: skip

        def view(call, name: str) -> tuple[Tensor, list[int] | None, int]:
            """As the product sees it; where its live extent is whole, the units to take, and of
            which extent."""
            extents, place, ld, turned, code = lies[name]
            index, dim = None, extents.find(live) if live else -1
            size = [sizes[e] for e in extents]
            if dim >= 0 and name in whole:
                index = live_units(call, units, sizes[live])
                # What is contiguous is read as neighbours, never by strides.
                if (dim == 1) != turned:
                    assert int(call.places[units]) == 1
                size[dim] = max(index) + 1
            rows, cols = size[::-1] if turned else size
            matrix = matrix_at(call.address(place), self.dtypes[code], rows, cols, ld or cols)
            return matrix.t() if turned else matrix, index, dim

        def step(call) -> None:
            if not call.address(out):
                return
            assert call.places[handle + 1] in (0, 1)
            factors = []
            for name in "ab":
                matrix, index, dim = view(call, name)
                if index is not None:
                    matrix = matrix.index_select(dim, torch.tensor(index))
                factors.append(matrix.double())
            value = call.number(alpha) * factors[0] @ factors[1]
            if bias is not None:
                value = value + call.at(bias, self.dtypes[out_dtype], value.shape[1]).double()
            call.at(workspace, torch.uint8, 64).zero_()
            result, index, dim = view(call, "o")
            if index is None:
                result.copy_(result.double() + value if accumulates else value)
            else:
                assert not accumulates
                result.index_copy_(dim, torch.tensor(index), value.to(result.dtype))

        self.steps.append(step)
        return 64

    def gather(self, *, dtype, units, count, across=None, arrays) -> None:
        def step(call) -> None:
            for source, source_dtype, source_ld, to, to_ld, rows, cols, along, factor in arrays:
                if not call.address(to):
                    continue
                indices = _indices(call, along, (units, count), across)
                live = [
                    n if i is None else len(i) for n, i in zip((rows, cols), indices, strict=True)
                ]
                assert live[0] <= rows
                assert live[1] <= cols
                size = [
                    n if i is None else int(i.max()) + 1
                    for n, i in zip((rows, cols), indices, strict=True)
                ]
                matrix = matrix_at(
                    call.address(source), self.dtypes[source_dtype], *size, source_ld
                )
                for dim, index in enumerate(indices):
                    matrix = matrix if index is None else matrix.index_select(dim, index)
                assert source_dtype in (dtype, FP32)
                held = matrix_at(call.address(to), self.dtypes[dtype], rows, cols, to_ld)
                held.zero_()
                held[: live[0], : live[1]] = matrix.float() * call.number(factor)

        self.steps.append(step)

    def fill_units(self, *, units, count, across=None, arrays) -> None:
        def step(call) -> None:
            for array in arrays:
                to, dtype, rows, cols, along, live, live_dtype, factor, dropped, live_ld = array
                if not call.address(to):
                    continue
                matrix = matrix_at(call.address(to), self.dtypes[dtype], rows, cols, cols)
                indices = _indices(call, along, (units, count), across)
                kept = torch.ones(rows, cols, dtype=torch.bool)
                for dim, index in enumerate(indices):
                    if index is not None:
                        line = torch.zeros(kept.shape[dim], dtype=torch.bool)
                        line[index] = True
                        kept &= line[:, None] if dim == 0 else line
                if call.address(live):
                    assert live_dtype in (dtype, FP32) or dtype == FP32
                    ways = [
                        torch.arange(n) if i is None else i
                        for n, i in zip((rows, cols), indices, strict=True)
                    ]
                    size = len(ways[0]), len(ways[1])
                    given = self.dtypes[live_dtype]
                    values = matrix_at(call.address(live), given, *size, live_ld or size[1])
                    values = (values.float() * call.number(factor)).to(matrix.dtype)
                    matrix[ways[0][:, None], ways[1]] = values
                if dropped == DROPPED["zeroed"]:
                    matrix.masked_fill_(~kept, 0)

        assert len(arrays) <= MOST
        self.steps.append(step)

    def _biases(self, call, place, dtype: int, units, count: int, cols: int) -> Tensor | float:
        """Those of live units, [cols]; what stands in padding is never looked at."""
        if units is None or not call.address(place):
            return 0.0
        index = live_units(call, units, count)
        given = call.at(place, self.dtypes[dtype], max(index) + 1).double()
        found = torch.zeros(cols, dtype=torch.float64)
        found[:count] = given[index]
        return found
