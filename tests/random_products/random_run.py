"""Random products, compared with float64 and with torch: `run(case, device)`.

To measure a case waits for no GPU, so that `random_loop` can judge many at once. The rule is in
`random_rule`, what a case is in `random_cases`, and how it becomes tensors in `random_build`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from random_build import Matrix, Problem, build
from random_cases import Case, Way
from random_rule import Measured, Squares, faults, largest, squares
from torch import Tensor, nn

import sparsedrop
from sparsedrop import select

ACTIVATIONS = {
    None: lambda x: x,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}
BACKWARD = {"gelu": torch.ops.aten.gelu_backward, "silu": torch.ops.aten.silu_backward}


def run(case: Case, device: torch.device | str = "cpu") -> None:
    """AssertionError where sparsedrop errs in this case."""
    device = torch.device(device)
    with exact_sums():
        found = faults_of(case, device)
    assert not found, "\n".join([line_of(case, device), *found])


def measure(case: Case, device: torch.device) -> dict[str, Tensor]:
    """What `Measured` holds for each result: "out" and the gradients, on the device."""
    problem = build(case, device)
    results = _results(case, problem)
    # From here on b is [k, n].
    if case.b_turned:
        problem = problem._replace(b=problem.b.t())
        results = {name: x.t() if name == "b" else x for name, x in results.items()}
    return _measure(case, problem, results)


@contextmanager
def exact_sums() -> Iterator[None]:
    """cuBLAS adds the parts of a split product in float32, for sparsedrop and for torch alike."""
    flags = torch.backends.cuda.matmul
    names = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("bf16", "fp16")]
    before = [getattr(flags, name) for name in names]
    try:
        for name in names:
            setattr(flags, name, False)
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(flags, name, value)


def forced(way: Way) -> AbstractContextManager[None]:
    return select.override(*way) if way else nullcontext()


def _results(case: Case, problem: Problem) -> dict[str, Tensor]:
    """What sparsedrop makes of it, as matrices: "out", then the gradients that are asked for."""
    needed = () if case.products else case.grads
    given = {"a": _with_lead(case, problem.a.given), "b": problem.b.given, "bias": problem.bias}
    inputs = {
        name: None if x is None else x.detach().requires_grad_(name in needed)
        for name, x in given.items()
    }
    with forced(case.ways[0]):
        out = _call(case, problem, **inputs)
    results = {"out": out.detach().reshape(case.m, case.n)}
    if case.products:
        return results | _gradient_products(case, problem)
    if not needed:
        return results
    upstream = _with_lead(case, problem.upstream.given)
    with forced(case.ways[1]):
        grads = torch.autograd.grad(out, [inputs[name] for name in needed], upstream)
    shapes = {"a": (case.m, case.k), "b": problem.b.given.shape, "bias": (1, case.n)}
    return results | {
        name: grad.reshape(shapes[name]) for name, grad in zip(needed, grads, strict=True)
    }


def _call(case: Case, problem: Problem, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    a_mask, b_mask, out_mask = problem.a.mask, problem.b.mask, problem.upstream.mask
    if case.function == "matmul":
        masks = {"a_mask": a_mask, "b_mask": b_mask, "out_mask": out_mask}
        return sparsedrop.matmul(a, b, **masks, alpha=case.alpha)
    if case.function == "linear":
        masks = {"x_mask": a_mask, "weight_mask": b_mask, "out_mask": out_mask}
        how: dict[str, Any] = {"alpha": case.alpha, "activation": case.activation}
        return sparsedrop.linear(a, b, bias, **masks, **how)
    torch.manual_seed(case.seed)
    how = {"block_shape": case.a.block, "sampler": case.a.drawn}
    return sparsedrop.dropout_linear(a, b, bias, p=1.0 - case.a.density, **how)


def _gradient_products(case: Case, problem: Problem) -> dict[str, Tensor]:
    """The two gradients as products that a user would write, each in its own way."""
    a, b, up = problem.a, problem.b.t() if case.b_turned else problem.b, problem.upstream
    results = {}
    for name, way, left, right, out in (
        ("a", case.ways[1], up, b.t(), a),
        ("b", case.ways[2], a.t(), up, b),
    ):
        if name in case.grads:
            masks = {"a_mask": left.mask, "b_mask": right.mask, "out_mask": out.mask}
            with forced(way):
                grad = sparsedrop.matmul(left.given, right.given, **masks, alpha=case.alpha)
            results[name] = grad.t() if name == "b" and case.b_turned else grad
    return results


def _with_lead(case: Case, matrix: Tensor) -> Tensor:
    """[m, columns] with the leading extents of x."""
    if case.lead is None or len(case.lead) == 1:
        return matrix
    if not case.lead:
        return matrix[0]
    x = matrix.unflatten(0, case.lead)
    turns = case.a.layout == "turned batch"
    return x.transpose(0, 1).contiguous().transpose(0, 1) if turns else x


class _Plain:
    """The product and its gradients in plain torch, in one dtype; b is [k, n].

    relu's gradient jumps where its argument rounds to the other sign, so the sign is that of the
    result which sparsedrop computed.
    """

    def __init__(self, case: Case, problem: Problem, dtype: torch.dtype, computed: Tensor) -> None:
        self.a, self.b, self.up = (
            x.clean.to(dtype) for x in (problem.a, problem.b, problem.upstream)
        )
        # The same as they were given, and lying so: what torch makes of these layouts. In float16
        # cuBLAS erred by 28 in 680 where a [264, 3329] was column-major, and by 0.2 elsewhere.
        self._lying = {
            name: x.given if x.live is None else x.given.clone().masked_fill_(~x.live, 0)
            for name, x in (("a", problem.a), ("b", problem.b), ("up", problem.upstream))
        }
        self._alpha, self._live = case.alpha, problem.upstream.live
        self._bias = None if problem.bias is None else problem.bias.to(dtype)
        self._activate = ACTIVATIONS[case.activation]
        self.before = self._product(self.a, self.b, self._bias)
        self.grad = self.up
        if case.activation == "relu":
            self.grad = torch.where(computed > 0, self.up, 0)
        elif case.activation is not None:
            self.grad = BACKWARD[case.activation](self.up, self.before)

    def _product(self, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
        start, beta = (x.new_zeros(()), 0) if bias is None else (bias, 1)
        return torch.addmm(start, x, y, beta=beta, alpha=self._alpha)

    def result(self, name: str) -> Tensor:
        if name == "out":
            return self._activate(self.before)
        if name == "bias":
            return self.grad.sum(0, keepdim=True)
        return self._product(*((self.grad, self.b.t()) if name == "a" else (self.a.t(), self.grad)))

    def asked_otherwise(self, name: str) -> list[Tensor]:
        """The same result, asked for in other ways, in the dtype of the operands.

        Which of its kernels BLAS takes depends on how operands lie, and with that how much it errs;
        and whether cuBLAS rounds a product before it adds the bias, which errs by half as much
        again: in torch's calls as in ours.
        """
        a, b, up = (self._lying[x] for x in ("a", "b", "up"))
        grad = up if self.grad is self.up else self.grad
        if name == "bias":
            return []
        if name != "out":
            return [self._product(grad, b.t()) if name == "a" else self._product(a.t(), grad)]
        found = [self._product(a, b, self._bias)]
        if self._bias is not None:
            whole = self._bias.expand_as(self.before).contiguous()
            found.append(self._product(self.a, self.b.contiguous(), self._bias))
            found.append(self._product(self.a, self.b, whole))
        return [self._activate(x) for x in found]


def _measure(case: Case, problem: Problem, results: dict[str, Tensor]) -> dict[str, Tensor]:
    own = results["out"]
    wide = _Plain(case, problem, torch.float64, own)
    narrow = _Plain(case, problem, own.dtype, own)
    a, b, up, grad = (squares(x) for x in (wide.a, wide.b, wide.up, wide.grad))
    ones = squares(wide.a.new_ones(1, case.m))
    # The factors of each, and the same with the gradient before the activation.
    factors: dict[str, tuple[Squares, ...]] = {
        "out": (a, b, a, b),
        "a": (grad, b.t(), up, b.t()),
        "b": (a.t(), grad, a.t(), up),
        "bias": (ones, grad, ones, up),
    }
    matrices: dict[str, Matrix] = {"out": problem.upstream, "a": problem.a, "b": problem.b}
    first = a.of(b)[1], largest(wide.before)
    measured = {}
    for name, result in results.items():
        live = matrices[name].live if name in matrices else None
        truth, torchs = wide.result(name), [narrow.result(name), *narrow.asked_otherwise(name)]
        before = wide.before if name == "out" else truth
        dropped = result[:0]
        if live is not None:
            truth, before, *torchs = (torch.where(live, x, 0) for x in (truth, before, *torchs))
            dropped = torch.where(live, 0, result)
        own_error, *torch_errors = (_size(x.double() - truth) for x in (result, *torchs))
        worst = torch.stack(torch_errors).amax(0)
        figures = [*own_error, *worst, *_size(before), *_size(truth)]
        left, right, up_left, up_right = factors[name]
        figures += [*left.of(right), *up_left.of(up_right), *first]
        figures += [torch.count_nonzero(truth).double(), largest(dropped)]
        figures.append(torch.count_nonzero(result != truth.to(result.dtype)).double())
        measured[name] = torch.stack(figures)
    assert len(figures) == len(Measured._fields)
    return measured


def _size(x: Tensor) -> Tensor:
    """Norm and largest element."""
    return torch.stack([torch.linalg.vector_norm(x), largest(x)])


def faults_of(case: Case, device: torch.device) -> list[str]:
    """A line for each result that is wrong. Waits for the device."""
    measured = measure(case, device)
    return faults(case, list(measured), torch.stack(list(measured.values())).tolist())


def line_of(case: Case, device: torch.device) -> str:
    """What runs it again."""
    return f"run({case!r}, {device.type!r})"
