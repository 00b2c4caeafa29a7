"""Random products as data: a printable Case, and what draws one from a source of choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from random_source import Source

import cases
from ways import legal_ways

Block = tuple[int, int]
Way = tuple[object, ...]
"""What `select.override` is given, by position; () leaves the choice to the library."""


def _brief(record: Operand | Case) -> str:
    """What makes it again, without what is as usual."""
    fields = ", ".join(
        f"{name}={value!r}"
        for name, value in record._asdict().items()
        if name not in record._field_defaults or value != record._field_defaults[name]
    )
    return f"{type(record).__name__}({fields})"


class Operand(NamedTuple):
    """A matrix as it is given: `layout` is one of LAYOUTS; a block of None means no mask.

    `drawn` names the mask's sampler; "grid" is a grid of the judge's own. Values are normal ones
    times 2**exponent. Of the result, layout and exponent are those of the upstream gradient.
    """

    layout: str = "row"
    block: Block | None = None
    density: float = 1.0
    drawn: str = "grid"
    exponent: int = 0

    def __repr__(self) -> str:
        return _brief(self)


class Case(NamedTuple):
    """A product of a [m, k] and b [k, n] and its gradients; for linear, b is the weight [n, k].

    `lead`: the leading extents of x; None: [m]. `bias`: its layout. `values`: "normal", or "signs"
    from {-1, 0, 1}. `poison`: what stands in dropped blocks. `grads`: which of a, b and bias need
    one. `ways`: of the forward and the backward pass; with `products` the gradients are products of
    their own, and `ways` are those of the result, of the gradient of a and of that of b.
    """

    function: str
    m: int
    n: int
    k: int
    dtype: str = "float32"
    a: Operand = Operand()
    b: Operand = Operand()
    out: Operand = Operand()
    lead: tuple[int, ...] | None = None
    bias: str | None = None
    activation: str | None = None
    alpha: float = 1.0
    values: str = "normal"
    poison: str = "nan"
    grads: tuple[str, ...] = ()
    products: bool = False
    ways: tuple[Way, ...] = ((), ())
    seed: int = 0

    def __repr__(self) -> str:
        return _brief(self)

    @property
    def b_turned(self) -> bool:
        """Whether b is given as its transpose."""
        return self.function != "matmul"

    def blocks(self) -> tuple[Block | None, Block | None, Block | None]:
        """Of a [m, k], b [k, n] and the result."""
        b_block = self.b.block
        if self.b_turned and b_block is not None:
            b_block = b_block[1], b_block[0]
        return self.a.block, b_block, self.out.block


EXPANDED = ("expanded rows", "expanded columns", "expanded")
LAYOUTS = {
    "row": 30, "column": 25, "sliced": 8, "sliced column": 8, "odd width": 4, "shifted": 4,
    "shifted column": 3, "every second": 4, "every second column": 3, "windows": 2, "negated": 2,
    "expanded rows": 3, "expanded columns": 3, "expanded": 2,
}  # fmt: skip
BIAS_LAYOUTS = {"row": 6, "shifted": 2, "every second": 2, "expanded": 1}
PRIMES = (11, 13, 17, 37, 61, 101, 127, 131, 191, 193, 211, 257)
BLOCK_EXTENTS = (128, 64, 256, 192, 128, 256, 192, 384, 320, 576)
DTYPES = {
    "cpu": {"float32": 5, "float64": 3, "bfloat16": 5, "float16": 2},
    "cuda": {"bfloat16": 12, "float16": 10, "float32": 1, "float64": 1},
}
# The largest extent near a border of tiles, a longer one, and multiplications in a product.
SIZES = {"cpu": (320, 4000, 2**21), "cuda": (1200, 20000, 2**31)}
SPLITS = (1, 2, 3, 5, 8)
FUNCTIONS = {"matmul": 9, "linear": 9, "dropout_linear": 2}
OTHER_PATHS = {"cpu": ("cpu", "dense"), "cuda": ("dense",)}


def draw_case(source: Source, device: str) -> Case:
    """A case for "cpu" or "cuda"."""
    function, dtype = source.weighted(FUNCTIONS), source.weighted(DTYPES[device])
    m, n, k = _extents(source, device)
    case = Case(function, m, n, k, dtype, seed=source.integer(0, 2**31 - 1))
    is_dropout = function == "dropout_linear"
    case = case._replace(
        lead=None if function == "matmul" else _lead(source, m),
        products=not is_dropout and source.chance(50 if device == "cuda" else 15),
        a=_operand(source, device, (m, k), 100 if is_dropout else 65),
        b=_operand(source, device, (n, k) if case.b_turned else (k, n), 0 if is_dropout else 45),
        out=_operand(source, device, (m, n), 0 if is_dropout else 40),
        values="signs" if max(m, n, k) <= 1024 and source.chance(30) else "normal",
        poison=source.weighted({"nan": 9, "inf": 1}),
    )
    if is_dropout:
        p = 1.0 - case.a.density
        case = case._replace(
            a=case.a._replace(drawn=source.choice(("bernoulli", "balanced"))),
            alpha=1.0 / (1.0 - p) if p < 1.0 else 1.0,
        )
    else:
        case = case._replace(alpha=source.choice((1.0, 2.0, 0.5, -1.0, 1.7, 0.1, 3.0, 0.0)))
    if case.lead is not None and len(case.lead) > 1 and source.chance(20):
        case = case._replace(a=case.a._replace(layout="turned batch"))
    case = _scaled(source, _with_extras(source, device, case))
    return case._replace(ways=_ways(source, device, case))


def _with_extras(source: Source, device: str, case: Case) -> Case:
    """Bias, activation, and which gradients are needed."""
    # At p = 0 dropout_linear is F.linear, which rounds some products before it adds the bias.
    if case.function == "linear" or (case.function != "matmul" and case.a.density < 1.0):
        bias = source.weighted(BIAS_LAYOUTS) if source.chance(60) else None
        case = case._replace(bias=bias)
    if case.function == "linear" and not case.products:
        activation = source.choice((None, "relu", "gelu", "silu"))
        case = case._replace(activation=activation)
        if (activation, device, case.out.layout) == ("gelu", "cpu", "windows"):
            # torch's own gradient of gelu takes no gradient whose elements share memory.
            case = case._replace(out=case.out._replace(layout="row"))
    names = ("a", "b") if case.products or case.bias is None else ("a", "b", "bias")
    some = tuple(name for name in names if source.chance(50))
    return case._replace(grads=names if source.chance(60) else some)


def _extents(source: Source, device: str) -> list[int]:
    most, longest, work = SIZES[device]
    is_large, is_aligned = source.chance(15), source.chance(45)
    if is_large:
        most, work = 2 * most - 100, 8 * work
        extents = [_near_border(source, most) for _ in range(3)]
    else:
        extents = [_extent(source, most) for _ in range(3)]
    if source.chance(6):
        extents = [min(extent, 264) for extent in extents]
        extents[source.integer(0, 2)] = source.integer(most, longest)
    if is_aligned:  # so that the kernels read all three matrices in place
        extents = [-(-extent // 8) * 8 for extent in extents]
    if source.chance(1):
        extents[source.integer(0, 2)] = 0
    while math.prod(extents) > work:
        # Half as many whole units of 64, the same rest.
        i = extents.index(max(extents))
        extents[i] = max(1, extents[i] // 128 * 64 + extents[i] % 64)
    return extents


def _extent(source: Source, most: int) -> int:
    how = source.weighted({"small": 15, "one": 5, "prime": 8, "any": 12, "border": 60})
    if how == "one":
        return source.choice((1, 7))
    if how == "small":
        return source.integer(1, 40)
    if how == "prime":
        return source.choice(PRIMES)
    if how == "any":
        return source.integer(1, most)
    return _near_border(source, most)


def _near_border(source: Source, most: int) -> int:
    unit = source.choice((64, 128, 192, 256))
    whole = unit * source.integer(1, most // unit)
    some = source.integer(-9, 9)
    return max(1, whole + source.choice((0, 0, 8, -8, some, some)))


def _lead(source: Source, m: int) -> tuple[int, ...]:
    """The extents of x but its last one: rank 1 to 4."""
    rank = source.choice((2, 2, 3, 4, 1))
    if rank == 1 and m == 1:
        return ()
    lead = [m]
    for _ in range(rank - 2):
        divisor = source.choice([d for d in (1, 2, 3, 4, 8) if lead[-1] % d == 0])
        lead[-1:] = [divisor, lead[-1] // divisor]
    return tuple(lead)


def _operand(source: Source, device: str, shape: Block, masked: int) -> Operand:
    layout = source.weighted(LAYOUTS)
    if not source.chance(masked):
        return Operand(layout)
    density = source.weighted({50: 6, 0: 1, 100: 1, -1: 10})
    if density == -1:
        density = source.integer(1, 99)
    drawn = source.weighted({"grid": 8, "bernoulli": 1, "balanced": 1})
    return Operand(layout, _block(source, device, shape), density / 100, drawn)


def _block(source: Source, device: str, shape: Block) -> Block:
    rows, cols = shape
    if source.chance(85 if device == "cuda" else 40):
        return source.choice(BLOCK_EXTENTS), source.choice(BLOCK_EXTENTS)
    some = source.integer(1, 40), source.integer(1, 40)
    odd = (some, (48, 40), (7, 13), (1, 64), (100, 64), (128, 32))
    block = source.choice((*odd, (1, cols or 1), (rows or 1, 1), (2 * rows + 1, 2 * cols + 1)))
    if device == "cuda" or source.chance(5):
        return block
    # The CPU's path makes a call of BLAS for each run of blocks: a grid of 12x12 is enough.
    return max(block[0], -(-rows // 12)), max(block[1], -(-cols // 12))


def _scaled(source: Source, case: Case) -> Case:
    """With large and small values; in float16 no product may overflow."""
    if case.values == "signs":
        return case
    spread = 0 if source.chance(75) else 6 if case.dtype == "float16" else 20
    exponents = [source.integer(-spread, spread) if spread else 0 for _ in range(3)]
    if case.dtype == "float16":
        operands = (case.a, case.b, case.out)
        # Normal values reach 2**2 and their sums 2**2.5 times the root of the count, but where
        # both operands repeat one value the count itself.
        top = 15 - 5 - max(0.0, math.log2(abs(case.alpha) or 1.0))
        for i, j, inner in ((0, 1, case.k), (1, 2, case.n), (0, 2, case.m)):
            alike = operands[i].layout in EXPANDED and operands[j].layout in EXPANDED
            growth = math.log2(inner or 1) * (1.0 if alike else 0.5)
            while exponents[i] + exponents[j] + growth > top:
                exponents[i], exponents[j] = exponents[i] - 1, exponents[j] - 1
        exponents[2] = min(exponents[2], 12 - math.ceil(math.log2(case.m or 1)))
    a, b, out = (
        operand._replace(exponent=exponent)
        for operand, exponent in zip((case.a, case.b, case.out), exponents, strict=True)
    )
    return case._replace(a=a, b=b, out=out)


def products_of(case: Case) -> list[cases.Case]:
    """The result, the gradient of a and that of b, each as a product of its own."""
    a, b, out = case.blocks()
    a_t, b_t = (None if block is None else (block[1], block[0]) for block in (a, b))
    return [
        cases.Case(case.m, case.n, case.k, a, b, out),
        cases.Case(case.m, case.k, case.n, out, b_t, a),
        cases.Case(case.k, case.n, case.m, a_t, out, b),
    ]


def kernel_ways(product: cases.Case, splits: Sequence[int] = (1,)) -> list[Way]:
    """Every tile and orientation that may run it; all that is known here of the kernels."""
    return [tuple(choice[:4]) for choice in legal_ways(product, tuple(splits))]


def tile_of(way: Way) -> tuple[object, object] | None:
    """Its tile and orientation; None where it forces none."""
    return (way[1], way[2]) if len(way) == 4 else None


def _ways(source: Source, device: str, case: Case) -> tuple[Way, ...]:
    others = [(path,) for path in OTHER_PATHS[device]]
    products = products_of(case)
    if not case.products:
        forward = _way(source, device, case, products[0], others)
        return forward, source.choice(((), (), (), *others))
    return tuple(_way(source, device, case, product, others) for product in products)


def _way(source: Source, device: str, case: Case, product: cases.Case, others: list[Way]) -> Way:
    is_kernel = device == "cuda" and case.dtype in ("bfloat16", "float16")
    if not is_kernel or min(case.m, case.n, case.k) == 0 or source.chance(20):
        return source.choice(((), (), *others))
    legal = kernel_ways(product, (1,) if case.activation else SPLITS)
    if not legal:
        return ()
    # Each tile as often as the others, however often it can be split.
    tile = source.choice(list(dict.fromkeys(map(tile_of, legal))))
    return source.choice([way for way in legal if tile_of(way) == tile])
