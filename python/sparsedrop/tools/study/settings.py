"""From the arguments to what a study does: its settings and its data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.tools.arguments import pick_device
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import dtype_name
from sparsedrop.tools.networks import METHODS, Drop
from sparsedrop.tools.study import images, text
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.tasks import TASKS, Preset, Task

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRESET_OPTIONS = ("width", "layers", "heads", "context", "batch_size", "lr", "weight_decay")


class Method(NamedTuple):
    word: str  # a key of METHODS
    p: float

    @property
    def name(self) -> str:
        return METHODS[self.word]

    @property
    def label(self) -> str:
        """With the rate where there is one."""
        return self.name if self.word == "none" else f"{self.name}, p = {self.p:g}"


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    task: str
    data: str
    digest: str  # of the data
    preset: Preset
    steps: int
    epoch_steps: int
    eval_every: int
    device: torch.device
    dtype: torch.dtype  # other than float32: that of autocast
    methods: tuple[Method, ...]

    @property
    def epochs(self) -> int:
        """Begun ones."""
        return -(-self.steps // self.epoch_steps)

    def drop(self, method: Method) -> Drop:
        return Drop(method.name, method.p, self.preset.block_shape, self.preset.sampler)

    def run_name(self, method: Method, seed: int) -> str:
        """Of a run's file."""
        rate = "" if method.word == "none" else f"-p{method.p!r}"
        return f"{self.task}-{method.word}{rate}-seed{seed}"

    def is_evaluated_at(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def stops(self) -> Iterator[int]:
        """The steps behind which a run is saved: evaluations, and ends of epochs."""
        for step in range(1, self.steps + 1):
            if self.is_evaluated_at(step) or step % self.epoch_steps == 0:
                yield step

    def as_json(self) -> dict[str, Any]:
        """What a single run depends on, as JSON values: neither methods nor seeds."""
        preset = asdict(self.preset)
        for key in ("seeds", "epochs", "steps", "eval_every"):
            del preset[key]
        return {
            "task": self.task,
            "data": self.data,
            "data_digest": self.digest,
            **preset,
            "block_shape": list(self.preset.block_shape),
            "steps": self.steps,
            "eval_every": self.eval_every,
            "device": self.device.type,
            "dtype": dtype_name(self.dtype),
        }


def resolve(args: argparse.Namespace) -> tuple[Settings, Dataset]:
    """The settings that the arguments ask for, and the data, on the device.

    Raises:
        UserError: for options that do not go together, and data that is missing or damaged.
    """
    task, device = TASKS[args.task], pick_device(args.device)
    _refuse_options_of_others(args, task)
    preset = _preset(args, task, device)
    if preset.heads is not None and preset.width % preset.heads:
        raise UserError(
            f"a --width of {preset.width} does not divide into --heads {preset.heads}: "
            f"make it a multiple"
        )
    data = _load(args, task, preset, device)
    name = _data_name(args, task)
    if preset.batch_size > len(data.train.targets):
        noun = "windows" if task.reads_text else "images"
        raise UserError(
            f"a batch of {preset.batch_size} is more than all {len(data.train.targets)} training "
            f"{noun} of {name}: give a smaller --batch-size"
        )
    epoch_steps = max(1, data.epoch // preset.batch_size)
    steps = preset.steps or (preset.epochs or 1) * epoch_steps
    settings = Settings(
        task=args.task,
        data=name,
        digest=data.digest,
        preset=preset,
        steps=steps,
        epoch_steps=epoch_steps,
        eval_every=preset.eval_every or epoch_steps,
        device=device,
        dtype=DTYPES.get(args.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32),
        methods=tuple(_methods(args)),
    )
    return settings, data


def _refuse_options_of_others(args: argparse.Namespace, task: Task) -> None:
    of_images = {"--data": args.data, "--data-dir": args.data_dir}
    unfit = dict(of_images) if task.reads_text else {"--data-file": args.data_file}
    if task.reads_text:
        advice = "it reads a text, which --data-file names"
    else:
        advice = "it reads images, which --data names"
    for option, value in unfit.items():
        if value is not None:
            raise UserError(f"{option} does not go with --task {args.task}: {advice}")
    if args.data_dir is not None and args.data not in images.IDX_SOURCES:
        names = " and ".join(images.IDX_SOURCES)
        raise UserError(f"--data-dir {args.data_dir} is of {names}: name one with --data")
    for name in ("heads", "context"):
        if getattr(args, name) is not None and getattr(task.paper, name) is None:
            fit = [word for word, other in TASKS.items() if getattr(other.paper, name) is not None]
            raise UserError(
                f"--{name} does not go with --task {args.task}: it is of {' and '.join(fit)}"
            )


def _preset(args: argparse.Namespace, task: Task, device: torch.device) -> Preset:
    """The task's own, with what the arguments change."""
    preset = task.preset(args.data or "digits", device)
    asked = {name: getattr(args, name) for name in (*PRESET_OPTIONS, "sampler", "seeds")}
    changes = {name: value for name, value in asked.items() if value is not None}
    if args.epochs or args.steps:
        changes |= {"epochs": args.epochs, "steps": args.steps}
    if args.eval_every:
        changes["eval_every"] = args.eval_every
    if args.block_shape:
        changes["block_shape"] = tuple(args.block_shape)
    elif device.type == "cuda":  # the kernels read no smaller blocks
        rows, columns = preset.block_shape
        changes["block_shape"] = (max(rows, MASK_UNIT), max(columns, MASK_UNIT))
    return replace(preset, **changes)


def _data_name(args: argparse.Namespace, task: Task) -> str:
    if not task.reads_text:
        return args.data or "digits"
    return text.OWN_TEXT if args.data_file is None else args.data_file.name


def _load(args: argparse.Namespace, task: Task, preset: Preset, device: torch.device) -> Dataset:
    try:
        if task.reads_text:
            assert preset.context is not None
            return text.load(args.data_file, preset.context, device)
        name = _data_name(args, task)
        data = images.load(name, args.data_dir, as_patches=args.task == "vit")
    except ValueError as error:
        raise UserError(str(error)) from error
    return data._replace(
        train=data.train.to(device),
        validation=data.validation.to(device),
        test=None if data.test is None else data.test.to(device),
    )


def _methods(args: argparse.Namespace) -> Iterator[Method]:
    """Each method at each rate; without dropout there is only one."""
    patterned = [word for word in args.methods if word.endswith("-pattern")]
    most = max(args.rates)
    if patterned and most > 7 / 8:
        raise UserError(f"--methods {patterned[0]} goes to a rate of 0.875, not {most:g}")
    for word in METHODS:
        if word in args.methods:
            rates = [0.0] if word == "none" else dict.fromkeys(args.rates)
            yield from (Method(word, p) for p in rates)
