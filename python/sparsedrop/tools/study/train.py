"""One training run of a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.evaluation import Record, Result, evaluate
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import TASKS
from sparsedrop.tools.study.trainer import Trainer

HEAVY = 8_000_000
"""Bytes of a state that take a while to save: a file system writes some 1e9 a second."""


class Run:
    """The training of one network. The seed decides its weights, its batches and what it drops.

    The data must be on the settings' device. Runs may take turns: each has generators of its own.
    """

    def __init__(self, method: Method, data: Dataset, settings: Settings, seed: int) -> None:
        self.method, self.seed, self.step = method, seed, 0
        self.records: list[Record] = []
        self._data, self._settings = data, settings
        torch.manual_seed(seed)
        self._trainer = Trainer(method, data, settings)
        self._order = torch.empty(0, 0, dtype=torch.int64)  # [epoch_steps, batch_size]
        self._generators = _generator_states(settings.device)

    @property
    def result(self) -> Result:
        return Result(self.seed, self.records)

    @property
    def is_done(self) -> bool:
        """At the last step, or when no evaluation of the last `patience` ones was the best."""
        if self.step >= self._settings.steps:
            return True
        patience = self._settings.preset.patience
        if patience is None or not self.records:
            return False
        return len(self.records) - 1 - self.records.index(self.result.best) >= patience

    @property
    def is_heavy(self) -> bool:
        """Whether to save it takes long next to a few steps."""
        values = sum(p.numel() * p.element_size() for p in self._trainer.model.parameters())
        return 3 * values > HEAVY  # with two states of the optimiser

    def advance(
        self, stop: int, done: Callable[[], object], is_over: Callable[[], bool] = lambda: False
    ) -> None:
        """Trains up to that step, calls `done` after each one, and evaluates if it is time to.

        Where `is_over` says so, it ends behind a step before.
        """
        _set_generator_states(self._generators, self._settings.device)
        self._trainer.model.train()
        while self.step < stop:
            self._trainer.step(self._next_batch())
            self.step += 1
            done()
            if self.step < stop and is_over():
                self._generators = _generator_states(self._settings.device)
                return
        self._generators = _generator_states(self._settings.device)
        if self._settings.is_evaluated_at(self.step):
            self._evaluate()

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on from here; of a finished run only its records."""
        state: dict[str, Any] = {
            "step": self.step,
            "is_done": self.is_done,
            "records": [list(r) for r in self.records],
        }
        if not self.is_done:
            state |= {
                "model": self._trainer.model.state_dict(),
                "optimizer": self._trainer.optimizer.state_dict(),
                "generators": self._generators,
                "order": self._order,
            }
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where the run was that has this state."""
        self.step, self.records = state["step"], [Record(*values) for values in state["records"]]
        if not state["is_done"]:
            self._trainer.model.load_state_dict(state["model"])
            self._trainer.optimizer.load_state_dict(state["optimizer"])
            self._generators = state["generators"]
            self._order = state["order"].to(self._settings.device)

    def _next_batch(self) -> Split:
        """Whole batches in random order. The rest of an epoch is left out, others each time."""
        settings = self._settings
        place = self.step % settings.epoch_steps
        if place == 0:
            # An epoch's own seed, and its batches drawn first: they are the same for every method.
            torch.manual_seed(self.seed * settings.epochs + self.step // settings.epoch_steps + 1)
            size = settings.preset.batch_size
            order = torch.randperm(len(self._data.train.targets))
            batches = order[: settings.epoch_steps * size].view(-1, size).clone()
            # Once an epoch: a copy from the host waits for the GPU.
            self._order = batches.to(settings.device)
        batch = self._order[place]
        return Split(*(tensor[batch] for tensor in self._data.train))

    def _evaluate(self) -> None:
        data, is_text = self._data, TASKS[self._settings.task].reads_text
        self._trainer.recalibrate(data.train.inputs)
        loss, accuracy = evaluate(self._trainer, data, data.validation, is_text=is_text)
        test_loss = test_accuracy = None
        if data.test is not None and not any(record.loss <= loss for record in self.records):
            test_loss, test_accuracy = evaluate(self._trainer, data, data.test, is_text=is_text)
        self.records.append(Record(self.step, loss, accuracy, test_loss, test_accuracy))


def _generator_states(device: torch.device) -> list[Tensor]:
    """The states of torch's default generators: the CPU's, and that of a GPU in use."""
    gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *gpu]


def _set_generator_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
