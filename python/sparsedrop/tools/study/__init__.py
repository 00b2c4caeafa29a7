"""`sparsedrop study`: networks of the SparseDrop paper trained side by side.

    sparsedrop study --task mlp    an MLP, on scikit-learn's digits or on (Fashion-)MNIST
    sparsedrop study --task vit    a vision transformer, on the same
    sparsedrop study --task gpt    a transformer that predicts a text's next character

Each is trained without dropout, with nn.Dropout and with this library: SparseDropLinear, and in a
transformer's feed-forward blocks SparseDropMLP. All methods share the data, the optimiser and, seed
by seed, the initial weights and the order of the batches. At every evaluation the validation loss
is measured in evaluation mode; a run reports its step of least validation loss, which is the
paper's early stopping with endless patience, and where there is a test part, which that choice has
not seen, its loss there too.

What a block is follows from the batch: its rows are samples of an MLP, and tokens of a transformer,
those of one sample next to each other. The rows of a block lose the same units together. A block as
high as the batch is the fastest, since a step then leaves out the same units for all its samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from sparsedrop.masks import SAMPLERS
from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.tools import compact, machine
from sparsedrop.tools.arguments import DEVICES, count, not_negative, plural, rate
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import dtype_name
from sparsedrop.tools.networks import DEFAULT_METHODS, METHODS
from sparsedrop.tools.study import images
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.settings import DTYPES, Settings, resolve
from sparsedrop.tools.study.tasks import TASKS

# What the extra "study" brings, by the names of import.
REQUIRED = ("sklearn", "matplotlib", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sparsedrop study`."""
    parser.description = (
        "Trains a network of the SparseDrop paper with no dropout, nn.Dropout and "
        "sparsedrop, and prints one table of loss, accuracy and time; study.png and "
        "study.json have the courses of training."
    )
    parser.epilog = (
        "Where two defaults are given, the first is for the digits, and for a text on a CPU; the "
        "second, mostly the paper's, for (Fashion-)MNIST, and for a text on a GPU."
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="mlp", help="default: mlp")
    methods_help = f"default: {' '.join(DEFAULT_METHODS)}"
    add(
        "--methods",
        choices=tuple(METHODS),
        nargs="+",
        default=list(DEFAULT_METHODS),
        help=methods_help,
    )
    rates = [0.1, 0.3, 0.5]
    add("--rates", type=rate, nargs="+", default=rates, metavar="P", help="default: 0.1 0.3 0.5")
    add("--data", choices=images.NAMES, help="of mlp and vit; default: scikit-learn's digits")
    add("--data-dir", type=Path, metavar="DIR", help="folder of the IDX files of (Fashion-)MNIST")
    text_help = "of gpt: a text in UTF-8; default: Python's language reference"
    add("--data-file", type=Path, metavar="FILE", help=text_help)
    add("--device", choices=DEVICES, default="auto", help="default: auto")
    dtype_help = "bfloat16 is by autocast; default: that on a GPU, float32 on a CPU"
    add("--dtype", choices=("auto", *DTYPES), default="auto", help=dtype_help)
    out = Path("study-results")
    add("--out", type=Path, default=out, metavar="DIR", help=f"for the results; default: {out}")
    add("--resume", action="store_true", help="go on from the runs in the folder --out")
    _add_preset_arguments(parser)


def _add_preset_arguments(parser: argparse.ArgumentParser) -> None:
    """What a task's presets have; None is theirs."""
    add = parser.add_argument
    add("--seeds", type=count, metavar="N", help=f"runs of each method; {_defaults('seeds')}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=count, metavar="N", help=_defaults("epochs"))
    length.add_argument("--steps", type=count, metavar="N", help=_defaults("steps"))
    eval_help = f"steps between evaluations; {_defaults('eval_every')}; else an epoch"
    add("--eval-every", type=count, metavar="N", help=eval_help)
    add("--batch-size", type=count, metavar="N", help=_defaults("batch_size"))
    add("--width", type=count, metavar="N", help=f"hidden units; {_defaults('width')}")
    add(
        "--layers", type=count, metavar="N", help=f"hidden layers, or blocks; {_defaults('layers')}"
    )
    add("--heads", type=count, metavar="N", help=f"of attention; {_defaults('heads')}")
    add("--context", type=count, metavar="N", help=f"characters; {_defaults('context')}")
    add("--lr", type=not_negative, help=f"learning rate; {_defaults('lr')}")
    add("--weight-decay", type=not_negative, metavar="W", help=_defaults("weight_decay"))
    add(
        "--block-shape",
        type=count,
        nargs=2,
        metavar=("ROWS", "UNITS"),
        help=f"what sparsedrop drops at once; {_defaults('block_shape')}; "
        f"on a GPU at least {MASK_UNIT} each, as its kernels need",
    )
    add("--sampler", choices=SAMPLERS, help=_defaults("sampler"))


def _defaults(field: str) -> str:
    """The defaults of the tasks that have them, for a help text."""
    texts = []
    for name, task in TASKS.items():
        values = [getattr(preset, field) for preset in (task.small, task.paper)]
        words = [" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
        if values[1] is not None:
            texts.append(f"{' or '.join(dict.fromkeys(words))} for {name}")
    return "default: " + ", ".join(texts)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes study.png and study.json; 130 where it is interrupted."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"cannot import {', '.join(missing)}: "
            'install what a study needs with pip install "sparsedrop[study]"'
        )
    # Not before that check: these modules import what may be missing.
    from sparsedrop.tools.study import plot, report
    from sparsedrop.tools.study.checkpoint import Store
    from sparsedrop.tools.study.runs import run_all

    settings, data = resolve(args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "not a folder" if args.out.exists() else (error.strerror or str(error)).lower()
        raise UserError(f"cannot make the folder --out {args.out}: {why}") from error
    facts = machine.facts(settings.device)
    title = _title(data, settings, machine.title(facts))
    print(title, flush=True)
    try:
        store = Store(args.out / "runs", settings)
        results = run_all(data, settings, store, resume=args.resume)
    except KeyboardInterrupt:
        print(
            "sparsedrop study: interrupted; the same command with --resume goes on", file=sys.stderr
        )
        return 130
    rows = report.summarize(results)
    print(report.as_markdown(rows))
    plot.save(rows, title, args.out / "study.png")
    found = report.as_json(rows, settings, facts)
    (args.out / "study.json").write_text(compact.dumps(found))
    print(f"saved {args.out / 'study.png'} and {args.out / 'study.json'}")
    return 0


def _title(data: Dataset, settings: Settings, where: str) -> str:
    preset = settings.preset
    rows, columns = preset.block_shape
    heads = "" if preset.heads is None else f", {plural(preset.heads, 'head')}"
    context = "" if preset.context is None else f", context {preset.context}"
    return (
        f"{settings.task} ({plural(preset.layers, 'layer')}, width {preset.width}{heads}{context}) "
        f"on {settings.data}: {data.summary}\n"
        f"{plural(settings.steps, 'step')} of {preset.batch_size}, "
        f"blocks {rows}x{columns} ({preset.sampler}), {plural(preset.seeds, 'seed')}, "
        f"{dtype_name(settings.dtype)}\n{where}"
    )
