"""The products that the tests run, as data, and what makes operands, masks and errors of them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sparsedrop
from sparsedrop import BlockMask, reference, select

Block = tuple[int, int]

CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CUDA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KERNEL_DTYPES = (torch.bfloat16, torch.float16)

WITH_DTYPES = pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", dtype) for dtype in CPU_DTYPES]
    + [pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in CUDA_DTYPES],
    indirect=["device"],
)


class Case(NamedTuple):
    """A product of a [m, k] and b [k, n]; a block of None means no mask."""

    m: int
    n: int
    k: int
    a_block: Block | None = None
    b_block: Block | None = None
    out_block: Block | None = None
    a_order: str = "row"
    b_order: str = "row"

    def __str__(self) -> str:
        blocks = [
            f"{name}{block[0]}x{block[1]}"
            for name, block in zip("abd", (self.a_block, self.b_block, self.out_block), strict=True)
            if block is not None
        ]
        return "-".join([f"{self.m}x{self.n}x{self.k}", *blocks, self.a_order, self.b_order])


def _subsets(block: Block) -> list[tuple[Block | None, ...]]:
    return list(itertools.product((None, block), repeat=3))


def _cases() -> list[Case]:
    orders = list(itertools.product(("row", "col"), repeat=2))
    cases = [
        Case(384, 512, 256, *blocks, *order) for blocks in _subsets((128, 128)) for order in orders
    ]
    for block in ((64, 64), (256, 128), (128, 256), (64, 128), (48, 40)):
        cases += [Case(384, 512, 256, *blocks) for blocks in _subsets(block)[1:]]
    for block in ((128, 128), (64, 192)):
        cases += [Case(328, 456, 200, *blocks, "row", "col") for blocks in _subsets(block)[1:]]
    for blocks in _subsets((32, 16))[1:]:
        cases += [Case(75, 10, 65, *blocks, *order) for order in orders]
    # Blocks of the three masks need not agree, nor be smaller than the matrix.
    cases += [
        Case(384, 512, 256, (128, 64), (64, 256), (256, 128)),
        Case(200, 120, 136, (7, 13), (5, 11), (3, 17)),
        Case(130, 70, 90, (256, 256), (256, 256), (256, 256)),
        Case(1, 128, 128, (128, 128)),
        Case(1, 1, 1, (1, 1), (1, 1), (1, 1)),
    ]
    return cases


CASES = _cases()

EMPTY = [
    Case(0, 128, 128, (128, 128), (128, 128), (128, 128)),
    Case(128, 0, 128, (128, 128), (128, 128), (128, 128)),
    Case(128, 128, 0, (128, 128), (128, 128), (128, 128)),
    Case(0, 0, 0, (128, 128), (128, 128), (128, 128)),
]


# Masked sides with block shapes that the large tile can run in some orientation, then smaller ones.
KERNEL_BLOCKS = [
    ((128, 64), None, None),
    ((256, 128), None, None),
    (None, (64, 256), None),
    (None, (64, 64), None),
    (None, None, (128, 128)),
    (None, None, (64, 128)),
    (None, None, (64, 64)),
    ((64, 64), None, None),
    ((64, 64), None, (64, 64)),
    ((128, 64), (64, 256), None),
    ((256, 64), (64, 128), None),
    ((128, 128), None, (128, 128)),
    (None, (128, 128), (128, 128)),
    ((128, 64), (64, 256), (128, 256)),
    ((128, 64), (64, 64), (128, 64)),
    ((256, 256), (256, 256), (256, 256)),
]
KERNEL_EXTENTS = [(512, 768, 256), (520, 712, 200)]
KERNEL_ORDERS = list(itertools.product(("row", "col"), repeat=2))


TILES = tuple(
    select.Tile(*extents)
    for extents in ((128, 256, 64, 128), (128, 128, 64, 64), (64, 128, 64, 64), (128, 192, 64, 64))
)
"""Of a build, for requests where there is none."""

BIG = select.Request(
    "cuda", torch.bfloat16, 4096, 4096, 4096, capability=(9, 0), tiles=TILES,
    a_block=(128, 128), a_keep=0.5,
)  # fmt: skip


def only(**blocks: object) -> select.Request:
    """BIG with these blocks, and no others."""
    return BIG._replace(**{"a_block": None, "a_keep": None, **blocks})


OUT = only(out_block=(128, 128), out_keep=0.5)


class Problem(NamedTuple):
    """Operands of a case, its masks by keyword, and an upstream gradient."""

    a: Tensor
    b: Tensor
    masks: dict[str, BlockMask]
    upstream: Tensor


def signs(*shape: int) -> Tensor:
    """Values from {-1, 0, 1}, whose products and short sums every dtype holds exactly; float64."""
    return torch.randint(-1, 2, shape).double()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def random_mask(
    shape: Block, block: Block, device: torch.device, density: float = 0.5
) -> BlockMask:
    """A grid with an empty first row and a full last one, so that both always occur."""
    live = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) < density
    if live.shape[0] > 2:
        live[0], live[-1] = False, True
    return BlockMask.from_live(live.to(device), shape, block_shape=block)


def build(case: Case, values, dtype: torch.dtype, device: torch.device) -> Problem:
    shapes = {"a": (case.m, case.k), "b": (case.k, case.n), "out": (case.m, case.n)}
    blocks = {"a": case.a_block, "b": case.b_block, "out": case.out_block}
    masks = {
        f"{name}_mask": random_mask(shapes[name], block, device)
        for name, block in blocks.items()
        if block is not None
    }
    a = _ordered(values(*shapes["a"]).to(device, dtype), case.a_order)
    b = _ordered(values(*shapes["b"]).to(device, dtype), case.b_order)
    return Problem(a, b, masks, values(*shapes["out"]).to(device, dtype))


def _ordered(matrix: Tensor, order: str) -> Tensor:
    return matrix if order == "row" else matrix.t().contiguous().t()


def value_and_grads(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """[function(*inputs), its gradients to each input], detached."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def matmul_and_grads(problem: Problem, function=sparsedrop.matmul, **kwargs) -> list[Tensor]:
    return value_and_grads(
        lambda a, b: function(a, b, **problem.masks, **kwargs),
        [problem.a, problem.b],
        problem.upstream,
    )


def doubled(problem: Problem) -> Problem:
    return problem._replace(
        a=problem.a.double(), b=problem.b.double(), upstream=problem.upstream.double()
    )


def oracle(problem: Problem, **kwargs) -> list[Tensor]:
    """The reference in float64: product and both gradients."""
    return matmul_and_grads(doubled(problem), reference.matmul, **kwargs)


def poisoned(matrix: Tensor, mask: BlockMask | None) -> Tensor:
    """The matrix, in its own layout, with NaN in every dropped block."""
    if mask is None:
        return matrix
    bad = matrix.clone()
    bad[~mask.expand()] = float("nan")
    return bad


class CountProducts(TorchDispatchMode):
    """Sees the products that are run: `masks` holds the count of masks of each."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.sparsedrop.masked_mm.default:
            self.masks.append(len(args[3]) // 3)
        return func(*args, **(kwargs or {}))


def torchs_own(problem: Problem, **kwargs) -> list[list[Tensor]]:
    """torch's product and gradients, asked for as a b, as (b^T a^T)^T, and with all as it lies.

    The layouts that BLAS is called in differ with them, and with the layouts its kernels and their
    errors: a gradient of 75 products was off by 4e-6 in the one and by 1e-5 in the other.
    """
    names = {"a_mask": "b_mask", "b_mask": "a_mask", "out_mask": "out_mask"}
    turned = Problem(
        problem.b.t(),
        problem.a.t(),
        {names[name]: mask.T for name, mask in problem.masks.items()},
        problem.upstream.t(),
    )
    out, grad_b, grad_a = (
        result.t() for result in matmul_and_grads(turned, reference.matmul, **kwargs)
    )
    plain = matmul_and_grads(problem, reference.matmul, **kwargs)
    return [plain, [out, grad_a, grad_b], *_as_it_lies(problem, **kwargs)]


def _as_it_lies(problem: Problem, alpha: float = 1.0, **others: object) -> list[list[Tensor]]:
    """The same of masked copies in the operands' own layouts, where there is nothing but a factor:
    with results that are row-major, and with such that are column-major.

    `where` makes row-major copies, the library keeps the layouts.
    """
    if others:
        return []
    a_mask, b_mask, out_mask = (problem.masks.get(f"{x}_mask") for x in ("a", "b", "out"))

    def live(matrix: Tensor, mask: BlockMask | None) -> Tensor:
        return matrix if mask is None else matrix.clone().masked_fill_(~mask.expand(), 0)

    a, b, up = (
        live(matrix, mask)
        for matrix, mask in (
            (problem.a, a_mask), (problem.b, b_mask), (problem.upstream, out_mask)
        )
    )  # fmt: skip
    plain = a @ b, up @ b.t(), a.t() @ up
    turned = (b.t() @ a.t()).t(), (b @ up.t()).t(), (up.t() @ a).t()
    masks = out_mask, a_mask, b_mask
    return [
        [live(alpha * product, mask) for product, mask in zip(products, masks, strict=True)]
        for products in (plain, turned)
    ]


def assert_accurate(ours: list[Tensor], exact: list[Tensor], *torchs: list[Tensor]) -> None:
    """Each of ours errs at most twice as much as torch does in the same dtype, by root mean square.

    `torchs`: torch's results, for each way that it was asked in; the largest error counts.
    In float64 there is no better truth than torch's own product: both round each of some hundred
    sums to 2**-53 of values around 100, so they agree to 1e-12.
    """
    for i, (own, truth, *theirs) in enumerate(zip(ours, exact, *torchs, strict=True)):
        if own.dtype == torch.float64:
            assert torch.allclose(own, truth, rtol=0, atol=1e-12)
            continue
        error = (own.double() - truth).norm()
        allowed = 2 * max((result.double() - truth).norm() for result in theirs)
        assert error <= allowed, f"result {i}: error {error:.3e}, allowed {allowed:.3e}"
