"""What a block launches in each direction, as programs of `_C`.

What is as wide as the hidden activation is compact, and its rows are padded to whole vectors. Of
weights that are not gathered the products read live units where they lie; copies are compact, and
padded where `Facts.pads` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsedrop import _native
from sparsedrop.ops.program import ONE_BLOCK, Filled, Gathered, Pass
from sparsedrop.ops.units.facts import Facts
from sparsedrop.ops.units.places import ALPHA, Backward, Forward

if TYPE_CHECKING:
    from sparsedrop import _C


def forward(facts: Facts, handle: int) -> Pass:
    """Gathers what has to be gathered, and multiplies. handle: cuBLAS's, of now."""
    return _Forward(facts, handle).made()


def gather(facts: Facts) -> _C.Program:
    """Gathers alone, by the places of a forward pass."""
    return _Direction(facts, Forward, 0).gathered()


def backward(facts: Facts, handle: int, *, lazy: bool) -> Pass:
    """The gradients of the input and of all parameters; `lazy`: those of live units alone."""
    return _Backward(facts, handle, lazy).made()


class _Direction:
    def __init__(self, facts: Facts, at: type[Forward | Backward], handle: int) -> None:
        self.facts, self.program = facts, _native.C.Program(facts.device)
        self.code = _native.dtype_code(facts.dtype)
        self.param_code = _native.dtype_code(facts.param_dtype)
        self._at, self._handle, self._scratch = at, handle, 0
        self.up = facts.branches - 1
        # How a weight that is used is read: along its units, unless these are gathered.
        self.b_whole = "" if facts.gathers else "b"

    def made(self) -> Pass:
        return Pass(self.program, self._scratch)

    def multiply(
        self, m: int, n: int, k: int, *, out_dtype: torch.dtype | None = None, **how: Any
    ) -> None:
        """A product one of whose extents is live."""
        code = self.code if out_dtype is None else _native.dtype_code(out_dtype)
        scratch = self.program.dense_product(
            m=m, n=n, k=k, dtype=self.code, out_dtype=code, workspace=self._at.SCRATCH,
            handle=self._at.HANDLE, handle_now=self._handle, units=self._at.UNITS, **how,
        )  # fmt: skip
        self._scratch = max(self._scratch, scratch)

    def down_lies(self) -> tuple[int, bool]:
        """Leading dimension of down's weight as it is used, and whether its memory is turned."""
        facts = self.facts
        if facts.down_turned:
            return facts.d_out, True
        return facts.ld if facts.gathers else facts.units, False

    def between(self, kind: str, biases: dict[str, int], **places: int) -> None:
        """What is done with hidden matrices, element by element."""
        facts = self.facts
        biased: dict[str, Any] = {}
        if biases:
            biased = {"bias_dtype": self.param_code, "units": self._at.UNITS, "count": facts.kept}
        self.program.pointwise(
            kind=_native.C.POINTWISE[kind],
            activation=_native.C.ACTIVATIONS[facts.activation or "none"],
            dtype=self.code, rows=facts.rows, cols=facts.ld, block=ONE_BLOCK, **places, **biases,
            **biased,
        )  # fmt: skip

    def sides(self, products: list[int], biases: list[int]) -> tuple[dict[str, int], ...]:
        """Those of the branches, by their names in a step between products: a is activated."""
        names = "a", "b"
        found = dict(zip(names, products, strict=False))
        biased = {
            f"bias_{name}": place
            for i, (name, place) in enumerate(zip(names, biases, strict=False))
            if self.facts.has_bias(i)
        }
        return found, biased

    def gathered(self) -> _C.Program:
        """The program, which has copied what products read, by the places of a forward pass."""
        facts, arrays = self.facts, list[Any]()
        along = _native.C.UNITS_ALONG
        if facts.rounds_x:
            code, k = _native.dtype_code(facts.x_dtype), facts.d_model
            arrays.append(
                Gathered(Forward.X, code, k, Forward.USED_X, k, facts.rows, k, along["neither"])
            )
        if facts.gathers:
            for i in range(facts.branches):
                given, used, *_ = Forward.of(i)
                k = facts.d_model
                arrays.append(
                    Gathered(given, self.param_code, k, used, k, facts.width, k, along["rows"])
                )
            arrays.append(self._gathered_down())
        if facts.rounds_bias:
            *_, bias, used = Forward.of(self.up + 1)
            n = facts.d_out
            arrays.append(Gathered(bias, self.param_code, n, used, n, 1, n, along["neither"]))
        if arrays:
            self.program.gather(
                dtype=self.code, units=Forward.UNITS, count=facts.kept, arrays=arrays
            )
        return self.program

    def _gathered_down(self) -> Gathered:
        facts, along = self.facts, _native.C.UNITS_ALONG
        given, used, *_ = Forward.of(self.up + 1)
        ld, is_turned = self.down_lies()
        shape = (facts.width, facts.d_out) if is_turned else (facts.d_out, facts.kept)
        from_ld = ld if is_turned else facts.units
        by = along["rows" if is_turned else "cols"]
        return Gathered(given, self.param_code, from_ld, used, ld, *shape, by)


class _Forward(_Direction):
    def __init__(self, facts: Facts, handle: int) -> None:
        super().__init__(facts, Forward, handle)
        self.gathered()
        places = [Forward.of(i) for i in range(facts.branches)]
        for _, used, _, out in places:
            self.multiply(
                facts.rows, facts.width, facts.d_model, a=Forward.USED_X, b=used, b_turned=True,
                out=out, out_ld=facts.ld, live="n", whole=self.b_whole,
            )  # fmt: skip
        products, biases = self.sides([p[3] for p in places], [p[2] for p in places])
        kind = "gate" if facts.is_gated else "activate"
        if facts.keeps_input or facts.activation is not None or biases:
            self.between(kind, biases, **products, out=Forward.HIDDEN)
        self._down()

    def _down(self) -> None:
        """The result."""
        facts = self.facts
        _, used, given, rounded = Forward.of(self.up + 1)
        bias = None
        if facts.has_bias(self.up + 1):
            bias = rounded if facts.rounds_bias else given
        ld, is_turned = self.down_lies()
        self.multiply(
            facts.rows, facts.d_out, facts.width, a=Forward.HIDDEN, a_ld=facts.ld, b=used, b_ld=ld,
            b_turned=not is_turned, out=Forward.OUT, alpha=ALPHA, bias=bias, live="k",
            whole=self.b_whole,
        )  # fmt: skip


class _Backward(_Direction):
    def __init__(self, facts: Facts, handle: int, lazy: bool) -> None:
        super().__init__(facts, Backward, handle)
        self._lazy = lazy
        # Of weights those of live units are written in their places, or alone.
        self._is_compact = lazy or facts.compacts
        self._out_whole = "" if self._is_compact else "o"
        self._places = [Backward.of(i) for i in range(facts.branches)]
        products, biases = self.sides([p[2] for p in self._places], [p[1] for p in self._places])
        if facts.keeps_input:
            kind = "gate" if facts.is_gated else "activate"
            self.between(kind, biases, **products, out=Backward.HIDDEN)
        self._down()
        self._through(products, biases)
        self._first()
        if not lazy:
            self._fill()

    def _down(self) -> None:
        """The gradients of down's parameters, and of the hidden activation."""
        facts = self.facts
        weight, *_, of_bias, _, _ = Backward.of(self.up + 1)
        of_weight = self._made(self.up + 1)
        rows, width, d_out = facts.rows, facts.width, facts.d_out
        common: dict[str, Any] = {"alpha": ALPHA, "out": of_weight, "out_dtype": facts.param_dtype}
        if facts.down_turned:
            self.multiply(
                width, d_out, rows, a=Backward.HIDDEN, a_ld=facts.ld, a_turned=True,
                b=Backward.GRAD, live="m", whole=self._out_whole, **common,
            )  # fmt: skip
        else:
            self.multiply(
                d_out, width, rows, a=Backward.GRAD, a_turned=True, b=Backward.HIDDEN,
                b_ld=facts.ld, out_ld=width if self._is_compact else facts.units, live="n",
                whole=self._out_whole, **common,
            )  # fmt: skip
        ld, is_turned = self.down_lies()
        back = self._places[0][3]
        self.multiply(
            rows, width, d_out, a=Backward.GRAD, b=weight, b_ld=ld, b_turned=is_turned, out=back,
            out_ld=facts.ld, alpha=ALPHA, live="n", whole=self.b_whole,
        )  # fmt: skip
        if facts.has_bias(self.up + 1):
            self._sum(Backward.GRAD, d_out, of_bias, self.param_code)

    def _made(self, branch: int) -> int:
        """The place where a product makes a weight's gradient."""
        *_, of_weight, _, room, _ = Backward.of(branch)
        return room if self.facts.compacts and not self._lazy else of_weight

    def _through(self, products: dict[str, int], biases: dict[str, int]) -> None:
        """The gradients before the activation, in the place of the hidden activation's."""
        facts, back = self.facts, self._places[0][3]
        if facts.is_gated:
            other = self._places[1][3]
            self.between("gate_grad", biases, **products, grad=back, out=back, out_b=other)
        elif facts.activation is not None:
            # relu's slope is taken from its result, which has the bias in it.
            biases = biases if facts.keeps_input else {}
            self.between("activation_grad", biases, **products, grad=back, out=back)

    def _first(self) -> None:
        """The gradients of the other parameters, and of x."""
        facts = self.facts
        for i, (weight, _, _, grad, _, of_bias, _, sums) in enumerate(self._places):
            self.multiply(
                facts.width, facts.d_model, facts.rows, a=grad, a_ld=facts.ld, a_turned=True,
                b=Backward.X, out=self._made(i), out_dtype=facts.param_dtype, live="m",
                whole=self._out_whole,
            )  # fmt: skip
            if facts.has_bias(i) and self._lazy:
                self._sum(grad, facts.ld, of_bias, self.param_code)
            elif facts.has_bias(i):
                self._sum(grad, facts.ld, sums, _native.dtype_code(torch.float32))
            self.multiply(
                facts.rows, facts.d_model, facts.width, a=grad, a_ld=facts.ld, b=weight,
                out=Backward.GRAD_X, out_dtype=facts.x_dtype, accumulates=i > 0, live="k",
                whole=self.b_whole,
            )  # fmt: skip

    def _sum(self, matrix: int, cols: int, out: int, out_code: int) -> None:
        self.program.column_sums(
            dtype=self.code, matrix=matrix, rows=self.facts.rows, cols=cols, out=out,
            out_dtype=out_code,
        )  # fmt: skip

    def _fill(self) -> None:
        """The rest of the gradients is 0, and those of biases go to their places."""
        facts, along = self.facts, _native.C.UNITS_ALONG
        code, units, arrays = self.param_code, facts.units, list[Filled]()
        wide = _native.dtype_code(torch.float32)
        for i in range(facts.branches + 1):
            *_, of_weight, of_bias, room, sums = Backward.of(i)
            by_rows, shape = True, (units, facts.d_model)
            if i > self.up:
                by_rows = facts.down_turned
                shape = (units, facts.d_out) if by_rows else (facts.d_out, units)
            by, live = along["rows" if by_rows else "cols"], room if facts.compacts else None
            arrays.append(Filled(of_weight, code, *shape, by, live, code))
            if i <= self.up and facts.has_bias(i):
                arrays.append(Filled(of_bias, code, 1, units, along["cols"], sums, wide))
        self.program.fill_units(units=Backward.UNITS, count=facts.kept, arrays=arrays)
