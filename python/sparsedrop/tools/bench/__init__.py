"""`sparsedrop bench`: the library's products and training steps, timed beside dense ones.

    sparsedrop bench           products against cuBLAS, dense and shrunk
    sparsedrop bench --step    training steps against nn.Dropout + nn.Linear
    sparsedrop bench --network mlp vit gpt    training steps of whole networks, in every mode
    sparsedrop bench --network wide-resnet-28-10 --methods none dropout sliceout --whole-step
    sparsedrop bench --network ffn ffn-wide stack    and of feed-forward blocks, and of a stack
    sparsedrop bench --network gpt2 bert vit-b-16    and of models of Hugging Face
    sparsedrop bench --step --dtype float32 --tf32    float32 that torch may multiply as TF32
    sparsedrop bench --tune --save    the constants of this GPU for the selection, and keep them
    sparsedrop bench --against OTHER/_C.so    products of this build against another's

Y = (X ∘ M_X) Wᵀ ∘ M_Y with X [M, K] and W [N, K]; M_Y only in the products named "both":

    forward  matmul(x, w.T, a_mask=m_x)                 both     ... and out_mask=m_y
    dX       matmul(dy, w, out_mask=m_x)                both-dX  ... and a_mask=m_y
    dW       matmul(dy.T, x, b_mask=m_x)                both-dW  ... and a_mask=m_y.T

"Shrunk" is the dense problem that has only the live extent, rounded to a multiple of 128: the
practical limit. "Of shrunk" compares rates: the library's live FLOPs per second over the FLOPs per
second of the shrunk problem. Each figure is a median over several masks, and for each mask over
laps in which the candidates take turns; it includes all that one call launches. A run of products
fails where one of them is not the dense one of the masked operands.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from sparsedrop.masks import SAMPLERS
from sparsedrop.tools import compact, machine
from sparsedrop.tools.arguments import DEVICES, block, count, pick_device, rate
from sparsedrop.tools.bench import against, network, step, sweep, tune
from sparsedrop.tools.bench.measure import WrongProductError, tf32_allowed
from sparsedrop.tools.bench.networks import NETWORKS, PRECISIONS
from sparsedrop.tools.bench.products import PRODUCTS, Extents
from sparsedrop.tools.bench.report import STOPPED
from sparsedrop.tools.bench.settings import DTYPES, KINDS, MODES, resolve
from sparsedrop.tools.cli import INTERRUPTED
from sparsedrop.tools.networks import DEFAULT_METHODS, METHODS

DEFAULT = " ".join(DEFAULT_METHODS)
RATES_HELP = "0.1 0.3 0.5 0.7, of a network its own"
OUT = Path("bench-results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sparsedrop bench`."""
    parser.description = (
        "Times the library's products beside dense ones of the whole and of the live extent, and "
        "prints one table; the folder --out gets it as JSON, and as a picture."
    )
    add = parser.add_argument
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--step", action="store_true", help="time training steps instead")
    kind.add_argument(
        "--tune", action="store_true", help="measure the selection's constants instead"
    )
    kind.add_argument(
        "--network", choices=tuple(NETWORKS), nargs="+", help="time steps of whole networks instead"
    )
    kind.add_argument(
        "--against",
        type=Path,
        metavar="SO",
        help="time products against those of another build, whose extension _C this is, and fail "
        "where they take longer than there",
    )
    add("--shapes", type=extents, nargs="+", metavar="MxNxK", help="default: ten, on a CPU two")
    add("--rates", type=rate, nargs="+", metavar="P", help=f"default: {RATES_HELP}")
    add(
        "--tf32",
        action="store_true",
        help="torch may multiply float32 as TF32: for --dtype float32",
    )
    names = list(PRODUCTS)
    add("--products", choices=names, nargs="+", default=names[:3], help="default: forward dX dW")
    dtype_help = "default: bfloat16 on a GPU, float32 on a CPU"
    add("--dtype", choices=tuple(DTYPES), nargs="+", help=dtype_help)
    block_help = "of the mask of X; default: 128x128"
    add("--block", type=block, default=(128, 128), metavar="RxC", help=block_help)
    add(
        "--both-block",
        type=block,
        nargs="+",
        default=[(128, 128), (128, 256)],
        metavar="RxC",
        help="of the mask of Y, for the products named both; default: 128x128 128x256",
    )
    add("--sampler", choices=SAMPLERS, default="bernoulli", help="default: bernoulli")
    add("--masks", type=count, metavar="N", help="draws for each row; default: 4, on a CPU 2")
    add("--device", choices=DEVICES, default="auto", help="default: auto")
    add("--seed", type=int, default=0, help="of operands and masks; default: 0")
    add("--quick", action="store_true", help="few shapes and rates")
    add("--tiles", action="store_true", help="time every legal tile too, and name the best")
    add(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="time torch BSR and STK too, where they are installed; default: no",
    )
    _add_tune_arguments(parser)
    add("--compile", action="store_true", help="with --step: under torch.compile too")
    amp_help = "with --step: float32 weights under autocast, and inputs of the dtype"
    add("--amp", action="store_true", help=amp_help)
    _add_network_arguments(parser)
    add("--out", type=Path, default=OUT, metavar="DIR", help=f"for the results; default: {OUT}")


def _add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    save_help = "with --tune: the selection goes by them from now on"
    parser.add_argument("--save", action="store_true", help=save_help)
    parser.add_argument(
        "--architecture",
        nargs="+",
        metavar="NAME",
        help="with --tune: of which kernels, such as sm80; default: all that run on the GPU",
    )


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--modes", choices=MODES, nargs="+", help="with --network; default: all of the device")
    add("--methods", choices=tuple(METHODS), nargs="+", help=f"likewise; default: {DEFAULT}")
    add(
        "--precision", choices=PRECISIONS, nargs="+", default=["amp"], help="likewise; default: amp"
    )
    add("--batch", type=count, metavar="N", help="likewise: samples; default: the network's own")
    add("--whole-step", action="store_true", help="likewise: the optimiser's step too")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes JSON and a picture.

    1 where a product is wrong, or slower than that of the build it is measured against; 130 where
    Ctrl-C stopped it, and what was done is saved.
    """
    settings = resolve(args, pick_device(args.device))
    kind = next((name for name in KINDS if getattr(args, name)), "products")
    facts = machine.facts(settings.device)
    title = machine.title(facts)
    print(title, flush=True)
    torch.manual_seed(settings.seed)
    try:
        with tf32_allowed() if settings.tf32 else nullcontext():
            report = _MEASURE[kind](settings)
    except WrongProductError as error:
        print(f"sparsedrop bench: {error}", file=sys.stderr)
        return 1

    print(f"\n{report.text}\n")
    print("\n".join([*report.sentences, *report.notes]))
    args.out.mkdir(parents=True, exist_ok=True)
    saved = [args.out / f"{kind}.json"]
    results = {
        "machine": facts,
        "arguments": settings.as_json(),
        **report.results,
        "summary": report.sentences,
        "notes": report.notes,
    }
    saved[0].write_text(compact.dumps(results))
    if report.panels and importlib.util.find_spec("matplotlib") is None:
        print('no picture: it needs matplotlib, pip install "sparsedrop[bench]"')
    elif report.panels:
        from sparsedrop.tools.bench import plot

        saved.append(args.out / f"{kind}.png")
        plot.save(report.panels, title, report.y_label, saved[-1])
    print("saved " + " and ".join(map(str, saved)))
    if STOPPED in report.notes:
        return INTERRUPTED
    return 1 if report.results.get("too_slow") else 0


_MEASURE = {
    "products": sweep.run,
    "step": step.run,
    "network": network.run,
    "tune": tune.run,
    "against": against.run,
}


def extents(text: str) -> Extents:
    """An argument such as 4096x4096x4096."""
    try:
        return Extents.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
