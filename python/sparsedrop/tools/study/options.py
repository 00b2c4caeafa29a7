"""The options of `sparsedrop study`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sparsedrop.masks import SAMPLERS, SCALES
from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.tools.arguments import DEVICES, block, count, not_negative, rate
from sparsedrop.tools.study import images, words
from sparsedrop.tools.study.method import NAMES
from sparsedrop.tools.study.tasks import TASKS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALL = "all"
"""In the place of methods: all that the task has a place for."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.description = (
        "Trains a network of one of the papers with no dropout, with nn.Dropout and with methods "
        "of this library, and prints tables of loss, accuracy and time; the folder --out gets them "
        "as study.json, study.md and pictures."
    )
    parser.epilog = (
        "Where two defaults are given, the first is for the digits, and for a text on a CPU; the "
        "second, mostly the paper's, for real images, and for a text on a GPU."
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="mlp", help="default: mlp")
    add(
        "--methods",
        choices=(*NAMES, ALL),
        nargs="+",
        help=f"{ALL}: each that the task has a place for; default: none, dropout and the paper's",
    )
    rates = [0.1, 0.3, 0.5]
    add("--rates", type=rate, nargs="+", default=rates, metavar="P", help="default: 0.1 0.3 0.5")
    _add_data(parser)
    add("--device", choices=DEVICES, default="auto", help="default: auto")
    dtype_help = "bfloat16 is by autocast; default: that on a GPU but for lstm, else float32"
    add("--dtype", choices=("auto", *DTYPES), default="auto", help=dtype_help)
    out = Path("study-results")
    add("--out", type=Path, default=out, metavar="DIR", help=f"for the results; default: {out}")
    add("--resume", action="store_true", help="go on from the runs in the folder --out")
    jobs_help = "runs at a time, spread over the GPUs there are; default: 1"
    add("--jobs", type=count, default=1, metavar="N", help=jobs_help)
    add("--minutes", type=not_negative, metavar="M", help="stop after so many, saved for --resume")
    add("--no-times", action="store_true", help="leave out the timing of steps at the end")
    _add_preset(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    data_help = (
        "of mlp, ard-mlp, vit and wide-resnet, default: scikit-learn's digits; of lstm ptb (Penn "
        "Treebank) or kjv (the King James Bible, by the program bible)"
    )
    add("--data", choices=(*images.NAMES, *words.NAMES), help=data_help)
    add("--data-dir", type=Path, metavar="DIR", help="folder of the files of --data")
    text_help = "of gpt and lstm: a text in UTF-8; default: Python's language reference"
    add("--data-file", type=Path, metavar="FILE", help=text_help)


def _add_preset(parser: argparse.ArgumentParser) -> None:
    """What a task's presets have; None is theirs."""
    add = parser.add_argument
    add("--seeds", type=count, metavar="N", help=f"runs of each method; {_defaults('seeds')}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=count, metavar="N", help=_defaults("epochs"))
    length.add_argument("--steps", type=count, metavar="N", help=_defaults("steps"))
    eval_help = f"steps between evaluations; {_defaults('eval_every')}; else an epoch"
    add("--eval-every", type=count, metavar="N", help=eval_help)
    patience_help = (
        "a run ends after so many evaluations without a lower validation loss; "
        f"{_defaults('patience')}; else at the last step"
    )
    add("--patience", type=count, metavar="N", help=patience_help)
    add("--batch-size", type=count, metavar="N", help=_defaults("batch_size"))
    width_help = f"hidden units, or how much a WideResNet is widened; {_defaults('width')}"
    add("--width", type=count, metavar="N", help=width_help)
    layers_help = f"hidden layers, or blocks, or all of a WideResNet; {_defaults('layers')}"
    add("--layers", type=count, metavar="N", help=layers_help)
    add("--heads", type=count, metavar="N", help=f"of attention; {_defaults('heads')}")
    add("--context", type=count, metavar="N", help=f"characters, words; {_defaults('context')}")
    add("--lr", type=not_negative, help=f"learning rate; {_defaults('lr')}")
    add("--weight-decay", type=not_negative, metavar="W", help=_defaults("weight_decay"))
    add("--clip", type=not_negative, metavar="NORM", help=f"gradients; {_defaults('clip')}")
    add(
        "--block-shapes",
        type=block,
        nargs="+",
        metavar="RxC",
        help=f"rows and columns that sparsedrop drops at once, each shape a row of the table; "
        f"{_defaults('block_shapes')}; on a GPU at least {MASK_UNIT} each, as its kernels need",
    )
    add("--sampler", choices=SAMPLERS, help=_defaults("sampler"))
    add("--scale", choices=SCALES, help=f"of what patterns keep; {_defaults('scale')}")


def _defaults(field: str) -> str:
    """The defaults of the tasks that have them, for a help text."""
    tasks: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        values = [getattr(preset, field) for preset in (task.small, task.paper)]
        words = [_word(value) for value in values if value not in (None, ())]
        if words:
            tasks.setdefault(" or ".join(dict.fromkeys(words)), []).append(name)
    (text, of), *others = tasks.items()
    if len(of) > 1 and not others:
        return f"default: {text}"
    return "default: " + "; ".join(f"{text} for {', '.join(of)}" for text, of in tasks.items())


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join("x".join(map(str, shape)) for shape in value)
    return str(value)
