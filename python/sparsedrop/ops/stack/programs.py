"""What a stack launches in each direction, as programs of `_C`."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from sparsedrop import _native
from sparsedrop.ops.program import ONE_BLOCK, MaskPlace, Pass
from sparsedrop.ops.stack.facts import Branch, Facts, branches
from sparsedrop.ops.stack.places import Backward, Forward, Pack

if TYPE_CHECKING:
    from sparsedrop import _C

Launches = dict[Branch, "tuple[_C.Launch, _C.Launch, _C.Launch]"]
"""Of each branch: forward, input gradient and weight gradient; a branch without runs densely."""


def alpha(layer: int) -> int:
    """A layer's factor, among a call's numbers in both directions."""
    return 2 * layer


def bias_factor(layer: int) -> int:
    """That of its bias."""
    return 2 * layer + 1


def keep(mask: int, layers: int) -> int:
    """A mask's live share, in the forward pass."""
    return 2 * layers + mask


def dense_layers(facts: Facts, launches: Launches) -> set[int]:
    """Those whose products are dense: `select.can_be_mixed` says which can be."""
    return {branch.layer for branch in branches(facts.kinds) if branch not in launches}


def forward(facts: Facts, launches: Launches, handle: int) -> Pass:
    """Draws the masks, rounds what has to be rounded, and multiplies.

    handle: cuBLAS's, of now, where a layer runs densely.
    """
    return _Forward(facts, launches, handle).made()


def backward(facts: Facts, launches: Launches, handle: int) -> Pass:
    """The gradients of the input and of all parameters.

    What an activation made of its input is made again for the gradient of the weight behind it: in
    the room of the gradient that comes back, before that does.
    """
    return _Backward(facts, launches, handle).made()


class _Direction:
    def __init__(
        self, facts: Facts, launches: Launches, at: Forward | Backward, handle: int
    ) -> None:
        self.facts, self.launches, self.pack = facts, launches, Pack(facts)
        self.program = _native.C.Program(facts.device)
        self.masks: dict[int, MaskPlace] = self.pack.masks(at.PACK)
        self.code = _native.dtype_code(facts.dtype)
        self.last = len(facts.kinds) - 1
        self.dense = dense_layers(facts, launches)
        self._places, self._handle, self._scratch = at, handle, 0

    def made(self) -> Pass:
        """Kernels of either direction share what the larger of their launches needs."""
        launches = chain(*self.launches.values())
        return Pass(self.program, max(self._scratch, *(of.workspace_bytes for of in launches)))

    def multiply_densely(self, layer: int, **how: Any) -> None:
        """A product of a layer that runs so."""
        scratch = self.program.dense_product(
            **{"out_dtype": self.code, **how}, dtype=self.code, alpha=alpha(layer),
            workspace=self._places.SCRATCH, handle=self._places.handle,
            handle_now=self._handle,
        )  # fmt: skip
        self._scratch = max(self._scratch, scratch)

    def words(self, layer: int, source: str, result: str) -> dict[str, Any]:
        """Those of the masks of a layer's input and result, by the names of a product's sides."""
        of = {source: self.masks.get(layer), result: self.masks.get(layer + 1)}
        return {f"{name}_words": mask.words for name, mask in of.items() if mask is not None}

    def between(self, layer: int, kind: str, **places: int) -> None:
        """What is done with a layer's result, element by element, where it is live.

        A dense product behind it reads zeros in dropped blocks, which activations leave what they
        are.
        """
        facts, mask = self.facts, self.masks.get(layer + 1)
        if layer + 1 in self.dense and kind in ("activate", "gate"):
            mask = None
        grid: dict[str, Any] = {"rows": facts.rows, "cols": facts.features[layer + 1]}
        grid["block"] = ONE_BLOCK
        if mask is not None:
            grid = {**mask.grid, "live": mask.live}
        activation = facts.kinds[layer].activation or "none"
        self.program.pointwise(
            kind=_native.C.POINTWISE[kind], activation=_native.C.ACTIVATIONS[activation],
            dtype=self.code, **grid, **places,
        )  # fmt: skip


class _Forward(_Direction):
    def __init__(self, facts: Facts, launches: Launches, handle: int) -> None:
        self.at = Forward(facts)
        super().__init__(facts, launches, self.at, handle)
        for i, mask in self.masks.items():
            number = keep(i, len(facts.kinds))
            where = {"live": mask.live, "words": mask.words}
            self.program.draw(**mask.grid, **where, keep=number, seed=self.at.seeds[i])
        self._round()
        source = self.at.USED_X
        for i in range(len(facts.kinds)):
            source = self._layer(i, source)

    def _round(self) -> None:
        facts, at, arrays = self.facts, self.at, list[Any]()
        features = facts.features
        if facts.rounds_x:
            wide = _native.dtype_code(facts.x_dtype)
            arrays.append((at.X, wide, at.USED_X, facts.rows * features[0], None))
        given_dtype = _native.dtype_code(facts.param_dtype)
        for branch in branches(facts.kinds):
            given, i = at.weights[branch], branch.layer
            if facts.rounds_parameters:
                count = features[i] * features[i + 1]
                arrays.append((given, given_dtype, given + 1, count, None))
            to = self.pack.bias(branch, at.PACK)
            if to is not None:
                arrays.append((given + 3, given_dtype, to, features[i + 1], bias_factor(i)))
        most = _native.C.MAX_ROUNDINGS
        for start in range(0, len(arrays), most):
            self.program.round(dtype=self.code, arrays=arrays[start : start + most])

    def _layer(self, i: int, source: int) -> int:
        """Returns the place of its result."""
        at, kind = self.at, self.facts.kinds[i]
        result = at.OUT if i == self.last else at.results[i]
        own = Branch(i, False, kind.has_bias)
        if kind.gate is not None:
            gated, other = at.kept[i]
            self._multiply(Branch(i, True, kind.gate), source, gated)
            self._multiply(own, source, other)
            self.between(i, "gate", a=gated, b=other, out=result)
            return result
        if kind.keeps_input:
            # In a launch of its own: an epilogue that stores two matrices takes longer.
            (kept,) = at.kept[i]
            self._multiply(own, source, kept)
            self.between(i, "activate", a=kept, out=result)
            return result
        if i < self.last:
            result = at.kept[i][0]
        self._multiply(own, source, result)
        if i in self.dense and kind.activation is not None:
            self.between(i, "activate", a=result, out=result)
        return result

    def _multiply(self, branch: Branch, source: int, out: int) -> None:
        at, i = self.at, branch.layer
        given = at.weights[branch]
        bias = self.pack.bias(branch, at.PACK) or (given + 3, 0)
        if i in self.dense:
            rows, k, n = self.facts.rows, *self.facts.features[i : i + 2]
            self.multiply_densely(
                i, m=rows, n=n, k=k, a=source, b=given + 2, b_turned=True, out=out,
                bias=bias if branch.has_bias else None,
            )  # fmt: skip
            return
        self.program.product(
            self.launches[branch][0], a=source, b=given + 2, d=out, alpha=alpha(i), bias=bias,
            workspace=at.SCRATCH, **self.words(i, "a", "d"),
        )  # fmt: skip


class _Backward(_Direction):
    def __init__(self, facts: Facts, launches: Launches, handle: int) -> None:
        self.at = Backward(facts)
        super().__init__(facts, launches, self.at, handle)
        grad = self._through(self.last, self.at.GRAD, self.at.grads[self.last])
        for i in range(self.last, 0, -1):
            own = Branch(i, False, facts.kinds[i].has_bias)
            place = self.at.grads[i - 1]
            self._parameters(own, grad, self._input_again(i))
            self._input(own, grad, place)
            grad = self._through(i - 1, place, place)
        self._first(grad)

    def _through(self, i: int, grad: int, out: int) -> int:
        """The gradient before a layer's activation, and the gate's behind it; where it is."""
        kind, kept = self.facts.kinds[i], self.at.kept[i]
        if kind.is_gated:
            a, b = kept
            self.between(i, "gate_grad", a=a, b=b, grad=grad, out=out + 1, out_b=out)
            return out
        if kind.activation is None:
            return grad
        self.between(i, "activation_grad", a=kept[0], grad=grad, out=out)
        return out

    def _input_again(self, i: int) -> int:
        """The input of a layer behind another: kept, or made in the room of its gradient."""
        below, kept, place = self.facts.kinds[i - 1], self.at.kept[i - 1], self.at.again[i - 1]
        if below.is_gated:
            self.between(i - 1, "gate", a=kept[0], b=kept[1], out=place)
            return place
        if below.keeps_input:
            self.between(i - 1, "activate", a=kept[0], out=place)
            return place
        return kept[0]

    def _first(self, grad: int) -> None:
        """The first layer's parameters, and the input."""
        at, kind = self.at, self.facts.kinds[0]
        own = Branch(0, False, kind.has_bias)
        self._parameters(own, grad, at.X)
        self._input(own, grad, at.GRAD_X)
        if kind.gate is None:
            return
        gate = Branch(0, True, kind.gate)
        self._parameters(gate, grad + 1, at.X)
        self._input(gate, grad + 1, at.OTHER_GRAD_X)
        self.program.pointwise(
            kind=_native.C.POINTWISE["add"], activation=_native.C.ACTIVATIONS["none"],
            dtype=self.code, rows=self.facts.rows, cols=self.facts.features[0], block=ONE_BLOCK,
            a=at.GRAD_X, b=at.OTHER_GRAD_X, out=at.GRAD_X,
        )  # fmt: skip

    def _parameters(self, branch: Branch, grad: int, source: int) -> None:
        """The gradients of weight and bias, from that of the result and the input."""
        facts, i, given = self.facts, branch.layer, self.at.weights[branch]
        words, mask = self.words(i, "b", "a"), self.masks.get(i + 1)
        if mask is not None:
            words["a_words"] = mask.turned_words
        if i in self.dense:
            self.multiply_densely(
                i, m=facts.features[i + 1], n=facts.features[i], k=facts.rows, a=grad,
                a_turned=True, b=source, out=given + 1,
                out_dtype=_native.dtype_code(facts.param_dtype),
            )  # fmt: skip
        else:
            self.program.product(
                self.launches[branch][2], a=grad, b=source, d=given + 1, alpha=alpha(i),
                workspace=self.at.SCRATCH, **words,
            )  # fmt: skip
        if branch.has_bias:
            masked = {} if mask is None else {"block": mask.block, "words": mask.words}
            self.program.column_sums(
                dtype=self.code, matrix=grad, rows=facts.rows, cols=facts.features[i + 1],
                out=given + 2, out_dtype=_native.dtype_code(facts.param_dtype),
                factor=bias_factor(i), **masked,
            )  # fmt: skip

    def _input(self, branch: Branch, grad: int, out: int) -> None:
        """The gradient of the input, from that of the result."""
        i, weight = branch.layer, self.at.weights[branch]
        if i in self.dense:
            self.multiply_densely(
                i, m=self.facts.rows, n=self.facts.features[i], k=self.facts.features[i + 1],
                a=grad, b=weight, out=out,
            )  # fmt: skip
        else:
            self.program.product(
                self.launches[branch][1], a=grad, b=weight, d=out, alpha=alpha(i),
                workspace=self.at.SCRATCH, **self.words(i, "d", "a"),
            )  # fmt: skip
