"""What a linear layer of live units launches in each direction, as programs of `_C`."""

from __future__ import annotations

from typing import Any

import torch

from sparsedrop import _native
from sparsedrop.ops.program import ONE_BLOCK, Filled, Gathered, Pass
from sparsedrop.ops.units.linear_facts import Facts, Hidden
from sparsedrop.ops.units.places import UNITS_SIZE


class Places:
    """Those of either direction: of Y or its gradient, of X and its own, of the weight as given and
    as used, of the bias, of the gradients of both, and of what these are of live units alone,
    before it is placed: the weight's, and sums in float32; of Y and X as products have them, padded
    or not; of the live part of the bias, rounded; of what an activation makes of Y; of what is kept
    of that and of X, where these are hidden values; and of scratch. Behind them units: those that
    live, inputs last where both extents have some, and what is no padding of Y and X."""

    Y, X, GRAD_X, WEIGHT, USED, BIAS, GRAD_WEIGHT, GRAD_BIAS, MADE, SUMS = range(10)
    USED_Y, USED_X, USED_BIAS, HIDDEN, KEPT, KEPT_X, SCRATCH = range(10, 17)
    UNITS = 17
    ACROSS = UNITS + UNITS_SIZE
    FULL_Y = ACROSS + UNITS_SIZE
    FULL_X = FULL_Y + UNITS_SIZE
    HANDLE = FULL_X + UNITS_SIZE


ALPHA = 0
"""The number of a pass: the factor of the product."""


def forward(facts: Facts, handle: int) -> Pass:
    """The result; its padding has no meaning, but in a hidden value, where it is 0, or NaN in a row
    whose x is infinite somewhere. handle: cuBLAS's, of now."""
    return _Programs(facts, handle).forward()


def backward(facts: Facts, handle: int, *, lazy: bool) -> Pass:
    """The gradients; `lazy`: those of live units alone, compact, with padding."""
    return _Programs(facts, handle).backward(lazy)


class _Programs:
    def __init__(self, facts: Facts, handle: int) -> None:
        self.facts, self.program = facts, _native.C.Program(facts.device)
        self.code = _native.dtype_code(facts.dtype)
        self.param_code = _native.dtype_code(facts.weight[1])
        (self.n, self.k), self.m = facts.used_shape, facts.m
        self.ld = self.k if facts.gathers else facts.weight[0][1]
        self._along = _native.C.UNITS_ALONG[facts.along]
        self._handle, self._scratch = handle, 0

    def forward(self) -> Pass:
        facts = self.facts
        self._gather(bias=facts.gathers_bias)
        if facts.copies[1]:
            self._pad(Places.X, Places.USED_X, Places.FULL_X, 1)
        bias = None
        if facts.bias is not None:
            bias = Places.USED_BIAS if facts.gathers_bias else Places.BIAS
        self._multiply(
            ("n", "k"), m=self.m, n=self.n, k=self.k, a=Places.USED_X, b=Places.USED, b_ld=self.ld,
            b_turned=True, out=Places.Y, bias=bias,
        )  # fmt: skip
        if facts.makes is not None:
            self._pointwise("activate", facts.makes, self.n, a=Places.Y, out=Places.HIDDEN)
        return Pass(self.program, self._scratch)

    def backward(self, lazy: bool) -> Pass:
        facts, program = self.facts, self.program
        self._gather(bias=False)
        if facts.makes is not None:
            places = {"a": Places.KEPT, "grad": Places.Y, "out": Places.Y}
            self._pointwise("activation_grad", facts.makes, self.n, **places)
        if facts.reads is not None and facts.reads.keeps_input:
            self._pointwise("activate", facts.reads, self.k, a=Places.KEPT_X, out=Places.X)
        if facts.copies[0]:
            self._pad(Places.Y, Places.USED_Y, Places.FULL_Y, 0)
        self._multiply(
            ("k", "n"), m=self.m, n=self.k, k=self.n, a=Places.USED_Y, b=Places.USED, b_ld=self.ld,
            out=Places.GRAD_X,
        )  # fmt: skip
        if facts.copies[1]:
            self._pad(Places.X, Places.USED_X, Places.FULL_X, 1)
        is_compact = lazy or facts.compacts
        self._multiply(
            ("m", "n"), m=self.n, n=self.k, k=self.m, a=Places.USED_Y, a_turned=True,
            b=Places.USED_X, out=Places.MADE if facts.compacts and not lazy else Places.GRAD_WEIGHT,
            out_ld=self.k if is_compact else facts.weight[0][1], out_dtype=self.param_code,
            whole="" if is_compact else "o",
        )  # fmt: skip
        is_placed = facts.rows is not None and not lazy
        if facts.bias is not None:
            wide = _native.dtype_code(torch.float32)
            program.column_sums(
                dtype=self.code, matrix=Places.USED_Y, rows=self.m, cols=self.n,
                out=Places.SUMS if is_placed else Places.GRAD_BIAS,
                out_dtype=wide if is_placed else self.param_code,
            )  # fmt: skip
        if not lazy:
            self._fill()
        return Pass(program, self._scratch)

    def _multiply(self, roles: tuple[str, str], *, whole: str | None = None, **how: Any) -> None:
        """A product; `roles`: which of its extents the weight's rows are, and which its columns."""
        facts = self.facts
        how = {"out_dtype": self.code, "alpha": ALPHA, **how}
        if not facts.compacts:
            how["live"] = roles[0] if facts.rows is not None else roles[1]
            how["units"] = Places.UNITS
            how["whole"] = ("" if facts.gathers else "b") if whole is None else whole
        scratch = self.program.dense_product(
            dtype=self.code, workspace=Places.SCRATCH, handle=Places.HANDLE,
            handle_now=self._handle, **how,
        )  # fmt: skip
        self._scratch = max(self._scratch, scratch)

    @property
    def _counts(self) -> dict[str, Any]:
        """The units of the weight, as a step is told of them."""
        n, k = self.facts.live_shape
        if self.facts.along == "both":
            return {"units": Places.UNITS, "count": n, "across": (Places.ACROSS, k)}
        return {"units": Places.UNITS, "count": n if self.facts.along == "rows" else k}

    def _gather(self, *, bias: bool) -> None:
        """The live parts of the weight, and of the bias, rounded, where products are not with these
        themselves."""
        facts, along = self.facts, _native.C.UNITS_ALONG
        (n, k), code, arrays = facts.weight[0], self.param_code, list[Any]()
        if facts.gathers:
            arrays.append(
                Gathered(Places.WEIGHT, code, k, Places.USED, self.k, self.n, self.k, self._along)
            )
        if bias:
            by = along["neither" if facts.rows is None else "cols"]
            arrays.append(Gathered(Places.BIAS, code, n, Places.USED_BIAS, self.n, 1, self.n, by))
        if arrays:
            self.program.gather(dtype=self.code, arrays=arrays, **self._counts)

    def _pointwise(self, kind: str, hidden: Hidden, cols: int, **places: int) -> None:
        """What an activation does to a hidden value; it leaves padding 0."""
        if hidden.activation is not None:
            self.program.pointwise(
                kind=_native.C.POINTWISE[kind],
                activation=_native.C.ACTIVATIONS[hidden.activation],
                dtype=self.code, rows=self.m, cols=cols, block=ONE_BLOCK, **places,
            )  # fmt: skip

    def _pad(self, given: int, to: int, full: int, side: int) -> None:
        """A copy of Y or X with its padding, which is 0."""
        live, used = self.facts.live_shape[side], self.facts.used_shape[side]
        cols = _native.C.UNITS_ALONG["cols"]
        array = Filled(to, self.code, self.m, used, cols, given, self.code)
        self.program.fill_units(units=full, count=live, arrays=[array])

    def _fill(self) -> None:
        """The rest of the gradients is 0, and what was made apart goes to its place."""
        facts, code = self.facts, self.param_code
        n, k = facts.weight[0]
        arrays = [Filled(Places.GRAD_WEIGHT, code, n, k, self._along)]
        if facts.compacts:
            arrays = [arrays[0]._replace(live=Places.MADE, live_dtype=code, live_ld=self.k)]
        if facts.bias is not None and facts.rows is not None:
            wide, by = _native.dtype_code(torch.float32), _native.C.UNITS_ALONG["cols"]
            arrays.append(Filled(Places.GRAD_BIAS, code, 1, n, by, Places.SUMS, wide))
        self.program.fill_units(arrays=arrays, **self._counts)
