"""A linear layer of whose outputs, or inputs, some units are live: one call into `_C` each way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.ops.program import BIAS_FIRST_BYTES, Filled, Gathered, Space, address
from sparsedrop.ops.units.facts import COUNTED, VECTOR, WRAPPED_BYTES, Operand
from sparsedrop.ops.units.programs import ONE_BLOCK

if TYPE_CHECKING:
    from sparsedrop import _C

Units = tuple[int, int, int, int]
"""As those of `facts.Drawn`."""


class Places:
    """Those of either direction: of Y or its gradient, of X and its own, of the weight as given and
    as used, of the bias, of the gradients of both, and of what these are of live units alone,
    before it is placed: the weight's, and sums in float32."""

    Y, X, GRAD_X, WEIGHT, USED, BIAS, GRAD_WEIGHT, GRAD_BIAS, MADE, SUMS = range(10)
    UNITS = 10
    HANDLE = UNITS + 4


ALPHA = 0
"""The number of a pass: the factor of the product."""


class Facts(NamedTuple):
    """Operands without their data: contiguous, on one GPU, x in the dtype of the product."""

    device: int
    x_shape: torch.Size
    dtype: torch.dtype
    weight: Operand
    bias: Operand | None
    # Whether live units are outputs, rows of the weight; else inputs, its columns.
    on_rows: bool
    kept: int
    # Whether they wrap around the end, and so are two parts.
    wraps: bool

    @property
    def rows(self) -> int:
        return self.x_shape.numel() // self.x_shape[-1]

    @property
    def gathers(self) -> bool:
        """Whether products are with a copy of what lives of the weight."""
        return self.weight[1] is not self.dtype or self.joins

    @property
    def joins(self) -> bool:
        """Whether two parts are worked on as one."""
        shape, dtype = self.weight
        return self.wraps and shape.numel() * dtype.itemsize <= WRAPPED_BYTES

    @property
    def used_shape(self) -> tuple[int, int]:
        """Of the live part of the weight: features of the result, and of x."""
        n, k = self.weight[0]
        return (self.kept, k) if self.on_rows else (n, self.kept)

    def are_legal(self) -> bool:
        """Whether kernels and cuBLAS run them."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return False
        params = {self.weight[1]} if self.bias is None else {self.weight[1], self.bias[1]}
        if len(params) > 1 or not params <= {self.dtype, torch.float32}:
            return False
        extents = self.rows, *self.weight[0]
        elements = max(self.x_shape.numel(), self.weight[0].numel())
        most = min(select.MAX_EXTENT, _native.C.MAX_SUM_COLUMNS)
        return 0 not in (*extents, self.kept) and max(extents) <= most and elements < COUNTED


class _Programs:
    """What a layer launches."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.code = _native.dtype_code(facts.dtype)
        self.param_code = _native.dtype_code(facts.weight[1])
        self.whole = "" if facts.gathers else "b"
        self.ld = facts.used_shape[1] if facts.gathers else facts.weight[0][1]

    def _start(self) -> _C.Program:
        """With the live part of the weight rounded, where that has to be."""
        facts, program = self.facts, _native.C.Program(self.facts.device)
        if facts.gathers:
            (rows, cols), along = facts.used_shape, "rows" if facts.on_rows else "cols"
            arrays = [
                Gathered(
                    Places.WEIGHT, self.param_code, facts.weight[0][1], Places.USED, cols, rows,
                    cols, _native.C.UNITS_ALONG[along],
                )
            ]  # fmt: skip
            program.gather(dtype=self.code, units=Places.UNITS, count=facts.kept, arrays=arrays)
        return program

    def _multiply(self, program: _C.Program, **how: Any) -> None:
        how = {"out_dtype": self.code, "alpha": ALPHA, **how}
        program.dense_product(dtype=self.code, handle=Places.HANDLE, units=Places.UNITS, **how)

    def forward(self) -> _C.Program:
        facts, program = self.facts, self._start()
        (n, k), m, has_bias = facts.used_shape, facts.rows, facts.bias is not None
        grid: dict[str, Any] = {"rows": m, "cols": n, "block": ONE_BLOCK}
        if has_bias and not facts.on_rows:  # the product is added to it
            program.masked_copy(
                in_dtype=self.param_code, source=Places.BIAS, source_ld=0, out_dtype=self.code,
                out=Places.Y, **grid,
            )  # fmt: skip
        self._multiply(
            program, m=m, n=n, k=k, a=Places.X, b=Places.USED, b_ld=self.ld, b_turned=True,
            out=Places.Y, accumulates=has_bias and not facts.on_rows,
            live="n" if facts.on_rows else "k", whole=self.whole,
        )  # fmt: skip
        if has_bias and facts.on_rows:
            program.pointwise(
                kind=_native.C.POINTWISE["activate"], activation=_native.C.ACTIVATIONS["none"],
                dtype=self.code, **grid, a=Places.Y, out=Places.Y, bias_a=Places.BIAS,
                bias_dtype=self.param_code, units=Places.UNITS, count=facts.kept,
            )  # fmt: skip
        return program

    def backward(self, lazy: bool) -> _C.Program:
        facts, program = self.facts, self._start()
        (n, k), m = facts.used_shape, facts.rows
        self._multiply(
            program, m=m, n=k, k=n, a=Places.Y, b=Places.USED, b_ld=self.ld, out=Places.GRAD_X,
            live="k" if facts.on_rows else "n", whole=self.whole,
        )  # fmt: skip
        is_compact = lazy or facts.joins
        self._multiply(
            program, m=n, n=k, k=m, a=Places.Y, a_turned=True, b=Places.X,
            out=Places.MADE if facts.joins and not lazy else Places.GRAD_WEIGHT,
            out_ld=k if is_compact else facts.weight[0][1], out_dtype=self.param_code,
            live="m" if facts.on_rows else "n", whole="" if is_compact else "o",
        )  # fmt: skip
        is_placed = facts.on_rows and not lazy
        if facts.bias is not None:
            wide = _native.dtype_code(torch.float32)
            program.column_sums(
                dtype=self.code, matrix=Places.Y, rows=m, cols=n,
                out=Places.SUMS if is_placed else Places.GRAD_BIAS,
                out_dtype=wide if is_placed else self.param_code,
            )  # fmt: skip
        if not lazy:
            self._fill(program)
        return program

    def _fill(self, program: _C.Program) -> None:
        facts, along = self.facts, _native.C.UNITS_ALONG
        own = along["rows" if facts.on_rows else "cols"]
        live = Places.MADE if facts.joins else None
        n, k = facts.weight[0]
        code = self.param_code
        arrays = [Filled(Places.GRAD_WEIGHT, code, n, k, own, live, code)]
        if facts.bias is not None and facts.on_rows:
            wide, by = _native.dtype_code(torch.float32), along["cols"]
            arrays.append(Filled(Places.GRAD_BIAS, code, 1, n, by, Places.SUMS, wide))
        program.fill_units(units=Places.UNITS, count=facts.kept, arrays=arrays)


class LinearCall:
    """A layer of some facts. What does not depend on addresses is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        programs, n = _Programs(facts), facts.used_shape[0]
        self._allocate = _native.allocator(facts.device)
        self._out = Space.of((*facts.x_shape[:-1], n), facts.dtype)
        self._x = Space.of(tuple(facts.x_shape), facts.dtype)
        self._used = Space.of(facts.used_shape, facts.dtype)
        self._sums = Space.of((n,), torch.float32)
        self._grads = {
            lazy: (Space.of(shape, facts.weight[1]), Space.of(shape[:1], facts.weight[1]))
            for lazy, shape in ((False, tuple(facts.weight[0])), (True, facts.used_shape))
        }
        # A bias that the product does not add as it stores makes a large result take longer.
        is_small = facts.rows * n * facts.dtype.itemsize <= BIAS_FIRST_BYTES
        fits = not facts.on_rows or n % VECTOR == 0
        self.runs_forward = facts.bias is None or (is_small and fits)
        self._forward = programs.forward() if self.runs_forward else None
        self._backward = programs.backward(lazy=False)
        self._lazy_backward = programs.backward(lazy=True)

    def _rest(self, units: Units) -> tuple[int, ...]:
        facts = self.facts
        handle = _native.blas_handle(facts.device)
        return *units, handle, _native.allows_narrow_sums(facts.dtype)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units, alpha: float
    ) -> Tensor:
        """alpha * x Wᵀ + bias of the live units; where `runs_forward` is true."""
        assert self._forward is not None, "a large result with a bias is torch's"
        out, used = self._allocate(*self._out), self._used_weight(weight)
        self._forward.run(
            (
                out.data_ptr(), x.data_ptr(), 0, weight.data_ptr(), used.data_ptr(), address(bias),
                0, 0, 0, 0, *self._rest(units),
            ),
            (alpha,),
            _native.current_stream(self.facts.device),
        )  # fmt: skip
        return out

    def _used_weight(self, weight: Tensor) -> Tensor:
        return self._allocate(*self._used) if self.facts.gathers else weight

    def backward(
        self,
        grad: Tensor,
        operands: tuple[Tensor, Tensor],
        units: Units,
        alpha: float,
        needs: Sequence[bool],
        lazy: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients that are needed of x, weight and bias; `grad` is contiguous and aligned.
        Of live units alone with `lazy`."""
        (x, weight), allocate = operands, self._allocate
        of_weight, of_bias = self._grads[lazy]
        grad_x = allocate(*self._x) if needs[0] else None
        grad_weight = allocate(*of_weight) if needs[1] else None
        has_bias = self.facts.bias is not None and needs[2]
        grad_bias = allocate(*of_bias) if has_bias else None
        is_placed = has_bias and self.facts.on_rows and not lazy
        sums = allocate(*self._sums) if is_placed else None
        is_joined = needs[1] and self.facts.joins and not lazy
        made = allocate(*self._grads[True][0]) if is_joined else None
        used = self._used_weight(weight) if needs[0] else None
        program = self._lazy_backward if lazy else self._backward
        program.run(
            (
                grad.data_ptr(), x.data_ptr(), address(grad_x), weight.data_ptr(), address(used), 0,
                address(grad_weight), address(grad_bias), address(made), address(sums),
                *self._rest(units),
            ),
            (alpha,),
            _native.current_stream(self.facts.device),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias


def make_call(facts: tuple[Any, ...]) -> LinearCall | None:
    """The call for `Facts` in a plain tuple; None where it has to go the long way."""
    of = Facts(*facts)
    if not (of.are_legal() and _native.runs_portable(_native.gpu(of.device))):
        return None
    return LinearCall(of) if _native.has_blas() else None


call_for = functools.lru_cache(maxsize=1024)(make_call)


def linear_call(
    x: Tensor, weight: Tensor, bias: Tensor | None, on_rows: bool, kept: int, wraps: bool
) -> LinearCall | None:
    """How a GPU runs a layer of checked tensors in one call; None where it goes the long way. Live
    units that wrap around the end are two parts."""
    if not (x.is_cuda and x.is_contiguous() and weight.is_contiguous()):
        return None
    of_bias = None
    if bias is not None:
        if not bias.is_contiguous():
            return None
        of_bias = bias.shape, bias.dtype
    of_weight = weight.shape, weight.dtype
    return call_for((x.get_device(), x.shape, x.dtype, of_weight, of_bias, on_rows, kept, wraps))
