"""The three products of a training step against cuBLAS, dense and shrunk.

    python bench/products.py [--shapes 4096x4096x4096 ...] [--rates 0.5 0.0] [--out FILE.json]

Y = (X ∘ M) Wᵀ with X [M, K] and W [N, K] in bfloat16, blocks of 128×128, Bernoulli masks:

    forward  matmul(x, w.T, a_mask=m)      dX  matmul(dy, w, out_mask=m)
    dW       matmul(dy.T, x, b_mask=m)     both  forward, and an output mask in blocks of 128×256

"Shrunk" is cuBLAS on the dense problem that has only the live extent, rounded to a multiple of 128.
"of shrunk" compares rates: our live FLOPs per second over shrunk cuBLAS's. Every figure is the
median over several masks of the median over interleaved replays; the time of a product includes all
that one call launches. A product that differs from masked cuBLAS fails the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import sparsedrop
from sparsedrop import BlockMask, select
from timing import interleaved_us, machine

SHAPES = ("4096x4096x4096", "8192x8192x8192", "16384x4096x1024")
BLOCK = 128


class Product(NamedTuple):
    """One product: how the library, dense cuBLAS and shrunk cuBLAS compute it."""

    name: str
    ours: Callable[[], Tensor]
    dense: Callable[[], Tensor]
    shrunk: Callable[[], Tensor]
    masked: Callable[[], Tensor]
    live_share: float
    shrunk_share: float


def main() -> None:
    """Prints one Markdown table, and saves it with the machine's facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="MxNxK")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 0.0])
    parser.add_argument("--sampler", choices=("bernoulli", "balanced"), default="bernoulli")
    parser.add_argument("--masks", type=int, default=5, help="masks drawn for each row")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    facts = machine()
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    print("\n| M×N×K | p | product | dense µs | shrunk µs | ours µs | × dense | of shrunk |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for shape in args.shapes:
        m, n, k = (int(extent) for extent in shape.split("x"))
        for p in args.rates:
            for row in measure(m, n, k, p, args.sampler, args.masks if p else 1):
                rows.append({"shape": shape, "p": p, **row})
                times = " | ".join(
                    f"{row[key]:.1f}" for key in ("dense_us", "shrunk_us", "ours_us")
                )
                print(
                    f"| {shape} | {p} | {row['product']} | {times} | {row['times_dense']:.2f} "
                    f"| {row['of_shrunk']:.3f} |",
                    flush=True,
                )
    if args.out:
        args.out.write_text(
            json.dumps({"machine": facts, "sampler": args.sampler, "rows": rows}, indent=1)
        )


def measure(
    m: int, n: int, k: int, p: float, sampler: str, masks: int
) -> list[dict[str, float | str]]:
    """One row a product: medians over `masks` draws."""
    x, w, dy = (
        torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in ((m, k), (n, k), (m, n))
    )
    draws: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(masks):
        products = list(build(x, w, dy, p, sampler))
        for product in products:
            check(product)
        # The masks at p = 0 are all live: the library's own choice there would be cuBLAS itself.
        with select.override(path="sm90"):
            times = interleaved_us(
                {
                    f"{product.name} {kind}": getattr(product, kind)
                    for product in products
                    for kind in ("ours", "dense", "shrunk")
                }
            )
        for product in products:
            ours, dense, shrunk = (
                times[f"{product.name} {kind}"] for kind in ("ours", "dense", "shrunk")
            )
            of_shrunk = (product.live_share / ours) / (product.shrunk_share / shrunk)
            draws.setdefault(product.name, []).append(
                (dense, shrunk, ours, dense / ours, of_shrunk)
            )
    keys = ("dense_us", "shrunk_us", "ours_us", "times_dense", "of_shrunk")
    return [
        {
            "product": name,
            **{
                key: statistics.median(values)
                for key, values in zip(keys, zip(*rows, strict=True), strict=True)
            },
        }
        for name, rows in draws.items()
    ]


def build(x: Tensor, w: Tensor, dy: Tensor, p: float, sampler: str) -> list[Product]:
    """The products of one training step under a newly drawn mask."""
    (m, k), n = x.shape, w.shape[0]
    draw = getattr(BlockMask, sampler)
    mask = draw((m, k), p, block_shape=(BLOCK, BLOCK), device="cuda")
    if p == 0:  # as the user's own grid: the library would not even look at a mask of rate 0
        mask = BlockMask.from_live(mask.live, (m, k), block_shape=(BLOCK, BLOCK))
    live = mask.density()
    x_live = torch.where(mask.expand(), x, 0)
    few_k, few_m = (max(BLOCK, round(extent * (1 - p) / BLOCK) * BLOCK) for extent in (k, m))
    x_few, w_few = x[:, :few_k].contiguous(), w[:, :few_k].contiguous()
    y, dx, dw = (torch.empty(s, device="cuda", dtype=x.dtype) for s in ((m, n), (m, k), (n, k)))
    dx_few = torch.empty((m, few_k), device="cuda", dtype=x.dtype)
    dy_few, x_rows = dy[:few_m].contiguous(), x[:few_m].contiguous()
    products = [
        Product(
            "forward",
            lambda: sparsedrop.matmul(x, w.t(), a_mask=mask),
            lambda: torch.mm(x, w.t(), out=y),
            lambda: torch.mm(x_few, w_few.t(), out=y),
            lambda: x_live @ w.t(),
            live,
            few_k / k,
        ),
        Product(
            "dX",
            lambda: sparsedrop.matmul(dy, w, out_mask=mask),
            lambda: torch.mm(dy, w, out=dx),
            lambda: torch.mm(dy, w_few, out=dx_few),
            lambda: torch.where(mask.expand(), dy @ w, 0),
            live,
            few_k / k,
        ),
        Product(
            "dW",
            lambda: sparsedrop.matmul(dy.t(), x, b_mask=mask),
            lambda: torch.mm(dy.t(), x, out=dw),
            lambda: torch.mm(dy_few.t(), x_rows, out=dw),
            lambda: dy.t() @ x_live,
            live,
            few_m / m,
        ),
    ]
    if p > 0:
        out_mask = draw((m, n), p, block_shape=(BLOCK, 2 * BLOCK), device="cuda")
        few_n = max(BLOCK, round(n * (1 - p) / BLOCK) * BLOCK)
        w_corner = w_few[:few_n]
        y_few = torch.empty((m, few_n), device="cuda", dtype=x.dtype)
        products.append(
            Product(
                "both",
                lambda: sparsedrop.matmul(x, w.t(), a_mask=mask, out_mask=out_mask),
                lambda: torch.mm(x, w.t(), out=y),
                lambda: torch.mm(x_few, w_corner.t(), out=y_few),
                lambda: torch.where(out_mask.expand(), x_live @ w.t(), 0),
                live * out_mask.density(),
                few_k / k * few_n / n,
            )
        )
    return products


def check(product: Product) -> None:
    """RuntimeError where a product is not what cuBLAS makes of the masked operands."""
    with select.override(path="sm90"):
        ours = product.ours().float()
    theirs = product.masked().float()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error < 5e-3:  # two roundings to bfloat16 differ by at most 2^-8 each
        raise RuntimeError(f"{product.name} differs from masked cuBLAS by {error:.2e}")


if __name__ == "__main__":
    main()
