"""SparseDropLinear against nn.Dropout + nn.Linear: forward and backward, a new mask each time.

    python bench/training_step.py [--device cuda|cpu] [--shapes 4096x4096x4096 ...] [--p 0.5]

Wall-clock time through autograd, host work included, as in a training loop: the host waits for the
GPU once in STEPS steps. Models take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from sparsedrop.nn import SparseDropLinear
from timing import machine

STEPS = 10
SHAPES = {
    "cuda": ("4096x4096x4096", "16384x1024x4096", "8192x8192x8192"),
    "cpu": ("2048x2048x2048",),
}


def main() -> None:
    """Prints one Markdown table, and saves it with the machine's facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", help="MxNxK")
    parser.add_argument("--p", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32

    facts = machine()
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    print(f"\n| M×N×K, {str(dtype).removeprefix('torch.')}, p = {args.p} "
          "| Linear ms | Dropout + Linear ms | SparseDropLinear ms | speed-up |")  # fmt: skip
    print("| --- | --- | --- | --- | --- |")
    rows = []
    for shape in args.shapes or SHAPES[args.device]:
        m, n, k = (int(extent) for extent in shape.split("x"))
        x = torch.randn(m, k, device=args.device, dtype=dtype, requires_grad=True)
        grad = torch.randn(m, n, device=args.device, dtype=dtype)
        linear = nn.Linear(k, n, device=args.device, dtype=dtype)
        models = {
            "linear": linear,
            "dropout": nn.Sequential(nn.Dropout(args.p), linear),
            "ours": SparseDropLinear.from_linear(linear, p=args.p),
        }
        times = {
            name: statistics.median(t) for name, t in run(models, x, grad, args.rounds).items()
        }
        rows.append({"shape": shape, **times})
        print(f"| {shape} | {times['linear']:.3f} | {times['dropout']:.3f} | {times['ours']:.3f} "
              f"| {times['dropout'] / times['ours']:.2f} |", flush=True)  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps({"machine": facts, "p": args.p, "rows": rows}, indent=1))


def run(
    models: dict[str, nn.Module], x: torch.Tensor, grad: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of one step of each model, `rounds` times in turn, after three to warm up."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(rounds + 3):
        for name, model in models.items():
            _wait(x)
            begin = time.perf_counter()
            for _ in range(STEPS):
                x.grad = None
                model.zero_grad()
                model(x).backward(grad)
            _wait(x)
            if i >= 3:
                times[name].append((time.perf_counter() - begin) * 1e3 / STEPS)
    return times


def _wait(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
