"""`sparsedrop study`: the paper's MLP trained without dropout, with nn.Dropout and with SparseDrop.

    input - 1024 - ReLU - 1024 - ReLU - 10

Dropout acts on the inputs of the second and the last linear layer, which are the hidden
activations, and never on the image. All methods share the data, the optimiser (Adam) and, seed by
seed, the initial weights and the order of the images. After every epoch the validation loss is
measured in evaluation mode; a run reports its epoch of least validation loss, which is the paper's
early stopping with endless patience. To choose an epoch on the images one reports flatters every
method alike.

What a block is follows from the batch: its rows are images of one step, its columns hidden units,
and the images of a block row lose the same units together. A block as high as the batch is the
fastest, since a step then leaves out the same units for all its images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsedrop.masks import SAMPLERS
from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.tools.arguments import DEVICES, count, pick_device, plural, rate
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import device_name, dtype_name
from sparsedrop.tools.study import data

if TYPE_CHECKING:
    from sparsedrop.tools.study.train import Settings

# What the extra "study" brings, by the names of import.
REQUIRED = ("sklearn", "matplotlib", "tqdm")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sparsedrop study`."""
    parser.description = (
        "Trains the MLP of the SparseDrop paper with no dropout, nn.Dropout and SparseDropLinear, "
        "and prints one table of accuracy, loss and time; study.png and study.json have the same."
    )
    add = parser.add_argument
    add("--data", choices=data.SOURCES, default="digits", help="default: scikit-learn's digits")
    add("--data-dir", type=Path, metavar="DIR", help="folder of the IDX files of (Fashion-)MNIST")
    add("--device", choices=DEVICES, default="auto", help="default: auto")
    dtype_help = "bfloat16 is by autocast; default: that on a GPU, float32 on a CPU"
    add("--dtype", choices=("auto", *DTYPES), default="auto", help=dtype_help)
    rates = [0.1, 0.3, 0.5]
    add("--rates", type=rate, nargs="+", default=rates, metavar="P", help="default: 0.1 0.3 0.5")
    add("--seeds", type=count, default=3, metavar="N", help="runs of each method; default: 3")
    add("--epochs", type=count, metavar="N", help=_defaults("epochs"))
    add("--batch-size", type=count, metavar="N", help=_defaults("batch_size"))
    add(
        "--block-shape",
        type=count,
        nargs=2,
        metavar=("IMAGES", "UNITS"),
        help=f"what SparseDropLinear drops at once; {_defaults('block_shape')}; "
        f"on a GPU at least {MASK_UNIT} units, as its kernels need",
    )
    add("--sampler", choices=SAMPLERS, help=_defaults("sampler"))
    add("--lr", type=float, default=1e-3, help="learning rate of Adam; default: 0.001")
    out = Path("study-results")
    add("--out", type=Path, default=out, metavar="DIR", help=f"for the results; default: {out}")


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes study.png and study.json."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"cannot import {', '.join(missing)}: "
            'install what a study needs with pip install "sparsedrop[study]"'
        )
    # Not before that check: these modules import what may be missing.
    from sparsedrop.tools.study import plot, report, train

    settings = _settings(args)
    try:
        images = data.load(args.data, args.data_dir)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    available = len(images.train.labels)
    if settings.batch_size > available:
        raise UserError(f"a batch of {settings.batch_size} is more than all {available} images")
    args.out.mkdir(parents=True, exist_ok=True)

    title = _title(args.data, images, settings)
    print(title, flush=True)
    rows = report.summarize(train.run_all(images, settings))
    print(report.as_markdown(rows))
    plot.save(rows, title, args.out / "study.png")
    results = report.as_json(rows, settings, args.data)
    (args.out / "study.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"saved {args.out / 'study.png'} and {args.out / 'study.json'}")
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """The arguments with every default filled in."""
    from sparsedrop.tools.study.train import Settings

    source = data.SOURCES[args.data]
    device = pick_device(args.device)
    fastest = torch.bfloat16 if device.type == "cuda" else torch.float32
    block_images, block_units = args.block_shape or source.block_shape
    if device.type == "cuda" and args.block_shape is None:
        block_units = max(block_units, MASK_UNIT)  # narrower blocks are nothing to the kernels
    return Settings(
        rates=tuple(dict.fromkeys(args.rates)),
        seeds=args.seeds,
        epochs=args.epochs or source.epochs,
        batch_size=args.batch_size or source.batch_size,
        block_shape=(block_images, block_units),
        sampler=args.sampler or source.sampler,
        lr=args.lr,
        device=device,
        dtype=DTYPES.get(args.dtype, fastest),
    )


def _title(source: str, images: data.Dataset, settings: Settings) -> str:
    train, validation = (len(part.labels) for part in images)
    rows, columns = settings.block_shape
    machine = device_name(settings.device)
    if settings.device.type == "cpu":
        machine += f", {plural(torch.get_num_threads(), 'thread')}"
    return (
        f"{source}: {train} training and {validation} validation images, "
        f"{plural(settings.epochs, 'epoch')}, batch {settings.batch_size}, "
        f"blocks {rows}x{columns} ({settings.sampler}), {plural(settings.seeds, 'seed')}\n"
        f"{machine}, {dtype_name(settings.dtype)}, torch {torch.__version__}"
    )


def _defaults(field: str) -> str:
    """The default of each source, for a help text."""
    texts = []
    for name, source in data.SOURCES.items():
        value = getattr(source, field)
        words = value if isinstance(value, tuple) else (value,)
        texts.append(f"{' '.join(map(str, words))} for {name}")
    return "default: " + ", ".join(texts)
