"""What a block launches in each direction, as programs of `_C`.

What is as wide as the hidden activation is compact, and its rows are padded to whole vectors. Of
weights that are not rounded the products read live units where they lie; rounded ones are compact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsedrop import _native
from sparsedrop.ops.units.facts import Facts
from sparsedrop.ops.units.places import ALPHA, Backward, Forward

if TYPE_CHECKING:
    from sparsedrop import _C

ONE_BLOCK = (2**30, 2**30)
"""Of matrices without a mask."""


def forward(facts: Facts, *, multiplies: bool) -> _C.Program:
    """Rounds what has to be rounded, and multiplies; where `multiplies` is false, the product with
    down's weight is left to the caller."""
    made = _Forward(facts)
    if multiplies:
        made.multiply_down()
    return made.program


def backward(facts: Facts, *, lazy: bool) -> _C.Program:
    """The gradients of the input and of all parameters; `lazy`: those of live units alone."""
    return _Backward(facts, lazy).program


class _Direction:
    def __init__(self, facts: Facts, at: type[Forward | Backward]) -> None:
        self.facts, self.program = facts, _native.C.Program(facts.device)
        self.code = _native.dtype_code(facts.dtype)
        self.param_code = _native.dtype_code(facts.param_dtype)
        self._at = at
        self.up = facts.branches - 1
        # How a weight that is used is read: along its units, unless these are gathered.
        self.b_whole = "" if facts.rounds_parameters else "b"

    def multiply(
        self, m: int, n: int, k: int, *, out_dtype: torch.dtype | None = None, **how: Any
    ) -> None:
        """A product one of whose extents is live."""
        code = self.code if out_dtype is None else _native.dtype_code(out_dtype)
        self.program.dense_product(
            m=m, n=n, k=k, dtype=self.code, out_dtype=code, handle=self._at.HANDLE,
            units=self._at.UNITS, **how,
        )  # fmt: skip

    def down_lies(self) -> tuple[int, bool]:
        """Leading dimension of down's weight as it is used, and whether its memory is turned."""
        facts = self.facts
        if facts.down_turned:
            return facts.d_out, True
        return facts.ld if facts.rounds_parameters else facts.units, False

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


class _Forward(_Direction):
    def __init__(self, facts: Facts) -> None:
        super().__init__(facts, Forward)
        self._gather()
        places = [Forward.of(i) for i in range(facts.branches)]
        for _, used, _, out in places:
            self.multiply(
                facts.rows, facts.kept, facts.d_model, a=Forward.USED_X, b=used, b_turned=True,
                out=out, out_ld=facts.ld, live="n", whole=self.b_whole,
            )  # fmt: skip
        products, biases = self.sides([p[3] for p in places], [p[2] for p in places])
        kind = "gate" if facts.is_gated else "activate"
        if facts.keeps_input or facts.activation is not None or biases:
            self.between(kind, biases, **products, out=Forward.HIDDEN)

    def _gather(self) -> None:
        facts, arrays = self.facts, list[Any]()
        along = _native.C.UNITS_ALONG
        if facts.rounds_x:
            code, k = _native.dtype_code(facts.x_dtype), facts.d_model
            arrays.append((Forward.X, code, k, Forward.USED_X, k, facts.rows, k, along["neither"]))
        if facts.rounds_parameters:
            for i in range(facts.branches):
                given, used, *_ = Forward.of(i)
                k = facts.d_model
                arrays.append((given, self.param_code, k, used, k, facts.kept, k, along["rows"]))
            arrays.append(self._gathered_down())
        if arrays:
            self.program.gather(
                dtype=self.code, units=Forward.UNITS, count=facts.kept, arrays=arrays
            )

    def _gathered_down(self) -> tuple[Any, ...]:
        facts, along = self.facts, _native.C.UNITS_ALONG
        given, used, *_ = Forward.of(self.up + 1)
        ld, is_turned = self.down_lies()
        if is_turned:
            return given, self.param_code, ld, used, ld, facts.kept, facts.d_out, along["rows"]
        return (
            given, self.param_code, facts.units, used, ld, facts.d_out, facts.kept, along["cols"]
        )  # fmt: skip

    def multiply_down(self) -> None:
        """The result, added to the bias where there is one."""
        facts = self.facts
        _, used, bias, _ = Forward.of(self.up + 1)
        has_bias = facts.has_bias(self.up + 1)
        if has_bias:
            self.program.masked_copy(
                in_dtype=self.param_code, source=bias, source_ld=0, out_dtype=self.code,
                out=Forward.OUT, rows=facts.rows, cols=facts.d_out, block=ONE_BLOCK,
            )  # fmt: skip
        ld, is_turned = self.down_lies()
        self.multiply(
            facts.rows, facts.d_out, facts.kept, a=Forward.HIDDEN, a_ld=facts.ld, b=used, b_ld=ld,
            b_turned=not is_turned, out=Forward.OUT, alpha=ALPHA, accumulates=has_bias, live="k",
            whole=self.b_whole,
        )  # fmt: skip


class _Backward(_Direction):
    def __init__(self, facts: Facts, lazy: bool) -> None:
        super().__init__(facts, Backward)
        self._lazy = lazy
        # Gradients of weights are whole, with a gap for what is dropped, or of live units alone.
        self._out_whole = "" if lazy else "o"
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
        weight, _, _, _, of_weight, of_bias, _ = Backward.of(self.up + 1)
        rows, kept, d_out = facts.rows, facts.kept, facts.d_out
        common: dict[str, Any] = {"alpha": ALPHA, "out": of_weight, "out_dtype": facts.param_dtype}
        if facts.down_turned:
            self.multiply(
                kept, d_out, rows, a=Backward.HIDDEN, a_ld=facts.ld, a_turned=True,
                b=Backward.GRAD, live="m", whole=self._out_whole, **common,
            )  # fmt: skip
        else:
            self.multiply(
                d_out, kept, rows, a=Backward.GRAD, a_turned=True, b=Backward.HIDDEN,
                b_ld=facts.ld, out_ld=kept if self._lazy else facts.units, live="n",
                whole=self._out_whole, **common,
            )  # fmt: skip
        ld, is_turned = self.down_lies()
        back = self._places[0][3]
        self.multiply(
            rows, kept, d_out, a=Backward.GRAD, b=weight, b_ld=ld, b_turned=is_turned, out=back,
            out_ld=facts.ld, alpha=ALPHA, live="n", whole=self.b_whole,
        )  # fmt: skip
        if facts.has_bias(self.up + 1):
            self._sum(Backward.GRAD, d_out, of_bias, self.param_code)

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
        for i, (weight, _, _, grad, of_weight, of_bias, sums) in enumerate(self._places):
            self.multiply(
                facts.kept, facts.d_model, facts.rows, a=grad, a_ld=facts.ld, a_turned=True,
                b=Backward.X, out=of_weight, out_dtype=facts.param_dtype, live="m",
                whole=self._out_whole,
            )  # fmt: skip
            if facts.has_bias(i) and self._lazy:
                self._sum(grad, facts.ld, of_bias, self.param_code)
            elif facts.has_bias(i):
                self._sum(grad, facts.ld, sums, _native.dtype_code(torch.float32))
            self.multiply(
                facts.rows, facts.d_model, facts.kept, a=grad, a_ld=facts.ld, b=weight,
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
        code, units, arrays = self.param_code, facts.units, list[Any]()
        for i, (_, _, _, _, of_weight, of_bias, sums) in enumerate(self._places):
            arrays.append((of_weight, code, units, facts.d_model, along["rows"], None))
            if facts.has_bias(i):
                arrays.append((of_bias, code, 1, units, along["cols"], sums))
        of_down = Backward.of(self.up + 1)[4]
        if facts.down_turned:
            arrays.append((of_down, code, units, facts.d_out, along["rows"], None))
        else:
            arrays.append((of_down, code, facts.d_out, units, along["cols"], None))
        self.program.fill_dropped(units=Backward.UNITS, count=facts.kept, arrays=arrays)
