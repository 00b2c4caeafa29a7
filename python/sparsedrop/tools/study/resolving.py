"""From the arguments to what a study does: its settings and its data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.tools.arguments import pick_device
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.study import characters, images, text, words
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.method import MOST_OF_PATTERNS, NAMES, PATTERNED, Method
from sparsedrop.tools.study.options import ALL, DTYPES
from sparsedrop.tools.study.preset import Preset
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import CHARACTERS, IMAGES, TASKS, WORDS, Task

CHANGED_BY_OPTIONS = (
    *("width", "layers", "heads", "context", "batch_size", "lr", "weight_decay", "clip"),
    *("sampler", "scale", "seeds", "patience", "eval_every"),
)

DATA_NAMES = {IMAGES: images.NAMES, WORDS: words.NAMES, CHARACTERS: ()}
IN_FILES = (*images.IN_FILES, "ptb")
"""Data that --data-dir is for."""


def resolve(args: argparse.Namespace) -> tuple[Settings, Dataset]:
    """The settings that the arguments ask for, and the data, on the device.

    Raises:
        UserError: for options that do not go together, and data that is missing or damaged.
    """
    task, device = TASKS[args.task], pick_device(args.device)
    _refuse_options_of_others(args, task)
    methods = _methods(args, task)
    preset = _preset(args, task, device)
    _check_size(args.task, task, preset)
    data = _load(args, task, preset, device)
    name = _data_name(args, task)
    if preset.batch_size > len(data.train.targets):
        noun = "windows" if task.reads_text else "images"
        raise UserError(
            f"a batch of {preset.batch_size} is more than all {len(data.train.targets)} training "
            f"{noun} of {name}: give a smaller --batch-size"
        )
    is_mixed = device.type == "cuda" and task.is_mixed
    epoch_steps = max(1, data.epoch // preset.batch_size)
    settings = Settings(
        task=args.task,
        data=name,
        digest=data.digest,
        preset=preset,
        steps=preset.steps or (preset.epochs or 1) * epoch_steps,
        epoch_steps=epoch_steps,
        eval_every=preset.eval_every or epoch_steps,
        device=device,
        dtype=DTYPES.get(args.dtype, torch.bfloat16 if is_mixed else torch.float32),
        methods=tuple(_at_rates(methods, args.rates, preset)),
    )
    return settings, data


def _refuse_options_of_others(args: argparse.Namespace, task: Task) -> None:
    names = DATA_NAMES[task.reads]
    if args.data is not None and args.data not in names:
        advice = f"it reads {', '.join(names)}" if names else "it reads the text of --data-file"
        raise UserError(f"--data {args.data} does not go with --task {args.task}: {advice}")
    if args.data_file is not None and not task.reads_text:
        raise UserError(
            f"--data-file does not go with --task {args.task}: it reads images, which --data names"
        )
    if args.data_file is not None and args.data is not None:
        raise UserError(f"--data-file and --data {args.data} are two texts: give one of them")
    if args.data_dir is not None and args.data not in IN_FILES:
        fit = [name for name in names if name in IN_FILES]
        advice = f"of {', '.join(fit)}: name one with --data" if fit else "not of --task gpt"
        raise UserError(f"--data-dir {args.data_dir} is {advice}")
    for name in ("heads", "context", "block_shapes", "sampler", "scale"):
        if getattr(args, name) is not None and not getattr(task.paper, name):
            *fit, last = (word for word, other in TASKS.items() if getattr(other.paper, name))
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} does not go with --task {args.task}: it is of {', '.join(fit)} and "
                f"{last}"
            )


def _check_size(name: str, task: Task, preset: Preset) -> None:
    if preset.heads is not None and preset.width % preset.heads:
        raise UserError(
            f"a --width of {preset.width} does not divide into --heads {preset.heads}: "
            f"make it a multiple"
        )
    if task.check_layers is not None:
        try:
            task.check_layers(preset.layers)
        except ValueError as error:
            raise UserError(
                f"--layers {preset.layers} does not go with --task {name}: {error}"
            ) from error


def _preset(args: argparse.Namespace, task: Task, device: torch.device) -> Preset:
    """The task's own, with what the arguments change."""
    preset = task.preset(args.data or "digits", device)
    asked = {name: getattr(args, name) for name in CHANGED_BY_OPTIONS}
    changes = {name: value for name, value in asked.items() if value is not None}
    if args.epochs or args.steps:
        changes |= {"epochs": args.epochs, "steps": args.steps}
    if args.block_shapes:
        changes["block_shapes"] = tuple(dict.fromkeys(args.block_shapes))
    elif device.type == "cuda":  # the kernels read no smaller blocks
        changes["block_shapes"] = tuple(
            (max(rows, MASK_UNIT), max(columns, MASK_UNIT)) for rows, columns in preset.block_shapes
        )
    return replace(preset, **changes)


def _data_name(args: argparse.Namespace, task: Task) -> str:
    if args.data_file is not None:
        return args.data_file.name
    return args.data or (text.OWN_TEXT if task.reads_text else "digits")


def _load(args: argparse.Namespace, task: Task, preset: Preset, device: torch.device) -> Dataset:
    try:
        if task.reads == IMAGES:
            name = _data_name(args, task)
            return images.load(name, args.data_dir, task.shape).to(device)
        assert preset.context is not None
        if task.reads == CHARACTERS:
            return characters.load(args.data_file, preset.context, device)
        return words.load(args.data, args.data_dir, args.data_file, preset.context, device)
    except ValueError as error:
        raise UserError(str(error)) from error


def _methods(args: argparse.Namespace, task: Task) -> list[str]:
    """The words that the arguments ask for, in the order of NAMES."""
    asked = args.methods or task.default_methods
    words = task.methods if ALL in asked else asked
    for word in words:
        if word not in task.methods:
            raise UserError(
                f"--methods {word} does not go with --task {args.task}, which has no place for it: "
                f"give some of {' '.join(task.methods)}"
            )
    patterned = [word for word in PATTERNED if word in words]
    most = max(args.rates)
    if patterned and most > MOST_OF_PATTERNS:
        raise UserError(
            f"--methods {patterned[0]} goes to a rate of {MOST_OF_PATTERNS:g}, not {most:g}"
        )
    return [word for word in NAMES if word in words]


def _at_rates(words: list[str], rates: list[float], preset: Preset) -> Iterator[Method]:
    """Each method at each rate, sparsedrop with each block; without dropout there is only one."""
    for word in words:
        blocks = preset.block_shapes if word == "sparsedrop" else [None]
        for p in [0.0] if word == "none" else dict.fromkeys(rates):
            yield from (Method(word, p, block) for block in blocks)
