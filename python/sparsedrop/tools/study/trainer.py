"""A network with its optimiser, and one step of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparsedrop
from sparsedrop.tools.networks import loss_of
from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import TASKS

CALIBRATION = 32
"""Batches of training data that the statistics of batch norms are of in an evaluation."""


class Trainer:
    """The settings' network with that dropout, on their device.

    With `is_captured` its step can be captured in a CUDA graph.
    """

    def __init__(
        self, method: Method, data: Dataset, settings: Settings, *, is_captured: bool = False
    ) -> None:
        task, preset = TASKS[settings.task], settings.preset
        self._settings = settings
        model = task.build(data, preset, method.drop(preset.sampler, preset.scale))
        self.model: nn.Module = model.to(settings.device)
        # Fused, so that a step's time is the network's rather than the optimiser's.
        options: dict[str, Any] = {"lr": preset.lr, "weight_decay": preset.weight_decay}
        options |= {"fused": True, **task.options}
        if is_captured and task.optimizer is not torch.optim.SGD:  # whose state needs no count
            options["capturable"] = True
        optimizer: Any = task.optimizer
        self.optimizer: torch.optim.Optimizer = optimizer(self.model.parameters(), **options)

    def step(self, batch: Split) -> None:
        """Forward, backward, and the optimiser's step."""
        self.optimizer.zero_grad()
        loss_of(self.logits(batch.inputs), batch.targets).backward()
        if self._settings.preset.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.preset.clip)
        self.optimizer.step()

    def logits(self, inputs: Tensor) -> Tensor:
        """What the network makes of inputs, in the settings' dtype."""
        with self._autocast():
            return self.model(inputs)

    def recalibrate(self, inputs: Tensor) -> None:
        """Gives batch norms the statistics of the network without dropout, of the first of these
        training inputs; networks without are left alone.

        Training goes on as without: its batch norms read no statistics, and no number is drawn.
        """
        if any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
            batches = inputs.split(self._settings.preset.batch_size)
            with self._autocast():
                sparsedrop.slice_out.recalibrate_bn(self.model, batches, CALIBRATION)

    def _autocast(self) -> torch.autocast:
        device, dtype = self._settings.device.type, self._settings.dtype
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)
