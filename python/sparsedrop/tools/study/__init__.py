"""`sparsedrop study`: networks of the papers, trained side by side.

    sparsedrop study --task mlp           an MLP, on scikit-learn's digits or on real images
    sparsedrop study --task ard-mlp       likewise, as in Approximate Random Dropout
    sparsedrop study --task vit           a vision transformer, on the same
    sparsedrop study --task wide-resnet   a convolutional network, on the same
    sparsedrop study --task gpt           a transformer that predicts a text's next character
    sparsedrop study --task lstm          an LSTM that predicts a text's next word

Each is trained without dropout, with nn.Dropout and with methods of this library. All methods share
the data, the optimiser and, seed by seed, the initial weights and the order of the batches. At
every evaluation the validation loss is measured in evaluation mode; a run ends where it has not
become lower for a while, reports its step of least validation loss, and where there is a test part,
which that choice has not seen, its loss there too. How long a step takes is measured at the end, in
a pass of its own.

What a block is follows from the batch: its rows are samples of an MLP, and tokens of a transformer,
those of one sample next to each other. The rows of a block lose the same units together. A block as
high as the batch is the fastest, since a step then leaves out the same units for all its samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from typing import Any

from sparsedrop.tools import compact, machine
from sparsedrop.tools.arguments import plural
from sparsedrop.tools.cli import INTERRUPTED, UserError
from sparsedrop.tools.names import dtype_name
from sparsedrop.tools.study import options
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.interruption import Interruption
from sparsedrop.tools.study.resolving import resolve
from sparsedrop.tools.study.settings import Settings

# What the extra "study" brings, by the names of import.
REQUIRED = ("sklearn", "matplotlib", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sparsedrop study`."""
    options.add(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the tables, writes study.json, study.md and pictures.

    130 where it is interrupted. A study that --minutes ends reports the runs that are finished.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"cannot import {', '.join(missing)}: "
            'install what a study needs with pip install "sparsedrop[study]"'
        )
    minutes = math.inf if args.minutes is None else args.minutes
    interruption = Interruption(time.time() + 60 * minutes)
    settings, data = resolve(args)
    _make_folder(args)
    facts = machine.facts(settings.device)
    title = _title(data, settings, machine.title(facts))
    print(title, flush=True)
    try:
        with interruption.listening():
            _train(args, settings, data, interruption)
        if interruption.is_told:
            raise KeyboardInterrupt
        return _report(args, settings, data, title, facts)
    except KeyboardInterrupt:
        print(
            "sparsedrop study: interrupted; the same command with --resume goes on", file=sys.stderr
        )
        return INTERRUPTED


def _train(
    args: argparse.Namespace, settings: Settings, data: Dataset, interruption: Interruption
) -> None:
    # Only here: these modules import what may be missing, as those of the report do.
    from sparsedrop.tools.study import jobs, runs
    from sparsedrop.tools.study.checkpoint import Store

    store = Store(args.out / "runs", settings)
    if args.resume:
        store.check()
    else:
        store.clear()
    if args.jobs > 1:
        jobs.run_all(args, settings, interruption)
    else:
        runs.run_all(data, settings, store, interruption.is_over)


def _report(
    args: argparse.Namespace,
    settings: Settings,
    data: Dataset,
    title: str,
    facts: dict[str, Any],
) -> int:
    from sparsedrop.tools.plot.study import save_study
    from sparsedrop.tools.study import report, results, runs, tables, timing
    from sparsedrop.tools.study.checkpoint import Store

    found = runs.finished(settings, Store(args.out / "runs", settings))
    left = len(settings.methods) * settings.preset.seeds - sum(map(len, found.values()))
    if left:
        print(f"{plural(left, 'run')} left: the same command with --resume goes on")
    if not found:
        return 0
    times = {}
    if not left and not args.no_times:
        times = timing.measure(data, settings, lambda line: print(line, file=sys.stderr))
    rows = report.summarize(found, times)
    text = tables.as_markdown(rows, settings)
    print(text)
    as_json = results.as_json(rows, settings, facts)
    (args.out / "study.md").write_text(f"{title}\n\n{text}\n")
    (args.out / "study.json").write_text(compact.dumps(as_json))
    pictures = save_study(as_json, args.out / "study.png")
    saved = [args.out / "study.json", args.out / "study.md", *pictures]
    print(f"saved {', '.join(map(str, saved[:-1]))} and {saved[-1]}")
    return 0


def _make_folder(args: argparse.Namespace) -> None:
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "not a folder" if args.out.exists() else (error.strerror or str(error)).lower()
        raise UserError(f"cannot make the folder --out {args.out}: {why}") from error


def _title(data: Dataset, settings: Settings, where: str) -> str:
    preset = settings.preset
    words = {method.word for method in settings.methods}
    heads = "" if preset.heads is None else f", {plural(preset.heads, 'head')}"
    context = "" if preset.context is None else f", context {preset.context}"
    shapes = " ".join(f"{rows}x{columns}" for rows, columns in preset.block_shapes)
    blocks = f", blocks {shapes} ({preset.sampler})" if "sparsedrop" in words else ""
    is_by_period = preset.scale == "pattern" and words & {"row-pattern", "tile-pattern"}
    by_period = ", patterns scaled by their period" if is_by_period else ""
    patience = "" if preset.patience is None else f", patience {preset.patience}"
    return (
        f"{settings.task} ({plural(preset.layers, 'layer')}, width {preset.width}{heads}{context}) "
        f"on {settings.data}: {data.summary}\n"
        f"{plural(settings.steps, 'step')} of {preset.batch_size}{patience}{blocks}{by_period}, "
        f"{plural(preset.seeds, 'seed')}, {dtype_name(settings.dtype)}\n{where}"
    )
