"""One training run of a study."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.tools.clock import Clock
from sparsedrop.tools.networks import loss_of
from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.settings import Method, Settings
from sparsedrop.tools.study.tasks import TASKS

EVALUATED_ROWS = 1 << 16
"""Of a linear layer's input, at once."""


class Record(NamedTuple):
    """One evaluation. Accuracies are None for a text; so is the test where nothing is best yet."""

    step: int
    seconds: float  # of training, up to here
    step_ms: float  # median since the last evaluation
    loss: float
    accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None


class Result(NamedTuple):
    """One run, with the evaluations of it."""

    seed: int
    records: list[Record]

    @property
    def best(self) -> Record:
        """The record of least validation loss, the first of equal ones; NaN is more than any."""
        return min(self.records, key=lambda record: (record.loss != record.loss, record.loss))


class Run:
    """The training of one network. The seed decides its weights, its batches and what it drops.

    The data must be on the settings' device. Runs may take turns: each has generators of its own.
    """

    def __init__(self, method: Method, data: Dataset, settings: Settings, seed: int) -> None:
        self.method, self.seed, self.step = method, seed, 0
        self.records: list[Record] = []
        self._data, self._settings = data, settings
        torch.manual_seed(seed)
        task, preset = TASKS[settings.task], settings.preset
        self._model = task.build(data, preset, settings.drop(method)).to(settings.device)
        # Fused, so that a step's time is the network's rather than the optimiser's.
        kinds = {"lr": preset.lr, "weight_decay": preset.weight_decay, "fused": True}
        optimizer: Any = task.optimizer
        self._optimizer: torch.optim.Optimizer = optimizer(self._model.parameters(), **kinds)
        self._order = torch.empty(0, 0, dtype=torch.int64)  # [epoch_steps, batch_size]
        self._seconds, self._laps = 0.0, list[float]()
        self._generators = _generator_states(settings.device)

    @property
    def result(self) -> Result:
        return Result(self.seed, self.records)

    def advance(self, stop: int, done: Callable[[], object]) -> None:
        """Trains up to that step, calls `done` after each one, and evaluates if it is time to."""
        _set_generator_states(self._generators, self._settings.device)
        self._model.train()
        clock = Clock(self._settings.device)
        while self.step < stop:
            batch = self._next_batch()
            with clock:
                self._optimizer.zero_grad()
                logits = _logits(self._model, batch.inputs, self._settings)
                loss_of(logits, batch.targets).backward()
                self._optimizer.step()
            self.step += 1
            done()
        self._generators = _generator_states(self._settings.device)
        laps = clock.laps_ms()
        self._seconds += sum(laps) / 1e3
        self._laps += laps
        if self._settings.is_evaluated_at(self.step):
            self._evaluate()

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on from here; of a finished run only its records."""
        state: dict[str, Any] = {"step": self.step, "records": [list(r) for r in self.records]}
        if self.step < self._settings.steps:
            state |= {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "generators": self._generators,
                "order": self._order,
                "seconds": self._seconds,
                "laps": self._laps,
            }
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where the run was that has this state."""
        self.step, self.records = state["step"], [Record(*values) for values in state["records"]]
        if self.step < self._settings.steps:
            self._model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._generators, self._order = state["generators"], state["order"]
            self._seconds, self._laps = state["seconds"], state["laps"]

    def _next_batch(self) -> Split:
        """Whole batches in random order. The rest of an epoch is left out, others each time."""
        settings = self._settings
        place = self.step % settings.epoch_steps
        if place == 0:
            # An epoch's own seed, and its batches drawn first: they are the same for every method.
            torch.manual_seed(self.seed * settings.epochs + self.step // settings.epoch_steps + 1)
            size = settings.preset.batch_size
            order = torch.randperm(len(self._data.train.targets))
            self._order = order[: settings.epoch_steps * size].view(-1, size).clone()
        batch = self._order[place].to(settings.device)
        return Split(*(tensor[batch] for tensor in self._data.train))

    def _evaluate(self) -> None:
        loss, accuracy = evaluate(self._model, self._data, self._data.validation, self._settings)
        test = self._data.test
        test_loss = test_accuracy = None
        if test is not None and not any(record.loss <= loss for record in self.records):
            test_loss, test_accuracy = evaluate(self._model, self._data, test, self._settings)
        step_ms = statistics.median(self._laps)
        self.records.append(
            Record(self.step, self._seconds, step_ms, loss, accuracy, test_loss, test_accuracy)
        )
        self._laps = []


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Dataset, split: Split, settings: Settings
) -> tuple[float, float | None]:
    """Mean loss and, of images, accuracy in evaluation mode: nothing is dropped."""
    model.eval()
    loss, correct = 0.0, 0
    size = max(1, EVALUATED_ROWS // data.rows)
    for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
        logits = _logits(model, inputs, settings)
        loss += loss_of(logits, targets).item() * len(targets)
        correct += int((logits.argmax(-1) == targets).sum())
    count = len(split.targets)
    return loss / count, None if TASKS[settings.task].reads_text else correct / count


def _logits(model: nn.Module, inputs: Tensor, settings: Settings) -> Tensor:
    device, dtype = settings.device.type, settings.dtype
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model(inputs)


def _generator_states(device: torch.device) -> list[Tensor]:
    """Of torch's default generators: the CPU's, and that of a GPU in use."""
    gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *gpu]


def _set_generator_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
