"""What all runs of a study share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparsedrop.tools.names import dtype_name
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.preset import Preset


@dataclass(frozen=True)
class Settings:
    """The task, its data, and how it is trained; and the methods that are compared."""

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

    def run_name(self, method: Method, seed: int) -> str:
        """The name of a run's file, without its ending."""
        return f"{self.task}-{method.file_name}-seed{seed}"

    def runs(self) -> Iterator[tuple[Method, int]]:
        """All methods with the first seed, then with the second, ..."""
        for seed in range(self.preset.seeds):
            for method in self.methods:
                yield method, seed

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
        for key in ("seeds", "epochs", "steps", "eval_every", "block_shapes"):
            del preset[key]
        return {
            "task": self.task,
            "data": self.data,
            "data_digest": self.digest,
            **preset,
            "steps": self.steps,
            "eval_every": self.eval_every,
            "device": self.device.type,
            "dtype": dtype_name(self.dtype),
        }
